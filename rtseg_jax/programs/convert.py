"""Makes one file of a network: public PyTorch checkpoints become bundles, and any network a PyTorch checkpoint.

    rtseg convert erfnet_pretrained.pth erfnet.safetensors
    rtseg predict --network=erfnet.safetensors --output=out photo.jpg
    rtseg convert runs/camvid eacnet.pth

IN is a public checkpoint (.pth, .pt, .tar, .safetensors or hf://OWNER/NAME/FILE), a run's folder, a bundle, or the name of
a shipped network. OUT is .safetensors, a bundle; or .pth or .pt, the state dict of the network's twin in torch_ref/.

What the file is of, and how its authors show it images, is recognised by its names: ERFNet, DABNet, EACNet, Fast-SCNN
(Tramac), BiSeNetV2, DDRNet-23-slim, PIDNet-S, STDC-Seg, CGNet, ESPNet and ENet, in their authors' form. The bundle computes
what their code computes, and holds all that using it takes.
"""

import os
import pathlib
from typing import Any

from rtseg_jax.programs.shared.command_line import Flags, Given, Program


def convert(source: str, target: str, *, checkpoint: str = "best", **given: Any) -> None:
    """Reads any network and writes it as one file.

    Args:
        source: See the module.
        target: See the module.
        checkpoint: Which weights of a run: best, latest or a step.
        **given: What a PyTorch file does not tell, or is to be otherwise; see inference.network.of_public.

    Raises:
        ValueError: see inference.network.load; or a target that is a folder or no such file.
        FileNotFoundError: no such file, or no folder for the target.
    """
    from rtseg_jax.inference import network as networks
    from rtseg_jax.models import flops
    from rtseg_jax.weights import torch_files

    path = pathlib.Path(os.path.expanduser(target))
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file, as {path / 'net.safetensors'}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder; create it first")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"cannot write {path}; choose .safetensors (a bundle), .pth or .pt")
    network = networks.load(source, checkpoint, **given)
    if path.suffix == ".safetensors":
        network.save(path)
    else:
        torch_files.save_torch(network.variables, path)
    count = flops.count_parameters(network.variables["params"])
    layout = network.facts.get("layout")
    print(
        f"{network.name}{f', step {network.step}' if network.step else ''}, {len(network.class_names)} classes"
        f"{f' ({layout})' if layout else ''}: {count:,} parameters written to {path}"
    )
    for line in network.described():
        print(line)


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.string("variant", "Name of the network in a PyTorch file, where its names do not tell.")
    flags.count("num_classes", "Its classes, where the file does not tell.", None, low=1)
    flags.string(
        "classes", "List of its classes, as of data of your own; known data sets' if not given."
    )
    flags.words(
        "mean", "R,G,B in units of [0, 255] that it was trained with; its authors' if not given."
    )
    flags.words("std", "R,G,B; its authors' if not given.")
    flags.string("channels", "Order in which it wants them, rgb or bgr; its authors' if not given.")
    flags.size("that it sees, or 'own'; its authors' if not given.")
    flags.string("checkpoint", "Of a run: best, latest, a step.", "best")


def _triple(name: str, words: list[str] | None) -> tuple[float, ...] | None:
    if words is None:
        return None
    try:
        values = tuple(map(float, words))
    except ValueError:
        values = ()
    if len(values) != 3 or (name == "std" and min(values) <= 0):
        above = " above 0" * (name == "std")
        raise ValueError(
            f"--{name}={','.join(words)} is impossible; give three numbers{above}, as R,G,B"
        )
    return values


def main(given: Given, files: list[str]) -> None:
    """Converts one file."""
    if len(files) != 2:
        raise ValueError(f"give IN and OUT, not {len(files)} arguments")
    options = vars(given) | {name: _triple(name, getattr(given, name)) for name in ("mean", "std")}
    if options["channels"] not in (None, "rgb", "bgr"):
        raise ValueError(f"--channels={given.channels} is impossible; choose rgb or bgr")
    convert(*files, **options)


PROGRAM = Program(__doc__, define, main, takes="the file to read and the file to write")
