"""ESPNet in plain PyTorch, NCHW (Mehta et al., ECCV 2018, Fig. 4)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import BatchNormPReLU, ConvBatchNormPReLU


class ESPModule(nn.Module):
    """A reduction, dilated convolutions side by side, and their hierarchical sums.

    Args:
        channels: Channels of the input.
        features: Channels of the output.
        stride: 2 makes the reduction a strided 3x3 convolution.
    """

    def __init__(self, channels: int, features: int, stride: int = 1):
        super().__init__()
        count = min(features, 5)
        width = features // count
        kernel = 1 if stride == 1 else 3
        self.residual = stride == 1 and channels == features
        self.reduce = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        self.dilated1 = nn.Conv2d(
            width, features - (count - 1) * width, 3, padding=1, dilation=1, bias=False
        )
        self.dilations = [2**i for i in range(1, count)]
        for d in self.dilations:
            conv = nn.Conv2d(width, width, 3, padding=d, dilation=d, bias=False)
            self.add_module(f"dilated{d}", conv)
        self.norm = BatchNormPReLU(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, ceil(h / stride), ceil(w / stride)]."""
        reduced = self.reduce(x)
        maps = [self.dilated1(reduced)]
        for i, d in enumerate(self.dilations):
            y = self.get_submodule(f"dilated{d}")(reduced)
            maps.append(y + maps[-1] if i else y)
        y = torch.cat(maps, dim=1)
        return self.norm(x + y if self.residual else y)


class ESPNetBackbone(nn.Module):
    """The encoder's maps at strides 2, 4 and 8.

    Args:
        blocks: Residual modules of the second and the third stage.
    """

    def __init__(self, blocks: tuple[int, int] = (2, 8)):
        super().__init__()
        self.stem = ConvBatchNormPReLU(3, 16, stride=2)
        self.inject1 = BatchNormPReLU(19)
        self.down1 = ESPModule(19, 64, stride=2)
        self.blocks = blocks
        for i in range(blocks[0]):
            self.add_module(f"block1_{i + 1}", ESPModule(64, 64))
        self.inject2 = BatchNormPReLU(131)
        self.down2 = ESPModule(131, 128, stride=2)
        for i in range(blocks[1]):
            self.add_module(f"block2_{i + 1}", ESPModule(128, 128))
        self.inject3 = BatchNormPReLU(256)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[b, 3, h, w] -> 16 and 19 channels at stride 2, 131 at stride 4, 256 at stride 8."""
        half = F.avg_pool2d(image, 3, 2, 1)
        quarter = F.avg_pool2d(half, 3, 2, 1)
        stem = self.stem(image)
        stride2 = self.inject1(torch.cat([stem, half], dim=1))
        x = first = self.down1(stride2)
        for i in range(self.blocks[0]):
            x = self.get_submodule(f"block1_{i + 1}")(x)
        stride4 = self.inject2(torch.cat([x, first, quarter], dim=1))
        x = first = self.down2(stride4)
        for i in range(self.blocks[1]):
            x = self.get_submodule(f"block2_{i + 1}")(x)
        return stem, stride2, stride4, self.inject3(torch.cat([first, x], dim=1))


class ESPNetDecoder(nn.Module):
    """Three doublings by transposed convolutions, each cropped to the map that it meets."""

    def __init__(self, classes: int, skip: int):
        super().__init__()
        self.norm8 = nn.BatchNorm2d(classes, eps=1e-3)
        self.up8 = nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)
        self.lateral = nn.Conv2d(131, classes, 1, bias=False)
        self.norm4 = BatchNormPReLU(2 * classes)
        self.merge = ESPModule(2 * classes, classes)
        self.up4 = nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)
        self.norm2 = BatchNormPReLU(classes)
        self.conv = ConvBatchNormPReLU(classes + skip, classes)
        self.classifier = nn.ConvTranspose2d(classes, classes, 2, stride=2, bias=False)

    def forward(
        self,
        scores: torch.Tensor,
        quarter: torch.Tensor,
        half: torch.Tensor,
        image: torch.Tensor,
    ) -> torch.Tensor:
        """Scores [b, k, h / 8, w / 8] and the encoder's maps -> logits of the image's size."""

        def cropped(x, like):
            return x[:, :, : like.shape[2], : like.shape[3]]

        x = cropped(self.up8(self.norm8(scores)), quarter)
        x = self.merge(self.norm4(torch.cat([self.lateral(quarter), x], dim=1)))
        x = self.norm2(cropped(self.up4(x), half))
        return cropped(self.classifier(self.conv(torch.cat([x, half], dim=1))), image)


class ESPNet(nn.Module):
    """ESPNet, or its encoder alone.

    Args:
        num_classes: Channels of the logits.
        blocks: Residual modules of the second and the third stage.
        skip: "stem", or "inject" for the stem's map with the image in it.
        decoder: Whether there is one; without, the logits have output stride 8.

    Raises:
        ValueError: unknown skip.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: tuple[int, int] = (2, 8),
        skip: str = "stem",
        decoder: bool = True,
    ):
        super().__init__()
        if skip not in ("stem", "inject"):
            raise ValueError(f"unknown skip '{skip}'; choose one of stem, inject")
        self.skip = skip
        self.backbone = ESPNetBackbone(blocks)
        self.classifier = nn.Conv2d(256, num_classes, 1, bias=False)
        if decoder:
            self.decoder = ESPNetDecoder(num_classes, 16 if skip == "stem" else 19)
        else:
            self.decoder = None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, h, w], or at stride 8 without a decoder."""
        stem, injected, quarter, eighth = self.backbone(image)
        scores = self.classifier(eighth)
        if self.decoder is None:
            return scores
        half = stem if self.skip == "stem" else injected
        return self.decoder(scores, quarter, half, image)
