"""A trained network as it is used: read from a run's folder, with what it sees of a frame of any size."""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from rtseg_jax import data, models
from rtseg_jax.base import config as settings
from rtseg_jax.base.extras import optional
from rtseg_jax.data import spec
from rtseg_jax.data.sets import folder
from rtseg_jax.data.spec import ClassTable, Dataset, Image3, Label
from rtseg_jax.inference import program as infer
from rtseg_jax.weights import checkpoint

Pair = tuple[int, int]


OWN = "own"  # as a size: each frame's own


MAX_PIXELS = 1024 * 2048  # a frame of Cityscapes


MIN_SIDE = 32  # the coarsest stride of the networks


def load_run(workdir: pathlib.Path, which: str = "best") -> tuple[ConfigDict, Any, Any, int]:
    """Reads a finished or running run: its config, network, variables and the step they are from.

    Args:
        workdir: Of the run.
        which: "best" (by mIoU on the evaluation split), "latest", or a step.

    Raises:
        FileNotFoundError: no run, or no checkpoint in it.
        ValueError: a step that is not kept.
    """
    config = settings.read(workdir)
    if not (workdir / checkpoint.FOLDER).is_dir():
        raise FileNotFoundError(
            f"{workdir} holds no {checkpoint.FOLDER}/; train with that workdir first"
        )
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        latest, steps = manager.latest_step(), manager.all_steps()
        if latest is None:
            raise FileNotFoundError(f"{workdir / checkpoint.FOLDER} holds no checkpoint yet")
        named = {"best": checkpoint.best_or_latest(manager), "latest": latest}
        at = named.get(which, int(which) if which.isdigit() else None)
        if at not in steps:
            raise ValueError(
                f"no checkpoint '{which}' in {workdir}; choose best, latest or one of {sorted(steps)}"
            )
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        variables = checkpoint.restore_variables(manager, at, sharding)
    model = models.create(
        config.model.name,
        num_classes=class_table(workdir, config).num_classes,
        **settings.model_options(config),
    )
    return config, model, variables, at


def class_table(workdir: pathlib.Path, config: ConfigDict) -> ClassTable:
    """The classes of a run: its own list, or that of its data set for a run of before there was one."""
    path = workdir / "classes.json"
    if path.is_file():
        return folder.read_classes(path)
    return data.class_table(config.input.dataset)


def check_classes(workdir: pathlib.Path, config: ConfigDict, dataset: Dataset) -> None:
    """Refuses data whose classes are not those that a run's network was trained with, number by number.

    Raises:
        ValueError: they are not; the message names the first that differs.
    """
    ours, theirs = class_table(workdir, config).class_names, dataset.table.class_names
    for number, (wanted, found) in enumerate(itertools.zip_longest(ours, theirs)):
        if wanted != found:
            wanted, found = ("missing" if n is None else f"'{n}'" for n in (wanted, found))
            raise ValueError(
                f"class {number} is {found} in the data and {wanted} in the run; give the data the list in "
                f"{workdir / 'classes.json'}, in its order, or train with theirs"
            )


@dataclasses.dataclass(frozen=True)
class View:
    """What a run's network sees of frames of any size.

    Attributes:
        resized: (h, w) that a frame is brought to before the network's program, as the run's data were: by Pillow's
            antialiased filter. None leaves it as it is.
        size: (h, w) that the program resizes it to, bilinear; None as `seen` says.
        multiple: Before the program it is padded to multiples of so many pixels; 1 for no padding.
        max_pixels: The program shrinks frames of more that neither size is named for.
    """

    resized: Pair | None = None
    size: Pair | None = None
    multiple: int = 1
    max_pixels: int = MAX_PIXELS

    def given(self, frame: Pair) -> Pair:
        """(h, w) in which a frame of (h, w) is given to the program; each of them is compiled for."""
        h, w = self.resized or frame
        return h + -h % self.multiple, w + -w % self.multiple

    def seen(self, given: Pair) -> Pair:
        """(h, w) that the network sees of what the program is given."""
        if self.size is not None:
            return self.size
        if self.resized is not None:
            return given
        shrink = min(1.0, math.sqrt(self.max_pixels / math.prod(given)))
        h, w = (max(MIN_SIDE, round(shrink * side)) for side in given)
        return h, w


def view(
    config: ConfigDict,
    size: Pair | str | None = None,
    multiple: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> View:
    """How frames come to a run's network.

    Args:
        config: Of the run.
        size: (h, w) that it sees; OWN for the frames' own; None as the run was evaluated.
        multiple: Pads to multiples of so many pixels, 0 or 1 never; None as the run was evaluated.
        max_pixels: Larger frames are shrunk where no size is named.
    """
    named = config.eval.size if size is None else size
    return View(
        resized=config.input.size if size is None else None,
        size=None if named == OWN else named,
        multiple=max(1, config.eval.get("multiple", 0) if multiple is None else multiple),
        max_pixels=max_pixels,
    )


def classifier(
    model: Any,
    variables: Any,
    *,
    seen: Callable[[Pair], Pair | None],
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    programs: int | None = None,
    **options: Any,
) -> Callable[[np.ndarray], jax.Array]:
    """A function from uint8 frames [b, h, w, 3] to uint8 class maps [b, h, w] by frozen networks.

    Args:
        model: Of models.create.
        variables: {"params", "batch_stats"}.
        seen: (h, w) of frames -> (h, w) that the network sees at scale 1, or None for the frames' own.
        scales: Factors of that size; probabilities are averaged over them.
        flip: Averages over the mirrored frames too.
        programs: How many compiled programs are kept, the latest used; None for all. There is one for each shape of
            frames and each scale.
        **options: mean, std and dtype of infer.program().
    """
    single = scales == (1.0,) and not flip
    output = "classes" if single else "logits"

    @functools.lru_cache(maxsize=programs)
    def frozen(shape: tuple[int, int, int], scale: float) -> infer.Frozen:
        size = seen(shape[1:])
        if scale != 1.0:
            size = tuple(max(1, round(scale * side)) for side in size or shape[1:])
        return infer.freeze(model, variables, shape, size=size, output=output, **options)

    @jax.jit
    def add(total, logits):
        return total + jax.nn.softmax(logits)

    @jax.jit
    def add_mirrored(total, logits):
        return total + jax.nn.softmax(logits[:, :, ::-1])

    @jax.jit
    def most_probable(total):
        return jnp.argmax(total, axis=-1).astype(jnp.uint8)

    def classify(frames):
        shape = frames.shape[:3]
        if single:
            return frozen(shape, 1.0)(frames)
        total = np.float32(0)
        for scale in scales:
            total = add(total, frozen(shape, scale)(frames))
            if flip:
                mirrored = np.ascontiguousarray(frames[:, :, ::-1])
                total = add_mirrored(total, frozen(shape, scale)(mirrored))
        return most_probable(total)

    return classify


def load_bundle(
    path: str | os.PathLike[str],
) -> tuple[ml_collections.ConfigDict, nn.Module, dict[str, Any]]:
    """Reads what save() wrote: the config, the network, and its variables as numpy arrays.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it was not written by save(); or the package safetensors is missing.
    """
    safetensors = optional("safetensors", "safetensors")
    if not pathlib.Path(path).is_file():
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
    config = settings.from_json(metadata["config"])
    model = models.create(
        config.model.name,
        num_classes=len(json.loads(metadata["classes"])),
        **settings.model_options(config),
    )
    return config, model, traverse_util.unflatten_dict(arrays, sep="/")


Pair = tuple[int, int]


def frame_classifier(
    workdir: pathlib.Path,
    *,
    which: str = "best",
    size: Pair | str | None = None,
    max_pixels: int = MAX_PIXELS,
    multiple: int | None = None,
    dtype: str = "float32",
) -> tuple[Callable[[Image3], Label], ClassTable]:
    """A run's network as a function from one frame to its class map, and the classes.

    Args:
        workdir: Of the run.
        which: "best", "latest" or a step.
        size: (h, w) that the network sees; "own" for the frames' own; None as the run was evaluated.
        max_pixels: Larger frames are shrunk for the network, where no size is named.
        multiple: Pads to multiples of so many pixels, 0 or 1 never; None as the run was evaluated.
        dtype: Of the computation.

    Raises:
        FileNotFoundError: no run or no checkpoint.
        ValueError: a step that is not kept.
    """
    config, model, variables, at = load_run(workdir, which)
    sees = view(config, size, multiple, max_pixels)
    classify = classifier(
        model,
        variables,
        seen=sees.seen,
        programs=1,
        mean=config.augment.mean,
        std=config.augment.std,
        dtype=jnp.dtype(dtype),
    )
    shown = f"frames of up to {max_pixels} pixels"
    if named := sees.size or sees.resized:
        shown = "{}x{}".format(*sees.seen(sees.given(named)))
    print(f"{config.model.name}, step {at}: sees {shown}, computes in {dtype}")

    def classes(frame: Image3) -> Label:
        size = frame.shape[:2]
        h, w = sees.resized or size
        resized = spec.resize_image(frame, (h, w))
        bottom, right = np.subtract(sees.given(size), (h, w))
        padded = np.pad(resized, ((0, bottom), (0, right), (0, 0)), mode="edge")
        ids = np.asarray(classify(padded[None]))[0, :h, :w]
        return spec.resize_label(ids, size)

    return classes, class_table(workdir, config)
