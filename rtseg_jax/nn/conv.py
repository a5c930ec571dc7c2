"""Convolutions with PyTorch's padding and initialisation; kernels are stored as (kh, kw, in, out).

What each one computes is `forms.convolve`; which form of it runs on which platform is decided here, in `conv2d`,
`depthwise_conv2d` and `conv_transpose2d`. The forms themselves are in cpu.py and gpu.py.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from rtseg_jax.nn import cpu, gpu
from rtseg_jax.nn.forms import DIMENSIONS, Form, Geometry, Pair, by_platform, convolve
from rtseg_jax.nn.norm import BatchNorm

Initializer = Callable[..., Array]


def kaiming_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal with variance 2 / fan_in, not truncated (He et al. 2015, Eq. 10; torch's kaiming_normal_)."""
    return jax.random.normal(key, shape, dtype) * (2 / math.prod(shape[:-1])) ** 0.5


def kaiming_normal_fan_out(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Normal with variance 2 / fan_out (torch's kaiming_normal_ with mode="fan_out", ReLU)."""
    fan_out = math.prod(shape[:-2]) * shape[-1]
    return jax.random.normal(key, shape, dtype) * (2 / fan_out) ** 0.5


def torch_default(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Uniform in +-1/sqrt(fan_in), what torch's Conv2d and Linear start from."""
    return torch_uniform(math.prod(shape[:-1]))(key, shape, dtype)


def torch_uniform(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in): torch's default for biases, and for kernels of transposed convolutions."""
    bound = 1 / np.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def same_padding(kernel_size: Pair, kernel_dilation: Pair) -> Pair:
    """Padding on each side that keeps the size at stride 1; for stride 2 it is torch's, not "SAME".

    Raises:
        ValueError: an even kernel, for which no symmetric padding exists.
    """
    if kernel_size[0] % 2 == 0 or kernel_size[1] % 2 == 0:
        raise ValueError(f"no symmetric padding for kernel {kernel_size}: state padding explicitly")
    return (
        kernel_dilation[0] * (kernel_size[0] - 1) // 2,
        kernel_dilation[1] * (kernel_size[1] - 1) // 2,
    )


def conv2d(
    x: Float[Array, "b h w ci"],
    kernel: Float[Array, "kh kw cig co"],
    *,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    kernel_dilation: Pair = (1, 1),
    groups: int = 1,
) -> Float[Array, "b h2 w2 co"]:
    """Dense convolution, zero-padded by `padding` on both sides; in groups of ci / groups inputs if there are several."""
    geometry = Geometry(strides, padding, kernel_dilation)
    if groups > 1:
        return convolve(x, kernel, geometry, groups)
    plain = Form(functools.partial(convolve, geometry=geometry))
    if kernel.shape[:2] == strides == (1, 1) and padding == (0, 0):
        # A GPU puts bias, residual and ReLU into a convolution, and not into a matrix product.
        return by_platform(x, kernel, default=Form(_pointwise), cuda=plain)
    return by_platform(x, kernel, default=plain, cpu=cpu.dense(x, kernel, geometry))


def _pointwise(x, kernel):
    y = x.reshape(-1, x.shape[3]) @ kernel[0, 0]
    return y.reshape(*x.shape[:3], kernel.shape[3])


def depthwise_conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    kernel_dilation: Pair = (1, 1),
) -> Float[Array, "b h2 w2 c"]:
    """Depth-wise convolution, one filter per channel."""
    geometry = Geometry(strides, padding, kernel_dilation)

    def form(forward, backward=None):
        given = (
            functools.partial(f, geometry=geometry) if f else None for f in (forward, backward)
        )
        return Form(*given)

    return by_platform(
        x,
        kernel,
        default=form(functools.partial(convolve, groups=x.shape[3])),
        cpu=form(cpu.depthwise, cpu.depthwise_gradients),
        cuda=form(cpu.depthwise, gpu.depthwise_gradients),
    )


def conv_transpose2d(
    x: Float[Array, "b h w ci"],
    kernel: Float[Array, "kh kw ci co"],
    *,
    strides: Pair = (2, 2),
    padding: int = 0,
    output_padding: int = 0,
) -> Float[Array, "b h2 w2 co"]:
    """Torch's ConvTranspose2d: kernel[kh, kw, ci, co] is its weight[ci, co, kh, kw], not flipped."""
    sizes = kernel.shape[:2]
    if sizes == strides and padding == output_padding == 0:
        # The taps do not overlap: one matrix product, then its kh x kw outputs side by side.
        b, h, w, ci = x.shape
        y = x.reshape(-1, ci) @ kernel.transpose(2, 0, 1, 3).reshape(ci, -1)
        y = y.reshape(b, h, w, *sizes, kernel.shape[3]).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(b, h * sizes[0], w * sizes[1], kernel.shape[3])

    def spread(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel[::-1, ::-1],
            (1, 1),
            [(k - 1 - padding, k - 1 - padding + output_padding) for k in sizes],
            lhs_dilation=strides,
            dimension_numbers=DIMENSIONS,
        )

    geometry = Geometry(strides, (padding, padding))
    on_cpu = functools.partial(cpu.transposed_gradients, geometry=geometry)
    return by_platform(x, kernel, default=Form(spread), cpu=Form(spread, on_cpu))


@jax.custom_vjp
def add_bias(y: Float[Array, "b h w c"], bias: Float[Array, " c"]) -> Float[Array, "b h w c"]:
    """y + bias in y's type, which is how cuDNN adds a bias inside of a convolution.

    The bias's gradient is summed in float32: a sum of bfloat16 values stops growing at 256 times their size.
    """
    return y + bias.astype(y.dtype).reshape(1, 1, 1, -1)


add_bias.defvjp(
    lambda y, bias: (add_bias(y, bias), None),
    lambda _, g: (g, g.astype(jnp.float32).sum((0, 1, 2))),
)


class Conv(nn.Module):
    """Dense convolution.

    Attributes:
        padding: Zeros on each side (h, w); None keeps the size at stride 1, as torch nets pad odd kernels.
        bias_init: None is torch's default, uniform in +-1/sqrt(fan_in).
        groups: Into how many groups, one after the other, input and output channels fall.
    """

    features: int
    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    kernel_dilation: Pair = (1, 1)
    padding: Pair | None = None
    use_bias: bool = True
    kernel_init: Initializer = kaiming_normal
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w ci"]) -> Float[Array, "b h2 w2 co"]:
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ValueError(
                f"{self.groups} groups must divide both {x.shape[-1]} inputs and {self.features} outputs"
            )
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        return _convolve(self, functools.partial(conv2d, groups=self.groups), x, shape)


class DepthwiseConv(nn.Module):
    """Depth-wise convolution; attributes as in Conv.

    Attributes:
        multiplier: Output channels of each input channel; they lie side by side, as in torch's grouped convolution.
    """

    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    kernel_dilation: Pair = (1, 1)
    padding: Pair | None = None
    use_bias: bool = True
    kernel_init: Initializer = kaiming_normal
    bias_init: Initializer | None = None
    multiplier: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 co"]:
        if self.multiplier > 1:
            x = jnp.repeat(x, self.multiplier, axis=-1)
        return _convolve(self, depthwise_conv2d, x, (*self.kernel_size, 1, x.shape[-1]))


class ConvTranspose(nn.Module):
    """Transposed convolution, initialised as torch does (kernel and bias: fan_in counts the outputs)."""

    features: int
    kernel_size: Pair = (3, 3)
    strides: Pair = (2, 2)
    padding: int = 0
    output_padding: int = 0
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w ci"]) -> Float[Array, "b h2 w2 co"]:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        init = torch_uniform(math.prod(self.kernel_size) * self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        y = conv_transpose2d(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=self.padding,
            output_padding=self.output_padding,
        )
        return _add_bias(self, y, init) if self.use_bias else y


def _convolve(module, convolution, x, shape):
    """What Conv and DepthwiseConv do with a kernel of this shape."""
    kernel = module.param("kernel", module.kernel_init, shape, jnp.float32)
    padding = module.padding
    if padding is None:
        padding = same_padding(module.kernel_size, module.kernel_dilation)
    y = convolution(
        x.astype(module.dtype),
        kernel.astype(module.dtype),
        strides=module.strides,
        padding=padding,
        kernel_dilation=module.kernel_dilation,
    )
    if not module.use_bias:
        return y
    return _add_bias(module, y, module.bias_init or torch_uniform(math.prod(shape[:3])))


def _add_bias(module, y, init):
    return add_bias(y, module.param("bias", init, (y.shape[3],), jnp.float32))


class ConvBatchNorm(nn.Module):
    """A convolution, its BatchNorm and an optional activation: the pair that inference folds into one.

    Attributes:
        features: Output channels; None makes the convolution depth-wise.
        multiplier: Of a depth-wise convolution, see DepthwiseConv.
        groups: Of one that is not, see Conv.
    """

    features: int | None
    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    kernel_dilation: Pair = (1, 1)
    padding: Pair | None = None
    use_bias: bool = False
    epsilon: float = 1e-5
    activation: Callable[[Array], Array] | None = None
    kernel_init: Initializer = kaiming_normal_fan_out
    multiplier: int = 1
    dtype: Any = jnp.float32
    groups: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w ci"], *, train: bool) -> Float[Array, "b h2 w2 co"]:
        if self.features is None:
            conv = functools.partial(DepthwiseConv, multiplier=self.multiplier)
        else:
            conv = functools.partial(Conv, self.features, groups=self.groups)
        x = conv(
            kernel_size=self.kernel_size,
            strides=self.strides,
            kernel_dilation=self.kernel_dilation,
            padding=self.padding,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(self.epsilon, dtype=self.dtype, name="norm")(x, train=train)
        return x if self.activation is None else self.activation(x)


ConvBatchNormReLU = functools.partial(ConvBatchNorm, activation=nn.relu)
