"""Blocks that more than one paper's network is made of."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rtseg_jax.nn.conv import (
    Conv,
    ConvBatchNorm,
    Initializer,
    Pair,
    kaiming_normal,
    kaiming_normal_fan_out,
)
from rtseg_jax.nn.norm import BatchNormPReLU
from rtseg_jax.nn.pool import max_pool


@jax.custom_jvp
def add_relu(y: Float[Array, "*shape"], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """relu(y + x), the end of a residual block with the shortcut x.

    On a CPU as max(y, -x) + x, which is the same number. An operation on one array, such as a ReLU, is computed again in
    each loop that reads it, and the sum below it with it: every shortcut would go back through all blocks before it. A
    sum of two arrays that is read by a convolution too is computed once.
    """
    return lax.platform_dependent(
        y, x, cpu=lambda y, x: jnp.maximum(y, -x) + x, default=lambda y, x: nn.relu(y + x)
    )


@add_relu.defjvp
def _(primals, tangents):
    z = add_relu(*primals)
    return z, jnp.where(z > 0, sum(tangents), 0)


class ConvBatchNormPReLU(nn.Module):
    """A convolution without bias, its BatchNorm and a PReLU."""

    features: int
    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    epsilon: float = 1e-3
    kernel_init: Initializer = kaiming_normal
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        return BatchNormPReLU(self.epsilon, dtype=self.dtype, name="norm")(x, train=train)


class InvertedResidual(nn.Module):
    """Expansion, depth-wise 3x3, linear projection (Sandler et al., "MobileNetV2", CVPR 2018, Table 1).

    The input is added where stride and channels allow it.

    Attributes:
        expansion: Channels of the depth-wise convolution over those of the input.
        expand: False leaves the first 1x1 convolution out, as published weights do where expansion is 1.
    """

    features: int
    strides: tuple[int, int] = (1, 1)
    expansion: int = 6
    expand: bool = True
    activation: Callable[[Array], Array] = nn.relu6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 co"]:
        y, channels = x, x.shape[-1]
        conv = functools.partial(ConvBatchNorm, activation=self.activation, dtype=self.dtype)
        if self.expand:
            y = conv(self.expansion * channels, (1, 1), name="expand")(y, train=train)
        y = conv(None, (3, 3), self.strides, name="depthwise")(y, train=train)
        y = ConvBatchNorm(self.features, (1, 1), dtype=self.dtype, name="project")(y, train=train)
        return x + y if self.strides == (1, 1) and channels == self.features else y


class ChainedResidualPooling(nn.Module):
    """Chained residual pooling, CRP (Lin et al., "RefineNet", CVPR 2017, Fig. 2d), with 1x1 convolutions.

    t_0 = x, t_i = conv_i(maxpool5x5(t_i-1)), result x + t_1 + ... + t_stages.
    """

    features: int
    stages: int = 4
    kernel_init: Initializer = kaiming_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        top, options = x, {"kernel_init": self.kernel_init, "dtype": self.dtype}
        for i in range(1, self.stages + 1):
            conv = Conv(self.features, (1, 1), use_bias=False, **options, name=f"conv{i}")
            top = conv(max_pool(top, (5, 5), (1, 1), (2, 2)))
            x = x + top
        return x
