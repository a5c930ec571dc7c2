"""What the folder of a run tells, finished or not, or a network in a file, and what the papers print for it."""

import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rtseg_jax import models
from rtseg_jax.base import config as settings
from rtseg_jax.base.files import absolute
from rtseg_jax.data.spec import ClassTable, DataError
from rtseg_jax.inference import network as networks
from rtseg_jax.models import published

Points = list[tuple[int, float]]  # (step, value)
PRINTED_NAMES = {
    "ade20k": "ADE20K",
    "camvid": "CamVid",
    "cityscapes": "Cityscapes",
    "nyuv2": "NYUDv2",
}
_KEYS = ("model", "step", "split", "images", "miou", "iou", "accuracy", "pixel_accuracy")
_TRAINING_ONLY = ("dropout", "encoder_head", "frozen_statistics", "parent")  # of a network's fields


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder tells, or a network in a file, which has no history.

    Attributes:
        name: To tell it from the others of a page.
        place: Its folder, or the file.
        config: The run's config.
        table: Its classes.
        evaluation: The content of its evaluation.json, None where there is none yet.
        evaluated: Where that file is, or will be.
        history: What metrics.jsonl holds: figure -> (step, value) of all steps that logged it.
        parameters: How many, of params.txt.
        seconds: That it trained, evaluations included, by its TensorBoard events.
        about: What else is known of a network in a file.
    """

    name: str
    place: pathlib.Path
    config: ConfigDict
    table: ClassTable
    evaluation: dict[str, Any] | None
    evaluated: pathlib.Path
    history: dict[str, Points]
    parameters: int | None
    seconds: float | None
    about: Sequence[str] = ()

    @property
    def dataset(self) -> str:
        """As the papers spell it; streets have the classes of Cityscapes but are not it."""
        name = self.config.input.dataset
        return PRINTED_NAMES.get(name, name)

    @property
    def split(self) -> str:
        """That was evaluated, or will be."""
        return (
            self.evaluation["split"] if self.evaluation else self.config.input.get("eval_split", "")
        )

    @property
    def steps(self) -> int | None:
        """The last that was logged."""
        return max((points[-1][0] for points in self.history.values()), default=None)


def read(place: pathlib.Path, evaluation: str | None = None, name: str | None = None) -> Run:
    """Reads a run, finished or not, or a network.

    Args:
        place: The run's folder; else as of inference.network.load().
        evaluation: An evaluation.json or its folder, in the run's folder or anywhere; None for the one that training
            wrote, if it has, and for none of a network.
        name: On the page; None for that of the folder or file.

    Raises:
        FileNotFoundError: no run or network, or not the evaluation that was asked for.
        DataError: a file that cannot be read.
        ValueError: an evaluation of another network.
    """
    name = place.stem if name is None else name
    if not place.is_dir():
        return _read_network(place, evaluation, name)
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{place} holds no config.json; give the folder of a run")
    parts = _read_json(place / "config.json")
    if not isinstance(parts, dict) or not {"eval", "input", "model"} <= parts.keys():
        raise DataError(f"{place / 'config.json'}: no config of ours; give the folder of a run")
    config = settings.read(place)
    table = networks.class_table(place, config)
    path = place / "evaluation.json" if evaluation is None else _find_evaluation(place, evaluation)
    listing = place / "params.txt"
    return Run(
        name=name,
        place=place,
        config=config,
        table=table,
        evaluation=_read_evaluation(path, config, table) if path.is_file() else None,
        evaluated=path,
        history=_read_history(place / "metrics.jsonl"),
        parameters=_count_parameters(listing.read_text()) if listing.is_file() else None,
        seconds=_training_seconds(place),
    )


def _read_network(place: pathlib.Path, evaluation: str | None, name: str) -> Run:
    network = networks.load(place)
    path = None if evaluation is None else _find_evaluation(pathlib.Path.cwd(), evaluation)
    return Run(
        name=name,
        place=place,
        config=network.config,
        table=network.table,
        evaluation=path and _read_evaluation(path, network.config, network.table),
        evaluated=path or place,
        history={},
        parameters=sum(np.size(x) for x in jax.tree.leaves(network.variables["params"])),
        seconds=None,
        about=[f"step {network.step:,}"] * bool(network.step) + network.described(),
    )


def read_several(places: Sequence[pathlib.Path], evaluation: str | None = None) -> list[Run]:
    """Reads runs, each called by its path below the folder that all lie in; arguments and errors as of `read`."""
    folder = os.path.commonpath([path.absolute().parent for path in places])
    return [read(path, evaluation, os.path.relpath(path, folder)) for path in places]


def comparable(group: Sequence[Run]) -> bool:
    """Whether those of some runs that were evaluated, one at least, were so on the same images and classes."""
    labelled = {
        (run.dataset, run.split, run.evaluation["images"], run.table.class_names)
        for run in group
        if run.evaluation
    }
    return len(labelled) == 1


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error


def _find_evaluation(workdir: pathlib.Path, given: str) -> pathlib.Path:
    places = dict.fromkeys((workdir / given, absolute(given)))
    for path in places:
        for file in (path, path / "evaluation.json"):
            if file.is_file():
                return file
    raise FileNotFoundError(
        f"no evaluation.json at {', nor at '.join(map(str, places))}; rtseg evaluate writes one"
    )


def _read_evaluation(path: pathlib.Path, config: ConfigDict, table: ClassTable) -> dict[str, Any]:
    found = _read_json(path)
    missing = [k for k in (*_KEYS, "confusion") if not isinstance(found, dict) or k not in found]
    if missing:
        raise DataError(f"{path}: no evaluation.json of ours; it has no {', '.join(missing)}")
    if found["model"] != config.model.name:
        raise ValueError(f"{path} is of {found['model']}, the run is of {config.model.name}")
    if tuple(found["iou"]) != table.class_names:
        raise ValueError(
            f"{path} has other classes than the run: {', '.join(found['iou'])};"
            f" the run's are {', '.join(table.class_names)}"
        )
    k = table.num_classes
    rows = [row for row in found["confusion"] if len(row) == k]
    if tuple(found["accuracy"]) != table.class_names or len(rows) != k:
        raise DataError(f"{path}: its accuracy is not of {k} classes, or its confusion no {k}x{k}")
    return found


def _read_history(path: pathlib.Path) -> dict[str, Points]:
    """Reads metrics.jsonl but for a last line that is still being written; what is not finite is left out."""
    history: dict[str, Points] = {}
    text = path.read_text() if path.is_file() else ""
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
            for key, value in row.items():
                if math.isfinite(value):
                    history.setdefault(key, []).append((step, float(value)))
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a step's figures ({error!r})") from error
    return history


def _count_parameters(listing: str) -> int:
    shapes = (line.rpartition("(")[2].rstrip(")").split(",") for line in listing.splitlines())
    return sum(math.prod(int(side) for side in shape if side.strip()) for shape in shapes)


def _training_seconds(workdir: pathlib.Path) -> float | None:
    """From the first to the last event, summed over the files, of which each start of the run writes one."""
    spans = []
    for path in workdir.glob("events.out.tfevents.*"):
        times = list(_event_times(path))
        if times:
            spans.append(times[-1] - times[0])
    return sum(spans) if spans else None


def _event_times(path: pathlib.Path) -> Iterator[float]:
    """The wall times of a file of TensorBoard events, without reading what these hold.

    A record is its length (uint64), a checksum of that (4 bytes), the event, and a checksum of it (4 bytes); an event
    begins with its time, a double after the byte 0x09.
    """
    with path.open("rb") as file:
        while len(head := file.read(21)) == 21:
            length, tag, seconds = struct.unpack("<Q4xBd", head)
            if tag != 0x09 or length < 9:
                return
            yield seconds
            file.seek(length - 9 + 4, os.SEEK_CUR)


def printed(run: Run) -> list[published.Record]:
    """The mIoU that the papers print for a run's network on its data set: its own split first, no number twice."""
    name, options = run.config.model.name, run.config.model.options.to_dict()
    network = _network(name, options)
    rows = {
        (r.paper, r.row)
        for r in published.reproductions()
        if r.part is None and _network(r.variant, r.options) == network
    }
    if network == _network(name, {}):
        rows |= {(r.paper, r.row) for r in published.load() if r.row.lower() == name}
    found = {}
    for record in published.load():
        wanted = (record.metric, record.dataset) == ("miou", run.dataset)
        if wanted and (record.paper, record.row) in rows:
            number = (record.paper, record.split, record.value, record.input_size, record.remark)
            found.setdefault(number, record)
    return sorted(found.values(), key=lambda record: record.split != run.split)


def _network(variant: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a network computes with, by which two of them are the same whatever they are called."""
    model = models.create(variant, num_classes=1, **options)
    values = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return {"class": type(model), **{k: v for k, v in values.items() if k not in _TRAINING_ONLY}}


def printed_classes(run: Run) -> tuple[str, dict[str, Decimal]]:
    """IoU in percent by class name, as a table prints it for a run's network, and where; ("", {}) where none does.

    Of several tables it is one of the run's own split, if there is one.
    """
    names = {f"iou/{name.replace(' ', '_')}": name for name in run.table.class_names}
    rows = {(r.paper, r.row, r.dataset) for r in printed(run)}
    tables: dict[tuple[str, str | None], dict[str, Decimal]] = {}
    for record in published.load():
        if record.metric in names and (record.paper, record.row, record.dataset) in rows:
            table = tables.setdefault((record.place, record.split), {})
            table[names[record.metric]] = record.value
    if not tables:
        return "", {}
    place, split = min(tables, key=lambda table: table[1] != run.split)
    return ", ".join(filter(None, (place, split))), tables[place, split]
