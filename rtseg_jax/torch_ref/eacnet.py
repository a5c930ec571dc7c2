"""EACNet in plain PyTorch, NCHW, on both backbones (Zha et al., ACML 2020, Fig. 1a)."""

import torch
from torch import nn
from torch.nn import functional as F

from rtseg_jax.torch_ref.dabnet import DABNetBackbone
from rtseg_jax.torch_ref.erfnet import ERFNetEncoder, init_weights

BACKBONES = ("erfnet", "dabnet")
ATTENTIONS = ("self_calibration", "non_local", "none")


class SelfCalibrationAttention(nn.Module):
    """Y = alpha softmax(Q K') V + X over the 2x2-pooled scores (Eqs. 8 and 9, Fig. 2b).

    Args:
        channels: Classes, which are the channels of query, key and value too.
        downsample: False gives the non-local module of Eqs. 5-7.
    """

    def __init__(self, channels: int, downsample: bool = True):
        super().__init__()
        self.downsample = downsample
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        """[b, k, h, w] -> the same."""
        coarse = F.max_pool2d(scores, 2) if self.downsample else scores

        def tokens(x: torch.Tensor) -> torch.Tensor:  # [b, 1, pixels, channels]
            return x.flatten(2).transpose(1, 2).unsqueeze(1)

        query, key, value = (
            tokens(self.query(scores)),
            tokens(self.key(coarse)),
            tokens(self.value(coarse)),
        )
        context = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return scores + self.alpha * context.squeeze(1).transpose(1, 2).reshape(scores.shape)


class EACNet(nn.Module):
    """A backbone, a 1x1 classifier, attention on its scores; "none" leaves the attention out.

    Args:
        num_classes: Channels of the logits.
        backbone: "erfnet" or "dabnet".
        attention: "self_calibration", "non_local" or "none".
        dropout: ERFNet's two rates; DABNet has no dropout.

    Raises:
        ValueError: unknown backbone or attention.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "erfnet",
        attention: str = "self_calibration",
        dropout: tuple[float, float] = (0.03, 0.3),
    ):
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone '{backbone}'; choose one of {', '.join(BACKBONES)}")
        if attention not in ATTENTIONS:
            raise ValueError(
                f"unknown attention '{attention}'; choose one of {', '.join(ATTENTIONS)}"
            )
        self.backbone = ERFNetEncoder(dropout) if backbone == "erfnet" else DABNetBackbone()
        self.classifier = nn.Conv2d(
            self.backbone.features, num_classes, 1, bias=backbone == "erfnet"
        )
        if attention != "none":
            self.attention = SelfCalibrationAttention(
                num_classes, downsample=attention == "self_calibration"
            )
        else:
            self.attention = nn.Identity()
        init_weights(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """[b, 3, h, w] -> logits [b, k, ceil(h / 8), ceil(w / 8)]."""
        return self.attention(self.classifier(self.backbone(image)))
