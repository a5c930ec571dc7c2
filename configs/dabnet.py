"""DABNet (BMVC 2019) as EACNet's Table 3 has it: --config=configs/dabnet.py:camvid.

Arguments: cityscapes | camvid | streets, full | smoke. The schedule is configs/eacnet.py's on this backbone, which
is DABNet's own.
"""

import ml_collections

from configs import common, eacnet


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, dataset=common.DATASETS, length=("full", "smoke"))
    config = common.base("dabnet", word["dataset"])
    eacnet.schedule(config, "dabnet", word["dataset"])
    if word["length"] == "smoke":
        common.smoke(config)
    return config
