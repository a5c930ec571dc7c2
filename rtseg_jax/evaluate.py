"""From a data set to a report: confusion, IoU table, evaluation.json, overlay pictures; also a program.

python -m rtseg_jax.evaluate --workdir=RUN --split=test
python -m rtseg_jax.evaluate --workdir=RUN --scales=0.5,1.0,1.5 --flip
python -m rtseg_jax.evaluate --workdir=RUN --split=test --submission=DIR

With several scales, or the mirrored frame beside the frame itself, a pixel's class is that of the highest mean of the
softmax probabilities, each upsampled to the frame's size as logits.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from rtseg_jax import checkpoint, data, drawing, infer, mesh, metrics, models, settings, submission
from rtseg_jax.data import pipeline
from rtseg_jax.data.spec import ClassTable, Dataset

Pair = tuple[int, int]
OWN = "own"  # as a size: each frame's own
MAX_PIXELS = 1024 * 2048  # a frame of Cityscapes
MIN_SIDE = 32  # the coarsest stride of the networks


def evaluate(
    eval_step: Callable,
    batches: Iterable,
    num_classes: int,
    keep: frozenset[int] = frozenset(),
    visit: Callable[[int, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Runs the evaluation step over batches and sums the confusion in int64.

    Args:
        eval_step: (images, labels, mask) -> (confusion, class maps).
        batches: Of (images, labels, mask, indices), the last one padded and masked.
        num_classes: k.
        keep: Indices of the examples whose class maps are wanted.
        visit: Called with the index and the class map of every example.

    Returns:
        The [k, k] confusion and {index: class map uint8 [h, w]}.
    """
    confusion = np.zeros((num_classes, num_classes), np.int64)
    maps = {}
    for images, labels, mask, indices in batches:
        counts, classes = eval_step(images, labels, mask)
        confusion += np.asarray(counts, np.int64)
        real = [(row, int(i)) for row, i in enumerate(indices) if mask[row]]
        wanted = real if visit else [(row, i) for row, i in real if i in keep]
        if wanted:
            classes = mesh.own_rows(classes)
        for row, i in wanted:
            if i in keep:
                maps[i] = classes[row]
            if visit:
                visit(i, classes[row])
    return confusion, maps


def table(scores: metrics.Scores, class_names: tuple[str, ...]) -> str:
    """The per-class IoU table as text, in percent."""
    width = max(len(n) for n in (*class_names, "mean accuracy"))
    lines = [f"{'class':<{width}}    IoU   accuracy"]
    for name, iou, accuracy in zip(class_names, scores.iou, scores.accuracy, strict=True):
        lines.append(f"{name:<{width}} {_percent(iou)}     {_percent(accuracy)}")
    lines.append(
        f"{'mIoU':<{width}} {_percent(scores.miou)}     over {scores.classes} of {len(class_names)} classes"
    )
    lines.append(f"{'pixel accuracy':<{width}} {_percent(scores.pixel_accuracy)}")
    lines.append(f"{'mean accuracy':<{width}} {_percent(scores.mean_accuracy)}")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "     -" if np.isnan(value) else f"{100 * value:6.2f}"


def _or_null(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def write_report(
    path: pathlib.Path, confusion: np.ndarray, dataset: Dataset, **facts: Any
) -> metrics.Scores:
    """Writes evaluation.json: miou, iou by class name, accuracies, images, confusion (rows: truth) and `facts`."""
    result = metrics.scores(confusion)
    names = dataset.table.class_names
    report = {
        **facts,
        "dataset": dataset.table.name,
        "split": dataset.split,
        "images": len(dataset),
        "miou": _or_null(result.miou),
        "classes_averaged": result.classes,
        "iou": {n: _or_null(v) for n, v in zip(names, result.iou, strict=True)},
        "accuracy": {n: _or_null(v) for n, v in zip(names, result.accuracy, strict=True)},
        "pixel_accuracy": _or_null(result.pixel_accuracy),
        "mean_accuracy": _or_null(result.mean_accuracy),
        "frequency_weighted_iou": _or_null(result.frequency_weighted_iou),
        "confusion": confusion.tolist(),
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    return result


def overlay_panel(dataset: Dataset, index: int, classes: np.ndarray) -> np.ndarray:
    """Photo, truth and prediction side by side over a legend of the classes that occur; uint8 [h', 3w, 3].

    Truth and prediction are laid over the photo; ignored pixels of the truth are black.
    """
    image, label = dataset.load(index)
    classes = classes[: label.shape[0], : label.shape[1]]  # it was padded if sizes vary
    laid = [drawing.overlay(image, ids, dataset.table) for ids in (label, classes)]
    shown = drawing.occurring(dataset.table, label, classes)
    return drawing.with_legend(np.concatenate([image, *laid], axis=1), dataset.table, shown)


def spread(n: int, count: int) -> frozenset[int]:
    """`count` indices spread evenly over n examples."""
    return frozenset(int(i) for i in np.linspace(0, n - 1, min(count, n)).round())


def write_overlays(folder: pathlib.Path, dataset: Dataset, maps: dict[int, np.ndarray]) -> None:
    """Writes one PNG per class map, named after its example."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in sorted(maps):
        name = dataset.names[index].replace("/", "_")
        Image.fromarray(overlay_panel(dataset, index, maps[index])).save(folder / f"{name}.png")


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
        return data.folder.read_classes(path)
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


def check_folder(folder: pathlib.Path, flag: str) -> None:
    """Refuses what cannot be made a folder, before the work whose results it is for.

    Raises:
        ValueError: it, or what it is to lie in, is a file.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file where a folder is to be; give another --{flag}")


def parse_size(text: str) -> Pair | str:
    """Reads "512x1024" or "512,1024", (h, w) in pixels, or "own" for each frame's own size.

    Raises:
        ValueError: it is none of these.
    """
    if text == OWN:
        return OWN
    found = re.fullmatch(r"([1-9]\d*)[x,]([1-9]\d*)", text)
    if not found:
        raise ValueError(f"size '{text}' is not HEIGHTxWIDTH in pixels, as 512x1024, nor '{OWN}'")
    return int(found[1]), int(found[2])


def parse_scales(texts: Sequence[str]) -> tuple[float, ...]:
    """Reads factors such as ["0.5", "1.0"].

    Raises:
        ValueError: none, one that is no number above 0, or one twice.
    """
    try:
        scales = tuple(map(float, texts))
    except ValueError:
        scales = ()
    if not scales or not all(0 < s < float("inf") for s in scales) or len({*scales}) < len(scales):
        raise ValueError(
            f"scales '{','.join(texts)}' are not different numbers above 0, as 0.5,1.0,1.5"
        )
    return scales


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


def evaluate_run(
    workdir: pathlib.Path,
    *,
    split: str,
    which: str,
    output: pathlib.Path,
    batch_size: int,
    overlays: int,
    root: str | None = None,
    size: Pair | str | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    submit: pathlib.Path | None = None,
    official: bool = False,
) -> metrics.Scores:
    """Evaluates a checkpoint of a run and writes evaluation.json and overlays.

    Args:
        workdir: Of the run.
        split: Of its data set.
        which: Checkpoint, as of load_run().
        output: Folder for evaluation.json and overlays/.
        batch_size: Frames per call.
        overlays: How many pictures.
        root: The data set's folder, if it has moved.
        size: (h, w) that the network sees, "own" for the frames' own, None as the config says: config.input.size
            resizes the files, config.eval.size what the network sees of them.
        scales: Of classifier().
        flip: Of classifier().
        submit: Folder for the label ids of Cityscapes, at the files' own size, whatever size the network sees; it is
            checked and packed into an archive beside it.
        official: Evaluates them with cityscapesscripts too; they are in output/submission unless `submit` says.

    Raises:
        ValueError: data of other classes than the run's; a file where a folder is to be; or a submission of another
            data set, or that does not pass the server's rules.
    """
    check_folder(output, "output")
    config, model, variables, at = load_run(workdir, which)
    if root is not None:
        config.input.root = root
    if official and submit is None:
        submit = output / "submission"
    arguments = settings.dataset_arguments(config, split)
    seen = config.eval.size if size is None else size
    if submit is not None:
        _check_submission(config, arguments, submit)
        seen = seen or arguments["size"]
        arguments.update(size=None, patches=None, num_examples=None)
    seen = None if seen == OWN else seen
    dataset = data.load(**arguments)
    check_classes(workdir, config, dataset)
    if official:
        submission.check_truths(settings.path(config.input.root), split, dataset.names)
    classify = classifier(
        model,
        variables,
        seen=lambda frame: seen,
        scales=scales,
        flip=flip,
        mean=config.augment.mean,
        std=config.augment.std,
    )
    batches = pipeline.eval_batches(dataset, batch_size, multiple=config.eval.get("multiple", 0))
    visit = None
    if submit is not None:
        submit.mkdir(parents=True, exist_ok=True)

        def visit(index, classes):
            submission.write(submit, dataset.names[index], classes)

    confusion, maps = evaluate(
        counting(classify, dataset.table.num_classes),
        batches,
        dataset.table.num_classes,
        spread(len(dataset), overlays),
        visit,
    )
    output.mkdir(parents=True, exist_ok=True)
    facts = {
        "model": config.model.name,
        "step": at,
        "workdir": str(workdir),
        "size": seen or dataset.size,
        "scales": scales,
        "flip": flip,
    }
    print(f"{config.model.name}, step {at}, {dataset.table.name} {split}, {len(dataset)} images")
    if submit is not None:
        _pack_submission(submit, dataset.names)
    if official:
        facts["official"] = _official(submit, settings.path(config.input.root), dataset)
    result = write_report(output / "evaluation.json", confusion, dataset, **facts)
    write_overlays(output / "overlays", dataset, maps)
    if confusion.any():
        print(table(result, dataset.table.class_names))
    else:
        print("no pixel of this split is labelled: there are no scores")
    print(f"written: {output / 'evaluation.json'}, {output / 'overlays'}")
    return result


def counting(classify: Callable, num_classes: int) -> Callable:
    """The step of evaluate(), (images, labels, mask) -> (confusion, class maps), of what classifier() gives."""
    count = jax.jit(metrics.confusion_matrix, static_argnums=2)

    def eval_step(images, labels, mask):
        classes = classify(images)
        return count(labels.astype(np.int32), classes, num_classes, mask), classes

    return eval_step


def _check_submission(config: ConfigDict, arguments: dict[str, Any], folder: pathlib.Path) -> None:
    if config.input.dataset != "cityscapes" or arguments.get("annotation") == "coarse":
        raise ValueError(
            f"a submission is of cityscapes with its fine annotations; this run is of "
            f"{' '.join(filter(None, (config.input.dataset, arguments.get('annotation'))))}"
        )
    check_folder(folder, "submission")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder for the submission")


def _pack_submission(folder: pathlib.Path, names: Sequence[str]) -> None:
    problems = submission.check(folder, names)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ValueError(f"the submission breaks the server's rules: {problems[0]}{more}")
    print(f"{len(names)} label maps pass the server's rules: {submission.pack(folder)}")


def _official(folder: pathlib.Path, root: pathlib.Path, dataset: Dataset) -> dict[str, Any]:
    """The official figures for evaluation.json, also printed."""
    result = submission.evaluate(folder, root, dataset.split, dataset.names)
    names = dataset.table.class_names
    figures = {
        "miou": _or_null(result["averageScoreClasses"]),
        "iiou": _or_null(result["averageScoreInstClasses"]),
        "category_iou": _or_null(result["averageScoreCategories"]),
        "category_iiou": _or_null(result["averageScoreInstCategories"]),
        "iou_by_class": {n: _or_null(result["classScores"][n]) for n in names},
        "iiou_by_class": {n: _or_null(result["classInstScores"][n]) for n in names},
    }
    shown = ("miou", "iiou", "category_iou", "category_iiou")
    shares = (np.nan if figures[k] is None else figures[k] for k in shown)
    print(
        "cityscapesscripts: mIoU{}, iIoU{}, category IoU{}, category iIoU{}".format(
            *map(_percent, shares)
        )
    )
    return figures


def main(argv: list[str]) -> None:
    """Reads the flags and makes one call."""
    if argv[1:]:
        raise ValueError(f"unexpected argument '{argv[1]}'; lists have commas, as --scales=0.5,1.0")
    settings.prepare_process()
    workdir = settings.path(_FLAGS["workdir"].value)
    split = _FLAGS["split"].value
    output = _FLAGS["output"].value or workdir / f"evaluation_{split}"
    size, submit = _FLAGS["size"].value, _FLAGS["submission"].value
    evaluate_run(
        workdir,
        split=split,
        which=_FLAGS["checkpoint"].value,
        output=settings.path(output),
        batch_size=_FLAGS["batch_size"].value,
        overlays=_FLAGS["overlays"].value,
        root=_FLAGS["root"].value,
        size=parse_size(size) if size else None,
        scales=parse_scales(_FLAGS["scales"].value),
        flip=_FLAGS["flip"].value,
        submit=settings.path(submit) if submit else None,
        official=_FLAGS["official"].value,
    )


def _define_flags() -> dict[str, flags.FlagHolder]:
    return {
        "workdir": flags.DEFINE_string("workdir", None, "Folder of a run.", required=True),
        "split": flags.DEFINE_string("split", "val", "Split of the run's data set."),
        "checkpoint": flags.DEFINE_string("checkpoint", "best", "best, latest or a step."),
        "output": flags.DEFINE_string(
            "output", None, "Folder for the report; workdir/evaluation_SPLIT if not given."
        ),
        "root": flags.DEFINE_string("root", None, "The data set's folder, if it has moved."),
        "batch_size": flags.DEFINE_integer("batch_size", 1, "Frames per call.", lower_bound=1),
        "overlays": flags.DEFINE_integer("overlays", 8, "How many pictures.", lower_bound=0),
        "size": flags.DEFINE_string(
            "size",
            None,
            f"HEIGHTxWIDTH that the network sees, or '{OWN}'; the config's if not given.",
        ),
        "scales": flags.DEFINE_list("scales", ["1.0"], "Factors of that size to average over."),
        "flip": flags.DEFINE_bool("flip", False, "Average over the mirrored frame too."),
        "submission": flags.DEFINE_string(
            "submission", None, "New folder for Cityscapes' label ids; DIR.zip is for the server."
        ),
        "official": flags.DEFINE_bool(
            "official", False, "Evaluate with cityscapesscripts too (iIoU); extra [cityscapes]."
        ),
    }


if __name__ == "__main__":
    _FLAGS = _define_flags()
    settings.run(main)
