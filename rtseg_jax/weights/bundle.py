"""A network in one .safetensors file."""

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
        path: Of the file.
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
