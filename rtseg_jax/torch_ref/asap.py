"""ASAP in plain PyTorch, NCHW (Park et al., Fig. 1), with the ablations of its Tables II and III."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ConvBatchNorm, ConvBatchNormReLU, init_weights, upsample
from rtseg_jax.torch_ref.resnet import ResNet

OPTIONS = {
    "fusion": ("ffdn", "ln", "in", "general", "none"),
    "attention": ("vertical", "horizontal", "conventional", "none"),
    "merge": ("cat", "sum"),
    "fuse_stride": (4, 8),
    "norm_mix": ("concat", "sum", "rho"),
    "layer_norm_axes": ("chw", "c"),
}


def _check(**options: str | int) -> None:
    for name, value in options.items():
        if value not in OPTIONS[name]:
            choices = ", ".join(map(str, OPTIONS[name]))
            raise ValueError(f"unknown {name} '{value}'; choose one of {choices}")


class FeaturePyramid(nn.Module):
    """1x1 laterals and a top-down path of sums; P1 to P4 out of the four stages."""

    def __init__(self, channels: list[int], features: int):
        super().__init__()
        for i, c in enumerate(channels, start=1):
            self.add_module(f"lateral{i}", ConvBatchNormReLU(c, features, 1))

    def forward(self, stages: list[torch.Tensor]) -> list[torch.Tensor]:
        """Finest first, in and out."""
        levels = [self.get_submodule(f"lateral{i}")(x) for i, x in enumerate(stages, start=1)]
        for i in (2, 1, 0):
            levels[i] = levels[i] + upsample(levels[i + 1], levels[i].shape[2:])
        return levels


class FeatureFusionDifferentNorms(nn.Module):
    """A 1x1 convolution under layer and instance normalisation (Eqs. 1 and 2, Fig. 2)."""

    def __init__(self, channels: int, features: int, norm: str, mix: str, axes: str):
        super().__init__()
        self.norm, self.mix, self.axes = norm, mix, axes
        width = features // 2 if norm == "ffdn" and mix == "concat" else features
        self.conv = nn.Conv2d(channels, width, 1)
        if norm == "ffdn" and mix == "rho":
            self.rho = nn.Parameter(torch.full((width,), 0.9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, h, w]."""
        y = self.conv(x)
        if self.axes == "chw":
            layer = F.layer_norm(y, y.shape[1:])
        else:
            layer = F.layer_norm(y.movedim(1, -1), y.shape[1:2]).movedim(-1, 1)
        instance = F.instance_norm(y)
        if self.norm != "ffdn":
            return layer if self.norm == "ln" else instance
        if self.mix == "concat":
            return torch.cat([layer, instance], 1)
        if self.mix == "sum":
            return layer + instance
        rho = self.rho.clamp(0, 1)[:, None, None]
        return rho * instance + (1 - rho) * layer


class GeneralFusion(nn.Module):
    """A 1x1 convolution, its channels weighted by a second one of their means ("General" in Table III)."""

    def __init__(self, channels: int, features: int, residual: bool):
        super().__init__()
        self.residual = residual
        self.conv = ConvBatchNormReLU(channels, features, 1)
        self.attention = ConvBatchNorm(features, features, 1, activation=torch.sigmoid)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, channels, h, w] -> [b, features, h, w]."""
        x = self.conv(x)
        y = x * self.attention(F.adaptive_avg_pool2d(x, 1))
        return x + y if self.residual else y


class DirectionalSelfAttention(nn.Module):
    """Self-attention among columns, rows or cells (Eqs. 3 and 4, Fig. 3)."""

    def __init__(self, channels: int, direction: str, reduction: int, gamma: bool):
        super().__init__()
        self.direction = direction
        self.query = nn.Conv2d(channels, channels // reduction, 1)
        self.key = nn.Conv2d(channels, channels // reduction, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(())) if gamma else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> the same."""
        pooled = x
        if self.direction != "conventional":
            pooled = x.mean(2 if self.direction == "vertical" else 3, keepdim=True)
        query, key, value = (m(pooled).flatten(2) for m in (self.query, self.key, self.value))
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        context = (value @ weights.transpose(1, 2)).reshape(pooled.shape)
        return x + self.gamma * context


class ASAP(nn.Module):
    """The whole network; the options are those of the Flax one.

    Args:
        num_classes: Channels of the logits.
        fusion: "ffdn", "ln", "in", "general" or "none".
        attention: "vertical", "horizontal", "conventional" or "none".
        merge: "cat" or "sum", of the levels.
        fpn_width: Channels of the levels.
        fuse_width: Channels after the fusion.
        fuse_stride: 8 or 4.
        conv_blocks: Channels of the 3x3 blocks before the classifier.
        norm_mix: "concat", "sum" or "rho".
        layer_norm_axes: "chw" or "c".
        general_residual: Add the unweighted map in "general".
        attention_reduction: Channels over those of queries and keys.
        attention_gamma: Weight the attention by a parameter that starts at 0.

    Raises:
        ValueError: an option's value that is not listed here.
    """

    def __init__(
        self,
        num_classes: int,
        fusion: str = "ffdn",
        attention: str = "vertical",
        merge: str = "cat",
        fpn_width: int = 64,
        fuse_width: int = 256,
        fuse_stride: int = 8,
        conv_blocks: tuple[int, ...] = (256,),
        norm_mix: str = "concat",
        layer_norm_axes: str = "chw",
        general_residual: bool = False,
        attention_reduction: int = 4,
        attention_gamma: bool = False,
    ):
        super().__init__()
        _check(
            fusion=fusion,
            attention=attention,
            merge=merge,
            fuse_stride=fuse_stride,
            norm_mix=norm_mix,
            layer_norm_axes=layer_norm_axes,
        )
        self.grid = {4: 0, 8: 1}[fuse_stride]
        self.merge = merge
        self.backbone = ResNet(18)
        self.pyramid = FeaturePyramid([64, 128, 256, 512], fpn_width)
        channels = 4 * fpn_width if merge == "cat" else fpn_width
        self.fusion = nn.Identity()
        if fusion == "general":
            self.fusion = GeneralFusion(channels, fuse_width, general_residual)
        elif fusion != "none":
            self.fusion = FeatureFusionDifferentNorms(
                channels, fuse_width, fusion, norm_mix, layer_norm_axes
            )
        if fusion != "none":
            channels = fuse_width
        self.attention = nn.Identity()
        if attention != "none":
            self.attention = DirectionalSelfAttention(
                channels, attention, attention_reduction, attention_gamma
            )
        self.conv_blocks = len(conv_blocks)
        for i, width in enumerate(conv_blocks, start=1):
            self.add_module(f"block{i}", ConvBatchNormReLU(channels, width))
            channels = width
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.aux3 = nn.Conv2d(fpn_width, num_classes, 1)
        self.aux4 = nn.Conv2d(fpn_width, num_classes, 1)
        init_weights(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / fuse_stride), ceil(w / fuse_stride)]; the two aux heads are idle."""
        features = self.backbone(image)
        levels = self.pyramid([features[stride] for stride in (4, 8, 16, 32)])
        maps = [upsample(x, levels[self.grid].shape[2:]) for x in levels]
        x = torch.cat(maps, 1) if self.merge == "cat" else sum(maps)
        x = self.attention(self.fusion(x))
        for i in range(1, self.conv_blocks + 1):
            x = self.get_submodule(f"block{i}")(x)
        return self.classifier(x)
