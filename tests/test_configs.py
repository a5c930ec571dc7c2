"""Every config loads, is locked, fits the loop, has no key that the code never reads."""

import itertools
import re

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from rtseg_jax import models
from rtseg_jax.base import config as settings
from rtseg_jax.train import loop
from tests import tiny
from tests.networks import ZOO

COMBINATIONS = [
    *(
        f"eacnet:{','.join(words)}"
        for words in itertools.product(
            ("dabnet", "erfnet"),
            ("cityscapes", "camvid", "streets"),
            ("scratch", "two_stage", "stage1", "stage2", "control"),
            ("self_calibration", "non_local"),
        )
    ),
    *(f"dabnet:{d}" for d in ("cityscapes", "camvid", "streets")),
    *(f"erfnet:{n},{d}" for n in ("base", "encoder") for d in ("cityscapes", "camvid", "streets")),
    *(
        f"carnet:{b},{d},{s}"
        for b in ("mobilenet", "resnet50", "resnet101", "resnet152")
        for d in ("nyuv2", "ade20k", "cityscapes", "camvid", "streets")
        for s in ("scratch,carnet", "pretrained,scloss", "carmodule", "bs")
    ),
    *(
        f"affnet:cityscapes,{w}"
        for w in ("scratch", "patches", "finetune", "final_add", "residual", "text")
    ),
    *(
        f"affnet:{d},{f}"
        for d in ("camvid", "streets")
        for f in ("concat_ewa", "ewa_concat", "ewa", "concat", "fpn_pan")
    ),
    *(
        f"asap:{d},{f},{a}"
        for d in ("cityscapes", "camvid", "streets")
        for f in ("ffdn", "ln", "in", "general", "no_fusion")
        for a in ("vertical", "horizontal", "conventional", "no_attention")
    ),
    *(
        f"{n}:{d}"
        for n in ("fast_scnn", "spssnet", "ddrnet23_slim", "pidnet_s", "cgnet", "espnet", "enet")
        for d in ("cityscapes", "camvid", "streets")
    ),
    *(f"espnet:{d},encoder" for d in ("cityscapes", "camvid", "streets")),
    *(f"espnet:{d},decoder,inject" for d in ("cityscapes", "camvid", "streets")),
    *(f"{n}:{d}" for n in ("fast_scnn", "spssnet") for d in ("cityscapes", "camvid", "streets")),
    *(f"bisenetv2:{d}" for d in ("cityscapes", "camvid", "streets")),
    *(f"stdc:{n},{d}" for n in ("stdc1", "stdc2,75") for d in ("cityscapes", "camvid", "streets")),
    *(f"folder:{v}" for v in models.VARIANTS),
    *(f"camvid_best:{v},{r}" for v in models.VARIANTS for r in ("full", "short,trainval")),
]


@pytest.mark.parametrize("spec", COMBINATIONS)
def test_loads_locked_and_builds_its_network(spec):
    config = settings.load(spec)
    assert config.is_locked
    if spec == "folder:affnet":  # one's own pixels are counted first
        with pytest.raises(ValueError, match=r"loss.pixel_counts=\(\) .*check_data prints them"):
            settings.check(config)
    else:
        settings.check(config)
    model = models.create(config.model.name, num_classes=2, **settings.model_options(config))
    if "stage1" in spec or "control" in spec or "no_attention" in spec:
        assert model.attention == "none"
    elif "non_local" in spec:
        assert model.attention == "non_local"
    classes = {"cityscapes": 19, "streets": 19, "camvid": 11}
    for key in ("class_weights", "pixel_counts"):
        if config.loss.get(key):  # of one's own classes there are none yet
            assert len(config.loss[key]) == classes[config.input.dataset]


@pytest.mark.parametrize(
    "spec",
    [
        "eacnet:dabnet,streets,non_local",
        "erfnet:base,streets",
        "carnet:mobilenet,streets,carnet",
        "carnet:mobilenet,streets,bs",
        "carnet:resnet50,streets,carmodule",
        "affnet:streets,fpn_pan",
        "asap:streets,general,conventional",
        "fast_scnn:streets",
        "spssnet:streets",
        "ddrnet23_slim:streets",
        "pidnet_s:streets",
        "cgnet:streets",
        "espnet:streets,encoder",
        "enet:streets",
        "bisenetv2:streets",
        "stdc:stdc1,streets",
    ],
)
def test_loss_takes_what_its_config_says(spec):
    """Shapes only: the network's outputs under train go into the loss with the config's arguments."""
    config = settings.load(spec)
    model = models.create(config.model.name, num_classes=19, **settings.model_options(config))

    def loss(key, image, label):
        outputs, _ = model.init_with_output({"params": key, "dropout": key}, image, train=True)
        return models.get(config.model.name).loss(outputs, {"label": label}, **config.loss)

    image = jax.ShapeDtypeStruct((2, 33, 64, 3), jnp.float32)
    label = jax.ShapeDtypeStruct((2, 33, 64), jnp.int32)
    value, terms = jax.eval_shape(loss, jax.random.key(0), image, label)
    assert value.shape == () and {x.shape for x in terms.values()} == {()} and "loss" in terms


def test_every_shipped_config_is_tried_here():
    assert {spec.partition(":")[0] for spec in COMBINATIONS} == set(settings.shipped_configs())


OTHERS = ("erfnet", "carnet", "affnet", "fast_scnn", "spssnet", "stdc", *ZOO[:6])


@pytest.mark.parametrize(
    "spec",
    [
        # Of the others, test_models compiles loss and gradient, and the loss has its config's arguments above.
        "camvid_best:affnet,trainval,smoke",
        *(
            pytest.param(f"{spec}smoke", marks=pytest.mark.slow)
            for spec in ("eacnet:erfnet,", "asap:", *(f"{name}:" for name in OTHERS))
        ),
    ],
)
def test_trains_two_steps(spec, tmp_path):
    result = loop.train_and_evaluate(settings.load(spec), str(tmp_path / "run"))
    assert result["step"] == 2


def test_the_papers_values():
    """Section 4.1 and the readings, literally."""
    erf = settings.load("eacnet:erfnet,cityscapes")
    assert (erf.augment.crop, erf.augment.scales) == (
        (512, 1024),
        (0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
    )
    assert (erf.num_epochs, erf.batch_size, erf.optim.lr) == (400, 8, 5e-4)
    assert (erf.optim.method.name, erf.optim.method.weight_decay) == ("adam", 1e-4)
    assert (erf.optim.schedule.per, erf.optim.schedule.power) == ("epoch", 0.9)
    assert (erf.loss.kind, erf.loss.threshold, erf.loss.min_kept) == ("ohem", 0.7, 1 / 16)
    dab = settings.load("eacnet:dabnet,cityscapes")
    assert (dab.num_epochs, dab.optim.lr, dab.optim.method.name) == (1000, 4.5e-2, "sgd")
    assert (dab.optim.schedule.warmup_steps, dab.optim.schedule.warmup_start) == (500, 1 / 3)
    camvid = settings.load("eacnet:camvid")
    assert (camvid.num_epochs, camvid.batch_size, camvid.optim.lr) == (1000, 16, 1e-3)
    assert (camvid.augment.crop, camvid.optim.method.weight_decay) == ((360, 480), 2e-4)


def _trainer(config):
    method, schedule = config.optim.method, config.optim.schedule
    return (
        (config.batch_size, config.num_epochs, config.augment.crop),
        (method.name, config.optim.lr, method.weight_decay),
        (schedule.kind, schedule.decay, schedule.every_epochs)
        if schedule.kind == "step"
        else (schedule.kind, schedule.power, schedule.warmup_steps),
    )


@pytest.mark.parametrize(
    ("spec", "data", "method", "schedule"),
    [
        ("carnet:nyuv2", (6, 300, (500, 500)), ("sgd", 5e-3, 1e-5), ("step", 0.5, 100)),
        ("carnet:ade20k", (6, 300, (580, 580)), ("sgd", 1e-2, 1e-5), ("step", 0.2, 100)),
        ("carnet:cityscapes", (6, 300, (800, 800)), ("sgd", 1e-2, 1e-5), ("step", 0.2, 100)),
        ("affnet:patches", (10, 150, (880, 880)), ("adam", 5e-4, 1e-4), ("poly", 0.9, 0)),
        ("affnet:finetune", (10, 150, (880, 880)), ("adam", 2e-4, 1e-4), ("poly", 0.9, 0)),
        ("asap", (4, 300, (1024, 1024)), ("sgd", 2.5e-3, 1e-4), ("poly", 0.9, 1000)),
        ("fast_scnn", (12, 1000, (512, 1024)), ("sgd", 4.5e-2, 4e-5), ("poly", 0.9, 0)),
        ("ddrnet23_slim", (12, 484, (1024, 1024)), ("sgd", 1e-2, 5e-4), ("poly", 0.9, 0)),
        ("pidnet_s", (12, 484, (1024, 1024)), ("sgd", 1e-2, 5e-4), ("poly", 0.9, 0)),
        ("pidnet_s:camvid", (12, 200, (360, 480)), ("sgd", 5e-3, 5e-4), ("poly", 0.9, 0)),
        ("cgnet", (16, 300, (680, 680)), ("adam", 1e-3, 5e-4), ("poly", 0.9, 0)),
        ("enet", (10, 300, (512, 1024)), ("adam", 5e-4, 2e-4), ("step", 0.1, 100)),
        ("espnet", (6, 1500, (512, 1024)), ("adam", 5e-4, 5e-4), ("step", 0.5, 500)),
        ("espnet:encoder,camvid", (12, 1500, (360, 480)), ("adam", 5e-4, 5e-4), ("step", 0.5, 500)),
        ("cgnet:camvid", (8, 800, (360, 360)), ("adam", 1e-3, 5e-4), ("poly", 0.9, 0)),
        ("bisenetv2", (16, 1, (512, 1024)), ("sgd", 5e-3, 5e-4), ("poly", 0.9, 1000)),
        ("stdc:stdc2,75", (48, 1, (512, 1024)), ("sgd", 1e-2, 5e-4), ("poly", 0.9, 1000)),
    ],
)
def test_the_other_papers_values(spec, data, method, schedule):
    """CARNet Section IV, AFFNet Section IV-A, ASAP Section III, Fast-SCNN Section 4, the others' code, and the readings, literally."""
    config = settings.load(spec)
    assert _trainer(config) == (data, method, schedule)
    if spec.startswith("carnet"):
        assert config.optim.method.groups == ((r"^backbone/", 0.1, 1.0),)
        assert (config.loss.semantic_weight, config.loss.semantic_terms) == (0.2, 4)
    if spec == "affnet:patches":
        assert config.input.patches == (2, 4, 880, 880)
        assert (config.loss.offset, config.loss.ce_weight) == (1.02, 0.5)
    if spec == "asap":
        assert config.augment.scales == (0.75, 1.0, 1.5, 1.75, 2.0)
        assert config.augment.squash == config.eval.size == (1024, 1024)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("eacnet:dabnet,erfnet", "both 'dabnet' and 'erfnet'"),
        ("eacnet:kitti", "unknown argument 'kitti'"),
        ("nothing_such", "no config 'nothing_such'"),
    ],
)
def test_wrong_arguments(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        settings.load(spec)


def test_no_key_is_never_read(tmp_path, monkeypatch, tiny_network):
    """A config that records what is read off it; a key nobody asks for is a lie to the user."""
    config = tiny.config()
    every = {
        k
        for k in settings.keys(config)
        if not isinstance(_get(config, k), ml_collections.ConfigDict)
    }
    read = set()
    original = ml_collections.ConfigDict.__getitem__
    names = {id(config): ""}

    def record(self, key):
        value = original(self, key)
        prefix = names.get(id(self))
        if prefix is not None:
            if isinstance(value, ml_collections.ConfigDict):
                names[id(value)] = f"{prefix}{key}."
            read.add(f"{prefix}{key}")
        return value

    monkeypatch.setattr(ml_collections.ConfigDict, "__getitem__", record)
    # Writing config.json and checking it read everything, and would hide what nothing else reads.
    monkeypatch.setattr(settings, "write", lambda config, workdir: None)
    monkeypatch.setattr(settings, "check", lambda config: None)
    with config.unlocked():
        config.init_from.network = ""
    loop.train_and_evaluate(config, str(tmp_path / "run"))
    # Read only with init_from.network, where steps are not given, and by prediction.
    elsewhere = {"init_from.checkpoint", "init_from.modules", "num_epochs", "eval.every_epochs"}
    assert every - read == {*elsewhere, "eval.max_pixels"}


def _get(config, dotted):
    for part in dotted.split("."):
        config = config[part]
    return config
