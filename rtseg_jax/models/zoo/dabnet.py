"""The trunk of DABNet (Li and Kim, "DABNet: Depth-wise Asymmetric Bottleneck", BMVC 2019).

Readings (what the paper leaves open, and what its code settles):
  * no convolution has a bias; BatchNorm epsilon is 1e-3; PReLU has one slope per channel, initially 0.25;
  * the image injected at each scale is average-pooled 3x3 with the zero padding counted in the mean;
  * the second downsampling has no pooling branch, because it does not add channels (131 -> 128);
  * on odd sizes the pooling branch is in ceil mode, so that it meets the convolution's size.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.nn.blocks import ConvBatchNormPReLU
from rtseg_jax.nn.conv import Conv, DepthwiseConv
from rtseg_jax.nn.norm import BatchNormPReLU
from rtseg_jax.nn.pool import avg_pool, max_pool

EPSILON = 1e-3


def _norm(name: str, dtype: DTypeLike) -> BatchNormPReLU:
    return BatchNormPReLU(epsilon=EPSILON, dtype=dtype, name=name)


class DownsamplingBlock(nn.Module):
    """Halves the resolution: a strided convolution, beside a max pool while channels grow (DABNet, 3.2)."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        channels = x.shape[-1]
        pooled = self.features > channels
        conv_features = self.features - channels if pooled else self.features
        y = Conv(
            conv_features, (3, 3), strides=(2, 2), use_bias=False, dtype=self.dtype, name="conv"
        )(x)
        if pooled:
            y = jnp.concatenate([y, max_pool(x, (2, 2), (2, 2), ceil_mode=True)], axis=-1)
        return _norm("norm", self.dtype)(y, train=train)


class DABModule(nn.Module):
    """Depth-wise Asymmetric Bottleneck (DABNet, Fig. 2c): two depth-wise branches, one of them dilated."""

    dilation: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        channels, d, dtype = x.shape[-1], self.dilation, self.dtype

        def norm(name, y):
            return _norm(name, dtype)(y, train=train)

        def depthwise(name, kernel_size, y, dilation=(1, 1)):
            return DepthwiseConv(
                kernel_size, kernel_dilation=dilation, use_bias=False, dtype=dtype, name=name
            )(y)

        y = norm("norm_in", x)
        y = Conv(channels // 2, (3, 3), use_bias=False, dtype=dtype, name="conv3x3")(y)
        y = norm("norm_mid", y)

        local = norm("norm_a1", depthwise("dw3x1", (3, 1), y))
        local = norm("norm_a2", depthwise("dw1x3", (1, 3), local))
        context = norm("norm_b1", depthwise("dw3x1_dilated", (3, 1), y, (d, 1)))
        context = norm("norm_b2", depthwise("dw1x3_dilated", (1, 3), context, (1, d)))

        y = norm("norm_out", local + context)
        y = Conv(channels, (1, 1), use_bias=False, dtype=dtype, name="conv1x1")(y)
        return y + x


class DABNetBackbone(nn.Module):
    """DABNet without its classifier (Table 1): stem, two stages of DAB modules, image injected at each."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Returns the features at output strides 2, 4 and 8 (35, 131 and 259 channels)."""
        dtype = self.dtype
        image = image.astype(dtype)
        half = avg_pool(image, (3, 3), (2, 2), padding=(1, 1))
        quarter = avg_pool(half, (3, 3), (2, 2), padding=(1, 1))
        eighth = avg_pool(quarter, (3, 3), (2, 2), padding=(1, 1))

        def inject(name, *maps):
            return _norm(name, dtype)(jnp.concatenate(maps, axis=-1), train=train)

        x = ConvBatchNormPReLU(32, strides=(2, 2), dtype=dtype, name="stem1")(image, train=train)
        x = ConvBatchNormPReLU(32, dtype=dtype, name="stem2")(x, train=train)
        x = ConvBatchNormPReLU(32, dtype=dtype, name="stem3")(x, train=train)
        stride2 = inject("inject1", x, half)

        start = DownsamplingBlock(64, dtype, name="down1")(stride2, train=train)
        x = start
        for i in range(1, 4):
            x = DABModule(2, dtype, name=f"block1_{i}")(x, train=train)
        stride4 = inject("inject2", x, start, quarter)

        start = DownsamplingBlock(128, dtype, name="down2")(stride4, train=train)
        x = start
        for i, dilation in enumerate((4, 4, 8, 8, 16, 16), start=1):
            x = DABModule(dilation, dtype, name=f"block2_{i}")(x, train=train)
        stride8 = inject("inject3", x, start, eighth)
        return {2: stride2, 4: stride4, 8: stride8}
