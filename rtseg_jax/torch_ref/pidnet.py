"""PIDNet-S in plain PyTorch, NCHW (Xu et al., CVPR 2023)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ConvBatchNorm, init_weights, upsample
from rtseg_jax.torch_ref.ddrnet import Head, Layers, NormReLUConv, Pyramid, bottleneck


class PixelAttentionFusion(nn.Module):
    """Pag: both maps are compared in `width` channels; the product's sum weighs y against x."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.x = ConvBatchNorm(channels, width, 1)
        self.y = ConvBatchNorm(channels, width, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x [b, c, h, w] and y [b, c, h2, w2] -> [b, c, h, w]."""
        similarity = (self.x(x) * upsample(self.y(y), x.shape[2:])).sum(1, keepdim=True)
        return torch.lerp(x, upsample(y, x.shape[2:]), similarity.sigmoid())


class ParallelAggregationPyramid(Pyramid):
    """PAPPM: four scales on top of the first one, refined by one grouped convolution."""

    def __init__(self, channels: int, width: int, features: int):
        super().__init__(channels, width, features)
        self.process = NormReLUConv(4 * width, 4 * width, 3, groups=4)

    def refined(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The first one, and the four others as one."""
        first, *others = maps
        return [first, self.process(torch.cat([first + y for y in others], 1))]


class LightBoundaryFusion(nn.Module):
    """Light-Bag: where D sees a boundary, P goes into both convolutions, elsewhere I does."""

    def __init__(self, channels: int):
        super().__init__()
        self.p = ConvBatchNorm(channels, channels, 1)
        self.i = ConvBatchNorm(channels, channels, 1)

    def forward(self, p: torch.Tensor, i: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        """Three maps [b, c, h, w] -> one."""
        boundary = d.sigmoid()
        return self.p(p + i - boundary * i) + self.i(i + boundary * p)


class ThreeBranchBackbone(Layers):
    """P ("detail"), I ("layer") and D ("boundary")."""

    def __init__(self, w: int):
        super().__init__()
        self.add_stem(w)
        self.add_layer("layer1", w, w)
        self.add_layer("layer2", w, 2 * w, 2)
        self.add_layer("layer3", 2 * w, 4 * w, 2, blocks=3)
        self.add_layer("layer4", 4 * w, 8 * w, 2, blocks=3)
        self.layer5_block0 = bottleneck(8 * w, 8 * w, 2)
        self.layer5_block1 = bottleneck(16 * w, 8 * w)
        self.add_layer("detail3", 2 * w, 2 * w, relu=False)
        self.add_layer("detail4", 2 * w, 2 * w, relu=False)
        self.detail5_block0 = bottleneck(2 * w, 2 * w)
        self.add_layer("boundary3", 2 * w, w, blocks=1, relu=False)
        self.boundary4_block0 = bottleneck(w, w)
        self.boundary5_block0 = bottleneck(2 * w, 2 * w)
        for stage, channels, boundary in ((3, 4 * w, w), (4, 8 * w, 2 * w)):
            self.add_module(f"compress{stage}", ConvBatchNorm(channels, 2 * w, 1))
            self.add_module(f"pag{stage}", PixelAttentionFusion(2 * w, w))
            self.add_module(f"diff{stage}", ConvBatchNorm(channels, boundary, 3))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The ends of P, I and D, then the maps of P and D that the training heads read."""
        x = self.run("layer2", self.run("layer1", self.stem2(self.stem1(image))))
        p = d = x
        read = []
        for stage in (3, 4):
            p, d = self.run(f"detail{stage}", p), self.run(f"boundary{stage}", d)
            x = self.run(f"layer{stage}", x)
            compress, pag, diff = (
                self.get_submodule(f"{name}{stage}") for name in ("compress", "pag", "diff")
            )
            p = F.relu(pag(p, compress(x)))
            d = F.relu(d + upsample(diff(x), d.shape[2:]))
            read.append((p, d))
        ends = (
            self.run(f"{name}5", y) for name, y in (("detail", p), ("layer", x), ("boundary", d))
        )
        return *ends, read[0][0], read[1][1]


class PIDNet(nn.Module):
    """The whole network; the options are those of the Flax one.

    Args:
        num_classes: Channels of the logits.
        width: Channels of the stem.
        pyramid_width: Channels of the pyramid's scales.
        head_width: Channels inside of the heads for classes.
    """

    def __init__(
        self, num_classes: int, width: int = 32, pyramid_width: int = 96, head_width: int = 128
    ):
        super().__init__()
        self.backbone = ThreeBranchBackbone(width)
        self.pyramid = ParallelAggregationPyramid(16 * width, pyramid_width, 4 * width)
        self.fusion = LightBoundaryFusion(4 * width)
        self.classifier = Head(4 * width, head_width, num_classes)
        self.aux = Head(2 * width, head_width, num_classes)
        self.boundary = Head(2 * width, width, 1)
        init_weights(self)

    def outputs(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """What training needs: "logits", "aux" and "boundary" (one channel), all at ceil(h / 8), ceil(w / 8)."""
        p, i, d, early_p, late_d = self.backbone(image)
        return {
            "logits": self._logits(p, i, d),
            "aux": self.aux(early_p),
            "boundary": self.boundary(late_d),
        }

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / 8), ceil(w / 8)]; the two training heads are idle."""
        return self._logits(*self.backbone(image)[:3])

    def _logits(self, p: torch.Tensor, i: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.fusion(p, upsample(self.pyramid(i), p.shape[2:]), d))
