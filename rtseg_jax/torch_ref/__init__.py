"""The same networks in plain PyTorch, NCHW: oracle of the tests and rival of the benchmarks.

The modules' names are those of the Flax networks, so weights/torch_files.py needs no table.
"""

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from rtseg_jax.torch_ref.affnet import AFFNet, FastSCNN, SPSSNet
from rtseg_jax.torch_ref.asap import ASAP
from rtseg_jax.torch_ref.bisenetv2 import BiSeNetV2
from rtseg_jax.torch_ref.blocks import upsample
from rtseg_jax.torch_ref.carnet import CARNet
from rtseg_jax.torch_ref.cgnet import CGNet
from rtseg_jax.torch_ref.ddrnet import DDRNet
from rtseg_jax.torch_ref.eacnet import EACNet
from rtseg_jax.torch_ref.enet import ENet
from rtseg_jax.torch_ref.erfnet import ERFNet
from rtseg_jax.torch_ref.espnet import ESPNet
from rtseg_jax.torch_ref.pidnet import PIDNet
from rtseg_jax.torch_ref.stdc import STDCSeg

__all__ = ["VARIANTS", "Program", "create", "load", "upsample"]

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
    "ddrnet23_slim": (DDRNet, {}),
    "pidnet_s": (PIDNet, {}),
    "cgnet": (CGNet, {}),
    "espnet": (ESPNet, {}),
    "enet": (ENet, {}),
    "bisenetv2": (BiSeNetV2, {}),
    "stdc1": (STDCSeg, {"repeats": (2, 2, 2)}),
    "stdc2": (STDCSeg, {"repeats": (4, 5, 3)}),
}


def create(variant: str, num_classes: int, **options: Any) -> nn.Module:
    """Builds a named network, freshly initialised; options override the variant's own.

    Its forward maps an image [b, 3, h, w] to logits [b, k, h', w'] at the network's own output stride.

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


def load(
    network: nn.Module, arrays: Mapping[str, np.ndarray], without: Collection[str] = ()
) -> nn.Module:
    """Gives a network its weights, by the names of its state dict; counts of batches may be missing.

    Args:
        network: What create() returns.
        arrays: By name.
        without: Names that may be missing too: of heads for training alone.

    Raises:
        ValueError: a name that one side lacks.
    """
    state = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    needed = [name for name in missing if not name.endswith("num_batches_tracked")]
    wrong = unexpected + [name for name in needed if name not in without]
    if wrong:
        raise ValueError(f"the twin does not take these weights: {', '.join(wrong)}")
    return network


class Program(nn.Module):
    """A network between uint8 frames [b, h, w, 3] and a uint8 class map [b, h, w].

    Args:
        network: What create() returns; it is cast to `dtype`.
        mean: Mean of the normalisation, RGB in units of [0, 255].
        std: Deviation of the normalisation, RGB in units of [0, 255].
        channels: The order in which the network wants them, "rgb" or "bgr".
        size: (h, w) that the network sees, bilinear; None for the frames' own.
        align_corners: How frames and logits are resized.
        dtype: The type that the network computes in; logits and their upsampling are float32.
        layout: Memory format of the image that the network is given.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        channels: str = "rgb",
        size: tuple[int, int] | None = None,
        align_corners: bool = False,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = torch.contiguous_format,
    ):
        super().__init__()
        self.network, self.size, self.dtype, self.layout = network.to(dtype), size, dtype, layout
        self.channels, self.align_corners = channels, align_corners
        for name, value in (("mean", mean), ("std", std)):
            vector = torch.tensor(value, device=next(network.parameters()).device)
            self.register_buffer(name, vector.reshape(1, 3, 1, 1), persistent=False)
        self.eval()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """The class of each pixel; among equal scores the first."""
        image = (frames.permute(0, 3, 1, 2).float() - self.mean) / self.std
        if self.channels == "bgr":
            image = image.flip(1)
        if self.size is not None:
            image = upsample(image, self.size, self.align_corners)
        image = image.to(self.dtype).contiguous(memory_format=self.layout)
        logits = upsample(self.network(image).float(), frames.shape[1:3], self.align_corners)
        return logits.argmax(1).to(torch.uint8)
