"""The names that public PyTorch checkpoints give to the parameters of our networks.

Each layout is a table of modules, theirs to ours, and is recognised by keys that it alone has.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

Names = Iterator[tuple[str, str]]  # theirs, ours


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one family of public checkpoints names its modules.

    Attributes:
        name: For messages.
        marks: Keys that a state dict of this layout has, and no other.
        modules: Their module -> ours; of a trunk, ours below "backbone". A PReLU, which has but its weight, goes to our
            slope itself.
        trunk: Whether the layout is that of a trunk alone.
        ignored: Pattern of the keys without a counterpart here: an ImageNet classifier, an auxiliary head.
        inplace: Pattern of the keys of InPlaceABN's weights w, of which the norm's scale is |w| + 1e-5.
        void_first: The key of a transposed convolution to scores, whose class void comes first where there are 20; it comes
            last here.
        hint: What to know when the state dict does not fit.
        refused: Why its network is not here, if it is not.
    """

    name: str
    marks: tuple[str, ...]
    modules: Mapping[str, str]
    trunk: bool = False
    ignored: str = r"(?!)"
    inplace: str = r"(?!)"
    void_first: str = ""
    hint: str = ""
    refused: str = ""

    def rename(self, key: str) -> str | None:
        """Our name of a key, or None if it is ignored. A key that the table lacks stays as it is."""
        if re.fullmatch(self.ignored, key):
            return None
        module, _, leaf = key.rpartition(".")
        if key in self.modules:
            return self.modules[key]
        if module not in self.modules:
            return key
        ours = self.modules[module]
        return ours if ours.endswith(".slope") else f"{ours}.{leaf}"

    def convert(self, key: str, value: Any) -> Any:
        """What we store of a key's array or tensor."""
        if key in self.modules:
            return value.reshape(())  # a weight of its own, which has no module
        if key == self.void_first and value.shape[1] == 20:
            return value[:, [*range(1, 20), 0]]
        return abs(value) + 1e-5 if re.fullmatch(self.inplace, key) else value


def recognise(keys: Collection[str]) -> Layout | None:
    """The layout whose marks are among the keys, or None."""
    return next((layout for layout in LAYOUTS if all(m in keys for m in layout.marks)), None)


def _normed(theirs: str, ours: str, conv: int | str = 0, norm: int | str = 1) -> Names:
    """A convolution and its norm in a Sequential, by default its first two modules."""
    yield f"{theirs}.{conv}", f"{ours}.conv"
    yield f"{theirs}.{norm}", f"{ours}.norm"


def _conv_bn(theirs: str, ours: str) -> Names:
    """A convolution and its norm in a module that calls them so."""
    yield from _normed(theirs, ours, "conv", "bn")


def _residual(theirs: str, ours: str) -> Names:
    """A block of a ResNet, of either kind."""
    for k in (1, 2, 3):
        yield from _normed(theirs, f"{ours}.conv{k}", f"conv{k}", f"bn{k}")
    yield from _normed(f"{theirs}.downsample", f"{ours}.shortcut")


def _sloped(theirs: str, ours: str, act: str = "act") -> Names:
    """A norm and the PReLU beside it, which are one module here."""
    yield f"{theirs}.bn", ours
    yield f"{theirs}.{act}", f"{ours}.slope"


def _resnet() -> Names:
    yield "conv1", "stem.conv"
    yield "bn1", "stem.norm"
    for stage in range(1, 5):
        for i in range(36):  # as many as ResNet-152 has in a stage
            yield from _residual(f"layer{stage}.{i}", f"stage{stage}_block{i}")


_MOBILENET_REPEATS = (1, 2, 3, 4, 3, 3, 1)


def _torchvision_mobilenet() -> Names:
    yield from _normed("features.0", "stem")
    blocks = [f"stage{s}_block{i}" for s, n in enumerate(_MOBILENET_REPEATS) for i in range(n)]
    for position, ours in enumerate(blocks, start=1):
        theirs, at = f"features.{position}.conv", 0
        if position > 1:
            yield from _normed(f"{theirs}.0", f"{ours}.expand")
            at = 1
        yield from _normed(f"{theirs}.{at}", f"{ours}.depthwise")
        yield from _normed(theirs, f"{ours}.project", at + 1, at + 2)


def _timm_mobilenet() -> Names:
    yield "conv_stem", "stem.conv"
    yield "bn1", "stem.norm"
    for stage, repeats in enumerate(_MOBILENET_REPEATS):
        if stage == 0:
            convolutions = {"conv_dw": "depthwise", "conv_pw": "project"}
        else:
            convolutions = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}
        for i in range(repeats):
            for k, (conv, ours) in enumerate(convolutions.items(), start=1):
                name = f"stage{stage}_block{i}.{ours}"
                yield from _normed(f"blocks.{stage}.{i}", name, conv, f"bn{k}")


def _erfnet() -> Names:
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


def _erfnet_trunk() -> Names:
    for theirs, ours in _erfnet():
        if ours.startswith("backbone."):
            yield f"features.{theirs}", ours.removeprefix("backbone.")


def _attention(theirs: str) -> Names:
    for module in ("query", "key", "value"):
        yield f"{theirs}.{module}_conv", f"attention.{module}"
    yield f"{theirs}.gamma", "attention.alpha"


_DAB_CONVOLUTIONS = {
    "conv3x3": ("conv3x3", "norm_mid"),
    "dconv3x1": ("dw3x1", "norm_a1"),
    "dconv1x3": ("dw1x3", "norm_a2"),
    "ddconv3x1": ("dw3x1_dilated", "norm_b1"),
    "ddconv1x3": ("dw1x3_dilated", "norm_b2"),
}


def _dabnet() -> Names:
    def norm(theirs, ours):
        yield from _sloped(theirs, ours, "acti")

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


def _fast_scnn() -> Names:
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


def _pyramid(processes: Mapping[str, str]) -> Names:
    # A norm, a ReLU and a convolution; the scales that are means have their pool before them.
    for k in range(5):
        at = 0 if k == 0 else 1
        yield from _normed(f"spp.scale{k}", f"pyramid.scale{k}", at + 2, at)
    for theirs, ours in {**processes, "compression": "compress", "shortcut": "shortcut"}.items():
        yield from _normed(f"spp.{theirs}", f"pyramid.{ours}", 2, 0)


def _head(theirs: str, ours: str) -> Names:
    yield f"{theirs}.bn1", f"{ours}.norm"
    yield from _normed(theirs, f"{ours}.conv1", "conv1", "bn2")
    yield f"{theirs}.conv2", f"{ours}.conv2"


def _two_branches() -> Names:
    """What DDRNet and PIDNet have in common: a stem and two branches of residual blocks."""
    yield from _normed("conv1", "backbone.stem1")
    yield from _normed("conv1", "backbone.stem2", 3, 4)
    for n in range(1, 6):
        for i in range(3):
            yield from _residual(f"layer{n}.{i}", f"backbone.layer{n}_block{i}")
            yield from _residual(f"layer{n}_.{i}", f"backbone.detail{n}_block{i}")
    for n in (3, 4):
        yield from _normed(f"compression{n}", f"backbone.compress{n}")


def _ddrnet() -> Names:
    yield from _two_branches()
    yield from _normed("down3", "backbone.down3")
    yield from _normed("down4", "backbone.down4_1")
    yield from _normed("down4", "backbone.down4_2", 3, 4)
    yield from _pyramid({f"process{k}": f"process{k}" for k in range(1, 5)})
    yield from _head("final_layer", "classifier")
    yield from _head("seghead_extra", "aux")


def _pidnet() -> Names:
    yield from _two_branches()
    yield from _residual("layer3_d", "backbone.boundary3_block0")
    for n in (4, 5):
        yield from _residual(f"layer{n}_d.0", f"backbone.boundary{n}_block0")
    for n in (3, 4):
        yield from _normed(f"diff{n}", f"backbone.diff{n}")
        for side in ("x", "y"):
            yield from _normed(f"pag{n}.f_{side}", f"backbone.pag{n}.{side}")
    yield from _pyramid({"scale_process": "process"})
    for branch in ("p", "i"):
        yield from _normed(f"dfm.conv_{branch}", f"fusion.{branch}")
    yield from _head("final_layer", "classifier")
    yield from _head("seghead_p", "aux")
    yield from _head("seghead_d", "boundary")


_CGNET_BLOCK = {
    "conv1x1.conv": "conv.conv",
    "F_loc.conv": "local",
    "F_sur.conv": "context",
    "F_glo.fc.0": "gate.reduce",
    "F_glo.fc.2": "gate.expand",
}


def _cgnet() -> Names:
    for i in range(3):
        yield f"level1_{i}.conv", f"backbone.stem{i + 1}.conv"
        yield from _sloped(f"level1_{i}", f"backbone.stem{i + 1}.norm")
    for i, theirs in enumerate(("b1", "bn_prelu_2", "bn_prelu_3"), start=1):
        yield from _sloped(theirs, f"backbone.inject{i}")
    for stage, blocks in ((1, 3), (2, 21)):
        for i in range(blocks):
            theirs, norm = f"level{stage + 1}.{i - 1}", ".bn_prelu"
            ours = f"backbone.block{stage}_{i}"
            if i == 0:
                theirs, norm, ours = f"level{stage + 1}_0", "", f"backbone.down{stage}"
                yield f"{theirs}.reduce.conv", f"{ours}.reduce"
            yield from _sloped(f"{theirs}.conv1x1", f"{ours}.conv.norm")
            yield from _sloped(f"{theirs}{norm}", f"{ours}.norm")
            for module, name in _CGNET_BLOCK.items():
                yield f"{theirs}.{module}", f"{ours}.{name}"
    yield "classifier.0.conv", "classifier"
    yield "classifier.1.conv", "classifier"  # behind a dropout


def _esp(theirs: str, ours: str, norm: str = ".bn") -> Names:
    yield f"{theirs}.c1.conv", f"{ours}.reduce"
    for d in (1, 2, 4, 8, 16):
        yield f"{theirs}.d{d}.conv", f"{ours}.dilated{d}"
    yield from _sloped(f"{theirs}{norm}", f"{ours}.norm")


def _espnet_encoder() -> Names:
    yield "level1.conv", "backbone.stem.conv"
    yield from _sloped("level1", "backbone.stem.norm")
    for i in (1, 2, 3):
        yield from _sloped(f"b{i}", f"backbone.inject{i}")
    for stage in (1, 2):
        theirs = f"level{stage + 1}"
        yield from _esp(f"{theirs}_0", f"backbone.down{stage}", norm="")
        for i in range(8):  # the largest q
            yield from _esp(f"{theirs}.{i}", f"backbone.block{stage}_{i + 1}")
    yield "classifier.conv", "classifier"


def _espnet() -> Names:
    for theirs, ours in _espnet_encoder():
        yield f"encoder.{theirs}", ours
    yield "level3_C.conv", "decoder.lateral"
    yield "br", "decoder.norm8"
    yield "up_l3.0", "decoder.up8"
    yield from _sloped("combine_l2_l3.0", "decoder.norm4")
    yield from _esp("combine_l2_l3.1", "decoder.merge")
    yield "up_l2.0", "decoder.up4"
    yield from _sloped("up_l2.1", "decoder.norm2")
    yield "conv.conv", "decoder.conv.conv"
    yield from _sloped("conv", "decoder.conv.norm")
    yield "classifier", "decoder.classifier"


_ENET_KINDS = 2 * ("regular", "dilated", "asymmetric", "dilated")


def _enet() -> Names:
    def unit(theirs, ours, first=0):
        yield from _normed(theirs, ours, first, first + 1)
        yield f"{theirs}.{first + 2}", f"{ours}.norm.slope"

    def bottleneck(theirs, ours, asymmetric=False):
        yield from unit(f"{theirs}.ext_conv1", f"{ours}.reduce")
        yield from unit(f"{theirs}.ext_conv2", f"{ours}.{'conv5x1' if asymmetric else 'conv3x3'}")
        yield from unit(f"{theirs}.ext_conv2", f"{ours}.conv1x5", 3)
        yield from unit(f"{theirs}.ext_conv3", f"{ours}.expand")
        yield f"{theirs}.out_activation", f"{ours}.activation.slope"

    yield "initial_block.main_branch", "backbone.initial.conv"
    yield "initial_block.batch_norm", "backbone.initial.norm"
    yield "initial_block.out_activation", "backbone.initial.norm.slope"
    for section in (1, 2):
        yield from bottleneck(f"downsample{section}_0", f"backbone.bottleneck{section}_0")
    for i in range(1, 5):
        yield from bottleneck(f"regular1_{i}", f"backbone.bottleneck1_{i}")
    for section, first in ((2, 1), (3, 0)):
        for i, kind in enumerate(_ENET_KINDS, start=first):
            place = f"{section}_{i}"
            yield from bottleneck(
                f"{kind}{place}", f"backbone.bottleneck{place}", kind == "asymmetric"
            )
    for place in ("4_1", "4_2", "5_1"):
        yield from bottleneck(f"regular{place}", f"decoder.bottleneck{place}")
    for section in (4, 5):
        theirs, ours = f"upsample{section}_0", f"decoder.bottleneck{section}_0"
        yield from _normed(f"{theirs}.main_conv1", f"{ours}.main")
        yield from unit(f"{theirs}.ext_conv1", f"{ours}.reduce")
        yield f"{theirs}.ext_tconv1", f"{ours}.up2.conv"
        yield f"{theirs}.ext_tconv1_bnorm", f"{ours}.up2.norm"
        yield f"{theirs}.ext_tconv1_activation", f"{ours}.up2.norm.slope"
        yield from _normed(f"{theirs}.ext_conv2", f"{ours}.expand")
        yield f"{theirs}.out_activation", f"{ours}.activation.slope"
    yield "transposed_conv", "decoder.classifier"


def _bisenetv2() -> Names:
    for stage, convolutions in ((1, 2), (2, 3), (3, 3)):
        for i in range(convolutions):
            yield from _conv_bn(f"detail.S{stage}.{i}", f"backbone.detail.conv{stage}_{i + 1}")
    stem = {"conv": "conv", "left.0": "left1", "left.1": "left2", "fuse": "fuse"}
    for theirs, ours in stem.items():
        yield from _conv_bn(f"segment.S1S2.{theirs}", f"backbone.segment.stem.{ours}")
    for stage, layers in (("3", 2), ("4", 2), ("5_4", 4)):
        for i in range(layers):
            theirs = f"segment.S{stage}.{i}"
            ours = f"backbone.segment.layer{stage[0]}_{i + 1}"
            yield from _conv_bn(f"{theirs}.conv1", f"{ours}.conv")
            yield from _normed(f"{theirs}.dwconv{'' if i else 1}", f"{ours}.expand")
            yield from _normed(f"{theirs}.conv2", f"{ours}.project")
            if i == 0:
                yield from _normed(f"{theirs}.dwconv2", f"{ours}.depthwise")
                yield from _normed(f"{theirs}.shortcut", f"{ours}.shortcut_depthwise")
                yield from _normed(f"{theirs}.shortcut", f"{ours}.shortcut_project", 2, 3)
    yield "segment.S5_5.bn", "backbone.segment.context.norm"
    yield from _conv_bn("segment.S5_5.conv_gap", "backbone.segment.context.gap")
    yield from _conv_bn("segment.S5_5.conv_last", "backbone.segment.context.conv")
    for theirs, ours in {"left1": "detail", "right2": "context"}.items():
        yield from _normed(f"bga.{theirs}", f"fusion.{ours}_depthwise")
        yield f"bga.{theirs}.2", f"fusion.{ours}_pointwise"
    for theirs, ours in {"left2": "detail_down", "right1": "context_gate", "conv": "conv"}.items():
        yield from _normed(f"bga.{theirs}", f"fusion.{ours}")
    yield from _conv_bn("head.conv", "classifier.conv")
    yield "head.conv_out.1", "classifier.scores"
    for theirs, ours in {"aux2": "aux2", "aux3": "aux3", "aux4": "aux4", "aux5_4": "aux5"}.items():
        yield from _conv_bn(f"{theirs}.conv", f"{ours}.conv")
        yield from _conv_bn(f"{theirs}.conv_out.0.1", f"{ours}.last")
        yield f"{theirs}.conv_out.1", f"{ours}.scores"


def _stdc_trunk(theirs: str = "", ours: str = "") -> Names:
    for i in range(14):  # as many as STDC2 has
        theirs_i, ours_i = f"{theirs}features.{i}", f"{ours}layer{i}"
        if i < 2:
            yield from _conv_bn(theirs_i, ours_i)
            continue
        for k in range(4):
            yield from _conv_bn(f"{theirs_i}.conv_list.{k}", f"{ours_i}.conv{k + 1}")
        yield from _normed(f"{theirs_i}.avd_layer", f"{ours_i}.down")


def _stdc() -> Names:
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
        yield from _conv_bn(theirs, ours)
    for stride in (16, 32):
        ours = f"context.refine{stride}.attention"
        yield from _normed(f"cp.arm{stride}", ours, "conv_atten", "bn_atten")
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
        "ERFNet's encoder as its authors trained it on ImageNet",
        ("features.encoder.initial_block.conv.weight",),
        dict(_erfnet_trunk()),
        trunk=True,
        ignored=r"(features\.encoder\.output_conv|classifier)\..*",
    ),
    Layout(
        "EACNet on ERFNet as its authors released it",
        ("encoder.initial_block.conv.weight", "eac.gamma"),
        {**dict(_erfnet()), **dict(_attention("eac"))},
    ),
    Layout(
        "EACNet on DABNet as its authors released it",
        ("init_conv.0.conv.weight", "eac_module.gamma"),
        {**dict(_dabnet()), **dict(_attention("eac_module"))},
    ),
    Layout(
        "ERFNet as its authors released it",
        ("encoder.initial_block.conv.weight",),
        dict(_erfnet()),
        hint="the authors' own files have 20 classes, void being the last",
    ),
    Layout(
        "DABNet as its authors released it",
        ("init_conv.0.conv.weight", "DAB_Block_1.DAB_Module_1_0.conv3x3.conv.weight"),
        dict(_dabnet()),
    ),
    Layout(
        "Fast-SCNN of Tramac",
        ("learning_to_downsample.conv.conv.0.weight",),
        dict(_fast_scnn()),
        ignored=r"auxlayer\..*",
    ),
    Layout(
        "Fast-SCNN of mmsegmentation",
        ("backbone.learning_to_downsample.conv.conv.weight", "decode_head.conv_seg.weight"),
        {},
        refused="its pyramid ends in a 3x3 convolution and its separable convolutions lack a ReLU, so it is another"
        " network than the one here; train fast_scnn, or convert Tramac's weights",
    ),
    Layout(
        "DDRNet as its authors released it",
        ("conv1.0.weight", "down4.3.weight"),
        dict(_ddrnet()),
        hint="the network here is DDRNet-23-slim: planes=32, spp_planes=128, head_planes=64",
    ),
    Layout(
        "PIDNet as its authors released it",
        ("conv1.0.weight", "pag3.f_x.0.weight", "layer3_d.conv1.weight"),
        dict(_pidnet()),
        hint="the network here is PIDNet-S",
    ),
    Layout(
        "CGNet as its authors released it",
        ("level1_0.conv.weight", "level2_0.F_sur.conv.weight"),
        dict(_cgnet()),
    ),
    Layout(
        "ESPNet as its authors released it",
        ("encoder.level1.conv.weight", "level3_C.conv.weight"),
        dict(_espnet()),
        hint="the authors' files of CamVid have 12 classes and need skip='inject', those of Cityscapes have 20; void is the"
        " last. blocks=(p, q) is in a file's name",
    ),
    Layout(
        "ESPNet-C as its authors released it",
        ("level1.conv.weight", "level2_0.c1.conv.weight"),
        dict(_espnet_encoder()),
        hint="this is the encoder alone, espnet with decoder=False",
    ),
    Layout(
        "ENet of D. Silva",
        ("initial_block.main_branch.weight", "transposed_conv.weight"),
        dict(_enet()),
        void_first="transposed_conv.weight",
        hint="his files of CamVid have 12 classes, those of Cityscapes 20; void is the last, here of both",
    ),
    Layout(
        "BiSeNetV2 of CoinCheung",
        ("detail.S1.0.conv.weight", "segment.S1S2.conv.conv.weight", "bga.left1.0.weight"),
        dict(_bisenetv2()),
    ),
    Layout(
        "STDC-Seg as its authors released it",
        ("cp.backbone.features.0.conv.weight", "ffm.convblk.conv.weight"),
        dict(_stdc()),
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
