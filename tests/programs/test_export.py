"""What is exported is the network: every one in StableHLO and ONNX, run where this project is not, refused if it differs."""

import dataclasses
import functools
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from rtseg_jax import models, torch_ref
from rtseg_jax.base import config as settings
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import program as infer
from rtseg_jax.models import flops
from rtseg_jax.programs import export
from rtseg_jax.programs.shared.command_line import Flags
from rtseg_jax.programs.shared.frames import smooth_frames
from rtseg_jax.torch_ref.blocks import ConvBatchNorm
from rtseg_jax.weights import bundle
from tests import tiny
from tests.inference.test_infer import MEAN, STD, frames, network, unfrozen
from tests.models.filling import filled
from tests.networks import COMPILED

SIZE = (64, 128)  # of the tiny run's frames


def run_onnx(path, given):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"frames": given})[0]


def in_onnx(path, variant, size=(65, 96), batch=1, **options):
    """Writes an ONNX file of the network of test_infer with this name."""
    _, variables = network(variant)
    seen = {"num_classes": 11, "options": options, "mean": MEAN, "std": STD}
    export.onnx(path, variant, variables, size, batch, {}, **seen)
    return path


# Every network


def run_stablehlo(serialised, given):
    return np.asarray(jax.export.deserialize(bytearray(serialised)).call(given))


PAPERS = ("eacnet_dabnet", "carnet_mobilenet", "affnet", "asap")


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=[pytest.mark.slow] * (v not in PAPERS)) for v in COMPILED]
)
def test_every_network_in_stablehlo(variant):
    """test_infer holds the program that is exported against the network."""
    model, variables = network(variant)
    program = infer.program(model, variables, mean=MEAN, std=STD)
    classes = run_stablehlo(export.stablehlo(program, (65, 96), None, ["cpu"]), frames())
    wanted = unfrozen(model, variables, frames()).argmax(-1)
    assert classes.dtype == np.uint8 and (classes == wanted).mean() >= 0.9999


# One network of each paper: the twins of all are held against the networks by test_torch_parity.
@pytest.mark.parametrize("variant", PAPERS)
def test_a_network_of_each_paper_in_onnx(variant, tmp_path):
    model, variables = network(variant)
    classes = run_onnx(in_onnx(tmp_path / "net.onnx", variant), frames())
    wanted = unfrozen(model, variables, frames()).argmax(-1)
    assert classes.dtype == np.uint8 and (classes == wanted).mean() >= 0.9999


def test_another_size_and_several_frames(tmp_path):
    model, variables = network("fast_scnn")
    given = frames(batch=3, height=96, width=112)
    wanted = unfrozen(model, variables, given).argmax(-1)
    program = infer.program(model, variables, mean=MEAN, std=STD)
    hlo = run_stablehlo(export.stablehlo(program, (96, 112), None, ["cpu"]), given)
    file = in_onnx(tmp_path / "net.onnx", "fast_scnn", (96, 112), batch=None)
    assert (hlo == wanted).mean() >= 0.9999
    assert (run_onnx(file, given) == wanted).mean() >= 0.9999


def test_an_ablation_in_onnx(tmp_path, monkeypatch):
    model = models.create("eacnet_erfnet", num_classes=11, attention="none")
    variables = jax.tree.map(jnp.asarray, filled(flops.variable_shapes(model)))
    monkeypatch.setitem(globals(), "network", lambda _: (model, variables))
    file = in_onnx(tmp_path / "net.onnx", "eacnet_erfnet", attention="none")
    wanted = unfrozen(model, variables, frames()).argmax(-1)
    assert (run_onnx(file, frames()) == wanted).mean() >= 0.9999


def test_one_file_for_several_platforms():
    model, variables = network("eacnet_dabnet")
    program = infer.program(model, variables, mean=MEAN, std=STD)
    serialised = export.stablehlo(program, (65, 96), 1, ["cpu", "cuda", "tpu"])
    exported = jax.export.deserialize(bytearray(serialised))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    # Each takes its own form of a depth-wise convolution.
    assert "feature_group_count = 32" in exported.mlir_module()
    classes = run_stablehlo(serialised, frames())
    assert (classes == unfrozen(model, variables, frames()).argmax(-1)).mean() >= 0.9999


# The comparison


def classes_of(logits, worst=0):
    """The classes of a function of one frame for several, or in their place those of the rank `worst`."""

    def run(given):
        scores = np.concatenate([logits(given[i : i + 1]) for i in range(len(given))])
        return np.argsort(-scores, axis=-1, kind="stable")[..., worst].astype(np.uint8)

    return run


def brightness(given):
    return np.stack([given[..., 0], given[..., 1], given[..., 2]], -1).astype(np.float32)


def almost_level(given):
    return 100 + brightness(given) / 1e4


def test_comparison_counts_equal_pixels():
    assert export.compare(classes_of(brightness), brightness, (8, 9), (1, 3), 1e-3) == 1.0
    runner_up = classes_of(almost_level, worst=1)
    assert export.compare(runner_up, almost_level, (8, 9), (2,), 1e-3) == 0.0


@pytest.mark.parametrize(
    "run, problem",
    [
        (
            classes_of(brightness, worst=1),
            "not the network: .* % of pixels agree, and a score is .* of the largest below the best, 0.001",
        ),
        (lambda x: classes_of(brightness)(x)[:, 1:], r"gives uint8 \(2, 7, 9\) for frames \(2, 8"),
        (lambda x: classes_of(brightness)(x).astype(np.int64), r"gives int64 \(2, 8, 9\)"),
        (lambda x: classes_of(brightness)(x) + np.uint8(1), "gives class 3 of 3"),
    ],
)
def test_comparison_refuses(run, problem):
    with pytest.raises(ValueError, match=problem):
        export.compare(run, brightness, (8, 9), (2,), 1e-3)


# Of a run


class Twin(torch.nn.Module):
    """The tiny network in PyTorch."""

    def __init__(self, num_classes, attention="some"):
        super().__init__()
        part = functools.partial(ConvBatchNorm, features=8, activation=torch.relu)
        self.backbone = torch.nn.Sequential()
        self.backbone.stem, self.backbone.block = part(3, stride=2), part(8)
        self.classifier = torch.nn.Conv2d(8, num_classes, 1)
        self.attention = torch.nn.Module()
        self.attention.alpha = torch.nn.Parameter(torch.zeros(()))
        self.attention.value = torch.nn.Conv2d(num_classes, num_classes, 1)

    def forward(self, image):
        x = self.classifier(self.backbone(image))
        return x + self.attention.alpha * self.attention.value(x)


def write(workdir, **overrides):
    return tiny.write(workdir, tiny.config("fast_scnn:smoke", **overrides))


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_network):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(torch_ref.VARIANTS, "tiny", (Twin, {}))
        yield write(tmp_path_factory.mktemp("runs") / "run")


@functools.cache
def predicted(workdir, batch):
    trained = networks.load(workdir)
    options = {"mean": trained.config.augment.mean, "std": trained.config.augment.std}
    given = smooth_frames(batch, SIZE)[:, ::-1]
    return given, np.asarray(
        infer.freeze(trained.model, trained.variables, given.shape[:3], **options)(given)
    )


STANDALONE = """
import sys
sys.modules["rtseg_jax"] = None
import numpy
frames = numpy.load(sys.argv[2])
"""
SNIPPETS = {
    "onnx": """
import onnxruntime
classes = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"frames": frames})[0]
""",
    "stablehlo": """
import jax.export
classes = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call(frames)
""",
}


@pytest.mark.parametrize("format", SNIPPETS)
def test_file_runs_where_this_project_is_not(run, tmp_path, format, capsys):
    output = tmp_path / "new" / f"net.{format}"
    export.export_run(run, format=format, output=output, batch=None, platforms=["cpu"])
    printed = capsys.readouterr().out
    assert f"tiny, step 7, 19 classes, as {format}\n" in printed
    assert "at 64x128, batch 1 and 3: 100.000 % of pixels agree\n" in printed
    assert f"written: {output} (" in printed
    assert [path.name for path in output.parent.iterdir()] == [output.name]

    given, wanted = predicted(run, 2)
    np.save(tmp_path / "frames.npy", given)
    save = '\nnumpy.save(sys.argv[2] + ".classes.npy", classes)'
    code = STANDALONE + SNIPPETS[format] + save
    subprocess.run(
        [sys.executable, "-I", "-c", code, output, tmp_path / "frames.npy"],
        check=True,
        cwd=tmp_path,
    )
    classes = np.load(tmp_path / "frames.npy.classes.npy")
    assert classes.dtype == np.uint8
    assert (classes == wanted).mean() >= 0.9999
    assert len(np.unique(wanted)) > 1


def test_onnx_file_says_what_it_is(run, tmp_path):
    export.export_run(run, format="onnx", output=tmp_path / "a.onnx", size=(65, 96), batch=2)
    model = onnx.load(tmp_path / "a.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert (about["model"], about["step"]) == ("tiny", "7")
    assert json.loads(about["classes"])[:2] == ["road", "sidewalk"]
    assert {entry.domain: entry.version for entry in model.opset_import}[""] >= 18
    (given,), (result,) = model.graph.input, model.graph.output
    sizes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (given, result)]
    assert sizes == [[2, 65, 96, 3], [2, 65, 96]]


@pytest.mark.parametrize(
    "config, size, lines",
    [
        ({}, None, ["takes frames of 64x128; the network sees 64x128"]),
        ({"eval__size": (32, 64)}, (65, 96), ["takes frames of 65x96; the network sees 32x64"]),
        (
            {},
            (65, 96),
            [
                "takes frames of 65x96; the network sees 65x96",
                "predict shows it 64x128 of such a frame, and with --size=65x96 --multiple=0 what this file does; "
                "export --size=64x128 is for frames of that size",
            ],
        ),
        (
            {"input__size": None, "eval__multiple": 32},
            (65, 96),
            [
                "takes frames of 65x96; the network sees 65x96",
                "predict shows it 96x96 of such a frame, and with --size=65x96 --multiple=0 what this file does; "
                "export --size=96x96 is for frames of that size",
            ],
        ),
    ],
)
def test_what_a_program_sees_is_told(run, tmp_path, monkeypatch, capsys, config, size, lines):
    trained = networks.load(run)
    changed = tiny.override(trained.config.copy_and_resolve_references(), config)
    other = dataclasses.replace(trained, config=changed)
    seen = []
    monkeypatch.setattr(networks, "load", lambda *_: other)

    def onnx(path, *_, size, **__):
        seen.append(size)
        path.write_bytes(json.dumps(_[4]).encode())

    monkeypatch.setattr(export, "onnx", onnx)
    monkeypatch.setattr(export, "_run_onnx", lambda path: None)
    export.export_run(run, format="onnx", output=tmp_path / "a.onnx", size=size)
    assert capsys.readouterr().out.splitlines()[1:-2] == lines
    about = json.loads((tmp_path / "a.onnx").read_text())
    assert lines[0].endswith("x".join(map(str, json.loads(about["seen"]))))
    assert seen == [changed.eval.size]


def test_predict_shows_what_the_file_does_with_the_options_that_are_told(run, tmp_path, capsys):
    export.export_run(run, format="onnx", output=tmp_path / "a.onnx", size=(65, 96))
    options = re.search(r"--size=(\d+)x(\d+) --multiple=(\d+)", capsys.readouterr().out)
    h, w, multiple = map(int, options.groups())
    given = smooth_frames(1, (65, 96))
    classes = networks.load(run).seeing(size=(h, w), multiple=multiple)
    agree = classes(given[0]) == run_onnx(tmp_path / "a.onnx", given)[0]
    assert agree.mean() >= 0.9999


@pytest.mark.parametrize("format, dtype", [("onnx", "float16"), ("stablehlo", "bfloat16")])
def test_half_precision_is_a_smaller_file(tmp_path, format, dtype, capsys):
    run = tiny.write(tmp_path / "run")
    export.export_run(run, format=format, output=tmp_path / "half", dtype=dtype, platforms=["cpu"])
    printed = capsys.readouterr().out
    trained = networks.load(run)
    bundle.save(tmp_path / "whole", trained.variables, trained.config.to_dict(), classes=[])
    assert (tmp_path / "half").stat().st_size < 0.7 * (tmp_path / "whole").stat().st_size
    assert 97 < float(printed.partition("batch 1: ")[2].partition(" %")[0]) <= 100


def test_weights_read_back_are_those_of_the_run(run, tmp_path, capsys):
    export.export_run(run, format="bundle", output=tmp_path / "a.safetensors")
    assert "found equal" in capsys.readouterr().out
    read, wanted = networks.load(tmp_path / "a.safetensors"), networks.load(run)
    assert (read.table, read.step, read.model) == (wanted.table, 7, wanted.model)
    assert read.config.augment.mean == wanted.config.augment.mean  # a tuple
    config = wanted.config.to_dict()
    config["input"]["root"] = ""  # a place on another's machine
    assert json.dumps(read.config.to_dict()) == json.dumps(config)
    assert jax.tree.structure(read.variables) == jax.tree.structure(wanted.variables)
    jax.tree.map(np.testing.assert_array_equal, read.variables, wanted.variables)


def test_a_network_that_is_read_back_can_be_static(tmp_path):
    config = settings.load("camvid_best:eacnet_erfnet,short")
    assert config.model.options.dropout == (0.0, 0.1)
    options = settings.model_options(config)
    weights = filled(
        flops.variable_shapes(models.create("eacnet_erfnet", num_classes=2, **options))
    )
    bundle.save(tmp_path / "a.safetensors", weights, config.to_dict(), classes=["a", "b"])
    read = networks.load(tmp_path / "a.safetensors")
    assert hash(read.model) == hash(
        models.create("eacnet_erfnet", num_classes=2, **settings.model_options(config))
    )
    assert read.config.to_dict() == config.to_dict()


def test_weights_have_their_paths_for_names(run, tmp_path):
    export.export_run(run, format="bundle", output=tmp_path / "a.safetensors")
    from safetensors.numpy import load_file

    shapes = {name: array.shape for name, array in load_file(tmp_path / "a.safetensors").items()}
    assert shapes["params/classifier/kernel"] == (1, 1, 8, 19)
    assert "batch_stats/backbone/block/norm/var" in shapes


def test_a_file_of_other_weights_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "twin")
    with pytest.raises(ValueError, match="twin is no bundle, its metadata lack classes and config"):
        bundle.load(tmp_path / "twin")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match="text is no safetensors file, or cut off: "):
        bundle.load(tmp_path / "text")


def test_a_file_that_differs_is_not_written_and_the_old_one_stays(run, tmp_path, monkeypatch):
    other, weights = network("tiny", 19)
    weights = jax.tree.map(jnp.flip, weights)
    monkeypatch.setattr(
        export.infer,
        "program",
        functools.partial(
            lambda make, *_, **options: make(other, weights, **options), infer.program
        ),
    )
    monkeypatch.setattr(
        export.infer, "freeze", lambda *args, **options: _frozen(run, *args[2:], **options)
    )
    output = tmp_path / "net.onnx"
    output.write_text("the old one")
    with pytest.raises(ValueError, match="the exported program is not the network"):
        export.export_run(run, format="onnx", output=output)
    assert output.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def _frozen(run, shape, *, output, **seen):
    trained = networks.load(run)
    assert output == "logits"
    return lambda given: unfrozen(trained.model, trained.variables, given)


def test_a_platform_that_is_not_here_is_told(run, tmp_path, capsys):
    export.export_run(run, format="stablehlo", output=tmp_path / "a", platforms=["tpu"])
    assert "not compared: this machine has none of tpu\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"format": "pt"}, "unknown format 'pt'; choose one of stablehlo, onnx, bundle"),
        ({"dtype": "bfloat16"}, "onnx takes no dtype 'bfloat16'; choose float32 or float16"),
        ({"platforms": ["gpu"]}, "unknown platform 'gpu'; choose from cpu, cuda, rocm, tpu"),
        ({"which": "3"}, "no checkpoint '3'"),
    ],
)
def test_impossible_wishes_are_one_line(run, tmp_path, options, problem):
    with pytest.raises(ValueError, match=problem):
        export.export_run(run, **{"format": "onnx", "output": tmp_path / "a", **options})
    assert [*tmp_path.iterdir()] == []


def test_an_output_that_cannot_be_a_file_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "load", None)
    (tmp_path / "file").write_text("x")
    for name, problem in (
        ("", "is a folder; give a file, as .*net.onnx"),
        ("file/a.onnx", "file is a file where a folder is to be; give another --output"),
    ):
        with pytest.raises(ValueError, match=problem):
            export.export_run(tmp_path, format="onnx", output=tmp_path / name)


def test_frames_of_any_size_need_a_size(tmp_path, tiny_network):
    workdir = write(tmp_path / "run", input__size=None)
    with pytest.raises(
        ValueError, match="is for frames of any size; give that of the file's as --size="
    ):
        export.export_run(workdir, format="onnx", output=tmp_path / "a")


def test_a_missing_package_names_its_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"takes onnx; .* pip install 'rtseg_jax\[onnx\]'"):
        export.export_run(run, format="onnx", output=tmp_path / "a")


def options_of(*arguments):
    flags = Flags(["--workdir=/runs/a", "--output=~/a", *arguments])
    export.define(flags)
    given, _ = flags.parse()
    return given, export._options(given)


def test_flags_that_are_given_are_passed_on(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given, options = options_of("--format=onnx")
    assert (given.format, given.checkpoint, options) == ("onnx", "best", {})
    assert given.output == pathlib.Path("/home/me/a")
    _, options = options_of("--size=360x480", "--batch=dynamic", "--dtype=float16")
    assert options == {"size": (360, 480), "batch": None, "dtype": "float16"}
    assert options_of("--batch=4")[1] == {"batch": 4}


@pytest.mark.parametrize(
    "given, problem",
    [
        (["--batch=0"], "--batch=0 is neither a number of frames nor 'dynamic'"),
        (["--batch=all"], "--batch=all is neither"),
        (["--size=360"], "size '360' is not HEIGHTxWIDTH"),
        (["--size=own"], "--size=own: a file is for frames of one size"),
        (["--format=onnx", "--platforms=cpu"], "--format=onnx has no --platforms; leave it out"),
        (["--format=bundle", "--size=32x64"], "--format=bundle has no --size"),
    ],
)
def test_flags_that_cannot_be_are_one_line(given, problem):
    with pytest.raises(ValueError, match=problem):
        options_of(*given)


def test_program_of_the_command_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "prepare_process", lambda: None)
    output = tmp_path / "a.safetensors"
    assert export.PROGRAM([f"--workdir={run}", "--format=bundle", f"--output={output}"]) == 0
    assert f"written: {output}" in capsys.readouterr().out
