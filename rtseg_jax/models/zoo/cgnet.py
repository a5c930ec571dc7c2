"""CGNet (Wu et al., "CGNet: A Light-weight Context Guided Network for Semantic Segmentation", IEEE TIP 2021).

Readings (what the paper leaves open or draws otherwise, and what its public code settles):
  * the joint features of a block that halves the resolution go through a further 1x1 convolution, which the figure of
    the block lacks; and its first convolution is a strided 3x3;
  * no convolution has a bias, the two dense layers of a gate have; BatchNorm epsilon is 1e-3; PReLU has one slope per
    channel, initially 0.25;
  * nothing follows the sum of a residual block;
  * the image injected at strides 2 and 4 is average-pooled 3x3 with the zero padding counted in the mean;
  * the last block of a stage and its first one are concatenated in this order at stride 4, in the other at stride 8;
  * there is no dropout: the classifier has one in the code, which its programs do not use.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.nn.blocks import ConvBatchNormPReLU
from rtseg_jax.nn.conv import Conv, DepthwiseConv, torch_default, torch_uniform
from rtseg_jax.nn.norm import BatchNormPReLU
from rtseg_jax.nn.pool import avg_pool

EPSILON = 1e-3


class GlobalContext(nn.Module):
    """Channels weighted by two dense layers of their means, f_glo (Section III-A)."""

    reduction: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        def dense(name, y, features):
            return nn.Dense(
                features,
                kernel_init=torch_default,
                bias_init=torch_uniform(y.shape[-1]),
                dtype=self.dtype,
                name=name,
            )(y)

        y = x.astype(jnp.float32).mean((1, 2))
        y = nn.relu(dense("reduce", y, x.shape[-1] // self.reduction))
        y = nn.sigmoid(dense("expand", y, x.shape[-1]))
        return x * y[:, None, None]


def _joint(x, dilation, dtype, train):
    """f_loc, f_sur and f_joi of the module that calls: depth-wise 3x3, plain beside dilated, normalised together."""

    def depthwise(name, d):
        return DepthwiseConv((3, 3), kernel_dilation=(d, d), use_bias=False, dtype=dtype, name=name)

    both = jnp.concatenate([depthwise("local", 1)(x), depthwise("context", dilation)(x)], axis=-1)
    return BatchNormPReLU(EPSILON, dtype=dtype, name="norm")(both, train=train)


class DownsamplingBlock(nn.Module):
    """A Context Guided block that halves the resolution (Section III-B, Fig. 3)."""

    features: int
    dilation: int
    reduction: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        features, dtype = self.features, self.dtype
        x = ConvBatchNormPReLU(features, strides=(2, 2), dtype=dtype, name="conv")(x, train=train)
        x = _joint(x, self.dilation, dtype, train)
        x = Conv(features, (1, 1), use_bias=False, dtype=dtype, name="reduce")(x)
        return GlobalContext(self.reduction, dtype, name="gate")(x)


class ContextGuidedBlock(nn.Module):
    """A Context Guided block with global residual learning (Section III-A, Fig. 3)."""

    dilation: int
    reduction: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        half = ConvBatchNormPReLU(x.shape[-1] // 2, (1, 1), dtype=self.dtype, name="conv")
        y = _joint(half(x, train=train), self.dilation, self.dtype, train)
        return x + GlobalContext(self.reduction, self.dtype, name="gate")(y)


class CGNetBackbone(nn.Module):
    """CGNet without its classifier (Table I).

    Attributes:
        blocks: Blocks at stride 4 and at stride 8, the halving ones among them: M and N.
    """

    blocks: tuple[int, int] = (3, 21)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Returns the features at output strides 2, 4 and 8 (35, 131 and 256 channels)."""
        dtype = self.dtype
        image = image.astype(dtype)
        half = avg_pool(image, (3, 3), (2, 2), padding=(1, 1))
        quarter = avg_pool(half, (3, 3), (2, 2), padding=(1, 1))

        def inject(name, *maps):
            norm = BatchNormPReLU(EPSILON, dtype=dtype, name=name)
            return norm(jnp.concatenate(maps, axis=-1), train=train)

        def stage(number, x, features, dilation, reduction):
            """The first and the last map of a stage."""
            first = x = DownsamplingBlock(
                features, dilation, reduction, dtype, name=f"down{number}"
            )(x, train=train)
            for i in range(1, self.blocks[number - 1]):
                name = f"block{number}_{i}"
                x = ContextGuidedBlock(dilation, reduction, dtype, name=name)(x, train=train)
            return first, x

        x = ConvBatchNormPReLU(32, strides=(2, 2), dtype=dtype, name="stem1")(image, train=train)
        x = ConvBatchNormPReLU(32, dtype=dtype, name="stem2")(x, train=train)
        x = ConvBatchNormPReLU(32, dtype=dtype, name="stem3")(x, train=train)
        stride2 = inject("inject1", x, half)
        first, last = stage(1, stride2, 64, 2, 8)
        stride4 = inject("inject2", last, first, quarter)
        first, last = stage(2, stride4, 128, 4, 16)
        return {2: stride2, 4: stride4, 8: inject("inject3", first, last)}


class CGNet(nn.Module):
    """CGNet, by default the paper's M3N21.

    Attributes:
        blocks: M and N, 1 or more each.
    """

    num_classes: int
    blocks: tuple[int, int] = (3, 21)
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if len(self.blocks) != 2 or min(self.blocks) < 1:
            raise ValueError(f"blocks {self.blocks} must be two numbers of 1 or more")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h8 w8 k"]]:
        """Returns {"logits": float32 scores at output stride 8}."""
        features = CGNetBackbone(self.blocks, self.dtype, name="backbone")(image, train=train)
        classifier = Conv(
            self.num_classes, (1, 1), use_bias=False, dtype=self.dtype, name="classifier"
        )
        return {"logits": classifier(features[8]).astype(jnp.float32)}
