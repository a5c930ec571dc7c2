"""ENet (2016): python -m rtseg_jax.main --config=configs/enet.py:camvid --config.input.root=DIR.

Arguments: cityscapes | camvid | streets, full | smoke. The paper's: Adam from 5e-4 with L2 2e-4, batch 10, cross-entropy
weighted with 1 / ln(1.02 + p), frames of 512x1024 and 360x480. Readings, those on training as D. Silva's public code has
them:
  * encoder and decoder at once, where the paper trains the encoder first, on smaller labels;
  * 300 epochs, the rate divided by ten every 100; whole frames without any augmentation; batch 10 on Cityscapes too,
    where the code has 4;
  * pixels are divided by 255;
  * p is measured on the labelled training pixels.
"""

import ml_collections

from configs import common, spssnet


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, dataset=common.DATASETS, length=("full", "smoke"))
    config = common.base("enet", word["dataset"])
    if word["dataset"] == "streets":
        common.streets(config)
    else:
        config.batch_size = 10
        config.num_epochs = 300
        config.augment.crop = (512, 1024)
        config.augment.squash = (512, 1024)
        config.augment.flip = 0.0
        config.augment.std = (255.0, 255.0, 255.0)
        config.loss.class_weights = spssnet.WEIGHTS[word["dataset"]]
        config.optim.lr = 5e-4
        config.optim.method.weight_decay = 2e-4
        config.optim.schedule.update({"kind": "step", "decay": 0.1, "every_epochs": 100})
        config.eval.every_epochs = 10
        config.eval.size = (512, 1024)
    if word["dataset"] == "camvid":
        config.input.mode = "resident"
        config.augment.crop = (360, 480)
        config.augment.squash = None
        config.eval.size = None
    if word["length"] == "smoke":
        common.smoke(config)
    return config
