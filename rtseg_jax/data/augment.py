"""Augmentation on the device: scale, crop, flip, colour jitter, normalisation, as one function of (seed, step, index).

Image and label are sampled at the same coordinates, so they cannot drift apart: half-pixel centres for both,
bilinear (no antialiasing, as cv2 and torch do) for the image, nearest for the label.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from rtseg_jax.base.labels import IGNORE, OUTSIDE

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow and torchvision


def normalize(
    image: Float[Array, "*b h w 3"] | UInt8[Array, "*b h w 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    channels: str = "rgb",
) -> Float[Array, "*b h w 3"]:
    """(image - mean) / std of an RGB image with RGB statistics in units of [0, 255].

    Args:
        image: The image.
        mean: RGB.
        std: RGB.
        channels: In which order the network wants them, "rgb" or "bgr".
    """
    shape = (1,) * (image.ndim - 1) + (3,)
    mean, std = (jnp.asarray(v, jnp.float32).reshape(shape) for v in (mean, std))
    normal = (image.astype(jnp.float32) - mean) / std
    return normal[..., ::-1] if channels == "bgr" else normal


def crop_coordinates(
    start: Float[Array, ""], count: int, scale: Float[Array, ""]
) -> Float[Array, " count"]:
    """Source coordinates in pixels of `count` output pixels from `start` on, in an axis enlarged by `scale`."""
    return (start + jnp.arange(count, dtype=jnp.float32) + 0.5) / scale - 0.5


def frame_extent(label: Int[Array, "h w"] | UInt8[Array, "h w"]) -> Int[Array, "2"]:
    """(height, width) of the frame in the top left corner of its array, beyond which the label is `OUTSIDE`."""
    return jnp.stack([jnp.sum(label[:, 0] != OUTSIDE), jnp.sum(label[0] != OUTSIDE)])


def _lerp_axis(x: Array, at: Float[Array, " n"], axis: int, extent: Int[Array, ""]) -> Array:
    """Linear interpolation of `x` at the positions `at` of an axis, clamped to its first `extent` values."""
    last = extent - 1
    at = jnp.clip(at, 0.0, last)
    low = at.astype(jnp.int32)
    fraction = (at - low).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    below = jnp.take(x, low, axis=axis, mode="clip").astype(jnp.float32)
    above = jnp.take(x, jnp.minimum(low + 1, last), axis=axis, mode="clip").astype(jnp.float32)
    return below + fraction * (above - below)


def scale_and_crop(
    image: UInt8[Array, "h w 3"],
    label: UInt8[Array, "h w"],
    *,
    scale: Float[Array, ""],
    offset: Float[Array, "2"],
    flip: Array,
    crop: tuple[int, int],
    size: tuple[int, int] | None = None,
) -> tuple[Float[Array, "ch cw 3"], Int[Array, "ch cw"], Array]:
    """One affine crop out of the image resized to `scale` times `size`.

    Args:
        image: RGB, [0, 255].
        label: Train ids, 255 = ignore; `OUTSIDE` where the frame is smaller than the array.
        scale: The frame is resized to round(scale * size).
        offset: In [0, 1): where the crop lies between the first and the last possible place, (y, x).
        flip: Whether to mirror left and right.
        crop: (height, width) in pixels. Where the enlarged image is smaller, the rest lies at the bottom and right
            (left, when mirrored).
        size: (height, width) that scale 1 stands for, in pixels; None for the frame's own.

    Returns:
        The image, float32 in [0, 255]; the label, 255 outside; and which pixels are inside, [ch, cw] bool.
    """
    coordinates, inside = [], []
    extents = frame_extent(label)
    for axis, count in enumerate(crop):
        extent = extents[axis]
        enlarged = jnp.maximum(jnp.round(scale * (extents if size is None else size)[axis]), 1.0)
        room = jnp.maximum(enlarged - count, 0.0)
        start = jnp.minimum(jnp.floor(offset[axis] * (room + 1)), room)
        coordinates.append(crop_coordinates(start, count, enlarged / extent))
        inside.append(jnp.arange(count) + start < enlarged)
    (y, x), inside = coordinates, inside[0][:, None] & inside[1][None, :]
    x = jnp.where(flip, x[::-1], x)
    inside = jnp.where(flip, inside[:, ::-1], inside)

    cropped = _lerp_axis(_lerp_axis(image, y, 0, extents[0]), x, 1, extents[1])
    row = jnp.clip(jnp.floor(y + 0.5).astype(jnp.int32), 0, extents[0] - 1)
    column = jnp.clip(jnp.floor(x + 0.5).astype(jnp.int32), 0, extents[1] - 1)
    ids = jnp.take(jnp.take(label, row, axis=0, mode="clip"), column, axis=1, mode="clip")
    return cropped, jnp.where(inside, ids.astype(jnp.int32), IGNORE), inside


def _grey(image: Float[Array, "h w 3"]) -> Float[Array, "h w"]:
    # Written out: a sum over an axis of three keeps XLA from fusing it with what is around it.
    return _GREY[0] * image[..., 0] + _GREY[1] * image[..., 1] + _GREY[2] * image[..., 2]


def color_jitter(
    image: Float[Array, "h w 3"],
    inside: Array,
    *,
    brightness: Float[Array, ""],
    contrast: Float[Array, ""],
    saturation: Float[Array, ""],
) -> Float[Array, "h w 3"]:
    """Brightness, contrast and saturation factors in this order, clipped to [0, 255] after each (torchvision's)."""
    image = jnp.clip(image * brightness, 0, 255)
    average = jnp.sum(jnp.where(inside, _grey(image), 0.0)) / jnp.maximum(jnp.sum(inside), 1)
    image = jnp.clip(average + contrast * (image - average), 0, 255)
    grey = _grey(image)[..., None]
    return jnp.clip(grey + saturation * (image - grey), 0, 255)


def augment(
    images: UInt8[Array, "b h w 3"],
    labels: UInt8[Array, "b h w"],
    indices: Int[Array, " b"],
    step: Int[Array, ""],
    *,
    seed: int,
    crop: tuple[int, int],
    scales: tuple[float, ...],
    scale_range: tuple[float, float] | None,
    flip: float,
    jitter: tuple[float, float, float],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    squash: tuple[int, int] | None = None,
    scale_law: str = "log_uniform",
    min_side: int = 0,
    channels: str = "rgb",
) -> dict[str, Array]:
    """A training batch out of decoded frames; the same (seed, step, index) always gives the same example.

    Args:
        images: RGB frames, [0, 255].
        labels: Train ids, 255 = ignore; `OUTSIDE` beyond frames that are smaller than the array.
        indices: The examples' places in the data set.
        step: The step of training.
        seed: The run's seed.
        crop: (height, width) of what comes out, in pixels.
        scales: A scale is drawn from this set, unless `scale_range` is given.
        scale_range: A scale is drawn between these two.
        flip: Probability of mirroring left and right.
        jitter: Largest relative change of brightness, contrast and saturation; zeros switch it off.
        mean: RGB, subtracted, in units of [0, 255].
        std: RGB, divided by.
        squash: (height, width) that scale 1 stands for, if not the frames' own.
        scale_law: "log_uniform", with which halving is as likely as doubling, or "uniform": of scale_range.
        min_side: A scale is raised until the frame's shorter side has so many pixels.
        channels: The order in which the network wants them, "rgb" or "bgr".

    Returns:
        "image" [b, ch, cw, 3] float32, 0 (the mean) outside the frame, and "label" [b, ch, cw] int32, 255 outside.
    """
    key = jax.random.fold_in(jax.random.key(seed), step)

    def one(image: Array, label: Array, index: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        if scale_range is None:
            scale = jax.random.choice(keys[0], jnp.asarray(scales, jnp.float32))
        elif scale_law == "uniform":
            scale = jax.random.uniform(keys[0], (), minval=scale_range[0], maxval=scale_range[1])
        else:
            low, high = (jnp.log(jnp.float32(s)) for s in scale_range)
            scale = jnp.exp(jax.random.uniform(keys[0], (), minval=low, maxval=high))
        if min_side:
            size = frame_extent(label) if squash is None else jnp.asarray(squash)
            scale = jnp.maximum(scale, min_side / jnp.min(size))
        cropped, ids, inside = scale_and_crop(
            image,
            label,
            scale=scale,
            offset=jax.random.uniform(keys[1], (2,)),
            flip=jax.random.uniform(keys[2]) < flip,
            crop=crop,
            size=squash,
        )
        if any(jitter):
            strength = jnp.asarray(jitter, jnp.float32)
            factors = 1 + strength * jax.random.uniform(keys[3], (3,), minval=-1.0, maxval=1.0)
            cropped = color_jitter(
                cropped,
                inside,
                brightness=factors[0],
                contrast=factors[1],
                saturation=factors[2],
            )
        cropped = normalize(cropped, mean, std, channels)
        return jnp.where(inside[..., None], cropped, 0.0), ids

    image, label = jax.vmap(one)(images, labels, indices)
    return {"image": image, "label": label}
