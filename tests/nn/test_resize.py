"""Bilinear and nearest resizing against torch's interpolate, and the fused class map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rtseg_jax.nn.resize import resize_bilinear, resize_nearest, upsample_argmax

SIZES = [
    ((5, 6), (40, 48)),  # x8, the networks' heads
    ((6, 8), (45, 60)),  # not a multiple
    ((45, 7), (44, 3)),  # smaller, without antialiasing
    ((1, 4), (3, 1)),  # from one pixel and to one pixel
    ((5, 7), (5, 14)),  # one axis unchanged
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def interpolate(x, size, align_corners=False):
    nchw = x.permute(0, 3, 1, 2)
    y = F.interpolate(nchw, size, mode="bilinear", align_corners=align_corners)
    return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resize_and_its_gradient_match_torch(old, new, align_corners, platform):
    x, g = normal(2, *old, 3), normal(2, *new, 3, seed=1)

    def run(x, g):
        y, vjp = jax.vjp(lambda x: resize_bilinear(x, new, align_corners), x)
        return y, *vjp(g)

    y, d_x = jax.jit(run)(jnp.asarray(x), jnp.asarray(g))
    leaf = torch.tensor(x, requires_grad=True)
    expected = interpolate(leaf, new, align_corners)
    expected.backward(torch.tensor(g))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(d_x, leaf.grad.numpy(), rtol=1e-5, atol=5e-5)


# In the last two a floor in whole numbers would be another neighbour than torch's.
@pytest.mark.parametrize(("old", "new"), [*SIZES, ((2, 3), (82, 123)), ((4, 23), (110, 45))])
def test_nearest_and_its_gradient_match_torch(old, new, platform):
    x, g = normal(2, *old, 3), normal(2, *new, 3, seed=1)
    y, vjp = jax.vjp(lambda x: resize_nearest(x, new), jnp.asarray(x))
    leaf = torch.tensor(x, requires_grad=True)
    expected = F.interpolate(leaf.permute(0, 3, 1, 2), new, mode="nearest").permute(0, 2, 3, 1)
    expected.backward(torch.tensor(g))
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_allclose(vjp(g)[0], leaf.grad.numpy(), rtol=1e-5, atol=1e-5)


def test_literal_values_in_both_alignments():
    x = jnp.asarray([0.0, 4.0]).reshape(1, 1, 2, 1)
    half_pixel = resize_bilinear(x, (1, 4)).ravel()
    np.testing.assert_allclose(half_pixel, [0.0, 1.0, 3.0, 4.0])
    corners = resize_bilinear(x, (1, 5), align_corners=True).ravel()
    np.testing.assert_allclose(corners, [0.0, 1.0, 2.0, 3.0, 4.0])


def test_resize_keeps_the_dtype_and_interpolates_in_float32():
    x = jnp.asarray([256.0, 258.0]).reshape(1, 1, 2, 1).astype(jnp.bfloat16)
    y = resize_bilinear(x, (1, 4))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        y.astype(jnp.float32).ravel(), [256.0, 256.0, 258.0, 258.0]
    )  # 256.5 and 257.5, rounded once
    assert jax.grad(lambda x: resize_bilinear(x, (1, 4)).sum().astype(jnp.float32))(x).dtype == (
        jnp.bfloat16
    )


@pytest.mark.parametrize(("old", "new"), [((5, 6), (40, 48)), ((6, 8), (45, 61))])
def test_class_map_is_the_argmax_of_torchs_logits(old, new, platform):
    logits = normal(2, *old, 11)
    ours = upsample_argmax(jnp.asarray(logits), new)
    assert ours.dtype == jnp.uint8
    full = interpolate(torch.tensor(logits), new).numpy()
    chosen = np.take_along_axis(full, np.array(ours)[..., None], axis=-1)[..., 0]
    # Where rounding exchanges two classes their scores are the same to 1e-4.
    np.testing.assert_allclose(chosen, full.max(-1), rtol=0, atol=1e-4)
    assert (np.array(ours) == full.argmax(-1)).mean() > 0.999


@pytest.mark.parametrize(
    "new", [(40, 48), (35, 42), (30, 36), (10, 12), (17, 23), (5, 30), (20, 6), (5, 6), (4, 5)]
)
def test_class_map_is_the_argmax_of_our_logits(new, platform):
    logits = jnp.asarray(normal(2, 5, 6, 7))
    full = resize_bilinear(logits, new)
    np.testing.assert_array_equal(upsample_argmax(logits, new), jnp.argmax(full, -1))


@pytest.mark.parametrize("new", [(256, 512), (250, 500)])
def test_full_size_logits_are_not_stored(new):
    logits = jax.ShapeDtypeStruct((1, 32, 64, 19), jnp.float32)
    compiled = jax.jit(lambda x: upsample_argmax(x, new)).lower(logits).compile()
    full = 19 * new[0] * new[1] * 4
    assert compiled.memory_analysis().temp_size_in_bytes < full / 2


def test_first_of_equal_classes_wins(platform):
    logits = jnp.broadcast_to(
        jnp.asarray([1.0, 3.0, 3.0, 2.0, 3.0]).reshape(1, 1, 1, 5), (1, 4, 5, 5)
    )
    np.testing.assert_array_equal(upsample_argmax(logits, (8, 10)), np.full((1, 8, 10), 1))


def test_class_map_holds_the_last_of_256_classes_and_refuses_more():
    logits = jnp.zeros((1, 1, 1, 256)).at[..., 255].set(1.0)
    assert int(upsample_argmax(logits, (1, 1))[0, 0, 0]) == 255
    with pytest.raises(ValueError, match="at most 256"):
        upsample_argmax(jnp.zeros((1, 1, 1, 257)), (2, 2))
