"""The forms in which a GPU is fast, and the options that its compiler is given.

A kernel that is started costs a GPU a few microseconds, and every array that passes between two kernels goes through its
memory. So each form here is one loop, or as few as can be: a depth-wise convolution in place of cuDNN's, whose grouped
ones are slow; sums that read an array once; attention in one kernel. benchmarks/h200.md and gpu_paper.md have what
they amount to.
"""

import functools
import re

import jax
import jax.numpy as jnp
from jax import Array

from rtseg_jax.nn import cpu
from rtseg_jax.nn.forms import Geometry


def depthwise_gradients(
    x: Array, kernel: Array, g: Array, geometry: Geometry
) -> tuple[Array, Array]:
    """The gradients of cpu.depthwise()'s x and kernel."""
    size = kernel.shape[:2]
    products = [
        tap.astype(jnp.float32) * g for tap in cpu.tap_views(x, g.shape[1:3], size, geometry)
    ]
    dk = jnp.stack(column_sums(*products)).reshape(kernel.shape).astype(kernel.dtype)
    return cpu.depthwise_input_gradient(kernel, g, x.shape[1:3], geometry), dk


def column_sums(*arrays: Array) -> list[Array]:
    """Sums per channel of float32 arrays [b, h, w, c], read together.

    The rows first, in one loop for all arrays; then one sum of the parts, which lie side by side. Devices that share a
    batch add their parts with one all-reduce.
    """
    parts = jnp.concatenate([array.sum(1) for array in arrays], axis=-1)
    return jnp.split(parts.sum((0, 1)), len(arrays))


def moments(x: Array, about: Array) -> tuple[Array, Array]:
    """Mean and biased variance per channel of x [b, h, w, c], in float32 and one pass.

    The sums are of x - about: a value near the mean, such as the running one, keeps them from cancelling.
    """
    count = x.size // x.shape[-1]
    centred = x.astype(jnp.float32) - about.reshape(1, 1, 1, -1)
    first, second = (total / count for total in column_sums(centred, centred * centred))
    return about + first, jnp.maximum(second - first * first, 0)


def norm_gradients(
    x: Array, mean: Array, inverse: Array, scale: Array, bias: Array, slope: Array | None, g: Array
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of a BatchNorm's input, scale and bias, and of the slope of a PReLU behind it.

    Args:
        x: The input [b, h, w, c].
        mean: Its mean per channel, float32.
        inverse: 1 / sqrt(variance + epsilon) per channel, float32.
        scale: The norm's scale.
        bias: The norm's bias.
        slope: The slope of a PReLU behind the norm; None where there is none.
        g: The gradient of the output, in x's type.
    """
    row = lambda per_channel: per_channel.reshape(1, 1, 1, -1)  # noqa: E731

    def terms():
        """The gradient of the norm's own output, the normalised x, and what the slope was multiplied by."""
        wide = g.astype(jnp.float32)
        normal = (x.astype(jnp.float32) - row(mean)) * row(inverse)
        if slope is None:
            return wide, normal, None
        y = normal * row(scale) + row(bias)
        return wide * jnp.where(y > 0, 1.0, row(slope)), normal, wide * jnp.minimum(y, 0)

    inner, normal, blocked = terms()
    # XLA sums the first ones in the loop that makes them, and the last by itself, which reads least for the bias.
    sums = column_sums(*([] if blocked is None else [blocked]), inner * normal, inner)
    d_slope, d_scale, d_bias = (None, *sums)[-3:]
    count = x.size // x.shape[-1]
    along = (row(d_bias) + normal * row(d_scale)) / count
    return (row(scale * inverse) * (inner - along)).astype(x.dtype), d_scale, d_bias, d_slope


# Of which kinds XLA may record work into a CUDA graph, which starts hundreds of kernels as one. By default convolutions
# and loops are not among them, and a network is dozens of small graphs.
_RECORDED = (
    "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,DYNAMIC_SLICE_FUSION,CONVOLUTION,WHILE"
)
_OPTIONS = {"xla_gpu_enable_command_buffer": _RECORDED}
# Else XLA leaves out the rounding to bfloat16 between a convolution and its norm, and stores float32 for the way back.
_TRAINING = {"xla_allow_excess_precision": False}


def compiler_options(device: jax.Device, *, training: bool = False) -> dict[str, str | bool]:
    """What a program for this device is compiled with; nothing for a device that is no NVIDIA GPU.

    An option that this version of XLA does not know is left out, with a line that says so.
    """
    if device.platform not in ("gpu", "cuda"):
        return {}
    options = {**_OPTIONS, **(_TRAINING if training else {})}
    return {name: value for name, value in options.items() if _is_known(device, name, value)}


@functools.cache
def _is_known(device: jax.Device, name: str, value: str | bool) -> bool:
    sharding = jax.sharding.SingleDeviceSharding(device)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding)
    try:
        jax.jit(lambda x: x + 1).lower(number).compile(compiler_options={name: value})
    except (RuntimeError, ValueError) as error:
        print(f"this version of XLA does not take {name}={value}, compiling without it: {error}")
        return False
    return True


def compute_capability() -> tuple[int, int]:
    """CUDA's, of this process's first device; (0, 0) for one that is no NVIDIA GPU."""
    found = getattr(jax.local_devices()[0], "compute_capability", None)
    numbers = re.fullmatch(r"(\d+)\.(\d+)", str(found))
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def has_flash_attention(query: Array, value: Array) -> bool:
    """Whether flash_attention() takes arrays like these here.

    They are bfloat16, and have up to 128 channels on an NVIDIA GPU from Ampere on, up to 256 from Hopper on.
    """
    capability = compute_capability()
    if query.dtype != jnp.bfloat16 or capability < (8, 0):
        return False
    return max(query.shape[-1], value.shape[-1]) <= (256 if capability >= (9, 0) else 128)


def flash_attention(query: Array, key: Array, value: Array, scale: float) -> Array:
    """softmax(scale Q K') V in one kernel of cuDNN, for bfloat16 [b, n, c], [b, m, c] and [b, m, d].

    Channels are padded to a multiple of 8, the same for all three, with zeros that change no score.
    """
    channels = -(-max(query.shape[-1], value.shape[-1]) // 8) * 8

    def one_head(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, channels - x.shape[-1])))[:, :, None]

    y = jax.nn.dot_product_attention(
        *map(one_head, (query, key, value)), scale=scale, implementation="cudnn"
    )
    return y[:, :, 0, : value.shape[-1]]
