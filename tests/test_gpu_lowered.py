"""What a GPU is given, read from the program that is lowered for it: no GPU is needed for that."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from rtseg_jax import models
from rtseg_jax.base import config as settings
from rtseg_jax.base import mesh
from rtseg_jax.data import pipeline
from rtseg_jax.inference import program as infer
from rtseg_jax.models import flops
from rtseg_jax.train import loop, step
from tests.inference.test_infer import MEAN, STD, network
from tests.networks import COMPILED, others_slow

# Convolutions that add nothing: they have no bias, and no norm right behind them.
BARE = {
    **{"dabnet": 2, "eacnet_dabnet": 2, "eacnet_dabnet_nonlocal": 2, "spssnet": 16, "affnet": 13},
    **{"carnet_resnet50": 37, "carnet_mobilenet": 29, "ddrnet23_slim": 9, "pidnet_s": 6},
    **{"cgnet": 3, "espnet": 40, "enet": 2, "bisenetv2": 2, "stdc1": 3, "stdc2": 3},
}
# Products in float32's whole precision in a training step: of AFFNet and CARNet, adaptive_avg_pool's.
EXACT = {"eacnet:smoke": 0, "carnet:mobilenet,smoke": 0, "affnet:smoke": 16, "asap:smoke": 0}


def lowered(function, *arguments):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


LINE = re.compile(r"^\s*(%\w+)(?::\d+)? = \"?([\w.]+)\"?(.*) : (?:.*-> )?(tensor<[^>]+>)")
CASE = re.compile(r"^\s*(%\w+) = \"stablehlo.case\"")  # of platforms, of which one is left
RETURN = re.compile(r"^\s*stablehlo.return (%\w+) ")


def functions(text):
    """The operations of each function: name -> (operation, operands, type of the result).

    A choice among platforms, of which one is left, is the operations inside of it; their names are theirs alone.
    """
    for body in re.split(r"^\s*func\.func ", text, flags=re.M)[1:]:
        found, names, cases = {}, {}, []
        for number, line in enumerate(body.splitlines()):
            if match := CASE.match(line):
                cases.append(match[1])
            elif cases and (match := RETURN.match(line)):
                names[cases.pop()] = names.get(match[1], match[1])
            elif match := LINE.match(line):
                name, operation, rest, result = match.groups()
                operands = [names.get(operand, operand) for operand in re.findall(r"%\w+", rest)]
                names[name] = f"{name} in line {number}"
                found[names[name]] = operation, operands, result
        yield found


def convolutions(text):
    """For each convolution, whether its result goes straight into an addition of its own type, and that alone."""
    for operations in functions(text):
        users = collections.defaultdict(list)
        for operation, operands, result in operations.values():
            for operand in operands:
                users[operand].append((operation, result))
        for name, (operation, _, result) in operations.items():
            if operation == "stablehlo.convolution":
                yield users[name] == [("stablehlo.add", result)]


@functools.cache
def frozen(variant):
    model, variables = network(variant)
    program = infer.program(model, variables, mean=MEAN, std=STD, dtype=jnp.bfloat16)
    return lowered(program, jax.ShapeDtypeStruct((1, 72, 136, 3), jnp.uint8))


@pytest.mark.parametrize("variant", others_slow(COMPILED))
def test_a_bias_is_added_in_the_type_of_its_convolution(variant):
    """Then cuDNN adds it inside, with the ReLU and the residual behind it."""
    found = list(convolutions(frozen(variant)))
    assert len(found) > 20 and len(found) - sum(found) == BARE.get(variant, 0)


def test_what_the_test_before_looks_for_can_be_missing():
    def before(x, kernel, bias):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return (y.astype(jnp.float32) + bias).astype(y.dtype)

    shapes = ((1, 8, 8, 4), jnp.bfloat16), ((3, 3, 4, 4), jnp.bfloat16), ((1, 1, 1, 4), jnp.float32)
    text = lowered(before, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    assert list(convolutions(text)) == [False]


@pytest.mark.parametrize("variant", ["eacnet_dabnet", "erfnet", "asap"])
def test_scores_are_never_stored_for_each_class_at_the_frames_size(variant):
    """Each class is interpolated where it is compared; only ERFNet's own logits have the frame's size."""
    stored = re.findall(r"tensor<(?:\d+x)*?(?:11x72x136|72x136x11)xf32>", frozen(variant))
    assert len(set(stored)) == (variant == "erfnet")


@pytest.mark.parametrize("name", EXACT)
def test_a_training_step_has_no_product_in_whole_precision(name):
    config = settings.load(name)
    with config.unlocked():
        config.dtype = "bfloat16"
    model = models.create(config.model.name, num_classes=19, **settings.model_options(config))
    shapes = flops.variable_shapes(model)
    tx, schedule = loop.make_optimizer(config, shapes["params"], 10, 5)
    devices = mesh.make_mesh(jax.devices()[:1])
    crop = tuple(config.augment.crop)
    jitted = loop.make_train_step(config, devices, model, tx, schedule, pipeline.gather, crop)
    state = jax.eval_shape(functools.partial(step.create_state, tx=tx, ema=False), shapes)
    frames = jax.ShapeDtypeStruct((8, *crop, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((8, *crop), jnp.uint8)
    indices = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    traced = jitted.trace(state, {"images": (frames,), "labels": (labels,)}, indices)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("precision = [HIGHEST") == EXACT[name]
