"""What a dataset is: a table of classes, a list of names, and a function that loads one checked pair."""

import dataclasses
import pathlib
import threading
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rtseg_jax.base.labels import IGNORE, OUTSIDE

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
class Dataset:
    """One split of a dataset.

    Attributes:
        table: The classes.
        split: Which split it is.
        names: One name per example, unique within the split; predictions are stored under it.
        size: (h, w) of every example in pixels, or None where only loading tells.
        load: index -> (image, label): RGB in [0, 255] and train ids or 255, of one height and width.
        files: Every file that load reads, of all examples together; what is drawn has none.
        advice: What to do where the labels hold too few classes.
    """

    table: ClassTable
    split: str
    names: tuple[str, ...]
    size: tuple[int, int] | None
    load: Callable[[int], tuple[np.ndarray, np.ndarray]]
    files: tuple[pathlib.Path, ...] = ()
    advice: str = "if they look right, see how they are read (input.annotation)"

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.names)

    def name(self, i: int) -> str:
        """The name of one example."""
        return self.names[i]


def where(dataset: Dataset, i: int) -> str:
    """An example by data set, split and name, for messages."""
    return f"{dataset.table.name} {dataset.split} image {dataset.name(i)}"


def too_few_classes(dataset: Dataset, counts: np.ndarray) -> str:
    """Why nothing can be learned from a split, or scored on it; "" if it can.

    Args:
        dataset: The split.
        counts: Pixels of each value of its labels, [256].
    """
    title, names = f"{dataset.table.name} {dataset.split}", dataset.table.class_names
    if len(names) == 1:
        return (
            f"{title}: the list of classes has '{names[0]}' alone, and a network tells two or more apart; give the"
            f" background a class too, in the list and in the labels ({dataset.advice})"
        )
    seen = [name for name, n in zip(names, counts, strict=False) if n]
    if len(seen) > 1:
        return ""
    found = " and ".join(
        [*(f"the class '{n}'" for n in seen), *["ignored pixels"] * bool(counts[IGNORE])]
    )
    return f"{title}: all labels hold nothing but {found}; there is nothing to tell apart; label more, or, {dataset.advice}"


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
        rows: Rows of the grid.
        columns: Columns of the grid.
        height: Height of a patch in pixels.
        width: Width of a patch in pixels.

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
