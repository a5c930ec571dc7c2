"""What computing in bfloat16 costs a trained network: its class maps and scores beside those of float32, on this device.

    python benchmarks/bfloat16.py eacnet_dabnet_camvid --dataset=camvid --root=DIR --split=test

The network is whatever rtseg_jax.load() takes. Of all pixels with a label: how many have the same class in both types, and
the mIoU of each.
"""

import argparse
import dataclasses

import numpy as np

import rtseg_jax
from rtseg_jax import data
from rtseg_jax.data.spec import IGNORE
from rtseg_jax.inference import metrics

DTYPES = ("float32", "bfloat16")


def confusion(truth: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """[k, k] int64, truth by row, of the pixels that have a label."""
    pairs = (truth.astype(np.int64) * count + classes)[truth != IGNORE]
    return np.bincount(pairs, minlength=count**2).reshape(count, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", help="a run, a bundle, or a shipped network")
    parser.add_argument("--dataset", default="camvid")
    parser.add_argument("--root", help="the data set's folder")
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    network = rtseg_jax.load(given.network)
    computing = {dtype: dataclasses.replace(network, dtype=dtype) for dtype in DTYPES}
    dataset = data.load(given.dataset, root=given.root, split=given.split)
    count = network.table.num_classes
    totals = {dtype: np.zeros((count, count), np.int64) for dtype in DTYPES}
    same = np.zeros((count, count), np.int64)
    for i in range(len(dataset)):
        image, truth = dataset.load(i)
        maps = {dtype: of(image) for dtype, of in computing.items()}
        for dtype, classes in maps.items():
            totals[dtype] += confusion(truth, classes, count)
        labelled = np.where(truth == IGNORE, IGNORE, maps["float32"])
        same += confusion(labelled, maps["bfloat16"], count)
    print(f"{given.network}, {given.dataset} {given.split}, {len(dataset)} images")
    print(
        f"same class: {100 * np.trace(same) / same.sum():.2f} % of {same.sum():,} labelled pixels"
    )
    for dtype, total in totals.items():
        print(f"{dtype}: {100 * metrics.scores(total).miou:.2f} mIoU")


if __name__ == "__main__":
    main()
