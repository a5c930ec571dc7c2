"""Convolutions against torch: values, gradients, initialisation, and which formulation a platform gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rtseg_jax.nn import conv

# Every kernel, stride and dilation of the networks, and two that only the formulas must survive, with the input's
# size: odd and even, and smaller than the largest dilation.
GEOMETRIES = [
    ((1, 1), (1, 1), (1, 1), (9, 12)),
    ((3, 3), (1, 1), (1, 1), (9, 12)),
    ((3, 3), (2, 2), (1, 1), (9, 12)),
    ((3, 3), (2, 2), (1, 1), (12, 9)),
    ((3, 1), (1, 1), (1, 1), (9, 12)),
    ((1, 3), (1, 1), (1, 1), (9, 12)),
    ((3, 1), (1, 1), (4, 1), (9, 12)),
    ((1, 3), (1, 1), (1, 8), (9, 12)),
    ((3, 1), (1, 1), (16, 1), (9, 12)),
    ((1, 3), (1, 1), (1, 16), (9, 12)),
    ((3, 3), (1, 1), (2, 2), (9, 12)),
    ((5, 3), (2, 1), (1, 2), (9, 12)),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def jax_and_gradients(function, x, kernel, g):
    """The value, in training's form and in that of inference, which agree, and the gradients."""

    def run(x, kernel, g):
        y, vjp = jax.vjp(function, x, kernel)
        return (y, *vjp(g)), function(x, kernel)

    found, alone = jax.jit(run)(*map(jnp.asarray, (x, kernel, g)))
    np.testing.assert_allclose(alone, found[0], rtol=1e-5, atol=1e-5 * np.abs(alone).max())
    return found


def torch_and_gradients(function, x, kernel, g, layout):
    """function: (NCHW, torch weight) -> NCHW; `layout` takes our kernel to torch's."""
    x = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    weight = torch.tensor(np.ascontiguousarray(kernel.transpose(layout)), requires_grad=True)
    y = function(x, weight)
    y.backward(torch.tensor(g.transpose(0, 3, 1, 2)))
    back = np.argsort(layout)
    return (
        y.detach().numpy().transpose(0, 2, 3, 1),
        x.grad.numpy().transpose(0, 2, 3, 1),
        weight.grad.numpy().transpose(back),
    )


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(("kernel_size", "strides", "dilation", "size"), GEOMETRIES)
@pytest.mark.parametrize("depthwise", [False, True])
def test_conv_and_its_gradients_match_torch(
    depthwise, kernel_size, strides, dilation, size, platform
):
    channels = 6
    padding = conv.same_padding(kernel_size, dilation)
    options = {"strides": strides, "padding": padding, "kernel_dilation": dilation}
    x = normal(2, *size, channels)
    kernel = normal(*kernel_size, 1 if depthwise else channels, channels if depthwise else 5)
    g = normal(
        2, *[-(-n // s) for n, s in zip(size, strides, strict=True)], kernel.shape[3], seed=1
    )
    operation = conv.depthwise_conv2d if depthwise else conv.conv2d

    ours = jax_and_gradients(lambda x, k: operation(x, k, **options), x, kernel, g)
    theirs = torch_and_gradients(
        lambda x, k: F.conv2d(
            x, k, None, strides, padding, dilation, groups=channels if depthwise else 1
        ),
        x,
        kernel,
        g,
        (3, 2, 0, 1),
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("inputs", "outputs"), [(25, 28), (35, 29), (14, 5), (12, 16)])
def test_channels_that_fill_no_vectors(inputs, outputs, strides, platform):
    x, kernel = normal(2, 9, 12, inputs), normal(3, 3, inputs, outputs)
    options = {"strides": strides, "padding": (2, 2), "kernel_dilation": (2, 2)}
    size = conv.conv2d(jnp.asarray(x), jnp.asarray(kernel), **options).shape
    g = normal(*size, seed=1)
    ours = jax_and_gradients(lambda x, k: conv.conv2d(x, k, **options), x, kernel, g)
    theirs = torch_and_gradients(
        lambda x, k: F.conv2d(x, k, None, strides, 2, 2), x, kernel, g, (3, 2, 0, 1)
    )
    assert_close(ours, theirs)


def test_depthwise_conv_with_several_outputs_for_each_channel(platform):
    module = conv.DepthwiseConv(strides=(2, 2), use_bias=False, multiplier=3)
    x, kernel, g = normal(2, 9, 12, 4), normal(3, 3, 1, 12), normal(2, 5, 6, 12, seed=1)
    ours = jax_and_gradients(lambda x, k: module.apply({"params": {"kernel": k}}, x), x, kernel, g)
    theirs = torch_and_gradients(
        lambda x, k: F.conv2d(x, k, None, 2, 1, groups=4), x, kernel, g, (3, 2, 0, 1)
    )
    assert_close(ours, theirs)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x))
    assert jax.tree.map(jnp.shape, shapes) == {"params": {"kernel": (3, 3, 1, 12)}}


@pytest.mark.parametrize(("groups", "strides"), [(2, (1, 1)), (4, (2, 2)), (8, (1, 1))])
def test_groups(groups, strides, platform):
    x, kernel = normal(2, 9, 12, 8), normal(3, 3, 8 // groups, 16)
    options = {"strides": strides, "padding": (1, 1), "groups": groups}
    size = conv.conv2d(jnp.asarray(x), jnp.asarray(kernel), **options).shape
    g = normal(*size, seed=1)
    ours = jax_and_gradients(lambda x, k: conv.conv2d(x, k, **options), x, kernel, g)
    theirs = torch_and_gradients(
        lambda x, w: F.conv2d(x, w, stride=strides, padding=1, groups=groups),
        *(x, kernel, g),
        layout=(3, 2, 0, 1),
    )
    assert_close(ours, theirs)


def test_groups_divide_the_channels():
    with pytest.raises(ValueError, match="3 groups must divide both 8 inputs and 6 outputs"):
        conv.Conv(6, groups=3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))


@pytest.mark.parametrize("size", [(9, 12), (12, 9)])
def test_stem_of_an_image_matches_torch(size, platform):
    x, kernel = normal(2, *size, 3), normal(3, 3, 3, 5)
    g = normal(2, *[-(-n // 2) for n in size], 5, seed=1)
    options = {"strides": (2, 2), "padding": (1, 1)}
    ours = jax_and_gradients(lambda x, k: conv.conv2d(x, k, **options), x, kernel, g)
    theirs = torch_and_gradients(
        lambda x, k: F.conv2d(x, k, None, 2, 1), x, kernel, g, (3, 2, 0, 1)
    )
    assert_close(ours, theirs)


def test_padding_that_does_not_keep_the_size():
    x, kernel, g = normal(2, 9, 7, 4), normal(3, 3, 4, 5), normal(2, 7, 5, 5)
    ours = jax_and_gradients(lambda x, k: conv.conv2d(x, k), x, kernel, g)
    assert_close(ours, torch_and_gradients(F.conv2d, x, kernel, g, (3, 2, 0, 1)))


@pytest.mark.parametrize(("k", "padding", "output_padding"), [(3, 1, 1), (2, 0, 0)])
def test_transposed_conv_and_its_gradients_match_torch(k, padding, output_padding, platform):
    x, kernel, g = normal(2, 5, 6, 4), normal(k, k, 4, 3), normal(2, 10, 12, 3, seed=1)
    options = {"padding": padding, "output_padding": output_padding}
    ours = jax_and_gradients(lambda x, k: conv.conv_transpose2d(x, k, **options), x, kernel, g)
    theirs = torch_and_gradients(
        lambda x, k: F.conv_transpose2d(x, k, stride=2, **options), x, kernel, g, (2, 3, 0, 1)
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (conv.Conv(7, (3, 1)), {"kernel": (3, 1, 6, 7), "bias": (7,)}),
        (conv.Conv(7, (1, 1), use_bias=False), {"kernel": (1, 1, 6, 7)}),
        (conv.DepthwiseConv((1, 3)), {"kernel": (1, 3, 1, 6), "bias": (6,)}),
        (conv.ConvTranspose(7, (2, 2)), {"kernel": (2, 2, 6, 7), "bias": (7,)}),
    ],
)
def test_parameters_have_standard_shapes_and_the_bias_is_added(module, shapes):
    x = jnp.asarray(normal(1, 4, 6, 6))
    params = module.init(jax.random.key(0), x)["params"]
    assert {name: p.shape for name, p in params.items()} == shapes
    if "bias" in params:
        without = module.apply({"params": {**params, "bias": jnp.zeros_like(params["bias"])}}, x)
        added = module.apply({"params": params}, x) - without
        np.testing.assert_allclose(
            added, np.broadcast_to(params["bias"], added.shape), rtol=0, atol=1e-6
        )


def test_conv_batch_norm_is_the_two_modules_and_the_activation():
    x = jnp.asarray(normal(2, 6, 6, 3))
    module = conv.ConvBatchNorm(4, (3, 3), (2, 2), activation=jax.nn.relu)
    variables = module.init(jax.random.key(0), x, train=True)
    assert set(variables["params"]) == {"conv", "norm"}
    assert set(variables["params"]["conv"]) == {"kernel"}
    y = module.apply(variables, x, train=False)
    kernel = variables["params"]["conv"]["kernel"]
    expected = F.conv2d(
        torch.tensor(np.array(x).transpose(0, 3, 1, 2)),
        torch.tensor(np.array(kernel).transpose(3, 2, 0, 1)),
        stride=2,
        padding=1,
    )
    expected = torch.relu(expected / np.sqrt(1 + 1e-5)).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_kaiming_normal_has_variance_two_over_fan_in_and_tails():
    kernel = np.array(conv.kaiming_normal(jax.random.key(0), (3, 3, 64, 128)))
    deviation = np.sqrt(2 / (9 * 64))
    assert kernel.std() == pytest.approx(deviation, rel=0.02)
    assert abs(kernel.mean()) < 0.02 * deviation
    assert np.abs(kernel).max() > 3.5 * deviation  # a truncated normal ends near 2.3
    depthwise = np.array(conv.kaiming_normal(jax.random.key(0), (3, 1, 1, 4096)))
    assert depthwise.std() == pytest.approx(np.sqrt(2 / 3), rel=0.03)


def test_biases_and_transposed_kernels_have_torchs_default_bounds():
    x = jnp.zeros((1, 4, 4, 64))
    bias = conv.Conv(4096, (3, 1)).init(jax.random.key(0), x)["params"]["bias"]
    assert float(jnp.abs(bias).max()) == pytest.approx((3 * 64) ** -0.5, rel=0.01)
    transposed = conv.ConvTranspose(100, (3, 3)).init(jax.random.key(0), x)["params"]
    bound = (9 * 100) ** -0.5  # fan_in counts the outputs
    assert float(jnp.abs(transposed["kernel"]).max()) == pytest.approx(bound, rel=0.01)
    assert float(jnp.abs(transposed["bias"]).max()) == pytest.approx(bound, rel=0.05)
    reference = torch.nn.ConvTranspose2d(64, 100, 3)
    assert float(reference.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(jnp.std(transposed["kernel"])) == pytest.approx(bound / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    "module",
    [conv.Conv(5), conv.Conv(5, (1, 1)), conv.DepthwiseConv(), conv.ConvTranspose(5, (2, 2))],
)
def test_bfloat16_stays_near_float32_and_so_do_its_gradients(module, platform):
    x = jnp.asarray(normal(2, 24, 24, 6))
    params = module.init(jax.random.key(0), x)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    @jax.jit
    def run(params, x):
        def results(module):
            y, vjp = jax.vjp(lambda p: module.apply(p, x), params)
            return y, *vjp(jnp.ones_like(y))

        return results(module.clone(dtype=jnp.bfloat16)), results(module)

    narrow, exact = run(params, x)
    assert narrow[0].dtype == jnp.bfloat16
    # A bias's gradient of 1152 ones is a sum that bfloat16 could not count past 256.
    for a, b in zip(jax.tree.leaves(narrow), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0, atol=0.03 * np.abs(b).max())


@pytest.mark.parametrize(("name", "convolutions"), [("cpu", 0), ("cuda", 0), ("tpu", 1)])
def test_depthwise_is_shifted_products_on_cpus_and_gpus(name, convolutions):
    arguments = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 1, 4))
    traced = jax.jit(lambda x, k: conv.depthwise_conv2d(x, k, padding=(1, 1))).trace(*arguments)
    text = traced.lower(lowering_platforms=(name,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="state padding explicitly"):
        conv.same_padding((2, 2), (1, 1))
