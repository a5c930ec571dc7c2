"""Pooling with PyTorch's padding and rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

from rtseg_jax.nn.forms import Pair


def _output_size(size: int, window: int, stride: int, padding: int, ceil_mode: bool) -> int:
    span = size + 2 * padding - window
    if not ceil_mode:
        return span // stride + 1
    outputs = -(-span // stride) + 1
    # A window must start inside the input or its left padding.
    return outputs - 1 if (outputs - 1) * stride >= size + padding else outputs


def _views(x, axis, window, stride):
    """The `window` shifted, strided views of x along an axis: what lies first, second, ... in each window."""
    outputs = (x.shape[axis] - window) // stride + 1
    span = (outputs - 1) * stride + 1
    return [lax.slice_in_dim(x, i, i + span, stride, axis) for i in range(window)]


def _first_maxima(x, axis, window, stride):
    """The maxima of the windows along an axis, and the place of the first one in each, a byte."""
    best, *others = _views(x, axis, window, stride)
    place = jnp.zeros(best.shape, jnp.uint8)
    for i, view in enumerate(others, start=1):
        place = jnp.where(view > best, jnp.uint8(i), place)
        best = jnp.where(view > best, view, best)
    return best, place


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, window, strides, pads):
    """The maxima of windows of x padded by -inf (or cropped, below 0)."""

    def whole(x):
        crop = [(0, 0, 0), *((min(low, 0), min(high, 0), 0) for low, high in pads), (0, 0, 0)]
        around = [(0, 0), *((max(low, 0), max(high, 0)) for low, high in pads), (0, 0)]
        low = jnp.asarray(-jnp.inf, x.dtype)
        x = lax.pad(x, low, crop)
        return lax.reduce_window(x, low, lax.max, (1, *window, 1), (1, *strides, 1), around)

    in_two = lambda x: _max_pool_forward(x, window, strides, pads)[0]  # noqa: E731
    return lax.platform_dependent(x, cpu=in_two, default=whole)


def _max_pool_forward(x, window, strides, pads):
    # Rows, then columns, padded once: padding between the two is slow on CPUs. The places of the maxima are kept, where
    # autodiff would keep a mask for each comparison.
    x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)])
    y, columns = _first_maxima(x, 2, window[1], strides[1])
    y, rows = _first_maxima(y, 1, window[0], strides[0])
    return y, (rows, columns, x.shape)


def _max_pool_backward(window, strides, pads, saved, g):
    rows, columns, shape = saved

    def spread(x, value, axes=(1, 2)):
        # As the windows lie, so that an input sees all that may hold it as `window` views.
        configuration = [(0, 0, 0)] * 4
        for axis in axes:
            k, s = window[axis - 1], strides[axis - 1]
            high = shape[axis] - (x.shape[axis] - 1) * s - 1
            configuration[axis] = (k - 1, high, s - 1)
        return lax.pad(x, jnp.asarray(value, x.dtype), configuration)

    def to_first(g, place, axis):
        k = window[axis - 1]
        views = zip(_views(g, axis, k, 1), _views(place, axis, k, 1), strict=True)
        return sum(jnp.where(p == k - 1 - i, v, 0) for i, (v, p) in enumerate(views))

    g = to_first(spread(g, 0), spread(rows, window[0]), 1)
    g = to_first(g, spread(columns, window[1], axes=(2,)), 2)
    cropped = [(0, 0, 0), *((-low, -high, 0) for low, high in pads), (0, 0, 0)]
    return (lax.pad(g, jnp.zeros((), g.dtype), cropped),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def max_pool(
    x: Float[Array, "b h w c"],
    window: Pair,
    strides: Pair,
    padding: Pair = (0, 0),
    *,
    ceil_mode: bool = False,
) -> Float[Array, "b h2 w2 c"]:
    """Torch's max_pool2d. The gradient goes to the first maximum.

    Args:
        x: The input; padding is -inf.
        window: (h, w) in pixels.
        strides: (h, w) in pixels.
        padding: On each side, (h, w).
        ceil_mode: Round the output size up: a last window may hang over the bottom or right border.
    """
    pads = []
    for size, k, s, p in zip(x.shape[1:3], window, strides, padding, strict=True):
        n = _output_size(size, k, s, p, ceil_mode)
        # Below 0 where the last windows end before the border.
        pads.append((p, (n - 1) * s + k - size - p))
    return _max_pool(x, tuple(window), tuple(strides), tuple(pads))


def max_pool_places(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h2 w2 c"], UInt8[Array, "b h2 w2 c"]]:
    """Torch's max_pool2d of 2x2 windows, with indices: the maxima, and which of its window's four each one is.

    They are numbered row by row, and of equal ones it is the first. An odd last row or column is left out.
    """
    y, columns = _first_maxima(x, 2, 2, 2)
    y, rows = _first_maxima(y, 1, 2, 2)
    upper, lower = _views(columns, 1, 2, 2)
    return y, 2 * rows + jnp.where(rows == 1, lower, upper)


def max_unpool(
    x: Float[Array, "b h w c"], places: UInt8[Array, "b h w c"], size: Pair
) -> Float[Array, "b h2 w2 c"]:
    """Torch's max_unpool2d: every value at its place of max_pool_places, zeros elsewhere.

    Args:
        x: Values for 2x2 windows.
        places: Where each one goes in its window.
        size: (h, w) of the result: that of what was pooled.
    """
    b, h, w, c = x.shape
    rows = [jnp.stack([jnp.where(places == 2 * i + j, x, 0) for j in (0, 1)], 3) for i in (0, 1)]
    y = jnp.stack(rows, 2).reshape(b, 2 * h, 2 * w, c)
    return jnp.pad(y, ((0, 0), (0, size[0] - 2 * h), (0, size[1] - 2 * w), (0, 0)))


def avg_pool(
    x: Float[Array, "b h w c"],
    window: Pair,
    strides: Pair,
    padding: Pair = (0, 0),
) -> Float[Array, "b h2 w2 c"]:
    """Torch's avg_pool2d, floor mode; the padding's zeros count in the mean (count_include_pad)."""
    x = jnp.pad(x, [(0, 0), *((p, p) for p in padding), (0, 0)])
    for axis in (1, 0):
        x = functools.reduce(jnp.add, _views(x, axis + 1, window[axis], strides[axis]))
    return x / (window[0] * window[1])


def adaptive_avg_pool(x: Float[Array, "b h w c"], size: Pair) -> Float[Array, "b h2 w2 c"]:
    """Torch's adaptive_avg_pool2d: output i is the mean over [floor(i n / m), ceil((i + 1) n / m)).

    It is two small matrix products, computed in float32.
    """

    def matrix(old, new):
        rows = np.zeros((new, old), np.float32)
        for i in range(new):
            start, stop = i * old // new, -(-(i + 1) * old // new)
            rows[i, start:stop] = 1 / (stop - start)
        return rows

    rows, columns = matrix(x.shape[1], size[0]), matrix(x.shape[2], size[1])
    y = jnp.einsum("bhwc,Hh->bHwc", x.astype(jnp.float32), rows, precision="highest")
    return jnp.einsum("bhwc,Ww->bhWc", y, columns, precision="highest").astype(x.dtype)


def global_avg_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
    """The mean of each channel, summed in float32."""
    return jnp.mean(x, (1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def global_max(x: Float[Array, "b h w c"], axis: int | Pair) -> Float[Array, "b _ _ _"]:
    """The maximum over an axis, or over two neighbouring ones, which keep size 1; the gradient goes to the first.

    jnp.max looks for the maximum anew in its backward pass. Where the compiler computes x anew for that, rounded
    otherwise, nothing is equal to it, and the gradient is 0 / 0. So the place is kept here.
    """
    return jnp.max(x, axis, keepdims=True)


def _merged(x, axis):
    """x with the axes as one, and which that is."""
    first, last = (axis, axis) if isinstance(axis, int) else axis
    return x.reshape(*x.shape[:first], -1, *x.shape[last + 1 :]), first


def _global_max_forward(x, axis):
    flat, at = _merged(x, axis)
    return global_max(x, axis), (x, jnp.argmax(flat, at, keepdims=True))


def _global_max_backward(axis, saved, gradient):
    x, place = saved  # of x the shape alone
    flat, at = _merged(x, axis)
    chosen = lax.broadcasted_iota(place.dtype, flat.shape, at) == place
    return (jnp.where(chosen, _merged(gradient, axis)[0], 0).reshape(x.shape),)


global_max.defvjp(_global_max_forward, _global_max_backward)
