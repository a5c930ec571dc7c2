"""What every program's command line is made of: its flags, a user's mistake as one line, exit codes.

A program is three things: which flags it has, what it does with them, and their union, which a shell and Python both
call. Its flags are a set of their own, so that several programs can be called in one process.
"""

import dataclasses
import difflib
import inspect
import os
import pathlib
import re
import signal
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags as absl_flags
from absl import logging

from rtseg_jax.base.files import absolute, one_line
from rtseg_jax.base.sizes import OWN, Pair

Given = types.SimpleNamespace


class Flags:
    """The flags of one call of a program; each method defines one, and says what its value is."""

    def __init__(self, arguments: Sequence[str]):
        self._arguments = list(arguments)
        self._flags = absl_flags.FlagValues()
        self._read: dict[str, Callable[[Any], Any]] = {}
        self._without: set[str] = set()
        self._needs_network: bool | None = None  # None: the program takes no --network

    def _define(self, how: Callable, name: str, default: Any, text: str, *more: Any, **also: Any):
        how(name, default, *more, text, flag_values=self._flags, **also)

    def string(
        self, name: str, text: str, default: str | None = None, *, required: bool = False
    ) -> None:
        """A word, or None."""
        self._define(absl_flags.DEFINE_string, name, default, text, required=required)

    def strings(self, name: str, text: str) -> None:
        """A list of words, one for each time that the flag is given."""
        self._define(absl_flags.DEFINE_multi_string, name, [], text)

    def words(self, name: str, text: str, default: Sequence[str] | None = None) -> None:
        """A list of words, with commas between them."""
        self._define(absl_flags.DEFINE_list, name, default if default is None else [*default], text)

    def choice(self, name: str, text: str, default: str, allowed: Sequence[str]) -> None:
        """One of the words that are allowed."""
        self._define(absl_flags.DEFINE_enum, name, default, text, [*allowed])

    def switch(self, name: str, text: str, default: bool = False) -> None:
        """True or False."""
        self._define(absl_flags.DEFINE_bool, name, default, text)

    def count(
        self, name: str, text: str, default: int | None, *, low: int, high: int | None = None
    ) -> None:
        """A whole number between two bounds."""
        bounds = {"lower_bound": low, "upper_bound": high}
        self._define(absl_flags.DEFINE_integer, name, default, text, **bounds)

    def number(self, name: str, text: str, default: float, *, low: float | int) -> None:
        """A number of at least `low`."""
        self._define(absl_flags.DEFINE_float, name, default, text, lower_bound=low)

    def path(
        self, name: str, text: str, default: str | None = None, *, required: bool = False
    ) -> None:
        """An absolute path, or None."""
        self.string(name, text, default, required=required)
        self._read[name] = lambda given: None if given is None else absolute(given)

    def network(self, *, needed: bool = True) -> None:
        """--network, a place for inference.network.load, which --workdir is another name for; and --checkpoint, a word.

        Args:
            needed: Whether one of the two must be given; else "network" may be None.
        """
        self._needs_network = needed
        text = "A trained network: a run's folder, a bundle, a public checkpoint, or a shipped one's name."
        self.string("network", text if needed else f"{text} The first shipped one if not given.")
        self.path("workdir", "Another name for --network.")
        self.string("checkpoint", "Which weights of a run: best, latest or a step.", "best")

    def size(self, text: str, name: str = "size") -> None:
        """(h, w) in pixels, "own", or None."""
        self.string(name, f"HEIGHTxWIDTH {text}")
        self._read[name] = lambda given: None if given is None else parse_size(given)

    def scales(self) -> None:
        """A tuple of different numbers above 0."""
        self.words("scales", "Factors of that size to average over.", ["1.0"])
        self._read["scales"] = parse_scales

    def config(self) -> None:
        """A config, locked, or None; and --config.KEY=VALUE for its values."""
        from ml_collections import config_flags

        self._arguments, self._without = _config_arguments(self._arguments)
        text = "A .py file, or a name such as 'eacnet', with ':argument'."
        arguments = ["", *self._arguments]
        also = {"lock_config": True, "sys_argv": arguments}
        self._define(config_flags.DEFINE_config_file, "config", None, text, **also)

    def parse(self) -> tuple[Given, list[str]]:
        """The flags' values, as attributes, and the arguments that are no flags.

        Raises:
            ValueError: a flag that there is not, a value that is not allowed, or a missing flag.
        """
        try:
            _, *rest = self._flags(["", *self._arguments])
        except (AttributeError, KeyError):
            if wrong := _unknown_key(self._arguments):
                raise ValueError(wrong) from None
            raise
        except absl_flags.Error as error:
            if missing := re.search(r"--(\w+) must have a value other than None", str(error)):
                flag = self._flags[missing[1]]
                raise ValueError(f"give --{flag.name}=...: {flag.help}") from None
            raise ValueError(one_line(error)) from None
        values = {name: self._flags[name].value for name in self._flags}
        for name, read in self._read.items():
            values[name] = read(values[name])
        if self._needs_network is not None:
            network, workdir = values["network"], values.pop("workdir")
            if network is not None and workdir is not None:
                raise ValueError("--network and --workdir are two names for one thing; give one")
            if network is None and workdir is None and self._needs_network:
                raise ValueError(f"give --network=...: {self._flags['network'].help}")
            values["network"] = workdir if network is None else network
        if self._without:
            values["config"].update_from_flattened_dict(dict.fromkeys(self._without))
        if "config" in values:
            values = {k: v for k, v in values.items() if not k.startswith("config.")}
            values["config_spec"] = config_of(self._arguments)
        return Given(**values), rest

    def help(self) -> str:
        """Two lines for each flag."""
        lines = []
        for name in self._flags:
            flag = self._flags[name]
            shown = f"--[no]{name}" if flag.boolean else f"--{name}=..."
            default = f" (default: {flag.default_as_str})" if flag.default is not None else ""
            lines.append(f"  {shown}\n      {flag.help}{default}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program, to be called with its arguments: PROGRAM(["--workdir=runs/camvid", "--output=out", "photo.jpg"]).

    Attributes:
        doc: What --help says before the flags.
        define: Defines the flags.
        main: Does the work, of the flags' values and the other arguments; returns the exit code, None for 0.
        takes: What the arguments that are no flags are, "" if there must be none.
    """

    doc: str
    define: Callable[[Flags], None]
    main: Callable[[Given, list[str]], int | None]
    takes: str = ""

    def __call__(self, arguments: Sequence[str] = ()) -> int:
        """Runs the program and returns its exit code.

        Raises:
            ValueError: wrong flags; and what the program itself raises.
        """
        if {"--help", "-h", "-help"}.intersection(arguments):
            self.define(flags := Flags(()))
            print(f"{inspect.cleandoc(self.doc)}\n\nFlags:\n{flags.help()}")
            return 0
        self.define(flags := Flags(arguments))
        given, rest = flags.parse()
        if rest and not self.takes:
            raise ValueError(
                f"unexpected argument '{rest[0]}'; options are flags, and lists have commas: see --help"
            )
        return self.main(given, rest) or 0

    def run(self, arguments: Sequence[str]) -> int:
        """As a call, for a shell: what the user did wrong is one line and exit code 1, Ctrl-C is 130.

        A reader that has gone (`rtseg summary | head`) ends it in silence, with what a shell gives for SIGPIPE.
        """
        logging.set_verbosity(logging.ERROR)  # orbax tells of its every move
        expected = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, ImportError)
        try:
            code = self(arguments)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed at the end
            return 141  # 128 + SIGPIPE
        except expected as error:
            if os.environ.get("RTSEG_TRACEBACK"):
                raise
            print(f"error: {one_line(error)} (RTSEG_TRACEBACK=1 shows where)", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT


def check_folder(folder: pathlib.Path, flag: str) -> None:
    """Refuses what cannot be made a folder, before the work whose results it is for.

    Raises:
        ValueError: it, or what it is to lie in, is a file.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file where a folder is to be; give another --{flag}")


def parse_size(text: str) -> Pair | str:
    """Reads "512x1024" or "512,1024", (h, w) in pixels, or "own" for each frame's own size.

    Raises:
        ValueError: it is none of these.
    """
    if text == OWN:
        return text
    found = re.fullmatch(r"([1-9]\d*)[x,]([1-9]\d*)", text)
    if not found:
        raise ValueError(f"size '{text}' is not HEIGHTxWIDTH in pixels, as 512x1024, nor '{OWN}'")
    return int(found[1]), int(found[2])


def parse_scales(texts: Sequence[str]) -> tuple[float, ...]:
    """Reads factors such as ["0.5", "1.0"].

    Raises:
        ValueError: none, one that is no number above 0, or one twice.
    """
    try:
        scales = tuple(map(float, texts))
    except ValueError:
        scales = ()
    if not scales or not all(0 < s < float("inf") for s in scales) or len({*scales}) < len(scales):
        raise ValueError(
            f"scales '{','.join(texts)}' are not different numbers above 0, as 0.5,1.0,1.5"
        )
    return scales


_OVERRIDE = re.compile(r"--?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def config_of(arguments: Sequence[str]) -> str | None:
    """FILE_OR_NAME[:ARGUMENT] of the last --config=... among the arguments."""
    given = [a for a in arguments if re.match(r"--?config=", a)]
    return given[-1].partition("=")[2] if given else None


def _config_arguments(arguments: Sequence[str]) -> tuple[list[str], set[str]]:
    """The arguments with the config found by name, and the keys that are set to None.

    Two values that ml_collections misreads are understood here: --config.KEY=None, of which it makes (None,) or an
    error, and --config.KEY=a,b for a tuple of words, of which it makes ("a,b",).
    """
    from rtseg_jax.base.config import find_config, get, keys, load

    arguments = list(arguments)
    for i in reversed(range(len(arguments) - 1)):  # --config SPEC, --config.KEY VALUE
        named = re.fullmatch(r"--?config(\.[^=]+)?", arguments[i])
        if named and not arguments[i + 1].startswith("-"):
            arguments[i : i + 2] = [f"{arguments[i]}={arguments[i + 1]}"]
    spec = config_of(arguments)
    if spec is None:
        return arguments, set()
    found = find_config(spec)
    config = load(found)  # what the file refuses is told by its own message
    known = list(keys(config))
    leaves = {key for key in known if not any(other.startswith(f"{key}.") for other in known)}
    last = {m[1]: m[2] for m in map(_OVERRIDE.fullmatch, arguments) if m}
    words = re.compile(r"[^\W\d]\w*(,[^\W\d]\w*)+")

    def understood(argument: str) -> list[str]:
        if re.match(r"--?config=", argument):
            return [f"--config={found}"]
        override = _OVERRIDE.fullmatch(argument)
        if not override or override[1] not in leaves:
            return [argument]
        key, value = override.groups()
        if value == "None":
            return []
        if words.fullmatch(value or "") and isinstance(get(config, key), tuple):
            return [f"--config.{key}={tuple(value.split(','))}"]
        return [argument]

    read = [word for argument in arguments for word in understood(argument)]
    return read, {key for key, value in last.items() if value == "None" and key in leaves}


def _unknown_key(arguments: Sequence[str]) -> str:
    """What to say of the first override of a key that the config has not."""
    from rtseg_jax.base.config import keys, load

    spec = config_of(arguments)
    known = list(keys(load(spec))) if spec else []
    for match in filter(None, map(_OVERRIDE.fullmatch, arguments)):
        if match[1] not in known:
            near = difflib.get_close_matches(match[1], known, n=1)
            hint = f"did you mean --config.{near[0]}?" if near else f"keys: {', '.join(known)}"
            return f"the config has no key '{match[1]}'; {hint}"
    return ""
