"""Blocked attention against its formula in torch."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rtseg_jax.nn import gpu
from rtseg_jax.nn.attention import dot_product_attention

B, N, M, C, D = 2, 37, 9, 6, 4


def operands(factor=1.0):
    rng = np.random.default_rng(0)
    shapes = ((B, N, C), (B, M, C), (B, M, D), (B, N, D))
    q, k, v, g = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    return q * np.float32(factor), k, v, g


def reference(q, k, v, g, scale):
    leaves = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (q, k, v)]
    weights = torch.softmax(scale * leaves[0] @ leaves[1].mT, -1)
    y = weights @ leaves[2]
    y.backward(torch.tensor(g, dtype=torch.float64))
    return y.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 8},  # 37 = 4 * 8 + 5
        {"block_size": 37},
        {"block_size": 8, "scale": 0.5},
    ],
)
def test_attention_and_its_gradients_match_the_formula(options):
    q, k, v, g = operands()

    def run(q, k, v, g):
        y, vjp = jax.vjp(lambda *a: dot_product_attention(*a, **options), q, k, v)
        return y, *vjp(g)

    ours = jax.jit(run)(*map(jnp.asarray, (q, k, v, g)))
    for a, b in zip(ours, reference(q, k, v, g, options.get("scale", 1.0)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_scores_in_the_hundreds_stay_finite():
    q, k, v, g = operands(factor=200.0)
    y = dot_product_attention(*map(jnp.asarray, (q, k, v)), block_size=16)
    np.testing.assert_allclose(y, reference(q, k, v, g, 1.0)[0], rtol=1e-3, atol=1e-3)


def test_all_scores_at_once_are_never_held():
    arrays = [jnp.asarray(a) for a in operands()[:3]]

    def text(**options):
        def loss(q):
            return dot_product_attention(q, *arrays[1:], **options).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(arrays[0]))

    assert f"f32[{B},{N},{M}]" in text()
    blocked = text(block_size=8)
    assert f"f32[{B},8,{M}]" in blocked
    assert f"f32[{B},{N},{M}]" not in blocked
    assert f"f32[5,{B},8,{M}]" not in blocked  # nor kept block by block for the gradient


def test_bfloat16_has_float32_scores_and_softmax():
    arrays = [jnp.asarray(a).astype(jnp.bfloat16) for a in operands(factor=30.0)[:3]]
    y = dot_product_attention(*arrays, block_size=8)
    assert y.dtype == jnp.bfloat16
    exact = dot_product_attention(*(a.astype(jnp.float32) for a in arrays))
    # bfloat16 scores near 100 would be off by 0.25, the weights by a quarter.
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("capability", "channels", "expected"),
    [
        ("7.5", 8, False),
        ("8.0", 128, True),
        ("8.9", 136, False),
        ("9.0", 256, True),
        ("12.0", 264, False),
        ("gfx942", 8, False),
        (None, 8, False),
    ],
)
def test_which_gpus_have_attention_in_one_kernel(monkeypatch, capability, channels, expected):
    device = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    narrow, wide = jnp.zeros((1, 4, 8), jnp.bfloat16), jnp.zeros((1, 4, channels), jnp.bfloat16)
    assert gpu.has_flash_attention(narrow, wide) is expected
    assert not gpu.has_flash_attention(narrow.astype(jnp.float32), wide)
