"""Networks that tests share: shapes are traced once."""

import functools

import pytest

from rtseg_jax import models
from rtseg_jax.models import flops
from rtseg_jax.weights import torch_files


@functools.cache
def shapes(variant, num_classes=2, **options):
    """The shapes of a named network's variables."""
    return flops.variable_shapes(models.create(variant, num_classes=num_classes, **options))


def load_torch(path, template):
    """Variables of a whole network out of a PyTorch file, the twin's or a public one."""
    state, layout = torch_files.our_names(torch_files.read_state(path))
    return torch_files.from_torch(state, template, hint=layout.hint if layout else "")


# Their equality with the twins is held by every run of the suite; what else is asked of them, by `make check-all`.
ZOO = ("ddrnet23_slim", "pidnet_s", "cgnet", "espnet", "enet", "bisenetv2", "stdc1", "stdc2")


def others_slow(names, keep=()):
    """Names of networks or of their configs, for parametrize; those of the zoo that are not kept are slow."""

    def is_slow(name):
        network = name.partition(":")[0]
        return network not in keep and network in (*ZOO, "stdc")

    return [pytest.param(n, marks=pytest.mark.slow) if is_slow(n) else n for n in names]
