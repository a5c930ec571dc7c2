"""The encoder of ERFNet (Romera et al., "ERFNet: Efficient Residual Factorized ConvNet", T-ITS 2018).

Readings (what the paper leaves open, and what its PyTorch code settles):
  * dropout is 0.03 in the 64-channel blocks and 0.3 in the 128-channel ones, none in the downsamplers;
  * every convolution has a bias, BatchNorm epsilon is 1e-3;
  * on odd sizes the pooling branch of a downsampler is in ceil mode, so that it meets the convolution's size.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.nn.blocks import add_relu
from rtseg_jax.nn.conv import Conv, ConvTranspose
from rtseg_jax.nn.norm import BatchNorm
from rtseg_jax.nn.pool import max_pool

EPSILON = 1e-3


class DownsamplerBlock(nn.Module):
    """Halves the resolution: a strided 3x3 convolution beside a 2x2 max pool (ERFNet, Table I)."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        conv = Conv(
            self.features - x.shape[-1], (3, 3), strides=(2, 2), dtype=self.dtype, name="conv"
        )(x)
        pool = max_pool(x, (2, 2), (2, 2), ceil_mode=True)
        x = jnp.concatenate([conv, pool], axis=-1)
        x = BatchNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x, train=train)
        return nn.relu(x)


class NonBottleneck1D(nn.Module):
    """Residual block of factorised convolutions (ERFNet, Fig. 2c); the second pair is dilated."""

    dropout: float
    dilation: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        features, dilation = x.shape[-1], self.dilation

        def norm(name, y):
            return BatchNorm(epsilon=EPSILON, dtype=self.dtype, name=name)(y, train=train)

        y = nn.relu(Conv(features, (3, 1), dtype=self.dtype, name="conv3x1_1")(x))
        y = Conv(features, (1, 3), dtype=self.dtype, name="conv1x3_1")(y)
        y = nn.relu(norm("norm1", y))
        y = Conv(
            features, (3, 1), kernel_dilation=(dilation, 1), dtype=self.dtype, name="conv3x1_2"
        )(y)
        y = nn.relu(y)
        y = Conv(
            features, (1, 3), kernel_dilation=(1, dilation), dtype=self.dtype, name="conv1x3_2"
        )(y)
        y = norm("norm2", y)
        # Dropout2d: whole channels of an example.
        y = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)(y)
        return add_relu(y, x)


class UpsamplerBlock(nn.Module):
    """Doubles the resolution with a transposed 3x3 convolution (ERFNet, Table I)."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        x = ConvTranspose(
            self.features, (3, 3), padding=1, output_padding=1, dtype=self.dtype, name="conv"
        )(x)
        x = BatchNorm(epsilon=EPSILON, dtype=self.dtype, name="norm")(x, train=train)
        return nn.relu(x)


class ERFNetEncoder(nn.Module):
    """Layers 1-16 of ERFNet (Table I).

    Attributes:
        dropout: Rates of the 64-channel and of the 128-channel blocks.
    """

    dropout: tuple[float, float] = (0.03, 0.3)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Returns the features at output strides 2, 4 and 8 (16, 64 and 128 channels)."""
        features = {}
        x = DownsamplerBlock(16, self.dtype, name="down1")(image, train=train)
        features[2] = x
        x = DownsamplerBlock(64, self.dtype, name="down2")(x, train=train)
        for i in range(3, 8):
            x = NonBottleneck1D(self.dropout[0], 1, self.dtype, name=f"block{i}")(x, train=train)
        features[4] = x
        x = DownsamplerBlock(128, self.dtype, name="down8")(x, train=train)
        for i, dilation in enumerate((2, 4, 8, 16, 2, 4, 8, 16), start=9):
            x = NonBottleneck1D(self.dropout[1], dilation, self.dtype, name=f"block{i}")(
                x, train=train
            )
        features[8] = x
        return features


class ERFNetDecoder(nn.Module):
    """Layers 17-23 of ERFNet (Table I): two upsamplers with two blocks each, a transposed 2x2 classifier."""

    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h8 w8 k"]:
        x = UpsamplerBlock(64, self.dtype, name="up17")(x, train=train)
        x = NonBottleneck1D(0.0, 1, self.dtype, name="block18")(x, train=train)
        x = NonBottleneck1D(0.0, 1, self.dtype, name="block19")(x, train=train)
        x = UpsamplerBlock(16, self.dtype, name="up20")(x, train=train)
        x = NonBottleneck1D(0.0, 1, self.dtype, name="block21")(x, train=train)
        x = NonBottleneck1D(0.0, 1, self.dtype, name="block22")(x, train=train)
        return ConvTranspose(
            self.num_classes,
            (2, 2),
            padding=0,
            output_padding=0,
            dtype=self.dtype,
            name="classifier",
        )(x)


class ERFNet(nn.Module):
    """ERFNet with its decoder, the paper's "ERFNet-base" (Table 1).

    Attributes:
        encoder_head: Also create the encoder's 1x1 classifier. No output depends on it, but the 2.067 M parameters
            that the paper prints count it, and EACNet's stage 1 leaves it behind.
    """

    num_classes: int
    encoder_head: bool = True
    dropout: tuple[float, float] = (0.03, 0.3)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h w k"]]:
        """Returns {"logits": float32 scores at the image's size}."""
        features = ERFNetEncoder(self.dropout, self.dtype, name="backbone")(image, train=train)[8]
        if self.encoder_head:
            Conv(self.num_classes, (1, 1), dtype=self.dtype, name="classifier")(features)
        scores = ERFNetDecoder(self.num_classes, self.dtype, name="decoder")(features, train=train)
        # Three halvings round odd sizes up: the transposed convolutions overshoot by up to 7 pixels.
        scores = scores[:, : image.shape[1], : image.shape[2]]
        return {"logits": scores.astype(jnp.float32)}
