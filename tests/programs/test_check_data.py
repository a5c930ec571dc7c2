"""Every kind of damage, planted in a good set, is found and named; classes, weights and pictures are those of the files."""

import io
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.data import pipeline, spec
from rtseg_jax.programs import check_data
from rtseg_jax.train import loop
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
H, W = 12, 16
RNG = np.random.default_rng(3)
IMAGES = {
    (s, i): RNG.integers(0, 256, (H, W, 3), np.uint8) for s in ("train", "val") for i in "abc"
}
LABEL = (np.arange(H * W).reshape(H, W) % 12).astype(
    np.uint8
)  # 16 pixels of each class and of void


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path):
    """The SegNet tree with three images to train on and three to evaluate on."""
    root = tmp_path / "camvid"
    for (split, name), image in IMAGES.items():
        for folder, array in ((split, image), (f"{split}annot", LABEL)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{name}.png").write_bytes(png(array))
    return root


def config_of(root, name="eacnet:camvid", **given):
    config = settings.load(name)
    with config.unlocked():
        config.batch_size = 3
        config.input.dataset = "camvid"
        config.input.update({"root": str(root), "size": None, "num_train": None, "num_eval": None})
        config.input.update(given)
    return config.lock()


def check(root, tmp_path, **given):
    return check_data.check(config_of(root, **given), tmp_path / "out")


def test_a_good_set(root, tmp_path, capsys):
    assert check(root, tmp_path) == []
    text = capsys.readouterr().out
    assert "camvid train: 3 pairs, 12x16\ncamvid val: 3 pairs, 12x16\n" in text
    assert "note" not in text
    rows = [line.split() for line in text.splitlines()]
    assert ["%", "of", "pixels", "train", "val"] in rows
    for name in (*spec.TABLES["camvid"].class_names, "ignored"):
        assert [name, "8.333", "8.333"] in rows


# Files

FLIPPED = bytearray(png(LABEL))
FLIPPED[45] ^= 16
WRONG = LABEL.copy()
WRONG[0, :3] = 40, 41, 99
FILES = {
    "image cut off": ("train/b.png", png(IMAGES["train", "b"])[:200], "truncated or corrupt ("),
    "image empty": ("train/b.png", b"", "the file is empty; copy it again"),
    "image a web page": ("train/b.png", b"<html>404</html>", "not an image, or its header is"),
    "image of 16 bits": (
        "train/b.png",
        png(np.zeros((H, W), np.uint16)),
        "a 16-bit image; expects 8 bits per channel",
    ),
    "image of 1 bit": ("train/b.png", png(LABEL > 4), "an image of mode 1; expects 8-bit RGB"),
    "label cut off": ("trainannot/b.png", png(LABEL)[:60], "truncated or corrupt ("),
    "label with a flipped bit": ("trainannot/b.png", bytes(FLIPPED), "truncated or corrupt ("),
    "label empty": ("trainannot/b.png", b"", "the file is empty; copy it again"),
    "label a git-lfs pointer": (
        "trainannot/b.png",
        b"version https://git-lfs.github.com/spec/v1\n",
        "not an image, or its header is corrupt",
    ),
    "label of colours": (
        "trainannot/b.png",
        png(IMAGES["train", "b"]),
        "a label of mode RGB holds colours; expects an index or grey PNG of class ids",
    ),
    "label with alpha": (
        "trainannot/b.png",
        png(np.dstack([LABEL, LABEL])),
        "a label of mode LA whose channels are equal",
    ),
    "label of 16 bits": (
        "trainannot/b.png",
        png(LABEL.astype(np.uint16)),
        "a 16-bit grey label; expects an 8-bit PNG",
    ),
    "label of 1 bit": ("trainannot/b.png", png(LABEL > 4), "a 1-bit grey label; expects"),
    "label a JPEG": ("trainannot/b.png", png(LABEL, format="JPEG"), "a JPEG file; expects"),
    "label too small": (
        "trainannot/b.png",
        png(LABEL[:5]),
        "the label is 5x16 pixels (h x w) but its image",
    ),
    "label turned": (
        "trainannot/b.png",
        png(LABEL.T.copy()),
        "the label is 16x12 pixels (h x w) but its image",
    ),
    "label out of range": (
        "trainannot/b.png",
        png(WRONG),
        "label values 40-41, 99 are not allowed; allowed are 0-11; ",
    ),
}


def same_line_stops_training(root, line):
    dataset = data.load("camvid", root=root, split="train")
    for read in (
        lambda: pipeline.Resident(dataset),
        lambda: list(pipeline.Streaming(dataset, seed=0, batch_size=3, start_step=0, num_steps=1)),
    ):
        with pytest.raises(spec.DataError) as raised:
            read()
        assert str(raised.value).startswith(line)


@pytest.mark.parametrize("fault", FILES)
def test_a_damaged_file(root, tmp_path, fault):
    path, content, message = FILES[fault]
    (root / path).write_bytes(content)
    (line,) = check(root, tmp_path)
    assert line.startswith(f"{root / path}: {message}") and "\n" not in line
    same_line_stops_training(root, line)


def test_a_file_that_cannot_be_read(root, tmp_path):
    path = root / "train" / "b.png"
    path.unlink()
    path.symlink_to(root / "nowhere")
    (line,) = check(root, tmp_path)
    assert line == f"{path}: cannot be read (No such file or directory); check the file"
    same_line_stops_training(root, line)


def test_every_damage_is_found_at_once(root, tmp_path, capsys):
    """In both splits, beside good pairs, none hidden by another."""
    for k, (path, content, _) in enumerate(FILES.values()):
        for kind, good in (("", IMAGES["val", "a"]), ("annot", LABEL)):
            (root / f"val{kind}" / f"d{k}.png").write_bytes(png(good))
        (root / path.replace("train", "val").replace("b.png", f"d{k}.png")).write_bytes(content)
    path, content, message = FILES["label of colours"]
    (root / path).write_bytes(content)
    first, *lines = check(root, tmp_path)
    assert first.startswith(f"{root / path}: {message}")
    expected = {
        str(root / p.replace("train", "val").replace("b.png", f"d{k}.png")): m
        for k, (p, _, m) in enumerate(FILES.values())
    }
    assert len(lines) == len(FILES)
    for line in lines:
        assert line.startswith(f"{(path := line.partition(': ')[0])}: {expected.pop(path)}")
    assert not expected
    assert f"camvid val: {3 + len(FILES)} pairs, 12x16\n" in capsys.readouterr().out


# What keeps a split from being listed


def refused(root):
    """What the training split of this folder is refused with."""
    with pytest.raises(FileNotFoundError) as raised:
        data.load("camvid", root=root, split="train")
    return str(raised.value)


def test_missing_files(root, tmp_path, capsys):
    """Each is named, and the pairs that are whole are read all the same."""
    for name in ("c", "d"):
        for kind in ("train", "trainannot"):
            shutil.copy(root / kind / "b.png", root / kind / f"{name}.png")
    for gone in ("trainannot/b.png", "train/c.png"):
        (root / gone).unlink()
    (root / "trainannot" / "d.png").write_bytes(b"")
    lines = check(root, tmp_path)
    assert lines == [
        f"{root}/trainannot/b.png: the label of {root}/train/b.png is missing; copy the set again",
        f"{root}/train/c.png: the image of {root}/trainannot/c.png is missing; copy the set again",
        f"{root}/trainannot/d.png: the file is empty; copy it again",
    ]
    assert "camvid train: 2 pairs" in capsys.readouterr().out
    assert refused(root) == f"{lines[0]} (1 more files are alone)"


def test_missing_files_and_a_wish_for_more_than_is_left(root, tmp_path):
    """What is missing is named, not only that the rest is too few."""
    (root / "trainannot" / "b.png").unlink()
    pairs = len(list((root / "train").iterdir()))
    lines = check(root, tmp_path, num_train=pairs)
    assert lines == [
        f"{root}/trainannot/b.png: the label of {root}/train/b.png is missing; copy the set again",
        f"num_examples {pairs} of camvid train: must lie in 1-{pairs - 1}",
    ]
    with pytest.raises(ValueError, match="^num_examples 99 of camvid val: must lie in 1-3$"):
        check(root, tmp_path, num_eval=99)


def test_a_missing_folder(root, tmp_path, capsys):
    shutil.rmtree(root / "trainannot")
    (root / "valannot" / "a.png").write_bytes(b"")
    line, other = check(root, tmp_path)
    assert line.startswith(f"{root}/trainannot: no such folder")
    assert other == f"{root}/valannot/a.png: the file is empty; copy it again"
    assert "camvid train: cannot be listed, so its pairs were not read" in capsys.readouterr().out
    assert refused(root) == line


def test_an_empty_split(root, tmp_path):
    for folder in ("val", "valannot"):
        for path in (root / folder).iterdir():
            path.unlink()
    (line,) = check(root, tmp_path)
    assert line.startswith(f"{root}/val: the split is empty")


# What only the whole set shows


def add_larger_pair(root, split):
    image = np.tile(IMAGES["train", "a"], (2, 2, 1))
    (root / split / "z.png").write_bytes(png(image))
    (root / f"{split}annot" / "z.png").write_bytes(png(np.tile(LABEL, (2, 2))))


def test_images_of_another_size(root, tmp_path, capsys):
    add_larger_pair(root, "train")
    (line,) = check(root, tmp_path, mode="resident")
    assert line.startswith("camvid train image z is 24x32 pixels (h x w), the first one 12x16; set")
    with pytest.raises(spec.DataError) as raised:
        pipeline.Resident(data.load("camvid", root=root, split="train"))
    assert str(raised.value).startswith(line)
    assert "camvid train: 4 pairs, 12x16 (3), 24x32 (1)\n" in capsys.readouterr().out
    (line,) = check(root, tmp_path, mode="streaming")
    assert "the first one 12x16; set input.canvas=(h, w)" in line
    assert check(root, tmp_path, size=(H, W)) == []
    assert check(root, tmp_path, canvas=(H, W)) == []


def test_evaluation_frame_by_frame_takes_any_size(root, tmp_path):
    add_larger_pair(root, "val")
    assert settings.load("eacnet:camvid").eval.batch_size == 1
    assert check(root, tmp_path) == []


def test_an_image_smaller_than_a_patch(root, tmp_path):
    add_larger_pair(root, "train")
    lines = check(root, tmp_path, patches=(1, 2, 24, 16))
    names = [f"camvid train image {name} is 12x16 pixels, smaller than" for name in "abc"]
    assert [line[: len(n)] for line, n in zip(lines, names, strict=True)] == names
    dataset = data.load("camvid", root=root, split="train", patches=(1, 2, 24, 16))
    with pytest.raises(spec.DataError) as raised:
        pipeline.Resident(dataset)
    assert str(raised.value) == lines[0]


def test_an_image_in_both_splits(root, tmp_path):
    """The pixels count, not the bytes of the file."""
    again = png(IMAGES["train", "c"], compress_level=1)
    assert again != (root / "train" / "c.png").read_bytes()
    (root / "val" / "a.png").write_bytes(again)
    (line,) = check(root, tmp_path)
    assert line.startswith("camvid val image a has the pixels of camvid train image c; what is")


def test_splits_that_share_images_by_their_name(root, tmp_path, capsys):
    assert check(root, tmp_path, train_split="trainval") == []
    assert "note: trainval and val share images" in capsys.readouterr().out
    assert check(root, tmp_path, eval_split="train") == []


def without(label, *classes):
    return np.where(np.isin(label, classes), 11, label).astype(np.uint8)


def test_classes_that_never_occur(root, tmp_path, capsys):
    for name in "abc":
        (root / "trainannot" / f"{name}.png").write_bytes(png(without(LABEL, 6, 10)))
        (root / "valannot" / f"{name}.png").write_bytes(png(without(LABEL, 2)))
    assert check(root, tmp_path) == [
        "camvid train: the class 'sign' never occurs",
        "camvid train: the class 'bicyclist' never occurs",
    ]
    text = capsys.readouterr().out
    assert "note: 10 of 11 classes occur in val; one that does not counts as 0 in the mIoU" in text
    assert "class_weights" not in text
    assert ["pole", "8.333", "-"] in [line.split() for line in text.splitlines()]


def test_nothing_but_ignored_pixels(root, tmp_path):
    for name in "abc":
        (root / "trainannot" / f"{name}.png").write_bytes(png(np.full((H, W), 11, np.uint8)))
    assert check(root, tmp_path) == [
        "camvid train: all labels hold nothing but ignored pixels; there is nothing to tell apart;"
        " label more, or, if they look right, see how they are read (input.annotation)"
    ]


def test_a_loader_with_faults_of_its_own():
    def load(i):
        if i == 1:
            raise KeyError("frame\n1")
        return IMAGES["train", "a"], np.full((H, W), 77 if i == 2 else 3, np.uint8)

    dataset = spec.Dataset(spec.TABLES["camvid"], "train", ("a", "b", "c"), None, load)
    survey = check_data.read(dataset)
    assert list(survey.examples) == [0]
    assert survey.problems == (
        "camvid train image b: KeyError: 'frame\\n1'",
        "camvid train image c: values 77 are no train ids of camvid; allowed are 0-10 and 255",
    )


# Weights and pictures


def test_weights():
    """ENet's and ERFNet's formulas with numbers; the form is that of a config's line."""
    lines = check_data.weights((900, 90, 10)).splitlines()
    assert lines[1] == "config.loss.class_weights = (1.5330, 9.5822, 33.8309)"
    assert lines[3] == "config.loss.class_weights = (1.4427, 5.7487, 9.5822)"
    assert lines[4] == "# OWFL: alpha = (0.0453, 0.2832, 1.0000),"
    assert lines[5] == "#       gamma = (1, 0, 0)"
    assert lines[6] == "config.loss.pixel_counts = (900, 90, 10)"
    for name, line, key in (
        ("erfnet", lines[1], "class_weights"),
        ("affnet", lines[6], "pixel_counts"),
    ):
        config = settings.load(f"{name}:camvid")
        exec(line, {"config": config})  # it is one
        assert len(config.loss[key]) == 3


def test_contact_sheet(root, tmp_path):
    """Each photo, and beside it the same half covered by its label's colours."""
    label = np.full((H, W), 3, np.uint8)
    label[:, : W // 2] = 11
    (root / "train" / "a.png").write_bytes(png(np.full((H, W, 3), 200, np.uint8)))
    (root / "trainannot" / "a.png").write_bytes(png(label))
    check(root, tmp_path)
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png"))
    cell, y = check_data.CELL, check_data.LINE + check_data.CELL // 3
    assert sheet.shape[1] == 2 * check_data.COLUMNS * cell
    assert (sheet[y, 5 : cell - 5] == 200).all()
    assert (sheet[y, cell + 5 : cell + cell // 2 - 5] == 100).all()  # ignored: black
    np.testing.assert_allclose(
        sheet[y, cell + cell // 2 + 5 : 2 * cell - 5].mean(axis=0), (164, 132, 164), atol=1
    )


# The program


def test_program(root, tmp_path, capsys):
    given = (
        "--config=eacnet:camvid",
        f"--config.input.root={root}",
        f"--output={tmp_path}/new/out",
    )
    assert check_data.PROGRAM.run(given) == 0
    assert capsys.readouterr().out.endswith("\nnothing is wrong\n")
    assert (tmp_path / "new" / "out" / "contact_sheet.png").is_file()
    (root / "trainannot" / "b.png").write_bytes(b"")
    assert check_data.PROGRAM.run(given) == 1
    expected = f"\n{root}/trainannot/b.png: the file is empty; copy it again\nproblems: 1\n"
    assert capsys.readouterr().out.endswith(expected)
    for wrong, message in (
        ([], "error: give --config=FILE[:ARGUMENT]"),
        (
            [*given, "--config.input.canvas=1024"],
            "--config.input.canvas=(1024,) is impossible; allowed: None, or (h, w)",
        ),
    ):
        assert check_data.PROGRAM.run(wrong) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_stops_with_the_same_line(root, tmp_path, tiny_network, split):
    """Before its first step."""
    path, content, _ = FILES["label out of range"]
    (root / path.replace("train", split)).write_bytes(content)
    config = config_of(root, "eacnet:smoke", mode="resident")
    with config.unlocked():
        config.model = tiny.config().model
        config.batch_size = 4
        config.eval.batch_size = 1
    (root / "train" / "d.png").write_bytes(png(np.flip(IMAGES["train", "a"], 1)))
    (root / "trainannot" / "d.png").write_bytes(png(LABEL))
    (line,) = check_data.check(config, tmp_path / "out")
    with pytest.raises(spec.DataError) as raised:
        loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert str(raised.value).startswith(line)
    assert (tmp_path / "run" / "metrics.jsonl").exists() is False


REAL = os.environ.get("RTSEG_CAMVID_ROOT", "")


@pytest.mark.skipif(
    not os.path.isdir(REAL), reason="RTSEG_CAMVID_ROOT does not name a folder with the real CamVid"
)
def test_the_real_set(tmp_path, capsys):
    """The weights that come out are those that EACNet's and AFFNet's configs hold."""
    config = settings.load("eacnet:camvid")
    with config.unlocked():
        config.input.root = REAL
    assert check_data.check(config, tmp_path) == []
    text = capsys.readouterr().out
    weights = ", ".join(f"{weight:.4f}" for weight in config.loss.class_weights)
    assert f"\nconfig.loss.class_weights = ({weights})\n" in text
    counts = settings.load("affnet:camvid").loss.pixel_counts
    assert f"\nconfig.loss.pixel_counts = {counts}\n" in text
