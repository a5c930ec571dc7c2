import errno
import os
import resource
import shutil
import signal
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rtseg_jax.base import mesh
from rtseg_jax.train import step
from rtseg_jax.weights import checkpoint

_CPU = jax.sharding.SingleDeviceSharding(jax.devices()[0])


class State(flax.struct.PyTreeNode):
    """What a run's state looks like to a checkpoint."""

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self):
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def _state(step, *, ema=False, width=3, extra=False, tx=None):
    """A small state whose every leaf depends on `step`."""
    rng = np.random.default_rng(step)
    params = {
        "backbone": {"conv": {"kernel": rng.random((3, 1, 2, width)), "bias": rng.random(width)}},
        "attention": {"alpha": rng.random()},
    }
    if extra:
        params["classifier"] = {"bias": rng.random(2)}
    variables = {"params": params, "batch_stats": {"backbone": {"norm": {"mean": rng.random(4)}}}}
    variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables)
    tx = tx or optax.chain(optax.identity(), optax.adam(lambda s: 0.1))
    fill = lambda x: x + jnp.asarray(rng.random(x.shape) * 9, x.dtype)  # noqa: E731
    return State(
        step=jnp.int32(step),
        **variables,
        opt_state=jax.tree.map(fill, tx.init(variables["params"])),
        ema=jax.tree.map(fill, variables) if ema else None,
    )


def _same(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ema", [False, True])
def test_round_trip_through_another_manager(tmp_path, ema):
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, _state(7, ema=ema), 0.5)
    with checkpoint.open_manager(tmp_path) as manager:  # as a resumed run does
        restored = checkpoint.restore(manager, _state(0, ema=ema))
        assert restored.step == 7 and type(restored) is type(_state(0))
        assert (restored.ema is not None) == ema
        _same(restored, _state(7, ema=ema))
        checkpoint.save(manager, _state(9, ema=ema))
        _same(checkpoint.restore(manager, _state(0, ema=ema)), _state(9, ema=ema))
        _same(checkpoint.restore(manager, _state(0, ema=ema), 7), _state(7, ema=ema))


def test_restored_onto_the_templates_devices(tmp_path):
    everywhere, half = (mesh.replicated(mesh.make_mesh(d)) for d in (None, jax.devices()[2:]))
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, jax.device_put(_state(1), everywhere), 0.5)
    with checkpoint.open_manager(tmp_path) as manager:
        for sharding in (everywhere, half, _CPU):
            restored = checkpoint.restore(manager, jax.device_put(_state(0), sharding))
            _same(restored, _state(1))
            assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))


@pytest.mark.parametrize(
    "mious, kept, best",  # one save a step; None: without a figure
    [
        ([0.3], {1}, 1),
        ([0.3, 0.2], {1, 2}, 1),
        ([0.3, 0.2, 0.1, 0.25], {1, 3, 4}, 1),
        ([0.3, 0.4, 0.1, None, None], {2, 4, 5}, 2),
        ([None, None, 0.1], {2, 3}, 3),
        ([0.3, None, 0.5], {2, 3}, 3),
        ([0.0, None], {1, 2}, 1),
        ([None, None, None], {2, 3}, None),
    ],
)
def test_best_and_latest_are_kept(tmp_path, mious, kept, best):
    with checkpoint.open_manager(tmp_path) as manager:
        for step, miou in enumerate(mious, start=1):
            checkpoint.save(manager, _state(step), miou)
    folders = {p.name for p in (tmp_path / checkpoint.FOLDER).iterdir()}
    assert folders == {str(s) for s in kept}
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        assert set(manager.all_steps()) == kept
        assert (manager.latest_step(), manager.best_step()) == (len(mious), best)
        for step in kept:
            variables = checkpoint.restore_variables(manager, step, _CPU)
            _same(variables, _state(step).variables())


def test_a_step_is_written_once(tmp_path):
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, _state(1), 0.3)
        checkpoint.save(manager, _state(1), 0.9)
        checkpoint.save(manager, _state(1))
        assert (manager.all_steps(), manager.metrics(1)) == ([1], {"miou": 0.3})


def test_nan_is_never_the_best(tmp_path):
    with checkpoint.open_manager(tmp_path) as manager:
        for step, miou in enumerate([0.1, float("nan"), 0.05], start=1):
            checkpoint.save(manager, _state(step), miou)
        assert manager.best_step() == 1


@pytest.mark.parametrize("ema", [False, True])
def test_variables_for_evaluation(tmp_path, ema):
    with checkpoint.open_manager(tmp_path) as manager:
        state = jax.device_put(_state(1, ema=ema), mesh.replicated(mesh.make_mesh()))
        checkpoint.save(manager, state, 0.5)
    one = jax.sharding.SingleDeviceSharding(
        jax.devices()[1]
    )  # fewer devices than it was saved from
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        variables = checkpoint.restore_variables(manager, 1, one)
    state = _state(1, ema=ema)
    _same(
        variables, state.ema if ema else {"params": state.params, "batch_stats": state.batch_stats}
    )
    assert all(leaf.sharding == one for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    "other, message",
    [
        (
            {"width": 5},
            "other shapes: opt_state/1/0/mu/backbone/conv/bias (3,) in the file, (5,) in the network,"
            " opt_state/1/0/mu/backbone/conv/kernel (3, 1, 2, 3) in the file, (3, 1, 2, 5) in the network, ",
        ),
        (
            {"extra": True},
            "only in the network: opt_state/1/0/mu/classifier/bias,"
            " opt_state/1/0/nu/classifier/bias, params/classifier/bias",
        ),
        (
            {"ema": True},
            "only in the network: ema/batch_stats/backbone/norm/mean, ema/params/attention/alpha,"
            " ema/params/backbone/conv/bias, ema/params/backbone/conv/kernel",
        ),
        (
            {"tx": optax.sgd(0.1)},
            "only in the file: opt_state/1/0/count, opt_state/1/0/mu/attention/alpha,"
            " opt_state/1/0/mu/backbone/conv/bias, opt_state/1/0/mu/backbone/conv/kernel,"
            " opt_state/1/0/nu/attention/alpha, opt_state/1/0/nu/backbone/conv/bias and 2 more",
        ),
    ],
    ids=["shape", "module", "average", "optimizer"],
)
def test_another_network_is_refused(tmp_path, other, message):
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, _state(1), 0.5)
    with checkpoint.open_manager(tmp_path) as manager:
        with pytest.raises(ValueError) as error:
            checkpoint.restore(manager, _state(0, **other))
    head = f"checkpoint {tmp_path}/checkpoints/1 does not fit this config: "
    assert str(error.value).startswith(head + message)
    assert "\n" not in str(error.value)


def test_difference_names_both_sides():
    found = checkpoint.difference(
        {"a": (1,), "b": (2, 3), "c": ()}, {"b": (3, 2), "c": (), "d": (4,)}
    )
    assert found == (
        "only in the file: a; only in the network: d;"
        " other shapes: b (2, 3) in the file, (3, 2) in the network"
    )
    assert checkpoint.difference({"a": ()}, {"a": ()}) == "nothing differs"
    assert checkpoint.difference({c: () for c in "dcba"}, {}, limit=2) == (
        "only in the file: a, b and 2 more"
    )


def test_reading_leaves_the_folder_alone(tmp_path):
    with checkpoint.open_manager(tmp_path) as writer:
        checkpoint.save(writer, _state(1), 0.5)
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / checkpoint.FOLDER).rglob("*")}
        with checkpoint.open_manager(tmp_path, read_only=True) as reader:  # while the run goes on
            assert checkpoint.restore_variables(reader, reader.latest_step(), _CPU)
            assert checkpoint.shapes(reader, 1) == checkpoint.shapes_of(_state(1))
        assert before == {
            p: p.stat().st_mtime_ns for p in (tmp_path / checkpoint.FOLDER).rglob("*")
        }
        checkpoint.save(writer, _state(2), 0.9)
    with checkpoint.open_manager(tmp_path, read_only=True) as reader:
        assert reader.best_step() == 2


def _three_saves(workdir):
    """Steps 1 (the best), 2 and 3 (the latest)."""
    with checkpoint.open_manager(workdir) as manager:
        for step, miou in ((1, 0.5), (2, 0.3), (3, 0.4)):
            checkpoint.save(manager, _state(step, ema=True), miou)
    return workdir / checkpoint.FOLDER / "3"


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


FAULTS = {
    "halved": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "a flipped bit": _flip_a_bit,
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_file_is_damaged_the_step_before_is_used(tmp_path, fault, capsys):
    """Every second file that a checkpoint consists of, one after the other."""
    _three_saves(tmp_path / "good")
    good = tmp_path / "good" / checkpoint.FOLDER / "3"
    files = [p.relative_to(good) for p in sorted(good.rglob("*")) if p.is_file()]
    assert len(files) > 10
    for i, name in enumerate(files[list(FAULTS).index(fault) % 2 :: 2]):
        run = shutil.copytree(tmp_path / "good", tmp_path / f"run{i}")
        path = run / checkpoint.FOLDER / "3" / name
        FAULTS[fault](path)
        with checkpoint.open_manager(run) as manager:
            if fault == "removed" and name.name == "digests.json":  # as after a kill: all is there
                expected = 3
            else:
                expected = 2
                assert f"{run}/damaged/3, the one before it is used" in capsys.readouterr().out
                assert (run / "damaged" / "3").is_dir()
            restored = checkpoint.restore(manager, _state(0, ema=True))
            _same(restored, _state(expected, ema=True))
            assert manager.best_step() == 1
            checkpoint.save(manager, _state(3, ema=True), 0.4)  # it is reached again
        with checkpoint.open_manager(run) as manager:
            _same(checkpoint.restore(manager, _state(0, ema=True)), _state(3, ema=True))


def test_an_emptied_folder_and_one_that_was_being_written(tmp_path, capsys):
    newest = _three_saves(tmp_path)
    shutil.copytree(newest, newest.parent / "4")
    for path in newest.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (newest.parent / "4").rename(newest.parent / "4.orbax-checkpoint-tmp")
    shutil.copytree(newest.parent / "1", newest.parent / "deleted" / "0")
    with checkpoint.open_manager(tmp_path) as manager:
        _same(checkpoint.restore(manager, _state(0, ema=True)), _state(2, ema=True))
    assert "(_CHECKPOINT_METADATA is missing)" in capsys.readouterr().out
    assert {p.name for p in newest.parent.iterdir()} == {"1", "2"}


def test_undigested_and_damaged_is_found_when_it_is_read(tmp_path, capsys):
    newest = _three_saves(tmp_path)
    (newest / "digests.json").unlink()
    os.truncate(newest / "default" / "_METADATA", 20)
    with checkpoint.open_manager(tmp_path) as manager:
        _same(checkpoint.restore(manager, _state(0, ema=True)), _state(2, ema=True))
        assert manager.latest_step() == 2
    assert f"checkpoint {newest} is damaged" in capsys.readouterr().out


def test_missing_digests_are_written_when_all_was_read(tmp_path):
    newest = _three_saves(tmp_path)
    before = (newest / "digests.json").read_text()
    (newest / "digests.json").unlink()
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.restore(manager, _state(0, ema=True))
    assert (newest / "digests.json").read_text() == before


def test_a_kill_while_digests_are_written_condemns_nothing(tmp_path):
    newest = _three_saves(tmp_path)
    (newest / "digests.json").rename(newest / "digests.json.new")
    for _ in range(2):  # what the first one writes is believed by the second
        with checkpoint.open_manager(tmp_path) as manager:
            checkpoint.restore(manager, _state(0, ema=True))
            assert manager.latest_step() == int(newest.name)
    assert not (tmp_path / "damaged").exists()


def test_none_good_is_one_line_and_nothing_moves(tmp_path):
    newest = _three_saves(tmp_path)
    for name in ("1", "2", "3"):
        _flip_a_bit(newest.parent / name / "default" / "manifest.ocdbt")
    with pytest.raises(checkpoint.Damaged) as error:
        checkpoint.open_manager(tmp_path)
    name = "default/manifest.ocdbt has changed since it was written"
    assert str(error.value) == (
        f"every checkpoint in {newest.parent} is damaged (1: {name}; 2: {name}; 3: {name});"
        " put back a copy of one, or remove the folder to begin again"
    )
    assert {p.name for p in newest.parent.iterdir()} == {"1", "2", "3"}
    assert not (tmp_path / "damaged").exists()


def test_a_reader_of_a_damaged_checkpoint_is_told_and_moves_nothing(tmp_path):
    newest = _three_saves(tmp_path)
    data = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    _flip_a_bit(data)
    with checkpoint.open_manager(tmp_path, read_only=True) as manager:
        with pytest.raises(checkpoint.Damaged, match=rf"{newest} is damaged: .* has changed"):
            checkpoint.restore_variables(manager, 3, _CPU)
        assert checkpoint.restore_variables(manager, 1, _CPU)
    os.truncate(newest / "metrics" / "metrics", 3)
    with pytest.raises(checkpoint.Damaged, match=r"cannot be listed: 3: .* moves it away"):
        checkpoint.open_manager(tmp_path, read_only=True)
    assert newest.is_dir()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's
@pytest.mark.parametrize("how", ["full", "too large"])
def test_a_failing_write_leaves_the_others(tmp_path, how, monkeypatch):
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, _state(1, width=9000), 0.5)
        if how == "full":
            usage = shutil.disk_usage(tmp_path)._replace(free=1000)
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
            with pytest.raises(OSError, match=r"takes 0\.8 MB, 0\.0 MB are free") as error:
                checkpoint.save(manager, _state(2, width=9000), 0.6)
            assert error.value.errno == errno.ENOSPC
        else:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            try:
                with pytest.raises(OSError, match="File too large") as error:
                    checkpoint.save(manager, _state(2, width=9000), 0.6)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
                signal.signal(signal.SIGXFSZ, handler)
            assert error.value.errno == errno.EFBIG
        monkeypatch.undo()
    assert {p.name for p in (tmp_path / checkpoint.FOLDER).iterdir()} == {"1"}
    with checkpoint.open_manager(tmp_path) as manager:
        _same(checkpoint.restore(manager, _state(0, width=9000)), _state(1, width=9000))
        checkpoint.save(manager, _state(2, width=9000), 0.6)
        assert manager.best_step() == 2


def test_counting_skipped_steps_may_begin_and_end_with_a_restart(tmp_path):
    counters = {"steps": jnp.int32(4), "in_a_row": jnp.int32(2)}
    plain = step.create_state(_state(1).variables(), optax.sgd(0.1), ema=False)
    counting = plain.replace(step=jnp.int32(5), skipped=counters)
    with checkpoint.open_manager(tmp_path) as manager:
        checkpoint.save(manager, plain)
        checkpoint.save(manager, counting)
        assert checkpoint.restore(manager, plain, 5).skipped is None
        zeros = plain.replace(skipped=step.none_skipped())
        _same(checkpoint.restore(manager, zeros, 0).skipped, step.none_skipped())
        _same(checkpoint.restore(manager, zeros, 5).skipped, counters)
