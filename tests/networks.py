"""Networks that tests share: shapes are traced once."""

import functools

import pytest

from rtseg_jax import models
from rtseg_jax.models import flops
from rtseg_jax.weights import torch_files

# Those whose programs the suite compiles; the two others have the blocks of carnet_resnet50, and more of them.
COMPILED = [v for v in models.VARIANTS if v not in ("carnet_resnet101", "carnet_resnet152")]


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
# The same holds for those that another network holds, or that differ from one in their attention alone.
PARTS = ("erfnet_encoder", "dabnet", "eacnet_erfnet_nonlocal", "eacnet_dabnet_nonlocal")


def others_slow(names, keep=()):
    """Names of networks, for parametrize; those of the zoo and the parts of others are slow if they are not kept."""
    slow = {*ZOO, *PARTS}.difference(keep)
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]
