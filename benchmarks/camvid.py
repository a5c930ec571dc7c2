"""Trains and compares networks on CamVid: the papers' recipes, ours, and what the papers claim of their parts.

python benchmarks/camvid.py run --root=DIR --runs=RUNS            # everything that camvid.jsonl lacks; may be interrupted
python benchmarks/camvid.py run ... --only='^asap' --seeds=0 --parallel=3 -- --config.dtype=bfloat16
python benchmarks/camvid.py list                                  # what there is to run
python benchmarks/camvid.py add RUN "CONFIG --config.KEY=VALUE"   # a run that was started by hand
python benchmarks/camvid.py table                                 # camvid.md and camvid.png from camvid.jsonl
python benchmarks/camvid.py pictures --root=DIR RUN               # its best and worst test images
python benchmarks/camvid.py pictures --root=DIR RUN OTHER         # the test images on which two runs differ most

Each experiment is trained with each seed, goes on where it was interrupted, and is evaluated on test once, when it is done:
with the best checkpoint on val after training on train, with the last one after training on train and val. Nothing is
chosen by test. A run that another one begins with (EACNet's second stage) is trained before it.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
from typing import Any

from rtseg_jax.programs.report.runs import read as read_run
from rtseg_jax.programs.report.runs import read_several
from rtseg_jax.programs.shared import tables

HERE = pathlib.Path(__file__).resolve().parent
LINES = HERE / "camvid.jsonl"
IMAGES = HERE / "camvid_images.jpg"
TRAINVAL = ("--config.input.train_split=trainval", "--config.eval.every_epochs=1000000")

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained.

    Attributes:
        config: What follows --config=.
        options: More of the command line.
        after: The experiment whose weights it begins with.
    """

    config: str
    options: tuple[str, ...] = ()
    after: str = ""

    @property
    def together(self) -> bool:
        """Whether train and val are trained on together."""
        return TRAINVAL[0] in self.options or ",trainval" in self.config


def _on_both(name: str, config: str, after: str = "") -> dict[str, Experiment]:
    """A paper's recipe on train, and on train and val."""
    return {
        name: Experiment(config, after=after),
        f"{name}+val": Experiment(config, TRAINVAL, after and f"{after}+val"),
    }


def _two_stages(network: str, backbone: str) -> dict[str, Experiment]:
    """EACNet's training (Section 4.1) with both attentions, and the control that the paper lacks."""
    first = f"{network}_alone"
    return {
        **_on_both(first, f"eacnet:{backbone},camvid,stage1"),
        **_on_both(network, f"eacnet:{backbone},camvid,stage2", first),
        **_on_both(f"{network}_nonlocal", f"eacnet:{backbone},camvid,stage2,non_local", first),
        **_on_both(f"{network}_control", f"eacnet:{backbone},camvid,control", first),
    }


NETWORKS = (
    *(
        "eacnet_dabnet",
        "eacnet_erfnet",
        "dabnet",
        "erfnet_encoder",
        "erfnet",
        "affnet",
        "fast_scnn",
    ),
    *("asap", "carnet_mobilenet", "carnet_resnet50", "carnet_resnet101", "carnet_resnet152"),
)
_CARNET = {
    "carnet:modules=0": ("bs", ()),
    **{
        f"carnet:modules={n}": ("carmodule", (f"--config.model.options.num_modules={n}",))
        for n in (1, 2, 3, 4)
    },
    "carnet:scloss=bce": ("scloss", ()),
    "carnet:scloss=paper": ("scloss", ("--config.loss.semantic=paper",)),
    "carnet:crp": ("carnet", ()),
}
# OWFL's alpha (AFFNet, Eqs. 4 and 5) of the training labels.
_WEIGHTED = "(0.1276,0.0978,0.7646,0.0760,0.3527,0.1990,0.7184,0.7291,0.2922,0.8658,1.0000)"
_LOSSES = {
    "owfl+cel": (),
    "cel": ("--config.loss.kind=cross_entropy",),
    "weighted": ("--config.loss.kind=cross_entropy", f"--config.loss.class_weights={_WEIGHTED}"),
    "ohem": ("--config.loss.kind=ohem",),
}
EXPERIMENTS: dict[str, Experiment] = {
    **_two_stages("eacnet_dabnet", "dabnet"),
    **_two_stages("eacnet_erfnet", "erfnet"),
    **_on_both("erfnet", "erfnet:base,camvid"),
    **_on_both("affnet", "affnet:camvid"),
    **_on_both("fast_scnn", "fast_scnn:camvid"),
    **_on_both("asap", "asap:camvid"),
    **{
        name: run
        for backbone in ("mobilenet", "resnet50", "resnet101", "resnet152")
        for name, run in _on_both(f"carnet_{backbone}", f"carnet:{backbone},camvid").items()
    },
    **{
        f"best:{name}{end}": Experiment(f"camvid_best:{name},{split}")
        for name in NETWORKS
        for end, split in (("", "train"), ("+val", "trainval"))
    },
    **{
        name: Experiment(f"carnet:mobilenet,camvid,{row}", options)
        for name, (row, options) in _CARNET.items()
    },
    **{
        f"affnet:loss={name}": Experiment("affnet:camvid", options)
        for name, options in _LOSSES.items()
    },
    **{
        f"asap:fusion={word.replace('no_fusion', 'none')}": Experiment(
            f"asap:camvid,{word},no_attention"
        )
        for word in ("ffdn", "ln", "in", "general", "no_fusion")
    },
    **{
        f"asap:attention={word.replace('no_attention', 'none')}": Experiment(
            f"asap:camvid,ffdn,{word}"
        )
        for word in ("vertical", "horizontal", "conventional", "no_attention")
    },
}
# What the papers say: (where, better, worse).
CLAIMS = (
    ("EACNet, Table 3", "eacnet_dabnet", "eacnet_dabnet_control"),
    ("EACNet, Table 3", "eacnet_dabnet", "eacnet_dabnet_alone"),
    ("EACNet, Table 1", "eacnet_erfnet", "eacnet_erfnet_control"),
    ("EACNet, Table 1", "eacnet_erfnet", "eacnet_erfnet_alone"),
    ("EACNet, Table 1", "eacnet_erfnet_nonlocal", "eacnet_erfnet"),
    ("CARNet, Fig. 8", "carnet:modules=1", "carnet:modules=0"),
    ("CARNet, Fig. 8", "carnet:modules=4", "carnet:modules=1"),
    ("CARNet, Table 5", "carnet:scloss=bce", "carnet:modules=4"),
    ("CARNet, Table 5", "carnet:crp", "carnet:scloss=bce"),
    *(
        ("AFFNet, Section III-C", "affnet:loss=owfl+cel", f"affnet:loss={n}")
        for n in list(_LOSSES)[1:]
    ),
    *(
        ("ASAP, Table II", "asap:fusion=ffdn", f"asap:fusion={n}")
        for n in ("ln", "in", "general", "none")
    ),
    *(
        ("ASAP, Table III", "asap:attention=vertical", f"asap:attention={n}")
        for n in ("horizontal", "conventional", "none")
    ),
)


# Running


def folder_of(runs: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """The workdir of a run."""
    return runs / f"{name.replace(':', '-').replace('+', '_')}-{seed}"


def flags_of(name: str, seed: int, more: tuple[str, ...] = ()) -> list[str]:
    """The command line of a run, but for the folders."""
    run = EXPERIMENTS[name]
    return [f"--config={run.config}", *run.options, f"--config.seed={seed}", *more]


def wanted(only: str, seeds: list[int], lines: list[Record]) -> list[tuple[str, int]]:
    """Experiments and seeds without a line, after those that they begin with.

    Raises:
        ValueError: no experiment's name matches.
    """
    names = [name for name in EXPERIMENTS if re.search(only, name)]
    if not names:
        raise ValueError(f"no experiment matches '{only}'; see: benchmarks/camvid.py list")
    there = {(line.get("experiment"), line.get("seed")) for line in lines}
    order: dict[tuple[str, int], None] = {}
    for seed in seeds:
        for name in names:
            if (name, seed) not in there:
                chain = [name]
                while EXPERIMENTS[chain[-1]].after:
                    chain.append(EXPERIMENTS[chain[-1]].after)
                order.update(dict.fromkeys((n, seed) for n in reversed(chain)))
    return list(order)


def train(
    name: str, seed: int, root: pathlib.Path, runs: pathlib.Path, more: tuple[str, ...] = ()
) -> Record:
    """Trains one run to its end and evaluates it on test, or says what is missing of that.

    Raises:
        RuntimeError: a program failed; its last line, and where all of them are.
    """
    run, workdir = EXPERIMENTS[name], folder_of(runs, name, seed)
    flags = flags_of(name, seed, more)
    given = [f"--config.input.root={root}", f"--workdir={workdir}"]
    which = "latest" if run.together else "best"
    if run.after:
        source = folder_of(runs, run.after, seed)
        given += [f"--config.init_from.network={source}", f"--config.init_from.checkpoint={which}"]
    if not (workdir / "evaluation.json").is_file():
        _call("train", [*flags, *given], workdir)
    if not (workdir / "evaluation_test" / "evaluation.json").is_file():
        if not (workdir / "evaluation.json").is_file():
            raise RuntimeError(f"{workdir} was stopped; the same command goes on with it")
        arguments = [f"--workdir={workdir}", f"--root={root}", "--split=test", "--overlays=0"]
        _call("evaluate", [*arguments, f"--checkpoint={which}"], workdir)
    return {"experiment": name, "seed": seed, **read(workdir, shlex.join(flags))}


_RUNNING: set[subprocess.Popen] = set()
_STARTING, _STOPPED = threading.Lock(), threading.Event()


def _call(program: str, arguments: list[str], workdir: pathlib.Path) -> None:
    log = workdir.parent / f"{workdir.name}.log"
    with log.open("ab") as file, _STARTING:
        if _STOPPED.is_set():
            raise RuntimeError(f"{workdir} was not begun; the same command begins with it")
        file.write(f"$ rtseg {program} {shlex.join(arguments)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "rtseg_jax", program, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=HERE.parent,
            # Several runs share a GPU.
            env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ},
            start_new_session=True,  # a signal comes once, from here; a second one would not let it save
        )
        _RUNNING.add(process)
    process.wait()
    _RUNNING.discard(process)
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1]
        raise RuntimeError(f"{program} of {workdir.name}: {last} (see {log})")


def run_all(
    todo: list[tuple[str, int]],
    root: pathlib.Path,
    runs: pathlib.Path,
    parallel: int,
    more: tuple[str, ...],
    lines: pathlib.Path,
) -> int:
    """Trains what is to do, so many at a time, and writes a line of each; how many failed."""
    failed = 0
    trained: dict[tuple[str, int], concurrent.futures.Future] = {}
    there = {(line.get("experiment"), line.get("seed")) for line in load(lines)}

    def one(name: str, seed: int) -> Record:
        if before := EXPERIMENTS[name].after:
            # Submitted earlier, so it runs or is done: nobody waits for one that cannot begin.
            trained[before, seed].result()
        return train(name, seed, root, runs, more)

    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        try:
            for name, seed in todo:
                trained[name, seed] = pool.submit(one, name, seed)
            names = {future: key for key, future in trained.items()}
            for future in concurrent.futures.as_completed(names):
                name, seed = names[future]
                try:
                    record = future.result()
                except RuntimeError as error:
                    failed += 1
                    print(f"{name}, seed {seed}: {error}", file=sys.stderr, flush=True)
                    continue
                if (name, seed) not in there:
                    with lines.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                print(f"{name}, seed {seed}: test mIoU {percent(record['test_miou'])}", flush=True)
        except KeyboardInterrupt:  # what waits never begins, what runs saves
            pool.shutdown(wait=False, cancel_futures=True)
            with _STARTING:
                _STOPPED.set()
                for process in list(_RUNNING):
                    process.terminate()
            raise
    return failed


def read(workdir: pathlib.Path, command: str) -> Record:
    """What a run's folder says of it."""
    run, test = read_run(workdir), None
    if (workdir / "evaluation_test" / "evaluation.json").exists():
        test = read_run(workdir, "evaluation_test").evaluation
    losses = [loss for _, loss in run.history["loss"]]
    pixels = [sum(row) for row in run.evaluation["confusion"]]
    return {
        "model": run.config.model.name,
        "command": command,
        "date": datetime.date.fromtimestamp(run.evaluated.stat().st_mtime).isoformat(),
        "device": _device(workdir),
        "steps": run.steps,
        "batch_size": run.config.batch_size,
        "train_split": run.config.input.train_split,
        "best_step": run.evaluation["step"],
        "seconds": run.seconds and round(run.seconds),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "majority_val_miou": max(pixels) / sum(pixels) / len(pixels),
        "val_miou": run.evaluation["miou"],
        "test_miou": test and test["miou"],
        "test_iou": test and test["iou"],
    }


def _device(workdir: pathlib.Path) -> str:
    """What the run's log says it ran on, "" without one."""
    log = workdir.parent / f"{workdir.name}.log"
    text = log.read_text(errors="replace") if log.exists() else ""
    found = re.findall(r" classes, (\w+), (\d+ x .+), (jax [\w.]+)$", text, re.MULTILINE)
    return ", ".join((found[-1][1], found[-1][0], found[-1][2])) if found else ""


def load(path: pathlib.Path) -> list[Record]:
    """The lines of a file, none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# Tables


TITLE = """# CamVid

SegNet split (367 train, 101 val, 233 test images of 360x480, 11 classes), from scratch, single scale. Trained on *train*,
the checkpoint is the one with the best val mIoU; trained on *train and val*, it is the last one. Nothing is chosen by
test, which is evaluated once per run. On this set val lies some ten points above test: the val figure only chooses the
checkpoint, the result is test. mIoU in percent; with several seeds, their mean and standard deviation.
"""
SINGLE = """
## Single runs

Started by hand: `python -m rtseg_jax.main --config=COMMAND --config.input.root=DIR --workdir=RUN`, then
`rtseg evaluate --workdir=RUN --split=test` (not where a run only shows that a network learns), then
`python benchmarks/camvid.py add RUN COMMAND`. `FIRST` is the folder of the run before. "Majority"
is the val mIoU of naming every pixel by the commonest class. Seconds are wall time on two CPU cores, evaluations included, on a machine that had other work to do.
"""


def percent(value: float | None) -> str:
    """In percent, or a dash."""
    return "-" if value is None else f"{100 * value:.2f}"


def duration(values: list[float | None]) -> str:
    """The mean of seconds, or a dash where a run has no events to tell them."""
    return "-" if None in values else f"{statistics.fmean(values):.0f}"


def spread(values: list[float]) -> str:
    """Mean and standard deviation of seeds, in percent."""
    if not values:
        return "-"
    around = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return percent(statistics.fmean(values)) + around


def verdict(better: list[float], worse: list[float]) -> str:
    """Whether seeds bear a claim out: the difference of the means against twice its standard error."""
    difference = statistics.fmean(better) - statistics.fmean(worse)
    if min(len(better), len(worse)) < 2:
        return f"{100 * difference:+.2f}, one seed tells nothing"
    error = sum(statistics.variance(v) / len(v) for v in (better, worse)) ** 0.5
    if abs(difference) <= 2 * error:
        return f"{100 * difference:+.2f}, within the seeds' spread"
    return f"{100 * difference:+.2f}, {'holds' if difference > 0 else 'does not hold'}"


def markdown(lines: list[Record]) -> str:
    """camvid.md."""
    of: dict[str, list[Record]] = {name: [] for name in EXPERIMENTS}
    for line in lines:
        if line.get("experiment") in of:
            of[line["experiment"]].append(line)
    single = [line for line in lines if line.get("experiment") not in of]
    done = {name: runs for name, runs in of.items() if runs}
    values = {
        name: {split: [r[f"{split}_miou"] for r in runs] for split in ("val", "test")}
        for name, runs in done.items()
    }
    parts = [TITLE]
    waiting = len(EXPERIMENTS) - len(done)
    if done:
        parts += [
            "## Recipes\n",
            "Each by `python benchmarks/camvid.py run --root=DIR --runs=RUNS --only=NAME`.\n",
            *tables.header(
                *("name", "command", "device"),
                *("seeds", "steps x batch", "seconds", "val", "test"),
                words=(0, 1, 2),
            ),
            *(
                tables.row(
                    name,
                    f"`{re.sub(r' --config.seed=[0-9]+', '', runs[0]['command'])}`",
                    runs[0]["device"],
                    len(runs),
                    f"{runs[0]['steps']} x {runs[0]['batch_size']}",
                    duration([r["seconds"] for r in runs]),
                    "-" if EXPERIMENTS[name].together else spread(values[name]["val"]),
                    f"**{spread(values[name]['test'])}**",
                )
                for name, runs in done.items()
            ),
            "",
            *by_class(done),
        ]
        claims = [c for c in CLAIMS if c[1] in done and c[2] in done]
        if claims:
            parts += [
                "## What the papers claim\n",
                "The difference in mIoU, in points: it holds or does not where it is more than twice its standard error.\n",
                *tables.header("claim", "better", "worse", "val", "test", words=range(5)),
                *(
                    tables.row(
                        where,
                        better,
                        worse,
                        *(
                            verdict(values[better][split], values[worse][split])
                            for split in ("val", "test")
                        ),
                    )
                    for where, better, worse in claims
                ),
            ]
    if waiting:
        parts += [
            f"\nOf the {len(EXPERIMENTS)} recipes of `python benchmarks/camvid.py list`, {waiting} have not been run: they"
            " wait for a GPU."
        ]
    if single:
        tested = [r for r in single if r["test_miou"] is not None]
        parts += [
            SINGLE,
            *tables.header(
                *("network", "steps x batch", "seconds", "loss", "majority", "val", "test")
            ),
            *(
                tables.row(
                    r["model"],
                    f"{r['steps']} x {r['batch_size']}",
                    duration([r["seconds"]]),
                    f"{r['first_loss']:.2f} to {r['last_loss']:.2f}" if "first_loss" in r else "-",
                    percent(r.get("majority_val_miou")),
                    percent(r["val_miou"]) if r.get("train_split") != "trainval" else "-",
                    f"**{percent(r['test_miou'])}**" if r["test_miou"] is not None else "-",
                )
                for r in single
            ),
            "\nCommands, in the same order:\n",
            *(f"- {r['model']}, {r['date']}: `{r['command']}`" for r in single),
            "",
            *by_class({f"{r['model']}, {r['steps']} steps": [r] for r in tested}),
        ]
    return "\n".join(parts) + "\n"


def by_class(columns: dict[str, list[Record]]) -> list[str]:
    """The test IoU of each class, a row for each recipe."""
    if not columns:
        return []
    classes = list(next(iter(columns.values()))[0]["test_iou"])
    return [
        "Test IoU by class:\n",
        *tables.header("", *classes),
        *(
            tables.row(
                name,
                *(percent(statistics.fmean(r["test_iou"][c] for r in runs)) for c in classes),
            )
            for name, runs in columns.items()
        ),
        "",
    ]


def picture(lines: list[Record], speed: list[Record], path: pathlib.Path) -> bool:
    """Test mIoU against frames per second at 360x480: the best recipe of each network; false if no network has both."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    fps = {
        line["model"]: (line["fps"], line["device"])
        for line in speed
        if (line["backend"], line["mode"], line["height"]) == ("jax", "throughput", 360)
        and "fps" in line
    }
    best: dict[str, float] = {}
    for line in lines:
        if line["test_miou"] is not None and line["model"] in fps:
            best[line["model"]] = max(best.get(line["model"], 0.0), 100 * line["test_miou"])
    if not best:
        return False
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel="FPS at 360x480", ylabel="CamVid test mIoU, %", xscale="log")
    axes.set_title(next(iter(fps.values()))[1])
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.margins(0.2)
    axes.grid(alpha=0.3, which="both")
    for model, miou in best.items():
        axes.scatter(fps[model][0], miou, c="C0")
        axes.annotate(model, (fps[model][0], miou), (4, 4), textcoords="offset points", fontsize=8)
    figure.savefig(path, dpi=110)
    return True


def draw(root: str, workdirs: list[pathlib.Path], count: int, path: pathlib.Path) -> None:
    """Writes one picture: rows of photo, truth, and what each run makes of it.

    Of one run they are its best and worst test images, of several those on which the runs are farthest apart.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    from rtseg_jax.inference import pictures
    from rtseg_jax.programs.report import examples

    group = read_several(workdirs, "evaluation_test")
    if len(group) == 1:
        found = [
            examples.Contrast(p.name, p.photo, p.truth, {group[0].name: (p.miou, p.prediction)})
            for p in examples.best_and_worst(group[0], count, root)[0]
        ]
    else:
        found = examples.most_different(group, count, root)
    table_of, rows = group[0].table, []
    for contrast in found:
        maps = [contrast.truth, *(ids for _, ids in contrast.predictions.values())]
        panels = [contrast.photo, *(pictures.overlay(contrast.photo, m, table_of) for m in maps)]
        titles = [contrast.name, "truth"]
        titles += [f"{name}: {percent(miou)}" for name, (miou, _) in contrast.predictions.items()]
        row = Image.fromarray(np.concatenate(panels, axis=1))
        pen, width = ImageDraw.Draw(row), contrast.photo.shape[1]
        for i, title in enumerate(titles):
            pen.text((i * width + 6, 4), title, fill="white", stroke_width=2, stroke_fill="black")
        rows.append(np.asarray(row))
    every = range(len(table_of.class_names))
    sheet = pictures.with_legend(np.concatenate(rows), table_of, tuple(every))
    Image.fromarray(sheet).save(path, quality=85)


def write_tables(path: pathlib.Path) -> None:
    """camvid.md, and camvid.png where there is matplotlib."""
    lines = load(path)
    text = markdown(lines)
    try:
        speeds = [name for name in ("gpu", "cpu") if (HERE / f"{name}.jsonl").exists()]
        if speeds and picture(lines, load(HERE / f"{speeds[0]}.jsonl"), path.with_suffix(".png")):
            text += "\n![Test mIoU against frames per second](camvid.png)\n"
    except ImportError:
        print("matplotlib is not there: no picture (pip install 'rtseg_jax[bench]')")
    if path.with_name(IMAGES.name).exists():
        text += f"\nBest and worst test images: photo, truth, prediction.\n\n![Test images]({IMAGES.name})\n"
    path.with_suffix(".md").write_text(text)


def main(argv: list[str] | None = None) -> int:
    """Reads the command line and does what it says; the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    argv, more = (
        (argv, []) if "--" not in argv else (argv[: argv.index("--")], argv[argv.index("--") + 1 :])
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    tasks = parser.add_subparsers(dest="task", required=True)
    run = tasks.add_parser(
        "run", help="trains what camvid.jsonl lacks; options of every run after --"
    )
    run.add_argument("--root", type=pathlib.Path, required=True, help="CamVid's folder")
    run.add_argument("--runs", type=pathlib.Path, required=True, help="a folder for the runs")
    run.add_argument("--only", default="", help="a regular expression for the names")
    run.add_argument("--seeds", default="0,1,2")
    run.add_argument("--output", type=pathlib.Path, default=LINES, help="lines, and tables beside")
    run.add_argument("--parallel", type=int, default=1, help="runs at a time, on one device")
    tasks.add_parser("list", help="names and commands")
    tasks.add_parser("table", help="camvid.md from camvid.jsonl")
    add = tasks.add_parser("add", help="a finished run that was started by hand")
    add.add_argument("workdir", type=pathlib.Path)
    add.add_argument("command", help="what followed --config=, as it was given")
    pictures = tasks.add_parser(
        "pictures", help="the best and the worst of a run, or where several differ most"
    )
    pictures.add_argument("--root", required=True, help="CamVid's folder")
    pictures.add_argument("--count", type=int, default=4)
    pictures.add_argument("--output", type=pathlib.Path, default=IMAGES)
    pictures.add_argument("workdirs", type=pathlib.Path, nargs="+")
    given = parser.parse_args(argv)
    if given.task == "list":
        for name in EXPERIMENTS:
            print(name, shlex.join(flags_of(name, 0)[:-1]), sep="\t")
    elif given.task == "add":
        new = read(given.workdir, given.command)
        key = (new["model"], new["command"])
        lines = [line for line in load(LINES) if (line["model"], line["command"]) != key]
        LINES.write_text("".join(json.dumps(line) + "\n" for line in [*lines, new]))
        write_tables(LINES)
    elif given.task == "pictures":
        draw(given.root, given.workdirs, given.count, given.output)
    elif given.task == "table":
        write_tables(LINES)
    else:
        try:
            seeds = [int(s) for s in given.seeds.split(",")]
            todo = wanted(given.only, seeds, load(given.output))
        except ValueError as error:
            parser.error(str(error))
        given.runs.mkdir(parents=True, exist_ok=True)
        folders = given.root.absolute(), given.runs.absolute()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            failed = run_all(todo, *folders, given.parallel, tuple(more), given.output)
        except KeyboardInterrupt:
            print("stopped: the same command goes on from here", file=sys.stderr)
            failed = True
        write_tables(given.output)
        return 1 if failed else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
