"""SPSSNet as AFFNet's Table III has it: --config=configs/spssnet.py:cityscapes.

Arguments: cityscapes | camvid | streets, full | smoke. AFFNet's authors trained it again "under the same training
environment": the schedule is configs/affnet.py's. Reading: the loss is SPSSNet's weighted cross-entropy, with the
weights 1 / ln(1.02 + f) of AFFNet's Eq. 4, f measured on the labelled training pixels.
"""

import ml_collections

from configs import affnet, common

WEIGHTS = {
    "cityscapes": (
        *(3.0454, 12.8621, 4.5099, 38.1569, 35.2528, 31.4826, 45.7922, 39.6941, 6.0639, 32.1648),
        *(17.1092, 31.5633, 47.3340, 11.6107, 44.6004, 45.2371, 45.2829, 48.1478, 41.9246),
    ),
    "camvid": (
        *(5.6035, 4.2953, 33.5736, 3.3355, 15.4856, 8.7387, 31.5420, 32.0120, 12.8288, 38.0141),
        43.9074,
    ),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, dataset=common.DATASETS, length=("full", "smoke"))
    config = common.base("spssnet", word["dataset"])
    config.loss.class_weights = WEIGHTS.get(word["dataset"])
    affnet.schedule(config, word["dataset"])
    if word["length"] == "smoke":
        common.smoke(config)
    return config
