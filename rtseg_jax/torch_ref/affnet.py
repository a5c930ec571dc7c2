"""AFFNet, Fast-SCNN and SPSSNet in plain PyTorch, NCHW (Kuang et al., "[...] Attention Feature Fusion")."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import (
    ChainedResidualPooling,
    ConvBatchNorm,
    ConvBatchNormReLU,
    init_weights,
    upsample,
)
from rtseg_jax.torch_ref.fast_scnn import DepthwiseSeparableConv, FastSCNNBackbone

FUSIONS = ("concat_ewa", "ewa_concat", "ewa", "concat", "fpn_pan")
FINALS = ("concat", "add")


class ConvolutionalBlockAttention(nn.Module):
    """CBAM: channel attention, then spatial attention (Eqs. 1 and 2, Fig. 4).

    Args:
        channels: Channels of the input.
        reduction: Channels over those of the hidden layer.
        residual: Add the input to the result.
    """

    def __init__(self, channels: int, reduction: int = 16, residual: bool = False):
        super().__init__()
        self.residual = residual
        self.hidden = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.output = nn.Conv2d(channels // reduction, channels, 1, bias=False)
        self.spatial = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def perceptron(self, pooled: torch.Tensor) -> torch.Tensor:
        """The MLP that both pools share: [b, c, 1, 1] -> the same."""
        return self.output(F.relu(self.hidden(pooled)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        mean, top = x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True)
        y = x * torch.sigmoid(self.perceptron(mean) + self.perceptron(top))
        maps = torch.cat([y.mean(dim=1, keepdim=True), y.amax(dim=1, keepdim=True)], dim=1)
        y = y * torch.sigmoid(self.spatial(maps))
        return x + y if self.residual else y


class AttentionFeatureFusion(nn.Module):
    """AFFM: an attention branch and a pooling branch over four maps (Figs. 3, 5 and 6a, Table I).

    Args:
        channels: Channels of the four maps.
        fusion: "concat_ewa", "ewa_concat", "ewa" or "concat".
        final: "concat" or "add".
        attention_residual: Whether the CBAMs add their input.
        reduction: By how much the CBAMs narrow their hidden layer.
    """

    def __init__(
        self,
        channels: Sequence[int],
        fusion: str,
        final: str,
        attention_residual: bool,
        reduction: int,
    ):
        super().__init__()
        self.fusion, self.final = fusion, final
        total = sum(channels)
        for i, c in enumerate(channels, start=1):
            self.add_module(
                f"attention{i}", ConvolutionalBlockAttention(c, reduction, attention_residual)
            )
            if fusion in ("ewa_concat", "ewa"):
                self.add_module(f"attention_conv{i}", ConvBatchNorm(c, 128, 1))
            if fusion != "ewa_concat":
                self.add_module(f"pooling_conv{i}", ConvBatchNorm(c, 128, 1))
        if fusion == "ewa_concat":
            self.pooling_merge = ConvBatchNormReLU(total, 128, 3)
        else:
            merged = 128 if fusion == "ewa" else total
            self.attention_merge = ConvBatchNormReLU(merged, 128, 3)
        if fusion == "concat":
            self.pooling_merge = ConvBatchNormReLU(4 * 128, 128, 1)
        if final == "concat":
            self.merge = ConvBatchNormReLU(2 * 128, 128, 1)

    def attention_branch(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """The maps weighted by attention, as one of 128 channels at the first's size."""
        size = maps[0].shape[2:]
        maps = [self.get_submodule(f"attention{i}")(x) for i, x in enumerate(maps, start=1)]
        if self.fusion in ("concat_ewa", "concat"):
            return self.attention_merge(torch.cat([upsample(x, size) for x in maps], dim=1))
        maps = [self.get_submodule(f"attention_conv{i}")(x) for i, x in enumerate(maps, start=1)]
        added = sum(upsample(x, size) for x in maps)
        return self.attention_merge(added) if self.fusion == "ewa" else added

    def pooling_branch(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """The maps after a 5x5 max pool, as one of 128 channels at the first's size."""
        size = maps[0].shape[2:]
        if self.fusion != "ewa_concat":
            maps = [self.get_submodule(f"pooling_conv{i}")(x) for i, x in enumerate(maps, start=1)]
        maps = [upsample(F.max_pool2d(x, 5, stride=1, padding=2), size) for x in maps]
        if self.fusion in ("concat_ewa", "ewa"):
            return sum(maps)
        return self.pooling_merge(torch.cat(maps, dim=1))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps -> [b, 128, h, w], the size of the first."""
        attended, pooled = self.attention_branch(maps), self.pooling_branch(maps)
        if self.final == "add":
            return attended + pooled
        return self.merge(torch.cat([attended, pooled], dim=1))


class PyramidFeatureFusion(nn.Module):
    """FPN+PAN (Table II, Fig. 6b): top down at 64 channels, bottom up at 96.

    Args:
        channels: Channels of the four maps.
        attention_residual: Whether the CBAMs add their input.
        reduction: By how much the CBAMs narrow their hidden layer.
    """

    def __init__(self, channels: Sequence[int], attention_residual: bool, reduction: int):
        super().__init__()
        for i, c in enumerate(channels, start=1):
            self.add_module(
                f"attention{i}", ConvolutionalBlockAttention(c, reduction, attention_residual)
            )
        c1, c2, c3, c4 = channels
        self.top3 = ConvBatchNormReLU(c4 + c3, 64, 3)
        self.top2 = ConvBatchNormReLU(64 + c2, 64, 3)
        self.top1 = ConvBatchNormReLU(64 + c1, 64, 3)
        self.bottom2 = ConvBatchNormReLU(64 + 64, 96, 1)
        self.bottom3 = ConvBatchNormReLU(96 + 64, 96, 1)
        self.merge = ConvBatchNormReLU(96, 128, 3)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps -> [b, 128, h, w], the size of the first."""

        def halve(x: torch.Tensor) -> torch.Tensor:
            return F.max_pool2d(x, 3, stride=2, padding=1)

        f1, f2, f3, f4 = (
            self.get_submodule(f"attention{i}")(x) for i, x in enumerate(maps, start=1)
        )
        top3 = self.top3(torch.cat([f4, f3], dim=1))
        top2 = self.top2(torch.cat([upsample(top3, f2.shape[2:]), f2], dim=1))
        top1 = self.top1(torch.cat([upsample(top2, f1.shape[2:]), f1], dim=1))
        bottom2 = self.bottom2(torch.cat([halve(top1), top2], dim=1))
        bottom3 = self.bottom3(torch.cat([halve(bottom2), top3], dim=1))
        return self.merge(upsample(bottom3, f1.shape[2:]))


class FeatureFusion(nn.Module):
    """Fast-SCNN's fusion of its deep and its shallow map (its Table 3)."""

    def __init__(self, channels: Sequence[int], align_corners: bool = False):
        super().__init__()
        deep, self.align_corners = channels[3], align_corners
        self.depthwise = ConvBatchNormReLU(deep, deep, 3, groups=deep)
        self.deep = ConvBatchNorm(deep, 128, 1, bias=True)
        self.shallow = ConvBatchNorm(channels[0], 128, 1, bias=True)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps, of which two count -> [b, 128, h, w], the size of the first."""
        deep = upsample(maps[3], maps[0].shape[2:], self.align_corners)
        deep = self.deep(self.depthwise(deep))
        return F.relu(self.shallow(maps[0]) + deep)


class StagePooling(nn.Module):
    """SPSSNet's fusion (Fig. 7): 1x1 to 128 channels, chained residual pooling, sum."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        for i, c in enumerate(channels, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(c, 128, 1, bias=False))
            self.add_module(f"pooling{i}", ChainedResidualPooling(128))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Four maps -> [b, 128, h, w], the size of the first."""
        wide = (self.get_submodule(f"conv{i}")(x) for i, x in enumerate(maps, start=1))
        pooled = (self.get_submodule(f"pooling{i}")(x) for i, x in enumerate(wide, start=1))
        return F.relu(sum(upsample(x, maps[0].shape[2:]) for x in pooled))


class Classifier(nn.Sequential):
    """Two depth-wise separable convolutions, dropout, a convolution: 128 channels -> classes."""

    def __init__(self, num_classes: int, kernel_size: int, dropout: float):
        super().__init__()
        self.dsconv1 = DepthwiseSeparableConv(128, 128)
        self.dsconv2 = DepthwiseSeparableConv(128, 128)
        self.dropout = nn.Dropout(dropout)
        self.conv = nn.Conv2d(128, num_classes, kernel_size, padding=kernel_size // 2)


class _Network(nn.Module):
    """What the three networks share: trunk, fusion, classifier."""

    def __init__(self, backbone: nn.Module, fusion: nn.Module, classifier: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.fusion = fusion
        self.classifier = classifier
        init_weights(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / 8), ceil(w / 8)]."""
        return self.classifier(self.fusion(self.backbone(image)))


class AFFNet(_Network):
    """AFFNet (Fig. 1) and the networks of its Tables I and II.

    Args:
        num_classes: Channels of the logits.
        fusion: "concat_ewa", "ewa_concat", "ewa", "concat" or "fpn_pan".
        final: How the fusion's two branches meet, "concat" or "add".
        attention_residual: Add each CBAM's input to its result.
        cbam_reduction: Channels over those of CBAM's hidden layer.
        downsample: "lightweight" or "fast_scnn".
        groups: Groups of the lightweight downsampling's 1x1 convolutions.
        deep: "paper-table" or "text".
        dropout: Rate before the last convolution.

    Raises:
        ValueError: unknown fusion, final, downsample or deep.
    """

    def __init__(
        self,
        num_classes: int,
        fusion: str = "concat_ewa",
        final: str = "concat",
        attention_residual: bool = False,
        cbam_reduction: int = 16,
        downsample: str = "lightweight",
        groups: int = 1,
        deep: str = "paper-table",
        dropout: float = 0.1,
    ):
        if fusion not in FUSIONS:
            raise ValueError(f"unknown fusion '{fusion}'; choose one of {', '.join(FUSIONS)}")
        if final not in FINALS:
            raise ValueError(f"unknown final '{final}'; choose one of {', '.join(FINALS)}")
        backbone = FastSCNNBackbone(downsample, groups, deep)
        attention = (attention_residual, cbam_reduction)
        super().__init__(
            backbone,
            PyramidFeatureFusion(backbone.channels, *attention)
            if fusion == "fpn_pan"
            else AttentionFeatureFusion(backbone.channels, fusion, final, *attention),
            Classifier(num_classes, 3, dropout),
        )


class FastSCNN(_Network):
    """Fast-SCNN (Poudel et al., BMVC 2019, Table 1), without its auxiliary heads.

    Args:
        num_classes: Channels of the logits.
        dropout: Rate before the last convolution.
        align_corners: Of every resizing inside.
        stem_padding: Of the first convolution.
    """

    def __init__(
        self,
        num_classes: int,
        dropout: float = 0.1,
        align_corners: bool = False,
        stem_padding: int = 1,
    ):
        backbone = FastSCNNBackbone(align_corners=align_corners, stem_padding=stem_padding)
        fusion = FeatureFusion(backbone.channels, align_corners)
        super().__init__(backbone, fusion, Classifier(num_classes, 1, dropout))


class SPSSNet(_Network):
    """Fast-SCNN with stage pooling for its fusion (Section IV-C, Fig. 7)."""

    def __init__(self, num_classes: int, dropout: float = 0.1):
        backbone = FastSCNNBackbone()
        super().__init__(
            backbone, StagePooling(backbone.channels), Classifier(num_classes, 1, dropout)
        )
