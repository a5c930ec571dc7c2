"""How a training step scales: what it sends, counted in the compiled program, and a small model of what that costs.

python benchmarks/scaling.py --output=benchmarks/scaling.md

The step of each paper network, with its Cityscapes config, is compiled for four virtual CPU devices, and its
all-reduces are read out of the program; that it holds no other kind of message is checked. How long they take on a cluster is
computed, not measured: from the rates and latencies that the flags give, without any overlap, for steps in which OHEM's
threshold suffices and does not have to be searched for.
"""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import re
import shlex
import sys
from typing import Any

DEVICES = 4
NETWORKS = {
    "EACNet-ERF": "eacnet:erfnet,cityscapes",
    "EACNet-DAB": "eacnet:dabnet,cityscapes",
    "CARNet-50": "carnet:resnet50,cityscapes",
    "CARNet-101": "carnet:resnet101,cityscapes",
    "CARNet-152": "carnet:resnet152,cityscapes",
    "CARNet-Mobile": "carnet:mobilenet,cityscapes",
    "AFFNet": "affnet:cityscapes",
    "ASAP": "asap:cityscapes",
}
COUNTS = (8, 64, 256, 1024)
NODE = 8  # GPUs that share one machine's fast links
BYTES = {"pred": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4, "bf16": 2, "f16": 2, "s64": 8, "f64": 8}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one training step sends.

    Attributes:
        sizes: Bytes of each all-reduce.
        others: Names of collectives of any other kind.
    """

    sizes: tuple[int, ...]
    others: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Of all of them."""
        return sum(self.sizes)


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the model assumes of a cluster.

    Attributes:
        flops: Sustained floating-point operations per second of a GPU in this work.
        bandwidth: Bytes per second that a GPU sends to another machine.
        inside: Bytes per second between the GPUs of a machine.
        latency: Seconds for the smallest all-reduce within a machine.
        hop: Seconds that each doubling of the number of machines adds to it.
    """

    flops: float
    bandwidth: float
    inside: float
    latency: float
    hop: float

    def all_reduce(self, num_bytes: float, n: int) -> float:
        """Seconds that one all-reduce over n GPUs takes: a ring's share of bytes at the slowest link, and latency."""
        if n == 1:
            return 0.0
        machines = math.ceil(n / NODE)
        rate = self.inside if machines == 1 else self.bandwidth
        return (
            2 * (n - 1) / n * num_bytes / rate
            + self.latency
            + self.hop * math.ceil(math.log2(machines))
        )


def traffic(hlo: str) -> Traffic:
    """The collectives of a compiled program, from its text; a tuple's all-reduce counts once, with all it holds."""
    sizes, others = [], []
    pattern = r"= (\(.*?\)|\S+) (all-reduce|all-gather|(?:ragged-)?all-to-all|reduce-scatter|collective-\w+|send|recv)(?:-start)?\("
    for shape, kind in re.findall(pattern, hlo):
        if kind != "all-reduce":
            others.append(kind)
            continue
        parts = re.findall(r"(\w+)\[([\d,]*)\]", shape)
        sizes.append(
            sum(BYTES[t] * math.prod(int(d) for d in dims.split(",") if d) for t, dims in parts)
        )
    return Traffic(tuple(sizes), tuple(others))


def compiled_step(config, size: tuple[int, int]) -> tuple[str, Any, dict]:
    """The text of a config's step, compiled for all devices without computing anything, the network and its variables.

    Args:
        config: One of configs/.
        size: (h, w) of frames and crop in pixels; what is sent does not depend on it.
    """
    import jax
    import jax.numpy as jnp

    from rtseg_jax import data, models
    from rtseg_jax.base import config as settings
    from rtseg_jax.base import mesh
    from rtseg_jax.models import flops
    from rtseg_jax.train import loop, step

    devices = mesh.make_mesh()
    num_classes = data.class_table(config.input.dataset).num_classes
    model = models.create(
        config.model.name, num_classes=num_classes, **settings.model_options(config)
    )
    variables = flops.variable_shapes(model)
    tx, schedule = loop.make_optimizer(config, variables["params"], 1000, 100)
    jitted = loop.make_train_step(config, devices, model, tx, schedule, None, size)
    state = jax.eval_shape(
        functools.partial(step.create_state, tx=tx, ema=config.ema_decay > 0), variables
    )
    batch = 2 * devices.devices.size
    frames = tuple(jax.ShapeDtypeStruct((batch, *size, *c), jnp.uint8) for c in ((3,), ()))
    indices = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return jitted.lower(state, frames, indices).compile().as_text(), model, variables


def step_seconds(macs: float, batch: float, sent: Traffic, machine: Machine, n: int) -> float:
    """Seconds of a step of `batch` images per GPU on n GPUs, nothing overlapping: forward, and twice that backward."""
    computing = 3 * 2 * macs * batch / machine.flops
    return computing + sum(machine.all_reduce(size, n) for size in sent.sizes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, help="Markdown file; else it is printed")
    parser.add_argument("--batch", type=int, default=4, help="images per GPU")
    parser.add_argument("--tflops", type=float, default=30, help="that a GPU sustains")
    parser.add_argument("--gbit", type=float, default=400, help="per GPU to other machines")
    parser.add_argument("--inside", type=float, default=300, help="GB/s inside a machine")
    parser.add_argument("--latency", type=float, default=20, help="us, least all-reduce inside")
    parser.add_argument("--hop", type=float, default=6, help="us more per doubling of machines")
    given = parser.parse_args()
    machine = Machine(
        given.tflops * 1e12,
        given.gbit / 8 * 1e9,
        given.inside * 1e9,
        given.latency * 1e-6,
        given.hop * 1e-6,
    )
    # Before jax is first imported.
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0 "
        + os.environ.get("XLA_FLAGS", "")
    )
    os.environ["JAX_PLATFORMS"] = "cpu"
    from rtseg_jax.base import config as settings
    from rtseg_jax.models import flops
    from rtseg_jax.programs.shared import tables

    sent, cost = [], []
    for title, name in NETWORKS.items():
        config = settings.load(name)
        hlo, model, variables = compiled_step(config, (64, 128))
        found = traffic(hlo)
        if found.others:
            raise SystemExit(f"{name}: its step sends more than sums: {', '.join(found.others)}")
        crop = tuple(config.augment.crop)
        macs = flops.macs(model, crop, train=True)
        parameters = flops.count_parameters(variables["params"])
        norms = flops.count_parameters(variables.get("batch_stats", {}))
        sent.append(
            tables.row(
                title,
                f"{parameters / 1e6:.2f}",
                len(found.sizes),
                f"{4 * parameters / 1e6:.2f}",
                f"{4 * norms / 1e3:.1f}",
                f"{found.num_bytes / 1e6:.2f}",
            )
        )
        seconds = {n: step_seconds(macs, given.batch, found, machine, n) for n in (1, *COUNTS)}
        efficiency = [f"{100 * seconds[1] / seconds[n]:.0f}" for n in COUNTS]
        whole = step_seconds(macs, config.batch_size, found, machine, 1)
        split = step_seconds(macs, 1, found, machine, config.batch_size)
        cost.append(
            tables.row(
                title,
                f"{crop[0]}x{crop[1]}",
                f"{macs / 1e9:.1f}",
                f"{1e3 * seconds[1]:.0f}",
                *efficiency,
                config.batch_size,
                f"{whole / split:.1f}",
            )
        )
        print(sent[-1], cost[-1], sep="\n", flush=True)

    text = "\n".join(
        [
            "# How a training step scales\n",
            f"Written by `python {shlex.join(sys.argv)}`.\n",
            "## What a step sends\n",
            f"Counted in the program that XLA compiles for {DEVICES} devices: sums over all of them, and nothing else. The",
            "gradients are 4 bytes per parameter; the rest are the norms' sums, forward and backward, and the loss's. GPUs'",
            "XLA joins neighbouring sums into one, so the number of messages is at most this, as long as OHEM's threshold suffices:",
            "where too few pixels are hard, its search for another adds 30 sums of 4 bytes to each such term of the loss.\n",
            *tables.header(
                "network",
                "parameters / M",
                "sums",
                "gradients / MB",
                "norms' means and variances / kB",
                "sent / MB",
            ),
            *sent,
            "\n## What that costs: a model, not a measurement\n",
            f"Assumed: a GPU sustains {given.tflops:g} TFLOP/s in this work, machines of {NODE} GPUs with {given.inside:g} GB/s inside and",
            f"{given.gbit:g} Gbit/s per GPU between them, {given.latency:g} us for the smallest sum inside a machine and {given.hop:g} us more for each",
            "doubling of the machines; nothing overlaps. Computing is three times the forward pass. Efficiency: a step on one GPU",
            f"against a step on n with as many images on each ({given.batch}); 100 would be perfect. The last two columns keep the",
            "paper's batch and give each image a GPU of its own: how many times as fast that is, its size would be perfect.\n",
            *tables.header(
                "network",
                "crop",
                "GMACs per image",
                "ms on one",
                *(f"% on {n}" for n in COUNTS),
                "batch",
                "one image per GPU",
            ),
            *cost,
            "",
        ]
    )
    if given.output:
        given.output.write_text(text)
    else:
        print(f"\n{text}")


if __name__ == "__main__":
    main()
