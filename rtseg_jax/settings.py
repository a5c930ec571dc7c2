"""Configs, by path or by name, with one-line errors; and what the programs set up for their process."""

import difflib
import json
import os
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

flags.disclaim_key_flags()  # --help lists --config under the program that asks for it

_PACKAGE = pathlib.Path(__file__).resolve().parent
# A checkout has configs/ beside the package, an installed wheel has it inside.
_SHIPPED = (_PACKAGE.parent / "configs", _PACKAGE / "_shipped" / "configs")


def shipped_configs() -> dict[str, pathlib.Path]:
    """The configs that come with the project: name -> file."""
    for folder in _SHIPPED:
        if folder.is_dir():
            files = sorted(folder.glob("*.py"))
            return {p.stem: p for p in files if p.stem not in ("common", "__init__")}
    return {}


def find_config(spec: str) -> str:
    """Turns "asap:streets" or "configs/asap.py:streets" into "/path/configs/asap.py:streets".

    Raises:
        ValueError: neither a file nor a name of ours.
    """
    name, colon, argument = spec.partition(":")
    path, shipped = pathlib.Path(name), shipped_configs()
    if not path.is_file():
        stem = path.name.removesuffix(".py")
        if stem not in shipped:
            near = difflib.get_close_matches(stem, shipped, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(
                f"no config '{name}'{hint}; give a .py file or one of {', '.join(shipped)}"
            )
        path = shipped[stem]
    path = path.resolve()
    # A config imports its siblings as `from configs import common`.
    if str(path.parent.parent) not in sys.path:
        sys.path.insert(0, str(path.parent.parent))
    return f"{path}{colon}{argument}"


def load(spec: str) -> ml_collections.ConfigDict:
    """Calls get_config(argument) of "FILE_OR_NAME[:ARGUMENT]" and locks what it returns.

    Raises:
        ValueError: no such config, or an argument that it refuses.
    """
    path, _, argument = find_config(spec).partition(":")
    return runpy.run_path(path)["get_config"](argument).lock()


def keys(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    """Every key of a config, dotted."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, ml_collections.ConfigDict):
            yield from keys(value, f"{prefix}{key}.")


def define_config_flag() -> flags.FlagHolder:
    """Defines --config=FILE_OR_NAME[:ARGUMENT], locked, with --config.KEY=VALUE to override its values."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "A .py file, or a name such as 'eacnet', with ':argument'.",
        lock_config=True,
    )


def _parse_flags(argv: list[str]) -> list[str]:
    """flags.FLAGS(argv), with the config found by name and a misspelt key answered with the nearest one."""
    spec, at, known = None, None, []
    for i, argument in enumerate(argv[1:], start=1):
        if argument.lstrip("-") == "config" and i + 1 < len(argv):
            spec, at = argv[i + 1], i + 1
        elif argument.lstrip("-").startswith("config="):
            spec, at = argument.partition("=")[2], i
    if spec is not None:
        found = find_config(spec)
        known = list(keys(load(found)))  # what the file refuses is told by its own message
        argv = [*argv[:at], found if argv[at] == spec else f"--config={found}", *argv[at + 1 :]]
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError):
        for argument in argv[1:]:
            key = argument.lstrip("-").partition("=")[0].removeprefix("config.")
            if argument.lstrip("-").startswith("config.") and key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean --config.{near[0]}?" if near else f"keys: {', '.join(known)}"
                raise ValueError(f"the config has no key '{key}'; {hint}") from None
        raise


def run(main: Callable[[list[str]], None]) -> None:
    """absl's app.run, with what the user did wrong printed as one line and exit code 1."""
    expected = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, flags.Error)

    def fail(error):
        if os.environ.get("RTSEG_TRACEBACK"):
            raise error
        line = " ".join(str(error).split()) or type(error).__name__
        sys.exit(f"error: {line} (RTSEG_TRACEBACK=1 shows where)")

    def parse(argv):
        try:
            return _parse_flags(argv)
        except expected as error:
            fail(error)

    def guarded(argv):
        try:
            main(argv)
        except expected as error:
            fail(error)

    logging.set_verbosity(logging.ERROR)  # orbax tells of its every move
    app.run(guarded, flags_parser=parse)


def write(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes workdir/config.json, after naming what differs from an earlier one."""
    path = workdir / "config.json"
    text = json.dumps(config.to_dict(), indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        before, now = (_flat(json.loads(t)) for t in (path.read_text(), text))
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        print(f"config changed since this run began: {', '.join(changed)}")
    path.write_text(text)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}{key}.").items()}


def read(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Reads workdir/config.json.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} holds no config.json; give the --workdir of a run")

    def restore(value):
        if isinstance(value, dict):
            return {k: restore(v) for k, v in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    return ml_collections.ConfigDict(restore(json.loads(path.read_text()))).lock()


def model_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The options of models.create, with the dtype among them."""
    return {**config.model.options.to_dict(), "dtype": jnp.dtype(config.dtype)}


def dataset_arguments(config: ml_collections.ConfigDict, split: str) -> dict[str, Any]:
    """The arguments of data.load for a split."""
    given = config.input
    return {
        "name": given.dataset,
        "root": given.root,
        "split": split,
        # A run of before these keys has none of them.
        **{
            k: given[k]
            for k in ("source", "annotation", "classes", "label_map", "ignore")
            if k in given
        },
        # Frames that are evaluated at their own sizes cannot be packed.
        "cache": ""
        if split != given.train_split and config.eval.get("multiple", 0)
        else given.get("cache", ""),
        "size": given.size,
        "patches": given.patches if split == given.train_split else None,
        "seed": config.seed,
        "num_examples": given.num_train if split == given.train_split else given.num_eval,
    }


def use_compilation_cache() -> None:
    """Keeps compiled code between runs of the programs; importing the library changes nothing.

    JAX_COMPILATION_CACHE_DIR wins over the default, ~/.cache/rtseg_jax.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "rtseg_jax"))
