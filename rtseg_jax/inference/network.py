"""A trained network as one object: a run's, a bundle, one that is shipped or public; used on frames of any size."""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from rtseg_jax import data, models
from rtseg_jax.base import config as settings
from rtseg_jax.base.files import absolute
from rtseg_jax.base.sizes import OWN, Pair
from rtseg_jax.data import files, spec
from rtseg_jax.data.sets import folder
from rtseg_jax.data.spec import ClassTable, Dataset
from rtseg_jax.inference import pictures, public
from rtseg_jax.inference import program as infer
from rtseg_jax.models import flops
from rtseg_jax.weights import bundle, checkpoint, torch_files

MAX_PIXELS = 1024 * 2048  # a frame of Cityscapes
MIN_SIDE = 32  # the coarsest stride of the networks


def class_table(workdir: pathlib.Path, config: ConfigDict) -> ClassTable:
    """The classes of a run: its own list, or that of its data set for a run of before there was one."""
    path = workdir / "classes.json"
    if path.is_file():
        return folder.read_classes(path)
    return data.class_table(config.input.dataset)


def check_classes(table: ClassTable, dataset: Dataset) -> None:
    """Refuses data whose classes are not those of a network, number by number; it may have a last one, void, besides.

    Raises:
        ValueError: they are not; the message names the first that differs.
    """
    ours, theirs = table.class_names, dataset.table.class_names
    if len(ours) == len(theirs) + 1 and ours[-1] == "void":
        ours = ours[:-1]
    for number, (wanted, found) in enumerate(itertools.zip_longest(ours, theirs)):
        if wanted != found:
            wanted, found = ("missing" if n is None else f"'{n}'" for n in (wanted, found))
            raise ValueError(
                f"class {number} is {found} in the data and {wanted} in the network; give the data the network's"
                f" list, in its order ({', '.join(ours)}), or train with theirs"
            )


@dataclasses.dataclass(frozen=True)
class View:
    """What a run's network sees of frames of any size.

    Attributes:
        resized: (h, w) that a frame is brought to before the network's program, as the run's data were: by Pillow's
            antialiased filter. None leaves it as it is.
        size: (h, w) that the program resizes it to, bilinear; None as `seen` says.
        multiple: Before the program it is padded to multiples of so many pixels; 1 for no padding.
        max_pixels: The program shrinks frames of more that neither size is named for; of more than four times as many,
            Pillow's filter does so first.
    """

    resized: Pair | None = None
    size: Pair | None = None
    multiple: int = 1
    max_pixels: int = MAX_PIXELS

    def __str__(self) -> str:
        """What it says of itself: "512x1024", or "frames of up to 2097152 pixels"."""
        if named := self.size or self.resized:
            return "{}x{}".format(*self.seen(self.given(named)))
        return f"frames of up to {self.max_pixels} pixels"

    def given(self, frame: Pair) -> Pair:
        """(h, w) in which a frame of (h, w) is given to the program; each of them is compiled for."""
        h, w = self.brought(frame)
        return h + -h % self.multiple, w + -w % self.multiple

    def brought(self, frame: Pair) -> Pair:
        """(h, w) that a frame of (h, w) is brought to by Pillow's filter, before the program and its padding."""
        if self.resized or self.size or math.prod(frame) <= 4 * self.max_pixels:
            return self.resized or frame
        return self._shrunk(frame, 4 * self.max_pixels)

    @staticmethod
    def _shrunk(frame: Pair, pixels: int) -> Pair:
        shrink = min(1.0, math.sqrt(pixels / math.prod(frame)))
        h, w = (max(MIN_SIDE, round(shrink * side)) for side in frame)
        return h, w

    def seen(self, given: Pair) -> Pair:
        """(h, w) that the network sees of what the program is given."""
        if self.size is not None:
            return self.size
        if self.resized is not None:
            return given
        return self._shrunk(given, self.max_pixels)


def view(
    config: ConfigDict,
    size: Pair | str | None = None,
    multiple: int | None = None,
    max_pixels: int | None = None,
) -> View:
    """How frames come to a run's network.

    Args:
        config: The run's config.
        size: (h, w) that it sees; OWN for the frames' own; None as the run was evaluated.
        multiple: Pads to multiples of so many pixels, 0 or 1 never; None as the run was evaluated.
        max_pixels: Larger frames are shrunk where no size is named; None as the config says.
    """
    named = config.eval.size if size is None else size
    return View(
        resized=config.input.size if size is None else None,
        size=None if named == OWN else named,
        multiple=max(1, config.eval.get("multiple", 0) if multiple is None else multiple),
        max_pixels=max_pixels or config.eval.get("max_pixels", MAX_PIXELS),
    )


def classifier(
    model: Any,
    variables: Any,
    *,
    seen: Callable[[Pair], Pair | None],
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    programs: int | None = None,
    told: Callable[[tuple[int, int, int]], None] = lambda shape: None,
    **options: Any,
) -> Callable[[np.ndarray], jax.Array]:
    """A function from uint8 frames [b, h, w, 3] to uint8 class maps [b, h, w] by frozen networks.

    Args:
        model: The network, as models.create makes it.
        variables: {"params", "batch_stats"}.
        seen: (h, w) of frames -> (h, w) that the network sees at scale 1, or None for the frames' own.
        scales: Factors of that size; probabilities are averaged over them.
        flip: Averages over the mirrored frames too.
        programs: How many compiled programs are kept, the latest used; None for all. There is one for each shape of
            frames and each scale.
        told: Called with (b, h, w) of the frames that a program is about to be compiled for.
        **options: settings.shown() of a config, and dtype of infer.program().
    """
    single = scales == (1.0,) and not flip
    output = "classes" if single else "logits"

    @functools.lru_cache(maxsize=programs)
    def frozen(shape: tuple[int, int, int], scale: float) -> infer.Frozen:
        told(shape)
        size = seen(shape[1:])
        if scale != 1.0:
            size = tuple(max(1, round(scale * side)) for side in size or shape[1:])
        return infer.freeze(model, variables, shape, size=size, output=output, **options)

    @jax.jit
    def add(total, logits):
        return total + jax.nn.softmax(logits)

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
                total = add(total, frozen(shape, scale)(mirrored)[:, :, ::-1])
        return most_probable(total)

    return classify


PLACES = (("input", "root"), ("input", "cache"), ("init_from", "network"), ("init_from", "file"))
KEPT = 4  # programs that a network keeps compiled, the latest used


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A trained network, and all that using it takes.

    Attributes:
        model: The Flax module.
        variables: Its parameters and running statistics, {"params", "batch_stats"}.
        table: The names and colours of its classes, in the order of its logits.
        config: The config that it was trained by; from it come the normalisation and what evaluation showed it.
        step: The step that the weights are from.
        sees: What it sees of a frame of any size.
        dtype: The type that it computes in, "float32" or "bfloat16".
        facts: What else is known: where it comes from, its scores, its licence.
        quiet: Whether it says nothing, on stderr, when it compiles for frames of a new size.
    """

    model: nn.Module
    variables: dict[str, Any]
    table: ClassTable
    config: ConfigDict
    step: int
    sees: View
    dtype: str = "float32"
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quiet: bool = False

    @property
    def name(self) -> str:
        """The network's name in models.VARIANTS."""
        return self.config.model.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of its classes."""
        return self.table.class_names

    def described(self) -> list[str]:
        """Lines on how it is shown images, and what else is known of it."""
        shown = settings.shown(self.config)
        mean, std = (", ".join(f"{v:g}" for v in shown[k]) for k in ("mean", "std"))
        aligned = ", corners aligned" if shown["align_corners"] else ""
        lines = [
            f"sees {self.sees}, {shown['channels'].upper()}, mean ({mean}), std ({std}) of 0 to 255{aligned}"
        ]
        if scores := self.facts.get("scores"):
            lines.append(
                ", ".join(f"{k} {100 * v:.2f}" for k, v in scores.items() if v is not None)
            )
        if licence := self.facts.get("licence"):
            lines.append(f"licence: {licence}")
        return lines

    def seeing(
        self,
        size: Pair | str | None = None,
        *,
        multiple: int | None = None,
        max_pixels: int | None = None,
        dtype: str | None = None,
        quiet: bool = False,
    ) -> "Network":
        """The same network, shown frames otherwise: arguments as in view(), and attributes of its own."""
        sees = view(self.config, size, multiple, max_pixels)
        return dataclasses.replace(self, sees=sees, dtype=dtype or self.dtype, quiet=quiet)

    def _tell(self, shape: tuple[int, int, int]) -> None:
        if not self.quiet:
            what = "x".join(map(str, shape))
            print(
                f"{self.name} is compiled for frames of {what}, once", file=sys.stderr, flush=True
            )

    @functools.cached_property
    def _classify(self) -> Callable[[np.ndarray], jax.Array]:
        return classifier(
            self.model,
            self.variables,
            seen=self.sees.seen,
            programs=KEPT,
            told=self._tell,
            **settings.shown(self.config),
            dtype=jnp.dtype(self.dtype),
        )

    def __call__(self, image: Any) -> np.ndarray:
        """The class of each pixel, as uint8; the first call with frames of a new size compiles.

        Args:
            image: An RGB image, uint8 [h, w, 3]; several of one size, [b, h, w, 3]; a PIL image; or a path.

        Returns:
            [h, w], or [b, h, w].

        Raises:
            ValueError: it is none of these.
        """
        frames = as_frames(image)
        size = frames.shape[-3:-1]
        h, w = self.sees.brought(size)
        bottom, right = np.subtract(self.sees.given(size), (h, w))
        resized = [spec.resize_image(f, (h, w)) for f in frames.reshape(-1, *frames.shape[-3:])]
        padded = np.pad(resized, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge")
        ids = np.asarray(self._classify(padded))[:, :h, :w]
        maps = np.stack([spec.resize_label(one, size) for one in ids])
        return maps.reshape(frames.shape[:-1])

    def overlay(self, image: Any) -> Image.Image:
        """One image with the classes' colours laid over it, above a legend of those that occur."""
        frame = as_frames(image)
        if frame.ndim != 3:
            raise ValueError(f"overlay() takes one image [h, w, 3], not {frame.shape}")
        ids = self(frame)
        laid = pictures.overlay(frame, ids, self.table)
        shown = pictures.occurring(self.table, ids)
        return Image.fromarray(pictures.with_legend(laid, self.table, shown))

    def save(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Writes a bundle, which load() reads: weights, config, classes and colours in one .safetensors file.

        Args:
            path: The file, which has its name once it was read again and found equal.
            dtype: "float16" halves it.

        Places on this machine, which the config of a run names, are left out.
        """
        config = self.config.to_dict()
        for part, key in PLACES:
            if key in config.get(part, {}):
                config[part][key] = ""
        bundle.save(
            pathlib.Path(path),
            self.variables,
            config,
            dtype=dtype,
            model=self.name,
            step=self.step,
            **classes_of(self.table),
            facts=dict(self.facts),
        )


def classes_of(table: ClassTable) -> dict[str, Any]:
    """The names and colours of classes, as a bundle has them."""
    palette = [list(color) for color in table.palette]
    return {"data": table.name, "classes": list(table.class_names), "palette": palette}


def as_frames(image: Any) -> np.ndarray:
    """An image, or several, as uint8 [..., h, w, 3]; see Network.__call__.

    Raises:
        ValueError: it is none of what is taken.
        DataError: a file that cannot be read.
    """
    if isinstance(image, (str, os.PathLike)):
        return files.read_frame(absolute(image))
    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    frames = np.asarray(image)
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-1] != 3:
        raise ValueError(
            f"an image is {frames.dtype} {frames.shape}; give uint8 [h, w, 3] or [b, h, w, 3] in RGB order, a PIL"
            " image or a path"
        )
    return frames


SHIPPED = pathlib.Path(bundle.__file__).parent / "shipped"  # bundles that come with the package


def shipped() -> dict[str, pathlib.Path]:
    """The networks that come with the package: name -> file."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}


def load(place: str | os.PathLike[str], checkpoint: str = "best", **given: Any) -> Network:
    """Reads a trained network.

    Args:
        place: A run's folder; a bundle, which Network.save(), `rtseg export` and `rtseg convert` write; the name of a
            network that comes with the package (see shipped()); or a public PyTorch checkpoint (see inference.public).
        checkpoint: Which of a run's: "best" (by mIoU on the evaluation split), "latest", or a step.
        **given: Of a PyTorch checkpoint, what it does not tell or is to be otherwise; see of_public().

    Raises:
        FileNotFoundError: there is nothing, or no run or checkpoint in a folder.
        ValueError: a step that is not kept, or a file that is neither a bundle nor a checkpoint that is known.
    """
    path = absolute(place)
    if not path.exists() and path.name in shipped():
        path = shipped()[path.name]
    if path.is_dir():
        return _of_run(path, checkpoint)
    if str(place).startswith("hf://") or path.suffix in torch_files.TORCH_FILES:
        return of_public(place, **given)
    if not path.is_file():
        known = ", ".join(shipped())
        raise FileNotFoundError(
            f"{place}: no such folder or file"
            + (f", nor a network that is shipped ({known})" if known else "")
        )
    if path.suffix == ".safetensors" and not bundle.is_bundle(path):
        return of_public(place, **given)
    return _of_bundle(path)


def _of_run(workdir: pathlib.Path, which: str) -> Network:
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
        step = named.get(which, int(which) if which.isdigit() else None)
        if step not in steps:
            raise ValueError(
                f"no checkpoint '{which}' in {workdir}; choose best, latest or one of {sorted(steps)}"
            )
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        variables = checkpoint.restore_variables(manager, step, sharding)
    table, options = class_table(workdir, config), settings.model_options(config)
    model = models.create(config.model.name, num_classes=table.num_classes, **options)
    facts = {"source": workdir.name, "scores": _scores(workdir, config, step)}
    return Network(model, variables, table, config, step, view(config), facts=facts)


def _scores(workdir: pathlib.Path, config: ConfigDict, step: int) -> dict[str, float | None]:
    """mIoU by data set and split, of the evaluations in a run's folder that are of this step and of unseen images."""
    found = {}
    seen = {"trainval": ("train", "val", "trainval")}.get(config.input.train_split, ("train",))
    for path in sorted(workdir.glob("evaluation*.json")) + sorted(
        workdir.glob("evaluation*/*.json")
    ):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            report = json.loads(path.read_text())
            if report["step"] == step and report["split"] not in seen:
                found[f"{report['dataset']} {report['split']} mIoU"] = report["miou"]
    return found


def _of_bundle(path: pathlib.Path) -> Network:
    variables, stored = bundle.load(path)
    config = settings.from_json(json.dumps(stored["config"]))
    names = tuple(stored["classes"])
    palette = stored.get("palette") or data.class_table(config.input.dataset).palette[: len(names)]
    if len(palette) != len(names):
        raise ValueError(f"{path} has {len(names)} classes and {len(palette)} colours")
    table = ClassTable(stored.get("data", ""), names, tuple(map(tuple, palette)))
    options = settings.model_options(config)
    model = models.create(config.model.name, num_classes=len(names), **options)
    have = checkpoint.shapes_of(variables)
    for train in (True, False):
        wanted = checkpoint.shapes_of(flops.variable_shapes(model, train=train))
        if have == wanted:
            break
    else:
        raise ValueError(
            f"{path} does not fit {config.model.name} of {len(names)} classes:"
            f" {checkpoint.difference(have, wanted)}"
        )
    step, facts = stored.get("step", 0), stored.get("facts", {})
    return Network(model, variables, table, config, step, view(config), facts=facts)


def of_public(
    path: str | os.PathLike[str],
    *,
    variant: str | None = None,
    num_classes: int | None = None,
    classes: str | None = None,
    **shown: Any,
) -> Network:
    """Reads the network in a PyTorch file, to be used as its authors use it.

    Args:
        path: See torch_files.read_state.
        variant: Its name, where the file does not tell.
        num_classes: How many classes it has, where the file does not tell.
        classes: A list of the classes, as a folder data set has it; None for those of the data set that has so many.
        **shown: mean and std (RGB, in units of [0, 255]), channels ("rgb" or "bgr") and size, (h, w) or OWN for the
            frames' own, where they are not those of its authors; None stands for these.

    Raises:
        ValueError: see public.read; a list of another length; or nobody says how the network is shown its images.
        FileNotFoundError: no such file.
    """
    found = public.read(path, variant, num_classes)
    use, count = found.use, found.num_classes
    if classes is None:
        table = public.class_table(count)
    else:
        table = folder.read_classes(classes)
        if table.num_classes != count:
            raise ValueError(f"{classes} lists {table.num_classes} classes, and {path} has {count}")
    own = {}
    if use is not None:
        own = {k: getattr(use, k).get(count, getattr(use, k)[None]) for k in ("mean", "std")}
        own |= {"channels": use.channels, "size": use.size}
    shown = {**own, **{k: v for k, v in shown.items() if v is not None}}
    if shown.get("size") == OWN:
        shown["size"] = None
    if missing := [f"--{k}" for k in ("mean", "std") if k not in shown]:
        raise ValueError(
            f"{path} does not say how its network was shown images; give {' and '.join(missing)},"
            " RGB in units of [0, 255]"
        )
    shown |= {k: tuple(map(float, shown[k])) for k in ("mean", "std")}
    config = settings.of_network(
        found.variant,
        found.options,
        dataset=table.name,
        align_corners=use.align_corners if use else False,
        **shown,
    )
    model = models.create(found.variant, num_classes=count, **settings.model_options(config))
    facts = {"source": pathlib.PurePath(str(path)).name}
    if use is not None:
        facts |= {"layout": found.layout, "licence": use.licence}
    return Network(model, found.variables, table, config, 0, view(config), facts=facts)
