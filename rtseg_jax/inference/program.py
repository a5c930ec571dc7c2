"""From uint8 frames to class maps: with the weights as arguments (evaluation in training), or frozen into a program."""

import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rtseg_jax.base.mesh import replicated, split
from rtseg_jax.base.sizes import Pair
from rtseg_jax.data.augment import normalize
from rtseg_jax.inference import metrics
from rtseg_jax.nn import gpu
from rtseg_jax.nn.conv import Conv, ConvTranspose, DepthwiseConv
from rtseg_jax.nn.norm import BatchNorm, BatchNormPReLU
from rtseg_jax.nn.resize import resize_bilinear, upsample_argmax

Triple = tuple[float, float, float]


def scores(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    *,
    mean: Triple,
    std: Triple,
    channels: str = "rgb",
    size: Pair | None = None,
    align_corners: bool = False,
) -> jax.Array:
    """Logits at the network's own stride, float32, of uint8 frames [b, h, w, 3] that it sees at `size` (h, w)."""
    image = normalize(images, mean, std, channels)
    if size is not None:
        image = resize_bilinear(image, size, align_corners)
    return model.apply(variables, image, train=False)["logits"]


def predict(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    *,
    align_corners: bool = False,
    **options: Any,
) -> jax.Array:
    """Logits [b, h, w, k] at the frames' size, bilinear; arguments as of scores()."""
    logits = scores(model, variables, images, align_corners=align_corners, **options)
    return resize_bilinear(logits, images.shape[1:3], align_corners)


def jit_eval_step(mesh: Mesh, *, model: nn.Module, num_classes: int, **options: Any) -> Callable:
    """Compiles (variables, images, labels, mask) -> (confusion [k, k] int32, class map [b, h, w] uint8).

    The weights are arguments, so that no evaluation of a training compiles again; `options` as of scores().
    """
    whole, rows = replicated(mesh), split(mesh)

    def step(variables, images, labels, mask):
        logits = predict(model, variables, images, **options)
        classes = jnp.argmax(logits, axis=-1).astype(jnp.uint8)
        counts = metrics.confusion_matrix(labels.astype(jnp.int32), classes, num_classes, mask)
        return counts, classes

    return jax.jit(
        step,
        in_shardings=(whole, rows, rows, rows),
        out_shardings=(whole, rows),
        compiler_options=gpu.compiler_options(mesh.devices.flat[0]),
    )


def fold(
    conv: Mapping[str, Any], norm: Mapping[str, Any], epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of the convolution that does what a convolution and the BatchNorm after it do; in float64.

    Args:
        conv: The convolution's parameters, {"kernel"} or {"kernel", "bias"}.
        norm: The norm's parameters and running statistics, {"scale", "bias", "mean", "var"}.
        epsilon: The norm's epsilon.

    Returns:
        The kernel, in its own shape, and the bias (co,), both float32.
    """
    conv, norm = jax.tree.map(lambda v: np.asarray(v, np.float64), (dict(conv), dict(norm)))
    factor = norm["scale"] / np.sqrt(norm["var"] + epsilon)
    bias = norm["bias"] + (conv.get("bias", 0.0) - norm["mean"]) * factor
    return (conv["kernel"] * factor).astype(np.float32), bias.astype(np.float32)


def folding(variables: Mapping[str, Any]) -> Callable:
    """An interceptor of method calls that computes a norm and the convolution right before it as one convolution.

    "Right before" is asked of the arrays: the norm's input is the very one that a convolution returned. Nothing reads
    that array then, and it is not computed.
    """
    convolved = {}  # id of a result -> the convolution, its input, and the result, which keeps the id its own

    def own(module):
        trees = [
            functools.reduce(lambda t, k: t.get(k, {}), module.path, variables[c])
            for c in variables
        ]
        return functools.reduce(operator.or_, trees)

    def intercept(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, (BatchNorm, BatchNormPReLU)) and id(args[0]) in convolved:
            conv, x, _ = convolved[id(args[0])]
            norm = own(module)
            kernel, bias = fold(own(conv), norm, module.epsilon)
            params = {"kernel": jnp.asarray(kernel.astype(conv.dtype)), "bias": jnp.asarray(bias)}
            y = conv.clone(parent=None, name=None, use_bias=True).apply({"params": params}, x)
            if not isinstance(module, BatchNormPReLU):
                return y
            # Not a choice between y and its multiple, which XLA would compute with a second convolution on a GPU.
            slope = norm["slope"].astype(y.dtype).reshape(1, 1, 1, -1)
            return jnp.maximum(y, 0) + slope * jnp.minimum(y, 0)
        result = call(*args, **kwargs)
        if isinstance(module, (Conv, DepthwiseConv, ConvTranspose)):
            convolved[id(result)] = module, args[0], result
        return result

    return intercept


def program(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    mean: Triple,
    std: Triple,
    channels: str = "rgb",
    size: Pair | None = None,
    align_corners: bool = False,
    dtype: Any = jnp.float32,
    output: str = "classes",
) -> Callable[[jax.Array], jax.Array]:
    """A function of uint8 frames [b, h, w, 3] alone, to be jitted or exported: the weights are constants in it.

    BatchNorm is folded into the convolution before it where the network pairs them, elsewhere it is one
    multiply-add. What only training or a parameter count needs is left behind.

    Args:
        model: The network, as models.create makes it.
        variables: {"params", "batch_stats"}.
        mean: RGB, in units of [0, 255], as in training.
        std: RGB, in units of [0, 255], as in training.
        channels: The order in which the network wants them, "rgb" or "bgr".
        size: (h, w) that the network sees; None for the frames' own.
        align_corners: How frames are brought to its size and its scores to theirs: as torch's interpolate has it.
        dtype: The type that is computed in; logits and their upsampling are float32.
        output: "classes", a uint8 class map [b, h, w]; "logits", float32 [b, h, w, k] at the frames' size; or
            "scores", float32 at the network's own stride.

    Raises:
        ValueError: an unknown output.
    """
    if output not in ("classes", "logits", "scores"):
        raise ValueError(f"unknown output '{output}'; choose classes, logits or scores")
    model = model.clone(dtype=dtype)
    exact = jax.tree.map(np.asarray, dict(variables))
    # Cast here: the compiler is slow at computing with large constants.
    cast = jax.tree_util.tree_map_with_path(
        lambda path, v: v.astype(dtype) if path[-1].key == "kernel" else v, exact
    )

    def run(frames: jax.Array) -> jax.Array:
        constants = jax.tree.map(jnp.asarray, cast)
        with nn.intercept_methods(folding(exact)):
            logits = scores(
                model,
                constants,
                frames,
                mean=mean,
                std=std,
                channels=channels,
                size=size,
                align_corners=align_corners,
            )
        if output == "scores":
            return logits
        finish = upsample_argmax if output == "classes" else resize_bilinear
        return finish(logits, frames.shape[1:3], align_corners)

    return run


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A compiled network for frames of one shape.

    Attributes:
        shape: (b, h, w, 3) of the frames.
        compiled: The executable.
        compile_seconds: Tracing and compiling took this long.
        temporary_bytes: What a call needs on the device besides frames, weights and result.
    """

    shape: tuple[int, int, int, int]
    compiled: jax.stages.Compiled
    compile_seconds: float
    temporary_bytes: int

    def __call__(self, frames: Any) -> jax.Array:
        """Runs uint8 frames [b, h, w, 3], from the host or on the device; the result is on the device.

        Raises:
            ValueError: frames of another shape or type than the program was compiled for.
        """
        if frames.shape != self.shape or frames.dtype != np.uint8:
            raise ValueError(
                f"frames are {frames.dtype} {frames.shape}; this program takes uint8 {self.shape}, "
                "freeze another for these"
            )
        return self.compiled(frames)


def freeze(
    model: nn.Module,
    variables: Mapping[str, Any],
    shape: tuple[int, int, int],
    *,
    device: jax.Device | None = None,
    **options: Any,
) -> Frozen:
    """Compiles a trained network for frames of one shape, ahead of time.

    Args:
        model: The network, as models.create makes it.
        variables: {"params", "batch_stats"}.
        shape: (batch, h, w) of the frames.
        device: Where it runs; the first one by default.
        **options: mean, std, channels, size, align_corners, dtype and output of program().
    """
    device = jax.local_devices()[0] if device is None else device
    frames = jax.ShapeDtypeStruct(
        (*shape, 3), jnp.uint8, sharding=jax.sharding.SingleDeviceSharding(device)
    )
    start = time.perf_counter()
    lowered = jax.jit(program(model, variables, **options)).lower(frames)
    compiled = lowered.compile(compiler_options=gpu.compiler_options(device))
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    return Frozen(frames.shape, compiled, seconds, memory.temp_size_in_bytes if memory else 0)
