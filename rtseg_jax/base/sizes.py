"""Sizes of images and kernels."""

Pair = tuple[int, int]  # (h, w)
OWN = "own"  # as a size: each frame's own
