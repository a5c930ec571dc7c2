"""Every operation of nn/ in each form that it could take, on this device: which form deserves to be "auto".

    python benchmarks/gpu_ops.py --output=gpu_ops.jsonl --dtype=bfloat16

"auto" is what the networks run, "portable" the plain lax form; other forms stand here until one of them wins. A
convolution has a bias and a ReLU behind it, as in the networks: whether they fuse is part of the answer. Throughput, calls
queued and one wait at the end; a form that fails or differs from "portable" is a row that says so.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from rtseg_jax.nn import attention, conv, pool, resize
from rtseg_jax.programs.bench.clock import Rival, calibrate, time_round
from rtseg_jax.programs.shared import tables

# (name, kernel, channels in, out (None: depth-wise), size at stride 1, strides, dilation)
CONVOLUTIONS = (
    ("depth-wise 3x3", (3, 3), 384, None, (64, 128), 1, (1, 1)),
    ("depth-wise 3x3, stride 2", (3, 3), 384, None, (128, 256), 2, (1, 1)),
    ("depth-wise 3x3, wide map", (3, 3), 64, None, (128, 256), 1, (1, 1)),
    ("depth-wise 3x1, dilation 16", (3, 1), 64, None, (64, 128), 1, (16, 1)),
    ("depth-wise 1x3, dilation 16", (1, 3), 64, None, (64, 128), 1, (1, 16)),
    ("3x1", (3, 1), 64, 64, (128, 256), 1, (1, 1)),
    ("3x1, dilation 8", (3, 1), 128, 128, (64, 128), 1, (8, 1)),
    ("1x3, dilation 16", (1, 3), 128, 128, (64, 128), 1, (1, 16)),
    ("3x3", (3, 3), 256, 256, (64, 128), 1, (1, 1)),
    ("1x1, narrowing", (1, 1), 384, 64, (64, 128), 1, (1, 1)),
    ("1x1, widening", (1, 1), 64, 384, (64, 128), 1, (1, 1)),
    ("stem 3x3, stride 2", (3, 3), 3, 32, (512, 1024), 2, (1, 1)),
    ("stem 7x7, stride 2", (7, 7), 3, 64, (512, 1024), 2, (1, 1)),
)


def sum_of_products(x, kernel, *, strides, padding, kernel_dilation):
    """A dense convolution at stride 1 as one matrix product for each tap."""
    taps = conv._taps(x, x.shape[1:3], kernel.shape[:2], strides, padding, kernel_dilation)
    matrices = kernel.reshape(-1, *kernel.shape[2:])
    products = (
        jnp.matmul(tap, matrix, preferred_element_type=jnp.float32)
        for tap, matrix in zip(taps, matrices, strict=True)
    )
    return sum(products).astype(x.dtype)


def shifts(x, kernel, *, strides, padding, kernel_dilation):
    shape = tuple(-(-n // s) for n, s in zip(x.shape[1:3], strides, strict=True))
    return conv._shift_depthwise(x, kernel, shape, strides, padding, kernel_dilation)


def channels_to_8(x, kernel, **geometry):
    missing = 8 - x.shape[3]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
    return conv.conv2d(x, kernel, **geometry)


def convolutions(array, shrink):
    """Yields (name, {form: function}, arguments)."""
    for name, kernel_size, channels, features, size, stride, dilation in CONVOLUTIONS:
        operation = conv.depthwise_conv2d if features is None else conv.conv2d
        kernel = array(*kernel_size, 1 if features is None else channels, features or channels)
        bias = array(features or channels)
        forms = {"auto": operation, "portable": functools.partial(operation, impl="portable")}
        if features is None:
            forms["shifted products"] = shifts
        elif channels == 3:
            forms["channels padded to 8"] = channels_to_8
        elif kernel_size != (1, 1):
            forms["one product a tap"] = sum_of_products
        geometry = {
            "strides": (stride, stride),
            "padding": conv.same_padding(kernel_size, dilation),
            "kernel_dilation": dilation,
        }

        def whole(form, x, kernel=kernel, bias=bias, geometry=geometry):
            return jax.nn.relu(form(x, kernel, **geometry) + bias)

        x = array(1, size[0] // shrink, size[1] // shrink, channels)
        yield name, {k: functools.partial(whole, form) for k, form in forms.items()}, (x,)


def gradients(array, shrink):
    """Yields as convolutions() does; the gradients of input and kernel, batch 8."""
    for name, kernel_size, channels, features, size, stride, dilation in CONVOLUTIONS[:8]:
        operation = conv.depthwise_conv2d if features is None else conv.conv2d
        kernel = array(*kernel_size, 1 if features is None else channels, features or channels)
        geometry = {
            "strides": (stride, stride),
            "padding": conv.same_padding(kernel_size, dilation),
            "kernel_dilation": dilation,
        }

        def gradient(impl, x, kernel, operation=operation, geometry=geometry):
            y, pull = jax.vjp(functools.partial(operation, impl=impl, **geometry), x, kernel)
            return pull(y)

        x = array(8, size[0] // shrink, size[1] // shrink, channels)
        forms = {k: functools.partial(gradient, k) for k in ("auto", "portable")}
        yield f"{name}: gradient", forms, (x, kernel)


def cudnn_attention(query, key, value):
    """cuDNN's attention, the channels padded to a multiple of 8."""
    channels = value.shape[2]
    width = -(-max(query.shape[2], channels) // 8) * 8

    def heads(x):
        return jnp.pad(x, ((0, 0), (0, 0), (0, width - x.shape[2])))[:, :, None]

    result = jax.nn.dot_product_attention(
        heads(query), heads(key), heads(value), scale=1.0, implementation="cudnn"
    )
    return result[:, :, 0, :channels]


def others(array, shrink):
    """Yields as convolutions() does."""

    def both(operation, *arguments, **options):
        return {
            impl: lambda x, impl=impl: operation(x, *arguments, impl=impl, **options)
            for impl in ("auto", "portable")
        }

    large = (512 // shrink, 1024 // shrink)
    scores = array(1, large[0] // 8, large[1] // 8, 19)
    yield "upsampling x8 and argmax, 19 classes", both(resize.upsample_argmax, large), (scores,)
    yield "upsampling x8, 19 classes", both(resize.resize_bilinear, large), (scores,)
    x = array(1, large[0] // 4, large[1] // 4, 256)
    yield "max pool 5x5", both(pool.max_pool, (5, 5), (1, 1), (2, 2)), (x,)
    x = array(1, large[0] // 2, large[1] // 2, 64)
    yield "max pool 3x3, stride 2", both(pool.max_pool, (3, 3), (2, 2), (1, 1)), (x,)
    x = array(1, large[0] // 4, large[1] // 4, 64)
    options = {"padding": 1, "output_padding": 1}
    transposed = both(conv.conv_transpose2d, array(3, 3, 64, 16), **options)
    yield "transposed 3x3, stride 2", transposed, (x,)
    for name, queries, keys, width, value_width in (
        ("attention, 19 channels", 8192, 2048, 19, 19),
        ("attention, 64 and 256 channels", 8192, 64, 64, 256),
    ):
        query = array(1, queries // shrink, width)
        key, value = array(1, keys // shrink, width), array(1, keys // shrink, value_width)
        forms = {
            impl: functools.partial(attention.dot_product_attention, impl=impl)
            for impl in ("auto", "portable")
        }
        if jax.default_backend() == "gpu" and query.dtype != np.float32 and value_width <= 128:
            forms["cuDNN, padded"] = cudnn_attention
        yield name, forms, (query, key, value)


def largest_difference(result, reference):
    """Of any two values, over the largest value of the reference."""
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True)
    return max(
        float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())
        / max(float(np.abs(np.asarray(b, np.float64)).max()), 1e-30)
        for a, b in pairs
    )


def measure(function, arguments, seconds):
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - begin
    rival = Rival([arguments], lambda a: compiled(*a), jax.block_until_ready, None, None, {})
    calls = calibrate(rival, seconds)
    times = [time_round(rival, "throughput", calls, [])[0] for _ in range(5)]
    figures = {"us": round(1000 * float(np.median(times)), 2), "compile_seconds": compile_seconds}
    return figures, compiled(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, required=True, help="gets lines of JSON")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--seconds", type=float, default=0.2, help="about so long is a round")
    parser.add_argument("--shrink", type=int, default=1, help="divides every height and width")
    options = parser.parse_args()
    rng = np.random.default_rng(0)

    def array(*shape):
        return jnp.asarray(0.3 * rng.standard_normal(shape, dtype=np.float32), options.dtype)

    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {options.dtype}\n")
    titles = ("operation", "form", "us", "against portable", "differs by", "compile, s")
    print(*tables.header(*titles, words=(0, 1)), sep="\n")
    for cases in (convolutions, gradients, others):
        for name, forms, arguments in cases(array, options.shrink):
            rows, reference = {}, None
            for form in sorted(forms, key=lambda form: form != "portable"):
                line = {"operation": name, "form": form, "dtype": options.dtype, "device": device}
                line |= {"jax": jax.__version__, "shrink": options.shrink}
                try:
                    rows[form], result = measure(forms[form], arguments, options.seconds)
                    reference = result if reference is None else reference  # "portable", if it runs
                    rows[form]["difference"] = largest_difference(result, reference)
                except Exception as error:  # a form that this device lacks
                    rows[form] = {"error": " ".join(str(error).split())[:120].replace("|", "/")}
                line |= rows[form]
                with options.output.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                row = rows[form]
                if "error" in row:
                    print(tables.row(name, form, row["error"], "", "", ""), flush=True)
                    continue
                ratio = rows["portable"]["us"] / row["us"] if "us" in rows["portable"] else 0
                figures = (f"{row['us']:.1f}", f"{ratio:.2f}", f"{row['difference']:.1e}")
                seconds = f"{row['compile_seconds']:.1f}"
                print(tables.row(name, form, *figures, seconds), flush=True)


if __name__ == "__main__":
    main()
