"""Operations of nn/ in every form that they could take, on this device: which one deserves to be a GPU's.

    python benchmarks/gpu_ops.py --output=gpu_ops.jsonl --dtype=bfloat16

"ours" is what the networks run, "lax" the plain form that it is compared with; other forms stand here until one of them wins.
A convolution has a bias and a ReLU behind it, as in the networks: whether they fuse is part of the answer. Throughput, calls
queued and one wait at the end; a form that fails or differs from "lax" is a row that says so.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from rtseg_jax.nn import attention, conv, cpu, pool, resize
from rtseg_jax.nn.forms import Geometry, convolve
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


def by_taps(x, kernel, geometry):
    """A dense convolution at stride 1 as one matrix product for each tap."""
    taps = cpu.tap_views(x, x.shape[1:3], kernel.shape[:2], geometry)
    matrices = kernel.reshape(-1, *kernel.shape[2:])
    products = (
        jnp.matmul(tap, matrix, preferred_element_type=jnp.float32)
        for tap, matrix in zip(taps, matrices, strict=True)
    )
    return sum(products).astype(x.dtype)


def as_matrix(x, kernel, geometry):
    return jnp.matmul(x, kernel[0, 0])


def channels_to_8(x, kernel, geometry):
    missing = 8 - x.shape[3]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
    kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, missing), (0, 0)))
    return convolve(x, kernel, geometry)


def forms_of(kernel_size, channels, features, stride, dilation):
    """{form: function of (x, kernel)} of a convolution."""
    geometry = Geometry((stride, stride), conv.same_padding(kernel_size, dilation), dilation)
    depthwise = features is None
    ours = conv.depthwise_conv2d if depthwise else conv.conv2d
    forms = {
        "lax": functools.partial(convolve, geometry=geometry, groups=channels if depthwise else 1),
        "ours": functools.partial(ours, **geometry._asdict()),
    }
    if channels == 3:
        forms["channels padded to 8"] = functools.partial(channels_to_8, geometry=geometry)
    elif kernel_size == (1, 1):
        forms["matrix product"] = functools.partial(as_matrix, geometry=geometry)
    elif not depthwise:
        forms["one product a tap"] = functools.partial(by_taps, geometry=geometry)
    return forms


def convolutions(array, shrink):
    """Yields (name, {form: function}, arguments)."""
    for name, kernel_size, channels, features, (h, w), stride, dilation in CONVOLUTIONS:
        kernel = array(*kernel_size, 1 if features is None else channels, features or channels)
        bias = array(features or channels)

        def whole(form, x, kernel=kernel, bias=bias):
            return jax.nn.relu(conv.add_bias(form(x, kernel), bias))

        forms = forms_of(kernel_size, channels, features, stride, dilation)
        x = array(1, h // shrink, w // shrink, channels)
        yield name, {k: functools.partial(whole, form) for k, form in forms.items()}, (x,)


def gradients(array, shrink):
    """Yields as convolutions() does; the gradients of input and kernel, batch 8."""
    for name, kernel_size, channels, features, (h, w), stride, dilation in CONVOLUTIONS[:8]:
        kernel = array(*kernel_size, 1 if features is None else channels, features or channels)

        def gradient(form, x, kernel):
            y, pull = jax.vjp(form, x, kernel)
            return pull(y)

        forms = forms_of(kernel_size, channels, features, stride, dilation)
        x = array(8, h // shrink, w // shrink, channels)
        compared = {k: functools.partial(gradient, forms[k]) for k in ("lax", "ours")}
        yield f"{name}: gradient", compared, (x, kernel)


def others(array, shrink):
    """Yields as convolutions() does."""
    large = (512 // shrink, 1024 // shrink)
    scores = array(1, large[0] // 8, large[1] // 8, 19)

    def upsampled(scores):
        shape = (*scores.shape[:1], *large, scores.shape[3])
        return jax.image.resize(scores.astype(jnp.float32), shape, "linear", antialias=False)

    forms = {
        "lax": lambda scores: jnp.argmax(upsampled(scores), -1).astype(jnp.uint8),
        "ours": lambda scores: resize.upsample_argmax(scores, large),
    }
    yield "upsampling x8 and argmax, 19 classes", forms, (scores,)
    for name, window, stride, channels, halvings in (
        ("max pool 5x5", 5, 1, 256, 4),
        ("max pool 3x3, stride 2", 3, 2, 64, 2),
    ):
        x = array(1, large[0] // halvings, large[1] // halvings, channels)
        around = window // 2

        def plain(x, window=window, stride=stride, around=around):
            pads = [(0, 0), (around, around), (around, around), (0, 0)]
            low = jnp.asarray(-jnp.inf, x.dtype)
            sizes = ((1, n, n, 1) for n in (window, stride))
            return jax.lax.reduce_window(x, low, jax.lax.max, *sizes, pads)

        given = {"window": (window,) * 2, "strides": (stride,) * 2, "padding": (around,) * 2}
        ours = functools.partial(pool.max_pool, **given)
        yield name, {"lax": plain, "ours": ours}, (x,)
    for name, queries, keys, width, value_width in (
        ("attention, 19 channels", 8192, 2048, 19, 19),
        ("attention, 64 and 256 channels", 8192, 64, 64, 256),
    ):
        query = array(1, queries // shrink, width)
        key, value = array(1, keys // shrink, width), array(1, keys // shrink, value_width)
        blocks = functools.partial(attention._in_blocks, scale=1.0, block_size=1024)
        forms = {"lax": blocks, "ours": attention.dot_product_attention}
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
    titles = ("operation", "form", "us", "against lax", "differs by", "compile, s")
    print(*tables.header(*titles, words=(0, 1)), sep="\n")
    for cases in (convolutions, gradients, others):
        for name, forms, arguments in cases(array, options.shrink):
            rows, reference = {}, None
            for form in sorted(forms, key=lambda form: form != "lax"):
                line = {"operation": name, "form": form, "dtype": options.dtype, "device": device}
                line |= {"jax": jax.__version__, "shrink": options.shrink}
                try:
                    rows[form], result = measure(forms[form], arguments, options.seconds)
                    reference = result if reference is None else reference  # "lax", if it runs
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
                ratio = rows["lax"]["us"] / row["us"] if "us" in rows["lax"] else 0
                figures = (f"{row['us']:.1f}", f"{ratio:.2f}", f"{row['difference']:.1e}")
                seconds = f"{row['compile_seconds']:.1f}"
                print(tables.row(name, form, *figures, seconds), flush=True)


if __name__ == "__main__":
    main()
