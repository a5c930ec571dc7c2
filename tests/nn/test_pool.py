"""Pooling against torch: rounding of the size, padding, ties."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rtseg_jax.nn.pool import (
    adaptive_avg_pool,
    avg_pool,
    global_max,
    max_pool,
    max_pool_places,
    max_unpool,
)
from tests import compiling


def run(function, x, g):
    @jax.jit
    def both(x, g):
        y, vjp = jax.vjp(function, x)
        return y, vjp(g)[0]

    return both(jnp.asarray(x), jnp.asarray(g))


def torch_run(function, x, seed=1):
    """Returns the output, a random cotangent for it and the gradient, all NHWC."""
    leaf = torch.tensor(x, requires_grad=True)
    y = function(leaf.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    g = np.random.default_rng(seed).standard_normal(y.shape).astype(np.float32)
    y.backward(torch.tensor(g))
    return y.detach().numpy(), g, leaf.grad.numpy()


def few_values(*shape):
    """Small integers, so that most windows hold their maximum several times; some below zero throughout."""
    return np.random.default_rng(0).integers(-4, 0, shape).astype(np.float32)


@pytest.mark.parametrize("size", [(9, 12), (12, 9), (10, 11)])
@pytest.mark.parametrize(
    ("window", "stride", "padding", "ceil_mode"),
    [
        (2, 2, 0, False),
        (2, 2, 0, True),
        (3, 2, 1, False),
        (3, 2, 1, True),
        (3, 3, 1, True),  # a last window that would start in the right padding is dropped
        (5, 1, 2, False),
    ],
)
def test_max_pool_matches_torch_and_its_gradient_goes_to_the_first_maximum(
    window, stride, padding, ceil_mode, size, platform
):
    x = few_values(2, *size, 3)
    expected, g, gradient = torch_run(
        lambda x: F.max_pool2d(x, window, stride, padding, ceil_mode=ceil_mode), x
    )
    y, d_x = run(
        lambda x: max_pool(x, (window,) * 2, (stride,) * 2, (padding,) * 2, ceil_mode=ceil_mode),
        x,
        g,
    )
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(d_x, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 6), (9, 12), (12, 9), (9, 11)])
def test_unpooling_is_torchs_and_so_are_ties(size):
    x, scale = few_values(2, *size, 3), 1 + few_values(2, size[0] // 2, size[1] // 2, 3)

    def unpooled(x):
        y, places = max_pool_places(x)
        return max_unpool(y * scale, places, size)

    def unpooled_by_torch(x):
        y, indices = F.max_pool2d(x, 2, return_indices=True)
        scaled = y * torch.tensor(scale).permute(0, 3, 1, 2)
        return F.max_unpool2d(scaled, indices, 2, output_size=x.shape[2:])

    expected, g, gradient = torch_run(unpooled_by_torch, x)
    y, d_x = run(unpooled, x, g)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(d_x, gradient, rtol=1e-6)


@pytest.mark.parametrize("size", [(9, 12), (12, 9)])
def test_avg_pool_counts_the_padding(size):
    x = np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)
    expected, g, gradient = torch_run(lambda x: F.avg_pool2d(x, 3, 2, 1), x)
    y, d_x = run(lambda x: avg_pool(x, (3, 3), (2, 2), (1, 1)), x, g)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, gradient, rtol=1e-5, atol=1e-6)
    ones = avg_pool(jnp.ones((1, 4, 4, 1)), (3, 3), (2, 2), (1, 1))
    np.testing.assert_allclose(ones[0, :, :, 0], [[4 / 9, 6 / 9], [6 / 9, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 6), (11, 16)])
def test_adaptive_avg_pool_has_torchs_bins(size):
    x = np.random.default_rng(0).standard_normal((2, 9, 14, 3)).astype(np.float32)
    expected, g, gradient = torch_run(lambda x: F.adaptive_avg_pool2d(x, size), x)
    y, d_x = run(lambda x: adaptive_avg_pool(x, size), x, g)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_x, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: max_pool(x, (2, 2), (2, 2), ceil_mode=True),
        lambda x: avg_pool(x, (3, 3), (2, 2), (1, 1)),
        lambda x: adaptive_avg_pool(x, (2, 2)),
    ],
)
def test_pools_keep_bfloat16(pool):
    x = jnp.asarray(few_values(1, 5, 5, 2)).astype(jnp.bfloat16)
    y = pool(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        y.astype(jnp.float32), pool(x.astype(jnp.float32)), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("axis", [(1, 2), 3])
def test_global_max(axis):
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 6)).astype(np.float32)
    dim = {3: 1, (1, 2): (2, 3)}[axis]  # of NCHW
    y, g, gradient = torch_run(lambda x: torch.amax(x, dim, keepdim=True), x)
    ours, ours_gradient = run(lambda x: global_max(x, axis), x, g)
    np.testing.assert_array_equal(ours, y)
    np.testing.assert_array_equal(ours_gradient, gradient)


def test_global_max_gives_equal_values_one_gradient():
    _, gradient = run(
        lambda x: global_max(x, (1, 2)), few_values(1, 4, 5, 3), np.ones((1, 1, 1, 3))
    )
    np.testing.assert_array_equal(np.sum(gradient, (1, 2)), 1)
    assert np.max(gradient) == 1


@pytest.mark.slow  # test_models asks for the same of AFFNet's whole loss, in this process
def test_gradient_of_a_maximum_survives_a_value_that_is_computed_anew():
    """At the compiler's lowest level of optimisation, this network's maxima are rounded otherwise when met again."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from rtseg_jax import models
model = models.create("affnet", num_classes=5)
keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 96, 3)), jnp.float32)
variables = jax.jit(lambda: model.init(keys, x, train=True))()
def loss(params):
    outputs, _ = model.apply(
        {**variables, "params": params}, x, train=True, mutable=["batch_stats"], rngs=keys
    )
    return jnp.mean(jnp.square(outputs["logits"]))
gradient = jax.jit(jax.grad(loss))(variables["params"])
assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
"""
    environment = {**os.environ, "XLA_FLAGS": compiling.FLAGS}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
