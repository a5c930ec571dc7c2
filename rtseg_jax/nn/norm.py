"""BatchNorm and per-channel PReLU: float32 statistics over the whole (global) batch."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rtseg_jax.nn.form import is_portable, named


def _row(per_channel):
    return per_channel.reshape(1, 1, 1, -1)


def _moments(x):
    """Mean and biased variance per channel; the variance is centred, so it cannot cancel."""
    x = x.astype(jnp.float32)
    mean = x.mean((0, 1, 2))
    return mean, jnp.square(x - _row(mean)).mean((0, 1, 2))


def _affine(x, mean, var, scale, bias, epsilon):
    factor = scale * lax.rsqrt(var + epsilon)
    return x.astype(jnp.float32) * _row(factor) + _row(bias - mean * factor)


def _prelu(x, slope):
    if slope is None:
        return x

    def prelu(x, slope):
        return jnp.where(x > 0, x, slope * x)

    return (named("prelu", prelu) if is_portable() else prelu)(x, _row(slope))


def _plain(x, scale, bias, slope, epsilon):
    mean, var = _moments(x)
    return _prelu(_affine(x, mean, var, scale, bias, epsilon), slope).astype(x.dtype), mean, var


def _fused(x, scale, bias, slope, epsilon):
    """_plain with the closed-form gradient, which keeps x instead of every intermediate.

    The gradient does not pass through the returned mean and variance.
    """

    @jax.custom_vjp
    def apply(x, scale, bias, slope):
        return _plain(x, scale, bias, slope, epsilon)

    def forward(x, scale, bias, slope):
        y, mean, var = apply(x, scale, bias, slope)
        return (y, mean, var), (x, mean, lax.rsqrt(var + epsilon), scale, bias, slope)

    def backward(saved, cotangents):
        x, mean, inverse, scale, bias, slope = saved
        g = cotangents[0].astype(jnp.float32)
        count = x.size // x.shape[-1]
        x32 = x.astype(jnp.float32)
        # Sums of one array or of a product of two need no full-size intermediate.
        d_bias = g.sum((0, 1, 2))
        d_scale, d_slope = (g * x32).sum((0, 1, 2)) - mean * d_bias, None
        if slope is not None:
            factor = scale * inverse
            positive = x32 * _row(factor) + _row(bias - mean * factor) > 0
            blocked = jnp.where(positive, 0.0, g)
            sum_blocked = blocked.sum((0, 1, 2))
            product_blocked = (blocked * x32).sum((0, 1, 2)) - mean * sum_blocked
            d_slope = scale * inverse * product_blocked + bias * sum_blocked
            d_bias = d_bias - (1 - slope) * sum_blocked
            d_scale = d_scale - (1 - slope) * product_blocked
            g = g - _row(1 - slope) * blocked
        d_scale = inverse * d_scale
        factor = scale * inverse
        along_x = factor * inverse * d_scale / count
        d_x = (
            g * _row(factor) - x32 * _row(along_x) + _row(mean * along_x - factor * d_bias / count)
        )
        return d_x.astype(x.dtype), d_scale, d_bias, d_slope

    apply.defvjp(forward, backward)
    return apply(x, scale, bias, slope)


def _batch_norm(module, x, slope, train):
    """The body of both modules: parameters, statistics, normalisation."""
    channels = x.shape[-1]
    x = x.astype(module.dtype)
    scale = module.param("scale", nn.initializers.ones, (channels,), jnp.float32)
    bias = module.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    running_mean = module.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
    running_var = module.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
    if not train:
        mean, var = running_mean.value, running_var.value
        y = _affine(x, mean, var, scale, bias, module.epsilon)
        return _prelu(y, slope).astype(module.dtype)
    normalise = _plain if is_portable() else _fused
    y, mean, var = normalise(x, scale, bias, slope, module.epsilon)
    if not module.is_initializing():
        m = module.momentum
        running_mean.value = m * running_mean.value + (1 - m) * lax.stop_gradient(mean)
        running_var.value = m * running_var.value + (1 - m) * lax.stop_gradient(var)
    return y


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, Alg. 1).

    Under one jit over a sharded batch the statistics are those of the global batch.

    Attributes:
        momentum: Weight of the old running statistics: 0.9 is torch's 0.1. The running variance is the biased one.
        dtype: Of the output; statistics are float32.
    """

    epsilon: float
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        return _batch_norm(self, x, None, train)


class BatchNormPReLU(nn.Module):
    """BatchNorm and a PReLU with one slope per channel, as one operation; attributes as in BatchNorm."""

    epsilon: float
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],), jnp.float32)
        return _batch_norm(self, x, slope, train)


class PReLU(nn.Module):
    """PReLU with one slope per channel, initially 0.25 (He et al. 2015, Eq. 1)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],), jnp.float32)
        return _prelu(x, slope.astype(x.dtype))
