"""NYUDv2 (Silberman et al., 2012) with the 40 classes of Gupta et al. (2013): list files, or the labelled .mat.

What users of light-weight RefineNet have is a list per split over index PNGs, 0-39 with 255 for unlabelled; other
preparations count from 1 and leave 0 for unlabelled. The original nyu_depth_v2_labeled.mat has 894 classes; the map
to 40 of them comes with the user's classMapping40.mat.
"""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from rtseg_jax.base.extras import optional
from rtseg_jax.base.files import one_line
from rtseg_jax.data import files, spec

SPLITS = ("train", "test")
ANNOTATIONS = ("from_0", "from_1")
LISTS = {
    "train": ("train.nyu", "train.txt"),
    "test": ("test.nyu", "test.txt", "val.nyu", "val.txt"),
}
MAT, MAP_40, MAT_SPLITS = "nyu_depth_v2_labeled.mat", "classMapping40.mat", "splits.mat"
LUTS = {
    "from_0": files.lookup([*((i, i) for i in range(40)), (255, spec.IGNORE)]),
    "from_1": files.lookup(
        [*((i + 1, i) for i in range(40)), (0, spec.IGNORE), (255, spec.IGNORE)]
    ),
}
_HINTS = {
    "from_0": "labels of 1-40 with 0 for unlabelled need input.annotation=from_1",
    "from_1": "the labels must be the 40 classes, 1-40 and 0 for unlabelled",
}

# Gupta's classes, in ScanNet's colours for them.
TABLE = spec.ClassTable(
    "nyuv2",
    (
        "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
        "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow",
        "mirror", "floor mat", "clothes", "ceiling", "books", "refrigerator", "television",
        "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand", "toilet",
        "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
    ),
    (
        (174, 199, 232), (152, 223, 138), (31, 119, 180), (255, 187, 120), (188, 189, 34),
        (140, 86, 75), (255, 152, 150), (214, 39, 40), (197, 176, 213), (148, 103, 189),
        (196, 156, 148), (23, 190, 207), (178, 76, 76), (247, 182, 210), (66, 188, 102),
        (219, 219, 141), (140, 57, 197), (202, 185, 52), (51, 176, 203), (200, 54, 131),
        (92, 193, 61), (78, 71, 183), (172, 114, 82), (255, 127, 14), (91, 163, 138),
        (153, 98, 156), (140, 153, 101), (158, 218, 229), (100, 125, 154), (178, 127, 135),
        (120, 185, 128), (146, 111, 194), (44, 160, 44), (112, 128, 144), (96, 207, 209),
        (227, 119, 194), (213, 92, 176), (94, 106, 211), (82, 84, 163), (100, 85, 144),
    ),
)  # fmt: skip


def load(root: str | os.PathLike[str], split: str, annotation: str = "") -> spec.Dataset:
    """One split: 795 train, 654 test images.

    Args:
        root: The folder with train.nyu and val.nyu (or .txt; test.* wins over val.*), `image label` lines relative
            to the folder; or with nyu_depth_v2_labeled.mat, splits.mat and classMapping40.mat.
        split: train or test.
        annotation: How list files count: "from_0", the default, for labels of 0-39 and 255 for unlabelled; "from_1" for 1-40
            and 0.

    Raises:
        ValueError: unknown split or annotation; or the .mat is to be read without h5py and scipy.
        FileNotFoundError: neither lists nor the .mat are there, or a file of a list is missing.
        DataError: a list or a .mat that cannot be read.
    """
    spec.check_split("nyuv2", split, SPLITS)
    base = pathlib.Path(root).expanduser()
    found = next((base / name for name in LISTS[split] if (base / name).is_file()), None)
    if found is None and (base / MAT).is_file():
        spec.choose_annotation("nyuv2 as .mat", annotation, ())
        return _load_mat(base, split)
    if found is None:
        raise FileNotFoundError(
            f"{base / LISTS[split][0]}: no such file; NYUDv2 is expected as ROOT/train.nyu and ROOT/val.nyu "
            f"(or .txt) with 'image label' lines, or as ROOT/{MAT} with {MAT_SPLITS} and {MAP_40}; "
            "a :streets config needs no data"
        )
    annotation = spec.choose_annotation("nyuv2", annotation, ANNOTATIONS)
    pairs = files.read_list(found, base)
    names = files.unique_names(image for image, _ in pairs)
    return files.of_files(TABLE, split, names, pairs, LUTS[annotation], _HINTS[annotation])


def _mat_array(loadmat: Callable[..., Any], path: pathlib.Path, key: str) -> np.ndarray:
    """One array of a MATLAB file of version 5, flat."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; {MAT} needs {MAT_SPLITS} and {MAP_40} beside it"
        )
    try:
        return loadmat(path, variable_names=[key])[key].ravel()
    except Exception as error:  # scipy fails with anything from KeyError to NotImplementedError
        reason = one_line(error)
        raise spec.DataError(f"{path}: no array {key} in it ({reason}); copy it again") from error


def _load_mat(root: pathlib.Path, split: str) -> spec.Dataset:
    """The original file of MATLAB 7.3: images [n,3,w,h] uint8, labels [n,w,h] uint16 of 894 classes from 1 on."""
    h5py, loadmat = optional("h5py", "mat"), optional("scipy.io", "mat").loadmat
    mapping = _mat_array(loadmat, root / MAP_40, "mapClass").astype(np.int64)
    if mapping.min() < 1 or mapping.max() > TABLE.num_classes:
        raise spec.DataError(
            f"{root / MAP_40}: mapClass goes from {mapping.min()} to {mapping.max()}, not from 1 to 40"
        )
    lut = np.concatenate([[spec.IGNORE], mapping - 1]).astype(np.uint8)
    numbers = _mat_array(loadmat, root / MAT_SPLITS, f"{split}Ndxs").astype(np.int64)
    try:
        file = h5py.File(root / MAT)
        images, labels = file["images"], file["labels"]
    except (OSError, KeyError) as error:
        reason = one_line(error)
        raise spec.DataError(
            f"{root / MAT}: cannot be read ({reason}); download it again"
        ) from error
    if not 1 <= numbers.min() <= numbers.max() <= len(images):
        raise spec.DataError(
            f"{root / MAT_SPLITS}: {split}Ndxs names image {numbers.max()} of {len(images)} in {MAT}"
        )

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        at = int(numbers[i]) - 1
        try:
            image, raw = images[at].transpose(2, 1, 0), labels[at].T
        except OSError as error:
            reason, place = one_line(error), f"{root / MAT}, image {at + 1}"
            raise spec.DataError(f"{place}: corrupt ({reason}); download it again") from error
        if raw.max() >= len(lut):
            raise spec.DataError(
                f"{root / MAT}, image {at + 1}: label value {raw.max()} is not allowed; "
                f"allowed are 0-{len(lut) - 1}, the classes of {MAP_40}"
            )
        return np.ascontiguousarray(image), lut[raw]

    return spec.Dataset(
        table=TABLE,
        split=split,
        names=tuple(f"{number:06d}" for number in numbers),
        size=None,
        load=load,
        files=(root / MAT, root / MAT_SPLITS, root / MAP_40),
    )
