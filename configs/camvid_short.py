"""CamVid within an hour on two CPU cores: --config=configs/camvid_short.py:eacnet_dabnet.

A recipe of ours, not a paper's: crops grow from 192x256 over 240x320 to the whole 360x480, and the averaged weights
are evaluated. Arguments: any variant of models.VARIANTS, then full | smoke.
"""

import ml_collections

from configs import common, eacnet

VARIANTS = (
    "eacnet_dabnet",
    "eacnet_dabnet_nonlocal",
    "dabnet",
    "eacnet_erfnet",
    "eacnet_erfnet_nonlocal",
    "erfnet_encoder",
    "erfnet",
)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, variant=VARIANTS, length=("full", "smoke"))
    config = common.base(word["variant"], "camvid")
    config.input.mode = "resident"
    config.batch_size = 8
    config.num_epochs = 50
    config.ema_decay = 0.998
    config.augment.crop = (360, 480)
    config.augment.crop_schedule = ((0.5, (192, 256)), (0.85, (240, 320)))
    config.augment.scale_range = (0.5, 2.0)
    config.augment.jitter = (0.3, 0.3, 0.3)
    config.augment.mean = eacnet.CAMVID_MEAN
    config.augment.std = (60.0, 60.0, 60.0)
    config.loss.class_weights = eacnet.CAMVID_WEIGHTS
    config.optim.lr = 1.5e-3
    config.optim.method.update({"name": "adam", "weight_decay": 1e-4})
    config.optim.schedule.warmup_steps = 100
    config.eval.every_epochs = 10
    if word["length"] == "smoke":
        common.smoke(config)
    return config
