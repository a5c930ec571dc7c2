"""ASAP (Park et al., "Accurate Semantic Segmentation for Real Time Performance").

ResNet-18 with a light feature pyramid, whose four levels meet on one grid, are fused by two normalisations of one
1x1 convolution, and attend to each other by columns of the image. This file holds the network with the ablations of
Tables II and III, and the loss.

Readings (where the paper is silent or contradicts itself, and what its tables settle):
  * the grid is at output stride 8, not at P1's 4: Table III counts 128x128 cells, which is the 1024x1024 of the test
    divided by 8, and only then the network can be as fast as printed. `fuse_stride` 4 is the text's;
  * the "simply modified FPN" has 64 channels, no 3x3 smoothing, half-pixel bilinear upsampling; its four levels are
    concatenated to the 256 channels that Table III asks for. Summed levels of 256 cost about the same (`merge`);
  * FFDN is one 1x1 convolution, with bias, to 128 channels, and the two norms of it side by side: 0.54 GFLOPs in
    Table III, half of a 256 -> 256 one. A sum, or U-GAT-IT's learned mixture, can be chosen (`norm_mix`);
  * layer normalisation is over all of an image's cells and channels (Eq. 1; "all the hidden units in a layer share the
    same terms"), epsilon 1e-5 and no scale or shift for both ("without any additional parameters");
  * with one norm alone (Table II) the 1x1 convolution gives all 256 channels;
  * "General" of Table III is a 1x1 convolution weighted by the sigmoid of another one of its mean, both with
    BatchNorm: 1.08 GFLOPs. No residual (`general_residual`);
  * Eq. 4 writes V with C^ channels, which the sum with F forbids: queries and keys have 256 / 4, values 256. Its R
    repeats the one row. No scale 1/sqrt(C^), no weight before the residual (`attention_gamma` is one that starts at 0);
  * one block of 3x3 convolution, BatchNorm and ReLU stands before the classifier, as the FPS allow;
  * each auxiliary loss has a 1x1 convolution on P3 or P4 (64 channels); their weights are both 1.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.models.zoo.resnet import ResNet
from rtseg_jax.nn import losses
from rtseg_jax.nn.attention import dot_product_attention
from rtseg_jax.nn.conv import Conv, ConvBatchNorm, ConvBatchNormReLU, kaiming_normal_fan_out
from rtseg_jax.nn.pool import global_avg_pool
from rtseg_jax.nn.resize import resize_bilinear

FUSIONS = ("ffdn", "ln", "in", "general", "none")
ATTENTIONS = ("vertical", "horizontal", "conventional", "none")
MERGES = ("cat", "sum")
NORM_MIXES = ("concat", "sum", "rho")
LAYER_NORM_AXES = ("chw", "c")
STRIDES = (4, 8, 16, 32)  # of P1 to P4
EPSILON = 1e-5


def _pointwise(features: int, dtype: DTypeLike, name: str) -> Conv:
    return Conv(
        features,
        (1, 1),
        kernel_init=kaiming_normal_fan_out,
        bias_init=nn.initializers.zeros,
        dtype=dtype,
        name=name,
    )


class FeaturePyramid(nn.Module):
    """The modified FPN (Fig. 1): 1x1 laterals and a top-down path of sums."""

    features: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, features: dict[int, Float[Array, "b _ _ _"]], *, train: bool
    ) -> tuple[Float[Array, "b _ _ c"], ...]:
        """Returns P1 to P4, finest first."""
        levels = []
        for i, stride in reversed(list(enumerate(STRIDES, start=1))):
            x = ConvBatchNormReLU(self.features, (1, 1), dtype=self.dtype, name=f"lateral{i}")(
                features[stride], train=train
            )
            if levels:
                x = x + resize_bilinear(levels[-1], x.shape[1:3])
            levels.append(x)
        return tuple(reversed(levels))


def different_norms(
    x: Float[Array, "b h w c"], axes: str = "chw"
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Layer and instance normalisation of one map (Eqs. 1 and 2), in float32, without scale and shift.

    The statistics of "chw" follow from those of each channel, so that the map is read once for both.

    Args:
        x: The map.
        axes: What the layer normalisation averages over: "chw", or "c", each cell by itself.
    """
    dtype, x = x.dtype, x.astype(jnp.float32)
    mean = jnp.mean(x, (1, 2), keepdims=True)
    var = jnp.mean(jnp.square(x - mean), (1, 2), keepdims=True)
    instance = (x - mean) * lax.rsqrt(var + EPSILON)
    if axes == "chw":
        whole = jnp.mean(mean, 3, keepdims=True)
        spread = jnp.mean(var + jnp.square(mean - whole), 3, keepdims=True)
    else:
        whole = jnp.mean(x, 3, keepdims=True)
        spread = jnp.mean(jnp.square(x - whole), 3, keepdims=True)
    layer = (x - whole) * lax.rsqrt(spread + EPSILON)
    return layer.astype(dtype), instance.astype(dtype)


class FeatureFusionDifferentNorms(nn.Module):
    """Feature Fusion with Different Norms, FFDN (Fig. 2): one 1x1 convolution, normalised in two ways.

    Attributes:
        features: Output channels.
        norm: "ffdn", or one of the two alone, "ln" or "in" (Table II).
        mix: How the two meet: "concat", "sum", or U-GAT-IT's learned "rho".
        axes: What the layer normalisation averages over, see different_norms.
    """

    features: int
    norm: str = "ffdn"
    mix: str = "concat"
    axes: str = "chw"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w features"]:
        halved = self.norm == "ffdn" and self.mix == "concat"
        width = self.features // 2 if halved else self.features
        y = _pointwise(width, self.dtype, "conv")(x)
        layer, instance = different_norms(y, self.axes)
        if self.norm != "ffdn":
            return layer if self.norm == "ln" else instance
        if self.mix == "concat":
            return jnp.concatenate([layer, instance], axis=-1)
        if self.mix == "sum":
            return layer + instance
        rho = self.param("rho", nn.initializers.constant(0.9), (width,), jnp.float32)
        rho = jnp.clip(rho, 0.0, 1.0).astype(y.dtype).reshape(1, 1, 1, -1)
        return rho * instance + (1 - rho) * layer


class GeneralFusion(nn.Module):
    """The convolutional fusion that FFDN replaces ("General" in Table III): channels weighted by their mean.

    Attributes:
        features: Output channels.
        residual: Add the unweighted map.
    """

    features: int
    residual: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w features"]:
        x = ConvBatchNormReLU(self.features, (1, 1), dtype=self.dtype, name="conv")(x, train=train)
        weight = ConvBatchNorm(
            self.features, (1, 1), activation=nn.sigmoid, dtype=self.dtype, name="attention"
        )(global_avg_pool(x), train=train)
        return x * weight + x if self.residual else x * weight


class DirectionalSelfAttention(nn.Module):
    """Self-attention among pooled columns, rows, or all cells (Eqs. 3 and 4, Fig. 3; Table III).

    Attributes:
        direction: "vertical" averages each column first (the paper's Vertical Self-Attention), "horizontal" each row,
            "conventional" nothing.
        reduction: Channels over those of queries and keys.
        gamma: Weight the attention by a parameter that starts at 0.
    """

    direction: str = "vertical"
    reduction: int = 4
    gamma: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        pooled, c = x, x.shape[-1]
        if self.direction != "conventional":
            axis = 1 if self.direction == "vertical" else 2
            pooled = jnp.mean(x, axis, keepdims=True, dtype=jnp.float32).astype(x.dtype)

        def tokens(name, features):
            y = _pointwise(features, self.dtype, name)(pooled)
            return y.reshape(y.shape[0], -1, features)

        query, key = tokens("query", c // self.reduction), tokens("key", c // self.reduction)
        context = dot_product_attention(query, key, tokens("value", c)).reshape(pooled.shape)
        if self.gamma:
            gamma = self.param("gamma", nn.initializers.zeros, ())
            context = gamma.astype(x.dtype) * context
        return x + jnp.broadcast_to(context, x.shape)


class ASAP(nn.Module):
    """ASAP (Fig. 1) and the networks of Tables II and III.

    Attributes:
        fusion: "ffdn" (the paper's), "ln", "in", "general", or "none".
        attention: "vertical" (the paper's), "horizontal", "conventional", or "none".
        merge: How the pyramid's levels meet before the fusion, "cat" or "sum".
        fpn_width: Channels of the pyramid.
        fuse_width: Channels after the fusion; without one, what `merge` gives stays.
        fuse_stride: Output stride of the grid: 8, or 4, which is P1's.
        conv_blocks: Channels of the 3x3 blocks before the classifier.
        norm_mix: How FFDN's two norms meet: "concat", "sum" or "rho".
        layer_norm_axes: "chw" or "c".
        general_residual: Whether the fusion "general" adds its input.
        attention_reduction: Channels over those of queries and keys.
        attention_gamma: Weight the attention by a parameter that starts at 0.
        dtype: The type that is computed in; parameters, statistics and logits are float32.
    """

    num_classes: int
    fusion: str = "ffdn"
    attention: str = "vertical"
    merge: str = "cat"
    fpn_width: int = 64
    fuse_width: int = 256
    fuse_stride: int = 8
    conv_blocks: tuple[int, ...] = (256,)
    norm_mix: str = "concat"
    layer_norm_axes: str = "chw"
    general_residual: bool = False
    attention_reduction: int = 4
    attention_gamma: bool = False
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        for name, allowed in (
            ("fusion", FUSIONS),
            ("attention", ATTENTIONS),
            ("merge", MERGES),
            ("fuse_stride", STRIDES[:2]),
            ("norm_mix", NORM_MIXES),
            ("layer_norm_axes", LAYER_NORM_AXES),
        ):
            if getattr(self, name) not in allowed:
                choices = ", ".join(map(str, allowed))
                raise ValueError(f"unknown {name} '{getattr(self, name)}'; choose one of {choices}")
        if self.fuse_width % 2 and self.fusion == "ffdn" and self.norm_mix == "concat":
            raise ValueError(f"fuse_width {self.fuse_width} must be even: each norm gives half")
        merged = self.fpn_width * (len(STRIDES) if self.merge == "cat" else 1)
        channels = merged if self.fusion == "none" else self.fuse_width
        if self.attention != "none" and not 1 <= self.attention_reduction <= channels:
            raise ValueError(
                f"attention_reduction {self.attention_reduction} must lie in 1-{channels}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b _ _ k"]]:
        """Returns "logits", float32 scores at `fuse_stride`; under train "aux3" and "aux4" too, at 16 and 32."""
        features = ResNet(18, self.dtype, name="backbone")(image, train=train)
        levels = FeaturePyramid(self.fpn_width, self.dtype, name="pyramid")(features, train=train)

        grid = levels[STRIDES.index(self.fuse_stride)].shape[1:3]
        maps = [resize_bilinear(x, grid) for x in levels]
        x = jnp.concatenate(maps, axis=-1) if self.merge == "cat" else sum(maps)
        if self.fusion == "general":
            x = GeneralFusion(self.fuse_width, self.general_residual, self.dtype, name="fusion")(
                x, train=train
            )
        elif self.fusion != "none":
            x = FeatureFusionDifferentNorms(
                self.fuse_width,
                self.fusion,
                self.norm_mix,
                self.layer_norm_axes,
                self.dtype,
                name="fusion",
            )(x)
        if self.attention != "none":
            x = DirectionalSelfAttention(
                self.attention,
                self.attention_reduction,
                self.attention_gamma,
                self.dtype,
                name="attention",
            )(x)
        for i, width in enumerate(self.conv_blocks, start=1):
            x = ConvBatchNormReLU(width, dtype=self.dtype, name=f"block{i}")(x, train=train)

        def scores(name, x):
            head = Conv(
                self.num_classes,
                (1, 1),
                kernel_init=nn.initializers.normal(0.01),
                bias_init=nn.initializers.zeros,
                dtype=self.dtype,
                name=name,
            )
            return head(x).astype(jnp.float32)

        outputs = {"logits": scores("classifier", x)}
        if train:
            outputs.update(aux3=scores("aux3", levels[2]), aux4=scores("aux4", levels[3]))
        return outputs


def loss(
    outputs: dict[str, Float[Array, "b _ _ k"]],
    batch: dict[str, Array],
    *,
    class_weights: tuple[float, ...] | None,
    threshold: float,
    min_kept: float,
    aux_weights: tuple[float, float],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """L_pred + alpha L_aux,1 + beta L_aux,2 (Eq. 5): OHEM cross-entropies of logits upsampled to the label's size.

    Args:
        outputs: What the network returned under train=True.
        batch: "label" [b, h, w] int32 train ids, 255 = ignore.
        class_weights: One weight per class, or None.
        threshold: Pixels whose true class is at most this sure are kept.
        min_kept: OHEM's lower bound, as a fraction of the batch's pixels.
        aux_weights: alpha and beta, of the heads on P3 and P4.

    Returns:
        The loss and its terms by name, before their weights.
    """
    given = {"threshold": threshold, "min_kept": min_kept}
    terms = losses.mined(outputs, batch["label"], class_weights, **given)
    main = terms.pop("logits")
    value = main + aux_weights[0] * terms["aux3"] + aux_weights[1] * terms["aux4"]
    return value, {"loss": value, "main": main, **terms}
