"""Kills training at random moments, starts it again, and compares what it ends with: python -m tests.torture --help.

A run that is never disturbed is the measure: weights, optimizer state, averages, metrics.jsonl and TensorBoard's scalars
of the disturbed one must be equal to its own, bit for bit.
"""

import argparse
import collections
import dataclasses
import itertools
import os
import pathlib
import signal
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

import numpy as np

from rtseg_jax.programs.shared import tables
from tests import compiling

ROOT = pathlib.Path(__file__).resolve().parent.parent
MOMENTS = ("start and first compilation", "step", "checkpoint write", "evaluation")
EVERY = {"num_steps": 12, "eval.every_steps": 6, "checkpoint_every": 2}

# Where the tests below are.
FILES = (
    *("weights/test_checkpoint.py", "train/test_reliability.py", "train/test_multihost.py"),
    *("test_scaling.py", "train/test_train.py", "data/test_pipeline.py"),
)

# What is injected, and the tests that do it.
FAULTS = (
    ("a file of the newest checkpoint halved", "test_whatever_file and halved"),
    ("a file of the newest checkpoint emptied", "test_whatever_file and emptied"),
    ("a bit of the newest checkpoint flipped", "test_whatever_file and bit"),
    (
        "a file of the newest checkpoint removed",
        "test_whatever_file and test_checkpoint and removed",
    ),
    ("newest checkpoint without files, or half-written", "test_an_emptied_folder"),
    ("newest checkpoint damaged, then trained to the end", "test_newest_checkpoint_damaged"),
    ("every checkpoint damaged", "test_none_good or test_no_training_over_ruins"),
    ("disk full or read-only", "test_a_full_disk or test_a_real_full or test_a_failing_write"),
    ("second process on one workdir", "test_a_second_run or test_the_lock_goes"),
    ("loss not finite", "test_divergence_names or test_a_step_is_looked_at"),
    ("loss not finite, steps skipped", "test_skipping"),
    ("file removed, truncated, replaced or resized while training", "test_data_that and not label"),
    ("bad files that are allowed", "test_bad_data_that_is_allowed"),
    ("label out of range while training", "test_data_that and label"),
    ("device memory full", "test_a_full_device"),
)

# What holds whatever the number of devices and processes, and the tests of it.
SCALING = (
    ("two processes of two devices train what one of four trains", "test_two_processes_train"),
    ("a checkpoint of two processes goes on in one", "test_checkpoint_of_two_processes"),
    ("one device trains what four train", "test_one_device_equals_four"),
    ("a batch in parts, over devices or not, has the whole one's gradient", "test_accumulated"),
    ("no frame is sent from device to device", "test_parts_of_a_batch or test_a_step_sends"),
    (
        "processes see each example of an epoch once",
        "test_processes_share_a or test_processes_share_the_stream",
    ),
    (
        "every image is evaluated once",
        "test_evaluation_drops or test_processes_share_the_evaluation",
    ),
)


@dataclasses.dataclass(frozen=True)
class Combination:
    """How a run is made."""

    devices: int
    mode: str
    ema: bool
    dtype: str

    def flags(self):
        options = {
            **EVERY,
            "input.mode": self.mode,
            "ema_decay": 0.9 if self.ema else 0.0,
            "dtype": self.dtype,
        }
        return [f"--config.{key}={value}" for key, value in options.items()]


COMBINATIONS = [
    Combination(*given)
    for given in itertools.product(
        (1, 4), ("resident", "streaming"), (True, False), ("float32", "bfloat16")
    )
]


def start(workdir, combination, cache, config):
    """Starts a run (again) in a folder."""
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={combination.devices} {compiling.FLAGS}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "rtseg_jax.main", f"--config={config}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *combination.flags()],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=workdir.parent,
    )


def finish(process):
    """Waits for a run to end well; returns what it printed."""
    output = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, output
    return output


def is_step(line):
    """Whether a line tells of a step, and not of an evaluation."""
    return line.startswith("step ") and "loss" in line


def kill_at(process, workdir, moment, rng, compile_seconds):
    """Sends SIGKILL at a moment; returns False if the run ended before."""
    if moment == MOMENTS[0]:
        time.sleep(rng.uniform(0, compile_seconds))
    elif moment == MOMENTS[2]:
        while process.poll() is None and not any(
            workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")
        ):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
    else:
        evaluations = range(EVERY["eval.every_steps"], 99, EVERY["eval.every_steps"])
        wanted = int(rng.integers(1, 7))
        for line in process.stdout:
            wanted -= is_step(line)
            at = int(line.split()[1].split("/")[0]) if is_step(line) else 0
            if at in evaluations if moment == MOMENTS[3] else wanted == 0:
                break
        time.sleep(rng.uniform(0, 0.2 if moment == MOMENTS[3] else 0.1))
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0]
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode == -signal.SIGKILL


def scalars(workdir):
    """TensorBoard's scalars as it shows them, {(tag, step): value}: a restart drops what was logged after its step."""
    from tensorboardX.proto import event_pb2

    shown = {}
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at + 12 <= len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            if at + 16 + size > len(content):
                break  # the record that was being written
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == event_pb2.SessionLog.START:
                shown = {k: v for k, v in shown.items() if k[1] < event.step}
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    shown[value.tag, event.step] = value.simple_value
    return shown


def differences(whole, disturbed):
    """What of two finished runs is not equal, by name."""
    from tests.train.test_train import final_state

    (step_a, a), (step_b, b) = final_state(whole), final_state(disturbed)
    found = [name for name in a.keys() | b.keys() if not _equal(a.get(name), b.get(name))]
    if step_a != step_b:
        found.append("step")
    for name in ("metrics.jsonl", "evaluation.json"):
        if (whole / name).read_text() != (disturbed / name).read_text():
            found.append(name)
    if not scalars(whole) or scalars(whole) != scalars(disturbed):
        found.append("TensorBoard")
    return found


def _equal(a, b):
    return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def torture(folder, combination, kills, seed, cold=True, config="fast_scnn:smoke"):
    """Kills runs of a combination until so many kills have landed.

    Args:
        folder: An empty one.
        combination: Of the runs.
        kills: How many; a run that ends in between is compared, and another one begins.
        seed: Of the moments.
        cold: Whether the disturbed runs compile for themselves, or take what the undisturbed one compiled.
        config: Of the runs, by name or file.

    Returns:
        How many landed at each moment, how many runs were compared, and the differences that were found.
    """
    rng = np.random.default_rng(seed)
    began = time.monotonic()
    process = start(folder / "whole", combination, folder / "cache_of_whole", config)
    for line in process.stdout:
        if is_step(line):
            break
    compile_seconds = time.monotonic() - began
    finish(process)
    cache = folder / ("cache" if cold else "cache_of_whole")
    landed, compared, found, number = collections.Counter(), 0, [], 0
    first = int(rng.integers(len(MOMENTS)))
    while True:
        workdir = folder / f"run{number}"
        process = start(workdir, combination, cache, config)
        if sum(landed.values()) < kills:
            moment = MOMENTS[(first + sum(landed.values())) % len(MOMENTS)]
            if kill_at(process, workdir, moment, rng, compile_seconds):
                landed[moment] += 1
                continue
        finish(process if process.poll() is None else start(workdir, combination, cache, config))
        found += differences(folder / "whole", workdir)
        compared, number = compared + 1, number + 1
        if sum(landed.values()) >= kills:
            return landed, compared, found


def try_out(rows):
    """Runs the tests of FAULTS or SCALING; returns rows of (what, tests, passed, skipped)."""
    found = []
    for what, expression in rows:
        with tempfile.NamedTemporaryFile(suffix=".xml") as report:
            command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report.name}"]
            command += ["-k", expression, *(f"tests/{name}" for name in FILES)]
            subprocess.run(command, cwd=ROOT, capture_output=True)
            suite = xml.etree.ElementTree.parse(report.name).getroot().find("testsuite")
        count, skipped = int(suite.get("tests")), int(suite.get("skipped"))
        bad = int(suite.get("failures")) + int(suite.get("errors"))
        found.append((what, count - skipped, count - skipped - bad, skipped))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=2, help="of each combination")
    parser.add_argument("--combinations", type=int, default=len(COMBINATIONS), help="the first n")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--faults", action="store_true", help="the other faults and the scaling too"
    )
    given = parser.parse_args()
    # For the comparison, before jax is imported: what four devices have saved is restored on as many.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    print("# Faults injected into training, and what was lost\n")
    print(
        "Written by `make torture`. Runs of Fast-SCNN on rendered streets, 12 steps, a checkpoint"
    )
    print(
        "every second and an evaluation every sixth, killed (SIGKILL) at random moments and started"
    )
    print("again by the same command. Equal: weights, optimizer state, averages, metrics.jsonl,")
    print(
        "evaluation.json and TensorBoard's scalars are those of the undisturbed run, bit for bit.\n"
    )
    titles = ("devices", "input", "average", "dtype", *MOMENTS, "runs", "equal")
    print(*tables.header(*titles, words=range(4)), sep="\n", flush=True)
    total, failed = 0, False
    for i, one in enumerate(COMBINATIONS[: given.combinations]):
        with tempfile.TemporaryDirectory() as folder:
            landed, compared, found = torture(
                pathlib.Path(folder), one, given.kills, given.seed + i
            )
        total, failed = total + sum(landed.values()), failed or bool(found)
        cells = [one.devices, one.mode, "yes" if one.ema else "no", one.dtype]
        cells += [landed[m] for m in MOMENTS] + [compared, ", ".join(found[:3]) or "yes"]
        print(tables.row(*cells), flush=True)
    print(f"\n{total} kills.")
    for title, rows in (("fault", FAULTS), ("scaling", SCALING)) if given.faults else ():
        print()
        print(*tables.header(title, "tests", "as it should be", "not possible here"), sep="\n")
        for what, count, good, skipped in try_out(rows):
            failed = failed or good < count or count + skipped == 0
            print(tables.row(what, count, good, skipped), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
