"""STDC1-Seg and STDC2-Seg (Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", CVPR 2021).

A trunk of short-term dense concatenate modules, BiSeNet's context path on its last two stages, and in training a head
that finds the details (the borders of the labels) at output stride 8 in place of BiSeNet's spatial path.

Readings (where the authors' public code, whose weights are those to be had, differs from the paper or from this project):
  * the decoder upsamples by nearest neighbours, and its classifiers have no bias;
  * the decoder's norms are the code's InPlaceABN, whose scale is |weight| + 1e-5; here they are plain, and public weights
    are converted;
  * scores are upsampled with half-pixel centres, as everywhere here, where the code aligns the corners: towards the
    frame's border its classes lie up to half a cell further out (`eval.align_corners`, which public weights come with);
  * detail heads on the other strides, which the published recipe leaves out, are not here;
  * the target of the detail head mixes borders of strides 1, 2 and 4 by 0.6, 0.3 and 0.1, and takes what exceeds 0.1: the
    border of stride 4 by itself does not, in float32 as there, and so adds nothing. Ignored pixels are one class more.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rtseg_jax.nn import losses
from rtseg_jax.nn.conv import Conv, ConvBatchNorm, ConvBatchNormReLU
from rtseg_jax.nn.pool import avg_pool, global_avg_pool
from rtseg_jax.nn.resize import resize_nearest

STAGES = (256, 512, 1024)  # channels at output strides 8, 16 and 32
# Channels of the context path, after the fusion, in training heads.
CONTEXT, FUSION, HEAD = 128, 256, 64

fan_in_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class ShortTermDenseConcatenate(nn.Module):
    """The STDC module (Fig. 3): four convolutions in a row, side by side in the output.

    Attributes:
        features: Output channels: a half, a quarter and two eighths of them.
        stride: With 2, a depth-wise convolution follows the first one, and an average pool takes its map to the output.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        def conv(name, x, share, size):
            return ConvBatchNormReLU(
                self.features // share, (size, size), dtype=self.dtype, name=name
            )(x, train=train)

        x = first = conv("conv1", x, 2, 1)
        if self.stride == 2:
            x = ConvBatchNorm(None, strides=(2, 2), dtype=self.dtype, name="down")(x, train=train)
            first = avg_pool(first, (3, 3), (2, 2), (1, 1))
        second = conv("conv2", x, 4, 3)
        third = conv("conv3", second, 8, 3)
        return jnp.concatenate([first, second, third, conv("conv4", third, 8, 3)], axis=-1)


class STDC(nn.Module):
    """The trunk (Table 2): two strided convolutions, then three stages of STDC modules.

    Attributes:
        repeats: Modules of the three stages.
    """

    repeats: tuple[int, int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Returns the stages by output stride: 8 (256 channels), 16 (512), 32 (1024)."""
        x = image
        for i, channels in enumerate((32, 64)):
            x = ConvBatchNormReLU(channels, strides=(2, 2), dtype=self.dtype, name=f"layer{i}")(
                x, train=train
            )
        maps, layer = {}, 2
        for stage, (channels, repeats) in enumerate(zip(STAGES, self.repeats, strict=True)):
            for i in range(repeats):
                x = ShortTermDenseConcatenate(
                    channels, 1 if i else 2, self.dtype, name=f"layer{layer}"
                )(x, train=train)
                layer += 1
            maps[8 << stage] = x
        return maps


def _conv(module, name, x, features, size, train, activation=nn.relu):
    """The decoder's convolution with its norm."""
    options = {"activation": activation, "kernel_init": fan_in_normal, "dtype": module.dtype}
    return ConvBatchNorm(features, (size, size), **options, name=name)(x, train=train)


def _pointwise(module, name, x, features):
    """The decoder's 1x1 convolution without a norm, and without a bias."""
    options = {"use_bias": False, "kernel_init": fan_in_normal, "dtype": module.dtype}
    return Conv(features, (1, 1), **options, name=name)(x)


class AttentionRefinement(nn.Module):
    """BiSeNet's ARM: a 3x3 convolution, its channels weighted by their means (ECCV 2018, Fig. 2b)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w 128"]:
        x = _conv(self, "conv", x, CONTEXT, 3, train)
        return x * _conv(self, "attention", global_avg_pool(x), CONTEXT, 1, train, jax.nn.sigmoid)


class ContextPath(nn.Module):
    """The two last stages, refined and led to the finer resolution; the mean of the last one is added first."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, maps: dict[int, Float[Array, "b _ _ _"]], *, train: bool
    ) -> tuple[Float[Array, "b h8 w8 128"], Float[Array, "b h16 w16 128"]]:
        """Returns the path's maps at output strides 8 and 16."""
        x = _conv(self, "mean", global_avg_pool(maps[32]), CONTEXT, 1, train)
        outputs = []
        for stride in (32, 16):
            x = x + AttentionRefinement(self.dtype, name=f"refine{stride}")(
                maps[stride], train=train
            )
            x = resize_nearest(x, maps[stride // 2].shape[1:3])
            x = _conv(self, f"smooth{stride}", x, CONTEXT, 3, train)
            outputs.insert(0, x)
        return tuple(outputs)


class FeatureFusion(nn.Module):
    """BiSeNet's FFM: both maps in a 1x1 convolution, its channels weighted, a shortcut (ECCV 2018, Fig. 2c)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, spatial: Float[Array, "b h w c"], context: Float[Array, "b h w c2"], *, train: bool
    ) -> Float[Array, "b h w 256"]:
        x = jnp.concatenate([spatial, context], axis=-1)
        x = _conv(self, "conv", x, FUSION, 1, train)
        weight = nn.relu(_pointwise(self, "reduce", global_avg_pool(x), FUSION // 4))
        return x * jax.nn.sigmoid(_pointwise(self, "expand", weight, FUSION)) + x


class Head(nn.Module):
    """A 3x3 and a 1x1 convolution.

    Attributes:
        width: Channels between the two.
        outputs: Channels of the scores.
    """

    width: int
    outputs: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w outputs"]:
        x = _conv(self, "conv", x, self.width, 3, train)
        return _pointwise(self, "scores", x, self.outputs).astype(jnp.float32)


class STDCSeg(nn.Module):
    """STDC-Seg (Fig. 4).

    Attributes:
        repeats: Modules of the trunk's stages: (2, 2, 2) in STDC1, (4, 5, 3) in STDC2.
        dtype: The type that is computed in; parameters, statistics and logits are float32.
    """

    num_classes: int
    repeats: tuple[int, int, int] = (2, 2, 2)
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if len(self.repeats) != len(STAGES) or min(self.repeats) < 1:
            raise ValueError(f"repeats {self.repeats} must be three numbers of 1 or more")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b _ _ _"]]:
        """Returns "logits", float32 scores at output stride 8.

        Under train also "aux8" and "aux16", scores of the context path at 8 and 16, and "detail", one logit at 8.
        """
        maps = STDC(self.repeats, self.dtype, name="backbone")(image, train=train)
        context8, context16 = ContextPath(self.dtype, name="context")(maps, train=train)
        x = FeatureFusion(self.dtype, name="fusion")(maps[8], context8, train=train)

        def head(name, x, width, outputs):
            return Head(width, outputs, self.dtype, name=name)(x, train=train)

        outputs = {"logits": head("classifier", x, FUSION, self.num_classes)}
        if train:
            outputs["aux8"] = head("aux8", context8, HEAD, self.num_classes)
            outputs["aux16"] = head("aux16", context16, HEAD, self.num_classes)
            outputs["detail"] = head("detail", maps[8], HEAD, 1)
        return outputs


def detail_target(label: Int[Array, "b h w"]) -> Float[Array, "b h w"]:
    """1 at the borders of the labels and 0 elsewhere (Section 3.3, "Detail Ground-truth Generation").

    A border is where the Laplacian of the labels is positive: the side of the larger number. The image's rim is one
    too, but for class 0.
    """
    x = jnp.pad(label.astype(jnp.float32), ((0, 0), (1, 1), (1, 1)))
    rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    border = (9 * x[:, 1:-1, 1:-1] - around > 0.1).astype(jnp.float32)[..., None]

    def coarse(stride):
        return resize_nearest(border[:, ::stride, ::stride], border.shape[1:3])

    mixed = 0.6 * border + 0.3 * coarse(2) + 0.1 * coarse(4)
    return (mixed > jnp.float32(0.1)).astype(jnp.float32)[..., 0]


def detail_losses(
    logits: Float[Array, "b _ _ 1"], label: Int[Array, "b h w"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Binary cross-entropy and dice loss of the details, at the label's size (Eqs. 2 and 3)."""
    target = detail_target(label)
    x = losses.upsample_class_maps(logits, label.shape[1:3])[:, 0]
    entropy = jnp.mean(jax.nn.softplus(x) - x * target)
    p = jax.nn.sigmoid(x)
    both, either = jnp.sum(p * target, (1, 2)), jnp.sum(p, (1, 2)) + jnp.sum(target, (1, 2))
    return entropy, jnp.mean(1 - (2 * both + 1) / (either + 1))


def loss(
    outputs: dict[str, Float[Array, "b _ _ _"]],
    batch: dict[str, Array],
    *,
    detail_weight: float,
    **options: Any,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """OHEM cross-entropies of three heads, and the two losses of the details (Section 3.3).

    Args:
        outputs: What the network returned under train=True.
        batch: "label" [b, h, w] int32 train ids, 255 = ignore.
        detail_weight: Of both losses of the details.
        **options: Those of losses.auxiliary_loss().

    Returns:
        The loss and its terms by name, before their weights.
    """
    scores = {name: value for name, value in outputs.items() if name != "detail"}
    value, terms = losses.auxiliary_loss(scores, batch, **options)
    entropy, dice = detail_losses(outputs["detail"], batch["label"])
    value = value + detail_weight * (entropy + dice)
    return value, {**terms, "loss": value, "detail": entropy, "dice": dice}
