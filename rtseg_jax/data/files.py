"""Finding pairs of files, and decoding them with a one-line answer to whatever can be wrong with one."""

import codecs
import contextlib
import contextvars
import csv
import dataclasses
import io
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from rtseg_jax.base.files import one_line
from rtseg_jax.data.spec import (
    ClassTable,
    Color,
    DataError,
    Dataset,
    Image3,
    Label,
    format_values,
)

INVALID = 254  # in a raw -> train id table: this raw value must not occur
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")


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


def lookup(pairs: Iterable[tuple[int, int]]) -> UInt8[np.ndarray, "256"]:
    """A table raw value -> train id out of (raw, train id) pairs; every other raw value is `INVALID`."""
    table = np.full(256, INVALID, np.uint8)
    for raw, train_id in pairs:
        table[raw] = train_id
    return table


def files(folder: pathlib.Path, *endings: str) -> dict[str, pathlib.Path]:
    """{path below the folder, without its ending: file} of the files in a folder and those below it.

    Args:
        folder: Where to look.
        *endings: What the names end in, small or capital letters.

    Raises:
        DataError: two files differ in their endings alone.
    """
    found = {}
    for path in below(folder):
        name = path.relative_to(folder).as_posix()
        if ending := next((e for e in endings if name.lower().endswith(e.lower())), None):
            first = found.setdefault(name[: -len(ending)], path)
            if first != path:
                raise DataError(
                    f"{first} and {path.name} differ in their endings alone; remove one"
                )
    return found


def below(folder: pathlib.Path, *, follow: bool = True) -> list[pathlib.Path]:
    """The files below a folder, sorted; what begins with a dot, and macOS's __MACOSX, is passed over at any depth.

    Args:
        folder: Where to look.
        follow: Whether also behind links to folders, unless one leads back up.
    """
    found = []
    for where, inner, names in os.walk(folder, followlinks=follow):
        here = pathlib.Path(where)
        above = (real := here.resolve(), *real.parents)
        inner[:] = [n for n in inner if _is_data(n) and (here / n).resolve() not in above]
        found += (here / name for name in names if _is_data(name))
    return sorted(found)


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def read_text(path: pathlib.Path) -> str:
    """What a person wrote into a file: UTF-8, with the mark of Windows' editors or without, or their UTF-16.

    Raises:
        DataError: another encoding; the message names the line.
    """
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def read_rows(
    path: pathlib.Path, comment: str | None = None
) -> Iterator[tuple[str, str, list[str], bool]]:
    """The lines of a table that a person wrote: where each stands, the line, its cells, and whether spaces part these.

    Else tabs, semicolons or commas (with quotes as in CSV) do. Empty lines do not count.

    Args:
        path: The file.
        comment: What begins a comment.

    Raises:
        DataError: as of read_text().
    """
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if content := line.partition(comment)[0].strip() if comment else line.strip():
            mark = next((mark for mark in "\t;," if mark in content), None)
            cells = next(csv.reader([content], delimiter=mark)) if mark else content.split()
            yield f"{path}, line {number}", line.strip(), [c.strip() for c in cells], mark is None


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
        [
            (what == "label" and _unusable(wanted))
            or f"{wanted}: the {what} of {has} is missing; {advice}"
            for wanted, what, has in alone
        ]
    )
    return [(name, images[name], labels[name]) for name in sorted(images.keys() & labels.keys())]


def _unusable(label: pathlib.Path) -> str:
    """What is wrong with a label that is there, but no PNG; "" where there is none."""
    for ending in (".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".npy"):
        other = label.with_suffix(ending)
        if other.is_file():
            why = ", whose compression changes the numbers" * (ending in (".jpg", ".jpeg"))
            return (
                f"{other}: a label cannot be a {ending} file{why}; save it as PNG from its source"
            )
    return ""


def folder_pairs(
    images: pathlib.Path, labels: pathlib.Path, *endings: str, advice: str
) -> list[tuple[str, pathlib.Path, pathlib.Path]]:
    """(name, image, label) of two folders whose files have the same paths below them; labels are .png.

    Args:
        images: The folder of the images.
        labels: The folder of the labels.
        *endings: Endings of the images' names; a missing one is expected with the first.
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
        names: The examples' names.
        pairs: Their files.
        lut: Raw value of a label -> train id; see `read_pair`.
        hint: What to do about a raw value that has no class; see `read_pair`.
        upright: Whether the image is turned as its EXIF orientation says.
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
    """Reads a list file: an image and its label per line (see read_rows), relative to a folder.

    Args:
        path: The list; a first line such as "image,label" is a heading.
        root: What its paths are relative to, with slashes of either kind.

    Raises:
        DataError: a line that is not two paths, no line at all, or an image with two labels or a label with two images.
        FileNotFoundError: a file of the list is missing.
    """
    found, missing, partner = [], [], {}
    for place, line, cells, _ in read_rows(path):
        if not found and not missing and cells in (["image", "label"], ["image", "mask"]):
            continue
        if len(cells) != 2:
            raise DataError(f"{place}: expects 'image label', got {line!r}")
        image, label = (root / cell.replace("\\", "/") for cell in cells)
        lacking = [
            f"{wanted}: the {what} of {other} is missing; {place} names it"
            for wanted, other, what in ((image, label, "image"), (label, image, "label"))
            if not wanted.is_file()
        ]
        missing += lacking
        if lacking:
            continue
        for one, other, what in ((image, label, "labels"), (label, image, "images")):
            if partner.setdefault(one, other) != other:
                raise DataError(
                    f"{place}: {one} has two {what}, {partner[one]} and {other}; remove one line"
                )
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
        reason = one_line(error)
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
        red, *others = (np.asarray(channel) for channel in image.convert("RGB").split())
        if depth == 8 and all((red == other).all() for other in others):
            raise DataError(
                f"{path}: a label of mode {image.mode} whose channels are equal; expects one of them: save"
                " Image.open(path).getchannel(0) in its place"
            )
        raise DataError(
            f"{path}: a label of mode {image.mode} holds colours; expects an index or grey PNG of class ids"
            " (for data of your own input.annotation=colors reads the classes' colours)"
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
        image_path: The image's file.
        label_path: The label's file.
        lut: Raw value -> train id (see `read_label`), or RGB -> train id (see `read_color_label`).
        hint: What to do about a label that has other values.
        upright: Whether the image is turned as its EXIF orientation says.

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


def image_size(path: pathlib.Path) -> tuple[int, int]:
    """(h, w) as an image is to be seen; (0, 0) where reading it will tell what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                (w, h), orientation = image.size, image.getexif().get(ExifTags.Base.Orientation, 1)
                # Pillow has turned a TIFF already.
                turned = orientation in (5, 6, 7, 8) and image.format != "TIFF"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{path}: more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels; make it smaller"
        ) from None
    except Exception:  # decoders fail with anything from OSError to SyntaxError
        return (0, 0)
    return (w, h) if turned else (h, w)


def pages(path: pathlib.Path) -> int:
    """How many images are in a file that can hold several; 1 where reading it will tell what is wrong."""
    with contextlib.suppress(Exception), Image.open(path) as image:  # as of image_size()
        # A phone's JPEG holds thumbnails besides.
        if image.format in ("GIF", "TIFF", "WEBP", "PNG"):
            return getattr(image, "n_frames", 1)
    return 1


def read_frame(path: pathlib.Path) -> Image3:
    """Reads an 8-bit image as RGB, turned as its EXIF orientation says.

    Raises:
        DataError: as of read_image(), or more pixels than Pillow takes for harmless.
    """
    image_size(path)  # refuses one that is too large, before it is decoded
    return read_image(path, upright=True)
