"""With 64-bit mode on, float32 stays float32: no constant or statistic widens an operation or its gradient."""

import re

import jax
import jax.numpy as jnp
import pytest

from rtseg_jax.nn import attention, conv, norm, pool, resize

X = jnp.zeros((2, 9, 12, 6), jnp.float32)
KERNEL = jnp.zeros((3, 3, 6, 6), jnp.float32)


def module(m):
    def apply(x):
        train = {"train": True} if isinstance(m, norm.BatchNorm | norm.BatchNormPReLU) else {}
        variables = m.init(jax.random.key(0), x, **train)
        return m.apply(variables, x, **train, mutable=["batch_stats"])[0]

    return apply


OPERATIONS = {
    "conv": lambda x: conv.conv2d(x, KERNEL, padding=(1, 1)),
    "conv_strided": lambda x: conv.conv2d(x, KERNEL, strides=(2, 2), padding=(1, 1)),
    "conv_transpose": lambda x: conv.conv_transpose2d(x, KERNEL, padding=1, output_padding=1),
    "conv_module": module(conv.Conv(4)),
    "depthwise_module": module(conv.DepthwiseConv()),
    "conv_transpose_module": module(conv.ConvTranspose(4, (2, 2))),
    "batch_norm": module(norm.BatchNorm(1e-3)),
    "batch_norm_prelu": module(norm.BatchNormPReLU(1e-3)),
    "prelu": module(norm.PReLU()),
    "resize": lambda x: resize.resize_bilinear(x, (20, 30)),
    "resize_corners": lambda x: resize.resize_bilinear(x, (20, 30), align_corners=True),
    "resize_nearest": lambda x: resize.resize_nearest(x, (20, 30)),
    "max_pool": lambda x: pool.max_pool(x, (2, 2), (2, 2), ceil_mode=True),
    "avg_pool": lambda x: pool.avg_pool(x, (3, 3), (2, 2), (1, 1)),
    "adaptive_avg_pool": lambda x: pool.adaptive_avg_pool(x, (2, 5)),
    "attention": lambda x: attention.dot_product_attention(x[0], x[0], x[0], block_size=5),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_float32_is_never_widened(name):
    with jax.enable_x64(True):
        text = str(jax.make_jaxpr(jax.value_and_grad(lambda x: OPERATIONS[name](x).sum()))(X))
    assert "f32[2,9,12,6]" in text
    assert (
        re.findall(r"f64\[\d[^]]*\]", text) == []
    )  # f64[], a Python number on its way in, is harmless
