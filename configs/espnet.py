"""ESPNet (ECCV 2018): python -m rtseg_jax.main --config=configs/espnet.py:cityscapes --config.input.root=DIR.

Arguments, any of each kind, separated by commas (the first is the default):
    data set   cityscapes | camvid | streets
    stage      scratch   the whole network at once
               encoder   ESPNet-C: the encoder and its classifier, whose scores have output stride 8
               decoder   the whole network from an encoder run: --config.init_from.network=RUN (Section 4)
    skip       stem | inject: what the decoder meets at stride 2
    length     full | smoke

The paper's and its public code's: Adam from 5e-4 with L2 5e-4, the rate halved every 100 of 300 epochs, batch 6 (12 for
the encoder), cross-entropy weighted with 1 / ln(1.10 + p), flips. Readings:
  * one epoch of the code passes five times over the data, with frames of 1536x768, 1280x720, 1024x512, 768x384 and
    512x256; here each pass draws one of as many scales of 1024x512, and there are 1500 passes, the rate halved every 500;
  * crops of 512x1024 take the place of the code's own crop, which is resized to the frame's size;
  * pixels are normalised as in the code, which divides by 255 once more after mean and deviation; but they are RGB,
    where the code has BGR;
  * p is measured on the training labels; void does not count, where the code has it as a class;
  * the encoder's scores are enlarged to the labels, which the code shrinks to the scores;
  * CamVid: crops of the whole 360x480, all else the same; the mean and deviation are those of its training images.
"""

import ml_collections

from configs import cgnet, common, eacnet

# RGB in [0, 255]: mean and deviation, which the code divides by 255 in the end.
STATISTICS = {
    "cityscapes": ((73.1584, 82.9090, 72.3923), (44.9148, 46.1529, 45.3192)),
    "camvid": ((105.033, 108.409, 110.331), (69.904, 72.691, 72.126)),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """The config that the arguments name."""
    word = common.parse(
        argument,
        dataset=common.DATASETS,
        stage=("scratch", "encoder", "decoder"),
        skip=("stem", "inject"),
        length=("full", "smoke"),
    )
    dataset, encoder = word["dataset"], word["stage"] == "encoder"
    config = common.base("espnet", dataset, skip=word["skip"], decoder=not encoder)
    if dataset == "streets":
        common.streets(config)
    else:
        mean, std = STATISTICS[dataset]
        config.batch_size = 12 if encoder else 6
        config.num_epochs = 1500
        config.augment.crop = (512, 1024)
        config.augment.squash = (512, 1024)
        config.augment.scales = (0.5, 0.75, 1.0, 1.25, 1.5)
        config.augment.mean = mean
        config.augment.std = tuple(255 * s for s in std)
        config.loss.class_weights = cgnet.CITYSCAPES_WEIGHTS
        config.optim.lr = 5e-4
        config.optim.method.weight_decay = 5e-4
        config.optim.schedule.update({"kind": "step", "decay": 0.5, "every_epochs": 500})
        config.eval.every_epochs = 25
        config.eval.size = (512, 1024)
    if dataset == "camvid":
        config.input.mode = "resident"
        config.augment.crop = (360, 480)
        config.augment.squash = None
        config.loss.class_weights = eacnet.CAMVID_WEIGHTS
        config.eval.size = None
    config.init_from.required = word["stage"] == "decoder"
    if word["length"] == "smoke":
        common.smoke(config)
    return config
