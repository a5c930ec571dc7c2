"""What TensorFlow Datasets' own programs prepare, read beside the files that they were given."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.data import spec
from rtseg_jax.data.sets import camvid, cityscapes
from rtseg_jax.data.sets import tfds as prepared

pytest.importorskip("tensorflow_datasets")

FORMATS = ("tfrecord", "array_record")
SIZE = (12, 20)
# City by city as they are sorted; one of test has a label that is none.
FRAMES = {
    "train": ("aachen_000001_000019", "bad-honnef_000000_000019", "bochum_000000_000313",
              "bochum_000000_000600", "ulm_000000_000019", "ulm_000000_000020", "zurich_000121_000019"),
    "val": ("frankfurt_000000_000294", "lindau_000000_000019", "munster_000000_000019"),
    "test": ("berlin_000000_000019", "bonn_000000_000019"),
    "train_extra": ("bad-honnef_000000_000000", "wurzburg_000000_000000"),
}  # fmt: skip
WRONG = "bonn_000000_000019"
CODE = "rtseg_jax.data.builders.camvid.camvid_dataset_builder"
BUILD = """
import importlib, json, socket, sys
import tensorflow_datasets as tfds
def refuse(*_):
    raise AssertionError("no other machine is needed")
socket.socket.connect = socket.getaddrinfo = refuse
importlib.import_module(sys.argv[1])
for name, file_format, num_shards, manual_dir, data_dir in json.loads(sys.argv[2]):
    builder = tfds.builder(name, data_dir=data_dir, file_format=file_format)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, num_shards=num_shards)
    builder.download_and_prepare(download_config=config)
"""


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
    )


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """city/ and camvid/ with the files; a data_dir for each format, and a folder with the official archives."""
    base = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(5)
    for split, frames in FRAMES.items():
        for frame in frames:
            image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
            place = f"{split}/{frame.split('_')[0]}/{frame}"
            write_png(base / f"city/leftImg8bit/{place}_leftImg8bit.png", image)
            for kind in ("gtFine", "gtCoarse"):
                ids = rng.integers(0, 34, SIZE, np.uint8)
                if frame == WRONG:
                    ids[3, 4] = 77
                write_png(base / f"city/{kind}/{place}_{kind}_labelIds.png", ids)
    for archive, folder, splits in (
        ("leftImg8bit_trainvaltest", "leftImg8bit", ("train", "val", "test")),
        ("leftImg8bit_trainextra", "leftImg8bit", ("train_extra",)),
        ("gtFine_trainvaltest", "gtFine", ("train", "val", "test")),
        ("gtCoarse", "gtCoarse", ("train", "val", "train_extra")),
    ):
        (base / "zips").mkdir(exist_ok=True)
        with zipfile.ZipFile(base / "zips" / f"{archive}.zip", "w") as file:
            for split in splits:
                for path in sorted((base / "city" / folder / split).rglob("*.png")):
                    file.write(path, path.relative_to(base / "city"))

    palette = [value for color in spec.TABLES["camvid"].palette for value in color]
    for split in ("train", "val", "test"):
        for i, name in enumerate(camvid.frames(split)[:5]):
            write_png(
                base / f"camvid/{split}/{name}.png", rng.integers(0, 256, (*SIZE, 3), np.uint8)
            )
            label = Image.fromarray(rng.integers(0, 12, SIZE, np.uint8))
            if i % 2:
                label.putpalette(palette)
            path = base / f"camvid/{split}annot/{name}.png"
            path.parent.mkdir(exist_ok=True)
            label.save(path)

    jobs = [
        (name, file_format, num_shards, str(base / given), str(base / file_format))
        for file_format in FORMATS
        for name, num_shards, given in (
            ("cityscapes/semantic_segmentation", 2, "zips"),
            ("cityscapes/semantic_segmentation_extra", None, "zips"),
            ("camvid/segnet", 3, "camvid"),
        )
    ]
    result = python("-c", BUILD, CODE, json.dumps(jobs))
    assert result.returncode == 0, result.stderr[-3000:]
    return base


@pytest.fixture
def mine(sets, tmp_path):
    """A copy of the data_dirs, to be damaged."""
    for file_format in FORMATS:
        shutil.copytree(sets / file_format / "cityscapes", tmp_path / file_format / "cityscapes")
    return tmp_path


def same(one, other):
    assert one.names == other.names and len(one) > 0
    assert one.table is other.table and one.split == other.split
    for i in range(len(one)):
        if one.name(i) != WRONG:
            for a, b in zip(one.load(i), other.load(i), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype


CASES = [
    ("cityscapes", "city", "train", ""),
    ("cityscapes", "city", "val", "fine"),
    ("cityscapes", "city", "test", ""),
    ("cityscapes", "city", "trainval", ""),
    ("cityscapes", "city", "trainval", "coarse"),
    ("cityscapes", "city", "train_extra", "coarse"),
    ("camvid", "camvid", "train", ""),
    ("camvid", "camvid", "test", "merged"),
    ("camvid", "camvid", "trainval", ""),
]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(("name", "files", "split", "annotation"), CASES)
def test_the_examples_of_the_files(sets, name, files, split, annotation, file_format):
    arguments = {"split": split, "annotation": annotation}
    ours = data.load(name, root=sets / file_format, source="tfds", **arguments)
    same(ours, data.load(name, root=sets / files, **arguments))


def test_shuffled_shards_are_put_in_order(sets):
    """Else the test above would show nothing."""
    shards = prepared.load("cityscapes", sets / "tfrecord", "train").files
    assert len(shards) == 2
    stored = [record.name for shard in shards for record in _records_of(shard)]
    assert sorted(stored) == list(FRAMES["train"]) != stored


def _records_of(shard):
    lengths = json.loads((shard.parent / "dataset_info.json").read_text())["splits"][0]
    return prepared._tfrecords(
        shard, int(lengths["shardLengths"][int(shard.name.split("-")[2])]), ""
    )


READ = """
import sys
from rtseg_jax import data
for name, split in (("cityscapes", "train"), ("camvid", "val")):
    dataset = data.load(name, root="", split=split, source="tfds")
    print(*dataset.names, dataset.load(0)[0].sum())
print("tensorflow" in sys.modules)
"""


@pytest.mark.parametrize("file_format", FORMATS)
def test_from_the_default_place_without_tensorflow(sets, file_format):
    result = python("-W", "error", "-c", READ, TFDS_DATA_DIR=sets / file_format)
    assert result.returncode == 0, result.stderr
    images = [
        cityscapes.load(sets / "city", "train").load(0)[0].sum(),
        camvid.load(sets / "camvid", "val").load(0)[0].sum(),
    ]
    assert result.stdout.splitlines() == [
        " ".join((*FRAMES["train"], str(images[0]))),
        " ".join((*camvid.frames("val")[:5], str(images[1]))),
        "False",
    ]


def test_a_config_chooses_the_source(sets):
    config = settings.load("eacnet:dabnet,camvid")
    config.input.root, config.input.num_train = str(sets / "camvid"), 3
    files = data.load(**settings.dataset_arguments(config, "train"))
    config.input.root, config.input.source = str(sets / "array_record"), "tfds"
    same(data.load(**settings.dataset_arguments(config, "train")), files)
    before = config.copy_and_resolve_references()
    with before.unlocked():
        del before.input.source
    assert "source" not in settings.dataset_arguments(before, "train")


def test_packed(sets, tmp_path):
    """A packed copy is used until the shards change."""
    shutil.copytree(sets / "tfrecord" / "camvid", tmp_path / "camvid")
    arguments = {"root": tmp_path, "split": "val", "source": "tfds", "cache": str(tmp_path / "c")}
    dataset = data.load("camvid", **arguments)
    same(dataset, data.load("camvid", root=sets / "camvid", split="val"))
    (index,) = (tmp_path / "c").rglob("index.json")
    first = index.stat().st_mtime_ns
    data.load("camvid", **arguments)
    assert index.stat().st_mtime_ns == first
    os.utime(dataset.files[1])
    data.load("camvid", **arguments)
    assert index.stat().st_mtime_ns > first


@pytest.mark.parametrize("file_format", FORMATS)
def test_labels_are_checked_as_those_of_the_files(sets, file_format):
    """Both messages say the same of the same pixel."""
    messages = []
    for dataset in (
        data.load("cityscapes", root=sets / "city", split="test"),
        data.load("cityscapes", root=sets / file_format, split="test", source="tfds"),
    ):
        dataset.load(0)
        with pytest.raises(
            spec.DataError, match="^[^\n]*: label values 77 are not allowed"
        ) as caught:
            dataset.load(1)
        messages.append(str(caught.value))
    assert f"cityscapes-test.{file_format}-0" in messages[1]
    assert f", segmentation_label of {WRONG}: " in messages[1]
    assert len({message.split(": label values")[1].split(";")[0] for message in messages}) == 1


def sparse_shard(path, names, size):
    """Records whose images are holes of so many bytes in the file."""

    def field(number, payload, more=0):
        length, header = len(payload) + more, bytes([number << 3 | 2])
        while length > 127:
            header, length = header + bytes([length & 127 | 128]), length >> 7
        return header + bytes([length]) + payload

    with path.open("wb") as file:
        for name in names:
            id_entry = field(1, field(1, b"image_id") + field(2, field(1, field(1, name))))
            value = field(1, b"", size)
            value = field(1, value, size)
            value = field(2, value, size)
            image_entry = field(1, field(1, b"image_left") + value, size)
            features = field(1, image_entry, size + len(id_entry))
            length = len(features) + size + len(id_entry)
            file.write(struct.pack("<QI", length, 0) + features)
            file.seek(size, os.SEEK_CUR)
            file.write(id_entry + bytes(4))


def test_images_are_skipped(tmp_path):
    """16 GB are indexed in an instant."""
    names = [f"city_{i:06d}_000019".encode() for i in range(8)]
    sparse_shard(tmp_path / "shard", names, 2 << 30)
    start = time.perf_counter()
    records = list(prepared._tfrecords(tmp_path / "shard", 8, ""))
    assert time.perf_counter() - start < 1
    assert [record.name.encode() for record in records] == names


PREPARE = (
    "run python -m rtseg_jax.data.builders cityscapes/semantic_segmentation --manual_dir=DIR_WITH_ZIPS "
    "--data_dir="
)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nyuv2", {}, "^input.source='tfds' reads cityscapes and camvid, not nyuv2; set input.sou"),
        ("ade20k", {}, "and camvid, not ade20k; set input.source='files'"),
        ("folder", {"label_map": ((0, 1),)}, "and camvid, not folder; set"),
        ("streets", {"size": (8, 8), "num_examples": 1}, "and camvid, not streets; set"),
        ("camvid", {"annotation": "strict"}, "classes are merged; annotation='strict' needs the o"),
        ("camvid", {"annotation": "fine"}, "unknown annotation 'fine' of camvid; choose one of me"),
        ("camvid", {"label_map": ((0, 1),)}, "label_map and ignore are for dataset 'folder', not"),
        ("cityscapes", {"split": "dev"}, "unknown split 'dev' of cityscapes; choose one of train, "),
        ("cityscapes", {"split": "test", "annotation": "coarse"}, "'test' of cityscapes, coarse; c"),
        ("cityscapes", {"source": "TFDS"}, "^unknown source 'TFDS'; choose one of files, tfds$"),
    ],
)  # fmt: skip
def test_what_is_not_offered(tmp_path, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, **{"root": tmp_path, "split": "train", "source": "tfds", **arguments})


def test_not_prepared(mine):
    with pytest.raises(FileNotFoundError) as caught:
        prepared.load("camvid", mine / "tfrecord", "train")
    assert str(caught.value) == (
        f"{mine}/tfrecord/camvid/segnet: not prepared; set input.root to the data_dir of TensorFlow Datasets that "
        f"has it, or run python -m rtseg_jax.data.builders camvid/segnet --manual_dir=DIR_WITH_TRAINANNOT "
        f"--data_dir={mine}/tfrecord"
    )
    shutil.rmtree(mine / "tfrecord/cityscapes/semantic_segmentation")
    with pytest.raises(
        FileNotFoundError,
        match=f"not prepared, only semantic_segmentation_extra; set .*{PREPARE}{mine}/tfrecord$",
    ):
        prepared.load("cityscapes", mine / "tfrecord", "train")


def test_without_tensorflow_datasets(mine, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ValueError, match=r"takes tensorflow-datasets \(.*pip install 'rtseg_jax\[t"
    ):
        prepared.load("cityscapes", mine / "tfrecord", "train")


def cut(folder, shard):
    shard.write_bytes(shard.read_bytes()[:-30])


def lengthen(folder, shard):
    shard.write_bytes(shard.read_bytes() + bytes(20))


def scramble(folder, shard):
    shard.write_bytes(bytes(range(256)) * (shard.stat().st_size // 256))


def describe(folder, **changes):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_feature(folder, shard):
    path = folder / "features.json"
    path.write_text(path.read_text().replace("image_left", "photo"))


ALL, TFRECORD, ARRAY_RECORD = FORMATS, FORMATS[:1], FORMATS[1:]
DAMAGE = {
    "missing": (ALL, lambda f, s: s.unlink(), "^{shard}: the shard is missing; copy it again, or"),
    "cut": (TFRECORD, cut, "^{shard}: not the . records it should be .ends after .* within a rec"),
    "longer": (TFRECORD, lengthen, "20 bytes follow the last record.; delete {folder} and run"),
    "cut array": (ARRAY_RECORD, cut, "^{shard}: record 0 cannot be read"),
    "scrambled": (TFRECORD, scramble, "^{shard}: not the . records it should be"),
    "scrambled array": (ARRAY_RECORD, scramble, "^{shard}: record 0 cannot be read"),
    "no description": (ALL, lambda f, s: (f / "dataset_info.json").write_text("{{"), "^{config}: cann"),
    "another builder": (ALL, rename_feature, "^{folder}: has no feature image_left, so another b"),
    "no split": (ALL, lambda f, s: describe(f, splits=[]), "^{folder}: has no split train; del"),
    "parquet": (ALL, lambda f, s: describe(f, fileFormat="parquet"), "is in the format parquet; "),
}  # fmt: skip


@pytest.mark.parametrize(
    ("file_format", "damage"),
    [(f, name) for name, (formats, *_) in DAMAGE.items() for f in formats],
)
def test_damage(mine, file_format, damage):
    """Is named in one line that says what to do."""
    config = mine / file_format / "cityscapes/semantic_segmentation"
    shard = prepared.load("cityscapes", mine / file_format, "train").files[0]
    _, harm, message = DAMAGE[damage]
    harm(shard.parent, shard)
    if damage == "parquet":
        for path in shard.parent.glob("*-of-*"):
            path.rename(path.with_name(path.name.replace(file_format, "parquet")))
    expected = message.format(shard=shard, folder=shard.parent, config=config)
    with pytest.raises((spec.DataError, FileNotFoundError), match=expected) as caught:
        prepared.load("cityscapes", mine / file_format, "train")
    assert "\n" not in str(caught.value) and f"{PREPARE}{mine / file_format}" in str(caught.value)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_flipped_bit(mine, file_format):
    dataset = prepared.load("cityscapes", mine / file_format, "train")
    shard = dataset.files[0]
    content = bytearray(shard.read_bytes())
    at = content.index(b"IDAT") + 40
    content[at] ^= 16
    shard.write_bytes(content)
    lines = []
    for i in range(len(dataset)):
        try:
            dataset.load(i)
        except spec.DataError as error:
            lines.append((dataset.name(i), str(error)))
    ((name, line),) = lines
    assert line.startswith(f"{shard}") and name in line and "\n" not in line


def test_array_record_is_a_library_of_its_own(mine, monkeypatch):
    monkeypatch.setattr(prepared.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="is in the format array_record, whose library is not inst"
    ):
        prepared.load("cityscapes", mine / "array_record", "val")


def test_the_command_that_prepares_it(sets, tmp_path):
    """What the message says, with its folder filled in, does it."""
    line = _message(lambda: prepared.load("camvid", tmp_path, "train"))
    command = line.split("or run python ")[1].replace("DIR_WITH_TRAINANNOT", str(sets / "camvid"))
    result = python(*command.split(), "--file_format=array_record")
    assert result.returncode == 0, result.stderr[-3000:]
    same(prepared.load("camvid", tmp_path, "test"), camvid.load(sets / "camvid", "test"))
    info = json.loads((tmp_path / "camvid/segnet/1.0.0/dataset_info.json").read_text())
    assert "Brostow" in info["citation"] and "SegNet tutorial" in info["description"]


def _message(function):
    with pytest.raises(FileNotFoundError) as caught:
        function()
    return str(caught.value)


def test_the_builder_takes_no_colour_labels(tmp_path):
    from rtseg_jax.data.builders.camvid import camvid_dataset_builder

    for split in ("train", "val", "test"):
        for name in camvid.frames(split):
            for path in (f"701_StillsRaw_full/{name}.png", f"LabeledApproved_full/{name}_L.png"):
                (tmp_path / path).parent.mkdir(exist_ok=True)
                (tmp_path / path).touch()
    builder = camvid_dataset_builder.Builder(data_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="holds the original labels, in 32 colours; expects the S"):
        next(builder._generate_examples(tmp_path, "train"))
