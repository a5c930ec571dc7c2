"""AFFNet (Kuang et al.): python -m rtseg_jax.main --config=configs/affnet.py:cityscapes,patches --workdir=runs/affnet.

Arguments, any of each kind, separated by commas (the first is the default):
    data set   cityscapes | camvid | streets
    stage      scratch    the 150 epochs behind Tables I to III
               patches    150 epochs on eight 880x880 patches of every frame, before those of finetune
               finetune   150 epochs from a patches run: --config.init_from.network=RUN (Section IV-D)
    fusion     concat_ewa | ewa_concat | ewa | concat (Table I) | fpn_pan (Table II)
    final      final_concat | final_add: how the fusion's two branches meet
    attention  plain | residual: whether a CBAM's input is added to its result
    deep       paper-table | text: strides and widths of the deep branch
    length     full | smoke

The paper says Adam, momentum 0.9, weight decay 1e-4, batch 10, 150 epochs from 5e-4 (finetune: 2e-4), random flips and
"random pixel conversion", OWFL + 0.5 CEL with c = 1.02. Readings:
  * the "initial" rate falls to 0, each step, by poly with power 0.9; L2 is added to the gradient, as torch's Adam does;
  * pixel conversion is a jitter of brightness, contrast and saturation by 0.2; pixels are normalised as for ImageNet;
  * the patches lie on a grid of 2 x 4, the only one of eight that covers a frame;
  * scratch and finetune take random 880x880 crops of the whole frames: the size that batch 10 is known to fit;
  * CamVid is not in the paper: crops of the whole 360x480 and as many steps as on Cityscapes, all else the same.
"""

import ml_collections

from configs import common
from rtseg_jax.base import imagenet

# Labelled pixels of each class in the training set, in the order of the train ids.
PIXEL_COUNTS = {
    # The 2975 fine labels.
    "cityscapes": (
        *(2036416525, 336090793, 1260636120, 36199498, 48454166, 67789506, 11477088, 30448193),
        *(879783988, 63949536, 221979646, 67326424, 7463162, 386328286, 14772328, 12990290),
        *(12863955, 5449152, 22861233),
    ),
    # The 367 training labels of the SegNet distribution.
    "camvid": (
        *(10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877),
        *(405385, 184967),
    ),
    # The 240 frames of 128x256 that common.streets trains on, drawn from the seed 1234.
    "streets": (
        *(2650390, 267745, 1509451, 107913, 62914, 250571, 48066, 75770, 829613, 95598, 836879),
        *(90983, 54225, 367698, 118047, 147760, 172733, 30749, 42398),
    ),
}


def schedule(config: ml_collections.ConfigDict, dataset: str) -> None:
    """The training of Section IV-A on a data set."""
    if dataset == "streets":
        common.streets(config)
        return
    config.batch_size = 10
    config.num_epochs = 150
    config.augment.crop = (880, 880)
    config.augment.jitter = (0.2, 0.2, 0.2)
    config.augment.mean = imagenet.MEAN
    config.augment.std = imagenet.STD
    config.optim.lr = 5e-4
    config.optim.method.update({"name": "adam", "weight_decay": 1e-4})
    config.eval.every_epochs = 10
    if dataset == "camvid":
        config.input.mode = "resident"
        config.num_epochs = 1200
        config.augment.crop = (360, 480)
        config.eval.every_epochs = 50


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(
        argument,
        dataset=common.DATASETS,
        stage=("scratch", "patches", "finetune"),
        fusion=("concat_ewa", "ewa_concat", "ewa", "concat", "fpn_pan"),
        final=("final_concat", "final_add"),
        attention=("plain", "residual"),
        deep=("paper-table", "text"),
        length=("full", "smoke"),
    )
    if word["stage"] != "scratch" and word["dataset"] != "cityscapes":
        raise ValueError(f"the stage {word['stage']} is of cityscapes alone; give scratch")
    config = common.base(
        "affnet",
        word["dataset"],
        fusion=word["fusion"],
        final=word["final"].removeprefix("final_"),
        attention_residual=word["attention"] == "residual",
        deep=word["deep"],
    )
    schedule(config, word["dataset"])
    if word["stage"] == "finetune":
        config.optim.lr = 2e-4
        config.init_from.required = True
        config.init_from.modules = ("backbone", "fusion", "classifier")
    if word["length"] == "smoke":
        common.smoke(config)
    elif word["stage"] == "patches":
        config.input.patches = (2, 4, 880, 880)  # rows, columns, (h, w)
    config.loss.update(
        {
            "kind": "owfl",  # or those of the other networks, with their options: "cross_entropy", "ohem"
            "pixel_counts": PIXEL_COUNTS[config.input.dataset],
            "offset": 1.02,
            "ce_weight": 0.5,
        }
    )
    return config
