"""Learning-rate schedules and optimizers with the semantics of the papers' PyTorch code."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rtseg_jax.train.vector import Vector

Group = tuple[str, float, float]


def poly(
    lr: float,
    total_steps: int,
    *,
    power: float = 0.9,
    steps_per_update: int = 1,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
) -> optax.Schedule:
    """A rate of lr (1 - t/T)^power after a linear warm-up, T counted from the end of the warm-up.

    Args:
        lr: The rate at t = 0.
        total_steps: All steps, the warm-up included.
        power: Exponent of the decay.
        steps_per_update: 1 lets the rate fall every step; the steps of an epoch let it fall once an epoch.
        warmup_steps: During these the rate rises linearly from warmup_start * lr to lr.
        warmup_start: Fraction of lr.
    """
    span = max(total_steps - warmup_steps, 1)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(step / max(warmup_steps, 1), 1.0)
        rising = warmup_start + (1 - warmup_start) * warm
        updates = jnp.floor(jnp.maximum(step - warmup_steps, 0.0) / steps_per_update)
        falling = jnp.maximum((span - updates * steps_per_update) / span, 0.0) ** power
        return lr * jnp.where(step < warmup_steps, rising, falling)

    return schedule


def make_schedule(
    *,
    kind: str,
    lr: float,
    total_steps: int,
    steps_per_epoch: int,
    per: str,
    power: float,
    decay: float,
    every_epochs: int,
    warmup_steps: int,
    warmup_start: float,
) -> optax.Schedule:
    """Builds the schedule that a config names.

    Args:
        kind: "poly", "cosine" (to 0), "step" or "constant"; each after the linear warm-up.
        lr: The highest rate.
        total_steps: All steps of the run.
        steps_per_epoch: Needed by per="epoch".
        per: "step" or "epoch": how often the rate changes. Only poly knows "epoch".
        power: Exponent of kind="poly".
        decay: With kind="step", what the rate is multiplied with.
        every_epochs: With kind="step", how many epochs lie between two such decays, counted from the first step of the run.
        warmup_steps: Length of the warm-up.
        warmup_start: Where the warm-up begins, as a fraction of lr.

    Raises:
        ValueError: unknown kind or per.
    """
    if per not in ("step", "epoch"):
        raise ValueError(f"unknown optim.schedule.per '{per}'; choose 'step' or 'epoch'")
    if kind == "poly":
        return poly(
            lr,
            total_steps,
            power=power,
            steps_per_update=steps_per_epoch if per == "epoch" else 1,
            warmup_steps=warmup_steps,
            warmup_start=warmup_start,
        )
    if per == "epoch":
        raise ValueError(f"optim.schedule.per='epoch' goes with kind='poly', not '{kind}'")
    if kind == "cosine":
        body = optax.cosine_decay_schedule(lr, max(total_steps - warmup_steps, 1))
    elif kind == "step":
        stage = every_epochs * steps_per_epoch

        def body(step):
            return lr * decay ** jnp.floor((step + warmup_steps) / stage)

    elif kind == "constant":
        body = optax.constant_schedule(lr)
    else:
        raise ValueError(
            f"unknown optim.schedule.kind '{kind}'; choose 'poly', 'cosine', 'step' or 'constant'"
        )
    if warmup_steps == 0:
        return body
    rise = optax.linear_schedule(warmup_start * lr, lr, warmup_steps)
    return optax.join_schedules([rise, body], [warmup_steps])


def group_factors(params: Any, groups: Sequence[Group]) -> tuple[Any, Any]:
    """Finds each parameter's factors of learning rate and of weight decay.

    Args:
        params: Tree of parameters.
        groups: (regex, lr factor, decay factor); the regex is searched in names such as "backbone/down1/conv/kernel",
            and the first that is found counts. Parameters that none names have factors 1, 1.

    Returns:
        Two trees of floats.

    Raises:
        ValueError: a regex that names no parameter.
    """
    used = set()

    def factors(path, _):
        name = "/".join(str(getattr(k, "key", k)) for k in path)
        for i, (pattern, lr, decay) in enumerate(groups):
            if re.search(pattern, name):
                used.add(i)
                return lr, decay
        return 1.0, 1.0

    both = jax.tree_util.tree_map_with_path(factors, params)
    for i, (pattern, *_) in enumerate(groups):
        if i not in used:
            raise ValueError(
                f"optim.groups: '{pattern}' is the first match of no parameter; see the names in params.txt"
            )
    is_pair = lambda x: isinstance(x, tuple)  # noqa: E731
    return (
        jax.tree.map(lambda p: p[0], both, is_leaf=is_pair),
        jax.tree.map(lambda p: p[1], both, is_leaf=is_pair),
    )


def _scaled(tree: Any, factors: Any) -> Any:
    """Each leaf of a tree times its factor; the tree may be a Vector, the factors are a tree of floats."""
    if not isinstance(tree, Vector):
        return jax.tree.map(lambda x, f: f * x, tree, factors)
    # Neighbours with one factor are scaled together, which mostly are all.
    runs = itertools.groupby(zip(jax.tree.leaves(factors), tree.sizes, strict=True), lambda p: p[0])
    parts, start = [], 0
    for factor, run in runs:
        end = start + sum(size for _, size in run)
        parts.append(factor * tree.values[start:end])
        start = end
    return tree.replace(values=jnp.concatenate(parts))


def _add_l2(weight_decay: float, factors: Any) -> optax.GradientTransformation:
    """Gradient + weight_decay * factor * parameter: torch's L2, on every parameter unless a group says otherwise."""
    decays = jax.tree.map(lambda f: weight_decay * f, factors)

    def update(updates, params):
        return jax.tree.map(jnp.add, updates, _scaled(params, decays))

    return optax.stateless(update)


def make_optimizer(
    params: Any,
    schedule: optax.Schedule,
    *,
    name: str,
    betas: tuple[float, float],
    eps: float,
    momentum: float,
    weight_decay: float,
    groups: Sequence[Group],
) -> optax.GradientTransformation:
    """Adam, AdamW or SGD as torch computes them.

    Args:
        params: The parameters (or their shapes), for the groups.
        schedule: step -> learning rate.
        name: "adam" and "sgd" add L2 to the gradient before everything else; "adamw" decays after Adam's division.
        betas: Decay rates of Adam's running mean and mean square, two numbers in [0, 1).
        eps: Added to the root of the mean square before dividing by it, as PyTorch does.
        momentum: Weight of SGD's previous update; there is no dampening and no Nesterov step.
        weight_decay: Coefficient of the L2 term, which applies to norms and biases too, unless a group says otherwise.
        groups: See group_factors.

    Raises:
        ValueError: unknown optimizer, or a group that names no parameter.
    """
    lr_factors, decay_factors = group_factors(params, groups)
    l2 = _add_l2(weight_decay, decay_factors)
    adam = optax.scale_by_adam(*betas, eps=eps)
    steps = {
        "adam": (l2, adam),
        "adamw": (adam, l2),
        "sgd": (l2, optax.trace(momentum)),
    }
    if name not in steps:
        raise ValueError(f"unknown optimizer '{name}'; choose one of {', '.join(steps)}")
    by_group = optax.stateless(lambda updates, _: _scaled(updates, lr_factors))
    return optax.chain(*steps[name], by_group, optax.scale_by_learning_rate(schedule))
