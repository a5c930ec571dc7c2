"""A network in one .safetensors file: weights, and JSON values that say how to use them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from rtseg_jax.base.extras import optional


def save(path: pathlib.Path, variables: Any, config: Mapping[str, Any], **facts: Any) -> None:
    """Writes weights as safetensors, each under its path (params/backbone/.../kernel), and the config beside them.

    Args:
        path: The file.
        variables: {"params", "batch_stats"} of arrays.
        config: The config that the network was trained by, as plain dictionaries.
        **facts: JSON values for the file's metadata; "classes", the names of the classes, is among them.

    Raises:
        ValueError: the package safetensors is missing.
    """
    arrays = traverse_util.flatten_dict(jax.tree.map(np.asarray, dict(variables)), sep="/")
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    metadata["config"] = json.dumps(config)
    path.write_bytes(optional("safetensors.numpy", "safetensors").save(arrays, metadata))


def load(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what save() wrote: the variables as numpy arrays, and the JSON values, "config" among them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it was not written by save(); or the package safetensors is missing.
    """
    safetensors = optional("safetensors", "safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None
    if not {"config", "classes"} <= metadata.keys():
        raise ValueError(
            f"{path} holds no config; this reads what --format=safetensors writes, and convert what others do"
        )
    try:
        facts = {name: json.loads(text) for name, text in metadata.items()}
    except ValueError as error:
        raise ValueError(f"{path}: its metadata are no JSON ({error}); write it again") from None
    return traverse_util.unflatten_dict(arrays, sep="/"), facts
