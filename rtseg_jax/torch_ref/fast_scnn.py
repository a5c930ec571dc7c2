"""The trunk of Fast-SCNN in plain PyTorch, NCHW, with AFFNet's changes (Poudel et al., BMVC 2019, Table 1)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ConvBatchNorm, ConvBatchNormReLU, InvertedResidual, upsample

DOWNSAMPLES = ("fast_scnn", "lightweight")
WIDTHS = {
    "paper-table": (64, 64, 64, 96, 96, 96, 128, 128, 128),
    "text": (64, 64, 64, 96, 96, 128, 128, 128, 128),
}
HALVING = {"paper-table": (1, 4), "text": (1, 5)}


class DepthwiseSeparableConv(nn.Sequential):
    """A depth-wise 3x3 and a 1x1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, channels: int, features: int, stride: int = 1):
        super().__init__()
        self.depthwise = ConvBatchNormReLU(channels, channels, 3, stride, groups=channels)
        self.pointwise = ConvBatchNormReLU(channels, features, 1)


class LearningToDownsample(nn.Sequential):
    """[b, 3, h, w] -> [b, 64, ceil(h / 8), ceil(w / 8)] in Fast-SCNN's three layers."""

    def __init__(self, stem_padding: int = 1):
        super().__init__()
        self.conv = ConvBatchNormReLU(3, 32, 3, 2, padding=stem_padding)
        self.dsconv1 = DepthwiseSeparableConv(32, 48, stride=2)
        self.dsconv2 = DepthwiseSeparableConv(48, 64, stride=2)


class InitialBlock(nn.Module):
    """ENet's first block: 13 channels of a strided convolution beside the pooled image, ceil mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> [b, 16, ceil(h / 2), ceil(w / 2)]."""
        pool = F.max_pool2d(image, 2, stride=2, ceil_mode=True)
        return F.relu(self.norm(torch.cat([self.conv(image), pool], dim=1)))


class ShuffleNetUnit(nn.Module):
    """ShuffleNet's unit with stride 2: a bottleneck beside a 3x3 average pool.

    Args:
        channels: Channels of the input, all of which the pool passes on.
        features: Channels of the output.
        groups: Groups of both 1x1 convolutions.
    """

    def __init__(self, channels: int, features: int, groups: int = 1):
        super().__init__()
        inner = features // 4
        self.reduce = ConvBatchNormReLU(channels, inner, 1, groups=groups)
        self.shuffle = nn.ChannelShuffle(groups)
        self.depthwise = ConvBatchNorm(inner, inner, 3, 2, groups=inner)
        self.expand = ConvBatchNorm(inner, features - channels, 1, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, ceil(h / 2), ceil(w / 2)]."""
        y = self.expand(self.depthwise(self.shuffle(self.reduce(x))))
        pool = F.avg_pool2d(x, 3, stride=2, padding=1)
        return F.relu(torch.cat([y, pool], dim=1))


class LightweightDownsample(nn.Sequential):
    """[b, 3, h, w] -> [b, 64, ceil(h / 8), ceil(w / 8)] as AFFNet does it (Section III-A)."""

    def __init__(self, groups: int = 1):
        super().__init__()
        self.initial = InitialBlock()
        self.shuffle1 = ShuffleNetUnit(16, 32, groups)
        self.shuffle2 = ShuffleNetUnit(32, 64, groups)


class SpatialPyramidPooling(nn.Module):
    """Adaptive averages over 1, 2x2, 3x3 and 6x6 bins, resized, beside the map itself."""

    bins = (1, 2, 3, 6)

    def __init__(self, channels: int, align_corners: bool = False):
        super().__init__()
        self.align_corners = align_corners
        for n in self.bins:
            pool = ConvBatchNormReLU(channels, channels // len(self.bins), 1)
            self.add_module(f"pool{n}", pool)
        self.project = ConvBatchNormReLU(2 * channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        maps = [x]
        for n in self.bins:
            pooled = self.get_submodule(f"pool{n}")(F.adaptive_avg_pool2d(x, n))
            maps.append(upsample(pooled, x.shape[2:], self.align_corners))
        return self.project(torch.cat(maps, dim=1))


class FastSCNNBackbone(nn.Module):
    """Learning to downsample, nine inverted residuals in three units, the pyramid.

    Args:
        downsample: "fast_scnn" or AFFNet's "lightweight".
        groups: Groups of the lightweight one's 1x1 convolutions.
        deep: The nine widths and two strides, "paper-table" or "text".
        align_corners: Of the pyramid's resizing.
        stem_padding: Of Fast-SCNN's first convolution.

    Raises:
        ValueError: unknown downsample or deep.
    """

    def __init__(
        self,
        downsample: str = "fast_scnn",
        groups: int = 1,
        deep: str = "paper-table",
        align_corners: bool = False,
        stem_padding: int = 1,
    ):
        super().__init__()
        if downsample not in DOWNSAMPLES:
            raise ValueError(
                f"unknown downsample '{downsample}'; choose one of {', '.join(DOWNSAMPLES)}"
            )
        if deep not in WIDTHS:
            raise ValueError(f"unknown deep '{deep}'; choose one of {', '.join(WIDTHS)}")
        self.downsample = (
            LightweightDownsample(groups)
            if downsample == "lightweight"
            else LearningToDownsample(stem_padding)
        )
        widths = WIDTHS[deep]
        for i in range(9):
            block = InvertedResidual(
                widths[i - 1] if i else 64,
                widths[i],
                stride=2 if i + 1 in HALVING[deep] else 1,
                activation=F.relu,
            )
            self.add_module(f"unit{i // 3 + 1}_block{i % 3 + 1}", block)
        self.pyramid = SpatialPyramidPooling(widths[8], align_corners)
        self.channels = (64, widths[2], widths[5], widths[8])

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The four maps F1 (output stride 8), F2 (16), F3 and F4 (32), of `channels` channels."""
        x = self.downsample(image)
        maps = [x]
        for unit in (1, 2, 3):
            for block in (1, 2, 3):
                x = self.get_submodule(f"unit{unit}_block{block}")(x)
            maps.append(x)
        maps[3] = self.pyramid(x)
        return tuple(maps)
