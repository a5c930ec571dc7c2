"""Losses over class scores, as pure functions: weighted cross-entropy, hard example mining, weighted focal loss."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from rtseg_jax.base.labels import IGNORE
from rtseg_jax.nn.forms import Form, by_platform
from rtseg_jax.nn.resize import bilinear_matrix, resize_bilinear


def upsample_class_maps(
    logits: Float[Array, "b h w k"], size: tuple[int, int]
) -> Float[Array, "b k height width"]:
    """Bilinear upsampling to (height, width), half-pixel centres, with the classes moved in front.

    One plane per class lets softmax and its gradient run over whole rows: at full size that is several times faster on a
    CPU than reducing over a last axis of 11 or 19. There two matrix products keep the planes in this order, forward and
    backward; elsewhere the planes are interpolated as resize_bilinear() does it.
    """
    if logits.shape[1:3] == tuple(size):
        return jnp.moveaxis(logits, -1, 1)

    def resized(logits):
        return jnp.moveaxis(resize_bilinear(logits, size), -1, 1)

    by_matrices = functools.partial(_by_matrices, size=size)
    return by_platform(logits, default=Form(resized), cpu=Form(by_matrices))


def _by_matrices(logits, size):
    b, h, w, k = logits.shape
    rows, columns = bilinear_matrix(h, size[0]), bilinear_matrix(w, size[1])
    planes = jnp.moveaxis(logits.astype(jnp.float32), -1, 1).reshape(-1, w)
    planes = jnp.matmul(planes, columns.T).reshape(b * k, h, size[1])
    rows = jnp.broadcast_to(rows.reshape(1, *rows.shape), (b * k, *rows.shape))
    return jnp.matmul(rows, planes).reshape(b, k, *size).astype(logits.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _entropy(logits, target, axis):
    """Minus the logarithm of the softmax at `target`; as many dimensions less one."""
    return _entropy_forward(logits, target, axis)[0]


def _entropy_forward(logits, target, axis):
    # Two loops over the pixels, a class after the other; on a CPU reductions over the classes take four times as long.
    # But this one keeps the maximum from being found again in each of them, which jnp.max is too slow for.
    top = lax.reduce(logits, np.float32(-np.inf), lambda a, b: lax.select(b > a, b, a), (axis,))
    planes = [lax.index_in_dim(logits, i, axis, keepdims=False) for i in range(logits.shape[axis])]
    log_total = jnp.log(sum(jnp.exp(plane - top) for plane in planes))
    own = planes[0]
    for i, plane in enumerate(planes[1:], start=1):
        own = jnp.where(target == i, plane, own)
    # Not their sum: among large scores it would round away what a sure pixel lacks of probability 1.
    return log_total - (own - top), (logits, target, top, log_total)


def _entropy_backward(axis, saved, g):
    logits, target, top, log_total = saved
    # Compared as floats: with integers the loop is three times as slow.
    classes = lax.broadcasted_iota(jnp.float32, logits.shape, axis)
    target = target.astype(jnp.float32)
    share, top, g, target = (
        jnp.expand_dims(v, axis) for v in (g * jnp.exp(-log_total), top, g, target)
    )
    return jnp.exp(logits - top) * share - jnp.where(classes == target, g, 0), None


_entropy.defvjp(_entropy_forward, _entropy_backward)


def pixel_weights(
    label: Int[Array, "*pixels"], class_weights: tuple[float, ...] | None
) -> Float[Array, "*pixels"]:
    """The weight of each pixel's class, 1 for all without weights; 0 where the label is 255."""
    valid = label != IGNORE
    if class_weights is None:
        return valid.astype(jnp.float32)
    weights = jnp.asarray(class_weights, jnp.float32)
    return jnp.where(valid, weights[jnp.where(valid, label, 0)], 0.0)


def _terms(
    logits: Float[Array, "..."],
    label: Int[Array, "b h w"],
    class_weights: tuple[float, ...] | None,
    axis: int,
) -> tuple[Float[Array, "b h w"], Float[Array, "b h w"], Bool[Array, "b h w"]]:
    """Returns per pixel: cross-entropy (0 where ignored), class weight (0 where ignored), validity."""
    num_classes = logits.shape[axis]
    if class_weights is not None and len(class_weights) != num_classes:
        raise ValueError(
            f"{len(class_weights)} class weights were given for {num_classes} classes; give one per class"
        )
    valid = label != IGNORE
    target = jnp.where(valid, label, 0)
    entropy = _entropy(logits.astype(jnp.float32), target, axis % logits.ndim)
    return jnp.where(valid, entropy, 0.0), pixel_weights(label, class_weights), valid


def _weighted_mean(entropy: Float[Array, "b h w"], weight: Float[Array, "b h w"]) -> Array:
    total = jnp.sum(weight)
    return jnp.sum(entropy * weight) / jnp.where(total > 0, total, 1.0)


def cross_entropy(
    logits: Float[Array, "..."],
    label: Int[Array, "b h w"],
    class_weights: tuple[float, ...] | None = None,
    *,
    axis: int = -1,
) -> Float[Array, ""]:
    """Cross-entropy normalised by the sum of the weights of the pixels that count (torch's reduction="mean").

    Args:
        logits: [b, h, w, k], or with the classes on another `axis`.
        label: Train ids; 255 is ignored. A batch without any valid pixel gives 0.
        class_weights: One weight per class, or None for equal ones.
        axis: The axis of `logits` that holds the classes.

    Raises:
        ValueError: as many weights as classes were not given.
    """
    entropy, weight, _ = _terms(logits, label, class_weights, axis)
    return _weighted_mean(entropy, weight)


def kth_smallest(values: Float[Array, "..."], k: int) -> Float[Array, ""]:
    """The k-th smallest (k from 1) of non-negative float32 values, exactly.

    The bits of non-negative floats order as integers do, so 31 counting passes fix the answer bit by bit. Each pass
    is one reduction, so a batch sharded over devices is never gathered, as a sort or top_k would.
    """
    bits = lax.bitcast_convert_type(values, jnp.uint32)

    def set_bit(i, found):
        candidate = found | (jnp.uint32(1) << (30 - i).astype(jnp.uint32))
        return jnp.where(jnp.sum(bits < candidate, dtype=jnp.int32) < k, candidate, found)

    return lax.bitcast_convert_type(lax.fori_loop(0, 31, set_bit, jnp.uint32(0)), jnp.float32)


def ohem_cross_entropy(
    logits: Float[Array, "..."],
    label: Int[Array, "b h w"],
    class_weights: tuple[float, ...] | None = None,
    *,
    threshold: float = 0.7,
    min_kept: float = 1 / 16,
    axis: int = -1,
) -> Float[Array, ""]:
    """Cross-entropy over the hard pixels of the batch (OHEM, Shrivastava et al. 2016, as used by EACNet).

    A pixel is kept if the probability of its true class is at most `threshold`; if that keeps fewer than `min_kept`
    of all pixels, the threshold rises to the probability that keeps exactly so many. With fewer valid pixels than
    that, all valid ones are kept. Normalised by the sum of the weights of the kept pixels.

    Args:
        logits: [b, h, w, k], or with the classes on another `axis`.
        label: Train ids; 255 is ignored.
        class_weights: One weight per class, or None for equal ones.
        threshold: Probability in (0, 1].
        min_kept: Fraction of the batch's pixels (valid or not).
        axis: The axis of `logits` that holds the classes.
    """
    entropy, weight, valid = _terms(logits, label, class_weights, axis)
    # Ignored pixels count as sure (p = 1): they come last, and if valid ones are too few the limit is 1, which keeps all.
    probability = jnp.where(valid, jnp.exp(-lax.stop_gradient(entropy)), 1.0)
    k = max(1, int(min_kept * label.size))
    enough = jnp.sum(probability <= threshold, dtype=jnp.int32) >= k
    limit = lax.cond(
        enough,
        lambda: jnp.float32(threshold),
        lambda: kth_smallest(probability, k),
    )
    kept = valid & (probability <= limit)
    return _weighted_mean(entropy, jnp.where(kept, weight, 0.0))


def segmentation_loss(
    outputs: dict[str, Float[Array, "..."]],
    batch: dict[str, Array],
    *,
    kind: str,
    class_weights: tuple[float, ...] | None,
    threshold: float,
    min_kept: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy, or OHEM cross-entropy, on the logits upsampled to the label's size.

    Args:
        outputs: What the network returned under train=True: "logits" [b, h', w', k].
        batch: "label" [b, h, w] int32 train ids, 255 = ignore.
        kind: "cross_entropy" or "ohem".
        class_weights: One weight per class, or None.
        threshold: OHEM's probability: pixels whose true class is at most this sure are kept.
        min_kept: OHEM's lower bound, as a fraction of the batch's pixels.

    Returns:
        The loss and its terms by name.

    Raises:
        ValueError: unknown kind.
    """
    label = batch["label"]
    logits = upsample_class_maps(outputs["logits"], label.shape[1:3])
    if kind == "cross_entropy":
        value = cross_entropy(logits, label, class_weights, axis=1)
    elif kind == "ohem":
        value = ohem_cross_entropy(
            logits, label, class_weights, threshold=threshold, min_kept=min_kept, axis=1
        )
    else:
        raise ValueError(f"unknown loss '{kind}'; choose 'cross_entropy' or 'ohem'")
    return value, {"loss": value}


def mined(
    outputs: Mapping[str, Float[Array, "b _ _ k"]],
    label: Int[Array, "b h w"],
    class_weights: tuple[float, ...] | None,
    *,
    threshold: float,
    min_kept: float,
) -> dict[str, Float[Array, ""]]:
    """OHEM cross-entropy of each of several score maps, upsampled to the label's size; arguments as there."""
    size = label.shape[1:3]
    options = {"threshold": threshold, "min_kept": min_kept, "axis": 1}
    return {
        name: ohem_cross_entropy(upsample_class_maps(scores, size), label, class_weights, **options)
        for name, scores in outputs.items()
    }


def auxiliary_loss(
    outputs: Mapping[str, Float[Array, "b _ _ k"]],
    batch: dict[str, Array],
    *,
    class_weights: tuple[float, ...] | None,
    threshold: float,
    min_kept: float,
    aux_weight: float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """OHEM cross-entropy of a network's scores, and `aux_weight` times the sum of those of its training heads.

    Args:
        outputs: "logits" and the training heads' scores by name, as the network returned them under train=True.
        batch: "label" [b, h, w] int32 train ids, 255 = ignore; to its size scores are upsampled.
        class_weights: One weight per class, or None.
        threshold: Pixels whose true class is at most this sure are kept.
        min_kept: OHEM's lower bound, as a fraction of the batch's pixels.
        aux_weight: Of every training head.

    Returns:
        The loss and its terms by name, before their weights.
    """
    given = {"threshold": threshold, "min_kept": min_kept}
    terms = mined(outputs, batch["label"], class_weights, **given)
    main = terms.pop("logits")
    value = main + aux_weight * sum(terms.values())
    return value, {"loss": value, "main": main, **terms}


def _check_counts(pixel_counts: tuple[int, ...]) -> None:
    if not pixel_counts or min(pixel_counts) < 1:
        raise ValueError(f"pixel counts {pixel_counts} must be positive, one per class")


def frequency_weights(pixel_counts: tuple[int, ...], offset: float) -> tuple[float, ...]:
    """Object frequency weights alpha_i = w_i / max w, w_i = 1 / ln(f_i + offset) (AFFNet, Eqs. 4 and 5).

    Args:
        pixel_counts: Labelled pixels of each class; f_i is their share.
        offset: c of Eq. 4, greater than 1.

    Raises:
        ValueError: a class without pixels, or an offset that can make a weight infinite or negative.
    """
    _check_counts(pixel_counts)
    if offset <= 1:
        raise ValueError(f"offset {offset} of the frequencies must be greater than 1")
    total = sum(pixel_counts)
    weights = [1 / math.log(count / total + offset) for count in pixel_counts]
    return tuple(weight / max(weights) for weight in weights)


def magnitudes(pixel_counts: tuple[int, ...]) -> tuple[int, ...]:
    """Object magnitudes gamma_i = floor(log10(f_i / min f)) (AFFNet, Eq. 6), in integers.

    Raises:
        ValueError: a class without pixels.
    """
    _check_counts(pixel_counts)
    return tuple(len(str(count // min(pixel_counts))) - 1 for count in pixel_counts)


def object_weighted_focal_loss(
    logits: Float[Array, "..."],
    label: Int[Array, "b h w"],
    alpha: tuple[float, ...],
    gamma: tuple[int, ...],
    *,
    axis: int = -1,
) -> Float[Array, ""]:
    """Object weighted focal loss, OWFL: the mean of -alpha_y (1 - p_y)^gamma_y ln p_y (AFFNet, Eq. 7).

    Args:
        logits: [b, h, w, k], or with the classes on another `axis`.
        label: Train ids; 255 is ignored. A batch without any valid pixel gives 0.
        alpha: One weight per class; the mean is not divided by them.
        gamma: One exponent per class; frequent classes have the larger ones.
        axis: The axis of `logits` that holds the classes.

    Raises:
        ValueError: not one alpha and one gamma per class, or a negative gamma.
    """
    if len(gamma) != len(alpha) or min(gamma) < 0:
        raise ValueError(f"gamma {gamma} must hold {len(alpha)} exponents of 0 or more")
    entropy, weight, valid = _terms(logits, label, alpha, axis)
    exponent = jnp.asarray(gamma, jnp.int32)[jnp.where(valid, label, 0)]
    # Products, not a power: the gradient of 0^0, met where p = 1, would be nan.
    unsure, focus = -jnp.expm1(-entropy), jnp.ones_like(entropy)
    for power in range(1, max(gamma) + 1):
        focus = jnp.where(exponent >= power, focus * unsure, focus)
    return _weighted_mean(weight * focus * entropy, valid.astype(jnp.float32))
