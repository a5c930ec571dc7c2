"""Networks with training heads equal their twins in training mode: every output, gradients, running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_torch_parity import check_gradient, twins

from rtseg_jax.weights import torch_files

torch = pytest.importorskip("torch")

# Options without dropout, and what a network gives under train besides its logits.
HEADS = {
    "ddrnet23_slim": ({}, {"aux"}),
    "pidnet_s": ({}, {"aux", "boundary"}),
    "bisenetv2": ({"dropout": 0.0}, {"aux2", "aux3", "aux4", "aux5"}),
    "stdc1": ({}, {"aux8", "aux16", "detail"}),
}


@pytest.mark.parametrize("variant", HEADS)
def test_training_heads(variant):
    """On an image that is odd at every scale; the loss is a sum of all outputs, each score with a weight of its own."""
    options, heads = HEADS[variant]
    model, variables, twin = twins(variant, **options)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 145, 161, 3)).astype(np.float32)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    shapes, _ = jax.eval_shape(apply, variables, image)
    weights = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in shapes.items()}
    assert set(weights) == {"logits"} | heads

    @jax.jit
    def step(params):
        def objective(params):
            outputs, changed = model.apply(
                {**variables, "params": params},
                jnp.asarray(image),
                train=True,
                mutable=["batch_stats"],
            )
            value = sum((outputs[name] * w).mean() for name, w in weights.items())
            return value, (outputs, changed)

        return jax.value_and_grad(objective, has_aux=True)(params)

    (_, (outputs, statistics)), gradient = step(variables["params"])

    twin.train().double()
    theirs = twin.outputs(torch.from_numpy(image.transpose(0, 3, 1, 2)).double())
    assert set(theirs) == set(outputs)
    nhwc = {name: x.permute(0, 2, 3, 1) for name, x in theirs.items()}
    sum((nhwc[name] * torch.from_numpy(w)).mean() for name, w in weights.items()).backward()
    for name, x in nhwc.items():
        expected = x.detach().numpy()
        np.testing.assert_allclose(outputs[name], expected, rtol=0, atol=1e-4 * np.ptp(expected))

    given = {name: p.grad.numpy() for name, p in twin.named_parameters()}
    # float32 moves some values over the kinks of the ReLUs.
    check_gradient(torch_files.to_torch({"params": gradient}), given, 0.03)
    state = {name: x.numpy() for name, x in twin.state_dict().items()}
    ours = torch_files.to_torch(statistics)
    assert ours
    for name, value in ours.items():
        np.testing.assert_allclose(value, state[name], rtol=1e-4, atol=1e-5, err_msg=name)
