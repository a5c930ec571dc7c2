"""A network in one .safetensors file: weights, and JSON values that say how to use them."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from rtseg_jax.base.files import written_whole

VERSION = 1
DTYPES = ("float32", "float16")


def save(
    path: pathlib.Path,
    variables: Any,
    config: Mapping[str, Any],
    *,
    dtype: str = "float32",
    **values: Any,
) -> None:
    """Writes weights, each under its path (params/backbone/.../kernel), and JSON values beside them.

    The file has its name once it was read again and found equal.

    Args:
        path: The file.
        variables: {"params", "batch_stats"} of arrays.
        config: The config of the network, as plain dictionaries.
        dtype: "float16" halves the file; what that cannot hold stays float32.
        **values: JSON values; "classes", the names of the classes, is among them.

    Raises:
        ValueError: another dtype, or the file reads back otherwise.
        OSError: it cannot be written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"a bundle has no dtype '{dtype}'; choose {' or '.join(DTYPES)}")
    plain = traverse_util.flatten_dict(jax.tree.map(np.asarray, dict(variables)), sep="/")
    arrays = {name: _stored(value, dtype) for name, value in plain.items()}
    values = {"version": VERSION, "config": config, **values}
    metadata = {name: json.dumps(value) for name, value in values.items()}
    with written_whole(path) as unchecked:
        unchecked.write_bytes(safetensors.numpy.save(arrays, metadata))
        read = traverse_util.flatten_dict(load(unchecked)[0], sep="/")
        if read.keys() != arrays.keys() or not all(
            np.array_equal(read[name], value.astype(np.float32), equal_nan=True)
            for name, value in arrays.items()
        ):
            raise ValueError(f"what was written to {path} reads back otherwise; is the disk full?")


def _stored(value: np.ndarray, dtype: str) -> np.ndarray:
    """An array in a type that keeps it finite."""
    value = np.asarray(value, np.float32, order="C")  # which 0-d arrays stay
    if dtype == "float32":
        return value
    with np.errstate(over="ignore"):
        half = value.astype(np.float16)
    return half if np.isfinite(half).all() else value


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """A .safetensors file; what reading it meets is one line."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or cut off: {error}") from None


def is_bundle(path: pathlib.Path) -> bool:
    """Whether a .safetensors file was written by save(), as far as its metadata tell.

    Raises:
        ValueError: it is no .safetensors file, or cut off.
    """
    with _opened(path) as file:
        return "config" in (file.metadata() or {})


def load(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what save() wrote: the variables as float32 numpy arrays, and the JSON values, "config" among them.

    Raises:
        ValueError: it was not written by save(), or by a newer one.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        arrays = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}
    if missing := {"config", "classes"} - metadata.keys():
        raise ValueError(
            f"{path} is no bundle, its metadata lack {' and '.join(sorted(missing))}; rtseg convert makes one of"
            " a PyTorch checkpoint"
        )
    try:
        values = {name: json.loads(text) for name, text in metadata.items()}
    except ValueError as error:
        raise ValueError(f"{path}: its metadata are no JSON ({error}); write it again") from None
    if values.get("version", VERSION) > VERSION:
        raise ValueError(
            f"{path} is a bundle of version {values['version']}, and this reads up to {VERSION}; take a newer rtseg_jax"
        )
    return traverse_util.unflatten_dict(arrays, sep="/"), values
