"""Where a run begins: its own checkpoint, another network's weights, a PyTorch file, or nothing."""

import copy
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import traverse_util

from rtseg_jax.base import config as settings
from rtseg_jax.base import imagenet, mesh
from rtseg_jax.inference import network as networks
from rtseg_jax.train import step
from rtseg_jax.weights import checkpoint, torch_files

NORMALISATION = ("mean", "std", "channels")  # of config.augment


def begin(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    manager: ocp.CheckpointManager,
    state: step.TrainState,
    tx: optax.GradientTransformation,
    devices: jax.sharding.Mesh,
    total_steps: int,
) -> step.TrainState:
    """The state of this run's latest checkpoint, else one of another network's weights, else the one given."""
    given = config.init_from
    if manager.latest_step() is not None:
        state = state.from_tree(checkpoint.restore(manager, state.as_tree()))
        print(f"resuming {workdir} at step {int(state.step)} of {total_steps}")
        return state
    if given.network and given.file:
        raise ValueError("init_from.network and init_from.file are both given; choose one")
    if given.network:
        return _init_from_network(state, tx, config, devices)
    if given.file:
        return _init_from_file(state, tx, config, devices)
    if given.required:
        raise ValueError(
            "this stage goes on from other weights; give --config.init_from.network=RUN, or"
            " --config.init_from.file=FILE with a backbone of PyTorch"
        )
    if given.papers:
        print(f"note: all weights are drawn; the paper begins with {given.papers}")
    return state


def _init_from_network(
    state: step.TrainState, tx: Any, config: ml_collections.ConfigDict, devices: Any
) -> step.TrainState:
    """Takes modules from a trained network; step and optimizer restart.

    EACNet is trained this way (Section 4.1): the backbone first, then the whole network from its weights. Those that
    config.init_from names must fit; where it names none, whatever fits is taken, down to single layers.
    """
    place = config.init_from.network
    source = networks.load(place, config.init_from.checkpoint)
    _say_differences(config, source)
    wanted, variables, given = config.init_from.modules, state.now(), source.variables
    origin = f"{place}, step {source.step}"
    if not wanted:
        return _restart(state, *_fitting(variables, given), tx, devices, origin)
    have = set(variables["params"])
    if missing := [m for m in wanted if m not in have or m not in given["params"]]:
        raise ValueError(
            f"init_from.modules: {', '.join(missing)} not in both networks; {place} has"
            f" {', '.join(sorted(given['params']))}, {config.model.name} has {', '.join(sorted(have))}"
        )
    for collection, tree in variables.items():
        taken = {m: given[collection][m] for m in wanted if m in given[collection]}
        fits = {m: tree[m] for m in wanted if m in tree}
        if checkpoint.shapes_of(taken) != checkpoint.shapes_of(fits):
            difference = checkpoint.difference(
                checkpoint.shapes_of(taken), checkpoint.shapes_of(fits)
            )
            raise ValueError(
                f"init_from {place} does not fit {config.model.name}: {difference};"
                ' --config.init_from.modules="()" takes what fits'
            )
        variables[collection] = {**tree, **taken}
    return _restart(state, variables, sorted(have - set(wanted)), tx, devices, origin)


def _say_differences(config: ml_collections.ConfigDict, source: networks.Network) -> None:
    """Says in what a network that is taken saw its images otherwise than this run's does, or is built otherwise."""

    def said(config):
        values = {f"augment.{k}": settings.shown(config)[k] for k in NORMALISATION}
        if source.name == config.model.name:
            values |= {f"model.options.{k}": v for k, v in config.model.options.items()}
        return values

    theirs, ours = said(source.config), said(config)
    lines = [f"--config.{k}={v}" for k, v in theirs.items() if k in ours and v != ours[k]]
    if lines:
        print(
            f"note: {config.init_from.network} was trained with {' '.join(lines)}; this run is not"
        )


def _fitting(variables: Any, given: Any) -> tuple[Any, list[str]]:
    """Variables with every layer of `given` whose arrays all fit, and the names of the layers that stay as they are."""
    ours, theirs = (traverse_util.flatten_dict(tree) for tree in (variables, given))
    fits = {path[1:-1]: True for path in ours}
    for path, value in ours.items():
        if path not in theirs or np.shape(theirs[path]) != value.shape:
            fits[path[1:-1]] = False
    if not any(fits.values()):
        raise ValueError("init_from.network: no layer of that network fits this one")
    taken = {path: theirs[path] if fits[path[1:-1]] else ours[path] for path in ours}
    return traverse_util.unflatten_dict(taken), ["/".join(x) for x, fit in fits.items() if not fit]


def _init_from_file(
    state: step.TrainState, tx: Any, config: ml_collections.ConfigDict, devices: Any
) -> step.TrainState:
    """Takes the backbone from a PyTorch file, such as torchvision's or timm's ImageNet weights (see convert)."""
    now = state.now()
    given = torch_files.load_torch_backbone(config.init_from.file, now)
    variables = {collection: {**tree, **given[collection]} for collection, tree in now.items()}
    fresh = sorted(set(variables["params"]) - {"backbone"})
    return _restart(state, variables, fresh, tx, devices, config.init_from.file)


def _restart(
    state: step.TrainState, variables: Any, fresh: list[str], tx: Any, devices: Any, source: str
) -> step.TrainState:
    """A state at step 0 with these variables; says which of them are fresh."""
    some = fresh if len(fresh) < 9 else [*fresh[:8], f"{len(fresh) - 8} more"]
    print(f"initialised from {source}; drawn anew: {', '.join(some) or 'nothing'}")
    options = {"ema": state.ema is not None, "skip_nonfinite": state.skipped is not None}
    # Together first: what was taken lies elsewhere than what is fresh.
    variables = jax.device_put(variables, mesh.replicated(devices))
    return jax.device_put(step.create_state(variables, tx, **options), mesh.replicated(devices))


def with_preprocessing(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> ml_collections.ConfigDict:
    """The config with the mean and deviation that it leaves open, and where both are, the order of the channels.

    They are those of the run in `workdir`, else of the network that it begins with, else ImageNet's.
    """
    open_ = [key for key in ("mean", "std") if config.augment[key] is None]
    if not open_:
        return config
    if (workdir / "config.json").is_file():
        known = settings.shown(settings.read(workdir))
    elif config.init_from.network:
        source = networks.load(config.init_from.network, config.init_from.checkpoint)
        known = settings.shown(source.config)
    else:
        known = {"mean": imagenet.MEAN, "std": imagenet.STD, "channels": config.augment.channels}
    config = copy.deepcopy(config).unlock()
    for key in NORMALISATION if len(open_) == 2 else open_:
        config.augment[key] = known[key]
    return config.lock()


def first_stage(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> ml_collections.ConfigDict | None:
    """The config of the run that comes before this one, in workdir/first; None if there is none, or it has ended."""
    if not config.init_from.first or (workdir / "first" / "evaluation.json").is_file():
        return None
    first = copy.deepcopy(config).unlock()
    first.init_from.first = ()
    for key, value in config.init_from.first:
        parent, _, leaf = key.rpartition(".")
        settings.get(first, parent)[leaf] = value
    return first.lock()
