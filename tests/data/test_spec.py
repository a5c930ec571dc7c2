"""Class tables, colours, and one pair of files read as what it is."""

import dataclasses
import functools
import pathlib

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.data import files, spec

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
LABEL = RNG.integers(0, 4, (6, 8), dtype=np.uint8)
LUT = files.lookup([(0, 0), (1, 1), (2, 2), (3, 255)])


def write(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_tables():
    counts = {name: table.num_classes for name, table in data.TABLES.items()}
    assert counts == {"cityscapes": 19, "camvid": 11, "nyuv2": 40, "ade20k": 150, "streets": 19}
    assert all(data.class_table(name) is table for name, table in data.TABLES.items())
    assert data.NAMES == (*counts, "folder")
    cityscapes, camvid = spec.TABLES["cityscapes"], spec.TABLES["camvid"]
    assert cityscapes.class_names[13] == "car" and cityscapes.palette[13] == (0, 0, 142)
    assert camvid.class_names[3] == "road" and camvid.palette[3] == (128, 64, 128)
    for table in spec.TABLES.values():
        assert len(set(table.class_names)) == len(set(table.palette)) == table.num_classes


def test_a_class_needs_a_colour():
    with pytest.raises(AssertionError):
        spec.ClassTable("t", ("a", "b"), ((0, 0, 0),))


def test_colorize():
    table = spec.ClassTable("t", ("a", "b"), ((10, 20, 30), (40, 50, 60)))
    drawn = table.colorize(np.array([[0, 1], [255, 0]], np.uint8))
    np.testing.assert_array_equal(drawn, [[[10, 20, 30], [40, 50, 60]], [[0, 0, 0], [10, 20, 30]]])
    assert drawn.dtype == np.uint8
    with pytest.raises(
        ValueError, match=r"^values 2-3, 254 are no train ids of t; allowed are 0-1"
    ):
        table.colorize(np.array([[2, 3], [254, 255]], np.uint8))


def test_lookup():
    assert LUT.dtype == np.uint8 and LUT.shape == (256,)
    assert LUT[:5].tolist() == [0, 1, 2, 255, 254] and (LUT[4:] == files.INVALID).all()


@pytest.mark.parametrize(
    ("values", "text"), [([], ""), ([5], "5"), ([0, 1, 2, 7, 9, 10], "0-2, 7, 9-10")]
)
def test_format_values(values, text):
    assert spec.format_values(values) == text


def test_read_pair(tmp_path):
    image, label = files.read_pair(
        write(tmp_path / "i.png", IMAGE), write(tmp_path / "l.png", LABEL), LUT
    )
    assert image.dtype == label.dtype == np.uint8
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(label, np.where(LABEL == 3, 255, LABEL))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("transparency", [None, 1])
def test_palette_label_is_read_as_indices(tmp_path, bits, transparency):
    label = Image.fromarray(LABEL).convert("P")
    label.putdata(LABEL.ravel().tolist())
    # Colours that are not the indices, and not in their order.
    label.putpalette([200, 0, 0, 0, 100, 0, 0, 0, 50, 3, 3, 3] + [9, 9, 9] * (2**bits - 4))
    options = {} if transparency is None else {"transparency": transparency}
    label.save(tmp_path / "l.png", bits=bits, **options)
    assert (tmp_path / "l.png").read_bytes()[24:26] == bytes([bits, 3])
    read = files.read_label(tmp_path / "l.png", LUT)
    np.testing.assert_array_equal(read, np.where(LABEL == 3, 255, LABEL))


def test_images_of_other_modes_become_rgb(tmp_path):
    grey = IMAGE[..., 0]
    tripled = np.stack([grey] * 3, axis=-1)
    np.testing.assert_array_equal(files.read_image(write(tmp_path / "l.png", grey)), tripled)

    with_alpha = np.dstack([IMAGE, grey])
    np.testing.assert_array_equal(files.read_image(write(tmp_path / "a.png", with_alpha)), IMAGE)

    paletted = Image.fromarray(LABEL).convert("P")
    paletted.putdata(LABEL.ravel().tolist())
    palette = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50], [3, 3, 3]], np.uint8)
    paletted.putpalette(palette.ravel().tolist())
    paletted.save(tmp_path / "p.png", transparency=b"\x00\x10\xff")
    np.testing.assert_array_equal(files.read_image(tmp_path / "p.png"), palette[LABEL])


COLORS = {(10, 20, 30): 0, (10, 20, 31): 1, (255, 0, 0): 255, (0, 0, 0): 2}


def test_colours_are_read_exactly(tmp_path):
    """Whether they stand in the pixels, under an alpha channel or in a palette."""
    label = RNG.integers(0, 4, (6, 8), dtype=np.uint8)
    colors = np.array(list(COLORS), np.uint8)
    expected = np.array(list(COLORS.values()), np.uint8)[label]
    write(tmp_path / "rgb.png", colors[label])
    write(tmp_path / "rgba.png", np.dstack([colors[label], np.full(label.shape, 7, np.uint8)]))
    paletted = Image.fromarray(label).convert("P")
    paletted.putdata(label.ravel().tolist())
    paletted.putpalette(colors.ravel().tolist())
    paletted.save(tmp_path / "p.png")
    for name in ("rgb.png", "rgba.png", "p.png"):
        read = files.read_color_label(tmp_path / name, COLORS)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)
    image, label = files.read_pair(write(tmp_path / "i.png", IMAGE), tmp_path / "p.png", COLORS)
    np.testing.assert_array_equal(label, expected)


def test_colours_that_are_no_classes(tmp_path):
    six = np.zeros((1, 6, 3), np.uint8)
    six[0, :, 2] = range(1, 7)
    path = write(tmp_path / "l.png", six)
    with pytest.raises(spec.DataError) as raised:
        files.read_color_label(path, COLORS, "look again")
    assert str(raised.value) == (
        f"{path}: colours (0, 0, 1), (0, 0, 2), (0, 0, 3), (0, 0, 4) and 2 more on 6 pixels are no classes; "
        "look again"
    )
    Image.fromarray(six).save(tmp_path / "l.jpg")
    with pytest.raises(
        spec.DataError, match="a JPEG file; expects a PNG whose colours are classes"
    ):
        files.read_color_label(tmp_path / "l.jpg", COLORS)


def test_names_are_as_long_as_needed():
    paths = [pathlib.Path(p) for p in ("/d/x/a.png", "/d/y/a.png", "/d/y/b.png")]
    assert files.unique_names(paths[1:]) == ("a", "b")
    assert files.unique_names(paths) == ("x/a", "y/a", "y/b")


def dataset_of(image, label):
    return spec.Dataset(spec.TABLES["camvid"], "train", ("a", "b"), None, lambda i: (image, label))


def test_resized():
    # The finest checkerboard averages to grey under an antialiased filter, and only there.
    board = np.indices((8, 8)).sum(0) % 2 * 255
    image = np.stack([board] * 3, axis=-1).astype(np.uint8)
    label = np.arange(64, dtype=np.uint8).reshape(8, 8)
    dataset = spec.resized(dataset_of(image, label), (4, 2))
    assert dataset.size == (4, 2) and len(dataset) == 2
    small_image, small_label = dataset.load(0)
    assert small_image.shape == (4, 2, 3) and small_image.dtype == np.uint8
    assert np.abs(small_image.astype(int) - 128).max() <= 16
    # Nearest to the centres: rows 1, 3, 5, 7 and columns 2, 6.
    np.testing.assert_array_equal(small_label, [[10, 14], [26, 30], [42, 46], [58, 62]])


def test_resized_to_its_own_size_changes_nothing():
    dataset = spec.resized(dataset_of(IMAGE, LABEL), (6, 8))
    image, label = dataset.load(0)
    assert image is IMAGE and label is LABEL


def test_first():
    dataset = spec.first(dataset_of(IMAGE, LABEL), 1)
    assert len(dataset) == 1 and dataset.name(0) == "a"
    for n in (0, 3):
        with pytest.raises(
            ValueError, match=rf"^num_examples {n} of camvid train: must lie in 1-2$"
        ):
            spec.first(dataset_of(IMAGE, LABEL), n)


def test_streets_need_no_files():
    splits = {
        split: data.load("streets", root=None, split=split, size=(64, 96), num_examples=3)
        for split in ("train", "val", "test")
    }
    images = []
    for split, dataset in splits.items():
        assert (len(dataset), dataset.size, dataset.split) == (3, (64, 96), split)
        assert dataset.table == dataclasses.replace(spec.TABLES["cityscapes"], name="streets")
        image, label = dataset.load(1)
        assert image.shape == (64, 96, 3) and label.shape == (64, 96)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) <= {*range(19), 255}
        images.append(image)
        np.testing.assert_array_equal(image, dataset.load(1)[0])
    other = data.load("streets", root=None, split="train", size=(64, 96), num_examples=3, seed=1)
    images.append(other.load(1)[0])
    assert all((a != b).any() for k, a in enumerate(images) for b in images[:k])
    assert len({d.name(i) for d in splits.values() for i in range(3)}) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "city"},
            "unknown dataset 'city'; choose one of cityscapes, camvid, nyuv2, ade20k, streets, folder",
        ),
        (
            {"canvas": (8, 0), "size": (8, 8)},
            "size (8, 8) makes all images one size already; leave",
        ),
        (
            {"canvas": (0, 8), "size": None, "name": "folder", "root": None},
            "folder needs the folder",
        ),
        (
            {"annotation": "fine"},
            "unknown annotation 'fine' of streets; it has one; leave it empty",
        ),
        ({"name": "camvid", "split": "x"}, "unknown split 'x' of camvid; choose one of train, val"),
        (
            {"name": "cityscapes", "split": "x"},
            "unknown split 'x' of cityscapes; choose one of tra",
        ),
        (
            {"split": "trainval"},
            "unknown split 'trainval' of streets; choose one of train, val, test",
        ),
        ({"name": "camvid", "root": None}, "camvid needs the folder of its data, got root=None"),
        ({"size": None}, "streets draws its images: it needs size=(h, w) and num_examples"),
        ({"num_examples": 0}, "streets draws its images: it needs size=(h, w) and num_examples"),
        ({"size": (0, 8)}, "size (0, 8) is impossible; expects (h, w) in pixels"),
        ({"patches": (2, 0, 8, 8)}, "patches (2, 0, 8, 8) are impossible"),
    ],
)
def test_impossible_arguments(arguments, message):
    given = {"name": "streets", "root": "r", "split": "train", "size": (64, 96), "num_examples": 2}
    with pytest.raises(ValueError) as raised:
        data.load(**{**given, **arguments})
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_patches_cover_the_frame():
    """The 2 x 4 grid of 880 x 880 over 1024 x 2048, at a quarter of the size: x = 0, 97, 195, 292 and y = 0, 36."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 512, 3), dtype=np.uint8)
    label = rng.integers(0, 19, (256, 512), dtype=np.uint8)
    table = spec.TABLES["cityscapes"]
    whole = spec.Dataset(table, "train", ("a", "b"), (256, 512), lambda i: (image + i, label))
    patched = spec.patches(whole, 2, 4, 220, 220)
    assert len(patched) == 16 and patched.size == (220, 220)
    assert (
        patched.names[:5] == ("a_00", "a_01", "a_02", "a_03", "a_10") and patched.names[8] == "b_00"
    )
    for i, (y, x) in enumerate((y, x) for y in (0, 36) for x in (0, 97, 195, 292)):
        got_image, got_label = patched.load(8 + i)
        np.testing.assert_array_equal(got_image, image[y : y + 220, x : x + 220] + 1)
        np.testing.assert_array_equal(got_label, label[y : y + 220, x : x + 220])


def test_patch_larger_than_the_image():
    whole = data.load(
        "streets", root=None, split="val", size=(32, 64), num_examples=1, patches=(1, 1, 33, 8)
    )
    with pytest.raises(spec.DataError, match="is 32x64 pixels, smaller than a patch of 33x8"):
        whole.load(0)


def _with_faults(faults, n=6, size=(6, 8)):
    """A set of examples that show their numbers; loading those in `faults` raises or returns what is given there."""

    def load(i):
        fault = faults.get(i)
        if isinstance(fault, Exception):
            raise fault
        shape = size if fault is None else fault
        return np.full((*shape, 3), i, np.uint8), np.full(shape, i, np.uint8)

    names = tuple(f"image{i}" for i in range(n))
    return spec.Dataset(spec.TABLES["camvid"], "train", names, None, load)


def test_the_next_example_takes_the_place_of_a_bad_one():
    faults = {1: spec.DataError("no image"), 2: OSError("gone"), 5: (3, 4)}
    said = []
    dataset = spec.tolerant(_with_faults(faults), 3, one_size=True, say=said.append)
    for _ in range(2):
        taken = [int(dataset.load(i)[1][0, 0]) for i in range(6)]
        assert taken == [0, 3, 3, 3, 4, 0]
    assert said == [
        "bad example 1 of 3: no image; the next one takes its place",
        "bad example 2 of 3: gone; the next one takes its place",
        "bad example 3 of 3: image5 is 3x4 pixels (h x w), others 6x8; the next one takes its place",
    ]
    faults[1] = None  # it is back
    assert dataset.load(1)[1][0, 0] == 1
    faults[3] = OSError("too")
    with pytest.raises(spec.DataError, match="^bad example 4 of 3: too; more than input.max_bad"):
        dataset.load(3)


def test_a_bad_image_counts_once_however_many_patches_it_has(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
        for i in range(3):
            write(tmp_path / kind / "train" / f"{i}.png", IMAGE if kind == "images" else LABEL)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "images" / "train" / "1.png").write_bytes(b"")
    said = []
    tolerate = functools.partial(spec.tolerant, allowed=1, one_size=False, say=said.append)
    given = {"root": tmp_path, "split": "train", "patches": (1, 2, 4, 4), "tolerate": tolerate}
    dataset = data.load("folder", **given)
    for i in range(6):
        np.testing.assert_array_equal(dataset.load(i)[1], LABEL[:4, 4 * (i % 2) :][:, :4])
    assert len(said) == 1 and said[0].startswith("bad example 1 of 1: ")


def test_what_bad_examples_are_allowed():
    plain = _with_faults({0: spec.DataError("no image"), 5: (3, 4)})
    assert spec.tolerant(plain, 0, one_size=True) is plain
    sizes = spec.tolerant(plain, 1, one_size=False, say=str)
    assert [sizes.load(i)[1].shape for i in (0, 5)] == [(6, 8), (3, 4)]
    with pytest.raises(ValueError, match="^input.max_bad=-1 is impossible"):
        spec.tolerant(plain, -1, one_size=True)
    nothing = _with_faults({i: OSError(f"gone {i}") for i in range(6)})
    with pytest.raises(spec.DataError, match="^bad example 3 of 2: gone 2"):
        spec.tolerant(nothing, 2, one_size=True, say=str)
    with pytest.raises(spec.DataError, match="^camvid train: no example can be read"):
        spec.tolerant(nothing, 9, one_size=True, say=str)
