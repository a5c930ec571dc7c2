"""SPSSNet."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from rtseg_jax.models.affnet import Maps
from rtseg_jax.models.zoo.fast_scnn import FEATURES, Classifier, FastSCNNBackbone
from rtseg_jax.nn.blocks import ChainedResidualPooling
from rtseg_jax.nn.conv import Conv, kaiming_normal_fan_out
from rtseg_jax.nn.resize import resize_bilinear


class StagePooling(nn.Module):
    """SPSSNet's stage-pooling modules, SPM (Fig. 7): each map widened, pooled in a chain, and added at the first's size."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Maps, *, train: bool) -> Float[Array, "b h w 128"]:
        maps = []
        for i, x in enumerate(features, start=1):
            options = {"kernel_init": kaiming_normal_fan_out, "dtype": self.dtype}
            x = Conv(FEATURES, (1, 1), use_bias=False, **options, name=f"conv{i}")(x)
            x = ChainedResidualPooling(FEATURES, dtype=self.dtype, name=f"pooling{i}")(x)
            maps.append(resize_bilinear(x, features[0].shape[1:3]))
        return nn.relu(sum(maps))


class SPSSNet(nn.Module):
    """SPSSNet as Section IV-C and Fig. 7 have it: Fast-SCNN with stage-pooling modules for its fusion.

    Attributes:
        dropout: Rate before the last convolution.
    """

    num_classes: int
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, train: bool
    ) -> dict[str, Float[Array, "b h8 w8 k"]]:
        """Returns {"logits": float32 scores at output stride 8}."""
        features = FastSCNNBackbone(dtype=self.dtype, name="backbone")(image, train=train)
        x = StagePooling(self.dtype, name="fusion")(
            (*features[8], *features[16], *features[32]), train=train
        )
        scores = Classifier(
            self.num_classes, (1, 1), self.dropout, dtype=self.dtype, name="classifier"
        )(x, train=train)
        return {"logits": scores.astype(jnp.float32)}
