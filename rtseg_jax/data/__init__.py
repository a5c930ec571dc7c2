"""Datasets by name, and how they reach the device (`pipeline`)."""

import dataclasses
import os
from collections.abc import Callable

from rtseg_jax.base.files import absolute
from rtseg_jax.data import spec
from rtseg_jax.data.cache import packed
from rtseg_jax.data.sets import ade20k, camvid, cityscapes, folder, nyuv2, streets
from rtseg_jax.data.sets import tfds as prepared

# Of each dataset that load knows, but `folder`, which brings its own.
TABLES = {
    **spec.TABLES,
    "nyuv2": nyuv2.TABLE,
    "ade20k": ade20k.TABLE,
    "streets": dataclasses.replace(spec.TABLES["cityscapes"], name="streets"),
}
NAMES = (*TABLES, "folder")
SOURCES = ("files", "tfds")
STREETS_SPLITS = ("train", "val", "test")


def _streets(
    split: str, size: tuple[int, int] | None, seed: int, num_examples: int | None
) -> spec.Dataset:
    spec.check_split("streets", split, STREETS_SPLITS)
    if size is None or num_examples is None or num_examples < 1:
        raise ValueError(
            f"streets draws its images: it needs size=(h, w) and num_examples >= 1, "
            f"got size={size} and num_examples={num_examples}"
        )
    # Injective, so that no two splits of any two seeds share a scene.
    split_seed = len(STREETS_SPLITS) * seed + STREETS_SPLITS.index(split)
    return spec.Dataset(
        table=TABLES["streets"],
        split=split,
        names=tuple(f"streets_{split}_{i:06d}" for i in range(num_examples)),
        size=size,
        load=lambda i: streets.render(split_seed, i, size),
    )


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"unknown dataset {name!r}; choose one of {', '.join(NAMES)}")


def class_table(
    name: str, *, root: str | os.PathLike[str] | None = None, classes: str = ""
) -> spec.ClassTable:
    """The classes of a dataset, without its images.

    Args:
        name: Name of the data set, as in `load`.
        root: Where a folder has its classes file.
        classes: Another classes file of a folder, as in `load`.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: a folder's classes file is not there.
    """
    _check_name(name)
    return folder.class_table(root or "", classes) if name == "folder" else TABLES[name]


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None,
    split: str,
    source: str = "files",
    annotation: str = "",
    classes: str = "",
    label_map: folder.LabelMap = (),
    ignore: int = spec.IGNORE,
    size: tuple[int, int] | None = None,
    patches: tuple[int, int, int, int] | None = None,
    canvas: tuple[int, int] | None = None,
    cache: str = "",
    seed: int = 0,
    num_examples: int | None = None,
    tolerate: Callable[[spec.Dataset], spec.Dataset] | None = None,
) -> spec.Dataset:
    """One split of a dataset.

    Args:
        name: cityscapes, camvid, nyuv2, ade20k, streets, or folder for data of your own.
        root: The folder of the data; streets needs none. Of source "tfds", the data_dir; "" for TensorFlow
            Datasets' default.
        split: train, val, test, trainval: those that the dataset has.
        source: "files", or "tfds" for cityscapes and camvid as TensorFlow Datasets has prepared them: the same
            examples, see `prepared.load`.
        annotation: Which labels, or how they are read: cityscapes "fine" or "coarse", camvid "merged" or "strict",
            nyuv2 "from_0" or "from_1", folder "ids" or "colors"; "" for the first.
        classes: The classes file of a folder, if it is not ROOT/classes.txt or .json.
        label_map: For a folder: (raw value, class or 255), ...; () for labels that hold the classes' numbers.
        ignore: For a folder: the raw value of pixels that do not count.
        size: (h, w) in pixels that streets are drawn at, and that others are resized to; None keeps
            the files' own.
        patches: (rows, columns, h, w): a grid of crops of h x w pixels instead of each image.
        canvas: (h, w) in pixels: images of any size on canvases of one, to train on; see `spec.on_canvas`.
        cache: Folder for a packed copy, which is read instead of the files; "" for none. See cache.packed.
        seed: Which streets are drawn; the others ignore it.
        num_examples: How many streets; of the others the first so many, None for all.
        tolerate: What is to become of whole images, before they are cut or packed: `spec.tolerant`. None for nothing.

    Raises:
        ValueError: an unknown name, split, source or annotation, an impossible size or number.
        FileNotFoundError: the files are not there.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"size {size} is impossible; expects (h, w) in pixels")
    if size is not None and canvas is not None:
        raise ValueError(
            f"size {size} makes all images one size already; leave out canvas {canvas}"
        )
    _check_name(name)
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; choose one of {', '.join(SOURCES)}")
    if name == "streets" and source == "files":
        spec.choose_annotation(name, annotation, ())
        dataset = _streets(split, size, seed, num_examples)
    elif not root and source == "files":
        raise ValueError(
            f"{name} needs the folder of its data, got root={root!r}; "
            "set it, or take a :streets config, which needs no data"
        )
    else:
        dataset = _from_disk(name, root, split, source, annotation, classes, label_map, ignore)
        if num_examples is not None:
            dataset = spec.first(dataset, num_examples)
        if size is not None:
            dataset = spec.resized(dataset, size)

    if tolerate is not None:
        dataset = tolerate(dataset)
    arguments = {
        **{"name": name, "source": source, "annotation": annotation, "classes": classes},
        **{"root": str(absolute(root)) if root else "", "label_map": label_map, "ignore": ignore},
        **{"size": size, "num_examples": num_examples},
        **({"seed": seed} if name == "streets" else {}),
    }
    if canvas is not None:
        # Images of many sizes can be packed on their canvas alone.
        if patches is not None:
            dataset = spec.patches(dataset, *patches)
        dataset = spec.on_canvas(dataset, canvas)
        arguments |= {"patches": patches, "canvas": canvas}
    if cache:
        dataset = packed(dataset, cache, files=dataset.files, arguments=arguments)
    if canvas is None and patches is not None:  # after packing: they overlap
        dataset = spec.patches(dataset, *patches)
    return dataset


def _from_disk(
    name: str,
    root: str | os.PathLike[str] | None,
    split: str,
    source: str,
    annotation: str,
    classes: str,
    label_map: folder.LabelMap,
    ignore: int,
) -> spec.Dataset:
    if name == "folder" and source == "files":
        return folder.load(
            root, split, annotation, classes=classes, label_map=label_map, ignore=ignore
        )
    if name != "folder" and (classes or label_map or ignore != spec.IGNORE):
        raise ValueError(
            f"classes, label_map and ignore are for dataset 'folder', not for {name}, whose classes are known"
        )
    if source == "tfds":
        return prepared.load(name, root, split, annotation)
    if name == "ade20k":
        spec.choose_annotation(name, annotation, ())
        return ade20k.load(root, split)
    readers = {"cityscapes": cityscapes, "camvid": camvid, "nyuv2": nyuv2}
    return readers[name].load(root, split, annotation)
