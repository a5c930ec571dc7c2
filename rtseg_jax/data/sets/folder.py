"""A user's own images and labels: two folders or list files, and a file that names the classes.

    ROOT/classes.txt                    a class per line, in the order of the ids: name, and R G B if you like
    ROOT/images/SPLIT/**/NAME.png       or .jpg, .jpeg
    ROOT/labels/SPLIT/**/NAME.png       8-bit PNG of class ids, grey or palette, or of the classes' colours

Instead of the folders, ROOT/SPLIT.txt may list `image label` pairs, relative to ROOT. Photos are turned as their EXIF
orientation says, as viewers and `predict` do; labels are of the turned ones.
"""

import dataclasses
import json
import os
import pathlib

from rtseg_jax.data import files, spec

ANNOTATIONS = ("ids", "colors")
CLASSES = ("classes.txt", "classes.csv", "classes.json")
HEADINGS = (["r", "g", "b"], ["red", "green", "blue"])  # of a table of classes, after the name
LabelMap = tuple[tuple[int, int], ...]


def read_classes(path: str | os.PathLike[str], name: str = "folder") -> spec.ClassTable:
    """Reads a file of classes.

    Args:
        path: A file of lines `name` or `name R G B` (`#` begins a comment), a CSV of the same with or without the heading
            `name,r,g,b`, or a .json list of names or of {"name": ..., "color": [R, G, B]}. Classes without a colour get
            one of PASCAL VOC's colour map.
        name: The table's name.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is not such a file; the message says what is wrong where.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expects a class per line, `name` or `name R G B`"
        )
    rows = _json_rows(path) if path.suffix == ".json" else _text_rows(path)
    names = [row[0] for row in rows]
    if not 1 <= len(names) <= spec.OUTSIDE:
        raise spec.DataError(f"{path}: {len(names)} classes; expects 1-{spec.OUTSIDE}")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise spec.DataError(f"{path}: class {twice[0]!r} is there twice; give every class a name")
    return spec.ClassTable(
        name, tuple(names), tuple(color or voc_color(i) for i, (_, color) in enumerate(rows, 1))
    )


def write_classes(table: spec.ClassTable, path: str | os.PathLike[str]) -> None:
    """Writes a table as a .json that `read_classes` reads."""
    rows = [
        {"name": name, "color": list(color)}
        for name, color in zip(table.class_names, table.palette, strict=True)
    ]
    lines = ",\n".join(f" {json.dumps(row)}" for row in rows)
    pathlib.Path(path).write_text(f"[\n{lines}\n]\n")


def _text_rows(path: pathlib.Path) -> list[tuple[str, spec.Color | None]]:
    rows = []
    for place, line, cells, spaced in files.read_rows(path, comment="#"):
        if not rows and [cell.lower() for cell in cells[-3:]] in HEADINGS:
            continue
        color = [cell for cell in cells[-3:] if cell.isdecimal()]
        if len(color) == 3 and (len(cells) == 4 or len(cells) > 4 and spaced):
            rows.append((" ".join(cells[:-3]), _color(place, map(int, color))))
        elif spaced and not any(cell.isdecimal() for cell in cells[1:]):
            rows.append((" ".join(cells), None))
        else:
            raise spec.DataError(f"{place}: expects `name` or `name R G B`, got {line!r}")
    return rows


def _json_rows(path: pathlib.Path) -> list[tuple[str, spec.Color | None]]:
    try:
        content = json.loads(files.read_text(path))
    except json.JSONDecodeError as error:
        raise spec.DataError(f"{path}: not JSON ({error})") from error
    rows = []
    for number, row in enumerate(content if isinstance(content, list) else [content]):
        row = {"name": row} if isinstance(row, str) else row
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise spec.DataError(
                f'{path}: expects a list of names or of {{"name": ..., "color": [R, G, B]}}'
            )
        color = row.get("color")
        rows.append((row["name"], color and _color(f"{path}, class {number}", color)))
    return rows


def _color(place: str, values: object) -> spec.Color:
    color = tuple(values) if isinstance(values, list | map) else ()
    if len(color) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in color):
        raise spec.DataError(f"{place}: a colour is R G B, each 0-255; got {color}")
    return color


def voc_color(index: int) -> spec.Color:
    """PASCAL VOC's colour map: the bits of the index, dealt to R, G and B from their highest bits on."""
    return tuple(
        sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3)
    )


def class_table(root: str | os.PathLike[str], classes: str = "") -> spec.ClassTable:
    """The classes of a folder: those of ROOT/classes.txt or .json, or of the file that `classes` names.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is not a file of classes.
    """
    return read_classes(_classes_file(pathlib.Path(root).expanduser(), classes))


def _classes_file(root: pathlib.Path, classes: str) -> pathlib.Path:
    if classes:
        return root / classes  # an absolute path stays one
    return next((p for name in CLASSES if (p := root / name).is_file()), root / CLASSES[0])


def _labels_of(
    table: spec.ClassTable, annotation: str, label_map: LabelMap, ignore: int
) -> tuple[object, str]:
    """(map of `files.read_pair`, hint)."""
    count = table.num_classes
    if annotation == "colors":
        if label_map:
            raise ValueError(
                "annotation='colors' reads the classes' colours; leave label_map empty"
            )
        if len(set(table.palette)) < count:
            raise ValueError("annotation='colors' needs a colour of its own for every class")
        void = {} if (0, 0, 0) in table.palette else {(0, 0, 0): spec.IGNORE}
        colors = {color: i for i, color in enumerate(table.palette)} | void
        return colors, "add the colour to the classes file, or draw what is to be ignored black"
    for raw, train_id in label_map:
        if not 0 <= raw <= 255 or not (0 <= train_id < count or train_id == spec.IGNORE):
            raise ValueError(
                f"label_map ({raw}, {train_id}) is impossible; expects (raw value 0-255, class 0-{count - 1} "
                f"or {spec.IGNORE} to ignore)"
            )
    if not 0 <= ignore <= 255:
        raise ValueError(f"ignore {ignore} is impossible; expects a raw value, 0-255")
    if not label_map and ignore < count:
        raise ValueError(
            f"ignore {ignore} is also the id of class {table.class_names[ignore]!r}; "
            "give a label_map that says which value is which class"
        )
    # The map's own word on a value counts more.
    pairs = [(ignore, spec.IGNORE), *(label_map or ((i, i) for i in range(count)))]
    return files.lookup(
        pairs
    ), "map such values with input.label_map, or name the ignored one in input.ignore"


def load(
    root: str | os.PathLike[str],
    split: str,
    annotation: str = "",
    *,
    classes: str = "",
    label_map: LabelMap = (),
    ignore: int = spec.IGNORE,
) -> spec.Dataset:
    """One split of a user's own data.

    Args:
        root: The folder, as the module describes it.
        split: Any name that has folders or a list; trainval, if it has not, is train, then val.
        annotation: "ids", the default: labels hold numbers; "colors": they hold the classes' colours, black is ignored.
        classes: The file of classes, relative to root; "" for classes.txt or classes.json there.
        label_map: (raw value, class or 255 to ignore), ...; () for raw values that are the classes' own numbers.
            With a map, a value that is not in it must not occur.
        ignore: The raw value of pixels that do not count.

    Raises:
        ValueError: an annotation, a label_map or an ignore that cannot be.
        FileNotFoundError: no classes file, no such split, or one file of a pair is missing.
        DataError: a classes file or a list that cannot be read.
    """
    base = pathlib.Path(root).expanduser()
    annotation = spec.choose_annotation("folder", annotation, ANNOTATIONS)
    table = class_table(base, classes)
    lut, hint = _labels_of(table, annotation, label_map, ignore)
    whole = split != "trainval" or _has(base, split)
    pairs = [
        pair for part in ((split,) if whole else ("train", "val")) for pair in _pairs(base, part)
    ]
    names = files.unique_names(image for image, _ in pairs)
    dataset = files.of_files(table, split, names, pairs, lut, hint, upright=True)
    last = max(1, table.num_classes - 1)
    ids = "".join(f"({i},{i})," for i in range(last))
    advice = f'where {ignore} is a class, set --config.input.label_map="({ids}({ignore},{last}))"'
    if annotation == "colors":
        advice = "where black is a class, list it with its colour, 0 0 0"
    return dataclasses.replace(
        dataset, files=(_classes_file(base, classes), *dataset.files), advice=advice
    )


def _has(root: pathlib.Path, split: str) -> bool:
    return (root / f"{split}.txt").is_file() or (root / "images" / split).is_dir()


def _pairs(root: pathlib.Path, split: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
    if (root / f"{split}.txt").is_file():
        return files.read_list(root / f"{split}.txt", root)
    images, labels = root / "images" / split, root / "labels" / split
    for folder in (images, labels):
        if not folder.is_dir():
            splits = {p.name for p in root.glob("images/[!.]*/")}
            splits |= {p.stem for p in root.glob("*.txt")} - {"classes"}
            raise FileNotFoundError(
                f"{folder}: no such folder; a folder data set is expected as ROOT/images/SPLIT/*.png or *.jpg "
                "with ROOT/labels/SPLIT/*.png, or as ROOT/SPLIT.txt with 'image label' lines; "
                f"splits found: {', '.join(sorted(splits)) or 'none'}"
            )
    advice = "copy it, or remove the other"
    pairs = files.folder_pairs(images, labels, *files.IMAGE_ENDINGS, advice=advice)
    if not pairs:
        raise FileNotFoundError(f"{images}: the split is empty; expects *.png or *.jpg in it")
    return [(image, label) for _, image, label in pairs]
