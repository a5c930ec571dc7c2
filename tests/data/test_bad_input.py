"""Every fault that a user's files can have, planted: one line that names the file and says what to do."""

import dataclasses
import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rtseg_jax.data import files, pipeline, spec
from rtseg_jax.data.sets import camvid, cityscapes
from rtseg_jax.inference import evaluator

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
LABEL = np.arange(48, dtype=np.uint8).reshape(6, 8) % 11


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


def grey_png(array, bits):
    """A grey PNG of less than 8 bits, which Pillow does not write: the header of an index PNG changed."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    h, w = array.shape
    per_byte = 8 // bits
    rows = array.reshape(h, w // per_byte, per_byte).astype(np.uint32)
    packed = sum(rows[..., k] << (8 - bits * (k + 1)) for k in range(per_byte)).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", w, h, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def one_line(raised, *parts):
    text = str(raised.value)
    assert "\n" not in text and "0x" not in text, text
    for part in parts:
        assert str(part) in text, text


@pytest.fixture
def trees(tmp_path):
    """{dataset: (load(split), image path, label path)} of one image each for train, others for val."""
    found = {}
    root = tmp_path / "camvid"
    for split in ("train", "val"):
        for folder, array in ((split, IMAGE), (f"{split}annot", LABEL)):
            (root / folder).mkdir(parents=True)
            (root / folder / "a.png").write_bytes(png(array))
    found["camvid"] = (
        lambda split: camvid.load(root, split),
        root / "train" / "a.png",
        root / "trainannot" / "a.png",
    )
    root_c = tmp_path / "cityscapes"
    for split in ("train", "val"):
        for path, array in (
            (f"leftImg8bit/{split}/ulm/ulm_0_0_leftImg8bit.png", IMAGE),
            (f"gtFine/{split}/ulm/ulm_0_0_gtFine_labelIds.png", LABEL),
        ):
            (root_c / path).parent.mkdir(parents=True)
            (root_c / path).write_bytes(png(array))
    found["cityscapes"] = (
        lambda split: cityscapes.load(root_c, split),
        root_c / "leftImg8bit/train/ulm/ulm_0_0_leftImg8bit.png",
        root_c / "gtFine/train/ulm/ulm_0_0_gtFine_labelIds.png",
    )
    return found


both = pytest.mark.parametrize("name", ["camvid", "cityscapes"])

SIXTEEN = np.arange(48, dtype=np.uint16).reshape(6, 8)
WRONG = LABEL.copy()
WRONG[0, :3] = (40, 41, 99)
LABELS = {
    "colours": (
        png(IMAGE),
        "a label of mode RGB holds colours; expects an index or grey PNG of class ids (for data of your",
    ),
    "colours and alpha": (png(np.dstack([IMAGE, LABEL])), "a label of mode RGBA holds colours"),
    "grey and alpha": (png(np.dstack([LABEL, LABEL])), "a label of mode LA whose channels are eq"),
    "grey as colours": (
        png(np.dstack([LABEL, LABEL, LABEL])),
        "a label of mode RGB whose channels are equal; expects one of them: save Image.open(path).get",
    ),
    "16 bit": (png(SIXTEEN), "a 16-bit grey label; expects an 8-bit PNG of class ids"),
    "4 bit": (grey_png(LABEL, 4), "a 4-bit grey label; expects an 8-bit PNG of class ids"),
    "1 bit": (png(LABEL > 4), "a 1-bit grey label; expects an 8-bit PNG of class ids"),
    "too high": (png(WRONG), "label values 40-41, 99 are not allowed; allowed are 0-"),
    "other size": (png(LABEL[:5]), "the label is 5x8 pixels (h x w) but its image"),
    "turned": (png(LABEL.T.copy()), "the label is 8x6 pixels (h x w) but its image"),
    "empty": (b"", "the file is empty; copy it again"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "not an image, or its header is cor"),
    "half": (png(LABEL)[:60], "truncated or corrupt ("),
}


@both
@pytest.mark.parametrize("fault", LABELS)
def test_bad_labels(trees, name, fault):
    load, _, path = trees[name]
    content, message = LABELS[fault]
    path.write_bytes(content)
    with pytest.raises(spec.DataError) as raised:
        load("train").load(0)
    one_line(raised, path, message)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_jpeg_is_no_label(trees):
    load, _, path = trees["camvid"]
    Image.fromarray(LABEL).save(path, "JPEG")
    with pytest.raises(spec.DataError) as raised:
        load("train").load(0)
    one_line(raised, path, "a JPEG file; expects an index or grey PNG of class ids")


def sixteen_bit_rgb():
    """The header of an 8-bit RGB PNG of twice the width, told to hold 16 bits."""
    data = bytearray(png(np.repeat(IMAGE, 2, axis=1)))
    data[16:20] = struct.pack(">I", 8)
    data[24] = 16
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


IMAGES = {
    "16 bit grey": (png(SIXTEEN), "a 16-bit image; expects 8 bits per channel"),
    "16 bit colours": (sixteen_bit_rgb(), "a 16-bit image; expects 8 bits per channel"),
    "1 bit": (png(LABEL > 4), "an image of mode 1; expects 8-bit RGB"),
    "empty": (b"", "the file is empty; copy it again"),
    "text": (b"<html>404</html>", "not an image, or its header is corrupt; copy it again"),
    "half": (png(IMAGE)[:100], "truncated or corrupt ("),
    "half without a checksum": (png(IMAGE)[:-14], "truncated or corrupt ("),
}


@both
@pytest.mark.parametrize("fault", IMAGES)
def test_bad_images(trees, name, fault):
    load, path, _ = trees[name]
    content, message = IMAGES[fault]
    path.write_bytes(content)
    with pytest.raises(spec.DataError) as raised:
        load("train").load(0)
    one_line(raised, message)
    assert str(raised.value).startswith(f"{path}: ")


@both
def test_file_gone_after_the_listing(trees, name):
    load, path, _ = trees[name]
    dataset = load("train")
    path.unlink()
    with pytest.raises(spec.DataError) as raised:
        dataset.load(0)
    one_line(raised, f"{path}: cannot be read (No such file or directory)")


def test_no_truncation_and_no_flipped_bit_gives_other_pixels(tmp_path):
    """Either the file is refused in one line, or its pixels are right."""
    path = tmp_path / "a.png"
    content = png(IMAGE)
    # Changes within the last four bytes, the checksum of an empty chunk, lose nothing.
    cut = [content[:n] for n in range(len(content) - 4)]
    flipped = [
        content[:n] + bytes([content[n] ^ 1 << n % 8]) + content[n + 1 :]
        for n in range(len(content))
    ]
    refused = 0
    for damaged in cut + flipped:
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(files.read_image(path), IMAGE)
        except spec.DataError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            refused += 1
    assert refused >= len(cut) + len(flipped) - 16


def test_hints(trees):
    load, _, path = trees["camvid"]
    path.write_bytes(png(WRONG))
    with pytest.raises(
        spec.DataError, match=r"allowed are 0-11; the labels must be those of the Seg"
    ):
        load("train").load(0)
    load, _, path = trees["cityscapes"]
    path.write_bytes(png(WRONG))
    with pytest.raises(
        spec.DataError, match=r"allowed are 0-33, 255; \*_labelIds\.png hold the off"
    ):
        load("train").load(0)
    # The classic: official ids where train ids belong.
    path.unlink()
    path = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
    path.write_bytes(png(np.full((6, 8), 26, np.uint8)))
    with pytest.raises(spec.DataError) as raised:
        load("train").load(0)
    one_line(raised, path, "values 26 are not allowed; allowed are 0-18, 255", "the official ids?")


@both
def test_missing_label(trees, name):
    load, image, label = trees[name]
    label.unlink()
    with pytest.raises(FileNotFoundError) as raised:
        load("train")
    one_line(raised, f"{label}: the label of {image} is missing", "again")
    with pytest.raises(FileNotFoundError):
        load("trainval")
    assert len(load("val")) == 1


@both
def test_missing_image(trees, name):
    load, image, label = trees[name]
    image.unlink()
    with pytest.raises(FileNotFoundError) as raised:
        load("train")
    one_line(raised, f"{image}: the image of {label} is missing", "again")


def test_several_missing(trees):
    load, image, _ = trees["camvid"]
    for stem in "bcd":
        image.with_name(f"{stem}.png").write_bytes(png(IMAGE))
    with pytest.raises(FileNotFoundError) as raised:
        load("train")
    one_line(raised, "trainannot/b.png: the label of", "(2 more files are alone)")


@both
def test_empty_split(trees, name):
    load, image, label = trees[name]
    image.unlink()
    label.unlink()
    with pytest.raises(FileNotFoundError) as raised:
        load("train")
    folder = image.parent if name == "camvid" else image.parent.parent
    one_line(raised, f"{folder}: the split is empty; expects ")


@both
def test_missing_folder(trees, name):
    load, _, _ = trees[name]
    with pytest.raises(FileNotFoundError) as raised:
        load("test")
    one_line(raised, "no such folder", "is expected as ROOT/", "a :streets config needs no data")
    assert re.match(r"/.*/test: no such folder", str(raised.value))


@pytest.fixture
def mixed(trees):
    """The CamVid tree with three images, of which the last has another size."""
    load, image, label = trees["camvid"]
    for stem, h in (("b", 6), ("c", 4)):
        image.with_name(f"{stem}.png").write_bytes(png(IMAGE[:h]))
        label.with_name(f"{stem}.png").write_bytes(png(LABEL[:h]))
    return load("train")


MIXED = "camvid train image {} is {} pixels (h x w), the first one {}; set input.canvas=(h, w) and eval.multiple=32, "


def test_mixed_sizes_resident(mixed):
    with pytest.raises(spec.DataError) as raised:
        pipeline.Resident(mixed)
    one_line(raised, MIXED.format("c", "4x8", "6x8"))
    assert len(pipeline.Resident(spec.resized(mixed, (6, 8))).arrays["images"]) == 1


def test_mixed_sizes_streaming(mixed):
    with pytest.raises(spec.DataError) as raised:
        list(pipeline.Streaming(mixed, batch_size=3, seed=0, start_step=0, num_steps=2))
    one_line(raised, "camvid train image ", "pixels (h x w), the first one", "; set input.canvas=")
    with pipeline.Streaming(mixed, batch_size=1, seed=0, start_step=0, num_steps=3) as stream:
        sizes = {int(indices[0]): labels.shape for _, labels, indices in stream}
    assert sizes == {0: (1, 6, 8), 1: (1, 6, 8), 2: (1, 4, 8)}


def test_mixed_sizes_eval(mixed):
    with pytest.raises(spec.DataError) as raised:
        list(pipeline.eval_batches(mixed, 3))
    one_line(raised, MIXED.format("c", "4x8", "6x8"))
    sizes = [labels.shape for _, labels, _, _ in pipeline.eval_batches(mixed, 1)]
    assert sizes == [(1, 6, 8), (1, 6, 8), (1, 4, 8)]


def test_a_bad_file_stops_every_input_with_its_own_line(trees):
    load, image, label = trees["camvid"]
    for stem in "bcdefgh":
        image.with_name(f"{stem}.png").write_bytes(png(IMAGE))
        label.with_name(f"{stem}.png").write_bytes(png(LABEL))
    dataset = load("train")
    # The last of the order, so that batches before it are good.
    last = int(pipeline.epoch_order(0, 0, 8)[-1])
    bad = label.with_name(f"{dataset.name(last)}.png")
    bad.write_bytes(png(WRONG))
    expected = f"{bad}: label values 40-41, 99 are not allowed; allowed are 0-11"

    stream = pipeline.Streaming(dataset, seed=0, batch_size=2, start_step=0, num_steps=8)
    for _ in range(3):
        next(stream)
    with pytest.raises(spec.DataError) as raised:
        next(stream)
    one_line(raised, expected)
    with pytest.raises(StopIteration):
        next(stream)

    for run in (
        lambda: pipeline.Resident(dataset),
        lambda: list(pipeline.eval_batches(dataset, 2)),
    ):
        with pytest.raises(spec.DataError) as raised:
            run()
        one_line(raised, expected)


def test_what_differs_in_its_ending_alone_is_no_pair(trees):
    load, image, _ = trees["camvid"]
    image.with_suffix(".PNG").write_bytes(png(IMAGE))
    with pytest.raises(
        spec.DataError, match=r"a.PNG and a.png differ in their endings alone; remo"
    ):
        load("train")


def test_labels_that_are_no_pngs_are_named(trees):
    load, _, label = trees["camvid"]
    label.rename(label.with_suffix(".jpg"))
    with pytest.raises(FileNotFoundError) as raised:
        load("train")
    one_line(
        raised, f"{label.with_suffix('.jpg')}: a label cannot be a .jpg file, whose compression"
    )


def test_an_image_that_is_missing_is_no_bad_label(trees):
    load, image, _ = trees["camvid"]
    image.rename(image.with_suffix(".jpg"))
    with pytest.raises(FileNotFoundError) as raised:
        load("train")
    one_line(raised, f"{image}: the image of ", " is missing")


def split_of(labels, names=("a", "b"), **options):
    """A data set whose labels hold these values."""
    table = spec.ClassTable("mine", names, ((1, 2, 3), (4, 5, 6))[: len(names)])

    def load(i):
        if labels[i] is None:
            raise spec.DataError("unreadable")
        label = np.resize(np.array(labels[i], np.uint8), (4, 6))
        return np.zeros((4, 6, 3), np.uint8), label

    named = tuple(f"{i}" for i in range(len(labels)))
    return spec.Dataset(table, "train", named, None, load, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [[0, 255]] * 3,
            "mine train: all labels hold nothing but the class 'a' and ignored pixels;",
        ),
        ([[255]] * 3, "mine train: all labels hold nothing but ignored pixels; there is nothing"),
        ([[1], None], "mine train: all labels hold nothing but the class 'b'; there is nothing to"),
    ],
)
def test_labels_that_teach_nothing(labels, message):
    with pytest.raises(spec.DataError) as raised:
        pipeline.check_labels(split_of(labels, advice="look"))
    one_line(raised, message)
    assert str(raised.value).endswith("look")


def test_labels_are_looked_at_until_two_classes_were_seen():
    rare = split_of([[0]] * 40 + [[1]])
    pipeline.check_labels(rare)
    pipeline.check_labels(split_of([None]))  # said when its turn comes
    seen = []
    dataset = split_of([[0, 1]] * 100)
    load = lambda i: seen.append(i) or dataset.load(i)  # noqa: E731
    pipeline.check_labels(dataclasses.replace(dataset, load=load), num_workers=2)
    assert len(seen) < 10
    with pytest.raises(
        spec.DataError, match="the list of classes has 'a' alone, and a network tel"
    ):
        pipeline.check_labels(split_of([[0, 255]], names=("a",)))


def test_an_evaluation_leaves_out_what_cannot_be_read():
    labels = [[0, 1], None, [1], [0]]
    dataset, wrong = pipeline.leaving_out(split_of(labels), one_size=True)
    (images, found, mask, indices), _ = pipeline.eval_batches(dataset, 2)
    assert wrong == {1: "unreadable"} and mask.all() and indices.tolist() == [0, 1]
    assert (found[1] == 255).all() and not images[1].any()
    assert evaluator.left_out(dataset, wrong, 1) == ["1"]
    with pytest.raises(spec.DataError, match="^unreadable; input.max_bad=0 leaves so many out"):
        evaluator.left_out(dataset, wrong, 0)
    labels[1] = [0]  # it was mended meanwhile
    list(pipeline.eval_batches(dataset, 2))
    assert not wrong
