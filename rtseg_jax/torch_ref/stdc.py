"""STDC1-Seg and STDC2-Seg in plain PyTorch, NCHW (Fan et al., CVPR 2021), with the heads that they are trained with."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ConvBatchNorm, ConvBatchNormReLU


class ShortTermDenseConcatenate(nn.Module):
    """Four convolutions in a row, their maps side by side.

    Args:
        channels: Channels of the input.
        features: Channels of the output.
        stride: 2 halves the resolution behind the first convolution.
    """

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        half, quarter, eighth = features // 2, features // 4, features // 8
        self.conv1 = ConvBatchNormReLU(channels, half, 1)
        self.down = ConvBatchNorm(half, half, 3, 2, groups=half) if stride == 2 else nn.Identity()
        self.pool = nn.AvgPool2d(3, 2, padding=1) if stride == 2 else nn.Identity()
        self.conv2 = ConvBatchNormReLU(half, quarter)
        self.conv3 = ConvBatchNormReLU(quarter, eighth)
        self.conv4 = ConvBatchNormReLU(eighth, eighth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, ceil(h / stride), ceil(w / stride)]."""
        first = self.conv1(x)
        maps = [self.conv2(self.down(first))]
        for conv in (self.conv3, self.conv4):
            maps.append(conv(maps[-1]))
        return torch.cat([self.pool(first), *maps], dim=1)


class STDC(nn.Module):
    """The trunk; `repeats` are the modules of its three stages."""

    def __init__(self, repeats: tuple[int, int, int]):
        super().__init__()
        layers = [ConvBatchNormReLU(3, 32, stride=2), ConvBatchNormReLU(32, 64, stride=2)]
        self.ends, channels = [], 64
        for features, count in zip((256, 512, 1024), repeats, strict=True):
            for i in range(count):
                layers.append(ShortTermDenseConcatenate(channels, features, 1 if i else 2))
                channels = features
            self.ends.append(len(layers) - 1)
        for i, layer in enumerate(layers):
            self.add_module(f"layer{i}", layer)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """[b, 3, h, w] -> 256, 512 and 1024 channels at output strides 8, 16 and 32."""
        maps, x = [], image
        for i in range(self.ends[-1] + 1):
            x = self.get_submodule(f"layer{i}")(x)
            if i in self.ends:
                maps.append(x)
        return maps


class AttentionRefinement(nn.Module):
    """A 3x3 convolution, its channels weighted by what a 1x1 convolution makes of their means."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.conv = ConvBatchNormReLU(channels, features)
        self.attention = ConvBatchNorm(features, features, 1, activation=torch.sigmoid)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, h, w]."""
        x = self.conv(x)
        return x * self.attention(F.adaptive_avg_pool2d(x, 1))


class ContextPath(nn.Module):
    """The coarse stages on their way to output stride 8, nearest neighbours in between."""

    def __init__(self):
        super().__init__()
        self.mean = ConvBatchNormReLU(1024, 128, 1)
        self.refine32, self.smooth32 = AttentionRefinement(1024, 128), ConvBatchNormReLU(128, 128)
        self.refine16, self.smooth16 = AttentionRefinement(512, 128), ConvBatchNormReLU(128, 128)

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The trunk's maps -> [b, 128, h, w] at strides 8 and 16."""
        x8, x16, x32 = maps
        x = self.refine32(x32) + self.mean(F.adaptive_avg_pool2d(x32, 1))
        y16 = self.smooth32(F.interpolate(x, size=x16.shape[2:], mode="nearest"))
        x = self.refine16(x16) + y16
        return self.smooth16(F.interpolate(x, size=x8.shape[2:], mode="nearest")), y16


class FeatureFusion(nn.Module):
    """Both maps in a 1x1 convolution, plus the same with weighted channels."""

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.conv = ConvBatchNormReLU(channels, features, 1)
        self.reduce = nn.Conv2d(features, features // 4, 1, bias=False)
        self.expand = nn.Conv2d(features // 4, features, 1, bias=False)

    def forward(self, spatial: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Maps of one size, `channels` together -> [b, features, h, w]."""
        x = self.conv(torch.cat([spatial, context], dim=1))
        weight = F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x + x * torch.sigmoid(self.expand(weight))


class Head(nn.Sequential):
    """[b, channels, h, w] -> [b, outputs, h, w]."""

    def __init__(self, channels: int, width: int, outputs: int):
        super().__init__()
        self.conv = ConvBatchNormReLU(channels, width)
        self.scores = nn.Conv2d(width, outputs, 1, bias=False)


class STDCSeg(nn.Module):
    """The whole network.

    Args:
        num_classes: Channels of the logits.
        repeats: Modules of the trunk's stages: (2, 2, 2) in STDC1, (4, 5, 3) in STDC2.
    """

    def __init__(self, num_classes: int, repeats: tuple[int, int, int] = (2, 2, 2)):
        super().__init__()
        self.backbone = STDC(repeats)
        self.context = ContextPath()
        self.fusion = FeatureFusion(256 + 128, 256)
        self.classifier = Head(256, 256, num_classes)
        self.aux8 = Head(128, 64, num_classes)
        self.aux16 = Head(128, 64, num_classes)
        self.detail = Head(256, 64, 1)
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and name.startswith("backbone."):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=1)

    def outputs(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """[b, 3, h, w] -> "logits" as forward() gives them; in training "aux8", "aux16" and "detail" too."""
        maps = self.backbone(image)
        context8, context16 = self.context(maps)
        outputs = {"logits": self.classifier(self.fusion(maps[0], context8))}
        if self.training:
            outputs["aux8"] = self.aux8(context8)
            outputs["aux16"] = self.aux16(context16)
            outputs["detail"] = self.detail(maps[0])
        return outputs

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / 8), ceil(w / 8)]."""
        return self.outputs(image)["logits"]
