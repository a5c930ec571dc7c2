"""Configs, by path or by name, with one-line errors; and what the programs set up for their process."""

import contextlib
import difflib
import functools
import json
import math
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
from absl import flags

from rtseg_jax.base.files import written_whole

flags.disclaim_key_flags()  # --help lists --config under the program that asks for it


_PACKAGE = pathlib.Path(__file__).resolve().parents[1]

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


def get(config: ml_collections.ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(lambda node, name: node[name], key.split("."), config)


def write(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes workdir/config.json, after naming what differs from an earlier one."""
    path = workdir / "config.json"
    text = json.dumps(config.to_dict(), indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        before, now = (_flat(json.loads(t)) for t in (path.read_text(), text))
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        print(f"config changed since this run began: {', '.join(changed)}")
    with written_whole(path) as new:
        new.write_text(text)


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

    return from_json(path.read_text())


def from_json(text: str) -> ml_collections.ConfigDict:
    """The config that a run's config.json holds, locked, with tuples where JSON has lists."""

    def restore(value):
        if isinstance(value, dict):
            return {k: restore(v) for k, v in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    return ml_collections.ConfigDict(restore(json.loads(text))).lock()


def _number(
    low: int, high: float = sys.float_info.max, *, above: bool = False
) -> Callable[[Any], bool]:
    """Whether a value is a finite number in [low, high], or in (low, high] with `above`."""
    return lambda v: v <= high and (v > low if above else v >= low)


def _whole(low: int, high: int = 2**63 - 1) -> Callable[[Any], bool]:
    """Whether a value is an integer in [low, high]."""
    return lambda v: isinstance(v, int) and low <= v <= high


def _each(fits: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    """Whether a value is a sequence of so many values (None: of one or more) that all fit."""
    return lambda v: (len(v) >= 1 if count is None else len(v) == count) and all(map(fits, v))


def _maybe(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: v is None or fits(v)


def _is_pattern(text: str) -> bool:
    with contextlib.suppress(re.error):
        return bool(re.compile(text))
    return False


_COUNT, _SHARE, _SIZE = _whole(1), _number(0, 1.0), _each(_whole(1), 2)

# What can be said of a value without looking at the data or at other values; the functions that take them say the rest.
_ALLOWED = {
    "seed": ("0 to 4294967295", _whole(0, 2**32 - 1)),
    "dtype": ("float32 or bfloat16", lambda v: v in ("float32", "bfloat16")),
    "batch_size": ("1 or more", _COUNT),
    "accumulate": ("1 or more", _COUNT),
    "num_epochs": ("0 or more", _whole(0)),
    "num_steps": ("0 or more", _whole(0)),
    "nonfinite": ("stop or skip", lambda v: v in ("stop", "skip")),
    "ema_decay": ("a number in [0, 1)", lambda v: 0 <= v < 1),
    "log_every": ("1 or more", _COUNT),
    "checkpoint_every": ("1 or more", _COUNT),
    "loss.class_weights": ("None, or numbers of 0 or more", _maybe(_each(_number(0)))),
    "loss.threshold": ("a number in (0, 1]", _number(0, 1.0, above=True)),
    "loss.min_kept": ("a number in [0, 1]", _SHARE),
    "loss.pixel_counts": (
        "labelled pixels of each class, 1 or more; check_data prints them",
        _each(_COUNT),
    ),
    "model.name": ("the name of a network", lambda v: isinstance(v, str)),
    "input.max_bad": ("0 or more", _whole(0)),
    "input.num_train": ("None, or 1 or more", _maybe(_COUNT)),
    "input.num_eval": ("None, or 1 or more", _maybe(_COUNT)),
    "input.mode": ("resident or streaming", lambda v: v in ("resident", "streaming")),
    "input.size": ("None, or (h, w) in pixels", _maybe(_SIZE)),
    "input.canvas": ("None, or (h, w) in pixels", _maybe(_SIZE)),
    "input.patches": (
        "None, or (rows, columns, h, w) with h and w in pixels",
        _maybe(_each(_COUNT, 4)),
    ),
    "input.label_map": (
        "((raw value, class), ...)",
        lambda v: all(_each(_whole(0, 255), 2)(pair) for pair in v),
    ),
    "augment.crop": ("(h, w) in pixels", _SIZE),
    "augment.crop_schedule": (
        "((until a fraction of the run, (h, w)), ...)",
        lambda v: all(_SHARE(until) and _SIZE(crop) for until, crop in v),
    ),
    "augment.squash": ("None, or (h, w) in pixels", _maybe(_SIZE)),
    "augment.scales": ("numbers above 0", _each(_number(0, above=True))),
    "augment.scale_range": (
        "None, or (low, high) with 0 < low <= high",
        _maybe(lambda v: len(v) == 2 and 0 < v[0] <= v[1]),
    ),
    "augment.scale_law": (
        "log_uniform or uniform",
        lambda v: v in ("log_uniform", "uniform"),
    ),
    "augment.min_side": ("0 or more", _whole(0)),
    "augment.flip": ("a number in [0, 1]", _SHARE),
    "augment.jitter": ("three numbers of 0 or more", _each(_number(0), 3)),
    "augment.channels": ("rgb or bgr", lambda v: v in ("rgb", "bgr")),
    "augment.mean": ("None, or three numbers", _maybe(_each(math.isfinite, 3))),
    "augment.std": ("None, or three numbers above 0", _maybe(_each(_number(0, above=True), 3))),
    "optim.lr": ("0 or more", _number(0)),
    "optim.schedule.power": ("0 or more", _number(0)),
    "optim.schedule.decay": ("0 or more", _number(0)),
    "optim.schedule.every_epochs": ("1 or more", _COUNT),
    "optim.schedule.warmup_steps": ("0 or more", _whole(0)),
    "optim.schedule.warmup_start": ("0 or more", _number(0)),
    "optim.method.betas": ("two numbers in [0, 1)", _each(lambda v: 0 <= v < 1, 2)),
    "optim.method.eps": ("a number above 0", _number(0, above=True)),
    "optim.method.momentum": ("a number in [0, 1)", lambda v: 0 <= v < 1),
    "optim.method.weight_decay": ("0 or more", _number(0)),
    "optim.method.groups": (
        "((regular expression, factor of the rate, factor of the decay), ...)",
        lambda v: all(_is_pattern(pattern) and lr >= 0 and decay >= 0 for pattern, lr, decay in v),
    ),
    "eval.every_epochs": ("1 or more", _COUNT),
    "eval.every_steps": ("0 or more", _whole(0)),
    "eval.batch_size": ("1 or more", _COUNT),
    "eval.overlays": ("0 or more", _whole(0)),
    "eval.multiple": ("0 or more", _whole(0)),
    "eval.max_pixels": ("1024 or more", _whole(1024)),
    "eval.size": ("None, or (h, w) in pixels", _maybe(_SIZE)),
}


def check(config: ml_collections.ConfigDict, part: str = "") -> None:
    """Refuses what no run could be made with.

    Args:
        config: A run's config.
        part: What the keys that are looked at begin with, such as "input."; all of them by default.

    Raises:
        ValueError: the first impossible value, and what is allowed.
    """
    known = set(keys(config))
    for key, (allowed, fits) in _ALLOWED.items():
        if key not in known or not key.startswith(part):  # a loss has its own options
            continue
        value = get(config, key)
        try:
            possible = fits(value)
        except (TypeError, ValueError):
            possible = False
        if not possible:
            raise ValueError(f"--config.{key}={value!r} is impossible; allowed: {allowed}")
    if not config.num_steps and not config.num_epochs:
        raise ValueError(
            "num_steps and num_epochs are both 0; set one, or there is no step to take"
        )
    if config.input.get("max_bad") and config.input.get("cache"):
        raise ValueError(
            f"input.max_bad={config.input.max_bad} goes with the files themselves, and a packed copy in"
            " input.cache is of good ones alone; leave one of the two out"
        )


def model_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The options of models.create, with the dtype among them."""
    return {**config.model.options.to_dict(), "dtype": jnp.dtype(config.dtype)}


def of_network(
    variant: str,
    options: Mapping[str, Any],
    *,
    dataset: str,
    mean: Sequence[float],
    std: Sequence[float],
    channels: str = "rgb",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
) -> ml_collections.ConfigDict:
    """As much of a config as it takes to use a network that no config trained; arguments as in the keys' comments."""
    config = {
        "model": {"name": variant, "options": dict(options)},
        "dtype": "float32",
        "input": {"dataset": dataset, "size": None},
        "augment": {"mean": tuple(mean), "std": tuple(std), "channels": channels},
        "eval": {"size": size, "multiple": 0, "align_corners": align_corners},
    }
    return ml_collections.ConfigDict(config).lock()


def shown(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """How a config's network is shown frames and its scores are brought to their size: arguments of inference's program().

    A run of before the keys for channels and corners has none of them.
    """
    return {
        "mean": config.augment.mean,
        "std": config.augment.std,
        "channels": config.augment.get("channels", "rgb"),
        "align_corners": config.eval.get("align_corners", False),
    }


def dataset_arguments(
    config: ml_collections.ConfigDict, split: str, *, training: bool = False
) -> dict[str, Any]:
    """The arguments of data.load for a split: whole frames, or what is trained on.

    Raises:
        ValueError: the config is that of a network of others, which brings no data.
    """
    given = config.input
    if "train_split" not in given:
        raise ValueError(
            f"this {config.model.name} brings no data; give their config, as --config=eacnet:camvid"
            " --config.input.root=DIR"
        )
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
        "cache": "" if config.eval.get("multiple", 0) and not training else given.get("cache", ""),
        "size": given.size,
        "patches": given.patches if training else None,
        "seed": config.seed,
        "num_examples": given.num_train if split == given.train_split else given.num_eval,
    }
