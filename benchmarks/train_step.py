"""Images per second of one training step, this project against its plain PyTorch twin on the same device.

    python benchmarks/train_step.py --output benchmarks/train_step.jsonl

Each rival lives in a process of its own, compiled and warmed up; then they take turns, A B A B, so that a
machine that slows down slows down all of them. A round is a number of steps without a pause, timed from
the first to the moment when the last one's parameters are there. The median of the rounds is the figure.
Other work on the machine still spoils it, PyTorch's threads most of all, so the load found at the start
stands beside the figures.

Inside the clock, for both: forward, bilinear upsampling of the logits to full size, weighted
cross-entropy, backward, Adam with L2 on every parameter. Inside ours alone: what the project's step does
besides, which is sampling and normalising uint8 frames (no random scale, flip or jitter: the twin's clock has
none) and the logged gradient norm. The twin gets normalised float images that lie on the device. Every
measurement is a line of JSON in --output.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent

# name -> (framework, type of the computation, options)
RIVALS = {
    "jax": ("jax", "float32", {}),
    "jax_bf16": ("jax", "bfloat16", {}),
    "torch": ("torch", "float32", {}),
    "torch_channels_last": ("torch", "float32", {"channels_last": True}),
    "torch_channels_last_bf16": ("torch", "bfloat16", {"channels_last": True}),
    "torch_compile": ("torch", "float32", {"channels_last": True, "compile": True}),
    "torch_compile_bf16": ("torch", "bfloat16", {"channels_last": True, "compile": True}),
}
DEFAULT_RIVALS = {
    "cpu": ("jax", "torch_channels_last", "torch"),
    "gpu": (
        "jax",
        "torch_channels_last",
        "torch",
        "torch_compile",
        "jax_bf16",
        "torch_channels_last_bf16",
        "torch_compile_bf16",
    ),
}

# glibc gives large blocks back to the kernel on every free, and the page faults of getting them again
# cost either framework up to 1.7 times the step.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4
MEAN, STD = (105.0, 105.0, 105.0), (60.0, 60.0, 60.0)
BATCHES = 4  # that take turns, so that no step finds its input in a cache by luck


def make_data(options: argparse.Namespace) -> tuple[Any, Any, list[float]]:
    """Random frames [n, b, h, w, 3] uint8, labels [n, b, h, w] uint8 with 5 % ignored, class weights."""
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (BATCHES, options.batch_size, *options.size)
    images = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    labels = rng.integers(0, options.num_classes, shape, dtype=np.uint8)
    labels[rng.random(shape) < 0.05] = 255
    return images, labels, rng.uniform(0.5, 2.0, options.num_classes).tolist()


def jax_rival(options: argparse.Namespace, dtype: str) -> tuple[Callable, Callable, dict]:
    """Returns step(i), finish() -> last loss, and what to record."""
    import jax
    import jax.numpy as jnp

    from rtseg_jax import mesh, models, optim, step

    if options.tf32 == "off":
        jax.config.update("jax_default_matmul_precision", "highest")
    device = jax.devices(options.device)[0]
    devices = mesh.make_mesh([device])
    images, labels, weights = make_data(options)
    split = mesh.split(devices)
    frames = [jax.device_put(pair, split) for pair in zip(images, labels, strict=True)]
    indices = jax.device_put(jnp.arange(options.batch_size, dtype=jnp.int32), split)

    variant = models.get(options.variant)
    model = models.create(options.variant, num_classes=options.num_classes, dtype=jnp.dtype(dtype))
    key = jax.random.key(0)
    init = jax.jit(functools.partial(model.init, train=True))
    variables = init({"params": key, "dropout": key}, jnp.zeros((1, 64, 64, 3)))
    schedule = optim.make_schedule(
        kind="constant",
        lr=LEARNING_RATE,
        total_steps=1000,
        steps_per_epoch=100,
        per="step",
        power=0.9,
        decay=1.0,
        every_epochs=1,
        warmup_steps=0,
        warmup_start=0.0,
    )
    tx = optim.make_optimizer(
        variables["params"],
        schedule,
        name="adam",
        betas=(0.9, 0.999),
        eps=1e-8,
        momentum=0.9,
        weight_decay=WEIGHT_DECAY,
        groups=(),
    )
    jitted = step.jit_train_step(
        devices,
        model=model,
        loss_fn=functools.partial(
            variant.loss,
            kind="cross_entropy",
            class_weights=tuple(weights),
            threshold=0.7,
            min_kept=1 / 16,
        ),
        tx=tx,
        schedule=schedule,
        seed=0,
        augmentation={
            "crop": options.size,
            "scales": (1.0,),
            "scale_range": None,
            "flip": 0.0,
            "jitter": (0.0, 0.0, 0.0),
            "mean": MEAN,
            "std": STD,
        },
        ema_decay=0.0,
    )
    state = step.create_state(variables, tx, ema=False)
    held = {"state": jax.device_put(state, mesh.replicated(devices))}

    def one(i: int) -> None:
        held["state"], held["logged"] = jitted(held["state"], frames[i % BATCHES], indices)

    def finish() -> float:
        jax.block_until_ready(held["state"])
        return float(held["logged"]["loss"])

    about = {
        "versions": {"jax": jax.__version__},
        "device_kind": device.device_kind,
        "threads": len(os.sched_getaffinity(0)) if options.device == "cpu" else None,
        "input": "uint8 frames, cropped in the step",
    }
    return one, finish, about


def torch_rival(
    options: argparse.Namespace, dtype: str, channels_last: bool = False, compile: bool = False
) -> tuple[Callable, Callable, dict]:
    """Returns step(i), finish() -> last loss, and what to record."""
    import torch

    from rtseg_jax import torch_ref

    torch.manual_seed(0)
    on_gpu = options.device == "gpu"
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high" if options.tf32 == "on" else "highest")
        torch.backends.cudnn.allow_tf32 = options.tf32 == "on"
    device = torch.device("cuda" if on_gpu else "cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images, labels, weights = make_data(options)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    batches = [
        (
            ((torch.from_numpy(x).permute(0, 3, 1, 2).float() - mean) / std)
            .contiguous(memory_format=layout)
            .to(device),
            torch.from_numpy(y).long().to(device),
        )
        for x, y in zip(images, labels, strict=True)
    ]
    weights = torch.tensor(weights, device=device)
    model = torch_ref.create(options.variant, options.num_classes)
    model = model.to(device=device, memory_format=layout).train()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )

    def objective(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(image)
        logits = torch_ref.upsample(logits.float(), options.size)
        return torch.nn.functional.cross_entropy(logits, label, weights, ignore_index=255)

    if compile:
        objective = torch.compile(objective)
    held = {}

    def one(i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        held["loss"] = objective(*batches[i % BATCHES])
        held["loss"].backward()
        optimizer.step()

    def finish() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return held["loss"].item()

    about = {
        "versions": {"torch": torch.__version__},
        "device_kind": torch.cuda.get_device_name() if on_gpu else "cpu",
        "threads": None if on_gpu else torch.get_num_threads(),
        "input": "normalised images",
    }
    if on_gpu:
        about["versions"]["cudnn"] = str(torch.backends.cudnn.version())
    return one, finish, about


def serve(options: argparse.Namespace) -> None:
    """The life of a rival: build, warm up, then time a round for every line that comes in."""
    # Answers keep the real stdout to themselves; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    framework, dtype, extra = RIVALS[options.serve]
    build = jax_rival if framework == "jax" else torch_rival
    one, finish, about = build(options, dtype, **extra)
    begin = time.perf_counter()
    one(0)
    finish()
    about["first_step_seconds"] = round(time.perf_counter() - begin, 2)
    for i in range(options.warmup):
        one(i)
    finish()
    about["versions"]["python"] = platform.python_version()
    print(json.dumps({**about, "dtype": dtype}), file=answers)
    for _ in sys.stdin:
        one(0)  # the other process has just had the caches
        finish()
        begin = time.perf_counter()
        for i in range(options.steps):
            one(i)
        loss = finish()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "loss": loss}), file=answers)


class Rival:
    """A process that answers every line with a timed round."""

    def __init__(self, name: str, options: argparse.Namespace, argv: list[str]):
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        if options.device == "cpu":
            environment |= {**MALLOC, "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, *argv, "--device", options.device, "--serve", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.name = name

    def answer(self) -> dict[str, Any] | None:
        """Its next line, or None if it died (what it said is on stderr)."""
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def round(self) -> dict[str, Any] | None:
        """Asks for one round; None if the process died."""
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        return self.answer()

    def close(self) -> None:
        """Lets the process end."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait()


def cpu_name() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {names[0] if names else platform.machine()}"


def default_device() -> str:
    """The device that jax would take, asked in a process that ends again."""
    code = "import jax; print(jax.default_backend())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.split()[-1]


def table(
    options: argparse.Namespace, about: dict[str, dict], rates: dict[str, list], load: float
) -> str:
    """Markdown: a row per rival, the ratio against the best PyTorch of the same type."""
    medians = {name: statistics.median(r) for name, r in rates.items() if r}
    h, w = options.size
    first = next(iter(about.values()), {"device_kind": "-"})
    device = cpu_name() if options.device == "cpu" else first["device_kind"]
    versions = {k: v for a in about.values() for k, v in a["versions"].items()}
    settings = [f"TF32 {options.tf32}" if options.device == "gpu" else "glibc malloc tuned"]
    settings += [f"{name} {version}" for name, version in versions.items()]
    lines = [
        f"{options.variant}, {h}x{w}, batch {options.batch_size}, {options.num_classes} classes, one training"
        f" step on {device}; {', '.join(settings)}; rounds of {options.steps} steps, rivals in turn,"
        f" median of {options.rounds}; load before {load}.",
        "",
        "| rival | type | images/s | lowest - highest | ms/step | against best torch | first step, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in options.rivals:
        dtype = RIVALS[name][1]
        if name not in medians:
            lines.append(f"| {name} | {dtype} | failed | | | | |")
            continue
        best = max(
            (m for n, m in medians.items() if RIVALS[n][:2] == ("torch", dtype)), default=None
        )
        ratio = f"{medians[name] / best:.2f}" if best else "-"
        lines.append(
            f"| {name} | {dtype} | {medians[name]:.2f} | {min(rates[name]):.2f} - {max(rates[name]):.2f}"
            f" | {1000 * options.batch_size / medians[name]:.1f} | {ratio}"
            f" | {about[name]['first_step_seconds']:.1f} |"
        )
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="file that gets the lines of JSON")
    add("--variant", default="eacnet_dabnet", help="a network of models.VARIANTS")
    add("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"), help="of the crop")
    add("--batch_size", type=int, default=8)
    add("--num_classes", type=int, default=11)
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto is what jax takes")
    add("--rivals", nargs="+", choices=RIVALS, help="default: those that suit the device")
    add("--rounds", type=int, default=5, help="the median of these is the figure")
    add("--steps", type=int, default=None, help="in a round; default 4 on a CPU, 50 on a GPU")
    add("--warmup", type=int, default=None, help="steps; default 1 on a CPU, 20 on a GPU")
    add("--tf32", choices=("on", "off"), default="on", help="float32 on a GPU's tensor cores")
    add("--serve", choices=RIVALS, help=argparse.SUPPRESS)  # how the program starts its rivals
    options = parser.parse_args(argv)
    options.size = tuple(options.size)
    if options.device == "auto":
        options.device = default_device()
        if options.device not in DEFAULT_RIVALS:
            parser.error(f"jax runs on '{options.device}' here; give --device cpu or gpu")
    on_cpu = options.device == "cpu"
    options.rivals = options.rivals or list(DEFAULT_RIVALS[options.device])
    options.steps = options.steps or (4 if on_cpu else 50)
    options.warmup = (1 if on_cpu else 20) if options.warmup is None else options.warmup
    return options


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.serve:
        serve(options)
        return 0
    rivals, about, rates = {}, {}, {name: [] for name in options.rivals}
    load = round(os.getloadavg()[0], 2)
    try:
        # Built one after the other: compiling beside a neighbour would only slow both down.
        for name in options.rivals:
            print(f"building {name} ...", file=sys.stderr, flush=True)
            rivals[name] = Rival(name, options, argv)
            answer = rivals[name].answer()
            if answer is not None:
                about[name] = answer
        with options.output.open("a") as output:
            for number in range(options.rounds):
                for name in list(about):
                    answer = rivals[name].round()
                    if answer is None:
                        del about[name]
                        rates[name] = []
                        continue
                    rate = options.steps * options.batch_size / answer["seconds"]
                    rates[name].append(rate)
                    record = {
                        "benchmark": "train_step",
                        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                        "variant": options.variant,
                        "size": options.size,
                        "batch_size": options.batch_size,
                        "num_classes": options.num_classes,
                        "rival": name,
                        "round": number,
                        "steps": options.steps,
                        "images_per_second": round(rate, 3),
                        "ms_per_step": round(1000 * answer["seconds"] / options.steps, 3),
                        "loss": round(answer["loss"], 5),
                        "device": options.device,
                        "cpu": cpu_name(),
                        "load_before": load,
                        "tf32": options.tf32 if options.device == "gpu" else None,
                        "malloc": MALLOC if options.device == "cpu" else None,
                        **about[name],
                    }
                    output.write(json.dumps(record) + "\n")
                    output.flush()
                    print(f"round {number}: {name} {rate:.2f} images/s", file=sys.stderr)
    finally:
        for rival in rivals.values():
            rival.close()
    print(table(options, about, rates, load))
    return 0 if len(about) == len(options.rivals) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
