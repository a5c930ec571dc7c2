"""Convolutions with PyTorch's padding and initialisation; kernels are stored as (kh, kw, in, out)."""

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

from rtseg_jax.nn.form import is_portable
from rtseg_jax.nn.norm import BatchNorm

Pair = tuple[int, int]
Initializer = Callable[..., Array]

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


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


def _lax_conv(x, kernel, strides, padding, kernel_dilation, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(p, p) for p in padding],
        rhs_dilation=kernel_dilation,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


def _taps(x, shape, kernel_size, strides, padding, kernel_dilation):
    """The input that each kernel position sees: kh * kw arrays [b, *shape, ci]."""
    x = jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            start = (i * kernel_dilation[0], j * kernel_dilation[1])
            limit = (a + (n - 1) * s + 1 for a, n, s in zip(start, shape, strides, strict=True))
            yield lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[3]), (1, *strides, 1))


def _shifted(x, shift):
    """y[:, i, j] = x[:, i + shift[0], j + shift[1]], zero outside."""
    pads = [(0, 0, 0), (-shift[0], shift[0], 0), (-shift[1], shift[1], 0), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def _tap_by_tap(x, kernel, shape, strides, padding, kernel_dilation):
    """Dense convolution of few input channels as one loop over the output, a multiply-add for each weight.

    lax's own form packs patches of the input, which for three channels takes CPUs longer than the arithmetic.
    """
    taps = _taps(x, shape, kernel.shape[:2], strides, padding, kernel_dilation)
    weights = kernel.astype(jnp.float32).reshape(-1, x.shape[3], 1, 1, 1, kernel.shape[3])
    y = sum(
        lax.slice_in_dim(tap, c, c + 1, axis=3).astype(jnp.float32) * weight[c]
        for tap, weight in zip(taps, weights, strict=True)
        for c in range(x.shape[3])
    )
    return y.astype(x.dtype)


def _side_by_side(x, kernel, padding, kernel_dilation):
    """Dense convolution that keeps the size as one matrix product for all taps, whose shifted parts are summed.

    CPUs run products at up to twice the speed of lax's convolution, and what follows (bias, norm, ReLU) is part of the
    sum's loop. The product is as many times the output as there are taps: for the three of 3x1 and 1x3 it pays.
    """
    kh, kw, ci, co = kernel.shape
    parts = lax.dot_general(
        x.reshape(-1, ci),
        kernel.transpose(2, 0, 1, 3).reshape(ci, kh * kw * co),
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    ).reshape(*x.shape[:3], kh, kw, co)
    y = sum(
        _shifted(
            parts[:, :, :, i, j],
            (i * kernel_dilation[0] - padding[0], j * kernel_dilation[1] - padding[1]),
        )
        for i in range(kh)
        for j in range(kw)
    )
    return y.astype(x.dtype)


def _kernel_gradient(x, g, kernel_size, strides, padding, kernel_dilation):
    """Gradient of a dense convolution's kernel as matrix products over all pixels.

    lax's own form is a convolution with a window as large as the image, which CPUs run 2-4 times slower.
    """
    (kh, kw), (ph, pw), (dh, dw) = kernel_size, padding, kernel_dilation
    ci, co = x.shape[3], g.shape[3]

    def product(x, g):
        flat = x.reshape(-1, x.shape[3]), g.reshape(-1, g.shape[3])
        return lax.dot_general(
            *flat, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        ).astype(x.dtype)

    if strides == (1, 1) and g.shape[1:3] == x.shape[1:3]:
        # One product of shifted copies: of x for some of the kernel's axes, of g for the others, as few as possible.
        def copied(rows, columns):
            of_x, of_g = rows * columns, kh * kw // (rows * columns)
            return (of_x > 1) * of_x * ci + (of_g > 1) * of_g * co

        def copies(array, rows, columns, sign):
            down = [sign * (i * dh - ph) for i in range(rows)] if rows > 1 else [0]
            right = [sign * (j * dw - pw) for j in range(columns)] if columns > 1 else [0]
            return jnp.concatenate([_shifted(array, (i, j)) for i in down for j in right], axis=-1)

        rows, columns = min(((1, 1), (kh, 1), (kh, kw)), key=lambda of_x: copied(*of_x))
        dk = product(copies(x, rows, columns, 1), copies(g, kh // rows, kw // columns, -1))
        dk = dk.reshape(rows, columns, ci, kh // rows, kw // columns, co)
        return dk.transpose(0, 3, 1, 4, 2, 5).reshape(kh, kw, ci, co)
    taps = _taps(x, g.shape[1:3], kernel_size, strides, padding, kernel_dilation)
    return jnp.stack([product(tap, g) for tap in taps]).reshape(kh, kw, ci, co)


def _strided_input_gradient(kernel, g, size, strides, padding):
    """Gradient of a strided convolution's input, one ordinary convolution for each phase of its pixels.

    lax's own form spreads g with zeros, which CPUs run 3 times slower.
    """

    def phase(axis, offset):
        # Input s m + offset meets the taps first, first + s, ...; of these the last with output m + shift - taps + 1.
        s, p = strides[axis], padding[axis]
        first = (offset + p) % s
        taps = len(range(first, kernel.shape[axis], s))
        low = taps - 1 - (offset + p - first) // s
        high = -(-size[axis] // s) + taps - 1 - g.shape[axis + 1] - low
        return slice(first, None, s), (low, high)

    def convolve(row, column):
        (rows, row_pads), (columns, column_pads) = row, column
        taps = kernel[rows, columns][::-1, ::-1].swapaxes(2, 3)
        if taps.size == 0:
            shape = (-(-n // s) for n, s in zip(size, strides, strict=True))
            return jnp.zeros((g.shape[0], *shape, kernel.shape[2]), g.dtype)
        return lax.conv_general_dilated(
            g, taps, (1, 1), (row_pads, column_pads), dimension_numbers=DIMENSIONS
        )

    rows = [phase(0, i) for i in range(strides[0])]
    columns = [phase(1, i) for i in range(strides[1])]
    # Interleaved: [b, h / s, s, w / s, s, ci]
    dx = jnp.stack([jnp.stack([convolve(r, c) for c in columns], 3) for r in rows], 2)
    b, h, _, w, _, ci = dx.shape
    return dx.reshape(b, h * strides[0], w * strides[1], ci)[:, : size[0], : size[1]]


def conv2d(
    x: Float[Array, "b h w ci"],
    kernel: Float[Array, "kh kw ci co"],
    *,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    kernel_dilation: Pair = (1, 1),
    impl: str = "auto",
) -> Float[Array, "b h2 w2 co"]:
    """Dense convolution, zero-padded by `padding` on both sides; 1x1 at stride 1 is a matrix product."""
    plain = is_portable(impl)
    geometry = (strides, padding, kernel_dilation)

    def convolve(x, kernel):
        return _lax_conv(x, kernel, *geometry)

    if plain:
        return convolve(x, kernel)
    if kernel.shape[:2] == strides == (1, 1) and padding == (0, 0):
        y = x.reshape(-1, x.shape[3]) @ kernel[0, 0]
        return y.reshape(*x.shape[:3], kernel.shape[3])

    def on_cpu(form):
        return functools.partial(lax.platform_dependent, cpu=form, default=convolve)

    forward = undifferentiated = convolve
    if math.prod(kernel.shape[:3]) <= 27 and strides != (1, 1):  # an image's stem
        shape = jax.eval_shape(convolve, x, kernel).shape[1:3]
        forward = undifferentiated = on_cpu(lambda x, k: _tap_by_tap(x, k, shape, *geometry))
    elif (
        math.prod(kernel.shape[:2]) == 3
        and strides == (1, 1)
        and padding == same_padding(kernel.shape[:2], kernel_dilation)
    ):  # not in training, where the product would be kept for the norm's statistics and the way back
        undifferentiated = on_cpu(lambda x, k: _side_by_side(x, k, padding, kernel_dilation))

    def backward(saved, g):
        x, kernel = lax.optimization_barrier(saved)

        def input_gradient(kernel, g):
            return jax.vjp(lambda x: convolve(x, kernel), x)[1](g)[0]

        dx = lax.platform_dependent(
            kernel,
            g,
            cpu=input_gradient
            if strides == (1, 1) or kernel_dilation != (1, 1)
            else lambda kernel, g: _strided_input_gradient(
                kernel, g, x.shape[1:3], strides, padding
            ),
            default=input_gradient,
        )
        dk = lax.platform_dependent(
            x,
            g,
            cpu=lambda x, g: _kernel_gradient(x, g, kernel.shape[:2], *geometry),
            default=lambda x, g: jax.vjp(lambda k: convolve(x, k), kernel)[1](g)[0],
        )
        return dx, dk

    differentiable = jax.custom_vjp(undifferentiated)
    differentiable.defvjp(lambda x, kernel: (forward(x, kernel), (x, kernel)), backward)
    return differentiable(x, kernel)


def _shift_depthwise(x, kernel, shape, strides, padding, kernel_dilation):
    """Depth-wise convolution as a sum of shifted products, which compiles to one loop."""
    taps = _taps(x, shape, kernel.shape[:2], strides, padding, kernel_dilation)
    weights = kernel.astype(jnp.float32).reshape(-1, 1, 1, 1, x.shape[3])
    y = sum(tap.astype(jnp.float32) * w for tap, w in zip(taps, weights, strict=True))
    return y.astype(x.dtype)


def _depthwise_kernel_gradient(x, g, kernel_size, strides, padding, kernel_dilation):
    """Sums over the pixels of g times what each kernel position sees, [kh * kw, c] float32."""
    (kh, kw), (ph, pw), (dh, dw) = kernel_size, padding, kernel_dilation
    if kh * kw < 9 and g.shape[1:3] == x.shape[1:3]:
        taps = [_shifted(x, (i * dh - ph, j * dw - pw)) for i in range(kh) for j in range(kw)]
        return jnp.stack([(tap.astype(jnp.float32) * g).sum((0, 1, 2)) for tap in taps])
    # All sums in one loop over the rows: one by one, each would have its own shifted copy of x. Padded once, before;
    # without the barrier the middle one would be read from x itself, which takes a tenth longer.
    x = jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    x = lax.optimization_barrier(x)
    taps = _taps(x, g.shape[1:3], kernel_size, strides, (0, 0), kernel_dilation)
    products = tuple(tap.astype(jnp.float32) * g for tap in taps)
    zeros = (jnp.float32(0),) * len(products)
    add = lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True))  # noqa: E731
    # Over the rows alone: a batch split over devices would be gathered for a reduction of several operands.
    return jnp.stack([one.sum((0, 1)) for one in lax.reduce(products, zeros, add, (1,))])


def _shift_depthwise_gradient(x, kernel, g, strides, padding, kernel_dilation):
    """Gradients of x and kernel, again as shifted products."""
    (kh, kw), (h, w) = kernel.shape[:2], x.shape[1:3]
    dk = _depthwise_kernel_gradient(x, g, (kh, kw), strides, padding, kernel_dilation)
    # Padded so that the transposed convolution is an ordinary one of stride 1, with the kernel turned round.
    pads = []
    for n, out, k, s, p, d in zip(
        (h, w), g.shape[1:3], (kh, kw), strides, padding, kernel_dilation, strict=True
    ):
        low = d * (k - 1) - p
        pads.append((low, n + d * (k - 1) - low - (out - 1) * s - 1, s - 1))
    g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    dx = _shift_depthwise(g, kernel[::-1, ::-1], (h, w), (1, 1), (0, 0), kernel_dilation)
    return dx, dk.reshape(kernel.shape).astype(kernel.dtype)


def depthwise_conv2d(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    *,
    strides: Pair = (1, 1),
    padding: Pair = (0, 0),
    kernel_dilation: Pair = (1, 1),
    impl: str = "auto",
) -> Float[Array, "b h2 w2 c"]:
    """Depth-wise convolution, one filter per channel; on CPU 15-36 times faster than lax's grouped form."""
    plain = is_portable(impl)
    geometry = (strides, padding, kernel_dilation)

    def grouped(x, kernel):
        return _lax_conv(x, kernel, *geometry, x.shape[3])

    if plain:
        return grouped(x, kernel)
    shape = jax.eval_shape(grouped, x, kernel).shape[1:3]

    def convolve(x, kernel):
        return lax.platform_dependent(
            x, kernel, cpu=lambda x, k: _shift_depthwise(x, k, shape, *geometry), default=grouped
        )

    def backward(saved, g):
        # The barrier keeps the forward pass from storing the shifted inputs for the gradient.
        x, kernel = lax.optimization_barrier(saved)
        return lax.platform_dependent(
            x,
            kernel,
            g,
            cpu=lambda x, k, g: _shift_depthwise_gradient(x, k, g, *geometry),
            default=lambda x, k, g: jax.vjp(grouped, x, k)[1](g),
        )

    differentiable = jax.custom_vjp(convolve)
    differentiable.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), backward)
    return differentiable(x, kernel)


def conv_transpose2d(
    x: Float[Array, "b h w ci"],
    kernel: Float[Array, "kh kw ci co"],
    *,
    strides: Pair = (2, 2),
    padding: int = 0,
    output_padding: int = 0,
    impl: str = "auto",
) -> Float[Array, "b h2 w2 co"]:
    """Torch's ConvTranspose2d: kernel[kh, kw, ci, co] is its weight[ci, co, kh, kw], not flipped."""
    plain = is_portable(impl)
    sizes = kernel.shape[:2]
    if not plain and sizes == strides and padding == output_padding == 0:
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

    if plain:
        return spread(x, kernel)

    def backward(saved, g):
        # Of the convolution that this one transposes: its value at g, and its kernel's gradient with x as the output's.
        x, kernel = lax.optimization_barrier(saved)
        geometry = (strides, (padding, padding), (1, 1))

        def on_cpu(x, kernel, g):
            dk = _kernel_gradient(g, x, sizes, *geometry)
            return _lax_conv(g, kernel.swapaxes(2, 3), *geometry), dk.swapaxes(2, 3)

        return lax.platform_dependent(
            x, kernel, g, cpu=on_cpu, default=lambda x, k, g: jax.vjp(spread, x, k)[1](g)
        )

    differentiable = jax.custom_vjp(spread)
    differentiable.defvjp(lambda x, kernel: (spread(x, kernel), (x, kernel)), backward)
    return differentiable(x, kernel)


class Conv(nn.Module):
    """Dense convolution.

    Attributes:
        padding: Zeros on each side (h, w); None keeps the size at stride 1, as torch nets pad odd kernels.
        bias_init: None is torch's default, uniform in +-1/sqrt(fan_in).
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

    @nn.compact
    def __call__(self, x: Float[Array, "b h w ci"]) -> Float[Array, "b h2 w2 co"]:
        return _convolve(self, conv2d, x, (*self.kernel_size, x.shape[-1], self.features))


class DepthwiseConv(nn.Module):
    """Depth-wise convolution; attributes as in Conv."""

    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    kernel_dilation: Pair = (1, 1)
    padding: Pair | None = None
    use_bias: bool = True
    kernel_init: Initializer = kaiming_normal
    bias_init: Initializer | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
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
    bias = module.param("bias", init, (y.shape[3],), jnp.float32).reshape(1, 1, 1, -1)
    # In float32, or the bias's gradient would be a bfloat16 sum over all pixels, which stops growing at 256.
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


class ConvBatchNorm(nn.Module):
    """A convolution, its BatchNorm and an optional activation: the pair that inference folds into one.

    Attributes:
        features: Output channels; None makes the convolution depth-wise.
    """

    features: int | None
    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    kernel_dilation: Pair = (1, 1)
    use_bias: bool = False
    epsilon: float = 1e-5
    activation: Callable[[Array], Array] | None = None
    kernel_init: Initializer = kaiming_normal_fan_out
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w ci"], *, train: bool) -> Float[Array, "b h2 w2 co"]:
        conv = DepthwiseConv if self.features is None else functools.partial(Conv, self.features)
        x = conv(
            kernel_size=self.kernel_size,
            strides=self.strides,
            kernel_dilation=self.kernel_dilation,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = BatchNorm(self.epsilon, dtype=self.dtype, name="norm")(x, train=train)
        return x if self.activation is None else self.activation(x)
