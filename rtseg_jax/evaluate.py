"""From a data set to a report: confusion, IoU table, evaluation.json, overlay pictures; also a program.

python -m rtseg_jax.evaluate --workdir=RUN --split=test
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from rtseg_jax import checkpoint, data, mesh, metrics, models, settings, step
from rtseg_jax.data import pipeline
from rtseg_jax.data.spec import Dataset


def evaluate(
    eval_step: Callable,
    variables: Any,
    batches: Iterable,
    num_classes: int,
    keep: frozenset[int] = frozenset(),
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Runs the evaluation step over batches and sums the confusion in int64.

    Args:
        eval_step: From jit_eval_step.
        variables: {"params", "batch_stats"}.
        batches: Of (images, labels, mask, indices), the last one padded and masked.
        num_classes: k.
        keep: Indices of the examples whose class maps are wanted.

    Returns:
        The [k, k] confusion and {index: class map uint8 [h, w]}.
    """
    confusion = np.zeros((num_classes, num_classes), np.int64)
    maps = {}
    for images, labels, mask, indices in batches:
        counts, classes = eval_step(variables, images, labels, mask)
        confusion += np.asarray(counts, np.int64)
        wanted = [(row, int(i)) for row, i in enumerate(indices) if mask[row] and int(i) in keep]
        if wanted:
            classes = np.asarray(classes)
            maps.update({i: classes[row] for row, i in wanted})
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
    table = dataset.table
    image, label = dataset.load(index)
    photo = image.astype(np.float32)
    panels = [image]
    for ids in (label, classes):
        panels.append(np.round(0.35 * photo + 0.65 * table.colorize(ids)).astype(np.uint8))
    row = np.concatenate(panels, axis=1)
    occurring = [c for c in range(table.num_classes) if np.any(label == c) or np.any(classes == c)]
    columns, cell_height = max(1, row.shape[1] // 130), 16
    legend_rows = -(-len(occurring) // columns)
    legend = Image.new("RGB", (row.shape[1], legend_rows * cell_height + 4), "white")
    draw = ImageDraw.Draw(legend)
    for place, c in enumerate(occurring):
        x, y = place % columns * 130 + 4, place // columns * cell_height + 3
        draw.rectangle((x, y, x + 16, y + 11), fill=table.palette[c], outline="black")
        draw.text((x + 22, y), table.class_names[c], fill="black")
    return np.concatenate([row, np.asarray(legend)], axis=0)


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
        best, latest, steps = manager.best_step(), manager.latest_step(), manager.all_steps()
        if latest is None:
            raise FileNotFoundError(f"{workdir / checkpoint.FOLDER} holds no checkpoint yet")
        named = {"best": latest if best is None else best, "latest": latest}
        at = named.get(which, int(which) if which.isdigit() else None)
        if at not in steps:
            raise ValueError(
                f"no checkpoint '{which}' in {workdir}; choose best, latest or one of {sorted(steps)}"
            )
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        variables = checkpoint.restore_variables(manager, at, sharding)
    model = models.create(
        config.model.name,
        num_classes=data.TABLES[config.input.dataset].num_classes,
        **settings.model_options(config),
    )
    return config, model, variables, at


def evaluate_run(
    workdir: pathlib.Path,
    *,
    split: str,
    which: str,
    output: pathlib.Path,
    batch_size: int,
    overlays: int,
    root: str | None = None,
) -> metrics.Scores:
    """Evaluates a checkpoint of a run and writes evaluation.json and overlays to `output`; config.input.size resizes."""
    config, model, variables, at = load_run(workdir, which)
    if root is not None:
        config.input.root = root
    dataset = data.load(**settings.dataset_arguments(config, split))
    devices = mesh.make_mesh(jax.local_devices()[:1])
    eval_step = step.jit_eval_step(
        devices,
        model=model,
        num_classes=dataset.table.num_classes,
        mean=config.augment.mean,
        std=config.augment.std,
        size=config.eval.size,
    )
    batches = pipeline.eval_batches(dataset, batch_size)
    confusion, maps = evaluate(
        eval_step, variables, batches, dataset.table.num_classes, spread(len(dataset), overlays)
    )
    output.mkdir(parents=True, exist_ok=True)
    facts = {"model": config.model.name, "step": at, "workdir": str(workdir)}
    result = write_report(output / "evaluation.json", confusion, dataset, **facts)
    write_overlays(output / "overlays", dataset, maps)
    print(f"{config.model.name}, step {at}, {dataset.table.name} {split}, {len(dataset)} images")
    print(table(result, dataset.table.class_names))
    print(f"written: {output / 'evaluation.json'}, {output / 'overlays'}")
    return result


def main(argv: list[str]) -> None:
    """Reads the flags and makes one call."""
    del argv
    settings.use_compilation_cache()
    workdir = pathlib.Path(os.path.abspath(_FLAGS["workdir"].value))
    split = _FLAGS["split"].value
    output = _FLAGS["output"].value or str(workdir / f"evaluation_{split}")
    evaluate_run(
        workdir,
        split=split,
        which=_FLAGS["checkpoint"].value,
        output=pathlib.Path(os.path.abspath(output)),
        batch_size=_FLAGS["batch_size"].value,
        overlays=_FLAGS["overlays"].value,
        root=_FLAGS["root"].value,
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
    }


if __name__ == "__main__":
    _FLAGS = _define_flags()
    settings.run(main)
