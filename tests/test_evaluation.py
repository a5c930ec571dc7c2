"""Evaluation at other sizes, scales and mirrored; submissions that the server takes; the official figures."""

import dataclasses
import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.inference import evaluator
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import program as infer
from rtseg_jax.programs.evaluate import main as evaluate
from rtseg_jax.programs.shared import command_line
from tests import tiny_run

# What the evaluation server expects for train ids 0-18.
SERVER_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.write(tmp_path_factory.mktemp("runs") / "run")


def report_of(run, output, **options):
    given = {"split": "val", "which": "best", "batch_size": 2, "overlays": 0, **options}
    evaluate.evaluate_run(run, output=output, **given)
    return json.loads((output / "evaluation.json").read_text())


def images_and_labels(run):
    config, *_ = networks.load_run(run)
    dataset = data.load(
        "streets", root=None, split="val", size=(64, 128), num_examples=3, seed=1234
    )
    assert (config.seed, config.input.size) == (1234, (64, 128))
    images, labels = zip(*map(dataset.load, range(3)), strict=True)
    return np.stack(images), np.stack(labels)


def confusion_of(labels, classes):
    valid = labels != 255
    pairs = labels[valid].astype(int) * 19 + classes[valid]
    return np.bincount(pairs, minlength=361).reshape(19, 19)


@pytest.fixture(scope="module")
def probabilities(run):
    """(frames, size seen) -> softmax at the frames' size by the network itself, not frozen."""
    config, model, variables, _ = networks.load_run(run)
    given = {"mean": config.augment.mean, "std": config.augment.std}

    @functools.partial(jax.jit, static_argnums=1)
    def probabilities(images, size):
        return jax.nn.softmax(infer.predict(model, variables, images, size=size, **given))

    return lambda images, size: np.asarray(probabilities(jnp.asarray(images), size))


@pytest.mark.parametrize(
    ("options", "sizes", "flip"),
    [
        ({}, [(64, 128)], False),
        ({"size": (32, 64)}, [(32, 64)], False),
        ({"size": "own"}, [(64, 128)], False),
        ({"flip": True}, [(64, 128)], True),
        ({"scales": (0.5,)}, [(32, 64)], False),
        ({"scales": (0.5, 1.0), "flip": True}, [(32, 64), (64, 128)], True),
        ({"scales": (1.0, 2.0), "size": (32, 64)}, [(32, 64), (64, 128)], False),
    ],
)
def test_the_class_of_the_highest_mean_probability(
    run, probabilities, tmp_path, options, sizes, flip
):
    images, labels = images_and_labels(run)
    total = 0
    for size in sizes:
        total = total + probabilities(images, size)
        if flip:
            total = total + probabilities(images[:, :, ::-1], size)[:, :, ::-1]
    expected = confusion_of(labels, total.argmax(-1))
    report = report_of(run, tmp_path, **options)
    # The frozen network rounds otherwise, which decides a pixel in ten thousand.
    assert np.abs(np.array(report["confusion"]) - expected).sum() <= 8
    seen = options.get("size", "own")
    assert report["size"] == list((64, 128) if seen == "own" else seen)
    assert report["scales"] == list(options.get("scales", (1.0,)))
    assert report["flip"] is flip and report["images"] == 3 and report["step"] == 7


def test_plain_evaluation_is_the_frozen_networks_own_answer(run, tmp_path):
    config, model, variables, _ = networks.load_run(run)
    images, labels = images_and_labels(run)
    frozen = infer.freeze(
        model, variables, (2, 64, 128), mean=config.augment.mean, std=config.augment.std
    )
    padded = np.concatenate([images, 0 * images[:1]])
    classes = np.concatenate([frozen(padded[:2]), frozen(padded[2:])])[:3]
    report = report_of(run, tmp_path)
    np.testing.assert_array_equal(report["confusion"], confusion_of(labels, classes))


@pytest.mark.parametrize(
    ("parse", "given", "found"),
    [
        (command_line.parse_size, "512x1024", (512, 1024)),
        (command_line.parse_size, "512,1024", (512, 1024)),
        (command_line.parse_size, "own", "own"),
        (command_line.parse_size, "512", "size '512' is not HEIGHTxWIDTH in pixels"),
        (command_line.parse_size, "0x4", "size '0x4' is not"),
        (command_line.parse_scales, ["0.5", "1"], (0.5, 1.0)),
        (command_line.parse_scales, ["1", "a"], "scales '1,a' are not different numbers above 0"),
        (command_line.parse_scales, ["0"], "scales '0' are"),
        (command_line.parse_scales, ["nan"], "scales 'nan' are"),
        (command_line.parse_scales, ["inf"], "scales 'inf' are"),
        (command_line.parse_scales, ["1", "1.0"], "scales '1,1.0' are"),
        (command_line.parse_scales, [], "scales '' are"),
    ],
)
def test_sizes_and_scales_as_they_are_written(parse, given, found):
    if isinstance(found, str) and found != "own":
        with pytest.raises(ValueError, match=re.escape(found)):
            parse(given)
    else:
        assert parse(given) == found


# What frames become on their way to the network


@pytest.mark.parametrize(
    ("evaluated", "options", "given", "seen"),
    [
        # input.size, eval.size and eval.multiple of the run; frames of 90x70
        ((None, None, 0), {}, (90, 70), (90, 70)),
        ((None, None, 0), {"max_pixels": 1575}, (90, 70), (45, 35)),
        ((None, None, 32), {}, (96, 96), (96, 96)),
        ((None, None, 32), {"multiple": 0}, (90, 70), (90, 70)),
        ((None, (48, 96), 0), {}, (90, 70), (48, 96)),
        (((64, 128), None, 0), {}, (64, 128), (64, 128)),
        (((64, 128), None, 0), {"max_pixels": 1575}, (64, 128), (64, 128)),
        (((64, 128), None, 48), {}, (96, 144), (96, 144)),
        (((64, 128), (48, 96), 0), {}, (64, 128), (48, 96)),
        (((64, 128), (48, 96), 0), {"size": (32, 32)}, (90, 70), (32, 32)),
        (((64, 128), (48, 96), 0), {"size": "own"}, (90, 70), (90, 70)),
    ],
)
def test_frames_come_to_the_network_as_evaluated_or_as_asked_for(evaluated, options, given, seen):
    sizes = dict(zip(("input__size", "eval__size", "eval__multiple"), evaluated, strict=True))
    view = networks.view(tiny_run.override(settings.load("fast_scnn:smoke"), sizes), **options)
    assert (view.given((90, 70)), view.seen(view.given((90, 70)))) == (given, seen)


# What is refused before the work


def test_data_of_other_classes_are_refused(run, tmp_path, monkeypatch):
    config = settings.read(run)
    table = data.TABLES["streets"]
    names = table.class_names
    for others, message in (
        (
            (names[1], names[0], *names[2:]),
            "class 0 is 'sidewalk' in the data and 'road' in the run",
        ),
        (names[:9], "class 9 is missing in the data and 'terrain' in the run"),
        ((*names, "drone"), "class 19 is 'drone' in the data and missing in the run"),
    ):
        other = dataclasses.replace(table, class_names=others, palette=((0, 0, 0),) * len(others))
        own = data.load(**settings.dataset_arguments(config, "val"))
        with monkeypatch.context() as patch:
            patch.setattr(data, "load", lambda t=other, d=own, **_: dataclasses.replace(d, table=t))
            with pytest.raises(
                ValueError, match=f"{message}; give the data the list in .*classes.json"
            ):
                report_of(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_a_folder_is_told_before_the_work(run, city_run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "evaluate", None)
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file is a file where a folder is to be; .* --output"):
            report_of(run, output)
    with pytest.raises(ValueError, match="file is a file where a folder .* another --submission"):
        report_of(city_run, tmp_path / "out", split="test", submit=tmp_path / "file")


def test_the_program_passes_its_flags_on(monkeypatch):
    calls = []
    monkeypatch.setattr(
        evaluate, "evaluate_run", lambda *args, **options: calls.append((args, options))
    )
    monkeypatch.setattr(evaluate, "prepare_process", lambda: None)
    with pytest.raises(ValueError, match="unexpected argument '1.0'; .* lists have commas"):
        evaluate.PROGRAM(["--network=run", "--scales=0.75", "1.0", "test"])
    assert calls == []
    evaluate.PROGRAM(["--workdir=/run", "--split=test", "--scales=0.5,1", "--size=8x9"])
    ((workdir,), options) = calls[0]
    assert workdir == pathlib.Path("/run")
    assert options["output"] == pathlib.Path("/run/evaluation_test")
    assert (options["scales"], options["size"], options["which"]) == ((0.5, 1.0), (8, 9), "best")
