"""What a run tells: metrics.jsonl, TensorBoard events, the progress bar."""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from rtseg_jax.base import mesh
from rtseg_jax.base.files import written_whole


class Writers:
    """metrics.jsonl and TensorBoard.

    Both hold only what a step determines (no times), so that a resumed run writes what an undisturbed one would.
    Of several processes only the first one writes.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        """Opens both to go on after step `start`: what a killed run logged later is dropped, and logged again."""
        self._file = self._board = None
        if not mesh.is_first():
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            whole = [line for line in path.read_text().splitlines(True) if line.endswith("\n")]
            with written_whole(path) as new:
                new.write_text("".join(x for x in whole if json.loads(x)["step"] <= start))
        self._file = path.open("a")
        try:
            self._board = _Board(workdir, start)
        except ImportError:
            print("no TensorBoard events: tensorboardX is not installed")

    def scalars(self, step: int, **values: float) -> None:
        """Logs the figures of a step; a checkpoint that is written after this never outlives them."""
        if self._file:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._board:
            self._board.scalars(step, values)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a picture, uint8 [h, w, 3], to TensorBoard."""
        if self._board:
            self._board.picture(step, name, image)

    def close(self) -> None:
        """Closes both."""
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()


class _Board:
    """A file of TensorBoard events in which an event lies as soon as it is logged.

    tensorboardX's own SummaryWriter hands events to a thread that flushes every two minutes: what it holds when a run is
    killed is lost, even where a checkpoint is newer.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._event, self._summary = event_pb2.Event, summary
        # The process id: two starts within a second would write one file.
        self._writer = event_file_writer.EventsWriter(str(workdir / "events"), f".{os.getpid()}")
        begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # TensorBoard drops what it has of this step and later ones.
        self._write(start + 1, session_log=begun)

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, **content))
        self._writer.flush()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        values = [self._summary.scalar(name, value).value[0] for name, value in values.items()]
        self._write(step, summary=self._summary.Summary(value=values))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._write(step, summary=self._summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        self._writer.close()


def say(text: str) -> None:
    """Prints a line, above the bar where there is one; to stderr in the processes whose stdout is silenced."""
    stream = sys.stdout if mesh.is_first() else sys.stderr
    tqdm.write(text, file=stream)
    stream.flush()


class Progress:
    """A bar on a terminal, lines elsewhere: loss, images per second, share of time spent on input, time left."""

    def __init__(self, batch_size: int, start: int, total: int):
        """`start` of `total` steps are done; a step takes `batch_size` images."""
        self._batch_size, self._total, self._shown = batch_size, total, start
        disable = None if mesh.is_first() else True  # None: where there is no terminal
        self._bar = tqdm(
            total=total, initial=start, unit="step", dynamic_ncols=True, disable=disable
        )
        self._since, self._waited, self._paused = time.perf_counter(), 0.0, 0.0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Passes batches on and adds up how long each one took to come."""
        batches = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - began
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here (an evaluation) does not count."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def show(self, done: int, **facts: str) -> None:
        """Tells of the steps since the last call."""
        now = time.perf_counter()
        steps, seconds = done - self._shown, max(now - self._since - self._paused, 1e-9)
        facts["images/s"] = f"{steps * self._batch_size / seconds:.1f}"
        facts["data wait"] = f"{min(self._waited / seconds, 1.0):.0%}"
        text = ", ".join(f"{name} {value}" for name, value in facts.items())
        if self._bar.disable:
            left = tqdm.format_interval((self._total - done) * seconds / max(steps, 1))
            print(f"step {done}/{self._total}: {text}, {left} left", flush=True)
        else:
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix_str(text)
        self._shown, self._since, self._waited, self._paused = done, now, 0.0, 0.0

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()
