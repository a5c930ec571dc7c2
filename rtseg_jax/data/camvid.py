"""CamVid (Brostow, Fauqueur, Cipolla, 2009) as the SegNet tutorial has it: 360x480, 11 classes."""

import os
import pathlib

from rtseg_jax.data import spec

SPLITS = ("train", "val", "test", "trainval")
VOID = 11
LUT = spec.lookup([*((i, i) for i in range(VOID)), (VOID, spec.IGNORE)])
_HINT = "the labels must be those of the SegNet distribution, 0-10 and 11 for void"


def _pairs(root: pathlib.Path, split: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
    images, labels = root / split, root / f"{split}annot"
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; CamVid is expected as "
                "ROOT/{train,val,test}/*.png with ROOT/{train,val,test}annot/*.png; "
                "a :streets config needs no data"
            )
    image_names, label_names = (
        # ._*.png are what macOS leaves in archives.
        {p.name for p in folder.glob("*.png") if not p.name.startswith(".")}
        for folder in (images, labels)
    )
    if not image_names and not label_names:
        raise FileNotFoundError(f"{images}: the split is empty; expects *.png images in it")
    alone = sorted(image_names ^ label_names)
    if alone:
        has, lacks, what = (
            (images, labels, "label") if alone[0] in image_names else (labels, images, "image")
        )
        more = f" ({len(alone) - 1} more files are alone)" if len(alone) > 1 else ""
        raise FileNotFoundError(
            f"{lacks / alone[0]}: the {what} of {has / alone[0]} is missing{more}; "
            "copy the set again"
        )
    return [(images / name, labels / name) for name in sorted(image_names)]


def load(root: str | os.PathLike[str], split: str) -> spec.Dataset:
    """One split of the SegNet tree: 367 train, 101 val, 233 test images; trainval is train, then val.

    Args:
        root: The folder with train, trainannot, val, valannot, test, testannot.
        split: train, val, test or trainval.

    Raises:
        ValueError: unknown split.
        FileNotFoundError: a folder or one file of a pair is missing, or the split is empty.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of camvid; choose one of {', '.join(SPLITS)}")
    base = pathlib.Path(root).expanduser()
    parts = ("train", "val") if split == "trainval" else (split,)
    pairs = [pair for part in parts for pair in _pairs(base, part)]
    return spec.Dataset(
        table=spec.TABLES["camvid"],
        split=split,
        names=tuple(image.stem for image, _ in pairs),
        size=None,
        load=lambda i: spec.read_pair(*pairs[i], LUT, _HINT),
    )
