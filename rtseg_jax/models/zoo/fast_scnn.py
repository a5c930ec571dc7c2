"""The trunk of Fast-SCNN (Poudel et al., BMVC 2019, Table 1), and the variants of it that AFFNet is built on.

Fast-SCNN shares its first layers between a shallow and a deep branch: "learning to downsample" down to output stride
8, then nine inverted residuals and spatial pyramid pooling at output stride 32. AFFNet replaces the first part by
ENet's initial block and two units of ShuffleNet.

Readings (where AFFNet's paper is silent or contradicts itself, and what its tables settle):
  * the deep branch is Fast-SCNN's: stride 2 in residuals 1 and 4, 96 channels from the 4th, 128 from the 7th. The text
    says "1st and 5th" and "4st and 6st"; so read, the network would have 1.75 M parameters and not the printed 1.62 M.
    Both can be built (`deep`);
  * the downsample units are those of ShuffleNet v1, which has an average pool for a shortcut ("convolution and pooling
    [...] used together"): 16 -> 32 -> 64 channels, one group, the bottleneck a quarter of the output;
  * ENet's initial block ends in a ReLU, as everything else here does, and not in ENet's PReLU;
  * on odd sizes its pooling branch is in ceil mode, so that it meets the convolution's size;
  * the pyramid's maps are resized with half-pixel centres; BatchNorm epsilon is 1e-5; padding is symmetric; kernels
    start from He's normal over fan_out. Public weights were trained with aligned corners and without the padding of
    the first convolution (`align_corners`, `stem_padding`).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.nn.blocks import InvertedResidual
from rtseg_jax.nn.conv import Conv, ConvBatchNorm, ConvBatchNormReLU, kaiming_normal_fan_out
from rtseg_jax.nn.norm import BatchNorm
from rtseg_jax.nn.pool import adaptive_avg_pool, avg_pool, max_pool
from rtseg_jax.nn.resize import resize_bilinear

EPSILON = 1e-5

# Channels and stride of the inverted residuals, three to a unit.
DEEP = {
    "paper-table": (
        ((64, 2), (64, 1), (64, 1)),
        ((96, 2), (96, 1), (96, 1)),
        ((128, 1), (128, 1), (128, 1)),
    ),
    "text": (
        ((64, 2), (64, 1), (64, 1)),
        ((96, 1), (96, 2), (128, 1)),
        ((128, 1), (128, 1), (128, 1)),
    ),
}
DOWNSAMPLES = ("fast_scnn", "lightweight")
BINS = (1, 2, 3, 6)


class DepthwiseSeparableConv(nn.Module):
    """Depth-wise 3x3, then 1x1, each with BatchNorm and ReLU ("DSConv" in Fast-SCNN's Table 1)."""

    features: int
    strides: tuple[int, int] = (1, 1)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        x = ConvBatchNormReLU(None, (3, 3), self.strides, dtype=self.dtype, name="depthwise")(
            x, train=train
        )
        return ConvBatchNormReLU(self.features, (1, 1), dtype=self.dtype, name="pointwise")(
            x, train=train
        )


class LearningToDownsample(nn.Module):
    """Fast-SCNN's first three layers: 32, 48 and 64 channels, each halving the resolution (Table 1)."""

    stem_padding: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> Float[Array, "b h8 w8 64"]:
        padding = (self.stem_padding, self.stem_padding)
        x = ConvBatchNormReLU(32, (3, 3), (2, 2), padding=padding, dtype=self.dtype, name="conv")(
            image, train=train
        )
        x = DepthwiseSeparableConv(48, (2, 2), self.dtype, name="dsconv1")(x, train=train)
        return DepthwiseSeparableConv(64, (2, 2), self.dtype, name="dsconv2")(x, train=train)


class InitialBlock(nn.Module):
    """A strided 3x3 convolution beside a 2x2 max pool of the image (Paszke et al., "ENet", 2016, Fig. 2a)."""

    features: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        image = image.astype(self.dtype)
        options = {"use_bias": False, "kernel_init": kaiming_normal_fan_out, "dtype": self.dtype}
        conv = Conv(self.features - image.shape[-1], (3, 3), (2, 2), **options, name="conv")(image)
        pool = max_pool(image, (2, 2), (2, 2), ceil_mode=True)
        x = jnp.concatenate([conv, pool], axis=-1)
        return nn.relu(BatchNorm(EPSILON, dtype=self.dtype, name="norm")(x, train=train))


def channel_shuffle(x: Float[Array, "b h w c"], groups: int) -> Float[Array, "b h w c"]:
    """Deals the channels of the groups out in turn (Zhang et al., "ShuffleNet", CVPR 2018, Fig. 1c)."""
    shape = x.shape
    return x.reshape(*shape[:3], groups, -1).swapaxes(3, 4).reshape(shape)


class ShuffleNetUnit(nn.Module):
    """ShuffleNet's unit with stride 2: a bottleneck beside an average pool (CVPR 2018, Fig. 2c).

    Attributes:
        features: Output channels, the pooled input's among them.
        groups: Groups of the two 1x1 convolutions; with more than one a channel shuffle follows the first.
    """

    features: int
    groups: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        def pointwise(name, y, features):
            options = {"groups": self.groups, "dtype": self.dtype}
            return ConvBatchNorm(features, (1, 1), **options, name=name)(y, train=train)

        y = nn.relu(pointwise("reduce", x, self.features // 4))
        y = channel_shuffle(y, self.groups)
        y = ConvBatchNorm(None, (3, 3), (2, 2), dtype=self.dtype, name="depthwise")(y, train=train)
        y = pointwise("expand", y, self.features - x.shape[-1])
        pool = avg_pool(x, (3, 3), (2, 2), (1, 1))
        return nn.relu(jnp.concatenate([y, pool], axis=-1))


class LightweightDownsample(nn.Module):
    """AFFNet's learning to downsample (Section III-A): ENet's initial block and two units of ShuffleNet.

    Attributes:
        groups: Groups of the units' 1x1 convolutions.
    """

    groups: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> Float[Array, "b h8 w8 64"]:
        x = InitialBlock(16, self.dtype, name="initial")(image, train=train)
        x = ShuffleNetUnit(32, self.groups, self.dtype, name="shuffle1")(x, train=train)
        return ShuffleNetUnit(64, self.groups, self.dtype, name="shuffle2")(x, train=train)


class SpatialPyramidPooling(nn.Module):
    """Means over 1, 2x2, 3x3 and 6x6 bins beside the map itself, merged to its width (PSPNet, CVPR 2017, Fig. 3)."""

    align_corners: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        size, channels = x.shape[1:3], x.shape[-1]
        maps = [x]
        for n in BINS:
            pooled = ConvBatchNormReLU(
                channels // len(BINS), (1, 1), dtype=self.dtype, name=f"pool{n}"
            )(adaptive_avg_pool(x, (n, n)), train=train)
            maps.append(resize_bilinear(pooled, size, self.align_corners))
        return ConvBatchNormReLU(channels, (1, 1), dtype=self.dtype, name="project")(
            jnp.concatenate(maps, axis=-1), train=train
        )


class FastSCNNBackbone(nn.Module):
    """Learning to downsample, the deep branch, spatial pyramid pooling.

    Attributes:
        downsample: "fast_scnn", or AFFNet's "lightweight".
        groups: Groups of the lightweight one's 1x1 convolutions.
        deep: Channels and strides of the deep branch, "paper-table" or "text".
        align_corners: Of the pyramid's resizing.
        stem_padding: Of Fast-SCNN's first convolution.
    """

    downsample: str = "fast_scnn"
    groups: int = 1
    deep: str = "paper-table"
    align_corners: bool = False
    stem_padding: int = 1
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.downsample not in DOWNSAMPLES:
            raise ValueError(
                f"unknown downsample '{self.downsample}'; choose one of {', '.join(DOWNSAMPLES)}"
            )
        if self.deep not in DEEP:
            raise ValueError(f"unknown deep '{self.deep}'; choose one of {', '.join(DEEP)}")
        if self.groups not in (1, 2, 4, 8):
            raise ValueError(f"{self.groups} groups do not divide 8 channels; choose 1, 2, 4 or 8")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, tuple[Float[Array, "b _ _ _"], ...]]:
        """Returns by output stride: 8 (64 channels), 16 (64), 32 (96 before the third unit, 128 after the pyramid)."""
        if self.downsample == "lightweight":
            downsample = LightweightDownsample(self.groups, self.dtype, name="downsample")
        else:
            downsample = LearningToDownsample(self.stem_padding, self.dtype, name="downsample")
        x = shallow = downsample(image, train=train)
        units = []
        for u, unit in enumerate(DEEP[self.deep], start=1):
            for i, (channels, stride) in enumerate(unit, start=1):
                x = InvertedResidual(
                    channels,
                    (stride, stride),
                    activation=nn.relu,
                    dtype=self.dtype,
                    name=f"unit{u}_block{i}",
                )(x, train=train)
            units.append(x)
        context = SpatialPyramidPooling(self.align_corners, self.dtype, name="pyramid")(
            x, train=train
        )
        return {8: (shallow,), 16: (units[0],), 32: (units[1], context)}


FEATURES = 128


class FeatureFusion(nn.Module):
    """Fast-SCNN's feature fusion module (its Table 3): the deep map, upsampled and refined, plus the shallow one."""

    align_corners: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, shallow: Float[Array, "b h w c"], deep: Float[Array, "b _ _ c2"], *, train: bool
    ) -> Float[Array, "b h w 128"]:
        deep = resize_bilinear(deep, shallow.shape[1:3], self.align_corners)
        deep = ConvBatchNormReLU(None, (3, 3), dtype=self.dtype, name="depthwise")(
            deep, train=train
        )
        deep = ConvBatchNorm(FEATURES, (1, 1), use_bias=True, dtype=self.dtype, name="deep")(
            deep, train=train
        )
        shallow = ConvBatchNorm(FEATURES, (1, 1), use_bias=True, dtype=self.dtype, name="shallow")(
            shallow, train=train
        )
        return nn.relu(shallow + deep)


class Classifier(nn.Module):
    """Two depth-wise separable convolutions, dropout, and a convolution to the classes (Fig. 1).

    Attributes:
        kernel_size: Size of the last convolution's kernel: (3, 3) in AFFNet, (1, 1) in Fast-SCNN.
        dropout: Rate.
    """

    num_classes: int
    kernel_size: tuple[int, int]
    dropout: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w k"]:
        x = DepthwiseSeparableConv(FEATURES, dtype=self.dtype, name="dsconv1")(x, train=train)
        x = DepthwiseSeparableConv(FEATURES, dtype=self.dtype, name="dsconv2")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        options = {"kernel_init": kaiming_normal_fan_out, "dtype": self.dtype}
        return Conv(self.num_classes, self.kernel_size, **options, name="conv")(x)


class FastSCNN(nn.Module):
    """Fast-SCNN (Poudel et al., BMVC 2019, Table 1), without its auxiliary heads.

    Attributes:
        dropout: Rate before the last convolution.
        align_corners: Of every resizing inside.
        stem_padding: Of the first convolution.
    """

    num_classes: int
    dropout: float = 0.1
    align_corners: bool = False
    stem_padding: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h8 w8 k"]]:
        """Returns {"logits": float32 scores at output stride 8}."""
        features = FastSCNNBackbone(
            align_corners=self.align_corners,
            stem_padding=self.stem_padding,
            dtype=self.dtype,
            name="backbone",
        )(image, train=train)
        x = FeatureFusion(self.align_corners, self.dtype, name="fusion")(
            features[8][0], features[32][1], train=train
        )
        scores = Classifier(
            self.num_classes, (1, 1), self.dropout, dtype=self.dtype, name="classifier"
        )(x, train=train)
        return {"logits": scores.astype(jnp.float32)}
