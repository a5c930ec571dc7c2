"""The training loop, in the order of a run, and the parts that only it has."""

from rtseg_jax.train.loop import train_and_evaluate

__all__ = ["train_and_evaluate"]
