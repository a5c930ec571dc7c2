"""CamVid (Brostow, Fauqueur, Cipolla, 2009), 11 classes, in both forms that exist.

The SegNet tutorial has it as index PNGs of 360x480, the University of Cambridge as colour labels of 32 classes at
720x960. Both are split alike: 367 frames to train, 101 to validate, 233 to test.
"""

import os
import pathlib
from typing import NamedTuple

from rtseg_jax.data import files, spec

SPLITS = ("train", "val", "test", "trainval")
ANNOTATIONS = ("merged", "strict")
VOID = 11
LUT = files.lookup([*((i, i) for i in range(VOID)), (VOID, spec.IGNORE)])
HINT = "the labels must be those of the SegNet distribution, 0-10 and 11 for void"


class Class(NamedTuple):
    """One of the 32 original classes, and the train id it is merged into; 255 for none.

    `strict` is true for the one class of a merged group that gives it its name.
    """

    name: str
    color: spec.Color
    train_id: int
    strict: bool


CLASSES = (
    Class("Animal", (64, 128, 64), 9, False),
    Class("Archway", (192, 0, 128), 1, False),
    Class("Bicyclist", (0, 128, 192), 10, True),
    Class("Bridge", (0, 128, 64), 1, False),
    Class("Building", (128, 0, 0), 1, True),
    Class("Car", (64, 0, 128), 8, True),
    Class("CartLuggagePram", (64, 0, 192), 9, False),
    Class("Child", (192, 128, 64), 9, False),
    Class("Column_Pole", (192, 192, 128), 2, True),
    Class("Fence", (64, 64, 128), 7, True),
    Class("LaneMkgsDriv", (128, 0, 192), 3, False),
    Class("LaneMkgsNonDriv", (192, 0, 64), 3, False),
    Class("Misc_Text", (128, 128, 64), 6, False),
    Class("MotorcycleScooter", (192, 0, 192), 10, False),
    Class("OtherMoving", (128, 64, 64), 8, False),
    Class("ParkingBlock", (64, 192, 128), 4, False),
    Class("Pedestrian", (64, 64, 0), 9, True),
    Class("Road", (128, 64, 128), 3, True),
    Class("RoadShoulder", (128, 128, 192), 4, False),
    Class("Sidewalk", (0, 0, 192), 4, True),
    Class("SignSymbol", (192, 128, 128), 6, True),
    Class("Sky", (128, 128, 128), 0, True),
    Class("SUVPickupTruck", (64, 128, 192), 8, False),
    Class("TrafficCone", (0, 0, 64), 2, False),
    Class("TrafficLight", (0, 64, 64), 6, False),
    Class("Train", (192, 64, 128), 8, False),
    Class("Tree", (128, 128, 0), 5, True),
    Class("Truck_Bus", (192, 128, 192), 8, False),
    Class("Tunnel", (64, 0, 64), 1, False),
    Class("VegetationMisc", (192, 192, 0), 5, False),
    Class("Void", (0, 0, 0), spec.IGNORE, False),
    Class("Wall", (64, 192, 0), 1, False),
)
COLORS = {
    "merged": {row.color: row.train_id for row in CLASSES},
    "strict": {row.color: row.train_id if row.strict else spec.IGNORE for row in CLASSES},
}

# Runs of frames: name with its number, first, last, step. One frame is a thirtieth of a second late.
FRAMES = {
    "train": (
        ("0001TP_{:06d}", 6690, 8520, 30),
        ("0006R0_f{:05d}", 930, 3930, 30),
        ("0016E5_{:05d}", 390, 870, 30),
        ("0016E5_{:05d}", 901, 901, 30),
        ("0016E5_{:05d}", 930, 2400, 30),
        ("0016E5_{:05d}", 4350, 7920, 30),
        ("0016E5_{:05d}", 8190, 8640, 30),
    ),
    "val": (("0016E5_{:05d}", 7959, 8159, 2),),
    "test": (("0001TP_{:06d}", 8550, 10380, 30), ("Seq05VD_f{:05d}", 0, 5100, 30)),
}
# Of the original form: (folders with images, folders with labels). The second is a common repackaging in
# another split, which does not count here.
_ORIGINALS = (
    (("701_StillsRaw_full",), ("LabeledApproved_full",)),
    (("train", "val", "test"), ("train_labels", "val_labels", "test_labels")),
)


def frames(split: str) -> tuple[str, ...]:
    """The names of a split's frames."""
    return tuple(
        name.format(number)
        for name, first, last, step in FRAMES[split]
        for number in range(first, last + 1, step)
    )


def _segnet_pairs(root: pathlib.Path, split: str) -> list[tuple[str, pathlib.Path, pathlib.Path]]:
    images, labels = root / split, root / f"{split}annot"
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; CamVid is expected as "
                "ROOT/{train,val,test}/*.png with ROOT/{train,val,test}annot/*.png, or as "
                "ROOT/701_StillsRaw_full/*.png with ROOT/LabeledApproved_full/*_L.png; "
                "a :streets config needs no data"
            )
    found = files.folder_pairs(images, labels, ".png", advice="copy the set again")
    if not found:
        raise FileNotFoundError(f"{images}: the split is empty; expects *.png images in it")
    return found


def _original_pairs(
    root: pathlib.Path, folders: tuple[tuple[str, ...], tuple[str, ...]], split: str
) -> list[tuple[str, pathlib.Path, pathlib.Path]]:
    """The split's pairs, in whichever of the folders they lie."""
    found: list[dict[str, pathlib.Path]] = []
    for kind, ending in zip(folders, (".png", "_L.png"), strict=True):
        paths = {}
        for folder in kind:
            paths.update(files.files(root / folder, ending))
        found.append({name: paths[name] for name in frames(split) if name in paths})
    images, labels = found
    files.report_missing(
        [
            f"{root / folders[0][0] / name}.png: the frame is missing, its label too; "
            "unpack 701_StillsRaw_full.zip and LabeledApproved_full.zip again"
            for name in frames(split)
            if name not in images and name not in labels
        ]
    )
    return files.pairs(
        images,
        labels,
        image_at=lambda name: root / folders[0][0] / f"{name}.png",
        label_at=lambda name: root / folders[1][0] / f"{name}_L.png",
        advice="unpack it again",
    )


def load(root: str | os.PathLike[str], split: str, annotation: str = "") -> spec.Dataset:
    """One split: 367 train, 101 val, 233 test images; trainval is train, then val.

    Args:
        root: The folder with train, trainannot, val, valannot, test, testannot (360x480, index PNGs), or with
            701_StillsRaw_full and LabeledApproved_full (720x960, colours).
        split: train, val, test or trainval.
        annotation: How 32 classes become 11, in the original form: "merged", the default, groups all but void as
            the SegNet distribution does; "strict" keeps the eponymous ones and ignores the others.

    Raises:
        ValueError: unknown split or annotation, or "strict" of labels that are merged already.
        FileNotFoundError: a folder or one file of a pair is missing, or the split is empty.
    """
    spec.check_split("camvid", split, SPLITS)
    annotation = spec.choose_annotation("camvid", annotation, ANNOTATIONS)
    base = pathlib.Path(root).expanduser()
    parts = ("train", "val") if split == "trainval" else (split,)
    original = next((f for f in _ORIGINALS if (base / f[1][0]).is_dir()), None)
    if original is None:
        if annotation == "strict":
            raise ValueError(
                f"{base} holds the SegNet distribution, whose classes are merged; annotation='strict' needs "
                "the original colour labels, ROOT/LabeledApproved_full/*_L.png"
            )
        pairs = [pair for part in parts for pair in _segnet_pairs(base, part)]
    else:
        pairs = [pair for part in parts for pair in _original_pairs(base, original, part)]
    lut, hint = (
        (LUT, HINT)
        if original is None
        else (COLORS[annotation], "the labels must be the original *_L.png, in 32 colours")
    )
    names, found = tuple(name for name, _, _ in pairs), [pair for _, *pair in pairs]
    return files.of_files(spec.TABLES["camvid"], split, names, found, lut, hint)
