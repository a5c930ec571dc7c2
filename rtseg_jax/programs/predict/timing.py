"""What each part of a prediction takes."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from rtseg_jax.data.spec import Image3, Label
from rtseg_jax.inference.network import Pair


@dataclasses.dataclass
class Clock:
    """What predicting took.

    Attributes:
        frames: How many.
        network: Seconds from frames on the host to class maps on the host, one after the other.
        compiling: Seconds of compiling and first calls, which no other figure contains.
        total: Seconds from opening the first file to closing the last.
    """

    frames: int = 0
    network: float = 0.0
    compiling: float = 0.0
    total: float = 0.0

    def __str__(self) -> str:
        """The figures as two lines."""
        if not self.frames:
            return "no frames"
        return (
            f"{self.frames} frames in {self.total:.1f} s, {self.frames / max(self.total, 1e-9):.3g} "
            "frames per second from file to file (reading, network, drawing, writing)\n"
            f"{self.frames / max(self.network, 1e-9):.3g} frames per second of the network alone "
            f"(frame on the host to class map on the host); compiling took {self.compiling:.1f} s more"
        )


def timed(
    classes: Callable[[Image3], Label], clock: Clock, given: Callable[[Pair], Pair]
) -> Callable[[Image3], Label]:
    """The function by the clock; each size that a program is given is compiled and called once before its time counts."""
    warm = None

    def timed(frame: Image3) -> Label:
        nonlocal warm
        size = given(frame.shape[:2])
        if size != warm:
            start = time.perf_counter()
            classes(np.zeros_like(frame))
            clock.compiling += time.perf_counter() - start
            warm = size
        start = time.perf_counter()
        result = classes(frame)
        clock.network += time.perf_counter() - start
        clock.frames += 1
        return result

    return timed


def as_it_is(size: Pair) -> Pair:
    """The size."""
    return size
