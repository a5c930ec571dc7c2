"""MobileNetV2 of width 1 (Sandler et al., CVPR 2018, Table 2), up to its last inverted residual.

Readings: BatchNorm epsilon is 1e-5; no convolution has a bias; kernels start from He's normal over fan_out;
padding is symmetric.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.nn.blocks import InvertedResidual
from rtseg_jax.nn.conv import ConvBatchNorm

# Expansion, channels, repeats, stride of the first; the output stride after it is the key of its tap.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """The trunk of MobileNetV2.

    Attributes:
        expand_first: Give the first inverted residual (expansion 1) its 1x1 convolution 32 -> 32 as well. CARNet's
            printed FLOPs count it; published ImageNet weights do not have it.
    """

    expand_first: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[int, tuple[Float[Array, "b _ _ _"], ...]]:
        """Returns by output stride what the stages give: 4 (24 channels), 8 (32), 16 (64, 96), 32 (160, 320)."""
        x = ConvBatchNorm(32, (3, 3), (2, 2), activation=nn.relu6, dtype=self.dtype, name="stem")(
            image, train=train
        )
        features, stride = {}, 2
        for stage, (expansion, channels, repeats, first) in enumerate(STAGES):
            stride *= first
            for i in range(repeats):
                x = InvertedResidual(
                    channels,
                    (first, first) if i == 0 else (1, 1),
                    expansion,
                    expand=expansion > 1 or self.expand_first,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{i}",
                )(x, train=train)
            if stage > 0:
                features[stride] = (*features.get(stride, ()), x)
        return features
