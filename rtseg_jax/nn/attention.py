"""Dot-product attention that never holds the whole score matrix."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rtseg_jax.nn import gpu

_observers: list[Callable[..., None]] = []


@contextlib.contextmanager
def observe(observer: Callable[..., None]) -> Iterator[None]:
    """Within the context, every attention tells its observer the shapes of query, key and value."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def dot_product_attention(
    query: Float[Array, "b n c"],
    key: Float[Array, "b m c"],
    value: Float[Array, "b m d"],
    *,
    scale: float = 1.0,
    block_size: int = 1024,
) -> Float[Array, "b n d"]:
    """softmax(scale Q K') V, with float32 scores and softmax; the result has value's dtype.

    It takes `block_size` queries at a time and recomputes their scores in the gradient, so that memory is
    b * block_size * m and not b * n * m. Where a GPU has a kernel for the whole, that takes the place of the blocks.
    """
    for observer in _observers:
        observer(query.shape, key.shape, value.shape)
    blocks = functools.partial(_in_blocks, scale=scale, block_size=block_size)
    if not gpu.has_flash_attention(query, value):
        return blocks(query, key, value)
    flash = functools.partial(gpu.flash_attention, scale=scale)
    return lax.platform_dependent(query, key, value, cuda=flash, default=blocks)


def _in_blocks(query, key, value, scale, block_size):
    @jax.checkpoint
    def attend(block):
        scores = jnp.einsum("bnc,bmc->bnm", block, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * scale)
        return jnp.einsum(
            "bnm,bmd->bnd",
            weights.astype(value.dtype),
            value,
            preferred_element_type=jnp.float32,
        ).astype(value.dtype)

    b, n, c = query.shape
    if n <= block_size:
        return attend(query)
    blocks = -(-n // block_size)
    padded = jnp.pad(query, ((0, 0), (0, blocks * block_size - n), (0, 0)))
    padded = padded.reshape(b, blocks, block_size, c).swapaxes(0, 1)
    result = lax.map(attend, padded).swapaxes(0, 1)
    return result.reshape(b, blocks * block_size, value.shape[-1])[:, :n]
