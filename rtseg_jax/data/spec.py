"""What a dataset is: a table of classes, a list of names, and a function that loads one checked pair."""

import contextlib
import contextvars
import dataclasses
import io
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from rtseg_jax.labels import IGNORE, OUTSIDE

INVALID = 254  # in a raw -> train id table: this raw value must not occur
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")

Image3 = UInt8[np.ndarray, "h w 3"]
Label = UInt8[np.ndarray, "h w"]
Color = tuple[int, int, int]  # RGB


class DataError(ValueError):
    """A file of a dataset is not what it should be; the message is one line and names the file."""


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset in the order of their train ids, and the RGB they are drawn in."""

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        """Refuses a table with a class that has no colour."""
        assert len(self.class_names) == len(self.palette) <= OUTSIDE

    @property
    def num_classes(self) -> int:
        """Number of classes, `IGNORE` not counted."""
        return len(self.class_names)

    def colorize(self, label: Label) -> Image3:
        """Draws train ids in the table's colours, ignored pixels black.

        Raises:
            ValueError: the label has a value that is neither a class nor 255.
        """
        colors = np.zeros((256, 3), np.uint8)
        colors[: self.num_classes] = self.palette
        unknown = np.unique(label[(label >= self.num_classes) & (label != IGNORE)])
        if unknown.size:
            raise ValueError(
                f"values {format_values(unknown.tolist())} are no train ids of {self.name}; "
                f"allowed are 0-{self.num_classes - 1} and {IGNORE}"
            )
        return colors[label]


TABLES = {
    "cityscapes": ClassTable(
        "cityscapes",
        (
            "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
            "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
            "motorcycle", "bicycle",
        ),
        (
            (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
            (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
            (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
            (0, 80, 100), (0, 0, 230), (119, 11, 32),
        ),
    ),
    # The order of the SegNet distribution.
    "camvid": ClassTable(
        "camvid",
        (
            "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car",
            "pedestrian", "bicyclist",
        ),
        (
            (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222),
            (128, 128, 0), (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
        ),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The bytes of an image file that lie in a larger file, and where, for messages; read like a path."""

    place: str
    content: bytes

    def __str__(self) -> str:
        """Where the bytes lie."""
        return self.place

    def read_bytes(self) -> bytes:
        """The bytes, as pathlib.Path has it."""
        return self.content


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a dataset.

    Attributes:
        table: The classes.
        split: Which split it is.
        names: One name per example, unique within the split; predictions are stored under it.
        size: (h, w) of every example in pixels, or None where only loading tells.
        load: index -> (image, label): RGB in [0, 255] and train ids or 255, of one height and width.
        files: Every file that load reads, of all examples together; what is drawn has none.
    """

    table: ClassTable
    split: str
    names: tuple[str, ...]
    size: tuple[int, int] | None
    load: Callable[[int], tuple[np.ndarray, np.ndarray]]
    files: tuple[pathlib.Path, ...] = ()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.names)

    def name(self, i: int) -> str:
        """The name of one example."""
        return self.names[i]


def where(dataset: Dataset, i: int) -> str:
    """An example by data set, split and name, for messages."""
    return f"{dataset.table.name} {dataset.split} image {dataset.name(i)}"


def resize_image(image: Image3, size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """An image at (h, w) in pixels, by Pillow's antialiased bilinear filter."""
    return _resize(image, size, Image.Resampling.BILINEAR)


def resize_label(label: Label, size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2"]:
    """A label or class map at (h, w) in pixels, by the nearest."""
    return _resize(label, size, Image.Resampling.NEAREST)


def _resize(array: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    if array.shape[:2] == size:
        return array
    return np.asarray(Image.fromarray(array).resize(size[::-1], how))


def resized(dataset: Dataset, size: tuple[int, int]) -> Dataset:
    """The dataset at another size, as of `resize_image` and `resize_label`.

    ERFNet trains and is scored on Cityscapes halved like this.

    Args:
        dataset: Any dataset.
        size: (h, w) in pixels of every example of the result.
    """

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = dataset.load(i)
        return resize_image(image, size), resize_label(label, size)

    return dataclasses.replace(dataset, size=size, load=load)


def on_canvas(dataset: Dataset, canvas: tuple[int, int]) -> Dataset:
    """Examples of any size on canvases of one: in the top left corner, shrunk where they are larger.

    Shrinking keeps the shape, with the filters of `resized`. Beyond the frame the image is black and the label
    `OUTSIDE`, from which the augmentation tells how far the frame reaches; it never looks beyond.

    Args:
        dataset: Any dataset.
        canvas: (h, w) in pixels of every example of the result.

    Raises:
        ValueError: a canvas without extent.
    """
    if min(canvas) < 1:
        raise ValueError(f"canvas {canvas} is impossible; expects (h, w) in pixels")

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = dataset.load(i)
        shrink = min(1.0, *(room / side for room, side in zip(canvas, label.shape, strict=True)))
        if shrink < 1:
            size = tuple(max(1, round(shrink * side)) for side in label.shape)
            image, label = resize_image(image, size), resize_label(label, size)
        h, w = label.shape
        wide_image = np.zeros((*canvas, 3), np.uint8)
        wide_label = np.full(canvas, OUTSIDE, np.uint8)
        wide_image[:h, :w], wide_label[:h, :w] = image, label
        return wide_image, wide_label

    return dataclasses.replace(dataset, size=canvas, load=load)


def patches(dataset: Dataset, rows: int, columns: int, height: int, width: int) -> Dataset:
    """A grid of crops from every image, each an example, evenly spread from border to border.

    AFFNet trains on such patches: 2 x 4 of 880x880 pixels cover a frame of 1024x2048.

    Args:
        dataset: Any dataset.
        rows: Of the grid.
        columns: Of the grid.
        height: Of a patch, in pixels.
        width: Of a patch, in pixels.

    Raises:
        ValueError: a grid or a patch without extent. Loading raises DataError where an image is smaller than a patch.
    """
    if min(rows, columns, height, width) < 1:
        raise ValueError(
            f"patches {rows, columns, height, width} are impossible; (rows, columns, h, w) from 1"
        )
    grid = [(r, c) for r in range(rows) for c in range(columns)]

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = dataset.load(i // len(grid))
        r, c = grid[i % len(grid)]
        room = label.shape[0] - height, label.shape[1] - width
        if min(room) < 0:
            raise DataError(
                f"{where(dataset, i // len(grid))} is "
                f"{label.shape[0]}x{label.shape[1]} pixels, smaller than a patch of {height}x{width}"
            )
        y, x = round(r * room[0] / max(rows - 1, 1)), round(c * room[1] / max(columns - 1, 1))
        return image[y : y + height, x : x + width], label[y : y + height, x : x + width]

    names = tuple(f"{name}_{r}{c}" for name in dataset.names for r, c in grid)
    return dataclasses.replace(dataset, names=names, size=(height, width), load=load)


def first(dataset: Dataset, num_examples: int) -> Dataset:
    """The first `num_examples` of a dataset.

    Raises:
        ValueError: there are not as many.
    """
    if not 1 <= num_examples <= len(dataset):
        raise ValueError(
            f"num_examples {num_examples} of {dataset.table.name} {dataset.split}: "
            f"must lie in 1-{len(dataset)}"
        )
    return dataclasses.replace(dataset, names=dataset.names[:num_examples])


def tolerant(
    dataset: Dataset, allowed: int, *, one_size: bool, say: Callable[[str], object] = print
) -> Dataset:
    """A training set in which the next example takes the place of one that cannot be read.

    Which one that is depends on the files alone, so a resumed run sees what an undisturbed one sees, as long as the same
    ones are bad. Each is tried again whenever its turn comes.

    Args:
        dataset: Any dataset.
        allowed: So many examples may be bad; one more, and loading raises what the first time was said of it.
        one_size: Whether an example of another size than the first readable one is bad too; then that one is read here.
        say: Told of each bad example, once: what is wrong, and what takes its place.

    Raises:
        ValueError: a negative number.
        DataError: none of the first examples can be read.
    """
    if allowed < 0:
        raise ValueError(f"input.max_bad={allowed} is impossible; 0 stops at the first bad example")
    if allowed == 0:
        return dataset
    bad: dict[int, str] = {}
    lock = threading.Lock()

    def attempt(i: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = dataset.load(i)
        if size is not None and label.shape != size:
            found, wanted = (f"{h}x{w}" for h, w in (label.shape, size))
            raise DataError(f"{dataset.name(i)} is {found} pixels (h x w), others {wanted}")
        return image, label

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        for j in (*range(i, len(dataset)), *range(i)):
            try:
                found = attempt(j)
            except (DataError, OSError) as error:
                with lock:
                    new = j not in bad
                    line = bad.setdefault(j, f"bad example {len(bad) + 1} of {allowed}: {error}")
                    if len(bad) > allowed:
                        last = list(bad.values())[allowed]  # another thread may have met it
                        raise DataError(f"{last}; more than input.max_bad allows") from error
                    if new:
                        say(f"{line}; the next one takes its place")
            else:
                return found
        raise DataError(f"{dataset.table.name} {dataset.split}: no example can be read")

    size = dataset.size
    if one_size and size is None:  # that of the first example that can be read
        size = load(0)[1].shape
    return dataclasses.replace(dataset, size=size, load=load)


def lookup(pairs: Iterable[tuple[int, int]]) -> UInt8[np.ndarray, "256"]:
    """A table raw value -> train id out of (raw, train id) pairs; every other raw value is `INVALID`."""
    table = np.full(256, INVALID, np.uint8)
    for raw, train_id in pairs:
        table[raw] = train_id
    return table


def format_values(values: Iterable[int]) -> str:
    """Ascending integers with their runs drawn together: 0-11, 255."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def check_split(dataset: str, split: str, splits: Iterable[str]) -> None:
    """Refuses a split that the dataset does not have.

    Raises:
        ValueError: it is none of `splits`; the message lists them.
    """
    splits = list(splits)
    if split not in splits:
        raise ValueError(f"unknown split {split!r} of {dataset}; choose one of {', '.join(splits)}")


def choose_annotation(dataset: str, annotation: str, annotations: Iterable[str]) -> str:
    """The annotation that is asked for, the first where it is left empty.

    Raises:
        ValueError: the dataset has no such annotation; the message lists those that it has.
    """
    annotations = list(annotations)
    if annotation and annotation not in annotations:
        raise ValueError(
            f"unknown annotation {annotation!r} of {dataset}; "
            + (
                f"choose one of {', '.join(annotations)}"
                if annotations
                else "it has one; leave it empty"
            )
        )
    return annotation or next(iter(annotations), "")


def files(folder: pathlib.Path, *endings: str) -> dict[str, pathlib.Path]:
    """{path below the folder, without its ending: file} of the files in a folder and those below it.

    Args:
        folder: Where to look.
        *endings: What the names end in, small or capital letters.
    """
    found = {}
    for path in sorted(_below(folder)):
        name = path.relative_to(folder).as_posix()
        ending = next((e for e in endings if name.lower().endswith(e.lower())), None)
        if ending and not path.name.startswith("."):  # ._* are what macOS leaves in archives
            found[name[: -len(ending)]] = path
    return found


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files below a folder, also behind links to folders, unless one leads back up."""
    for where, inner, names in os.walk(folder, followlinks=True):
        here = pathlib.Path(where)
        above = (real := here.resolve(), *real.parents)
        inner[:] = [name for name in inner if (here / name).resolve() not in above]
        yield from (here / name for name in names)


_missing: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("missing", default=None)


@contextlib.contextmanager
def noting_missing() -> Iterator[list[str]]:
    """Within the context a listing leaves out what lacks its counterpart, and adds a line for each to this list."""
    token = _missing.set([])
    try:
        yield _missing.get()
    finally:
        _missing.reset(token)


def report_missing(lines: Sequence[str]) -> None:
    """Notes files that lack their counterparts, or raises what is wrong with the first one."""
    if (noted := _missing.get()) is not None:
        noted.extend(lines)
    elif lines:
        more = f" ({len(lines) - 1} more files are alone)" if len(lines) > 1 else ""
        raise FileNotFoundError(f"{lines[0]}{more}")


def pairs(
    images: Mapping[str, pathlib.Path],
    labels: Mapping[str, pathlib.Path],
    *,
    image_at: Callable[[str], pathlib.Path],
    label_at: Callable[[str], pathlib.Path],
    advice: str,
) -> list[tuple[str, pathlib.Path, pathlib.Path]]:
    """(name, image, label) by name, where each image has a label and each label an image.

    Args:
        images: {name: file}.
        labels: {name: file}.
        image_at: Where the image of a name is expected, for the error message.
        label_at: Where the label of a name is expected.
        advice: What to do about a missing file.

    Raises:
        FileNotFoundError: a file is alone.
    """
    alone = [
        (label_at(name), "label", images[name])
        if name in images
        else (image_at(name), "image", labels[name])
        for name in sorted(images.keys() ^ labels.keys())
    ]
    report_missing(
        [f"{wanted}: the {what} of {has} is missing; {advice}" for wanted, what, has in alone]
    )
    return [(name, images[name], labels[name]) for name in sorted(images.keys() & labels.keys())]


def folder_pairs(
    images: pathlib.Path, labels: pathlib.Path, *endings: str, advice: str
) -> list[tuple[str, pathlib.Path, pathlib.Path]]:
    """(name, image, label) of two folders whose files have the same paths below them; labels are .png.

    Args:
        images: The folder of the images.
        labels: The folder of the labels.
        *endings: Of the images' names; a missing one is expected with the first.
        advice: What to do about a missing file.

    Raises:
        FileNotFoundError: a file is alone.
    """
    return pairs(
        files(images, *endings),
        files(labels, ".png"),
        image_at=lambda name: images / f"{name}{endings[0]}",
        label_at=lambda name: labels / f"{name}.png",
        advice=advice,
    )


def of_files(
    table: ClassTable,
    split: str,
    names: tuple[str, ...],
    pairs: Sequence[Sequence[pathlib.Path]],
    lut: UInt8[np.ndarray, "256"] | Mapping[Color, int],
    hint: str,
    upright: bool = False,
) -> Dataset:
    """A split of (image, label) files that are all read in one way.

    Args:
        table: The classes.
        split: Which split it is.
        names: Of the examples.
        pairs: Their files.
        lut: As of `read_pair`.
        hint: As of `read_pair`.
        upright: As of `read_image`.
    """
    return Dataset(
        table=table,
        split=split,
        names=names,
        size=None,
        load=lambda i: read_pair(*pairs[i], lut, hint, upright),
        files=tuple(path for pair in pairs for path in pair),
    )


def read_list(path: pathlib.Path, root: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Reads a list file: an image and its label per line, separated by a tab or spaces, relative to a folder.

    Args:
        path: The list; empty lines do not count.
        root: What its paths are relative to.

    Raises:
        DataError: a line that is not two paths, or no line at all.
        FileNotFoundError: a file of the list is missing.
    """
    found, missing = [], []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != 2:
            raise DataError(f"{path}, line {number}: expects 'image label', got {line.strip()!r}")
        image, label = (root / field.strip() for field in fields)
        lacking = [
            f"{wanted}: the {what} of {other} is missing; {path}, line {number} names it"
            for wanted, other, what in ((image, label, "image"), (label, image, "label"))
            if not wanted.is_file()
        ]
        missing += lacking
        if not lacking:
            found.append((image, label))
    report_missing(missing)
    if not found and not missing:
        raise DataError(f"{path}: the list is empty; expects 'image label' lines")
    return found


def unique_names(paths: Iterable[pathlib.Path]) -> tuple[str, ...]:
    """A name per file: its stem, or where two files share one, as much of their paths as tells them apart."""
    paths = list(paths)
    for depth in range(1, max((len(p.parts) for p in paths), default=1) + 1):
        names = tuple("/".join(p.with_suffix("").parts[-depth:]) for p in paths)
        if len(set(names)) == len(names):
            break
    return names


def _decode(
    path: pathlib.Path | Encoded, upright: bool = False
) -> tuple[Image.Image, tuple[int, int] | None]:
    """Opens and decodes a file: the image, and (bit depth, colour type) from the header of a PNG."""
    try:
        data = path.read_bytes()
        if not data:
            raise DataError(f"{path}: the file is empty; copy it again")
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # checks PNG checksums: without, a flipped bit can decode to other pixels
        image = Image.open(io.BytesIO(data))
        png = (data[24], data[25]) if image.format == "PNG" else None
        image.load()
        if upright:
            with contextlib.suppress(Exception):  # EXIF that cannot be read says nothing of it
                image = ImageOps.exif_transpose(image)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image, or its header is corrupt; copy it again") from error
    except Exception as error:  # decoders fail with anything from OSError to SyntaxError
        system = getattr(error, "strerror", None)
        if system:
            raise DataError(f"{path}: cannot be read ({system}); check the file") from error
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: truncated or corrupt ({reason}); copy it again") from error
    return image, png


def read_image(path: pathlib.Path | Encoded, upright: bool = False) -> Image3:
    """Reads an 8-bit image as RGB; grey, palette and RGBA images are converted.

    Args:
        path: The file.
        upright: Whether to turn it as its EXIF orientation says, as viewers do; else the pixels are as they are stored.

    Raises:
        DataError: the file is missing, corrupt, or not such an image.
    """
    image, png = _decode(path, upright)
    if png and png[0] == 16:
        raise DataError(f"{path}: a 16-bit image; expects 8 bits per channel")
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P"):
        raise DataError(f"{path}: an image of mode {image.mode}; expects 8-bit RGB")
    if image.mode != "RGB":
        image = image.convert("RGBA").convert("RGB")
    return np.asarray(image)


def read_label(
    path: pathlib.Path | Encoded, lut: UInt8[np.ndarray, "256"], hint: str = ""
) -> Label:
    """Reads an 8-bit grey or palette PNG (its indices, not its colours) and maps it to train ids.

    Args:
        path: The PNG.
        lut: Raw value -> train id, `IGNORE`, or `INVALID` for values that must not occur.
        hint: What to do about values that must not occur, for the error message.

    Raises:
        DataError: the file is missing, corrupt, has colour channels or 16 bits, or a value not allowed.
    """
    image, png = _decode(path)
    if png is None:
        raise DataError(f"{path}: a {image.format} file; expects an index or grey PNG of class ids")
    depth, color = png
    if color not in (0, 3):
        raise DataError(
            f"{path}: a label of mode {image.mode} holds colours; "
            "expects an index or grey PNG of class ids"
        )
    if depth != 8 and color == 0:  # Pillow would rescale 2 and 4 bit grey to 0-255
        raise DataError(f"{path}: a {depth}-bit grey label; expects an 8-bit PNG of class ids")
    raw = np.asarray(image)
    label = lut[raw]
    if (label == INVALID).any():
        bad = format_values(np.unique(raw[label == INVALID]).tolist())
        allowed = format_values(np.flatnonzero(lut != INVALID).tolist())
        raise DataError(
            f"{path}: label values {bad} are not allowed; allowed are {allowed}"
            + (f"; {hint}" if hint else "")
        )
    return label


def read_color_label(
    path: pathlib.Path | Encoded, colors: Mapping[Color, int], hint: str = ""
) -> Label:
    """Reads a PNG whose colours are classes, RGB or palette, and maps it to train ids.

    Args:
        path: The PNG; an alpha channel is not looked at.
        colors: RGB -> train id or `IGNORE`.
        hint: What to do about colours that must not occur, for the error message.

    Raises:
        DataError: the file is missing, corrupt, no such PNG, or has a colour that is no class.
    """
    image, png = _decode(path)
    if png is None:
        raise DataError(f"{path}: a {image.format} file; expects a PNG whose colours are classes")
    if png[0] == 16 or image.mode not in ("RGB", "RGBA", "P"):
        raise DataError(
            f"{path}: a label of mode {image.mode} with {png[0]} bits holds no colours of classes; "
            "expects an 8-bit RGB or palette PNG"
        )
    rgb = np.asarray(image.convert("RGB"), np.uint32)
    packed = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    known = sorted((r << 16 | g << 8 | b, train_id) for (r, g, b), train_id in colors.items())
    keys = np.array([key for key, _ in known], np.uint32)
    train_ids = np.array([train_id for _, train_id in known], np.uint8)
    place = np.minimum(np.searchsorted(keys, packed), len(keys) - 1)
    wrong = keys[place] != packed
    if wrong.any():
        bad = np.unique(packed[wrong])
        shown = ", ".join(f"({v >> 16}, {v >> 8 & 255}, {v & 255})" for v in bad[:4].tolist())
        more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
        raise DataError(
            f"{path}: colours {shown}{more} on {int(wrong.sum())} pixels are no classes"
            + (f"; {hint}" if hint else "")
        )
    return train_ids[place]


def read_pair(
    image_path: pathlib.Path | Encoded,
    label_path: pathlib.Path | Encoded,
    lut: UInt8[np.ndarray, "256"] | Mapping[Color, int],
    hint: str = "",
    upright: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image (uint8 [h,w,3]) and its label (uint8 [h,w], train ids or 255).

    Args:
        image_path: Of the image.
        label_path: Of the label.
        lut: Raw value -> train id (see `read_label`), or RGB -> train id (see `read_color_label`).
        hint: What to do about a label that has other values.
        upright: As of `read_image`.

    Raises:
        DataError: as `read_image` and the label's reader, or the two differ in size.
    """
    read = read_color_label if isinstance(lut, Mapping) else read_label
    image, label = read_image(image_path, upright), read(label_path, lut, hint)
    if image.shape[:2] != label.shape:
        (h, w), (lh, lw) = image.shape[:2], label.shape
        raise DataError(
            f"{label_path}: the label is {lh}x{lw} pixels (h x w) but its image {image_path} "
            f"is {h}x{w}; both must have one size"
        )
    return image, label
