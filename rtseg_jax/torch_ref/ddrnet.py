"""DDRNet-23-slim in plain PyTorch, NCHW (Hong et al., IEEE T-ITS 2022)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ConvBatchNorm, ConvBatchNormReLU, init_weights, upsample
from rtseg_jax.torch_ref.resnet import BasicBlock, Bottleneck


class NormReLUConv(nn.Module):
    """BatchNorm, ReLU, a convolution without bias."""

    def __init__(self, channels: int, features: int, kernel_size: int = 1, groups: int = 1):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(
            channels, features, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, h, w]."""
        return self.conv(F.relu(self.norm(x)))


class Head(nn.Module):
    """BatchNorm, ReLU, 3x3 convolution to `width`; BatchNorm, ReLU, 1x1 convolution to the scores."""

    def __init__(self, channels: int, width: int, features: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv1 = ConvBatchNormReLU(channels, width, 3)
        self.conv2 = nn.Conv2d(width, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, h, w]."""
        return self.conv2(self.conv1(F.relu(self.norm(x))))


class Layers(nn.Module):
    """A network of numbered blocks and a stem, by which its layers are called."""

    def add_stem(self, width: int) -> None:
        """Adds two strided convolutions with bias."""
        self.stem1 = ConvBatchNormReLU(3, width, 3, 2, bias=True)
        self.stem2 = ConvBatchNormReLU(width, width, 3, 2, bias=True)

    def add_layer(
        self,
        name: str,
        channels: int,
        features: int,
        stride: int = 1,
        *,
        blocks: int = 2,
        relu: bool = True,
    ) -> None:
        """Adds NAME_block0, NAME_block1, ...; without `relu` the last one ends in its sum."""
        for i in range(blocks):
            block = BasicBlock(
                features if i else channels,
                features,
                1 if i else stride,
                relu=relu or i < blocks - 1,
            )
            self.add_module(f"{name}_block{i}", block)

    def run(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """All blocks of a layer."""
        blocks = [module for key, module in self.named_children() if key.startswith(f"{name}_")]
        for block in blocks:
            x = block(x)
        return x


def bottleneck(channels: int, width: int, stride: int = 1) -> Bottleneck:
    """The bottleneck of both ends: twice the width, no ReLU after the sum."""
    return Bottleneck(channels, width, stride, relu=False, expansion=2)


class DualResolutionBackbone(Layers):
    """Both branches and their two exchanges."""

    def __init__(self, w: int):
        super().__init__()
        self.add_stem(w)
        self.add_layer("layer1", w, w)
        self.add_layer("layer2", w, 2 * w, 2)
        self.add_layer("layer3", 2 * w, 4 * w, 2, relu=False)
        self.add_layer("layer4", 4 * w, 8 * w, 2, relu=False)
        self.add_layer("detail3", 2 * w, 2 * w, relu=False)
        self.add_layer("detail4", 2 * w, 2 * w, relu=False)
        self.compress3 = ConvBatchNorm(4 * w, 2 * w, 1)
        self.compress4 = ConvBatchNorm(8 * w, 2 * w, 1)
        self.down3 = ConvBatchNorm(2 * w, 4 * w, 3, 2)
        self.down4_1 = ConvBatchNorm(2 * w, 4 * w, 3, 2)
        self.down4_2 = ConvBatchNorm(4 * w, 8 * w, 3, 2)
        self.detail5_block0 = bottleneck(2 * w, 2 * w)
        self.layer5_block0 = bottleneck(8 * w, 8 * w, 2)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The detail branch after the first exchange and at its end (stride 8); the context branch's end (64)."""
        x = self.run("layer2", self.run("layer1", self.stem2(self.stem1(image))))
        detail, context = self.run("detail3", x), self.run("layer3", x)
        x = context + self.down3(F.relu(detail))
        early = detail + upsample(self.compress3(F.relu(context)), detail.shape[2:])
        detail, context = self.run("detail4", F.relu(early)), self.run("layer4", F.relu(x))
        x = context + self.down4_2(F.relu(self.down4_1(F.relu(detail))))
        detail = detail + upsample(self.compress4(F.relu(context)), detail.shape[2:])
        return early, self.detail5_block0(F.relu(detail)), self.layer5_block0(F.relu(x))


class Pyramid(nn.Module):
    """A map and four means of it, each through its own NormReLUConv, refined and merged, beside a shortcut."""

    def __init__(self, channels: int, width: int, features: int):
        super().__init__()
        for i in range(5):
            self.add_module(f"scale{i}", NormReLUConv(channels, width))
        self.compress = NormReLUConv(5 * width, features)
        self.shortcut = NormReLUConv(channels, features)

    def refined(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The five scales as they are merged."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, h, w]; the zeros of a mean's padding count."""
        means = [F.avg_pool2d(x, 2 * n + 1, n, n) for n in (2, 4, 8)]
        maps = [x, *means, F.adaptive_avg_pool2d(x, 1)]
        maps = [self.get_submodule(f"scale{i}")(y) for i, y in enumerate(maps)]
        maps = self.refined([upsample(y, x.shape[2:]) for y in maps])
        return self.compress(torch.cat(maps, 1)) + self.shortcut(x)


class DeepAggregationPyramid(Pyramid):
    """DAPPM: scale i is refined on top of scale i - 1."""

    def __init__(self, channels: int, width: int, features: int):
        super().__init__(channels, width, features)
        for i in range(1, 5):
            self.add_module(f"process{i}", NormReLUConv(width, width, 3))

    def refined(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """One after the other."""
        for i in range(1, 5):
            maps[i] = self.get_submodule(f"process{i}")(maps[i] + maps[i - 1])
        return maps


class DDRNet(nn.Module):
    """The whole network; the options are those of the Flax one.

    Args:
        num_classes: Channels of the logits.
        width: Channels of the stem.
        pyramid_width: Channels of the pyramid's scales.
        head_width: Channels inside of the heads.
    """

    def __init__(
        self, num_classes: int, width: int = 32, pyramid_width: int = 128, head_width: int = 64
    ):
        super().__init__()
        self.backbone = DualResolutionBackbone(width)
        self.pyramid = DeepAggregationPyramid(16 * width, pyramid_width, 4 * width)
        self.classifier = Head(4 * width, head_width, num_classes)
        self.aux = Head(2 * width, head_width, num_classes)
        init_weights(self)

    def outputs(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """What training needs: "logits" and the auxiliary head's "aux", both [b, k, ceil(h / 8), ceil(w / 8)]."""
        early, detail, context = self.backbone(image)
        x = detail + upsample(self.pyramid(context), detail.shape[2:])
        return {"logits": self.classifier(x), "aux": self.aux(early)}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / 8), ceil(w / 8)]; the auxiliary head is idle."""
        _, detail, context = self.backbone(image)
        return self.classifier(detail + upsample(self.pyramid(context), detail.shape[2:]))
