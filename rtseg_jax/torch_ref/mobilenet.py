"""MobileNetV2 of width 1 in plain PyTorch, NCHW, up to its last inverted residual (Sandler et al., CVPR 2018, Table 2)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ConvBatchNorm, InvertedResidual

# Expansion t, channels c, repeats n, stride s of the first.
TABLE = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
    """Stem and seventeen inverted residuals; `channels` holds those of the outputs by output stride.

    Args:
        expand_first: Whether the block of expansion 1 has its first 1x1 convolution.
    """

    channels = {4: (24,), 8: (32,), 16: (64, 96), 32: (160, 320)}

    def __init__(self, expand_first: bool = True):
        super().__init__()
        self.stem = ConvBatchNorm(3, 32, 3, 2, activation=F.relu6)
        channels = 32
        for stage, (t, c, n, s) in enumerate(TABLE):
            for i in range(n):
                block = InvertedResidual(
                    channels, c, s if i == 0 else 1, t, expand=t > 1 or expand_first
                )
                self.add_module(f"stage{stage}_block{i}", block)
                channels = c

    def forward(self, image: torch.Tensor) -> dict[int, tuple[torch.Tensor, ...]]:
        """[b, 3, h, w] -> the outputs of all stages but the first, by output stride: 4, 8, 16, 32."""
        x = self.stem(image)
        maps = []
        for stage, (_, _, n, _) in enumerate(TABLE):
            for i in range(n):
                x = self.get_submodule(f"stage{stage}_block{i}")(x)
            maps.append(x)
        return {4: (maps[1],), 8: (maps[2],), 16: (maps[3], maps[4]), 32: (maps[5], maps[6])}
