"""Options, files, metrics and losses that hypothesis makes up: what is valid works, what is not says why in one line."""

import io
import math
import os
import pathlib
import re
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rtseg_jax.data import files, spec
from rtseg_jax.inference import metrics
from rtseg_jax.nn import losses
from rtseg_jax.train import loop
from tests import tiny
from tests.train.test_train import log

pytestmark = pytest.mark.usefixtures("tiny_network")
# The same examples in every run of the suite; RTSEG_FUZZ=20 takes twenty times as many, new ones each time.
MORE = int(os.environ.get("RTSEG_FUZZ", "0"))


def examples(count):
    return settings(
        max_examples=count * max(MORE, 1),
        derandomize=not MORE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Values that are allowed, on their own at least, and values that never are.
OPTIONS = {
    "seed": ([0, 1, 2**31], [-1, 2**32]),
    "dtype": (["float32", "bfloat16"], ["float99", ""]),
    "batch_size": ([4, 8], [0, -4, 3, 100]),
    "accumulate": ([1, 2], [0, 3]),
    "remat": ([False, True], []),
    "nonfinite": (["stop", "skip"], ["ignore"]),
    "ema_decay": ([0.0, 0.9], [-0.5, 1.5]),
    "log_every": ([1, 2, 50], [0]),
    "checkpoint_every": ([1, 1000], [0]),
    "loss.kind": (["cross_entropy", "ohem"], ["dice"]),
    "loss.class_weights": ([None, (1.0,) * 19], [(1.0, 2.0), (-1.0,) * 19]),
    "loss.threshold": ([0.7, 1.0], [0.0, 1.5]),
    "loss.min_kept": ([1 / 16, 0.0, 1.0], [-1.0, 2.0]),
    "input.mode": (["resident", "streaming"], ["magic"]),
    "input.size": ([(64, 128), (40, 56)], [(0, 5), (64,)]),
    "input.patches": ([None, (1, 2, 32, 48)], [(0, 1, 8, 8), (2, 4)]),
    "input.canvas": ([None], [(0, 8), (64,)]),
    "input.label_map": ([()], [((7, 0), (8,)), (7, 0)]),
    "input.max_bad": ([0, 2], [-1]),
    "input.num_train": ([8], [0]),
    "input.train_split": (["train", "val"], ["test9"]),
    "input.source": (["files"], ["web"]),
    "augment.crop": ([(64, 128), (32, 48), (33, 47)], [(0, 4), (-1, 8), (32.5, 64)]),
    "augment.crop_schedule": ([(), ((0.5, (32, 32)),)], [((0.5, (0, 32)),)]),
    "augment.squash": ([None, (48, 64)], [(0, 1)]),
    "augment.scales": ([(1.0,), (0.5, 1.0, 2.0)], [(), (0.0,), (-1.0,), (math.inf,)]),
    "augment.scale_range": ([None, (0.5, 2.0)], [(2.0, 0.5), (0.0, 1.0)]),
    "augment.scale_law": (["log_uniform", "uniform"], ["normal"]),
    "augment.min_side": ([0, 80], [-1]),
    "augment.flip": ([0.0, 0.5, 1.0], [-0.5, 2.0]),
    "augment.jitter": ([(0.0, 0.0, 0.0), (0.4, 0.4, 0.4)], [(-1.0, 0.0, 0.0), (0.4,)]),
    "augment.mean": ([(0.0, 0.0, 0.0), (123.0, 116.0, 104.0)], [(1.0, 2.0)]),
    "augment.std": ([(1.0, 1.0, 1.0), (58.0, 57.0, 57.0)], [(0.0, 1.0, 1.0)]),
    "optim.lr": ([1e-3, 0.0], [-1.0, math.nan, math.inf]),
    "optim.schedule.kind": (["poly", "cosine", "step", "constant"], ["cubic"]),
    "optim.schedule.per": (["step", "epoch"], ["year"]),
    "optim.schedule.power": ([0.9, 2.0], [-1.0]),
    "optim.schedule.decay": ([0.1], [-0.5]),
    "optim.schedule.every_epochs": ([1, 100], [0]),
    "optim.schedule.warmup_steps": ([0, 1, 500], [-3]),
    "optim.method.name": (["adam", "adamw", "sgd"], ["lion9"]),
    "optim.method.betas": ([(0.9, 0.999)], [(0.9,), (1.5, 0.9)]),
    "optim.method.momentum": ([0.0, 0.9], [-0.1, 1.5]),
    "optim.method.weight_decay": ([0.0, 1e-4], [-1e-4]),
    "optim.method.groups": (
        [(), (("classifier", 10.0, 1.0),)],
        [(("(", 1.0, 1.0),), (("conv", -1.0, -1.0),)],
    ),
    "eval.batch_size": ([1, 3], [0]),
    "eval.overlays": ([0, 1, 9], [-1]),
    "eval.multiple": ([0, 16], [-8]),
    "eval.size": ([None, (32, 64)], [(0, 1), (32.5, 64)]),
    "eval.every_steps": ([1, 2], [-1]),
}


WRONG = [(name, value) for name, (_, bad) in OPTIONS.items() for value in bad]


def run(folder, **overrides):
    """Two steps of the tiny network; returns the losses that were logged."""
    config = tiny.config(num_steps=2, eval__every_steps=2)
    tiny.override(config, {k.replace(".", "__"): v for k, v in overrides.items()})
    loop.train_and_evaluate(config, str(folder / "run"))
    return [line["loss"] for line in log(folder / "run") if "loss" in line]


def _names(error, name, value):
    """Whether a message says which option it is about: its name, or a value that is one word of many."""
    key = name.rpartition(".")[2].replace("_", "[_ ]")
    return re.search(rf"\b{key}\b", str(error)) or (value and f"'{value}'" in str(error))


@pytest.mark.parametrize("name, value", WRONG, ids=map(str, WRONG))
def test_impossible_options_are_refused(name, value, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        run(tmp_path, **{name: value})
    assert "\n" not in str(error.value)
    assert _names(error.value, name, value)


@st.composite
def combinations(draw):
    names = draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True, min_size=2, max_size=8))
    return {name: draw(st.sampled_from(OPTIONS[name][0])) for name in names}


@examples(6)
@given(combinations())
def test_options_that_are_possible_together_train(chosen):
    """What does not go together says so in one line, all else takes two steps with a finite loss."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            logged = run(pathlib.Path(folder), **chosen)
        except ValueError as error:
            assert "\n" not in str(error)
            assert any(_names(error, *option) for option in chosen.items()), error
        else:
            assert len(logged) == 2 // chosen.get("log_every", 1)
            assert all(map(math.isfinite, logged))


# Files


def encoded(mode, size, **options):
    rng = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 12, (*size, bands) if bands > 1 else size, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode if mode != "P" else "L").save(file, **options)
    return file.getvalue()


FILES = [
    encoded("RGB", (9, 13), format="PNG"),
    encoded("RGB", (9, 13), format="JPEG"),
    encoded("RGBA", (5, 4), format="PNG"),
    encoded("L", (9, 13), format="PNG"),
    encoded("L", (9, 13), format="GIF"),
    encoded("L", (9, 13), format="BMP"),
    encoded("RGB", (9, 13), format="TIFF"),
    b"",
]


@st.composite
def spoilt_files(draw):
    """An image file of which bytes are changed, cut off, added or doubled."""
    content = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(("change", "cut", "add", "double"))):
            case "change" if content:
                content[at] = draw(st.integers(0, 255))
            case "cut":
                del content[at:]
            case "add":
                content[at:at] = draw(st.binary(max_size=8))
            case "double":
                content[at:at] = content[at : at + 30]
    return bytes(content)


@examples(300)
@given(spoilt_files())
def test_any_file_is_an_image_or_is_named(content):
    lut = files.lookup([(i, i) for i in range(12)])
    file = files.Encoded("photo.png", content)
    readers = {
        "image": files.read_image,
        "label": lambda f: files.read_label(f, lut),
        "colours": lambda f: files.read_color_label(f, {(0, 0, 0): 0, (9, 9, 9): 1}),
    }
    for name, read in readers.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow, about what it reads nevertheless
                pixels = read(file)
        except spec.DataError as error:
            assert str(error).startswith("photo.png: ") and "\n" not in str(error)
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == (3 if name == "image" else 2)
            assert name != "label" or pixels.max() < 12


# Metrics and losses


@st.composite
def predictions(draw):
    k = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    label = rng.integers(0, k, (2, 5, 7))
    label[rng.random(label.shape) < draw(st.sampled_from((0.0, 0.3, 1.0)))] = spec.IGNORE
    return k, label.astype(np.int32), rng.integers(0, k, label.shape).astype(np.int32), rng


@examples(60)
@given(predictions())
def test_metrics(drawn):
    k, label, prediction, rng = drawn
    found = np.asarray(metrics.confusion_matrix(jnp.asarray(label), jnp.asarray(prediction), k))
    counted = np.zeros((k, k), int)
    for t, p in zip(label.ravel(), prediction.ravel(), strict=True):
        if t != spec.IGNORE:
            counted[t, p] += 1
    np.testing.assert_array_equal(found, counted)
    scores = metrics.scores(found)
    for value in (*scores.iou, *scores.accuracy, scores.miou, scores.pixel_accuracy):
        assert math.isnan(value) or 0 <= value <= 1
    assert math.isnan(scores.miou) == (not counted.any())
    order = rng.permutation(k)  # the classes' order changes nothing
    other = metrics.scores(found[np.ix_(order, order)])
    np.testing.assert_allclose(other.iou, scores.iou[order])
    np.testing.assert_allclose(other.miou, scores.miou)
    np.testing.assert_allclose(other.frequency_weighted_iou, scores.frequency_weighted_iou)


@examples(60)
@given(predictions(), st.sampled_from((1e-3, 1.0, 1e4, 1e30)), st.booleans())
def test_losses_are_finite_and_torchs(drawn, size, weighted):
    """However sure the logits, whatever is ignored."""
    k, label, _, rng = drawn
    logits = (size * rng.standard_normal((*label.shape, k))).astype(np.float32)
    weights = tuple(rng.random(k) + 0.1) if weighted else None
    value, gradient = jax.value_and_grad(losses.cross_entropy)(
        jnp.asarray(logits), jnp.asarray(label), weights
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()
    if (label != spec.IGNORE).any():
        expected = torch.nn.functional.cross_entropy(
            torch.tensor(np.moveaxis(logits, -1, 1)),
            torch.tensor(label, dtype=torch.long),
            None if weights is None else torch.tensor(weights, dtype=torch.float32),
            ignore_index=spec.IGNORE,
        )
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
    else:
        assert value == 0 and not gradient.any()
    hard = losses.ohem_cross_entropy(jnp.asarray(logits), jnp.asarray(label), weights)
    assert np.isfinite(hard) and (weighted or hard >= value * (1 - 1e-5))
    counts = tuple(int(n) for n in rng.integers(1, 10**9, k))
    focal = losses.object_weighted_focal_loss(
        jnp.asarray(logits),
        jnp.asarray(label),
        losses.frequency_weights(counts, 1.02),
        losses.magnitudes(counts),
    )
    assert np.isfinite(focal) and focal >= 0
