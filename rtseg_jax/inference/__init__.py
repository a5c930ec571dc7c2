"""A trained network as one object, and what it scores."""

from rtseg_jax.inference.network import Network, load

__all__ = ["Network", "load"]
