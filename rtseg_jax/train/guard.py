"""What a run is protected by: the lock on its folder, signals, full disks and devices in one line."""

import contextlib
import errno
import os
import pathlib
import signal
import socket
from collections.abc import Iterator
from typing import Any

import filelock
import jax
import ml_collections

from rtseg_jax.base import mesh
from rtseg_jax.base.files import absolute, locked

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none


def make_workdir(workdir: str) -> pathlib.Path:
    """Makes a run's folder.

    Raises:
        FileNotFoundError: its parent does not exist.
        NotADirectoryError: it is a file.
    """
    path = absolute(workdir)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"workdir {path}: its parent folder does not exist; create it first"
        )
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"workdir {path} is a file; give a folder")
    path.mkdir(exist_ok=True)
    return path


@contextlib.contextmanager
def in_one_line(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Iterator[None]:
    """Turns a full disk or device, in whatever words it is reported, into one line."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
    try:
        yield
    except OSError as error:
        if error.errno not in full:
            raise
        raise ValueError(
            f"{error.filename or workdir} cannot be written: {error.strerror}; what was saved before"
            " is intact, and the same command goes on from it once it can be"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"the device's memory is full with batch_size {config.batch_size}, augment.crop"
            f" {config.augment.crop}, dtype {config.dtype}, accumulate {config.accumulate}, remat"
            f" {config.remat}, eval.batch_size {config.eval.batch_size}, input.mode"
            f" {config.input.mode}; a smaller batch or crop, dtype=bfloat16, a larger accumulate and"
            " mode=streaming need less"
        ) from error


@contextlib.contextmanager
def alone_in(workdir: pathlib.Path) -> Iterator[None]:
    """Refuses a workdir that another run holds. The system lets go of the lock however a process ends."""
    owner, holder = workdir / ".owner", ""
    with contextlib.ExitStack() as held:
        if mesh.is_first():
            try:
                if not held.enter_context(locked(workdir / ".lock", wait=False)):
                    print("this file system knows no locks: start no second run in this workdir")
                owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
            except filelock.Timeout:
                holder = owner.read_text() if owner.is_file() else "another process"
        if mesh.in_any_process(bool(holder)):
            raise ValueError(
                f"{workdir} is in use by {holder or 'another process'}; wait for it to end, or give"
                " another --workdir"
            )
        yield


class StopSignals(list):
    """A list that SIGTERM, SIGINT or SIGHUP fills: the loop finishes its step and saves. A second signal acts at once.

    SIGHUP comes when the terminal or the connection goes; under nohup it stays ignored.
    """

    def __enter__(self) -> "StopSignals":
        self._before = {}
        for number in filter(None, (signal.SIGTERM, signal.SIGINT, SIGHUP)):
            if number == SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the caller handles signals
                pass
        return self

    def _note(self, number: int, _: Any) -> None:
        self.append(signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        if number == SIGHUP:
            # Nobody reads what is printed from here on, and printing would fail.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(nowhere, stream)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
