"""Several processes over loopback: one run, the same as in one process, resumed by any number of them."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import main
from rtseg_jax.data import pipeline
from rtseg_jax.weights import checkpoint
from tests import compiling, tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = (
    f"--config={tiny.FILE}",
    "--config.batch_size=4",
    "--config.num_steps=3",
    "--config.optim.lr=0.001",  # of this order: rounding, which differs with the devices, grows with it
    "--config.log_every=1",
    "--config.eval.every_steps=3",
    "--config.checkpoint_every=2",
    "--config.eval.overlays=2",
)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(workdir, processes, devices, *flags):
    """Starts the program in so many processes of so many virtual devices each."""
    port = free_port()
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {compiling.FLAGS}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "rtseg_jax.main", f"--workdir={workdir}", *RUN, *flags]
    joined = [
        "--distributed",
        f"--coordinator=127.0.0.1:{port}",
        f"--num_processes={processes}",
    ]
    return [
        subprocess.Popen(
            [*command, *joined, f"--process_id={i}"] if processes > 1 else command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=workdir.parent,
        )
        for i in range(processes)
    ]


def finish(started):
    outputs = [p.communicate(timeout=600)[0] for p in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output
    return outputs


def losses(workdir):
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {x["step"]: x["loss"] for x in lines if "loss" in x}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run in one process of four devices and in two of two."""
    folder = tmp_path_factory.mktemp("hosts")
    alone, together = folder / "alone", folder / "together"
    finish(start(alone, 1, 4))
    outputs = finish(start(together, 2, 2))
    return alone, together, outputs


def test_two_processes_train_what_one_trains(runs):
    alone, together, outputs = runs
    assert list(losses(together)) == [1, 2, 3]
    np.testing.assert_allclose(
        list(losses(together).values()), list(losses(alone).values()), rtol=1e-4
    )
    assert "step 3/3" in outputs[0]
    assert "step 3/3" not in outputs[1]  # one of them speaks


def test_every_image_is_evaluated_once(runs):
    alone, together, _ = runs
    reports = [json.loads((w / "evaluation.json").read_text()) for w in (alone, together)]
    confusions = [np.array(r["confusion"]) for r in reports]
    np.testing.assert_array_equal(
        confusions[0].sum(1), confusions[1].sum(1)
    )  # pixels per true class
    assert np.abs(confusions[0] - confusions[1]).sum() < 0.02 * confusions[0].sum()


def test_as_many_pictures_as_from_one_process(runs):
    alone, together, _ = runs
    assert [len(list((w / "overlays").iterdir())) for w in (alone, together)] == [2, 2]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_file_that_one_process_cannot_read_stops_both_and_costs_nothing(split, tmp_path):
    """What was trained before it is saved, by a process that never saw the file too."""
    pytest.importorskip("tensorflow")
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for kind, shape in (("images", (64, 128, 3)), ("labels", (64, 128))):
        for part in ("train", "val"):
            (root / kind / part).mkdir(parents=True)
            for i in range(8):
                values = rng.integers(0, 3, shape, np.uint8)
                Image.fromarray(values).save(root / kind / part / f"{i}.png")
    (root / "classes.txt").write_text("a\nb\nc\n")
    flags = [
        *("--config.input.dataset=folder", f"--config.input.root={root}", "--config.num_steps=4"),
        *(
            "--config.input.size=None",
            "--config.input.num_train=None",
            "--config.eval.every_steps=4",
        ),
        *("--config.input.num_eval=None", "--config.input.mode=streaming", "--config.log_every=2"),
    ]
    order = pipeline.epoch_order(tiny.config().seed, 0, 8)
    # Of the second step, and of the second process' half of it; of the evaluation, any.
    victim = root / "images" / split / f"{order[7] if split == 'train' else 5}.png"
    os.truncate(victim, 300)
    outputs = []
    for process in start(tmp_path / "run", 2, 2, *flags):
        outputs.append((process, process))
    said = [p.communicate(timeout=600)[0] for p, _ in outputs]
    assert [p.returncode for p, _ in outputs] == [1, 1], said
    assert any(str(victim) in text for text in said)
    with checkpoint.open_manager(tmp_path / "run", read_only=True) as manager:
        assert manager.latest_step() == (1 if split == "train" else 4)


def test_checkpoint_of_two_processes_is_resumed_by_one(runs):
    _, together, _ = runs
    output = finish(start(together, 1, 1, "--config.num_steps=4", "--config.eval.every_steps=4"))[0]
    assert "at step 3 of 4" in output
    assert list(losses(together)) == [1, 2, 3, 4]


def test_a_signal_between_joining_and_training_ends_the_process():
    code = """
import os, signal, sys, time
from rtseg_jax import main
from rtseg_jax.programs.shared.command_line import Flags
main.define(flags := Flags(sys.argv[1:]))
main._join(flags.parse()[0])
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
"""
    joined = ["--num_processes=1", "--process_id=0", f"--coordinator=127.0.0.1:{free_port()}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code, "--distributed", *joined], env=environment, timeout=100
    )
    assert ended.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--coordinator=localhost:1234"], "belong together; give all three"),
        (
            ["--coordinator=localhost:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 of 2 processes; they count from 0",
        ),
    ],
)
def test_who_is_who_is_asked_in_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main, "prepare_process", lambda: None)
    given = ["--config=eacnet:smoke", f"--workdir={tmp_path}/run", "--distributed", *flags]
    assert main.PROGRAM.run(given) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_where_no_cluster_is_recognised(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI"))}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "rtseg_jax.main",
            *RUN,
            f"--workdir={tmp_path}/run",
            "--distributed",
        ],
        env={**environment, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no cluster was recognised" in done.stderr and done.stderr.count("\n") == 1
