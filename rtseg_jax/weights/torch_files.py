"""Flax variables to and from PyTorch state dicts and files.

A network and its twin use the same module names, so one rule per kind of leaf is the whole table:

    Flax                                 PyTorch
    kernel  (kh, kw, in / groups, out)   weight  (out, in / groups, kh, kw)
    kernel  (kh, kw, in, out)            weight  (in, out, kh, kw)    transposed convolution
    kernel  (in, out)                    weight  (out, in)            dense layer
    scale, bias, mean, var               weight, bias, running_mean, running_var
    slope, alpha, gamma, rho             slope, alpha, gamma, rho
"""

import os
import pathlib
import pickle
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from rtseg_jax.base.extras import optional
from rtseg_jax.weights import layouts

DIFFERENCES = 12  # so many are named of a state dict that does not fit
TORCH_FILES = (".pth", ".pt", ".tar")
# HRNet's trainer, on which others build, keeps the network as "model" in one module with its losses, which have weights.
LOSSES = re.compile(r"(sem_|bd_)?loss\.")

# Nothing in a kernel's shape tells a transposed convolution (the decoders of ERFNet, ESPNet and ENet have three each); its name does.
TRANSPOSED = (r"(^|\.)up\d+(\.conv)?$", r"(^|\.)decoder\.classifier$")

_LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("params", "slope"): "slope",
    ("params", "alpha"): "alpha",
    ("params", "gamma"): "gamma",
    ("params", "rho"): "rho",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    """The leaves of a tree of dictionaries, each with its path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
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
    if ndim == 2:
        return name, (1, 0)
    if ndim != 4:
        raise ValueError(
            f"'{'/'.join(path)}' has {ndim} axes; a kernel has 4 (kh, kw, in, out), a dense layer's 2 (in, out)"
        )
    if any(re.search(pattern, module) for pattern in TRANSPOSED):
        return name, (2, 3, 0, 1)
    return name, (3, 2, 0, 1)


def named(variables: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Of each leaf, an array or a shape: its PyTorch name, the order of the Flax axes there, and its shape there."""
    for path, leaf in leaves(variables):
        name, axes = _rule(path, len(leaf.shape))
        yield name, axes, tuple(leaf.shape[axis] for axis in axes)


def names(variables: Mapping[str, Any]) -> set[str]:
    """The PyTorch names of arrays or shapes."""
    return {name for name, *_ in named(variables)}


def without_counts(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without BatchNorm's num_batches_tracked."""
    return {k: v for k, v in state.items() if k.rpartition(".")[2] != "num_batches_tracked"}


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
    for path, value in leaves(variables):
        array = np.asarray(value)
        name, axes = _rule(path, array.ndim)
        state[name] = array.transpose(axes).copy()
    return state


def from_torch(
    state: Mapping[str, Any], template: Mapping[str, Any], *, hint: str = ""
) -> dict[str, Any]:
    """Converts a PyTorch state dict to Flax variables, strictly.

    Args:
        state: Arrays or tensors by dotted name; num_batches_tracked is ignored.
        hint: Ends the message when the two do not fit.
        template: The network's variables {"params": ..., "batch_stats": ...}, as arrays or as
            shapes (jax.ShapeDtypeStruct); each result takes its leaf's shape and dtype.

    Returns:
        A tree of numpy arrays like `template`.

    Raises:
        ValueError: names that only one side has, or shapes that differ; the message lists the first.
    """
    given, wanted = without_counts(state), {}
    for path, leaf in leaves(template):
        name, axes = _rule(path, len(leaf.shape))
        wanted[name] = (path, axes, tuple(leaf.shape[axis] for axis in axes), leaf.dtype)

    lines = [f"only in the file: {name}" for name in given if name not in wanted]
    lines += [f"only in the network: {name}" for name in wanted if name not in given]
    for name, (_, _, shape, _) in wanted.items():
        if name in given and (found := tuple(np.shape(given[name]))) != shape:
            lines.append(f"shapes differ: {name} is {found} in the file, {shape} in the network")
    if lines:
        more = [f"and {len(lines) - DIFFERENCES} more"] if len(lines) > DIFFERENCES else []
        lines = lines[:DIFFERENCES] + more + ([hint] if hint else [])
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


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the state dict in a file, without its wrapping: {"state_dict": ...}, "module." or "model." before each name.

    Nothing in the file is executed: a .pth that holds more than tensors and plain values is refused.

    Args:
        path: .pth, .pt, .tar, .safetensors, or hf://OWNER/NAME/FILE.

    Raises:
        ValueError: another kind of file, or one that is refused or broken; or a package that it takes is missing.
        FileNotFoundError: no such file.
    """
    file = _fetch(str(path))
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    if file.suffix == ".safetensors":
        state = _read_safetensors(file)
    elif file.suffix in TORCH_FILES:
        state = _read_torch(file)
    else:
        known = ", ".join((*TORCH_FILES, ".safetensors"))
        raise ValueError(f"{file} is no checkpoint of PyTorch; these are {known}")
    for key in ("state_dict", "model_state", "model"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not state or not all(hasattr(value, "shape") for value in state.values()):
        raise ValueError(
            f"{file} holds no state dict, but {', '.join(map(str, state)) or 'nothing'}"
        )
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    if all(name.startswith("model.") or LOSSES.match(name) for name in state):
        named = {name.removeprefix("model."): value for name, value in state.items()}
        state = {name: value for name, value in named.items() if not LOSSES.match(name)}
    return dict(state)


def _fetch(path: str) -> pathlib.Path:
    if not path.startswith("hf://"):
        return pathlib.Path(path).expanduser()
    try:
        owner, name, file = path.removeprefix("hf://").split("/", 2)
    except ValueError:
        raise ValueError(f"'{path}' is not hf://OWNER/NAME/FILE") from None
    hub = optional("huggingface_hub", "hub")
    return pathlib.Path(hub.hf_hub_download(f"{owner}/{name}", file))


def _read_safetensors(file: pathlib.Path) -> dict[str, Any]:
    try:
        return safetensors.numpy.load_file(file)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file: {error}") from None


def _read_torch(file: pathlib.Path) -> Mapping[str, Any]:
    torch = optional("torch", "torch")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error):
            raise ValueError(
                f"{file} is refused: it holds Python objects, perhaps a whole module, and reading these could run"
                " code; where you trust it, save its weights alone: torch.save(module.state_dict(), FILE)"
            ) from None
        raise ValueError(f"{file} is refused: it is broken, or no checkpoint of PyTorch") from None
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} holds no state dict, but a {type(state).__name__}")
    return state


def our_names(state: Mapping[str, Any]) -> tuple[dict[str, Any], layouts.Layout | None]:
    """Renames a public state dict to the twin's names, and converts what is stored otherwise; None leaves it as it is."""
    layout = layouts.recognise(state.keys())
    if layout is None:
        return dict(state), None
    renamed = {layout.rename(k): layout.convert(k, value) for k, value in state.items()}
    renamed.pop(None, None)
    return renamed, layout


def load_torch_backbone(
    path: str | os.PathLike[str], template: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads the weights of a network's module "backbone" from a trunk's file or from a whole network's.

    A trunk is ResNet or MobileNetV2 of torchvision or timm, or STDC, whose ImageNet classifier is left out; of a whole
    network everything beside its backbone is.

    Args:
        path: See read_state.
        template: {"params": ..., "batch_stats": ...} of the network's shapes; those beside the backbone do not count.

    Returns:
        {"params": {"backbone": ...}, "batch_stats": {"backbone": ...}} of numpy arrays.

    Raises:
        ValueError: see read_state; or names or shapes that differ, the first of them in the message.
        FileNotFoundError: no such file.
    """
    state, layout = our_names(read_state(path))
    if layout is not None and layout.trunk:
        state = {f"backbone.{name}": value for name, value in state.items()}
    else:
        state = {name: value for name, value in state.items() if name.startswith("backbone.")}
        if not state:
            raise ValueError(f"{path} is of no layout that is known, and has no backbone.* of ours")
    trunk = {name: {"backbone": tree["backbone"]} for name, tree in template.items()}
    return from_torch(state, trunk, hint=layout.hint if layout else "")


def save_torch(variables: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the twin's state dict, which its load_state_dict takes with strict=True.

    Args:
        variables: {"params": ..., "batch_stats": ...} of arrays.
        path: .pth, .pt or .safetensors.

    Raises:
        ValueError: another kind of file, or a package that it takes is missing.
    """
    path = pathlib.Path(path)
    state = to_torch(variables)
    for name in [name for name in state if name.endswith(".running_var")]:
        state[name.removesuffix("running_var") + "num_batches_tracked"] = np.zeros((), np.int64)
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(state, path)
    elif path.suffix in (".pth", ".pt"):
        torch = optional("torch", "torch")
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    else:
        raise ValueError(f"cannot write {path}; choose .pth, .pt or .safetensors")
