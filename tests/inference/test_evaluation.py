"""Evaluation at other sizes, scales and mirrored; submissions that the server takes; the official figures."""

import dataclasses
import functools
import json
import pathlib
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.data.sets import cityscapes
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import program as infer
from rtseg_jax.programs.evaluate import main as evaluate
from rtseg_jax.programs.evaluate import submission
from rtseg_jax.programs.shared import command_line
from tests import tiny

# What the evaluation server expects for train ids 0-18.
SERVER_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_network):
    return tiny.write(tmp_path_factory.mktemp("runs") / "run", tiny.config())


def report_of(run, output, **options):
    given = {"split": "val", "which": "best", "batch_size": 2, "overlays": 0, **options}
    evaluate.evaluate_run(run, output=output, **given)
    return json.loads((output / "evaluation.json").read_text())


def images_and_labels(run):
    config = networks.load(run).config
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
    trained = networks.load(run)
    model, variables, augment = trained.model, trained.variables, trained.config.augment
    given = {"mean": augment.mean, "std": augment.std}

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_evaluation_is_the_frozen_networks_own_answer(run, tmp_path, dtype):
    trained = networks.load(run)
    augment = trained.config.augment
    images, labels = images_and_labels(run)
    given = {"mean": augment.mean, "std": augment.std, "dtype": jnp.dtype(dtype)}
    frozen = infer.freeze(trained.model, trained.variables, (2, 64, 128), **given)
    padded = np.concatenate([images, 0 * images[:1]])
    classes = np.concatenate([frozen(padded[:2]), frozen(padded[2:])])[:3]
    report = report_of(run, tmp_path, dtype=dtype)
    np.testing.assert_array_equal(report["confusion"], confusion_of(labels, classes))
    assert report["dtype"] == dtype


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
        ((None, None, 0), {"max_pixels": 1024}, (73, 56), (37, 32)),
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
    view = networks.view(tiny.override(settings.load("fast_scnn:smoke"), sizes), **options)
    assert (view.given((90, 70)), view.seen(view.given((90, 70)))) == (given, seen)


def test_a_network_of_small_frames_sees_large_ones_small():
    """As the config of CamVid says; a config of before that is silent sees up to a frame of Cityscapes."""
    config = settings.load("eacnet:dabnet,camvid")
    assert networks.view(config).seen((720, 960)) == (360, 480)
    with config.unlocked():
        del config.eval.max_pixels
    assert networks.view(config).seen((720, 960)) == (720, 960)


# What is refused before the work


def test_data_of_other_classes_are_refused(run, tmp_path, monkeypatch):
    config = settings.read(run)
    table = data.TABLES["streets"]
    names = table.class_names
    for others, message in (
        (
            (names[1], names[0], *names[2:]),
            "class 0 is 'sidewalk' in the data and 'road' in the network",
        ),
        (names[:9], "class 9 is missing in the data and 'terrain' in the network"),
        ((*names, "drone"), "class 19 is 'drone' in the data and missing in the network"),
    ):
        other = dataclasses.replace(table, class_names=others, palette=((0, 0, 0),) * len(others))
        own = data.load(**settings.dataset_arguments(config, "val"))
        with monkeypatch.context() as patch:
            patch.setattr(data, "load", lambda t=other, d=own, **_: dataclasses.replace(d, table=t))
            with pytest.raises(
                ValueError, match=f"{message}; give the data the network's list, in its"
            ):
                report_of(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_a_folder_is_told_before_the_work(run, city_run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", None)
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


# Cityscapes

FRAMES = {
    "val": ("frankfurt_000000_000294", "lindau_000001_000019"),
    "test": ("berlin_000000_000019", "berlin_000001_000019", "bonn_000000_000019"),
}


def label_of(i):
    """Stripes of all official ids, in each of which a tenth belongs to one instance."""
    return np.roll(
        np.repeat(np.arange(34, dtype=np.uint8), 64)[:2048][None].repeat(1024, 0), 100 * i
    )


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """The official tree with few images, at full size; the labels of test are blank, as in the archive."""
    root = tmp_path_factory.mktemp("data") / "cityscapes"
    rng = np.random.default_rng(0)
    for split, names in FRAMES.items():
        for i, name in enumerate(names):
            small = Image.fromarray(rng.integers(0, 256, (8, 16, 3), np.uint8))
            label = label_of(i) * (split != "test")
            instances = label.astype(np.uint16)
            for thing in (24, 26, 33):
                part = np.zeros_like(instances, bool)
                part[: 200 + 100 * i] = True
                instances[part & (label == thing)] = 1000 * thing
            files = {
                f"leftImg8bit/{split}/{{}}_leftImg8bit.png": small.resize((2048, 1024)),
                f"gtFine/{split}/{{}}_gtFine_labelIds.png": Image.fromarray(label),
                f"gtFine/{split}/{{}}_gtFine_instanceIds.png": Image.fromarray(instances),
            }
            for path, image in files.items():
                path = root / path.format(f"{name.split('_')[0]}/{name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path, compress_level=1)
    return root


@pytest.fixture(scope="module")
def city_run(city, tmp_path_factory):
    """Of Fast-SCNN, which sees frames of 64x128, so that little is computed."""
    given = {"input__dataset": "cityscapes", "input__root": str(city), "input__num_eval": 1}
    workdir = tmp_path_factory.mktemp("runs") / "city"
    return tiny.write(workdir, input__size=(64, 128), **given)


def test_a_submission_of_the_test_split(city_run, tmp_path, capsys):
    folder = tmp_path / "submission"
    report = report_of(city_run, tmp_path / "out", split="test", batch_size=1, submit=folder)
    out = capsys.readouterr().out
    assert "3 label maps pass the server's rules" in out and "there are no scores" in out
    assert (report["miou"], report["images"], report["size"]) == (None, 3, [64, 128])
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{name}_labelIds.png" for name in FRAMES["test"]]
        for name in FRAMES["test"]:
            with archive.open(f"{name}_labelIds.png") as file, Image.open(file) as image:
                assert (image.mode, image.size) == ("L", (2048, 1024))
                ids = np.asarray(image)
            assert len(np.unique(ids)) > 1 and set(np.unique(ids)) <= set(SERVER_IDS)


def test_written_ids_are_the_servers(tmp_path):
    classes = np.arange(19, dtype=np.uint8)[None]
    submission.write(tmp_path, "berlin_000000_000019", classes)
    written = np.asarray(Image.open(tmp_path / "berlin_000000_000019_labelIds.png"))
    assert written.tolist() == [SERVER_IDS]


def test_the_official_figures(city_run, city, tmp_path, capsys):
    """IoU as counted here, and iIoU as the instances' weights by hand."""
    pytest.importorskip("cityscapesscripts", reason="needs the extra [cityscapes]")
    report = report_of(city_run, tmp_path, batch_size=1, official=True)
    official = report["official"]
    assert official["miou"] == pytest.approx(report["miou"], abs=1e-12)
    assert official["iou_by_class"] == pytest.approx(report["iou"], abs=1e-12, nan_ok=True)
    assert f"mIoU {100 * report['miou']:.2f}" in " ".join(capsys.readouterr().out.split())
    hit = missed = false = 0
    for i, name in enumerate(FRAMES["val"]):
        ids = np.asarray(Image.open(tmp_path / "submission" / f"{name}_labelIds.png"))
        label = label_of(i)
        instance = (label == 26) & (np.arange(1024)[:, None] < 200 + 100 * i)
        weight = 12794.0202738185 / instance.sum()
        hit += weight * (ids[instance] == 26).sum()
        missed += weight * (ids[instance] != 26).sum()
        false += ((ids == 26) & (label != 26) & np.isin(label, SERVER_IDS)).sum()
    assert official["iiou_by_class"]["car"] == pytest.approx(hit / (hit + missed + false))


def test_the_official_evaluation_of_a_perfect_submission(city, tmp_path):
    pytest.importorskip("cityscapesscripts", reason="needs the extra [cityscapes]")
    for i, name in enumerate(FRAMES["val"]):
        submission.write(tmp_path, name, cityscapes.LABEL_IDS[label_of(i)] % 255 % 19)
    result = submission.evaluate(tmp_path, city, "val", FRAMES["val"])
    assert result["averageScoreClasses"] == result["averageScoreCategories"] == 1
    assert result["classInstScores"]["car"] == 1


MAP = np.full((1024, 2048), 7, np.uint8)
DAMAGES = {
    "missing": (None, "missing; every image of the split needs one"),
    "half size": (MAP[::2, ::2], "512x1024 pixels (h x w); expects 1024x2048"),
    "train ids": (MAP * 0, "values 0 are no label ids that are evaluated; allowed are 7-8, 11-13,"),
    "ignored ids": (MAP + 2, "values 9 are no label ids"),
    "colours": (np.dstack([MAP] * 3), "a PNG of mode RGB; expects an 8-bit grey PNG"),
    "16 bits": (MAP.astype(np.uint16), "mode I;16; expects an 8-bit grey PNG"),
    "cut off": (b"\x89PNG\r\n\x1a\n", "cannot be read ("),
}


def fill(folder):
    for name in FRAMES["test"]:
        (folder / name[:4]).mkdir(exist_ok=True)  # folders are allowed
        Image.fromarray(MAP).save(folder / name[:4] / f"{name}_leftImg8bit.png", compress_level=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_submission_that_breaks_a_rule(damage, tmp_path):
    fill(tmp_path)
    assert submission.check(tmp_path, FRAMES["test"]) == []
    content, message = DAMAGES[damage]
    path = tmp_path / "berl" / "berlin_000001_000019_leftImg8bit.png"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        Image.fromarray(content).save(path, compress_level=1)
    problems = submission.check(tmp_path, FRAMES["test"])
    assert len(problems) == 1 and message in problems[0]
    assert "berlin_000001_000019" in problems[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "berlin_000001_000019_again.png",
            "berlin_000001_000019 has berlin_000001_000019_again.png",
        ),
        ("overview.png", "belongs to no image of the split"),
        ("munich_000001_000019.png", "belongs to no image of the split"),
    ],
)
def test_a_submission_with_a_file_too_many(name, message, tmp_path):
    fill(tmp_path)
    Image.fromarray(MAP).save(tmp_path / name, compress_level=1)
    problems = submission.check(tmp_path, FRAMES["test"])
    assert len(problems) == 1 and message in problems[0].replace("_leftImg8bit", "_again")


def test_a_bad_submission_is_not_packed(city_run, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "write", lambda *arguments: None)
    with pytest.raises(
        ValueError, match=r"the submission breaks .*: .* missing; .* \(and 2 more\)"
    ):
        report_of(city_run, tmp_path / "out", split="test", batch_size=1, submit=tmp_path / "s")
    assert not (tmp_path / "s.zip").exists()


@pytest.mark.parametrize(
    ("split", "missing", "message"),
    [
        ("test", None, "unknown split 'test' of the official evaluation; choose one of train, val"),
        ("val", "cityscapesscripts", r"pip install 'rtseg_jax\[cityscapes\]'"),
    ],
)
def test_what_the_official_evaluation_needs_is_said_first(
    city_run, tmp_path, monkeypatch, split, missing, message
):
    found = lambda name: None if name == missing else True  # noqa: E731
    monkeypatch.setattr(submission.importlib.util, "find_spec", found)
    with pytest.raises(ValueError, match=message):
        report_of(city_run, tmp_path / "out", split=split, batch_size=1, official=True)
    assert not (tmp_path / "out").exists()


def test_the_official_evaluation_finds_labels_below_the_home_folder(
    city_run, city, tmp_path, monkeypatch
):
    roots = []
    monkeypatch.setenv("HOME", str(city.parent))
    monkeypatch.setattr(submission, "check_truths", lambda root, *_: roots.append(root))
    monkeypatch.setattr(evaluate, "_official", lambda folder, root, _: roots.append(root))
    report_of(city_run, tmp_path, batch_size=1, root="~/cityscapes", official=True)
    assert roots == [city, city]


def test_a_missing_instance_map_is_named(city, monkeypatch):
    monkeypatch.setattr(submission.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(FileNotFoundError, match="ulm_000000_000019_gtFine_labelIds.png: missing"):
        submission.check_truths(city, "val", ["ulm_000000_000019"])


def test_another_data_set_has_no_submission(run, tmp_path):
    with pytest.raises(ValueError, match="of cityscapes with its fine .*; this run is of streets"):
        report_of(run, tmp_path / "out", submit=tmp_path / "s")


def test_a_folder_with_something_in_it_is_no_new_submission(city_run, tmp_path):
    (tmp_path / "old.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        report_of(city_run, tmp_path / "out", split="test", submit=tmp_path)
