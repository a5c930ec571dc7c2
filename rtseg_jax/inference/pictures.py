"""Class maps as pictures: laid over the photo, above a legend of the classes that are shown."""

import base64
import contextlib
import functools
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from rtseg_jax.data.spec import ClassTable, Image3, Label

OPACITY = 0.65  # of the colours over a photo
_LINE, _COLUMN = 16, 130  # of the legend, in pixels; a column is at least so wide
_READABLE = 960  # a picture of a multiple of this width has a legend so many times as large


def overlay(photo: Image3, classes: Label, table: ClassTable) -> Image3:
    """The classes' colours laid over a photo; ignored pixels are darkened."""
    colors = Image.fromarray(table.colorize(classes))
    return np.asarray(Image.blend(Image.fromarray(photo), colors, OPACITY))


_FONTS = (  # where systems keep theirs
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.fonts",
    "~/.local/share/fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
)


def writable(
    names: Mapping[str, str], size: int
) -> tuple[list[str], ImageFont.FreeTypeFont | ImageFont.ImageFont]:
    """Names as they can be written, and a font that does: Pillow's, or one of the system that has all their letters.

    Args:
        names: {name: what stands for it where no font has its letters}, which is said once.
        size: Of the letters, in pixels.
    """
    letters = frozenset("".join(names)) - set(" \t")
    path = _font_of(letters)
    font = ImageFont.truetype(path, size) if path else ImageFont.load_default(size)
    written = [n if path or _has(font, frozenset(n)) else other for n, other in names.items()]
    if missing := tuple(n for n, w in zip(names, written, strict=True) if n != w):
        _say_once(missing)
    return written, font


@functools.lru_cache
def _font_of(letters: frozenset[str]) -> str:
    """The file of the system's font that has these letters; "" where Pillow's own has them, or no font does."""
    if _has(ImageFont.load_default(20), letters):
        return ""
    for folder in _FONTS:
        for path in sorted(pathlib.Path(folder).expanduser().rglob("*")):
            with contextlib.suppress(OSError):
                if path.suffix.lower() in (".ttf", ".otf", ".ttc") and _has(
                    ImageFont.truetype(path, 20), letters
                ):
                    return str(path)
    return ""


def _has(font: Any, letters: frozenset[str]) -> bool:
    """Whether a font draws none of these as what stands for a letter that it lacks."""
    lacking = bytes(font.getmask("\U0010fffe"))
    return not any(bytes(font.getmask(c)) == lacking for c in letters if not c.isspace())


@functools.lru_cache
def _say_once(names: tuple[str, ...]) -> None:
    print(f"no font here has all letters of {', '.join(names)}: pictures show the classes' numbers")


@functools.lru_cache(maxsize=64)  # the frames of a video have one
def legend(table: ClassTable, shown: tuple[int, ...], width: int) -> Image3:
    """A strip of coloured squares with the names of classes, in as many lines as they need.

    Args:
        table: The classes' names and colours.
        shown: Their train ids.
        width: Width of the strip in pixels; it is wider where not even one name fits.
    """
    unit = max(1, width // _READABLE)
    names, font = writable({table.class_names[c]: f"class {c}" for c in shown}, 10 * unit)
    column = max([_COLUMN * unit, *(30 * unit + int(font.getlength(name)) for name in names)])
    columns = max(1, width // column)
    line = _LINE * unit
    height = -(-len(names) // columns) * line + 4 * unit
    strip = Image.new("RGB", (max(width, column), height), "white")
    draw = ImageDraw.Draw(strip)
    for place, (c, name) in enumerate(zip(shown, names, strict=True)):
        x, y = place % columns * column + 4 * unit, place // columns * line + 3 * unit
        square = (x, y, x + 16 * unit, y + 11 * unit)
        draw.rectangle(square, fill=table.palette[c], outline="black", width=unit)
        draw.text((x + 22 * unit, y), name, fill="black", font=font)
    return np.asarray(strip)


def with_legend(
    picture: Image3, table: ClassTable, shown: tuple[int, ...]
) -> UInt8[np.ndarray, "taller wider 3"]:
    """A picture above the legend of some classes; white fills up what is narrower."""
    strip = legend(table, shown, picture.shape[1])
    room = strip.shape[1] - picture.shape[1]
    picture = np.pad(picture, ((0, 0), (0, room), (0, 0)), constant_values=255)
    return np.concatenate([picture, strip])


def occurring(table: ClassTable, *maps: Label) -> tuple[int, ...]:
    """The train ids of the classes that occur in any of some class maps."""
    found = set().union(*(np.unique(classes).tolist() for classes in maps))
    return tuple(c for c in range(table.num_classes) if c in found)


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """An image inside a page, as an URL: `kind` is "png" or "jpeg", `options` are those of saving it as one."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
