"""A decoded copy of a dataset in two memory-mapped files, read instead of the images: the same bytes, many times faster.

A copy is a folder that appears whole, by a rename, and never changes: images.npy uint8 [n,h,w,3], labels.npy uint8
[n,h,w], and index.json, which says what they were made from. It is used as long as that is still so, else made again.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import PIL

from rtseg_jax.base.files import absolute, locked
from rtseg_jax.base.threads import for_each
from rtseg_jax.data.spec import DataError, Dataset

FORMAT = 1  # raised when decoding, or the files of a copy, change: it is packed anew
ABANDONED = 24 * 3600.0  # seconds without a write, after which a half-written copy has no owner
ATTEMPTS = 3
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def packed(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    files: Iterable[str | os.PathLike[str]],
    arguments: Mapping[str, Any],
    num_workers: int | None = None,
) -> Dataset:
    """The dataset, read from a packed copy in `folder`; where there is none that is up to date, it is made first.

    Any number of processes may do this at once: one makes the copy, the others wait for it. Where the file system
    knows no locks each makes one, the first to be ready puts its own in place, and all read that.

    Args:
        dataset: All its examples must have one size.
        folder: Where the copies of any number of datasets lie; made if need be.
        files: Every file that the examples are read from; their sizes and times of change tell whether a copy is still
            what they hold.
        arguments: What else decides the examples; JSON's types only.
        num_workers: Loading threads; None for as many as there are CPU cores.

    Raises:
        DataError: a file is not what it should be, differs in size, or changed meanwhile. Loading raises it where the copy
            has been damaged.
        ValueError: the dataset is empty, or the disk is too small; nothing is left there then.
        NotADirectoryError: `folder` is a file.
    """
    if not len(dataset):
        raise ValueError(f"{dataset.table.name} {dataset.split} has no images to pack")
    folder = absolute(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"input.cache {folder} is a file or lies in one; give a folder"
        ) from error
    paths = [pathlib.Path(file).absolute() for file in files]
    source = {
        "made_by": {"format": FORMAT, "pillow": PIL.__version__},
        "dataset": dataset.table.name,
        "split": dataset.split,
        "arguments": json.loads(json.dumps(dict(arguments))),  # as they are read back
        "names": list(dataset.names),
        "files": _stamps(paths),
    }
    # One place for each way to load; what has changed since takes the place of what was there.
    identity = json.dumps(source["arguments"], sort_keys=True)
    place = folder / "-".join(
        (dataset.table.name, dataset.split, hashlib.sha256(identity.encode()).hexdigest()[:12])
    )
    copy = _open(dataset, place, source)
    # A rival that finds an old copy may remove a new one that has just replaced it.
    for _ in range(ATTEMPTS):
        if copy is None:
            with locked(place.with_name(f".{place.name}.lock"), wait=True):
                copy = _open(dataset, place, source)
                if copy is None:
                    _make(dataset, place, source, paths, num_workers)
                    copy = _open(dataset, place, source)
    if copy is None:
        raise DataError(f"{place}: was packed but cannot be read back; check the disk")
    return copy


def _stamps(paths: Iterable[pathlib.Path]) -> list[list[Any]]:
    """[path, bytes, time of change in ns] of each file; of one that is missing, the path alone."""
    stamps = []
    for path in paths:
        try:
            status = path.stat()
            stamps.append([str(path), status.st_size, status.st_mtime_ns])
        except OSError:  # whoever reads the file will say it better
            stamps.append([str(path)])
    return stamps


def _checksum(image: np.ndarray, label: np.ndarray) -> int:
    return zlib.crc32(label, zlib.crc32(image))


def _open(dataset: Dataset, place: pathlib.Path, source: Mapping[str, Any]) -> Dataset | None:
    """The dataset read from the copy at `place`, or None where there is no whole one that was made from `source`."""
    try:
        index = json.loads((place / "index.json").read_text())
        images = np.load(place / "images.npy", mmap_mode="r")
        labels = np.load(place / "labels.npy", mmap_mode="r")
    except (OSError, EOFError, ValueError):
        return None
    n, checksums = len(dataset), index.get("checksums", ())
    whole = len(checksums) == n == len(images) and images.shape == (*labels.shape, 3)
    if index.get("source") != source or not whole:
        return None
    checked = np.zeros(n, bool)

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = np.asarray(images[i]), np.asarray(labels[i])
        if not checked[i]:  # once in a process, so that later epochs cost nothing
            if _checksum(image, label) != checksums[i]:
                raise DataError(
                    f"{place}: the packed copy of {dataset.name(i)} is damaged; "
                    "delete the folder, and it is packed again"
                )
            checked[i] = True
        return image, label

    return dataclasses.replace(dataset, size=tuple(labels.shape[1:]), load=load)


def _make(
    dataset: Dataset,
    place: pathlib.Path,
    source: Mapping[str, Any],
    paths: list[pathlib.Path],
    num_workers: int | None,
) -> None:
    """Packs the dataset beside `place` and moves it there, unless another process was first."""
    _remove_abandoned(place)
    size = dataset.load(0)[1].shape
    needed = len(dataset) * size[0] * size[1] * 4
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise ValueError(_too_small(dataset, place, needed, f"{free / 1e9:.2f} GB are free"))
    half_made = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
    try:
        half_made.mkdir()
        checksums = _write(dataset, half_made, size, num_workers)
        changed = [a[0] for a, b in zip(source["files"], _stamps(paths), strict=True) if a != b]
        if changed:
            raise DataError(f"{changed[0]}: changed while it was read; start again")
        with (half_made / "index.json").open("w") as file:
            json.dump({"source": source, "checksums": checksums}, file)
            _sync(file)
        _move(dataset, half_made, place, source)
    except OSError as error:
        if error.errno in _FULL:
            reason = error.strerror.lower()
            raise ValueError(_too_small(dataset, place, needed, reason)) from error
        raise
    finally:
        shutil.rmtree(half_made, ignore_errors=True)


def _too_small(dataset: Dataset, place: pathlib.Path, needed: int, reason: str) -> str:
    return (
        f"{place.parent}: {dataset.table.name} {dataset.split} takes {needed / 1e9:.2f} GB packed, but "
        f"{reason}; make room, set input.cache to another disk, or to '' for none"
    )


def _write(
    dataset: Dataset, folder: pathlib.Path, size: tuple[int, int], num_workers: int | None
) -> list[int]:
    """Writes images.npy and labels.npy; returns each example's checksum."""
    n, lock = len(dataset), threading.Lock()
    with contextlib.ExitStack() as stack:
        files = []
        for name, shape in (("images.npy", (n, *size, 3)), ("labels.npy", (n, *size))):
            # Written, not mapped: where the disk is full, writing to a map kills the process.
            file = stack.enter_context((folder / name).open("wb"))
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            files.append((file, file.tell()))

        def write(i: int) -> int:
            pair = [np.ascontiguousarray(array) for array in dataset.load(i)]
            if pair[1].shape != size:
                raise DataError(
                    f"{dataset.table.name} {dataset.split} image {dataset.name(i)} is "
                    f"{pair[1].shape[0]}x{pair[1].shape[1]} pixels (h x w), the first one "
                    f"{size[0]}x{size[1]}; a packed copy holds one size: set input.size=(h, w), which "
                    "all are then resized to, or input.cache='' for none"
                )
            with lock:
                for (file, start), array in zip(files, pair, strict=True):
                    file.seek(start + i * array.nbytes)
                    file.write(array)
            return _checksum(*pair)

        title = f"packing {dataset.table.name} {dataset.split}"
        checksums = for_each(write, n, doing=title, unit="image", num_workers=num_workers)
        for file, _ in files:
            _sync(file)
    return checksums


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _move(
    dataset: Dataset, half_made: pathlib.Path, place: pathlib.Path, source: Mapping[str, Any]
) -> None:
    """Renames a finished copy to `place`, unless a good one is there by now; one that is out of date gives way."""
    while True:
        try:
            half_made.rename(place)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # not just another copy
                raise
        if _open(dataset, place, source) is not None:
            return
        # Out of the way first, then removed: no other process can find half of it.
        old = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            place.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(place: pathlib.Path) -> None:
    """Removes what killed processes left of this copy."""
    for folder in place.parent.glob(f".{place.name}-*"):
        with contextlib.suppress(OSError):
            times = [path.stat().st_mtime for path in (folder, *folder.iterdir())]
            if time.time() - max(times) > ABANDONED:
                shutil.rmtree(folder)
