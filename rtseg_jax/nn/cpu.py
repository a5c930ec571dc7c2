"""The forms in which a CPU is fast: XLA's own convolutions, pools and reductions are slow there.

Each function is an operation, or its gradient, written with slices, products and matrix products. benchmarks/cpu.md has
what they amount to in whole networks.
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import Array, lax

from rtseg_jax.nn.forms import DIMENSIONS, Form, Geometry, Pair, convolve, output_size


def dense(x: Array, kernel: Array, geometry: Geometry) -> Form:
    """The form of a dense convolution of these shapes."""
    forward = inference = functools.partial(_aligned, geometry=geometry)
    keeps = geometry.strides == (1, 1) and output_size(x, kernel, geometry) == x.shape[1:3]
    if math.prod(kernel.shape[:3]) <= 27 and geometry.strides != (1, 1):  # an image's stem
        forward = inference = functools.partial(_tap_by_tap, geometry=geometry)
    elif keeps and (math.prod(kernel.shape[:2]) == 3 or kernel.shape[0] == 3 and x.shape[3] <= 12):
        # Not in training, where the product would be kept for the norm's statistics and the way back.
        inference = functools.partial(_side_by_side, geometry=geometry)

    def backward(x, kernel, g):
        if geometry.strides == (1, 1) or geometry.kernel_dilation != (1, 1):
            (dx,) = jax.vjp(lambda x: convolve(x, kernel, geometry), x)[1](g)
        else:
            dx = _strided_input_gradient(kernel, g, x.shape[1:3], geometry)
        return dx, kernel_gradient(x, g, kernel.shape[:2], geometry)

    return Form(forward, backward, inference)


def depthwise(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """A depth-wise convolution as a sum of shifted products, which compiles to one loop."""
    weights = kernel.astype(jnp.float32).reshape(-1, 1, 1, 1, x.shape[3])
    shape = output_size(x, kernel, geometry)
    taps = tap_views(x, shape, kernel.shape[:2], geometry)
    y = sum(tap.astype(jnp.float32) * w for tap, w in zip(taps, weights, strict=True))
    return y.astype(x.dtype)


def depthwise_gradients(
    x: Array, kernel: Array, g: Array, geometry: Geometry
) -> tuple[Array, Array]:
    """The gradients of depthwise()'s x and kernel, again as shifted products."""
    dk = _depthwise_kernel_gradient(x, g, kernel.shape[:2], geometry)
    dx = depthwise_input_gradient(kernel, g, x.shape[1:3], geometry)
    return dx, dk.reshape(kernel.shape).astype(kernel.dtype)


def depthwise_input_gradient(kernel: Array, g: Array, size: Pair, geometry: Geometry) -> Array:
    """The gradient of a depth-wise convolution's input, which has `size` (h, w).

    g is padded so that the transposed convolution is an ordinary one of stride 1, with the kernel turned round.
    """
    pads = []
    for n, out, k, s, p, d in zip(size, g.shape[1:3], kernel.shape[:2], *geometry, strict=True):
        low = d * (k - 1) - p
        pads.append((low, n + d * (k - 1) - low - (out - 1) * s - 1, s - 1))
    g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    return depthwise(g, kernel[::-1, ::-1], Geometry(kernel_dilation=geometry.kernel_dilation))


def transposed_gradients(
    x: Array, kernel: Array, g: Array, geometry: Geometry
) -> tuple[Array, Array]:
    """The gradients of a transposed convolution: those of the convolution that it transposes, turned round."""
    dk = kernel_gradient(g, x, kernel.shape[:2], geometry)
    return convolve(g, kernel.swapaxes(2, 3), geometry), dk.swapaxes(2, 3)


def tap_views(x: Array, shape: Pair, kernel_size: Pair, geometry: Geometry) -> Iterator[Array]:
    """The input that each kernel position sees: kh * kw arrays [b, *shape, ci]."""
    strides, (ph, pw), dilation = geometry
    x = jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            start = (i * dilation[0], j * dilation[1])
            limit = (a + (n - 1) * s + 1 for a, n, s in zip(start, shape, strides, strict=True))
            yield lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[3]), (1, *strides, 1))


def shifted(x: Array, shift: Pair) -> Array:
    """y[:, i, j] = x[:, i + shift[0], j + shift[1]], zero outside."""
    pads = [(0, 0, 0), (-shift[0], shift[0], 0), (-shift[1], shift[1], 0), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def _shifts(kernel_size, geometry):
    """How far the input lies from the output at each kernel position, where the size is kept."""
    _, (ph, pw), (dh, dw) = geometry
    return [
        (i * dh - ph, j * dw - pw) for i in range(kernel_size[0]) for j in range(kernel_size[1])
    ]


def _tap_by_tap(x, kernel, geometry):
    """Dense convolution of few input channels as one loop over the output, a multiply-add for each weight.

    XLA's own form packs patches of the input, which for three channels takes a CPU longer than the arithmetic.
    """
    taps = tap_views(x, output_size(x, kernel, geometry), kernel.shape[:2], geometry)
    weights = kernel.astype(jnp.float32).reshape(-1, x.shape[3], 1, 1, 1, kernel.shape[3])
    y = sum(
        lax.slice_in_dim(tap, c, c + 1, axis=3).astype(jnp.float32) * weight[c]
        for tap, weight in zip(taps, weights, strict=True)
        for c in range(x.shape[3])
    )
    return y.astype(x.dtype)


def _aligned(x, kernel, geometry):
    """XLA's own convolution, with zeros for channels that its products lack to be fast: 25 take longer than 32."""
    ci, co = kernel.shape[2:]
    more = -ci % 4, -co % 8 if co > 24 else 0
    if kernel.shape[:2] == (1, 1) or more == (0, 0):
        return convolve(x, kernel, geometry)
    x = jnp.pad(x, [(0, 0)] * 3 + [(0, more[0])])
    kernel = jnp.pad(kernel, [(0, 0)] * 2 + [(0, n) for n in more])
    return convolve(x, kernel, geometry)[..., :co]


def _side_by_side(x, kernel, geometry):
    """Dense convolution that keeps the size as one matrix product, whose shifted parts are summed.

    A CPU runs the product at up to twice the speed of XLA's convolution, and what follows (bias, norm, ReLU) is part of
    the sum's loop. The product holds taps x output values: with the three taps of 3x1 and 1x3 its speed outweighs that
    traffic, with nine it does not. A square kernel therefore takes the taps of a row from an input with as many copies
    side by side, which pays for few channels.
    """
    kh, kw, ci, co = kernel.shape
    shifts = _shifts((kh, kw), geometry)
    if kh > 1 and kw > 1:
        copies = [shifted(x, (0, column)) for _, column in shifts[:kw]]
        x = jnp.concatenate(copies, axis=-1)
        kernel = kernel.reshape(kh, 1, kw * ci, co)
        shifts = [(row, 0) for row, _ in shifts[::kw]]
    taps = len(shifts)
    parts = lax.dot_general(
        x.reshape(-1, x.shape[3]),
        kernel.transpose(2, 0, 1, 3).reshape(x.shape[3], taps * co),
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    ).reshape(*x.shape[:3], taps, co)
    y = sum(shifted(parts[:, :, :, i], shift) for i, shift in enumerate(shifts))
    return y.astype(x.dtype)


def kernel_gradient(x: Array, g: Array, kernel_size: Pair, geometry: Geometry) -> Array:
    """The gradient of a dense convolution's kernel, (kh, kw, ci, co), as matrix products over all pixels.

    XLA's own form is a convolution with a window as large as the image, which a CPU runs 2-4 times slower.
    """
    (kh, kw), ci, co = kernel_size, x.shape[3], g.shape[3]
    strides, (ph, pw), (dh, dw) = geometry

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
            return jnp.concatenate([shifted(array, (i, j)) for i in down for j in right], axis=-1)

        rows, columns = min(((1, 1), (kh, 1), (kh, kw)), key=lambda of_x: copied(*of_x))
        dk = product(copies(x, rows, columns, 1), copies(g, kh // rows, kw // columns, -1))
        dk = dk.reshape(rows, columns, ci, kh // rows, kw // columns, co)
        return dk.transpose(0, 3, 1, 4, 2, 5).reshape(kh, kw, ci, co)
    taps = tap_views(x, g.shape[1:3], kernel_size, geometry)
    return jnp.stack([product(tap, g) for tap in taps]).reshape(kh, kw, ci, co)


def _strided_input_gradient(kernel, g, size, geometry):
    """Gradient of a strided convolution's input, one ordinary convolution for each phase of its pixels.

    XLA's own form spreads g with zeros, which a CPU runs 3 times slower.
    """
    strides, padding, _ = geometry

    def phase(axis, offset):
        # Input s m + offset meets the taps first, first + s, ...; of these the last with output m + shift - taps + 1.
        s, p = strides[axis], padding[axis]
        first = (offset + p) % s
        taps = len(range(first, kernel.shape[axis], s))
        low = taps - 1 - (offset + p - first) // s
        high = -(-size[axis] // s) + taps - 1 - g.shape[axis + 1] - low
        return slice(first, None, s), (low, high)

    def convolved(row, column):
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
    dx = jnp.stack([jnp.stack([convolved(r, c) for c in columns], 3) for r in rows], 2)
    b, h, _, w, _, ci = dx.shape
    return dx.reshape(b, h * strides[0], w * strides[1], ci)[:, : size[0], : size[1]]


def _depthwise_kernel_gradient(x, g, kernel_size, geometry):
    """Sums over the pixels of g times what each kernel position sees, [kh * kw, c] float32."""
    if math.prod(kernel_size) < 9 and g.shape[1:3] == x.shape[1:3]:
        taps = [shifted(x, shift) for shift in _shifts(kernel_size, geometry)]
        return jnp.stack([(tap.astype(jnp.float32) * g).sum((0, 1, 2)) for tap in taps])
    # All sums in one loop over the rows: one by one, each would have its own shifted copy of x. Padded once, before;
    # without the barrier the middle one would be read from x itself, which takes a tenth longer.
    ph, pw = geometry.padding
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0))))
    taps = tap_views(x, g.shape[1:3], kernel_size, geometry._replace(padding=(0, 0)))
    products = tuple(tap.astype(jnp.float32) * g for tap in taps)
    zeros = (jnp.float32(0),) * len(products)
    add = lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True))  # noqa: E731
    # Over the rows alone: a batch split over devices would be gathered for a reduction of several operands.
    return jnp.stack([one.sum((0, 1)) for one in lax.reduce(products, zeros, add, (1,))])


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance per channel of x [b, h, w, c], in float32; the variance is centred, so it cannot cancel."""
    x = x.astype(jnp.float32)
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x - _row(mean)).mean((0, 1, 2))


def norm_gradients(
    x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, slope: Array | None, g: Array
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of a norm's x, scale, bias and slope; arguments as in gpu.norm_gradients().

    All are sums of one array or of a product of two, which need no intermediate of x's size.
    """
    wide = g.astype(jnp.float32)
    count = x.size // x.shape[-1]
    x32 = x.astype(jnp.float32)
    d_bias = wide.sum((0, 1, 2))
    d_scale, d_slope = (wide * x32).sum((0, 1, 2)) - mean * d_bias, None
    factor = scale * inverse
    if slope is not None:
        positive = x32 * _row(factor) + _row(bias - mean * factor) > 0
        blocked = jnp.where(positive, 0.0, wide)
        sum_blocked = blocked.sum((0, 1, 2))
        product_blocked = (blocked * x32).sum((0, 1, 2)) - mean * sum_blocked
        d_slope = factor * product_blocked + bias * sum_blocked
        d_bias = d_bias - (1 - slope) * sum_blocked
        d_scale = d_scale - (1 - slope) * product_blocked
        wide = wide - _row(1 - slope) * blocked
    d_scale = inverse * d_scale
    along_x = factor * inverse * d_scale / count
    shift = _row(mean * along_x - factor * d_bias / count)
    return (
        (wide * _row(factor) - x32 * _row(along_x) + shift).astype(x.dtype),
        d_scale,
        d_bias,
        d_slope,
    )


def _row(per_channel):
    return per_channel.reshape(1, 1, 1, -1)
