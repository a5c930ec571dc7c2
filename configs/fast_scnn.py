"""Fast-SCNN (BMVC 2019), the baseline of AFFNet's Table V: --config=configs/fast_scnn.py:cityscapes.

Arguments: cityscapes | camvid | streets, full | smoke. The schedule is Fast-SCNN's own: 1000 epochs of SGD from 4.5e-2
with momentum 0.9, poly with power 0.9, batch 12, L2 4e-5 but on depth-wise convolutions, scales from 0.5 to 2, flips,
colour noise, cross-entropy. Readings:
  * no auxiliary losses (the paper has two, of weight 0.4): their heads are not described;
  * scales are drawn log-uniformly;
  * crops of 512x1024, and a jitter of brightness, contrast and saturation by 0.4; pixels are normalised as for ImageNet;
  * CamVid is not in the paper: crops of the whole 360x480, all else the same.
"""

import ml_collections

from configs import common
from rtseg_jax.base import imagenet


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, dataset=common.DATASETS, length=("full", "smoke"))
    config = common.base("fast_scnn", word["dataset"])
    if word["dataset"] == "streets":
        common.streets(config)
    else:
        config.batch_size = 12
        config.num_epochs = 1000
        config.augment.crop = (512, 1024)
        config.augment.scale_range = (0.5, 2.0)
        config.augment.scale_law = "log_uniform"
        config.augment.jitter = (0.4, 0.4, 0.4)
        config.augment.mean = imagenet.MEAN
        config.augment.std = imagenet.STD
        config.optim.lr = 4.5e-2
        config.optim.method.update({"name": "sgd", "weight_decay": 4e-5})
        config.optim.method.groups = ((r"depthwise/conv/kernel", 1.0, 0.0),)
        config.eval.every_epochs = 25
    if word["dataset"] == "camvid":
        config.input.mode = "resident"
        config.augment.crop = (360, 480)
    if word["length"] == "smoke":
        common.smoke(config)
    return config
