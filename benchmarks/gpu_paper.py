"""What a GPU is given, read from programs that are compiled for GPUs which are not there.

    python benchmarks/gpu_paper.py --resume                       # what gpu_paper.jsonl lacks; then the two pages
    python benchmarks/gpu_paper.py --only='^frames asap .* a100'
    python benchmarks/gpu_paper.py --only='^step .*enet.* t4' --resume  # configs' memory on a Colab T4

XLA needs a description of a GPU, not the GPU, to compile for it. So this compiles networks' frozen programs (one frame of
uint8 in, its class map out), and configs' training steps, and reads in the result: kernels (a loop's once for each turn, of a
choice the branch with the fewest), how many of them are recorded in CUDA graphs, convolutions and in how many of them cuDNN
adds the bias, the bytes that kernels read and write, and the memory that the program takes. These are facts of the program.

The time is a MODEL, and an optimistic one: nothing here has run. A kernel takes the longest of
    its bytes at the memory's full rate: each operand (of slices and gathers their result) and each result once;
    its matrix products and convolutions at half of the tensor cores' rate (float32 is TF32, at half of bfloat16's rate;
    without TF32, and at precision "highest", one multiplication or addition a lane and cycle);
    everything else at one operation a lane and cycle, exponentials and divisions at eight;
and 1 us to be started in a CUDA graph, 1.5 us outside. Caches make small arrays cheaper than that. Small grids, tiles that do not
fit, autotuning that is off here (level 0), and what cuDNN does inside make kernels dearer. The one H200 that ran a draft of
this code took two to four times as long (h200.jsonl); gpu_paper.md has the ratios.

Besides this project it takes 0.7 GB of packages for jax's version; cuDNN, cuBLAS and a driver are not needed:
    pip install ".[gpu-compile]"
"""

import argparse
import collections
import dataclasses
import datetime
import functools
import itertools
import json
import math
import os
import pathlib
import re
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU, from its data sheet.

    Attributes:
        name: Its product name.
        capability: CUDA's compute capability, (major, minor).
        cores: Streaming multiprocessors.
        lanes: Operations in float32 that each starts in a cycle.
        clock: Cycles a second.
        shared: Bytes of shared memory of a multiprocessor.
        threads: Threads of a multiprocessor.
        memory: Bytes of its memory.
        bandwidth: Bytes a second to and from its memory.
        cache: Bytes of the L2 cache.
        tensor: Operations a second of the tensor cores in bfloat16; 0 if they do not know that type.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    clock: float
    shared: int
    threads: int
    memory: int
    bandwidth: float
    cache: int
    tensor: float

    @property
    def plain(self) -> float:
        """Operations a second of all lanes."""
        return self.cores * self.lanes * self.clock

    def description(self) -> str:
        """What XLA wants to know: a GpuTargetConfigProto as text."""
        major, minor = self.capability
        # A block may have all of the shared memory but 1 KiB, from Ampere on. Without versions of driver and runtime XLA
        # takes them for too old to record convolutions in CUDA graphs.
        block = self.shared - (1024 if major >= 8 else 0)
        return f"""
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} }}
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock / 1e9}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {self.threads}
              shared_memory_per_block: 49152 shared_memory_per_block_optin: {block}
              shared_memory_per_core: {self.shared}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              memory_bandwidth: {self.bandwidth:.0f} l2_cache_size: {self.cache}
              device_memory_size: {self.memory}
              driver_version: "13.0.0" runtime_version: "13.0.0"
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 12 }}
            runtime_version {{ major: 13 minor: 0 patch: 0 }}
            device_description_str: "{self.name}"
        """


HOPPER = dict(
    capability=(9, 0),
    cores=132,
    lanes=128,
    clock=1.98e9,
    shared=233472,
    threads=2048,
    cache=50 << 20,
    tensor=990e12,
)
TARGETS = {
    "h200": Target("NVIDIA H200", memory=151397597184, bandwidth=4.8e12, **HOPPER),
    "h100": Target("NVIDIA H100 80GB HBM3", memory=84942979072, bandwidth=3.352e12, **HOPPER),
    "a100": Target(
        name="NVIDIA A100-SXM4-40GB",
        capability=(8, 0),
        cores=108,
        lanes=64,
        clock=1.41e9,
        shared=167936,
        threads=2048,
        memory=42331013120,
        bandwidth=1.555e12,
        cache=40 << 20,
        tensor=312e12,
    ),
    "t4": Target(
        name="Tesla T4",
        capability=(7, 5),
        cores=40,
        lanes=64,
        clock=1.59e9,
        shared=65536,
        threads=1024,
        memory=15843721216,
        bandwidth=320e9,
        cache=4 << 20,
        tensor=0,
    ),
}

WIDTHS = {"pred": 1, "bf16": 2}  # of the others the name tells the bits
ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|c64|c128)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?[\])}]) ([\w\-]+)\((.*)$")
CALLED = re.compile(
    r"(?:calls|body|to_apply|(?:true|false)_computation|branch_computations|called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
# What launches no kernel.
NOTHING = frozenset(
    "parameter constant get-tuple-element bitcast tuple after-all partition-id replica-id iota opt-barrier"
    " add-dependency".split()
)
MOVING = frozenset("broadcast reshape transpose copy slice concatenate pad reverse".split())
DEAR = frozenset("exponential log tanh divide power sine cosine rsqrt sqrt".split())
CONVOLUTION = "__cudnn$conv"
FUSED = "__cudnn$convBiasActivationForward"

Array = tuple[str, tuple[int, ...]]


def arrays(shape: str) -> list[Array]:
    """The (type, dimensions) of an array, or of each one in a tuple."""
    return [
        (kind, tuple(int(n) for n in dims.split(",") if n)) for kind, dims in ARRAY.findall(shape)
    ]


def elements(shape: str) -> int:
    """How many numbers they hold."""
    return sum(math.prod(dims) for _, dims in arrays(shape))


def num_bytes(shape: str) -> int:
    """The bytes that they take."""
    return sum(
        (WIDTHS[kind] if kind in WIDTHS else int(kind[1:]) // 8) * math.prod(dims)
        for kind, dims in arrays(shape)
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a compiled program."""

    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def called(self) -> list[str]:
        """The computations that it calls."""
        return [name for found in CALLED.findall(self.attributes) for name in names(found)]

    @property
    def target(self) -> str:
        """What a custom call calls; "" for anything else."""
        found = re.search(r'custom_call_target="([^"]+)"', self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


def names(text: str) -> list[str]:
    """The names, which begin with %, in a list of operands or computations."""
    return re.findall(r"%([\w.\-]+)", text)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a compiled program by name, and the name of the one that is its entry."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if found := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations[found[2]] = {}
            entry = found[2] if found[1] else entry
        elif found := INSTRUCTION.match(line):
            root, name, shape, operation, rest = found.groups()
            operands, _, attributes = rest.partition("), ")
            current[name] = Instruction(
                name, shape, operation, tuple(names(operands)), attributes, root is not None
            )
    return computations, entry


def kernels(
    computations: dict[str, Computation], name: str, times: int = 1
) -> list[tuple[Instruction, Computation, int]]:
    """The kernels that a computation launches: (instruction, where it stands, how often)."""
    found = []
    for one in computations[name].values():
        if one.operation in NOTHING or one.operation.endswith("-done"):
            continue
        if one.operation == "while":
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', one.attributes)
            body = next(iter(re.findall(r"body=%([\w.\-]+)", one.attributes)))
            found += kernels(computations, body, times * int(turns[1]) if turns else times)
        elif one.operation in ("call", "conditional", "async-start"):
            branches = (kernels(computations, called, times) for called in one.called)
            found += min(branches, key=lambda branch: sum(n for *_, n in branch))
        else:
            found.append((one, computations[name], times))
    return found


@dataclasses.dataclass(frozen=True)
class Work:
    """What a kernel does: bytes that it moves, and the seconds of its products and of the rest at their best."""

    moved: float = 0.0
    products: float = 0.0
    rest: float = 0.0

    def seconds(self, target: Target) -> float:
        """The time that is modelled."""
        return max(self.moved / target.bandwidth, self.products, self.rest)


def product_seconds(operations: float, kind: str, attributes: str, target: Target) -> float:
    """What a convolution or matrix product takes whose operands are of a kind such as "bf16"."""
    rate = target.tensor / 2
    if kind not in ("bf16", "f16"):
        rate = 0 if "highest" in attributes else rate / 2
    return operations / (rate or target.plain)


def work(
    one: Instruction, around: Computation, computations: dict[str, Computation], target: Target
) -> Work:
    """What a kernel does.

    Args:
        one: The instruction that launches it.
        around: The computation that it stands in.
        computations: All computations of the program.
        target: The GPU.
    """
    if one.operation == "fusion":
        inside = computations[one.called[0]]
        products, rest = fused(inside, computations, target)
        return Work(written(one, inside) + read(inside), products, rest / target.plain)
    given = [around[name].shape for name in one.operands if name in around]
    if one.operation != "custom-call":
        moved = num_bytes(one.shape) + sum(map(num_bytes, given))
        return Work(moved, 0.0, elements(one.shape) * (one.operation not in MOVING) / target.plain)
    # Of a tuple, bytes are cuDNN's workspace.
    results = [shape for shape in arrays(one.shape) if shape[0] != "u8"] or arrays(one.shape)
    moved = sum(num_bytes(f"{k}[{','.join(map(str, d))}]") for k, d in results)
    moved += sum(map(num_bytes, given))
    shapes = [arrays(shape)[0] for shape in given if arrays(shape)]
    if one.target.startswith(CONVOLUTION):
        operations, grouped = convolved(one, shapes, results[0])
        if grouped:  # no matrix product
            return Work(moved, 0.0, operations / target.plain)
        return Work(moved, product_seconds(operations, shapes[0][0], one.attributes, target))
    if "fmha" in one.target:
        (kind, (b, n, heads, d)), (_, (_, m, *_)) = shapes[:2]
        scores = b * heads * n * m * (2.5 if "Backward" in one.target else 1)
        seconds = product_seconds(4 * scores * d, kind, one.attributes, target)
        return Work(moved, seconds, 8 * scores / target.plain)
    if "cublas" in one.target:
        axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes)[1]
        kind, dims = shapes[0]
        common = math.prod(dims[int(axis)] for axis in re.findall(r"\d+", axes))
        operations = 2 * math.prod(results[0][1]) * common
        return Work(moved, product_seconds(operations, kind, one.attributes, target))
    return Work(moved)


def convolved(one: Instruction, given: list[Array], result: Array) -> tuple[float, bool]:
    """Operations of a convolution of cuDNN's, or of one of its gradients; and whether it is in groups."""
    kernel, output = given[1][1], result[1]
    if "BackwardInput" in one.target:
        output = given[0][1]
    elif "BackwardFilter" in one.target:
        kernel, output = result[1], given[1][1]
    labels = re.search(r"dim_labels=\w+_(\w+)->", one.attributes)[1]
    inputs = math.prod(n for label, n in zip(labels, kernel, strict=True) if label != "o")
    return 2.0 * math.prod(output) * inputs, "feature_group_count=" in one.attributes


def fused(
    inside: Computation, computations: dict[str, Computation], target: Target
) -> tuple[float, float]:
    """The seconds of a fusion's matrix products, and how many other operations it has."""
    products = rest = 0.0
    for one in inside.values():
        if one.operation == "dot":
            kind, dims = arrays(inside[one.operands[0]].shape)[0]
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
            common = math.prod(dims[int(axis)] for axis in re.findall(r"\d+", axes[1]))
            operations = 2 * elements(one.shape) * common
            products += product_seconds(operations, kind, one.attributes, target)
        elif one.operation in ("fusion", "call"):
            more = fused(computations[one.called[0]], computations, target)
            products, rest = products + more[0], rest + more[1]
        elif one.operation in ("reduce", "reduce-window"):
            rest += elements(inside[one.operands[0]].shape)
        elif one.operation not in NOTHING | MOVING:
            rest += elements(one.shape) * (8 if one.operation in DEAR else 1)
    return products, rest


def read(inside: Computation) -> int:
    """The bytes that a fusion reads: of an array that is only sliced or gathered from, no more than the slices."""
    users = collections.defaultdict(list)
    for one in inside.values():
        for operand in one.operands:
            users[operand].append(one)

    def of(name: str) -> float:
        total = 0.0
        for user in users[name]:
            if user.operation == "bitcast":
                total += of(user.name)
            elif user.operation in ("slice", "dynamic-slice", "gather"):
                total += num_bytes(user.shape)
            elif user.operation != "dynamic-update-slice" or user.operands[0] != name:
                return math.inf
        return total

    parameters = [one for one in inside.values() if one.operation == "parameter"]
    return int(sum(min(num_bytes(one.shape), of(one.name)) for one in parameters))


def written(one: Instruction, inside: Computation) -> int:
    """The bytes that a fusion writes; where it updates a part of an array in place, that part."""
    root = next(other for other in inside.values() if other.is_root)
    if root.operation == "dynamic-update-slice" and root.operands[1] in inside:
        return num_bytes(inside[root.operands[1]].shape)
    return num_bytes(one.shape)


def convolutions(launched: list[tuple[Instruction, Computation, int]]) -> tuple[int, int]:
    """How many of cuDNN's convolutions there are, gradients among them, and in how many it adds the bias."""
    every = sum(n for one, _, n in launched if one.target.startswith(CONVOLUTION))
    return every, sum(n for one, _, n in launched if one.target == FUSED)


def recorded_share(thunks: str) -> float:
    """The share of the launches that is recorded in CUDA graphs, from XLA's dump of the thunks, in which they are indented."""
    launches = re.findall(r"^(\s*)\d+: k(?!CommandBuffer)\w+", thunks, re.M)
    return sum(map(bool, launches)) / max(len(launches), 1)


def summary(text: str, thunks: str, target: Target) -> dict[str, Any]:
    """What a compiled program says of itself, and the time that is modelled.

    Args:
        text: The program.
        thunks: XLA's dump of what it launches.
        target: The GPU that it was compiled for.
    """
    computations, entry = parse(text)
    launched = kernels(computations, entry)
    share = recorded_share(thunks)
    done = [(work(one, around, computations, target), n) for one, around, n in launched]
    count = sum(n for *_, n in launched)
    start = share * 1.0e-6 + (1 - share) * 1.5e-6
    every, biased = convolutions(launched)
    return {
        "kernels": count,
        "recorded": round(share * count),
        "convolutions": every,
        "fused": biased,
        "gbytes": round(sum(w.moved * n for w, n in done) / 1e9, 4),
        "us": round(1e6 * (sum(w.seconds(target) * n for w, n in done) + count * start), 1),
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """A program that is compiled.

    Attributes:
        what: "frames", a network's frozen program, or "step", a config's training step.
        name: The network, or the config with its arguments.
        target: A name of TARGETS.
        dtype: The type that is computed in.
        size: (h, w) of the frames; None is what the config says.
        accumulate: The parts in which a step's batch goes through the network.
    """

    what: str
    name: str
    target: str = "h200"
    dtype: str = "bfloat16"
    size: tuple[int, int] | None = None
    accumulate: int = 1

    def __str__(self):
        size = "x".join(map(str, self.size or ()))
        parts = f"in {self.accumulate}" if self.accumulate > 1 else ""
        words = (self.what, self.name, size, self.dtype, self.target, parts)
        return " ".join(filter(None, words))


SIZES = ((512, 1024), (1024, 1024))
COMPARED = ("eacnet_dabnet", "asap", "affnet", "fast_scnn")
STEPS = ("eacnet:dabnet,camvid", "asap:cityscapes", "affnet:cityscapes", "carnet:mobilenet")
CONFIGS = (
    *("eacnet:dabnet,camvid", "eacnet:erfnet,camvid", "eacnet:dabnet", "eacnet:erfnet"),
    *("asap", "affnet", "affnet:patches", "carnet:mobilenet", "carnet:resnet50"),
    *("carnet:resnet101", "camvid_best:eacnet_dabnet", "dabnet", "erfnet", "fast_scnn", "spssnet"),
    *("ddrnet23_slim", "pidnet_s", "bisenetv2", "stdc:stdc1", "stdc:stdc2", "cgnet", "espnet"),
    "enet",
)
ROOM = 0.7  # of a GPU's memory: JAX takes three quarters, and cuDNN's workspaces want some of it
FRAMES = {"cityscapes": (1024, 2048)}  # of the other sets no more than the crop is counted


def cases() -> list[Case]:
    """All that the two pages are made of, but for steps that have to be taken in parts."""
    from rtseg_jax import models

    others = [name for name in TARGETS if name != "h200"]
    return [
        *(Case("frames", name, size=size) for name in models.VARIANTS for size in SIZES),
        *(Case("step", name) for name in STEPS),
        *(Case("frames", n, t, size=SIZES[0]) for n in COMPARED for t in others),
        *(Case("frames", name, "t4", "float32", SIZES[0]) for name in COMPARED),
        *(Case("step", n, "t4", dtype) for dtype in ("float32", "bfloat16") for n in CONFIGS),
    ]


def connect(target: Target) -> Any:
    """A device that programs can be compiled for, and nothing else; and jax's answers to what it asks of one that is there."""
    from jax._src import xla_bridge
    from jax._src.cudnn import fused_attention_stablehlo as attention
    from jax.experimental import topologies

    from rtseg_jax.nn import gpu

    described = topologies.get_topology_desc(
        platform="cuda", target_config=target.description(), topology="1x1x1"
    )
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name == "gpu" else name
    attention.check_cudnn_version = lambda: 91200
    attention.check_compute_capability = lambda asked: (
        target.capability >= tuple(map(int, asked.split(".")))
    )
    gpu.compute_capability = lambda: target.capability
    return described.devices[0]


def frozen(case: Case, device: Any) -> Any:
    """A network's program for one frame, with weights in which nothing is neutral: a bias of zeros would be left out."""
    import jax.numpy as jnp

    from rtseg_jax import models
    from rtseg_jax.inference import program
    from rtseg_jax.programs.bench.main import random_variables

    model = models.create(case.name, num_classes=19)
    return program.freeze(
        model,
        random_variables(case.name, 19),
        (1, *case.size),
        device=device,
        dtype=jnp.dtype(case.dtype),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ).compiled


def loaded(case: Case) -> Any:
    """The config of a case."""
    from rtseg_jax.base import config as settings

    config = settings.load(case.name)
    with config.unlocked():
        config.dtype = case.dtype
        config.accumulate = case.accumulate
    return config


def trained(case: Case, device: Any) -> Any:
    """A config's training step, on one device."""
    import jax
    import jax.numpy as jnp

    from rtseg_jax import data, models
    from rtseg_jax.base import config as settings
    from rtseg_jax.base import mesh
    from rtseg_jax.models import flops
    from rtseg_jax.train import loop, step

    config = loaded(case)
    num_classes = data.class_table(config.input.dataset).num_classes
    options = settings.model_options(config)
    model = models.create(config.model.name, num_classes=num_classes, **options)
    variables = flops.variable_shapes(model)
    tx, schedule = loop.make_optimizer(config, variables["params"], 1000, 100)
    crop = tuple(config.augment.crop)
    devices = mesh.make_mesh([device])
    jitted = loop.make_train_step(config, devices, model, tx, schedule, None, crop)
    create = functools.partial(step.create_state, tx=tx, ema=config.ema_decay > 0)
    size = config.input.size or FRAMES.get(config.input.dataset, crop)
    if config.input.patches:
        size = config.input.patches[2:]
    frames = tuple(
        jax.ShapeDtypeStruct((config.batch_size, *size, *channels), jnp.uint8)
        for channels in ((3,), ())
    )
    indices = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    return jitted.lower(jax.eval_shape(create, variables), frames, indices).compile()


def measure(case: Case, dump: pathlib.Path, programs: pathlib.Path | None) -> dict[str, Any]:
    """The line of a case.

    Args:
        case: What to compile.
        dump: The folder where XLA leaves what it launches.
        programs: A folder for the compiled program.
    """
    import jax

    from rtseg_jax.programs.bench.main import code_version

    target = TARGETS[case.target]
    compiled = {"frames": frozen, "step": trained}[case.what](case, connect(target))
    (thunks,) = dump.glob("*.jit_*thunk_sequence_after_thunk_passes.txt")
    if programs is not None:
        programs.mkdir(parents=True, exist_ok=True)
        (programs / f"{str(case).replace(' ', '_')}.txt").write_text(compiled.as_text())
    memory = compiled.memory_analysis()
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes
    line = {
        **dataclasses.asdict(case),
        "size": case.size,
        **({} if case.what == "frames" else trainings(case)),
        **summary(compiled.as_text(), thunks.read_text(), target),
        "temporary_gib": round(memory.temp_size_in_bytes / GIB, 4),
        "arguments_gib": round((arguments - memory.alias_size_in_bytes) / GIB, 4),
        "jax": jax.__version__,
        "code": code_version(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    for path in filter(pathlib.Path.is_file, dump.rglob("*")):
        path.unlink()
    jax.clear_caches()
    return line


def trainings(case: Case) -> dict[str, Any]:
    """What a step's line says of its config."""
    config = loaded(case)
    return {"size": tuple(config.augment.crop), "batch": config.batch_size}


def fits(line: dict[str, Any]) -> bool:
    """Whether a step leaves enough of the GPU's memory."""
    needs = line["temporary_gib"] + line["arguments_gib"]
    return needs <= ROOM * TARGETS[line["target"]].memory / GIB


def in_more_parts(case: Case, line: dict[str, Any]) -> Case | None:
    """A step in as many parts as should fit; None if its parts cannot be smaller: norms want two images."""
    batch, needs = line["batch"], line["temporary_gib"] + line["arguments_gib"]
    part = batch / case.accumulate * ROOM * TARGETS[case.target].memory / GIB / needs
    smaller = [n for n in range(case.accumulate + 1, batch // 2 + 1) if batch % n == 0]
    enough = [n for n in smaller if batch / n <= part] or smaller[-1:]
    return dataclasses.replace(case, accumulate=enough[0]) if enough else None


def key(line: dict[str, Any]) -> Case:
    """The case that a line is of."""
    names = [field.name for field in dataclasses.fields(Case)]
    found = {name: line[name] for name in names}
    size = tuple(found["size"]) if line["what"] == "frames" else None
    return Case(**{**found, "size": size})


def lines_of(path: pathlib.Path) -> dict[Case, dict[str, Any]]:
    """The last line of each case in a file."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text().splitlines())
    return {key(line): line for line in lines}


def figures(line: dict[str, Any], before: dict[str, Any] | None = None) -> tuple[str, ...]:
    """The cells of a line that every table has, behind those of the code before it had forms for a GPU."""
    cells = (
        str(line["kernels"]),
        f"{line['fused']}/{line['convolutions']}",
        f"{line['gbytes']:.2f}",
        f"{line['us']:.0f}",
    )
    return tuple(map(" → ".join, zip(figures(before), cells, strict=True))) if before else cells


def measured() -> dict[str, float]:
    """What an H200 took for a draft of this code, in us a frame of 512x1024, by network."""
    lines = map(json.loads, (HERE / "h200.jsonl").read_text().splitlines())
    draft = ("infer", "prototype", "opt")
    return {
        line["net"]: line["us"]
        for line in lines
        if (line["what"], line["source"], line.get("variant")) == draft
    }


def in_paper(lines: dict[Case, dict[str, Any]]) -> str:
    """gpu_paper.md."""
    from rtseg_jax import models
    from rtseg_jax.programs.shared import tables

    frames, others, steps, ratios = [], [], [], []
    ran, before = measured(), lines_of(HERE / "gpu_paper_before.jsonl")
    for name in models.VARIANTS:
        small, large = (lines.get(Case("frames", name, size=size)) for size in SIZES)
        if small and large:
            draft = ""
            if name in ran:
                ratios.append(ran[name] / small["us"])
                draft = f"{ran[name]:.0f} ({ratios[-1]:.1f})"
            given = [(line, before.get(key(line))) for line in (small, large)]
            frames.append(tables.row(name, *figures(*given[0]), draft, *figures(*given[1])))
    kinds = (*((target, "bfloat16") for target in TARGETS), ("t4", "float32"))
    for name, (target, dtype) in itertools.product(COMPARED, kinds):
        if line := lines.get(Case("frames", name, target, dtype, SIZES[0])):
            mebibytes = f"{1024 * line['temporary_gib']:.0f}"
            others.append(tables.row(name, target, dtype, *figures(line), mebibytes))
    for name in STEPS:
        if line := lines.get(Case("step", name)):
            gibibytes = f"{line['temporary_gib']:.2f}"
            cells = figures(line, before.get(key(line)))
            steps.append(tables.row(name, batch_of(line), *cells, gibibytes))
    versions = sorted({f"code {line['code']}, jax {line['jax']}" for line in lines.values()})
    count = ("kernels", "bias inside", "GB", "us, modelled")
    span = f"{min(ratios, default=0):.1f} to {max(ratios, default=0):.1f}"
    return f"""\
# GPUs on paper

Written by `python benchmarks/gpu_paper.py --resume` from [gpu_paper.jsonl](gpu_paper.jsonl) ({"; ".join(versions)}).
Programs compiled for GPUs that are not there. Kernels, convolutions in which cuDNN adds the bias (and a residual and a ReLU
where they follow) of all, bytes moved and memory are what the programs say; **times are modelled, and optimistic: nothing
has run**. What the model assumes stands at the head of the program.

## One frame on an H200, bfloat16

From uint8 to the class map, weights frozen; 512x1024, then 1024x1024. One H200 ran a draft of this code at 512x1024
([h200.md](h200.md)): the column in the middle, {span} times what is modelled. Before the arrow: the same model of code
{"/".join({line["code"] for line in before.values()})}, which had no forms for a GPU; its layout was another, so that a draft of this
program compiled it ([gpu_paper_before.jsonl](gpu_paper_before.jsonl)).

{table(("network", *count, "us, of the draft", *count), frames)}

## On other GPUs, 512x1024

A T4 has no bfloat16: XLA widens to float32, computes, and rounds the results, and no convolution has its bias inside.

{table(("network", "GPU", "type", *count, "temporary MiB"), others, words=(0, 1, 2))}

## A training step on an H200, bfloat16

{table(("config", "batch", *count, "temporary GiB"), steps, words=(0, 1))}
"""


def table(titles: tuple[str, ...], rows: list[str], words: tuple[int, ...] = (0,)) -> str:
    """A table of Markdown."""
    from rtseg_jax.programs.shared import tables

    return "\n".join([*tables.header(*titles, words=words), *rows])


def batch_of(line: dict[str, Any]) -> str:
    """A step's batch: images x height x width."""
    return f"{line['batch']} x {'x'.join(map(str, line['size']))}"


def in_memory(lines: dict[Case, dict[str, Any]]) -> str:
    """docs/memory.md."""
    from rtseg_jax.programs.shared import tables

    def tried(name, dtype):
        """The lines of a config, from the whole batch to as many parts as fit."""
        wanted = ("step", name, "t4", dtype)
        found = [v for c, v in lines.items() if (c.what, c.name, c.target, c.dtype) == wanted]
        return sorted(found, key=lambda line: line["accumulate"])

    def needs(line):
        return f"{line['temporary_gib'] + line['arguments_gib']:.1f}"

    def cells(found):
        if not found:
            return "", ""
        last = found[-1]
        if not fits(last):
            return needs(found[0]), "in more parts" if in_more_parts(key(last), last) else "no"
        parts = f"`accumulate={last['accumulate']}`: {needs(last)}"
        return needs(found[0]), parts if len(found) > 1 else "yes"

    rows = []
    for name in CONFIGS:
        by_dtype = [tried(name, dtype) for dtype in ("float32", "bfloat16")]
        if by_dtype[0]:
            batch = batch_of(by_dtype[0][0])
            rows.append(tables.row(f"`{name}`", batch, *cells(by_dtype[0]), *cells(by_dtype[1])))
    memory = TARGETS["t4"].memory / GIB
    titles = ("config", "batch", "GiB, float32", "fits", "GiB, bfloat16", "fits")
    return f"""\
# What fits a small GPU

The memory of a training step, as XLA plans it for a Tesla T4 such as Colab lends, of each config at its own batch. A T4 has
{memory:.1f} GiB, of which JAX takes three quarters; a step fits here if it wants no more than {ROOM * memory:.1f}, so that something is left for
cuDNN's workspaces. Where the whole batch does not fit, `accumulate` sends it through the network in parts, of which each norm
sees one at a time; the table says in how many, and what that takes:

```bash
python -m rtseg_jax.main --config=configs/stdc.py:stdc1,cityscapes --config.accumulate=3 --config.input.root=DIR
```

`--config.remat=True` saves activations too, for the time of a second forward pass. `--config.input.mode=resident` adds the data
set, 4 bytes a pixel. A T4 has no bfloat16: XLA widens to float32, computes, and rounds what it stores. So it saves memory there
and no time; take float32, the default, where it fits.

{table(titles, rows, words=(0, 1, 3, 5))}

Written by `python benchmarks/gpu_paper.py --resume`; the programs were compiled, and nothing ran.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression of cases, see --list")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    parser.add_argument("--resume", action="store_true", help="skip what this code has compiled")
    parser.add_argument("--programs", type=pathlib.Path, help="folder for the programs to read")
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "gpu_paper.jsonl")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as dump:
        # Before jax is first imported.
        os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
        os.environ["XLA_FLAGS"] = (
            f"--xla_gpu_autotune_level=0 --xla_dump_to={dump} --xla_dump_hlo_as_text"
            f" --xla_dump_hlo_module_re=^jit_(run|step)$ {os.environ.get('XLA_FLAGS', '')}"
        )
        run(given, pathlib.Path(dump))


def run(given: argparse.Namespace, dump: pathlib.Path) -> None:
    import jax

    from rtseg_jax.programs.bench.main import code_version

    todo = [case for case in cases() if re.search(given.only, str(case))]
    if given.list:
        print(*todo, sep="\n")
        return
    jax.devices()
    version = {"code": code_version(), "jax": jax.__version__}
    lines = lines_of(given.output)
    while todo:
        case = todo.pop(0)
        line = lines.get(case, {})
        if not given.resume or {name: line.get(name) for name in version} != version:
            line = lines[case] = json.loads(json.dumps(measure(case, dump, given.programs)))
            with given.output.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{case}: {line['kernels']} kernels, {line['gbytes']} GB, {line['us']} us",
                flush=True,
            )
        if case.target == "t4" and case.what == "step" and not fits(line):
            todo += filter(None, [in_more_parts(case, line)])
    if given.output == HERE / "gpu_paper.jsonl":
        (HERE / "gpu_paper.md").write_text(in_paper(lines))
        (HERE.parent / "docs" / "memory.md").write_text(in_memory(lines))


if __name__ == "__main__":
    main()
