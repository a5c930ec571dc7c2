"""BatchNorm, with and without PReLU, against torch and against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rtseg_jax.nn.norm import BatchNorm, BatchNormPReLU, PReLU, TooFewValues

EPSILON = 1e-3
CHANNELS = 5


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(module, x):
    """Variables with nothing at its initial value."""
    variables = module.init(jax.random.key(0), jnp.asarray(x), train=True)
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda a: a + jnp.asarray(rng.uniform(0.1, 0.6, a.shape), jnp.float32), variables
    )


def torch_forward(x, variables, train):
    """Returns the output (NHWC, attached to the graph) and the leaves in the order x, scale, bias, slope."""
    leaves = [torch.tensor(np.array(a), requires_grad=True) for a in (x, *parameters(variables))]
    mean, var = (torch.tensor(np.array(variables["batch_stats"][k])) for k in ("mean", "var"))
    y = F.batch_norm(
        leaves[0].permute(0, 3, 1, 2), mean, var, leaves[1], leaves[2], train, 0.1, EPSILON
    )
    if len(leaves) == 4:
        y = F.prelu(y, leaves[3])
    return y.permute(0, 2, 3, 1), leaves


def parameters(variables):
    return [variables["params"][k] for k in ("scale", "bias", "slope") if k in variables["params"]]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("cls", [BatchNorm, BatchNormPReLU])
def test_output_and_gradients_match_torch(cls, train, platform):
    module = cls(EPSILON)
    x, g = 2 * normal(3, 5, 8, CHANNELS) + 1, normal(3, 5, 8, CHANNELS, seed=1)
    variables = filled(module, x)

    def forward(x, params):
        inputs = {**variables, "params": params}
        return module.apply(inputs, x, train=train, mutable=["batch_stats"])[0]

    y, vjp = jax.vjp(jax.jit(forward), jnp.asarray(x), variables["params"])
    d_x, d_params = vjp(jnp.asarray(g))
    expected, leaves = torch_forward(x, variables, train)
    expected.backward(torch.tensor(g))
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    for ours, leaf in zip([d_x, *parameters({"params": d_params})], leaves, strict=True):
        theirs = leaf.grad.numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 4)])
@pytest.mark.parametrize("cls", [BatchNorm, BatchNormPReLU])
def test_running_statistics_over_several_steps_are_torchs(cls, shape, platform):
    """Two values a channel behind a global pool: there the biased variance is half of torch's."""
    module = cls(EPSILON)
    variables = filled(module, normal(*shape, CHANNELS))
    twin = torch.nn.BatchNorm2d(CHANNELS, EPSILON)
    stats = {k: np.array(v) for k, v in variables["batch_stats"].items()}
    twin.running_mean.copy_(torch.tensor(stats["mean"]))
    twin.running_var.copy_(torch.tensor(stats["var"]))
    for seed in range(4):
        x = 2 * normal(*shape, CHANNELS, seed=seed) + 1
        _, changed = module.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
        variables = {**variables, **changed}
        twin(torch.tensor(x).permute(0, 3, 1, 2))
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], twin.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], twin.running_var.numpy(), rtol=1e-5)


def test_one_value_a_channel_is_refused_in_training(platform):
    module = BatchNorm(EPSILON, name="norm")
    x = jnp.asarray(normal(1, 1, 1, CHANNELS))
    variables = module.init(jax.random.key(0), x, train=True)
    with pytest.raises(TooFewValues, match=r"one value per channel in training \(\[1, 1, 1, 5\]\)"):
        module.apply(variables, x, train=True, mutable=["batch_stats"])
    module.apply(variables, x, train=False)


def test_running_statistics_move_a_tenth_towards_the_unbiased_ones(platform):
    module = BatchNorm(EPSILON)
    x = 2 * normal(2, 3, 4, CHANNELS) + 1
    variables = module.init(jax.random.key(0), jnp.asarray(x), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(CHANNELS))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(CHANNELS))
    _, changed = module.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    wide = x.astype(np.float64)
    stats = changed["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * wide.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * wide.var((0, 1, 2), ddof=1), rtol=1e-5)
    _, same = module.apply(variables, jnp.asarray(x), train=False, mutable=["batch_stats"])
    np.testing.assert_array_equal(same["batch_stats"]["mean"], np.zeros(CHANNELS))


def test_variance_survives_a_mean_far_from_zero(platform):
    x = (1000 + 0.1 * normal(2, 16, 16, CHANNELS)).astype(np.float32)
    module = BatchNorm(EPSILON, momentum=0.0)
    variables = module.init(jax.random.key(0), jnp.asarray(x), train=True)
    # A GPU's one pass counts from the running mean, which is near after a few steps.
    variables["batch_stats"]["mean"] += 999
    _, changed = module.apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
    # E[x^2] - E[x]^2 in float32 would be wrong by several times the variance, 0.01.
    expected = x.astype(np.float64).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(changed["batch_stats"]["var"], expected, rtol=1e-3)


@pytest.mark.parametrize("cls", [BatchNorm, BatchNormPReLU])
def test_bfloat16_keeps_float32_statistics(cls, platform):
    x = jnp.asarray(3 * normal(2, 16, 16, CHANNELS) + 2).astype(jnp.bfloat16)
    module = cls(EPSILON, momentum=0.0, dtype=jnp.bfloat16)
    variables = filled(module, x)

    def forward(x, module):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    (y, changed), (exact, _) = forward(x, module), forward(x, module.clone(dtype=jnp.float32))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.05)
    expected = np.array(x.astype(jnp.float32), np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(changed["batch_stats"]["mean"], expected, rtol=1e-5)
    gradient = jax.grad(lambda x: forward(x, module)[0].astype(jnp.float32).var())(x)
    assert gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize("cls", [BatchNorm, BatchNormPReLU])
def test_statistics_and_gradients_are_those_of_the_whole_sharded_batch(cls, platform):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    module = cls(EPSILON)
    x = normal(8, 3, 4, CHANNELS) + np.arange(8, dtype=np.float32).reshape(8, 1, 1, 1)
    variables = filled(module, x)

    @jax.jit
    def run(x, params):
        def objective(x, params):
            inputs = {**variables, "params": params}
            y, changed = module.apply(inputs, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), changed

        return jax.grad(objective, argnums=(0, 1), has_aux=True)(x, params)

    whole = run(jnp.asarray(x), variables["params"])
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = run(jax.device_put(x, sharding), variables["params"])
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("cls", [BatchNorm, BatchNormPReLU])
def test_a_layer_that_is_computed_again_has_the_same_gradient(cls, platform):
    module, x = cls(EPSILON), jnp.asarray(normal(2, 3, 4, CHANNELS))
    variables = filled(module, x)

    def gradient(wrap):
        def forward(params, batch_stats):
            inputs = {"params": params, "batch_stats": batch_stats}
            return module.apply(inputs, x, train=True, mutable=["batch_stats"])[0]

        def loss(params, batch_stats):
            return jnp.sum(jnp.sin(wrap(forward)(params, batch_stats)))

        return jax.jit(jax.grad(loss))(variables["params"], variables["batch_stats"])

    again, kept = gradient(jax.checkpoint), gradient(lambda function: function)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, kept)


def test_a_shared_slope_has_the_sum_of_the_gradients():
    x, g = (jnp.asarray(normal(2, 3, 4, CHANNELS, seed=s)) for s in (0, 1))
    own, shared = (filled(BatchNormPReLU(EPSILON, shared=s), x) for s in (False, True))
    own["params"]["slope"] = jnp.full(CHANNELS, shared["params"]["slope"][0])

    def gradient(variables, **options):
        def loss(params):
            module = BatchNormPReLU(EPSILON, **options)
            inputs = {**own, "params": {**own["params"], "slope": params}}
            return jnp.sum(g * module.apply(inputs, x, train=True, mutable=["batch_stats"])[0])

        return jax.grad(loss)(variables["params"]["slope"])

    summed = gradient(shared, shared=True)
    assert summed.shape == (1,)
    np.testing.assert_allclose(summed[0], gradient(own).sum(), rtol=1e-5)
    y = PReLU(shared=True).apply({"params": {"slope": jnp.full(1, 0.5)}}, x)
    np.testing.assert_array_equal(y, np.where(x > 0, x, 0.5 * x))


def test_slopes_start_at_a_quarter_and_prelu_matches_torch_at_zero_too():
    x, g = normal(2, 3, 4, CHANNELS), normal(2, 3, 4, CHANNELS, seed=1)
    x[0, 0] = 0.0
    params = PReLU().init(jax.random.key(0), jnp.asarray(x))["params"]
    np.testing.assert_array_equal(params["slope"], np.full(CHANNELS, 0.25, np.float32))
    start = BatchNormPReLU(EPSILON).init(jax.random.key(0), jnp.asarray(x), train=True)["params"]
    np.testing.assert_array_equal(start["slope"], np.full(CHANNELS, 0.25, np.float32))

    y, vjp = jax.vjp(lambda x, p: PReLU().apply({"params": p}, x), jnp.asarray(x), params)
    d_x, d_params = vjp(jnp.asarray(g))
    leaf = torch.tensor(x, requires_grad=True)
    slope = torch.full((CHANNELS,), 0.25, requires_grad=True)
    expected = F.prelu(leaf.permute(0, 3, 1, 2), slope).permute(0, 2, 3, 1)
    expected.backward(torch.tensor(g))
    np.testing.assert_array_equal(y, expected.detach().numpy())
    np.testing.assert_array_equal(d_x, leaf.grad.numpy())
    np.testing.assert_allclose(d_params["slope"], slope.grad.numpy(), rtol=1e-5, atol=1e-6)
