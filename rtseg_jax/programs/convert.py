"""Converts weights between Flax and PyTorch, public checkpoints among them.

    rtseg convert erfnet_pretrained.pth erfnet.safetensors --variant=erfnet --num_classes=20
    rtseg convert runs/camvid eacnet.pth

IN is .pth, .pt, .tar, .safetensors, .msgpack, hf://OWNER/NAME/FILE, or the folder of a run; OUT is .pth, .pt or
.safetensors (the names of the twin in torch_ref/), or .msgpack (Flax variables, as flax.serialization writes them).
"""

import os
import pathlib

import numpy as np

from rtseg_jax.programs.shared.command_line import Flags, Given, Program
from rtseg_jax.weights.torch_files import leaves, load_torch, save_torch


def convert(
    source: str,
    target: str,
    *,
    variant: str | None,
    num_classes: int | None,
    checkpoint: str = "best",
) -> None:
    """Reads any of the program's files and writes any of them.

    Args:
        source: See the module.
        target: See the module.
        variant: Name of the network in models.VARIANTS; a run knows its own.
        num_classes: How many classes the network has in `source`; a run knows its own.
        checkpoint: Which weights of a run: best, latest or a step.

    Raises:
        ValueError: see load_torch; or variant and num_classes are missing; or a target that is a folder.
        FileNotFoundError: no such file, or no folder for the target.
    """
    from flax import serialization

    from rtseg_jax import models
    from rtseg_jax.inference import network as networks
    from rtseg_jax.models import flops

    source, target = map(os.path.expanduser, (source, target))
    if os.path.isdir(target):
        raise ValueError(f"{target} is a folder; give a file, as {os.path.join(target, 'net.pth')}")
    if not os.path.isdir(folder := os.path.dirname(target) or "."):
        raise FileNotFoundError(f"{folder}: no such folder; create it first")
    if pathlib.Path(source).is_dir():
        config, _, variables, at = networks.load_run(pathlib.Path(source).absolute(), checkpoint)
        described = f"{config.model.name}, step {at}"
    elif source.endswith(".msgpack"):
        variables = serialization.msgpack_restore(pathlib.Path(source).read_bytes())
        described = source
    elif variant is None or num_classes is None:
        raise ValueError(f"give --variant and --num_classes of the network in {source}")
    else:
        shapes = flops.variable_shapes(models.create(variant, num_classes=num_classes))
        variables = load_torch(source, shapes)
        described = f"{variant}, {num_classes} classes"
    if target.endswith(".msgpack"):
        pathlib.Path(target).write_bytes(serialization.to_bytes(variables))
    else:
        save_torch(variables, target)
    count = sum(np.size(leaf) for _, leaf in leaves({"params": variables["params"]}))
    print(f"{described}: {count:,} parameters written to {target}")


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.string("variant", "Name of the network in IN; a run knows its own.")
    flags.count("num_classes", "Classes of the network in IN; a run knows its own.", None, low=1)
    flags.string("checkpoint", "Of a run: best, latest, a step.", "best")


def main(given: Given, files: list[str]) -> None:
    """Converts one file."""
    if len(files) != 2:
        raise ValueError(f"give IN and OUT, not {len(files)} arguments")
    convert(*files, **vars(given))


PROGRAM = Program(__doc__, define, main, takes="the file to read and the file to write")
