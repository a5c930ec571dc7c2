"""CARNet (IEEE Access 2020): python -m rtseg_jax.main --config=configs/carnet.py:resnet50,nyuv2 --workdir=runs/carnet.

Arguments, any of each kind, separated by commas (the first is the default):
    backbone   mobilenet | resnet50 | resnet101 | resnet152
    data set   nyuv2 | ade20k | cityscapes | camvid | streets
    stage      scratch     all weights are drawn, BatchNorm learns its statistics
               pretrained  the trunk goes on from --config.init_from.file=ImageNet weights, or another run's workdir
                           (of a MobileNetV2 from scratch with --config.model.options.expand_first=True, see below)
    rows       carnet | scloss | carmodule | bs: Table 5, from the whole network down to trunk and classifier
    length     full | smoke

The paper says SGD, momentum 0.9, weight decay 1e-5, batch 6, 300 epochs, random flips and scales from 0.5 to 2; the
trunk's rate is a tenth of the decoder's (5e-3 on NYUDv2, 1e-2 elsewhere); crops of 500, 580 and 800 pixels. Readings
(light-weight RefineNet, whose decoder this is, forgot its momentum every 100 epochs, scaled images with a cubic, and
padded all around; the scales are its):
  * the rate is constant for 100 epochs, then halved (NYUDv2), or reduced *to* one fifth ("by one-fifth"; the literal
    0.8 would be --config.optim.schedule.decay=0.8). Weight decay acts on all parameters, momentum is never reset;
  * "until the accuracy stops improving" is: evaluate every 5 epochs and keep the best. On NYUDv2 that chooses by the
    test split, as there is no other: a best checkpoint is a little optimistic;
  * scales are drawn uniformly, and raised until the shorter side has 350 pixels; pixels are normalised as for
    ImageNet, so padding has the mean colour;
  * pretrained keeps BatchNorm's running statistics, as six images change them too much, but trains scale and offset;
    published MobileNetV2 weights lack a 1x1 convolution that the paper's FLOPs count;
  * Cityscapes: crops come from frames of 1024x2048, evaluation shows the network 512x1024, the size of Table 1;
  * ADE20K's images are of many sizes: crops come from the image at its own size (one of more than 1024 pixels
    shrunk to that), evaluation repeats its last row and column up to a multiple of 32 and scores the image alone;
  * CamVid is not in the paper: NYUDv2's schedule on crops of the whole 360x480, all scales as drawn;
  * the semantic loss is the mean of a binary cross-entropy, see rtseg_jax/models/carnet.py.
"""

import ml_collections

from configs import common
from rtseg_jax.base import imagenet

CROPS = {"nyuv2": (500, 500), "ade20k": (580, 580), "cityscapes": (800, 800), "camvid": (360, 480)}
# Modules, chained residual pooling, semantic terms.
ROWS = {
    "carnet": (4, True, 4),
    "scloss": (4, False, 4),
    "carmodule": (4, False, 0),
    "bs": (0, False, 0),
}


def schedule(config: ml_collections.ConfigDict, dataset: str) -> None:
    """The training of Section IV-A on a data set."""
    if dataset == "streets":
        common.streets(config)
        return
    small = dataset in ("nyuv2", "camvid")
    config.batch_size = 6
    config.num_epochs = 300
    config.augment.crop = CROPS[dataset]
    config.augment.scale_range = (0.5, 2.0)
    config.augment.scale_law = "uniform"
    config.augment.min_side = 0 if dataset == "camvid" else 350
    config.augment.flip = 0.5
    config.augment.mean = imagenet.MEAN
    config.augment.std = imagenet.STD
    config.optim.lr = 5e-3 if small else 1e-2  # of the decoder
    config.optim.schedule.update(
        {"kind": "step", "decay": 0.5 if small else 0.2, "every_epochs": 100}
    )
    config.optim.method.update({"name": "sgd", "momentum": 0.9, "weight_decay": 1e-5})
    config.optim.method.groups = ((r"^backbone/", 0.1, 1.0),)
    config.eval.every_epochs = 5
    if small:
        config.input.mode = "resident"
    if dataset == "nyuv2":
        config.input.eval_split = "test"
    if dataset == "ade20k":
        config.input.canvas = (1024, 1024)
        config.eval.multiple = 32
    if dataset == "cityscapes":
        config.eval.size = (512, 1024)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(
        argument,
        backbone=("mobilenet", "resnet50", "resnet101", "resnet152"),
        dataset=("nyuv2", "ade20k", "cityscapes", "camvid", "streets"),
        stage=("scratch", "pretrained"),
        rows=tuple(ROWS),
        length=("full", "smoke"),
    )
    modules, crp, terms = ROWS[word["rows"]]
    mobile, pretrained = word["backbone"] == "mobilenet", word["stage"] == "pretrained"
    config = common.base(
        f"carnet_{word['backbone']}",
        word["dataset"],
        num_modules=modules,
        crp=crp,
        dropout=0.0 if mobile else 0.5,
        frozen_statistics=pretrained,
        expand_first=not (mobile and pretrained),
    )
    schedule(config, word["dataset"])
    config.init_from.required = pretrained
    config.init_from.modules = ("backbone",)
    if word["dataset"] != "streets":
        config.init_from.papers = "the trunk with ImageNet weights: carnet.py:pretrained with --config.init_from.file=FILE"
    if word["length"] == "smoke":
        common.smoke(config)
        config.input.eval_split = "val"
    config.loss = ml_collections.ConfigDict(
        {
            "semantic_weight": 0.2,  # lambda of Eq. 3
            "semantic_terms": terms,  # modules whose semantic loss counts
            "semantic": "bce",  # or "paper": Eq. 5 as it is printed
            "reduction": "mean",  # over the classes, or "sum"
        }
    )
    return config
