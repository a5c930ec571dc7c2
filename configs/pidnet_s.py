"""PIDNet-S (CVPR 2023): --config=configs/pidnet_s.py:cityscapes.

Arguments: cityscapes | camvid | streets, full | smoke. As the authors' public code trains on Cityscapes: SGD from 0.01
with momentum 0.9 and poly 0.9, weight decay 5e-4, batch 12, 484 epochs, crops of 1024x1024, scales 0.5, 0.6, ... 2.1, flips,
Cityscapes' class weights, ImageNet's mean and deviation; OHEM with threshold 0.9, the losses' weights 0.4 (P), 20
(boundaries), 1 and 1, boundaries above 0.8. Readings:
  * OHEM keeps at least 131,072 pixels of the 6 crops of one device, which is 1/48;
  * training begins from scratch unless --config.init_from.file=FILE names the ImageNet weights that the authors begin with;
  * CamVid, theirs too: 200 epochs from 0.005, no class weights, from a network that has learnt Cityscapes
    (--config.init_from.network=RUN), on train and val together (--config.input.train_split=trainval). Crops are the
    whole 360x480 instead of 720x960.
"""

import ml_collections

from configs import common, ddrnet23_slim, eacnet


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, dataset=common.DATASETS, length=("full", "smoke"))
    config = common.base("pidnet_s", word["dataset"])
    ddrnet23_slim.schedule(config, word["dataset"])
    if word["dataset"] == "camvid":
        config.num_epochs = 200
        config.optim.lr = 5e-3
        config.init_from.modules = ("backbone", "pyramid", "fusion")
    if word["length"] == "smoke":
        common.smoke(config)
    weights = (0.4, 20.0, 1.0, 1.0)
    config.loss = common.ohem_loss(0.9, 1 / 48, weights=weights, boundary_threshold=0.8)
    if config.input.dataset == "cityscapes":
        config.loss.class_weights = eacnet.CITYSCAPES_WEIGHTS
    return config
