"""The CamVid experiments: each can be run, in an order that works, and the tables say what the runs say."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import camvid
from rtseg_jax.base import config as settings
from rtseg_jax.nn import losses
from tests import compiling

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_every_experiment_is_a_command():
    for name, run in camvid.EXPERIMENTS.items():
        config = settings.load(run.config)
        settings.check(config)
        assert config.input.dataset == "camvid"
        known = set(settings.keys(config))
        for option in run.options:
            assert re.fullmatch(r"--config\.([\w.]+)=.+", option)[1] in known, name
        assert config.init_from.required == bool(run.after)
        assert run.together == (name.endswith("+val"))
        if run.after:
            assert camvid.EXPERIMENTS[run.after].together == run.together
    for _, *names in camvid.CLAIMS:
        assert set(names) <= set(camvid.EXPERIMENTS)


def test_the_weighted_loss_has_owfls_weights():
    counts = settings.load("affnet:camvid").loss.pixel_counts
    weights = [float(w) for w in camvid._WEIGHTED.strip("()").split(",")]
    np.testing.assert_allclose(weights, losses.frequency_weights(counts, 1.02), atol=5e-5)


def test_what_is_to_do():
    """The first stages first, once each; what has a line is left out, though not what others begin with."""
    first = [("eacnet_dabnet_alone", s) for s in (0, 1)]
    only = "^eacnet_dabnet(_control)?$"
    todo = camvid.wanted(only, [0, 1], [])
    assert todo == [
        first[0],
        ("eacnet_dabnet", 0),
        ("eacnet_dabnet_control", 0),
        first[1],
        ("eacnet_dabnet", 1),
        ("eacnet_dabnet_control", 1),
    ]
    done = [{"experiment": n, "seed": s} for n, s in (*first, ("eacnet_dabnet", 1))]
    assert camvid.wanted(only, [0, 1], done) == [t for t in todo if t != ("eacnet_dabnet", 1)]
    with pytest.raises(ValueError, match="no experiment matches 'eacnet_vgg'; see: .* list"):
        camvid.wanted("eacnet_vgg", [0], [])


def test_a_failure_costs_those_that_begin_with_it(tmp_path, monkeypatch, capsys):
    begun = []

    def train(name, seed, *_):
        begun.append((name, seed))
        if (name, seed) == ("eacnet_dabnet_alone", 1):
            raise RuntimeError("main of it: no memory (see it.log)")
        return {"experiment": name, "seed": seed, "test_miou": 0.5}

    monkeypatch.setattr(camvid, "train", train)
    lines = tmp_path / "lines.jsonl"
    todo = camvid.wanted("^eacnet_dabnet$", [0, 1], [])
    assert camvid.run_all(todo, tmp_path, tmp_path, 3, (), lines) == 2
    written = {(line["experiment"], line["seed"]) for line in camvid.load(lines)}
    assert written == {("eacnet_dabnet_alone", 0), ("eacnet_dabnet", 0)}
    assert ("eacnet_dabnet", 1) not in begun
    assert "eacnet_dabnet, seed 1: main of it: no memory (see it.log)" in capsys.readouterr().err


def record(experiment, seed, val, test, **others):
    classes = dict.fromkeys(("sky", "road"), test)
    return {
        **{"experiment": experiment, "seed": seed, "model": "asap", "device": "1 x GPU"},
        **{"command": f"--config=c --config.seed={seed}", "steps": 9, "batch_size": 4},
        **{"seconds": 60, "val_miou": val, "test_miou": test, "test_iou": classes, **others},
    }


def test_means_and_verdicts():
    runs = {
        "asap:fusion=ffdn": (0.60, 0.61, 0.62),
        "asap:fusion=ln": (0.50, 0.51, 0.52),
        "asap:fusion=in": (0.59, 0.62, 0.63),
        "asap:fusion=general": (0.70, 0.70, 0.71),
        "asap:fusion=none": (0.55,),
    }
    lines = [
        record(name, seed, v + 0.1, v) for name, of in runs.items() for seed, v in enumerate(of)
    ]
    text = camvid.markdown(lines)
    row = next(r for r in text.splitlines() if r.startswith("| asap:fusion=ffdn |"))
    assert row.endswith("| 3 | 9 x 4 | 60 | 71.00 ± 1.00 | **61.00 ± 1.00** |")
    verdicts = dict(re.findall(r"\| asap:fusion=ffdn \| asap:fusion=(\w+) \| .* \| (.*) \|", text))
    assert verdicts == {
        "ln": "+10.00, holds",
        "in": "-0.33, within the seeds' spread",
        "general": "-9.33, does not hold",
        "none": "+6.00, one seed tells nothing",
    }
    waiting = len(camvid.EXPERIMENTS) - len(runs)
    assert f"{waiting} have not been run" in text and "## Single runs" not in text


def test_val_says_nothing_after_training_on_it():
    text = camvid.markdown([record("asap+val", 0, 0.9, 0.6)])
    row = next(r for r in text.splitlines() if r.startswith("| asap+val |"))
    assert row.endswith("| - | **60.00** |")


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    speed = [{"model": "asap", "fps": 20.0, "device": "two cores"}]
    speed[0].update({"backend": "jax", "mode": "throughput", "height": 360})
    assert camvid.picture([record("asap", 0, 0.7, 0.6)], speed, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as shown:
        assert shown.size[0] > 500
    assert not camvid.picture([record("asap", 0, 0.7, None)], speed, tmp_path / "none.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("camvid"), np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind, shape, top in (("", (48, 96, 3), 256), ("annot", (48, 96), 12)):
            (root / f"{split}{kind}").mkdir()
            for i in range(3):
                pixels = rng.integers(0, top, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(root / f"{split}{kind}" / f"{i}.png")
    return root


def test_an_experiment_from_the_folder_to_the_table(root, tmp_path, monkeypatch, capsys):
    """Trained by the program, evaluated on test once, written down; a second call has nothing to do."""
    lines, runs = tmp_path / "lines.jsonl", tmp_path / "runs"
    monkeypatch.setenv("XLA_FLAGS", compiling.FLAGS)
    tiny = ("--config.num_steps=2", "--config.batch_size=2", "--config.augment.crop=(32, 64)")
    command = ["run", f"--root={root}", f"--runs={runs}", f"--output={lines}", "--seeds=3"]
    command += [r"--only=^fast_scnn\+val$"]
    assert camvid.main([*command, "--", *tiny, "--config.log_every=1"]) == 0, capsys.readouterr()
    (line,) = camvid.load(lines)
    assert (line["experiment"], line["seed"], line["steps"]) == ("fast_scnn+val", 3, 2)
    assert (line["train_split"], line["best_step"]) == ("trainval", 2)
    assert re.fullmatch(r"\d+ x cpu, float32, jax [\d.]+", line["device"])
    flags = shlex.split(line["command"])
    assert flags[0] == "--config=fast_scnn:camvid" and set(tiny) < set(flags)
    workdir = runs / "fast_scnn_val-3"
    tested = json.loads((workdir / "evaluation_test" / "evaluation.json").read_text())
    assert line["test_miou"] == tested["miou"] and tested["split"] == "test"
    assert "| fast_scnn+val |" in lines.with_suffix(".md").read_text()
    monkeypatch.setattr(camvid, "_call", None)
    assert camvid.main(command) == 0 and len(camvid.load(lines)) == 1

    sheet = tmp_path / "sheet.png"
    other = shutil.copytree(workdir, tmp_path / "other" / workdir.name)
    for given in ([workdir], [workdir, other]):
        options = [f"--root={root}", "--count=2", f"--output={sheet}"]
        camvid.main(["pictures", *options, *map(str, given)])
        with Image.open(sheet) as shown:
            assert shown.size[0] == (2 + len(given)) * 96


STUB = """
import sys, time
from benchmarks import camvid
begun = camvid.subprocess.Popen
def start(command, **given):
    return begun([sys.executable, "-c", {sleeper!r}, command[3]], **given)
camvid.subprocess.Popen = start
sys.exit(camvid.main(sys.argv[1:]))
"""
SLEEPER = """
import pathlib, signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, lambda *_: sys.exit(9))
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_lets_its_runs_save_and_begins_no_others(tmp_path, number):
    runs, lines = tmp_path / "runs", tmp_path / "lines.jsonl"
    command = [sys.executable, "-c", STUB.format(sleeper=SLEEPER), "run", f"--root={tmp_path}"]
    command += [
        f"--runs={runs}",
        f"--output={lines}",
        "--seeds=0",
        "--only=^carnet",
        "--parallel=2",
    ]
    driver = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while sum(log.read_text().count("begun") for log in runs.glob("*.log")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(driver.pid, number)
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == 1 and "stopped: the same command goes on from here" in said
    assert "Traceback" not in said
    logs = [log.read_text() for log in runs.glob("*.log")]
    assert len(logs) == 2 and all(log.endswith("begun\nsaved\n") for log in logs)
    assert lines.with_suffix(".md").is_file()


def test_a_failed_run_is_told_by_its_last_line(root, tmp_path, capsys):
    with pytest.raises(
        RuntimeError, match=r"train of asap-0: .*batch_size 77 exceeds the 3 images"
    ):
        camvid.train("asap", 0, root, tmp_path, ("--config.batch_size=77",))
