"""What a convolution is, in XLA's own terms; and how a platform gets a form of its own, which computes the same."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array, lax

from rtseg_jax.base.sizes import Pair

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """How a kernel moves over an image: three pairs (h, w) of pixels; the padding is on each side."""

    strides: Pair = (1, 1)
    padding: Pair = (0, 0)
    kernel_dilation: Pair = (1, 1)


def convolve(x: Array, kernel: Array, geometry: Geometry, groups: int = 1) -> Array:
    """The convolution of x [b, h, w, ci] with a kernel (kh, kw, ci / groups, co), zero-padded."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        [(p, p) for p in geometry.padding],
        rhs_dilation=geometry.kernel_dilation,
        dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )


def output_size(x: Array, kernel: Array, geometry: Geometry) -> Pair:
    """(h, w) of what a convolution returns."""
    ones = kernel.shape[:2], *geometry
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[1:3], *ones, strict=True)
    )


class Form(NamedTuple):
    """One way to compute an operation.

    Attributes:
        forward: A function of the operands.
        backward: (*operands, g) -> the gradients of all of them; None is what JAX derives from `forward`.
        inference: As `forward`, where nothing is differentiated; None is `forward`.
    """

    forward: Callable[..., Array]
    backward: Callable[..., tuple[Array, ...]] | None = None
    inference: Callable[..., Array] | None = None


def by_platform(*operands: Array, default: Form, **forms: Form) -> Array:
    """Computes an operation in the form of the platform that it is compiled for, forward and backward.

    Args:
        *operands: What the forms' functions take.
        default: The form of every platform that has none of its own.
        **forms: Forms by JAX's names of platforms, such as cpu and cuda.
    """

    def part(of: Callable[[Form], Callable]) -> Callable:
        own = {platform: of(form) for platform, form in forms.items()}
        return functools.partial(lax.platform_dependent, **own, default=of(default))

    forward = part(lambda form: form.forward)

    def backward(saved, g):
        # The barrier keeps the forward pass from storing what only the gradient needs, such as shifted inputs.
        return part(_backward)(*lax.optimization_barrier(saved), g)

    apply = jax.custom_vjp(part(lambda form: form.inference or form.forward))
    apply.defvjp(lambda *operands: (forward(*operands), operands), backward)
    return apply(*operands)


def _backward(form: Form) -> Callable:
    return form.backward or (
        lambda *operands: jax.vjp(form.forward, *operands[:-1])[1](operands[-1])
    )
