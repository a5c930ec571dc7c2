"""PIDNet-S (Xu et al., "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers", CVPR 2023).

Three branches share the first layers: P keeps details and I finds context, as in DDRNet, D finds boundaries. P takes from
I what resembles its own map (Pag), and at the end the boundaries decide for each cell whether P or I counts (Light-Bag).

Readings (what the paper leaves open, and what the authors' code settles):
  * the two training heads read maps after a ReLU, because the code's ReLU works in place on what they are given;
  * the two bottlenecks at the end of I have no ReLU between them or behind them, nor have those of P and D;
  * the stem's two convolutions have a bias although a BatchNorm follows; every other one but a head's last has none;
  * Pag's weight is one number for each cell, the sigmoid of a sum over channels;
  * the pyramid's means count the zeros of their padding; its four scales are refined by one convolution in four groups;
  * BatchNorm epsilon is 1e-5; kernels start from He's normal over fan_out; all resizing is with half-pixel centres. The
    code enlarges the scores with aligned corners, in training and evaluation; here they are as all others' are;
  * the code resizes to a floored eighth of the image and so takes multiples of 8 only; here the size of P and D is taken,
    which is the same for those and makes any size work;
  * boundaries are found in the label as it is trained on, where the code finds them in the whole frame by Canny's method
    and enlarges them with it: bands of two pixels on both sides, between two classes. Ignored pixels do not count, and
    are not a class;
  * cross-entropies are divided by the sum of the pixels' class weights.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rtseg_jax.base.labels import IGNORE
from rtseg_jax.models.zoo.ddrnet import Head, NormReLUConv, Pyramid, layer, stem
from rtseg_jax.models.zoo.resnet import BasicBlock, Bottleneck
from rtseg_jax.nn import losses
from rtseg_jax.nn.conv import ConvBatchNorm
from rtseg_jax.nn.resize import resize_bilinear


class PixelAttentionFusion(nn.Module):
    """Pixel-attention-guided fusion, Pag (Section 3.2): (1 - s) x + s y, the more of y the more alike the two are.

    Attributes:
        width: Channels in which they are compared.
    """

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], y: Float[Array, "b _ _ c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        def compared(name, z):
            return ConvBatchNorm(self.width, (1, 1), dtype=self.dtype, name=name)(z, train=train)

        size = x.shape[1:3]
        products = compared("x", x) * resize_bilinear(compared("y", y), size)
        weight = nn.sigmoid(jnp.sum(products, -1, keepdims=True, dtype=jnp.float32))
        weight = weight.astype(x.dtype)
        return (1 - weight) * x + weight * resize_bilinear(y, size)


class ParallelAggregationPyramid(Pyramid):
    """Parallel Aggregation Pyramid Pooling Module, PAPPM (Section 3.3): DAPPM with all its scales refined at once."""

    def refined(self, first: Array, others: list[Array], train: bool) -> list[Array]:
        """The map's own scale, and the others by one convolution in groups."""
        n = len(others)
        process = NormReLUConv(n * self.width, 3, groups=n, dtype=self.dtype, name="process")
        sums = jnp.concatenate([first + scale for scale in others], axis=-1)
        return [first, process(sums, train=train)]


class LightBoundaryFusion(nn.Module):
    """Light boundary-attention-guided fusion, Light-Bag (Section 3.4): P where there are boundaries, else I."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        p: Float[Array, "b h w c"],
        i: Float[Array, "b h w c"],
        d: Float[Array, "b h w c"],
        *,
        train: bool,
    ) -> Float[Array, "b h w features"]:
        def norm_conv(name, x):
            return ConvBatchNorm(self.features, (1, 1), dtype=self.dtype, name=name)(x, train=train)

        boundary = nn.sigmoid(d)
        return norm_conv("p", (1 - boundary) * i + p) + norm_conv("i", i + boundary * p)


class ThreeBranchBackbone(nn.Module):
    """Everything before the pyramid (Section 3.1); names: detail is P, layer is I, boundary is D.

    Attributes:
        width: Channels of the stem.
    """

    width: int = 32
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "b _ _ _"], ...]:
        """Returns the ends of P, I and D (output strides 8, 64, 8), then what the heads on P and D read (8)."""
        w, options = self.width, {"dtype": self.dtype, "train": train}

        def norm_conv(name, x, features, size):
            return ConvBatchNorm(features, (size, size), dtype=self.dtype, name=name)(
                x, train=train
            )

        def bottleneck(name, x, features, stride=1):
            block = Bottleneck(
                features, (stride, stride), self.dtype, relu=False, expansion=2, name=name
            )
            return block(x, train=train)

        def attend(stage, p, x):
            x = norm_conv(f"compress{stage}", x, 2 * w, 1)
            fusion = PixelAttentionFusion(w, self.dtype, name=f"pag{stage}")
            return nn.relu(fusion(p, x, train=train))

        def add(stage, d, x):
            x = norm_conv(f"diff{stage}", x, d.shape[-1], 3)
            return nn.relu(d + resize_bilinear(x, d.shape[1:3]))

        x = stem(image, w, self.dtype, train)
        x = layer("layer1", x, w, **options)
        x = layer("layer2", x, 2 * w, stride=2, **options)

        p = layer("detail3", x, 2 * w, relu=False, **options)
        d = BasicBlock(w, (1, 1), self.dtype, relu=False, name="boundary3_block0")(x, train=train)
        x = layer("layer3", x, 4 * w, blocks=3, stride=2, **options)
        p, d = attend(3, p, x), add(3, d, x)
        early_p = p

        p = layer("detail4", p, 2 * w, relu=False, **options)
        d = bottleneck("boundary4_block0", d, w)
        x = layer("layer4", x, 8 * w, blocks=3, stride=2, **options)
        p, d = attend(4, p, x), add(4, d, x)
        late_d = d

        p, d = bottleneck("detail5_block0", p, 2 * w), bottleneck("boundary5_block0", d, 2 * w)
        x = bottleneck("layer5_block0", x, 8 * w, 2)
        return p, bottleneck("layer5_block1", x, 8 * w), d, early_p, late_d


class PIDNet(nn.Module):
    """PIDNet-S (Section 3.1).

    Attributes:
        width: Channels of the stem.
        pyramid_width: Channels of the pyramid's scales.
        head_width: Channels inside of the heads for classes; that for boundaries has `width`.
        dtype: The type that is computed in; parameters, statistics and logits are float32.
    """

    num_classes: int
    width: int = 32
    pyramid_width: int = 96
    head_width: int = 128
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h8 w8 _"]]:
        """Returns "logits", float32 scores at output stride 8; under train "aux" of P and "boundary", one score, of D."""
        p, i, d, early_p, late_d = ThreeBranchBackbone(self.width, self.dtype, name="backbone")(
            image, train=train
        )
        i = ParallelAggregationPyramid(
            self.pyramid_width, 4 * self.width, self.dtype, name="pyramid"
        )(i, train=train)
        i = resize_bilinear(i, p.shape[1:3])
        x = LightBoundaryFusion(4 * self.width, self.dtype, name="fusion")(p, i, d, train=train)

        def scores(name, x, width, features):
            return Head(width, features, self.dtype, name=name)(x, train=train)

        outputs = {"logits": scores("classifier", x, self.head_width, self.num_classes)}
        if train:
            outputs["aux"] = scores("aux", early_p, self.head_width, self.num_classes)
            outputs["boundary"] = scores("boundary", late_d, self.width, 1)
        return outputs


def boundaries(label: Int[Array, "b h w"]) -> Bool[Array, "b h w"]:
    """Where two classes meet: bands of two pixels on both sides."""

    def edges(first, second, axis):
        found = (first != second) & (first != IGNORE) & (second != IGNORE)
        return jnp.pad(found, [(0, int(i == axis)) for i in range(3)])

    found = edges(label[:, :-1], label[:, 1:], 1) | edges(label[:, :, :-1], label[:, :, 1:], 2)
    # An edge is in the upper or left one of two pixels: the 4x4 window reaches two pixels back and one ahead.
    around = [(0, 0), (2, 1), (2, 1)]
    return lax.reduce_window(found, False, lax.bitwise_or, (1, 4, 4), (1, 1, 1), around)


def boundary_loss(scores: Float[Array, "b h w"], label: Int[Array, "b h w"]) -> Float[Array, ""]:
    """Binary cross-entropy in which boundaries and all else weigh the same: each by the other's share of the batch.

    Args:
        scores: Before the sigmoid.
        label: Train ids; 255 is ignored.

    Returns:
        The mean over the pixels that count; 0 if there are none.
    """
    target, valid = boundaries(label), label != IGNORE
    total = jnp.maximum(jnp.sum(valid, dtype=jnp.float32), 1.0)
    share = jnp.sum(target & valid, dtype=jnp.float32) / total
    entropy = jax.nn.softplus(jnp.where(target, -scores, scores))
    return jnp.sum(jnp.where(valid, entropy * jnp.where(target, 1 - share, share), 0.0)) / total


def loss(
    outputs: dict[str, Float[Array, "b _ _ _"]],
    batch: dict[str, Array],
    *,
    class_weights: tuple[float, ...] | None,
    threshold: float,
    min_kept: float,
    weights: tuple[float, float, float, float],
    boundary_threshold: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """l0 on P, l1 of the boundaries, l2 of the classes, and l3 of the classes at boundaries that D finds (Section 3.1).

    l0 is a cross-entropy, l2 and l3 are those of OHEM; all logits are upsampled to the label's size.

    Args:
        outputs: What the network returned under train=True.
        batch: "label" [b, h, w] int32 train ids, 255 = ignore.
        class_weights: One weight per class, or None.
        threshold: Pixels whose true class is at most this sure are kept.
        min_kept: OHEM's lower bound, as a fraction of the batch's pixels.
        weights: Of l0 to l3.
        boundary_threshold: l3 counts where D is surer than this of a boundary.

    Returns:
        The loss and its terms by name, before their weights.
    """
    label = batch["label"]
    main, aux, boundary = (
        losses.upsample_class_maps(outputs[name], label.shape[1:3])
        for name in ("logits", "aux", "boundary")
    )
    boundary = boundary[:, 0]

    def mined(label):
        return losses.ohem_cross_entropy(
            main, label, class_weights, threshold=threshold, min_kept=min_kept, axis=1
        )

    terms = {
        "aux": losses.cross_entropy(aux, label, class_weights, axis=1),
        "boundary": boundary_loss(boundary, label),
        "main": mined(label),
        "main_boundary": mined(jnp.where(nn.sigmoid(boundary) > boundary_threshold, label, IGNORE)),
    }
    value = sum(weight * term for weight, term in zip(weights, terms.values(), strict=True))
    return value, {"loss": value, **terms}
