"""The sum that ends a residual block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from rtseg_jax.nn.blocks import add_relu
from rtseg_jax.nn.conv import conv2d


def _pair(dtype=np.float32):
    """Two arrays, some of whose sums are exactly 0."""
    y, x = np.random.default_rng(0).normal(size=(2, 2, 5, 7, 3)).astype(np.float32)
    y[0, :2], x[1, 2] = -x[0, :2], 0
    return jnp.asarray(y, dtype), jnp.asarray(x, dtype)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_add_relu_is_the_relu_of_the_sum(dtype, wrap, platform):
    y, x = _pair(dtype)
    ours = wrap(add_relu)(y, x)
    assert ours.dtype == dtype
    np.testing.assert_array_equal(ours, nn.relu(y + x))


def test_gradients_are_those_of_the_relu():
    """Also where the sum is 0: there the gradient is 0, as PyTorch's."""
    primals, g = _pair(), np.random.default_rng(1).normal(size=(2, 5, 7, 3)).astype(np.float32)
    ours = jax.vjp(add_relu, *primals)[1](g)
    theirs = jax.vjp(lambda y, x: nn.relu(y + x), *primals)[1](g)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
        assert not np.any(one[0, :2])


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the form is the CPU's")
def test_a_shortcut_does_not_go_back_through_earlier_blocks():
    """Deeper chains of blocks take no more memory: nothing but the last sum is alive."""
    x = jnp.ones((1, 16, 16, 32))
    kernel = jnp.full((3, 3, 32, 32), 0.01)

    def temporary(blocks, end):
        def run(x, kernel):
            for _ in range(blocks):
                x = end(conv2d(x, kernel, padding=(1, 1)), x)
            return x

        return jax.jit(run).lower(x, kernel).compile().memory_analysis().temp_size_in_bytes

    assert temporary(12, add_relu) < temporary(4, add_relu) + x.nbytes
    assert temporary(12, lambda y, x: nn.relu(y + x)) > temporary(12, add_relu) + 4 * x.nbytes
