"""Blocks that more than one network is made of, in plain PyTorch, NCHW."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

Activation = Callable[[torch.Tensor], torch.Tensor]


def init_weights(network: nn.Module) -> None:
    """Draws every convolution kernel from He's normal distribution over the fan-out."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def upsample(x: torch.Tensor, size: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    """Bilinear: [b, c, h, w] -> [b, c, *size]; size is (height, width)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


class ConvBatchNorm(nn.Module):
    """A convolution of odd kernel size, its BatchNorm, an optional activation.

    Args:
        channels: Channels of the input.
        features: Channels of the output.
        kernel_size: Side of the kernel.
        stride: Stride of the convolution.
        dilation: Dilation of the kernel.
        groups: Groups of the convolution; as many as channels make it depth-wise.
        bias: Whether the convolution has one.
        padding: Of each side; None keeps the size at stride 1.
        activation: Applied last.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        kernel_size: int = 3,
        stride: int = 1,
        *,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        activation: Activation | None = None,
    ):
        super().__init__()
        self.conv = nn.Conv2d(
            channels,
            features,
            kernel_size,
            stride,
            padding=dilation * (kernel_size // 2) if padding is None else padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        self.norm = nn.BatchNorm2d(features)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, ceil(h / stride), ceil(w / stride)]."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


ConvBatchNormReLU = functools.partial(ConvBatchNorm, activation=F.relu)


class BatchNormPReLU(nn.BatchNorm2d):
    """BatchNorm and PReLU with one slope per channel, or one for all, initially 0.25."""

    def __init__(self, channels: int, eps: float = 1e-3, shared: bool = False):
        super().__init__(channels, eps=eps)
        self.slope = nn.Parameter(torch.full((1 if shared else channels,), 0.25))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        return F.prelu(super().forward(x), self.slope)


class ConvBatchNormPReLU(nn.Module):
    """A convolution without bias, of odd kernel size, with its BatchNorm and PReLU."""

    def __init__(self, channels: int, features: int, kernel_size: int = 3, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            channels, features, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        self.norm = BatchNormPReLU(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, ceil(h / stride), ceil(w / stride)]."""
        return self.norm(self.conv(x))


class InvertedResidual(nn.Module):
    """Expansion, depth-wise 3x3, linear projection (MobileNetV2), plus the input where shapes agree.

    Args:
        channels: Channels of the input.
        features: Channels of the output.
        stride: Stride of the depth-wise convolution.
        expansion: Channels of the depth-wise convolution over those of the input.
        expand: False leaves the first 1x1 convolution out.
        activation: What follows the first two convolutions.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        stride: int = 1,
        expansion: int = 6,
        *,
        expand: bool = True,
        activation: Activation = F.relu6,
    ):
        super().__init__()
        inner = expansion * channels if expand else channels
        if expand:
            self.expand = ConvBatchNorm(channels, inner, 1, activation=activation)
        else:
            self.expand = nn.Identity()
        self.depthwise = ConvBatchNorm(inner, inner, 3, stride, groups=inner, activation=activation)
        self.project = ConvBatchNorm(inner, features, 1)
        self.residual = stride == 1 and channels == features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, ceil(h / stride), ceil(w / stride)]."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class ChainedResidualPooling(nn.Module):
    """RefineNet's chain of 5x5 max pools and 1x1 convolutions; every link is added to the input."""

    def __init__(self, features: int, stages: int = 4):
        super().__init__()
        self.stages = stages
        for i in range(1, stages + 1):
            self.add_module(f"conv{i}", nn.Conv2d(features, features, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        top = x
        for i in range(1, self.stages + 1):
            top = self.get_submodule(f"conv{i}")(F.max_pool2d(top, 5, stride=1, padding=2))
            x = x + top
        return x
