"""Multiply-adds: literal figures, arithmetic by hand, and what must not be counted."""

import math

import flax.linen as nn
import jax.numpy as jnp
import pytest

from rtseg_jax import models
from rtseg_jax.models import flops
from rtseg_jax.models.zoo.mobilenet import MobileNetV2
from rtseg_jax.models.zoo.resnet import ResNet
from rtseg_jax.nn.attention import dot_product_attention
from rtseg_jax.nn.conv import Conv, ConvTranspose, DepthwiseConv

# Of one image of 512x1024, 19 classes: convolutions alone, and an attention's two products. CARNet without the
# semantic vectors, which only its loss needs: 4 (128 128 + 128 19) multiply-adds.
MACS = {
    "erfnet": (26_604_339_200, 0),
    "erfnet_encoder": (21_532_377_088, 0),
    "eacnet_erfnet": (21_536_813_056, 2 * 8192 * 2048 * 19),
    "eacnet_erfnet_nonlocal": (21_541_249_024, 2 * 8192 * 8192 * 19),
    "dabnet": (10_220_380_160, 0),
    "eacnet_dabnet": (10_224_816_128, 2 * 8192 * 2048 * 19),
    "eacnet_dabnet_nonlocal": (10_229_252_096, 2 * 8192 * 8192 * 19),
    "carnet_resnet50": (64_039_387_136, 0),
    "carnet_resnet101": (102_828_310_528, 0),
    "carnet_resnet152": (141_617_233_920, 0),
    "carnet_mobilenet": (17_017_282_560, 0),
    "asap": (24_354_226_176, 5_242_880),
    "affnet": (5_205_055_744, 0),
    "fast_scnn": (1_677_565_952, 0),
    "spssnet": (2_303_565_824, 0),
    "ddrnet23_slim": (9_070_379_008, 0),
    "pidnet_s": (11_798_593_536, 0),
    "cgnet": (6_762_312_704, 0),
    "espnet": (4_603_043_840, 0),
    "enet": (4_037_410_816, 0),
    "bisenetv2": (24_603_312_128, 0),
    "stdc1": (16_863_133_696, 0),
    "stdc2": (23_456_579_584, 0),
}


@pytest.mark.parametrize("variant", MACS)
def test_networks(variant):
    calls = flops.trace(models.create(variant, num_classes=19), (512, 1024))
    products = sum(c.macs for c in calls if c.kind == "dot_product_attention")
    assert (sum(c.macs for c in calls) - products, products) == MACS[variant]


def test_what_only_the_loss_needs():
    model = models.create("carnet_mobilenet", num_classes=19)
    calls = flops.trace(model, (512, 1024), train=True)
    assert sum(c.macs for c in calls) - MACS["carnet_mobilenet"][0] == 4 * (128 * 128 + 128 * 19)
    # The three parts that the tool's figures consist of, Table 4 of CARNet.
    parts = {"backbone": 0, "pooling": 0, "refinement": 0}
    for path, count in flops.RULES["carnet"].by_path(calls).items():
        for part in parts:
            parts[part] += count if path.startswith(part) else 0
    assert parts == {
        "backbone": 3_414_523_904,
        "pooling": 174_080 * 65_536 + 5 * 43_520 * 256,
        "refinement": 512 * 43_520 + 4 * 512 + 4 * (131_072 + 128 * 19),
    }


def test_every_variant_has_its_figure():
    assert set(MACS) == set(models.VARIANTS)


class Zoo(nn.Module):
    """One layer of each kind, on a 9x13 image of 3 channels."""

    @nn.compact
    def __call__(self, image, *, train):
        x = Conv(4, (3, 3), strides=(2, 2), name="strided")(image)  # 5x7
        x = Conv(4, (3, 1), kernel_dilation=(2, 1), use_bias=False, name="tall")(x)
        x = DepthwiseConv(name="depthwise")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        shared = Conv(4, (1, 1), name="shared")
        x = shared(nn.relu(shared(x)))
        Conv(99, (3, 3), name="unused")(x)
        if train:
            x = x + Conv(4, (1, 1), name="auxiliary")(x)
        x = ConvTranspose(5, (3, 3), padding=1, output_padding=1, name="up")(x)  # 10x14
        tokens = nn.Dense(6, name="dense")(x.mean(1))  # 14 tokens
        tokens = dot_product_attention(tokens, tokens[:, :11], tokens[:, :11, :2], block_size=4)
        return {"logits": tokens}


def test_each_kind_of_layer():
    layers = flops.by_layer(flops.trace(Zoo(), (9, 13)))
    assert layers == {
        "strided": 5 * 7 * 9 * 3 * 4,
        "tall": 5 * 7 * 3 * 4 * 4,
        "depthwise": 5 * 7 * 9 * 4,
        "shared": 2 * 5 * 7 * 4 * 4,
        "up": 5 * 7 * 9 * 4 * 5,  # every input meets the whole kernel
        "dense": 14 * 5 * 6,
        "": 14 * 11 * (6 + 2),  # no padding to blocks of 4 queries
    }
    trained = flops.by_layer(flops.trace(Zoo(), (9, 13), train=True))
    assert trained.pop("auxiliary") == 5 * 7 * 4 * 4
    assert trained == layers


def test_by_layer():
    calls = flops.trace(models.create("eacnet_erfnet", num_classes=19), (64, 128))
    layers = flops.by_layer(calls)
    assert layers["backbone/down1/conv"] == 32 * 64 * 27 * 13
    assert layers["attention"] == 2 * 128 * 32 * 19
    top = flops.by_layer(calls, depth=1)
    assert list(top) == ["backbone", "classifier", "attention"]
    assert sum(top.values()) == sum(layers.values()) == sum(call.macs for call in calls)


def test_odd_sizes():
    """At 45x60 scores the attention's pool drops a row: 22x30 keys."""
    calls = flops.trace(models.create("eacnet_dabnet", num_classes=11), (360, 480))
    assert flops.by_layer(calls, depth=1)["attention"] == sum(
        (2 * 2700 * 660 * 11, 2700 * 121, 2 * 660 * 121)
    )


def test_what_no_rule_counts_is_refused():
    class Mixer(nn.Module):
        @nn.compact
        def __call__(self, image, *, train):
            return {"logits": image @ self.param("matrix", nn.initializers.ones, (3, 2))}

    with pytest.raises(ValueError, match=r"'matrix' \(3, 2\) is used, but no rule counts"):
        flops.trace(Mixer(), (8, 8))


def test_parameters():
    shapes = {"a": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)}, "b": jnp.zeros(())}
    assert flops.parameters(shapes) == {"a/bias": 4, "a/kernel": 72, "b": 1}
    assert flops.count_parameters(shapes) == 77


# The row BS of CARNet's Table 4 (43.243, 82.281, 121.379, 3.41 G), and plain multiply-adds.
@pytest.mark.parametrize(
    ("trunk", "macs", "operations"),
    [
        (ResNet(50), 42_706_403_328, 43_243_274_240),
        (ResNet(101), 81_495_326_720, 82_281_758_720),
        (ResNet(152), 120_284_250_112, 121_378_963_456),
        (MobileNetV2(), 3_053_912_064, 3_414_523_904),
        (MobileNetV2(expand_first=False), 2_919_694_336, 3_259_334_656),
    ],
)
def test_trunks(trunk, macs, operations):
    calls = flops.trace(trunk, (512, 1024))
    assert sum(call.macs for call in calls) == macs
    assert flops.RULES["carnet"].total(calls) == operations


def test_rules():
    conv = flops.Call("conv", "Conv", ((1, 4, 4, 2),), ((1, 4, 4, 8),), (3, 3, 2, 8), True)
    norm = flops.Call("norm", "BatchNorm", ((1, 4, 4, 8),), ((1, 4, 4, 8),))
    pool = flops.Call("unit", "ShuffleNetUnit", ((1, 8, 8, 2),), ((1, 4, 4, 8),))
    seen = flops.Call("a", "dot_product_attention", ((1, 4, 2), (1, 3, 2), (1, 3, 5)), ((1, 4, 5),))
    calls = [conv, norm, pool, seen]
    outputs = math.prod(conv.outputs[0])
    assert flops.Rule().total(calls) == outputs * 18
    assert flops.Rule(bias=1).total(calls) == outputs * 19
    assert flops.Rule(bias="channels").total(calls) == outputs * 20
    assert flops.Rule(norm=2).total(calls) == outputs * 18 + 2 * outputs
    assert flops.Rule(products=True).total(calls) == outputs * 18 + 4 * 3 * 7
    assert flops.RULES["affnet"].total(calls) == outputs * 18 + 2 * outputs + 16 * 2
