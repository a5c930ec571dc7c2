import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax.base import mesh
from rtseg_jax.inference import metrics


def _arrays(seed, shape=(4, 5, 7), classes=4):
    rng = np.random.default_rng(seed)
    label = rng.choice([*range(classes), 255], shape).astype(np.int32)
    return label, rng.integers(0, classes, shape).astype(np.uint8)


def _counted(label, prediction, classes, mask=None):
    counts = np.zeros((classes, classes), np.int64)
    for b in range(label.shape[0]):
        for y in range(label.shape[1]):
            for x in range(label.shape[2]):
                if label[b, y, x] != 255 and (mask is None or mask[b]):
                    counts[label[b, y, x], prediction[b, y, x]] += 1
    return counts


_confusion = jax.jit(metrics.confusion_matrix, static_argnums=2)


@pytest.mark.parametrize("mask", [None, [True, False, True, False], [False] * 4])
@pytest.mark.parametrize("classes", [2, 4, 19])
def test_confusion_is_brute_force(classes, mask):
    label, prediction = _arrays(classes, classes=classes)
    mask = None if mask is None else np.array(mask)
    ours = _confusion(label, prediction, classes, mask)
    assert ours.dtype == jnp.int32
    np.testing.assert_array_equal(ours, _counted(label, prediction, classes, mask))


def test_ignored_pixels_do_not_count_whatever_is_predicted():
    label = np.full((1, 2, 3), 255, np.int32)
    assert not np.any(_confusion(label, np.array([[[0, 1, 2]] * 2], np.uint8), 3))


def test_predictions_of_any_integer_type():
    label, prediction = _arrays(3)
    expected = _counted(label, prediction, 4)
    for dtype in (np.int32, np.uint8, np.int8):
        np.testing.assert_array_equal(_confusion(label, prediction.astype(dtype), 4), expected)


def test_confusion_over_four_devices():
    label, prediction = _arrays(5, shape=(8, 3, 5))
    mask = np.arange(8) < 7
    rows = mesh.split(mesh.make_mesh())
    ours = _confusion(*jax.device_put((label, prediction), rows), 4, jax.device_put(mask, rows))
    np.testing.assert_array_equal(ours, _counted(label, prediction, 4, mask))


def _official_iou(counts, k):
    """As cityscapesscripts' getIouScoreForLabel: TP / (TP + FP + FN), nan without a denominator."""
    hit = int(counts[k, k])
    missed = int(counts[k, :].sum()) - hit
    wrong = int(sum(counts[j, k] for j in range(len(counts)) if j != k))
    return hit / (hit + wrong + missed) if hit + wrong + missed else float("nan")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1, 2**33])
def test_iou_is_the_official_one(seed, scale):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (6, 6)) * scale
    counts[2, :] = counts[:, 2] = 0  # nowhere
    counts[4, :] = 0  # only predicted
    counts[:, 5] = 0  # only labelled
    ours = metrics.scores(counts)
    expected = [_official_iou(counts, k) for k in range(6)]
    np.testing.assert_allclose(ours.iou, expected)
    assert np.isnan(ours.iou[2]) and ours.iou[4] == 0 and ours.iou[5] == 0
    assert ours.classes == 5
    assert ours.miou == pytest.approx(sum(v for v in expected if v == v) / 5)


def test_scores_by_hand():
    #            predicted: 0   1  2  3
    confusion = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]])
    ours = metrics.scores(confusion)
    np.testing.assert_allclose(ours.iou, [6 / 13, 3 / 6, 0, np.nan])
    np.testing.assert_allclose(ours.accuracy, [6 / 8, 3 / 4, 0, np.nan])
    assert ours.classes == 3
    assert ours.miou == pytest.approx((6 / 13 + 1 / 2) / 3)
    assert ours.pixel_accuracy == pytest.approx(9 / 16)
    assert ours.mean_accuracy == pytest.approx(0.5)
    assert ours.frequency_weighted_iou == pytest.approx(8 / 16 * 6 / 13 + 4 / 16 / 2)


def test_class_predicted_but_never_labelled():
    ours = metrics.scores(np.array([[1, 1], [0, 0]]))
    np.testing.assert_array_equal(ours.iou, [0.5, 0])
    np.testing.assert_array_equal(ours.accuracy, [0.5, np.nan])
    assert (ours.miou, ours.classes, ours.mean_accuracy) == (0.25, 2, 0.5)


def test_sums_beyond_int32():
    most = np.full((2, 2), np.iinfo(np.int32).max, np.int32)  # as the device counts
    ours = metrics.scores(most)
    np.testing.assert_allclose(ours.iou, [1 / 3, 1 / 3])
    assert ours.pixel_accuracy == ours.mean_accuracy == 0.5
    ours = metrics.scores(np.array([[3 * 10**9, 10**9], [0, 4 * 10**9]]))
    np.testing.assert_allclose(ours.iou, [3 / 4, 4 / 5])
    assert ours.pixel_accuracy == 7 / 8


def test_nothing_counted():
    ours = metrics.scores(np.zeros((3, 3), np.int64))
    assert ours.classes == 0
    assert np.isnan([*ours.iou, *ours.accuracy]).all()
    assert np.isnan(
        [ours.miou, ours.pixel_accuracy, ours.mean_accuracy, ours.frequency_weighted_iou]
    ).all()
