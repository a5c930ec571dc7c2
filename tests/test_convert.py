"""Conversion to and from PyTorch names and layouts: exact, strict, and without torch."""

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax import convert, models

ROOT = pathlib.Path(__file__).resolve().parent.parent


def arange(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


def small():
    """One leaf of every kind; the three kernels have the same shape and differ by name alone."""
    return {
        "params": {
            "backbone": {
                "dense": {"kernel": arange(3, 1, 2, 4), "bias": arange(4)},
                "dw3x1": {"kernel": arange(3, 1, 1, 5)},
                "norm": {"scale": arange(4), "bias": -arange(4), "slope": arange(4) / 8},
            },
            "decoder": {
                "up17": {"conv": {"kernel": arange(3, 1, 2, 4)}},
                "classifier": {"kernel": arange(3, 1, 2, 4)},
            },
            "classifier": {"kernel": arange(3, 1, 2, 4)},
            "attention": {"alpha": np.float32(0.5)},
        },
        "batch_stats": {"backbone": {"norm": {"mean": arange(4) + 1, "var": arange(4) + 2}}},
    }


def network_shapes(variant, num_classes=11):
    model = models.create(variant, num_classes=num_classes)
    key = jax.random.key(0)
    return jax.eval_shape(
        functools.partial(model.init, train=True),
        {"params": key, "dropout": key},
        jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    )


def test_names():
    assert {name: array.shape for name, array in convert.to_torch(small()).items()} == {
        "backbone.dense.weight": (4, 2, 3, 1),
        "backbone.dense.bias": (4,),
        "backbone.dw3x1.weight": (5, 1, 3, 1),
        "backbone.norm.weight": (4,),
        "backbone.norm.bias": (4,),
        "backbone.norm.slope": (4,),
        "backbone.norm.running_mean": (4,),
        "backbone.norm.running_var": (4,),
        "decoder.up17.conv.weight": (2, 4, 3, 1),
        "decoder.classifier.weight": (2, 4, 3, 1),
        "classifier.weight": (4, 2, 3, 1),
        "attention.alpha": (),
    }


def test_layouts():
    state = convert.to_torch(small())
    # Row i, input a, output o of a (3, 1, 2, 4) kernel holds 8 i + 4 a + o.
    for i, a, o in np.ndindex(3, 2, 4):
        assert state["backbone.dense.weight"][o, a, i, 0] == 8 * i + 4 * a + o
        assert state["classifier.weight"][o, a, i, 0] == 8 * i + 4 * a + o
        assert state["decoder.up17.conv.weight"][a, o, i, 0] == 8 * i + 4 * a + o
        assert state["decoder.classifier.weight"][a, o, i, 0] == 8 * i + 4 * a + o
    for i, c in np.ndindex(3, 5):
        assert state["backbone.dw3x1.weight"][c, 0, i, 0] == 5 * i + c
    assert state["backbone.norm.weight"].tolist() == [0, 1, 2, 3]
    assert state["backbone.norm.running_var"].tolist() == [2, 3, 4, 5]
    assert all(array.flags.c_contiguous for array in state.values())


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_round_trip(variant):
    template = network_shapes(variant)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), template)
    state = convert.to_torch(variables)
    assert len(state) == len(jax.tree.leaves(variables))  # no two leaves share a name
    back = convert.from_torch(state, template)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype("float32")}


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_a_torch_checkpoint(variant, tmp_path):
    """A saved state dict of the twin, num_batches_tracked and all, through a file and back."""
    torch = pytest.importorskip("torch")
    from rtseg_jax import torch_ref

    twin = torch_ref.create(variant, 11)
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    loaded = torch.load(tmp_path / "twin.pt", weights_only=True)
    assert any(name.endswith("num_batches_tracked") for name in loaded)
    variables = convert.from_torch(loaded, network_shapes(variant))
    state = convert.to_torch(variables)
    expected = {k: v for k, v in loaded.items() if not k.endswith("num_batches_tracked")}
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value.numpy(), err_msg=name)


def test_tensors_of_other_types():
    """Gradients attached, half precision, parameters: all become the template's float32."""
    torch = pytest.importorskip("torch")
    template = {"params": {"a": {"kernel": arange(1, 1, 2, 1), "bias": arange(1)}}}
    state = {
        "a.weight": torch.nn.Parameter(torch.tensor([1.5, -2.0]).reshape(1, 2, 1, 1)),
        "a.bias": torch.tensor([0.25], dtype=torch.bfloat16),
    }
    variables = convert.from_torch(state, template)
    assert variables["params"]["a"]["kernel"].ravel().tolist() == [1.5, -2.0]
    assert variables["params"]["a"]["bias"].tolist() == [0.25]
    assert variables["params"]["a"]["bias"].dtype == np.float32


def test_a_checkpoint_that_does_not_fit():
    state = convert.to_torch(small())
    del state["backbone.norm.running_var"], state["attention.alpha"]
    state["module.extra.weight"] = arange(3)
    state["classifier.weight"] = arange(5, 2, 3, 1)
    state["backbone.norm.num_batches_tracked"] = np.int64(7)
    with pytest.raises(ValueError) as error:
        convert.from_torch(state, small())
    assert str(error.value).splitlines() == [
        "the state dict does not fit the network:",
        "  only in the file: module.extra.weight",
        "  only in the network: attention.alpha",
        "  only in the network: backbone.norm.running_var",
        "  shapes differ: classifier.weight is (5, 2, 3, 1) in the file, (4, 2, 3, 1) in the network",
    ]


def test_a_transposed_kernel_is_not_taken_for_a_dense_one():
    """in != out, so the wrong rule would show as a wrong shape."""
    state = convert.to_torch(small())
    state["decoder.up17.conv.weight"] = state["decoder.up17.conv.weight"].swapaxes(0, 1)
    with pytest.raises(ValueError, match=r"up17.conv.weight is \(4, 2, 3, 1\) in the file, \(2, 4"):
        convert.from_torch(state, small())


def test_unknown_leaves():
    with pytest.raises(
        ValueError, match="no rule converts 'params/a/gamma'; those known are params"
    ):
        convert.to_torch({"params": {"a": {"gamma": arange(2)}}})
    with pytest.raises(ValueError, match="no rule converts 'cache/a/mean'"):
        convert.from_torch({}, {"cache": {"a": {"mean": arange(2)}}})
    with pytest.raises(ValueError, match="'params/a/kernel' has 2 axes; a kernel has 4"):
        convert.to_torch({"params": {"a": {"kernel": arange(2, 2)}}})


def test_needs_numpy_alone():
    code = (
        "import sys, rtseg_jax.convert\n"
        "print([m for m in ('torch', 'jax', 'flax', 'tensorflow') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"
