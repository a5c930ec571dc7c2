"""STDC-Seg (CVPR 2021) as its authors' code trains it: --config=configs/stdc.py:stdc1,cityscapes.

Arguments, any of each kind, separated by commas (the first is the default):
    network    stdc1 | stdc2
    data set   cityscapes | camvid | streets
    frames     50 | 75, in which frames of Cityscapes are tested: 512x1024 or 768x1536 (STDC1-Seg50 and so on)
    length     full | smoke

That code starts from ImageNet weights (--config.init_from.file=STDCNet813M_73.91.tar, STDCNet1446_76.47.tar) and trains 60,000
steps of SGD from 1e-2 with momentum 0.9, ten times that in the fusion and the heads, poly with power 0.9 after 1000 steps
of warm-up from 1e-5, batch 48 on three GPUs, L2 5e-4 but on norms, crops of 512x1024, twelve scales from 0.125 to 1.5 (frames
smaller than the crop are enlarged to it), flips, jitter of brightness, contrast and saturation by 0.5, OHEM on three heads
(threshold 0.7, at least 1/16 of the pixels), binary cross-entropy and dice loss of the details. CamVid, says the paper:
batch 24, 10,000 steps, warm-up 200. Readings:
  * the warm-up is linear, where the code's is exponential;
  * the trunk's norms learn, where the code's optimizer leaves their scales and biases as they came from ImageNet;
  * a tested frame is resized with half-pixel centres, where the code aligns the corners (--config.eval.align_corners=True);
  * CamVid's crops are the whole 360x480, where the paper's are 720x960.
"""

import ml_collections

from configs import common
from rtseg_jax.base import imagenet

FRAMES = {"50": (512, 1024), "75": (768, 1536)}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(
        argument,
        network=("stdc1", "stdc2"),
        dataset=common.DATASETS,
        frames=tuple(FRAMES),
        length=("full", "smoke"),
    )
    config = common.base(word["network"], word["dataset"])
    if word["dataset"] == "streets":
        common.streets(config)
    else:
        config.batch_size = 48
        config.num_steps = 60_000
        config.augment.crop = (512, 1024)
        config.augment.scales = tuple(i / 8 for i in range(1, 13))
        config.augment.min_side = 512
        config.augment.jitter = (0.5, 0.5, 0.5)
        config.augment.mean = imagenet.MEAN
        config.augment.std = imagenet.STD
        config.optim.lr = 1e-2
        config.optim.schedule.update({"warmup_steps": 1000, "warmup_start": 1e-3})
        config.optim.method.update({"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4})
        config.optim.method.groups = common.new_heads("fusion|classifier|aux8|aux16|detail")
        config.eval.every_steps = 2000
        config.eval.size = FRAMES[word["frames"]]
    if word["dataset"] == "camvid":
        config.input.mode = "resident"
        config.batch_size = 24
        config.num_steps = 10_000
        config.augment.crop = (360, 480)
        config.augment.min_side = 360
        config.optim.schedule.warmup_steps = 200
        config.eval.size = None
    if word["length"] == "smoke":
        common.smoke(config)
    config.loss = common.ohem_loss(0.7, 1 / 16, aux_weight=1.0, detail_weight=1.0)
    return config
