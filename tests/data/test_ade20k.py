"""SceneParse150's tree, and the full ADE20K told apart from it."""

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.data import spec
from rtseg_jax.data.sets import ade20k

SIZES = {"train": ((10, 15), (12, 9)), "val": ((15, 10),)}
SPLITS = {"train": "training", "val": "validation"}


def raw_of(size):
    """All of 0-150 where there are so many pixels."""
    return np.arange(np.prod(size)).reshape(size).astype(np.uint8) % 151


@pytest.fixture
def root(tmp_path):
    for split, sizes in SIZES.items():
        for i, size in enumerate(sizes, start=1):
            stem = f"ADE_{split}_{i:08d}"
            for kind, ending, array in (
                ("images", "jpg", np.full((*size, 3), 40 * i, np.uint8)),
                ("annotations", "png", raw_of(size)),
            ):
                path = tmp_path / ade20k.FOLDER / kind / SPLITS[split] / f"{stem}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return tmp_path


def test_the_table():
    names = ade20k.TABLE.class_names
    assert len(names) == len(set(names)) == 150
    assert (names[0], names[12], names[20], names[149]) == ("wall", "person", "car", "flag")
    assert ade20k.TABLE.palette[2] == (6, 230, 230) and ade20k.TABLE.palette[149] == (92, 0, 255)


@pytest.mark.parametrize("split", SIZES)
@pytest.mark.parametrize("inside", [False, True])
def test_a_split(root, split, inside):
    dataset = data.load("ade20k", root=root / ade20k.FOLDER if inside else root, split=split)
    assert dataset.names == tuple(f"ADE_{split}_{i:08d}" for i in range(1, len(SIZES[split]) + 1))
    for i, size in enumerate(SIZES[split]):
        image, label = dataset.load(i)
        assert image.shape == (*size, 3) and np.abs(image - 40.0 * (i + 1)).max() < 3
        raw = raw_of(size).astype(int)
        np.testing.assert_array_equal(label, np.where(raw == 0, 255, raw - 1))


def test_a_value_that_is_no_class(root):
    path = root / ade20k.FOLDER / "annotations/training/ADE_train_00000001.png"
    Image.fromarray(np.full(SIZES["train"][0], 151, np.uint8)).save(path)
    with pytest.raises(
        spec.DataError, match="values 151 are not allowed; allowed are 0-150; the labels"
    ):
        ade20k.load(root, "train").load(0)


@pytest.mark.parametrize(
    "marker",
    [
        "ADE20K_2021_17_01/images/ADE/training/urban/street/ADE_train_00016858_seg.png",
        "ADE20K_2016_07_26/images/training/a/abbey/ADE_train_00000970_seg.png",
        "index_ade20k.pkl",
    ],
)
def test_the_full_ade20k(tmp_path, marker):
    (tmp_path / marker).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / marker).write_bytes(b"")
    roots = [tmp_path, *(p for p in tmp_path.iterdir() if p.is_dir())]
    for given in roots:
        with pytest.raises(
            FileNotFoundError, match=r"this is the full ADE20K.*ADEChallengeData2016\.zip"
        ):
            ade20k.load(given, "train")


def test_what_is_missing(root, tmp_path_factory):
    with pytest.raises(
        FileNotFoundError, match="ADEChallengeData2016: no such folder; ADE20K is exp"
    ):
        ade20k.load(tmp_path_factory.mktemp("empty"), "train")
    with pytest.raises(
        ValueError, match="^unknown split 'test' of ade20k; choose one of train, val$"
    ):
        ade20k.load(root, "test")
    with pytest.raises(
        ValueError, match="^unknown annotation 'fine' of ade20k; it has one; leave it"
    ):
        data.load("ade20k", root=root, split="val", annotation="fine")
    base = root / ade20k.FOLDER
    image = base / "images/validation/ADE_val_00000001.jpg"
    image.rename(base / "kept.jpg")
    with pytest.raises(FileNotFoundError, match=f"{image}: the image of .* is missing; unpack"):
        ade20k.load(root, "val")
    (base / "annotations/validation/ADE_val_00000001.png").unlink()
    with pytest.raises(FileNotFoundError, match="images/validation: the split is empty; expects"):
        ade20k.load(root, "val")
    image.parent.rmdir()
    with pytest.raises(
        FileNotFoundError, match="images/validation: no such folder; unpack ADEChall"
    ):
        ade20k.load(root, "val")
