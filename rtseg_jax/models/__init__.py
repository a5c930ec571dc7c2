"""The named networks: one literal table, name -> class, options, loss."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from rtseg_jax.models import affnet, asap, carnet, eacnet
from rtseg_jax.models.zoo import (
    bisenetv2,
    cgnet,
    ddrnet,
    enet,
    erfnet,
    espnet,
    fast_scnn,
    pidnet,
    spssnet,
    stdc,
)
from rtseg_jax.nn import losses


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network that a paper's table names: its class, the options that make it, and its paper's loss."""

    cls: type[nn.Module]
    options: Mapping[str, Any]
    loss: Callable


VARIANTS = {
    "erfnet": Variant(erfnet.ERFNet, {}, eacnet.loss),
    "erfnet_encoder": Variant(
        eacnet.EACNet, {"backbone": "erfnet", "attention": "none"}, eacnet.loss
    ),
    "eacnet_erfnet": Variant(eacnet.EACNet, {"backbone": "erfnet"}, eacnet.loss),
    "eacnet_erfnet_nonlocal": Variant(
        eacnet.EACNet, {"backbone": "erfnet", "attention": "non_local"}, eacnet.loss
    ),
    "dabnet": Variant(eacnet.EACNet, {"backbone": "dabnet", "attention": "none"}, eacnet.loss),
    "eacnet_dabnet": Variant(eacnet.EACNet, {"backbone": "dabnet"}, eacnet.loss),
    "eacnet_dabnet_nonlocal": Variant(
        eacnet.EACNet, {"backbone": "dabnet", "attention": "non_local"}, eacnet.loss
    ),
    "carnet_resnet50": Variant(carnet.CARNet, {"backbone": "resnet50"}, carnet.loss),
    "carnet_resnet101": Variant(carnet.CARNet, {"backbone": "resnet101"}, carnet.loss),
    "carnet_resnet152": Variant(carnet.CARNet, {"backbone": "resnet152"}, carnet.loss),
    "carnet_mobilenet": Variant(
        carnet.CARNet, {"backbone": "mobilenet", "dropout": 0.0}, carnet.loss
    ),
    "affnet": Variant(affnet.AFFNet, {}, affnet.loss),
    "fast_scnn": Variant(fast_scnn.FastSCNN, {}, losses.segmentation_loss),
    "spssnet": Variant(spssnet.SPSSNet, {}, losses.segmentation_loss),
    "asap": Variant(asap.ASAP, {}, asap.loss),
    "ddrnet23_slim": Variant(ddrnet.DDRNet, {}, losses.auxiliary_loss),
    "pidnet_s": Variant(pidnet.PIDNet, {}, pidnet.loss),
    "cgnet": Variant(cgnet.CGNet, {}, losses.segmentation_loss),
    "espnet": Variant(espnet.ESPNet, {}, losses.segmentation_loss),
    "enet": Variant(enet.ENet, {}, losses.segmentation_loss),
    "bisenetv2": Variant(bisenetv2.BiSeNetV2, {}, losses.auxiliary_loss),
    "stdc1": Variant(stdc.STDCSeg, {"repeats": (2, 2, 2)}, stdc.loss),
    "stdc2": Variant(stdc.STDCSeg, {"repeats": (4, 5, 3)}, stdc.loss),
}


def get(variant: str) -> Variant:
    """Looks a variant up by name.

    Raises:
        ValueError: unknown name; the message lists the names that exist.
    """
    if variant not in VARIANTS:
        near = difflib.get_close_matches(variant, VARIANTS, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ValueError(f"unknown model '{variant}'{hint}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[variant]


def create(variant: str, *, num_classes: int, **options: Any) -> nn.Module:
    """Builds a named variant; options override the variant's own (attention=, dtype=, ...).

    Raises:
        ValueError: unknown variant, or an option that the network does not have.
    """
    entry = get(variant)
    fields = [f.name for f in dataclasses.fields(entry.cls) if f.name not in ("parent", "name")]
    for key in options:
        if key not in fields:
            raise ValueError(f"{variant} has no option '{key}'; it has {', '.join(sorted(fields))}")
    return entry.cls(num_classes=num_classes, **{**entry.options, **options})
