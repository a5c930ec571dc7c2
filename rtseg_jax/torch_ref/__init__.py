"""The same networks in plain PyTorch, NCHW: oracle of the tests and rival of the benchmarks.

The modules' names are those of the Flax networks, so `rtseg_jax.convert` needs no table.
"""

import inspect
from typing import Any

from torch import nn

from rtseg_jax.torch_ref.affnet import AFFNet, FastSCNN, SPSSNet
from rtseg_jax.torch_ref.asap import ASAP
from rtseg_jax.torch_ref.carnet import CARNet
from rtseg_jax.torch_ref.eacnet import EACNet
from rtseg_jax.torch_ref.erfnet import ERFNet

__all__ = ["VARIANTS", "create", "upsample"]

VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "erfnet": (ERFNet, {}),
    "erfnet_encoder": (EACNet, {"backbone": "erfnet", "attention": "none"}),
    "eacnet_erfnet": (EACNet, {"backbone": "erfnet"}),
    "eacnet_erfnet_nonlocal": (EACNet, {"backbone": "erfnet", "attention": "non_local"}),
    "dabnet": (EACNet, {"backbone": "dabnet", "attention": "none"}),
    "eacnet_dabnet": (EACNet, {"backbone": "dabnet"}),
    "eacnet_dabnet_nonlocal": (EACNet, {"backbone": "dabnet", "attention": "non_local"}),
    "carnet_resnet50": (CARNet, {"backbone": "resnet50"}),
    "carnet_resnet101": (CARNet, {"backbone": "resnet101"}),
    "carnet_resnet152": (CARNet, {"backbone": "resnet152"}),
    "carnet_mobilenet": (CARNet, {"backbone": "mobilenet", "dropout": 0.0}),
    "affnet": (AFFNet, {}),
    "fast_scnn": (FastSCNN, {}),
    "spssnet": (SPSSNet, {}),
    "asap": (ASAP, {}),
}


def create(variant: str, num_classes: int, **options: Any) -> nn.Module:
    """Builds a named network, freshly initialised; options override the variant's own.

    Its forward maps an image [b, 3, h, w] to logits: [b, k, h, w] for "erfnet", at output stride 8
    for the others.

    Raises:
        ValueError: unknown variant, or an option that the network does not have.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown model '{variant}'; choose one of {', '.join(VARIANTS)}")
    network, defaults = VARIANTS[variant]
    allowed = [name for name in inspect.signature(network).parameters if name != "num_classes"]
    for key in options:
        if key not in allowed:
            raise ValueError(
                f"{variant} has no option '{key}'; it has {', '.join(sorted(allowed))}"
            )
    return network(num_classes, **{**defaults, **options})
