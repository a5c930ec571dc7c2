"""What a dataset is: a table of classes, a list of names, and a function that loads one checked pair."""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

IGNORE = 255
INVALID = 254  # in a raw -> train id table: this raw value must not occur

Image3 = UInt8[np.ndarray, "h w 3"]
Label = UInt8[np.ndarray, "h w"]


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
        assert len(self.class_names) == len(self.palette) < INVALID

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
    """

    table: ClassTable
    split: str
    names: tuple[str, ...]
    size: tuple[int, int] | None
    load: Callable[[int], tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.names)

    def name(self, i: int) -> str:
        """The name of one example."""
        return self.names[i]


def resized(dataset: Dataset, size: tuple[int, int]) -> Dataset:
    """The dataset at another size: images by Pillow's antialiased bilinear filter, labels by nearest.

    ERFNet trains and is scored on Cityscapes halved like this.

    Args:
        dataset: Any dataset.
        size: (h, w) in pixels of every example of the result.
    """

    def load(i: int) -> tuple[np.ndarray, np.ndarray]:
        image, label = dataset.load(i)
        if label.shape == size:
            return image, label
        image = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        label = Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST)
        return np.asarray(image), np.asarray(label)

    return dataclasses.replace(dataset, size=size, load=load)


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
                f"{dataset.table.name} {dataset.split} image {dataset.name(i // len(grid))} is "
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


def _decode(path: pathlib.Path) -> tuple[Image.Image, tuple[int, int] | None]:
    """Opens and decodes a file: the image, and (bit depth, colour type) from the header of a PNG."""
    try:
        data = path.read_bytes()
        if not data:
            raise DataError(f"{path}: the file is empty; copy it again")
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # checks PNG checksums: without, a flipped bit can decode to other pixels
        image = Image.open(io.BytesIO(data))
        image.load()
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
    return image, (data[24], data[25]) if image.format == "PNG" else None


def read_image(path: pathlib.Path) -> Image3:
    """Reads an 8-bit image as RGB; grey, palette and RGBA images are converted.

    Raises:
        DataError: the file is missing, corrupt, or not such an image.
    """
    image, png = _decode(path)
    if png and png[0] == 16:
        raise DataError(f"{path}: a 16-bit image; expects 8 bits per channel")
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P"):
        raise DataError(f"{path}: an image of mode {image.mode}; expects 8-bit RGB")
    if image.mode != "RGB":
        image = image.convert("RGBA").convert("RGB")
    return np.asarray(image)


def read_label(path: pathlib.Path, lut: UInt8[np.ndarray, "256"], hint: str = "") -> Label:
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


def read_pair(
    image_path: pathlib.Path,
    label_path: pathlib.Path,
    lut: UInt8[np.ndarray, "256"],
    hint: str = "",
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image (uint8 [h,w,3]) and its label (uint8 [h,w], train ids or 255).

    Raises:
        DataError: as `read_image` and `read_label`, or the two differ in size.
    """
    image, label = read_image(image_path), read_label(label_path, lut, hint)
    if image.shape[:2] != label.shape:
        (h, w), (lh, lw) = image.shape[:2], label.shape
        raise DataError(
            f"{label_path}: the label is {lh}x{lw} pixels (h x w) but its image {image_path} "
            f"is {h}x{w}; both must have one size"
        )
    return image, label
