"""The segmentation losses in plain PyTorch, in their plainest form: boolean indexing and a sort."""

import torch
from torch.nn import functional as F

IGNORE = 255


def _per_pixel(
    logits: torch.Tensor, label: torch.Tensor, class_weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the valid pixels, in order: scores [n, k], label [n], weight [n]."""
    valid = label != IGNORE
    scores = logits.permute(0, 2, 3, 1)[valid]
    label = label[valid].long()
    weight = scores.new_ones(label.shape) if class_weights is None else class_weights[label]
    return scores, label, weight


def cross_entropy(
    logits: torch.Tensor, label: torch.Tensor, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted cross-entropy over the valid pixels, divided by the sum of their weights.

    Args:
        logits: [b, k, h, w].
        label: [b, h, w] train ids, 255 = ignore.
        class_weights: [k], or None for ones.

    Returns:
        The scalar loss; 0 where no pixel is valid.
    """
    scores, label, weight = _per_pixel(logits, label, class_weights)
    if label.numel() == 0:
        return logits.sum() * 0
    return (weight * F.cross_entropy(scores, label, reduction="none")).sum() / weight.sum()


def ohem_cross_entropy(
    logits: torch.Tensor,
    label: torch.Tensor,
    class_weights: torch.Tensor | None = None,
    *,
    threshold: float,
    min_kept: float,
) -> torch.Tensor:
    """Cross-entropy over the hard pixels only (online hard example mining).

    A valid pixel is kept where the probability p of its true class is at most
    max(threshold, the n-th smallest p), n = max(1, floor(min_kept * all pixels of the batch)).
    With fewer than n valid pixels all of them are kept.

    Args:
        logits: [b, k, h, w].
        label: [b, h, w] train ids, 255 = ignore.
        class_weights: [k], or None for ones.
        threshold: Probability.
        min_kept: Fraction of the batch's pixels.

    Returns:
        The scalar loss, divided by the sum of the kept pixels' weights; 0 where no pixel is valid.
    """
    count = max(1, int(min_kept * label.numel()))
    scores, label, weight = _per_pixel(logits, label, class_weights)
    if label.numel() == 0:
        return logits.sum() * 0
    if count <= label.numel():
        with torch.no_grad():
            p = scores.softmax(dim=1).gather(1, label[:, None])[:, 0]
            keep = p <= max(threshold, p.sort().values[count - 1].item())
        scores, label, weight = scores[keep], label[keep], weight[keep]
    return (weight * F.cross_entropy(scores, label, reduction="none")).sum() / weight.sum()


def object_weighted_focal_loss(
    logits: torch.Tensor, label: torch.Tensor, alpha: torch.Tensor, gamma: torch.Tensor
) -> torch.Tensor:
    """The mean of -alpha_y (1 - p_y)^gamma_y ln p_y over the valid pixels (AFFNet, Eq. 7).

    Args:
        logits: [b, k, h, w].
        label: [b, h, w] train ids, 255 = ignore.
        alpha: [k] weights.
        gamma: [k] exponents.

    Returns:
        The scalar loss; 0 where no pixel is valid.
    """
    scores, label, weight = _per_pixel(logits, label, alpha)
    if label.numel() == 0:
        return logits.sum() * 0
    log_p = scores.log_softmax(dim=1).gather(1, label[:, None])[:, 0]
    return -(weight * (1 - log_p.exp()) ** gamma[label] * log_p).mean()
