"""The official table and the official tree."""

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.data import files, spec
from rtseg_jax.data.sets import cityscapes

SIZE = (4, 10)
# What the evaluation server expects for train ids 0-18.
SERVER_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
FRAMES = {
    "train": [
        "aachen/aachen_000000_000019",
        "aachen/aachen_000001_000019",
        "ulm/ulm_000000_000019",
    ],
    "val": ["munster/munster_000000_000019"],
    "test": ["berlin/berlin_000000_000019"],
}


def test_the_table():
    rows = cityscapes.CLASSES
    assert len(rows) == 35
    assert [row.id for row in rows] == [*range(34), -1]
    evaluated = sorted((r for r in rows if not r.ignore_in_eval), key=lambda r: r.train_id)
    assert [row.train_id for row in evaluated] == list(range(19))
    assert [row.id for row in evaluated] == SERVER_IDS
    assert all(row.train_id in (255, -1) for row in rows if row.ignore_in_eval)
    table = spec.TABLES["cityscapes"]
    assert table.class_names == tuple(row.name for row in evaluated)
    assert table.palette == tuple(row.color for row in evaluated)
    categories = {row.category: row.category_id for row in rows}
    assert categories == {
        "void": 0, "flat": 1, "construction": 2, "object": 3, "nature": 4, "sky": 5, "human": 6,
        "vehicle": 7,
    }  # fmt: skip


def test_the_maps():
    ids = np.full(256, files.INVALID)
    ids[:34] = 255
    ids[SERVER_IDS] = range(19)
    ids[255] = 255  # the license plate's -1 in a byte
    np.testing.assert_array_equal(cityscapes.LABEL_IDS, ids)
    train_ids = np.full(256, files.INVALID)
    train_ids[:19] = range(19)
    train_ids[255] = 255
    np.testing.assert_array_equal(cityscapes.LABEL_TRAIN_IDS, train_ids)


def ids_of(k):
    return (np.arange(40, dtype=np.uint8).reshape(SIZE) + k) % 34


def train_ids_of(k):
    position = {label_id: i for i, label_id in enumerate(SERVER_IDS)}
    return np.array([[position.get(int(v), 255) for v in row] for row in ids_of(k)], np.uint8)


@pytest.fixture
def root(tmp_path):
    for split, frames in FRAMES.items():
        for k, frame in enumerate(frames):
            image = tmp_path / "leftImg8bit" / split / f"{frame}_leftImg8bit.png"
            label = tmp_path / "gtFine" / split / f"{frame}_gtFine_labelIds.png"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*SIZE, 3), 10 * k, np.uint8)).save(image)
            Image.fromarray(ids_of(k)).save(label)
            # The archive's other files must not be taken for labels.
            ignored = label.with_name(label.name.replace("labelIds", "instanceIds"))
            Image.fromarray(ids_of(k)).save(ignored)
    return tmp_path


def test_label_ids(root):
    dataset = cityscapes.load(root, "train")
    assert dataset.names == tuple(f.split("/")[1] for f in FRAMES["train"])
    for k in range(3):
        image, label = dataset.load(k)
        assert (image == 10 * k).all() and image.shape == (*SIZE, 3)
        np.testing.assert_array_equal(label, train_ids_of(k))


def to_train_ids(root):
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        k = int(np.asarray(Image.open(path))[0, 0])
        Image.fromarray(train_ids_of(k)).save(str(path).replace("labelIds", "labelTrainIds"))


def test_label_train_ids(root):
    expected = [cityscapes.load(root, "train").load(k)[1] for k in range(3)]
    to_train_ids(root)
    for path in root.glob("gtFine/*/*/*_labelIds.png"):
        path.unlink()
    dataset = cityscapes.load(root, "train")
    for k in range(3):
        np.testing.assert_array_equal(dataset.load(k)[1], expected[k])


def test_of_both_the_official_ids_are_read(root):
    to_train_ids(root)
    for path in root.glob("gtFine/*/*/*_labelTrainIds.png"):
        path.write_bytes(b"not read")
    np.testing.assert_array_equal(cityscapes.load(root, "train").load(2)[1], train_ids_of(2))


def test_trainval_is_train_then_val(root):
    names = data.load("cityscapes", root=str(root), split="trainval").names
    assert names == tuple(f.split("/")[1] for f in FRAMES["train"] + FRAMES["val"])


def test_halved(root):
    dataset = data.load("cityscapes", root=root, split="train", size=(2, 5), num_examples=1)
    image, label = dataset.load(0)
    assert len(dataset) == 1 and image.shape == (2, 5, 3)
    np.testing.assert_array_equal(label, train_ids_of(0)[1::2, 1::2])


def test_coarse(root):
    """The same frames, and further ones, with annotations of their own."""
    for split, frames in {**FRAMES, "train_extra": ["bonn/bonn_000000_000019"]}.items():
        for k, frame in enumerate(frames):
            image = root / "leftImg8bit" / split / f"{frame}_leftImg8bit.png"
            label = root / "gtCoarse" / split / f"{frame}_gtCoarse_labelIds.png"
            for path in (image, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((*SIZE, 3), 10 * k, np.uint8)).save(image)
            Image.fromarray(ids_of(k + 7)).save(label)
    coarse = data.load("cityscapes", root=root, split="train", annotation="coarse")
    assert coarse.names == cityscapes.load(root, "train").names
    for k in range(3):
        np.testing.assert_array_equal(coarse.load(k)[1], train_ids_of(k + 7))
        np.testing.assert_array_equal(
            cityscapes.load(root, "train", "fine").load(k)[1], train_ids_of(k)
        )
    assert cityscapes.load(root, "train_extra", "coarse").names == ("bonn_000000_000019",)
    for split, annotation, name in (
        ("train_extra", "fine", "cityscapes"),
        ("test", "coarse", "cityscapes, coarse"),
    ):
        with pytest.raises(
            ValueError, match=f"unknown split '{split}' of {name}; choose one of train"
        ):
            cityscapes.load(root, split, annotation)
    (root / "gtCoarse/train_extra/bonn/bonn_000000_000019_gtCoarse_labelIds.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="_gtCoarse_labelIds.png: the label of .* gtCoarse.zip again"
    ):
        cityscapes.load(root, "train_extra", "coarse")


def test_hidden_files_are_no_images(root):
    folder = root / "leftImg8bit" / "train" / "ulm"
    (folder / "._ulm_000000_000019_leftImg8bit.png").write_bytes(b"finder")
    assert len(cityscapes.load(root, "train")) == 3
