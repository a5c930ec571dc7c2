"""What a network scores on a split: its confusion matrix, the report and the pictures."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from rtseg_jax.base import mesh
from rtseg_jax.data.spec import DataError, Dataset, where
from rtseg_jax.inference import metrics, pictures


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
        batches: Tuples (images, labels, mask, indices), the last one padded and masked.
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


def left_out(dataset: Dataset, wrong: Mapping[int, str], allowed: int) -> list[str]:
    """The names of the examples that an evaluation left out, by all processes; each of them must ask.

    Args:
        dataset: What was evaluated.
        wrong: What was wrong with those that this process met (see pipeline.leaving_out).
        allowed: So many may be left out.

    Raises:
        DataError: there are more; the message is what is wrong with the first one.
    """
    mask = np.zeros(len(dataset), bool)
    mask[list(wrong)] = True
    found = np.flatnonzero(mesh.in_any_process(mask))
    if len(found) > allowed:
        first = wrong.get(int(found[0]), f"{where(dataset, int(found[0]))} cannot be read")
        more = f" ({len(found)} such images of {dataset.split})" if len(found) > 1 else ""
        raise DataError(f"{first}{more}; input.max_bad={allowed} leaves so many out")
    return [dataset.name(int(i)) for i in found]


def table(scores: metrics.Scores, class_names: tuple[str, ...]) -> str:
    """The per-class IoU table as text, in percent."""
    width = max(len(n) for n in (*class_names, "mean accuracy"))
    lines = [f"{'class':<{width}}    IoU   accuracy"]
    for name, iou, accuracy in zip(class_names, scores.iou, scores.accuracy, strict=True):
        lines.append(f"{name:<{width}} {percent(iou)}     {percent(accuracy)}")
    lines.append(
        f"{'mIoU':<{width}} {percent(scores.miou)}     over {scores.classes} of {len(class_names)} classes"
    )
    lines.append(f"{'pixel accuracy':<{width}} {percent(scores.pixel_accuracy)}")
    lines.append(f"{'mean accuracy':<{width}} {percent(scores.mean_accuracy)}")
    return "\n".join(lines)


def percent(value: float) -> str:
    """A share in percent, six characters wide; a dash for nan."""
    return "     -" if np.isnan(value) else f"{100 * value:6.2f}"


def or_null(value: float) -> float | None:
    """The value as JSON has it: None for nan."""
    return None if np.isnan(value) else float(value)


def write_report(
    path: pathlib.Path, confusion: np.ndarray, dataset: Dataset, **facts: Any
) -> metrics.Scores:
    """Writes evaluation.json: miou, iou by class name, accuracies, images, confusion (rows: truth) and `facts`.

    Of these, "left_out" are names of examples, which do not count among the images.
    """
    result = metrics.scores(confusion)
    facts.setdefault("left_out", [])
    names = dataset.table.class_names
    report = {
        **facts,
        "dataset": dataset.table.name,
        "split": dataset.split,
        "images": len(dataset) - len(facts["left_out"]),
        "miou": or_null(result.miou),
        "classes_averaged": result.classes,
        "iou": {n: or_null(v) for n, v in zip(names, result.iou, strict=True)},
        "accuracy": {n: or_null(v) for n, v in zip(names, result.accuracy, strict=True)},
        "pixel_accuracy": or_null(result.pixel_accuracy),
        "mean_accuracy": or_null(result.mean_accuracy),
        "frequency_weighted_iou": or_null(result.frequency_weighted_iou),
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
    laid = [pictures.overlay(image, ids, dataset.table) for ids in (label, classes)]
    shown = pictures.occurring(dataset.table, label, classes)
    return pictures.with_legend(np.concatenate([image, *laid], axis=1), dataset.table, shown)


def spread(n: int, count: int) -> frozenset[int]:
    """`count` indices spread evenly over n examples."""
    return frozenset(int(i) for i in np.linspace(0, n - 1, min(count, n)).round())


def write_overlays(folder: pathlib.Path, dataset: Dataset, maps: dict[int, np.ndarray]) -> None:
    """Writes one PNG per class map, named after its example."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in sorted(maps):
        name = dataset.names[index].replace("/", "_")
        Image.fromarray(overlay_panel(dataset, index, maps[index])).save(folder / f"{name}.png")


def counting(classify: Callable, num_classes: int) -> Callable:
    """The step of evaluate(), (images, labels, mask) -> (confusion, class maps), of what classifier() gives."""
    count = jax.jit(metrics.confusion_matrix, static_argnums=2)

    def eval_step(images, labels, mask):
        classes = classify(images)
        return count(labels.astype(np.int32), classes, num_classes, mask), classes

    return eval_step
