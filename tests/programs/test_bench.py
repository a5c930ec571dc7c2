"""Rivals are timed by stated clocks, only when they agree, and every figure reaches the tables."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from rtseg_jax.programs.bench import clock, rivals
from rtseg_jax.programs.bench import main as bench
from rtseg_jax.programs.bench import tables as bench_tables
from tests import compiling
from tests.models.counts import PARAMETERS

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def spartan(tmp_path):
    """PYTHONPATH of a machine without ml_collections, tensorflow and tensorboardX."""
    for name in ("ml_collections", "tensorflow", "tensorboardX"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')\n")
    return str(tmp_path)


@pytest.fixture
def one_thread(monkeypatch):
    """PyTorch's threads spin while they wait, which takes long where others work too."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    monkeypatch.setattr(clock, "cpus", lambda: 1)
    yield
    torch.set_num_threads(threads)


# As `rtseg bench`, on one processor: threads that wait for each other spin.
PROGRAM = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from rtseg_jax.__main__ import main
sys.exit(main(["bench", *sys.argv[1:]]))
"""


def program(*arguments, path=""):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "--device=cpu", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "XLA_FLAGS": compiling.FLAGS, "PYTHONPATH": path},
    )


def test_program(tmp_path, spartan):
    """Three frameworks agree and are timed by three clocks; a rival that cannot start is a row that says so."""
    for package in ("torch", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    output = tmp_path / "cpu.jsonl"
    arguments = ["--models=fast_scnn", "--sizes=64x96", "--num_classes=11", f"--output={output}"]
    arguments += ["--mode=throughput,latency,e2e", "--rounds=2", "--seconds=0"]
    arguments += ["--flags=--xla_no_such_flag=1", "--torch_variants=eager,folded"]
    result = program(*arguments, path=spartan)
    assert result.stderr.splitlines()[-1] == (
        "error: not every rival was measured; the table says why"
    )
    assert result.returncode == 1
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [bench_tables.name_of(line) for line in lines[::3]] == [
        "jax frozen",
        "jax frozen --xla_no_such_flag=1",
        "torch eager",
        "torch folded",
        "onnxruntime default",
    ]
    for line in lines:
        if line["flags"]:
            assert "Unknown flag in XLA_FLAGS: --xla_no_such_flag=1" in line["error"]
            continue
        assert line["ms_low"] <= line["ms"] <= line["ms_high"]
        assert line["fps"] == pytest.approx(1000 / line["ms"], rel=1e-3)
        assert ("p95" in line) == (line["mode"] != "throughput")
        assert line["agreement" if line["backend"] != "jax" else "temporary_bytes"] > 0.999
        assert line["compile_seconds"] > 0
        assert {"model": "fast_scnn", "height": 64, "width": 96, "batch": 1}.items() <= line.items()
        assert line["parameters"] == PARAMETERS["fast_scnn"][11]
        assert line["malloc"] == bench.MALLOC
    assert (tmp_path / "cpu.md").read_text() == bench_tables.markdown(lines)
    assert program(*arguments, "--resume", path=spartan).stderr == (
        "fast_scnn 64x96 float32: already there\n"
    )
    assert len(output.read_text().splitlines()) == len(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models=asp"], "error: unknown model 'asp' (did you mean 'asap'?); choose one of erfn"),
        (["--mode=e2e"], "error: give --output=FILE.jsonl; the lines are appended to it"),
        (["--rounds=0"], "error: flag --rounds=0: 0 is not a positive integer"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, capsys):
    assert bench.PROGRAM.run(["--device=cpu", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match="size '512' is not HEIGHTxWIDTH in pixels, as 512x1024"):
        bench.PROGRAM(["--sizes=512", "--output=x"])
    with pytest.raises(ValueError, match="--mode: unknown 'fps'; choose of throughput, latency"):
        bench._choose("mode", ["e2e", "fps"], bench.MODES)


# Rivals

REQUEST = {
    **{"model": "dabnet", "height": 32, "width": 48, "batch": 2, "num_classes": 5},
    **{"dtype": "float32", "device": "cpu", "tf32": None, "seconds": 0.0, "options": {}},
}


def test_training_steps_start_from_the_same_loss(tmp_path, one_thread):
    """Weights, frames, labels and objective are the same: DABNet has no dropout."""
    bench.write_weights(bench.random_variables("dabnet", 5), tmp_path / "weights")
    request = {**REQUEST, "weights": str(tmp_path / "weights")}
    losses = []
    for build in (rivals.jax_training, rivals.torch_training):
        rival = build({**request, "variant": "channels_last"})
        first = rival.get(rival.call(rival.inputs[0]))
        losses.append((first, rival.get(rival.call(rival.inputs[0]))))
    (ours, ours_then), (theirs, theirs_then) = losses
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours_then == pytest.approx(theirs_then, rel=1e-2) and ours_then < 0.99 * ours


@pytest.mark.parametrize(
    ("variant", "dtype"), [("folded", "float32"), ("channels_last", "bfloat16")]
)
def test_torch_variants_name_the_same_classes(tmp_path, one_thread, variant, dtype):
    bench.write_weights(bench.random_variables("carnet_mobilenet", 5), tmp_path / "weights")
    request = {**REQUEST, "model": "carnet_mobilenet", "weights": str(tmp_path / "weights")}
    exact = rivals.torch_inference({**request, "variant": "eager"})
    other = rivals.torch_inference({**request, "variant": variant, "dtype": dtype})
    wanted, found = (r.get(r.call(r.put(rivals.frames_of(request)[1]))) for r in (exact, other))
    assert len(np.unique(wanted)) > 1
    assert (found == wanted).mean() >= bench.AGREEMENT[dtype]
    assert found.dtype == np.uint8


def test_layers(tmp_path):
    """Every module to the depth once, with its multiply-adds; like blocks are timed together, and a size among the arguments stays one."""
    bench.write_weights(bench.random_variables("espnet", 5), tmp_path / "weights")
    request = {**REQUEST, "model": "espnet", "weights": str(tmp_path / "weights")}
    answer = rivals.layers({**request, "batch": 1, "depth": 1})
    assert [row["path"] for row in answer["rows"]] == ["backbone", "classifier", "decoder"]
    assert all(row["ms"] > 0 and row["calls"] == 1 for row in answer["rows"])
    whole = bench.prepare({**request, "batch": 1}, tmp_path, None)["macs"]
    assert sum(row["macs"] for row in answer["rows"]) == whole
    table = bench_tables.layer_table(
        {**request, "batch": 1}, {**answer, "whole_ms": 2 * answer["rows"][0]["ms"]}
    )
    assert "| backbone | ESPNetBackbone | 1x32x48x3 | 1 |" in table
    assert "| 50.0 % |" in table


def counting(log):
    return clock.Rival(
        inputs=[0, 1, 2, 3],
        call=lambda x: log.append(f"call {x}") or x,
        wait=lambda x: log.append(f"wait {x}"),
        put=lambda x: x,
        get=lambda x: log.append(f"get {x}") or x,
        about={},
    )


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("throughput", ["call 0", "call 1", "call 2", "wait 2"]),
        ("train", ["call 0", "call 1", "call 2", "wait 2"]),
        ("latency", ["call 0", "wait 0", "call 1", "wait 1", "call 2", "wait 2", "wait 2"]),
        ("e2e", ["call a", "get a", "call b", "get b", "call a", "get a"]),
    ],
)
def test_clocks(mode, wanted):
    log = []
    ms, spans, _ = clock.time_round(counting(log), mode, 3, ["a", "b"])
    assert log == ["call 0", "wait 0", *wanted]
    assert ms > 0 and len(spans) == (3 if mode in ("latency", "e2e") else 0)


def test_foreign_work_is_seen():
    """A neighbour that keeps a processor busy shows, our own work does not."""
    if clock.machine_seconds() is None:
        pytest.skip("no /proc/stat")
    code = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as neighbour:
        try:
            rivals.time.sleep(0.2)
            with clock.Foreign() as foreign:
                rivals.time.sleep(1.0)
        finally:
            neighbour.kill()
    assert foreign.share > 0.5 / os.cpu_count()


# Agreement


class Answering(bench.Process):
    """A process that hands over a class map."""

    def __init__(self, classes):
        self.classes = classes

    def ask(self, do, path):
        assert do == "classes"
        np.save(path, self.classes)
        return {}


def maps(wrong):
    classes = np.zeros((1, 100, 100), np.uint8)
    classes[:, 50:] = 2
    classes.flat[:wrong] = 1
    return classes


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda c: np.zeros_like(c), r"little beyond chance, kappa 0.00 < 0.8$"),
        (lambda c: c[::-1, ::-1, ::-1], r"little beyond chance, kappa -0.01 < 0.8$"),
        (lambda c: c[:, :50], r"class map is \(1, 50, 100\), that of jax \(1, 100, 100\)$"),
    ],
)
def test_agreeing_on_one_common_class_is_no_agreement(other, message):
    """A constant map would pass a bound on pixels where the weights give 99 % of them to one class."""
    reference = np.zeros((1, 100, 100), np.uint8)
    reference[:, :1] = 7
    case = {"device": "gpu", "dtype": "float32", "tf32": "on"}
    assert bench.disagreement(reference, reference, case, "jax") is None
    wrong = bench.disagreement(other(reference), reference, case, "jax")
    assert re.search(message, wrong)


@pytest.mark.parametrize(
    ("device", "dtype", "tf32", "allowed"),
    [
        ("cpu", "float32", None, 10),
        ("gpu", "float32", "off", 10),
        ("gpu", "float32", "on", 200),
        ("cpu", "bfloat16", None, 1000),
    ],
)
def test_a_rival_that_disagrees_is_not_timed(tmp_path, device, dtype, tf32, allowed):
    case = {"device": device, "dtype": dtype, "tf32": tf32}
    rivals = [{"backend": b, "variant": "v", "flags": None} for b in bench_tables.BACKENDS]
    facts = [{}, {}, {}]
    processes = [Answering(maps(n)) for n in (0, allowed, allowed + 1)]
    bench.compare(case, rivals, processes, facts, tmp_path)
    assert facts[:2] == [{}, {"agreement": 1 - allowed / 10_000}]
    assert facts[2]["error"].startswith("not timed: its class map is that of jax v on ")
    line = bench.record({**REQUEST, **case}, rivals[2], "e2e", facts[2], {}, 0.0)
    assert "ms" not in line


# Tables


def line(backend="jax", variant="frozen", ms=10.0, **facts):
    return {
        **{"model": "asap", "height": 512, "width": 1024, "batch": 1, "num_classes": 19},
        **{"dtype": "float32", "mode": "throughput", "platform": "gpu", "device": "H200"},
        **{"tf32": "on", "flags": None, "code": bench.code_version(), "load_before": 0.1},
        **{"backend": backend, "variant": variant, "ms": ms, "ms_low": ms, "ms_high": ms},
        **{"fps": 1000 / ms, "compile_seconds": 3.0, "temporary_bytes": 2**20, "foreign": 0.0},
        **{"parameters": 11_967_737, "macs": 24_359_000_000, "versions": {backend: "1.0"}},
        **facts,
    }


LINES = [
    line(),
    line(ms=2.0, flags="--xla_fast"),
    line("torch", "eager", 40.0),
    line("torch", "cuda_graph", 15.0),
    line("onnxruntime", "default", 5.0),
    line(model="fast_scnn", ms=4.0, num_classes=19),
    line("torch", "eager", 24.0, model="fast_scnn"),
]


def test_table():
    """Ours against the best torch and onnxruntime, the paper's figure beside; a flag set is never "ours"."""
    text = bench_tables.markdown(LINES).splitlines()
    (row,) = [t for t in text if t.startswith("| asap | 512x1024 | 10.00")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:9] == ["10.00", "100.0", "15.00", "cuda_graph", "1.50", "5.00", "0.50"]
    assert cells[9:] == ["3.0", "1", "96 (GTX 1080 Ti; ASAP, Table I)"]
    assert "Against the best torch, geometric mean of 2: 3.00." in text
    assert sum(t.startswith("| asap | 512x1024 | throughput | float32 |") for t in text) == 5
    assert not any("not to be quoted" in t for t in text)


def test_table_of_a_failure_and_of_a_busy_machine():
    failed = line("torch", "compile", error="no compiler | here")
    del failed["ms"]
    text = bench_tables.markdown([line(foreign=0.3), failed])
    assert "| torch compile | no compiler / here |" in text
    assert (
        "at most 30% of the machine's processors; **too much: these figures are not to be" in text
    )


@pytest.mark.parametrize(
    ("model", "size", "value"),
    [
        ("eacnet_dabnet", (512, 1024), "97.92"),
        ("eacnet_dabnet", (360, 480), "100"),
        ("eacnet_dabnet", (1024, 2048), None),
        ("affnet", (512, 1024), "62.5"),
        ("carnet_resnet152", (512, 1024), "29.4"),
        ("asap", (512, 1024), "96"),  # 191 is TensorRT's
        ("fast_scnn", (512, 1024), None),
    ],
)
def test_papers_figures(model, size, value):
    record = bench_tables.paper_fps(model, size)
    assert (record and str(record.value)) == value
    assert record is None or record.gpu


def test_the_last_line_counts_and_resuming_asks_for_the_same_code(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert bench.read(path) == []
    both = [line(ms=9.0), line(ms=8.0), line(ms=7.0, tf32="off")]
    path.write_text("".join(json.dumps(x) + "\n" for x in both))
    assert [x["ms"] for x in bench.read(path)] == [8.0, 7.0]
    case = {**REQUEST, "model": "asap", "height": 512, "width": 1024, "batch": 1}
    case |= {"num_classes": 19, "device": "gpu", "tf32": "on", "train": False}
    rivals = [{"backend": "jax", "variant": "frozen", "flags": None}]
    assert bench.done(both, case, rivals, ["throughput"], "H200")
    assert not bench.done(both, case, rivals, ["throughput", "e2e"], "H200")
    assert not bench.done(both, {**case, "height": 360}, rivals, ["throughput"], "H200")
    assert not bench.done(both, {**case, "device": "cpu"}, rivals, ["throughput"], "H200")
    other = [{**x, "code": "0123456789"} for x in both]
    assert not bench.done(other, case, rivals, ["throughput"], "H200")
    assert not bench.done(both, case, rivals, ["throughput"], "A100")


def test_rivals_suit_device_and_type():
    def names(backends=bench_tables.BACKENDS, chosen=(), sets=(), **case):
        case = {"dtype": "float32", "device": "cpu", "train": False, **case}
        return [bench_tables.name_of(r) for r in bench.rivals_of(case, backends, chosen, sets)]

    torch = ["torch eager", "torch channels_last"]
    assert names() == ["jax frozen", *torch, "onnxruntime default"]
    assert names(device="gpu", dtype="bfloat16") == [
        *("jax frozen", "torch channels_last", "torch cuda_graph")
    ]
    assert not [name for name in names(device="gpu") if "onnxruntime" in name]
    assert names(device="gpu", train=True) == ["jax step", *torch]
    assert names(["jax"], sets=["--a", "--b"]) == ["jax frozen", "jax frozen --a", "jax frozen --b"]
    assert names(["torch"], chosen=["compile"]) == ["torch compile"]


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    bench_tables.picture(LINES, tmp_path / "fps.png")
    assert (tmp_path / "fps.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no line of throughput to draw; measure with"):
        bench_tables.picture([line(mode="e2e")], tmp_path / "fps.png")


def test_operations_in_every_form(tmp_path):
    output = tmp_path / "ops.jsonl"
    options = ["--dtype=float32", "--shrink=32", "--seconds=0.001", f"--output={output}"]
    command = [sys.executable, "benchmarks/gpu_ops.py", *options]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {row["form"] for row in rows} >= {"lax", "ours", "one product a tap"}
    assert max(row["difference"] for row in rows) < 1e-5


@pytest.mark.parametrize("script", ["input.py", "scaling.py", "gpu_paper.py", "bfloat16.py"])
def test_other_benchmarks_start(script):
    result = subprocess.run(
        [sys.executable, f"benchmarks/{script}", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout
