"""AFFNet (Kuang et al., "Lightweight Semantic Segmentation Network based on Attention Feature Fusion").

Four maps of a Fast-SCNN trunk, at output strides 8, 16, 32 and 32, meet in one module at stride 8 that weights them by
attention before it joins them. This file holds the network with the ablations of Tables I and II, and its loss; the two
networks that it is compared with in Tables III and V, Fast-SCNN and SPSSNet, are in zoo/.

Readings (where the paper is silent or contradicts itself, and what its tables settle; the trunk has its own list):
  * the four inputs are the end of learning to downsample and the three units of the deep branch, the last one after
    the spatial pyramid: 64 + 64 + 96 + 128 channels;
  * "superimposed together" is a concatenation and a 1x1 convolution to 128: so the network has the printed 1.62 M
    parameters and 5.256 G operations at 512x1024. An addition, which has 1.58 M, can be chosen (`final`);
  * the pooling branch has a BatchNorm after its 1x1 convolution and no ReLU;
  * CBAM: reduction 16, as its own paper has it, a hidden layer without bias, a 3x3 spatial kernel (Eq. 2). Fig. 3's
    caption speaks of an addition that Eqs. 1 and 2 do not have: off (`attention_residual`);
  * the classifier is Fast-SCNN's with a last convolution of 3x3 (Fig. 1) and dropout 0.1;
  * Table I does not say where the convolutions of its other rows stand. "ewa_concat" mirrors the paper's own design;
    "ewa" adds on both sides and keeps the 3x3 convolution after the attention's sum; "concat" concatenates the pooled
    maps too and merges them with a 1x1. That gives 1.62, 1.40 and 1.68 M where the paper prints 1.62, 1.46 and 1.70;
  * FPN+PAN (Table II, Fig. 6b) is known by its parts only: attention and max pooling, concatenations, no second
    branch. This one is YOLOv4's order at 64 and 96 channels, 1.55 M (printed: 1.56 M);
  * SPSSNet's paper could not be had. Its stage-pooling modules are as Fig. 7 here has them, on all four maps and with
    four 1x1 convolutions each: 1.42 M parameters as printed; the printed 27.281 G operations are not met;
  * Eq. 4's frequency is over the labelled pixels; the order of magnitude in Eq. 6 is that of the integer part (so the
    groups of Table VII come out); Eq. 7 is averaged over the labelled pixels of the batch.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.models.zoo.fast_scnn import FEATURES, Classifier, FastSCNNBackbone
from rtseg_jax.nn import losses
from rtseg_jax.nn.conv import Conv, ConvBatchNorm, ConvBatchNormReLU, kaiming_normal_fan_out
from rtseg_jax.nn.pool import global_max, max_pool
from rtseg_jax.nn.resize import resize_bilinear

FUSIONS = ("concat_ewa", "ewa_concat", "ewa", "concat", "fpn_pan")
FINALS = ("concat", "add")
Maps = tuple[Float[Array, "b _ _ _"], ...]


class ConvolutionalBlockAttention(nn.Module):
    """Convolutional Block Attention Module, CBAM (Eqs. 1 and 2, Fig. 4): channels first, then pixels.

    Attributes:
        reduction: Input channels over those of the hidden layer.
        residual: Add the input to the result.
    """

    reduction: int = 16
    residual: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        def conv(features, kernel_size, name):
            options = {"kernel_init": kaiming_normal_fan_out, "dtype": self.dtype}
            return Conv(features, kernel_size, use_bias=False, **options, name=name)

        def pooled(y, axis):
            mean = jnp.mean(y, axis, keepdims=True, dtype=jnp.float32).astype(y.dtype)
            return mean, global_max(y, axis)

        x = x.astype(self.dtype)
        hidden = conv(x.shape[-1] // self.reduction, (1, 1), "hidden")
        output = conv(x.shape[-1], (1, 1), "output")
        weighted = x * nn.sigmoid(sum(output(nn.relu(hidden(y))) for y in pooled(x, (1, 2))))
        maps = jnp.concatenate(pooled(weighted, 3), axis=-1)
        weighted = weighted * nn.sigmoid(conv(1, (3, 3), "spatial")(maps))
        return x + weighted if self.residual else weighted


class AttentionFeatureFusion(nn.Module):
    """Attention Feature Fusion Module, AFFM (Section III-B, Figs. 3, 5 and 6a; Table I).

    An attention branch and a pooling branch each join the maps, by concatenation or by element-wise addition (EWA).

    Attributes:
        fusion: How the attention branch and the pooling branch do so: "concat_ewa" is the paper's.
        final: How the two branches meet, "concat" or "add".
        attention_residual: Whether the CBAMs add their input; `reduction` narrows their hidden layer.
    """

    fusion: str = "concat_ewa"
    final: str = "concat"
    attention_residual: bool = False
    reduction: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Maps, *, train: bool) -> Float[Array, "b h w 128"]:
        """Joins the maps at the size of the first."""

        def conv(name, x, kernel_size, activation=nn.relu):
            return ConvBatchNorm(
                FEATURES, kernel_size, activation=activation, dtype=self.dtype, name=name
            )(x, train=train)

        def widened(name, maps):
            return [conv(f"{name}{i}", x, (1, 1), None) for i, x in enumerate(maps, start=1)]

        def joined(maps, concat):
            maps = [resize_bilinear(x, features[0].shape[1:3]) for x in maps]
            return jnp.concatenate(maps, axis=-1) if concat else sum(maps)

        concat_attended = self.fusion in ("concat_ewa", "concat")
        concat_pooled = self.fusion in ("ewa_concat", "concat")
        mirrored = self.fusion == "ewa_concat"

        attended = [
            ConvolutionalBlockAttention(
                self.reduction, self.attention_residual, self.dtype, name=f"attention{i}"
            )(x)
            for i, x in enumerate(features, start=1)
        ]
        if not concat_attended:
            attended = widened("attention_conv", attended)
        attended = joined(attended, concat_attended)
        if not mirrored:
            attended = conv("attention_merge", attended, (3, 3))

        pooled = features if mirrored else widened("pooling_conv", features)
        pooled = [max_pool(x, (5, 5), (1, 1), (2, 2)) for x in pooled]
        pooled = joined(pooled, concat_pooled)
        if concat_pooled:
            pooled = conv("pooling_merge", pooled, (3, 3) if mirrored else (1, 1))

        if self.final == "add":
            return attended + pooled
        return conv("merge", jnp.concatenate([attended, pooled], axis=-1), (1, 1))


class PyramidFeatureFusion(nn.Module):
    """FPN+PAN, the fusion that AFFM is compared with (Table II, Fig. 6b): top down, then bottom up.

    Attributes as in AttentionFeatureFusion.
    """

    attention_residual: bool = False
    reduction: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Maps, *, train: bool) -> Float[Array, "b h w 128"]:
        """Joins the maps at the size of the first."""

        def merged(name, channels, kernel_size, *maps):
            return ConvBatchNormReLU(channels, kernel_size, dtype=self.dtype, name=name)(
                jnp.concatenate(maps, axis=-1), train=train
            )

        def up(x, like):
            return resize_bilinear(x, like.shape[1:3])

        def down(x):
            return max_pool(x, (3, 3), (2, 2), (1, 1))

        f1, f2, f3, f4 = (
            ConvolutionalBlockAttention(
                self.reduction, self.attention_residual, self.dtype, name=f"attention{i}"
            )(x)
            for i, x in enumerate(features, start=1)
        )
        top3 = merged("top3", 64, (3, 3), f4, f3)
        top2 = merged("top2", 64, (3, 3), up(top3, f2), f2)
        top1 = merged("top1", 64, (3, 3), up(top2, f1), f1)
        bottom2 = merged("bottom2", 96, (1, 1), down(top1), top2)
        bottom3 = merged("bottom3", 96, (1, 1), down(bottom2), top3)
        return merged("merge", FEATURES, (3, 3), up(bottom3, f1))


class AFFNet(nn.Module):
    """AFFNet (Fig. 1) and the networks of Tables I and II.

    Attributes:
        fusion: "concat_ewa" (the paper's), "ewa_concat", "ewa", "concat" (Table I), or "fpn_pan" (Table II).
        final: How the two branches of the fusion meet, "concat" or "add"; "fpn_pan" has one branch only.
        attention_residual: Add each CBAM's input to its result.
        cbam_reduction: Channels over those of CBAM's hidden layer.
        downsample: "lightweight", or Fast-SCNN's own "fast_scnn".
        groups: Groups of the lightweight downsampling's 1x1 convolutions: 1, 2, 4 or 8.
        deep: The deep branch, as "paper-table" or as "text" has it.
        dropout: Rate before the last convolution.
        dtype: The type that is computed in; parameters, statistics and logits are float32.
    """

    num_classes: int
    fusion: str = "concat_ewa"
    final: str = "concat"
    attention_residual: bool = False
    cbam_reduction: int = 16
    downsample: str = "lightweight"
    groups: int = 1
    deep: str = "paper-table"
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.fusion not in FUSIONS:
            raise ValueError(f"unknown fusion '{self.fusion}'; choose one of {', '.join(FUSIONS)}")
        if self.final not in FINALS:
            raise ValueError(f"unknown final '{self.final}'; choose 'concat' or 'add'")
        if self.fusion == "fpn_pan" and self.final != "concat":
            raise ValueError("final 'add' joins two branches, and fusion 'fpn_pan' has one")
        if not 1 <= self.cbam_reduction <= 64:
            raise ValueError(f"cbam_reduction {self.cbam_reduction} must lie in 1-64")
        FastSCNNBackbone(self.downsample, self.groups, self.deep, parent=None)  # checks its options
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h8 w8 k"]]:
        """Returns {"logits": float32 scores at output stride 8}."""
        features = FastSCNNBackbone(
            self.downsample, self.groups, self.deep, dtype=self.dtype, name="backbone"
        )(image, train=train)
        attention = (self.attention_residual, self.cbam_reduction, self.dtype)
        if self.fusion == "fpn_pan":
            fusion = PyramidFeatureFusion(*attention, name="fusion")
        else:
            fusion = AttentionFeatureFusion(self.fusion, self.final, *attention, name="fusion")
        x = fusion((*features[8], *features[16], *features[32]), train=train)
        scores = Classifier(
            self.num_classes, (3, 3), self.dropout, dtype=self.dtype, name="classifier"
        )(x, train=train)
        return {"logits": scores.astype(jnp.float32)}


def loss(
    outputs: dict[str, Float[Array, "b _ _ k"]],
    batch: dict[str, Array],
    *,
    pixel_counts: tuple[int, ...],
    offset: float,
    ce_weight: float,
    kind: str = "owfl",
    **others: Any,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """AFFNet's loss on the logits upsampled to the label's size: OWFL + 0.5 CEL (Eq. 3).

    Args:
        outputs: What the network returned under train=True.
        batch: "label" [b, h, w] int32 train ids, 255 = ignore.
        pixel_counts: Labelled pixels of each class in the training set.
        offset: c of Eq. 4, 1.02 in the paper.
        ce_weight: Weight of the cross-entropy, 0.5 in the paper.
        kind: "owfl", the paper's; any other is a kind of losses.segmentation_loss, to compare with.
        **others: Arguments of losses.segmentation_loss.

    Returns:
        The loss and its terms by name.

    Raises:
        ValueError: not one count per class, a class without pixels, or an offset of 1 or less; unknown kind; weights
            besides OWFL's own.
    """
    if kind != "owfl":
        return losses.segmentation_loss(outputs, batch, kind=kind, **others)
    if others.get("class_weights") is not None:
        raise ValueError(
            f"class_weights={others['class_weights']} are not for kind 'owfl', which weighs classes by pixel_counts;"
            " leave them out, or take kind 'cross_entropy' or 'ohem'"
        )
    label = batch["label"]
    logits = losses.upsample_class_maps(outputs["logits"], label.shape[1:3])
    focal = losses.object_weighted_focal_loss(
        logits,
        label,
        losses.frequency_weights(pixel_counts, offset),
        losses.magnitudes(pixel_counts),
        axis=1,
    )
    entropy = losses.cross_entropy(logits, label, axis=1)
    value = focal + ce_weight * entropy
    return value, {"loss": value, "owfl": focal, "cel": entropy}
