"""Resizing as PyTorch's interpolate computes it: bilinear without antialiasing, and nearest."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8


def _taps(old: int, new: int, align_corners: bool):
    """Lower and upper source index of every output position, and the upper one's weight."""
    if align_corners:
        position = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
    else:
        position = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
    low = np.minimum(position.astype(np.int32), old - 1)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def bilinear_matrix(
    old: int, new: int, align_corners: bool = False
) -> Float[np.ndarray, "new old"]:
    """What bilinear resizing of an axis from `old` to `new` positions multiplies by."""
    low, high, weight = _taps(old, new, align_corners)
    matrix = np.zeros((new, old), np.float32)
    np.add.at(matrix, (np.arange(new), low), 1 - weight)
    np.add.at(matrix, (np.arange(new), high), weight)
    return matrix


def _lerp(x, axis, new, align_corners):
    old = x.shape[axis]
    if old == new:
        return x
    low, high, weight = _taps(old, new, align_corners)
    weight = weight.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, high, axis) * weight


def resize_bilinear(
    x: Float[Array, "b h w c"],
    size: tuple[int, int],
    align_corners: bool = False,
) -> Float[Array, "b h2 w2 c"]:
    """Resizes to `size` (h, w), interpolating in float32; the result has x's dtype.

    The two neighbours along each axis are gathered. The gradient multiplies by two dense matrices instead: the transpose
    of a gather is a scatter, which is slow everywhere.
    """
    if x.shape[1:3] == tuple(size):
        return x
    dtype = x.dtype
    rows = bilinear_matrix(x.shape[1], size[0], align_corners)
    columns = bilinear_matrix(x.shape[2], size[1], align_corners)

    def gather(x):
        x = _lerp(x.astype(jnp.float32), 2, size[1], align_corners)
        return _lerp(x, 1, size[0], align_corners).astype(dtype)

    return _with_matrices(gather, x, rows, columns)


def _with_matrices(gather, x, rows, columns):
    """gather(x), which is rows x columns^T in each channel; the gradient multiplies by these matrices, transposed."""

    def transpose(_, g):
        # Columns first: with one channel, as in the losses, that is a matrix product without a transposition.
        b, height, width, c = g.shape
        g = g.astype(jnp.float32)
        if c == 1:
            g = jnp.matmul(g.reshape(-1, width), columns).reshape(b, height, -1, 1)
        else:
            g = jnp.einsum("bHWc,Ww->bHwc", g, columns)
        g = jnp.einsum("bHwc,Hh->bhwc", g, rows)
        return (g.astype(x.dtype),)

    resize = jax.custom_vjp(gather)
    resize.defvjp(lambda x: (gather(x), None), transpose)
    return resize(x)


def resize_nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Resizes to `size` (h, w) by torch's mode "nearest": output i is input floor(i h / h2), computed in float32.

    In float32 the floor is one lower here and there: from 2 to 82 positions output 41 is input 0.
    """
    if x.shape[1:3] == tuple(size):
        return x

    def source(old, new):
        step = np.float32(old) / np.float32(new)
        return np.minimum((np.arange(new, dtype=np.float32) * step).astype(np.int32), old - 1)

    rows, columns = (source(*pair) for pair in zip(x.shape[1:3], size, strict=True))

    def gather(x):
        return jnp.take(jnp.take(x, columns, 2), rows, 1)

    one_hot = (
        np.eye(n, dtype=np.float32)[i] for n, i in zip(x.shape[1:3], (rows, columns), strict=True)
    )
    return _with_matrices(gather, x, *one_hot)


def upsample_argmax(
    logits: Float[Array, "b h w k"], size: tuple[int, int], align_corners: bool = False
) -> UInt8[Array, "b h2 w2"]:
    """The class map of the bilinearly resized logits; among equal classes the first wins.

    They are resized class by class inside a running maximum, so that the full-size logits are never stored.

    Raises:
        ValueError: more than 256 classes, which uint8 cannot number.
    """
    classes = logits.shape[-1]
    if classes > 256:
        raise ValueError(f"{classes} classes do not fit uint8; at most 256")
    logits = logits.astype(jnp.float32)
    given = {"size": size, "align_corners": align_corners}
    return lax.platform_dependent(
        logits,
        cpu=functools.partial(_argmax_by_columns, **given),
        default=functools.partial(_argmax_at_once, **given),
    )


def _argmax_at_once(logits, size, align_corners):
    """One loop over the pixels, in which each class is interpolated where it is compared: a GPU's form."""

    def score(k):
        columns = _lerp(logits[..., k], 2, size[1], align_corners)
        return _lerp(columns, 1, size[0], align_corners)

    return _first_argmax(score, logits.shape[-1])


def _argmax_by_columns(logits, size, align_corners):
    """The columns first, stored; the rows of one class at a time fuse with the maximum: a CPU's form."""
    (b, old, _, classes), new = logits.shape, size[0]
    factor = 0 if align_corners or new % (2 * old) else new // old
    if factor:
        logits = jnp.pad(logits, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    maps = jnp.moveaxis(_lerp(logits, 2, size[1], align_corners), -1, 0)  # [k, b, h, w2]
    if not factor:
        return _first_argmax(lambda k: _lerp(maps[k], 1, new, align_corners), classes)
    # `factor` new rows lie between two old ones, half as many above the first: slices, where others gather. An odd
    # factor has new rows on old ones, and which two they lie between is a matter of rounding.
    above = factor // 2
    _, _, weight = _taps(old, new, False)
    weight = np.pad(weight, (above, factor - above)).reshape(1, old + 1, factor, 1)

    def rows(k):
        return maps[k, :, :-1, None] * (1 - weight) + maps[k, :, 1:, None] * weight

    index = _first_argmax(rows, classes).reshape(b, new + factor, size[1])
    return index[:, above : above + new]


def _first_argmax(score: Callable[[int], Array], classes: int) -> Array:
    """The class of the largest score at each place, as uint8; the first of equals."""
    best = score(0)
    index = jnp.zeros(best.shape, jnp.uint8)
    for k in range(1, classes):
        here = score(k)
        better = here > best
        best = lax.select(better, here, best)
        index = jnp.where(better, jnp.uint8(k), index)
    return index
