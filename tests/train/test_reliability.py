"""Faults in the middle of a run: what they cost, and the one line that they are answered with."""

import copy
import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from rtseg_jax import data, models
from rtseg_jax.base import config as settings
from rtseg_jax.base import mesh
from rtseg_jax.data import pipeline
from rtseg_jax.nn import losses
from rtseg_jax.train import loop, step
from rtseg_jax.train.guard import alone_in, make_workdir
from rtseg_jax.weights import checkpoint
from tests import tiny, torture
from tests.networks import shapes
from tests.train.test_train import assert_same_run, final_state, log, stopped_at

ROOT = pathlib.Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("tiny_network")
STEM = "['params']['backbone']['stem']['conv']['kernel']"


def eight_steps(**overrides):
    """A config of the tiny network with a checkpoint at every second step, with dotted keys overridden."""
    given = {"num_steps": 8, "checkpoint_every": 2, "eval__every_steps": 8, **overrides}
    return tiny.config(**given)


def run(config, workdir):
    return loop.train_and_evaluate(config, str(workdir))


def refused(config, workdir, error=ValueError):
    """The one line with which a run ends."""
    with pytest.raises(error) as caught:
        run(config, workdir)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def steps_saved(workdir):
    return {p.name for p in (workdir / checkpoint.FOLDER).iterdir()}


# Kills


def test_killed_at_random_and_started_again(tmp_path):
    """SIGKILL at three of the moments at which torture.py kills; the weights, logs and figures stay what they are."""
    combination = torture.Combination(devices=4, mode="resident", ema=True, dtype="float32")
    landed, compared, found = torture.torture(
        tmp_path, combination, 3, None, cold=False, config=tiny.FILE
    )
    assert (landed.total(), found) == (3, []) and compared >= 1


def test_torture_sees_what_differs(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(eight_steps(num_steps=2, seed=seed), tmp_path / name)
    assert torture.differences(tmp_path / "a", tmp_path / "b") == []
    found = torture.differences(tmp_path / "a", tmp_path / "c")
    assert {"metrics.jsonl", "TensorBoard", STEM} <= set(found)
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(log(tmp_path / "b")[-1]) + "\n")
    assert torture.differences(tmp_path / "a", tmp_path / "b") == ["metrics.jsonl"]


def test_the_tests_that_torture_names_are_there():
    source = "".join((ROOT / "tests" / name).read_text() for name in torture.FILES)
    for _, expression in (*torture.FAULTS, *torture.SCALING):
        for name in re.findall(r"test_\w+", expression):
            assert f"def {name}" in source


# Checkpoints and the folder


def test_newest_checkpoint_damaged_and_the_run_ends_as_if_it_were_not(tmp_path, capsys):
    run(eight_steps(ema_decay=0.9), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    newest = tmp_path / "run" / checkpoint.FOLDER / "8"
    data = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    capsys.readouterr()
    run(eight_steps(ema_decay=0.9), tmp_path / "run")
    said = capsys.readouterr().out
    assert f"checkpoint {newest} is damaged ({data.relative_to(newest)} has changed" in said
    assert "at step 6 of 8" in said
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_no_training_over_ruins(tmp_path):
    run(eight_steps(num_steps=2), tmp_path / "run")
    lines = log(tmp_path / "run")
    os.truncate(tmp_path / "run" / checkpoint.FOLDER / "2" / "_CHECKPOINT_METADATA", 9)
    said = refused(eight_steps(num_steps=2), tmp_path / "run", checkpoint.Damaged)
    assert "every checkpoint in" in said and "remove the folder to begin again" in said
    assert log(tmp_path / "run") == lines


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    workdir = tmp_path / "run"
    with alone_in(make_workdir(str(workdir))):
        said = refused(eight_steps(), workdir)
    assert f"{workdir} is in use by process {os.getpid()} on " in said
    assert sorted(p.name for p in workdir.iterdir()) == [".lock", ".owner"]
    run(eight_steps(num_steps=2), workdir)


def test_the_lock_goes_with_a_killed_process(tmp_path):
    code = (
        "import fcntl, time\n"
        f"held = open({str(tmp_path / '.lock')!r}, 'a+')\n"
        "fcntl.flock(held, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    other.stdout.readline()
    with pytest.raises(ValueError, match="is in use by another process; wait for it to end"):
        with alone_in(tmp_path):
            pass
    other.kill()
    other.communicate()
    with alone_in(tmp_path):
        assert (tmp_path / ".owner").read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, capsys):
    def unsupported(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with alone_in(tmp_path):
        assert "knows no locks" in capsys.readouterr().out


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch):
    run(eight_steps(), tmp_path / "whole")
    write = checkpoint.ocp.CheckpointManager.save

    def fail(self, at, *args, **options):
        if at == 6:
            raise ValueError(
                f"RESOURCE_EXHAUSTED: Failed to write [os_error_code='{errno.EDQUOT}']"
            )
        return write(self, at, *args, **options)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", fail)
    said = refused(eight_steps(), tmp_path / "run")
    assert (
        f"{tmp_path}/run/checkpoints cannot be written: {os.strerror(errno.EDQUOT)}; what" in said
    )
    assert steps_saved(tmp_path / "run") == {"2", "4"}
    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", write)
    run(eight_steps(), tmp_path / "run")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# Orbax closes its event loop at the first write that fails; tensorstore then finds it closed for the others.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("options", ["size=300k", "ro"])
def test_a_real_full_or_read_only_disk(tmp_path, options):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        if options == "ro":
            said = refused(eight_steps(), disk)
            assert f"{disk}/.lock cannot be written: Read-only file system" in said
            return
        (disk / "ballast").write_bytes(bytes(200_000))
        said = refused(eight_steps(), disk)
        assert "cannot be written: No space left on device" in said
        saved = steps_saved(disk)
        (disk / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        run(eight_steps(), disk)
        assert saved <= {"2", "4", "6"}
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# Divergence


def poisoned(monkeypatch, *bad):
    """Lets the loss of these steps, counted from 1, be no number."""
    augment = step.augment

    def poison(images, labels, indices, at, **options):
        batch = augment(images, labels, indices, at, **options)
        nan = jnp.isin(at + 1, jnp.asarray(bad))
        return {**batch, "image": jnp.where(nan, jnp.nan, batch["image"])}

    monkeypatch.setattr(step, "augment", poison)


def test_divergence_names_the_images_and_keeps_the_state(tmp_path, monkeypatch):
    poisoned(monkeypatch, 6)
    config = eight_steps(log_every=4, checkpoint_every=4)
    said = refused(config, tmp_path / "run", loop.TrainingDiverged)
    order = pipeline.batch_indices(config.seed, 5, 8, 4)
    images = data.load(**settings.dataset_arguments(config, "train")).names
    names = ", ".join(images[i] for i in order)
    assert said.startswith("loss nan, gradient norm nan at step 6 (steps 5 to 8 were looked at)")
    assert f"on the images {names}; the state after step 8 is in {tmp_path}/run/diverged" in said
    assert steps_saved(tmp_path / "run") == {"4"}
    at, state = final_state(tmp_path / "run" / "diverged")
    assert at == 8 and np.isnan(state[STEM]).any()
    assert (tmp_path / "run" / "diverged" / "config.json").is_file()


def test_a_step_is_looked_at_before_it_is_saved(tmp_path, monkeypatch):
    poisoned(monkeypatch, 3)
    refused(eight_steps(log_every=100), tmp_path / "run", loop.TrainingDiverged)
    assert steps_saved(tmp_path / "run") == {"2"}


def test_skipping_keeps_the_state_and_counts(tmp_path, monkeypatch):
    run(eight_steps(num_steps=2), tmp_path / "two")
    poisoned(monkeypatch, 3, 4, 6)
    skipping = {"nonfinite": "skip", "ema_decay": 0.0, "log_every": 1}
    run(eight_steps(num_steps=4, **skipping), tmp_path / "four")
    run(eight_steps(num_steps=8, **skipping), tmp_path / "run")
    lines = [x for x in log(tmp_path / "run") if "miou" not in x]
    assert [x["skipped_steps"] for x in lines] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert ["loss" in x for x in lines] == [True, True, False, False, True, False, True, True]
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    _, state = final_state(tmp_path / "run")
    assert all(np.isfinite(x).all() for x in state.values())
    # Steps 3 and 4 changed nothing but the counters and the learning rate's.
    _, after = final_state(tmp_path / "four")
    assert after["['skipped']['in_a_row']"] == 2 and after["['step']"] == 4
    assert after["['opt_state'][1]['count']"] == 2


def test_skipping_ends_after_so_many_in_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SKIPS", 3)
    poisoned(monkeypatch, 2, 4, 5, 6, 7)
    said = refused(eight_steps(nonfinite="skip"), tmp_path / "run", loop.TrainingDiverged)
    assert "at step 6, the last of 3 that were skipped" in said


def test_skipping_resumes_bit_for_bit_and_may_be_switched_on(tmp_path, monkeypatch):
    poisoned(monkeypatch, 3, 5)
    run(eight_steps(nonfinite="skip", log_every=4), tmp_path / "whole")
    refused(eight_steps(log_every=4), tmp_path / "run", loop.TrainingDiverged)
    run(eight_steps(nonfinite="skip", log_every=4), tmp_path / "run")  # from step 2 on
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_nothing_is_skipped_without_a_cause(tmp_path):
    run(eight_steps(), tmp_path / "stop")
    run(eight_steps(nonfinite="skip"), tmp_path / "skip")
    _, stop = final_state(tmp_path / "stop")
    _, skip = final_state(tmp_path / "skip")
    for name, value in stop.items():
        np.testing.assert_allclose(value, skip[name], rtol=1e-3, atol=1e-5, err_msg=name)


# Data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixteen images of noise and their labels, two classes, and a config that streams them."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (64, 128, 3), np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{i:02d}.png")
            Image.fromarray(image[..., 0] // 128).save(root / "labels" / split / f"{i:02d}.png")
    (root / "classes.txt").write_text("dark\nlight\n")
    given = {"dataset": "folder", "root": str(root), "size": None, "num_train": None}
    config = eight_steps(
        **{f"input__{k}": v for k, v in given.items()},
        input__num_eval=None,
        input__mode="streaming",
        num_steps=20,
        checkpoint_every=100,
        eval__every_steps=20,
    )
    return root, config


def _victim(root, config, kind):
    """A file of the ninth batch, which is not read ahead yet when the fourth is done."""
    order = pipeline.batch_indices(config.seed, 8, 16, 4)
    return root / kind / "train" / f"{order[0]:02d}.png"


def _other_size(path):
    Image.new("RGB", (100, 50)).save(path)


def _out_of_range(path):
    Image.fromarray(np.full((64, 128), 7, np.uint8)).save(path)


FAULTS = [
    ("images", lambda p: p.unlink(), "No such file or directory"),
    ("images", lambda p: os.truncate(p, 200), "truncated or corrupt"),
    ("images", lambda p: p.write_bytes(b"<html>"), "not an image"),
    ("images", _other_size, "50x100"),
    ("labels", _out_of_range, "7"),
]


@pytest.mark.parametrize(
    "kind, fault, message",
    FAULTS,
    ids=["removed", "truncated", "replaced", "another size", "label out of range"],
)
def test_data_that_goes_bad_during_a_run(folder, tmp_path, kind, fault, message, monkeypatch):
    """The file is named, and the steps before its batch are saved."""
    pytest.importorskip("tensorflow")
    root, config = folder
    victim = _victim(root, config, kind)
    content = victim.read_bytes()
    check = loop._check_and_log

    def spoil(window, done, *rest):
        check(window, done, *rest)
        if done == 4:
            fault(victim)

    monkeypatch.setattr(loop, "_check_and_log", spoil)
    try:
        said = refused(config, tmp_path / "run", (ValueError, FileNotFoundError))
    finally:
        victim.write_bytes(content)
    assert message in said and victim.stem in said
    at, _ = final_state(tmp_path / "run")
    assert int(victim.stem) in pipeline.batch_indices(config.seed, at, 16, 4)
    monkeypatch.setattr(loop, "_check_and_log", check)
    if message == "truncated or corrupt":  # with the file back, all is as if nothing had happened
        run(config, tmp_path / "run")
        run(config, tmp_path / "whole")
        assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("mode", ["streaming", "resident"])
def test_an_image_of_the_evaluation_that_cannot_be_read(folder, tmp_path, mode, capsys):
    """The steps before it are saved, or it is found before the first; input.max_bad leaves it out, by name."""
    pytest.importorskip("tensorflow")
    root, given = folder
    root = shutil.copytree(root, tmp_path / "data")
    victim = sorted((root / "images" / "val").iterdir())[1]
    os.truncate(victim, 200)

    def config(**overrides):
        return tiny.override(
            copy.deepcopy(given), {"input__root": str(root), "input__mode": mode, **overrides}
        )

    said = refused(config(), tmp_path / "run")
    assert said.startswith(f"{victim}: truncated") and said.endswith("=0 leaves so many out")
    if mode == "streaming":
        at, _ = final_state(tmp_path / "run")
        assert at == given.eval.every_steps
        assert f"saved step {at}; the same command goes on from there" in capsys.readouterr().out
    run(config(input__max_bad=1), tmp_path / "run")
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["left_out"] == [victim.stem]
    assert report["images"] == len(list(victim.parent.iterdir())) - 1


def test_bad_data_that_is_allowed(folder, tmp_path, capsys):
    """Counted, named, replaced by the next image; the same for a stream, a resident set and a run that was resumed."""
    pytest.importorskip("tensorflow")
    root, given = folder
    root = shutil.copytree(root, tmp_path / "data")
    faults = FAULTS[1:]  # a file that is not there at the start is found by the listing
    victims = [root / kind / "train" / f"{3 * i:02d}.png" for i, (kind, _, _) in enumerate(faults)]
    for (_, fault, _), victim in zip(faults, victims, strict=True):
        fault(victim)

    def config(**overrides):
        return tiny.override(
            copy.deepcopy(given), {"input__root": str(root), "input__max_bad": 4, **overrides}
        )

    capsys.readouterr()
    run(config(), tmp_path / "streamed")
    said = [x for x in capsys.readouterr().out.splitlines() if x.startswith("bad example")]
    assert len(said) == 4 and all(x.endswith("; the next one takes its place") for x in said)
    assert all(any(v.stem in line for line in said) for v in victims)
    run(config(input__mode="resident"), tmp_path / "resident")
    assert_same_run(tmp_path / "streamed", tmp_path / "resident")
    said = refused(config(input__max_bad=3), tmp_path / "run")
    assert said.startswith("bad example 4 of 3: ") and "; more than input.max_bad allows" in said

    said = refused(config(input__cache=str(tmp_path / "cache")), tmp_path / "run")
    assert said.startswith("input.max_bad=4 goes with the files themselves, and a packed copy")

    with stopped_at(7):
        run(config(), tmp_path / "resumed")
    run(config(), tmp_path / "resumed")
    assert_same_run(tmp_path / "streamed", tmp_path / "resumed")


# Memory


def _one_step(devices=1, tx=None, batch=8, **options):
    """State and figures after one step of the tiny network on noise; SGD of rate 1, so that it shows the gradient."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, 32, 64, 3), np.uint8)
    labels = rng.integers(0, 3, (batch, 32, 64), np.uint8)
    labels[:3, :20] = 255  # the parts of the batch weigh differently
    labels[3] = 255
    model = tiny.Tiny(num_classes=3, **options.pop("model", {"norm": False}))
    weights = options.pop("weights", (1.0, 2.0, 5.0))
    kind = options.pop("kind", "cross_entropy")
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 64, 3)), train=True)
    tx = optax.sgd(1.0)
    jitted = step.jit_train_step(
        mesh.make_mesh(jax.devices()[:devices]),
        model=model,
        loss_fn=lambda outputs, batch: losses.segmentation_loss(
            outputs, batch, kind=kind, class_weights=weights, threshold=0.7, min_kept=1 / 16
        ),
        tx=tx,
        schedule=lambda at: jnp.float32(1.0),
        seed=0,
        augmentation={
            **{"crop": (32, 64), "scales": (1.0, 1.5), "scale_range": None, "flip": 0.5},
            **{"jitter": (0.0,) * 3, "mean": (127.0,) * 3, "std": (60.0,) * 3},
        },
        ema_decay=0.0,
        class_weights=weights,
        **options,
    )
    state = step.create_state(variables, tx, ema=False)
    state = jax.device_put(state, mesh.replicated(mesh.make_mesh(jax.devices()[:devices])))
    lowered = jitted.lower(state, (images, labels), np.arange(batch, dtype=np.int32)).compile()
    state, logged = lowered(state, (images, labels), np.arange(batch, dtype=np.int32))
    return jax.device_get(state), jax.device_get(logged), lowered


@pytest.mark.parametrize(
    "devices, parts, weights", [(1, 4, None), (1, 2, (1.0, 2.0, 5.0)), (2, 4, (1.0, 2.0, 5.0))]
)
def test_accumulated_gradient_is_that_of_the_batch(devices, parts, weights):
    """With fixed statistics, and parts of unequal weight: every parameter and every figure."""
    whole, logged, _ = _one_step(weights=weights)
    state, figures, _ = _one_step(devices=devices, accumulate=parts, weights=weights)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name, value in logged.items():
        np.testing.assert_allclose(value, figures[name], rtol=1e-5, err_msg=name)


def test_hard_pixels_are_those_of_a_part():
    (whole, _, _), (parts, _, _) = (_one_step(accumulate=k, kind="ohem") for k in (1, 4))
    pairs = zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True)
    assert any(not np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_parts_of_a_batch_are_cut_where_it_lies():
    """No frame is sent from device to device."""
    _, _, compiled = _one_step(devices=4, accumulate=2)
    text = compiled.as_text()
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-to-all", "collective-permute", "all-gather"))


def test_parts_have_their_own_dropout():
    states = [_one_step(accumulate=2, model={"dropout": d, "norm": False})[0] for d in (0.0, 0.5)]
    a, b = (s.now()["params"]["backbone"]["stem"]["conv"]["kernel"] for s in states)
    assert np.abs(a - b).max() > 1e-4


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "model": {"dropout": 0.5}}])
def test_remat_computes_the_same(options):
    plain, _, _ = _one_step(**options)
    again, _, _ = _one_step(remat=True, **options)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_accumulate_and_remat_are_read_from_the_config(tmp_path):
    plain = {"optim__method__name": "sgd", "num_steps": 2, "batch_size": 8}
    run(eight_steps(**plain, accumulate=2, remat=True), tmp_path / "run")
    run(eight_steps(**plain), tmp_path / "plain")
    ours, other = log(tmp_path / "run")[0], log(tmp_path / "plain")[0]
    assert ours["loss"] == pytest.approx(other["loss"], rel=0.05)
    assert ours["loss"] != other["loss"]  # BatchNorm's statistics


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {"accumulate": 2},
            "batch_size 4 cannot go through 4 devices in accumulate 2 parts; use a",
        ),
        ({"accumulate": 0}, "--config.accumulate=0 is impossible; allowed: 1 or more"),
        (
            {"nonfinite": "ignore"},
            "--config.nonfinite='ignore' is impossible; allowed: stop or skip",
        ),
    ],
)
def test_wrong_options_are_one_line(overrides, message, tmp_path):
    assert message in refused(eight_steps(**overrides), tmp_path / "run")


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "message"),
    [
        (
            1,
            1,
            "batch_size 1 is too small for fast_scnn: the norm backbone/pyramid/pool1/norm sees",
        ),
        (4, 4, "batch_size 4 in accumulate 4 parts is too small for fast_scnn: .*of 8 or more"),
        (2, 1, None),
        (4, 2, None),
    ],
)
def test_a_batch_in_which_a_norm_sees_one_value_is_refused(batch_size, accumulate, message):
    config = tiny.override(
        settings.load("fast_scnn:smoke"), {"batch_size": batch_size, "accumulate": accumulate}
    )
    model = models.create("fast_scnn", num_classes=3)
    variables = shapes("fast_scnn", 3)
    if message is None:
        loop._check_norms(config, model, variables)
        return
    with pytest.raises(ValueError, match=message):
        loop._check_norms(config, model, variables)


def test_a_full_device_names_what_can_be_made_smaller(tmp_path, monkeypatch):
    def full(*args, **options):
        def call(state, frames, indices):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")

        return call

    monkeypatch.setattr(step, "jit_train_step", full)
    assert refused(eight_steps(), tmp_path / "run").startswith(
        "the device's memory is full with batch_size 4, augment.crop (32, 64), dtype float32,"
        " accumulate 1, remat False, eval.batch_size 4, input.mode resident; a smaller batch"
    )
