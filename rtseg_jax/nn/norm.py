"""BatchNorm and per-channel PReLU: float32 statistics over the whole (global) batch."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from rtseg_jax.nn import cpu, gpu


class TooFewValues(ValueError):
    """A norm would see one value per channel in training: its variance is 0, and what evaluation uses is another network.

    Attributes:
        layer: The norm's path in the network.
        shape: Of its input, [b, h, w, c].
    """

    def __init__(self, layer: str, shape: tuple[int, ...]):
        self.layer, self.shape = layer, shape
        super().__init__(
            f"the norm {layer} sees one value per channel in training ({list(shape)}); it needs 2 or more"
        )


def _row(per_channel):
    return per_channel.reshape(1, 1, 1, -1)


def _affine(x, mean, var, scale, bias, epsilon):
    factor = scale * lax.rsqrt(var + epsilon)
    return x.astype(jnp.float32) * _row(factor) + _row(bias - mean * factor)


def _prelu(x, slope):
    return x if slope is None else jnp.where(x > 0, x, _row(slope) * x)


def _normalise(x, scale, bias, slope, epsilon, about):
    """Normalises x with its own mean and variance, and returns these: in one program with its gradient.

    Kept for the gradient are x and the statistics, not every intermediate. It does not pass through the returned mean
    and variance.
    """

    def apply(x, scale, bias, slope, about):
        mean, var = lax.platform_dependent(
            x, about, cpu=lambda x, _: cpu.moments(x), default=gpu.moments
        )
        y = _prelu(_affine(x, mean, var, scale, bias, epsilon), slope).astype(x.dtype)
        return y, mean, var

    def forward(x, scale, bias, slope, about):
        y, mean, var = apply(x, scale, bias, slope, about)
        return (y, mean, var), (x, mean, lax.rsqrt(var + epsilon), scale, bias, slope)

    def backward(saved, cotangents):
        gradients = lax.platform_dependent(
            *saved, cotangents[0], cpu=cpu.norm_gradients, default=gpu.norm_gradients
        )
        return *gradients, None

    # Closed over, what is traced outside would be out of reach for a backward pass that computes the layer again.
    differentiable = jax.custom_vjp(apply)
    differentiable.defvjp(forward, backward)
    return differentiable(x, scale, bias, slope, about)


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
    count = math.prod(x.shape[:-1])
    if count < 2 and not module.is_initializing():
        raise TooFewValues("/".join(module.path), x.shape)
    y, mean, var = _normalise(x, scale, bias, slope, module.epsilon, running_mean.value)
    if not module.is_initializing():
        m = module.momentum
        var = var * (count / (count - 1))
        running_mean.value = m * running_mean.value + (1 - m) * lax.stop_gradient(mean)
        running_var.value = m * running_var.value + (1 - m) * lax.stop_gradient(var)
    return y


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, Alg. 1).

    Under one jit over a sharded batch the statistics are those of the global batch. As in torch a step normalises with
    the biased variance, and the running one, with which evaluation does, is the unbiased.

    Attributes:
        momentum: Weight of the old running statistics: 0.9 is torch's 0.1.
        dtype: The type of the output; statistics are float32.
    """

    epsilon: float
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        """Normalises by the batch in training, else by the running statistics.

        Raises:
            TooFewValues: in training, one value per channel.
        """
        return _batch_norm(self, x, None, train)


def _slope(module, channels):
    """The slope of each channel."""
    shape = (1,) if module.shared else (channels,)
    slope = module.param("slope", nn.initializers.constant(0.25), shape, jnp.float32)
    return jnp.broadcast_to(slope, (channels,))


class BatchNormPReLU(nn.Module):
    """BatchNorm and a PReLU with one slope per channel, as one operation; attributes as in BatchNorm and PReLU."""

    epsilon: float
    momentum: float = 0.9
    shared: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        return _batch_norm(self, x, _slope(self, x.shape[-1]), train)


class PReLU(nn.Module):
    """PReLU with one slope per channel, initially 0.25 (He et al. 2015, Eq. 1).

    Attributes:
        shared: One slope for all channels instead.
    """

    shared: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return _prelu(x, _slope(self, x.shape[-1]).astype(x.dtype))
