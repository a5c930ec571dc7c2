"""CARNet in plain PyTorch, NCHW, on ResNet and MobileNetV2 (Hao et al., IEEE Access 2020, Figs. 2 and 3)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.blocks import ChainedResidualPooling, init_weights, upsample
from rtseg_jax.torch_ref.mobilenet import MobileNetV2
from rtseg_jax.torch_ref.resnet import ResNet

BACKBONES = ("resnet50", "resnet101", "resnet152", "mobilenet")
STRIDES = (32, 16, 8, 4)  # of CARModule-1 to CARModule-4


class Cascade(nn.Sequential):
    """1x1 convolutions without bias, one after the other; `widths` are the channels before, between and after."""

    def __init__(self, *widths: int):
        super().__init__()
        for i in range(1, len(widths)):
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], 1, bias=False))


class ParallelSum(nn.Module):
    """Several maps of one size, each through its own 1x1 convolution without bias, added."""

    def __init__(self, channels: tuple[int, ...], features: int):
        super().__init__()
        for i, c in enumerate(channels, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(c, features, 1, bias=False))

    def forward(self, maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """[b, c_i, h, w], ... -> [b, features, h, w]."""
        return sum(conv(x) for conv, x in zip(self.children(), maps, strict=True))


class ContextualAttentionRefinement(nn.Module):
    """CARModule: sigma_a * F1 + F2 (Eqs. 1 and 2), and the semantic vector's logits (Eq. 6).

    Args:
        num_classes: Length of the semantic vector.
        channels: Channels of both inputs.
        hidden: Channels after W.
        attention_hidden: Channels after W1.
        semantic_hidden: Channels after W3.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        hidden: int,
        attention_hidden: int,
        semantic_hidden: int,
    ):
        super().__init__()
        self.context = nn.Conv2d(2 * channels, hidden, 1, bias=False)
        self.attention = Cascade(hidden, attention_hidden, channels)
        self.semantic = Cascade(hidden, semantic_hidden, num_classes)

    def forward(
        self, low: torch.Tensor, high: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Two maps [b, c, h, w] -> the fused one, and in training the logits [b, k]."""
        pooled = [F.adaptive_avg_pool2d(x, 1) for x in (low, high)]
        z = F.relu(self.context(torch.cat(pooled, dim=1)))
        fused = torch.sigmoid(self.attention(z)) * low + high
        return fused, self.semantic(z).flatten(1) if self.training else None


class CARNet(nn.Module):
    """Encoder, four CARModules from 1/32 to 1/4 with chained residual pooling, 3x3 classifier (Fig. 2).

    Args:
        num_classes: Channels of the logits.
        backbone: "resnet50", "resnet101", "resnet152" or "mobilenet".
        num_modules: CARModules from 1/32 on, 0 to 4.
        crp: Chained residual pooling after each of them.
        hidden: Channels inside a CARModule, as are attention_hidden and semantic_hidden.
        attention_hidden: See hidden.
        semantic_hidden: See hidden.
        global_hidden: Channels between the global feature's two convolutions; 0 for one convolution.
        dropout: Rate on the encoder's maps at 1/32 and 1/16.
        frozen_statistics: Keep the encoder's BatchNorms in evaluation mode.
        expand_first: Whether MobileNetV2 has the first 1x1 convolution, which published weights lack.

    Raises:
        ValueError: unknown backbone, or an impossible number of modules.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        num_modules: int = 4,
        crp: bool = True,
        hidden: int = 128,
        attention_hidden: int = 128,
        semantic_hidden: int = 128,
        global_hidden: int = 128,
        dropout: float = 0.5,
        frozen_statistics: bool = False,
        expand_first: bool = True,
    ):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone '{backbone}'; choose one of {', '.join(BACKBONES)}")
        if num_modules not in range(5):
            raise ValueError(f"num_modules {num_modules} must lie in 0-4")
        self.num_modules = num_modules
        self.frozen_statistics = frozen_statistics
        self.mobile = backbone == "mobilenet"
        if self.mobile:
            self.backbone = MobileNetV2(expand_first)
        else:
            self.backbone = ResNet(int(backbone.removeprefix("resnet")))
        self.dropout = nn.Dropout(dropout)
        channels = self.backbone.channels

        for k, stride in enumerate(STRIDES[: max(num_modules, 1)], start=1):
            if self.mobile:
                adjust = ParallelSum(channels[stride], 256)
            elif stride == 32:
                adjust = Cascade(2048, 1024, 256)
            else:
                adjust = Cascade(channels[stride], 256, 256)
            self.add_module(f"adjust{k}", adjust)
        if num_modules > 0:
            last = channels[32][-1] if self.mobile else channels[32]
            widths = (last, global_hidden, 256) if global_hidden else (last, 256)
            self.global_feature = Cascade(*widths)
        for k in range(1, num_modules + 1):
            module = ContextualAttentionRefinement(
                num_classes, 256, hidden, attention_hidden, semantic_hidden
            )
            self.add_module(f"refinement{k}", module)
            self.add_module(f"pooling{k}", ChainedResidualPooling(256) if crp else nn.Identity())
            if k < num_modules:
                self.add_module(f"post{k}", nn.Conv2d(256, 256, 1, bias=False))
        self.classifier = nn.Conv2d(256, num_classes, 3, padding=1)
        init_weights(self.backbone)

    def train(self, mode: bool = True) -> "CARNet":
        """As nn.Module's, but for statistics that are frozen."""
        super().train(mode)
        if self.frozen_statistics:
            self.backbone.eval()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / 4), ceil(w / 4)], coarser with fewer than four modules."""
        features = self.backbone(image)

        def adjusted(k: int) -> torch.Tensor:
            x = features[STRIDES[k - 1]]
            if k <= 2:
                x = tuple(map(self.dropout, x)) if self.mobile else self.dropout(x)
            return self.get_submodule(f"adjust{k}")(x)

        if self.num_modules == 0:
            return self.classifier(adjusted(1))
        last = features[32][-1] if self.mobile else features[32]
        x = self.global_feature(F.adaptive_avg_pool2d(last, 1))
        for k in range(1, self.num_modules + 1):
            low = adjusted(k)
            if k == 1:
                high = x.expand_as(low)
            else:
                high = self.get_submodule(f"post{k - 1}")(x)
                high = upsample(high, low.shape[2:], align_corners=True)
            x, _ = self.get_submodule(f"refinement{k}")(low, high)
            x = F.relu6(x) if self.mobile else F.relu(x)
            x = self.get_submodule(f"pooling{k}")(x)
        return self.classifier(x)
