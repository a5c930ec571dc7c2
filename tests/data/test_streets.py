"""The rendered streets: pure, complete, exactly labelled, and not to be told by colour alone."""

import numpy as np
import pytest

from rtseg_jax.data.sets import streets
from rtseg_jax.data.sets.streets import canvas

SMALL = (64, 128)


def _contrast(image, label):
    """Mean colour difference of horizontal neighbours: across label borders, and within one class."""
    step = np.abs(np.diff(image.astype(np.int32), axis=1)).mean(-1)
    border = label[:, 1:] != label[:, :-1]
    return step[border].mean(), step[~border].mean()


def _balanced_pixels(indices, per_class, rng):
    """The same number of pixels of every class: RGB, row and distance from the middle column in [0, 1]."""
    features, ids = [], []
    rows, columns = np.indices(SMALL) / np.array(SMALL)[:, None, None]
    for index in indices:
        image, label = streets.render(0, index, SMALL)
        place = np.stack([rows, 2.0 * np.abs(columns - 0.5)], -1)
        features.append(np.concatenate([image / 255.0, place], -1).reshape(-1, 5))
        ids.append(label.ravel())
    features, ids = np.concatenate(features), np.concatenate(ids)
    keep = [rng.choice(np.flatnonzero(ids == k), per_class) for k in range(19)]
    return features[np.concatenate(keep)], ids[np.concatenate(keep)]


def _neighbour_accuracy(train, test, weights):
    """Share of pixels that the vote of their 15 nearest neighbours gives the right class."""
    (known, ids), (asked, truth) = train, test
    distance = (((asked * weights)[:, None] - (known * weights)[None]) ** 2).sum(-1)
    nearest = ids[np.argpartition(distance, 15, axis=1)[:, :15]]
    votes = (nearest[:, :, None] == np.arange(19)).sum(1)
    return (votes.argmax(1) == truth).mean()


def test_pure_function_of_seed_index_and_size():
    image, label = streets.render(3, 5, SMALL)
    streets.render(3, 6, SMALL)
    again = streets.render(3, 5, SMALL)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(label, again[1])


def test_seeds_and_indices_differ():
    frames = [streets.render(seed, index, SMALL) for seed in (0, 1) for index in (0, 1, 16)]
    for i, (image, label) in enumerate(frames):
        for other_image, other_label in frames[:i]:
            assert np.abs(image.astype(int) - other_image).mean() > 5.0
            assert (label != other_label).mean() > 0.05


@pytest.mark.parametrize(
    "size", [(32, 32), (33, 47), (97, 201), (32, 300), (300, 32), (1030, 40), (40, 2050)]
)
def test_any_size(size):
    image, label = streets.render(1, 2, size)
    assert image.shape == (*size, 3) and image.dtype == np.uint8
    assert label.shape == size and label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(19), 255}
    assert {streets.ROAD, streets.SKY} <= set(np.unique(label))
    assert image.std() > 15.0


def test_default_size_is_256_by_512():
    image, label = streets.render(0, 0)
    assert image.shape == (256, 512, 3) and label.shape == (256, 512)


def test_arrays_are_writable_and_own_their_memory():
    for array in streets.render(0, 0, SMALL):
        assert array.flags.writeable and array.flags.owndata and array.flags.c_contiguous


@pytest.mark.parametrize("seed", [0, 1])
def test_sixteen_frames_in_a_row_hold_every_class_and_little_void(seed):
    labels = [streets.render(seed, index, SMALL)[1] for index in range(3, 27)]
    pixels = np.array([np.bincount(label.ravel(), minlength=256) for label in labels])
    for first in range(9):
        missing = np.flatnonzero(pixels[first : first + 16, :19].sum(0) == 0)
        assert missing.size == 0, f"no pixel of {missing} from frame {3 + first}"
    void = pixels[:, 255] / pixels.sum(1)
    assert 0.0 < void.mean() and void.max() < 0.1
    # A network can learn from it: even the rarest class is no accident.
    assert (pixels.sum(0)[:19] / pixels.sum()).min() > 0.0005


@pytest.mark.parametrize("index", range(8))
def test_what_is_due_stands_in_view(index):
    label = streets.render(4, index, (128, 256))[1]
    for due in (streets.VEHICLES[index % 4], streets.FURNITURE[(index + index // 4) % 4]):
        assert (label == due).sum() >= 20, due


def test_label_lies_exactly_on_the_image():
    aligned, shifted = [], []
    for index in range(8):
        image, label = streets.render(5, index, (128, 256))
        border, inside = _contrast(image, label)
        assert border > 2.0 * inside
        aligned.append(border)
        shifted.append(max(_contrast(image, np.roll(label, step, 1))[0] for step in (-3, 3)))
    assert np.mean(aligned) > 1.5 * np.mean(shifted)


def test_colour_alone_does_not_tell_the_class():
    rng = np.random.default_rng(0)
    train, test = _balanced_pixels(range(24), 120, rng), _balanced_pixels(range(24, 40), 40, rng)
    colour = _neighbour_accuracy(train, test, np.array([1.0, 1.0, 1.0, 0.0, 0.0]))
    both = _neighbour_accuracy(train, test, np.ones(5))
    assert 1.5 / 19.0 < colour < 0.28
    assert both > 1.3 * colour


def test_projection_and_drawing_in_metres():
    scene = canvas.Scene(np.random.default_rng(0), (100, 200))
    scene.eye_x, scene.eye_y, scene.focal, scene.centre, scene.horizon = 1.0, 1.5, 100.0, 80.0, 40.0
    scene.near = 2.0
    assert scene.project(1.0, 1.5, 7.0) == (80, 40)  # the camera's own height lies on the horizon
    assert scene.project(3.0, 0.0, 10.0) == (100, 55)
    assert scene.in_view(5.0) == pytest.approx(
        100.0 * 4.0 / 120.0
    )  # 120 pixels right of the centre
    frame = canvas.Frame(scene, 3.0, 10.0, streets.PERSON)
    frame.rect(0.0, 2.0, 0.5, 1.5, (10.0, 20.0, 30.0))
    rows, columns = np.nonzero(np.asarray(scene.image)[..., 3] == streets.PERSON)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 50, 100, 120)


def test_painting_order():
    scene = canvas.Scene(np.random.default_rng(0), SMALL)
    scene.eye_x, scene.crossing = 0.0, 10.0
    order = []
    for name, x, z in (("near", 2.0, 12.0), ("far", 2.0, 30.0), ("outer", -5.0, 12.0)):
        scene.add(lambda scene, x, z, name: order.append(name), x, z, name)
    scene.add(lambda scene, x, z, name: order.append(name), 3.0, 10.5, "across", lane=0.0)
    scene.add(lambda scene, x, z, name: order.append(name), 9.0, 5.0, "before the crossing")
    for _, paint in sorted(scene.queue, key=lambda task: task[0]):
        paint()
    assert order == ["outer", "far", "near", "across", "before the crossing"]


@pytest.mark.parametrize("seed, index, size", [(-1, 0, SMALL), (0, -1, SMALL), (0, 0, (31, 64))])
def test_refuses_what_it_cannot_draw(seed, index, size):
    with pytest.raises(ValueError, match="at least 32|must both be 0 or more"):
        streets.render(seed, index, size)
