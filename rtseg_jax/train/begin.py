"""Where a run begins: its own checkpoint, another run's weights, a PyTorch file, or nothing."""

import pathlib
from typing import Any

import jax
import ml_collections
import optax
import orbax.checkpoint as ocp

from rtseg_jax.base import mesh
from rtseg_jax.base.files import absolute
from rtseg_jax.inference import network as networks
from rtseg_jax.train import step
from rtseg_jax.weights import checkpoint, torch_files


def begin(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    manager: ocp.CheckpointManager,
    state: step.TrainState,
    tx: optax.GradientTransformation,
    devices: jax.sharding.Mesh,
    total_steps: int,
) -> step.TrainState:
    """The state of this run's latest checkpoint, else one of another run's weights, else the one given."""
    given = config.init_from
    if manager.latest_step() is not None:
        state = state.from_tree(checkpoint.restore(manager, state.as_tree()))
        print(f"resuming {workdir} at step {int(state.step)} of {total_steps}")
        return state
    if given.workdir and given.file:
        raise ValueError("init_from.workdir and init_from.file are both given; choose one")
    if given.workdir:
        return _init_from_run(state, tx, config, devices)
    if given.file:
        return _init_from_file(state, tx, config, devices)
    if given.required:
        raise ValueError(
            "this stage goes on from other weights; give --config.init_from.workdir=RUN, or"
            " --config.init_from.file=FILE with a backbone of PyTorch"
        )
    return state


def _init_from_run(
    state: step.TrainState, tx: Any, config: ml_collections.ConfigDict, devices: Any
) -> step.TrainState:
    """Takes the modules that config.init_from names from another run's best checkpoint; step and optimizer restart.

    EACNet is trained this way (Section 4.1): the backbone first, then the whole network from its weights.
    """
    source = absolute(config.init_from.workdir)
    _, _, given, at = networks.load_run(source, config.init_from.checkpoint)
    wanted = config.init_from.modules
    variables = state.now()
    have = set(variables["params"])
    if missing := [m for m in wanted if m not in have or m not in given["params"]]:
        raise ValueError(
            f"init_from.modules: {', '.join(missing)} not in both networks; {source} has"
            f" {', '.join(sorted(given['params']))}, {config.model.name} has {', '.join(sorted(have))}"
        )
    for collection, tree in variables.items():
        taken = {m: given[collection][m] for m in wanted if m in given[collection]}
        fits = {m: tree[m] for m in wanted if m in tree}
        if checkpoint.shapes_of(taken) != checkpoint.shapes_of(fits):
            difference = checkpoint.difference(
                checkpoint.shapes_of(taken), checkpoint.shapes_of(fits)
            )
            raise ValueError(f"init_from {source} does not fit {config.model.name}: {difference}")
        variables[collection] = {**tree, **taken}
    return _restart(state, variables, tx, devices, wanted, f"{source}, step {at}")


def _init_from_file(
    state: step.TrainState, tx: Any, config: ml_collections.ConfigDict, devices: Any
) -> step.TrainState:
    """Takes the backbone from a PyTorch file, such as torchvision's or timm's ImageNet weights (see convert)."""
    now = state.now()
    given = torch_files.load_torch_backbone(config.init_from.file, now)
    variables = {collection: {**tree, **given[collection]} for collection, tree in now.items()}
    return _restart(state, variables, tx, devices, ("backbone",), config.init_from.file)


def _restart(
    state: step.TrainState, variables: Any, tx: Any, devices: Any, taken: Any, source: str
) -> step.TrainState:
    """A state at step 0 with these variables; says what they are."""
    fresh = ", ".join(sorted(set(variables["params"]) - set(taken))) or "-"
    print(f"initialised {', '.join(taken)} from {source}; fresh: {fresh}")
    options = {"ema": state.ema is not None, "skip_nonfinite": state.skipped is not None}
    # Together first: what was taken lies elsewhere than what is fresh.
    variables = jax.device_put(variables, mesh.replicated(devices))
    return jax.device_put(step.create_state(variables, tx, **options), mesh.replicated(devices))
