"""Datasets by name, and how they reach the device (`pipeline`)."""

import os

from rtseg_jax.data import camvid, cityscapes, spec, streets

TABLES = {**spec.TABLES, "streets": spec.TABLES["cityscapes"]}  # of each dataset that load knows
STREETS_SPLITS = ("train", "val", "test")


def _streets(
    split: str, size: tuple[int, int] | None, seed: int, num_examples: int | None
) -> spec.Dataset:
    if split not in STREETS_SPLITS:
        raise ValueError(
            f"unknown split {split!r} of streets; choose one of {', '.join(STREETS_SPLITS)}"
        )
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


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None,
    split: str,
    size: tuple[int, int] | None = None,
    patches: tuple[int, int, int, int] | None = None,
    seed: int = 0,
    num_examples: int | None = None,
) -> spec.Dataset:
    """One split of a dataset.

    Args:
        name: cityscapes, camvid or streets.
        root: The folder of the data; streets needs none.
        split: train, val or test; also trainval of those with files.
        size: (h, w) in pixels that streets are drawn at, and that others are resized to; None keeps
            the files' own.
        patches: (rows, columns, h, w): a grid of crops of h x w pixels instead of each image.
        seed: Which streets are drawn; the others ignore it.
        num_examples: How many streets; of the others the first so many, None for all.

    Raises:
        ValueError: an unknown name or split, an impossible size or number.
        FileNotFoundError: the files are not there.
    """
    if size is not None and min(size) < 1:
        raise ValueError(f"size {size} is impossible; expects (h, w) in pixels")
    if name == "streets":
        dataset = _streets(split, size, seed, num_examples)
        return dataset if patches is None else spec.patches(dataset, *patches)
    if name not in TABLES:
        raise ValueError(f"unknown dataset {name!r}; choose one of {', '.join(TABLES)}")
    if not root:
        raise ValueError(
            f"{name} needs the folder of its data, got root={root!r}; "
            "set it, or take a :streets config, which needs no data"
        )
    dataset = {"cityscapes": cityscapes, "camvid": camvid}[name].load(root, split)
    if num_examples is not None:
        dataset = spec.first(dataset, num_examples)
    if size is not None:
        dataset = spec.resized(dataset, size)
    return dataset if patches is None else spec.patches(dataset, *patches)
