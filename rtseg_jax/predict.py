"""Class maps, masks and overlays of photos, an overlaid video of a video or a camera; also a program.

python -m rtseg_jax.predict --workdir=RUN --output=DIR photo.jpg photos/ "more/**/*.png"
python -m rtseg_jax.predict --workdir=RUN --output=DIR --input=drive.mp4 --input=0

It writes DIR/ids (8-bit PNGs of class numbers, which DIR/classes.json names), DIR/masks (the classes' colours),
DIR/overlays (the colours over the photo, above a legend) and, of videos, DIR/videos (overlaid, without sound). A folder
is searched for images and videos with all below it; a number is a camera, until Ctrl-C.

Frames of any size are taken, and a class map has its frame's size. What the network sees is, in this order: --size;
what it was evaluated on, where the run's config names a size; the frame itself, shrunk in its shape where it has more
than --max_pixels, enlarged where a side is below 32 pixels. This resizing is part of the compiled program, but for the
config's input.size: to it frames are brought as the run's data were, by Pillow's antialiased filter before the program,
and a pixel has the class of the nearest that the network saw. A program is made for one size of frames: images are
taken in the order of their sizes, each size is compiled once, and how many there are is printed. --multiple=N pads
frames to multiples of N pixels by their last row and column, so that many similar sizes share few programs; off by
default, for it changes what the network sees near the border.

A file that cannot be used stops nothing: it is named at the end, and the exit code is 1.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fnmatch
import functools
import itertools
import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import ExifTags, Image
from tqdm import tqdm

from rtseg_jax import data, drawing, evaluate, settings
from rtseg_jax.data import spec
from rtseg_jax.data.spec import ClassTable, DataError, Image3, Label

Pair = tuple[int, int]
IMAGE_ENDINGS = (*spec.IMAGE_ENDINGS, ".bmp", ".tif", ".tiff", ".webp")
VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
KINDS = ("ids", "masks", "overlays")
_BT601, _LIMITED_RANGE = 6, 1  # as H.264 numbers them
MANY_SIZES = 8  # from here on, --multiple is worth a hint


@dataclasses.dataclass
class Clock:
    """What predicting took.

    Attributes:
        frames: How many.
        network: Seconds from frames on the host to class maps on the host, one after the other.
        compiling: Seconds of compiling and first calls, which no other figure contains.
        total: Seconds from opening the first file to closing the last.
    """

    frames: int = 0
    network: float = 0.0
    compiling: float = 0.0
    total: float = 0.0

    def __str__(self) -> str:
        """The figures as two lines."""
        if not self.frames:
            return "no frames"
        return (
            f"{self.frames} frames in {self.total:.1f} s, {self.frames / max(self.total, 1e-9):.3g} "
            "frames per second from file to file (reading, network, drawing, writing)\n"
            f"{self.frames / max(self.network, 1e-9):.3g} frames per second of the network alone "
            f"(frame on the host to class map on the host); compiling took {self.compiling:.1f} s more"
        )


def classifier(
    workdir: pathlib.Path,
    *,
    which: str = "best",
    size: Pair | str | None = None,
    max_pixels: int = evaluate.MAX_PIXELS,
    multiple: int | None = None,
    dtype: str = "float32",
) -> tuple[Callable[[Image3], Label], ClassTable]:
    """A run's network as a function from one frame to its class map, and the classes.

    Args:
        workdir: Of the run.
        which: "best", "latest" or a step.
        size: (h, w) that the network sees; "own" for the frames' own; None as the run was evaluated.
        max_pixels: Larger frames are shrunk for the network, where no size is named.
        multiple: Pads to multiples of so many pixels, 0 or 1 never; None as the run was evaluated.
        dtype: Of the computation.

    Raises:
        FileNotFoundError: no run or no checkpoint.
        ValueError: a step that is not kept.
    """
    config, model, variables, at = evaluate.load_run(workdir, which)
    view = evaluate.view(config, size, multiple, max_pixels)
    classify = evaluate.classifier(
        model,
        variables,
        seen=view.seen,
        programs=1,
        mean=config.augment.mean,
        std=config.augment.std,
        dtype=jnp.dtype(dtype),
    )
    shown = f"frames of up to {max_pixels} pixels"
    if named := view.size or view.resized:
        shown = "{}x{}".format(*view.seen(view.given(named)))
    print(f"{config.model.name}, step {at}: sees {shown}, computes in {dtype}")

    def classes(frame: Image3) -> Label:
        size = frame.shape[:2]
        h, w = view.resized or size
        resized = spec.resize_image(frame, (h, w))
        bottom, right = np.subtract(view.given(size), (h, w))
        padded = np.pad(resized, ((0, bottom), (0, right), (0, 0)), mode="edge")
        ids = np.asarray(classify(padded[None]))[0, :h, :w]
        return spec.resize_label(ids, size)

    return classes, evaluate.class_table(workdir, config)


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
    files: dict[pathlib.Path, None] = {}
    cameras, problems = [], []
    for text in inputs:
        path = settings.path(text)
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
        files.update(dict.fromkeys(found))
    for path in list(files):
        if not os.path.isfile(path):
            del files[path]
            problems.append(f"{path}: a broken link, or no regular file")
    videos = tuple(p for p in files if p.suffix.lower() in VIDEO_ENDINGS)
    images = tuple(p for p in files if p.suffix.lower() not in VIDEO_ENDINGS)
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
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in (*IMAGE_ENDINGS, *VIDEO_ENDINGS)
        and not _is_hidden(path.relative_to(folder))
        and not os.path.isdir(path)
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
    names = spec.unique_names(relative)
    if len(set(names)) == len(names):
        return names
    # Endings alone tell some apart: unique_names() takes one off, so each is given another.
    return spec.unique_names([path.with_name(path.name + ".png") for path in relative])


def _size(path: pathlib.Path) -> Pair:
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


def read_frame(path: pathlib.Path) -> Image3:
    """Reads an 8-bit image as RGB, turned as its EXIF orientation says.

    Raises:
        DataError: as of spec.read_image(), or more pixels than Pillow takes for harmless.
    """
    _size(path)  # refuses one that is too large, before it is decoded
    return spec.read_image(path, upright=True)


def _ahead(calls: Iterable[Callable], num_workers: int) -> Iterator[concurrent.futures.Future]:
    """Makes calls in threads, a few ahead of the one that is asked for; what becomes of them, in order."""
    calls = iter(calls)
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        pending = collections.deque(
            pool.submit(call) for call in itertools.islice(calls, 2 * num_workers)
        )
        try:
            while pending:
                yield pending.popleft()
                pending.extend(pool.submit(call) for call in itertools.islice(calls, 1))
        finally:
            for future in pending:
                future.cancel()


@contextlib.contextmanager
def _behind(num_workers: int) -> Iterator[Callable[..., None]]:
    """Gives a function that makes calls in threads and waits when it is too far ahead of them; leaving waits for all."""
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        pending = collections.deque()

        def submit(call: Callable, *arguments: Any) -> None:
            pending.append(pool.submit(call, *arguments))
            if len(pending) > 2 * num_workers:
                pending.popleft().result()

        yield submit
        for future in pending:
            future.result()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _timed(
    classes: Callable[[Image3], Label], clock: Clock, given: Callable[[Pair], Pair]
) -> Callable[[Image3], Label]:
    """The function by the clock; each size that a program is given is compiled and called once before its time counts."""
    warm = None

    def timed(frame: Image3) -> Label:
        nonlocal warm
        size = given(frame.shape[:2])
        if size != warm:
            start = time.perf_counter()
            classes(np.zeros_like(frame))
            clock.compiling += time.perf_counter() - start
            warm = size
        start = time.perf_counter()
        result = classes(frame)
        clock.network += time.perf_counter() - start
        clock.frames += 1
        return result

    return timed


def _as_it_is(size: Pair) -> Pair:
    return size


def predict_images(
    classes: Callable[[Image3], Label],
    table: ClassTable,
    paths: Sequence[pathlib.Path],
    output: pathlib.Path,
    *,
    given: Callable[[Pair], Pair] = _as_it_is,
    kinds: Sequence[str] = KINDS,
    num_workers: int | None = None,
) -> tuple[Clock, list[str]]:
    """Writes the ids, masks and overlays of images, which are read and written in threads.

    Args:
        classes: Frame -> class map, as of classifier().
        table: Of the classes.
        paths: Of the images.
        output: Folder that gets a folder for each kind.
        given: (h, w) of a frame -> that which the network is compiled for, as of evaluate.View.
        kinds: Of "ids", "masks" and "overlays", those that are wanted.
        num_workers: Threads to read, and to write; None for as many as there are CPU cores.

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
        try:
            work.append((_size(path), path, target))
        except DataError as error:
            problems.append(_one_line(error))
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
            problems.append(f"{path}: its results cannot be written ({_one_line(error)})")

    workers = num_workers or os.cpu_count() or 1
    network = _timed(classes, clock, given)
    start = time.perf_counter()
    reading = _ahead((functools.partial(read_frame, path) for _, path, _ in work), workers)
    with contextlib.closing(reading), _behind(workers) as submit:
        bar = tqdm(work, unit="image", disable=None)
        for (_, path, target), future in zip(bar, reading, strict=True):
            try:
                frame = future.result()
                submit(write, path, target, frame, network(frame))
            except DataError as error:
                problems.append(_one_line(error))
            except jax.errors.JaxRuntimeError as error:
                problems.append(f"{path}: the network failed on it ({_one_line(error)})")
    clock.total = time.perf_counter() - start - clock.compiling
    return clock, problems


def _picture(kind: str, frame: Image3, ids: Label, table: ClassTable) -> np.ndarray:
    if kind == "ids":
        return ids
    if kind == "masks":
        return table.colorize(ids)
    laid = drawing.overlay(frame, ids, table)
    return drawing.with_legend(laid, table, drawing.occurring(table, ids))


def _refuse_overwriting(inputs: Iterable[pathlib.Path], targets: Iterable[pathlib.Path]) -> None:
    both = {path.resolve() for path in inputs} & {path.resolve() for path in targets}
    if both:
        raise ValueError(
            f"the results would overwrite the input {min(both)}; give another --output"
        )


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError("videos and cameras need PyAV; pip install 'rtseg_jax[video]'") from error
    return av


def _open_camera(number: int) -> Any:
    if not sys.platform.startswith("linux"):
        raise DataError(f"camera {number}: cameras are read through Video4Linux, on Linux only")
    return _av().open(f"/dev/video{number}", format="video4linux2,v4l2")


def _decoded(container: Any) -> Iterator[tuple[Image3, int | None]]:
    """(frame as RGB, upright; its time stamp) of the first video stream."""
    for frame in container.decode(container.streams.video[0]):
        yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90), frame.pts


class _VideoWriter:
    """An H.264 file of frames of one size; sides become even by a row or column of white."""

    def __init__(self, path: pathlib.Path, rate: Fraction, time_base: Fraction):
        self._path, self._rate, self._time_base = path, rate, time_base
        self._partial = path.with_name(f"{path.name}.part")
        self._container = self._stream = None
        self._last = None
        self.frames = 0

    def write(self, frame: Image3, stamp: int | None) -> None:
        """Adds a frame at the time stamp of the source; where that does not advance, a frame's time later."""
        av = _av()
        odd_h, odd_w = (side % 2 for side in frame.shape[:2])
        frame = np.pad(frame, ((0, odd_h), (0, odd_w), (0, 0)), constant_values=255)
        if self._container is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self._partial), "w", format="mp4")
            options = {"crf": "20", "preset": "veryfast"}
            self._stream = self._container.add_stream("libx264", rate=self._rate, options=options)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"  # what every player takes
            context = self._stream.codec_context
            context.time_base = self._time_base
            # As the frames are converted; without it, players take large frames for BT.709.
            context.colorspace, context.color_range = _BT601, _LIMITED_RANGE
        if stamp is None or (self._last is not None and stamp <= self._last):
            tick = max(1, round(1 / (self._rate * self._time_base)))
            stamp = 0 if self._last is None else self._last + tick
        self._last = stamp
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
        picture.pts, picture.time_base = stamp, self._time_base
        self._container.mux(self._stream.encode(picture))
        self.frames += 1

    def close(self) -> None:
        """Ends the file and gives it its name."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            os.replace(self._partial, self._path)


def predict_video(
    classes: Callable[[Image3], Label],
    table: ClassTable,
    source: pathlib.Path | int,
    target: pathlib.Path,
    *,
    max_frames: int | None = None,
) -> tuple[Clock, list[str]]:
    """Writes a video with every frame of a video or camera overlaid, above a legend of all classes.

    Frames are decoded ahead and encoded behind in a thread each; they keep their order and time stamps. Whatever
    ends the source, what came before it is in the file.

    Args:
        classes: Frame -> class map, as of classifier().
        table: Of the classes.
        source: A file, or the number of a camera, which goes on until Ctrl-C.
        target: The .mp4 file.
        max_frames: Ends after so many.

    Returns:
        What it took, and a line if the source cannot be used, or not to its end.
    """
    clock, problems = Clock(), []
    start = time.perf_counter()
    try:
        _overlay_video(classes, table, source, target, max_frames, clock)
    except DataError as error:
        problems.append(_one_line(error))
    except (OSError, ValueError, _av().error.FFmpegError) as error:
        # PyAV's are all of the last kind, and some of the others.
        done = f" after {clock.frames} frames" if clock.frames else ""
        name = f"camera {source}" if isinstance(source, int) else source
        problems.append(f"{name}: cannot be read or written{done} ({_one_line(error)})")
    clock.total = time.perf_counter() - start - clock.compiling
    return clock, problems


def _overlay_video(
    classes: Callable,
    table: ClassTable,
    source: pathlib.Path | int,
    target: pathlib.Path,
    max_frames: int | None,
    clock: Clock,
) -> None:
    camera = isinstance(source, int)
    network = _timed(classes, clock, _as_it_is)
    every = tuple(range(table.num_classes))

    def draw(frame, ids, stamp):
        laid = drawing.overlay(frame, ids, table)
        writer.write(drawing.with_legend(laid, table, every), stamp)

    with contextlib.ExitStack() as cleanup:
        container = cleanup.enter_context(
            _open_camera(source) if camera else _av().open(str(source))
        )
        if not container.streams.video:
            raise DataError(f"{source}: holds no video stream")
        stream = container.streams.video[0]
        expected = stream.frames
        rate = stream.average_rate or Fraction(30)
        # PyAV's own rationals are of another type since 19.0.
        as_fraction = (Fraction(x.numerator, x.denominator) for x in (rate, stream.time_base))
        writer = _VideoWriter(target, *as_fraction)
        cleanup.callback(writer.close)
        frames = itertools.islice(_decoded(container), max_frames)
        reading = _ahead(itertools.repeat(functools.partial(next, frames, None)), num_workers=1)
        cleanup.enter_context(contextlib.closing(reading))
        submit = cleanup.enter_context(_behind(1))
        bar = cleanup.enter_context(
            tqdm(total=max_frames or expected or None, unit="frame", disable=None)
        )
        size = None
        try:
            for future in reading:
                if (decoded := future.result()) is None:
                    break
                frame, stamp = decoded
                size = size or frame.shape
                if frame.shape != size:
                    raise DataError(
                        f"{source}: frame {clock.frames + 1} is {frame.shape[0]}x{frame.shape[1]}, "
                        f"those before it {size[0]}x{size[1]}; cut the video there"
                    )
                submit(draw, frame, network(frame), stamp)
                bar.update()
        except KeyboardInterrupt:
            if not camera:
                raise
            print(f"camera {source}: ended by Ctrl-C after {clock.frames} frames")
    whole = not camera and max_frames is None
    if whole and clock.frames < expected:
        expected -= _not_shown(source)
    if whole and clock.frames < expected:
        raise DataError(
            f"{source}: {clock.frames} of its {expected} frames could be decoded; the file is damaged"
        )
    if not clock.frames:
        raise DataError(f"{source}: holds no frames")


def _not_shown(source: pathlib.Path) -> int:
    """How many frames of a file are there only to decode others: a video cut without encoding begins at a key frame."""
    with _av().open(str(source)) as container:
        return sum(packet.is_discard for packet in container.demux(video=0))


def predict(
    classes: Callable[[Image3], Label],
    table: ClassTable,
    inputs: Sequence[str],
    output: pathlib.Path,
    *,
    given: Callable[[Pair], Pair] = _as_it_is,
    kinds: Sequence[str] = KINDS,
    max_frames: int | None = None,
) -> list[str]:
    """Predicts whatever inputs hold, prints what it took and where the results are.

    Args:
        classes: Frame -> class map, as of classifier().
        table: Of the classes.
        inputs: As of find().
        output: Folder of the results; made if need be.
        given: As of predict_images().
        kinds: What is written of images.
        max_frames: Of every video and camera.

    Returns:
        A line for every input or file that could not be used.

    Raises:
        ValueError: nothing given, or a result would overwrite an input.
    """
    if not inputs:
        raise ValueError(
            "give --input=PATH: an image, a folder, a pattern, a video or a camera's number"
        )
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
        data.folder.write_classes(table, output / "classes.json")
    return problems


def main(argv: list[str]) -> None:
    """Reads the flags, makes one call, and ends with 1 if a file could not be used."""
    settings.prepare_process()
    inputs = [*_FLAGS["input"].value, *argv[1:]]
    kinds = list(dict.fromkeys(_FLAGS["write"].value))
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"--write={','.join(kinds)}: choose of {', '.join(KINDS)}")
    size = _FLAGS["size"].value
    workdir, output = (settings.path(_FLAGS[name].value) for name in ("workdir", "output"))
    view = {
        "size": evaluate.parse_size(size) if size else None,
        "multiple": _FLAGS["multiple"].value,
        "max_pixels": _FLAGS["max_pixels"].value,
    }
    classes, table = classifier(
        workdir, which=_FLAGS["checkpoint"].value, dtype=_FLAGS["dtype"].value, **view
    )
    problems = predict(
        classes,
        table,
        inputs,
        output,
        given=evaluate.view(settings.read(workdir), **view).given,
        kinds=kinds,
        max_frames=_FLAGS["max_frames"].value,
    )
    if problems:
        print("\n".join(("", *problems, f"{len(problems)} inputs could not be used")))
        sys.exit(1)


def _define_flags() -> dict[str, flags.FlagHolder]:
    return {
        "workdir": flags.DEFINE_string("workdir", None, "Folder of a run.", required=True),
        "input": flags.DEFINE_multi_string(
            "input", [], "Image, folder, pattern, video or number of a camera; may be repeated."
        ),
        "output": flags.DEFINE_string("output", None, "Folder of the results.", required=True),
        "checkpoint": flags.DEFINE_string("checkpoint", "best", "best, latest or a step."),
        "size": flags.DEFINE_string(
            "size",
            None,
            f"HEIGHTxWIDTH that the network sees, or '{evaluate.OWN}'; as evaluated if not given.",
        ),
        "max_pixels": flags.DEFINE_integer(
            "max_pixels",
            evaluate.MAX_PIXELS,
            "Larger frames are shrunk for the network.",
            lower_bound=1024,
        ),
        "multiple": flags.DEFINE_integer(
            "multiple", None, "Pads frames to multiples of so many pixels.", lower_bound=0
        ),
        "dtype": flags.DEFINE_enum(
            "dtype", "float32", ["float32", "bfloat16"], "Of the computation."
        ),
        "write": flags.DEFINE_list("write", list(KINDS), "What is written of images."),
        "max_frames": flags.DEFINE_integer(
            "max_frames", None, "Ends a video or camera after so many.", lower_bound=1
        ),
    }


if __name__ == "__main__":
    _FLAGS = _define_flags()
    settings.run(main)
