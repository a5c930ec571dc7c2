"""One self-contained page about a run or a network, or about several side by side.

rtseg report RUN
rtseg report RUN --evaluation=evaluation_test --images=8
rtseg report RUN RUN --output=comparison.html
rtseg report eacnet_dabnet_camvid --evaluation=evaluation_test --root=CAMVID

The page of a run shows its scores beside those that the papers print for its network, the curves, IoU per class, the
confusion, the images with the best and the worst mIoU of their own (their classes are predicted here, by the evaluated
checkpoint; --images=0 leaves them out) and the config. A bundle, or a network that comes with the package, has the same page
but for the curves; its scores are those that `rtseg evaluate --network` wrote. The page of several runs shows their curves
and scores together, the images on which they differ most, and where their configs differ. It is one file that needs no
server and fetches nothing.

Here the figures of a page are computed, as one dictionary; templates/ draws them.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np
from ml_collections import ConfigDict

from rtseg_jax.base import config as settings
from rtseg_jax.base.files import absolute
from rtseg_jax.inference import pictures
from rtseg_jax.programs.report import charts, examples, runs
from rtseg_jax.programs.shared.command_line import Flags, Given, Program
from rtseg_jax.programs.shared.process import prepare_process

NOTHING = "–"  # in place of a figure that is not there
FIRST_CURVES = ("loss", "learning_rate", "miou")  # the others are a click away
SMALLEST_SHARE = 0.0005  # of a class's pixels that the heat map shows
LONGEST_NAME = 24  # beside it; what is longer is cut
MISTAKES = 6  # that are told in words


# Figures of one run


def _facts(run: runs.Run) -> dict[str, Any]:
    """Gathers what either page tells of a run."""
    return {
        "name": run.name,
        "network": run.config.model.name,
        "dataset": run.dataset,
        "split": run.split,
        "manner": _manner(run),
        "evaluation": run.evaluation,
        "parameters": run.parameters,
        "steps": run.steps,
        "seconds": run.seconds,
        "in_a_file": not run.place.is_dir(),
    }


def _manner(run: runs.Run) -> list[str]:
    """Tells what else is to be known of how a run was evaluated."""
    given, annotation = run.evaluation or {}, run.config.input.get("annotation")
    manner = [f"{annotation} labels"] if annotation else []
    if given.get("size"):
        manner.append(f"seen at {_size(given['size'])}")
    if given.get("scales", [1.0]) != [1.0]:
        manner.append(f"scales {', '.join(f'{scale:g}' for scale in given['scales'])}")
    if given.get("dtype", "float32") != "float32":
        manner.append(f"computed in {given['dtype']}")
    if given.get("left_out"):
        manner.append(f"without {', '.join(given['left_out'])}, which could not be read")
    return [*manner, "mirrored too"] if given.get("flip") else manner


def _size(size: Sequence[int] | None) -> str:
    return f"{size[0]}x{size[1]}" if size else ""


def _printed(run: runs.Run) -> list[dict[str, Any]]:
    """Lists the papers' rows of the network; only figures of the evaluated split, whole, are compared."""
    miou = run.evaluation["miou"]
    compared = run.config.input.get("num_eval") is None and miou is not None
    return [
        {
            "place": r.place,
            "value": r.value,
            "difference": 100 * miou - float(r.value)
            if compared and r.split == run.split
            else None,
            "split": r.split,
            "row": r.row,
            "input": _size(r.input_size),
            "remark": r.remark,
        }
        for r in runs.printed(run)
    ]


def _curves(group: Sequence[runs.Run]) -> list[dict[str, Any]]:
    """Lists every figure that any run has logged, as arguments of `charts.chart`."""
    splits = {run.config.input.get("eval_split", "") for run in group}
    on = f" on {min(splits)}" if len(splits) == 1 else ""
    known = {
        "loss": ("Training loss", 1.0, True),
        "learning_rate": ("Learning rate", 1.0, False),
        "miou": (f"mIoU{on}, %", 100.0, False),
        "pixel_accuracy": (f"Pixel accuracy{on}, %", 100.0, False),
        "gradient_norm": ("Gradient norm", 1.0, True),
    }
    logged = dict.fromkeys(key for run in group for key in run.history)
    found = []
    for key in (*(k for k in known if k in logged), *(k for k in logged if k not in known)):
        title, scale, smooth = known.get(key, (key, 1.0, True))
        curves = [(run.name, run.history.get(key, [])) for run in group]
        found.append({"title": title, "curves": curves, "scale": scale, "smooth": smooth})
        found[-1]["first"] = key in FIRST_CURVES
    return found


def _paper(run: runs.Run) -> dict[str, Any] | None:
    """Says where a paper prints the IoU of the classes, if one does, and their mean."""
    place, theirs = runs.printed_classes(run)
    return {"place": place, "mean": sum(theirs.values()) / len(theirs)} if theirs else None


def _classes(run: runs.Run) -> list[dict[str, Any]]:
    given, (_, theirs) = run.evaluation, runs.printed_classes(run)
    pixels = np.sum(given["confusion"], axis=1)
    return [
        {
            "name": name,
            "color": examples.css(color),
            "iou": given["iou"][name],
            "paper": theirs.get(name),
            "accuracy": given["accuracy"][name],
            "share": float(count / max(pixels.sum(), 1)),
        }
        for name, color, count in zip(given["iou"], run.table.palette, pixels, strict=True)
    ]


def _confusion(run: runs.Run) -> dict[str, Any]:
    """Computes the shares of each class's pixels, the largest mistakes among them, and the map's measures in pixels."""
    counts = np.asarray(run.evaluation["confusion"], np.int64)
    names, k = run.table.class_names, len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = shares * (1 - np.eye(k))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES].tolist()
    mistakes = [(*divmod(at, k), float(wrong.flat[at])) for at in largest if wrong.flat[at] > 0]
    cell = max(9, min(30, 640 // k))
    font = min(11, cell)
    return {
        "names": names,
        "shown": [n if len(n) <= LONGEST_NAME else f"{n[: LONGEST_NAME - 1]}…" for n in names],
        "counts": counts.tolist(),
        "shares": [(i, j, shares[i, j]) for i, j in np.argwhere(shares >= SMALLEST_SHARE).tolist()],
        "mistakes": mistakes,
        "cell": cell,
        "font": font,
        "start": 14 + round(0.6 * font * min(LONGEST_NAME, max(map(len, names)))),
    }


def _values(config: ConfigDict) -> dict[str, str]:
    """Spells every value of a config as JSON, by its dotted key."""
    found = {}
    for key in settings.keys(config):
        value = settings.get(config, key)
        if not isinstance(value, ConfigDict):
            found[key] = json.dumps(value)
    return found


def run_figures(run: runs.Run, images: dict[str, Any]) -> dict[str, Any]:
    """Computes what the page of one run shows.

    Args:
        run: What `runs.read` tells.
        images: The result of `examples.figures`.
    """
    about = [run.name, f"{run.dataset} {run.split}", *run.about]
    found = {
        "title": f"{run.config.model.name} on {run.dataset}",
        "about": about,
        "runs": [_facts(run)],
        "charts": _curves([run]),
        "config": _values(run.config),
        "printed": [],
    }
    if not run.evaluation:
        return found
    return found | {
        "about": [*about, f"{run.evaluation['images']:,} images", *_manner(run)],
        "printed": _printed(run),
        "paper": _paper(run),
        "classes": _classes(run),
        "confusion": _confusion(run),
        "images": images,
    }


# Figures of several


def comparison_figures(group: Sequence[runs.Run], images: dict[str, Any]) -> dict[str, Any]:
    """Computes what the page of several runs shows; arguments as of `run_figures`."""
    evaluated = [run for run in group if run.evaluation]
    comparable = runs.comparable(group)
    mious = [run.evaluation["miou"] for run in evaluated]
    return {
        "title": f"{len(group)} runs",
        "about": [run.name for run in group],
        "runs": [_facts(run) for run in group],
        "evaluated": [_facts(run) for run in evaluated],
        "best": _best(mious) if comparable else None,
        "different_data": bool(evaluated) and not comparable,
        "charts": _curves(group),
        "classes": _classes_side_by_side(evaluated, comparable),
        "images": images,
        "config": _differences(group),
    }


def _best(values: Sequence[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)


def _classes_side_by_side(evaluated: Sequence[runs.Run], comparable: bool) -> list[dict[str, Any]]:
    colors = {
        name: color
        for run in reversed(evaluated)
        for name, color in zip(run.table.class_names, run.table.palette, strict=True)
    }
    rows = []
    for name in dict.fromkeys(name for run in evaluated for name in run.table.class_names):
        ious = [run.evaluation["iou"].get(name) for run in evaluated]
        best = _best(ious) if comparable else None
        color = examples.css(colors[name])
        rows.append({"name": name, "color": color, "ious": ious, "best": best})
    return rows


def _differences(group: Sequence[runs.Run]) -> dict[str, list[str | None]]:
    configs = [_values(run.config) for run in group]
    rows = {key: [c.get(key) for c in configs] for config in configs for key in config}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


# Pages


def figures(group: Sequence[runs.Run], images: int = 6, root: str | None = None) -> dict[str, Any]:
    """Computes what the page of a run, or of several, shows.

    Args:
        group: What `runs.read_several` tells.
        images: How many pictures, 0 for none.
        root: The data set's folder, if it has moved.
    """
    shown = examples.figures(group, images, root)
    if len(group) == 1:
        return run_figures(group[0], shown)
    return comparison_figures(group, shown)


def percent(value: float | None) -> str:
    """Spells a share in percent."""
    return NOTHING if value is None or not math.isfinite(value) else f"{100 * value:.2f}"


def thousands(value: int | None) -> str:
    """Spells a number with commas between its thousands."""
    return NOTHING if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """Spells a time in hours and minutes, or in the seconds that it is short of one."""
    if seconds is None:
        return NOTHING
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def draw(found: dict[str, Any]) -> str:
    """Draws the figures of a page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = (percent, thousands, duration, charts.color_class)
    environment.filters |= {function.__name__: function for function in shown}
    environment.globals |= {"chart": charts.chart, "nothing": NOTHING, "opacity": pictures.OPACITY}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    name = "run.html" if len(found["runs"]) == 1 else "comparison.html"
    return environment.get_template(name).render(found)


def write_report(
    places: Sequence[pathlib.Path],
    *,
    output: pathlib.Path | None = None,
    evaluation: str | None = None,
    images: int = 6,
    root: str | None = None,
) -> pathlib.Path:
    """Writes the page of a run or network, or of several.

    Args:
        places: Folders of runs, or networks; see `runs.read`.
        output: The file; None for report.html in the run's folder, of a network here, or comparison.html here.
        evaluation: The argument of `runs.read`; of several runs, each has its own in its folder.
        images: How many pictures, 0 for none.
        root: The data set's folder, if it has moved.

    Returns:
        The file.

    Raises:
        ValueError: no run, one twice, or an output that is a folder; or as of runs.read().
        FileNotFoundError: as of runs.read(), or no folder for the output.
    """
    if not places or len(set(places)) < len(places):
        raise ValueError("give the folder of a run, or those of several different ones")
    alone = len(places) == 1
    folder = places[0] if alone and places[0].is_dir() else pathlib.Path()
    output = output or folder / ("report.html" if alone else "comparison.html")
    group = runs.read_several(places, evaluation)
    for run in group:
        if not alone and evaluation and run.place not in run.evaluated.parents:
            raise ValueError(
                f"--evaluation={evaluation} is not in {run.place}; of several runs each has its own"
            )
    if output.is_dir():
        raise ValueError(f"--output={output} is a folder; give a file, as {output / 'report.html'}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder; create it first")
    output.write_text(draw(figures(group, images, root)), encoding="utf-8")
    return output


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.path(
        "output",
        "File; RUN/report.html if not given, report.html of a network, comparison.html of several.",
    )
    flags.string("evaluation", "evaluation.json or its folder, in RUN or anywhere.")
    flags.count("images", "How many pictures.", 6, low=0)
    flags.string("root", "The data set's folder, if it has moved.")


def main(given: Given, runs: list[str]) -> None:
    """Writes the page."""
    prepare_process()
    written = write_report(
        [absolute(path) for path in runs],
        output=given.output,
        evaluation=given.evaluation,
        images=given.images,
        root=given.root,
    )
    print(f"written: {written} ({written.stat().st_size / 1e6:.2f} MB)")


PROGRAM = Program(__doc__, define, main, takes="folders of runs, or networks")
