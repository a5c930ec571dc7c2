"""STDC-Seg's parts against the counts of the public code, the target and the loss of its details against plain PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax import models
from rtseg_jax.models.zoo import stdc
from tests import torch_losses
from tests.networks import shapes

torch = pytest.importorskip("torch")
F = torch.nn.functional


@pytest.mark.parametrize(("variant", "trunk"), [("stdc1", 5318304), ("stdc2", 9348768)])
def test_parts(variant, trunk):
    params = shapes(variant, 19)["params"]
    assert {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()} == {
        "backbone": trunk,
        "context": 606720 + 1196544 + 2 * 147712 + 131328,
        "fusion": 131584,
        "classifier": 595200,
        "aux8": 75072,
        "aux16": 75072,
        "detail": 147648,
    }


def test_wrong_repeats():
    with pytest.raises(ValueError, match=r"repeats \(2, 0, 1\) must be three numbers of 1 or more"):
        models.create("stdc1", num_classes=2, repeats=(2, 0, 1))


def target(label):
    """The three strided Laplacians of [b, h, w], each thresholded at full size, mixed, thresholded again."""
    kernel = torch.tensor([[-1.0, -1, -1], [-1, 8, -1], [-1, -1, -1]])[None, None]
    maps = []
    for stride in (1, 2, 4):
        edges = F.conv2d(label[:, None].float(), kernel, stride=stride, padding=1).clamp(min=0)
        edges = F.interpolate(edges, size=label.shape[1:], mode="nearest")
        maps.append((edges > 0.1).float())
    mix = torch.tensor([0.6, 0.3, 0.1])[None, :, None, None]
    return (F.conv2d(torch.cat(maps, dim=1), mix) > 0.1).float()[:, 0]


def labels(h, w):
    rng = np.random.default_rng(h)
    coarse = rng.choice([0, 1, 2, 4, 255], (2, 5, 7))
    return np.repeat(np.repeat(coarse, 9, axis=1), 11, axis=2)[:, :h, :w].astype(np.int32)


@pytest.mark.parametrize(("h", "w"), [(32, 64), (45, 77), (43, 61)])
def test_detail_target(h, w):
    label = labels(h, w)
    ours = np.asarray(jax.jit(stdc.detail_target)(jnp.asarray(label)))
    assert 0.1 < ours.mean() < 0.9
    np.testing.assert_array_equal(ours, target(torch.from_numpy(label)))


def test_loss():
    rng = np.random.default_rng(0)
    label = labels(32, 64)
    sides = {"logits": (4, 8, 5), "aux8": (4, 8, 5), "aux16": (2, 4, 5), "detail": (4, 8, 1)}
    outputs = {k: rng.normal(size=(2, *n)).astype(np.float32) for k, n in sides.items()}
    options = {"threshold": 0.3, "min_kept": 1 / 16}
    value, terms = stdc.loss(
        jax.tree.map(jnp.asarray, outputs),
        {"label": jnp.asarray(label)},
        class_weights=None,
        aux_weight=0.5,
        detail_weight=2.0,
        **options,
    )
    full = {
        name: F.interpolate(
            torch.from_numpy(scores.transpose(0, 3, 1, 2)), (32, 64), mode="bilinear"
        )
        for name, scores in outputs.items()
    }
    label = torch.from_numpy(label)
    expected = {
        "main" if name == "logits" else name: torch_losses.ohem_cross_entropy(
            full[name], label, **options
        ).item()
        for name in ("logits", "aux8", "aux16")
    }
    x, t = full["detail"][:, 0], target(label)
    expected["detail"] = F.binary_cross_entropy_with_logits(x, t).item()
    p = x.sigmoid()
    dice = 1 - (2 * (p * t).sum((1, 2)) + 1) / (p.sum((1, 2)) + t.sum((1, 2)) + 1)
    expected["dice"] = dice.mean().item()
    expected["loss"] = expected["main"] + 0.5 * (expected["aux8"] + expected["aux16"])
    expected["loss"] += 2 * (expected["detail"] + expected["dice"])
    assert terms.keys() == expected.keys()
    for name, number in expected.items():
        np.testing.assert_allclose(terms[name], number, rtol=1e-5)
    assert value == terms["loss"]
