"""Cityscapes (Cordts et al., 2016): the official class table and the official tree, fine or coarse annotations."""

import os
import pathlib
from typing import NamedTuple

from rtseg_jax.data import files, spec

SPLITS = {
    "fine": ("train", "val", "test", "trainval"),
    "coarse": ("train", "train_extra", "val", "trainval"),
}


class Class(NamedTuple):
    """One row of the official table.

    `id` is the value in *_labelIds.png and what the evaluation server expects; `train_id` that in
    *_labelTrainIds.png, 255 or -1 where the class takes part in neither training nor evaluation.
    """

    name: str
    id: int
    train_id: int
    category: str
    category_id: int
    has_instances: bool
    ignore_in_eval: bool
    color: tuple[int, int, int]


CLASSES = (
    Class("unlabeled", 0, 255, "void", 0, False, True, (0, 0, 0)),
    Class("ego vehicle", 1, 255, "void", 0, False, True, (0, 0, 0)),
    Class("rectification border", 2, 255, "void", 0, False, True, (0, 0, 0)),
    Class("out of roi", 3, 255, "void", 0, False, True, (0, 0, 0)),
    Class("static", 4, 255, "void", 0, False, True, (0, 0, 0)),
    Class("dynamic", 5, 255, "void", 0, False, True, (111, 74, 0)),
    Class("ground", 6, 255, "void", 0, False, True, (81, 0, 81)),
    Class("road", 7, 0, "flat", 1, False, False, (128, 64, 128)),
    Class("sidewalk", 8, 1, "flat", 1, False, False, (244, 35, 232)),
    Class("parking", 9, 255, "flat", 1, False, True, (250, 170, 160)),
    Class("rail track", 10, 255, "flat", 1, False, True, (230, 150, 140)),
    Class("building", 11, 2, "construction", 2, False, False, (70, 70, 70)),
    Class("wall", 12, 3, "construction", 2, False, False, (102, 102, 156)),
    Class("fence", 13, 4, "construction", 2, False, False, (190, 153, 153)),
    Class("guard rail", 14, 255, "construction", 2, False, True, (180, 165, 180)),
    Class("bridge", 15, 255, "construction", 2, False, True, (150, 100, 100)),
    Class("tunnel", 16, 255, "construction", 2, False, True, (150, 120, 90)),
    Class("pole", 17, 5, "object", 3, False, False, (153, 153, 153)),
    Class("polegroup", 18, 255, "object", 3, False, True, (153, 153, 153)),
    Class("traffic light", 19, 6, "object", 3, False, False, (250, 170, 30)),
    Class("traffic sign", 20, 7, "object", 3, False, False, (220, 220, 0)),
    Class("vegetation", 21, 8, "nature", 4, False, False, (107, 142, 35)),
    Class("terrain", 22, 9, "nature", 4, False, False, (152, 251, 152)),
    Class("sky", 23, 10, "sky", 5, False, False, (70, 130, 180)),
    Class("person", 24, 11, "human", 6, True, False, (220, 20, 60)),
    Class("rider", 25, 12, "human", 6, True, False, (255, 0, 0)),
    Class("car", 26, 13, "vehicle", 7, True, False, (0, 0, 142)),
    Class("truck", 27, 14, "vehicle", 7, True, False, (0, 0, 70)),
    Class("bus", 28, 15, "vehicle", 7, True, False, (0, 60, 100)),
    Class("caravan", 29, 255, "vehicle", 7, True, True, (0, 0, 90)),
    Class("trailer", 30, 255, "vehicle", 7, True, True, (0, 0, 110)),
    Class("train", 31, 16, "vehicle", 7, True, False, (0, 80, 100)),
    Class("motorcycle", 32, 17, "vehicle", 7, True, False, (0, 0, 230)),
    Class("bicycle", 33, 18, "vehicle", 7, True, False, (119, 11, 32)),
    Class("license plate", -1, -1, "vehicle", 7, False, True, (0, 0, 142)),
)

# % 256: the -1 of the license plate is 255 in a file of bytes.
LABEL_IDS = files.lookup((row.id % 256, row.train_id % 256) for row in CLASSES)
LABEL_TRAIN_IDS = files.lookup((row.train_id % 256, row.train_id % 256) for row in CLASSES)

_IMAGE = "_leftImg8bit.png"
# {ending after _gtFine or _gtCoarse: (map, hint)}. The official ids first: they are the archive's own; train ids may
# stem from another table.
_LABELS = {
    "_labelIds.png": (LABEL_IDS, "*_labelIds.png hold the official ids"),
    "_labelTrainIds.png": (
        LABEL_TRAIN_IDS,
        "*_labelTrainIds.png hold train ids; are these the official ids?",
    ),
}
_ARCHIVES = {
    "gtFine": ("gtFine_trainvaltest.zip", "leftImg8bit_trainvaltest.zip", "{train,val,test}"),
    "gtCoarse": ("gtCoarse.zip", "leftImg8bit_trainextra.zip", "{train,train_extra,val}"),
}


def _files(folder: pathlib.Path, ending: str) -> dict[str, pathlib.Path]:
    """{city/city_sequence_frame: file} of a split's files with this ending."""
    return files.files(folder, ending)


def _pairs(
    root: pathlib.Path, kind: str, split: str
) -> list[tuple[pathlib.Path, pathlib.Path, str]]:
    """(image, label, ending of the label) sorted by city and frame; `kind` is gtFine or gtCoarse."""
    image_root, label_root = root / "leftImg8bit" / split, root / kind / split
    label_archive, image_archive, splits = _ARCHIVES[kind]
    for folder in (image_root, label_root):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; Cityscapes is expected as "
                f"ROOT/leftImg8bit/{splits}/CITY/*{_IMAGE} with "
                f"ROOT/{kind}/{splits}/CITY/*_{kind}_labelIds.png or *_labelTrainIds.png; "
                "a :streets config needs no data"
            )
    images = _files(image_root, _IMAGE)
    labels = {ending: _files(label_root, f"_{kind}{ending}") for ending in _LABELS}
    if not images and not any(labels.values()):
        raise FileNotFoundError(
            f"{image_root}: the split is empty; expects CITY/*{_IMAGE} images in it"
        )
    pairs, missing = [], []
    for key, image in sorted(images.items()):
        ending = next((e for e in _LABELS if key in labels[e]), None)
        if ending is None:
            wanted = label_root / f"{key}_{kind}_labelIds.png"
            missing.append(
                f"{wanted}: the label of {image} is missing, *_labelTrainIds.png too; "
                f"unpack {label_archive} again"
            )
        else:
            pairs.append((image, labels[ending][key], ending))
    alone = {key: path for found in labels.values() for key, path in found.items()}
    missing += [
        f"{image_root / key}{_IMAGE}: the image of {alone[key]} is missing; unpack {image_archive} again"
        for key in sorted(alone.keys() - images.keys())
    ]
    files.report_missing(missing)
    return pairs


def load(root: str | os.PathLike[str], split: str, annotation: str = "") -> spec.Dataset:
    """One split of the official tree: 2975 train, 500 val, 1525 test images of 1024x2048.

    trainval is train, then val. The official test labels are blank: every pixel is ignored. The coarse annotations
    are of train, val and 19,998 further images, train_extra.

    Args:
        root: The folder with leftImg8bit and gtFine, or gtCoarse.
        split: train, val, trainval; also test of the fine and train_extra of the coarse annotations.
        annotation: "fine", the default, or "coarse".

    Raises:
        ValueError: unknown split or annotation.
        FileNotFoundError: a folder or one file of a pair is missing, or the split is empty.
    """
    annotation = spec.choose_annotation("cityscapes", annotation, SPLITS)
    name = "cityscapes" if annotation == "fine" else "cityscapes, coarse"
    spec.check_split(name, split, SPLITS[annotation])
    base = pathlib.Path(root).expanduser()
    parts = ("train", "val") if split == "trainval" else (split,)
    kind = f"gt{annotation.capitalize()}"
    pairs = [pair for part in parts for pair in _pairs(base, kind, part)]

    def load_pair(i: int) -> tuple[spec.Image3, spec.Label]:
        image, label, ending = pairs[i]
        return files.read_pair(image, label, *_LABELS[ending])

    return spec.Dataset(
        table=spec.TABLES["cityscapes"],
        split=split,
        names=tuple(image.name.removesuffix(_IMAGE) for image, _, _ in pairs),
        size=None,
        load=load_pair,
        files=tuple(path for *pair, _ in pairs for path in pair),
    )
