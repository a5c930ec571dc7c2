"""Files as people name them, and what goes wrong with them in one line."""

import os
import pathlib


def absolute(given: str | os.PathLike[str]) -> pathlib.Path:
    """What a user's flag names, absolute; a shell leaves the ~ of --workdir=~/run to the program."""
    return pathlib.Path(os.path.abspath(os.path.expanduser(given)))


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
