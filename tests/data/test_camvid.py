"""The SegNet tree and the original one, generated small, and the real SegNet tree where there is one."""

import os

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.data import spec
from rtseg_jax.data.sets import camvid

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


def test_the_frames():
    names = {split: camvid.frames(split) for split in ("train", "val", "test")}
    assert {split: len(n) for split, n in names.items()} == {"train": 367, "val": 101, "test": 233}
    assert len({n for split in names.values() for n in split}) == 701
    assert names["train"][0] == "0001TP_006690" and names["val"][-1] == "0016E5_08159"
    assert "0016E5_00901" in names["train"] and "0016E5_00900" not in names["train"]
    assert names["test"][62] == "Seq05VD_f00000" and names["test"][-1] == "Seq05VD_f05100"


def test_the_32_classes():
    merged, strict = (camvid.COLORS[k] for k in ("merged", "strict"))
    assert len(camvid.CLASSES) == len(merged) == len(strict) == 32
    assert {c for c, i in merged.items() if i == 255} == {(0, 0, 0)}
    groups = {i: {row.name for row in camvid.CLASSES if row.train_id == i} for i in range(11)}
    assert groups == {
        0: {"Sky"},
        1: {"Building", "Wall", "Bridge", "Tunnel", "Archway"},
        2: {"Column_Pole", "TrafficCone"},
        3: {"Road", "LaneMkgsDriv", "LaneMkgsNonDriv"},
        4: {"Sidewalk", "ParkingBlock", "RoadShoulder"},
        5: {"Tree", "VegetationMisc"},
        6: {"SignSymbol", "Misc_Text", "TrafficLight"},
        7: {"Fence"},
        8: {"Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"},
        9: {"Pedestrian", "Child", "CartLuggagePram", "Animal"},
        10: {"Bicyclist", "MotorcycleScooter"},
    }
    kept = {row.name for row in camvid.CLASSES if strict[row.color] != 255}
    assert kept == {
        "Sky", "Building", "Column_Pole", "Road", "Sidewalk", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian",
        "Bicyclist",
    }  # fmt: skip
    assert all(strict[c] in (255, merged[c]) for c in merged)


LAYOUTS = {
    "official": (lambda i: "701_StillsRaw_full", lambda i: "LabeledApproved_full"),
    "repackaged": (
        lambda i: ("train", "val", "test")[i % 3],
        lambda i: ("train_labels", "val_labels", "test_labels")[i % 3],
    ),
}
# All 32 colours, and the frame's number in the image.
COLOR_LABEL = np.array([row.color for row in camvid.CLASSES], np.uint8).reshape(4, 8, 3)


@pytest.fixture(params=LAYOUTS)
def original(request, tmp_path):
    images, labels = LAYOUTS[request.param]
    every = [name for split in ("train", "val", "test") for name in camvid.frames(split)]
    written = {}
    for i, name in enumerate(every):
        for folder, ending, content in (
            (images(i), ".png", np.full((4, 8, 3), i % 251, np.uint8)),
            (labels(i), "_L.png", COLOR_LABEL),
        ):
            path = tmp_path / folder / f"{name}{ending}"
            path.parent.mkdir(exist_ok=True)
            key = content.tobytes()
            if key in written:
                os.link(written[key], path)
            else:
                Image.fromarray(content).save(path)
                written[key] = path
    return tmp_path


def test_the_original_form(original):
    """The split is the published one, in whatever folders the frames lie."""
    start = 0
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        dataset = data.load("camvid", root=original, split=split)
        assert len(dataset) == count and set(dataset.names) == set(camvid.frames(split))
        at = dataset.names.index(camvid.frames(split)[5])
        image, label = dataset.load(at)
        assert (image == (start + 5) % 251).all()
        expected = [row.train_id for row in camvid.CLASSES]
        np.testing.assert_array_equal(label.ravel(), expected)
        start += count
    strict = data.load("camvid", root=original, split="val", annotation="strict").load(0)[1]
    expected = [row.train_id if row.strict else 255 for row in camvid.CLASSES]
    np.testing.assert_array_equal(strict.ravel(), expected)
    assert len(data.load("camvid", root=original, split="trainval")) == 468


def test_original_labels_are_checked(original):
    (path,) = original.rglob("0016E5_07959_L.png")
    dataset = camvid.load(original, "val")
    path.unlink()
    wrong = COLOR_LABEL.copy()
    wrong[0, :2] = (1, 2, 3), (4, 5, 6)
    Image.fromarray(wrong).save(path)
    with pytest.raises(
        spec.DataError,
        match=r"colours \(1, 2, 3\), \(4, 5, 6\) on 2 pixels are no classes; the labels must be the original",
    ):
        dataset.load(0)
    Image.fromarray(wrong[..., 0]).save(path)
    with pytest.raises(spec.DataError, match="a label of mode L with 8 bits holds no colours"):
        dataset.load(0)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match="0016E5_07959_L.png: the label of .* is missing; unp"
    ):
        camvid.load(original, "val")
    (image,) = original.rglob("0016E5_07959.png")
    image.unlink()
    with pytest.raises(
        FileNotFoundError, match="0016E5_07959.png: the frame is missing, its label too"
    ):
        camvid.load(original, "trainval")


def test_merged_labels_cannot_be_strict(root):
    with pytest.raises(ValueError, match="holds the SegNet distribution, whose classes are merged"):
        camvid.load(root, "train", "strict")
    with pytest.raises(
        ValueError, match="^unknown annotation 'fine' of camvid; choose one of merged, s"
    ):
        camvid.load(root, "train", "fine")


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
    for split in ("train", "val", "test"):
        assert sorted(camvid.frames(split)) == list(sets[split].names)
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
