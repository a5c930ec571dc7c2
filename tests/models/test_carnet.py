"""CARNet's options to the parameter, its module against its equations, its networks against torch, its loss."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filling import filled

from rtseg_jax import models, torch_ref
from rtseg_jax.base import config as settings
from rtseg_jax.models import carnet, flops
from rtseg_jax.models.zoo import resnet
from rtseg_jax.nn.norm import BatchNorm
from rtseg_jax.torch_ref import resnet as torch_resnet
from rtseg_jax.train import optim
from rtseg_jax.weights import torch_files
from tests import torch_losses

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


# What each option takes from the whole network at 19 classes, or adds to it.
MOBILE, R50 = 3887699, 28640595
CRP, POST, MODULE = 4 * 256 * 256, 256 * 256, 131072 + 128 * 19
CLASSIFIER = 2305 * 19
COUNTS = [
    ("carnet_mobilenet", {}, MOBILE),
    ("carnet_mobilenet", {"crp": False}, MOBILE - 4 * CRP),
    ("carnet_mobilenet", {"num_modules": 3}, MOBILE - CRP - POST - MODULE - 24 * 256),
    (
        "carnet_mobilenet",
        {"num_modules": 2},
        1812800 + (480 + 160) * 256 + POST + 73728 + 2 * (MODULE + CRP) + CLASSIFIER,
    ),
    (
        "carnet_mobilenet",
        {"num_modules": 1, "global_hidden": 0, "expand_first": False},
        1811712 + 480 * 256 + 320 * 256 + MODULE + CRP + CLASSIFIER,
    ),
    ("carnet_mobilenet", {"num_modules": 0}, 1812800 + 480 * 256 + CLASSIFIER),
    (
        "carnet_mobilenet",
        {"hidden": 256, "attention_hidden": 64, "semantic_hidden": 32, "global_hidden": 16},
        MOBILE
        + 4 * (512 * 256 + 64 * (256 + 256) + 32 * (256 + 19) - MODULE)
        + (16 - 128) * (320 + 256),
    ),
    ("carnet_mobilenet", {"frozen_statistics": True, "dropout": 0.3}, MOBILE),
    ("carnet_resnet50", {"num_modules": 3}, R50 - CRP - POST - MODULE - 2 * 65536),
    ("carnet_resnet50", {"num_modules": 0}, 23508032 + (2048 + 256) * 1024 + CLASSIFIER),
]


@pytest.mark.parametrize(("variant", "options", "expected"), COUNTS)
def test_parameters_of_every_option(variant, options, expected):
    model = models.create(variant, num_classes=19, **options)
    assert flops.count_parameters(flops.variable_shapes(model)["params"]) == expected
    with torch.device("meta"):
        twin = torch_ref.create(variant, 19, **options)
    assert sum(p.numel() for p in twin.parameters()) == expected


@pytest.mark.parametrize(
    ("variant", "trunk", "adjust", "global_feature"),
    [
        ("carnet_mobilenet", 1812800, 178176, 73728),
        ("carnet_resnet50", 23508032, 3014656, 294912),
    ],
)
def test_parameters_of_the_parts(variant, trunk, adjust, global_feature):
    params = flops.variable_shapes(models.create(variant, num_classes=150))["params"]

    def of(prefix):
        return sum(flops.count_parameters(v) for k, v in params.items() if k.startswith(prefix))

    assert of("backbone") == trunk
    assert of("adjust") == adjust
    assert of("global_feature") == global_feature
    assert of("pooling") == 1048576
    assert of("post") == 196608
    assert of("refinement") == 4 * 150272
    assert of("classifier") == 2305 * 150


def test_parameters_of_resnets():
    """Without the classifier; the larger ones of ours are counted with their networks."""
    counts = {18: 11176512, 50: 23508032, 101: 42500160, 152: 58143808}
    for depth, count in counts.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in torch_resnet.ResNet(depth).parameters()) == count
    params = flops.variable_shapes(resnet.ResNet(18))["params"]
    assert flops.count_parameters(params) == counts[18]
    for trunk in (resnet.ResNet, torch_resnet.ResNet):
        with pytest.raises(ValueError, match="unknown ResNet depth 34; choose one of 18, 50"):
            trunk(34)


def test_multiply_adds():
    """Of one image of 512x1024, convolutions alone, the semantic branches included."""
    calls = flops.trace(models.create("carnet_mobilenet", num_classes=19), (512, 1024), train=True)
    parts = {}
    for call in calls:
        part = call.path.partition("/")[0].rstrip("1234")
        parts[part] = parts.get(part, 0) + call.macs
    assert {k: round(v / 1e9, 6) for k, v in parts.items() if v} == {
        "backbone": 3.053912,
        "adjust": 0.415236,
        "global_feature": 0.000074,
        "refinement": 0.000534,
        "post": 0.704643,
        "pooling": 11.408507,
        "classifier": 1.434452,
    }


@pytest.mark.parametrize(("modules", "size"), [(0, (3, 4)), (1, (3, 4)), (2, (5, 7)), (3, (9, 13))])
def test_shapes(modules, size):
    model = models.create("carnet_mobilenet", num_classes=7, num_modules=modules)
    variables = flops.variable_shapes(model)
    image = jax.ShapeDtypeStruct((2, 65, 97, 3), jnp.float32)
    outputs = jax.eval_shape(functools.partial(model.apply, train=False), variables, image)
    assert {k: v.shape for k, v in outputs.items()} == {"logits": (2, *size, 7)}
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"], rngs=KEYS)
    outputs, _ = jax.eval_shape(apply, variables, image)
    semantic = {"semantic": (2, modules, 7)} if modules else {}
    assert {k: v.shape for k, v in outputs.items()} == {"logits": (2, *size, 7), **semantic}
    assert {v.dtype for v in outputs.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_module_is_its_equations(size):
    """Eqs. 1, 2 and 6, with a map and with a vector from below."""
    rng = np.random.default_rng(0)
    low = rng.normal(size=(2, 3, 5, 6)).astype(np.float32)
    high = rng.normal(size=(2, *size, 6)).astype(np.float32)
    module = carnet.ContextualAttentionRefinement(4, 7, 8, 9)
    init = functools.partial(module.init, train=True)
    params = filled(jax.eval_shape(init, KEYS, low, high))["params"]
    w = params["context"]["kernel"][0, 0]
    w1, w2 = (conv["kernel"][0, 0] for conv in params["attention"].values())
    w3, w4 = (conv["kernel"][0, 0] for conv in params["semantic"].values())
    f2 = np.broadcast_to(high, low.shape)
    z = np.maximum(np.concatenate([low, f2], -1).mean((1, 2)) @ w, 0)
    sigma = 1 / (1 + np.exp(-(z @ w1 @ w2)))
    apply = jax.jit(module.apply, static_argnames="train")
    fused, semantic = apply({"params": params}, low, high, train=True)
    np.testing.assert_allclose(fused, sigma[:, None, None] * low + f2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(semantic, z @ w3 @ w4, rtol=1e-5, atol=1e-6)
    assert apply({"params": params}, low, high, train=False)[1] is None


def twins(variant, **options):
    model = models.create(variant, num_classes=5, **options)
    variables = filled(flops.variable_shapes(model))
    twin = torch_ref.create(variant, 5, **options)
    state = {k: torch.from_numpy(v) for k, v in torch_files.to_torch(variables).items()}
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected and all(k.endswith("num_batches_tracked") for k in missing)
    return model, variables, twin.eval()


def test_frozen_training_equals_torch():
    """Logits and semantic vectors under train. Dropout, random in both, is a factor of a half here."""
    model, variables, twin = twins("carnet_mobilenet", frozen_statistics=True, dropout=0.5)
    twin.double().train()
    semantic = []
    for k in range(1, 5):
        twin.get_submodule(f"refinement{k}").register_forward_hook(
            lambda _, __, outputs: semantic.append(outputs[1].detach().numpy())
        )
    twin.dropout.register_forward_hook(lambda _, inputs, __: inputs[0] / 2)

    def halve(call, args, kwargs, context):
        return args[0] / 2 if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)

    image = np.random.default_rng(2).normal(size=(2, 64, 96, 3)).astype(np.float32)
    with nn.intercept_methods(halve):
        apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        outputs, changed = jax.jit(apply)(variables, image)
    with torch.no_grad():
        theirs = twin(torch.from_numpy(image.transpose(0, 3, 1, 2)).double()).numpy()
    for ours, want in (
        (outputs["logits"], theirs.transpose(0, 2, 3, 1)),
        (outputs["semantic"], np.stack(semantic, axis=1)),
    ):
        np.testing.assert_allclose(ours, want, rtol=0, atol=3e-6 * np.ptp(want))
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], changed["batch_stats"])


@pytest.mark.parametrize("variant", ["carnet_mobilenet", "carnet_resnet50"])
@pytest.mark.parametrize(("train", "frozen"), [(True, False), (True, True), (False, False)])
def test_what_training_means_to_norms_and_dropout(variant, train, frozen):
    model = models.create(variant, num_classes=3, frozen_statistics=frozen, dropout=0.5)
    modes, dropped = set(), []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, BatchNorm):
            modes.add(kwargs["train"])
        if isinstance(context.module, nn.Dropout):
            dropped.append((args[0].shape[1:], context.module.deterministic))
        return call(*args, **kwargs)

    init = functools.partial(model.init_with_output, train=train)
    with nn.intercept_methods(watch):
        jax.eval_shape(init, KEYS, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    assert modes == {train and not frozen}
    deepest = {
        "carnet_mobilenet": [(2, 2, 160), (2, 2, 320), (4, 4, 64), (4, 4, 96)],
        "carnet_resnet50": [(2, 2, 2048), (4, 4, 1024)],
    }
    assert dropped == [(shape, not train) for shape in deepest[variant]]


OPTIONS = {"semantic_weight": 0.2, "semantic_terms": 4, "semantic": "bce", "reduction": "mean"}


def loss_of(outputs, label, **options):
    call = functools.partial(carnet.loss, **{**OPTIONS, **options})
    return jax.jit(call)(outputs, {"label": label})


def test_presence():
    label = jnp.asarray([[[0, 2], [2, 255]], [[255, 255], [255, 255]], [[3, 3], [1, 0]]])
    want = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]]
    assert carnet.presence(label, 4).tolist() == want


# Four classes of equal score, of which classes 0 and 2 are there; four modules with the same vector.
@pytest.mark.parametrize(
    ("vector", "options", "context"),
    [
        ((0, 0, 0, 0), {}, 4 * 0.693147),
        ((0, 0, 0, 0), {"reduction": "sum"}, 16 * 0.693147),
        ((0, 0, 0, 0), {"semantic": "paper", "reduction": "sum"}, 8 * 0.693147),
        ((0, 0, 0, 0), {"semantic_terms": 1}, 0.693147),
        ((1, 2, 3, 4), {}, 6.506927),
        ((1, 2, 3, 4), {"semantic": "paper"}, 0.361849),
        ((1, 2, 3, 4), {"semantic": "paper", "reduction": "sum", "semantic_terms": 3}, 1.085547),
        ((90, -90, 90, -90), {"reduction": "sum"}, 0.0),
        ((-90, 90, 90, -90), {"reduction": "sum"}, 720.0),
    ],
)
def test_literal_loss(vector, options, context):
    vector = jnp.asarray(vector, jnp.float32)
    outputs = {
        "logits": jnp.zeros((1, 1, 2, 4)),
        "semantic": jnp.broadcast_to(vector, (1, 4, 4)),
    }
    value, terms = loss_of(outputs, jnp.asarray([[[0, 2, 255, 0]]]), **options)
    assert set(terms) == {"loss", "cross_entropy", "semantic_context"} and terms["loss"] == value
    np.testing.assert_allclose(terms["cross_entropy"], 1.386294, rtol=0, atol=1e-6)
    np.testing.assert_allclose(terms["semantic_context"], context, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(value, 1.386294 + 0.2 * context, rtol=1e-6, atol=2e-6)


def scores():
    rng = np.random.default_rng(5)
    label = rng.integers(0, 3, (3, 17, 23))  # of six classes
    label[0, :, :4], label[1] = 5, 255
    label[2, 3:] = 255
    logits = rng.normal(size=(3, 5, 6, 6)).astype(np.float32)
    semantic = 3 * rng.normal(size=(3, 4, 6)).astype(np.float32)
    return {"logits": jnp.asarray(logits), "semantic": jnp.asarray(semantic)}, label


@pytest.mark.parametrize("semantic", carnet.SEMANTICS)
@pytest.mark.parametrize("reduction", carnet.REDUCTIONS)
def test_loss_equals_torch(semantic, reduction):
    """The second image has no label: it has no part in either term, nor in the gradient."""
    outputs, label = scores()
    options = {"semantic": semantic, "reduction": reduction, "semantic_weight": 0.3}
    value, terms = loss_of(outputs, jnp.asarray(label, jnp.int32), **options)

    planes = torch.from_numpy(np.array(outputs["logits"])).permute(0, 3, 1, 2)
    entropy = torch_losses.cross_entropy(
        torch_ref.upsample(planes, (17, 23)), torch.from_numpy(label)
    )
    vectors = torch.tensor(np.array(outputs["semantic"]), requires_grad=True)
    context = 0
    for i in (0, 2):
        v = torch.tensor([float(c in label[i]) for c in range(6)]).expand(4, 6)
        if semantic == "bce":
            each = F.binary_cross_entropy_with_logits(vectors[i], v, reduction="none")
        else:
            each = -v * F.logsigmoid(vectors[i])
        context = context + getattr(each, reduction)(dim=1).sum() / 2
    expected = entropy + 0.3 * context
    expected.backward()
    np.testing.assert_allclose(terms["semantic_context"], context.item(), rtol=1e-5)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)

    def objective(semantic):
        return loss_of({**outputs, "semantic": semantic}, jnp.asarray(label, jnp.int32), **options)[
            0
        ]

    gradient = jax.grad(objective)(outputs["semantic"])
    np.testing.assert_allclose(gradient, vectors.grad.numpy(), rtol=1e-4, atol=1e-7)
    assert not np.any(gradient[1]) and np.any(gradient[0])


def test_loss_without_semantic_terms():
    outputs, label = scores()
    label = jnp.asarray(label, jnp.int32)
    value, terms = loss_of({"logits": outputs["logits"]}, label, semantic_terms=0)
    assert list(terms) == ["loss"] and value == loss_of(outputs, label)[1]["cross_entropy"]
    nothing = loss_of(outputs, jnp.full_like(label, 255))[0]
    assert nothing == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"semantic": "softmax"}, "unknown semantic 'softmax'; choose 'bce' or 'paper'"),
        ({"reduction": "max"}, "unknown reduction 'max'; choose 'mean' or 'sum'"),
        ({"semantic_terms": 5}, "semantic_terms 5 must lie in 0-4"),
        ({"semantic_terms": -1}, "semantic_terms -1 must lie in 0-4"),
    ],
)
def test_wrong_loss_options(options, message):
    outputs, label = scores()
    with pytest.raises(ValueError, match=message):
        carnet.loss(outputs, {"label": jnp.asarray(label, jnp.int32)}, **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backbone": "resnet18"},
            "unknown backbone 'resnet18'; choose one of resnet50, .*mobilenet",
        ),
        ({"num_modules": 5}, "num_modules 5 must lie in 0-4"),
        ({"hidden": 0}, "hidden 0 must be at least 1"),
        ({"semantic_hidden": -3}, "semantic_hidden -3 must be at least 1"),
        ({"global_hidden": -1}, "global_hidden -1 must be at least 0"),
        ({"dropout": 1.0}, r"dropout 1.0 must lie in \[0, 1\)"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        models.create("carnet_mobilenet", num_classes=19, **options)


def test_config():
    """Section IV-A and the readings, literally."""
    for dataset, lr, decay, crop in (
        ("nyuv2", 5e-3, 0.5, (500, 500)),
        ("ade20k", 1e-2, 0.2, (580, 580)),
        ("cityscapes", 1e-2, 0.2, (800, 800)),
        ("camvid", 5e-3, 0.5, (360, 480)),
    ):
        config = settings.load(f"carnet:resnet50,{dataset}")
        assert (config.model.name, config.input.dataset) == ("carnet_resnet50", dataset)
        schedule, method = config.optim.schedule, config.optim.method
        assert (config.optim.lr, schedule.decay, config.augment.crop) == (lr, decay, crop)
        assert (schedule.kind, schedule.every_epochs, config.num_epochs) == ("step", 100, 300)
        assert (method.name, method.momentum, method.weight_decay) == ("sgd", 0.9, 1e-5)
        assert method.groups == ((r"^backbone/", 0.1, 1.0),)
        assert (config.batch_size, config.augment.scale_range) == (6, (0.5, 2.0))
        assert not config.model.options.frozen_statistics and not config.init_from.required
    assert settings.load("carnet").model.name == "carnet_mobilenet"
    assert settings.load("carnet:cityscapes").eval.size == (512, 1024)


def test_rates_of_trunk_and_decoder():
    """On NYUDv2 5e-4, 2.5e-4, 1.25e-4 for the trunk, ten times that for the rest; weight decay acts on all."""
    config = settings.load("carnet:mobilenet,nyuv2")
    schedule = optim.make_schedule(
        lr=config.optim.lr, total_steps=39600, steps_per_epoch=132, **config.optim.schedule
    )
    rates = [float(schedule(step)) for step in (0, 13199, 13200, 26400)]
    np.testing.assert_allclose(rates, [5e-3, 5e-3, 2.5e-3, 1.25e-3], rtol=1e-6)
    model = models.create("carnet_mobilenet", num_classes=3, num_modules=1)
    params = flops.variable_shapes(model)["params"]
    lr, decay = optim.group_factors(params, config.optim.method.groups)
    assert {k: set(jax.tree.leaves(v)) for k, v in lr.items()} == {
        k: {0.1 if k == "backbone" else 1.0} for k in params
    }
    assert set(jax.tree.leaves(decay)) == {1.0}


@pytest.mark.parametrize("row", ["carnet", "scloss", "carmodule", "bs"])
@pytest.mark.parametrize("backbone", ["mobilenet", "resnet50"])
def test_rows_of_table_5(row, backbone):
    config = settings.load(f"carnet:{backbone},{row},pretrained,streets")
    model = models.create(config.model.name, num_classes=4, **settings.model_options(config))
    assert model.frozen_statistics and config.init_from.required
    assert model.expand_first == (backbone != "mobilenet")
    assert model.dropout == (0.0 if backbone == "mobilenet" else 0.5)
    assert (model.num_modules, model.crp) == {
        "carnet": (4, True),
        "scloss": (4, False),
        "carmodule": (4, False),
        "bs": (0, False),
    }[row]
    semantic = {"semantic": jnp.zeros((1, 4, 4))} if model.num_modules else {}
    outputs = {"logits": jnp.zeros((1, 2, 2, 4)), **semantic}
    value, terms = carnet.loss(outputs, {"label": jnp.zeros((1, 8, 8), jnp.int32)}, **config.loss)
    assert ("semantic_context" in terms) == (row in ("carnet", "scloss"))
    assert np.isfinite(value)
