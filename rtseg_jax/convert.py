"""Flax variables to and from a PyTorch state dict, in numpy alone.

Both networks use the same module names, so one rule per kind of leaf is the whole table:

    Flax                                 PyTorch
    kernel  (kh, kw, in / groups, out)   weight  (out, in / groups, kh, kw)
    kernel  (kh, kw, in, out)            weight  (in, out, kh, kw)    transposed convolution
    scale, bias, mean, var               weight, bias, running_mean, running_var
    slope, alpha                         slope, alpha
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Nothing in a kernel's shape tells a transposed convolution (ERFNet's decoder has three); its name does.
TRANSPOSED = (r"(^|\.)up\d+\.conv$", r"(^|\.)decoder\.classifier$")

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("params", "slope"): "slope",
    ("params", "alpha"): "alpha",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _rule(path: tuple[str, ...], ndim: int) -> tuple[str, tuple[int, ...]]:
    """The PyTorch name of a Flax leaf, and the order of the Flax axes in the PyTorch array."""
    collection, *modules, leaf = path
    if (collection, leaf) not in _LEAVES:
        known = ", ".join(f"{c}/.../{name}" for c, name in _LEAVES)
        raise ValueError(f"no rule converts '{'/'.join(path)}'; those known are {known}")
    module = ".".join(modules)
    name = ".".join([*modules, _LEAVES[collection, leaf]])
    if leaf != "kernel":
        return name, tuple(range(ndim))
    if ndim != 4:
        raise ValueError(f"'{'/'.join(path)}' has {ndim} axes; a kernel has 4 (kh, kw, in, out)")
    if any(re.search(pattern, module) for pattern in TRANSPOSED):
        return name, (2, 3, 0, 1)
    return name, (3, 2, 0, 1)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts Flax variables to the state dict of the PyTorch network of the same name.

    Args:
        variables: {"params": ..., "batch_stats": ...} of arrays.

    Returns:
        Contiguous arrays by dotted name, without BatchNorm's num_batches_tracked.

    Raises:
        ValueError: a leaf that no rule covers.
    """
    state = {}
    for path, value in _leaves(variables):
        array = np.asarray(value)
        name, axes = _rule(path, array.ndim)
        state[name] = array.transpose(axes).copy()
    return state


def from_torch(state: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a PyTorch state dict to Flax variables, strictly.

    Args:
        state: Arrays or tensors by dotted name; num_batches_tracked is ignored.
        template: The network's variables {"params": ..., "batch_stats": ...}, as arrays or as
            shapes (jax.ShapeDtypeStruct); each result takes its leaf's shape and dtype.

    Returns:
        A tree of numpy arrays like `template`.

    Raises:
        ValueError: names that only one side has, or shapes that differ; the message lists all.
    """
    given = {k: v for k, v in state.items() if k.rpartition(".")[2] != "num_batches_tracked"}
    wanted = {}
    for path, leaf in _leaves(template):
        name, axes = _rule(path, len(leaf.shape))
        wanted[name] = (path, axes, tuple(leaf.shape[axis] for axis in axes), leaf.dtype)

    lines = [f"only in the file: {name}" for name in given if name not in wanted]
    lines += [f"only in the network: {name}" for name in wanted if name not in given]
    for name, (_, _, shape, _) in wanted.items():
        if name in given and (found := tuple(np.shape(given[name]))) != shape:
            lines.append(f"shapes differ: {name} is {found} in the file, {shape} in the network")
    if lines:
        raise ValueError("\n  ".join(["the state dict does not fit the network:", *lines]))

    variables: dict[str, Any] = {collection: {} for collection in template}
    for name, (path, axes, _, dtype) in wanted.items():
        node = variables
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = _to_numpy(given[name]).transpose(np.argsort(axes)).astype(dtype, order="C")
    return variables


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        # numpy has no bfloat16; every floating type of a tensor fits into a double.
        value = value.detach().cpu().double()
    return np.asarray(value)
