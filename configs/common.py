"""What the configs share: arguments, data sets, and what a run on a set without a paper's schedule looks like.

No paper's numbers stand here; they are in the config that bears the paper's name.
"""

import ml_collections
from ml_collections import config_dict

DATASETS = ("cityscapes", "camvid", "streets")
PIXELS = {"camvid": 360 * 480, "nyuv2": 480 * 640}


def parse(argument: str | None, **choices: tuple[str, ...]) -> dict[str, str]:
    """Reads "dabnet,camvid,smoke" into one word per choice; the first of each choice is its default.

    Raises:
        ValueError: a word that no choice has, or two of one choice.
    """
    picked = {}
    for word in filter(None, (argument or "").split(",")):
        name = next((n for n, words in choices.items() if word in words), None)
        if name is None:
            allowed = "; ".join(f"{n}: {' | '.join(w)}" for n, w in choices.items())
            raise ValueError(f"unknown argument '{word}'; choose from {allowed}")
        if name in picked:
            raise ValueError(f"both '{picked[name]}' and '{word}' given for {name}; choose one")
        picked[name] = word
    return {n: picked.get(n, words[0]) for n, words in choices.items()}


def base(model: str, dataset: str, **options) -> ml_collections.ConfigDict:
    """Every key that the code reads, with neutral values; a config sets those that its paper speaks of."""
    config = ml_collections.ConfigDict()
    config.seed = 1234
    # Of the computation: "bfloat16" on a TPU or an NVIDIA GPU from Ampere on, not on a T4 or older (docs/training.md).
    config.dtype = "float32"
    config.batch_size = 8  # over all devices together
    config.accumulate = 1  # goes through the network in so many parts, one after the other
    config.remat = False  # activations are computed again for the backward pass instead of kept
    config.num_epochs = 1
    config.num_steps = 0  # if not 0, counts instead of num_epochs
    config.nonfinite = "stop"  # on a loss or gradient that is no number; or "skip" such steps
    config.ema_decay = 0.0  # of averaged weights, which evaluation then uses; 0 = none
    config.log_every = 20  # steps
    config.checkpoint_every = 1000  # steps, besides every evaluation
    config.model = ml_collections.ConfigDict({"name": model, "options": options})
    weights = config_dict.placeholder(tuple)
    config.loss = ml_collections.ConfigDict(
        {"kind": "cross_entropy", "class_weights": weights, "threshold": 0.7, "min_kept": 1 / 16}
    )
    config.input = _input(dataset)
    config.augment = _augment()
    config.optim = _optim()
    config.init_from = ml_collections.ConfigDict(
        {
            "required": False,
            "network": "",  # a run's folder or a bundle, whose weights this run begins with
            "file": "",  # of PyTorch instead, whose backbone it begins with
            "checkpoint": "best",  # of a run
            "modules": ("backbone", "classifier"),  # what is taken; () is whatever fits
            "first": (),  # keys and values of a run that comes before this one, in WORKDIR/first
            "papers": "",  # how the paper begins, said where a run does not
        }
    )
    config.eval = ml_collections.ConfigDict(
        # multiple: pads images, whatever their size, to sides of so many pixels; 0 = all are of one size.
        {"every_epochs": 1, "every_steps": 0, "batch_size": 1, "overlays": 4, "multiple": 0}
    )
    # (h, w) that the network sees; None = the frames'
    config.eval.size = config_dict.placeholder(tuple)
    config.eval.align_corners = False  # how frames and scores are resized
    # Of the data's frames. Prediction shrinks larger ones, which it would see at another scale than it has learnt.
    config.eval.max_pixels = PIXELS.get(dataset, 1024 * 2048)
    return config


def _input(dataset: str) -> ml_collections.ConfigDict:
    given = ml_collections.ConfigDict()
    given.dataset = dataset
    given.source = "files"  # or "tfds": prepared by TensorFlow Datasets, root its data_dir
    given.root = f"data/{dataset}"
    given.mode = "streaming"  # or "resident": decoded once, kept on the device
    given.cache = ""  # a folder: the files are decoded once, into it; "" = none
    given.train_split = "train"
    given.eval_split = "val"
    given.annotation = ""  # where a data set has several, see data.load
    given.classes = ""  # of "folder": its classes file, if not classes.txt or .json
    given.label_map = ()  # of "folder": ((raw value, class or 255 to ignore), ...)
    given.ignore = 255  # of "folder": the raw value that does not count
    given.size = config_dict.placeholder(tuple)  # (h, w) instead of the files' own
    given.patches = config_dict.placeholder(tuple)  # (rows, columns, h, w): train on these
    # (h, w): train on images of any size, larger ones shrunk to it
    given.canvas = config_dict.placeholder(tuple)
    # So many training images may turn out unreadable: the next one takes the place of each. 0 = stop at the first.
    given.max_bad = 0
    given.num_train = config_dict.placeholder(int)  # None = all that there are
    given.num_eval = config_dict.placeholder(int)
    return given


def _augment() -> ml_collections.ConfigDict:
    augment = ml_collections.ConfigDict()
    augment.crop = (512, 1024)  # (h, w)
    augment.crop_schedule = ()  # ((until this fraction of the run, (h, w)), ...)
    augment.squash = config_dict.placeholder(tuple)  # (h, w) of scale 1; None = the frames'
    augment.scales = (1.0,)
    augment.scale_range = config_dict.placeholder(tuple)  # (low, high) instead of the set
    augment.scale_law = "log_uniform"  # or "uniform": how a scale is drawn from that range
    augment.min_side = 0  # pixels: smaller scales are raised until the shorter side has them
    augment.flip = 0.5
    augment.jitter = (0.0, 0.0, 0.0)  # brightness, contrast, saturation
    augment.mean = (0.0, 0.0, 0.0)  # RGB, in [0, 255]
    augment.std = (1.0, 1.0, 1.0)
    augment.channels = "rgb"  # or "bgr": the order in which the network sees them
    return augment


def _optim() -> ml_collections.ConfigDict:
    optim = ml_collections.ConfigDict()
    optim.lr = 1e-3
    optim.schedule = ml_collections.ConfigDict(
        {
            "kind": "poly",  # or "cosine", "step", "constant"
            "per": "step",
            "power": 0.9,
            "decay": 0.1,  # of "step": the rate's factor after every so many epochs
            "every_epochs": 100,
            "warmup_steps": 0,
            "warmup_start": 0.0,
        }
    )
    optim.method = ml_collections.ConfigDict(
        {
            "name": "adam",
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "groups": (),  # ((regex, lr factor, decay factor), ...)
        }
    )
    return optim


def ohem_loss(threshold: float, min_kept: float, **more) -> ml_collections.ConfigDict:
    """Options of a loss of OHEM cross-entropies, and what else that loss takes."""
    weights = config_dict.placeholder(tuple)
    options = {"class_weights": weights, "threshold": threshold, "min_kept": min_kept}
    return ml_collections.ConfigDict({**options, **more})


def new_heads(modules: str) -> tuple[tuple[str, float, float], ...]:
    """Groups for an optimizer: ten times the rate in modules that begin anew, no decay of norms and biases.

    Args:
        modules: Their names, as a regular expression.
    """
    heads, one_dimension = f"^({modules})/", "(scale|bias)$"
    return (
        (f"{heads}.*{one_dimension}", 10.0, 0.0),
        (heads, 10.0, 1.0),
        (one_dimension, 1.0, 0.0),
    )


def streets(config: ml_collections.ConfigDict) -> None:
    """A short run on rendered streets: needs no data and ends within minutes on two CPU cores."""
    config.input.mode = "resident"
    config.input.size = (128, 256)
    config.input.patches = None
    config.input.canvas = None
    config.input.num_train = 240
    config.input.num_eval = 40
    config.num_steps = 200
    config.batch_size = 8
    config.ema_decay = 0.98
    config.augment.crop = (128, 256)
    config.augment.crop_schedule = ()
    config.augment.squash = None
    config.augment.scales = (1.0, 1.25, 1.5)
    config.augment.scale_range = None
    config.augment.min_side = 0
    config.augment.mean = (105.0, 105.0, 105.0)
    config.augment.std = (60.0, 60.0, 60.0)
    config.loss.kind = "cross_entropy"
    config.loss.class_weights = None
    config.optim.lr = 4e-3
    config.optim.schedule.update({"kind": "poly", "per": "step", "warmup_steps": 30})
    config.optim.method.update({"name": "adam", "weight_decay": 1e-4})
    config.eval.update({"every_steps": 100, "batch_size": 8, "size": None, "multiple": 0})


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two steps on rendered frames of 64x128, whatever the data set was: does everything run?"""
    streets(config)
    config.input.dataset = "streets"
    config.input.size = (64, 128)
    config.input.num_train = 8
    config.input.num_eval = 3
    config.num_steps = 2
    config.batch_size = 4
    config.log_every = 1
    config.augment.crop = (32, 64)
    config.init_from.update({"required": False, "papers": ""})
    config.eval.update({"every_steps": 2, "batch_size": 4, "overlays": 1})
