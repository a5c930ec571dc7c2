import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from rtseg_jax.train import optim

DEFAULTS = {
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "groups": (),
}
_TORCH = {
    "adam": lambda groups: torch.optim.Adam(groups, betas=(0.9, 0.999), eps=1e-8),
    "adam, other betas": lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.99), eps=1e-3),
    "adamw": lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "sgd, other momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.5),
}
_OPTIONS = {
    "adam, other betas": {"betas": (0.8, 0.99), "eps": 1e-3},
    "sgd, other momentum": {"momentum": 0.5},
}


def _params(rng):
    return {
        "backbone": {"norm": {"scale": rng.random(4)}, "conv": {"kernel": rng.random((3, 4))}},
        "classifier": {"bias": rng.random(5)},
    }


def _f32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", _TORCH)
def test_ten_steps_are_torchs(name, decay):
    rng = np.random.default_rng(0)
    params = _params(rng)
    gradients = [jax.tree.map(lambda p: rng.standard_normal(p.shape), params) for _ in range(10)]
    schedule = optim.poly(0.03, 12)
    # kernel: the rate halved; norm: no decay; bias: neither
    tx = optim.make_optimizer(
        params,
        schedule,
        name=name.split(",")[0],
        **{
            **DEFAULTS,
            **_OPTIONS.get(name, {}),
            "weight_decay": decay,
            "groups": (("kernel", 0.5, 1.0), ("norm/", 1.0, 0.0)),
        },
    )
    ours = _f32(params)
    state = tx.init(ours)
    update = jax.jit(tx.update)
    theirs = jax.tree.map(lambda p: torch.tensor(p, dtype=torch.float64), params)
    factors = {"weight": (0.5, decay), "scale": (1.0, 0.0), "bias": (1.0, decay)}
    tensors = {
        "weight": theirs["backbone"]["conv"]["kernel"],
        "scale": theirs["backbone"]["norm"]["scale"],
        "bias": theirs["classifier"]["bias"],
    }
    rival = _TORCH[name](
        [{"params": [t], "weight_decay": factors[k][1]} for k, t in tensors.items()]
    )
    for step, gradient in enumerate(gradients):
        updates, state = update(_f32(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        for tensor, g in zip(jax.tree.leaves(theirs), jax.tree.leaves(gradient), strict=True):
            tensor.grad = torch.tensor(g)
        for group, (lr, _) in zip(rival.param_groups, factors.values(), strict=True):
            group["lr"] = lr * 0.03 * (1 - step / 12) ** 0.9
        rival.step()
    for a, b, begin in zip(*map(jax.tree.leaves, (ours, theirs, params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
        assert np.abs(b.numpy() - begin).max() > 0.01


def test_first_matching_group_counts():
    params = _params(np.random.default_rng(0))
    groups = (("^backbone/.*scale$", 0.1, 0.2), ("backbone", 0.3, 0.4), ("b", 0.5, 0.6))
    lr, decay = optim.group_factors(params, groups)
    assert lr == {
        "backbone": {"norm": {"scale": 0.1}, "conv": {"kernel": 0.3}},
        "classifier": {"bias": 0.5},
    }
    assert jax.tree.leaves(decay) == [0.4, 0.2, 0.6]
    assert set(jax.tree.leaves(optim.group_factors(params, ()))) == {1.0}


@pytest.mark.parametrize("pattern", ["head", "^kernel", "bias/"])
def test_group_that_names_nothing(pattern):
    with pytest.raises(ValueError, match="^optim.groups: '.*' is the first match of no parameter"):
        optim.group_factors(_params(np.random.default_rng(0)), ((pattern, 1.0, 1.0),))


def test_group_behind_another():
    groups = (("kernel", 1.0, 1.0), ("conv/kernel", 1.0, 0.0))
    with pytest.raises(ValueError, match="'conv/kernel'"):
        optim.group_factors(_params(np.random.default_rng(0)), groups)


def test_unknown_optimizer():
    with pytest.raises(
        ValueError, match="^unknown optimizer 'adm'; choose one of adam, adamw, sgd$"
    ):
        optim.make_optimizer(
            _params(np.random.default_rng(0)), lambda s: 1.0, name="adm", **DEFAULTS
        )


def _schedule(**changes):
    return optim.make_schedule(
        **{
            "kind": "poly",
            "lr": 1.0,
            "total_steps": 1000,
            "steps_per_epoch": 100,
            "per": "step",
            "power": 0.9,
            "decay": 0.2,
            "every_epochs": 3,
            "warmup_steps": 0,
            "warmup_start": 0.0,
            **changes,
        }
    )


# 400 epochs of 371 steps at 5e-4, falling once an epoch; 371,000 steps at 0.045 with 500 of warm-up from a third
_PER_EPOCH = {
    "lr": 5e-4,
    "total_steps": 148_400,
    "steps_per_epoch": 371,
    "per": "epoch",
}
_WARM = {"lr": 0.045, "total_steps": 371_000, "warmup_steps": 500, "warmup_start": 1 / 3}


@pytest.mark.parametrize(
    "options, step, expected",
    [
        ({}, 0, 1.0),
        ({}, 1, 0.999099955),  # 0.999^0.9
        ({}, 500, 0.535886731),  # 0.5^0.9
        ({}, 999, 0.001995262),  # 0.001^0.9
        ({}, 1000, 0.0),
        ({}, 1200, 0.0),
        ({"power": 2.0}, 500, 0.25),
        (_PER_EPOCH, 0, 5e-4),
        (_PER_EPOCH, 370, 5e-4),
        (_PER_EPOCH, 371, 4.988748593e-4),  # 5e-4 (399/400)^0.9
        (_PER_EPOCH, 741, 4.988748593e-4),
        (_PER_EPOCH, 74_200, 2.679433656e-4),  # 5e-4 0.5^0.9
        (_PER_EPOCH, 148_399, 2.275705254e-6),  # 5e-4 (1/400)^0.9
        (_WARM, 0, 0.015),
        (_WARM, 250, 0.03),
        (_WARM, 499, 0.04494),
        (_WARM, 500, 0.045),
        (_WARM, 185_750, 0.0241149029),  # 0.045 0.5^0.9
        (_WARM, 370_999, 4.378275872e-7),  # 0.045 (1/370,500)^0.9
        ({"per": "epoch", "warmup_steps": 200}, 100, 0.5),
        ({"per": "epoch", "warmup_steps": 200}, 299, 1.0),
        ({"per": "epoch", "warmup_steps": 200}, 300, 0.886762354),  # (7/8)^0.9
        ({"kind": "constant", "lr": 0.3}, 700, 0.3),
        ({"kind": "constant", "lr": 0.3, "warmup_steps": 10, "warmup_start": 0.1}, 5, 0.165),
        ({"kind": "constant", "lr": 0.3, "warmup_steps": 10}, 10, 0.3),
        ({"kind": "step", "lr": 0.3}, 299, 0.3),
        ({"kind": "step", "lr": 0.3}, 300, 0.06),
        ({"kind": "step", "lr": 0.3}, 999, 0.0024),  # 0.3 0.2^3
        ({"kind": "step", "lr": 0.3, "warmup_steps": 10}, 5, 0.15),
        ({"kind": "step", "lr": 0.3, "warmup_steps": 10}, 300, 0.06),  # stages count from the start
        ({"kind": "cosine", "lr": 0.2}, 0, 0.2),
        ({"kind": "cosine", "lr": 0.2}, 250, 0.1 * (1 + math.sqrt(0.5))),
        ({"kind": "cosine", "lr": 0.2}, 1000, 0.0),
        ({"kind": "cosine", "lr": 0.2, "warmup_steps": 200, "warmup_start": 0.5}, 100, 0.15),
        ({"kind": "cosine", "lr": 0.2, "warmup_steps": 200}, 200, 0.2),
        ({"kind": "cosine", "lr": 0.2, "warmup_steps": 200}, 600, 0.1),
    ],
)
def test_schedules(options, step, expected):
    schedule = _schedule(**options)
    for rate in (schedule(step), jax.jit(schedule)(jnp.int32(step))):
        np.testing.assert_allclose(rate, expected, rtol=2e-6, atol=1e-9 * options.get("lr", 1.0))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"kind": "steps"},
            "unknown optim.schedule.kind 'steps'; choose 'poly', 'cosine', 'step' or 'constant'",
        ),
        ({"per": "batch"}, "unknown optim.schedule.per 'batch'; choose 'step' or 'epoch'"),
        ({"kind": "cosine", "per": "epoch"}, "optim.schedule.per='epoch' goes with kind='poly'"),
    ],
)
def test_schedule_errors(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        _schedule(**options)
