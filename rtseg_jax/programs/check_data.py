"""Reads every pair of a config's data: what is wrong with it, its classes, the weights that follow.

rtseg check --config=configs/eacnet.py:camvid --config.input.root=DIR --output=DIR

The exit code is 1 if anything is wrong.
"""

import collections
import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.base.files import one_line
from rtseg_jax.base.threads import for_each
from rtseg_jax.data import files, pipeline, spec
from rtseg_jax.inference import evaluator, pictures
from rtseg_jax.nn import losses
from rtseg_jax.programs.shared.command_line import Flags, Given, Program

AFTER_READING = ("patches", "cache")  # arguments of data.load
SHEET = "contact_sheet.png"
PICTURES = 12  # of each split, on the contact sheet
COLUMNS, CELL, LINE = 3, 300, 16  # of the contact sheet; the last two in pixels


@dataclasses.dataclass(frozen=True)
class Example:
    """What is kept of a pair that could be read.

    Attributes:
        size: (h, w) in pixels.
        counts: Pixels of each value of the label, int64 [256].
        digest: Hash of the image's size and pixels, whatever file format held them.
    """

    size: tuple[int, int]
    counts: np.ndarray
    digest: bytes


@dataclasses.dataclass(frozen=True)
class Survey:
    """A split that has been read.

    Attributes:
        dataset: The split.
        examples: What could be read, by index.
        problems: A line for each pair that could not be used, in the order of the split.
    """

    dataset: spec.Dataset
    examples: dict[int, Example]
    problems: tuple[str, ...]

    @property
    def title(self) -> str:
        """The data set and the split."""
        return f"{self.dataset.table.name} {self.dataset.split}"

    @property
    def counts(self) -> np.ndarray:
        """Pixels of each value of the labels, int64 [256]."""
        return sum((e.counts for e in self.examples.values()), np.zeros(256, np.int64))

    @property
    def pixel_counts(self) -> tuple[int, ...]:
        """Pixels of each class."""
        return tuple(self.counts[: self.dataset.table.num_classes].tolist())


def read(
    dataset: spec.Dataset,
    patches: tuple[int, int, int, int] | None = None,
    num_workers: int | None = None,
) -> Survey:
    """Reads every pair of a split, in threads, with a progress bar.

    Args:
        dataset: Whole images.
        patches: (rows, columns, h, w) if it is trained on patches: an image that is too small for them cannot be used.
        num_workers: Threads; None for as many as there are CPU cores.
    """
    in_patches = dataset if patches is None else spec.patches(dataset, *patches)
    patches_each = len(in_patches) // max(len(dataset), 1)
    allowed = {*range(dataset.table.num_classes), spec.IGNORE}

    def look(i: int) -> Example | str:
        try:
            image, label = dataset.load(i)
            if patches is not None and (label.shape[0] < patches[2] or label.shape[1] < patches[3]):
                in_patches.load(i * patches_each)  # says so itself
        except Exception as error:  # one bad pair, whatever is bad, must not hide the others
            line = one_line(error)
            if isinstance(error, spec.DataError):
                return line
            return f"{spec.where(dataset, i)}: {type(error).__name__}: {line}"
        counts = np.bincount(label.ravel(), minlength=256)
        wrong = sorted(set(np.flatnonzero(counts).tolist()) - allowed)
        if wrong:
            return (
                f"{spec.where(dataset, i)}: values {spec.format_values(wrong)} are no train ids of "
                f"{dataset.table.name}; allowed are 0-{dataset.table.num_classes - 1} and {spec.IGNORE}"
            )
        digest = hashlib.sha256(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image))
        return Example(label.shape, counts, digest.digest())

    title = f"reading {dataset.table.name} {dataset.split}"
    found = for_each(look, len(dataset), doing=title, unit="pair", num_workers=num_workers)
    return Survey(
        dataset,
        {i: x for i, x in enumerate(found) if isinstance(x, Example)},
        tuple(x for x in found if isinstance(x, str)),
    )


def size_problems(survey: Survey) -> list[str]:
    """A line for each example of another size than the first one, as the input says it when it meets one."""
    lines, first = [], next(iter(survey.examples.values()), None)
    for i, example in survey.examples.items():
        try:
            pipeline.check_size(survey.dataset, i, example.size, first.size)
        except spec.DataError as error:
            lines.append(str(error))
    return lines


def class_problems(survey: Survey, *, held_out: bool) -> list[str]:
    """What only the labels of a whole split show: nothing to tell apart; of a training split, classes that never occur."""
    if not survey.examples:
        return []
    if problem := spec.too_few_classes(survey.dataset, survey.counts):
        return [problem]
    if held_out:
        return []
    names = survey.dataset.table.class_names
    absent = [name for name, n in zip(names, survey.pixel_counts, strict=True) if not n]
    return [f"{survey.title}: the class '{name}' never occurs" for name in absent]


def duplicates(train: Survey, held_out: Survey) -> list[str]:
    """A line for each image of one split whose pixels are those of an image of the other."""
    seen = {example.digest: i for i, example in train.examples.items()}
    return [
        f"{spec.where(held_out.dataset, i)} has the pixels of "
        f"{spec.where(train.dataset, seen[example.digest])}; "
        "what is trained on must not be evaluated on: remove one"
        for i, example in held_out.examples.items()
        if example.digest in seen
    ]


def histogram(surveys: Sequence[Survey]) -> str:
    """The share of each class among all pixels of each split, in percent, as text."""
    table = surveys[0].dataset.table
    width = max(map(len, (*table.class_names, "ignored")))
    columns = [[survey.dataset.split.rjust(8)] for survey in surveys]
    for survey, column in zip(surveys, columns, strict=True):
        total = max(survey.counts.sum(), 1)
        for n in (*survey.pixel_counts, survey.counts[spec.IGNORE]):
            column.append(f"{100 * n / total:8.3f}" if n else "       -")
    rows = zip(("% of pixels", *table.class_names, "ignored"), *columns, strict=True)
    return "\n".join(f"{name:<{max(width, 11)}}  {'  '.join(cells)}" for name, *cells in rows)


def inverse_log_weights(pixel_counts: tuple[int, ...], offset: float) -> tuple[float, ...]:
    """Class weights 1 / ln(offset + p), p a class's share of the labelled pixels (ENet, Section 5.2: offset 1.02).

    ERFNet's authors take 1.10 instead.
    """
    total = sum(pixel_counts)
    return tuple(1 / math.log(offset + n / total) for n in pixel_counts)


def weights(pixel_counts: tuple[int, ...]) -> str:
    """What configs/ take for these pixels of each class: ENet's and ERFNet's weights, and what OWFL follows from."""

    def line(values: Iterable[float]) -> str:
        text = ", ".join(f"{value:.4f}" for value in values)
        return f"({text})" if "," in text else f"({text},)"

    return "\n".join(
        (
            "# ENet: 1 / ln(1.02 + p)",
            f"config.loss.class_weights = {line(inverse_log_weights(pixel_counts, 1.02))}",
            "# ERFNet: 1 / ln(1.10 + p)",
            f"config.loss.class_weights = {line(inverse_log_weights(pixel_counts, 1.10))}",
            f"# OWFL: alpha = {line(losses.frequency_weights(pixel_counts, 1.02))},",
            f"#       gamma = {losses.magnitudes(pixel_counts)}",
            f"config.loss.pixel_counts = {pixel_counts}",
        )
    )


def contact_sheet(surveys: Sequence[Survey]) -> Image.Image:
    """Photos of every split, each beside itself under its label, over a legend; ignored pixels are black."""
    table = surveys[0].dataset.table
    blocks = [_pictures(survey) for survey in surveys if survey.examples]
    every = tuple(range(table.num_classes))
    legend = Image.fromarray(pictures.legend(table, every, 2 * CELL * COLUMNS))
    blocks.append(legend)
    sheet = Image.new("RGB", (legend.width, sum(block.height for block in blocks)), "white")
    y = 0
    for block in blocks:
        sheet.paste(block, (0, y))
        y += block.height
    return sheet


def _pictures(survey: Survey) -> Image.Image:
    """Some of a split's examples, evenly spread, in rows under the split's name."""
    dataset, usable = survey.dataset, list(survey.examples)
    shown = [usable[k] for k in sorted(evaluator.spread(len(usable), PICTURES))]
    pairs = [_picture(dataset, i) for i in shown]
    height = max(pair.height for pair in pairs) + LINE
    block = Image.new(
        "RGB", (2 * CELL * COLUMNS, LINE + height * -(-len(pairs) // COLUMNS)), "white"
    )
    draw = ImageDraw.Draw(block)
    draw.text((4, 2), f"{survey.title}: {len(pairs)} of {len(dataset)}", fill="black")
    for k, (i, pair) in enumerate(zip(shown, pairs, strict=True)):
        x, y = k % COLUMNS * 2 * CELL, LINE + k // COLUMNS * height
        block.paste(pair, (x, y))
        (name,), font = pictures.writable({dataset.name(i): f"image {i}"}, 10)
        draw.text((x + 4, y + pair.height + 1), name, fill="black", font=font)
    return block


def _picture(dataset: spec.Dataset, i: int) -> Image.Image:
    image, label = dataset.load(i)
    shown = (CELL, max(1, round(CELL * label.shape[0] / label.shape[1])))
    photo = Image.fromarray(image).resize(shown, Image.Resampling.BILINEAR)
    ids = np.asarray(Image.fromarray(label).resize(shown, Image.Resampling.NEAREST))
    pair = Image.new("RGB", (2 * CELL, shown[1]))
    pair.paste(photo, (0, 0))
    pair.paste(Image.blend(photo, Image.fromarray(dataset.table.colorize(ids)), 0.5), (CELL, 0))
    return pair


def _sizes(survey: Survey) -> str:
    found = collections.Counter(example.size for example in survey.examples.values()).most_common()
    shown = [f"{h}x{w}" + (f" ({n})" if len(found) > 1 else "") for (h, w), n in found[:3]]
    return ", ".join(shown) + (f" and {len(found) - 3} other sizes" if len(found) > 3 else "")


def survey_split(config: ConfigDict, split: str) -> tuple[Survey | None, list[str]]:
    """Reads one split of a config's data and says how many pairs it has.

    Returns:
        The split, None if its files cannot even be listed, and what is wrong with it alone.

    Raises:
        ValueError: the config names no such data set or split.
    """
    in_training = split == config.input.train_split
    arguments = settings.dataset_arguments(config, split, training=in_training)
    patches = arguments["patches"]
    with files.noting_missing() as missing:
        try:
            # Whole images, each once and from its own file.
            dataset = data.load(**{k: v for k, v in arguments.items() if k not in AFTER_READING})
        except (ValueError, FileNotFoundError) as error:
            if not missing and not isinstance(error, FileNotFoundError | spec.DataError):
                raise
            print(f"{config.input.dataset} {split}: cannot be listed, so its pairs were not read")
            return None, [*missing, str(error)]
    survey = read(dataset, patches)
    print(f"{survey.title}: {len(dataset)} pairs, {_sizes(survey) or 'none can be used'}")
    problems = [*missing, *survey.problems]
    if in_training:
        any_size = bool(patches or config.input.canvas)
        resident, together = config.input.mode == "resident", config.batch_size
    else:
        any_size = bool(config.eval.multiple)
        resident, together = False, config.eval.batch_size
    if not any_size and (resident or together > 1):
        problems += size_problems(survey)
    problems += class_problems(survey, held_out=not in_training)
    return survey, problems


def check(config: ConfigDict, output: pathlib.Path) -> list[str]:
    """Reads the splits that a config trains and evaluates on, prints what is there, writes the contact sheet.

    Args:
        config: One of configs/.
        output: Folder for the contact sheet; made if need be.

    Returns:
        What is wrong, a line each.

    Raises:
        ValueError: the config names no such data set or split.
    """
    settings.check(config, "input.")  # others may wait for what is printed here
    names = config.input.train_split, config.input.eval_split
    found = {split: survey_split(config, split) for split in dict.fromkeys(names)}
    problems = [line for _, lines in found.values() for line in lines]
    train, held_out = (found[split][0] for split in names)
    if "trainval" in names and names[0] != names[1]:
        print(
            f"note: {names[0]} and {names[1]} share images; the mIoU is no measure of unseen ones"
        )
    elif train and held_out and train is not held_out:
        problems += duplicates(train, held_out)
    if held_out and held_out.examples and (absent := held_out.pixel_counts.count(0)):
        k = held_out.dataset.table.num_classes
        print(
            f"note: {k - absent} of {k} classes occur in {names[1]}; one that does not counts as 0 in the mIoU"
            " if it is predicted there, else not at all"
        )

    usable = [survey for survey, _ in found.values() if survey and survey.examples]
    if usable:
        print(f"\n{histogram(usable)}")
    if train and train.examples and all(train.pixel_counts):
        print(f"\nfor the config, from {train.title}:\n\n{weights(train.pixel_counts)}")
    if usable:
        output.mkdir(parents=True, exist_ok=True)
        contact_sheet(usable).save(output / SHEET)
        print(f"\nwritten: {output / SHEET}")
    return problems


def define(flags: Flags) -> None:
    """Defines the flags."""
    flags.config()
    flags.path("output", f"Folder that gets {SHEET}.", "check_data")


def main(given: Given, _: list[str]) -> int:
    """Checks the data; the exit code is 1 if there is something wrong."""
    if given.config is None:
        raise ValueError("give --config=FILE[:ARGUMENT]")
    problems = check(given.config, given.output)
    if problems:
        print("\n".join(("", *problems, f"problems: {len(problems)}")))
    else:
        print("\nnothing is wrong")
    return int(bool(problems))


PROGRAM = Program(__doc__, define, main)
