"""Networks that tests share: shapes are traced once."""

import functools

from rtseg_jax import models
from rtseg_jax.models import flops


@functools.cache
def shapes(variant, num_classes=2, **options):
    """The shapes of a named network's variables."""
    return flops.variable_shapes(models.create(variant, num_classes=num_classes, **options))
