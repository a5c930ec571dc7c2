"""ASAP: python -m rtseg_jax.main --config=configs/asap.py:cityscapes --config.input.root=DIR --workdir=runs/asap.

Arguments, any of each kind, separated by commas (the first is the default):
    data set   cityscapes | camvid | streets
    stage      scratch     all weights are drawn
               pretrained  the paper's way: the trunk begins with --config.init_from.file=ImageNet weights of ResNet-18
    fusion     ffdn | ln | in | general | no_fusion (Tables II and III)
    attention  vertical | horizontal | conventional | no_attention (Table III)
    squash     train_squash | no_train_squash (Cityscapes)
    length     full | smoke

The paper says ImageNet weights for ResNet-18, batch 4, SGD with momentum 0.9 and weight decay
1e-4, colour jitter, flips, the scales below (1.25 is not among them), OHEM, and tests frames of 1024x2048 squashed to
1024x1024. Readings:
  * training squashes the frames too, before scale and crop, or people would be wider in training than in the test;
    no_train_squash crops the frames as they are;
  * Table II, where FFDN has 0.8 less than in Table III, is without attention: "ln,no_attention" and so on;
  * rate 0.0025 (SFNet's 0.01 at batch 16), 300 epochs, poly 0.9 after 1000 steps of warm-up from 1e-5, crops of 1024x1024;
  * jitter of brightness, contrast and saturation by 0.5; pixels are normalised as for ImageNet;
  * OHEM: threshold 0.7, at least 1/16 of the pixels, no class weights; both auxiliary losses count in full;
  * CamVid is not in the paper: crops of the whole 360x480, nothing squashed, all else the same.
"""

import ml_collections

from configs import common
from rtseg_jax.base import imagenet


def schedule(config: ml_collections.ConfigDict, dataset: str, train_squash: bool) -> None:
    """The training of Section III on a data set."""
    if dataset == "streets":
        common.streets(config)
        return
    config.batch_size = 4
    config.num_epochs = 300
    config.augment.scales = (0.75, 1.0, 1.5, 1.75, 2.0)
    config.augment.jitter = (0.5, 0.5, 0.5)
    config.augment.mean = imagenet.MEAN
    config.augment.std = imagenet.STD
    config.optim.lr = 2.5e-3
    config.optim.method.update({"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4})
    config.optim.schedule.update({"warmup_steps": 1000, "warmup_start": 4e-3})
    config.eval.every_epochs = 10
    if dataset == "camvid":
        config.input.mode = "resident"
        config.augment.crop = (360, 480)
    else:
        config.augment.squash = (1024, 1024) if train_squash else None
        config.augment.crop = (1024, 1024)
        config.eval.size = (1024, 1024)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(
        argument,
        dataset=common.DATASETS,
        stage=("scratch", "pretrained"),
        fusion=("ffdn", "ln", "in", "general", "no_fusion"),
        attention=("vertical", "horizontal", "conventional", "no_attention"),
        squash=("train_squash", "no_train_squash"),
        length=("full", "smoke"),
    )
    config = common.base(
        "asap",
        word["dataset"],
        fusion="none" if word["fusion"] == "no_fusion" else word["fusion"],
        attention="none" if word["attention"] == "no_attention" else word["attention"],
    )
    schedule(config, word["dataset"], train_squash=word["squash"] == "train_squash")
    config.init_from.required = word["stage"] == "pretrained"
    config.init_from.modules = ("backbone",)
    if word["dataset"] != "streets":
        config.init_from.papers = (
            "the trunk with ImageNet weights: asap.py:pretrained with --config.init_from.file=FILE"
        )
    if word["length"] == "smoke":
        common.smoke(config)
    config.loss = common.ohem_loss(0.7, 1 / 16, aux_weights=(1.0, 1.0))
    return config
