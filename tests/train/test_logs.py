import io
import json
import struct
import sys
import types

import numpy as np
import pytest

from rtseg_jax.train import logs

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def _lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _events(folder):
    """All events of a folder: records of length, checksum, bytes, checksum."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        raw = path.read_bytes()
        while raw:
            (size,) = struct.unpack("<Q", raw[:8])
            yield event_pb2.Event.FromString(raw[12 : 12 + size])
            raw = raw[16 + size :]


def _shown(folder):
    return [(e.step, v.tag, v.simple_value) for e in _events(folder) for v in e.summary.value]


def test_scalars_reach_both_files(tmp_path):
    writers = logs.Writers(tmp_path, 0)
    writers.scalars(1, loss=2.5, learning_rate=0.25)
    # At once: a run that is killed loses nothing of what it had logged.
    assert _lines(tmp_path) == [{"step": 1, "loss": 2.5, "learning_rate": 0.25}]
    assert _shown(tmp_path) == [(1, "loss", 2.5), (1, "learning_rate", 0.25)]
    writers.scalars(2, miou=0.5)
    writers.close()
    assert _lines(tmp_path)[1:] == [{"step": 2, "miou": 0.5}]
    assert _shown(tmp_path) == [(1, "loss", 2.5), (1, "learning_rate", 0.25), (2, "miou", 0.5)]


def test_picture(tmp_path):
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    writers = logs.Writers(tmp_path, 0)
    writers.picture(3, "street", picture)
    writers.close()
    ((step, image),) = [(e.step, v.image) for e in _events(tmp_path) for v in e.summary.value]
    assert (step, image.height, image.width) == (3, 5, 7)
    np.testing.assert_array_equal(Image.open(io.BytesIO(image.encoded_image_string)), picture)


@pytest.mark.parametrize("tail", ["", '{"step": 5, "lo', '{"step": 1, "loss": 2', "{"])
@pytest.mark.parametrize("start", [0, 2, 4, 9])
def test_resumed_log_is_that_of_an_undisturbed_run(tmp_path, start, tail):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder, stop in ((killed, 5), (whole, 10)):
        folder.mkdir()
        writers = logs.Writers(folder, 0)
        for step in range(1, stop):
            writers.scalars(step, loss=1 / step)
        writers.close()
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(tail)
    writers = logs.Writers(killed, start)
    assert [line["step"] for line in _lines(killed)] == list(range(1, min(start, 4) + 1))
    for step in range(min(start, 4) + 1, 10):
        writers.scalars(step, loss=1 / step)
    writers.close()
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("start", [0, 2])
def test_resumed_events_hide_what_comes_again(tmp_path, start):
    writers = logs.Writers(tmp_path, 0)
    writers.scalars(3, loss=1.0)
    writers.close()
    (first,) = tmp_path.glob("events*")
    first.rename(
        tmp_path / "events.out.tfevents.0"
    )  # two starts of one process within a second share a name
    writers = logs.Writers(tmp_path, start)
    writers.scalars(start + 1, loss=2.0)
    writers.close()
    begun = [e.step for e in _events(tmp_path) if e.HasField("session_log")]
    assert begun[-1] == start + 1  # TensorBoard drops what is at or after this step
    assert _shown(tmp_path) == [(3, "loss", 1.0), (start + 1, "loss", 2.0)]


def test_without_tensorboardx(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    writers = logs.Writers(tmp_path, 0)
    assert capsys.readouterr().out == "no TensorBoard events: tensorboardX is not installed\n"
    writers.scalars(1, loss=1.0)
    writers.picture(1, "street", np.zeros((2, 2, 3), np.uint8))
    writers.close()
    assert _lines(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told otherwise."""
    fake = types.SimpleNamespace(now=100.0, perf_counter=lambda: fake.now)
    monkeypatch.setattr(logs, "time", fake)
    return fake


def test_progress_prints_lines_where_no_terminal_is(clock, capsys):
    progress = logs.Progress(8, 20, 120)

    def batches():
        for batch in range(3):
            clock.now += 0.5  # to wait for
            yield batch

    seen = []
    for batch in progress.timed(batches()):
        seen.append(batch)
        clock.now += 1.5  # to compute on
    assert seen == [0, 1, 2]
    with progress.paused():
        clock.now += 50
    clock.now += 2
    progress.show(30, loss="0.5", lr="1e-3")  # 10 steps in 8 s, 1.5 of them waiting
    clock.now += 5
    progress.show(31)  # nothing of before is counted again
    logs.say("step 31: hello")
    progress.close()
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "step 30/120: loss 0.5, lr 1e-3, images/s 10.0, data wait 19%, 01:12 left",
        "step 31/120: images/s 1.6, data wait 0%, 07:25 left",
        "step 31: hello",
    ]
    assert err == ""


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = logs.Progress(8, 20, 120)
    progress.show(30, loss="0.5")
    progress.close()
    assert "30/120" in terminal.getvalue() and "loss 0.5, images/s" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_steps_that_take_no_time(clock, capsys):
    progress = logs.Progress(8, 0, 10)
    progress.show(0)
    progress.show(1)
    assert len(capsys.readouterr().out.splitlines()) == 2
