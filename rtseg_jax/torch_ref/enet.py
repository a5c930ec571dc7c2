"""ENet in plain PyTorch, NCHW (Paszke et al., 2016, Table 1)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import BatchNormPReLU

MIDDLES = (1, 2, None, 4, 1, 8, None, 16)  # dilations; None is the asymmetric convolution


class PReLU(nn.Module):
    """PReLU with so many slopes, initially 0.25."""

    def __init__(self, slopes: int):
        super().__init__()
        self.slope = nn.Parameter(torch.full((slopes,), 0.25))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same."""
        return F.prelu(x, self.slope)


class _Normed(nn.Module):
    """A convolution that a subclass gives, BatchNorm, and the activation that is named."""

    def __init__(self, conv: nn.Module, features: int, activation: str):
        super().__init__()
        self.conv = conv
        if activation.endswith("prelu"):
            self.norm = BatchNormPReLU(features, eps=1e-5, shared=activation == "shared_prelu")
        else:
            self.norm = nn.BatchNorm2d(features)
        self.rectified = activation == "relu"

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return F.relu(x) if self.rectified else x


class ConvUnit(_Normed):
    """A convolution without bias, 1x1 if no other geometry is given, BatchNorm, activation or "none"."""

    def __init__(self, channels: int, features: int, activation: str, **geometry):
        conv = nn.Conv2d(channels, features, bias=False, **{"kernel_size": 1, **geometry})
        super().__init__(conv, features, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, h', w']."""
        return self.finish(self.conv(x))


class UpUnit(_Normed):
    """A transposed 2x2 convolution to a given size, BatchNorm, activation."""

    def __init__(self, channels: int, activation: str):
        conv = nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=False)
        super().__init__(conv, channels, activation)

    def forward(self, x: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """[b, c, h, w] -> [b, c, *size]."""
        return self.finish(self.conv(x, output_size=size))


class InitialBlock(_Normed):
    """13 channels of a convolution, then the 3 of the pooled image."""

    def __init__(self, activation: str):
        super().__init__(nn.Conv2d(3, 13, 3, stride=2, padding=1, bias=False), 16, activation)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> [b, 16, ceil(h / 2), ceil(w / 2)]."""
        return self.finish(torch.cat([self.conv(image), F.max_pool2d(image, 3, 2, 1)], dim=1))


class _Bottleneck(nn.Module):
    def __init__(self, features: int, dropout: float, activation: str):
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        if activation == "relu":
            self.activation = nn.ReLU()
        else:
            self.activation = PReLU(features if activation == "prelu" else 1)


class Bottleneck(_Bottleneck):
    """Size and channels stay; the middle is a dilated 3x3 convolution, or 5x1 and 1x5."""

    def __init__(self, channels: int, dilation: int | None, dropout: float, activation: str):
        super().__init__(channels, dropout, activation)
        inner = channels // 4
        self.reduce = ConvUnit(channels, inner, activation)
        self.names = ("conv3x3",) if dilation else ("conv5x1", "conv1x5")
        if dilation:
            geometry = {"kernel_size": 3, "padding": dilation, "dilation": dilation}
            self.conv3x3 = ConvUnit(inner, inner, activation, **geometry)
        else:
            self.conv5x1 = ConvUnit(inner, inner, activation, kernel_size=(5, 1), padding=(2, 0))
            self.conv1x5 = ConvUnit(inner, inner, activation, kernel_size=(1, 5), padding=(0, 2))
        self.expand = ConvUnit(inner, channels, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        y = self.reduce(x)
        for name in self.names:
            y = self.get_submodule(name)(y)
        return self.activation(x + self.dropout(self.expand(y)))


class DownsamplingBottleneck(_Bottleneck):
    """Half the size; the main branch is a max pool, widened by zeros."""

    def __init__(self, channels: int, features: int, dropout: float, activation: str):
        super().__init__(features, dropout, activation)
        inner = channels // 4
        self.reduce = ConvUnit(channels, inner, activation, kernel_size=2, stride=2)
        self.conv3x3 = ConvUnit(inner, inner, activation, kernel_size=3, padding=1)
        self.expand = ConvUnit(inner, features, activation)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, channels, h, w] -> [b, features, h // 2, w // 2], and the indices of the maxima."""
        main, indices = F.max_pool2d(x, 2, return_indices=True)
        y = self.dropout(self.expand(self.conv3x3(self.reduce(x))))
        zeros = main.new_zeros(main.shape[0], y.shape[1] - main.shape[1], *main.shape[2:])
        return self.activation(torch.cat([main, zeros], dim=1) + y), indices


class UpsamplingBottleneck(_Bottleneck):
    """Twice the size; the main branch is unpooled."""

    def __init__(self, channels: int, features: int, dropout: float, activation: str):
        super().__init__(features, dropout, activation)
        self.main = ConvUnit(channels, features, "none")
        self.reduce = ConvUnit(channels, channels // 4, activation)
        self.up2 = UpUnit(channels // 4, activation)
        self.expand = ConvUnit(channels // 4, features, "none")

    def forward(self, x: torch.Tensor, indices: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, *size]."""
        main = F.max_unpool2d(self.main(x), indices, 2, output_size=size)
        y = self.dropout(self.expand(self.up2(self.reduce(x), size)))
        return self.activation(main + y)


class ENetBackbone(nn.Module):
    """The encoder.

    Args:
        dropout: Rates of section 1 and of sections 2 and 3.
        activation: "shared_prelu", "prelu" or "relu".
    """

    def __init__(self, dropout: tuple[float, float], activation: str):
        super().__init__()
        self.initial = InitialBlock(activation)
        self.bottleneck1_0 = DownsamplingBottleneck(16, 64, dropout[0], activation)
        for i in range(1, 5):
            self.add_module(f"bottleneck1_{i}", Bottleneck(64, 1, dropout[0], activation))
        self.bottleneck2_0 = DownsamplingBottleneck(64, 128, dropout[1], activation)
        self.wide = [f"bottleneck2_{i}" for i in range(1, 9)]
        self.wide += [f"bottleneck3_{i}" for i in range(8)]
        for name, dilation in zip(self.wide, 2 * MIDDLES, strict=True):
            self.add_module(name, Bottleneck(128, dilation, dropout[1], activation))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list]:
        """[b, 3, h, w] -> [b, 128, h / 8, w / 8], and for each pool its indices and its input's size."""
        x = self.initial(image)
        size = x.shape[2:]
        x, indices = self.bottleneck1_0(x)
        pools = [(indices, size)]
        for i in range(1, 5):
            x = self.get_submodule(f"bottleneck1_{i}")(x)
        size = x.shape[2:]
        x, indices = self.bottleneck2_0(x)
        pools.append((indices, size))
        for name in self.wide:
            x = self.get_submodule(name)(x)
        return x, pools


class ENetDecoder(nn.Module):
    """Back to the image's size."""

    def __init__(self, classes: int, dropout: float, activation: str):
        super().__init__()
        self.bottleneck4_0 = UpsamplingBottleneck(128, 64, dropout, activation)
        self.bottleneck4_1 = Bottleneck(64, 1, dropout, activation)
        self.bottleneck4_2 = Bottleneck(64, 1, dropout, activation)
        self.bottleneck5_0 = UpsamplingBottleneck(64, 16, dropout, activation)
        self.bottleneck5_1 = Bottleneck(16, 1, dropout, activation)
        self.classifier = nn.ConvTranspose2d(16, classes, 3, stride=2, padding=1, bias=False)

    def forward(self, x: torch.Tensor, pools: list, size: torch.Size) -> torch.Tensor:
        """[b, 128, h, w] -> logits [b, k, *size]."""
        x = self.bottleneck4_2(self.bottleneck4_1(self.bottleneck4_0(x, *pools[1])))
        x = self.bottleneck5_1(self.bottleneck5_0(x, *pools[0]))
        return self.classifier(x, output_size=size)


class ENet(nn.Module):
    """ENet.

    Args:
        num_classes: Channels of the logits.
        activations: Of the encoder and of the decoder: "shared_prelu", "prelu" or "relu".
        dropout: Rates of the first section's bottlenecks and of the others'.

    Raises:
        ValueError: unknown activation.
    """

    def __init__(
        self,
        num_classes: int,
        activations: tuple[str, str] = ("shared_prelu", "relu"),
        dropout: tuple[float, float] = (0.01, 0.1),
    ):
        super().__init__()
        known = ("shared_prelu", "prelu", "relu")
        for given in activations:
            if given not in known:
                raise ValueError(f"unknown activation '{given}'; choose one of {', '.join(known)}")
        self.backbone = ENetBackbone(dropout, activations[0])
        self.decoder = ENetDecoder(num_classes, dropout[1], activations[1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, h, w]."""
        return self.decoder(*self.backbone(image), image.shape[2:])
