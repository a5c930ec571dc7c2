"""BiSeNetV2 (IJCV 2021) as CoinCheung's public code trains it: --config=configs/bisenetv2.py:cityscapes.

Arguments: cityscapes | camvid | streets, full | smoke. That code trains 150,000 steps of SGD from 5e-3 with momentum 0.9,
ten times that in every head, poly with power 0.9 after 1000 steps of warm-up from a tenth, batch 16 on two GPUs, L2 5e-4 but
on norms and biases, crops of 512x1024, scales from 0.25 to 2 drawn uniformly, flips, jitter of brightness, contrast and
saturation by 0.4, OHEM on all five heads (threshold 0.7, at least 1/16 of the pixels). Its weights have 74.95 mIoU on val, at
one scale of whole frames. Readings:
  * the warm-up is linear, where the code's is exponential;
  * OHEM's lower bound is a share of all pixels, where the code leaves out those that are ignored;
  * the branches start from scratch, where the code starts from ImageNet weights of its own;
  * CamVid is not in that code: crops of the whole 360x480, all else the same.
"""

import ml_collections

from configs import common

MEAN = (83.0535, 94.095, 82.1865)  # of Cityscapes' frames, RGB
STD = (53.856, 54.774, 54.8325)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, dataset=common.DATASETS, length=("full", "smoke"))
    config = common.base("bisenetv2", word["dataset"])
    if word["dataset"] == "streets":
        common.streets(config)
    else:
        config.batch_size = 16
        config.num_steps = 150_000
        config.augment.crop = (512, 1024)
        config.augment.scale_range = (0.25, 2.0)
        config.augment.scale_law = "uniform"
        config.augment.jitter = (0.4, 0.4, 0.4)
        config.augment.mean = MEAN
        config.augment.std = STD
        config.optim.lr = 5e-3
        config.optim.schedule.update({"warmup_steps": 1000, "warmup_start": 0.1})
        config.optim.method.update({"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4})
        config.optim.method.groups = common.new_heads("classifier|aux[2-5]")
        config.eval.every_steps = 5000
    if word["dataset"] == "camvid":
        config.input.mode = "resident"
        config.augment.crop = (360, 480)
    if word["length"] == "smoke":
        common.smoke(config)
    config.loss = common.ohem_loss(0.7, 1 / 16, aux_weight=1.0)
    return config
