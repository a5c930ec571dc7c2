"""Bench's figures as tables and as a picture."""

import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rtseg_jax.base.extras import optional
from rtseg_jax.models import published
from rtseg_jax.programs.shared import tables

BACKENDS = ("jax", "torch", "onnxruntime")

# The row of a network in its paper's tables of speed. EACNet's Tables 1 and 3 print no size; Table 4 has the same
# networks and figures at 512x1024.
PAPER_ROWS = {
    "erfnet": ("EACNet", "ERFNet-base"),
    "erfnet_encoder": ("EACNet", "ERFNet-enc"),
    "eacnet_erfnet": ("EACNet", "EACNet-ERF"),
    "eacnet_erfnet_nonlocal": ("EACNet", "EACNet-erf-nl"),
    "dabnet": ("EACNet", "DABNet"),
    "eacnet_dabnet": ("EACNet", "EACNet-DAB"),
    "carnet_resnet50": ("CARNet", "CARNet-ResNet50"),
    "carnet_resnet101": ("CARNet", "CARNet-ResNet101"),
    "carnet_resnet152": ("CARNet", "CARNet-ResNet152"),
    "carnet_mobilenet": ("CARNet", "CARNet-Mobile"),
    "affnet": ("AFFNet", "AFFNet"),
    "spssnet": ("AFFNet", "SPSSNet"),
    "asap": ("ASAP", "ASAP"),
}

UNPRINTED_SIZE = {("EACNet", "1"): (512, 1024), ("EACNet", "3"): (512, 1024)}

# Part of the machine's processor time that other processes may have had before the tables warn.
FOREIGN = 0.05
Record = dict[str, Any]


def paper_fps(variant: str, size: tuple[int, int]) -> published.Record | None:
    """The frames per second that a network's own paper measured at this size (h, w), without TensorRT."""
    paper, row = PAPER_ROWS.get(variant, (None, None))
    for record in published.load(paper.lower()) if paper else ():
        printed = record.input_size or UNPRINTED_SIZE.get((paper, record.table))
        if (record.row, record.metric, printed) == (row, "fps", size) and record.gpu:
            return record
    return None


def paper_miou(variant: str) -> published.Record | None:
    """The mIoU on Cityscapes that a network's own paper prints beside its frames per second, in %."""
    paper, row = PAPER_ROWS.get(variant, (None, None))
    for record in published.load(paper.lower()) if paper else ():
        if (record.row, record.metric, record.dataset) == (row, "miou", "Cityscapes"):
            return record
    return None


def name_of(rival: Record) -> str:
    """How a rival is called in tables: "torch channels_last"."""
    flags_ = f" {rival['flags']}" if rival["flags"] else ""
    return f"{rival['backend']} {rival['variant']}{flags_}"


def _best(lines: Iterable[Record], backend: str) -> Record | None:
    ours = [x for x in lines if x["backend"] == backend and "ms" in x and not x["flags"]]
    return min(ours, key=lambda x: x["ms"], default=None)


def _group(lines: Iterable[Record], *names: str) -> dict[tuple, list[Record]]:
    groups: dict[tuple, list[Record]] = {}
    for line in lines:
        groups.setdefault(tuple(line[name] for name in names), []).append(line)
    return groups


def markdown(lines: Sequence[Record]) -> str:
    """Tables of ours against the best rival for each device, type and clock, then every rival by itself."""
    text = []
    names = ("platform", "device", "tf32", "dtype", "batch", "num_classes", "mode")
    for key, group in _group(lines, *names).items():
        text += [*_section(dict(zip(names, key, strict=True)), group), ""]
    titles = ("network", "size", "clock", "type", "rival", "ms", "lowest - highest", "p95", "FPS")
    text += [
        "## Every rival",
        "",
        *tables.header(*titles, "compile, s", "temporary, MiB", "same classes"),
    ]
    for line in lines:
        size = f"{line['height']}x{line['width']}"
        start = (line["model"], size, line["mode"], line["dtype"], name_of(line))
        if "ms" not in line:
            text.append(tables.row(*start, line["error"].replace("|", "/"), *[""] * 6))
            continue
        spread = f"{line['ms_low']:.2f} - {line['ms_high']:.2f}"
        p95 = f"{line['p95']:.2f}" if "p95" in line else ""
        same = f"{100 * line['agreement']:.2f} %" if "agreement" in line else ""
        rest = (f"{line['ms']:.2f}", spread, p95, f"{line['fps']:.1f}")
        rest += (f"{line['compile_seconds']:.1f}", _mebibytes(line), same)
        text.append(tables.row(*start, *rest))
    return "\n".join(text) + "\n"


def _section(key: Record, lines: Sequence[Record]) -> list[str]:
    versions: Record = {}
    for line in lines:
        versions |= line.get("versions", {})
    state = "glibc malloc tuned" if key["platform"] == "cpu" else f"TF32 {key['tf32']}"
    facts = [f"{key['device']}, {state}", ", ".join(f"{k} {v}" for k, v in versions.items())]
    foreign = max((line.get("foreign", 0.0) for line in lines), default=0.0)
    facts.append(f"other processes took at most {foreign:.0%} of the machine's processors")
    if foreign > FOREIGN:
        facts.append("**too much: these figures are not to be quoted**")
    title = f"## {key['mode']}, {key['dtype']}, batch {key['batch']}, {key['num_classes']} classes"
    titles = ("network", "size", "ours, ms", "FPS", "best torch, ms", "which", "torch / ours")
    titles += ("onnxruntime, ms", "onnxruntime / ours", "compile, s", "temporary, MiB")
    text = [title, "", "; ".join(facts), "", *tables.header(*titles, "the paper's FPS")]
    ratios = []
    for (model, height, width), group in _group(lines, "model", "height", "width").items():
        ours, torch, ort = (_best(group, backend) for backend in BACKENDS)
        cells = [model, f"{height}x{width}"]
        cells += [f"{ours['ms']:.2f}", f"{ours['fps']:.1f}"] if ours else ["-", "-"]
        cells += [f"{torch['ms']:.2f}", torch["variant"]] if torch else ["-", "-"]
        cells.append(_times(torch, ours))
        cells += [f"{ort['ms']:.2f}" if ort else "-", _times(ort, ours)]
        cells += [f"{ours['compile_seconds']:.1f}", _mebibytes(ours)] if ours else ["-", "-"]
        paper = None if key["mode"] == "train" else paper_fps(model, (height, width))
        cells.append(f"{paper.value} ({paper.gpu}; {paper.place})" if paper else "")
        text.append(tables.row(*cells))
        if ours and torch:
            ratios.append(torch["ms"] / ours["ms"])
    if ratios:
        mean = statistics.geometric_mean(ratios)
        text += ["", f"Against the best torch, geometric mean of {len(ratios)}: {mean:.2f}."]
    return text


def _times(other: Record | None, ours: Record | None) -> str:
    return f"{other['ms'] / ours['ms']:.2f}" if other and ours else "-"


def _mebibytes(line: Record) -> str:
    count = line.get("temporary_bytes")
    return "" if count is None else f"{count / 2**20:.0f}"


def picture(lines: Sequence[Record], path: pathlib.Path) -> None:
    """FPS against parameters, multiply-adds and the paper's mIoU: ours, the best torch, and the papers' own points.

    Raises:
        ValueError: matplotlib is missing, or there is no figure of throughput.
    """
    figures, agg = (
        optional(f"matplotlib.{part}", "bench") for part in ("figure", "backends.backend_agg")
    )
    lines = [line for line in lines if line["mode"] == "throughput" and "ms" in line]
    groups = _group(lines, "device", "dtype", "batch", "height", "width")
    if not groups:
        raise ValueError("no line of throughput to draw; measure with --mode=throughput first")
    figure = figures.Figure(figsize=(15, 4.5 * len(groups)), layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes = figure.subplots(len(groups), 3, squeeze=False)
    for row, ((device, dtype, batch, height, width), group) in zip(
        axes, groups.items(), strict=True
    ):
        titles = ("parameters, 10^6", "multiply-adds, 10^9", "the paper's mIoU on Cityscapes, %")
        for axis, title in zip(row, titles, strict=True):
            axis.set(xlabel=title, ylabel="FPS", yscale="log")
            axis.grid(alpha=0.3, which="both")
        row[1].set_title(f"{device}, {height}x{width}, {dtype}, batch {batch}")
        labels = set()
        for (model,), of_model in _group(group, "model").items():
            paper, miou = paper_fps(model, (height, width)), paper_miou(model)
            points = [
                ("jax", "o", "C0", _best(of_model, "jax")),
                ("best torch", "s", "C1", _best(of_model, "torch")),
                ("onnxruntime", "^", "C2", _best(of_model, "onnxruntime")),
                ("paper", "x", "C3", paper and {"fps": float(paper.value)}),
            ]
            costs = (
                of_model[0]["parameters"] / 1e6,
                of_model[0]["macs"] / 1e9,
                miou and miou.value,
            )
            for axis, cost in zip(row, costs, strict=True):
                for label, marker, color, point in points:
                    if cost is None or point is None:
                        continue
                    shown = label if (axis is row[0] and label not in labels) else None
                    labels.add(label)
                    axis.scatter(float(cost), point["fps"], marker=marker, c=color, label=shown)
                    if label == "jax":
                        at = (float(cost), point["fps"])
                        axis.annotate(model, at, (3, 3), textcoords="offset points", fontsize=7)
        row[0].legend()
    figure.savefig(path, dpi=120)


def layer_table(case: Record, answer: Record) -> str:
    """Markdown: each module of a network, timed alone."""
    whole = answer["whole_ms"]
    title = (
        f"{case['model']}, {case['height']}x{case['width']}, batch {case['batch']}, {case['dtype']}"
    )
    text = [
        f"## {title}: {whole:.2f} ms",
        "",
        "Each module compiled and timed alone, its BatchNorms folded; a row holds the rows below its path. Sums, resizes",
        "and fusion between modules are in the whole alone, so shares do not add up to 100 %.",
        "",
        *tables.header(
            "module", "kind", "input", "calls", "ms each", "share", "GMAC each", "GMAC/s"
        ),
    ]
    for row in answer["rows"]:
        inputs = ", ".join("x".join(map(str, shape)) for shape in row["inputs"])
        share = f"{100 * row['calls'] * row['ms'] / whole:.1f} %"
        macs = row["macs"] / 1e9
        cells = (row["path"], row["kind"], inputs, row["calls"], f"{row['ms']:.3f}", share)
        text.append(tables.row(*cells, f"{macs:.3f}", f"{1000 * macs / row['ms']:.1f}"))
    return "\n".join(text) + "\n"
