"""The networks in public PyTorch checkpoints, and what their authors' code does around them."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

from rtseg_jax import data, models
from rtseg_jax.base import imagenet
from rtseg_jax.data.sets.folder import voc_color
from rtseg_jax.data.spec import ClassTable
from rtseg_jax.inference.program import Triple
from rtseg_jax.models import flops
from rtseg_jax.weights import layouts, torch_files

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Use:
    """How the authors of a checkpoint use it.

    Attributes:
        networks: (variant, options) that a file may hold, tried in this order.
        mean: RGB, in units of [0, 255], by number of classes where it is the training set's own; None is any number.
        std: The same.
        channels: The order in which the network wants them.
        size: (h, w) that the network sees; None for the frames' own.
        align_corners: How frames and scores are resized.
        licence: Of the authors' own files.
    """

    networks: tuple[tuple[str, Options], ...]
    mean: Mapping[int | None, Triple]
    std: Mapping[int | None, Triple]
    channels: str = "rgb"
    size: tuple[int, int] | None = None
    align_corners: bool = False
    licence: str = "MIT"


_ZERO, _ONE, _255 = ({None: (v, v, v)} for v in (0.0, 1.0, 255.0))
_IMAGENET = {"mean": {None: imagenet.MEAN}, "std": {None: imagenet.STD}}
_CITYSCAPES = (73.15835921, 82.90891754, 72.39239876)
# CamVid's as the code of DABNet and EACNet computes it.
_MEAN = {"mean": {None: _CITYSCAPES, 11: (99.6254, 103.3298, 105.6578)}, "std": _ONE}


def _of_255(values: Triple) -> Mapping[int | None, Triple]:
    return {None: tuple(255 * v for v in values)}


# Their code divides by 255 once more; CamVid's figures are not published, and these were computed again.
_ESPNET = {
    "mean": {None: (73.15840149, 82.90893555, 72.3923111), 12: (105.033, 108.409, 110.331)},
    "std": {
        **_of_255((44.91483307, 46.15289307, 45.3192215)),
        12: tuple(255 * v for v in (69.904, 72.691, 72.126)),
    },
    "channels": "bgr",
    "size": (512, 1024),
}

USES = {
    "ERFNet as its authors released it": Use(
        (("erfnet", {}),), _ZERO, _255, size=(512, 1024), licence="CC BY-NC 4.0"
    ),
    "DABNet as its authors released it": Use((("dabnet", {}),), **_MEAN),
    "EACNet on DABNet as its authors released it": Use(
        (("eacnet_dabnet", {}),), **_MEAN
    ),
    "EACNet on ERFNet as its authors released it": Use((("eacnet_erfnet", {}),), **_MEAN),
    "Fast-SCNN of Tramac": Use(
        (("fast_scnn", {"align_corners": True, "stem_padding": 0}),),
        **_IMAGENET,
        align_corners=True,
        licence="Apache-2.0",
    ),
    "DDRNet as its authors released it": Use((("ddrnet23_slim", {}),), **_IMAGENET),
    "PIDNet as its authors released it": Use((("pidnet_s", {}),), **_IMAGENET, align_corners=True),
    "CGNet as its authors released it": Use(
        (("cgnet", {}),), {None: _CITYSCAPES}, _ONE
    ),
    "ESPNet as its authors released it": Use(
        tuple(
            ("espnet", {"blocks": (2, q), "skip": skip})
            for q in (8, 5, 3)
            for skip in ("stem", "inject")
        ),
        **_ESPNET,
    ),
    "ESPNet-C as its authors released it": Use(
        tuple(("espnet", {"blocks": (2, q), "decoder": False}) for q in (8, 5, 3)), **_ESPNET
    ),
    "ENet of D. Silva": Use((("enet", {}),), _ZERO, _255),
    "BiSeNetV2 of CoinCheung": Use(
        (("bisenetv2", {}),), _of_255((0.3257, 0.3690, 0.3223)), _of_255((0.2112, 0.2148, 0.2115))
    ),
    "STDC-Seg as its authors released it": Use(
        (("stdc1", {}), ("stdc2", {})), **_IMAGENET, size=(512, 1024), align_corners=True
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """A network that was found in a file.

    Attributes:
        variant: Its name in models.VARIANTS.
        options: What it is created with.
        variables: {"params", "batch_stats"} of numpy arrays; without training heads, if the file has none.
        num_classes: How many classes it tells apart.
        layout: Whose names the file has, "" for those of our twins.
        use: How its authors use it; None for a twin's file.
    """

    variant: str
    options: Options
    variables: dict[str, Any]
    num_classes: int
    layout: str
    use: Use | None


def read(
    path: str | os.PathLike[str], variant: str | None = None, num_classes: int | None = None
) -> Found:
    """Reads the network in a PyTorch file.

    Args:
        path: See torch_files.read_state.
        variant: Its name, where the file does not tell: a twin's state dict.
        num_classes: How many classes it has; None as the file has it.

    Raises:
        ValueError: see torch_files.read_state; a file of a trunk alone; one of a network that is not here; one whose
            names or shapes are not the network's.
        FileNotFoundError: no such file.
    """
    state, layout = torch_files.our_names(torch_files.read_state(path))
    if layout is not None and layout.trunk:
        raise ValueError(
            f"{path} holds a trunk alone ({layout.name}); a training begins with it by"
            " --config.init_from.file"
        )
    if layout is not None and layout.refused:
        raise ValueError(f"{path} is {layout.name}: {layout.refused}")
    use = USES[layout.name] if layout else None
    if variant is not None:
        candidates = ((variant, _options(use, variant)),)
    elif use is not None:
        candidates = use.networks
    else:
        candidates = ((name, {}) for name in models.VARIANTS if _has_names(state, name))
    problems = []
    for name, options in candidates:
        try:
            variables, count = _fit(state, name, options, num_classes, layout)
        except ValueError as error:
            problems.append(str(error))
            continue
        return Found(name, options, variables, count, layout.name if layout else "", use)
    if use is None and variant is None:
        raise ValueError(
            f"{path} has names of no network that is known; give --variant of one that has them"
        )
    raise ValueError(f"{path}: {problems[0]}")


def _options(use: Use | None, variant: str) -> Options:
    return next((o for name, o in use.networks if name == variant), {}) if use else {}


def _fit(
    state: Mapping[str, Any],
    variant: str,
    options: Options,
    num_classes: int | None,
    layout: layouts.Layout | None,
) -> tuple[dict[str, Any], int]:
    """Variables of a network out of a state dict in the twin's names, and how many classes it tells apart."""

    @functools.cache
    def shapes(count: int, train: bool = True) -> dict[str, Any]:
        model = models.create(variant, num_classes=count, **options)
        return flops.variable_shapes(model, train=train)

    count = num_classes or _count_classes(state, shapes(2), shapes(3))
    wanted, frozen = shapes(count), shapes(count, train=False)
    if not (torch_files.names(wanted) - torch_files.names(frozen)) & state.keys():
        wanted = frozen
    return torch_files.from_torch(state, wanted, hint=layout.hint if layout else ""), count


def _has_names(state: Mapping[str, Any], variant: str) -> bool:
    """Whether all names of a state dict are of a network."""
    known = torch_files.names(flops.variable_shapes(models.create(variant, num_classes=2)))
    return torch_files.without_counts(state).keys() <= known


def _count_classes(state: Mapping[str, Any], two: Any, three: Any) -> int:
    """How many classes a state dict is of, by an axis in which networks of two and of three differ."""
    for (name, _, shape), (_, _, other) in zip(
        torch_files.named(two), torch_files.named(three), strict=True
    ):
        for axis, (a, b) in enumerate(zip(shape, other, strict=True)):
            if (a, b) == (2, 3) and name in state and axis < len(state[name].shape):
                return int(state[name].shape[axis])
    raise ValueError("no layer of the file tells how many classes there are; give --num_classes")


def class_table(count: int) -> ClassTable:
    """The names and colours of so many classes, where nothing else is known of them.

    Those of the data set that has so many, or for Cityscapes and CamVid one less, void being the last; else numbers and
    PASCAL VOC's colours.
    """
    # Backwards, so that 19 are Cityscapes' own and not those of streets, which stand last.
    known = {table.num_classes: table for table in reversed(data.TABLES.values())}
    if count in known:
        return known[count]
    if count in (12, 20):
        table = known[count - 1]
        return ClassTable(table.name, (*table.class_names, "void"), (*table.palette, (0, 0, 0)))
    return ClassTable(
        "unknown",
        tuple(f"class {i}" for i in range(count)),
        tuple(voc_color(i) for i in range(1, count + 1)),
    )
