"""Real-time semantic segmentation in JAX: EACNet, CARNet, AFFNet and ASAP, and the networks that they compare with."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import flax.linen as nn

    from rtseg_jax.inference.network import Network

__version__ = "0.1.0"


def load(place: Any, checkpoint: str = "best", **given: Any) -> "Network":
    """Reads a trained network: a run's, a bundle, a shipped or a public one; see inference.network.load."""
    from rtseg_jax.inference import network

    return network.load(place, checkpoint, **given)


def create(variant: str, *, num_classes: int, **options: Any) -> "nn.Module":
    """Builds a network by name, as a Flax module without weights; see models.create."""
    from rtseg_jax import models

    return models.create(variant, num_classes=num_classes, **options)
