"""Videos and cameras: read, predicted and written frame by frame."""

import contextlib
import functools
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from tqdm import tqdm

from rtseg_jax.base.files import one_line
from rtseg_jax.base.threads import ahead, behind
from rtseg_jax.data.spec import ClassTable, DataError, Image3, Label
from rtseg_jax.inference import pictures
from rtseg_jax.programs.predict.timing import Clock, as_it_is, timed

VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
_BT601, _LIMITED_RANGE = 6, 1  # as H.264 numbers them


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
        table: The classes' names and colours.
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
        problems.append(one_line(error))
    except (OSError, ValueError, _av().error.FFmpegError) as error:
        # PyAV's are all of the last kind, and some of the others.
        done = f" after {clock.frames} frames" if clock.frames else ""
        name = f"camera {source}" if isinstance(source, int) else source
        problems.append(f"{name}: cannot be read or written{done} ({one_line(error)})")
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
    network = timed(classes, clock, as_it_is)
    every = tuple(range(table.num_classes))

    def draw(frame, ids, stamp):
        laid = pictures.overlay(frame, ids, table)
        writer.write(pictures.with_legend(laid, table, every), stamp)

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
        reading = ahead(itertools.repeat(functools.partial(next, frames, None)), num_workers=1)
        cleanup.enter_context(contextlib.closing(reading))
        submit = cleanup.enter_context(behind(1))
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
