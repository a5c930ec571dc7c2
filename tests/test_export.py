"""What is exported is the network: every one in StableHLO and ONNX, run where this project is not, refused if it differs."""

import collections
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
from jax import lax

from rtseg_jax import models
from rtseg_jax.base import config as settings
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import program as infer
from rtseg_jax.nn import attention, conv, norm, pool, resize
from rtseg_jax.programs import export, export_onnx
from rtseg_jax.weights import bundle
from tests import tiny_run
from tests.test_infer import MEAN, STD, VARIANTS, frames, network, unfrozen

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE = (64, 128)  # of the tiny run's frames


def run_onnx(model, given):
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"frames": given})[0]


def converted(variant, shape=(1, 65, 96, 3), output="classes"):
    model, variables = network(variant)
    program = infer.program(model, variables, mean=MEAN, std=STD, output=output)
    return export_onnx.convert(program, shape, output=output)


# Every network


def run_stablehlo(serialised, given):
    exported = jax.export.deserialize(bytearray(serialised))
    # Of the answer alone: what code the compiler makes of it does not matter here.
    compiled = jax.jit(exported.call).lower(given).compile({"xla_backend_optimization_level": 0})
    return np.asarray(compiled(given))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_network_in_both_formats(variant):
    """test_infer holds the program that is exported against the network."""
    model, variables = network(variant)
    program = infer.program(model, variables, mean=MEAN, std=STD, output="logits")
    wanted = run_stablehlo(export.stablehlo(program, (65, 96), None, ["cpu"]), frames())
    logits = run_onnx(converted(variant, output="logits"), frames())
    assert logits.shape == wanted.shape == (1, 65, 96, 11)
    assert np.abs(logits - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert (logits.argmax(-1) == wanted.argmax(-1)).mean() >= 0.9999
    np.testing.assert_array_equal(run_onnx(converted(variant), frames()), logits.argmax(-1))


@pytest.mark.parametrize("variant", ["eacnet_dabnet", "fast_scnn"])
def test_another_size_and_several_frames(variant):
    model, variables = network(variant)
    given = frames(batch=3, height=96, width=112)
    wanted = unfrozen(model, variables, given).argmax(-1)
    program = infer.program(model, variables, mean=MEAN, std=STD)
    hlo = run_stablehlo(export.stablehlo(program, (96, 112), None, ["cpu"]), given)
    in_onnx = run_onnx(converted(variant, (export_onnx.BATCH, 96, 112, 3)), given)
    assert hlo.dtype == in_onnx.dtype == np.uint8
    assert (hlo == wanted).mean() >= 0.9999
    assert (in_onnx == wanted).mean() >= 0.9999


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


# Nodes


@pytest.mark.parametrize(
    "variant, resizes, transposes",
    [
        ("eacnet_dabnet", 1, 4),  # three for the attention's products
        ("fast_scnn", 5, 1),
        ("carnet_mobilenet", 4, 1),
        ("erfnet", 0, 1),  # its logits have the frames' size
        ("affnet", 10, 1),
    ],
)
def test_an_operation_is_one_standard_node(variant, resizes, transposes):
    _, variables = network(variant)
    graph = converted(variant).graph
    counts = collections.Counter(node.op_type for node in graph.node)
    assert (counts["Resize"], counts["Transpose"]) == (resizes, transposes)
    assert counts["ArgMax"] == 1
    assert not counts.keys() & {"BatchNormalization", "Loop", "Scan", "If", "Gather", "Einsum"}

    # ERFNet's encoder head and CARNet's semantic vectors are of training alone.
    names = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
    ]
    unused = re.compile(r"/semantic/|^classifier/" if variant == "erfnet" else "/semantic/")
    kernels = {n: shape for n, shape in names if n.endswith("/kernel") and not unused.search(n)}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    groups = [onnx.helper.get_node_attr_value(node, "group") for node in convolutions]
    assert sum(g > 1 for g in groups) == sum(k[2] == 1 and k[3] > 1 for k in kernels.values())
    # CBAM's two layers see the mean, then the maximum.
    twice = [name for name in kernels if re.search(r"/attention\d/(hidden|output)/", name)]
    assert len(convolutions) == len(kernels) + len(twice)


@pytest.mark.parametrize("variant", ["fast_scnn", "carnet_mobilenet", "eacnet_erfnet"])
def test_nothing_per_channel_is_left_behind_a_convolution(variant):
    graph = converted(variant).graph
    convolutions = {node.output[0] for node in graph.node if node.op_type == "Conv"}
    constants = {weight.name for weight in graph.initializer}
    left = [
        node.name
        for node in graph.node
        if node.op_type in ("Mul", "Add") and {*node.input} & constants
        if {*node.input} & convolutions
    ]
    assert left == []


def test_activations_and_pools_are_nodes():
    counts = collections.Counter(node.op_type for node in converted("eacnet_dabnet").graph.node)
    _, variables = network("eacnet_dabnet")
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    assert counts["PRelu"] == sum(path[-1].key == "slope" for path, _ in leaves)
    assert (counts["AveragePool"], counts["MaxPool"], counts["Softmax"]) == (3, 2, 1)
    assert not counts.keys() & {"Greater", "Where", "Exp", "ReduceMax"}


def values(x):
    """Frames as numbers of both signs."""
    return x.astype(jnp.float32) / 64 - 2


def kernel(*shape):
    return jnp.asarray(np.random.default_rng(2).normal(size=shape), jnp.float32)


def shuffled(x):
    """The shuffle of channels between two groups."""
    b, h, w, _ = x.shape
    grouped = jnp.concatenate([x, 2 * x], -1).reshape(b, h, w, 2, 3)
    return grouped.transpose(0, 1, 2, 4, 3).reshape(b, h, w, 6)


def attended(x):
    tokens = x.reshape(x.shape[0], -1, 3)
    context = attention.dot_product_attention(tokens, tokens[:, :20], tokens[:, :20] * 2, scale=0.5)
    return x + context.reshape(x.shape)


OPERATIONS = {
    "conv": lambda x: conv.conv2d(x, kernel(3, 5, 3, 4), strides=(2, 1), padding=(1, 0)),
    "conv, then terms": lambda x: (
        (
            conv.conv2d(x, kernel(3, 3, 3, 4), kernel_dilation=(2, 1)) * kernel(1, 1, 1, 4)
            + kernel(1, 1, 1, 4)
        )
        * kernel(1, 1, 1, 4)
    ),
    "conv, read twice": lambda x: (lambda y: jnp.concatenate([y, y + kernel(1, 1, 1, 4)], -1))(
        conv.conv2d(x, kernel(3, 3, 3, 4))
    ),
    "depthwise": lambda x: conv.depthwise_conv2d(x, kernel(3, 1, 1, 3), padding=(1, 0)),
    "transposed": lambda x: (
        conv.conv_transpose2d(x, kernel(3, 3, 3, 4), padding=1, output_padding=1)
        * kernel(1, 1, 1, 4)
        + kernel(1, 1, 1, 4)
    ),
    "max_pool": lambda x: pool.max_pool(x, (3, 2), (2, 2), (1, 0), ceil_mode=True),
    "avg_pool": lambda x: pool.avg_pool(x, (3, 3), (2, 2), (1, 1)),
    "adaptive": lambda x: pool.adaptive_avg_pool(x, (2, 3)),
    "adaptive, all": lambda x: pool.adaptive_avg_pool(x, (1, 1)) + x,
    "half_pixel": lambda x: resize.resize_bilinear(x, (13, 7)),
    "align_corners": lambda x: resize.resize_bilinear(x, (13, 7), align_corners=True),
    "same size": lambda x: resize.resize_bilinear(x, x.shape[1:3]),
    "attention": attended,
    "prelu": lambda x: norm._prelu(x, jnp.array([0.2, -0.5, 2.0])),
    "relu": jax.nn.relu,
    "relu6": lambda x: jax.nn.relu6(4 * x),
    "sigmoid": jax.nn.sigmoid,
    "mean": lambda x: x - jnp.mean(x, (1, 2), keepdims=True),
    "mean of columns": lambda x: jnp.mean(x, 1),
    "max": lambda x: x * jnp.max(x, 3, keepdims=True),
    "norm": lambda x: x * lax.rsqrt(jnp.mean(jnp.square(x), (1, 2, 3), keepdims=True) + 1),
    "broadcast": lambda x: jnp.concatenate(
        [x, jnp.broadcast_to(jnp.mean(x, 1, keepdims=True), x.shape)], 2
    ),
    "shuffle": shuffled,
    "merge of axes apart": lambda x: x.transpose(0, 2, 1, 3).reshape(x.shape[0], -1, 3),
    "slice": lambda x: x[:, 1:8:2, :-1],
    "argmax": lambda x: jnp.argmax(jnp.maximum(x, 0), axis=3).astype(jnp.uint8),
    "argmax of rows": lambda x: jnp.argmax(x, axis=1).astype(jnp.uint8),
    "minimum": lambda x: jnp.minimum(x, x[:, :, :1]) - 1 / (4 + x),
}


@pytest.mark.parametrize("batch", [2, export_onnx.BATCH], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_in_onnx(name, batch):
    def program(x):
        return OPERATIONS[name](values(x))

    given = np.random.default_rng(3).integers(0, 256, (2, 9, 11, 3), np.uint8)
    model = export_onnx.convert(program, (batch, 9, 11, 3), output="result")
    wanted, found = np.asarray(jax.jit(program)(given)), run_onnx(model, given)
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "program, problem",
    [
        (lambda x: jnp.sin(values(x)), "no ONNX node for 'sin'; those known are add, argmax"),
        (
            lambda x: jnp.einsum("bhwc,bhwc->bh", values(x), values(x)),
            r"for this product: \(1, 9, 11, 3\) by \(1, 9, 11, 3\); those known are of matrices",
        ),
    ],
)
def test_what_has_no_node_is_named(program, problem):
    with pytest.raises(ValueError, match=problem):
        export_onnx.convert(program, (1, 9, 11, 3))


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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.write(tmp_path_factory.mktemp("runs") / "run")


@functools.cache
def predicted(workdir, batch):
    config, model, variables, _ = networks.load_run(workdir)
    options = {"mean": config.augment.mean, "std": config.augment.std}
    given = export.smooth_frames(batch, SIZE)[:, ::-1]
    return given, np.asarray(infer.freeze(model, variables, given.shape[:3], **options)(given))


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
    assert f"fast_scnn, step 7, 19 classes, as {format}\n" in printed
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
    assert (about["model"], about["step"]) == ("fast_scnn", "7")
    assert json.loads(about["classes"])[:2] == ["road", "sidewalk"]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
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
    given, *rest = networks.load_run(run)
    changed = tiny_run.override(given.copy_and_resolve_references(), config)
    seen = []
    monkeypatch.setattr(networks, "load_run", lambda *_: (changed, *rest))

    def program(*_, size, **__):
        seen.append(size)
        return lambda x: jnp.argmax(values(x), axis=-1).astype(jnp.uint8)

    monkeypatch.setattr(infer, "program", program)
    monkeypatch.setattr(export, "_run_onnx", lambda path: None)
    export.export_run(run, format="onnx", output=tmp_path / "a.onnx", size=size)
    assert capsys.readouterr().out.splitlines()[1:-2] == lines
    about = {e.key: e.value for e in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert lines[0].endswith("x".join(map(str, json.loads(about["seen"]))))
    assert seen == [changed.eval.size]


def test_predict_shows_what_the_file_does_with_the_options_that_are_told(run, tmp_path, capsys):
    export.export_run(run, format="onnx", output=tmp_path / "a.onnx", size=(65, 96))
    options = re.search(r"--size=(\d+)x(\d+) --multiple=(\d+)", capsys.readouterr().out)
    h, w, multiple = map(int, options.groups())
    given = export.smooth_frames(1, (65, 96))
    classes, _ = networks.frame_classifier(run, size=(h, w), multiple=multiple)
    agree = classes(given[0]) == run_onnx(onnx.load(tmp_path / "a.onnx"), given)[0]
    assert agree.mean() >= 0.9999


@pytest.mark.parametrize("format, dtype", [("onnx", "float16"), ("stablehlo", "bfloat16")])
def test_half_precision_is_a_smaller_file(run, tmp_path, format, dtype, capsys):
    export.export_run(run, format=format, output=tmp_path / "half", dtype=dtype, platforms=["cpu"])
    printed = capsys.readouterr().out
    bundle.save(tmp_path / "whole", networks.load_run(run)[2], networks.load_run(run)[0])
    assert (tmp_path / "half").stat().st_size < 0.7 * (tmp_path / "whole").stat().st_size
    assert 97 < float(printed.partition("batch 1: ")[2].partition(" %")[0]) <= 100


def test_weights_read_back_are_those_of_the_run(run, tmp_path, capsys):
    export.export_run(run, format="safetensors", output=tmp_path / "a.safetensors")
    assert "all equal" in capsys.readouterr().out
    config, model, variables = networks.load_bundle(tmp_path / "a.safetensors")
    assert config.augment.mean == networks.load_run(run)[0].augment.mean  # a tuple
    wanted_config, wanted_model, wanted, _ = networks.load_run(run)
    assert json.dumps(config.to_dict()) == json.dumps(wanted_config.to_dict())
    assert model == wanted_model
    assert jax.tree.structure(variables) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, variables, wanted)


def test_a_network_that_is_read_back_can_be_static(tmp_path):
    config = settings.load("camvid_best:eacnet_erfnet,short")
    assert config.model.options.dropout == (0.0, 0.1)
    weights = {"params": {"classifier": {"bias": np.zeros(2, np.float32)}}}
    bundle.save(tmp_path / "a.safetensors", weights, config, classes=["a", "b"])
    found, model, _ = networks.load_bundle(tmp_path / "a.safetensors")
    assert hash(model) == hash(
        models.create("eacnet_erfnet", num_classes=2, **settings.model_options(config))
    )
    assert found.to_dict() == config.to_dict()


def test_weights_have_their_paths_for_names(run, tmp_path):
    export.export_run(run, format="safetensors", output=tmp_path / "a.safetensors")
    from safetensors.numpy import load_file

    shapes = {name: array.shape for name, array in load_file(tmp_path / "a.safetensors").items()}
    assert shapes["params/classifier/conv/kernel"] == (1, 1, 128, 19)
    assert "batch_stats/fusion/deep/norm/var" in shapes


def test_a_file_of_other_weights_is_refused(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(FileNotFoundError, match="no file .*missing"):
        networks.load_bundle(tmp_path / "missing")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "twin")
    with pytest.raises(ValueError, match="twin holds no config; this reads what --format=safet"):
        networks.load_bundle(tmp_path / "twin")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(ValueError, match="text is no safetensors file: "):
        networks.load_bundle(tmp_path / "text")


def test_a_file_that_differs_is_not_written_and_the_old_one_stays(run, tmp_path, monkeypatch):
    other, weights = models.create("fast_scnn", num_classes=19), network("fast_scnn", 19)[1]
    weights = jax.tree.map(lambda v: v[..., ::-1], weights)
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


def _frozen(run, shape, *, mean, std, size, output):
    _, model, variables, _ = networks.load_run(run)
    assert output == "logits"
    return lambda given: unfrozen(model, variables, given)


def test_a_platform_that_is_not_here_is_told(run, tmp_path, capsys):
    export.export_run(run, format="stablehlo", output=tmp_path / "a", platforms=["tpu"])
    assert "not compared: this machine has none of tpu\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"format": "pt"}, "unknown format 'pt'; choose one of stablehlo, onnx, safetensors"),
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
    monkeypatch.setattr(networks, "load_run", None)
    (tmp_path / "file").write_text("x")
    for name, problem in (
        ("", "is a folder; give a file, as .*net.onnx"),
        ("file/a.onnx", "file is a file where a folder is to be; give another --output"),
    ):
        with pytest.raises(ValueError, match=problem):
            export.export_run(tmp_path, format="onnx", output=tmp_path / name)


def test_frames_of_any_size_need_a_size(tmp_path):
    workdir = tiny_run.write(tmp_path / "run", input__size=None)
    with pytest.raises(ValueError, match="frames of the files' own size; give theirs as --size="):
        export.export_run(workdir, format="onnx", output=tmp_path / "a")


def test_a_missing_package_names_its_extra(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"takes onnx; .* pip install 'rtseg_jax\[onnx\]'"):
        export.export_run(run, format="onnx", output=tmp_path / "a")


FLAGS = {
    "workdir": "/runs/a",
    "format": "onnx",
    "output": "/out/a.onnx",
    "checkpoint": "best",
    **dict.fromkeys(("size", "batch", "dtype", "platforms")),
}


def test_flags_that_are_given_are_passed_on():
    paths = {"workdir": pathlib.Path("/runs/a"), "output": pathlib.Path("/out/a.onnx")}
    plain = {**paths, "format": "onnx", "which": "best"}
    assert export._options(FLAGS) == plain
    given = {"size": "360x480", "batch": "dynamic", "dtype": "float16"}
    read = {"size": (360, 480), "batch": None, "dtype": "float16"}
    assert export._options({**FLAGS, **given}) == {**plain, **read}
    assert export._options({**FLAGS, "batch": "4"})["batch"] == 4


def test_the_home_folder_is_understood_in_flags(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = export._options({**FLAGS, "workdir": "~/run", "output": "~/a.onnx"})
    assert (str(found["workdir"]), str(found["output"])) == ("/home/me/run", "/home/me/a.onnx")


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"batch": "0"}, "--batch=0 is neither a number of frames nor 'dynamic'"),
        ({"batch": "all"}, "--batch=all is neither"),
        ({"size": "360"}, "size '360' is not HEIGHTxWIDTH"),
        ({"size": "own"}, "--size=own: a file is for frames of one size"),
        ({"platforms": ["cpu"]}, "--format=onnx has no --platforms; leave it out"),
        ({"format": "safetensors", "dtype": "float16"}, "--format=safetensors has no --dtype"),
    ],
)
def test_flags_that_cannot_be_are_one_line(given, problem):
    with pytest.raises(ValueError, match=problem):
        export._options({**FLAGS, **given})


def test_program_of_the_command_line(run, tmp_path):
    command = [sys.executable, "-m", "rtseg_jax.export", f"--workdir={run}"]
    result = subprocess.run(
        [*command, "--format=safetensors", f"--output={tmp_path / 'a'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0 and f"written: {tmp_path / 'a'}" in result.stdout
