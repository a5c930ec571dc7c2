"""BiSeNetV2 in plain PyTorch, NCHW (Yu et al., IJCV 2021), with the heads that it is trained with."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ConvBatchNorm, ConvBatchNormReLU, init_weights


class DetailBranch(nn.Sequential):
    """[b, 3, h, w] -> [b, 128, ceil(h / 8), ceil(w / 8)]."""

    def __init__(self):
        super().__init__()
        channels = 3
        for stage, (features, count) in enumerate(((64, 2), (64, 3), (128, 3)), start=1):
            for i in range(1, count + 1):
                conv = ConvBatchNormReLU(channels, features, stride=2 if i == 1 else 1)
                self.add_module(f"conv{stage}_{i}", conv)
                channels = features


class Stem(nn.Module):
    """Two strided convolutions beside a max pool of the first one's map."""

    def __init__(self):
        super().__init__()
        self.conv = ConvBatchNormReLU(3, 16, stride=2)
        self.left1 = ConvBatchNormReLU(16, 8, 1)
        self.left2 = ConvBatchNormReLU(8, 16, stride=2)
        self.fuse = ConvBatchNormReLU(32, 16)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> [b, 16, ceil(h / 4), ceil(w / 4)]."""
        x = self.conv(image)
        pooled = F.max_pool2d(x, 3, stride=2, padding=1)
        return self.fuse(torch.cat([self.left2(self.left1(x)), pooled], dim=1))


class GatherExpansion(nn.Module):
    """A residual layer whose depth-wise convolution has six outputs for each channel.

    Args:
        channels: Channels of the input.
        features: Channels of the output.
        stride: 2 adds a second depth-wise convolution, and a separable one on the shortcut.
    """

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        inner = 6 * channels
        self.conv = ConvBatchNormReLU(channels, channels)
        self.expand = ConvBatchNorm(channels, inner, 3, stride, groups=channels)
        self.depthwise = self.shortcut_depthwise = self.shortcut_project = nn.Identity()
        if stride == 2:
            self.depthwise = ConvBatchNorm(inner, inner, 3, groups=inner)
            self.shortcut_depthwise = ConvBatchNorm(channels, channels, 3, 2, groups=channels)
            self.shortcut_project = ConvBatchNorm(channels, features, 1)
        self.project = ConvBatchNorm(inner, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, ceil(h / stride), ceil(w / stride)]."""
        y = self.project(F.relu(self.depthwise(self.expand(self.conv(x)))))
        return F.relu(y + self.shortcut_project(self.shortcut_depthwise(x)))


class ContextEmbedding(nn.Module):
    """Adds the embedded mean of the map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.gap = ConvBatchNormReLU(channels, channels, 1)
        self.conv = ConvBatchNormReLU(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        mean = F.adaptive_avg_pool2d(x, 1)
        return self.conv(self.gap(self.norm(mean)) + x)


class SegmentBranch(nn.Module):
    """The stem, three stages of gather-and-expansion layers, the context embedding."""

    stages = ((3, 32, 2), (4, 64, 2), (5, 128, 4))  # number, channels, layers

    def __init__(self):
        super().__init__()
        self.stem = Stem()
        channels = 16
        for stage, features, layers in self.stages:
            for i in range(1, layers + 1):
                layer = GatherExpansion(channels, features, 2 if i == 1 else 1)
                self.add_module(f"layer{stage}_{i}", layer)
                channels = features
        self.context = ContextEmbedding(channels)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """The maps at output strides 4, 8, 16 and 32, and the last one with its context."""
        maps = [self.stem(image)]
        for stage, _, layers in self.stages:
            x = maps[-1]
            for i in range(1, layers + 1):
                x = self.get_submodule(f"layer{stage}_{i}")(x)
            maps.append(x)
        return [*maps, self.context(maps[-1])]


class BilateralGuidedAggregation(nn.Module):
    """Detail and context, each under the sigmoid of the other."""

    def __init__(self, channels: int = 128):
        super().__init__()
        for name in ("detail", "context"):
            depthwise = ConvBatchNorm(channels, channels, 3, groups=channels)
            self.add_module(f"{name}_depthwise", depthwise)
            self.add_module(f"{name}_pointwise", nn.Conv2d(channels, channels, 1, bias=False))
        self.detail_down = ConvBatchNorm(channels, channels, 3, 2)
        self.context_gate = ConvBatchNorm(channels, channels, 3)
        self.conv = ConvBatchNormReLU(channels, channels)

    def forward(self, detail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] and [b, c, ceil(h / 4), ceil(w / 4)] -> [b, c, h, w]."""
        size = detail.shape[2:]
        gate = F.interpolate(self.context_gate(context), size=size, mode="nearest")
        fine = self.detail_pointwise(self.detail_depthwise(detail)) * torch.sigmoid(gate)
        coarse = F.avg_pool2d(self.detail_down(detail), 3, stride=2, padding=1)
        coarse = coarse * torch.sigmoid(self.context_pointwise(self.context_depthwise(context)))
        return self.conv(fine + F.interpolate(coarse, size=size, mode="nearest"))


class Head(nn.Module):
    """3x3 convolution, dropout, for training heads another 3x3 at twice the resolution, 1x1 to the classes."""

    def __init__(
        self, num_classes: int, channels: int, width: int, dropout: float, last: int | None = None
    ):
        super().__init__()
        self.conv = ConvBatchNormReLU(channels, width)
        self.dropout = nn.Dropout(dropout)
        self.last = None if last is None else ConvBatchNormReLU(width, last)
        self.scores = nn.Conv2d(last or width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, k, h, w], or of twice the size."""
        x = self.dropout(self.conv(x))
        if self.last is not None:
            x = self.last(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.scores(x)


class BiSeNetV2(nn.Module):
    """The whole network.

    Args:
        num_classes: Channels of the logits.
        dropout: Rate in every head.
    """

    def __init__(self, num_classes: int, dropout: float = 0.1):
        super().__init__()
        self.backbone = nn.ModuleDict({"detail": DetailBranch(), "segment": SegmentBranch()})
        self.fusion = BilateralGuidedAggregation()
        self.classifier = Head(num_classes, 128, 1024, dropout)
        for i, channels in enumerate((16, 32, 64, 128), start=2):
            self.add_module(f"aux{i}", Head(num_classes, channels, 128, dropout, 4**i))
        init_weights(self)

    def outputs(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """[b, 3, h, w] -> "logits" as forward() gives them; in training "aux2" to "aux5", at strides 2, 4, 8, 16."""
        *maps, context = self.backbone["segment"](image)
        x = self.fusion(self.backbone["detail"](image), context)
        outputs = {"logits": self.classifier(x)}
        if self.training:
            for i, x in enumerate(maps, start=2):
                outputs[f"aux{i}"] = self.get_submodule(f"aux{i}")(x)
        return outputs

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / 8), ceil(w / 8)]."""
        return self.outputs(image)["logits"]
