"""EACNet (Zha et al., "Efficient Attention Calibration Network for Real-Time Semantic Segmentation", ACML 2020).

The coarse score map of a fast backbone (one channel per class, output stride 8) goes through an attention module
and is upsampled; no decoder is left. This file holds the network on both backbones, the two baselines (ERFNet and
DABNet), and the loss.

Readings (where the paper is silent or misprinted, and what its tables and its authors' code settle):
  * Down in Eq. 8 is a 2x2 max pool with stride 2, floor mode: it has no parameters and no counted operations,
    as the FLOPs of Tables 1 and 3 ask for.
  * query, key and value are 1x1 convolutions C -> C with bias: +1,141 parameters at 19 classes (Tables 1 and 3).
  * Eq. 9 puts f inside the softmax; Eq. 7 and the code agree on softmax(h g) f, which is what stands here.
  * no 1/sqrt(C) scaling, no output projection; alpha starts at 0, so stage 2 starts as stage 1 ended.
  * the logits are upsampled bilinearly with half-pixel centres (align_corners off).
  * OHEM: probability threshold 0.7, at least 1/16 of the pixels kept.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.models.zoo.dabnet import DABNetBackbone
from rtseg_jax.models.zoo.erfnet import ERFNetEncoder
from rtseg_jax.nn import losses
from rtseg_jax.nn.attention import dot_product_attention
from rtseg_jax.nn.conv import Conv
from rtseg_jax.nn.pool import max_pool

ATTENTIONS = ("self_calibration", "non_local", "none")


class SelfCalibrationAttention(nn.Module):
    """Self-Calibration Attention, SCA (Eqs. 8 and 9, Fig. 2b).

    Every pixel of the coarse scores attends to the 2x2-pooled scores: Y = alpha softmax(Q K') V + X.

    Attributes:
        downsample: False gives the non-local module of Eqs. 5-7 on the score map ("EACNet-erf-nl" in Table 1).
    """

    downsample: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, scores: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        b, h, w, k = scores.shape
        coarse = max_pool(scores, (2, 2), (2, 2)) if self.downsample else scores
        query = Conv(k, (1, 1), dtype=self.dtype, name="query")(scores).reshape(b, h * w, k)
        key = Conv(k, (1, 1), dtype=self.dtype, name="key")(coarse).reshape(b, -1, k)
        value = Conv(k, (1, 1), dtype=self.dtype, name="value")(coarse).reshape(b, -1, k)
        alpha = self.param("alpha", nn.initializers.zeros, ())
        context = dot_product_attention(query, key, value).reshape(b, h, w, k)
        return scores + alpha.astype(scores.dtype) * context


class EACNet(nn.Module):
    """EACNet (Fig. 1a); with attention "none" it is DABNet, or ERFNet's encoder with a classifier.

    Attributes:
        backbone: "erfnet" (the encoder) or "dabnet" (the whole network before its classifier).
        attention: "self_calibration", "non_local" or "none".
        dropout: ERFNet's two rates; DABNet has no dropout.
        dtype: The type that is computed in; parameters, statistics and logits are float32.
    """

    num_classes: int
    backbone: str = "erfnet"
    attention: str = "self_calibration"
    dropout: tuple[float, float] = (0.03, 0.3)
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.backbone not in ("erfnet", "dabnet"):
            raise ValueError(f"unknown backbone '{self.backbone}'; choose 'erfnet' or 'dabnet'")
        if self.attention not in ATTENTIONS:
            raise ValueError(
                f"unknown attention '{self.attention}'; choose one of {', '.join(ATTENTIONS)}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h8 w8 k"]]:
        """Returns {"logits": float32 scores at output stride 8}."""
        if self.backbone == "erfnet":
            backbone = ERFNetEncoder(self.dropout, self.dtype, name="backbone")
        else:
            backbone = DABNetBackbone(self.dtype, name="backbone")
        features = backbone(image, train=train)[8]
        scores = Conv(
            self.num_classes,
            (1, 1),
            use_bias=self.backbone == "erfnet",
            dtype=self.dtype,
            name="classifier",
        )(features)
        if self.attention != "none":
            scores = SelfCalibrationAttention(
                downsample=self.attention == "self_calibration", dtype=self.dtype, name="attention"
            )(scores)
        return {"logits": scores.astype(jnp.float32)}


loss = losses.segmentation_loss  # Section 4.1
