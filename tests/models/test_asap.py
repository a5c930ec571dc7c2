"""ASAP's blocks against their equations, its options against their counts, its loss against its parts."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax import models
from rtseg_jax.models import asap


class Trunk(nn.Module):
    """In the place of ResNet-18: maps of as many channels, without parameters."""

    depth: int
    dtype: Any

    def __call__(self, image, *, train):
        b, h, w, _ = image.shape
        channels = {4: 64, 8: 128, 16: 256, 32: 512}
        return {s: jnp.zeros((b, h // s, w // s, c)) for s, c in channels.items()}


TRUNK = 11176512


@pytest.fixture
def without_trunk(monkeypatch):
    monkeypatch.setattr(asap, "ResNet", Trunk)


def count(**options):
    model = models.create("asap", num_classes=19, **options)
    init = functools.partial(model.init, jax.random.key(0), train=True)
    params = jax.eval_shape(init, jnp.zeros((1, 64, 64, 3)))["params"]
    return {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}


def test_parts():
    assert count() == {
        "backbone": TRUNK,
        "pyramid": 61952,
        "fusion": 32896,
        "attention": 98688,
        "block1": 590336,
        "classifier": 4883,
        "aux3": 1235,
        "aux4": 1235,
    }


@pytest.mark.parametrize(
    ("options", "created", "inference"),
    [
        ({}, 11967737, 11965267),
        ({"merge": "sum", "fpn_width": 256}, 12160889, 12151123),
        ({"fuse_width": 128, "conv_blocks": (128,)}, 11432313, 11429843),
        ({"fuse_stride": 4, "conv_blocks": (64,)}, 11521337, 11518867),
    ],
)
def test_totals(without_trunk, options, created, inference):
    parts = count(**options)
    assert TRUNK + sum(parts.values()) == created
    assert created - parts["aux3"] - parts["aux4"] == inference


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
def test_options(without_trunk, options, part, expected):
    assert count(**options).get(part) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "ffdm"}, "unknown fusion 'ffdm'; choose one of ffdn, ln, in, general, none"),
        ({"attention": "diagonal"}, "unknown attention 'diagonal'; choose one of vertical"),
        ({"fuse_stride": 16}, "unknown fuse_stride '16'; choose one of 4, 8"),
        ({"norm_mix": "mean"}, "unknown norm_mix 'mean'; choose one of concat, sum, rho"),
        ({"fuse_width": 255}, "fuse_width 255 must be even"),
        ({"attention_reduction": 0}, "attention_reduction 0 must lie in 1-256"),
        ({"attention_reduction": 257}, "attention_reduction 257 must lie in 1-256"),
        (
            {"attention_reduction": 65, "fusion": "none", "merge": "sum"},
            "attention_reduction 65 must lie in 1-64",
        ),
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


def test_variance_is_centred():
    """E[x^2] - E[x]^2 would lose a spread of 1 at a mean of 1000, where float32 squares are 0.06 apart."""
    x = np.random.default_rng(7).normal(1000, 1, (1, 8, 8, 4)).astype(np.float32)
    layer, instance = asap.different_norms(jnp.asarray(x))
    x = x.astype(np.float64)
    for got, axes in ((layer, (1, 2, 3)), (instance, (1, 2))):
        want = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
        np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize(
    ("norm", "mix", "axes"),
    [
        ("ffdn", "concat", "chw"),
        ("ffdn", "concat", "c"),
        ("ffdn", "sum", "chw"),
        ("ffdn", "rho", "chw"),
        ("ln", "concat", "chw"),
        ("in", "concat", "chw"),
    ],
)
def test_ffdn_is_one_convolution_under_two_norms(norm, mix, axes):
    rng = np.random.default_rng(8)
    width = 3 if (norm, mix) == ("ffdn", "concat") else 6
    x, kernel, bias = rng.normal(size=(2, 4, 5, 8)), rng.normal(size=(8, width)), np.arange(width)
    rho = np.linspace(-0.5, 1.5, width)  # beyond both ends of [0, 1]
    params = {"conv": {"kernel": kernel[None, None], "bias": bias}}
    if mix == "rho":
        params["rho"] = rho
    variables = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), {"params": params})
    module = asap.FeatureFusionDifferentNorms(6, norm, mix, axes)
    got = module.apply(variables, jnp.asarray(x, jnp.float32))

    y = x @ kernel + bias

    def normalised(over):
        return (y - y.mean(over, keepdims=True)) / np.sqrt(y.var(over, keepdims=True) + 1e-5)

    layer, instance = normalised((1, 2, 3) if axes == "chw" else (3,)), normalised((1, 2))
    rho = rho.clip(0, 1)
    want = {
        "ln": layer,
        "in": instance,
        "concat": np.concatenate([layer, instance], -1),
        "sum": layer + instance,
        "rho": rho * instance + (1 - rho) * layer,
    }[mix if norm == "ffdn" else norm]
    np.testing.assert_allclose(got, want, atol=1e-4)


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
    init = jax.jit(functools.partial(pyramid.init_with_output, train=False))
    levels, variables = init(jax.random.key(0), features)
    assert [x.shape for x in levels] == [(1, 32 // s, 64 // s, 3) for s in (4, 8, 16, 32)]
    want = None
    for i, stride in ((4, 32), (3, 16), (2, 8), (1, 4)):
        kernel = variables["params"][f"lateral{i}"]["conv"]["kernel"][0, 0]
        lateral = np.maximum(np.asarray(features[stride]) @ kernel / np.sqrt(1 + 1e-5), 0)
        if want is None:
            want = lateral
        else:
            above = jax.image.resize(want, lateral.shape, "bilinear", antialias=False)
            want = lateral + np.asarray(above)
        np.testing.assert_allclose(levels[i - 1], want, rtol=1e-4, atol=1e-5)


class Subsampled(nn.Module):
    """In the place of ResNet: every n-th pixel, on which the pyramid stands as well."""

    depth: int
    dtype: Any

    def __call__(self, image, *, train):
        return {stride: image[:, ::stride, ::stride] for stride in (4, 8, 16, 32)}


@pytest.mark.parametrize(("merge", "stride"), [("cat", 4), ("cat", 8), ("sum", 8)])
def test_the_grid_joins_the_levels_finest_first(monkeypatch, merge, stride):
    """With nothing between the merge and the classifier, and that the identity."""
    monkeypatch.setattr(asap, "ResNet", Subsampled)
    rng = np.random.default_rng(9)
    width = 12 if merge == "cat" else 3
    model = asap.ASAP(width, "none", "none", merge, 3, fuse_stride=stride, conv_blocks=())
    image = jnp.asarray(rng.normal(size=(1, 64, 96, 3)), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, jax.random.key(0), train=True), image)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1, leaf.shape), jnp.float32), shapes
    )
    variables["params"]["classifier"] = {
        "kernel": jnp.eye(width).reshape(1, 1, width, width),
        "bias": jnp.zeros(width),
    }
    pyramid = {name: tree["pyramid"] for name, tree in variables.items()}

    @jax.jit
    def run(variables, image):
        levels = asap.FeaturePyramid(3).apply(
            pyramid, Subsampled(18, None)(image, train=False), train=False
        )
        return model.apply(variables, image, train=False)["logits"], levels

    got, levels = run(variables, image)
    grid = (1, 64 // stride, 96 // stride, 3)
    maps = [jax.image.resize(x, grid, "bilinear", antialias=False) for x in levels]
    want = np.concatenate(maps, -1) if merge == "cat" else sum(map(np.asarray, maps))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


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


def mined(logits, label, class_weights, threshold, min_kept):
    """OHEM in numpy: a sort and boolean indexing over the valid pixels."""
    valid = label != 255
    scores, label = logits[valid], label[valid]
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    p = p[np.arange(label.size), label]
    keep = p <= max(threshold, np.sort(p)[max(1, int(min_kept * valid.size)) - 1])
    weight = np.asarray(class_weights)[label][keep]
    return (weight * -np.log(p[keep])).sum() / weight.sum(), keep.mean()


@pytest.mark.parametrize(("threshold", "min_kept"), [(0.4, 1 / 16), (0.01, 1 / 2)])
def test_loss_is_equation_5(threshold, min_kept):
    rng = np.random.default_rng(5)
    outputs = {
        name: rng.normal(0, 2, (2, n, n, 4)).astype(np.float32)
        for name, n in (("logits", 4), ("aux3", 2), ("aux4", 1))
    }
    label = rng.integers(0, 4, (2, 16, 16)).astype(np.int32)
    label[:, :3] = 255
    options = {
        "class_weights": (0.5, 1.0, 2.0, 4.0),
        "threshold": threshold,
        "min_kept": min_kept,
    }
    loss = jax.jit(functools.partial(asap.loss, aux_weights=(0.4, 0.1), **options))
    value, terms = loss(outputs, {"label": label})
    for name, term in (("logits", "main"), ("aux3", "aux3"), ("aux4", "aux4")):
        full = jax.image.resize(outputs[name], (2, 16, 16, 4), "bilinear", antialias=False)
        want, kept = mined(np.asarray(full, np.float64), label, **options)
        assert 0.1 < kept < 0.9  # both sides of the threshold
        np.testing.assert_allclose(terms[term], want, rtol=1e-4)
    want = terms["main"] + 0.4 * terms["aux3"] + 0.1 * terms["aux4"]
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(terms["loss"], value)
    value, _ = loss(outputs, {"label": np.full_like(label, 255)})
    assert value == 0


def test_loss_of_equal_scores_is_the_logarithm_of_the_classes():
    outputs = {name: jnp.zeros((1, 2, 2, 4)) for name in ("logits", "aux3", "aux4")}
    options = {"class_weights": None, "threshold": 0.7, "min_kept": 1 / 16}
    batch = {"label": jnp.zeros((1, 8, 8), jnp.int32)}
    loss = functools.partial(asap.loss, aux_weights=(1.0, 0.5), **options)
    value, _ = jax.jit(loss)(outputs, batch)
    np.testing.assert_allclose(value, 2.5 * 1.3862944, rtol=1e-6)
