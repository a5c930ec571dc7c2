"""Checkpoints in a run's folder: the latest to go on from, the best to use."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

FOLDER = "checkpoints"


def open_manager(workdir: pathlib.Path, *, read_only: bool = False) -> ocp.CheckpointManager:
    """Opens (or creates) workdir/checkpoints, which keeps the latest step and the one with the best "miou".

    Saving is synchronous: the networks are a few MB, and nothing half-written can be left behind by a later step.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(1),
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
    )
    # Named here, or a manager that has not saved yet cannot tell what a checkpoint holds.
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(workdir / FOLDER, options=options, item_handlers=handler)


def save(manager: ocp.CheckpointManager, state: Any, miou: float | None = None) -> None:
    """Writes a training state under its step; with `miou` it can become the best. A step is written once."""
    if int(state.step) in manager.all_steps():
        return
    if miou is not None:
        # nan (no valid pixel in the evaluation set) would beat every number.
        miou = {"miou": -1.0 if math.isnan(miou) else float(miou)}
    manager.save(int(state.step), args=ocp.args.StandardSave(state), metrics=miou, force=True)


def restore(manager: ocp.CheckpointManager, template: Any, step: int | None = None) -> Any:
    """Reads the state of a step (the latest by default) into the template's structure, dtypes and shardings.

    Raises:
        ValueError: the saved state is of another network or optimizer; both sides of the difference are named.
    """
    step = manager.latest_step() if step is None else step
    saved = shapes(manager, step)
    wanted = shapes_of(template)
    if saved != wanted:
        where = pathlib.Path(manager.directory) / str(step)
        raise ValueError(
            f"checkpoint {where} does not fit this config: {difference(saved, wanted)}"
        )
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
    return manager.restore(step, args=ocp.args.StandardRestore(abstract))


def restore_variables(manager: ocp.CheckpointManager, step: int, sharding: Any) -> dict[str, Any]:
    """Reads a step for evaluation: {"params", "batch_stats"}, averaged where the run averaged."""
    saved = manager.restore(step, args=ocp.args.StandardRestore(_abstract(manager, step, sharding)))
    if saved.get("ema") is not None:
        return saved["ema"]
    return {"params": saved["params"], "batch_stats": saved["batch_stats"]}


def _abstract(manager: ocp.CheckpointManager, step: int, sharding: Any) -> Any:
    return jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding),
        manager.item_metadata(step).tree,
    )


def shapes(manager: ocp.CheckpointManager, step: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that a checkpoint holds."""
    return shapes_of(_abstract(manager, step, None))


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the leaves of a tree."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


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
