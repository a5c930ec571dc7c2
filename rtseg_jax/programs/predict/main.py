"""Class maps, masks and overlays of photos, an overlaid video of a video or a camera.

rtseg predict --network=RUN --output=DIR photo.jpg photos/ "more/**/*.png"
rtseg predict --network=RUN --output=DIR --input=drive.mp4 --input=0

It writes DIR/ids (8-bit PNGs of class numbers, which DIR/classes.json names), DIR/masks (the classes' colours),
DIR/overlays (the colours over the photo, above a legend) and, of videos, DIR/videos (overlaid, without sound). A folder
is searched for images and videos with all below it; a number is a camera, until Ctrl-C.

Frames of any size are taken, and a class map has its frame's size. What the network sees is, in this order: --size;
what it was evaluated on, where the run's config names a size; the frame itself, shrunk in its shape where it has more
than --max_pixels (without the flag, than the frames of its data set), enlarged where a side is below 32 pixels. This
resizing is part of the compiled program, but for the config's input.size and for frames of more than four times
--max_pixels: they are brought to it, or to these, by Pillow's antialiased filter before the program, and a pixel has the
class of the nearest that the network saw. A program is made for one size of frames: images are
taken in the order of their sizes, each size is compiled once, and how many there are is printed. --multiple=N pads
frames to multiples of N pixels by their last row and column, so that many similar sizes share few programs; off by
default, for it changes what the network sees near the border.

A file that cannot be used stops nothing: it is named at the end, and the exit code is 1.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from rtseg_jax.base.files import absolute, one_line
from rtseg_jax.base.threads import ahead, behind
from rtseg_jax.data import files
from rtseg_jax.data.files import image_size, read_frame
from rtseg_jax.data.sets import folder
from rtseg_jax.data.spec import ClassTable, DataError, Image3, Label
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import pictures
from rtseg_jax.inference.network import Pair
from rtseg_jax.programs.predict.timing import Clock, as_it_is, timed
from rtseg_jax.programs.predict.video import VIDEO_ENDINGS, predict_video
from rtseg_jax.programs.shared.command_line import Flags, Given, Program, check_folder
from rtseg_jax.programs.shared.process import prepare_process

IMAGE_ENDINGS = (*files.IMAGE_ENDINGS, ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif")
UNREAD = (".heic", ".heif", ".avif", ".jxl", ".psd", ".svg")  # images that are not
KINDS = ("ids", "masks", "overlays")
MANY_SIZES = 8  # from here on, --multiple is worth a hint


@dataclasses.dataclass(frozen=True)
class Found:
    """What inputs turn out to be.

    Attributes:
        images: Files, in the order of the inputs.
        videos: Files.
        cameras: Numbers.
        problems: A line for every input without anything.
    """

    images: tuple[pathlib.Path, ...]
    videos: tuple[pathlib.Path, ...]
    cameras: tuple[int, ...]
    problems: tuple[str, ...]


def find(inputs: Iterable[str]) -> Found:
    """Finds the files of inputs: files, folders with all below them, patterns with * or **, numbers of cameras.

    Links to folders are not followed; a file that is named twice counts once. Hidden files, and those of hidden folders,
    are not looked at, unless they are named: by their path, or by a pattern with that dot.
    """
    given: dict[pathlib.Path, None] = {}
    cameras, problems = [], []
    for text in inputs:
        path = absolute(text)
        if os.path.isdir(path):
            found = _below(path)
            nothing = f"{text}: no images and videos in this folder; they end in {_endings()}"
        elif os.path.lexists(path):
            found, nothing = [path], ""
        elif text.isdecimal():
            cameras.append(int(text))
            continue
        elif any(c in text for c in "*?["):
            found = sorted(pathlib.Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            found = [p for p in found if not _is_hidden(p, named=path.parts)]
            found = [f for p in found for f in (_below(p) if os.path.isdir(p) else [p])]
            nothing = f"{text}: no file matches this pattern"
        else:
            found, nothing = [], f"{text}: no such file, folder or camera"
        if not found:
            problems.append(nothing)
        given.update(dict.fromkeys(found))
    for path in list(given):
        if not os.path.isfile(path):
            problems.append(f"{path}: a broken link, or no regular file")
        elif path.suffix.lower() in UNREAD:
            problems.append(f"{path}: images of this kind are not read; save it as JPEG or PNG")
        else:
            continue
        del given[path]
    videos = tuple(p for p in given if p.suffix.lower() in VIDEO_ENDINGS)
    images = tuple(p for p in given if p.suffix.lower() not in VIDEO_ENDINGS)
    return Found(images, videos, tuple(dict.fromkeys(cameras)), tuple(problems))


def _endings() -> str:
    return ", ".join((*IMAGE_ENDINGS, *VIDEO_ENDINGS))


def _is_hidden(path: pathlib.PurePath, named: Sequence[str] = ()) -> bool:
    """Whether a part of a path begins with a dot; what a pattern's part names with its dot is not hidden."""
    patterns = [part for part in named if part.startswith(".")]
    return any(
        part.startswith(".") and not any(fnmatch.fnmatch(part, pattern) for pattern in patterns)
        for part in path.parts
    )


def _below(folder: pathlib.Path) -> list[pathlib.Path]:
    return [
        path
        for path in files.below(folder, follow=False)
        if path.suffix.lower() in (*IMAGE_ENDINGS, *UNREAD, *VIDEO_ENDINGS)
    ]


def output_names(paths: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """A name for the results of each file, no two alike: its stem, where need be with folders before or its ending.

    a.jpg and b.jpg become "a" and "b"; day/1.png and night/1.png become "day/1" and "night/1"; 1.png and 1.jpg become
    "1.png" and "1.jpg".
    """
    if not paths:
        return ()
    base = os.path.commonpath([path.parent for path in paths])
    relative = [path.relative_to(base) for path in paths]
    names = files.unique_names(relative)
    if len(set(names)) == len(names):
        return names
    # Endings alone tell some apart: unique_names() takes one off, so each is given another.
    return files.unique_names([path.with_name(path.name + ".png") for path in relative])


def predict_images(
    classes: Callable[[Image3], Label],
    table: ClassTable,
    paths: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    given: Callable[[Pair], Pair] = as_it_is,
    kinds: Sequence[str] = KINDS,
) -> tuple[Clock, list[str]]:
    """Writes the ids, masks and overlays of images, which are read and written in threads.

    Args:
        classes: Frame -> class map, as of classifier().
        table: The classes' names and colours.
        paths: The images' files.
        output: Folder that gets a folder for each kind.
        given: (h, w) of a frame -> that which the network is compiled for, as of evaluate.View.
        kinds: What is wanted of "ids", "masks" and "overlays".

    Returns:
        What it took, and a line for every file that could not be used.

    Raises:
        ValueError: a result would overwrite an input.
    """
    targets = [
        {kind: output / kind / f"{name}.png" for kind in kinds} for name in output_names(paths)
    ]
    _refuse_overwriting(paths, [path for target in targets for path in target.values()])
    clock, problems, work = Clock(), [], []
    for path, target in zip(paths, targets, strict=True):
        if (pages := files.pages(path)) > 1:
            print(
                f"note: {path} has {pages} pages, and the first one is taken; save the others as files"
            )
        try:
            work.append((image_size(path), path, target))
        except DataError as error:
            problems.append(one_line(error))
    work.sort(key=lambda item: given(item[0]))
    sizes = {given(size) for size, _, _ in work if size != (0, 0)}
    if sizes:
        fewer = len({(h + -h % 64, w + -w % 64) for h, w in sizes}) < len(sizes)
        hint = (
            "; --multiple=64 would let similar ones share programs"
            if fewer and len(sizes) > MANY_SIZES
            else ""
        )
        many = "one size" if len(sizes) == 1 else f"{len(sizes)} sizes, each compiled once"
        print(f"{len(work)} images in frames of {many}{hint}")

    def write(
        path: pathlib.Path, target: dict[str, pathlib.Path], frame: Image3, ids: Label
    ) -> None:
        try:
            for kind, file in target.items():
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(_picture(kind, frame, ids, table)).save(file)
        except OSError as error:
            problems.append(f"{path}: its results cannot be written ({one_line(error)})")

    network = timed(classes, clock, given)
    start = time.perf_counter()
    reading = ahead((functools.partial(read_frame, path) for _, path, _ in work), None)
    with contextlib.closing(reading), behind(None) as submit:
        bar = tqdm(work, unit="image", disable=None)
        for (_, path, target), future in zip(bar, reading, strict=True):
            try:
                frame = future.result()
                submit(write, path, target, frame, network(frame))
            except DataError as error:
                problems.append(one_line(error))
            except jax.errors.JaxRuntimeError as error:
                problems.append(f"{path}: the network failed on it ({one_line(error)})")
    clock.total = time.perf_counter() - start - clock.compiling
    return clock, problems


def _picture(kind: str, frame: Image3, ids: Label, table: ClassTable) -> np.ndarray:
    if kind == "ids":
        return ids
    if kind == "masks":
        return table.colorize(ids)
    laid = pictures.overlay(frame, ids, table)
    return pictures.with_legend(laid, table, pictures.occurring(table, ids))


def _refuse_overwriting(inputs: Iterable[pathlib.Path], targets: Iterable[pathlib.Path]) -> None:
    both = {path.resolve() for path in inputs} & {path.resolve() for path in targets}
    if both:
        raise ValueError(
            f"the results would overwrite the input {min(both)}; give another --output"
        )


def predict(
    classes: Callable[[Image3], Label],
    table: ClassTable,
    inputs: Sequence[str],
    output: pathlib.Path,
    *,
    given: Callable[[Pair], Pair] = as_it_is,
    kinds: Sequence[str] = KINDS,
    max_frames: int | None = None,
) -> list[str]:
    """Predicts whatever inputs hold, prints what it took and where the results are.

    Args:
        classes: Frame -> class map, as of classifier().
        table: The classes' names and colours.
        inputs: Images, folders, patterns, videos and numbers of cameras; see find().
        output: Folder of the results; made if need be.
        given: (h, w) of a frame -> (h, w) in which the program is given it.
        kinds: What is written of images.
        max_frames: Ends every video and camera after so many frames.

    Returns:
        A line for every input or file that could not be used.

    Raises:
        ValueError: nothing given, or a result would overwrite an input.
    """
    if not inputs:
        raise ValueError(
            "give --input=PATH: an image, a folder, a pattern, a video or a camera's number"
        )
    check_folder(output, "output")
    found = find(inputs)
    videos = {
        path: output / "videos" / f"{name}.mp4"
        for path, name in zip(found.videos, output_names(found.videos), strict=True)
    }
    _refuse_overwriting(found.videos, videos.values())
    problems = list(found.problems)
    if found.images:
        clock, wrong = predict_images(
            classes, table, found.images, output, given=given, kinds=kinds
        )
        problems += wrong
        if clock.frames:
            print(f"{clock}\nwritten: {', '.join(str(output / kind) for kind in kinds)}")
    cameras = {number: output / "videos" / f"camera{number}.mp4" for number in found.cameras}
    for source, target in {**videos, **cameras}.items():
        clock, wrong = predict_video(classes, table, source, target, max_frames=max_frames)
        problems += wrong
        if clock.frames:
            print(f"{clock}\nwritten: {target}")
    if output.is_dir():
        folder.write_classes(table, output / "classes.json")
    return problems


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.network(needed=False)
    flags.strings("input", "Image, folder, pattern, video or number of a camera; may be repeated.")
    flags.path("output", "Folder of the results.", "predicted")
    flags.size("that the network sees, or 'own'; as evaluated if not given.")
    flags.count(
        "max_pixels", "Larger frames are shrunk for it; the config's if not given.", None, low=1024
    )
    flags.count("multiple", "Pads frames to multiples of so many pixels.", None, low=0)
    flags.choice("dtype", "The type that is computed in.", "float32", ["float32", "bfloat16"])
    flags.words("write", "What is written of images.", KINDS)
    flags.count("max_frames", "Ends a video or camera after so many.", None, low=1)


def main(given: Given, inputs: list[str]) -> int:
    """Predicts the inputs; the exit code is 1 if one of them could not be used."""
    prepare_process()
    kinds = list(dict.fromkeys(given.write))
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"--write={','.join(kinds)}: choose of {', '.join(KINDS)}")
    view = {name: getattr(given, name) for name in ("size", "multiple", "max_pixels", "dtype")}
    place = given.network or next(iter(networks.shipped()), None)
    if place is None:
        raise ValueError("give --network=...: no network comes with this package")
    network = networks.load(place, given.checkpoint).seeing(**view, quiet=True)
    if given.network is None:
        print(f"--network={place}, which comes with the package: {', '.join(network.class_names)}")
    print(f"{network.name}, step {network.step}: sees {network.sees}, computes in {network.dtype}")
    problems = predict(
        network,
        network.table,
        [*given.input, *inputs],
        given.output,
        given=network.sees.given,
        kinds=kinds,
        max_frames=given.max_frames,
    )
    if problems:
        print("\n".join(("", *problems, f"{len(problems)} inputs could not be used")))
    return int(bool(problems))


PROGRAM = Program(__doc__, define, main, takes="images, folders, patterns and videos")
