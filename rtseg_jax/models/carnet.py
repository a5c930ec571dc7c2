"""CARNet (Hao et al., "Contextual Attention Refinement Network for Real-Time Semantic Segmentation", IEEE Access 2020).

An encoder with four resolutions and a light decoder: stage by stage, from 1/32 to 1/4, a module weights the encoder's
map by channel attention before it joins what comes from below. The same module predicts which classes the image
holds, which the loss sees. This file holds the network on both kinds of trunk, its ablations, and the loss.

Readings (where the paper is silent or contradicts itself, and what its tables settle):
  * the decoder is 256 channels wide. Its 1x1 convolutions have neither bias nor norm, and nothing stands between two
    cascaded ones: that gives the FLOPs of Tables 1 and 4. The 3x3 classifier has a bias;
  * on ResNet, "1x1 Conv x 2" is c -> 256 -> 256, at 1/32 it is 2048 -> 1024 -> 256. On MobileNetV2, one 1x1 widens
    each stage's output, and those of equal resolution are added;
  * the global feature is the mean of the trunk's last map before any other layer, then c -> 128 -> 256;
  * the widths inside the module are known by its parameters only, "approximately 0.225 M" each: 128 wherever it is
    open makes four modules and the convolutions of the global feature 0.896 M at 150 classes, 0.224 M for each module;
  * a fused map goes through ReLU (ReLU6 on MobileNetV2) and a chain of four 5x5 max pools with 1x1 convolutions, but
    for the last stage through another 1x1, and is upsampled with corners aligned to the size of the next;
  * dropout 0.5 on the two deepest resolutions of a ResNet, as light-weight RefineNet has it; the paper has no word;
  * with fewer than four modules (Fig. 8) the classifier reads the last fused map. Without any, Table 5's BS, it reads
    the 256 channels at 1/32, and nothing pools them;
  * Eq. 5 has no term for absent classes, so that predicting all of them always would cost nothing, and it sums over
    the classes. Here it is the binary cross-entropy's mean; what is printed can be chosen (`semantic`, `reduction`);
  * Eq. 4 is averaged over the labelled pixels of the batch;
  * an image's classes are those in its crop; a crop without any label has no semantic term.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rtseg_jax.base.labels import IGNORE
from rtseg_jax.models.zoo.mobilenet import MobileNetV2
from rtseg_jax.models.zoo.resnet import ResNet
from rtseg_jax.nn import losses
from rtseg_jax.nn.blocks import ChainedResidualPooling
from rtseg_jax.nn.conv import Conv, torch_default
from rtseg_jax.nn.pool import global_avg_pool
from rtseg_jax.nn.resize import resize_bilinear

FEATURES = 256
RESNETS = {"resnet50": 50, "resnet101": 101, "resnet152": 152}
BACKBONES = (*RESNETS, "mobilenet")
SEMANTICS = ("bce", "paper")
REDUCTIONS = ("mean", "sum")


def _pointwise(features: int, dtype: DTypeLike, name: str) -> Conv:
    return Conv(features, (1, 1), use_bias=False, kernel_init=torch_default, dtype=dtype, name=name)


class Cascade(nn.Module):
    """Cascaded 1x1 convolutions with nothing between them ("1x1 Conv x 2" in Fig. 2).

    Attributes:
        features: Output channels of each.
    """

    features: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        for i, features in enumerate(self.features, start=1):
            x = _pointwise(features, self.dtype, f"conv{i}")(x)
        return x


class ParallelSum(nn.Module):
    """Maps of one resolution, each through a 1x1 convolution, added: the dimension adjustment on MobileNetV2."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, maps: tuple[Float[Array, "b h w _"], ...]) -> Float[Array, "b h w c2"]:
        convs = (_pointwise(self.features, self.dtype, f"conv{i + 1}") for i in range(len(maps)))
        return sum(conv(x) for conv, x in zip(convs, maps, strict=True))


class ContextualAttentionRefinement(nn.Module):
    """Contextual Attention Refinement Module, CARModule (Eqs. 1, 2 and 6, Fig. 3).

    Attributes:
        hidden: Channels after W, as are attention_hidden and semantic_hidden after W1 and W3.
    """

    num_classes: int
    hidden: int = 128
    attention_hidden: int = 128
    semantic_hidden: int = 128
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, low: Float[Array, "b h w c"], high: Float[Array, "b h2 w2 c"], *, train: bool
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"] | None]:
        """Fuses the encoder's map with the decoder's, of the same size or 1x1.

        Returns:
            F of Eq. 1, and under train the logits of Eq. 6's semantic vector.
        """
        f1, f2 = low.astype(self.dtype), high.astype(self.dtype)
        # The mean of a concatenation is the concatenation of the means: the maps need not be copied.
        context = jnp.concatenate([global_avg_pool(f1), global_avg_pool(f2)], axis=-1)
        z = nn.relu(_pointwise(self.hidden, self.dtype, "context")(context))
        widths = (self.attention_hidden, low.shape[-1])
        attention = nn.sigmoid(Cascade(widths, self.dtype, name="attention")(z))
        semantic = None
        if train:
            widths = (self.semantic_hidden, self.num_classes)
            semantic = Cascade(widths, self.dtype, name="semantic")(z)[:, 0, 0]
        return attention * f1 + f2, semantic


class CARNet(nn.Module):
    """CARNet (Fig. 2) and the ablations of Table 5 and Fig. 8.

    Attributes:
        backbone: "resnet50", "resnet101", "resnet152" or "mobilenet".
        num_modules: CARModules, counted from 1/32: 4 is the paper's; 0 leaves the trunk and the classifier.
        crp: Chained residual pooling after each of them.
        hidden: Widths inside the CARModules, as are attention_hidden and semantic_hidden.
        global_hidden: Channels between the two convolutions of the global feature; 0 leaves one convolution.
        dropout: Rate on the trunk's maps at 1/32 and 1/16.
        frozen_statistics: The trunk's BatchNorms use their running statistics under train too, and keep them.
        expand_first: Whether MobileNetV2 has the first 1x1 convolution, which published weights lack.
        dtype: The type that is computed in; parameters, statistics and logits are float32.
    """

    num_classes: int
    backbone: str = "resnet50"
    num_modules: int = 4
    crp: bool = True
    hidden: int = 128
    attention_hidden: int = 128
    semantic_hidden: int = 128
    global_hidden: int = 128
    dropout: float = 0.5
    frozen_statistics: bool = False
    expand_first: bool = True
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.backbone not in BACKBONES:
            raise ValueError(
                f"unknown backbone '{self.backbone}'; choose one of {', '.join(BACKBONES)}"
            )
        if self.num_modules not in range(5):
            raise ValueError(f"num_modules {self.num_modules} must lie in 0-4")
        for name in ("hidden", "attention_hidden", "semantic_hidden", "global_hidden"):
            lowest = 0 if name == "global_hidden" else 1
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} {getattr(self, name)} must be at least {lowest}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} must lie in [0, 1)")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "..."]]:
        """Runs the network.

        Returns:
            "logits" [b, h4, w4, k], float32 scores at output stride 4 (32, 32, 16, 8 with 0, 1, 2, 3 modules); under
            train, with any module, "semantic" [b, num_modules, k], float32 logits of the classes' presence.
        """
        mobile = self.backbone == "mobilenet"
        if mobile:
            backbone = MobileNetV2(self.expand_first, self.dtype, name="backbone")
        else:
            backbone = ResNet(RESNETS[self.backbone], self.dtype, name="backbone")
        features = backbone(image, train=train and not self.frozen_statistics)
        dropout = nn.Dropout(self.dropout, deterministic=not train)

        def adjusted(k):
            x = features[64 >> k]
            if k <= 2:
                x = jax.tree.map(dropout, x)
            if mobile:
                return ParallelSum(FEATURES, self.dtype, name=f"adjust{k}")(x)
            widths = (1024 if k == 1 else FEATURES, FEATURES)
            return Cascade(widths, self.dtype, name=f"adjust{k}")(x)

        x, semantic = adjusted(1), []
        if self.num_modules > 0:
            widths = (self.global_hidden, FEATURES) if self.global_hidden else (FEATURES,)
            last = features[32][-1] if mobile else features[32]
            high = Cascade(widths, self.dtype, name="global_feature")(global_avg_pool(last))
        for k in range(1, self.num_modules + 1):
            x, present = ContextualAttentionRefinement(
                self.num_classes,
                self.hidden,
                self.attention_hidden,
                self.semantic_hidden,
                self.dtype,
                name=f"refinement{k}",
            )(x, high, train=train)
            semantic.append(present)
            x = nn.relu6(x) if mobile else nn.relu(x)
            if self.crp:
                x = ChainedResidualPooling(
                    FEATURES, kernel_init=torch_default, dtype=self.dtype, name=f"pooling{k}"
                )(x)
            if k < self.num_modules:
                high = _pointwise(FEATURES, self.dtype, f"post{k}")(x)
                x = adjusted(k + 1)
                high = resize_bilinear(high, x.shape[1:3], align_corners=True)
        scores = Conv(
            self.num_classes, kernel_init=torch_default, dtype=self.dtype, name="classifier"
        )(x)
        outputs = {"logits": scores.astype(jnp.float32)}
        if train and semantic:
            outputs["semantic"] = jnp.stack(semantic, axis=1).astype(jnp.float32)
        return outputs


def presence(label: Int[Array, "b h w"], num_classes: int) -> Float[Array, "b k"]:
    """V of Eq. 5: 1 for each class that labels a pixel of the image, else 0."""
    classes = jnp.arange(num_classes).reshape(1, 1, 1, -1)
    return jnp.any(label[..., None] == classes, axis=(1, 2)).astype(jnp.float32)


def semantic_context_loss(
    semantic: Float[Array, "b n k"], label: Int[Array, "b h w"], *, kind: str, reduction: str
) -> Float[Array, " n"]:
    """Semantic Context Loss, SCLoss, of each module (Eq. 5), averaged over the images with any labelled pixel.

    Args:
        semantic: Logits of the semantic vectors.
        label: Train ids, 255 = ignore.
        kind: "paper" is -V log s; "bce" adds -(1 - V) log(1 - s).
        reduction: Over the classes, "mean" or "sum".

    Raises:
        ValueError: unknown kind or reduction.
    """
    if kind not in SEMANTICS:
        raise ValueError(f"unknown semantic '{kind}'; choose 'bce' or 'paper'")
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction '{reduction}'; choose 'mean' or 'sum'")
    v = presence(label, semantic.shape[-1])[:, None, :]
    terms = -v * jax.nn.log_sigmoid(semantic)
    if kind == "bce":
        terms = terms - (1 - v) * jax.nn.log_sigmoid(-semantic)
    per_image = jnp.mean(terms, axis=-1) if reduction == "mean" else jnp.sum(terms, axis=-1)
    labelled = jnp.any(label != IGNORE, axis=(1, 2)).astype(jnp.float32)[:, None]
    return jnp.sum(per_image * labelled, axis=0) / jnp.maximum(jnp.sum(labelled), 1.0)


def loss(
    outputs: dict[str, Float[Array, "..."]],
    batch: dict[str, Array],
    *,
    semantic_weight: float,
    semantic_terms: int,
    semantic: str,
    reduction: str,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy on the logits upsampled to the label's size, and lambda times the SCLosses' sum (Eqs. 3 to 5).

    Args:
        outputs: What the network returned under train=True.
        batch: "label" [b, h, w] int32 train ids, 255 = ignore.
        semantic_weight: lambda of Eq. 3, 0.2 in the paper.
        semantic_terms: Modules whose SCLoss counts, from the first on (Fig. 9); 4 in the paper.
        semantic: "bce" or "paper", see semantic_context_loss.
        reduction: Over the classes, "mean" or "sum".

    Returns:
        The loss and its terms by name; "semantic_context" is the sum before its weight.

    Raises:
        ValueError: more terms than the network has modules; unknown semantic or reduction.
    """
    label = batch["label"]
    logits = losses.upsample_class_maps(outputs["logits"], label.shape[1:3])
    entropy = losses.cross_entropy(logits, label, axis=1)
    vectors = outputs.get("semantic")
    modules = 0 if vectors is None else vectors.shape[1]
    if not 0 <= semantic_terms <= modules:
        raise ValueError(f"semantic_terms {semantic_terms} must lie in 0-{modules}, the modules")
    if semantic_terms == 0:
        return entropy, {"loss": entropy}
    context = jnp.sum(
        semantic_context_loss(
            vectors[:, :semantic_terms], label, kind=semantic, reduction=reduction
        )
    )
    value = entropy + semantic_weight * context
    return value, {"loss": value, "cross_entropy": entropy, "semantic_context": context}
