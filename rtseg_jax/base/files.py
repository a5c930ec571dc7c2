"""Files as people name them, written whole, locked; and what goes wrong with them in one line."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

import filelock


def absolute(given: str | os.PathLike[str]) -> pathlib.Path:
    """What a user's flag names, absolute; a shell leaves the ~ of --workdir=~/run to the program."""
    return pathlib.Path(os.path.abspath(os.path.expanduser(given)))


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a file beside `path` to write into, which takes its place at the end.

    A kill, or a full disk, leaves the file that there is. An error in the context leaves it too, and nothing beside it.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: pathlib.Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock on a file, which one process can; the system lets go of it however a process ends.

    Args:
        path: The file, made if need be.
        wait: Whether to wait for another process that holds it.

    Returns:
        A context that gives whether there is a lock: not so where the file system knows none.

    Raises:
        filelock.Timeout: another process holds it, and `wait` is false.
    """
    with contextlib.ExitStack() as held:
        try:
            lock = filelock.FileLock(path)
            there = bool(held.enter_context(lock.acquire(timeout=-1 if wait else 0)))
        except NotImplementedError:
            there = False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            there = False
        yield there
