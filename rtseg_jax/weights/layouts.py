"""The names that public PyTorch checkpoints give to the parameters of our networks.

Each layout is a table of modules, theirs to ours, and is recognised by keys that it alone has.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one family of public checkpoints names its modules.

    Attributes:
        name: For messages.
        marks: Keys that a state dict of this layout has, and no other.
        modules: Their module -> ours; of a trunk, ours below "backbone".
        trunk: Whether the layout is that of a trunk alone.
        ignored: Pattern of the keys without a counterpart here: an ImageNet classifier, an auxiliary head.
        inplace: Pattern of the keys of InPlaceABN's weights w, of which the norm's scale is |w| + 1e-5.
        hint: What to know when the state dict does not fit.
    """

    name: str
    marks: tuple[str, ...]
    modules: Mapping[str, str]
    trunk: bool
    ignored: str = r"(?!)"
    inplace: str = r"(?!)"
    hint: str = ""

    def rename(self, key: str) -> str | None:
        """Our name of a key, or None if it is ignored. A key that the table lacks stays as it is."""
        if re.fullmatch(self.ignored, key):
            return None
        module, _, leaf = key.rpartition(".")
        if module not in self.modules:
            return key
        # A PReLU is a module of its own there; its weight is our norm's slope.
        return f"{self.modules[module]}.{'slope' if module.endswith('.acti') else leaf}"

    def convert(self, key: str, value: Any) -> Any:
        """What we store of a key's array or tensor."""
        return abs(value) + 1e-5 if re.fullmatch(self.inplace, key) else value


def recognise(keys: Collection[str]) -> Layout | None:
    """The layout whose marks are among the keys, or None."""
    return next((layout for layout in LAYOUTS if all(m in keys for m in layout.marks)), None)


def _normed(theirs: str, ours: str, conv: int | str = 0, norm: int | str = 1) -> Iterator:
    """A convolution and its norm in a Sequential, by default its first two modules."""
    yield f"{theirs}.{conv}", f"{ours}.conv"
    yield f"{theirs}.{norm}", f"{ours}.norm"


def _resnet() -> Iterator[tuple[str, str]]:
    yield "conv1", "stem.conv"
    yield "bn1", "stem.norm"
    for stage in range(1, 5):
        for i in range(36):  # as many as ResNet-152 has in a stage
            theirs, ours = f"layer{stage}.{i}", f"stage{stage}_block{i}"
            for k in (1, 2, 3):
                yield f"{theirs}.conv{k}", f"{ours}.conv{k}.conv"
                yield f"{theirs}.bn{k}", f"{ours}.conv{k}.norm"
            yield from _normed(f"{theirs}.downsample", f"{ours}.shortcut")


_MOBILENET_REPEATS = (1, 2, 3, 4, 3, 3, 1)


def _torchvision_mobilenet() -> Iterator[tuple[str, str]]:
    yield from _normed("features.0", "stem")
    blocks = [f"stage{s}_block{i}" for s, n in enumerate(_MOBILENET_REPEATS) for i in range(n)]
    for position, ours in enumerate(blocks, start=1):
        theirs, at = f"features.{position}.conv", 0
        if position > 1:
            yield from _normed(f"{theirs}.0", f"{ours}.expand")
            at = 1
        yield from _normed(f"{theirs}.{at}", f"{ours}.depthwise")
        yield from _normed(theirs, f"{ours}.project", at + 1, at + 2)


def _timm_mobilenet() -> Iterator[tuple[str, str]]:
    yield "conv_stem", "stem.conv"
    yield "bn1", "stem.norm"
    for stage, repeats in enumerate(_MOBILENET_REPEATS):
        if stage == 0:
            convolutions = {"conv_dw": "depthwise", "conv_pw": "project"}
        else:
            convolutions = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}
        for i in range(repeats):
            for k, (theirs, ours) in enumerate(convolutions.items(), start=1):
                yield f"blocks.{stage}.{i}.{theirs}", f"stage{stage}_block{i}.{ours}.conv"
                yield f"blocks.{stage}.{i}.bn{k}", f"stage{stage}_block{i}.{ours}.norm"


def _erfnet() -> Iterator[tuple[str, str]]:
    encoder = ["down2", *(f"block{i}" for i in range(3, 8)), "down8"]
    encoder += [f"block{i}" for i in range(9, 17)]
    decoder = ["up17", "block18", "block19", "up20", "block21", "block22"]
    blocks = {"encoder.initial_block": "backbone.down1"}
    blocks |= {f"encoder.layers.{i}": f"backbone.{name}" for i, name in enumerate(encoder)}
    blocks |= {f"decoder.layers.{i}": f"decoder.{name}" for i, name in enumerate(decoder)}
    inner = {name: name for name in ("conv", "conv3x1_1", "conv1x3_1", "conv3x1_2", "conv1x3_2")}
    inner |= {"bn": "norm", "bn1": "norm1", "bn2": "norm2"}
    for theirs, ours in blocks.items():
        for module, name in inner.items():
            yield f"{theirs}.{module}", f"{ours}.{name}"
    yield "encoder.output_conv", "classifier"
    yield "decoder.output_conv", "decoder.classifier"


_DAB_CONVOLUTIONS = {
    "conv3x3": ("conv3x3", "norm_mid"),
    "dconv3x1": ("dw3x1", "norm_a1"),
    "dconv1x3": ("dw1x3", "norm_a2"),
    "ddconv3x1": ("dw3x1_dilated", "norm_b1"),
    "ddconv1x3": ("dw1x3_dilated", "norm_b2"),
}


def _dabnet() -> Iterator[tuple[str, str]]:
    def norm(theirs, ours):
        yield f"{theirs}.bn", ours
        yield f"{theirs}.acti", ours

    for i in range(3):
        yield f"init_conv.{i}.conv", f"backbone.stem{i + 1}.conv"
        yield from norm(f"init_conv.{i}.bn_prelu", f"backbone.stem{i + 1}.norm")
        yield from norm(f"bn_prelu_{i + 1}", f"backbone.inject{i + 1}")
    for stage, blocks in ((1, 3), (2, 6)):
        yield f"downsample_{stage}.conv3x3.conv", f"backbone.down{stage}.conv"
        yield from norm(f"downsample_{stage}.bn_prelu", f"backbone.down{stage}.norm")
        for i in range(blocks):
            theirs = f"DAB_Block_{stage}.DAB_Module_{stage}_{i}"
            ours = f"backbone.block{stage}_{i + 1}"
            yield from norm(f"{theirs}.bn_relu_1", f"{ours}.norm_in")
            for module, (conv_name, norm_name) in _DAB_CONVOLUTIONS.items():
                yield f"{theirs}.{module}.conv", f"{ours}.{conv_name}"
                yield from norm(f"{theirs}.{module}.bn_prelu", f"{ours}.{norm_name}")
            yield from norm(f"{theirs}.bn_relu_2", f"{ours}.norm_out")
            yield f"{theirs}.conv1x1.conv", f"{ours}.conv1x1"
    yield "classifier.0.conv", "classifier"


def _fast_scnn() -> Iterator[tuple[str, str]]:
    def separable(theirs, ours):
        yield from _normed(f"{theirs}.conv", f"{ours}.depthwise")
        yield from _normed(f"{theirs}.conv", f"{ours}.pointwise", 3, 4)

    yield from _normed("learning_to_downsample.conv.conv", "backbone.downsample.conv")
    for k in (1, 2):
        theirs = f"learning_to_downsample.dsconv{k}"
        yield from separable(theirs, f"backbone.downsample.dsconv{k}")
        yield from separable(f"classifier.dsconv{k}", f"classifier.dsconv{k}")
    for unit in (1, 2, 3):
        for i in range(3):
            theirs = f"global_feature_extractor.bottleneck{unit}.{i}.block"
            ours = f"backbone.unit{unit}_block{i + 1}"
            yield from _normed(f"{theirs}.0.conv", f"{ours}.expand")
            yield from _normed(f"{theirs}.1.conv", f"{ours}.depthwise")
            yield from _normed(theirs, f"{ours}.project", 2, 3)
    for k, bins in enumerate((1, 2, 3, 6), start=1):
        theirs = f"global_feature_extractor.ppm.conv{k}.conv"
        yield from _normed(theirs, f"backbone.pyramid.pool{bins}")
    yield from _normed("global_feature_extractor.ppm.out.conv", "backbone.pyramid.project")
    yield from _normed("feature_fusion.dwconv.conv", "fusion.depthwise")
    yield from _normed("feature_fusion.conv_lower_res", "fusion.deep")
    yield from _normed("feature_fusion.conv_higher_res", "fusion.shallow")
    yield "classifier.conv.1", "classifier.conv"


def _bisenetv2() -> Iterator[tuple[str, str]]:
    def conv(theirs, ours):
        yield f"{theirs}.conv", f"{ours}.conv"
        yield f"{theirs}.bn", f"{ours}.norm"

    for stage, convolutions in ((1, 2), (2, 3), (3, 3)):
        for i in range(convolutions):
            yield from conv(f"detail.S{stage}.{i}", f"backbone.detail.conv{stage}_{i + 1}")
    for theirs, ours in {
        "conv": "conv",
        "left.0": "left1",
        "left.1": "left2",
        "fuse": "fuse",
    }.items():
        yield from conv(f"segment.S1S2.{theirs}", f"backbone.segment.stem.{ours}")
    for stage, layers in (("3", 2), ("4", 2), ("5_4", 4)):
        for i in range(layers):
            theirs = f"segment.S{stage}.{i}"
            ours = f"backbone.segment.layer{stage[0]}_{i + 1}"
            yield from conv(f"{theirs}.conv1", f"{ours}.conv")
            yield from _normed(f"{theirs}.dwconv{'' if i else 1}", f"{ours}.expand")
            yield from _normed(f"{theirs}.conv2", f"{ours}.project")
            if i == 0:
                yield from _normed(f"{theirs}.dwconv2", f"{ours}.depthwise")
                yield from _normed(f"{theirs}.shortcut", f"{ours}.shortcut_depthwise")
                yield from _normed(f"{theirs}.shortcut", f"{ours}.shortcut_project", 2, 3)
    yield "segment.S5_5.bn", "backbone.segment.context.norm"
    yield from conv("segment.S5_5.conv_gap", "backbone.segment.context.gap")
    yield from conv("segment.S5_5.conv_last", "backbone.segment.context.conv")
    for theirs, ours in {"left1": "detail", "right2": "context"}.items():
        yield from _normed(f"bga.{theirs}", f"fusion.{ours}_depthwise")
        yield f"bga.{theirs}.2", f"fusion.{ours}_pointwise"
    for theirs, ours in {"left2": "detail_down", "right1": "context_gate", "conv": "conv"}.items():
        yield from _normed(f"bga.{theirs}", f"fusion.{ours}")
    yield from conv("head.conv", "classifier.conv")
    yield "head.conv_out.1", "classifier.scores"
    for theirs, ours in {"aux2": "aux2", "aux3": "aux3", "aux4": "aux4", "aux5_4": "aux5"}.items():
        yield from conv(f"{theirs}.conv", f"{ours}.conv")
        yield from conv(f"{theirs}.conv_out.0.1", f"{ours}.last")
        yield f"{theirs}.conv_out.1", f"{ours}.scores"


def _stdc_trunk(theirs: str = "", ours: str = "") -> Iterator[tuple[str, str]]:
    def conv(theirs, ours):
        yield f"{theirs}.conv", f"{ours}.conv"
        yield f"{theirs}.bn", f"{ours}.norm"

    for i in range(14):  # as many as STDC2 has
        theirs_i, ours_i = f"{theirs}features.{i}", f"{ours}layer{i}"
        if i < 2:
            yield from conv(theirs_i, ours_i)
            continue
        for k in range(4):
            yield from conv(f"{theirs_i}.conv_list.{k}", f"{ours_i}.conv{k + 1}")
        yield from _normed(f"{theirs_i}.avd_layer", f"{ours_i}.down")


def _stdc() -> Iterator[tuple[str, str]]:
    yield from _stdc_trunk("cp.backbone.", "backbone.")
    convolutions = {
        "cp.conv_avg": "context.mean",
        "cp.conv_head32": "context.smooth32",
        "cp.conv_head16": "context.smooth16",
        "cp.arm32.conv": "context.refine32.conv",
        "cp.arm16.conv": "context.refine16.conv",
        "ffm.convblk": "fusion.conv",
    }
    # Their heads are named by the map that comes before what they see.
    heads = {"conv_out": "classifier", "conv_out16": "aux8", "conv_out32": "aux16"}
    for theirs, ours in {**heads, "conv_out_sp8": "detail"}.items():
        convolutions[f"{theirs}.conv"] = f"{ours}.conv"
        yield f"{theirs}.conv_out", f"{ours}.scores"
    for theirs, ours in convolutions.items():
        yield f"{theirs}.conv", f"{ours}.conv"
        yield f"{theirs}.bn", f"{ours}.norm"
    for stride in (16, 32):
        yield f"cp.arm{stride}.conv_atten", f"context.refine{stride}.attention.conv"
        yield f"cp.arm{stride}.bn_atten", f"context.refine{stride}.attention.norm"
    yield "ffm.conv1", "fusion.reduce"
    yield "ffm.conv2", "fusion.expand"


# The trunk's stages name its layers a second time; the rest is an ImageNet classifier.
_STDC_LEFT = r"(x2|x4|x8|x16|x32|conv_last|fc|bn|linear)\..*"
_NO_EXPANSION = "published MobileNetV2 weights need expand_first=False"

LAYOUTS = (
    Layout(
        "ResNet of torchvision or timm",
        ("conv1.weight", "layer1.0.conv1.weight"),
        dict(_resnet()),
        trunk=True,
        ignored=r"fc\..*",
    ),
    Layout(
        "MobileNetV2 of torchvision",
        ("features.0.0.weight", "features.1.conv.0.0.weight"),
        dict(_torchvision_mobilenet()),
        trunk=True,
        ignored=r"(features\.18|classifier)\..*",
        hint=_NO_EXPANSION,
    ),
    Layout(
        "MobileNetV2 of timm",
        ("conv_stem.weight", "blocks.0.0.conv_dw.weight"),
        dict(_timm_mobilenet()),
        trunk=True,
        ignored=r"(conv_head|bn2|classifier)\..*",
        hint=_NO_EXPANSION,
    ),
    Layout(
        "ERFNet as its authors released it",
        ("encoder.initial_block.conv.weight",),
        dict(_erfnet()),
        trunk=False,
        hint="the authors' own files have 20 classes, void being the last",
    ),
    Layout(
        "DABNet as its authors released it",
        ("init_conv.0.conv.weight", "DAB_Block_1.DAB_Module_1_0.conv3x3.conv.weight"),
        dict(_dabnet()),
        trunk=False,
    ),
    Layout(
        "Fast-SCNN of Tramac",
        ("learning_to_downsample.conv.conv.0.weight",),
        dict(_fast_scnn()),
        trunk=False,
        ignored=r"auxlayer\..*",
    ),
    Layout(
        "BiSeNetV2 of CoinCheung",
        ("detail.S1.0.conv.weight", "segment.S1S2.conv.conv.weight", "bga.left1.0.weight"),
        dict(_bisenetv2()),
        trunk=False,
        hint="a file without the training heads aux2 to aux5_4 does not fit",
    ),
    Layout(
        "STDC-Seg as its authors released it",
        ("cp.backbone.features.0.conv.weight", "ffm.convblk.conv.weight"),
        dict(_stdc()),
        trunk=False,
        ignored=rf"cp\.backbone\.{_STDC_LEFT}|conv_out_sp(2|4|16)\..*",
        inplace=r"(cp\.(?!backbone)|ffm|conv_out).*\.bn(_atten)?\.weight",
    ),
    Layout(
        "the trunk of STDC-Seg as its authors released it",
        ("features.0.conv.weight", "features.2.conv_list.0.conv.weight"),
        dict(_stdc_trunk()),
        trunk=True,
        ignored=_STDC_LEFT,
    ),
)
