"""All networks at 512x1024 in one table, benchmarks/networks.md: size, work, CPU beside PyTorch, a GPU on paper.

rtseg bench --backend=jax,torch --output=benchmarks/networks.jsonl --table=bench.md
python benchmarks/gpu_paper.py --resume
python benchmarks/networks.py
"""

import json
import pathlib
import statistics
from typing import Any

from rtseg_jax import models
from rtseg_jax.programs.shared import tables

HERE = pathlib.Path(__file__).parent
SIZE = [512, 1024]


def read(name: str) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines."""
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def table(timed: list[dict[str, Any]], on_paper: list[dict[str, Any]]) -> str:
    """The page.

    Args:
        timed: Lines of bench; the last of a network and rival counts.
        on_paper: Lines of gpu_paper.py.
    """
    cpu = {(x["model"], x["backend"], x["variant"]): x for x in timed if "ms" in x}
    gpu = {
        x["name"]: x["us"]
        for x in on_paper
        if (x["what"], x["target"], x["dtype"], x["size"]) == ("frames", "h200", "bfloat16", SIZE)
    }
    rows, ratios = [], []
    for name in models.VARIANTS:
        ours = cpu[name, "jax", "frozen"]
        torch = min(x["ms"] for key, x in cpu.items() if key[:2] == (name, "torch"))
        ratios.append(torch / ours["ms"])
        work = f"{ours['parameters']:,}", f"{ours['macs'] / 1e9:.2f}"
        times = f"{ours['ms']:.0f}", f"{torch:.0f}", f"{ratios[-1]:.2f}"
        rows.append(tables.row(name, *work, *times, f"{gpu[name]:.0f}"))
    about = cpu["asap", "jax", "frozen"]
    titles = ("parameters", "10^9 multiply-adds", "CPU, ms", "PyTorch, ms", "PyTorch / ours")
    return "\n".join(
        (
            "# All networks at 512x1024",
            "",
            "19 classes, batch 1, from a uint8 frame to its class map, by `python benchmarks/networks.py`. Among the parameters",
            f"are heads for training alone. CPU: float32 on {about['device']}, jax {about['versions']['jax']}, against",
            "PyTorch's better of eager and channels_last, which takes turns with ours; only the ratio carries to another",
            "machine. GPU: bfloat16 on an H200 that was not there; **modelled**, at least so long, and never run",
            "([gpu_paper.md](gpu_paper.md)).",
            "",
            *tables.header("network", *titles, "H200, us, modelled"),
            *rows,
            "",
            f"Geometric mean of PyTorch / ours: {statistics.geometric_mean(ratios):.2f}. Where ours is slower, nearly all of the time is dense 3x3,",
            "3x1 and 1x3 convolutions of few or many channels, which XLA gives to Eigen's products and PyTorch to oneDNN's; ESPNet's",
            "have 12 and 25 channels, which fill no vectors. `rtseg bench --layers=3` shows which.",
            "",
        )
    )


if __name__ == "__main__":
    page = table(read("networks.jsonl"), read("gpu_paper.jsonl"))
    (HERE / "networks.md").write_text(page)
