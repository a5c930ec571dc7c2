"""ResNet in plain PyTorch, NCHW, without its classifier (He et al., CVPR 2016, Table 1; stride in the 3x3)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ConvBatchNorm, ConvBatchNormReLU

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def shortcut(channels: int, features: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution where size or channels change."""
    if stride == 1 and channels == features:
        return nn.Identity()
    return ConvBatchNorm(channels, features, 1, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the shortcut (Fig. 5, left); `relu` False leaves the sum as it is."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int = 1, *, relu: bool = True):
        super().__init__()
        self.relu = relu
        self.conv1 = ConvBatchNormReLU(channels, width, 3, stride)
        self.conv2 = ConvBatchNorm(width, width, 3)
        self.shortcut = shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, width, ceil(h / stride), ceil(w / stride)]."""
        y = self.shortcut(x) + self.conv2(self.conv1(x))
        return F.relu(y) if self.relu else y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 to `expansion` times the width, beside the shortcut (Fig. 5, right)."""

    expansion = 4

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int = 1,
        *,
        relu: bool = True,
        expansion: int = expansion,
    ):
        super().__init__()
        self.relu = relu
        self.conv1 = ConvBatchNormReLU(channels, width, 1)
        self.conv2 = ConvBatchNormReLU(width, width, 3, stride)
        self.conv3 = ConvBatchNorm(width, expansion * width, 1)
        self.shortcut = shortcut(channels, expansion * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, expansion width, ceil(h / stride), ceil(w / stride)]."""
        y = self.shortcut(x) + self.conv3(self.conv2(self.conv1(x)))
        return F.relu(y) if self.relu else y


class ResNet(nn.Module):
    """Stem and four stages; `channels` holds those of the stages' outputs by output stride.

    Args:
        depth: 18, 50, 101 or 152.

    Raises:
        ValueError: another depth.
    """

    def __init__(self, depth: int = 18):
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(
                f"unknown ResNet depth {depth}; choose one of {', '.join(map(str, BLOCKS))}"
            )
        block = BasicBlock if depth == 18 else Bottleneck
        self.blocks = BLOCKS[depth]
        self.stem = ConvBatchNormReLU(3, 64, 7, 2)
        self.channels = {}
        channels = 64
        for stage, count in enumerate(self.blocks, start=1):
            width = 64 * 2 ** (stage - 1)
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                self.add_module(f"stage{stage}_block{i}", block(channels, width, stride))
                channels = width * block.expansion
            self.channels[2 ** (stage + 1)] = channels

    def forward(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        """[b, 3, h, w] -> the stages' outputs by output stride: 4, 8, 16, 32."""
        x = F.max_pool2d(self.stem(image), 3, stride=2, padding=1)
        features = {}
        for stage, count in enumerate(self.blocks, start=1):
            for i in range(count):
                x = self.get_submodule(f"stage{stage}_block{i}")(x)
            features[2 ** (stage + 1)] = x
        return features
