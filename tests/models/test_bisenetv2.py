"""BiSeNetV2's parts against the counts of the public code, its loss against its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax.nn import losses
from tests import torch_losses
from tests.networks import shapes

torch = pytest.importorskip("torch")


def test_parts():
    params = shapes("bisenetv2", 19)["params"]
    parts = {**params["backbone"], **{k: v for k, v in params.items() if k != "backbone"}}
    assert {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in parts.items()} == {
        "detail": 519232,
        "segment": 1159504,
        "fusion": 478720,
        "classifier": 1201171,
        "aux2": 37475,
        "aux3": 112211,
        "aux4": 374291,
        "aux5": 1348883,
    }


def test_loss():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, (2, 32, 32)).astype(np.int32)
    label[:, :3] = 255
    sides = {"logits": 4, "aux2": 16, "aux3": 8, "aux4": 4, "aux5": 2}
    outputs = {k: rng.normal(size=(2, n, n, 5)).astype(np.float32) for k, n in sides.items()}
    options = {"threshold": 0.3, "min_kept": 1 / 16}
    value, terms = losses.auxiliary_loss(
        jax.tree.map(jnp.asarray, outputs),
        {"label": jnp.asarray(label)},
        class_weights=None,
        aux_weight=0.5,
        **options,
    )
    expected = {}
    for name, scores in outputs.items():
        full = torch.nn.functional.interpolate(
            torch.from_numpy(scores.transpose(0, 3, 1, 2)), (32, 32), mode="bilinear"
        )
        one = torch_losses.ohem_cross_entropy(full, torch.from_numpy(label), **options)
        expected["main" if name == "logits" else name] = one.item()
    total = expected["main"] + 0.5 * sum(v for k, v in expected.items() if k != "main")
    assert terms.keys() == {"loss", *expected}
    for name, number in {**expected, "loss": total}.items():
        np.testing.assert_allclose(terms[name], number, rtol=1e-5)
    assert value == terms["loss"]
