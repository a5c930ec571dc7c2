"""CGNet (IEEE TIP 2021): python -m rtseg_jax.main --config=configs/cgnet.py:cityscapes --config.input.root=DIR.

Arguments: cityscapes | camvid | streets, full | smoke. The paper's and its public code's: Adam from 1e-3 with L2 5e-4 on
all parameters, poly with power 0.9 each step, cross-entropy weighted with 1 / ln(1.10 + p), flips, the scales 0.5, 0.6,
..., 2.0; on Cityscapes 300 epochs of batch 16 and crops of 680x680, on CamVid 800 epochs of batch 8 and crops of 360x360.
Readings:
  * p is measured on the training labels, void not counted;
  * only the mean is subtracted, from pixels in [0, 255];
  * the code trains on CamVid's train and val together (--config.input.train_split=trainval), here on train.
"""

import ml_collections

from configs import common, eacnet

SCALES = tuple(0.5 + k / 10 for k in range(16))
# 1 / ln(1.10 + p), p the shares of the classes in the 2975 fine labels.
CITYSCAPES_WEIGHTS = (
    *(2.6016, 6.7046, 3.5229, 9.8765, 9.6849, 9.3980, 10.2883, 9.9692, 4.3375, 9.4535),
    *(7.6223, 9.4046, 10.3586, 6.3712, 10.2314, 10.2621, 10.2643, 10.3943, 10.0943),
)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, dataset=common.DATASETS, length=("full", "smoke"))
    config = common.base("cgnet", word["dataset"])
    if word["dataset"] == "streets":
        common.streets(config)
    else:
        config.batch_size = 16
        config.num_epochs = 300
        config.augment.crop = (680, 680)
        config.augment.scales = SCALES
        config.augment.mean = eacnet.CITYSCAPES_MEAN
        config.loss.class_weights = CITYSCAPES_WEIGHTS
        config.optim.lr = 1e-3
        config.optim.method.weight_decay = 5e-4
        config.eval.every_epochs = 10
    if word["dataset"] == "camvid":
        config.input.mode = "resident"
        config.batch_size = 8
        config.num_epochs = 800
        config.augment.crop = (360, 360)
        config.augment.mean = eacnet.CAMVID_MEAN
        config.loss.class_weights = eacnet.CAMVID_WEIGHTS
        config.eval.every_epochs = 25
    if word["length"] == "smoke":
        common.smoke(config)
    return config
