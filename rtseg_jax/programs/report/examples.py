"""The example images of a report: the best and the worst of a run, and those on which runs differ most."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.data import pipeline
from rtseg_jax.data.spec import ClassTable, Dataset, Image3, Label
from rtseg_jax.inference import evaluator, metrics, pictures
from rtseg_jax.inference import network as networks
from rtseg_jax.programs.report import runs

MAX_SIDE = 640  # of an embedded picture, in pixels
AGREEMENT = 0.005  # by how much the pictures' pixel accuracy may be off the evaluation's
# What costs the pictures alone.
FAILURES = (ValueError, OSError, ImportError, jax.errors.JaxRuntimeError)


@dataclasses.dataclass(frozen=True)
class Picture:
    """Holds an image of the evaluated split and what a run makes of it.

    Attributes:
        name: The name of the example.
        miou: The mean IoU over the classes that its truth or prediction holds, a share.
        iou: The IoU of each of those, by class name.
        photo: The image, RGB.
        truth: Train ids, or 255.
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
    """Holds an image that several runs were evaluated on, and what each makes of it.

    Attributes:
        name: The name of the example.
        photo: The image, RGB.
        truth: Train ids, or 255.
        predictions: The image's own mIoU and the train ids, by the name of the run.
    """

    name: str
    photo: Image3
    truth: Label
    predictions: dict[str, tuple[float, Label]]


Examined = Iterator[tuple[int, np.ndarray, Label]]


def _examiner(run: runs.Run, root: str | None) -> tuple[Dataset, Callable[[Dataset], Examined]]:
    """Loads the evaluated split, and makes a function that predicts it, or a part of it, as it was evaluated.

    That gives of each example its index, its confusion int64 [k, k] and its class map, which is padded where sizes vary.
    """
    given = run.evaluation
    network = networks.load(run.place, str(given["step"]))
    config = network.config
    if root is not None:
        config.input.root = root
    dataset = data.load(**settings.dataset_arguments(config, given["split"]))
    networks.check_classes(run.table, dataset)
    size = given.get("size", config.eval.size)
    classify = networks.classifier(
        network.model,
        network.variables,
        seen=lambda frame: size and tuple(size),
        scales=tuple(given.get("scales", (1.0,))),
        flip=given.get("flip", False),
        dtype=jnp.dtype(given.get("dtype", "float32")),
        **settings.shown(config),
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
        run: A run with an evaluation.
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
    found = []
    for index in ranked():
        image, label = dataset.load(index)
        scores, classes = kept[index]
        classes = classes[: label.shape[0], : label.shape[1]]  # it was padded if sizes vary
        iou = {n: float(v) for n, v in zip(names, scores.iou, strict=True) if np.isfinite(v)}
        found.append(Picture(dataset.names[index], scores.miou, iou, image, label, classes))
    here, there = metrics.scores(total).pixel_accuracy, given["pixel_accuracy"]
    if there is None or abs(here - there) <= AGREEMENT:
        return found, ""
    return found, (
        f"The pictures do not fit this evaluation: the split has a pixel accuracy of {100 * here:.2f} % here and of"
        f" {100 * there:.2f} % there. The data, their size or the program have changed since."
    )


def most_different(
    group: Sequence[runs.Run], count: int, root: str | None = None
) -> list[Contrast]:
    """Finds the images on which the mIoU of runs is farthest apart, the farthest first.

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


def figures(group: Sequence[runs.Run], count: int, root: str | None = None) -> dict[str, Any]:
    """Chooses and draws the images of a report.

    A failure is printed and costs the images alone.

    Args:
        group: The runs of the page.
        count: How many images, 0 for none.
        root: The data set's folder, if it has moved.

    Returns:
        The drawn images ("shown"), a line about them or why there are none ("note"), and the classes in them of several
        runs ("classes").
    """
    evaluated = [run for run in group if run.evaluation]
    found: dict[str, Any] = {"shown": [], "note": "", "classes": []}
    if not count or not runs.comparable(group) or len(evaluated) < min(2, len(group)):
        return found
    table = evaluated[0].table
    try:
        if len(group) == 1:
            ranked, note = best_and_worst(group[0], count, root)
            return found | {"shown": _draw_ranked(ranked, table), "note": note}
        contrasts = most_different(evaluated, count, root)
    except FAILURES as error:
        why = " ".join(str(error).split())
        print(f"no pictures: {why}")
        return found | {"note": f"No pictures: {why}"}
    maps = [x.truth for x in contrasts]
    maps += [classes for x in contrasts for _, classes in x.predictions.values()]
    return found | {
        "shown": [_draw_contrast(x, table, group) for x in contrasts],
        "classes": [_named(table, c) for c in pictures.occurring(table, *maps)],
    }


def _named(table: ClassTable, c: int) -> dict[str, str]:
    return {"name": table.class_names[c], "color": css(table.palette[c])}


def css(color: Sequence[int]) -> str:
    """Spells an RGB color as CSS does."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _draw_ranked(ranked: Sequence[Picture], table: ClassTable) -> list[dict[str, Any]]:
    drawn, best = [], -(-len(ranked) // 2)
    for i, picture in enumerate(ranked):
        maps = {"prediction": picture.prediction, "truth": picture.truth}
        ids = [table.class_names.index(name) for name in picture.iou]
        classes = [
            {**_named(table, c), "iou": iou}
            for c, iou in zip(ids, picture.iou.values(), strict=True)
        ]
        drawn.append(
            {
                "rank": f"best {i + 1}" if i < best else f"worst {len(ranked) - i}",
                "name": picture.name,
                "miou": picture.miou,
                "classes": classes,
                **_embed(picture.photo, maps, table),
            }
        )
    return drawn


def _draw_contrast(
    contrast: Contrast, table: ClassTable, group: Sequence[runs.Run]
) -> dict[str, Any]:
    places = {run.name: place for place, run in enumerate(group)}
    names = list(contrast.predictions)
    maps = [contrast.truth, *(classes for _, classes in contrast.predictions.values())]
    embedded = _embed(contrast.photo, dict(enumerate(maps)), table)
    told = [("photo", None, None), ("truth", None, None)]
    told += [(name, places[name], contrast.predictions[name][0]) for name in names]
    for layer, (name, place, miou) in zip(embedded["layers"], told, strict=True):
        layer.update(name=name, place=place, miou=miou)
    best = max(miou for miou, _ in contrast.predictions.values())
    return {"name": contrast.name, "best": best, **embedded}


def _embed(photo: Image3, maps: dict[Any, Label], table: ClassTable) -> dict[str, Any]:
    """Draws a photo and its class maps as layers of a page: their names, data URIs and common size in pixels."""
    h, w = photo.shape[:2]
    shrink = min(1.0, MAX_SIDE / max(h, w))
    size = max(1, round(shrink * w)), max(1, round(shrink * h))
    small = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)
    colors = np.zeros((256, 3), np.uint8)  # ignored pixels are black
    colors[: table.num_classes] = table.palette
    layers = [{"name": "photo", "uri": pictures.data_uri(small, "jpeg", quality=82)}]
    for name, classes in maps.items():
        ids = Image.fromarray(classes).resize(size, Image.Resampling.NEAREST)
        ids.putpalette(colors.tobytes())
        layers.append({"name": name, "uri": pictures.data_uri(ids, "png", optimize=True)})
    return {"layers": layers, "width": size[0], "height": size[1]}
