"""How bench times: rounds that take turns, and rivals in processes of their own."""

import dataclasses
import math
import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass
class Rival:
    """A network that is ready to be timed.

    Attributes:
        inputs: What `call` takes, already on the device.
        call: Starts the work and may return before it is done.
        wait: Returns when a result of `call`, and all before it, are done.
        put: uint8 frames of the host, on their way to the device.
        get: A result as a numpy array; of a training step, its loss.
        about: Facts to record.
    """

    inputs: list[Any]
    call: Callable[[Any], Any]
    wait: Callable[[Any], None]
    put: Callable[[np.ndarray], Any] | None
    get: Callable[[Any], Any]
    about: dict[str, Any]


def cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine_seconds() -> float | None:
    """Processor time that this machine has spent on anything since it started, in s; None where Linux does not tell."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(field) for field in file.readline().split()[1:9]]
    except OSError:
        return None
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


class Foreign:
    """Watches what part of the machine's processor time goes to other processes."""

    def __enter__(self):
        self._machine, self._own, self._wall = machine_seconds(), time.process_time(), time.time()
        return self

    def __exit__(self, *_):
        self.share = None
        if self._machine is not None:
            others = machine_seconds() - self._machine - (time.process_time() - self._own)
            capacity = (time.time() - self._wall) * os.cpu_count()
            self.share = round(min(max(others / capacity, 0.0), 1.0), 3)


def time_round(
    rival: Rival, mode: str, calls: int, frames: Sequence[Any]
) -> tuple[float, list[float], Any]:
    """Times `calls` calls.

    Args:
        rival: What is timed.
        mode: "throughput" and "train": one wait, at the end. "latency": one for each call. "e2e": from uint8 frames
            of the host to a uint8 class map of the host, each call.
        calls: How many.
        frames: uint8 frames in the host's memory.

    Returns:
        ms per call; ms of each call where each was timed; the last result.
    """
    rival.wait(rival.call(rival.inputs[0]))  # another process has just had the caches
    spans, result = [], None
    start = time.perf_counter()
    for i in range(calls):
        begin = time.perf_counter()
        if mode == "e2e":
            result = rival.get(rival.call(rival.put(frames[i % len(frames)])))
        else:
            result = rival.call(rival.inputs[i % len(rival.inputs)])
            if mode == "latency":
                rival.wait(result)
        spans.append(1000 * (time.perf_counter() - begin))
    if mode != "e2e":
        rival.wait(result)
    total = 1000 * (time.perf_counter() - start)
    return total / calls, spans if mode in ("latency", "e2e") else [], result


def settle(rival: Rival) -> None:
    """Warms up until the process has the memory that its calls take; its first pages cost more than a step's arithmetic."""
    faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt  # noqa: E731
    for _ in range(12):
        before = faults()
        time_round(rival, "throughput", 3, [])
        if faults() - before < 1000:
            return


def calibrate(rival: Rival, seconds: float) -> int:
    """As many calls as take about `seconds`, at least 3 and at most 1000."""
    settle(rival)
    start, done = time.perf_counter(), 0
    while done < 2 or (time.perf_counter() - start < seconds / 2 and done < 50):
        rival.wait(rival.call(rival.inputs[done % len(rival.inputs)]))
        done += 1
    return min(max(3, math.ceil(seconds * done / (time.perf_counter() - start))), 1000)
