"""Checkpoints in a run's folder: the latest two to go on from, the best to use, each with digests of its files.

A flipped bit in an array can go unnoticed by the format, so no checkpoint is read before its digests were compared.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from rtseg_jax.base import mesh
from rtseg_jax.base.files import written_whole

FOLDER = "checkpoints"
DAMAGED = "damaged"  # beside it: what was found damaged, moved out of the way
_DIGESTS = "digests.json"  # in each checkpoint: file -> SHA-256
_DELETED = "deleted"  # in FOLDER, only while a checkpoint is being deleted
_CHANGING = ("skipped",)  # a run may begin or cease to count its skipped steps


class Damaged(ValueError):
    """The files of a checkpoint are not those that were written; the message is one line and names the folder."""


@functools.cache
def _write_from_one_device() -> None:
    """Every device has the whole state, so one of them writes it.

    Else each would write a slice of every array, and the first save would compile a program for every shape of these:
    seconds, for a state of a few MB.
    """
    handler = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    with _quiet():
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)


def open_manager(workdir: pathlib.Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens (or creates) workdir/checkpoints, which keeps the latest two steps and the one with the best "miou".

    Saving is synchronous: the networks are a few MB, and nothing half-written can be left behind by a later step.
    Unless read_only, damaged checkpoints are moved to workdir/damaged first, with a line that says so.

    Raises:
        Damaged: there are checkpoints, and all of them are damaged; or one cannot be listed, and read_only forbids
            moving it.
    """
    folder = workdir / FOLDER
    if not read_only:
        problem = _clear(folder) if mesh.is_first() else ""
        if mesh.in_any_process(bool(problem)):
            raise Damaged(
                f"every checkpoint in {folder} is damaged ({problem}); put back a copy of one, or"
                " remove the folder to begin again"
            )
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(
                n=1,
                get_metric_fn=lambda m: m["miou"],
                reverse=False,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=lambda m: m["miou"],
        best_mode="max",
        enable_async_checkpointing=False,
        create=not read_only,
        read_only=read_only,
        # Renamed before they are deleted: what a kill leaves of them is not taken for a checkpoint.
        todelete_subdir=None if read_only else _DELETED,
    )
    _write_from_one_device()
    # Named here, or a manager that has not saved yet cannot tell what a checkpoint holds.
    handler = ocp.StandardCheckpointHandler()
    try:
        return ocp.CheckpointManager(folder, options=options, item_handlers=handler)
    except ValueError as error:
        found = _problems(folder)
        if not found:
            raise
        raise Damaged(
            f"{folder} cannot be listed: {_listing(found)}; going on with the training moves it away"
        ) from error


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_digests(path: pathlib.Path) -> None:
    with written_whole(path / _DIGESTS) as new:
        new.unlink(missing_ok=True)  # of one who was killed here
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != _DIGESTS)
        digests = {p.relative_to(path).as_posix(): _digest(p) for p in files}
        with new.open("w") as file:
            file.write(json.dumps(digests, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
    return [p for p in folder.glob("*") if p.name.isdigit() and p.is_dir()]


def _clear(folder: pathlib.Path) -> str:
    """Moves damaged checkpoints away, or says what is wrong with them if there is no other, and touches none."""
    _remove_leftovers(folder)
    found = _problems(folder)
    if found and len(found) == len(_steps(folder)):
        return _listing(found)
    for path, problem in found.items():
        _move_away(path, problem)
    return ""


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes what was being written or deleted when the run was killed, or the disk was full."""
    for path in (folder / _DELETED, *folder.glob("*.orbax-checkpoint-tmp*")):
        shutil.rmtree(path, ignore_errors=True)


def _problems(folder: pathlib.Path) -> dict[pathlib.Path, str]:
    return {path: problem for path in sorted(_steps(folder)) if (problem := _problem(path))}


def _problem(path: pathlib.Path) -> str:
    """What is wrong with the files of a checkpoint; "" for nothing."""
    try:
        if (path / _DIGESTS).exists():
            for name, digest in json.loads((path / _DIGESTS).read_bytes()).items():
                if _digest(path / name) != digest:
                    return f"{name} has changed since it was written"
            return ""
        # Killed before they were written, or of a version that wrote none: what opening it relies on.
        json.loads((path / "_CHECKPOINT_METADATA").read_bytes())
        if (path / "metrics").exists():
            json.loads((path / "metrics" / "metrics").read_bytes())
    except FileNotFoundError as error:
        return f"{os.path.relpath(error.filename, path)} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"its files cannot be read: {error}"
    return ""


def _listing(found: Mapping[pathlib.Path, str]) -> str:
    return "; ".join(f"{path.name}: {problem}" for path, problem in found.items())


def _move_away(path: pathlib.Path, problem: str) -> None:
    aside = path.parent.parent / DAMAGED
    aside.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{i}" for i in itertools.count(2)))
    target = next(aside / name for name in names if not (aside / name).exists())
    path.rename(target)
    print(f"checkpoint {path} is damaged ({problem}): moved to {target}, the one before it is used")


def save(manager: ocp.CheckpointManager, state: Any, miou: float | None = None) -> None:
    """Writes a training state under its step; with `miou` it can become the best. A step is written once.

    Raises:
        OSError: the disk is full or read-only; the checkpoints that there are stay as they are.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    if miou is not None:
        # nan (no valid pixel in the evaluation set) would beat every number.
        miou = {"miou": -1.0 if math.isnan(miou) else float(miou)}
    folder = pathlib.Path(manager.directory)
    _check_room(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
    try:
        with _quiet():
            manager.save(step, args=ocp.args.StandardSave(state), metrics=miou, force=True)
        if mesh.is_first():
            _write_digests(folder / str(step))
            _remove_leftovers(folder)
    except (OSError, ValueError) as error:
        _remove_leftovers(folder)
        if found := re.search(r"os_error_code='(\d+)'", str(error)):  # tensorstore's
            code = int(found[1])
            raise OSError(code, os.strerror(code), str(folder)) from error
        raise


def _check_room(folder: pathlib.Path, num_bytes: int) -> None:
    """Asked first: a write that fails within tensorstore is reported on several pages."""
    free = shutil.disk_usage(folder).free
    if mesh.in_any_process(mesh.is_first() and free < num_bytes):
        needs = f"a checkpoint takes {num_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({needs})", str(folder))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What orbax logs of an error is in the error too."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def best_or_latest(manager: ocp.CheckpointManager) -> int | None:
    """The step with the best mIoU, or the latest one where none was evaluated; None where there is no checkpoint."""
    best = manager.best_step()
    return manager.latest_step() if best is None else best


def restore(manager: ocp.CheckpointManager, template: Any, step: int | None = None) -> Any:
    """Reads the state of a step into the template's structure, dtypes and shardings.

    Without a step it is the latest; if that turns out to be damaged it is moved away, and the one before it is read.

    Raises:
        ValueError: the saved state is of another network or optimizer; both sides of the difference are named.
        Damaged: the step, or every one that there is, cannot be read.
    """
    path = _path(manager, manager.latest_step() if step is None else step)
    shardings = {_name(at): leaf.sharding for at, leaf in _leaves(template)}
    some = next(iter(shardings.values()))
    try:
        _check(path)
        with _reading(path):
            abstract = _abstract(manager, int(path.name), lambda name: shardings.get(name, some))
        saved, wanted = (_lasting(shapes_of(tree)) for tree in (abstract, template))
        if saved != wanted:
            raise ValueError(
                f"checkpoint {path} does not fit this config: {difference(saved, wanted)}"
            )
        with _reading(path):
            tree = manager.restore(int(path.name), args=ocp.args.StandardRestore(abstract))
    except Damaged as error:
        if step is not None or len(manager.all_steps()) == 1:
            raise
        if mesh.is_first():
            _move_away(path, str(error.__cause__ or error))
        manager.reload()
        return restore(manager, template)
    if mesh.is_first() and not (path / _DIGESTS).exists():
        _write_digests(path)  # the run was killed before it could
    values = {_name(at): leaf for at, leaf in _leaves(tree)}
    return jax.tree_util.tree_map_with_path(
        lambda at, leaf: values.get(_name(at), leaf).astype(leaf.dtype), template
    )


def restore_variables(manager: ocp.CheckpointManager, step: int, sharding: Any) -> dict[str, Any]:
    """Reads a step for evaluation: {"params", "batch_stats"}, averaged where the run averaged.

    Raises:
        Damaged: the checkpoint cannot be read.
    """
    path = _path(manager, step)
    _check(path)
    with _reading(path):
        abstract = _abstract(manager, step, lambda name: sharding)
        saved = manager.restore(step, args=ocp.args.StandardRestore(abstract))
    if saved.get("ema") is not None:
        return saved["ema"]
    return {"params": saved["params"], "batch_stats": saved["batch_stats"]}


def _check(path: pathlib.Path) -> None:
    """Raises Damaged where the files are not those that were written: what is damaged, orbax never sees."""
    if problem := _problem(path):
        raise Damaged(f"checkpoint {path} is damaged: {problem}")


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever orbax and tensorstore meet into one line."""
    try:
        with _quiet():
            yield
    except jax.errors.JaxRuntimeError:  # of the device, not of the files
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise Damaged(f"checkpoint {path} cannot be read: {line[:200]}") from error


def _path(manager: ocp.CheckpointManager, step: int) -> pathlib.Path:
    return pathlib.Path(manager.directory) / str(step)


def _lasting(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {n: shape for n, shape in shapes.items() if n.partition("/")[0] not in _CHANGING}


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _abstract(manager: ocp.CheckpointManager, step: int, sharding: Callable[[str], Any]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding(_name(path))),
        manager.item_metadata(step).tree,
    )


def shapes(manager: ocp.CheckpointManager, step: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that a checkpoint holds."""
    return shapes_of(_abstract(manager, step, lambda name: None))


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the leaves of a tree."""
    return {_name(path): tuple(leaf.shape) for path, leaf in _leaves(tree)}


def difference(
    given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], limit: int = 6
) -> str:
    """One line with both sides: what only the file has, what only the network has, whose shapes differ."""

    def some(names):
        names = sorted(names)
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        return ", ".join(names[:limit]) + more

    parts = []
    if only := given.keys() - wanted.keys():
        parts.append(f"only in the file: {some(only)}")
    if only := wanted.keys() - given.keys():
        parts.append(f"only in the network: {some(only)}")
    changed = [
        f"{k} {given[k]} in the file, {wanted[k]} in the network"
        for k in given.keys() & wanted.keys()
        if given[k] != wanted[k]
    ]
    if changed:
        parts.append(f"other shapes: {some(changed)}")
    return "; ".join(parts) or "nothing differs"
