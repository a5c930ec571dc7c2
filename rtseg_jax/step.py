"""The training state and one training step, jitted over a mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rtseg_jax.augment import augment
from rtseg_jax.mesh import replicated, split


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes and a checkpoint keeps.

    Attributes:
        step: Steps done, int32 scalar.
        params: The network's parameters.
        batch_stats: Running means and variances.
        opt_state: Of optax.
        ema: {"params", "batch_stats"} averaged over the steps, or None.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self) -> dict[str, Any]:
        """What evaluation uses: the average where one is kept, else the current values."""
        if self.ema is not None:
            return self.ema
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    variables: Mapping[str, Any], tx: optax.GradientTransformation, *, ema: bool
) -> TrainState:
    """A state at step 0. Every leaf is a buffer of its own, since the step donates them."""
    variables = {
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
    }
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=jax.tree.map(jnp.copy, variables["params"]),
        batch_stats=jax.tree.map(jnp.copy, variables["batch_stats"]),
        opt_state=tx.init(variables["params"]),
        ema=jax.tree.map(jnp.copy, variables) if ema else None,
    )


def _update_ema(ema: Any, now: Any, decay: float, step: jax.Array) -> Any:
    # The rate grows with the steps, or the random start would still weigh in after 1 / (1 - decay) of them.
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), ema, now)


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    *,
    model: nn.Module,
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    seed: int,
    augmentation: Mapping[str, Any],
    ema_decay: float,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Augments a batch of decoded frames, differentiates the loss, updates.

    Args:
        state: The state before the step.
        images: [b, h, w, 3] uint8.
        labels: [b, h, w] uint8 train ids, 255 = ignore.
        indices: [b] int32, the examples' places in the data set.
        model: Called under train=True.
        loss_fn: (outputs, batch) -> (loss, {term: scalar}).
        tx: The optimizer.
        schedule: step -> learning rate, for the log.
        seed: Of augmentation and dropout.
        augmentation: Arguments of augment().
        ema_decay: Used when the state keeps an average.

    Returns:
        The new state, and the loss's terms with "learning_rate" and "gradient_norm".
    """
    batch = augment(images, labels, indices, state.step, seed=seed, **augmentation)
    # Keeps XLA from computing the crop again inside every consumer of the image.
    batch = jax.lax.optimization_barrier(batch)
    dropout = jax.random.fold_in(jax.random.key(seed + 1), state.step)

    def objective(params):
        outputs, changed = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout},
        )
        loss, terms = loss_fn(outputs, batch)
        return loss, (terms, changed["batch_stats"])

    gradient, (terms, batch_stats) = jax.grad(objective, has_aux=True)(state.params)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        now = {"params": params, "batch_stats": batch_stats}
        ema = _update_ema(ema, now, ema_decay, state.step.astype(jnp.float32))
    logged = {
        **terms,
        "learning_rate": schedule(state.step),
        "gradient_norm": optax.tree.norm(gradient),
    }
    new = TrainState(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
    )
    return new, logged


def jit_train_step(mesh: Mesh, gather: Callable | None = None, **options: Any) -> Callable:
    """Compiles train_step for a mesh: the state replicated and donated, the batch split.

    Args:
        mesh: Of one axis, "data".
        gather: For a resident set: (arrays, indices) -> (images, labels), done inside the step.
        **options: Everything of train_step after its first four arguments.

    Returns:
        (state, arrays, indices) -> (state, logged) with `gather`, else (state, (images, labels), indices) -> ... .
    """
    whole, rows = replicated(mesh), split(mesh)

    def step(state, frames, indices):
        images, labels = frames if gather is None else gather(frames, indices)
        images, labels = jax.lax.with_sharding_constraint((images, labels), rows)
        return train_step(state, images, labels, indices, **options)

    frames = rows if gather is None else None  # a resident set stays wherever it was put
    return jax.jit(
        step, in_shardings=(whole, frames, rows), out_shardings=(whole, whole), donate_argnums=0
    )
