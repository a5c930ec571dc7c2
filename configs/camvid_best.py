"""Any network on CamVid from scratch, by one recipe of ours: --config=configs/camvid_best.py:eacnet_dabnet,trainval.

Arguments, any of each kind, separated by commas (the first is the default):
    network    a name of models.VARIANTS: eacnet_dabnet, asap, ...; CARNet's and AFFNet's options and losses are their own
    split      train     the checkpoint with the best val mIoU is kept
               trainval  train and val together, the last weights are kept; what is said of val then means nothing
    length     full      1000 epochs of batch 16, for a GPU
               short     112 epochs of batch 4 for two CPU cores; crops grow from 192x256 over 240x320 to the whole 360x480;
                         little dropout in ERFNet, which a short run does not overfit (1,001 steps with its own rates
                         of 0.03 and 0.3: 33.2 mIoU on val, with these: 40.2)
               smoke

Not a paper's: Adam, poly 0.9 after a warm-up, averaged weights, scales drawn log-uniformly from 0.5 to 2, flips and a
jitter of brightness, contrast and saturation. The loss is that of the network's paper, if that is not cross-entropy;
cross-entropy is weighted as in configs/eacnet.py.
"""

import ml_collections

from configs import common, eacnet, folder


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(
        argument,
        network=tuple(folder.PAPERS),
        split=("train", "trainval"),
        length=("full", "short", "smoke"),
    )
    paper, of_paper = folder.PAPERS[word["network"]]
    config = paper.get_config(f"{of_paper},camvid")
    config.input.train_split = word["split"]
    config.batch_size = 16
    config.num_steps, config.num_epochs = 0, 1000
    config.ema_decay = 0.999
    config.augment.crop = (360, 480)
    config.augment.scale_range = (0.5, 2.0)
    config.augment.scale_law = "log_uniform"
    config.augment.jitter = (0.3, 0.3, 0.3)
    config.augment.mean = eacnet.CAMVID_MEAN
    config.augment.std = (60.0, 60.0, 60.0)
    if config.loss.get("kind") == "cross_entropy":
        config.loss.class_weights = eacnet.CAMVID_WEIGHTS
    config.optim.lr = 1e-3
    config.optim.method.update({"name": "adam", "weight_decay": 1e-4, "groups": ()})
    config.optim.schedule.update(
        {"kind": "poly", "per": "step", "warmup_steps": 500, "warmup_start": 0.0}
    )
    config.eval.update({"every_steps": 0, "every_epochs": 25})
    if word["length"] == "short":
        config.batch_size = 4
        config.num_epochs = 112
        config.augment.crop_schedule = ((0.5, (192, 256)), (0.85, (240, 320)))
        config.optim.schedule.warmup_steps = 100
        config.eval.every_epochs = 10
        if "erfnet" in word["network"]:
            config.model.options.dropout = (0.0, 0.1)
    if word["split"] == "trainval":
        config.eval.every_epochs = 10**6  # only at the end: val is no judge
    if word["length"] == "smoke":
        common.smoke(config)
        config.input.train_split = "train"
        config.loss = paper.get_config(f"{of_paper},smoke").loss
    return config
