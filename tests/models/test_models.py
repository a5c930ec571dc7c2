"""Every named network: exact size, shapes at even and odd inputs, a gradient for every parameter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counts import PARAMETERS, STRIDE

from rtseg_jax import data, models
from rtseg_jax.base import config as settings
from tests.networks import COMPILED, ZOO, shapes


def filled(tree, seed=0):
    """Variables from numpy: no compiled init. Variances positive, every parameter away from 0."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        spread = (2 / max(1, np.prod(leaf.shape[:-1]))) ** 0.5 if name == "kernel" else 0.1
        value = jnp.asarray(rng.normal(0, spread, leaf.shape), jnp.float32)
        # Of two slopes below 0 the sum is nowhere below it, and a slope behind that has no gradient.
        return jnp.abs(value) if name == "slope" else value

    return jax.tree_util.tree_map_with_path(fill, tree)


def test_every_variant_is_counted():
    assert set(PARAMETERS) == set(models.VARIANTS)


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts(variant):
    """At two numbers of classes: at the others the twins are counted."""
    counts = PARAMETERS[variant]
    for num_classes in {min(counts), max(counts)}:
        params = shapes(variant, num_classes)["params"]
        assert sum(x.size for x in jax.tree.leaves(params)) == counts[num_classes]


def test_erfnet_without_the_unused_head():
    model = models.create("erfnet", num_classes=19, encoder_head=False)
    init = functools.partial(model.init, jax.random.key(0), train=False)
    variables = jax.eval_shape(init, jnp.zeros((1, 32, 32, 3)))
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 2066642 - 2451


@pytest.mark.parametrize("variant", PARAMETERS)
def test_shapes(variant):
    """At an odd size; of even ones test_flops tells."""
    apply = functools.partial(models.create(variant, num_classes=19).apply, train=False)
    outputs = jax.eval_shape(apply, shapes(variant, 19), jnp.zeros((2, 61, 93, 3)))
    want = tuple(-(-n // STRIDE[variant]) for n in (61, 93))
    assert outputs["logits"].shape == (2, *want, 19)
    assert outputs["logits"].dtype == jnp.float32


@pytest.mark.parametrize("variant", COMPILED)
def test_half_precision_keeps_parameters_and_logits_in_float32(variant):
    model = models.create(variant, num_classes=5, dtype=jnp.bfloat16)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    image = jnp.zeros((1, 32, 32, 3))
    init = functools.partial(model.init_with_output, train=True)
    outputs, variables = jax.eval_shape(init, keys, image)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert outputs["logits"].dtype == jnp.float32


# Parameters whose gradient is zero, and why.
_PROJECTIONS = {f"attention/{m}/{p}" for m in ("query", "key", "value") for p in ("kernel", "bias")}
ZERO_GRADIENT = {
    # The encoder's head: no output depends on it.
    "erfnet": {"classifier/kernel", "classifier/bias"},
    # As long as alpha is 0 nothing flows into the projections; alpha itself moves first.
    "eacnet_erfnet": _PROJECTIONS,
    "eacnet_dabnet": _PROJECTIONS,
}
# No gradient but rounding: what is added to all scores of a query does not change a softmax, and what is added to a
# channel is taken off again by the next BatchNorm, if only linear operations lie between.
NEAR_ZERO = re.compile(
    r"attention/key/bias"
    r"|backbone/(downsample/shuffle./depthwise|unit._block./project)/norm/bias"
    r"|fusion/(pooling_conv./norm|deep/conv|shallow/conv)/bias"
)


CONFIGS = {
    "erfnet": "erfnet:base,streets",
    "eacnet_erfnet": "eacnet:erfnet,streets",
    "eacnet_dabnet": "eacnet:dabnet,streets",
    "carnet_resnet50": "carnet:resnet50,streets",
    "carnet_mobilenet": "carnet:mobilenet,streets",
    "affnet": "affnet:streets",
    "fast_scnn": "fast_scnn:streets",
    "spssnet": "spssnet:streets",
    "asap": "asap:streets",
    "ddrnet23_slim": "ddrnet23_slim:streets",
    "pidnet_s": "pidnet_s:streets",
    "cgnet": "cgnet:streets",
    "espnet": "espnet:streets",
    "enet": "enet:streets",
    "bisenetv2": "bisenetv2:streets",
    "stdc1": "stdc:stdc1,streets",
}


@functools.cache
def loss_and_gradient(variant):
    """A function of parameters, jitted: the loss of the network's own config, on two rendered streets of an odd size."""
    model = models.create(variant, num_classes=19)
    batch_stats = filled(shapes(variant, 19))["batch_stats"]
    options = settings.load(CONFIGS[variant]).loss
    streets = data.load("streets", root=None, split="train", size=(69, 93), num_examples=2)
    images, labels = (
        jnp.asarray(np.stack(x)) for x in zip(*map(streets.load, (0, 1)), strict=True)
    )
    batch = {"label": labels.astype(jnp.int32)}
    image = (images.astype(jnp.float32) - 105) / 60

    def objective(params):
        outputs, _ = model.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return models.get(variant).loss(outputs, batch, **options)[0]

    return jax.jit(jax.value_and_grad(objective))


@pytest.mark.parametrize(
    ("variant", "alpha"),
    [
        pytest.param(v, a, marks=[pytest.mark.slow] * (v in ZOO))
        for v in CONFIGS
        for a in ((0.0, 0.5) if v.startswith("eacnet") else (None,))
    ],
)
def test_every_parameter_has_a_gradient_and_a_step_along_it_lowers_the_loss(variant, alpha):
    params = filled(shapes(variant, 19))["params"]
    if alpha is not None:
        params["attention"]["alpha"] = jnp.float32(alpha)
    before, gradient = loss_and_gradient(variant)(params)
    zero = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all(), name
        if not np.any(leaf) and not NEAR_ZERO.fullmatch(name):
            zero.add(name)
    allowed = set() if alpha else ZERO_GRADIENT.get(variant, set())
    assert zero == {name for name in allowed if not NEAR_ZERO.fullmatch(name)}

    # As far as a straight line would lower the loss by a hundredth.
    squares = sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(gradient))
    rate = 0.01 * float(before) / squares
    stepped = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    after, _ = loss_and_gradient(variant)(stepped)
    assert 0.98 * before < after < before


@pytest.mark.parametrize("variant", ["eacnet_erfnet", "eacnet_dabnet", "eacnet_dabnet_nonlocal"])
def test_alpha_zero_is_the_network_without_attention(variant):
    backbone = "erfnet_encoder" if "erfnet" in variant else "dabnet"
    model = models.create(variant, num_classes=5)
    variables = filled(shapes(variant, 5))
    variables["params"]["attention"]["alpha"] = jnp.float32(0)
    image = jnp.asarray(np.random.default_rng(2).normal(size=(1, 40, 48, 3)), jnp.float32)
    plain = {
        "params": {k: v for k, v in variables["params"].items() if k != "attention"},
        "batch_stats": variables["batch_stats"],
    }
    with_attention = model.apply(variables, image, train=False)["logits"]
    without = models.create(backbone, num_classes=5).apply(plain, image, train=False)["logits"]
    np.testing.assert_array_equal(with_attention, without)


def test_self_calibration_attention_is_its_equation():
    """Eqs. 8 and 9 in numpy, on a map whose last row and column the floor pool drops."""
    from rtseg_jax.models.eacnet import SelfCalibrationAttention

    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 5, 7, 4)).astype(np.float32)
    module = SelfCalibrationAttention()
    params = {
        m: {
            "kernel": rng.normal(size=(1, 1, 4, 4)).astype(np.float32),
            "bias": rng.normal(size=4).astype(np.float32),
        }
        for m in ("query", "key", "value")
    }
    variables = jax.tree.map(jnp.asarray, {"params": {**params, "alpha": np.float32(0.7)}})
    got = module.apply(variables, jnp.asarray(x))

    def project(m, y):
        return y.reshape(-1, 4) @ params[m]["kernel"][0, 0] + params[m]["bias"]

    down = x[0, :4, :6].reshape(2, 2, 3, 2, 4).max(axis=(1, 3))
    scores = project("query", x) @ project("key", down).T
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    want = x + 0.7 * (weights @ project("value", down)).reshape(x.shape)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create("eacnet_dab", num_classes=2), "did you mean 'eacnet_dabnet'"),
        (lambda: models.create("dabnet", num_classes=2, atention="none"), "no option 'atention'"),
        (lambda: models.create("dabnet", num_classes=2, attention="sca"), "self_calibration"),
        (lambda: models.create("dabnet", num_classes=2, backbone="vgg"), "'erfnet' or 'dabnet'"),
        (lambda: models.create("cgnet", num_classes=2, blocks=(3, 0)), "must be two numbers of 1"),
        (
            lambda: models.create("espnet", num_classes=2, blocks=(3, -1)),
            "must be two numbers of 0",
        ),
        (lambda: models.create("espnet", num_classes=2, skip="b1"), "choose one of stem, inject"),
        (
            lambda: models.create("enet", num_classes=2, activations=("elu", "relu")),
            "unknown activation 'elu'; choose one of shared_prelu, prelu, relu",
        ),
    ],
)
def test_wrong_names_are_answered(call, message):
    with pytest.raises(ValueError, match=message):
        call()
