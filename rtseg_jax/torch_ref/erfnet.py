"""ERFNet in plain PyTorch, NCHW: encoder and whole network (Romera et al., T-ITS 2018, Table I)."""

import torch
from torch import nn
from torch.nn import functional as F

EPSILON = 1e-3


def init_weights(network: nn.Module) -> None:
    """Draws every convolution kernel from He's normal distribution over the fan-in.

    Transposed convolutions and the biases of convolutions keep torch's uniform default.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)


class DownsamplerBlock(nn.Module):
    """A strided 3x3 convolution beside a 2x2 max pool, ceil mode so that odd sizes agree."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, features - channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(features, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, features, ceil(h / 2), ceil(w / 2)]."""
        pool = F.max_pool2d(x, 2, stride=2, ceil_mode=True)
        return F.relu(self.norm(torch.cat([self.conv(x), pool], dim=1)))


class NonBottleneck1D(nn.Module):
    """Residual block of factorised convolutions, the second pair dilated (Fig. 2c)."""

    def __init__(self, channels: int, dropout: float, dilation: int = 1):
        super().__init__()
        d = dilation
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.norm1 = nn.BatchNorm2d(channels, eps=EPSILON)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d))
        self.norm2 = nn.BatchNorm2d(channels, eps=EPSILON)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        y = F.relu(self.conv3x1_1(x))
        y = F.relu(self.norm1(self.conv1x3_1(y)))
        y = F.relu(self.conv3x1_2(y))
        y = self.norm2(self.conv1x3_2(y))
        if self.dropout.p > 0:
            y = self.dropout(y)
        return F.relu(y + x)


class UpsamplerBlock(nn.Module):
    """Doubles the resolution with a transposed 3x3 convolution (Table I)."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, features, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(features, eps=EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, features, 2 h, 2 w]."""
        return F.relu(self.norm(self.conv(x)))


class ERFNetEncoder(nn.Module):
    """Layers 1-16 (Table I).

    Args:
        dropout: Rates of the 64-channel and of the 128-channel blocks.
    """

    features = 128

    def __init__(self, dropout: tuple[float, float] = (0.03, 0.3)):
        super().__init__()
        self.down1 = DownsamplerBlock(3, 16)
        self.down2 = DownsamplerBlock(16, 64)
        for i in range(3, 8):
            self.add_module(f"block{i}", NonBottleneck1D(64, dropout[0]))
        self.down8 = DownsamplerBlock(64, 128)
        for i, dilation in enumerate((2, 4, 8, 16, 2, 4, 8, 16), start=9):
            self.add_module(f"block{i}", NonBottleneck1D(128, dropout[1], dilation))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> [b, 128, ceil(h / 8), ceil(w / 8)]."""
        x = image
        for layer in self.children():
            x = layer(x)
        return x


class ERFNetDecoder(nn.Module):
    """Layers 17-23 (Table I): two upsamplers with two blocks each, a transposed 2x2 classifier."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.up17 = UpsamplerBlock(128, 64)
        self.block18 = NonBottleneck1D(64, 0.0)
        self.block19 = NonBottleneck1D(64, 0.0)
        self.up20 = UpsamplerBlock(64, 16)
        self.block21 = NonBottleneck1D(16, 0.0)
        self.block22 = NonBottleneck1D(16, 0.0)
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, 128, h, w] -> logits [b, k, 8 h, 8 w]."""
        for layer in self.children():
            x = layer(x)
        return x


class ERFNet(nn.Module):
    """ERFNet with its decoder; the logits are cropped to the image's size.

    Args:
        num_classes: Channels of the logits.
        encoder_head: Also hold the encoder's 1x1 classifier, on which no output depends.
        dropout: Rates of the 64-channel and of the 128-channel blocks.
    """

    def __init__(
        self,
        num_classes: int,
        encoder_head: bool = True,
        dropout: tuple[float, float] = (0.03, 0.3),
    ):
        super().__init__()
        self.backbone = ERFNetEncoder(dropout)
        if encoder_head:
            self.classifier = nn.Conv2d(ERFNetEncoder.features, num_classes, 1)
        self.decoder = ERFNetDecoder(num_classes)
        init_weights(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, h, w]."""
        scores = self.decoder(self.backbone(image))
        return scores[:, :, : image.shape[2], : image.shape[3]]
