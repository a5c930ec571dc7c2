import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rtseg_jax.base import mesh
from rtseg_jax.nn import losses
from rtseg_jax.nn.resize import resize_bilinear
from tests import torch_losses

SHAPE, CLASSES = (2, 6, 8), 5
WEIGHTS = (0.8373, 0.918, 1.5, 1.0345, 0.25)


def _pixels(seed, sure=0.0, ignored=0.1, shape=SHAPE):
    """Random logits, the true class raised by `sure`, and labels of which a share is ignored."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, shape)
    logits = 2 * rng.standard_normal((*shape, CLASSES))
    np.put_along_axis(
        logits, label[..., None], sure + rng.random((*shape, 1)) * (1 + sure), axis=-1
    )
    label[rng.random(shape) < ignored] = 255
    return logits.astype(np.float32), label.astype(np.int32)


@functools.partial(jax.jit, static_argnames=("loss", "weights", "options"))
def _ours(loss, logits, label, weights, options=()):
    call = lambda x: getattr(losses, loss)(x, label, weights, **dict(options))  # noqa: E731
    return jax.value_and_grad(call)(logits)


def _torch_gradient(loss, logits):
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    value = loss(x.movedim(-1, 1))
    value.backward()
    return value.item(), x.grad.numpy()


def _close(ours, value, gradient):
    assert np.isfinite(ours[1]).all()
    np.testing.assert_allclose(ours[0], value, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(ours[1], gradient, rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize(
    "weights, expected",  # in units of ln 2: (1 w0 + 3 w1 + 2 w2) / (w0 + w1 + w2)
    [
        (None, 2.0),
        ((0.5, 0.5, 0.5), 2.0),
        ((4.0, 1.0, 3.0), 13 / 8),
        ((1.0, 0.0, 3.0), 7 / 4),
        ((0.0, 0.0, 0.0), 0.0),
    ],
)
def test_literal_cross_entropy(weights, expected):
    # p(true) = 1/2, 1/4, 1/8; the last pixel is void
    logits = jnp.log(jnp.array([[2.0, 1, 1], [2, 1, 1], [6, 1, 1], [9, 9, 9]])).reshape(1, 2, 2, 3)
    label = jnp.array([0, 2, 1, 255]).reshape(1, 2, 2)
    ours = losses.cross_entropy(logits, label, weights)
    np.testing.assert_allclose(ours, expected * 0.6931472, rtol=1e-6)


def test_literal_ohem():
    # two classes, p(true) = 0.1, 0.3, 0.6, 0.8, 0.9 and a void pixel
    p = np.array([0.1, 0.3, 0.6, 0.8, 0.9, 0.5])
    logits = jnp.log(jnp.asarray(np.stack([p, 1 - p], -1), jnp.float32)).reshape(1, 2, 3, 2)
    label = jnp.array([0, 0, 0, 0, 0, 255]).reshape(1, 2, 3)

    def ohem(**options):
        return losses.ohem_cross_entropy(logits, label, (2.0, 1.0), **options)

    # k = 2: 0.7 stands; k = 4: rises to 0.8; k = 1 with a low threshold: the hardest pixel alone
    np.testing.assert_allclose(ohem(threshold=0.7, min_kept=2 / 6), -np.log(0.018) / 3, rtol=1e-6)
    np.testing.assert_allclose(ohem(threshold=0.7, min_kept=4 / 6), -np.log(0.0144) / 4, rtol=1e-6)
    np.testing.assert_allclose(ohem(threshold=0.05, min_kept=0.0), -np.log(0.1), rtol=1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_cross_entropy_is_torchs(weights, axis):
    logits, label = _pixels(0)
    label[label == 3] = 255  # a class without pixels
    given = np.moveaxis(logits, -1, axis)
    value, gradient = _ours("cross_entropy", given, label, weights, (("axis", axis),))
    w = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = _torch_gradient(
        lambda x: torch.nn.functional.cross_entropy(
            x, torch.tensor(label).long(), w, ignore_index=255
        ),
        logits,
    )
    _close((value, np.moveaxis(gradient, axis, -1)), *expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "ohem_cross_entropy"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_no_valid_pixel(loss, weights):
    logits, label = _pixels(1, ignored=1.0)
    value, gradient = _ours(loss, logits, label, weights)
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("loss", ["cross_entropy", "ohem_cross_entropy"])
def test_extreme_logits(loss):
    logits, label = np.zeros((1, 1, 2, 3), np.float32), np.array([[[0, 1]]], np.int32)
    logits[0, 0] = [[1e4, -1e4, 0], [1e4, -1e4, 0]]  # one pixel right, one wrong by 2e4
    value, gradient = _ours(loss, logits, label, None, (("axis", -1),))
    # OHEM keeps only the wrong pixel
    kept = 2 if loss == "cross_entropy" else 1
    assert value == 2e4 / kept
    np.testing.assert_allclose(gradient[0, 0], [[0, 0, 0], [1 / kept, -1 / kept, 0]])


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.ohem_cross_entropy])
def test_wrong_number_of_weights(loss):
    logits, label = map(jnp.asarray, _pixels(0))
    with pytest.raises(ValueError, match="^3 class weights were given for 5 classes; .*$"):
        loss(logits, label, (1.0, 1.0, 1.0))


def _kept(logits, label, threshold, k):
    """The rule as the papers' code has it, with a sort, in numpy."""
    e = np.exp(logits.astype(np.float64))
    p = np.take_along_axis(e / e.sum(-1, keepdims=True), (label % 255)[..., None], -1)[..., 0]
    p[label == 255] = 1.0
    if (label != 255).sum() < k:
        return label != 255
    return (label != 255) & (p <= max(threshold, np.sort(p.ravel())[k - 1]))


def _torch_ohem(x, label, weights, threshold, k):
    """The same with torch's sort and boolean indices."""
    x = x.movedim(1, -1).reshape(-1, CLASSES)
    label = torch.tensor(label).long().ravel()
    x, total = x[label != 255], len(label)
    label = label[label != 255]
    p = torch.softmax(x, -1)[torch.arange(len(label)), label].detach()
    if len(label) >= k:
        ordered = torch.sort(torch.cat([p, torch.ones(total - len(p))])).values
        keep = p <= max(threshold, ordered[k - 1].item())
        x, label = x[keep], label[keep]
    w = torch.ones(CLASSES) if weights is None else torch.tensor(weights)
    return torch.nn.functional.cross_entropy(x, label, w.double())


def _ties():
    logits, label = _pixels(5, sure=4.0, ignored=0.0)
    logits[:], label[:] = logits[:1, :, :1], label[:1, :, :1]  # 6 values, 16 times each
    return logits, label


def _valid(count):
    logits, label = _pixels(4, sure=4.0, ignored=0.0)
    label.reshape(-1)[count:] = 255
    return logits, label


_OHEM = {  # name: pixels, threshold, min_kept, how many are kept (of 96)
    "hard enough": (_pixels(2), 0.7, 1 / 16, None),
    "hard enough, again": (_pixels(3, ignored=0.4), 0.3, 0.25, None),
    "k-th smallest": (_pixels(3, sure=5.0), 0.7, 0.5, 48),
    "k-th smallest of some": (_pixels(4, sure=5.0, ignored=0.5), 0.7, 1 / 4, 24),
    "ties": (_ties(), 0.1, 17 / 96, 32),
    "fewer valid": (_valid(20), 0.1, 21 / 96, 20),
    "as many valid": (_valid(20), 0.1, 20 / 96, 20),
    "more valid": (_valid(20), 0.1, 19 / 96, 19),
    "one": (_pixels(6, sure=5.0), 0.1, 0.0, 1),
    "all": (_pixels(7, sure=5.0), 0.7, 1.0, None),
}


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("case", _OHEM)
def test_ohem_is_the_sorted_form(case, weights):
    (logits, label), threshold, min_kept, count = _OHEM[case]
    k = max(1, int(min_kept * label.size))
    kept = _kept(logits, label, threshold, k)
    assert kept.sum() == count if count else 0 < kept.sum() <= (label != 255).sum()
    ours = _ours(
        "ohem_cross_entropy",
        logits,
        label,
        weights,
        (("threshold", threshold), ("min_kept", min_kept)),
    )
    np.testing.assert_array_equal(np.any(ours[1] != 0, -1), kept)
    _close(ours, *_torch_gradient(lambda x: _torch_ohem(x, label, weights, threshold, k), logits))
    log_p = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[kept]
    w = np.ones(CLASSES) if weights is None else np.array(weights)
    own = label[kept]
    np.testing.assert_allclose(
        ours[0], -(w[own] * log_p[np.arange(len(own)), own]).sum() / w[own].sum(), rtol=1e-5
    )


_RNG = np.random.default_rng(0)
_VALUES = {
    "random": _RNG.random(501),
    "duplicates": _RNG.integers(0, 4, 200) / 4,
    "zeros and ones": np.repeat([1.0, 0.0, 1.0], 20),
    "denormals": np.concatenate([_RNG.integers(0, 9, 40) * 1.4e-45, _RNG.random(9) * 1e-38]),
    "large": 10.0 ** _RNG.uniform(-40, 38, 100),
    "one": np.array([0.3]),
}


@pytest.mark.parametrize("name", _VALUES)
def test_kth_smallest_is_exact(name):
    values = _VALUES[name].astype(np.float32)
    n = len(values)
    ranks = sorted({1, 2, n // 3, n // 2, n - 1, n} & set(range(1, n + 1)))
    found = jax.jit(lambda x: jnp.stack([losses.kth_smallest(x, k) for k in ranks]))(values)
    expected = np.stack([np.partition(values, k - 1)[k - 1] for k in ranks])
    np.testing.assert_array_equal(np.asarray(found).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("min_kept", [1 / 16, 0.9])
def test_sharded_ohem_is_the_same_and_gathers_nothing(min_kept):
    logits, label = _pixels(8, sure=2.0, shape=(8, 4, 6))
    loss = functools.partial(losses.ohem_cross_entropy, class_weights=WEIGHTS, min_kept=min_kept)
    loss = jax.jit(jax.value_and_grad(loss))
    alone = loss(logits, label)
    sharded = jax.device_put((logits, label), mesh.split(mesh.make_mesh()))
    compiled = loss.lower(*sharded).compile()
    shared = compiled(*sharded)
    assert len(shared[1].sharding.device_set) == 4
    assert "all-reduce" in compiled.as_text() and "all-gather" not in compiled.as_text()
    _close(shared, *alone)


@pytest.mark.parametrize("size", [(16, 24), (13, 31)])
def test_upsample_class_maps(size):
    logits = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    ours = losses.upsample_class_maps(jnp.asarray(logits), size)
    resized = resize_bilinear(jnp.asarray(logits), size)
    np.testing.assert_allclose(ours, jnp.moveaxis(resized, -1, 1), atol=2e-6)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(logits).movedim(-1, 1), size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


# Cityscapes' labelled pixels; alpha and gamma as AFFNet's Eqs. 4-6 give them.
_COUNTS = (
    *(2036416525, 336090793, 1260636120, 36199498, 48454166, 67789506, 11477088, 30448193),
    *(879783988, 63949536, 221979646, 67326424, 7463162, 386328286, 14772328, 12990290),
    *(12863955, 5449152, 22861233),
)
_ALPHA = (
    *(0.0633, 0.2671, 0.0937, 0.7925, 0.7322, 0.6539, 0.9511, 0.8244, 0.1259, 0.6680),
    *(0.3553, 0.6556, 0.9831, 0.2411, 0.9263, 0.9395, 0.9405, 1.0000, 0.8707),
)
_GAMMA = (2, 1, 2, 0, 0, 1, 0, 0, 2, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0)


def test_object_weights_of_cityscapes():
    alpha = losses.frequency_weights(_COUNTS, 1.02)
    np.testing.assert_allclose(alpha, _ALPHA, rtol=0, atol=5.1e-5)
    assert max(alpha) == 1
    assert losses.magnitudes(_COUNTS) == _GAMMA


def test_magnitudes_are_floors():
    assert losses.magnitudes((7, 69, 70, 699, 700, 7000)) == (0, 0, 1, 1, 2, 3)


@pytest.mark.parametrize(
    "label, expected",
    [(range(19), 1.845053), ((*range(18), 255), 1.805118)],
)
def test_literal_object_weighted_focal_loss(label, expected):
    alpha = losses.frequency_weights(_COUNTS, 1.02)
    label = jnp.array(label).reshape(1, 1, 19)
    ours = losses.object_weighted_focal_loss(jnp.zeros((1, 1, 19, 19)), label, alpha, _GAMMA)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)


_FOCAL = (("gamma", (0, 1, 2, 3, 0)),)


@pytest.mark.parametrize("axis", [-1, 1])
def test_object_weighted_focal_loss_is_torchs(axis):
    logits, label = _pixels(9, sure=2.0)
    value, gradient = _ours(
        "object_weighted_focal_loss",
        np.moveaxis(logits, -1, axis),
        label,
        WEIGHTS,
        (*_FOCAL, ("axis", axis)),
    )
    alpha, gamma = torch.tensor(WEIGHTS, dtype=torch.float64), torch.tensor(_FOCAL[0][1])
    expected = _torch_gradient(
        lambda x: torch_losses.object_weighted_focal_loss(x, torch.tensor(label), alpha, gamma),
        logits,
    )
    _close((value, np.moveaxis(gradient, axis, -1)), *expected)


@pytest.mark.parametrize("gamma", [(0, 0, 0), (1, 1, 1), (2, 2, 2)])
def test_object_weighted_focal_loss_where_all_is_sure(gamma):
    """p = 1 to the last bit: no loss, and a gradient of 0 that is a number; p = 0: the loss of the logits' distance."""
    label = np.array([[[0, 1]]], np.int32)
    logits = np.full((1, 1, 2, 3), -1e4, np.float32)
    logits[..., 0] = 1e4
    value, gradient = _ours(
        "object_weighted_focal_loss", logits, label, (1.0, 0.5, 1.0), (("gamma", gamma),)
    )
    assert value == 0.5 * 2e4 / 2
    np.testing.assert_allclose(gradient[0, 0], [[0, 0, 0], [0.25, -0.25, 0]])


def test_object_weighted_focal_loss_without_a_valid_pixel():
    logits, label = _pixels(1, ignored=1.0)
    value, gradient = _ours("object_weighted_focal_loss", logits, label, WEIGHTS, _FOCAL)
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.frequency_weights((5, 0), 1.02), r"pixel counts \(5, 0\) must be positive"),
        (lambda: losses.magnitudes(()), r"pixel counts \(\) must be positive"),
        (lambda: losses.frequency_weights((5, 1), 1.0), "offset 1.0 .* greater than 1"),
        (lambda: _focal((1.0,) * 3, (0,) * 3), "3 class weights were given for 5 classes"),
        (lambda: _focal((1.0,) * 5, (0,) * 3), r"gamma \(0, 0, 0\) must hold 5 exponents"),
        (lambda: _focal((1.0,) * 5, (0, -1, 0, 0, 0)), "exponents of 0 or more"),
    ],
)
def test_wrong_object_weights(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _focal(alpha, gamma):
    logits, label = map(jnp.asarray, _pixels(0))
    return losses.object_weighted_focal_loss(logits, label, alpha, gamma)
