"""AFFNet's options to the parameter, its blocks against their equations, its fusions against torch, its losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filling import filled

from rtseg_jax import models, torch_ref
from rtseg_jax.base import config as settings
from rtseg_jax.models import affnet
from rtseg_jax.models.zoo import fast_scnn
from rtseg_jax.nn import losses
from rtseg_jax.torch_ref import affnet as torch_affnet
from rtseg_jax.torch_ref import fast_scnn as torch_fast_scnn
from rtseg_jax.weights import torch_files
from tests import torch_losses

torch = pytest.importorskip("torch")


def shapes(module, *inputs, **arguments):
    init = functools.partial(module.init, **arguments)
    key = jax.random.key(0)
    return jax.eval_shape(init, {"params": key, "dropout": key}, *inputs)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


# The first four and "fpn_pan" are the rows of Tables I and II; with "add" the last 1x1 (33,024) is gone.
COUNTS = [
    ("affnet", {}, 1615346),
    ("affnet", {"fusion": "ewa_concat"}, 1615346),
    ("affnet", {"fusion": "ewa"}, 1403378),
    ("affnet", {"fusion": "concat"}, 1681138),
    ("affnet", {"fusion": "fpn_pan"}, 1546226),
    ("affnet", {"final": "add"}, 1582322),
    ("affnet", {"fusion": "ewa_concat", "final": "add"}, 1582322),
    ("affnet", {"fusion": "ewa", "final": "add"}, 1370354),
    ("affnet", {"fusion": "concat", "final": "add"}, 1648114),
    ("affnet", {"deep": "text"}, 1745778),
    ("affnet", {"cbam_reduction": 8}, 1619570),
    ("affnet", {"attention_residual": True}, 1615346),
    ("affnet", {"groups": 2}, 1614706),
    ("affnet", {"downsample": "fast_scnn"}, 1619915),
    ("fast_scnn", {}, 1138051),
    ("spssnet", {}, 1418499),
]


@pytest.mark.parametrize(("variant", "options", "expected"), COUNTS)
def test_parameters_of_every_option(variant, options, expected):
    model = models.create(variant, num_classes=19, **options)
    assert count(shapes(model, jnp.zeros((1, 64, 64, 3)), train=True)["params"]) == expected
    with torch.device("meta"):
        twin = torch_ref.create(variant, 19, **options)
    assert sum(p.numel() for p in twin.parameters()) == expected


def test_parameters_of_the_parts():
    image = jnp.zeros((1, 64, 64, 3))
    parts = shapes(affnet.AFFNet(19), image, train=True)["params"]
    trunk = parts["backbone"]
    assert count(trunk["downsample"]["initial"]) == 383
    assert count(trunk["downsample"]["shuffle1"]) == 392
    assert count(trunk["downsample"]["shuffle2"]) == 1296
    units = [sum(count(v) for k, v in trunk.items() if k.startswith(f"unit{u}")) for u in (1, 2, 3)]
    assert units == [162816, 303168, 550464]
    assert count(trunk["pyramid"]) == 49664
    fusion = parts["fusion"]
    assert sum(count(v) for k, v in fusion.items() if k.startswith("attention_")) == 405760
    assert sum(count(fusion[f"attention{i}"]) for i in (1, 2, 3, 4)) == 4296
    assert sum(count(v) for k, v in fusion.items() if k.startswith("pooling")) == 46080
    assert count(fusion["merge"]) == 33024
    assert count(parts["classifier"]) == 58003
    parts = shapes(fast_scnn.FastSCNN(19), image, train=True)["params"]
    assert count(parts["backbone"]["downsample"]) == 6640
    assert count(parts["fusion"]) == 26752
    assert count(parts["classifier"]) == 38547
    # Table V's 1.11 M: without the scales and offsets of BatchNorm.
    norms = [p for p, _ in jax.tree_util.tree_leaves_with_path(parts) if p[-2].key == "norm"]
    sizes = {jax.tree_util.keystr(p): x.size for p, x in jax.tree_util.tree_leaves_with_path(parts)}
    assert sum(sizes.values()) - sum(sizes[jax.tree_util.keystr(p)] for p in norms) == 1114371


@pytest.mark.parametrize("downsample", fast_scnn.DOWNSAMPLES)
@pytest.mark.parametrize("deep", fast_scnn.DEEP)
@pytest.mark.parametrize("size", [(880, 880), (65, 97)])
def test_features(downsample, deep, size):
    trunk = fast_scnn.FastSCNNBackbone(downsample, deep=deep)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    features, _ = jax.eval_shape(
        functools.partial(trunk.init_with_output, train=True), jax.random.key(0), image
    )
    third = 128 if deep == "text" else 96
    for stride, channels in {8: (64,), 16: (64,), 32: (third, 128)}.items():
        want = [(2, *(-(-n // stride) for n in size), c) for c in channels]
        assert [x.shape for x in features[stride]] == want


@pytest.mark.parametrize("residual", [False, True])
def test_attention_is_its_equations(residual):
    """Eqs. 1 and 2."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 5, 6)).astype(np.float32)
    module = affnet.ConvolutionalBlockAttention(reduction=3, residual=residual)
    variables = filled(shapes(module, jnp.asarray(x)))
    hidden, output, spatial = (variables["params"][m]["kernel"] for m in variables["params"])
    assert [k.shape for k in (hidden, output, spatial)] == [
        (1, 1, 6, 2),
        (1, 1, 2, 6),
        (3, 3, 2, 1),
    ]

    def mlp(y):
        return np.maximum(y @ hidden[0, 0], 0) @ output[0, 0]

    def sigmoid(y):
        return 1 / (1 + np.exp(-y))

    y = x * sigmoid(mlp(x.mean((1, 2))) + mlp(x.max((1, 2))))[:, None, None, :]
    maps = np.pad(np.stack([y.mean(3), y.max(3)], 3), ((0, 0), (1, 1), (1, 1), (0, 0)))
    score = sum(maps[:, i : i + 4, j : j + 5] @ spatial[i, j] for i in range(3) for j in range(3))
    want = y * sigmoid(score) + residual * x
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), want, rtol=1e-5, atol=1e-6)


def test_channel_shuffle():
    x = jnp.arange(6.0).reshape(1, 1, 1, 6)
    assert fast_scnn.channel_shuffle(x, 1).ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert fast_scnn.channel_shuffle(x, 2).ravel().tolist() == [0, 3, 1, 4, 2, 5]
    assert fast_scnn.channel_shuffle(x, 3).ravel().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("groups", [1, 2])
def test_shufflenet_unit_is_its_figure(groups):
    """Fig. 2c of ShuffleNet on an odd map: 1x1, shuffle, depth-wise 3x3 with stride 2, 1x1; average pool; concat."""
    x = np.random.default_rng(1).normal(size=(1, 5, 6, 8)).astype(np.float32)
    module = fast_scnn.ShuffleNetUnit(24, groups)
    variables = filled(shapes(module, jnp.asarray(x), train=False))

    def norm(name, y):
        p, s = variables["params"][name]["norm"], variables["batch_stats"][name]["norm"]
        return (y - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def pointwise(name, y):
        kernel = variables["params"][name]["conv"]["kernel"][0, 0]
        parts = zip(np.split(y, groups, -1), np.split(kernel, groups, -1), strict=True)
        return norm(name, np.concatenate([a @ b for a, b in parts], -1))

    def windows(y):  # the nine shifted views with stride 2
        y = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return [y[:, i : i + 5 : 2, j : j + 6 : 2] for i in range(3) for j in range(3)]

    y = np.maximum(pointwise("reduce", x), 0)
    y = y[..., [0, 3, 1, 4, 2, 5]] if groups == 2 else y
    taps = variables["params"]["depthwise"]["conv"]["kernel"].reshape(9, -1)
    y = norm("depthwise", sum(w * k for w, k in zip(windows(y), taps, strict=True)))
    y = np.concatenate([pointwise("expand", y), sum(windows(x)) / 9], -1)
    got = jax.jit(functools.partial(module.apply, train=False))(variables, x)
    np.testing.assert_allclose(got, np.maximum(y, 0), rtol=1e-5, atol=1e-5)


def test_spatial_pyramid_pooling():
    """On a map that is constant every bin sees that constant."""
    module = fast_scnn.SpatialPyramidPooling()
    x = np.broadcast_to(np.float32([1, -2, 3, 0.5]), (1, 5, 7, 4))
    variables = filled(shapes(module, jnp.asarray(x), train=False))

    def conv(name, y):
        p, s = variables["params"][name], variables["batch_stats"][name]["norm"]
        y = (y @ p["conv"]["kernel"][0, 0] - s["mean"]) / np.sqrt(s["var"] + 1e-5)
        return np.maximum(y * p["norm"]["scale"] + p["norm"]["bias"], 0)

    pools = [conv(f"pool{n}", x) for n in (1, 2, 3, 6)]
    want = conv("project", np.concatenate([x, *pools], -1))
    got = jax.jit(functools.partial(module.apply, train=False))(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def assert_twins(module, inputs, twin, nested):
    """The Flax module and the torch one give the same for the same variables."""
    arguments = {"train": False}
    variables = filled(shapes(module, *inputs, train=True), seed=2)
    ours = jax.jit(functools.partial(module.apply, **arguments))(variables, *inputs)
    state = {k: torch.from_numpy(v) for k, v in torch_files.to_torch(variables).items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing)
    theirs_in = [torch.from_numpy(x.transpose(0, 3, 1, 2)) for x in jax.tree.leaves(inputs)]
    with torch.inference_mode():
        theirs = twin.eval()(theirs_in if nested else theirs_in[0])
    theirs = theirs if isinstance(theirs, tuple) else (theirs,)
    for a, b in zip(jax.tree.leaves(ours), theirs, strict=True):
        assert np.ptp(b.numpy()) > 0.5
        np.testing.assert_allclose(a, b.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-5)


CHANNELS = (64, 64, 96, 128)


def maps(seed=3):
    """Four maps as an image of 65x97 gives them."""
    rng = np.random.default_rng(seed)
    sizes = ((9, 13), (5, 7), (3, 4), (3, 4))
    return tuple(
        rng.normal(size=(1, *size, c)).astype(np.float32)
        for size, c in zip(sizes, CHANNELS, strict=True)
    )


@pytest.mark.parametrize(
    ("fusion", "final", "residual", "reduction"),
    [
        ("concat_ewa", "concat", False, 16),
        ("concat_ewa", "add", True, 8),
        ("ewa_concat", "concat", False, 16),
        ("ewa", "concat", False, 16),
        ("concat", "concat", False, 16),
    ],
)
def test_fusions_equal_their_twins(fusion, final, residual, reduction):
    options = (fusion, final, residual, reduction)
    ours = affnet.AttentionFeatureFusion(*options)
    assert_twins(ours, (maps(),), torch_affnet.AttentionFeatureFusion(CHANNELS, *options), True)


def test_pyramid_fusion_equals_its_twin():
    twin = torch_affnet.PyramidFeatureFusion(CHANNELS, True, 16)
    assert_twins(affnet.PyramidFeatureFusion(True, 16), (maps(),), twin, True)


@pytest.mark.parametrize("options", [("lightweight", 2, "text"), ("fast_scnn", 1, "paper-table")])
def test_trunks_equal_their_twins(options):
    image = np.random.default_rng(4).normal(size=(1, 65, 97, 3)).astype(np.float32)
    twin = torch_fast_scnn.FastSCNNBackbone(*options)
    assert_twins(fast_scnn.FastSCNNBackbone(*options), (image,), twin, False)


def test_dropout_is_off_in_inference():
    x = jnp.ones((1, 4, 4, 128))
    head = fast_scnn.Classifier(3, (1, 1), dropout=0.5)
    variables = filled(shapes(head, x, train=True))

    @functools.partial(jax.jit, static_argnames="train")
    def apply(variables, key, train):
        return head.apply(
            variables, x, train=train, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]

    for train in (True, False):
        one, other = (apply(variables, key, train) for key in jax.random.split(jax.random.key(0)))
        assert np.array_equal(one, other) != train


CITYSCAPES = {"pixel_counts": settings.load("affnet").loss.pixel_counts}
OPTIONS = {**CITYSCAPES, "offset": 1.02, "ce_weight": 0.5}
IDENTITY = 3 * np.eye(19, dtype=np.float32)


@pytest.mark.parametrize(
    ("logits", "label", "expected"),
    [
        (0 * IDENTITY, np.arange(19), (1.845053, 2.944439, 3.317272)),
        (0 * IDENTITY, np.append(np.arange(18), 255), (1.805118, 2.944439, 3.277338)),
        (IDENTITY, np.arange(19), (0.349092, 0.639835, 0.669009)),
        (IDENTITY, np.zeros(19), (0.207278, 3.481940, 1.948248)),
    ],
)
def test_literal_loss(logits, label, expected):
    outputs = {"logits": jnp.asarray(logits).reshape(1, 1, 19, 19)}
    batch = {"label": jnp.asarray(label, jnp.int32).reshape(1, 1, 19)}
    value, terms = jax.jit(functools.partial(affnet.loss, **OPTIONS))(outputs, batch)
    assert set(terms) == {"loss", "owfl", "cel"} and terms["loss"] == value
    got = [terms[k] for k in ("owfl", "cel", "loss")]
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)


def test_weights_besides_owfls_are_refused():
    outputs = {"logits": jnp.zeros((1, 1, 19, 19))}
    batch = {"label": jnp.zeros((1, 1, 19), jnp.int32)}
    with pytest.raises(ValueError, match="class_weights=.* are not for kind 'owfl'"):
        affnet.loss(outputs, batch, **OPTIONS, class_weights=(1.0,) * 19)


def scores(classes):
    rng = np.random.default_rng(5)
    label = rng.integers(0, classes, (2, 17, 23))
    label = np.where(rng.random(label.shape) < 0.2, 255, label).astype(np.int32)
    logits = rng.normal(size=(2, 3, 4, classes)).astype(np.float32)
    planes = torch_ref.upsample(torch.from_numpy(logits.transpose(0, 3, 1, 2)), (17, 23))
    return {"logits": jnp.asarray(logits)}, jnp.asarray(label), planes


def test_loss_is_upsampled_as_in_torch():
    outputs, label, planes = scores(3)
    options = {"pixel_counts": (1000, 20, 3), "offset": 1.1, "ce_weight": 0.25}
    loss = jax.jit(functools.partial(affnet.loss, **options))
    value, terms = loss(outputs, {"label": label})
    f = np.array([1000, 20, 3]) / 1023
    w = 1 / np.log(f + 1.1)
    truth = torch.tensor(np.asarray(label))
    owfl = torch_losses.object_weighted_focal_loss(
        planes, truth, torch.tensor(w / w.max()), torch.tensor([2, 0, 0])
    )
    cel = torch_losses.cross_entropy(planes, truth)
    np.testing.assert_allclose(terms["owfl"], owfl, rtol=1e-5)
    np.testing.assert_allclose(terms["cel"], cel, rtol=1e-5)
    np.testing.assert_allclose(value, owfl + 0.25 * cel, rtol=1e-5)


def test_loss_of_the_baselines():
    outputs, label, planes = scores(3)
    weights = (0.5, 1.0, 2.0)
    options = {"class_weights": weights, "threshold": 0.3, "min_kept": 0.5}
    truth, torch_weights = torch.tensor(np.asarray(label)), torch.tensor(weights)
    for kind, expected in (
        ("cross_entropy", torch_losses.cross_entropy(planes, truth, torch_weights)),
        (
            "ohem",
            torch_losses.ohem_cross_entropy(
                planes, truth, torch_weights, threshold=0.3, min_kept=0.5
            ),
        ),
    ):
        loss = jax.jit(functools.partial(losses.segmentation_loss, kind=kind, **options))
        value, terms = loss(outputs, {"label": label})
        assert list(terms) == ["loss"]
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        of_affnet = {"pixel_counts": (3, 2, 1), "offset": 1.1, "ce_weight": 0.25}
        same, _ = affnet.loss(outputs, {"label": label}, kind=kind, **of_affnet, **options)
        np.testing.assert_allclose(same, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="unknown loss 'focal'; choose 'cross_entropy' or 'ohem'"):
        losses.segmentation_loss(outputs, {"label": label}, kind="focal", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "sum"}, "unknown fusion 'sum'; choose one of concat_ewa, .*fpn_pan"),
        ({"final": "ewa"}, "unknown final 'ewa'; choose 'concat' or 'add'"),
        ({"fusion": "fpn_pan", "final": "add"}, "fusion 'fpn_pan' has one"),
        ({"cbam_reduction": 0}, "cbam_reduction 0 must lie in 1-64"),
        ({"downsample": "enet"}, "unknown downsample 'enet'; choose one of fast_scnn, lightweight"),
        ({"deep": "figure"}, "unknown deep 'figure'; choose one of paper-table, text"),
        ({"groups": 3}, "3 groups do not divide 8 channels; choose 1, 2, 4 or 8"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        models.create("affnet", num_classes=19, **options)


def test_config():
    """Section IV and the readings, literally."""
    config = settings.load("affnet")
    # All pixels of the 2975 labels, but the void ones.
    assert sum(config.loss.pixel_counts) == 2975 * 1024 * 2048 - 715747311
    assert (config.loss.offset, config.loss.ce_weight) == (1.02, 0.5)
    assert (config.batch_size, config.num_epochs, config.optim.lr) == (10, 150, 5e-4)
    assert (config.optim.method.name, config.optim.method.weight_decay) == ("adam", 1e-4)
    assert not config.init_from.required
    patches = settings.load("affnet:patches")
    assert (patches.input.patches, patches.optim.lr) == ((2, 4, 880, 880), 5e-4)
    finetune = settings.load("affnet:finetune")
    assert (finetune.optim.lr, finetune.init_from.required) == (2e-4, True)
    assert not finetune.input.get("patches")
    with pytest.raises(ValueError, match="the stage patches is of cityscapes alone"):
        settings.load("affnet:camvid,patches")
    for spec, classes in (("camvid", 11), ("streets", 19), ("camvid,smoke", 19)):
        assert len(settings.load(f"affnet:{spec}").loss.pixel_counts) == classes
