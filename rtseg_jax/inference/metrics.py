"""Confusion matrices, counted on the device and summed on the host, and the figures read off them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from rtseg_jax.base.labels import IGNORE


def confusion_matrix(
    label: Int[Array, "b h w"],
    prediction: Shaped[Array, "b h w"],
    num_classes: int,
    mask: Bool[Array, " b"] | None = None,
) -> Int[Array, "k k"]:
    """Counts pixels by (true class, predicted class); ignored pixels and masked examples do not count.

    The counts are int32: sum them over batches in int64 on the host.
    """
    valid = label != IGNORE
    if mask is not None:
        valid &= mask[:, None, None]
    cell = jnp.where(
        valid, label * num_classes + prediction.astype(jnp.int32), num_classes * num_classes
    )
    counts = jnp.zeros(num_classes * num_classes + 1, jnp.int32).at[cell.ravel()].add(1)
    return counts[:-1].reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is read off a confusion matrix; all are fractions in [0, 1].

    Attributes:
        iou: Per class, TP / (TP + FP + FN); nan for a class that is neither in the labels nor predicted.
        accuracy: Per class, TP / (TP + FN); nan for a class absent from the labels.
        miou: Mean of the ious that are not nan, the official Cityscapes mean.
        classes: How many classes that mean is over.
        pixel_accuracy: Right pixels over valid pixels.
        mean_accuracy: Mean of the accuracies that are not nan.
        frequency_weighted_iou: Ious weighted by the share of each class in the labels.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    miou: float
    classes: int
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float

    def __str__(self) -> str:
        """What a line has room for, in percent."""
        return f"mIoU {100 * self.miou:.2f}, pixel accuracy {100 * self.pixel_accuracy:.2f}"


def scores(confusion: np.ndarray) -> Scores:
    """Reads IoU and accuracies off a [k, k] matrix of counts (rows: truth, columns: prediction).

    Further columns are of classes that the labels do not have, such as void: a pixel predicted so is missed.
    """
    confusion = np.asarray(confusion, np.int64)
    hit = np.diag(confusion)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)[: len(confusion)]
    union = truth + predicted - hit
    total = confusion.sum()

    def ratio(a, b):
        return np.where(b > 0, a / np.maximum(b, 1), np.nan)

    iou, accuracy = ratio(hit, union), ratio(hit, truth)
    share = truth / max(total, 1)
    return Scores(
        iou=iou,
        accuracy=accuracy,
        miou=_mean(iou),
        classes=int(np.isfinite(iou).sum()),
        pixel_accuracy=float(hit.sum() / total) if total else float("nan"),
        mean_accuracy=_mean(accuracy),
        frequency_weighted_iou=float(np.nansum(share * iou)) if total else float("nan"),
    )


def _mean(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")
