"""ESPNet (Mehta et al., "ESPNet: Efficient Spatial Pyramid of Dilated Convolutions", ECCV 2018).

Readings (what the paper leaves open, and what its public code settles):
  * the code has two networks, which differ in what the decoder meets at stride 2: the one with CamVid's weights takes the
    stem's map with the image in it, the one with Cityscapes's weights the stem's alone. Both can be built (`skip`);
  * the branch of dilation 1 is no part of the hierarchical sums, and takes the channels that a division by five leaves;
  * BatchNorm and PReLU follow the residual sum; those in a row have epsilon 1e-3 and one slope per channel, initially
    0.25; nothing has a bias;
  * the image injected at strides 2 and 4 is average-pooled 3x3 with the zero padding counted in the mean;
  * the last block of a stage and its first one are concatenated in this order at stride 4, in the other at stride 8;
  * kernels start from torch's default.
The code takes sides of multiples of 8. Here transposed convolutions, which overshoot where a halving rounded an odd size
up, are cropped to the map that they meet; and an ESP module of fewer than five channels, as with so few classes, has as
many branches.
"""

import itertools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.nn.blocks import ConvBatchNormPReLU
from rtseg_jax.nn.conv import Conv, ConvTranspose, torch_default
from rtseg_jax.nn.norm import BatchNorm, BatchNormPReLU
from rtseg_jax.nn.pool import avg_pool

EPSILON = 1e-3
SKIPS = ("stem", "inject")


def _conv(name, features, kernel_size, dtype, strides=(1, 1), dilation=1):
    return Conv(
        features,
        kernel_size,
        strides,
        (dilation, dilation),
        use_bias=False,
        kernel_init=torch_default,
        dtype=dtype,
        name=name,
    )


def _concatenated(name, maps, dtype, train):
    norm = BatchNormPReLU(EPSILON, dtype=dtype, name=name)
    return norm(jnp.concatenate(maps, axis=-1), train=train)


class ESPModule(nn.Module):
    """Efficient spatial pyramid: reduce, split, transform, merge (Section 3, Fig. 1).

    With stride 2 the reduction is a 3x3 convolution. The input is added where stride and channels allow it.
    """

    features: int
    strides: tuple[int, int] = (1, 1)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        dilations = (1, 2, 4, 8, 16)[: self.features]
        width = self.features // len(dilations)
        rest = self.features - width * (len(dilations) - 1)
        plain = self.strides == (1, 1)
        reduced = _conv("reduce", width, (1, 1) if plain else (3, 3), self.dtype, self.strides)(x)

        def branch(d):
            return _conv(f"dilated{d}", rest if d == 1 else width, (3, 3), self.dtype, dilation=d)(
                reduced
            )

        sums = itertools.accumulate(branch(d) for d in dilations[1:])
        y = jnp.concatenate([branch(1), *sums], axis=-1)
        if plain and x.shape[-1] == self.features:
            y = x + y
        return BatchNormPReLU(EPSILON, dtype=self.dtype, name="norm")(y, train=train)


class ESPNetBackbone(nn.Module):
    """The encoder without its classifier (Fig. 4).

    Attributes:
        blocks: Residual modules at stride 4 and at stride 8: the paper's alpha, p and q in the code.
    """

    blocks: tuple[int, int] = (2, 8)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, tuple[Float[Array, "b _ _ _"], ...]]:
        """Returns by output stride: 2 (16 channels, 19 with the image), 4 (131), 8 (256)."""
        dtype = self.dtype
        image = image.astype(dtype)
        half = avg_pool(image, (3, 3), (2, 2), padding=(1, 1))
        quarter = avg_pool(half, (3, 3), (2, 2), padding=(1, 1))

        def stage(number, x, features):
            """The first and the last map of a stage."""
            first = x = ESPModule(features, (2, 2), dtype, name=f"down{number}")(x, train=train)
            for i in range(1, self.blocks[number - 1] + 1):
                x = ESPModule(features, dtype=dtype, name=f"block{number}_{i}")(x, train=train)
            return first, x

        stem = ConvBatchNormPReLU(
            16, strides=(2, 2), kernel_init=torch_default, dtype=dtype, name="stem"
        )(image, train=train)
        stride2 = _concatenated("inject1", [stem, half], dtype, train)
        first, last = stage(1, stride2, 64)
        stride4 = _concatenated("inject2", [last, first, quarter], dtype, train)
        stride8 = _concatenated("inject3", stage(2, stride4, 128), dtype, train)
        return {2: (stem, stride2), 4: (stride4,), 8: (stride8,)}


class ESPNetDecoder(nn.Module):
    """Reduce, upsample, merge: maps of as many channels as classes, doubled three times (Section 4, Fig. 4d)."""

    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        scores: Float[Array, "b h8 w8 k"],
        quarter: Float[Array, "b h4 w4 _"],
        half: Float[Array, "b h2 w2 _"],
        size: tuple[int, int],
        *,
        train: bool,
    ) -> Float[Array, "b h w k"]:
        k, dtype = self.num_classes, self.dtype

        def doubled(name, x, size):
            x = ConvTranspose(k, (2, 2), use_bias=False, dtype=dtype, name=name)(x)
            return x[:, : size[0], : size[1]]

        x = BatchNorm(EPSILON, dtype=dtype, name="norm8")(scores, train=train)
        x = doubled("up8", x, quarter.shape[1:3])
        lateral = _conv("lateral", k, (1, 1), dtype)(quarter)
        x = _concatenated("norm4", [lateral, x], dtype, train)
        x = ESPModule(k, dtype=dtype, name="merge")(x, train=train)
        x = doubled("up4", x, half.shape[1:3])
        x = BatchNormPReLU(EPSILON, dtype=dtype, name="norm2")(x, train=train)
        x = ConvBatchNormPReLU(k, kernel_init=torch_default, dtype=dtype, name="conv")(
            jnp.concatenate([x, half], axis=-1), train=train
        )
        return doubled("classifier", x, size)


class ESPNet(nn.Module):
    """ESPNet, or its encoder alone.

    Attributes:
        blocks: Residual modules at stride 4 and at stride 8.
        skip: What the decoder meets at stride 2: "stem", or "inject" for the stem's map with the image in it.
        decoder: False gives the paper's ESPNet-C: the encoder's scores at stride 8, from which the code's training of
            the whole network begins.
    """

    num_classes: int
    blocks: tuple[int, int] = (2, 8)
    skip: str = "stem"
    decoder: bool = True
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.skip not in SKIPS:
            raise ValueError(f"unknown skip '{self.skip}'; choose one of {', '.join(SKIPS)}")
        if len(self.blocks) != 2 or min(self.blocks) < 0:
            raise ValueError(f"blocks {self.blocks} must be two numbers of 0 or more")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b _ _ k"]]:
        """Returns {"logits": float32 scores at the image's size, without the decoder at output stride 8}."""
        features = ESPNetBackbone(self.blocks, self.dtype, name="backbone")(image, train=train)
        scores = _conv("classifier", self.num_classes, (1, 1), self.dtype)(features[8][0])
        if self.decoder:
            half = features[2][SKIPS.index(self.skip)]
            scores = ESPNetDecoder(self.num_classes, self.dtype, name="decoder")(
                scores, features[4][0], half, image.shape[1:3], train=train
            )
        return {"logits": scores.astype(jnp.float32)}
