"""The trunk of DABNet in plain PyTorch, NCHW (Li and Kim, BMVC 2019, Table 1)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import BatchNormPReLU, ConvBatchNormPReLU


class DownsamplingBlock(nn.Module):
    """Halves the resolution; a ceil-mode max pool beside the convolution while channels grow."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.pooled = features > channels
        conv_features = features - channels if self.pooled else features
        self.conv = nn.Conv2d(channels, conv_features, 3, stride=2, padding=1, bias=False)
        self.norm = BatchNormPReLU(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, features, ceil(h / 2), ceil(w / 2)]."""
        y = self.conv(x)
        if self.pooled:
            y = torch.cat([y, F.max_pool2d(x, 2, stride=2, ceil_mode=True)], dim=1)
        return self.norm(y)


class DABModule(nn.Module):
    """Depth-wise Asymmetric Bottleneck (Fig. 2c): two depth-wise branches, one of them dilated."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        half, d = channels // 2, dilation

        def column(d: int) -> nn.Conv2d:
            return nn.Conv2d(
                half, half, (3, 1), padding=(d, 0), dilation=(d, 1), groups=half, bias=False
            )

        def row(d: int) -> nn.Conv2d:
            return nn.Conv2d(
                half, half, (1, 3), padding=(0, d), dilation=(1, d), groups=half, bias=False
            )

        self.norm_in = BatchNormPReLU(channels)
        self.conv3x3 = nn.Conv2d(channels, half, 3, padding=1, bias=False)
        self.norm_mid = BatchNormPReLU(half)
        self.dw3x1 = column(1)
        self.norm_a1 = BatchNormPReLU(half)
        self.dw1x3 = row(1)
        self.norm_a2 = BatchNormPReLU(half)
        self.dw3x1_dilated = column(d)
        self.norm_b1 = BatchNormPReLU(half)
        self.dw1x3_dilated = row(d)
        self.norm_b2 = BatchNormPReLU(half)
        self.norm_out = BatchNormPReLU(half)
        self.conv1x1 = nn.Conv2d(half, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        y = self.norm_mid(self.conv3x3(self.norm_in(x)))
        local = self.norm_a2(self.dw1x3(self.norm_a1(self.dw3x1(y))))
        context = self.norm_b2(self.dw1x3_dilated(self.norm_b1(self.dw3x1_dilated(y))))
        return x + self.conv1x1(self.norm_out(local + context))


class DABNetBackbone(nn.Module):
    """DABNet without its classifier; the image is injected at each scale."""

    features = 259

    def __init__(self):
        super().__init__()
        self.stem1 = ConvBatchNormPReLU(3, 32, stride=2)
        self.stem2 = ConvBatchNormPReLU(32, 32)
        self.stem3 = ConvBatchNormPReLU(32, 32)
        self.inject1 = BatchNormPReLU(35)
        self.down1 = DownsamplingBlock(35, 64)
        for i in range(1, 4):
            self.add_module(f"block1_{i}", DABModule(64, 2))
        self.inject2 = BatchNormPReLU(131)
        self.down2 = DownsamplingBlock(131, 128)
        for i, dilation in enumerate((4, 4, 8, 8, 16, 16), start=1):
            self.add_module(f"block2_{i}", DABModule(128, dilation))
        self.inject3 = BatchNormPReLU(259)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> [b, 259, ceil(h / 8), ceil(w / 8)]."""
        half = F.avg_pool2d(image, 3, stride=2, padding=1)
        quarter = F.avg_pool2d(half, 3, stride=2, padding=1)
        eighth = F.avg_pool2d(quarter, 3, stride=2, padding=1)

        x = self.stem3(self.stem2(self.stem1(image)))
        x = self.inject1(torch.cat([x, half], dim=1))

        start = x = self.down1(x)
        for i in range(1, 4):
            x = self.get_submodule(f"block1_{i}")(x)
        x = self.inject2(torch.cat([x, start, quarter], dim=1))

        start = x = self.down2(x)
        for i in range(1, 7):
            x = self.get_submodule(f"block2_{i}")(x)
        return self.inject3(torch.cat([x, start, eighth], dim=1))
