"""Every network equals its plain PyTorch twin: logits, gradients, running statistics, counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counts import PARAMETERS, STRIDE

from rtseg_jax import models, torch_ref
from rtseg_jax.models import eacnet
from rtseg_jax.nn import losses
from rtseg_jax.weights import torch_files
from tests import torch_losses
from tests.networks import shapes

torch = pytest.importorskip("torch")


CLASSES = 19

# 145x161 is odd at every scale: 73x81, 37x41, 19x21. Each pool beside a stride-2 convolution meets
# an odd size, the attention's pool drops a row and a column, and ERFNet's decoder overshoots by 7.
# The map at stride 8 is larger than the greatest dilation (16), so its outer taps read the map.
ODD, EVEN = (145, 161), (64, 128)
# One network of each paper sees an even size, too.
SIZES = dict.fromkeys(("eacnet_dabnet", "carnet_mobilenet", "affnet", "asap"), (EVEN, ODD))


def fill(template, seed):
    """Variables in which nothing is at its neutral value: no scale of 1, no mean of 0, no alpha of 0."""
    rng = np.random.default_rng(seed)

    def leaf(path, like):
        name, shape = path[-1].key, like.shape
        if name == "kernel":
            value = rng.normal(size=shape) * np.sqrt(1 / np.prod(shape[:-1]))
            if path[-2].key in ("query", "key"):
                value *= 0.5  # keeps the attention between uniform and one-hot
        elif name in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, shape)
            if name == "scale" and any(key.key.startswith("pag") for key in path):
                value *= 0.2  # keeps the sigmoid of a sum of products off 0 and 1
        elif name == "slope":
            value = rng.uniform(0.1, 0.4, shape)
        elif name in ("alpha", "gamma", "rho"):
            value = np.full(shape, 0.7)
        else:
            assert name in ("bias", "mean"), name
            value = rng.normal(size=shape) * 0.2
        return value.astype(like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, template)


def twins(variant, **options):
    """The Flax network, variables for it, and the PyTorch network that holds the same."""
    model = models.create(variant, num_classes=CLASSES, **options)
    variables = fill(shapes(variant, CLASSES, **options), seed=list(PARAMETERS).index(variant))
    twin = torch_ref.create(variant, CLASSES, **options)
    state = {
        name: torch.from_numpy(array) for name, array in torch_files.to_torch(variables).items()
    }
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return model, variables, twin


@pytest.mark.parametrize("variant", PARAMETERS)
def test_counts(variant):
    for num_classes, count in PARAMETERS[variant].items():
        with torch.device("meta"):
            twin = torch_ref.create(variant, num_classes)
        assert sum(p.numel() for p in twin.parameters()) == count


def test_the_tables_name_the_same_networks():
    assert list(torch_ref.VARIANTS) == list(models.VARIANTS) == list(PARAMETERS)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown model 'earnet'; choose one of erfnet, .*, asap"):
        torch_ref.create("earnet", 19)
    with pytest.raises(
        ValueError, match="dabnet has no option 'width'; it has attention, backbone"
    ):
        torch_ref.create("dabnet", 19, width=2)
    with pytest.raises(ValueError, match="unknown attention 'sca'; choose one of self_calibration"):
        torch_ref.create("eacnet_dabnet", 19, attention="sca")
    with pytest.raises(ValueError, match="unknown backbone 'resnet'; choose one of erfnet, dabnet"):
        torch_ref.create("eacnet_dabnet", 19, backbone="resnet")


DEEP = ("carnet_resnet101", "carnet_resnet152")  # the blocks of carnet_resnet50, and more of them


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=[pytest.mark.slow] * (v in DEEP)) for v in PARAMETERS]
)
def test_logits(variant):
    model, variables, twin = twins(variant)
    twin.eval().double()  # so that all that differs is our own rounding
    apply = jax.jit(functools.partial(model.apply, train=False))
    for h, w in SIZES.get(variant, (ODD,)):
        image = np.random.default_rng(h).normal(size=(2, h, w, 3)).astype(np.float32)
        ours = apply(variables, image)["logits"]
        with torch.inference_mode():
            theirs = twin(torch.from_numpy(image.transpose(0, 3, 1, 2)).double()).numpy()
        stride = STRIDE[variant]
        assert ours.shape == (2, -(-h // stride), -(-w // stride), CLASSES)
        assert np.ptp(theirs) > 1
        # A ResNet's residuals add up, here to scores in the hundreds: of those 3e-6 is float32's own error.
        tolerance = max(1e-4, 3e-6 * np.ptp(theirs))
        np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("carnet_mobilenet", {"num_modules": 2, "crp": False, "global_hidden": 0}),
        ("carnet_mobilenet", {"num_modules": 0, "expand_first": False}),
        ("fast_scnn", {"align_corners": True, "stem_padding": 0}),
        ("affnet", {"fusion": "ewa_concat", "deep": "text"}),
        ("affnet", {"fusion": "ewa", "final": "add", "attention_residual": True}),
        ("affnet", {"fusion": "concat", "downsample": "fast_scnn"}),
        ("affnet", {"fusion": "fpn_pan", "groups": 2}),
        ("cgnet", {"blocks": (1, 2)}),
        ("espnet", {"blocks": (0, 2), "skip": "inject"}),
        ("espnet", {"blocks": (1, 0), "decoder": False}),
        ("enet", {"activations": ("relu", "shared_prelu")}),
        ("enet", {"activations": ("prelu", "relu")}),
        ("asap", {"fusion": "general", "attention": "conventional", "general_residual": True}),
        ("asap", {"fusion": "in", "attention": "horizontal", "fuse_stride": 4}),
        ("asap", {"norm_mix": "rho", "layer_norm_axes": "c", "attention_gamma": True}),
        ("asap", {"merge": "sum", "fpn_width": 96, "norm_mix": "sum", "conv_blocks": (64, 32)}),
    ],
)
def test_ablations(variant, options):
    model, variables, twin = twins(variant, **options)
    twin.eval()
    image = np.random.default_rng(0).normal(size=(1, 65, 97, 3)).astype(np.float32)
    ours = jax.jit(functools.partial(model.apply, train=False))(variables, image)["logits"]
    with torch.inference_mode():
        theirs = twin(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy()
    assert np.ptp(theirs) > 1
    np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ("eacnet_erfnet", "eacnet_dabnet"))
def test_attention_matters(variant):
    """The parity above would not see an attention that adds nothing."""
    _, _, twin = twins(variant)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 128))).float()
    with torch.inference_mode():
        with_attention = twin.eval()(image)
        twin.attention.alpha.zero_()
        without = twin(image)
    spread = (with_attention - without).std(dim=(2, 3))
    assert (spread > 0.002).all()  # the tolerance there is 1e-4


@functools.cache
def training(model, weights):
    """A function (params, batch_stats, image, label), jitted: ((loss, new batch_stats), gradient)."""

    def step(params, batch_stats, image, label):
        def objective(params):
            outputs, changed = model.apply(
                {"params": params, "batch_stats": batch_stats},
                image,
                train=True,
                mutable=["batch_stats"],
            )
            loss, _ = eacnet.loss(
                outputs,
                {"label": label},
                kind="cross_entropy",
                class_weights=weights,
                threshold=0.7,
                min_kept=1 / 16,
            )
            return loss, changed["batch_stats"]

        return jax.value_and_grad(objective, has_aux=True)(params)

    return jax.jit(step)


def ours_and_theirs(model, variables, twin, label, weights):
    """Loss, gradient by torch's names and running statistics by torch's names: ours, then torch's."""
    b, h, w = label.shape
    image = np.random.default_rng(1).normal(size=(b, h, w, 3)).astype(np.float32)
    (loss, batch_stats), gradient = training(model, weights)(
        variables["params"], variables["batch_stats"], image, label
    )
    twin.train()
    twin.zero_grad()
    logits = torch_ref.upsample(twin(torch.from_numpy(image.transpose(0, 3, 1, 2))), (h, w))
    expected = torch_losses.cross_entropy(
        logits, torch.from_numpy(label), torch.tensor(weights, dtype=torch.float32)
    )
    expected.backward()
    theirs = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in twin.named_parameters()
    }
    return (
        (
            float(loss),
            torch_files.to_torch({"params": gradient}),
            torch_files.to_torch({"batch_stats": batch_stats}),
        ),
        (expected.item(), theirs, {name: v.numpy() for name, v in twin.state_dict().items()}),
    )


def check_gradient(ours, theirs, tolerance):
    """Per parameter, relative to its norm; a bias before a BatchNorm has gradient 0 up to rounding."""
    assert ours.keys() == theirs.keys()
    total = np.sqrt(sum(np.square(g).sum() for g in theirs.values()))
    for name, g in theirs.items():
        error = np.linalg.norm(ours[name] - g)
        assert error <= tolerance * np.linalg.norm(g) + 1e-6 * total, (name, error)


def count_values(twin):
    """Fills with the values per channel of each BatchNorm, once the network has run."""
    counts = {}
    for name, module in twin.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _, inputs, __, name=name: counts.update(
                    {name: inputs[0].numel() // inputs[0].shape[1]}
                )
            )
    return counts


def check_statistics(variables, ours, theirs, counts):
    """Running statistics after one pass, by torch's names."""
    before = torch_files.to_torch({"batch_stats": variables["batch_stats"]})
    assert len(ours) == 2 * len(counts)
    for name, n in counts.items():
        mean, var = f"{name}.running_mean", f"{name}.running_var"
        np.testing.assert_allclose(ours[mean], theirs[mean], rtol=0, atol=1e-5)
        # torch's running variance is the unbiased one.
        unbiased = 0.9 * before[var] + (ours[var] - 0.9 * before[var]) * n / (n - 1)
        np.testing.assert_allclose(unbiased, theirs[var], rtol=1e-4)


def batch():
    rng = np.random.default_rng(2)
    label = rng.integers(0, CLASSES, (2, 49, 81)).astype(np.int32)
    label[:, :7] = 255
    return label, tuple(rng.uniform(0.5, 2, CLASSES).tolist())


# A float32 rounding that moves one value over the kink of a (P)ReLU changes the gradient by up to some
# percent, in torch as here. So the kinks are taken out for the sharp comparison (a slope of 1 still has
# a gradient), and only a wrong formula, not a rounding, exceeds the bound of the other one.
@pytest.mark.parametrize(
    ("variant", "options", "slope", "tolerance"),
    [
        ("eacnet_dabnet", {"dropout": (0.0, 0.0)}, 1.0, 1e-4),
        ("eacnet_dabnet", {"dropout": (0.0, 0.0)}, None, 0.2),
        ("erfnet", {"dropout": (0.0, 0.0)}, None, 0.2),
        ("cgnet", {}, 1.0, 1e-4),
        ("cgnet", {}, None, 0.2),
        ("espnet", {}, 1.0, 1e-4),
        ("espnet", {}, None, 0.2),
        ("enet", {"dropout": (0.0, 0.0), "activations": ("prelu",) * 2}, 1.0, 1e-4),
        ("enet", {"dropout": (0.0, 0.0)}, None, 0.5),
    ],
)
def test_training(variant, options, slope, tolerance):
    """Loss, gradient of every parameter, running statistics of one pass in training mode, no dropout."""
    model, variables, twin = twins(variant, **options)
    if slope is not None:
        variables = jax.tree_util.tree_map_with_path(
            lambda path, x: np.full_like(x, slope) if path[-1].key == "slope" else x, variables
        )
        state = {name: torch.from_numpy(a) for name, a in torch_files.to_torch(variables).items()}
        twin.load_state_dict(state, strict=False)
    ours, theirs = ours_and_theirs(model, variables, twin, *batch())

    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    check_gradient(ours[1], theirs[1], tolerance)

    for name, value in ours[2].items():
        np.testing.assert_allclose(value, theirs[2][name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("threshold", "min_kept", "ignored"),
    [
        (0.7, 1 / 16, 0.1),  # enough pixels below 0.7: the threshold stands
        (0.02, 1 / 2, 0.1),  # too few: the 192nd smallest probability takes its place
        (0.02, 0.95, 0.3),  # fewer valid pixels than must be kept: all of them
        (0.7, 1 / 16, 1.0),  # none valid
    ],
)
def test_ohem(threshold, min_kept, ignored):
    """Boolean indexing and a sort on one side, masks and counting passes over bits on the other."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 12, 16, CLASSES)).astype(np.float32) * 2
    label = rng.integers(0, CLASSES, (2, 12, 16)).astype(np.int32)
    label[rng.random(label.shape) < ignored] = 255
    weights = tuple(rng.uniform(0.5, 2, CLASSES).tolist())
    options = {"threshold": threshold, "min_kept": min_kept}

    ours, gradient = jax.value_and_grad(
        lambda x: losses.ohem_cross_entropy(x, jnp.asarray(label), weights, **options)
    )(jnp.asarray(logits))
    x = torch.tensor(logits, requires_grad=True)
    expected = torch_losses.ohem_cross_entropy(
        x.permute(0, 3, 1, 2), torch.from_numpy(label), torch.tensor(weights), **options
    )
    expected.backward()
    assert (expected.item() > 0) == (ignored < 1)
    np.testing.assert_allclose(ours, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("fast_scnn", {"dropout": 0.0}),
        ("affnet", {"dropout": 0.0}),
        ("asap", {}),
        ("carnet_mobilenet", {}),
        ("dabnet", {}),
    ],
)
def test_running_statistics_over_several_steps(variant, options):
    """Those that evaluation uses, behind global pools too, where a batch of two has two values a channel."""
    model, variables, twin = twins(variant, **options)
    twin.train()
    forward = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    for seed in range(3):
        image = np.random.default_rng(seed).normal(size=(2, 48, 64, 3)).astype(np.float32)
        variables = {**variables, **forward(variables, image)[1]}
        with torch.no_grad():
            twin(torch.from_numpy(image.transpose(0, 3, 1, 2)))
    ours = torch_files.to_torch({"batch_stats": variables["batch_stats"]})
    theirs = twin.state_dict()
    for name, value in ours.items():
        expected = theirs[name].numpy()
        limit = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=limit, err_msg=name)
