"""DDRNet-23-slim (IEEE T-ITS 2022): --config=configs/ddrnet23_slim.py:cityscapes.

Arguments: cityscapes | camvid | streets, full | smoke. SGD from 0.01 with momentum 0.9 and poly 0.9, weight decay 5e-4,
batch 12, 484 epochs, crops of 1024x1024, flips, OHEM, an auxiliary loss of weight 0.4, ImageNet's mean and deviation.
Readings (where the authors published no trainer, as the public one of github.com/chenjun2hao/DDRNet.pytorch has it):
  * scales 0.5, 0.6, ... 2.1;
  * OHEM in both losses: threshold 0.9, at least 131,072 pixels of the 8 crops of one device, which is 1/64; Cityscapes'
    class weights are those of its HRNet base;
  * no class-balanced sampling, which the authors' README names without saying how;
  * training begins from scratch unless --config.init_from.file=FILE names the ImageNet weights that the authors begin with;
  * CamVid: crops of the whole 360x480, no class weights, all else the same.
"""

import ml_collections

from configs import common, eacnet
from rtseg_jax.base import imagenet


def schedule(config: ml_collections.ConfigDict, dataset: str) -> None:
    """The training on a data set."""
    if dataset == "streets":
        common.streets(config)
        return
    config.batch_size = 12
    config.num_epochs = 484
    config.augment.crop = (1024, 1024)
    config.augment.scales = tuple(tenths / 10 for tenths in range(5, 22))
    config.augment.mean = imagenet.MEAN
    config.augment.std = imagenet.STD
    config.optim.lr = 1e-2
    config.optim.method.update({"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4})
    config.eval.every_epochs = 10
    if dataset == "camvid":
        config.input.mode = "resident"
        config.augment.crop = (360, 480)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, dataset=common.DATASETS, length=("full", "smoke"))
    config = common.base("ddrnet23_slim", word["dataset"])
    schedule(config, word["dataset"])
    if word["length"] == "smoke":
        common.smoke(config)
    config.loss = common.ohem_loss(0.9, 1 / 64, aux_weight=0.4)
    if config.input.dataset == "cityscapes":
        config.loss.class_weights = eacnet.CITYSCAPES_WEIGHTS
    return config
