"""Public checkpoints: recognised, and used as their authors' code uses them."""

import json
import re

import numpy as np
import pytest

import rtseg_jax
from rtseg_jax import models, torch_ref
from rtseg_jax.base import config as settings
from rtseg_jax.base import imagenet
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import program as infer
from rtseg_jax.inference import public
from rtseg_jax.models import flops
from rtseg_jax.programs.convert import PROGRAM as CONVERT
from rtseg_jax.weights import bundle, layouts, torch_files
from tests.models.filling import filled

torch = pytest.importorskip("torch")

LAYOUTS = {layout.name: layout for layout in layouts.LAYOUTS}
ENET = "ENet of D. Silva"
CLASSES = {
    "ERFNet as its authors released it": 20,
    "ESPNet as its authors released it": 12,
    ENET: 20,
}


def written(name, path, *, heads=True, count=None):
    """A file of a layout with random weights; the network, its options, and the weights in our form."""
    variant, options = public.USES[name].networks[-1]
    count = count or CLASSES.get(name, 19)
    model = models.create(variant, num_classes=count, **options)
    variables = filled(flops.variable_shapes(model, train=heads), 0)
    theirs = {ours: module for module, ours in reversed(LAYOUTS[name].modules.items())}
    state = {}
    for ours, value in torch_files.to_torch(variables).items():
        module, _, leaf = ours.rpartition(".")
        if ours == "attention.alpha":
            key, value = theirs[ours], value.reshape(1)
        elif ours in theirs:  # a slope
            key = f"{theirs[ours]}.weight"
        else:
            key = f"{theirs[module]}.{leaf}"
        if re.fullmatch(LAYOUTS[name].inplace, key):
            value = -(value - 1e-5)  # InPlaceABN takes the size of its weights
        if key == LAYOUTS[name].void_first:
            value = np.roll(value, 1, axis=1)
        state[f"module.{key}"] = torch.from_numpy(np.asarray(value))
    torch.save({"state_dict": state}, path)
    return variant, options, variables, count


# With a size of its own, and with aligned corners; that classes are those of the scores is held by test_infer.
MAPPED = ("ERFNet as its authors released it", "Fast-SCNN of Tramac")


@pytest.mark.parametrize("name", public.USES)
def test_a_bundle_computes_what_the_authors_code_does(name, tmp_path, capsys):
    """Two commands; the twin, shown the image as theirs is, has the same scores."""
    variant, options, variables, count = written(name, tmp_path / "theirs.pth")
    assert CONVERT([str(tmp_path / "theirs.pth"), str(tmp_path / "net.safetensors")]) == 0
    said = capsys.readouterr().out
    assert f"{variant}, {count} classes ({name}): " in said
    network = rtseg_jax.load(tmp_path / "net.safetensors")
    assert len(network.class_names) == count

    use = public.USES[name]
    mean, std = (np.array(v.get(count, v[None])) for v in (use.mean, use.std))
    assert tuple(network.config.augment.mean) == tuple(mean)
    twin = torch_ref.create(variant, count, **options).eval()
    torch_ref.load(twin, torch_files.to_torch(variables))
    frame = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    image = (frame - mean) / std
    image = image[..., ::-1] if use.channels == "bgr" else image
    x = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32))

    def resize(x, size):
        return torch.nn.functional.interpolate(
            x, size=size, mode="bilinear", align_corners=use.align_corners
        )

    size = None if use.size is None else (64, 128)  # less than theirs, for the time it takes
    with torch.inference_mode():
        scores = twin(x if size is None else resize(x, size))
        expected = resize(scores, (96, 160))[0].numpy().transpose(1, 2, 0)
    shown = {**settings.shown(network.config), "size": size}
    logits = infer.freeze(network.model, network.variables, (1, 96, 160), output="logits", **shown)
    spread = np.ptp(expected, axis=(0, 1)).max()  # of a class; between classes it can be larger
    np.testing.assert_allclose(logits(frame[None])[0], expected, rtol=0, atol=1e-3 * spread)
    if name not in MAPPED:
        return
    classes = network.seeing(size)(frame)
    best = np.take_along_axis(expected, classes[..., None].astype(int), -1)[..., 0]
    assert (expected.max(-1) - best).max() <= 1e-4 * np.ptp(expected)
    assert (classes == expected.argmax(-1)).mean() > 0.999


@pytest.mark.parametrize("name", ["PIDNet as its authors released it", "BiSeNetV2 of CoinCheung"])
def test_heads_for_training_may_be_missing(name, tmp_path):
    variant, _, variables, _ = written(name, tmp_path / "net.pth", heads=False)
    network = rtseg_jax.load(tmp_path / "net.pth")
    assert network.name == variant
    network.save(tmp_path / "net.safetensors")
    again = rtseg_jax.load(tmp_path / "net.safetensors")
    assert set(again.variables["params"]) == set(variables["params"])


def test_every_network_that_is_recognised_has_its_use():
    whole = {name for name, layout in LAYOUTS.items() if not (layout.trunk or layout.refused)}
    assert set(public.USES) == whole


def test_what_a_file_does_not_tell(tmp_path):
    """A twin's own file: the network is known by its names, how it was shown images by nobody."""
    torch.save(torch_ref.create("dabnet", 7).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="give --mean and --std, RGB in units of"):
        rtseg_jax.load(tmp_path / "net.pth")
    network = rtseg_jax.load(tmp_path / "net.pth", mean=imagenet.MEAN, std=imagenet.STD)
    assert network.name == "dabnet" and network.class_names[6] == "class 6"
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="lists 2 classes, and .*net.pth has 7"):
        rtseg_jax.load(tmp_path / "net.pth", classes=str(tmp_path / "classes.txt"))


def test_flags_come_before_the_authors(tmp_path, capsys):
    name = "DABNet as its authors released it"
    written(name, tmp_path / "net.pth", count=11)
    assert rtseg_jax.load(tmp_path / "net.pth").class_names[0] == "sky"
    out = str(tmp_path / "net.safetensors")
    flags = ["--mean=1,2,3", "--std=4,5,6", "--channels=bgr", "--size=32x64"]
    CONVERT([str(tmp_path / "net.pth"), out, *flags])
    assert "sees 32x64, BGR, mean (1, 2, 3), std (4, 5, 6)" in capsys.readouterr().out
    own = rtseg_jax.load(tmp_path / "net.pth", size="own")
    assert own.config.eval.size is None
    written("ERFNet as its authors released it", tmp_path / "erf.pth")
    assert rtseg_jax.load(tmp_path / "erf.pth").config.eval.size == (512, 1024)
    assert rtseg_jax.load(tmp_path / "erf.pth", size="own").config.eval.size is None
    for wrong in ("--mean=1,2", "--std=1,0,1", "--channels=grb"):
        with pytest.raises(ValueError, match=f"{wrong} is impossible"):
            CONVERT([str(tmp_path / "net.pth"), out, wrong])


def test_void_is_a_class_of_the_networks_alone():
    assert public.class_table(20).class_names[19] == "void"
    assert public.class_table(12).class_names[11] == "void"
    assert public.class_table(150).name == "ade20k"
    assert public.class_table(3).class_names == ("class 0", "class 1", "class 2")


def test_networks_that_are_not_here_are_refused(tmp_path):
    keys = LAYOUTS["Fast-SCNN of mmsegmentation"].marks
    torch.save(dict.fromkeys(keys, torch.zeros(1)), tmp_path / "mm.pth")
    with pytest.raises(ValueError, match="mm.pth is Fast-SCNN of mmsegmentation: its pyramid"):
        rtseg_jax.load(tmp_path / "mm.pth")
    torch.save({"some.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="has names of no network that is known; give --variant"):
        rtseg_jax.load(tmp_path / "other.pth")
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"torch.save\(module.state_dict\(\), FILE\)$"):
        rtseg_jax.load(tmp_path / "module.pth")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "net.safetensors"
    written("DABNet as its authors released it", path.with_suffix(".pth"))
    network = rtseg_jax.load(path.with_suffix(".pth"))
    network.save(path)
    return network, path


def test_half_the_size(small, tmp_path):
    network, path = small
    network.save(tmp_path / "half.safetensors", "float16")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * path.stat().st_size
    half = rtseg_jax.load(tmp_path / "half.safetensors")
    frame = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    assert (half(frame) == network(frame)).mean() > 0.95
    with pytest.raises(ValueError, match="a bundle has no dtype 'int8'; choose float32 or float16"):
        network.save(tmp_path / "net.safetensors", "int8")


def damaged(path, target, change):
    """A copy of a bundle whose values were changed."""
    variables, values = bundle.load(path)
    config = change(variables, values) or values["config"]
    values = {k: v for k, v in values.items() if k not in ("config", "version")}
    bundle.save(target, variables, config, **values)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, _: v["params"].pop("classifier") and None, "only in the network: params/cla"),
        (lambda v, _: v["params"].update(more={"a": np.zeros(1)}), "only in the file: params/more"),
        (lambda _, values: values["classes"].pop() and None, "has 18 classes and 19 colours"),
        (
            lambda _, values: values["classes"].pop() and values["palette"].pop() and None,
            "does not fit dabnet of 18 classes: other shapes",
        ),
        (
            lambda _, values: {**values["config"], "model": {"name": "dabnett", "options": {}}},
            "unknown model 'dabnett' .did you mean 'dabnet'",
        ),
    ],
)
def test_bundles_that_do_not_fit(small, tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as error:
        rtseg_jax.load(damaged(small[1], tmp_path / "net.safetensors", change))
    assert "\n" not in str(error.value)


def test_files_that_are_no_bundles(small, tmp_path):
    whole = small[1].read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.safetensors is no safetensors file, or cut off"):
        rtseg_jax.load(tmp_path / "cut.safetensors")
    newer = whole.replace(b'"version":"1"', b'"version":"9"')
    assert newer != whole
    (tmp_path / "newer.safetensors").write_bytes(newer)
    with pytest.raises(ValueError, match="is a bundle of version 9, and this reads up to 1"):
        rtseg_jax.load(tmp_path / "newer.safetensors")
    broken = whole.replace(b'"step":"0"', b'"step":"{"')
    (tmp_path / "broken.safetensors").write_bytes(broken)
    with pytest.raises(ValueError, match="its metadata are no JSON"):
        rtseg_jax.load(tmp_path / "broken.safetensors")


def test_shipped_networks_say_what_they_are():
    for name, path in networks.shipped().items():
        network = rtseg_jax.load(name)
        assert (path.parent / f"{name}.md").is_file()
        assert {"scores", "command", "licence"} <= network.facts.keys()
        json.dumps(dict(network.facts))
    with pytest.raises(FileNotFoundError, match="^eacnet_moon: no such folder or file"):
        rtseg_jax.load("eacnet_moon")
