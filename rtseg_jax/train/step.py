"""The training state and one training step, jitted over a mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rtseg_jax.base.mesh import replicated, split
from rtseg_jax.data.augment import augment
from rtseg_jax.nn import gpu, losses
from rtseg_jax.train import vector
from rtseg_jax.train.vector import pack


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes and a checkpoint keeps.

    Attributes:
        step: Steps done, int32 scalar.
        params: The network's parameters, as one vector.
        batch_stats: Running means and variances, as one vector.
        opt_state: The optimizer's own state, as `tx.init` made it.
        ema: {"params", "batch_stats"} averaged over the steps, or None.
        skipped: {"steps", "in_a_row"}, how many steps were skipped for not being finite; None: none ever is.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    skipped: Any = None

    def now(self) -> dict[str, Any]:
        """Parameters and running statistics as trees."""
        return _unpacked({"params": self.params, "batch_stats": self.batch_stats})

    def variables(self) -> dict[str, Any]:
        """What evaluation uses, as trees: the average where one is kept, else the current values."""
        return self.now() if self.ema is None else _unpacked(self.ema)

    def as_tree(self) -> "TrainState":
        """What a checkpoint keeps: the same state with trees, whose names are the network's, for its vectors."""
        return _unpacked(self)

    def from_tree(self, tree: "TrainState") -> "TrainState":
        """The reverse of as_tree(); of this state only the structure counts."""
        return vector.repacked(tree, self)


_unpacked = jax.jit(vector.unpacked)


def create_state(
    variables: Mapping[str, Any],
    tx: optax.GradientTransformation,
    *,
    ema: bool,
    skip_nonfinite: bool = False,
) -> TrainState:
    """A state at step 0. Every leaf is a buffer of its own, since the step donates them."""
    vectors = {
        "params": pack(variables["params"]),
        "batch_stats": pack(variables.get("batch_stats", {})),
    }
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        **vectors,
        opt_state=tx.init(vectors["params"]),
        ema=jax.tree.map(jnp.copy, vectors) if ema else None,
        skipped=none_skipped() if skip_nonfinite else None,
    )


def none_skipped() -> dict[str, jax.Array]:
    """TrainState.skipped of a run that has skipped no step so far."""
    return {"steps": jnp.zeros((), jnp.int32), "in_a_row": jnp.zeros((), jnp.int32)}


def _update_ema(ema: Any, now: Any, decay: float, step: jax.Array) -> Any:
    # The rate grows with the steps, or the random start would still weigh in after 1 / (1 - decay) of them.
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), ema, now)


def _accumulate(
    differentiate: Callable, frames: Any, batch_stats: Any, parts: int
) -> tuple[Any, Any, Any]:
    """The mean of the gradients and terms of a batch's parts, by the weights of their pixels.

    Args:
        differentiate: As of differentiator().
        frames: images, labels, indices of the whole batch.
        batch_stats: Before the first part; every part updates them.
        parts: How many.

    Returns:
        Gradient, batch_stats, terms.
    """
    # Every parts-th example, not neighbours: a batch split over devices is cut without being sent around.
    split_up = lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)  # noqa: E731

    def add(carried, micro):
        batch_stats, total, sums = carried
        frames, part = micro
        gradient, batch_stats, terms, weight = differentiate(*frames, batch_stats, part)
        sums = jax.tree.map(lambda a, b: a + weight * b, sums, (gradient, terms))
        return (batch_stats, total + weight, sums), None

    micro = (jax.tree.map(split_up, frames), jnp.arange(parts))
    one = jax.tree.map(lambda x: x[0], micro)
    gradient, _, terms, _ = jax.eval_shape(differentiate, *one[0], batch_stats, one[1])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradient, terms))
    (batch_stats, total, sums), _ = jax.lax.scan(add, (batch_stats, jnp.float32(0), zeros), micro)
    total = jnp.where(total > 0, total, 1.0)
    gradient, terms = jax.tree.map(lambda x: x / total, sums)
    return gradient, batch_stats, terms


def _skip_nonfinite(old: TrainState, new: TrainState, finite: jax.Array) -> TrainState:
    """`new` where the step was finite, else `old`; either way the step counts, and the learning rate goes on."""
    schedule = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    kept = jax.tree.map(
        lambda n, o: n if schedule(n) else jnp.where(finite, n, o), new, old, is_leaf=schedule
    )
    bad = jnp.where(finite, 0, 1)
    skipped = {
        "steps": old.skipped["steps"] + bad,
        "in_a_row": (old.skipped["in_a_row"] + bad) * bad,
    }
    return kept.replace(step=new.step, skipped=skipped)


def differentiator(
    state: TrainState,
    *,
    model: nn.Module,
    loss_fn: Callable,
    seed: int,
    augmentation: Mapping[str, Any],
    in_parts: bool,
    class_weights: tuple[float, ...] | None = None,
    remat: bool = False,
) -> Callable:
    """A function that augments decoded frames and differentiates the loss at a state's parameters.

    Args:
        state: The state before the step.
        model: Called under train=True.
        loss_fn: (outputs, batch) -> (loss, {term: scalar}).
        seed: Seed of augmentation and dropout.
        augmentation: Arguments of augment().
        in_parts: Whether each part of a batch is to have a dropout of its own.
        class_weights: Weights of the classes in the loss, by which parts are weighed.
        remat: Computes the network's activations again for the backward pass instead of keeping them.

    Returns:
        (images, labels, indices, batch_stats, part) -> (gradient, batch_stats, terms, weight).
    """
    key = jax.random.fold_in(jax.random.key(seed + 1), state.step)

    def forward(params, batch_stats, image, dropout):
        return model.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout},
        )

    if remat:
        forward = jax.checkpoint(forward)

    def differentiate(images, labels, indices, batch_stats, part):
        batch = augment(images, labels, indices, state.step, seed=seed, **augmentation)
        # Keeps XLA on GPUs from computing the crop again inside every consumer; on CPUs it is gone before fusion.
        batch = jax.lax.optimization_barrier(batch)
        dropout = jax.random.fold_in(key, part) if in_parts else key

        def objective(params):
            outputs, changed = forward(params, batch_stats.tree(), batch["image"], dropout)
            loss, terms = loss_fn(outputs, batch)
            return loss, (terms, pack(changed["batch_stats"]))

        gradient, (terms, changed) = jax.grad(objective, has_aux=True)(state.params.tree())
        weight = jnp.sum(losses.pixel_weights(batch["label"], class_weights))
        return pack(gradient), changed, terms, weight

    return differentiate


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    *,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    accumulate: int = 1,
    **options: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Augments a batch of decoded frames, differentiates the loss, updates.

    With `accumulate` the batch goes through the network in so many parts, and the gradient is the mean of theirs by
    the weights of their pixels. Given the same normalisation and dropout that is the gradient of the whole batch for a
    loss that is divided by those weights: cross-entropy and AFFNet's. OHEM looks for hard pixels, and SCLoss averages
    images, within each part; BatchNorm normalises with a part's statistics and updates the running ones once a part.

    Args:
        state: The state before the step.
        images: [b, h, w, 3] uint8.
        labels: [b, h, w] uint8 train ids, 255 = ignore.
        indices: [b] int32, the examples' places in the data set.
        tx: The optimizer.
        schedule: step -> learning rate, for the log.
        ema_decay: Used when the state keeps an average.
        accumulate: Parts of a batch; b is a multiple of it.
        **options: model, loss_fn, seed, augmentation, class_weights and remat of differentiator().

    Returns:
        The new state, and the loss's terms with "learning_rate" and "gradient_norm". A state that counts skipped steps
        stays as it was where loss or gradient is not finite; "skipped_steps" and "skipped_in_a_row" are logged too.
    """
    differentiate = differentiator(state, in_parts=accumulate > 1, **options)
    frames, batch_stats = (images, labels, indices), state.batch_stats
    if accumulate == 1:
        gradient, batch_stats, terms, _ = differentiate(*frames, batch_stats, 0)
    else:
        gradient, batch_stats, terms = _accumulate(differentiate, frames, batch_stats, accumulate)
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
    new = state.replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
    )
    if state.skipped is not None:
        finite = jnp.isfinite(logged["loss"]) & jnp.isfinite(logged["gradient_norm"])
        new = _skip_nonfinite(state, new, finite)
        logged["skipped_steps"] = new.skipped["steps"]
        logged["skipped_in_a_row"] = new.skipped["in_a_row"]
    return new, logged


def jit_train_step(
    mesh: Mesh, gather: Callable | None = None, *, several: bool = False, **options: Any
) -> Callable:
    """Compiles train_step for a mesh: the state replicated and donated, the batch split.

    Args:
        mesh: The devices, along one axis "data".
        gather: For a resident set: (arrays, indices) -> (images, labels), done inside the step.
        several: Whether the batches are streamed by several processes. One that cannot read a file gives indices of -1;
            then the state stays as it was, and "unreadable" is logged as true.
        **options: Everything of train_step after its first four arguments.

    Returns:
        (state, arrays, indices) -> (state, logged) with `gather`, else (state, (images, labels), indices) -> ... .
    """
    whole, rows = replicated(mesh), split(mesh)

    def step(state, frames, indices):
        images, labels = frames if gather is None else gather(frames, indices)
        images, labels = jax.lax.with_sharding_constraint((images, labels), rows)
        new, logged = train_step(state, images, labels, indices, **options)
        if several:
            logged["unreadable"] = unreadable = (indices < 0).any()
            new = jax.tree.map(lambda n, o: jnp.where(unreadable, o, n), new, state)
        return new, logged

    frames = rows if gather is None else None  # a resident set stays wherever it was put
    return jax.jit(
        step,
        in_shardings=(whole, frames, rows),
        out_shardings=(whole, whole),
        donate_argnums=0,
        compiler_options=gpu.compiler_options(mesh.devices.flat[0], training=True),
    )
