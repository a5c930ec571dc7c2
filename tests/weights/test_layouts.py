"""Public checkpoints: names as their code gives them, and trunks that compute what plain PyTorch computes."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from rtseg_jax import models
from rtseg_jax.inference.public import read
from rtseg_jax.models import flops
from rtseg_jax.models.zoo.mobilenet import MobileNetV2
from rtseg_jax.models.zoo.resnet import ResNet
from rtseg_jax.models.zoo.stdc import STDC
from rtseg_jax.weights import layouts, torch_files
from tests.networks import load_torch, shapes

LAYOUTS = {layout.name: layout for layout in layouts.LAYOUTS if not layout.refused}
RESNET = "ResNet of torchvision or timm"
TORCHVISION = "MobileNetV2 of torchvision"
TIMM = "MobileNetV2 of timm"
ERFNET = "ERFNet as its authors released it"
DABNET = "DABNet as its authors released it"
FAST_SCNN = "Fast-SCNN of Tramac"
DDRNET = "DDRNet as its authors released it"
PIDNET = "PIDNet as its authors released it"
CGNET = "CGNet as its authors released it"
ESPNET = "ESPNet as its authors released it"
ESPNET_C = "ESPNet-C as its authors released it"
ENET = "ENet of D. Silva"
BISENETV2 = "BiSeNetV2 of CoinCheung"
STDC_SEG = "STDC-Seg as its authors released it"
STDC_TRUNK = "the trunk of STDC-Seg as its authors released it"
ERFNET_TRUNK = "ERFNet's encoder as its authors trained it on ImageNet"
EACNET_ERF = "EACNet on ERFNet as its authors released it"
EACNET_DAB = "EACNet on DABNet as its authors released it"

# Keys as they stand in the public files, at least one for each rule.
PAIRS = {
    RESNET: """
        conv1.weight stem.conv.weight
        bn1.running_var stem.norm.running_var
        layer1.0.conv1.weight stage1_block0.conv1.conv.weight
        layer3.22.bn3.bias stage3_block22.conv3.norm.bias
        layer4.0.downsample.0.weight stage4_block0.shortcut.conv.weight
        layer4.0.downsample.1.weight stage4_block0.shortcut.norm.weight
        fc.weight -
        """,
    TORCHVISION: """
        features.0.0.weight stem.conv.weight
        features.0.1.bias stem.norm.bias
        features.1.conv.0.0.weight stage0_block0.depthwise.conv.weight
        features.1.conv.0.1.weight stage0_block0.depthwise.norm.weight
        features.1.conv.1.weight stage0_block0.project.conv.weight
        features.1.conv.2.bias stage0_block0.project.norm.bias
        features.2.conv.0.0.weight stage1_block0.expand.conv.weight
        features.4.conv.0.1.weight stage2_block0.expand.norm.weight
        features.7.conv.1.0.weight stage3_block0.depthwise.conv.weight
        features.13.conv.1.1.weight stage4_block2.depthwise.norm.weight
        features.14.conv.2.weight stage5_block0.project.conv.weight
        features.17.conv.3.running_mean stage6_block0.project.norm.running_mean
        features.18.0.weight -
        classifier.1.bias -
        """,
    TIMM: """
        conv_stem.weight stem.conv.weight
        bn1.weight stem.norm.weight
        blocks.0.0.conv_dw.weight stage0_block0.depthwise.conv.weight
        blocks.0.0.bn1.weight stage0_block0.depthwise.norm.weight
        blocks.0.0.conv_pw.weight stage0_block0.project.conv.weight
        blocks.0.0.bn2.weight stage0_block0.project.norm.weight
        blocks.3.1.conv_pw.weight stage3_block1.expand.conv.weight
        blocks.3.1.bn1.weight stage3_block1.expand.norm.weight
        blocks.5.2.conv_dw.weight stage5_block2.depthwise.conv.weight
        blocks.5.2.bn2.weight stage5_block2.depthwise.norm.weight
        blocks.6.0.conv_pwl.weight stage6_block0.project.conv.weight
        blocks.6.0.bn3.bias stage6_block0.project.norm.bias
        conv_head.weight -
        bn2.weight -
        classifier.weight -
        """,
    ERFNET: """
        encoder.initial_block.conv.weight backbone.down1.conv.weight
        encoder.initial_block.bn.running_mean backbone.down1.norm.running_mean
        encoder.layers.0.conv.bias backbone.down2.conv.bias
        encoder.layers.1.conv3x1_1.weight backbone.block3.conv3x1_1.weight
        encoder.layers.5.bn1.weight backbone.block7.norm1.weight
        encoder.layers.6.conv.weight backbone.down8.conv.weight
        encoder.layers.7.conv1x3_2.weight backbone.block9.conv1x3_2.weight
        encoder.layers.14.bn2.bias backbone.block16.norm2.bias
        encoder.output_conv.weight classifier.weight
        decoder.layers.0.conv.weight decoder.up17.conv.weight
        decoder.layers.2.conv1x3_1.bias decoder.block19.conv1x3_1.bias
        decoder.layers.3.bn.weight decoder.up20.norm.weight
        decoder.layers.5.conv3x1_2.weight decoder.block22.conv3x1_2.weight
        decoder.output_conv.bias decoder.classifier.bias
        """,
    DABNET: """
        init_conv.0.conv.weight backbone.stem1.conv.weight
        init_conv.2.bn_prelu.bn.bias backbone.stem3.norm.bias
        init_conv.2.bn_prelu.acti.weight backbone.stem3.norm.slope
        bn_prelu_1.bn.weight backbone.inject1.weight
        bn_prelu_3.acti.weight backbone.inject3.slope
        downsample_1.conv3x3.conv.weight backbone.down1.conv.weight
        downsample_2.bn_prelu.acti.weight backbone.down2.norm.slope
        DAB_Block_1.DAB_Module_1_0.bn_relu_1.bn.running_var backbone.block1_1.norm_in.running_var
        DAB_Block_1.DAB_Module_1_2.conv3x3.conv.weight backbone.block1_3.conv3x3.weight
        DAB_Block_2.DAB_Module_2_5.conv3x3.bn_prelu.bn.weight backbone.block2_6.norm_mid.weight
        DAB_Block_2.DAB_Module_2_0.dconv3x1.conv.weight backbone.block2_1.dw3x1.weight
        DAB_Block_2.DAB_Module_2_0.dconv3x1.bn_prelu.bn.weight backbone.block2_1.norm_a1.weight
        DAB_Block_2.DAB_Module_2_0.dconv1x3.bn_prelu.acti.weight backbone.block2_1.norm_a2.slope
        DAB_Block_2.DAB_Module_2_1.ddconv3x1.conv.weight backbone.block2_2.dw3x1_dilated.weight
        DAB_Block_2.DAB_Module_2_1.ddconv3x1.bn_prelu.bn.bias backbone.block2_2.norm_b1.bias
        DAB_Block_2.DAB_Module_2_1.ddconv1x3.conv.weight backbone.block2_2.dw1x3_dilated.weight
        DAB_Block_2.DAB_Module_2_1.ddconv1x3.bn_prelu.bn.bias backbone.block2_2.norm_b2.bias
        DAB_Block_2.DAB_Module_2_1.bn_relu_2.acti.weight backbone.block2_2.norm_out.slope
        DAB_Block_2.DAB_Module_2_1.conv1x1.conv.weight backbone.block2_2.conv1x1.weight
        classifier.0.conv.weight classifier.weight
        """,
    FAST_SCNN: """
        learning_to_downsample.conv.conv.0.weight backbone.downsample.conv.conv.weight
        learning_to_downsample.conv.conv.1.weight backbone.downsample.conv.norm.weight
        learning_to_downsample.dsconv1.conv.0.weight backbone.downsample.dsconv1.depthwise.conv.weight
        learning_to_downsample.dsconv2.conv.1.bias backbone.downsample.dsconv2.depthwise.norm.bias
        learning_to_downsample.dsconv2.conv.3.weight backbone.downsample.dsconv2.pointwise.conv.weight
        learning_to_downsample.dsconv2.conv.4.weight backbone.downsample.dsconv2.pointwise.norm.weight
        global_feature_extractor.bottleneck1.0.block.0.conv.0.weight backbone.unit1_block1.expand.conv.weight
        global_feature_extractor.bottleneck2.1.block.0.conv.1.weight backbone.unit2_block2.expand.norm.weight
        global_feature_extractor.bottleneck3.2.block.1.conv.0.weight backbone.unit3_block3.depthwise.conv.weight
        global_feature_extractor.bottleneck3.2.block.2.weight backbone.unit3_block3.project.conv.weight
        global_feature_extractor.bottleneck3.2.block.3.bias backbone.unit3_block3.project.norm.bias
        global_feature_extractor.ppm.conv1.conv.0.weight backbone.pyramid.pool1.conv.weight
        global_feature_extractor.ppm.conv4.conv.1.weight backbone.pyramid.pool6.norm.weight
        global_feature_extractor.ppm.out.conv.0.weight backbone.pyramid.project.conv.weight
        feature_fusion.dwconv.conv.0.weight fusion.depthwise.conv.weight
        feature_fusion.conv_lower_res.0.bias fusion.deep.conv.bias
        feature_fusion.conv_higher_res.1.weight fusion.shallow.norm.weight
        classifier.dsconv1.conv.0.weight classifier.dsconv1.depthwise.conv.weight
        classifier.dsconv2.conv.4.bias classifier.dsconv2.pointwise.norm.bias
        classifier.conv.1.weight classifier.conv.weight
        auxlayer.0.weight -
        """,
    DDRNET: """
        conv1.0.weight backbone.stem1.conv.weight
        conv1.1.bias backbone.stem1.norm.bias
        conv1.3.bias backbone.stem2.conv.bias
        conv1.4.weight backbone.stem2.norm.weight
        layer2.0.downsample.0.weight backbone.layer2_block0.shortcut.conv.weight
        layer3.1.bn2.weight backbone.layer3_block1.conv2.norm.weight
        layer3_.0.conv1.weight backbone.detail3_block0.conv1.conv.weight
        layer5_.0.conv3.weight backbone.detail5_block0.conv3.conv.weight
        layer5.0.downsample.1.bias backbone.layer5_block0.shortcut.norm.bias
        compression4.0.weight backbone.compress4.conv.weight
        down3.1.weight backbone.down3.norm.weight
        down4.0.weight backbone.down4_1.conv.weight
        down4.4.bias backbone.down4_2.norm.bias
        spp.scale0.0.weight pyramid.scale0.norm.weight
        spp.scale0.2.weight pyramid.scale0.conv.weight
        spp.scale4.1.bias pyramid.scale4.norm.bias
        spp.scale4.3.weight pyramid.scale4.conv.weight
        spp.process2.0.weight pyramid.process2.norm.weight
        spp.process4.2.weight pyramid.process4.conv.weight
        spp.compression.2.weight pyramid.compress.conv.weight
        spp.shortcut.0.bias pyramid.shortcut.norm.bias
        final_layer.bn1.weight classifier.norm.weight
        final_layer.conv1.weight classifier.conv1.conv.weight
        final_layer.bn2.bias classifier.conv1.norm.bias
        final_layer.conv2.bias classifier.conv2.bias
        seghead_extra.conv2.weight aux.conv2.weight
        """,
    PIDNET: """
        conv1.0.weight backbone.stem1.conv.weight
        layer4.2.conv2.weight backbone.layer4_block2.conv2.conv.weight
        layer5.1.bn3.bias backbone.layer5_block1.conv3.norm.bias
        layer4_.1.bn1.weight backbone.detail4_block1.conv1.norm.weight
        layer3_d.conv1.weight backbone.boundary3_block0.conv1.conv.weight
        layer3_d.downsample.0.weight backbone.boundary3_block0.shortcut.conv.weight
        layer5_d.0.bn3.weight backbone.boundary5_block0.conv3.norm.weight
        compression3.1.bias backbone.compress3.norm.bias
        pag3.f_x.0.weight backbone.pag3.x.conv.weight
        pag4.f_y.1.bias backbone.pag4.y.norm.bias
        diff4.0.weight backbone.diff4.conv.weight
        spp.scale0.2.weight pyramid.scale0.conv.weight
        spp.scale1.3.weight pyramid.scale1.conv.weight
        spp.scale_process.0.bias pyramid.process.norm.bias
        spp.scale_process.2.weight pyramid.process.conv.weight
        spp.compression.0.weight pyramid.compress.norm.weight
        spp.shortcut.2.weight pyramid.shortcut.conv.weight
        dfm.conv_p.0.weight fusion.p.conv.weight
        dfm.conv_i.1.weight fusion.i.norm.weight
        final_layer.conv2.bias classifier.conv2.bias
        seghead_p.bn1.weight aux.norm.weight
        seghead_d.conv2.bias boundary.conv2.bias
        """,
    CGNET: """
        level1_0.conv.weight backbone.stem1.conv.weight
        level1_2.bn.running_var backbone.stem3.norm.running_var
        level1_1.act.weight backbone.stem2.norm.slope
        b1.bn.bias backbone.inject1.bias
        bn_prelu_2.act.weight backbone.inject2.slope
        bn_prelu_3.bn.weight backbone.inject3.weight
        level2_0.conv1x1.conv.weight backbone.down1.conv.conv.weight
        level3_0.conv1x1.bn.bias backbone.down2.conv.norm.bias
        level3_0.F_loc.conv.weight backbone.down2.local.weight
        level2_0.F_sur.conv.weight backbone.down1.context.weight
        level2_0.bn.weight backbone.down1.norm.weight
        level3_0.act.weight backbone.down2.norm.slope
        level3_0.reduce.conv.weight backbone.down2.reduce.weight
        level2_0.F_glo.fc.0.bias backbone.down1.gate.reduce.bias
        level2.0.conv1x1.conv.weight backbone.block1_1.conv.conv.weight
        level2.1.conv1x1.act.weight backbone.block1_2.conv.norm.slope
        level3.19.F_loc.conv.weight backbone.block2_20.local.weight
        level3.0.F_sur.conv.weight backbone.block2_1.context.weight
        level3.9.bn_prelu.bn.running_mean backbone.block2_10.norm.running_mean
        level3.9.bn_prelu.act.weight backbone.block2_10.norm.slope
        level3.9.F_glo.fc.2.weight backbone.block2_10.gate.expand.weight
        classifier.0.conv.weight classifier.weight
        classifier.1.conv.weight classifier.weight
        """,
    ESPNET: """
        encoder.level1.conv.weight backbone.stem.conv.weight
        encoder.level3.7.d16.conv.weight backbone.block2_8.dilated16.weight
        encoder.classifier.conv.weight classifier.weight
        level3_C.conv.weight decoder.lateral.weight
        br.running_mean decoder.norm8.running_mean
        up_l3.0.weight decoder.up8.weight
        combine_l2_l3.0.bn.weight decoder.norm4.weight
        combine_l2_l3.0.act.weight decoder.norm4.slope
        combine_l2_l3.1.c1.conv.weight decoder.merge.reduce.weight
        combine_l2_l3.1.d4.conv.weight decoder.merge.dilated4.weight
        combine_l2_l3.1.bn.act.weight decoder.merge.norm.slope
        up_l2.0.weight decoder.up4.weight
        up_l2.1.bn.bias decoder.norm2.bias
        conv.conv.weight decoder.conv.conv.weight
        conv.act.weight decoder.conv.norm.slope
        classifier.weight decoder.classifier.weight
        """,
    ESPNET_C: """
        level1.conv.weight backbone.stem.conv.weight
        level1.bn.running_var backbone.stem.norm.running_var
        level1.act.weight backbone.stem.norm.slope
        b1.bn.bias backbone.inject1.bias
        b3.act.weight backbone.inject3.slope
        level2_0.c1.conv.weight backbone.down1.reduce.weight
        level3_0.d1.conv.weight backbone.down2.dilated1.weight
        level2_0.bn.weight backbone.down1.norm.weight
        level3_0.act.weight backbone.down2.norm.slope
        level2.1.c1.conv.weight backbone.block1_2.reduce.weight
        level3.0.d8.conv.weight backbone.block2_1.dilated8.weight
        level3.7.bn.bn.bias backbone.block2_8.norm.bias
        level3.7.bn.act.weight backbone.block2_8.norm.slope
        classifier.conv.weight classifier.weight
        """,
    ENET: """
        initial_block.main_branch.weight backbone.initial.conv.weight
        initial_block.batch_norm.running_var backbone.initial.norm.running_var
        initial_block.out_activation.weight backbone.initial.norm.slope
        downsample1_0.ext_conv1.0.weight backbone.bottleneck1_0.reduce.conv.weight
        downsample2_0.ext_conv2.1.bias backbone.bottleneck2_0.conv3x3.norm.bias
        regular1_4.ext_conv1.2.weight backbone.bottleneck1_4.reduce.norm.slope
        dilated2_8.ext_conv2.0.weight backbone.bottleneck2_8.conv3x3.conv.weight
        asymmetric2_3.ext_conv2.0.weight backbone.bottleneck2_3.conv5x1.conv.weight
        asymmetric3_6.ext_conv2.3.weight backbone.bottleneck3_6.conv1x5.conv.weight
        asymmetric3_2.ext_conv2.4.running_mean backbone.bottleneck3_2.conv1x5.norm.running_mean
        asymmetric3_2.ext_conv2.5.weight backbone.bottleneck3_2.conv1x5.norm.slope
        regular3_4.ext_conv3.1.weight backbone.bottleneck3_4.expand.norm.weight
        dilated3_7.out_activation.weight backbone.bottleneck3_7.activation.slope
        upsample4_0.main_conv1.0.weight decoder.bottleneck4_0.main.conv.weight
        upsample5_0.ext_conv1.1.bias decoder.bottleneck5_0.reduce.norm.bias
        upsample4_0.ext_tconv1.weight decoder.bottleneck4_0.up2.conv.weight
        upsample5_0.ext_tconv1_bnorm.weight decoder.bottleneck5_0.up2.norm.weight
        upsample5_0.ext_conv2.0.weight decoder.bottleneck5_0.expand.conv.weight
        regular5_1.ext_conv2.0.weight decoder.bottleneck5_1.conv3x3.conv.weight
        transposed_conv.weight decoder.classifier.weight
        """,
    BISENETV2: """
        detail.S1.0.conv.weight backbone.detail.conv1_1.conv.weight
        detail.S3.2.bn.running_var backbone.detail.conv3_3.norm.running_var
        segment.S1S2.conv.conv.weight backbone.segment.stem.conv.conv.weight
        segment.S1S2.left.1.bn.bias backbone.segment.stem.left2.norm.bias
        segment.S1S2.fuse.conv.weight backbone.segment.stem.fuse.conv.weight
        segment.S3.0.conv1.conv.weight backbone.segment.layer3_1.conv.conv.weight
        segment.S3.0.dwconv1.0.weight backbone.segment.layer3_1.expand.conv.weight
        segment.S4.0.dwconv2.1.weight backbone.segment.layer4_1.depthwise.norm.weight
        segment.S4.0.shortcut.1.bias backbone.segment.layer4_1.shortcut_depthwise.norm.bias
        segment.S5_4.0.shortcut.2.weight backbone.segment.layer5_1.shortcut_project.conv.weight
        segment.S5_4.3.dwconv.0.weight backbone.segment.layer5_4.expand.conv.weight
        segment.S5_4.3.conv2.1.weight backbone.segment.layer5_4.project.norm.weight
        segment.S5_5.bn.weight backbone.segment.context.norm.weight
        segment.S5_5.conv_gap.bn.weight backbone.segment.context.gap.norm.weight
        segment.S5_5.conv_last.conv.weight backbone.segment.context.conv.conv.weight
        bga.left1.0.weight fusion.detail_depthwise.conv.weight
        bga.left1.2.weight fusion.detail_pointwise.weight
        bga.left2.1.bias fusion.detail_down.norm.bias
        bga.right1.0.weight fusion.context_gate.conv.weight
        bga.right2.1.weight fusion.context_depthwise.norm.weight
        bga.right2.2.weight fusion.context_pointwise.weight
        bga.conv.0.weight fusion.conv.conv.weight
        head.conv.bn.weight classifier.conv.norm.weight
        head.conv_out.1.bias classifier.scores.bias
        aux2.conv.conv.weight aux2.conv.conv.weight
        aux5_4.conv_out.0.1.bn.weight aux5.last.norm.weight
        aux4.conv_out.1.weight aux4.scores.weight
        """,
    STDC_SEG: """
        cp.backbone.features.0.conv.weight backbone.layer0.conv.weight
        cp.backbone.features.1.bn.running_mean backbone.layer1.norm.running_mean
        cp.backbone.features.2.conv_list.0.conv.weight backbone.layer2.conv1.conv.weight
        cp.backbone.features.13.conv_list.3.bn.bias backbone.layer13.conv4.norm.bias
        cp.backbone.features.4.avd_layer.0.weight backbone.layer4.down.conv.weight
        cp.backbone.features.4.avd_layer.1.weight backbone.layer4.down.norm.weight
        cp.backbone.x8.0.2.conv_list.0.conv.weight -
        cp.backbone.conv_last.bn.weight -
        cp.backbone.linear.weight -
        cp.arm16.conv.conv.weight context.refine16.conv.conv.weight
        cp.arm32.conv.bn.running_var context.refine32.conv.norm.running_var
        cp.arm32.conv_atten.weight context.refine32.attention.conv.weight
        cp.arm16.bn_atten.weight context.refine16.attention.norm.weight
        cp.conv_head32.conv.weight context.smooth32.conv.weight
        cp.conv_head16.bn.bias context.smooth16.norm.bias
        cp.conv_avg.bn.weight context.mean.norm.weight
        ffm.convblk.conv.weight fusion.conv.conv.weight
        ffm.conv1.weight fusion.reduce.weight
        ffm.conv2.weight fusion.expand.weight
        conv_out.conv.bn.weight classifier.conv.norm.weight
        conv_out.conv_out.weight classifier.scores.weight
        conv_out16.conv_out.weight aux8.scores.weight
        conv_out32.conv.conv.weight aux16.conv.conv.weight
        conv_out_sp8.conv_out.weight detail.scores.weight
        conv_out_sp2.conv_out.weight -
        conv_out_sp16.conv.bn.weight -
        """,
    STDC_TRUNK: """
        features.0.conv.weight layer0.conv.weight
        features.2.conv_list.0.conv.weight layer2.conv1.conv.weight
        features.6.avd_layer.1.bias layer6.down.norm.bias
        x32.0.7.conv_list.1.conv.weight -
        fc.weight -
        """,
    ERFNET_TRUNK: """
        features.encoder.initial_block.conv.weight down1.conv.weight
        features.encoder.layers.0.bn.weight down2.norm.weight
        features.encoder.layers.14.conv1x3_2.bias block16.conv1x3_2.bias
        features.encoder.output_conv.weight -
        classifier.linear.weight -
        """,
    EACNET_ERF: """
        encoder.initial_block.conv.weight backbone.down1.conv.weight
        encoder.output_conv.bias classifier.bias
        eac.query_conv.weight attention.query.weight
        eac.value_conv.bias attention.value.bias
        eac.gamma attention.alpha
        """,
    EACNET_DAB: """
        init_conv.0.conv.weight backbone.stem1.conv.weight
        DAB_Block_1.DAB_Module_1_0.conv3x3.conv.weight backbone.block1_1.conv3x3.weight
        classifier.0.conv.weight classifier.weight
        eac_module.key_conv.weight attention.key.weight
        eac_module.gamma attention.alpha
        """,
}
WHOLE = {
    BISENETV2: ("bisenetv2", {}),
    ERFNET: ("erfnet", {}),
    DABNET: ("dabnet", {}),
    FAST_SCNN: ("fast_scnn", {}),
    DDRNET: ("ddrnet23_slim", {}),
    PIDNET: ("pidnet_s", {}),
    CGNET: ("cgnet", {}),
    ESPNET: ("espnet", {}),
    ESPNET_C: ("espnet", {"decoder": False}),
    ENET: ("enet", {}),
}

# Every module of the public networks, in a shell's braces, and how many keys a state dict has.
_CG = "conv1x1.{conv,bn,act},F_loc.conv,F_sur.conv,F_glo.fc.{0,2}"
_ESP = "c1.conv,d1.conv,d2.conv,d4.conv,d8.conv,d16.conv"
_ESP_ENCODER = (
    "{level1.{conv,bn,act},b1.{bn,act},b2.{bn,act},b3.{bn,act},classifier.conv"
    f",{{level2_0,level3_0}}.{{{_ESP},bn,act}}"
    f",{{level2.{{0,1}},level3.{{{','.join(map(str, range(8)))}}}}}.{{{_ESP},bn.{{bn,act}}}}}}"
)
_E = "{ext_conv{1,2,3}.{0,1,2},out_activation}"
MODULES = {
    CGNET: (
        498,
        "level1_{0,1,2}.{conv,bn,act}",
        "{b1,bn_prelu_2,bn_prelu_3}.{bn,act}",
        f"level{{2,3}}_0.{{{_CG},bn,act,reduce.conv}}",
        f"{{level2.{{0,1}},level3.{{{','.join(map(str, range(20)))}}}}}.{{{_CG},bn_prelu.{{bn,act}}}}",
        "classifier.0.conv",
    ),
    ESPNET: (
        210,
        f"encoder.{_ESP_ENCODER}",
        "{level3_C.conv,br,conv.{conv,bn,act},up_l3.0,up_l2.{0,1.{bn,act}},classifier}",
        f"combine_l2_l3.{{0.{{bn,act}},1.{{{_ESP},bn.{{bn,act}}}}}}",
    ),
    ESPNET_C: (170, _ESP_ENCODER),
    ENET: (
        622,
        "initial_block.{main_branch,batch_norm,out_activation}",
        f"{{downsample{{1,2}}_0,regular{{1_1,1_2,1_3,1_4,2_1,2_5,3_0,3_4}}}}.{_E}",
        f"dilated{{2_2,2_4,2_6,2_8,3_1,3_3,3_5,3_7}}.{_E}",
        f"asymmetric{{2_3,2_7,3_2,3_6}}.{{{_E},ext_conv2.{{3,4,5}}}}",
        "regular{4_1,4_2,5_1}.ext_conv{1,2,3}.{0,1}",
        "upsample{4,5}_0.{{main_conv1,ext_conv1,ext_conv2}.{0,1},ext_tconv1,ext_tconv1_bnorm}",
        "transposed_conv",
    ),
}


def pairs(name):
    return dict(line.split() for line in PAIRS[name].strip().splitlines())


@pytest.mark.parametrize("name", LAYOUTS)
def test_names(name):
    layout = LAYOUTS[name]
    for theirs, ours in pairs(name).items():
        assert (layout.rename(theirs) or "-") == ours
    assert layout.rename("what.is.this") == "what.is.this"


@pytest.mark.parametrize("name", LAYOUTS)
def test_recognised(name):
    assert layouts.recognise([*LAYOUTS[name].marks, "x"]) is LAYOUTS[name]
    # Whatever else its files hold: EACNet's have the names of their trunks' networks too.
    assert layouts.recognise([*LAYOUTS[name].marks, *pairs(name)]) is LAYOUTS[name]
    assert layouts.recognise(["backbone.down1.conv.weight"]) is None


def public(layout, variables):
    """A state dict in a layout's names, num_batches_tracked and ignored keys among them."""
    theirs = {}
    for module, ours in layout.modules.items():
        theirs.setdefault(ours, module)
    state = {}
    for name, value in torch_files.to_torch(variables).items():
        module, leaf = (name, "weight") if name in theirs else name.rsplit(".", 1)
        found = theirs[module]
        if f"{found}.{leaf}" == layout.void_first and value.shape[1] == 20:
            value = np.roll(value, 1, axis=1)
        state[f"{found}.{leaf}"] = value
        if leaf == "running_var":
            state[f"{found}.num_batches_tracked"] = np.int64(5)
    assert set(layout.marks) <= set(state)
    ignored = [key for key, ours in pairs(layout.name).items() if ours == "-"]
    return {**state, **dict.fromkeys(ignored, np.zeros(3, np.float32))}


def expand(pattern):
    """The words that a pattern with braces stands for."""
    if not (braces := re.search(r"{([^{}]*)}", pattern)):
        return {pattern}
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return set().union(*(expand(before + word + after) for word in braces[1].split(",")))


@pytest.mark.parametrize("name", MODULES)
def test_all_modules(name):
    """The table is made by loops: their result is all that the public network has."""
    count, *patterns = MODULES[name]
    variant, options = WHOLE[name]
    state = public(LAYOUTS[name], random_like(shapes(variant, 19, **options)))
    assert {key.rpartition(".")[0] for key in state} == set().union(*map(expand, patterns))
    assert len(state) == count


def random_like(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def write(state, path):
    numpy_files = pytest.importorskip("safetensors.numpy")
    numpy_files.save_file({key: np.asarray(value) for key, value in state.items()}, path)


def assert_equal(given, expected):
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, given, expected)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks(name, tmp_path):
    """Every parameter of the network has one key, every key but the ignored ones its parameter."""
    variant, options = WHOLE[name]
    model = models.create(variant, num_classes=20, **options)
    variables = random_like(flops.variable_shapes(model))
    state = public(LAYOUTS[name], variables)
    file = tmp_path / "public.safetensors"
    write({f"module.{key}": value for key, value in state.items()}, file)
    assert_equal(load_torch(file, shapes(variant, 20, **options)), variables)
    trunk = torch_files.load_torch_backbone(file, shapes(variant, **options))
    assert_equal(trunk, {key: {"backbone": tree["backbone"]} for key, tree in variables.items()})

    lost = next(key for key in state if key.endswith(".bias"))
    left = "encoder.more.weight"
    write({**{k: v for k, v in state.items() if k != lost}, left: np.zeros(1)}, file)
    with pytest.raises(ValueError, match=re.escape(f"only in the file: {left}\n  only in the net")):
        load_torch(file, shapes(variant, 20, **options))


@pytest.mark.parametrize(
    ("name", "trunk"),
    [(RESNET, ResNet(d)) for d in (18, 50, 101, 152)]
    + [(n, MobileNetV2(expand_first=False)) for n in (TORCHVISION, TIMM)]
    + [(STDC_TRUNK, STDC(repeats)) for repeats in ((2, 2, 2), (4, 5, 3))],
)
def test_trunks(name, trunk):
    traced = flops.variable_shapes(trunk)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), traced)
    state = public(LAYOUTS[name], variables)
    state.pop("fc.weight", None)
    renamed, layout = torch_files.our_names(state)
    assert layout is LAYOUTS[name]
    assert jax.tree.structure(torch_files.from_torch(renamed, traced)) == jax.tree.structure(
        variables
    )


@pytest.mark.parametrize("variant", ["stdc1", "stdc2"])
def test_inplace_norms(variant, tmp_path):
    """Of the decoder's norms the scale is |weight| + 1e-5; all else of STDC-Seg is taken as it is."""
    state = public(LAYOUTS[STDC_SEG], random_like(shapes(variant)))
    write(state, tmp_path / "stdc.safetensors")
    loaded = torch_files.to_torch(load_torch(tmp_path / "stdc.safetensors", shapes(variant)))
    converted = 0
    for key, value in state.items():
        ours = LAYOUTS[STDC_SEG].rename(key)
        if ours is None or key.endswith("num_batches_tracked"):
            continue
        if "norm.weight" in ours and not ours.startswith("backbone."):
            value, converted = np.abs(value) + np.float32(1e-5), converted + 1
        np.testing.assert_array_equal(loaded.pop(ours), value)
    assert not loaded and converted == 12


def test_a_trunk_is_no_network(tmp_path):
    state = public(LAYOUTS[RESNET], random_like(flops.variable_shapes(ResNet(18))))
    write(state, tmp_path / "resnet18.safetensors")
    with pytest.raises(ValueError, match=r"holds a trunk alone \(ResNet of torchvision or timm\)"):
        read(tmp_path / "resnet18.safetensors", "dabnet")


def test_the_trunk_of_a_network(tmp_path):
    """ImageNet's MobileNetV2 lacks a convolution that CARNet counts; the message says what to do."""
    variables = random_like(flops.variable_shapes(MobileNetV2(expand_first=False)))
    file = tmp_path / "mobilenet_v2.safetensors"
    write(public(LAYOUTS[TORCHVISION], variables), file)
    loaded = torch_files.load_torch_backbone(file, shapes("carnet_mobilenet", expand_first=False))
    assert_equal(loaded, {key: {"backbone": tree} for key, tree in variables.items()})
    with pytest.raises(ValueError, match="only in the network: backbone.stage0_block0") as error:
        torch_files.load_torch_backbone(file, shapes("carnet_mobilenet"))
    assert str(error.value).endswith("published MobileNetV2 weights need expand_first=False")


def test_layouts_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        layouts.LAYOUTS[0].name = "x"
