"""The images that a report shows: the best and the worst, and those on which two runs differ most."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.data import pipeline
from rtseg_jax.data.spec import Dataset, Image3, Label
from rtseg_jax.inference import evaluator, metrics
from rtseg_jax.inference import network as networks
from rtseg_jax.programs.report import runs
from rtseg_jax.programs.shared.tables import percent

AGREEMENT = 0.005  # by how much the pictures' pixel accuracy may be off the evaluation's


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image of the evaluated split.

    Attributes:
        name: Of the example.
        miou: Over the classes that its truth or prediction holds.
        iou: By class name, of those.
        photo: RGB.
        truth: Train ids or 255.
        prediction: Train ids.
    """

    name: str
    miou: float
    iou: dict[str, float]
    photo: Image3
    truth: Label
    prediction: Label


@dataclasses.dataclass(frozen=True)
class Contrast:
    """An image that several runs were evaluated on.

    Attributes:
        name: Of the example.
        photo: RGB.
        truth: Train ids or 255.
        predictions: By run, the image's own mIoU and the train ids.
    """

    name: str
    photo: Image3
    truth: Label
    predictions: dict[str, tuple[float, Label]]


Examined = Iterator[tuple[int, np.ndarray, Label]]


def _examiner(run: runs.Run, root: str | None) -> tuple[Dataset, Callable[[Dataset], Examined]]:
    """The evaluated split, and a function that predicts it, or a part of it, as it was evaluated.

    That gives of each example its index, its confusion int64 [k, k] and its class map, which is padded where sizes vary.
    """
    given = run.evaluation
    config, model, variables, _ = networks.load_run(run.workdir, str(given["step"]))
    if root is not None:
        config.input.root = root
    dataset = data.load(**settings.dataset_arguments(config, given["split"]))
    networks.check_classes(run.workdir, config, dataset)
    size = given.get("size", config.eval.size)
    classify = networks.classifier(
        model,
        variables,
        seen=lambda frame: size and tuple(size),
        scales=tuple(given.get("scales", (1.0,))),
        flip=given.get("flip", False),
        mean=config.augment.mean,
        std=config.augment.std,
    )
    eval_step = evaluator.counting(classify, run.table.num_classes)

    def examine(dataset: Dataset) -> Examined:
        batches = pipeline.eval_batches(dataset, 1, multiple=config.eval.get("multiple", 0))
        for images, labels, mask, indices in tqdm(
            batches, total=len(dataset), desc=run.name, unit="image", disable=None
        ):
            confusion, classes = map(np.asarray, eval_step(images, labels, mask))
            yield int(indices[0]), confusion, classes[0]

    return dataset, examine


def best_and_worst(run: runs.Run, count: int, root: str | None = None) -> tuple[list[Picture], str]:
    """Predicts the evaluated split once more, as it was evaluated.

    Args:
        run: With an evaluation.
        count: How many pictures.
        root: The data set's folder, if it has moved.

    Returns:
        The pictures, from the best to the worst mIoU, and a line if they do not fit the evaluation, else "".

    Raises:
        FileNotFoundError: no data or no checkpoint.
        ValueError: the evaluated checkpoint is not kept; or as of data.load().
    """
    given = run.evaluation
    dataset, examine = _examiner(run, root)
    names = run.table.class_names
    total = np.zeros((len(names), len(names)), np.int64)
    kept: dict[int, tuple[metrics.Scores, Label]] = {}

    def ranked() -> list[int]:
        return sorted(kept, key=lambda index: (-kept[index][0].miou, index))

    for index, confusion, classes in examine(dataset):
        total += confusion
        if confusion.any():
            kept[index] = metrics.scores(confusion), classes
        if len(kept) > count:
            del kept[ranked()[-(-count // 2)]]
    pictures = []
    for index in ranked():
        image, label = dataset.load(index)
        scores, classes = kept[index]
        classes = classes[: label.shape[0], : label.shape[1]]  # it was padded if sizes vary
        iou = {n: float(v) for n, v in zip(names, scores.iou, strict=True) if np.isfinite(v)}
        pictures.append(Picture(dataset.names[index], scores.miou, iou, image, label, classes))
    here, there = metrics.scores(total).pixel_accuracy, given["pixel_accuracy"]
    if there is None or abs(here - there) <= AGREEMENT:
        return pictures, ""
    return pictures, (
        f"The pictures do not fit this evaluation: the split has a pixel accuracy of {percent(here)} % here and of"
        f" {percent(there)} % there. The data, their size or the program have changed since."
    )


def most_different(
    group: Sequence[runs.Run], count: int, root: str | None = None
) -> list[Contrast]:
    """The images on which the mIoU of runs is farthest apart, the farthest first.

    Args:
        group: Runs that were evaluated on the same split.
        count: How many images.
        root: The data set's folder, if it has moved.

    Raises:
        FileNotFoundError: no data or no checkpoint.
        ValueError: a run's data are not those of the first; or as of `best_and_worst`.
    """
    examiners = [_examiner(run, root) for run in group]
    dataset = examiners[0][0]
    mious = np.full((len(group), len(dataset)), np.nan)
    for run, (own, examine), row in zip(group, examiners, mious, strict=True):
        if own.names != dataset.names:
            raise ValueError(f"the images of {run.name} are not those of {group[0].name}")
        for index, confusion, _ in examine(own):
            row[index] = metrics.scores(confusion).miou
    usable = np.flatnonzero(np.isfinite(mious).all(axis=0))
    spread = np.ptp(mious[:, usable], axis=0)
    chosen = usable[np.argsort(-spread, kind="stable")[:count]].tolist()
    predictions: dict[int, dict[str, tuple[float, Label]]] = {index: {} for index in chosen}
    for run, (own, examine), row in zip(group, examiners, mious, strict=True):
        part = dataclasses.replace(
            own,
            names=tuple(own.names[index] for index in chosen),
            load=lambda i, load=own.load: load(chosen[i]),
        )
        for i, _, classes in examine(part):
            h, w = part.load(i)[1].shape
            predictions[chosen[i]][run.name] = float(row[chosen[i]]), classes[:h, :w]
    return [Contrast(dataset.names[i], *dataset.load(i), predictions[i]) for i in chosen]
