"""Datasets that TensorFlow Datasets has prepared: the examples of the official files, in the same order.

A prepared dataset keeps the bytes of the PNG files, shuffled, in shards of one of two formats. tfrecord, which is
TensorFlow Datasets' default, is indexed here within seconds: lengths lead from name to name, past the images. Of
array_record, whose records are compressed, each is read once for its name. TensorFlow itself is not imported.
"""

import functools
import importlib.util
import io
import os
import pathlib
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from rtseg_jax.base.files import one_line
from rtseg_jax.base.threads import for_each
from rtseg_jax.data import files, spec
from rtseg_jax.data.sets import camvid, cityscapes

_NAME, _LABEL = "image_id", "segmentation_label"
_SPLITS = {"val": "validation"}  # where TensorFlow Datasets has another word
_LONGEST = 1 << 12  # bytes of a name: what says more is damaged


class Builder(NamedTuple):
    """What a builder of TensorFlow Datasets makes of a dataset.

    Attributes:
        configs: {annotation: the builder's config}; the first is the default.
        splits: {annotation: splits}, in our words.
        image: The feature that holds the image.
        lut: Raw value -> train id, see `files.read_label`.
        hint: What to do about a label that has other values.
        manual_dir: What the user gives the builder.
    """

    configs: dict[str, str]
    splits: dict[str, tuple[str, ...]]
    image: str
    lut: UInt8[ndarray, "256"]
    hint: str
    manual_dir: str


BUILDERS = {
    "cityscapes": Builder(
        {"fine": "semantic_segmentation", "coarse": "semantic_segmentation_extra"},
        cityscapes.SPLITS,
        "image_left",
        cityscapes.LABEL_IDS,
        "the labels must be the official ids, *_labelIds.png",
        "DIR_WITH_ZIPS",
    ),
    "camvid": Builder(
        {"merged": "segnet"},
        {"merged": camvid.SPLITS},
        "image",
        camvid.LUT,
        camvid.HINT,
        "DIR_WITH_TRAINANNOT",
    ),
}


class Record(NamedTuple):
    """One serialized tf.train.Example of a shard: its name, and what reads it."""

    name: str
    shard: pathlib.Path
    read: Callable[[], bytes]


def load(
    name: str, root: str | os.PathLike[str] | None, split: str, annotation: str = ""
) -> spec.Dataset:
    """One split of a prepared dataset: names, order and examples are those of the files.

    Args:
        name: cityscapes, or camvid in the SegNet distribution.
        root: TensorFlow Datasets' data_dir, which has NAME/CONFIG/VERSION; "" or None for its default,
            ~/tensorflow_datasets or what TFDS_DATA_DIR says.
        split: Name of the split, as the files have it.
        annotation: For cityscapes, "fine", the default, or "coarse", which is the config semantic_segmentation_extra.

    Raises:
        ValueError: an unknown dataset, split or annotation; tensorflow-datasets is not installed.
        FileNotFoundError: it is not prepared there, or a shard is missing.
        DataError: what is there is damaged or another builder's, or in a format that is not read here.
    """
    if name not in BUILDERS:
        raise ValueError(
            f"input.source='tfds' reads {' and '.join(BUILDERS)}, not {name}; set input.source='files'"
        )
    if (name, annotation) == ("camvid", "strict"):
        raise ValueError(
            "camvid is prepared from the SegNet distribution, whose classes are merged; annotation='strict' needs "
            "the original colour labels and input.source='files'"
        )
    builder = BUILDERS[name]
    annotation = spec.choose_annotation(name, annotation, builder.configs)
    title = f"{name}, coarse" if annotation == "coarse" else name
    spec.check_split(title, split, builder.splits[annotation])
    advice = f"run {_command(name, builder.configs[annotation], root)}"
    found = _open(name, builder.configs[annotation], root, advice)
    _check_features(found, builder, advice)
    parts = ("train", "val") if split == "trainval" else (split,)
    records = [
        record for part in parts for record in _records(found, _SPLITS.get(part, part), advice)
    ]

    def load_pair(i: int) -> tuple[spec.Image3, spec.Label]:
        from tensorflow_datasets.proto import tf_example_pb2

        record = records[i]
        try:
            features = tf_example_pb2.Example.FromString(record.read()).features.feature
            image, label = (
                files.Encoded(
                    f"{record.shard}, {key} of {record.name}", features[key].bytes_list.value[0]
                )
                for key in (builder.image, _LABEL)
            )
        except Exception as error:  # readers fail with anything from OSError to DecodeError
            raise _damaged(record.shard, f"{record.name} cannot be read", error, advice) from error
        return files.read_pair(image, label, builder.lut, builder.hint)

    return spec.Dataset(
        table=spec.TABLES[name],
        split=split,
        names=tuple(record.name for record in records),
        size=None,
        load=load_pair,
        files=tuple(dict.fromkeys(record.shard for record in records)),
    )


def _command(name: str, config: str, root: str | os.PathLike[str] | None) -> str:
    """The command that prepares a dataset."""
    data_dir = f" --data_dir={root}" if root else ""
    archives = f"--manual_dir={BUILDERS[name].manual_dir}"
    return f"python -m rtseg_jax.data.builders {name}/{config} {archives}{data_dir}"


def _damaged(place: pathlib.Path, what: str, error: Exception, advice: str) -> spec.DataError:
    folder = place if place.is_dir() else place.parent
    return spec.DataError(f"{place}: {what} ({one_line(error)}); delete {folder} and {advice}")


def _open(name: str, config: str, root: str | os.PathLike[str] | None, advice: str) -> Any:
    """TensorFlow Datasets' builder, made of what was prepared."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"input.source='tfds' takes tensorflow-datasets ({error}); install it with: pip install "
            "'rtseg_jax[tfds]', or set input.source='files'"
        ) from error
    base = pathlib.Path(root or tfds.core.constants.DATA_DIR).expanduser()
    try:
        return tfds.core.read_only_builder.builder_from_files(f"{name}/{config}", data_dir=base)
    except tfds.core.registered.DatasetNotFoundError as error:
        others = sorted({path.parts[-3] for path in base.glob(f"{name}/*/*/dataset_info.json")})
        instead = f", only {', '.join(others)}" if others else ""
        raise FileNotFoundError(
            f"{base / name / config}: not prepared{instead}; set input.root to the data_dir of TensorFlow Datasets "
            f"that has it, or {advice}"
        ) from error
    except Exception as error:  # what describes a dataset is damaged in as many ways
        raise _damaged(base / name / config, "cannot be opened", error, advice) from error


def _check_features(found: Any, builder: Builder, advice: str) -> None:
    """Refuses what another builder of the same name has prepared."""
    wanted = (_NAME, builder.image, _LABEL)
    missing = [key for key in wanted if key not in found.info.features]
    if missing:
        raise spec.DataError(
            f"{found.data_path}: has no feature {', '.join(missing)}, so another builder prepared it; choose another "
            f"input.root and {advice}"
        )


def _records(found: Any, split: str, advice: str) -> list[Record]:
    """The records of one split, sorted by name as the files are."""
    if split not in found.info.splits:
        raise spec.DataError(f"{found.data_path}: has no split {split}; delete it and {advice}")
    info = found.info.splits[split]
    shards = [
        (pathlib.Path(path), n) for path, n in zip(info.filepaths, info.shard_lengths, strict=True)
    ]
    for shard, _ in shards:
        if not shard.is_file():
            raise FileNotFoundError(
                f"{shard}: the shard is missing; copy it again, or delete {shard.parent} and {advice}"
            )
    file_format = found.info.file_format.value
    if file_format == "tfrecord":
        records = [record for shard in shards for record in _tfrecords(*shard, advice)]
    elif file_format == "array_record":
        records = _array_records(found, split, shards, advice)
    else:
        raise spec.DataError(
            f"{found.data_path}: is in the format {file_format}; tfrecord and array_record can be read: delete it "
            f"and {advice}"
        )
    return sorted(records, key=lambda record: record.name)


def _tfrecords(shard: pathlib.Path, count: int, advice: str) -> Iterator[Record]:
    """The records of a shard: each a length (8 bytes), its checksum (4), the data, their checksum (4)."""

    def read(start: int, length: int) -> bytes:
        with shard.open("rb") as file:
            file.seek(start)
            return file.read(length)

    with shard.open("rb") as file:
        size, end = shard.stat().st_size, 0
        try:
            for _ in range(count):
                file.seek(end)
                (length,) = struct.unpack("<Q", file.read(8))
                start = end + 12
                end = start + length + 4
                if end > size:
                    raise ValueError(f"ends after {size} bytes, within a record")
                file.seek(start)
                yield Record(_name(file), shard, functools.partial(read, start, length))
            if end != size:
                raise ValueError(f"{size - end} bytes follow the last record")
        except (ValueError, struct.error, IndexError) as error:
            raise _damaged(shard, f"not the {count} records it should be", error, advice) from error


def _array_records(
    found: Any, split: str, shards: list[tuple[pathlib.Path, int]], advice: str
) -> list[Record]:
    """The records of all shards, read by threads."""
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("array_record") is None:
        raise ValueError(
            f"{found.data_path}: is in the format array_record, whose library is not installed; pip install "
            f"array_record, or delete it and {advice}"
        )
    source = found.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    places = [shard for shard, n in shards for _ in range(n)]

    def record(i: int) -> Record:
        try:
            name = _name(io.BytesIO(source[i]))
        except Exception as error:  # the library fails with RuntimeError and others
            raise _damaged(places[i], f"record {i} cannot be read", error, advice) from error
        return Record(name, places[i], functools.partial(source.__getitem__, i))

    title = f"indexing {found.info.name} {split}"
    return for_each(record, len(places), doing=title, unit="record")


def _name(file: io.BufferedIOBase) -> str:
    """The image_id of the tf.train.Example that begins here, in protobuf's wire format; the rest is skipped.

    An Example holds Features, these a map whose entries have a key and a value; the value holds a BytesList, that one
    the bytes.
    """
    end = _field(file, 1) + file.tell()
    while file.tell() < end:
        next_entry = _field(file, 1) + file.tell()
        if file.read(min(_field(file, 1), _LONGEST)) == _NAME.encode():
            for field in (2, 1, 1):  # value, BytesList, bytes
                length = _field(file, field)
            return file.read(min(length, _LONGEST)).decode()
        file.seek(next_entry)
    raise ValueError(f"a record has no {_NAME}")


def _field(file: io.BufferedIOBase, number: int) -> int:
    """The length of the field that begins here, which must be of that number and have a length."""
    if file.read(1)[0] != number << 3 | 2:
        raise ValueError("a record is no tf.train.Example")
    length = shift = 0
    while (byte := file.read(1)[0]) & 128:
        length |= (byte & 127) << shift
        shift += 7
    return length | byte << shift
