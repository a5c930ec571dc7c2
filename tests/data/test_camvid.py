"""The SegNet tree, generated small, and the real one where there is one."""

import os

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.data import camvid

COUNTS = {"train": 5, "val": 3, "test": 2}
SIZE = (6, 8)


def image_of(split, i):
    return np.full((*SIZE, 3), 20 * i + "tv".find(split[0]), np.uint8)


def label_of(i):
    return (np.arange(48, dtype=np.uint8).reshape(SIZE) + i) % 12


@pytest.fixture
def root(tmp_path):
    for split, count in COUNTS.items():
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").mkdir()
        for i in reversed(range(count)):  # sorting must not be the file system's
            Image.fromarray(image_of(split, i)).save(tmp_path / split / f"{split}_{i}.png")
            Image.fromarray(label_of(i)).save(tmp_path / f"{split}annot" / f"{split}_{i}.png")
    return tmp_path


@pytest.mark.parametrize("split", COUNTS)
def test_a_split(root, split):
    dataset = camvid.load(root, split)
    assert len(dataset) == COUNTS[split] and dataset.split == split and dataset.size is None
    assert dataset.names == tuple(f"{split}_{i}" for i in range(COUNTS[split]))
    for i in range(len(dataset)):
        image, label = dataset.load(i)
        np.testing.assert_array_equal(image, image_of(split, i))
        np.testing.assert_array_equal(label, np.where(label_of(i) == 11, 255, label_of(i)))


def test_trainval_is_train_then_val(root):
    dataset = camvid.load(str(root), "trainval")
    assert dataset.names == (*(f"train_{i}" for i in range(5)), *(f"val_{i}" for i in range(3)))
    np.testing.assert_array_equal(dataset.load(6)[0], image_of("val", 1))


def test_by_name_with_a_size_and_a_number(root):
    dataset = data.load("camvid", root=root, split="train", size=(3, 4), num_examples=2)
    assert len(dataset) == 2 and dataset.size == (3, 4)
    image, label = dataset.load(1)
    assert image.shape == (3, 4, 3)
    full = np.where(label_of(1) == 11, 255, label_of(1))
    np.testing.assert_array_equal(label, full[1::2, 1::2])


def test_hidden_files_are_no_images(root):
    (root / "train" / "._train_0.png").write_bytes(b"finder")
    (root / "train" / "train.txt").write_text("list")
    assert len(camvid.load(root, "train")) == 5


REAL = os.environ.get("RTSEG_CAMVID_ROOT", "")
# Share of all pixels of the train split, in the table's order, void last.
FREQUENCIES = (.169, .233, .010, .317, .045, .097, .012, .011, .059, .006, .003, .040)  # fmt: skip


@pytest.mark.skipif(
    not os.path.isdir(REAL), reason="RTSEG_CAMVID_ROOT does not name a folder with the real CamVid"
)
def test_the_real_set():
    sets = {split: camvid.load(REAL, split) for split in camvid.SPLITS}
    assert {s: len(d) for s, d in sets.items()} == {
        "train": 367, "val": 101, "test": 233, "trainval": 468,
    }  # fmt: skip
    assert sets["train"].name(0) == "0001TP_006690"
    counts = np.zeros(256, np.int64)
    for i in range(367):
        image, label = sets["train"].load(i)
        assert image.shape == (360, 480, 3)
        counts += np.bincount(label.ravel(), minlength=256)
    shares = counts / counts.sum()
    np.testing.assert_allclose([*shares[:11], shares[255]], FREQUENCIES, atol=0.0006)
    for split in ("val", "test"):
        for i in (0, len(sets[split]) - 1):
            assert sets[split].load(i)[1].shape == (360, 480)
