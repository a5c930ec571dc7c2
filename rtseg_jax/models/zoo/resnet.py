"""ResNet-18/50/101/152 (He et al., "Deep Residual Learning", CVPR 2016, Table 1), without the classifier.

Readings (what the paper leaves open, and what torchvision's weights settle):
  * v1.5: a bottleneck that halves the resolution does so in its 3x3 convolution, not in the first 1x1;
  * no convolution has a bias; BatchNorm epsilon is 1e-5; kernels start from He's normal over fan_out;
  * padding is symmetric, the stem's 3x3 max pool included.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.nn.blocks import add_relu
from rtseg_jax.nn.conv import ConvBatchNorm, ConvBatchNormReLU
from rtseg_jax.nn.pool import max_pool

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _add_shortcut(
    x: Array, y: Array, strides: tuple[int, int], dtype: DTypeLike, train: bool, relu: bool
) -> Array:
    """relu(y + x) or y + x, with a 1x1 convolution where x has another shape. Called inside a block's __call__."""
    if strides != (1, 1) or x.shape[-1] != y.shape[-1]:
        x = ConvBatchNorm(y.shape[-1], (1, 1), strides, dtype=dtype, name="shortcut")(
            x, train=train
        )
    return add_relu(y, x) if relu else y + x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut (Fig. 5, left).

    Attributes:
        relu: Whether the sum goes through a ReLU; there are networks that need it as it is.
    """

    features: int
    strides: tuple[int, int] = (1, 1)
    dtype: DTypeLike = jnp.float32
    relu: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h2 w2 features"]:
        y = ConvBatchNormReLU(self.features, (3, 3), self.strides, dtype=self.dtype, name="conv1")(
            x, train=train
        )
        y = ConvBatchNorm(self.features, (3, 3), dtype=self.dtype, name="conv2")(y, train=train)
        return _add_shortcut(x, y, self.strides, self.dtype, train, self.relu)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the width, and the shortcut (Fig. 5, right).

    Attributes:
        relu: As in BasicBlock.
        expansion: Channels of the output over `features`.
    """

    features: int
    strides: tuple[int, int] = (1, 1)
    dtype: DTypeLike = jnp.float32
    relu: bool = True
    expansion: int = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        y = ConvBatchNormReLU(self.features, (1, 1), dtype=self.dtype, name="conv1")(x, train=train)
        y = ConvBatchNormReLU(self.features, (3, 3), self.strides, dtype=self.dtype, name="conv2")(
            y, train=train
        )
        y = ConvBatchNorm(self.expansion * self.features, (1, 1), dtype=self.dtype, name="conv3")(
            y, train=train
        )
        return _add_shortcut(x, y, self.strides, self.dtype, train, self.relu)


class ResNet(nn.Module):
    """The four residual stages.

    Attributes:
        depth: 18, 50, 101 or 152.
    """

    depth: int = 18
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.depth not in BLOCKS:
            raise ValueError(
                f"unknown ResNet depth {self.depth}; choose one of {', '.join(map(str, BLOCKS))}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, Float[Array, "b _ _ _"]]:
        """Returns the stages' outputs at output strides 4, 8, 16 and 32."""
        block = BasicBlock if self.depth == 18 else Bottleneck
        x = ConvBatchNormReLU(64, (7, 7), (2, 2), dtype=self.dtype, name="stem")(image, train=train)
        x = max_pool(x, (3, 3), (2, 2), (1, 1))
        features = {}
        for stage, blocks in enumerate(BLOCKS[self.depth], start=1):
            for i in range(blocks):
                strides = (2, 2) if i == 0 and stage > 1 else (1, 1)
                x = block(64 << (stage - 1), strides, self.dtype, name=f"stage{stage}_block{i}")(
                    x, train=train
                )
            features[2 << stage] = x
        return features
