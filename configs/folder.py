"""Your own data: --config=configs/folder.py:eacnet_dabnet --config.input.root=DIR, see rtseg_jax/data/sets/folder.py for DIR.

A recipe of ours, from scratch or from a backbone's ImageNet weights (--config.init_from.file); the network and its loss
are those of its paper. Arguments: any variant of models.VARIANTS, then full | smoke.

    all frames of one size     nothing to set; crops of 512x512, padded where a frame is smaller
    frames of many sizes       --config.input.canvas=1024,1024 --config.eval.multiple=32
    rare classes               --config.loss.class_weights=..., which rtseg check prints (not for affnet and carnet_*)
    affnet                     needs --config.loss.pixel_counts=..., which rtseg check prints too
"""

import ml_collections
from ml_collections import config_dict

from configs import (
    affnet,
    asap,
    bisenetv2,
    carnet,
    cgnet,
    common,
    dabnet,
    ddrnet23_slim,
    eacnet,
    enet,
    erfnet,
    espnet,
    fast_scnn,
    pidnet_s,
    spssnet,
    stdc,
)

# The config that has a variant's options and loss, and its argument there.
PAPERS = {
    "eacnet_dabnet": (eacnet, "dabnet"),
    "eacnet_dabnet_nonlocal": (eacnet, "dabnet,non_local"),
    "eacnet_erfnet": (eacnet, "erfnet"),
    "eacnet_erfnet_nonlocal": (eacnet, "erfnet,non_local"),
    "dabnet": (dabnet, ""),
    "erfnet": (erfnet, "base"),
    "erfnet_encoder": (erfnet, "encoder"),
    "carnet_mobilenet": (carnet, "mobilenet"),
    "carnet_resnet50": (carnet, "resnet50"),
    "carnet_resnet101": (carnet, "resnet101"),
    "carnet_resnet152": (carnet, "resnet152"),
    "affnet": (affnet, ""),
    "asap": (asap, ""),
    "cgnet": (cgnet, ""),
    "espnet": (espnet, ""),
    "enet": (enet, ""),
    "fast_scnn": (fast_scnn, ""),
    "spssnet": (spssnet, ""),
    "ddrnet23_slim": (ddrnet23_slim, ""),
    "pidnet_s": (pidnet_s, ""),
    "bisenetv2": (bisenetv2, ""),
    "stdc1": (stdc, "stdc1"),
    "stdc2": (stdc, "stdc2"),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(argument, variant=tuple(PAPERS), length=("full", "smoke"))
    paper, argument = PAPERS[word["variant"]]
    source = paper.get_config(f"{argument},streets")
    config = common.base(word["variant"], "folder")
    config.model.options = source.model.options
    config.batch_size = 8
    config.num_epochs = 200
    config.ema_decay = 0.998
    config.augment.crop = (512, 512)
    config.augment.scale_range = (0.5, 2.0)
    config.augment.jitter = (0.3, 0.3, 0.3)
    # Those of init_from.network, else ImageNet's.
    config.augment.mean = config_dict.placeholder(tuple)
    config.augment.std = config_dict.placeholder(tuple)
    config.optim.lr = 1e-3
    config.optim.method.update({"name": "adamw", "weight_decay": 1e-2})
    config.optim.schedule.warmup_steps = 100
    config.eval.every_epochs = 10
    config.init_from.modules = ()
    if word["length"] == "smoke":
        common.smoke(config)
    config.loss = source.loss
    if word["variant"] == "affnet" and word["length"] == "full":
        config.loss.pixel_counts = ()
    return config
