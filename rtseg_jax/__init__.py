"""Real-time semantic segmentation in JAX: EACNet, and the ERFNet and DABNet that it stands on."""

__version__ = "0.1.0"
