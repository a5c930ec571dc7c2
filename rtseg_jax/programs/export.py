"""A trained run as one file that does its whole job without this project.

    rtseg export --workdir=RUN --format=stablehlo --output=camvid.stablehlo --size=360x480
    rtseg export --workdir=RUN --format=onnx --output=camvid.onnx --size=360x480 --batch=dynamic
    rtseg export --workdir=RUN --format=bundle --output=camvid.safetensors --dtype=float16

stablehlo and onnx take uint8 RGB frames [b, h, w, 3] and give a uint8 class map [b, h, w]: normalisation, the network
with its weights, upsampling and argmax are inside. What was written is read again and compared with the network before
the file has its name. bundle holds weights, classes and how to use them, which every program takes as --network; float16
halves it.

The network sees the frames at their size, --size, or at the config's eval.size, to which the program resizes them. The
resizing of a run's data to input.size is not inside: where --size is another, or the frames are such as predict would
shrink or pad, a line tells what predict shows the network instead.
"""

import dataclasses
import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rtseg_jax import models
from rtseg_jax.base import config as settings
from rtseg_jax.base.extras import optional
from rtseg_jax.base.files import written_whole
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import program as infer
from rtseg_jax.models import flops
from rtseg_jax.programs.shared import command_line
from rtseg_jax.programs.shared.command_line import Flags, Given, Program
from rtseg_jax.programs.shared.frames import smooth_frames
from rtseg_jax.programs.shared.process import prepare_process
from rtseg_jax.weights import bundle, torch_files

FORMATS = ("stablehlo", "onnx", "bundle")

DTYPES = {
    "stablehlo": ("float32", "bfloat16", "float16"),
    "onnx": ("float32", "float16"),
    "bundle": bundle.DTYPES,
}

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# How far below the best score the score of a chosen class may lie, over the largest score.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}


def stablehlo(
    program: Callable[[jax.Array], jax.Array],
    size: tuple[int, int],
    batch: int | None,
    platforms: Sequence[str],
) -> bytes:
    """Serialises a program for jax.export.deserialize.

    Args:
        program: The function that program() of inference makes.
        size: (h, w) of the frames in pixels.
        batch: Frames per call; None leaves it to the call.
        platforms: Where it can run, of PLATFORMS.
    """
    frames = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    shape = jax.ShapeDtypeStruct((frames, *size, 3), jnp.uint8)
    return bytes(jax.export.export(jax.jit(program), platforms=platforms)(shape).serialize())


def onnx(
    path: pathlib.Path,
    variant: str,
    variables: Any,
    frame: tuple[int, int],
    batch: int | None,
    metadata: dict[str, str],
    *,
    num_classes: int,
    options: Mapping[str, Any],
    dtype: str = "float32",
    **seen: Any,
) -> None:
    """Writes a network's PyTorch twin between uint8 frames and class map as an ONNX model.

    Args:
        path: The file.
        variant: The network's name, of models.VARIANTS.
        variables: Its {"params", "batch_stats"}.
        frame: (h, w) of the frames in pixels.
        batch: Frames per call; None leaves it to the call.
        metadata: Texts that the file carries.
        num_classes: How many classes the network tells apart.
        options: The options that the network was made with.
        dtype: The type that is computed in.
        **seen: mean, std, channels, size and align_corners of torch_ref.Program.

    Raises:
        ValueError: a package is missing, or the twin has no such option.
    """
    optional("onnx", "onnx")
    optional("onnxscript", "onnx")
    torch = optional("torch", "onnx")
    from rtseg_jax import torch_ref

    twin = torch_ref.create(variant, num_classes, **options)
    model = models.create(variant, num_classes=num_classes, **options)
    whole, frozen = (
        torch_files.names(flops.variable_shapes(model, train=train)) for train in (True, False)
    )
    torch_ref.load(twin, torch_files.to_torch(variables), without=whole - frozen)
    program = torch_ref.Program(twin, dtype=getattr(torch, dtype), **seen)
    # An example of one frame would be taken for a promise of one.
    frames = torch.zeros((2 if batch is None else batch, *frame, 3), dtype=torch.uint8)
    dynamic = None if batch is not None else {"frames": {0: torch.export.Dim("batch")}}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of what torch and onnxscript will change in themselves
        exported = torch.onnx.export(
            program,
            (frames,),
            input_names=["frames"],
            output_names=["classes"],
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
        )
        exported.model.metadata_props.update(metadata)
        exported.save(path, external_data=False)


def _run_stablehlo(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray] | None:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    device = jax.local_devices()[0]
    here = device.platform
    if here == "gpu":
        here = "rocm" if "rocm" in device.client.platform_version else "cuda"
    if here not in exported.platforms:
        return None
    return lambda frames: np.asarray(exported.call(frames))


def _run_onnx(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    runtime = optional("onnxruntime", "onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda frames: session.run(None, {"frames": frames})[0]


def compare(
    run: Callable[[np.ndarray], np.ndarray],
    logits: Callable[[np.ndarray], Any],
    size: tuple[int, int],
    batches: Iterable[int],
    tolerance: float,
) -> float:
    """Holds a program against the network on smooth frames.

    A pixel may have another class where two scores are all but equal, and nowhere else.

    Args:
        run: Frames [b, h, w, 3] -> class map [b, h, w].
        logits: One frame [1, h, w, 3] -> float32 [1, h, w, k].
        size: (h, w) of the frames in pixels.
        batches: Frames per call, one call each.
        tolerance: How far below a pixel's best score that of its class may lie, over the largest score.

    Returns:
        The share of pixels with the network's own class.

    Raises:
        ValueError: another shape or type than a class map's, or a class beyond the tolerance.
    """
    equal = pixels = 0
    for batch in batches:
        frames = smooth_frames(batch, size)
        classes = run(frames)
        if classes.shape != frames.shape[:3] or classes.dtype != np.uint8:
            raise ValueError(
                f"the exported program gives {classes.dtype} {classes.shape} for frames {frames.shape}; "
                f"uint8 {frames.shape[:3]} was to come"
            )
        for i, chosen in enumerate(classes):
            scores = np.asarray(logits(frames[i : i + 1]))[0]
            if chosen.max() >= scores.shape[-1]:
                raise ValueError(
                    f"the exported program gives class {chosen.max()} of {scores.shape[-1]}"
                )
            of_chosen = np.take_along_axis(scores, chosen[..., None].astype(np.int64), -1)[..., 0]
            below = (scores.max(-1) - of_chosen).max() / np.abs(scores).max()
            agree = chosen == scores.argmax(-1)
            if below > tolerance:
                raise ValueError(
                    f"the exported program is not the network: {100 * agree.mean():.2f} % of pixels agree, and a "
                    f"score is {below:.2g} of the largest below the best, {tolerance:g} allowed; nothing is "
                    "written, choose another --format or --dtype=float32"
                )
            equal, pixels = equal + int(agree.sum()), pixels + agree.size
    return equal / pixels


def _frame_size(config: ml_collections.ConfigDict, place: pathlib.Path | str) -> tuple[int, int]:
    size = config.input.size or config.eval.size
    if size is None:
        raise ValueError(
            f"{place} is for frames of any size; give that of the file's as --size=HEIGHTxWIDTH"
        )
    return tuple(size)


def _told_of_sizes(
    config: ml_collections.ConfigDict, size: tuple[int, int], seen: tuple[int, int]
) -> str:
    """A line on what the network sees of frames of `size`; one more where predict shows it another size of them."""
    view = networks.view(config)
    of_program, of_predict, frames = (
        "x".join(map(str, pair)) for pair in (seen, view.seen(view.given(size)), size)
    )
    line = f"takes frames of {frames}; the network sees {of_program}"
    if of_predict == of_program:
        return line
    return (
        f"{line}\npredict shows it {of_predict} of such a frame, and with --size={of_program} --multiple=0 what "
        f"this file does; export --size={of_predict} is for frames of that size"
    )


def export_run(
    place: pathlib.Path | str,
    *,
    format: str,
    output: pathlib.Path,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    dtype: str = "float32",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    which: str = "best",
    **facts: str,
) -> None:
    """Writes a network as one file, after comparing it with the network.

    Args:
        place: The network; see inference.network.load.
        format: "stablehlo", "onnx" or "bundle"; the last has of the following but `output`, `dtype` and `which`.
        output: The file. It appears once it is whole and checked; one of that name is replaced.
        size: (h, w) of the frames in pixels; None takes the size that the config gives for them. The network sees
            them at the config's eval.size, or as they are where it names none.
        batch: Frames per call; None leaves it to the call.
        dtype: The type that is computed in.
        platforms: Platforms that a StableHLO file can run on.
        which: "best", "latest" or a step.
        **facts: What else a bundle is to tell of the network, such as its licence.

    Raises:
        FileNotFoundError: no run, or no checkpoint in it.
        ValueError: a format, dtype, platform or step that there is not; a missing package; an output that cannot be
            a file; or what is exported differs from the network.
    """
    _check_request(format, output, dtype, platforms)
    network = networks.load(place, which)
    output.parent.mkdir(parents=True, exist_ok=True)
    if format == "bundle":
        dataclasses.replace(network, facts={**network.facts, **facts}).save(output, dtype)
        lines = ["read again and found equal"]
    else:
        size = _frame_size(network.config, place) if size is None else size
        lines = _write_program(network, format, output, size, batch, dtype, platforms)
    print(f"{network.name}, step {network.step}, {len(network.class_names)} classes, as {format}")
    print("\n".join((*lines, f"written: {output} ({output.stat().st_size / 1e6:.1f} MB)")))


def _check_request(format: str, output: pathlib.Path, dtype: str, platforms: Sequence[str]) -> None:
    if format not in FORMATS:
        raise ValueError(f"unknown format '{format}'; choose one of {', '.join(FORMATS)}")
    if dtype not in DTYPES[format]:
        raise ValueError(f"{format} takes no dtype '{dtype}'; choose {' or '.join(DTYPES[format])}")
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise ValueError(f"unknown platform '{unknown[0]}'; choose from {', '.join(PLATFORMS)}")
    if output.is_dir():
        ending = "safetensors" if format == "bundle" else format
        raise ValueError(f"{output} is a folder; give a file, as {output / f'net.{ending}'}")
    if format == "bundle" and output.suffix != ".safetensors":
        raise ValueError(f"--output={output}: a bundle's name ends in .safetensors")
    command_line.check_folder(output.parent, "output")


def _write_program(
    network: networks.Network,
    format: str,
    output: pathlib.Path,
    size: tuple[int, int],
    batch: int | None,
    dtype: str,
    platforms: Sequence[str],
) -> list[str]:
    """Writes a network as StableHLO or ONNX and compares it; lines on what it sees, and on what was found."""
    config, model, variables = network.config, network.model, network.variables
    shown = {**settings.shown(config), "size": config.eval.size}
    seen = config.eval.size or size
    with written_whole(output) as unchecked:
        if format == "onnx":
            classes = list(network.class_names)
            told = {"step": network.step, "classes": classes, "seen": seen}
            onnx(
                unchecked,
                network.name,
                variables,
                size,
                batch,
                {"model": network.name, **{k: json.dumps(v) for k, v in told.items()}},
                num_classes=len(classes),
                options=config.model.options.to_dict(),
                dtype=dtype,
                **shown,
            )
            run = _run_onnx(unchecked)
        else:
            program = infer.program(model, variables, dtype=jnp.dtype(dtype), **shown)
            unchecked.write_bytes(stablehlo(program, size, batch, platforms))
            run = _run_stablehlo(unchecked)
        found = f"not compared: this machine has none of {', '.join(platforms)}"
        if run is not None:
            logits = infer.freeze(model, variables, (1, *size), output="logits", **shown)
            batches = (1, 3) if batch is None else (batch,)
            share = compare(run, logits, size, batches, TOLERANCE[dtype])
            found = (
                f"read again and compared with the network in float32 at {size[0]}x{size[1]}, "
                f"batch {' and '.join(map(str, batches))}: {100 * share:.3f} % of pixels agree"
            )
    return [_told_of_sizes(config, size, seen), found]


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError(f"--batch={text} is neither a number of frames nor 'dynamic'")
    return int(text)


def _options(given: Given) -> dict[str, Any]:
    """The arguments of export_run that a user's flags stand for; None is a flag that was not given."""
    facts = ("command", "licence")
    unused = {
        "bundle": ("size", "batch", "platforms"),
        "onnx": ("platforms", *facts),
        "stablehlo": facts,
    }
    for name in unused[given.format]:
        if getattr(given, name) is not None:
            raise ValueError(f"--format={given.format} has no --{name}; leave it out")
    if given.size == networks.OWN:
        raise ValueError(
            "--size=own: a file is for frames of one size; give HEIGHTxWIDTH in pixels"
        )
    read = {"size": tuple, "batch": _batch, "dtype": str, "platforms": tuple}
    read |= dict.fromkeys(facts, str)
    named = {name: getattr(given, name) for name in read}
    return {name: read[name](value) for name, value in named.items() if value is not None}


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.network()
    flags.choice("format", "Kind of file.", "stablehlo", FORMATS)
    flags.path("output", "The file.", required=True)
    flags.size("of the frames; the config's if it gives one.")
    flags.string("batch", "Frames per call (1), or 'dynamic'.")
    flags.string("dtype", "The type that is computed in (float32).")
    flags.string("command", "What trained the network, for a bundle to tell.")
    flags.string("licence", "Under what terms it may be used, for a bundle to tell.")
    flags.words("platforms", f"Platforms of stablehlo (cpu,cuda,tpu), from {', '.join(PLATFORMS)}.")


def main(given: Given, _: list[str]) -> None:
    """Writes the file."""
    options = _options(given)
    prepare_process()
    export_run(
        given.network,
        output=given.output,
        format=given.format,
        which=given.checkpoint,
        **options,
    )


PROGRAM = Program(__doc__, define, main)
