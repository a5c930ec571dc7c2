"""What is started elsewhere: the GPU suite and what travels to it, jobs of several processes."""

import json
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from rtseg_jax.base import config as settings
from tests import compiling

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / "launch"
PACKING = runpy.run_path(str(LAUNCH / "pack_camvid.py"))
SPLITS = ("train", "val", "test")


@pytest.fixture
def camvid(tmp_path):
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 32)[:, None, None] + np.arange(3) * 20
    for split in SPLITS:
        for kind in ("", "annot"):
            (tmp_path / "camvid" / f"{split}{kind}").mkdir(parents=True)
        for i in range(2):
            image = np.broadcast_to(ramp + i, (32, 48, 3)).astype(np.uint8)
            label = rng.integers(0, 12, (32, 48), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "camvid" / split / f"{i}.png")
            Image.fromarray(label).save(tmp_path / "camvid" / f"{split}annot" / f"{i}.png")
    return tmp_path / "camvid"


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_packed_camvid_comes_back(camvid, tmp_path):
    """Labels bit for bit, images but for what JPEG loses, in the folders that data.camvid reads."""
    assert PACKING["pack"](camvid, tmp_path / "packed.zip", 95) == 6
    assert PACKING["unpack"](tmp_path / "packed.zip", tmp_path / "back") == 6
    names = sorted(path.relative_to(camvid) for path in camvid.rglob("*.png"))
    assert names == sorted(
        p.relative_to(tmp_path / "back") for p in (tmp_path / "back").rglob("*.*")
    )
    for name in names:
        before, after = read(camvid / name).astype(int), read(tmp_path / "back" / name).astype(int)
        assert np.abs(before - after).max() <= (0 if "annot" in name.parts[0] else 4), name


def test_packing_refuses_with_one_line(camvid, tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.zip is no zip file; make one with: pack_camvid.py"):
        PACKING["unpack"](tmp_path / "text.zip", tmp_path / "back")
    with PACKING["zipfile"].ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../outside.png", b"")
    with pytest.raises(ValueError, match="holds ../outside.png, which is no part of CamVid"):
        PACKING["unpack"](tmp_path / "evil.zip", tmp_path / "back")
    (camvid / "valannot" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"valannot/1.png is missing, the label of .*1.png"):
        PACKING["pack"](camvid, tmp_path / "packed.zip", 95)


@pytest.mark.parametrize("part", [[], ["no_such_part"]])
def test_suite_names_its_parts(part):
    result = subprocess.run(
        ["bash", str(LAUNCH / "gpu_suite.sh"), *part], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    for name in ("quick", "tests", "ops", "bench NET...", "camvid CONFIG", "recipes REGEX"):
        assert f"launch/gpu_suite.sh {name}" in result.stderr


def test_ten_minutes_of_a_gpu_in_small(tmp_path):
    """Everything that `quick` does, on a CPU: the lines of the clock, a training, its weights and its score."""
    environment = {**os.environ, "TINY": "1", "OUT": str(tmp_path), "PYTHON": sys.executable}
    environment |= {"JAX_PLATFORMS": "cpu", "WHEELS": str(tmp_path / "none")}
    environment["XLA_FLAGS"] = compiling.FLAGS
    done = subprocess.run(
        ["bash", str(LAUNCH / "gpu_suite.sh"), "quick"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {(line["backend"], line["mode"]) for line in lines if "ms" in line} == {
        (backend, mode)
        for backend in ("jax", "torch")
        for mode in ("throughput", "latency", "train")
    }
    assert (tmp_path / "weights.safetensors").stat().st_size > 1e6
    assert json.loads((tmp_path / "evaluation_test.json").read_text())["images"] == 4


SCRIPTS = (*LAUNCH.glob("*.sh"), LAUNCH.parent / ".ci" / "run")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    linter = shutil.which("shellcheck", path=sysconfig.get_path("scripts"))
    if linter is None:
        pytest.skip("shellcheck is not installed; the extra test holds it")
    result = subprocess.run([linter, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def stub(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (folder / name).chmod(0o755)


def slurm(tmp_path, srun, *arguments):
    """Runs slurm.sh with a `srun` and a `scontrol` of ours; what they were told."""
    said = tmp_path / "said"
    said.write_text("")
    stub(tmp_path / "bin", "srun", f'echo "srun $*" >> {said}\n{srun}')
    stub(tmp_path / "bin", "scontrol", f'echo "scontrol $*" >> {said}')
    result = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sh"), *arguments],
        env={
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "77",
            "PYTHON": "py",
        },
        capture_output=True,
        text=True,
    )
    return result, said.read_text().splitlines()


def test_slurm_job_is_queued_again_until_its_run_is_done(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    report = run / "evaluation.json"
    report.write_text("of an earlier job")
    os.utime(report, (0, 0))
    arguments = ("--config=asap:streets", f"--workdir={run}")
    started = [
        f"srun --kill-on-bad-exit=1 py -m rtseg_jax.main --distributed {' '.join(arguments)}"
    ]
    result, said = slurm(tmp_path, "exit 0", *arguments)
    assert (result.returncode, said) == (0, [*started, "scontrol requeue 77"])
    result, said = slurm(tmp_path, f"sleep 0.1; touch {report}", *arguments)
    assert (result.returncode, said) == (0, started)
    result, said = slurm(tmp_path, "exit 3", *arguments)
    assert (result.returncode, said) == (3, started)
    assert [path.name for path in tmp_path.glob(".*")] == []
    result, said = slurm(tmp_path, "exit 0", "--config=asap")
    assert (result.returncode, said) == (2, [])
    assert "give --workdir=DIR" in result.stderr


def multihost(tmp_path, body, *hosts):
    """Starts multihost.sh with a Python of ours, which notes its arguments in a file of its number first."""
    note = f'for a in "$@"; do [[ $a == --process_id=* ]] && id=${{a#*=}}; done\necho "$*" > {tmp_path}/said$id'
    stub(tmp_path / "bin", "python", f"{note}\n{body}")
    command = ["bash", str(LAUNCH / "multihost.sh"), *hosts]
    command += ["--", "--config=asap:streets", "--workdir=a b"] if hosts else []
    environment = {**os.environ, "PYTHON": str(tmp_path / "bin" / "python"), "PORT": "4000"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_multihost_starts_a_process_for_each_host(tmp_path):
    started = multihost(tmp_path, "exit 0", "localhost", "localhost")
    started.communicate(timeout=60)
    assert started.returncode == 0
    for i in range(2):
        assert (tmp_path / f"said{i}").read_text() == (
            "-m rtseg_jax.main --distributed --coordinator=localhost:4000 --num_processes=2"
            f" --config=asap:streets --workdir=a b --process_id={i}\n"
        )


def test_multihost_reaches_others_by_ssh(tmp_path):
    stub(tmp_path / "ssh", "ssh", f'echo "$*" > {tmp_path}/ssh.log; bash -c "${{@: -1}}"')
    environment = os.environ["PATH"]
    os.environ["PATH"] = f"{tmp_path / 'ssh'}:{environment}"
    try:
        started = multihost(tmp_path, "pwd", "far")
        output, _ = started.communicate(timeout=60)
    finally:
        os.environ["PATH"] = environment
    assert (started.returncode, output.strip()) == (0, str(LAUNCH.parent))
    assert (tmp_path / "ssh.log").read_text().startswith("-tt -o BatchMode=yes far cd ")
    assert "--workdir=a b --process_id=0" in (tmp_path / "said0").read_text()


TRAPPED = (
    'trap "echo stopped; exit 0" TERM; touch {folder}/trapped$id; sleep 60 &> /dev/null & wait'
)


def test_multihost_ends_all_where_one_fails(tmp_path):
    fail = f"while ! [[ -e {tmp_path}/trapped0 ]]; do sleep 0.01; done; exit 5"
    body = f"if ((id)); then {fail}; fi; {TRAPPED.format(folder=tmp_path)}"
    started = multihost(tmp_path, body, "localhost", "localhost")
    output, _ = started.communicate(timeout=60)
    assert (started.returncode, output) == (5, "stopped\n")


def test_multihost_ends_with_the_first_failure(tmp_path):
    """And not with that of a process which it stopped on account of it."""
    body = f"if ((id)); then sleep 0.2; exit 5; fi; exec sleep 60 &> {tmp_path}/log"
    started = multihost(tmp_path, body, "localhost", "localhost")
    started.communicate(timeout=60)
    assert started.returncode == 5


def test_multihost_hands_on_a_signal(tmp_path):
    started = multihost(tmp_path, TRAPPED.format(folder=tmp_path), *["localhost"] * 2)
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"trapped{i}").exists() for i in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.terminate()
    output, _ = started.communicate(timeout=60)
    assert (started.returncode, output) == (0, "stopped\nstopped\n")


def test_multihost_says_what_it_takes(tmp_path):
    started = multihost(tmp_path, "exit 0")
    _, problem = started.communicate(timeout=30)
    assert started.returncode == 2 and "launch/multihost.sh node1 node2 -- --config" in problem


def flags_of(text):
    return set(re.findall(r"--([a-z_]+)=", text))


def test_manifests_start_the_program_with_its_flags():
    main_flags = {"config", "workdir", "coordinator", "num_processes", "process_id"}
    (job,) = yaml.safe_load_all((LAUNCH / "jobset.yaml").read_text())
    workers = job["spec"]["replicatedJobs"][0]
    spec = workers["template"]["spec"]
    container = spec["template"]["spec"]["containers"][0]
    arguments = dict(a.removeprefix("--").partition("=")[::2] for a in container["args"])
    assert arguments.keys() >= main_flags | {"distributed"}
    assert int(arguments["num_processes"]) == spec["parallelism"] == spec["completions"]
    # A pod's name and its domain, as JobSet makes them: SET-JOB-0-INDEX.SET
    name = job["metadata"]["name"]
    host, port = arguments["coordinator"].split(":")
    assert host == f"{name}-{workers['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    config = settings.load(arguments["config"])
    batch_size = int(arguments["config.batch_size"])
    gpus = container["resources"]["limits"]["nvidia.com/gpu"] * spec["parallelism"]
    assert batch_size % gpus == 0
    assert float(arguments["config.optim.lr"]) / config.optim.lr == batch_size / config.batch_size
    # A pod that was moved in time must not count as done.
    assert int(arguments["stopped_exit_code"]) > 0

    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert flags_of(task["run"]) == main_flags - {"config"}
    assert {"DATA", "RUNS", "ARGUMENTS"} == task["envs"].keys()
    assert settings.load(task["envs"]["ARGUMENTS"].split()[0].partition("=")[2])
