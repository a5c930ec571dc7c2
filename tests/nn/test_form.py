"""One context puts a whole network into the plain form, with the same result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax import models
from rtseg_jax.nn import form
from tests.models.filling import filled


def test_portable_network_is_made_of_plain_operations_and_agrees():
    model = models.create("eacnet_dabnet", num_classes=5)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 33, 48, 3)), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=True), jax.random.key(0), image)
    variables = jax.tree.map(jnp.asarray, filled(shapes))

    def apply(variables, image):
        return model.apply(variables, image, train=False)["logits"]

    fast = jax.jit(apply).lower(variables, image)
    with form.portable():
        plain = jax.jit(lambda *args: apply(*args)).lower(variables, image)
    assert (
        "feature_group_count = 64" not in fast.as_text()
    )  # the CPU's depth-wise form has no grouped conv
    assert "feature_group_count = 64" in plain.as_text()
    results = [np.asarray(p.compile()(variables, image)) for p in (fast, plain)]
    np.testing.assert_allclose(*results, atol=1e-5 * np.abs(results[0]).max())


def test_the_context_ends_even_after_an_error():
    with pytest.raises(RuntimeError), form.portable():
        assert form.is_portable()
        raise RuntimeError
    assert not form.is_portable()
    assert form.is_portable("portable")
