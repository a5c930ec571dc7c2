"""Images per second of each way to feed training from PNGs of 1024x2048 pixels, on this machine.

    python benchmarks/input.py --output benchmarks/input.jsonl > benchmarks/input.md

The frames are rendered streets in the Cityscapes tree, drawn once and kept in --data. What is counted is augmented
batches, float32 and normalised: a random scale, crop, flip and colour jitter of every frame. The rivals:

    tf_data          tf.data decodes and augments on the host (written for this comparison only)
    streaming        this project's stream decodes on the host, and the device augments
    packed           the same stream from a packed copy (input.cache)
    resident         the set lies on the device, which gathers and augments (input.mode=resident)

and, without any augmentation, what the host alone does for a device that augments in no time:

    streaming_bytes, packed_bytes

Each rival lives in a process of its own; then they take turns, A B A B, so that a machine that slows down slows down
all of them. The median of the rounds is the figure. All files are in the page cache: each is read before the clock
starts. On a CPU the "device" is the same cores, so that decoding and augmenting share them. Every measurement is a
line of JSON in --output.
"""

import argparse
import datetime
import functools
import json
import os
import pathlib
import platform
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from rtseg_jax.programs.bench.main import MALLOC, Process, cpu_name, default_device
from rtseg_jax.programs.shared import tables

RIVALS = ("tf_data", "streaming", "packed", "resident", "streaming_bytes", "packed_bytes")
IMAGES, LABELS = "leftImg8bit/train/streets", "gtFine/train/streets"
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
SCALES, FLIP, JITTER = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0), 0.5, 0.3


def draw_frames(options: argparse.Namespace) -> dict[str, float]:
    """Writes what is missing of the frames; returns the mean sizes of the files in bytes."""
    from PIL import Image

    from rtseg_jax.data.sets import streets

    images, labels = options.data / IMAGES, options.data / LABELS
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for i in range(options.frames):
        paths = (
            images / f"streets_{i:06d}_000019_leftImg8bit.png",
            labels / f"streets_{i:06d}_000019_gtFine_labelTrainIds.png",
        )
        if all(path.exists() for path in paths):
            continue
        for path, array in zip(paths, streets.render(0, i, options.size), strict=True):
            half = path.with_suffix(".half")
            Image.fromarray(array).save(half, "PNG")
            half.rename(path)
    return {
        name: statistics.mean(path.stat().st_size for path in folder.glob("*.png"))
        for name, folder in (("image_bytes", images), ("label_bytes", labels))
    }


def tf_data(options: argparse.Namespace) -> tuple[Iterator, dict[str, Any]]:
    """Decodes, scales, crops, flips, jitters and normalises on the host, in parallel, as most training code does."""
    from rtseg_jax.data import pipeline

    tf = pipeline._tensorflow()
    images = sorted(map(str, (options.data / IMAGES).glob("*.png")))[: options.frames]
    labels = sorted(map(str, (options.data / LABELS).glob("*.png")))[: options.frames]
    ch, cw = options.crop

    def read(image_path, label_path):
        image = tf.io.decode_png(tf.io.read_file(image_path), channels=3)
        label = tf.io.decode_png(tf.io.read_file(label_path), channels=1)
        return image, label

    def augment(image, label):
        scale = tf.random.shuffle(tf.constant(SCALES))[0]
        size = tf.cast(tf.round(scale * tf.cast(tf.shape(image)[:2], tf.float32)), tf.int32)
        image = tf.image.resize(image, size, "bilinear")  # float32 from here on
        label = tf.image.resize(label, size, "nearest")
        below, right = tf.maximum(ch - size[0], 0), tf.maximum(cw - size[1], 0)
        image = tf.pad(image, [[0, below], [0, right], [0, 0]])
        label = tf.pad(label, [[0, below], [0, right], [0, 0]], constant_values=255)
        room = tf.shape(label)[:2] - (ch, cw) + 1
        y, x = (tf.random.uniform((), maxval=room[axis], dtype=tf.int32) for axis in (0, 1))
        image, label = image[y : y + ch, x : x + cw], label[y : y + ch, x : x + cw]
        if tf.random.uniform(()) < FLIP:
            image, label = image[:, ::-1], label[:, ::-1]
        image = tf.clip_by_value(image * tf.random.uniform((), 1 - JITTER, 1 + JITTER), 0, 255)
        grey = tf.image.rgb_to_grayscale(image)
        average = tf.reduce_mean(grey)
        contrast = tf.random.uniform((), 1 - JITTER, 1 + JITTER)
        image = tf.clip_by_value(average + contrast * (image - average), 0, 255)
        grey = tf.image.rgb_to_grayscale(image)
        image = grey + tf.random.uniform((), 1 - JITTER, 1 + JITTER) * (image - grey)
        image = (tf.clip_by_value(image, 0, 255) - MEAN) / STD
        return tf.ensure_shape(image, (ch, cw, 3)), tf.ensure_shape(label[..., 0], (ch, cw))

    stream = (
        tf.data.Dataset.from_tensor_slices((images, labels))
        .shuffle(options.frames)
        .repeat()
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .map(augment, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(options.batch_size, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )
    return iter(stream.as_numpy_iterator()), {"tensorflow": tf.__version__}


def ours(options: argparse.Namespace, rival: str) -> tuple[Iterator, dict[str, Any]]:
    """Our inputs, with our augmentation on the device unless the rival is one of bytes."""
    import jax
    import jax.numpy as jnp

    from rtseg_jax import data
    from rtseg_jax.data import augment, cache, pipeline

    dataset = data.load("cityscapes", root=options.data, split="train", num_examples=options.frames)
    if rival.startswith("packed"):
        files = [
            path
            for folder in (IMAGES, LABELS)
            for path in sorted((options.data / folder).iterdir())
        ]
        packed = options.data / "packed"
        dataset = cache.packed(dataset, packed, files=files, arguments={"n": options.frames})

    transform = functools.partial(
        augment.augment,
        seed=0,
        crop=options.crop,
        scales=SCALES,
        scale_range=None,
        flip=FLIP,
        jitter=(JITTER,) * 3,
        mean=MEAN,
        std=STD,
    )
    if options.device == "cpu":
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # see settings.prepare_process
    device = jax.devices(options.device)[0]
    put = functools.partial(jax.device_put, device=device)

    def from_stream() -> Iterator:
        stream = pipeline.Streaming(
            dataset, seed=0, batch_size=options.batch_size, start_step=0, num_steps=2**30
        )
        if rival.endswith("_bytes"):
            yield from stream
        step = jax.jit(transform)
        for number, (images, labels, indices) in enumerate(stream):
            yield step(put(images), put(labels), put(indices), jnp.int32(number))

    def from_device() -> Iterator:
        held = pipeline.Resident(dataset, jax.sharding.SingleDeviceSharding(device)).arrays

        @jax.jit
        def step(arrays, indices, number):
            return transform(*pipeline.gather(arrays, indices), indices, number)

        for number in range(2**30):
            indices = pipeline.batch_indices(0, number, len(dataset), options.batch_size)
            yield step(held, put(indices), jnp.int32(number))

    about = {"jax": jax.__version__, "device_kind": device.device_kind}
    return (from_device() if rival == "resident" else from_stream()), about


def serve(options: argparse.Namespace) -> None:
    """The life of a rival: at the first line build and warm up, then time a round for every line that comes in."""
    # Answers keep the real stdout to themselves; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    rival = options.serve
    sys.stdin.readline()
    begin = perf_counter()
    batches, about = tf_data(options) if rival == "tf_data" else ours(options, rival)
    wait: Callable = lambda batch: batch  # noqa: E731
    if rival in ("streaming", "packed", "resident"):
        import jax

        wait = jax.block_until_ready
    for _ in range(options.warmup):
        wait(next(batches))
    about = {**about, "python": platform.python_version()}
    print(json.dumps({"ready_seconds": round(perf_counter() - begin, 2), **about}), file=answers)
    for _ in sys.stdin:
        # Nobody may live on what was made ahead while the others were timed.
        for _ in range(options.warmup):
            wait(next(batches))
        begin = perf_counter()
        batch = None
        for _ in range(options.steps):
            batch = next(batches)
            if rival != "resident":  # a step ahead would be counted in the next round
                wait(batch)
        wait(batch)
        print(json.dumps({"seconds": perf_counter() - begin}), file=answers)
        del batch


class Rival(Process):
    """A process that makes batches, and answers every line with a timed round."""

    def __init__(self, name: str, options: argparse.Namespace, argv: list[str]):
        self.name = name
        data = ("--device", options.device, "--data", str(options.data))
        super().__init__(
            {"device": options.device}, program=(__file__, *argv, *data, "--serve", name)
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer; ends the program if it has none."""
        answer = super().ask(**request)
        if "error" in answer:
            sys.exit(f"error: {self.name}: {answer['error']}")
        return answer

    def pause(self, stop: bool) -> None:
        """Stops the process while others are timed, so that it makes nothing ahead on their cores; or lets it go on."""
        self._process.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)

    def close(self) -> None:
        """Lets the process end."""
        self.pause(False)
        super().close()


def table(options: argparse.Namespace, about: dict, rates: dict, load: float, drawn: dict) -> str:
    """Markdown: a row per rival, and how many times tf_data's rate it has."""
    h, w = options.size
    versions = {
        k: v for a in about.values() for k, v in a.items() if k in ("jax", "tensorflow", "python")
    }
    cores = len(os.sched_getaffinity(0))
    kinds = {a["device_kind"] for a in about.values() if "device_kind" in a}
    device = "the same cores" if options.device == "cpu" else ", ".join(sorted(kinds))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    lines = [
        "# Training input",
        "",
        "`python benchmarks/input.py --output benchmarks/input.jsonl`; each line of the file is a measured round.",
        "",
        f"{options.frames} pairs of {h}x{w} PNGs ({drawn['image_bytes'] / 1e6:.2f} MB and"
        f" {drawn['label_bytes'] / 1e6:.2f} MB on average, in the page cache), crops of"
        f" {options.crop[0]}x{options.crop[1]}, batch {options.batch_size}; host {cpu_name()}, device {device};"
        f" {', '.join(f'{k} {v}' for k, v in versions.items())}, glibc malloc tuned; rounds of {options.steps} batches,"
        f" rivals in turn, median of {options.rounds}; load before {load}.",
        "",
        *tables.header(
            *("input", "augmented", "images/s", "lowest - highest", "per core"),
            *("against tf_data", "until the first batch, s"),
            words=(0, 1),
        ),
    ]
    for name, median in medians.items():
        where = {"tf_data": "on the host"}.get(name, "on the device")
        ratio = f"{median / medians['tf_data']:.1f}" if "tf_data" in medians else "-"
        lines.append(
            tables.row(
                name,
                "no" if name.endswith("_bytes") else where,
                f"{median:.1f}",
                f"{min(rates[name]):.1f} - {max(rates[name]):.1f}",
                f"{median / cores:.1f}",
                ratio,
                f"{about[name]['ready_seconds']:.1f}",
            )
        )
    return "\n".join(lines)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, required=True, help="file that gets the lines of JSON")
    add(
        "--data",
        type=pathlib.Path,
        default=pathlib.Path(tempfile.gettempdir()) / "rtseg_input",
        help="folder for the frames, drawn where they are missing",
    )
    add("--frames", type=int, default=64, help="how many are drawn")
    add("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"), help="of a frame")
    add("--crop", type=int, nargs=2, default=(800, 800), metavar=("H", "W"))
    add("--batch_size", type=int, default=8)
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto is what jax takes")
    add("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS))
    add("--rounds", type=int, default=5, help="the median of these is the figure")
    add("--steps", type=int, default=12, help="batches in a round")
    add("--warmup", type=int, default=4, help="batches before the clock of a round starts")
    add("--serve", choices=RIVALS, help=argparse.SUPPRESS)  # how the program starts its rivals
    options = parser.parse_args(argv)
    options.size, options.crop = tuple(options.size), tuple(options.crop)
    if options.frames < options.batch_size:
        parser.error(f"--frames {options.frames} do not fill a batch of {options.batch_size}")
    if options.device == "auto":
        options.device = default_device()
    # Other sizes are other frames.
    options.data = options.data.absolute()
    if not options.serve:
        options.data /= f"{options.size[0]}x{options.size[1]}"
    return options


def main(argv: list[str]) -> None:
    options = parse(argv)
    if options.serve:
        serve(options)
        return
    drawn = draw_frames(options)
    load = round(os.getloadavg()[0], 2)
    os.environ.update(MALLOC)  # of the rivals, which decode on the host for any device
    rivals, about, rates = [], {}, {name: [] for name in options.rivals}
    try:
        for name in options.rivals:
            print(f"building {name} ...", file=sys.stderr, flush=True)
            rivals.append(Rival(name, options, argv))
            about[name] = rivals[-1].built
            rivals[-1].pause(True)
        with options.output.open("a") as output:
            for number in range(options.rounds):
                for rival in rivals:
                    rival.pause(False)
                    answer = rival.ask(do="round")
                    rival.pause(True)
                    rate = options.steps * options.batch_size / answer["seconds"]
                    rates[rival.name].append(rate)
                    record = {
                        "benchmark": "input",
                        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                        "rival": rival.name,
                        "round": number,
                        "images_per_second": round(rate, 3),
                        "frames": options.frames,
                        "size": options.size,
                        "crop": options.crop,
                        "batch_size": options.batch_size,
                        "steps": options.steps,
                        "warmup": options.warmup,
                        "device": options.device,
                        "cpu": cpu_name(),
                        "load_before": load,
                        "malloc": MALLOC,
                        **{k: round(v) for k, v in drawn.items()},
                        **about[rival.name],
                    }
                    output.write(json.dumps(record) + "\n")
                    output.flush()
                    print(f"round {number}: {rival.name} {rate:.1f} images/s", file=sys.stderr)
    finally:
        for rival in rivals:
            rival.close()
    print(table(options, about, rates, load, drawn))


if __name__ == "__main__":
    main(sys.argv[1:])
