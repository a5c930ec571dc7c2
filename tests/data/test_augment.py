import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rtseg_jax.base import mesh
from rtseg_jax.base.labels import OUTSIDE
from rtseg_jax.data import augment

OFF = {
    "scales": (1.0,),
    "scale_range": None,
    "flip": 0.0,
    "jitter": (0.0, 0.0, 0.0),
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
}
_crop = jax.jit(augment.scale_and_crop, static_argnames=("crop", "size"))


@functools.cache
def _augmenter(**options):
    return jax.jit(functools.partial(augment.augment, **{**OFF, **options}))


def _augment(images, labels, indices=None, step=0, **options):
    indices = np.arange(len(images)) if indices is None else indices
    run = _augmenter(**{"seed": 0, **options})
    out = run(images, labels, jnp.asarray(indices, jnp.int32), jnp.int32(step))
    return np.asarray(out["image"]), np.asarray(out["label"])


def _frames(shape, seed=0, classes=19):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return images, rng.integers(0, classes, shape, dtype=np.uint8)


def _reference(image, label, scale, offset, flip, crop, size):
    """One output pixel after another, in float64; also tells where nearest was a tie."""
    (h, w), (ch, cw) = label.shape, crop
    big = [max(int(np.rint(np.float32(scale) * n)), 1) for n in size]
    room = [max(b - c, 0) for b, c in zip(big, crop, strict=True)]
    start = [min(int(o * (r + 1)), r) for o, r in zip(offset, room, strict=True)]
    out, ids = np.zeros((ch, cw, 3)), np.full((ch, cw), 255)
    ties = np.zeros((ch, cw), bool)
    for i in range(ch):
        for j in range(cw):
            row, column = start[0] + i, start[1] + (cw - 1 - j if flip else j)
            if row >= big[0] or column >= big[1]:
                continue
            y, x = (row + 0.5) * h / big[0] - 0.5, (column + 0.5) * w / big[1] - 0.5
            ties[i, j] = min(abs(v + 0.5 - round(v + 0.5)) for v in (y, x)) < 1e-4
            ids[i, j] = label[int(y + 0.5), int(x + 0.5)]
            y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
            for a in (0, 1):
                for b in (0, 1):
                    weight = abs(1 - a - y % 1) * abs(1 - b - x % 1)
                    if weight:
                        out[i, j] += weight * image[int(y) + a, int(x) + b]
    return out, ids, ties


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "frame, size, scale, offset, crop",
    [
        ((16, 20), (16, 20), 1.0, (0.5, 0.5), (9, 12)),
        ((17, 23), (17, 23), 0.75, (0.99, 0.0), (8, 11)),
        ((17, 23), (17, 23), 1.7, (0.0, 0.999), (15, 21)),
        ((13, 11), (13, 11), 2.0, (0.999, 0.999), (13, 11)),
        ((13, 11), (13, 11), 0.61, (0.3, 0.7), (13, 15)),  # padded both ways
        ((9, 31), (9, 31), 0.5, (0.6, 0.6), (10, 7)),  # padded below only
        ((16, 20), (16, 20), 1.0, (0.0, 0.0), (16, 20)),
        ((3, 3), (3, 3), 0.01, (0.9, 0.9), (2, 2)),  # never below one pixel
        ((10, 20), (10, 10), 1.5, (0.4, 0.8), (9, 12)),  # a wide frame squashed to a square
    ],
)
def test_crop_is_the_reference(frame, size, scale, offset, crop, flip):
    image, label = _frames(frame)
    ours, ids, inside = _crop(
        image,
        label,
        scale=jnp.float32(scale),
        offset=jnp.array(offset, jnp.float32),
        flip=jnp.array(flip),
        crop=crop,
        size=size,
    )
    expected, expected_ids, ties = _reference(image, label, scale, offset, flip, crop, size)
    np.testing.assert_array_equal(inside, expected_ids != 255)
    np.testing.assert_allclose(np.where(inside[..., None], ours, 0), expected, atol=2e-3)
    assert ties.mean() < 0.6
    np.testing.assert_array_equal(np.where(ties, 0, ids), np.where(ties, 0, expected_ids))


def test_squash_is_a_resize_of_the_whole_frame():
    images, labels = _frames((2, 12, 24))
    squashed, ids = _augment(images, labels, crop=(12, 12), squash=(12, 12))
    assert (ids != 255).all()
    # Half of the width: each pixel lies between two of the frame's.
    np.testing.assert_allclose(
        squashed, images.astype(np.float32).reshape(2, 12, 12, 2, 3).mean(3), atol=1e-3
    )


def test_offsets_reach_every_place_and_no_further():
    # row i holds i, column j holds j: the crop's first pixel tells where it lies
    image = np.stack(np.broadcast_arrays(*np.ogrid[:6, :9], 0), -1).astype(np.uint8)
    label = np.zeros((6, 9), np.uint8)
    corners = set()
    for offset in np.linspace(0, np.nextafter(np.float32(1), np.float32(0)), 40):
        ours, _, inside = _crop(
            image,
            label,
            scale=jnp.float32(1),
            offset=jnp.array([offset, 1 - offset], jnp.float32),
            flip=jnp.array(False),
            crop=(4, 4),
            size=(6, 9),
        )
        assert np.all(inside)
        corners.add(tuple(np.asarray(ours[0, 0, :2], int)))
    assert {y for y, _ in corners} == set(range(3)) and {x for _, x in corners} == set(range(6))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_padding_is_the_mean_and_ignored(flip):
    images, labels = _frames((2, 8, 10))
    image, label = _augment(
        images, labels, crop=(11, 16), flip=flip, mean=(1.5, 7.0, 90.0), std=(2.0, 3.0, 4.0)
    )
    # below and right of the frame, mirrored with it
    inside = np.zeros((11, 16), bool)
    inside[:8, 6:] = flip == 1
    inside[:8, :10] |= flip == 0
    assert (image[:, ~inside] == 0).all() and (label[:, ~inside] == 255).all()
    turn = slice(None, None, -1 if flip else 1)
    np.testing.assert_array_equal(label[:, inside].reshape(labels.shape)[..., turn], labels)
    expected = (images - np.float32([1.5, 7, 90])) / np.float32([2, 3, 4])
    np.testing.assert_allclose(image[:, inside].reshape(images.shape)[:, :, turn], expected, 1e-5)


def test_what_is_labelled_is_inside_the_frame():
    white, labels = np.full((32, 12, 14, 3), 255, np.uint8), np.zeros((32, 12, 14), np.uint8)
    image, label = _augment(white, labels, crop=(13, 13), scale_range=(0.4, 1.6), flip=0.5)
    assert 0.1 < (label == 255).mean() < 0.9
    np.testing.assert_array_equal(image, np.where(label == 255, 0.0, 255.0)[..., None] + [0] * 3)


@pytest.mark.parametrize("options", [{"scales": (0.5, 0.75, 1.25, 2.0)}, {"scale_range": (0.5, 2)}])
def test_image_and_label_never_drift_apart(options):
    options = {k: tuple(map(float, v)) for k, v in options.items()}
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 19, (16, 6, 6)).repeat(10, 1).repeat(10, 2).astype(np.uint8)
    images = np.stack([labels * 10, labels, 255 - labels], -1)
    image, label = _augment(images, labels, crop=(40, 45), flip=0.5, **options)
    # where two pixels around are of one class, so are all that were blended
    around = np.lib.stride_tricks.sliding_window_view(label, (5, 5), (1, 2)).reshape(16, 36, 41, 25)
    core = (around == around[..., :1]).all(-1) & (around[..., 0] != 255)
    assert core.sum() > 3000
    image, label = image[:, 2:-2, 2:-2][core], label[:, 2:-2, 2:-2][core]
    np.testing.assert_allclose(image, np.stack([label * 10, label, 255 - label], -1), atol=1e-3)


_EVERYTHING = {
    "crop": (9, 13),
    "scales": (0.75, 1.0, 1.5, 2.0),
    "flip": 0.5,
    "jitter": (0.3, 0.2, 0.1),
    "mean": (100.0, 110.0, 120.0),
    "std": (50.0, 60.0, 70.0),
}


def test_only_seed_step_and_index_decide():
    images, labels = _frames((4, 10, 12))
    images[1:], labels[1:] = images[:1], labels[:1]  # the same frame four times
    image, label = _augment(images, labels, [3, 8, 5, 3], step=7, **_EVERYTHING)
    np.testing.assert_array_equal(image[0], image[3])
    np.testing.assert_array_equal(label[0], label[3])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(image[i], image[j])
    # in another place, in another company, in a smaller batch
    moved = _augment(images, labels, [1, 5, 8, 0], step=7, **_EVERYTHING)
    np.testing.assert_array_equal(moved[0][[2, 1]], image[[1, 2]])
    few = _augment(images[:2], labels[:2], [5, 3], step=7, **_EVERYTHING)
    np.testing.assert_allclose(few[0], image[[2, 0]], atol=1e-5)
    np.testing.assert_array_equal(few[1], label[[2, 0]])
    for other in ({"step": 8}, {"step": 7, "seed": 1}):
        changed, _ = _augment(images, labels, [3, 8, 5, 3], **other, **_EVERYTHING)
        assert not any(np.array_equal(a, b) for a, b in zip(changed, image, strict=True))


def test_one_device_and_four_agree():
    images, labels = _frames((8, 10, 12))
    image, label = _augment(images, labels, step=3, **_EVERYTHING)
    assert image.dtype == np.float32 and label.dtype == np.int32
    rows = mesh.split(mesh.make_mesh())
    batch = jax.device_put((images, labels, np.arange(8, dtype=np.int32)), rows)
    shared = _augmenter(seed=0, **_EVERYTHING)(*batch, jnp.int32(3))
    assert len(shared["image"].sharding.device_set) == 4
    np.testing.assert_allclose(shared["image"], image, atol=1e-5)
    np.testing.assert_array_equal(shared["label"], label)


def _drawn_scales(**options):
    """The slope of a ramp tells by how much it was enlarged."""
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 4, (256, 64, 64, 3))
    image, _ = _augment(ramp, ramp[..., 0], crop=(4, 24), **options)
    return 4 / (image[:, 0, 13, 0] - image[:, 0, 11, 0]) * 2


def test_scales_come_from_the_set():
    found = _drawn_scales(scales=(0.5, 0.75, 1.5, 1.75))
    nearest = np.round(found * 4) / 4
    np.testing.assert_allclose(found, nearest, rtol=1e-3)
    values, counts = np.unique(nearest, return_counts=True)
    assert set(values) == {0.5, 0.75, 1.5, 1.75} and counts.min() > 40  # of 64 expected


def test_scales_of_a_range_are_log_uniform():
    found = _drawn_scales(scales=(9.0,), scale_range=(0.5, 2.0))
    assert 0.49 < found.min() < 0.52 and 1.93 < found.max() < 2.01
    counts = np.histogram(np.log2(found), [-1.02, -0.5, 0, 0.5, 1.02])[0]
    assert counts.min() > 40 and counts.sum() == 256


def test_scales_of_a_range_may_be_uniform():
    found = _drawn_scales(scales=(9.0,), scale_range=(0.5, 2.0), scale_law="uniform")
    counts = np.histogram(found, [0.49, 0.875, 1.25, 1.625, 2.01])[0]
    assert counts.min() > 40 and counts.sum() == 256


@pytest.mark.parametrize("squash", [None, (96, 50)])
def test_scales_are_raised_to_a_shorter_side(squash):
    """Of 40x30 pixels of 64x64, or of the size that scale 1 stands for."""
    ramp = np.zeros((256, 64, 64), np.uint8)
    ramp[:, :, :30] = np.arange(30) * 8
    label = np.full((256, 64, 64), OUTSIDE, np.uint8)
    label[:, :40, :30] = 0
    image, _ = _augment(
        np.broadcast_to(ramp[..., None], (*ramp.shape, 3)), label, crop=(4, 90), squash=squash,
        scale_range=(0.5, 2.0), min_side=45,
    )  # fmt: skip
    width = 30 * 8 / (image[:, 0, 9, 0] - image[:, 0, 7, 0]) * 2
    highest = 60 if squash is None else 100
    assert width.min() == pytest.approx(45, abs=0.1)
    assert (np.abs(width - 45) < 0.1).sum() > 60
    assert highest - 4 < width.max() < highest + 0.1


def test_flip_rate():
    frame = np.zeros((400, 2, 4, 3), np.uint8)
    frame[:, :, 3] = 200
    image, label = _augment(frame, frame[..., 0], crop=(2, 4), flip=0.25)
    np.testing.assert_array_equal(image[..., 0], label)
    flipped = image[:, 0, 0, 0] == 200
    np.testing.assert_array_equal(flipped, image[:, 1, 3, 0] == 0)
    assert 70 <= flipped.sum() <= 130


def _jitter(image, brightness, contrast, saturation, inside=None):
    inside = np.ones(image.shape[:2], bool) if inside is None else inside
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    factors = {k: jnp.float32(v) for k, v in factors.items()}
    return np.asarray(jax.jit(augment.color_jitter)(image.astype(np.float32), inside, **factors))


@pytest.mark.parametrize(
    "factors", [(1.4, 1, 1), (1, 0.6, 1), (1, 1.5, 1), (1, 1, 0.5), (1, 1, 1.8)]
)
def test_jitter_is_pillows(factors):
    image, _ = _frames((12, 14))
    expected = Image.fromarray(image)
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for kind, factor in zip(kinds, factors, strict=True):
        expected = kind(expected).enhance(factor)
    # Pillow rounds the grey, its mean and the result
    np.testing.assert_allclose(_jitter(image, *factors), np.asarray(expected, float), atol=1.6)


@pytest.mark.parametrize("brightness, contrast, saturation", [(1.3, 0.7, 1.6), (1.4, 1.9, 0.4)])
def test_jitter_is_torchvisions_formula_on_the_frame_alone(brightness, contrast, saturation):
    image, _ = _frames((12, 14))
    inside = np.zeros((12, 14), bool)
    inside[:9, :8] = True
    x = np.clip(image * brightness, 0, 255)
    average = (x @ [0.299, 0.587, 0.114])[inside].mean()
    x = np.clip(contrast * x + (1 - contrast) * average, 0, 255)
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    x = np.clip(saturation * x + (1 - saturation) * grey, 0, 255)
    np.testing.assert_allclose(
        _jitter(image, brightness, contrast, saturation, inside), x, atol=1e-3
    )


def test_jitter_is_drawn_within_its_strength():
    grey = np.full((64, 2, 2, 3), 100, np.uint8)
    image, _ = _augment(grey, grey[..., 0], crop=(2, 2), jitter=(0.2, 0.0, 0.0))
    found = image[:, 0, 0, 0]
    assert 80 <= found.min() < 83 and 117 < found.max() <= 120


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_normalize_in_units_of_255(dtype):
    image = jnp.asarray(np.array([[[0, 100, 255]]], dtype))
    ours = augment.normalize(image, (127.5, 90.0, 127.5), (63.75, 5.0, 1.0))
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, [[[-2, 2, 127.5]]])
