"""A network in one .safetensors file."""

import json
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from rtseg_jax.base.extras import optional


def save(
    path: pathlib.Path, variables: Any, config: ml_collections.ConfigDict, **facts: Any
) -> None:
    """Writes weights as safetensors, each under its path (params/backbone/.../kernel), and the config beside them.

    Args:
        path: Of the file.
        variables: {"params", "batch_stats"} of arrays.
        config: Of the run.
        **facts: JSON values for the file's metadata; "classes", the names of the classes, is among them.

    Raises:
        ValueError: the package safetensors is missing.
    """
    arrays = traverse_util.flatten_dict(jax.tree.map(np.asarray, dict(variables)), sep="/")
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    metadata["config"] = json.dumps(config.to_dict())
    path.write_bytes(optional("safetensors.numpy", "safetensors").save(arrays, metadata))
