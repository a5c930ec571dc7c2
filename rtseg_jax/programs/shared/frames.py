"""Frames to try programs on. Nothing but numpy is imported: bench measures PyTorch in a process without jax."""

import numpy as np


def smooth_frames(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Random uint8 frames [count, h, w, 3] that vary slowly: of noise, the classes of neighbours are a toss-up."""

    def hats(side: int, knots: int) -> np.ndarray:
        at = np.linspace(0, knots - 1, side)[:, None]
        return np.maximum(0, 1 - np.abs(at - np.arange(knots)))

    rows, columns = hats(size[0], 6), hats(size[1], 8)
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 6, 8, 3))
    frames = [np.einsum("hi,ijc,wj->hwc", rows, grid, columns, optimize=True) for grid in coarse]
    return np.stack(frames).astype(np.uint8, order="C")
