"""NYUDv2 as list files over index PNGs, counted from 0 or from 1, and as the original .mat."""

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.data import spec
from rtseg_jax.data.sets import nyuv2

SIZE = (5, 8)
LABEL = np.arange(40, dtype=np.uint8).reshape(SIZE)


def image_of(i):
    return (np.arange(5 * 8 * 3).reshape(*SIZE, 3) + i).astype(np.uint8)


def lists(root, label, val="val.nyu"):
    """The layout of light-weight RefineNet's users: two train images, one test image."""
    for name, split, numbers in (("train.nyu", "train", (3, 2)), (val, "val", (1,))):
        lines = []
        for i in numbers:
            for kind, array in (("images", image_of(i)), ("labels", label)):
                path = root / f"{split}_{kind}" / f"{i:06d}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(array).save(path)
            lines.append(f"{split}_images/{i:06d}.png\t{split}_labels/{i:06d}.png\n")
        (root / name).write_text("".join(lines))


def test_the_table():
    assert nyuv2.TABLE.num_classes == 40
    names = nyuv2.TABLE.class_names
    assert names[:3] == ("wall", "floor", "cabinet") and names[21] == "ceiling"
    assert names[37:] == ("otherstructure", "otherfurniture", "otherprop")
    assert len(set(names)) == len(set(nyuv2.TABLE.palette)) == 40


def test_list_files_counted_from_0(tmp_path):
    label = LABEL.copy()
    label[0, 0] = 255
    lists(tmp_path, label)
    train = data.load("nyuv2", root=tmp_path, split="train")
    assert train.names == ("000003", "000002")  # the list's order
    for at, i in enumerate((3, 2)):
        image, loaded = train.load(at)
        np.testing.assert_array_equal(image, image_of(i))
        np.testing.assert_array_equal(loaded, label)
    assert data.load("nyuv2", root=tmp_path, split="test").names == ("000001",)


def test_list_files_counted_from_1(tmp_path):
    label = LABEL + 1
    label[0, 0] = 0
    lists(tmp_path, label, val="test.txt")
    loaded = nyuv2.load(tmp_path, "test", "from_1").load(0)[1]
    expected = LABEL.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(loaded, expected)
    with pytest.raises(
        spec.DataError,
        match="values 40 are not allowed; allowed are 0-39, 255; labels of 1-40 .*=from_1$",
    ):
        nyuv2.load(tmp_path, "test").load(0)


MAPPING = np.resize(np.arange(1, 41), 894)


@pytest.fixture
def mat(tmp_path):
    """Four images in MATLAB's order: the last axis of the array in MATLAB is the first here."""
    h5py = pytest.importorskip("h5py")
    from scipy.io import savemat

    images = np.stack([image_of(i) for i in range(4)])
    labels = np.stack([LABEL.astype(np.uint16) + 40 * i for i in range(4)])
    labels[3, 0, 0] = 894
    with h5py.File(tmp_path / nyuv2.MAT, "w") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["labels"] = labels.transpose(0, 2, 1)
    savemat(tmp_path / nyuv2.MAT_SPLITS, {"trainNdxs": [[3], [1]], "testNdxs": [[2], [4]]})
    savemat(tmp_path / nyuv2.MAP_40, {"mapClass": MAPPING[None].astype(np.uint8)})
    return tmp_path


def test_the_mat(mat):
    train = data.load("nyuv2", root=mat, split="train")
    assert train.names == ("000003", "000001") and train.table is nyuv2.TABLE
    image, label = train.load(0)
    assert image.dtype == label.dtype == np.uint8 and image.shape == (*SIZE, 3)
    np.testing.assert_array_equal(image, image_of(2))
    # Raw classes 80-119, counted from 1.
    np.testing.assert_array_equal(label, MAPPING[LABEL.astype(int) + 79] - 1)
    _, first = train.load(1)
    assert first[0, 0] == 255 and first[0, 1] == MAPPING[0] - 1
    assert nyuv2.load(mat, "test").load(1)[1][0, 0] == MAPPING[893] - 1


def test_a_list_wins_over_the_mat(mat):
    lists(mat, LABEL)
    assert nyuv2.load(mat, "train").names == ("000003", "000002")


def edit(mat, change):
    import h5py

    with h5py.File(mat / nyuv2.MAT, "a") as file:
        change(file)


def too_high(file):
    file["labels"][2, 0, 0] = 895


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda m: (m / nyuv2.MAP_40).unlink(), FileNotFoundError, "classMapping40.mat: no such file; nyu_depth"),
        (lambda m: (m / nyuv2.MAT_SPLITS).unlink(), FileNotFoundError, "splits.mat: no such file; nyu_depth"),
        (lambda m: (m / nyuv2.MAP_40).write_bytes(b"x" * 200), spec.DataError, "no array mapClass in it"),
        (lambda m: (m / nyuv2.MAT).write_bytes(b"x" * 200), spec.DataError, "labeled.mat: cannot be read"),
        (lambda m: edit(m, lambda f: f.pop("labels")), spec.DataError, "labeled.mat: cannot be read"),
        (lambda m: edit(m, too_high), spec.DataError, "image 3: label value 895 is not allowed; allowed are 0-894"),
    ],
)  # fmt: skip
def test_a_mat_that_is_damaged(mat, damage, error, message):
    damage(mat)
    with pytest.raises(error, match=message) as raised:
        nyuv2.load(mat, "train").load(0)
    assert "\n" not in str(raised.value)


def test_a_map_and_splits_of_something_else(mat):
    from scipy.io import savemat

    savemat(mat / nyuv2.MAT_SPLITS, {"trainNdxs": [[5]], "testNdxs": [[0]]})
    for split, number in (("train", 5), ("test", 0)):
        with pytest.raises(spec.DataError, match=f"{split}Ndxs names image {number} of 4"):
            nyuv2.load(mat, split)
    savemat(mat / nyuv2.MAP_40, {"mapClass": MAPPING - 1})
    with pytest.raises(spec.DataError, match="mapClass goes from 0 to 39, not from 1 to 40"):
        nyuv2.load(mat, "train")


@pytest.mark.parametrize(
    ("split", "annotation", "message"),
    [
        ("val", "", "unknown split 'val' of nyuv2; choose one of train, test"),
        ("train", "fine", "unknown annotation 'fine' of nyuv2; choose one of from_0, from_1"),
    ],
)
def test_impossible_arguments(tmp_path, split, annotation, message):
    lists(tmp_path, LABEL)
    with pytest.raises(ValueError, match=f"^{message}$"):
        nyuv2.load(tmp_path, split, annotation)


def test_the_mat_has_one_annotation(mat):
    with pytest.raises(
        ValueError, match="unknown annotation 'from_1' of nyuv2 as .mat; it has one"
    ):
        nyuv2.load(mat, "train", "from_1")


def test_nothing_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"train\.nyu: no such file; NYUDv2 is expected as ROOT/"
    ):
        nyuv2.load(tmp_path, "train")
