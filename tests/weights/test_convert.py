"""Conversion to and from PyTorch names and layouts: exact, strict, and without torch."""

import pathlib
import pickle
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from rtseg_jax.programs import convert
from rtseg_jax.weights import torch_files
from tests.networks import COMPILED, load_torch, shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]


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


def random_variables(variant, num_classes=11):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes(variant, num_classes)
    )


def assert_equal(given, expected):
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, given, expected)


def test_names():
    assert {name: array.shape for name, array in torch_files.to_torch(small()).items()} == {
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
    state = torch_files.to_torch(small())
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


@pytest.mark.parametrize("variant", COMPILED)
def test_round_trip(variant):
    template = shapes(variant, 11)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), template)
    state = torch_files.to_torch(variables)
    assert len(state) == len(jax.tree.leaves(variables))  # no two leaves share a name
    back = torch_files.from_torch(state, template)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype("float32")}


@pytest.mark.parametrize("variant", COMPILED)
def test_a_torch_checkpoint(variant, tmp_path):
    """A saved state dict of the twin, num_batches_tracked and all, through a file and back."""
    torch = pytest.importorskip("torch")
    from rtseg_jax import torch_ref

    twin = torch_ref.create(variant, 11)
    torch.save(twin.state_dict(), tmp_path / "twin.pt")
    loaded = torch.load(tmp_path / "twin.pt", weights_only=True)
    assert any(name.endswith("num_batches_tracked") for name in loaded)
    variables = torch_files.from_torch(loaded, shapes(variant, 11))
    state = torch_files.to_torch(variables)
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
    variables = torch_files.from_torch(state, template)
    assert variables["params"]["a"]["kernel"].ravel().tolist() == [1.5, -2.0]
    assert variables["params"]["a"]["bias"].tolist() == [0.25]
    assert variables["params"]["a"]["bias"].dtype == np.float32


def test_a_checkpoint_that_does_not_fit():
    state = torch_files.to_torch(small())
    del state["backbone.norm.running_var"], state["attention.alpha"]
    state["module.extra.weight"] = arange(3)
    state["classifier.weight"] = arange(5, 2, 3, 1)
    state["backbone.norm.num_batches_tracked"] = np.int64(7)
    with pytest.raises(ValueError) as error:
        torch_files.from_torch(state, small())
    assert str(error.value).splitlines() == [
        "the state dict does not fit the network:",
        "  only in the file: module.extra.weight",
        "  only in the network: attention.alpha",
        "  only in the network: backbone.norm.running_var",
        "  shapes differ: classifier.weight is (5, 2, 3, 1) in the file, (4, 2, 3, 1) in the network",
    ]


def test_a_transposed_kernel_is_not_taken_for_a_dense_one():
    """in != out, so the wrong rule would show as a wrong shape."""
    state = torch_files.to_torch(small())
    state["decoder.up17.conv.weight"] = state["decoder.up17.conv.weight"].swapaxes(0, 1)
    with pytest.raises(ValueError, match=r"up17.conv.weight is \(4, 2, 3, 1\) in the file, \(2, 4"):
        torch_files.from_torch(state, small())


def test_unknown_leaves():
    with pytest.raises(
        ValueError, match="no rule converts 'params/a/delta'; those known are params"
    ):
        torch_files.to_torch({"params": {"a": {"delta": arange(2)}}})
    with pytest.raises(ValueError, match="no rule converts 'cache/a/mean'"):
        torch_files.from_torch({}, {"cache": {"a": {"mean": arange(2)}}})
    with pytest.raises(ValueError, match="'params/a/kernel' has 3 axes; a kernel has 4"):
        torch_files.to_torch({"params": {"a": {"kernel": arange(2, 2, 2)}}})


def test_needs_numpy_alone():
    code = (
        "import sys, rtseg_jax.weights.torch_files\n"
        "print([m for m in ('torch', 'jax', 'flax', 'tensorflow') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["dab.pth", "dab.pt", "dab.safetensors"])
def test_files(name, tmp_path):
    """Through a file that the twin loads strictly, and back."""
    torch = pytest.importorskip("torch")
    from rtseg_jax import torch_ref

    variables = random_variables("eacnet_dabnet")
    torch_files.save_torch(variables, tmp_path / name)
    state = torch_files.read_state(tmp_path / name)
    tensors = {key: torch.as_tensor(value) for key, value in state.items()}
    torch_ref.create("eacnet_dabnet", 11).load_state_dict(tensors, strict=True)
    assert_equal(torch_files.from_torch(state, variables), variables)


def test_a_whole_network(tmp_path):
    variables = random_variables("eacnet_dabnet")
    file = tmp_path / "whole.safetensors"
    torch_files.save_torch(variables, file)
    loaded = load_torch(file, shapes("eacnet_dabnet", 11))
    assert_equal(loaded, variables)
    with pytest.raises(ValueError, match="only in the file: attention.alpha") as error:
        load_torch(file, shapes("dabnet", 12))
    assert "classifier.weight is (11, 259, 1, 1) in the file, (12, 259" in str(error.value)


def test_the_backbone_of_a_whole_network(tmp_path):
    variables = random_variables("eacnet_dabnet")
    torch_files.save_torch(variables, tmp_path / "whole.safetensors")
    loaded = torch_files.load_torch_backbone(tmp_path / "whole.safetensors", shapes("dabnet"))
    assert_equal(loaded, {name: {"backbone": t["backbone"]} for name, t in variables.items()})
    with pytest.raises(ValueError, match=r"only in the file: backbone\.block1_1"):
        torch_files.load_torch_backbone(tmp_path / "whole.safetensors", shapes("erfnet"))


def test_wrapped_state_dicts(tmp_path):
    """As training scripts save them: beside other things, from DataParallel."""
    torch = pytest.importorskip("torch")
    variables = random_variables("dabnet")
    state = {f"module.{k}": torch.from_numpy(v) for k, v in torch_files.to_torch(variables).items()}
    for key in ("state_dict", "model"):
        torch.save({"epoch": 3, key: state}, tmp_path / "wrapped.tar")
        loaded = load_torch(tmp_path / "wrapped.tar", shapes("dabnet", 11))
        assert_equal(loaded, variables)


class Touch:
    """Unpickled, it would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_files_that_are_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    bad = tmp_path / "bad.pth"
    for write in (
        torch.save,
        lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)),
    ):
        write({"weight": Touch(tmp_path / "executed")}, bad)
        with pytest.raises(
            ValueError, match="bad.pth is refused: it (is broken|holds Python objects)"
        ) as e:
            torch_files.read_state(bad)
        assert "\n" not in str(e.value)
    assert not (tmp_path / "executed").exists()
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=f"{name} is (refused|no safetensors file)"):
            torch_files.read_state(tmp_path / name)
    torch.save([1, 2], bad)
    with pytest.raises(ValueError, match="holds no state dict, but a list"):
        torch_files.read_state(bad)
    torch.save({"epoch": 1, "best": 0.5}, bad)
    with pytest.raises(ValueError, match="holds no state dict, but epoch, best"):
        torch_files.read_state(bad)
    with pytest.raises(FileNotFoundError, match="no file .*absent.pth"):
        torch_files.read_state(tmp_path / "absent.pth")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(ValueError, match="is no checkpoint of PyTorch; these are .pth, .pt, .tar"):
        torch_files.read_state(tmp_path / "weights.h5")
    with pytest.raises(ValueError, match="cannot write out.h5; choose .pth, .pt or .safetensors"):
        torch_files.save_torch(small(), "out.h5")
    torch.save({"other.weight": torch.zeros(1)}, bad)
    with pytest.raises(ValueError, match=r"of no layout that is known, and has no backbone\.\*"):
        torch_files.load_torch_backbone(bad, shapes("dabnet"))


def test_hub(tmp_path, monkeypatch):
    variables = random_variables("dabnet")
    torch_files.save_torch(variables, tmp_path / "dabnet.safetensors")
    asked = []

    def hf_hub_download(repository, file):
        asked.append((repository, file))
        return str(tmp_path / file)

    hub = types.SimpleNamespace(hf_hub_download=hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    path = "hf://someone/nets/dabnet.safetensors"
    assert_equal(load_torch(path, shapes("dabnet", 11)), variables)
    assert asked == [("someone/nets", "dabnet.safetensors")]
    with pytest.raises(ValueError, match="'hf://someone/nets' is not hf://OWNER/NAME/FILE"):
        torch_files.read_state("hf://someone/nets")


@pytest.mark.parametrize(
    ("package", "path", "extra"),
    [
        ("huggingface_hub", "hf://a/b/c.pth", "hub"),
        ("torch", "x.pth", "torch"),
    ],
)
def test_a_missing_package_names_its_extra(package, path, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / path.rpartition("/")[2]).touch()
    with pytest.raises(ValueError, match=rf"takes {package}; .*'rtseg_jax\[{extra}\]'"):
        torch_files.read_state(path)


def test_program(tmp_path, monkeypatch, capsys):
    """PyTorch to a bundle and back to PyTorch."""
    state = torch_files.to_torch(random_variables("dabnet"))
    torch_files.save_torch(random_variables("dabnet"), tmp_path / "a.pth")
    shown = ["--variant=dabnet", "--mean=1,2,3", "--std=4,5,6"]
    monkeypatch.chdir(tmp_path)
    assert convert.PROGRAM.run(["a.pth", "b.safetensors", *shown]) == 0
    assert capsys.readouterr().out == (
        "dabnet, 11 classes: 754,571 parameters written to b.safetensors\n"
        "sees frames of up to 2097152 pixels, RGB, mean (1, 2, 3), std (4, 5, 6) of 0 to 255\n"
    )
    convert.convert(str(tmp_path / "b.safetensors"), str(tmp_path / "c.pth"))
    result = torch_files.read_state(tmp_path / "c.pth")
    for name, value in state.items():
        np.testing.assert_array_equal(result[name], value)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("nodir/x.pth", FileNotFoundError, "nodir: no such folder; create it first"),
        (
            "x.msgpack",
            ValueError,
            "cannot write x.msgpack; choose .safetensors .a bundle., .pth or",
        ),
        ("there", ValueError, "there is a folder; give a file, as there/net.safetensors"),
    ],
)
def test_a_target_that_cannot_be_is_told_first(target, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(error, match=message):
        convert.convert("a.pth", target)


def test_a_wrong_variant_gets_the_nearest_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch_files.save_torch(random_variables("dabnet"), tmp_path / "a.pth")
    for variant, message in (
        ("dabnett", "did you mean 'dabnet'"),
        ("erfnet", "the state dict does not fit the network: .* more"),
    ):
        assert convert.PROGRAM.run(["a.pth", "b.safetensors", f"--variant={variant}"]) == 1
        said = capsys.readouterr().err
        assert re.search(message, said) and len(said) < 1000


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch_files.save_torch(random_variables("dabnet"), tmp_path / "a.pth")
    convert.convert("~/a.pth", "~/b.pth", variant="dabnet", mean=(1, 2, 3), std=(4, 5, 6))
    assert torch_files.read_state(tmp_path / "b.pth")
