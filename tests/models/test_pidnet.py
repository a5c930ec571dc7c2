"""PIDNet's and DDRNet's losses, and the boundaries that PIDNet learns, by hand and beside torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax import models
from rtseg_jax.models.zoo import pidnet
from rtseg_jax.nn import losses

CLASSES = 5


def test_boundaries_are_two_pixels_wide_on_both_sides():
    label = np.zeros((1, 9, 12), np.int32)
    label[:, :, 6:] = 3
    (found,) = pidnet.boundaries(jnp.asarray(label))
    assert np.flatnonzero(np.asarray(found).all(0)).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(np.asarray(found).any(0)).tolist() == [4, 5, 6, 7]
    np.testing.assert_array_equal(
        pidnet.boundaries(jnp.asarray(label).swapaxes(1, 2))[0], np.asarray(found).T
    )


def test_what_is_ignored_has_no_boundary():
    label = np.zeros((1, 8, 8), np.int32)
    label[:, 3:5] = 255
    label[:, 5:] = 1
    assert not np.asarray(pidnet.boundaries(jnp.asarray(label))).any()


def brute_force(label):
    """The bands of every pair of neighbours, one after the other."""
    found = np.zeros(label.shape, bool)
    height, width = label.shape
    for i, j in np.ndindex(height, width):
        for k, m in ((i + 1, j), (i, j + 1)):
            if k < height and m < width:
                pair = label[i, j], label[k, m]
                if pair[0] != pair[1] and 255 not in pair:
                    found[max(i - 1, 0) : i + 3, max(j - 1, 0) : j + 3] = True
    return found


def sample(seed=0):
    rng = np.random.default_rng(seed)
    label = np.repeat(np.repeat(rng.integers(0, CLASSES, (2, 4, 5)), 8, 1), 8, 2)
    label[:, :3] = 255
    label[1, 10:20, 7:30] = 255
    outputs = {
        name: rng.normal(size=(2, 4, 5, k)).astype(np.float32) * 2
        for name, k in (("logits", CLASSES), ("aux", CLASSES), ("boundary", 1))
    }
    return jax.tree.map(jnp.asarray, outputs), label.astype(np.int32)


def test_boundary_loss():
    torch = pytest.importorskip("torch")
    outputs, label = sample()
    target = np.stack([brute_force(each) for each in label])
    np.testing.assert_array_equal(pidnet.boundaries(jnp.asarray(label)), target)

    scores = np.random.default_rng(1).normal(size=label.shape).astype(np.float32) * 3
    value, gradient = jax.value_and_grad(pidnet.boundary_loss)(
        jnp.asarray(scores), jnp.asarray(label)
    )
    valid = label != 255
    there, not_there = (target & valid).sum(), (~target & valid).sum()
    weight = np.where(target, not_there, there) / (there + not_there)
    x = torch.tensor(scores[valid], requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        x, torch.from_numpy(target[valid]).float(), torch.from_numpy(weight[valid]).float()
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(gradient)[valid], x.grad.numpy(), rtol=0, atol=1e-8)
    assert not np.asarray(gradient)[~valid].any()
    nothing = jnp.full(label.shape, 255, jnp.int32)
    assert pidnet.boundary_loss(jnp.asarray(scores), nothing) == 0


def test_the_terms_of_pidnets_loss():
    outputs, label = sample()
    options = {"class_weights": (1.0, 2.0, 0.5, 1.0, 3.0), "threshold": 0.6, "min_kept": 0.1}
    value, terms = pidnet.loss(
        outputs,
        {"label": jnp.asarray(label)},
        **options,
        weights=(0.4, 20.0, 1.0, 0.7),
        boundary_threshold=0.8,
    )
    assert list(terms) == ["loss", "aux", "boundary", "main", "main_boundary"]
    total = sum(w * terms[t] for w, t in zip((0.4, 20, 1, 0.7), list(terms)[1:], strict=True))
    np.testing.assert_allclose(value, total, rtol=1e-6)
    assert value == terms["loss"]

    maps = {n: losses.upsample_class_maps(x, label.shape[1:]) for n, x in outputs.items()}
    sure = np.asarray(1 / (1 + np.exp(-maps["boundary"][:, 0]))) > 0.8
    assert 0 < sure.sum() < sure.size
    mined = functools.partial(losses.ohem_cross_entropy, maps["logits"], axis=1, **options)
    np.testing.assert_allclose(terms["main"], mined(jnp.asarray(label)), rtol=1e-6)
    at_boundaries = mined(jnp.asarray(np.where(sure, label, 255)))
    np.testing.assert_allclose(terms["main_boundary"], at_boundaries, rtol=1e-6)
    # Where D is never sure of a boundary, nothing counts.
    unsure = {**outputs, "boundary": outputs["boundary"] - 100}
    loss = functools.partial(pidnet.loss, weights=(0.0, 0.0, 0.0, 1.0), boundary_threshold=0.8)
    assert loss(unsure, {"label": jnp.asarray(label)}, **options)[0] == 0


def test_ddrnets_loss():
    outputs, label = sample()
    options = {"class_weights": None, "threshold": 0.6, "min_kept": 0.1}
    batch = {"label": jnp.asarray(label)}
    value, terms = losses.auxiliary_loss(outputs, batch, aux_weight=0.4, **options)
    for term, name in (("main", "logits"), ("aux", "aux")):
        logits = losses.upsample_class_maps(outputs[name], label.shape[1:])
        want = losses.ohem_cross_entropy(logits, jnp.asarray(label), axis=1, **options)
        np.testing.assert_allclose(terms[term], want, rtol=1e-6)
    np.testing.assert_allclose(value, terms["main"] + 0.4 * terms["aux"], rtol=1e-6)


@pytest.mark.parametrize("variant", ["ddrnet23_slim", "pidnet_s"])
@pytest.mark.parametrize("size", [(1, 1), (9, 200)])
def test_images_smaller_than_the_pyramids_windows(variant, size):
    model = models.create(variant, num_classes=CLASSES)
    apply = functools.partial(model.init_with_output, jax.random.key(0), train=False)
    outputs, _ = jax.eval_shape(apply, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    assert outputs["logits"].shape == (1, -(-size[0] // 8), -(-size[1] // 8), CLASSES)
