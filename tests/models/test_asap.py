"""ASAP's blocks against their equations, its options against their counts, its loss against its parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax import losses, models
from rtseg_jax.models import asap


def count(**options):
    model = models.create("asap", num_classes=19, **options)
    init = functools.partial(model.init, jax.random.key(0), train=True)
    params = jax.eval_shape(init, jnp.zeros((1, 64, 64, 3)))["params"]
    return {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}


def test_parts():
    assert count() == {
        "backbone": 11176512,
        "pyramid": 61952,
        "fusion": 32896,
        "attention": 98688,
        "block1": 590336,
        "classifier": 4883,
        "aux3": 1235,
        "aux4": 1235,
    }


@pytest.mark.parametrize(
    ("options", "part", "expected"),
    [
        ({"fusion": "none"}, "fusion", None),
        ({"fusion": "ln"}, "fusion", 256 * 256 + 256),
        ({"fusion": "in"}, "fusion", 256 * 256 + 256),
        ({"fusion": "general"}, "fusion", 132096),
        ({"norm_mix": "sum"}, "fusion", 256 * 256 + 256),
        ({"norm_mix": "rho"}, "fusion", 256 * 256 + 256 + 256),
        ({"attention": "none"}, "attention", None),
        ({"attention": "conventional"}, "attention", 98688),
        ({"attention": "horizontal"}, "attention", 98688),
        ({"attention_reduction": 8}, "attention", 2 * (256 * 32 + 32) + 256 * 257),
        ({"attention_gamma": True}, "attention", 98689),
        ({"conv_blocks": (256, 64)}, "block2", 256 * 64 * 9 + 128),
        ({"conv_blocks": (256, 64)}, "classifier", 65 * 19),
        ({"merge": "sum", "fpn_width": 256}, "pyramid", 960 * 256 + 4 * 512),
        ({"merge": "sum", "fpn_width": 256}, "aux3", 257 * 19),
        ({"fuse_width": 128}, "fusion", 257 * 64),
        ({"fuse_stride": 4}, "fusion", 32896),
    ],
)
def test_options(options, part, expected):
    assert count(**options).get(part) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "ffdm"}, "unknown fusion 'ffdm'; choose one of ffdn, ln, in, general, none"),
        ({"attention": "diagonal"}, "unknown attention 'diagonal'; choose one of vertical"),
        ({"fuse_stride": 16}, "unknown fuse_stride '16'; choose one of 4, 8"),
        ({"norm_mix": "mean"}, "unknown norm_mix 'mean'; choose one of concat, sum, rho"),
        ({"fuse_width": 255}, "fuse_width 255 must be even"),
    ],
)
def test_unknown_options(options, message):
    with pytest.raises(ValueError, match=message):
        models.create("asap", num_classes=19, **options)


def test_different_norms_are_equations_1_and_2():
    x = np.random.default_rng(0).normal(3, 2, (2, 5, 7, 6))
    x[..., 0] += 10  # channels that differ: else the two norms would be much alike
    layer, instance = asap.different_norms(jnp.asarray(x, jnp.float32))
    want = (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer, want, atol=1e-5)
    want = (x - x.mean((1, 2), keepdims=True)) / np.sqrt(x.var((1, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(instance, want, atol=1e-5)
    each, _ = asap.different_norms(jnp.asarray(x, jnp.float32), "c")
    want = (x - x.mean(3, keepdims=True)) / np.sqrt(x.var(3, keepdims=True) + 1e-5)
    np.testing.assert_allclose(each, want, atol=1e-4)


@pytest.mark.parametrize("direction", ["vertical", "horizontal", "conventional"])
def test_attention_is_equations_3_and_4(direction):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 4, 5, 8))
    params = {
        name: {"kernel": rng.normal(size=(1, 1, 8, n)), "bias": rng.normal(size=n)}
        for name, n in (("query", 2), ("key", 2), ("value", 8))
    }
    module = asap.DirectionalSelfAttention(direction)
    variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), {"params": params})
    got = module.apply(variables, jnp.asarray(x, jnp.float32))

    axis = {"vertical": 1, "horizontal": 2}.get(direction)
    pooled = x if axis is None else x.mean(axis, keepdims=True)
    cells = pooled.reshape(-1, 8)
    q, k, v = (cells @ p["kernel"][0, 0] + p["bias"] for p in params.values())
    a = np.exp(q @ k.T)
    context = (a / a.sum(1, keepdims=True)) @ v
    np.testing.assert_allclose(got, x + context.reshape(pooled.shape), rtol=1e-4, atol=1e-4)


def test_attention_with_gamma_starts_as_the_identity():
    module = asap.DirectionalSelfAttention(gamma=True)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 3, 4, 8)), jnp.float32)
    got, _ = module.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(got, x)


def test_general_fusion_weights_channels_by_their_mean():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3, 4, 6)), jnp.float32)
    plain, variables = asap.GeneralFusion(5).init_with_output(jax.random.key(0), x, train=False)
    params = variables["params"]
    a = np.maximum(np.asarray(x) @ params["conv"]["conv"]["kernel"][0, 0] / np.sqrt(1 + 1e-5), 0)
    g = a.mean((1, 2), keepdims=True) @ params["attention"]["conv"]["kernel"][0, 0]
    want = a / (1 + np.exp(-g / np.sqrt(1 + 1e-5)))
    np.testing.assert_allclose(plain, want, rtol=1e-5, atol=1e-6)
    residual = asap.GeneralFusion(5, residual=True).apply(variables, x, train=False)
    np.testing.assert_allclose(residual, want + a, rtol=1e-5, atol=1e-6)


def test_pyramid_adds_what_is_above():
    rng = np.random.default_rng(4)
    features = {
        s: jnp.asarray(rng.normal(size=(1, 32 // s, 64 // s, 3)), jnp.float32)
        for s in (4, 8, 16, 32)
    }
    pyramid = asap.FeaturePyramid(3)
    levels, variables = pyramid.init_with_output(jax.random.key(0), features, train=False)
    assert [x.shape for x in levels] == [(1, 32 // s, 64 // s, 3) for s in (4, 8, 16, 32)]
    # Only the coarsest stage: its constant map reaches every level unchanged.
    lonely = {s: jnp.zeros_like(x) for s, x in features.items()} | {32: features[32]}
    levels = pyramid.apply(variables, lonely, train=False)
    means = [np.asarray(x).mean((1, 2)) for x in levels]
    for mean in means[:3]:
        np.testing.assert_allclose(mean, means[3], rtol=0.2)


def test_training_adds_the_auxiliary_heads():
    model = models.create("asap", num_classes=5)
    init = functools.partial(model.init, jax.random.key(0), train=True)
    image = jnp.zeros((2, 65, 97, 3))
    variables = jax.eval_shape(init, image)
    apply = functools.partial(model.apply, mutable=["batch_stats"])
    train, _ = jax.eval_shape(functools.partial(apply, train=True), variables, image)
    assert {name: x.shape for name, x in train.items()} == {
        "logits": (2, 9, 13, 5),
        "aux3": (2, 5, 7, 5),
        "aux4": (2, 3, 4, 5),
    }
    test, _ = jax.eval_shape(functools.partial(apply, train=False), variables, image)
    assert list(test) == ["logits"]


def test_loss_is_equation_5():
    rng = np.random.default_rng(5)
    outputs = {
        name: jnp.asarray(rng.normal(size=(2, n, n, 4)), jnp.float32)
        for name, n in (("logits", 4), ("aux3", 2), ("aux4", 1))
    }
    label = jnp.asarray(rng.integers(0, 4, (2, 16, 16)), jnp.int32).at[:, :3].set(255)
    options = {"class_weights": None, "threshold": 0.7, "min_kept": 1 / 16}
    value, terms = asap.loss(outputs, {"label": label}, aux_weights=(0.4, 0.1), **options)
    for name, term in (("logits", "main"), ("aux3", "aux3"), ("aux4", "aux4")):
        full = jnp.asarray(
            jax.image.resize(outputs[name], (2, 16, 16, 4), "bilinear", antialias=False)
        )
        want = losses.ohem_cross_entropy(full, label, threshold=0.7, min_kept=1 / 16)
        np.testing.assert_allclose(terms[term], want, rtol=1e-4)
    want = terms["main"] + 0.4 * terms["aux3"] + 0.1 * terms["aux4"]
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(terms["loss"], value)
    ignored = jnp.full_like(label, 255)
    value, _ = asap.loss(outputs, {"label": ignored}, aux_weights=(1.0, 1.0), **options)
    assert value == 0
