"""CGNet in plain PyTorch, NCHW (Wu et al., IEEE TIP 2021, Table I)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import BatchNormPReLU, ConvBatchNormPReLU


class GlobalContext(nn.Module):
    """The input times a sigmoid of two dense layers of its means."""

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        self.reduce = nn.Linear(channels, channels // reduction)
        self.expand = nn.Linear(channels // reduction, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        weights = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean(dim=(2, 3))))))
        return x * weights.unflatten(1, (-1, 1, 1))


class _Joint(nn.Module):
    """What both blocks share: a plain and a dilated depth-wise convolution, normalised together."""

    def __init__(self, channels: int, dilation: int):
        super().__init__()
        self.local, self.context = (
            nn.Conv2d(channels, channels, 3, padding=d, dilation=d, groups=channels, bias=False)
            for d in (1, dilation)
        )
        self.norm = BatchNormPReLU(2 * channels)

    def joint(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, 2 channels, h, w]."""
        return self.norm(torch.cat([self.local(x), self.context(x)], dim=1))


class DownsamplingBlock(_Joint):
    """A Context Guided block with stride 2, no residual."""

    def __init__(self, channels: int, features: int, dilation: int, reduction: int):
        super().__init__(features, dilation)
        self.conv = ConvBatchNormPReLU(channels, features, stride=2)
        self.reduce = nn.Conv2d(2 * features, features, 1, bias=False)
        self.gate = GlobalContext(features, reduction)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, ceil(h / 2), ceil(w / 2)]."""
        return self.gate(self.reduce(self.joint(self.conv(x))))


class ContextGuidedBlock(_Joint):
    """A Context Guided block around which the input is added."""

    def __init__(self, channels: int, dilation: int, reduction: int):
        super().__init__(channels // 2, dilation)
        self.conv = ConvBatchNormPReLU(channels, channels // 2, kernel_size=1)
        self.gate = GlobalContext(channels, reduction)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> the same."""
        return x + self.gate(self.joint(self.conv(x)))


class CGNetBackbone(nn.Module):
    """The three stages; the image is injected into the first two.

    Args:
        blocks: Blocks of the second and the third stage.
    """

    features = 256

    def __init__(self, blocks: tuple[int, int] = (3, 21)):
        super().__init__()
        self.blocks = blocks
        self.stem1 = ConvBatchNormPReLU(3, 32, stride=2)
        self.stem2 = ConvBatchNormPReLU(32, 32)
        self.stem3 = ConvBatchNormPReLU(32, 32)
        self.inject1 = BatchNormPReLU(32 + 3)
        self.down1 = DownsamplingBlock(32 + 3, 64, dilation=2, reduction=8)
        for i in range(1, blocks[0]):
            self.add_module(f"block1_{i}", ContextGuidedBlock(64, dilation=2, reduction=8))
        self.inject2 = BatchNormPReLU(2 * 64 + 3)
        self.down2 = DownsamplingBlock(2 * 64 + 3, 128, dilation=4, reduction=16)
        for i in range(1, blocks[1]):
            self.add_module(f"block2_{i}", ContextGuidedBlock(128, dilation=4, reduction=16))
        self.inject3 = BatchNormPReLU(2 * 128)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> [b, 256, ceil(h / 8), ceil(w / 8)]."""
        half = F.avg_pool2d(image, 3, stride=2, padding=1)
        quarter = F.avg_pool2d(half, 3, stride=2, padding=1)
        x = self.inject1(torch.cat([self.stem3(self.stem2(self.stem1(image))), half], dim=1))
        first = x = self.down1(x)
        for i in range(1, self.blocks[0]):
            x = self.get_submodule(f"block1_{i}")(x)
        first = x = self.down2(self.inject2(torch.cat([x, first, quarter], dim=1)))
        for i in range(1, self.blocks[1]):
            x = self.get_submodule(f"block2_{i}")(x)
        return self.inject3(torch.cat([first, x], dim=1))


class CGNet(nn.Module):
    """CGNet, by default M3N21.

    Args:
        num_classes: Channels of the logits.
        blocks: M and N.
    """

    def __init__(self, num_classes: int, blocks: tuple[int, int] = (3, 21)):
        super().__init__()
        self.backbone = CGNetBackbone(blocks)
        self.classifier = nn.Conv2d(CGNetBackbone.features, num_classes, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / 8), ceil(w / 8)]."""
        return self.classifier(self.backbone(image))
