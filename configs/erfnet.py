"""ERFNet (T-ITS 2018) as EACNet's Table 1 has it: --config=configs/erfnet.py:encoder,cityscapes.

Arguments: base (with the decoder) | encoder (with a 1x1 classifier), cityscapes | camvid | streets, full | smoke.
The schedule is configs/eacnet.py's on this backbone: full-size crops and OHEM, which ERFNet's own paper does not have.
"""

import ml_collections

from configs import common, eacnet


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(
        argument, net=("base", "encoder"), dataset=common.DATASETS, length=("full", "smoke")
    )
    # The encoder's unused head is only in the paper's parameter count; training leaves it out.
    config = (
        common.base("erfnet", word["dataset"], encoder_head=False)
        if word["net"] == "base"
        else common.base("erfnet_encoder", word["dataset"])
    )
    eacnet.schedule(config, "erfnet", word["dataset"])
    if word["length"] == "smoke":
        common.smoke(config)
    return config
