"""Frames per second and training steps of every network against PyTorch and onnxruntime on the same device.

    rtseg bench --models=eacnet_dabnet,asap --sizes=512x1024,360x480 --output=benchmarks/cpu.jsonl
    rtseg bench --models=asap --mode=latency,e2e,train --flags="--xla_cpu_enable_fast_math=true"
    rtseg bench --models=asap --layers=2
    rtseg bench --models="" --output=benchmarks/cpu.jsonl --picture=cpu.png

Each rival lives in a process of its own (see bench_rivals for what is inside the clock), built one after the other;
then they take turns, A B A B, so that a machine that slows down slows down all of them. All hold the same random weights,
and are timed only if their class maps agree. A round is about --seconds of calls; the median of the rounds is the figure.

Three clocks: throughput (frames on the device, calls queued, one wait at the end), latency (a wait after every call) and
e2e (uint8 frames of the host to uint8 class maps of the host); train is a training step.

Every figure is a line of JSON in --output; from all lines there come the table and the picture.
"""

import datetime
import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from rtseg_jax import models
from rtseg_jax.models import flops
from rtseg_jax.programs.bench.tables import (
    BACKENDS,
    Record,
    layer_table,
    markdown,
    name_of,
    picture,
)
from rtseg_jax.programs.shared import command_line
from rtseg_jax.programs.shared.command_line import Flags, Given, Program
from rtseg_jax.weights import torch_files

MODES = ("throughput", "latency", "e2e", "train")
DTYPES = ("float32", "bfloat16", "float16")
TORCH_VARIANTS = ("eager", "channels_last", "folded", "compile", "cuda_graph")

DEFAULT_TORCH = {
    ("cpu", True): ("eager", "channels_last"),
    ("cpu", False): ("channels_last",),
    ("gpu", True): ("eager", "channels_last", "cuda_graph"),
    ("gpu", False): ("channels_last", "cuda_graph"),
}  # (device, float32)

# glibc gives large blocks back to the kernel on every free, and the page faults of getting them again cost any
# framework up to 1.7 times the call.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}

# Fraction of the pixels on which two rivals must name the same class.
AGREEMENT = {"float32": 0.999, "tf32": 0.98, "bfloat16": 0.9, "float16": 0.9}

# And how far beyond chance: random weights may give nearly all pixels to one class, and any map would agree on them.
KAPPA = 0.8

# What makes two lines figures of the same thing; the later line counts.
IDENTITY = (
    *("model", "backend", "variant", "flags", "height", "width", "batch", "num_classes"),
    *("dtype", "mode", "platform", "device", "tf32"),
)

# Files of the package on which a figure depends.
CODE = (
    *("nn/*.py", "models/**/*.py", "torch_ref/*.py", "programs/bench/rivals.py"),
    *("inference/program.py", "train/*.py", "data/augment.py"),
)


def code_version() -> str:
    """Changes with every file that a figure depends on."""
    root = pathlib.Path(__file__).parents[2]
    files = [path for pattern in CODE for path in root.glob(pattern)]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def random_variables(variant: str, num_classes: int) -> dict[str, Any]:
    """Variables in which nothing is neutral, from numpy: every framework gets the same."""
    # Of the first seeds of a name, the one by which every network tells several classes apart.
    rng = np.random.default_rng(zlib.crc32(variant.encode()) + 2)

    def leaf(path, like):
        name = path[-1].key
        if name == "kernel":
            value = rng.normal(size=like.shape) / math.sqrt(math.prod(like.shape[:-1]))
            if path[-2].key in ("query", "key"):
                value *= 0.5  # keeps an attention between uniform and one-hot
            if like.shape[-1] == num_classes:
                value -= value.mean(-2, keepdims=True)  # no class wins by the mean of the features
        elif name in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, like.shape)
        elif name in ("slope", "alpha", "gamma", "rho"):
            value = rng.uniform(0.1, 0.4, like.shape)
        else:
            value = 0.2 * rng.normal(size=like.shape)
        return value.astype(np.float32)

    shapes = flops.variable_shapes(models.create(variant, num_classes=num_classes))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def write_weights(variables: Any, folder: pathlib.Path) -> None:
    """Writes flax.npz (paths as names) and torch.npz (the twin's names) with the same values."""
    folder.mkdir()
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): value for p, value in leaves}
    np.savez(folder / "flax.npz", **named)
    np.savez(folder / "torch.npz", **torch_files.to_torch(variables))


def rivals_of(
    case: Record, backends: Sequence[str], torch_variants: Sequence[str], sets: Sequence[str]
) -> list[Record]:
    """The rivals of one network, size and type: [{"backend", "variant", "flags"}], "flags" None for the inherited ones."""
    rivals = []
    single = case["dtype"] == "float32"
    if "jax" in backends:
        rivals += [
            {"backend": "jax", "variant": "frozen" if not case["train"] else "step", "flags": f}
            for f in (None, *sets)
        ]
    if "torch" in backends:
        chosen = torch_variants or DEFAULT_TORCH[case["device"], single]
        if case["train"]:
            chosen = [v for v in chosen if v not in ("folded", "cuda_graph")]
        rivals += [{"backend": "torch", "variant": v, "flags": None} for v in chosen]
    # On a GPU each call of its session copies frames and maps over the bus, which the clocks of ours leave out.
    if "onnxruntime" in backends and single and not case["train"] and case["device"] == "cpu":
        rivals.append({"backend": "onnxruntime", "variant": "default", "flags": None})
    return rivals


class Process:
    """A rival's process, that answers every line of JSON with one."""

    def __init__(
        self,
        request: Record,
        xla_flags: str | None = None,
        program: Sequence[str] = ("-m", "rtseg_jax.programs.bench.rivals"),
    ):
        """Starts it and lets it build what the request says: "device" and whatever the program takes."""
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # the time of compiling is a figure
        path = [str(pathlib.Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        if request["device"] == "cpu":
            environment |= {**MALLOC, "JAX_PLATFORMS": "cpu"}
        if xla_flags is not None:
            environment["XLA_FLAGS"] = xla_flags
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment,
            text=True,
        )
        self.built = self.ask(**request)

    def ask(self, **request: Any) -> Record:
        """Its answer; {"error": ...} if it has one or died."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": self._last_words()}

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        unknown = [line for line in lines if "Unknown flag" in line]
        words = (unknown or lines[-1:] or ["it said nothing"])[0]
        return f"the process ended with {code}: {words[-200:]}"

    def close(self) -> None:
        """Lets it end."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.stdout.close()
        self._process.wait()
        self._said.close()


def title_of(case: Record) -> str:
    """How a case is called: "asap 512x1024 float32"."""
    return f"{case['model']} {case['height']}x{case['width']} {case['dtype']}"


def cohens_kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Agreement of two class maps beyond chance: 1 is perfect, 0 is that of unrelated maps, or of one class alone."""
    shares = [
        np.bincount(classes.ravel(), minlength=256) / classes.size for classes in (one, other)
    ]
    chance = float(shares[0] @ shares[1])
    return (float((one == other).mean()) - chance) / (1 - chance) if chance < 1 else 0.0


def disagreement(
    classes: np.ndarray, reference: np.ndarray, case: Record, other: str
) -> str | None:
    """Why a rival's class map forbids timing it; None if it does not."""
    kind = case["dtype"]
    if case["device"] == "gpu" and kind == "float32" and case["tf32"] == "on":
        kind = "tf32"
    if classes.shape != reference.shape:
        return f"not timed: its class map is {classes.shape}, that of {other} {reference.shape}"
    share = float((classes == reference).mean())
    if share >= AGREEMENT[kind]:
        if (kappa := cohens_kappa(classes, reference)) >= KAPPA:
            return None
        return (
            f"not timed: it agrees with {other} little beyond chance, kappa {kappa:.2f} < {KAPPA}"
        )
    return (
        f"not timed: its class map is that of {other} on {100 * share:.2f} % of the pixels, "
        f"and {kind} takes {100 * AGREEMENT[kind]:g} %"
    )


def measure(
    case: Record, rivals: Sequence[Record], modes: Sequence[str], rounds: int, folder: pathlib.Path
) -> list[Record]:
    """Builds the rivals, compares their class maps, lets them take turns.

    Args:
        case: What a rival is asked to build, without its framework.
        rivals: What rivals_of() lists.
        modes: Clocks: "train" alone, or others.
        rounds: How many rounds each clock takes.
        folder: For what the processes hand over.

    Returns:
        One record for each rival and mode; "error" in place of figures where there are none.
    """
    load = round(os.getloadavg()[0], 2)
    processes: list[Process | None] = []
    facts: list[Record] = []
    try:
        # Built one after the other: compiling beside a neighbour would only slow both down.
        for rival in rivals:
            say(f"{title_of(case)}: building {name_of(rival)}")
            process, fact = build(case, rival, folder)
            processes.append(process)
            facts.append(fact)
        if not case["train"]:
            compare(case, rivals, processes, facts, folder)
        answers = [{mode: [] for mode in modes} for _ in rivals]
        for mode in modes:
            for _ in range(rounds):
                for process, fact, got in zip(processes, facts, answers, strict=True):
                    if "error" in fact:
                        continue
                    answer = process.ask(do="round", mode=mode)
                    if "error" in answer:
                        fact["error"] = answer["error"]
                    elif answer["loss"] is not None and not math.isfinite(answer["loss"]):
                        fact["error"] = f"the loss is {answer['loss']}"
                    else:
                        got[mode].append(answer)
    finally:
        for process in processes:
            if process is not None:
                process.close()
    records = []
    for rival, fact, got in zip(rivals, facts, answers, strict=True):
        for mode in modes:
            figures = {} if "error" in fact else summarise(mode, got[mode], case["batch"])
            records.append(record(case, rival, mode, fact, figures, load))
    return records


def build(case: Record, rival: Record, folder: pathlib.Path) -> tuple[Process | None, Record]:
    """Starts a rival's process; None and the error if it cannot be built."""
    request = {**case, **rival, "do": "build"}
    exported: Record = {}
    if rival["backend"] == "onnxruntime":
        request["path"] = str(folder / f"{case['model']}_{case['height']}x{case['width']}.onnx")
        exporter = Process({**request, "do": "export"})
        exporter.close()
        if "error" in (exported := exporter.built):
            return None, {"error": f"no ONNX: {exported['error']}"}
    process = Process(request, rival["flags"])
    if "error" in process.built:
        process.close()
        return None, process.built
    return process, {**process.built, **exported}


def compare(
    case: Record,
    rivals: Sequence[Record],
    processes: Sequence[Process | None],
    facts: Sequence[Record],
    folder: pathlib.Path,
) -> None:
    """Holds every class map against the first rival's; facts get "agreement", or "error" where it is too low."""
    reference, first = None, ""
    for rival, process, fact in zip(rivals, processes, facts, strict=True):
        if "error" in fact:
            continue
        path = folder / "classes.npy"
        answer = process.ask(do="classes", path=str(path))
        if "error" in answer:
            fact["error"] = answer["error"]
            continue
        classes = np.load(path)
        if reference is None:
            reference, first = classes, name_of(rival)
            continue
        if wrong := disagreement(classes, reference, case, first):
            fact["error"] = wrong
        else:
            fact["agreement"] = round(float((classes == reference).mean()), 6)


def summarise(mode: str, answers: Sequence[Record], batch: int) -> Record:
    """The figures of a rival's rounds; ms are those of one call, whatever its batch."""
    if mode in ("latency", "e2e"):
        medians = [statistics.median(answer["spans"]) for answer in answers]
    else:
        medians = [answer["ms"] for answer in answers]
    ms = statistics.median(medians)
    figures = {
        "ms": ms,
        "ms_low": min(medians),
        "ms_high": max(medians),
        "fps": 1000 * batch / ms,
        "rounds": len(answers),
        "calls": answers[0]["calls"],
        "foreign": max(answer["foreign"] or 0.0 for answer in answers),
    }
    if spans := [span for answer in answers for span in answer["spans"]]:
        figures["p50"], figures["p95"] = map(float, np.percentile(spans, (50, 95)))
    if mode == "train":
        figures["loss"] = answers[-1]["loss"]
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}


def record(
    case: Record, rival: Record, mode: str, fact: Record, figures: Record, load: float
) -> Record:
    """A line of --output."""
    on_cpu = case["device"] == "cpu"
    hidden = ("weights", "seconds", "train", "device")
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **{k: v for k, v in case.items() if k not in hidden},
        "mode": mode,
        "backend": rival["backend"],
        "variant": rival["variant"],
        "flags": rival["flags"],
        **figures,
        **{k: v for k, v in fact.items() if k not in ("device_kind", "flags")},
        "platform": case["device"],
        "device": cpu_name() if on_cpu else fact.get("device_kind"),
        "malloc": MALLOC if on_cpu else None,
        "load_before": load,
        "code": code_version(),
    }


def cpu_name() -> str:
    """The processors that this process may use: 2 x AMD EPYC."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{count} x {names[0] if names else platform.processor() or platform.machine()}"


def default_device() -> str:
    """The device that jax would take, asked in a process that ends again."""
    return _ask_jax("jax.default_backend()")


@functools.cache
def device_name(device: str) -> str:
    """What the lines that are measured here call a "cpu" or "gpu"."""
    return cpu_name() if device == "cpu" else _ask_jax(f"jax.devices({device!r})[0].device_kind")


def _ask_jax(expression: str) -> str:
    code = f"import jax; print({expression})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[-1].strip()


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def read(path: pathlib.Path) -> list[Record]:
    """The lines of a file, of those of the same thing the last; none if there is no file."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return list({identity(line): line for line in lines}.values())


def identity(line: Record) -> tuple:
    """See IDENTITY."""
    return tuple(line[name] for name in IDENTITY)


def done(
    lines: Iterable[Record],
    case: Record,
    rivals: Sequence[Record],
    modes: Sequence[str],
    device: str,
) -> bool:
    """Whether this code has measured every rival of the case in every mode on a device of this name."""
    version = code_version()
    found = {
        tuple(line[k] for k in ("backend", "variant", "flags", "mode"))
        for line in lines
        if line["code"] == version
        and (line["platform"], line["device"]) == (case["device"], device)
        and all(line[k] == v for k, v in case.items() if k in IDENTITY and k != "device")
    }
    return all((r["backend"], r["variant"], r["flags"], m) in found for r in rivals for m in modes)


def _choose(flag: str, values: Sequence[str], allowed: Sequence[str]) -> list[str]:
    for value in values:
        if value not in allowed:
            raise ValueError(f"--{flag}: unknown '{value}'; choose of {', '.join(allowed)}")
    return list(values)


def cases(options: Record, train: bool) -> list[Record]:
    """Every network, size and type that the flags name."""
    return [
        {
            "model": model,
            "height": height,
            "width": width,
            "batch": options["train_batch_size" if train else "batch_size"],
            "num_classes": options["num_classes"],
            "options": options["options"],
            "dtype": dtype,
            "device": options["device"],
            "tf32": options["tf32"] if options["device"] == "gpu" else None,
            "train": train,
            "seconds": options["seconds"],
        }
        for model in options["models"]
        for height, width in options["sizes"]
        for dtype in options["dtype"]
    ]


def run(options: Record) -> bool:
    """Measures what the options name and --output does not have yet; false if a figure is missing."""
    inference = [mode for mode in options["mode"] if mode != "train"]
    planned = [(case, inference) for case in cases(options, train=False) if inference]
    if "train" in options["mode"]:
        planned += [(case, ["train"]) for case in cases(options, train=True)]
    sound = True
    with tempfile.TemporaryDirectory() as folder:
        for case, modes in planned:
            rivals = rivals_of(
                case, options["backend"], options["torch_variants"], options["flags"]
            )
            there = read(options["output"]) if options["resume"] else []
            if there and done(there, case, rivals, modes, device_name(case["device"])):
                say(f"{title_of(case)}: already there")
                continue
            case |= prepare(case, pathlib.Path(folder), options["variables"])
            records = measure(case, rivals, modes, options["rounds"], pathlib.Path(folder))
            with options["output"].open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in records)
            for line in records:
                sound &= "error" not in line
                result = line["error"] if "error" in line else f"{line['ms']:.2f} ms"
                say(f"  {name_of(line)}, {line['mode']}: {result}")
    return sound


def prepare(case: Record, folder: pathlib.Path, variables: Any) -> Record:
    """Writes a network's weights once, those given or random ones; where they are, and what the network holds and costs."""
    weights = folder / case["model"]
    if not weights.exists():
        if variables is None:
            variables = random_variables(case["model"], case["num_classes"])
        write_weights(variables, weights)
    model = models.create(case["model"], num_classes=case["num_classes"], **case["options"])
    calls = flops.trace(model, (case["height"], case["width"]), train=False)
    return {
        "weights": str(weights),
        "parameters": flops.count_parameters(flops.variable_shapes(model)["params"]),
        "macs": case["batch"] * sum(call.macs for call in calls),
    }


def show_layers(options: Record) -> None:
    """Prints the layers' table of every network."""
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options, train=False):
            case |= prepare(case, pathlib.Path(folder), options["variables"])
            process = Process({**case, "do": "layers", "depth": options["layers"]})
            process.close()
            if "error" in process.built:
                raise ValueError(f"{case['model']}: {process.built['error']}")
            print(layer_table(case, process.built))


def _trained(place: str) -> Record:
    """The options that stand for a trained network."""
    from rtseg_jax.inference import (
        network as networks,  # takes ml_collections, which nothing else here does
    )

    network = networks.load(place)
    return {
        "models": [network.name],
        "num_classes": len(network.class_names),
        "options": network.config.model.options.to_dict(),
        "variables": network.variables,
    }


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.words("models", "Names of networks; all if not given.", list(models.VARIANTS))
    flags.string("network", "A trained network, whose own weights are timed instead.")
    flags.words("sizes", "Sizes of the frames: HEIGHTxWIDTH,...", ["512x1024"])
    flags.words("dtype", f"Types that are computed in: {', '.join(DTYPES)}.", ["float32"])
    flags.words("backend", "Frameworks.", BACKENDS)
    flags.words("mode", f"Clocks: {', '.join(MODES)}.", ["throughput"])
    flags.count("batch_size", "Frames of a call.", 1, low=1)
    flags.count("train_batch_size", "Frames of a training step.", 8, low=1)
    flags.count("num_classes", "Classes of the networks.", 19, low=2)
    flags.choice("device", "auto is jax's own.", "auto", ["auto", "cpu", "gpu"])
    flags.choice("tf32", "float32 on a GPU's tensor cores.", "on", ["on", "off"])
    variants = ", ".join(TORCH_VARIANTS)
    flags.words("torch_variants", f"{variants}; those that suit the device if not given.", [])
    flags.string("flags", "Sets of XLA_FLAGS, A;B, each measured in a process more.", "")
    flags.count("rounds", "The median of these is the figure.", 5, low=1)
    flags.number("seconds", "About so long is a round.", 2.0, low=0)
    flags.switch("resume", "Skip what --output has of this code.")
    flags.string("output", "File that gets the lines of JSON.")
    flags.string("table", "File of Markdown; beside --output if not given.")
    flags.string("picture", "File, such as fps.png.")
    flags.count("layers", "Time every module alone, to this depth.", 0, low=0)


def main(given: Given, _: list[str]) -> int:
    """Measures, and writes the lines and the table; the exit code is 1 if a rival was not measured."""
    options = vars(given) | {"options": {}, "variables": None}
    for name in options["models"]:
        models.get(name)
    if given.network is not None:
        options |= _trained(given.network)
    options["sizes"] = [command_line.parse_size(size) for size in options["sizes"]]
    if command_line.OWN in options["sizes"]:
        raise ValueError("--sizes: 'own' is not HEIGHTxWIDTH, such as 512x1024")
    for name, allowed in (
        ("dtype", DTYPES),
        ("backend", BACKENDS),
        ("mode", MODES),
        ("torch_variants", TORCH_VARIANTS),
    ):
        options[name] = _choose(name, options[name], allowed)
    options["flags"] = [part.strip() for part in options["flags"].split(";") if part.strip()]
    if options["output"] is None and not options["layers"]:
        raise ValueError("give --output=FILE.jsonl; the lines are appended to it")
    if options["device"] == "auto":
        options["device"] = default_device()
        if options["device"] not in ("cpu", "gpu"):
            raise ValueError(f"jax runs on '{options['device']}' here; give --device=cpu or gpu")
    jax.config.update("jax_platforms", "cpu")  # this process counts and writes; the rivals measure
    if options["layers"]:
        show_layers(options)
        return 0
    options["output"] = pathlib.Path(options["output"])
    if not options["output"].absolute().parent.is_dir():
        raise FileNotFoundError(f"--output={options['output']}: its folder does not exist")
    sound = run(options)
    lines = read(options["output"])
    table = markdown(lines)
    pathlib.Path(options["table"] or options["output"].with_suffix(".md")).write_text(table)
    print(table)
    if options["picture"]:
        picture(lines, pathlib.Path(options["picture"]))
    if not sound:
        print("error: not every rival was measured; the table says why", file=sys.stderr)
    return int(not sound)


PROGRAM = Program(__doc__, define, main)
