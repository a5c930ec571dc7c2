"""BiSeNetV2 (Yu et al., "BiSeNet V2: Bilateral Network with Guided Aggregation [...]", IJCV 2021, arXiv 2004.02147).

A wide and shallow detail branch ends at output stride 8, a narrow and deep segment branch at 32; each gates the other
where they meet. Four more heads on the segment branch are there for training alone; with them the loss is
losses.auxiliary_loss() (Section 4.3, "booster").

Readings (where CoinCheung's public code, whose weights are those to be had, differs from the paper; the code is followed):
  * the last convolution of the context embedding has a norm and a ReLU, which the paper's has not;
  * so has the last one of the aggregation, and so have the last depth-wise convolutions of the gather-and-expansion
    layers; these expand six times;
  * the aggregation upsamples by nearest neighbours: before the sigmoid on the detail side, after the product on the other;
  * the head is 1024 wide. A training head is 128 wide, doubles the resolution by nearest neighbours, and has as many
    channels before its classifier as its stride squared;
  * the code takes sizes that 32 divides. Here any size goes: every stride rounds up, and the aggregation upsamples to the
    detail branch's size;
  * the norms that end a gather-and-expansion layer start from a scale of 1, where the code's start from 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.nn.blocks import add_relu
from rtseg_jax.nn.conv import Conv, ConvBatchNorm, ConvBatchNormReLU, kaiming_normal_fan_out
from rtseg_jax.nn.norm import BatchNorm
from rtseg_jax.nn.pool import avg_pool, max_pool
from rtseg_jax.nn.resize import resize_nearest

EPSILON = 1e-5
EXPANSION = 6
DETAIL = (64, 64, 128)  # channels of its stages
SEGMENT = ((32, 2), (64, 2), (128, 4))  # channels and layers of the stages 3 to 5
# Heads for training, and the strides of what they see.
AUXILIARY = {"aux2": 4, "aux3": 8, "aux4": 16, "aux5": 32}
HEAD, AUXILIARY_HEAD = 1024, 128  # widths


class DetailBranch(nn.Module):
    """Eight 3x3 convolutions in three stages (Table 1, left)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> Float[Array, "b h8 w8 128"]:
        x = image
        for stage, channels in enumerate(DETAIL, start=1):
            for i in range(2 if stage == 1 else 3):
                x = ConvBatchNormReLU(
                    channels,
                    strides=(1, 1) if i else (2, 2),
                    dtype=self.dtype,
                    name=f"conv{stage}_{i + 1}",
                )(x, train=train)
        return x


class Stem(nn.Module):
    """A convolution, then two more beside a max pool (Fig. 4a): 16 channels at output stride 4."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> Float[Array, "b h4 w4 16"]:
        def conv(name, x, features, size=3, stride=1):
            return ConvBatchNormReLU(
                features, (size, size), (stride, stride), dtype=self.dtype, name=name
            )(x, train=train)

        x = conv("conv", image, 16, stride=2)
        left = conv("left2", conv("left1", x, 8, size=1), 16, stride=2)
        right = max_pool(x, (3, 3), (2, 2), (1, 1))
        return conv("fuse", jnp.concatenate([left, right], axis=-1), 16)


class GatherExpansion(nn.Module):
    """The gather-and-expansion layer (Fig. 5b and c): 3x3, depth-wise to six times the channels, 1x1, a shortcut.

    Attributes:
        features: Output channels.
        stride: With 2, a second depth-wise convolution follows the first, and the shortcut is a separable convolution.
    """

    features: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        strides = (self.stride, self.stride)

        def conv(name, x, features, **options):
            return ConvBatchNorm(features, dtype=self.dtype, name=name, **options)(x, train=train)

        y = conv("conv", x, x.shape[-1], activation=nn.relu)
        y = conv("expand", y, None, strides=strides, multiplier=EXPANSION)
        if self.stride == 2:
            y = conv("depthwise", y, None)
            x = conv("shortcut_depthwise", x, None, strides=strides)
            x = conv("shortcut_project", x, self.features, kernel_size=(1, 1))
        y = conv("project", nn.relu(y), self.features, kernel_size=(1, 1))
        return add_relu(y, x)


class ContextEmbedding(nn.Module):
    """The mean of the map, embedded and added to it (Fig. 4b)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        mean = jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32)
        mean = BatchNorm(EPSILON, dtype=self.dtype, name="norm")(mean, train=train)
        mean = ConvBatchNormReLU(x.shape[-1], (1, 1), dtype=self.dtype, name="gap")(
            mean, train=train
        )
        return ConvBatchNormReLU(x.shape[-1], dtype=self.dtype, name="conv")(x + mean, train=train)


class SegmentBranch(nn.Module):
    """The stem, eight gather-and-expansion layers in three stages, the context embedding (Table 1, right)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, tuple[Float[Array, "b _ _ _"], ...]]:
        """Returns by output stride: 4 (16 channels), 8 (32), 16 (64), 32 (128, without and with the context)."""
        x = Stem(self.dtype, name="stem")(image, train=train)
        maps = {4: (x,)}
        for stage, (channels, layers) in enumerate(SEGMENT, start=3):
            for i in range(layers):
                x = GatherExpansion(
                    channels, 1 if i else 2, self.dtype, name=f"layer{stage}_{i + 1}"
                )(x, train=train)
            maps[2**stage] = (x,)
        context = ContextEmbedding(self.dtype, name="context")(x, train=train)
        return {**maps, 32: (x, context)}


class Backbone(nn.Module):
    """Both branches, which see the image apart from each other."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[Float[Array, "b h8 w8 128"], dict[int, tuple[Float[Array, "b _ _ _"], ...]]]:
        """Returns the detail branch's map, and the segment branch's by output stride."""
        detail = DetailBranch(self.dtype, name="detail")(image, train=train)
        return detail, SegmentBranch(self.dtype, name="segment")(image, train=train)


class BilateralGuidedAggregation(nn.Module):
    """The two maps, each weighted by the other at the other's resolution (Fig. 6)."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, detail: Float[Array, "b h w c"], context: Float[Array, "b _ _ c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        features, size = detail.shape[-1], detail.shape[1:3]

        def conv(name, x, stride=1, activation=None):
            return ConvBatchNorm(
                features,
                strides=(stride, stride),
                activation=activation,
                dtype=self.dtype,
                name=name,
            )(x, train=train)

        def separable(name, x):
            x = ConvBatchNorm(None, dtype=self.dtype, name=f"{name}_depthwise")(x, train=train)
            return Conv(
                features,
                (1, 1),
                use_bias=False,
                kernel_init=kaiming_normal_fan_out,
                dtype=self.dtype,
                name=f"{name}_pointwise",
            )(x)

        gate = jax.nn.sigmoid(resize_nearest(conv("context_gate", context), size))
        fine = separable("detail", detail) * gate
        coarse = avg_pool(conv("detail_down", detail, 2), (3, 3), (2, 2), (1, 1))
        coarse = coarse * jax.nn.sigmoid(separable("context", context))
        return conv("conv", fine + resize_nearest(coarse, size), activation=nn.relu)


class Head(nn.Module):
    """3x3 convolution, dropout, 1x1 convolution to the classes (Fig. 7).

    Attributes:
        width: Channels of the first convolution.
        dropout: Rate.
        last: Channels of a 3x3 convolution before the classifier, at twice the resolution; None for none.
    """

    num_classes: int
    width: int
    dropout: float
    last: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b _ _ k"]:
        x = ConvBatchNormReLU(self.width, dtype=self.dtype, name="conv")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        if self.last is not None:
            x = resize_nearest(x, (2 * x.shape[1], 2 * x.shape[2]))
            x = ConvBatchNormReLU(self.last, dtype=self.dtype, name="last")(x, train=train)
        x = Conv(
            self.num_classes,
            (1, 1),
            kernel_init=kaiming_normal_fan_out,
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="scores",
        )(x)
        return x.astype(jnp.float32)


class BiSeNetV2(nn.Module):
    """BiSeNetV2 (Fig. 3), its width 1 and its segment branch a quarter of the detail branch's channels.

    Attributes:
        dropout: Rate in every head.
        dtype: The type that is computed in; parameters, statistics and logits are float32.
    """

    num_classes: int
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b _ _ k"]]:
        """Returns "logits", float32 scores at output stride 8; under train "aux2" to "aux5" too, at 2, 4, 8 and 16."""
        detail, maps = Backbone(self.dtype, name="backbone")(image, train=train)
        x = BilateralGuidedAggregation(self.dtype, name="fusion")(detail, maps[32][1], train=train)

        def head(name, x, width, last=None):
            return Head(self.num_classes, width, self.dropout, last, self.dtype, name=name)(
                x, train=train
            )

        outputs = {"logits": head("classifier", x, HEAD)}
        if train:
            for name, stride in AUXILIARY.items():
                outputs[name] = head(name, maps[stride][0], AUXILIARY_HEAD, stride**2)
        return outputs
