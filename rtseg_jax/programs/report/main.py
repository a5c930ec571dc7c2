"""One self-contained page about a run, or about several side by side; also a program.

rtseg report RUN
rtseg report RUN --evaluation=evaluation_test --images=8
rtseg report RUN RUN --output=comparison.html

The page of a run shows its scores beside those that the papers print for its network, the curves, IoU per class, the
confusion, the images with the best and the worst mIoU of their own (their classes are predicted here, by the evaluated
checkpoint; --images=0 leaves them out) and the config. The page of several runs shows their curves and scores together,
the images on which they differ most, and where their configs differ. It is one file that needs no network and no server.
"""

import html
import json
import math
import pathlib
import string
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from rtseg_jax.base import config as settings
from rtseg_jax.base.files import absolute
from rtseg_jax.data.spec import ClassTable, Image3, Label
from rtseg_jax.inference import pictures
from rtseg_jax.programs.report import charts, runs
from rtseg_jax.programs.report.examples import Contrast, Picture, best_and_worst, most_different
from rtseg_jax.programs.shared.command_line import Flags, Given, Program
from rtseg_jax.programs.shared.process import prepare_process
from rtseg_jax.programs.shared.tables import NOTHING, percent

MAX_SIDE = 640  # of an embedded picture, in pixels


FIRST_CURVES = ("loss", "learning_rate", "miou")  # the others are a click away


SMALLEST_SHARE = 0.0005  # of a class's pixels that the heat map shows


LONGEST_NAME = 24  # beside it; what is longer is cut


MISTAKES = 6  # that are told in words


# What costs the pictures alone.
FAILURES = (ValueError, OSError, ImportError, jax.errors.JaxRuntimeError)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _size(size: Sequence[int] | None) -> str:
    return f"{size[0]}x{size[1]}" if size else ""


def _swatch(color: Sequence[int]) -> str:
    return f'<i class="swatch" style="background:{_css(color)}"></i>'


def _css(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>' if text else ""


def _section(key: str, title: str, body: str) -> str:
    return f'<section id="{key}"><h2>{title}</h2>\n{body}\n</section>\n' if body else ""


def _tile(what: str, figure: str, *remarks: str) -> str:
    small = "".join(f"<small>{_text(remark)}</small>" for remark in remarks if remark)
    return f"<div><dt>{_text(what)}</dt><dd>{_text(figure)}{small}</dd></div>"


def _head(name: str, kind: str = "", *, sorts: bool = True) -> str:
    """The head of a column; one that sorts is a button."""
    shown = f'<button type="button">{_text(name)}</button>' if sorts else _text(name)
    return f'<th scope="col" class="{kind}">{shown}</th>'


def _row_head(name: str, mark: str = "") -> str:
    """The head of a row; a dotted key may be broken after its dots."""
    return f'<th scope="row">{mark}{_text(name).replace(".", ".<wbr>")}</th>'


def _cell(text: Any) -> str:
    return f"<td>{_text(text)}</td>"


def _number(value: float | int | None, shown: str | None = None, kind: str = "") -> str:
    """A cell that is sorted by its value; a share that is shown in percent, if nothing else is."""
    key = "" if value is None else repr(value)
    text = _text(percent(value) if shown is None else shown)
    return f'<td class="number {kind}" data-key="{key}">{text}</td>'


def _table(kind: str, heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells, in a box that scrolls where the page is too narrow for it."""
    top = f"<thead><tr>{''.join(heads)}</tr></thead>" if heads else ""
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<div class="scroll"><table class="{kind}">{top}<tbody>\n{body}\n</tbody></table></div>\n'
    )


def _key(place: int) -> str:
    """A piece of the line that stands for a run in the charts."""
    return f'<i class="key {charts.color_class(place)}"></i>'


def _headline(run: runs.Run) -> str:
    given = run.evaluation
    evaluated = f"evaluated: step {given['step']:,}" if given else ""
    inclusive = "" if run.seconds is None else "evaluations included"
    tiles = [
        _tile("parameters", _count(run.parameters)),
        _tile("steps", _count(run.steps), evaluated),
        _tile("training time", _duration(run.seconds), inclusive),
    ]
    if given is None:
        unfinished = (
            "This run is not finished: there is no evaluation.json yet, only curves and the config."
        )
        return f'{_note(unfinished)}<dl class="tiles">{"".join(tiles)}</dl>'
    present = sum(iou is not None for iou in given["iou"].values())
    scores = [
        _tile(
            "mIoU, %",
            percent(given["miou"]),
            f"over {present} of {len(given['iou'])} classes",
            *(f"{r.place} prints {r.value} on {r.split}" for r in runs.printed(run)[:1]),
        ),
        _tile("pixel accuracy, %", percent(given["pixel_accuracy"])),
    ]
    more = {"mean_accuracy": "mean accuracy", "frequency_weighted_iou": "frequency-weighted IoU"}
    for key in more:
        if key in given:
            scores.append(_tile(f"{more[key]}, %", percent(given[key])))
    official = {"miou": "mIoU", "iiou": "iIoU", "category_iou": "category IoU"}
    for key in official if "official" in given else ():
        figure = percent(given["official"][key])
        scores.append(_tile(f"{official[key]}, %", figure, "by cityscapesscripts"))
    return f'<dl class="tiles scored">{"".join(scores + tiles)}</dl>{_printed(run)}'


def _printed(run: runs.Run) -> str:
    """The papers' rows of the network."""
    records = runs.printed(run)
    if not records:
        return ""
    rows = [[_cell(r.place), _number(float(r.value), str(r.value))] for r in records]
    heads = [_head("printed in", sorts=False), _head("mIoU, %", "number", sorts=False)]
    miou = run.evaluation["miou"]
    whole = run.config.input.get("num_eval") is None
    if whole and miou is not None and any(r.split == run.split for r in records):
        heads.append(_head("difference", "number", sorts=False))
        for r, cells in zip(records, rows, strict=True):
            difference = 100 * miou - float(r.value) if r.split == run.split else None
            cells.append(_number(difference, "" if difference is None else f"{difference:+.2f}"))
    columns = {
        "split": [r.split or "" for r in records],
        "row": [r.row for r in records],
        "input": [_size(r.input_size) for r in records],
        "remark": [r.remark or "" for r in records],
    }
    for name, texts in columns.items():
        if any(texts):
            heads.append(_head(name, sorts=False))
            for text, cells in zip(texts, rows, strict=True):
                cells.append(_cell(text))
    caption = (
        f"What the papers print for this network on {run.dataset}: their figures, not this run's."
    )
    return f'<div class="box">{_note(caption)}{_table("papers", heads, rows)}</div>'


def _curves(group: Sequence[runs.Run]) -> str:
    """Every figure that any run has logged."""
    splits = {run.config.input.eval_split for run in group}
    on = f" on {min(splits)}" if len(splits) == 1 else ""
    known = {
        "loss": ("Training loss", {"smooth": True}),
        "learning_rate": ("Learning rate", {}),
        "miou": (f"mIoU{on}, %", {"scale": 100.0}),
        "pixel_accuracy": (f"Pixel accuracy{on}, %", {"scale": 100.0}),
        "gradient_norm": ("Gradient norm", {"smooth": True}),
    }
    logged = dict.fromkeys(key for run in group for key in run.history)
    drawn = {}
    for key in (*(k for k in known if k in logged), *(k for k in logged if k not in known)):
        title, options = known.get(key, (key, {"smooth": True}))
        curves = [(run.name, run.history.get(key, [])) for run in group]
        drawn[key] = charts.chart(title, curves, **options)
    if not drawn:
        return _note("No curves: there is no metrics.jsonl, or nothing in it yet.")
    first = "".join(chart for key, chart in drawn.items() if key in FIRST_CURVES)
    other = "".join(chart for key, chart in drawn.items() if key not in FIRST_CURVES)
    names = "".join(f"<li>{_key(i)}{_text(run.name)}</li>" for i, run in enumerate(group))
    legend = f'<ul class="legend">{names}</ul>' if len(group) > 1 else ""
    more = f'<details><summary>More curves</summary><div class="charts">{other}</div></details>'
    return f'{legend}<div class="charts">{first}</div>{more if other else ""}'


def _classes(run: runs.Run) -> str:
    """Bars of IoU, with the paper's figure as a tick where one prints it."""
    given, palette = run.evaluation, run.table.palette
    pixels = np.sum(given["confusion"], axis=1)
    place, theirs = runs.printed_classes(run)
    rows = []
    for color, (name, iou), count in zip(palette, given["iou"].items(), pixels, strict=True):
        bar = f'<i style="width:{100 * (iou or 0):.2f}%;background:{_css(color)}"></i>'
        if name in theirs:
            bar += f'<b style="left:{theirs[name]}%"></b>'
        cells = [_row_head(name, _swatch(color)), f'<td class="bar"><div>{bar}</div></td>']
        cells.append(_number(iou))
        if theirs:
            value = theirs.get(name)
            cells.append(_number(value and float(value), str(NOTHING if value is None else value)))
        cells.append(_number(given["accuracy"][name], kind="wide"))
        cells.append(_number(float(count / max(pixels.sum(), 1)), kind="wide"))
        rows.append(cells)
    heads = [_head("class"), _head("", "bar", sorts=False), _head("IoU, %", "number")]
    heads += [_head("paper, %", "number")] if theirs else []
    heads += [_head(name, "number wide") for name in ("accuracy, %", "share of pixels, %")]
    tick = ""
    if theirs:
        mean = sum(theirs.values()) / len(theirs)
        tick = f"The tick on a bar is the IoU that {place} prints; the mean of these is {mean:.2f}."
    return _note(tick) + _table("classes sortable", heads, rows)


def _matrix(run: runs.Run) -> str:
    """The confusion as a heat map, each row as shares of its class; the script tells the counts."""
    counts = np.asarray(run.evaluation["confusion"], np.int64)
    names, k = run.table.class_names, len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = max(9, min(30, 640 // k))
    font = min(11, cell)
    start = 14 + round(0.6 * font * min(LONGEST_NAME, max(map(len, names))))
    side = start + k * cell
    parts = []
    for i, name in enumerate(names):
        along, across = f"{start + (i + 0.5) * cell:g}", start - 5
        shown = _text(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…")
        turned = f"translate({along} {across}) rotate(-90)"
        parts.append(f'<text class="y" x="{across}" y="{along}">{shown}</text>')
        parts.append(f'<text class="up" transform="{turned}">{shown}</text>')
    for i, j in zip(*np.nonzero(shares >= SMALLEST_SHARE), strict=True):
        share, x, y = shares[i, j], start + j * cell, start + i * cell
        kind = "right" if i == j else "wrong"
        area = f'x="{x}" y="{y}" width="{cell}" height="{cell}"'
        parts.append(f'<rect class="{kind}" {area} fill-opacity="{math.sqrt(share):.3f}"/>')
        if cell >= 24 and share >= 0.01:
            strong = " strong" if share > 0.55 else ""
            middle = f'x="{x + cell / 2:g}" y="{y + cell / 2:g}"'
            parts.append(f'<text class="share{strong}" {middle}>{100 * share:.0f}</text>')
    parts.append(
        f'<rect class="frame" x="{start}" y="{start}" width="{k * cell}" height="{k * cell}"/>'
    )
    parts.append(f'<rect class="cursor" width="{cell}" height="{cell}"/>')
    values = {"names": names, "counts": counts.tolist(), "start": start, "cell": cell}
    return (
        _note("Rows are the truth, columns the prediction, in % of the truth's pixels.")
        + f'<div class="scroll"><svg id="matrix" viewBox="0 0 {side + 2} {side + 2}"'
        f' style="--side:{side + 2}px;--font:{font}px" role="img"'
        f' aria-label="confusion matrix of {k} classes"'
        f' data-matrix="{_text(json.dumps(values, separators=(",", ":")))}">{"".join(parts)}</svg></div>'
        + _mistakes(run, shares)
    )


def _mistakes(run: runs.Run, shares: np.ndarray) -> str:
    wrong = shares * (1 - np.eye(len(shares)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]
    classes = [
        f"{_swatch(color)}{_text(name)}"
        for color, name in zip(run.table.palette, run.table.class_names, strict=True)
    ]
    lines = "".join(
        f"<li><b>{100 * wrong[i, j]:.1f} %</b> of {classes[i]} is taken for {classes[j]}</li>"
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j] > 0
    )
    return f'<h3>Most often mistaken</h3><ol class="mistaken">{lines}</ol>' if lines else ""


def _pictures(run: runs.Run, pictures: Sequence[Picture], note: str) -> str:
    how = (
        "By each image's own mIoU, over the classes that its truth or its prediction holds."
        " Drag from photo to prediction to truth."
    )
    figures = []
    for i, picture in enumerate(pictures):
        best = i < -(-len(pictures) // 2)
        rank = f"best {i + 1}" if best else f"worst {len(pictures) - i}"
        figures.append(_picture(picture, run.table, rank))
    shown = f'<div class="pictures">{"".join(figures)}</div>'
    return _note(how) + _note(note) + shown if figures else _note(note)


def _contrasts(contrasts: Sequence[Contrast], group: Sequence[runs.Run], note: str) -> str:
    """Photo, truth and each run's classes of some images, and the colours of the classes in them."""
    if not contrasts:
        return _note(note)
    table = next(run.table for run in group if run.evaluation)
    keys = {run.name: _key(i) for i, run in enumerate(group)}
    maps = [x.truth for x in contrasts]
    maps += [classes for x in contrasts for _, classes in x.predictions.values()]
    chips = "".join(
        f"<li>{_swatch(table.palette[c])}{_text(table.class_names[c])}</li>"
        for c in pictures.occurring(table, *maps)
    )
    how = "The images whose own mIoU, in %, lies farthest apart."
    return (
        f'{_note(how)}{_note(note)}<ul class="chips">{chips}</ul>'
        f'<div class="contrasts">{"".join(_contrast(x, table, keys) for x in contrasts)}</div>'
    )


def _contrast(contrast: Contrast, table: ClassTable, keys: dict[str, str]) -> str:
    maps = {"truth": contrast.truth}
    maps |= {f"of {name}": classes for name, (_, classes) in contrast.predictions.items()}
    uris, (w, h) = _embedded(contrast.photo, maps, table)
    best = max(miou for miou, _ in contrast.predictions.values())
    titles = ["photo", "truth"]
    for name, (miou, _) in contrast.predictions.items():
        figure = f'<b class="{_mark(miou, best)}">{percent(miou)}</b>'
        titles.append(f"{keys[name]}{_text(name)} {figure}")
    cells = "".join(
        f'<figure><img src="{uri}" width="{w}" height="{h}" alt="{_text(kind)}, {_text(contrast.name)}">'
        f"<figcaption>{title}</figcaption></figure>"
        for (kind, uri), title in zip(uris.items(), titles, strict=True)
    )
    return f'<h3>{_text(contrast.name)}</h3><div class="contrast">{cells}</div>\n'


def _picture(picture: Picture, table: ClassTable, rank: str) -> str:
    maps = {"prediction": picture.prediction, "truth": picture.truth}
    uris, (w, h) = _embedded(picture.photo, maps, table)
    layers = "".join(
        f'<img class="{name}" src="{uri}" width="{w}" height="{h}" draggable="false"'
        f' alt="{name} of {_text(picture.name)}">'
        for name, uri in uris.items()
    )
    colors = dict(zip(table.class_names, table.palette, strict=True))
    chips = "".join(
        f"<li>{_swatch(colors[name])}{_text(name)} <b>{100 * iou:.1f}</b></li>"
        for name, iou in picture.iou.items()
    )
    stops = "".join(
        f'<button type="button" data-at="{100 * i}">{name}</button>' for i, name in enumerate(uris)
    )
    return (
        f'<figure class="picture"><figcaption><b>{rank}</b> {_text(picture.name)}'
        f' <span class="miou">mIoU {percent(picture.miou)} %</span></figcaption>'
        f'<div class="view">{layers}<i class="edge"></i></div>'
        '<input type="range" min="0" max="200" value="50" aria-label="photo, prediction, truth">'
        f'<div class="stops">{stops}</div><ul class="chips">{chips}</ul></figure>\n'
    )


def _embedded(
    photo: Image3, maps: dict[str, Label], table: ClassTable
) -> tuple[dict[str, str], tuple[int, int]]:
    """The data URIs of a photo and of its class maps by name, and their (w, h)."""
    h, w = photo.shape[:2]
    shrink = min(1.0, MAX_SIDE / max(h, w))
    size = max(1, round(shrink * w)), max(1, round(shrink * h))
    small = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)
    colors = np.zeros((256, 3), np.uint8)  # ignored pixels are black
    colors[: table.num_classes] = table.palette
    uris = {"photo": pictures.data_uri(small, "jpeg", quality=82)}
    for name, classes in maps.items():
        ids = Image.fromarray(classes).resize(size, Image.Resampling.NEAREST)
        ids.putpalette(colors.tobytes())
        uris[name] = pictures.data_uri(ids, "png", optimize=True)
    return uris, size


def _values(config: ConfigDict) -> dict[str, str]:
    """Every value of a config as JSON, by its dotted key."""
    found = {}
    for key in settings.keys(config):
        value = settings.get(config, key)
        if not isinstance(value, ConfigDict):
            found[key] = json.dumps(value)
    return found


def _config(run: runs.Run) -> str:
    rows = [(_row_head(key), _cell(value)) for key, value in _values(run.config).items()]
    shown = _table("config", (), rows)
    return (
        f"<details><summary>All values of {_text(run.name)}/config.json</summary>{shown}</details>"
    )


def _manner(run: runs.Run) -> list[str]:
    """What else is to be known of how a run was evaluated."""
    given, annotation = run.evaluation or {}, run.config.input.get("annotation")
    manner = [f"{annotation} labels"] if annotation else []
    if given.get("size"):
        manner.append(f"seen at {_size(given['size'])}")
    if given.get("scales", [1.0]) != [1.0]:
        manner.append(f"scales {', '.join(f'{scale:g}' for scale in given['scales'])}")
    return [*manner, "mirrored too"] if given.get("flip") else manner


def run_page(run: runs.Run, pictures: Sequence[Picture] = (), note: str = "") -> str:
    """The page of one run as HTML.

    Args:
        run: Of runs.read().
        pictures: Of best_and_worst().
        note: A line about them, or why there are none.
    """
    about = [run.name, f"{run.dataset} {run.split}"]
    sections = [_section("curves", "Curves", _curves([run]))]
    if run.evaluation:
        about += [f"{run.evaluation['images']:,} images", *_manner(run)]
        sections += [
            _section("classes", "Classes", _classes(run)),
            _section("confusion", "Confusion", _matrix(run)),
            _section("images", "Best and worst images", _pictures(run, pictures, note)),
        ]
    sections.append(_section("config", "Config", _config(run)))
    title = f"{run.config.model.name} on {run.dataset}"
    return _page(title, about, _headline(run), sections)


def _comparable(group: Sequence[runs.Run]) -> bool:
    """Whether those of the runs that were evaluated were so on the same images and classes."""
    labelled = {
        (run.dataset, run.split, run.evaluation["images"], run.table.class_names)
        for run in group
        if run.evaluation
    }
    return len(labelled) == 1


def comparison_page(
    group: Sequence[runs.Run], contrasts: Sequence[Contrast] = (), why_none: str = ""
) -> str:
    """The page of several runs side by side as HTML.

    Args:
        group: Of runs.read().
        contrasts: Of most_different().
        why_none: A line about why there are none.
    """
    evaluated = [run for run in group if run.evaluation]
    comparable, note = _comparable(group), ""
    if evaluated and not comparable:
        listed = "; ".join(
            f"{run.name}: {run.dataset} {run.split}, {run.evaluation['images']} images"
            f" of {run.table.num_classes} classes"
            for run in evaluated
        )
        note = f"These scores are of different data, so none is marked as the best. {listed}."
    sections = [
        _section("curves", "Curves", _curves(group)),
        _section("classes", "IoU per class", _classes_side_by_side(group, comparable)),
        _section("images", "Where they differ most", _contrasts(contrasts, group, why_none)),
        _section("config", "Where the configs differ", _differences(group)),
    ]
    head = f'<div class="box">{_note(note)}{_runs_side_by_side(group, comparable)}</div>'
    return _page(f"{len(group)} runs", [run.name for run in group], head, sections)


def _best(values: Iterable[float | None], comparable: bool) -> float | None:
    return max((v for v in values if v is not None), default=None) if comparable else None


def _mark(value: float | None, best: float | None) -> str:
    return "best" if value is not None and value == best else ""


def _runs_side_by_side(group: Sequence[runs.Run], comparable: bool) -> str:
    given = [run.evaluation or {} for run in group]
    best = _best((scores.get("miou") for scores in given), comparable)
    rows = []
    for i, (run, scores) in enumerate(zip(group, given, strict=True)):
        miou = scores.get("miou")
        rows.append(
            [
                _row_head(run.name, _key(i)),
                _number(miou, None if scores else "not finished", _mark(miou, best)),
                _number(scores.get("pixel_accuracy")),
                _cell(run.config.model.name),
                _cell(", ".join((f"{run.dataset} {run.split}", *_manner(run)))),
                _number(run.parameters, _count(run.parameters)),
                _number(scores.get("step"), _count(scores.get("step"))),
                _number(run.steps, _count(run.steps)),
                _number(run.seconds, _duration(run.seconds)),
            ]
        )
    heads = [_head("run"), _head("mIoU, %", "number"), _head("pixel accuracy, %", "number")]
    heads += [_head("network"), _head("data")]
    heads += [_head(name, "number") for name in ("parameters", "evaluated step", "steps", "time")]
    return _table("runs sortable", heads, rows)


def _classes_side_by_side(group: Sequence[runs.Run], comparable: bool) -> str:
    finished = [run for run in group if run.evaluation]
    colors = {
        name: color
        for run in reversed(finished)
        for name, color in zip(run.table.class_names, run.table.palette, strict=True)
    }
    order = dict.fromkeys(name for run in finished for name in run.table.class_names)
    rows = []
    for name in order:
        values = [run.evaluation["iou"].get(name) for run in finished]
        best = _best(values, comparable)
        numbers = [_number(value, kind=_mark(value, best)) for value in values]
        rows.append([_row_head(name, _swatch(colors[name])), *numbers])
    heads = [_head("IoU, %"), *(_head(run.name, "number") for run in finished)]
    return _table("sortable", heads, rows) if rows else ""


def _differences(group: Sequence[runs.Run]) -> str:
    configs = [_values(run.config) for run in group]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = [
        [_row_head(key), *(_cell(config.get(key, NOTHING)) for config in configs)]
        for key in keys
        if len({config.get(key) for config in configs}) > 1
    ]
    heads = [_head(name, sorts=False) for name in ("", *(run.name for run in group))]
    return _table("config", heads, rows) if rows else _note("The configs are equal.")


def _page(title: str, about: Sequence[str], head: str, sections: Sequence[str]) -> str:
    template = (resources.files("rtseg_jax") / "report.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        title=_text(title),
        about=" · ".join(map(_text, about)),
        opacity=pictures.OPACITY,
        head=head,
        sections="".join(sections),
    )


def write_report(
    workdirs: Sequence[pathlib.Path],
    *,
    output: pathlib.Path | None = None,
    evaluation: str | None = None,
    images: int = 6,
    root: str | None = None,
) -> pathlib.Path:
    """Writes the page of a run, or of several.

    Args:
        workdirs: Folders of the runs.
        output: The file; None for report.html in the run's folder, or comparison.html here.
        evaluation: Of runs.read(); of several runs, each has its own in its folder.
        images: How many pictures, 0 for none.
        root: The data set's folder, if it has moved.

    Returns:
        The file.

    Raises:
        ValueError: no run, one twice, or an output that is a folder; or as of runs.read().
        FileNotFoundError: as of runs.read(), or no folder for the output.
    """
    if not workdirs or len(set(workdirs)) < len(workdirs):
        raise ValueError("give the folder of a run, or those of several different ones")
    alone = len(workdirs) == 1
    output = output or (workdirs[0] / "report.html" if alone else pathlib.Path("comparison.html"))
    group = runs.read_several(workdirs, evaluation)
    for run in group:
        if not alone and evaluation and run.workdir not in run.evaluated.parents:
            raise ValueError(
                f"--evaluation={evaluation} is not in {run.workdir}; of several runs each has its own"
            )
    if output.is_dir():
        raise ValueError(f"--output={output} is a folder; give a file, as {output / 'report.html'}")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder; create it first")
    if alone:
        page = run_page(group[0], *_pictures_or_why_not(group[0], images, root))
    else:
        page = comparison_page(group, *_contrasts_or_why_not(group, images, root))
    output.write_text(page, encoding="utf-8")
    return output


def _pictures_or_why_not(run: runs.Run, images: int, root: str | None) -> tuple[list[Picture], str]:
    if not run.evaluation or not images:
        return [], ""
    try:
        return best_and_worst(run, images, root)
    except FAILURES as error:
        return [], _why_not(error)


def _contrasts_or_why_not(
    group: Sequence[runs.Run], images: int, root: str | None
) -> tuple[list[Contrast], str]:
    evaluated = [run for run in group if run.evaluation]
    if len(evaluated) < 2 or not _comparable(group) or not images:
        return [], ""
    try:
        return most_different(evaluated, images, root), ""
    except FAILURES as error:
        return [], _why_not(error)


def _why_not(error: Exception) -> str:
    why = " ".join(str(error).split())
    print(f"no pictures: {why}")
    return f"No pictures: {why}"


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.path("output", "File; RUN/report.html if not given, comparison.html of several runs.")
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


PROGRAM = Program(__doc__, define, main, takes="folders of runs")
