"""Networks that tests share: shapes are traced once."""

import functools

import pytest

from rtseg_jax import models
from rtseg_jax.models import flops


@functools.cache
def shapes(variant, num_classes=2, **options):
    """The shapes of a named network's variables."""
    return flops.variable_shapes(models.create(variant, num_classes=num_classes, **options))


# Their equality with the twins is held by every run of the suite; what else is asked of them, by `make check-all`.
ZOO = ("ddrnet23_slim", "pidnet_s", "cgnet", "espnet", "enet", "bisenetv2", "stdc1", "stdc2")


def others_slow(names, keep=()):
    """Names of networks or of their configs, for parametrize; those of the zoo that are not kept are slow."""

    def is_slow(name):
        network = name.partition(":")[0]
        return network not in keep and network in (*ZOO, "stdc")

    return [pytest.param(n, marks=pytest.mark.slow) if is_slow(n) else n for n in names]
