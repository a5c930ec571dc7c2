"""The frozen program gives the network's own answer, for every network, and refuses what it was not made for."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax import models
from rtseg_jax.base import mesh
from rtseg_jax.inference import program as infer
from rtseg_jax.nn.conv import Conv, ConvTranspose, DepthwiseConv
from rtseg_jax.nn.norm import BatchNorm, BatchNormPReLU
from rtseg_jax.nn.resize import resize_bilinear, upsample_argmax
from tests.models.filling import filled
from tests.networks import COMPILED, others_slow, shapes

MEAN, STD = (105.0, 110.0, 120.0), (60.0, 55.0, 50.0)


@functools.cache
def network(variant, num_classes=11):
    variables = filled(shapes(variant, num_classes))
    return models.create(variant, num_classes=num_classes), jax.tree.map(jnp.asarray, variables)


@functools.cache
def frames(batch=1, height=65, width=96):
    """Smooth frames: of noise, the classes of neighbouring pixels are a toss-up."""
    rng = np.random.default_rng(1)
    small = rng.uniform(0, 255, (batch, 6, 8, 3)).astype(np.float32)
    large = jax.image.resize(small, (batch, height, width, 3), "bilinear")
    return np.asarray(large).astype(np.uint8)


def unfrozen(model, variables, images, size=None):
    predict = jax.jit(functools.partial(infer.predict, model, mean=MEAN, std=STD, size=size))
    return np.asarray(predict(variables, jnp.asarray(images)))


@pytest.mark.parametrize("variant", others_slow(COMPILED, keep=("enet", "stdc1")))
def test_frozen_network_gives_what_the_trained_one_gives(variant):
    model, variables = network(variant)
    wanted = unfrozen(model, variables, frames())
    program = infer.program(model, variables, mean=MEAN, std=STD, output="scores")

    @jax.jit
    def both(frames):
        scores = program(frames)
        return resize_bilinear(scores, frames.shape[1:3]), upsample_argmax(
            scores, frames.shape[1:3]
        )

    logits, classes = map(np.asarray, both(frames()))
    assert np.abs(logits - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert (classes == wanted.argmax(-1)).mean() > 0.9999


def test_evaluation_in_training_sees_what_the_frozen_network_sees():
    model, variables = network("eacnet_erfnet")
    images = frames(batch=2)
    devices = mesh.make_mesh(jax.devices()[:1])
    step = infer.jit_eval_step(devices, model=model, num_classes=11, mean=MEAN, std=STD)
    labels = np.zeros(images.shape[:3], np.uint8)
    _, classes = step(variables, images, labels, np.ones(2, bool))
    frozen = infer.freeze(model, variables, images.shape[:3], mean=MEAN, std=STD)
    np.testing.assert_array_equal(frozen(images), classes)


def test_a_network_can_see_the_frames_at_another_size():
    model, variables = network("fast_scnn")
    size = (64, 64)
    wanted = unfrozen(model, variables, frames(), size=size)
    options = {"mean": MEAN, "std": STD, "size": size}
    frozen = infer.freeze(model, variables, frames().shape[:3], output="logits", **options)
    assert np.abs(np.asarray(frozen(frames())) - wanted).max() < 1e-4 * np.abs(wanted).max()
    program = infer.program(model, variables, output="scores", **options)
    assert jax.eval_shape(program, frames()).shape == (1, 8, 8, 11)


@pytest.mark.parametrize(
    "conv",
    [
        Conv(5, use_bias=False),
        Conv(5, (3, 1), (2, 1)),
        DepthwiseConv(use_bias=False),
        DepthwiseConv(use_bias=False, multiplier=3),
        ConvTranspose(5, (3, 3), padding=1, output_padding=1),
    ],
)
@pytest.mark.parametrize("norm", [BatchNorm(1e-3), BatchNormPReLU(1e-3)])
def test_a_norm_right_behind_a_convolution_becomes_a_part_of_it(conv, norm):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = conv.clone(parent=self, name="conv")(x)
            return norm.clone(parent=self, name="norm")(y, train=False)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 9, 4)), jnp.float32)
    shapes = jax.eval_shape(Both().init, jax.random.key(0), x)
    variables = jax.tree.map(jnp.asarray, filled(shapes))

    def folded(x):
        with nn.intercept_methods(infer.folding(variables)):
            return Both().apply(variables, x)

    assert "rsqrt" not in str(jax.make_jaxpr(folded)(x))
    np.testing.assert_allclose(folded(x), Both().apply(variables, x), rtol=1e-5, atol=5e-6)


def test_a_norm_of_something_else_is_left_alone():
    class Sum(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = Conv(4, name="conv")(x)
            return BatchNorm(1e-3, name="norm")(y + x, train=False)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, 9, 4)), jnp.float32)
    variables = jax.tree.map(jnp.asarray, filled(jax.eval_shape(Sum().init, jax.random.key(0), x)))
    with nn.intercept_methods(infer.folding(variables)):
        y = Sum().apply(variables, x)
    np.testing.assert_array_equal(y, Sum().apply(variables, x))


@pytest.mark.parametrize(
    ("variant", "left"),
    [("carnet_mobilenet", 0), ("erfnet", 3)],  # ERFNet's downsampling has a norm of a concatenation
)
def test_folding_leaves_no_norm_of_a_convolution_behind(variant, left):
    model, variables = network(variant)
    program = infer.program(model, variables, mean=MEAN, std=STD, output="scores")
    assert "rsqrt" in str(
        jax.make_jaxpr(lambda x: infer.scores(model, variables, x, mean=MEAN, std=STD))(frames())
    )
    assert str(jax.make_jaxpr(program)(frames())).count("rsqrt") == left


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    model, variables = network("eacnet_dabnet")
    program = infer.program(
        model, variables, mean=MEAN, std=STD, dtype=jnp.bfloat16, output="logits"
    )
    assert "bf16" in str(jax.make_jaxpr(program)(frames()))
    logits = np.asarray(jax.jit(program)(frames()))
    wanted = unfrozen(model, variables, frames())
    assert logits.dtype == np.float32
    assert np.abs(logits - wanted).max() < 0.1 * np.abs(wanted).max()


def test_parameters_of_training_alone_are_left_behind():
    """ERFNet's unused encoder head may hold anything."""
    model, variables = network("erfnet")
    broken = jax.tree_util.tree_map_with_path(
        lambda path, v: v * np.nan if path[1].key == "classifier" else v, variables
    )
    assert np.isnan(broken["params"]["classifier"]["kernel"]).all()
    frozen = infer.freeze(model, broken, frames().shape[:3], mean=MEAN, std=STD)
    assert len(np.unique(frozen(frames()))) > 1


@pytest.mark.parametrize("bad", [frames()[:, :64], frames().astype(np.float32)])
def test_other_frames_are_refused_with_one_line(bad):
    model, variables = network("fast_scnn")
    frozen = infer.freeze(model, variables, frames().shape[:3], mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=r"this program takes uint8 \(1, 65, 96, 3\)"):
        frozen(bad)


def test_unknown_output_is_refused():
    model, variables = network("fast_scnn")
    with pytest.raises(ValueError, match="unknown output 'mask'; choose classes, logits or scores"):
        infer.program(model, variables, mean=MEAN, std=STD, output="mask")


@pytest.mark.parametrize("output, dtype", [("classes", np.uint8), ("logits", np.float32)])
def test_frozen_program_compiles_ahead_of_time(output, dtype):
    model, variables = network("fast_scnn")
    options = {"mean": MEAN, "std": STD, "output": output}
    frozen = infer.freeze(model, variables, frames().shape[:3], **options)
    result = np.asarray(frozen(frames()))
    wanted = unfrozen(model, variables, frames())
    assert result.dtype == dtype
    if output == "classes":
        assert (result == wanted.argmax(-1)).mean() > 0.9999
    else:
        assert np.abs(result - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert frozen.compile_seconds > 0 and frozen.temporary_bytes > 65 * 96
