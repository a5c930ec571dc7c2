"""ENet (Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", 2016).

The authors' code is Lua; where the paper is silent, the public PyTorch code of D. Silva decides. Readings:
  * a PReLU has one slope for all its channels, initially 0.25, where the paper has one for each, and the decoder has
    ReLU; both are options (`activations`);
  * the last 1x1 convolution of a bottleneck has an activation before the sum, but for those that upsample;
  * the pool of the initial block is 3x3 with stride 2, padded by -inf, as its convolution is padded by zeros;
  * the last layer is a transposed 3x3 convolution, which the paper's table calls a full convolution;
  * the zeros that widen a pooled map follow its own channels; of equal values in a pool's window the first counts;
  * no convolution has a bias, BatchNorm epsilon is 1e-5, kernels start from torch's default;
  * a halving after the first rounds down; what upsamples again returns to the size before it, with a last row or column
    of zeros.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from rtseg_jax.nn.conv import Conv, ConvTranspose, torch_default
from rtseg_jax.nn.norm import BatchNorm, BatchNormPReLU, PReLU
from rtseg_jax.nn.pool import max_pool, max_pool_places, max_unpool

EPSILON = 1e-5
ACTIVATIONS = ("shared_prelu", "prelu", "relu")
DILATIONS = (1, 2, "asymmetric", 4, 1, 8, "asymmetric", 16)  # of sections 2 and 3


def _normalise(x, activation, dtype, train):
    """BatchNorm and what follows it: one of ACTIVATIONS, or "none"."""
    if activation.endswith("prelu"):
        shared = activation == "shared_prelu"
        return BatchNormPReLU(EPSILON, shared=shared, dtype=dtype, name="norm")(x, train=train)
    x = BatchNorm(EPSILON, dtype=dtype, name="norm")(x, train=train)
    return nn.relu(x) if activation == "relu" else x


def _end(total, activation):
    """The activation behind a bottleneck's sum."""
    if activation == "relu":
        return nn.relu(total)
    return PReLU(activation == "shared_prelu", name="activation")(total)


def _dropped(x, rate, train):
    """Dropout2d: whole channels of an example."""
    return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)(x)


class ConvUnit(nn.Module):
    """A convolution, its BatchNorm and the activation that is named."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilation: int = 1
    padding: tuple[int, int] | None = None
    activation: str = "shared_prelu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            (self.dilation, self.dilation),
            self.padding,
            use_bias=False,
            kernel_init=torch_default,
            dtype=self.dtype,
            name="conv",
        )(x)
        return _normalise(x, self.activation, self.dtype, train)


class UpUnit(nn.Module):
    """A transposed 2x2 convolution, its zeros where `size` is odd, BatchNorm, activation."""

    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], size: tuple[int, int], *, train: bool
    ) -> Float[Array, "b h2 w2 c"]:
        x = ConvTranspose(x.shape[-1], (2, 2), use_bias=False, dtype=self.dtype, name="conv")(x)
        rows, columns = size[0] - x.shape[1], size[1] - x.shape[2]
        if rows or columns:
            x = jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))
        return _normalise(x, self.activation, self.dtype, train)


class InitialBlock(nn.Module):
    """A strided 3x3 convolution beside a 3x3 max pool of the image (Fig. 2a)."""

    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> Float[Array, "b h2 w2 16"]:
        conv = Conv(
            13,
            (3, 3),
            (2, 2),
            use_bias=False,
            kernel_init=torch_default,
            dtype=self.dtype,
            name="conv",
        )(image)
        pool = max_pool(image.astype(self.dtype), (3, 3), (2, 2), (1, 1))
        x = jnp.concatenate([conv, pool], axis=-1)
        return _normalise(x, self.activation, self.dtype, train)


class Bottleneck(nn.Module):
    """A bottleneck that keeps size and channels (Fig. 2b).

    Attributes:
        kind: The dilation of its 3x3 convolution, or "asymmetric" for a 5x1 and a 1x5 one.
    """

    kind: int | str
    dropout: float
    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        unit = functools.partial(ConvUnit, activation=self.activation, dtype=self.dtype)
        y = unit(channels // 4, (1, 1), name="reduce")(x, train=train)
        if self.kind == "asymmetric":
            y = unit(channels // 4, (5, 1), name="conv5x1")(y, train=train)
            y = unit(channels // 4, (1, 5), name="conv1x5")(y, train=train)
        else:
            y = unit(channels // 4, (3, 3), dilation=self.kind, name="conv3x3")(y, train=train)
        y = unit(channels, (1, 1), name="expand")(y, train=train)
        return _end(x + _dropped(y, self.dropout, train), self.activation)


class DownsamplingBottleneck(nn.Module):
    """A bottleneck that halves the size, beside a max pool (Fig. 2b)."""

    features: int
    dropout: float
    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> tuple[Float[Array, "b h2 w2 features"], UInt8[Array, "b h2 w2 c"]]:
        """Returns the map, and where in its window each pooled value lay."""
        inner = x.shape[-1] // 4
        unit = functools.partial(ConvUnit, activation=self.activation, dtype=self.dtype)
        main, places = max_pool_places(x)
        main = jnp.pad(main, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))
        y = unit(inner, (2, 2), (2, 2), padding=(0, 0), name="reduce")(x, train=train)
        y = unit(inner, (3, 3), name="conv3x3")(y, train=train)
        y = unit(self.features, (1, 1), name="expand")(y, train=train)
        return _end(main + _dropped(y, self.dropout, train), self.activation), places


class UpsamplingBottleneck(nn.Module):
    """A bottleneck that doubles the size, beside an unpooling to the places of a max pool (Section 3)."""

    features: int
    dropout: float
    activation: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        places: UInt8[Array, "b h w features"],
        size: tuple[int, int],
        *,
        train: bool,
    ) -> Float[Array, "b h2 w2 features"]:
        inner, activation = x.shape[-1] // 4, self.activation
        unit = functools.partial(ConvUnit, kernel_size=(1, 1), dtype=self.dtype)
        main = unit(self.features, activation="none", name="main")(x, train=train)
        main = max_unpool(main, places, size)
        y = unit(inner, activation=activation, name="reduce")(x, train=train)
        y = UpUnit(activation, self.dtype, name="up2")(y, size, train=train)
        y = unit(self.features, activation="none", name="expand")(y, train=train)
        return _end(main + _dropped(y, self.dropout, train), activation)


class ENetBackbone(nn.Module):
    """The encoder: sections 1 to 3 of Table 1.

    Attributes:
        dropout: Rates of section 1 and of the others.
        activation: One of ACTIVATIONS.
    """

    dropout: tuple[float, float] = (0.01, 0.1)
    activation: str = "shared_prelu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> tuple[dict[int, Float[Array, "b _ _ _"]], dict[int, UInt8[Array, "b _ _ _"]]]:
        """Returns features at output strides 2, 4 and 8 (16, 64, 128 channels), and the places pooled at 2 and 4."""
        features, places = {}, {}
        options = {"activation": self.activation, "dtype": self.dtype}
        x = features[2] = InitialBlock(**options, name="initial")(image, train=train)
        x, places[2] = DownsamplingBottleneck(64, self.dropout[0], **options, name="bottleneck1_0")(
            x, train=train
        )
        for i in range(1, 5):
            name = f"bottleneck1_{i}"
            x = Bottleneck(1, self.dropout[0], **options, name=name)(x, train=train)
        features[4] = x
        x, places[4] = DownsamplingBottleneck(
            128, self.dropout[1], **options, name="bottleneck2_0"
        )(x, train=train)
        for section, first in ((2, 1), (3, 0)):
            for i, kind in enumerate(DILATIONS, start=first):
                name = f"bottleneck{section}_{i}"
                x = Bottleneck(kind, self.dropout[1], **options, name=name)(x, train=train)
        features[8] = x
        return features, places


class ENetDecoder(nn.Module):
    """Sections 4 and 5 of Table 1, and the last layer; attributes as of the encoder."""

    num_classes: int
    dropout: float = 0.1
    activation: str = "relu"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: dict[int, Float[Array, "b _ _ _"]],
        places: dict[int, UInt8[Array, "b _ _ _"]],
        size: tuple[int, int],
        *,
        train: bool,
    ) -> Float[Array, "b h w k"]:
        options = {"dropout": self.dropout, "activation": self.activation, "dtype": self.dtype}
        x = features[8]
        for section, stride, width, regular in ((4, 4, 64, 2), (5, 2, 16, 1)):
            x = UpsamplingBottleneck(width, **options, name=f"bottleneck{section}_0")(
                x, places[stride], features[stride].shape[1:3], train=train
            )
            for i in range(1, regular + 1):
                x = Bottleneck(1, **options, name=f"bottleneck{section}_{i}")(x, train=train)
        x = ConvTranspose(
            self.num_classes,
            (3, 3),
            padding=1,
            output_padding=1,
            use_bias=False,
            dtype=self.dtype,
            name="classifier",
        )(x)
        return x[:, : size[0], : size[1]]


class ENet(nn.Module):
    """ENet.

    Attributes:
        activations: Of the encoder and of the decoder: "shared_prelu" with one slope, "prelu" with one for each channel,
            or "relu".
        dropout: Rates of the first section's bottlenecks and of the others'.
    """

    num_classes: int
    activations: tuple[str, str] = ("shared_prelu", "relu")
    dropout: tuple[float, float] = (0.01, 0.1)
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        for given in self.activations:
            if given not in ACTIVATIONS:
                raise ValueError(
                    f"unknown activation '{given}'; choose one of {', '.join(ACTIVATIONS)}"
                )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h w k"]]:
        """Returns {"logits": float32 scores at the image's size}."""
        encoder, decoder = self.activations
        features, places = ENetBackbone(self.dropout, encoder, self.dtype, name="backbone")(
            image, train=train
        )
        scores = ENetDecoder(
            self.num_classes, self.dropout[1], decoder, self.dtype, name="decoder"
        )(features, places, image.shape[1:3], train=train)
        return {"logits": scores.astype(jnp.float32)}
