"""A user's own data: the classes file, both layouts, raw values mapped, and one clear line for each mistake."""

import re
import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image

from rtseg_jax import data
from rtseg_jax.data import files, spec
from rtseg_jax.data.sets import folder

SIZE = (6, 8)
CLASSES = "# of my farm\nfield 0 200 0\ndirt road 120 80 40\n\nbarn\n"
NAMES = ("field", "dirt road", "barn")
LABEL = np.arange(48, dtype=np.uint8).reshape(SIZE) % 3
LABEL[0, :2] = 255


def image_of(i):
    return np.full((*SIZE, 3), 10 * i, np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def root(tmp_path):
    """Three images to train, one in a folder of its own, and one to validate."""
    (tmp_path / "classes.txt").write_text(CLASSES)
    for split, names in {"train": ("b", "a", "north/a"), "val": ("v",)}.items():
        for i, name in enumerate(names):
            save(tmp_path / "images" / split / f"{name}.png", image_of(i))
            save(tmp_path / "labels" / split / f"{name}.png", LABEL)
    return tmp_path


def test_a_split(root):
    dataset = data.load("folder", root=root, split="train")
    assert dataset.table.class_names == NAMES
    assert dataset.table.palette[:2] == ((0, 200, 0), (120, 80, 40))
    assert dataset.names == ("train/a", "train/b", "north/a")
    for at, i in enumerate((1, 0, 2)):
        image, label = dataset.load(at)
        np.testing.assert_array_equal(image, image_of(i))
        np.testing.assert_array_equal(label, LABEL)


def test_the_seed_has_no_copies_of_its_own(root, tmp_path):
    for seed in (0, 1):
        data.load("folder", root=root, split="val", seed=seed, cache=str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").glob("folder-*"))) == 1


def test_trainval_is_train_then_val_unless_it_is_there(root):
    assert len(folder.load(root, "trainval")) == 4
    (root / "trainval.txt").write_text("images/val/v.png labels/val/v.png\n")
    assert folder.load(root, "trainval").names == ("v",)


def test_images_may_be_jpegs(root):
    (root / "images" / "train" / "b.png").unlink()
    save(root / "images" / "train" / "b.JPG", image_of(5))
    np.testing.assert_allclose(folder.load(root, "train").load(1)[0], 50, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_viewers_and_predict_turn_them(root, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL.Image.Transpose by what EXIF says
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(root / "images" / "val" / "v.png", exif=exif)
    image, label = folder.load(root, "val").load(0)
    np.testing.assert_array_equal(image, upright)
    np.testing.assert_array_equal(files.read_frame(root / "images" / "val" / "v.png"), upright)
    np.testing.assert_array_equal(label, LABEL)


def test_a_photo_with_scrambled_exif_is_read_as_it_is(root):
    path = root / "images" / "val" / "v.png"
    Image.fromarray(image_of(4)).save(path, exif=b"Exif\0\0no such thing")
    for image in (folder.load(root, "val").load(0)[0], files.read_frame(path)):
        np.testing.assert_array_equal(image, image_of(4))


def test_links_to_folders_are_followed(root, tmp_path):
    for kind in ("images", "labels"):
        other = save(tmp_path / "other disk" / kind / "deep" / "c.png", LABEL).parent.parent
        (other / "deep" / "up").symlink_to(other)
        (root / kind / "train" / "more").symlink_to(other)
    assert folder.load(root, "train").names == ("train/a", "train/b", "deep/c", "north/a")


@pytest.mark.parametrize("gap", ["\t", "   "])
def test_a_list_file_wins_over_folders(root, gap):
    lines = [
        f"images/val/v.png{gap}labels/val/v.png",
        "",
        f"images/train/b.png{gap}labels/train/b.png",
    ]
    (root / "train.txt").write_text("\n".join(lines))
    dataset = folder.load(root, "train")
    assert dataset.names == ("v", "b")
    np.testing.assert_array_equal(dataset.load(1)[0], image_of(0))


def test_a_tab_lets_names_have_spaces(root):
    save(root / "my images" / "a b.png", image_of(1))
    (root / "train.txt").write_text("my images/a b.png\tlabels/val/v.png\n")
    assert folder.load(root, "train").names == ("a b",)


def test_a_label_map(root):
    """Two values of one class, one ignored, and the ignore value besides: what the map says of a value counts."""
    raw = np.array([[7, 7, 40, 41], [0, 0, 99, 7]], np.uint8)
    save(root / "images" / "val" / "v.png", np.zeros((2, 4, 3), np.uint8))
    save(root / "labels" / "val" / "v.png", raw)
    mapping = ((7, 2), (40, 0), (41, 0), (99, 255))
    loaded = data.load("folder", root=root, split="val", label_map=mapping, ignore=0).load(0)[1]
    np.testing.assert_array_equal(loaded, [[2, 2, 0, 0], [255, 255, 255, 2]])
    over = data.load("folder", root=root, split="val", label_map=(*mapping, (0, 1)), ignore=0)
    np.testing.assert_array_equal(over.load(0)[1], [[2, 2, 0, 0], [1, 1, 255, 2]])
    with pytest.raises(
        spec.DataError, match="label values 0 are not allowed; allowed are 7, 40-41, 99, 255; map"
    ):
        folder.load(root, "val", label_map=mapping).load(0)


def test_colours(root):
    table = folder.class_table(root)
    save(root / "labels" / "val" / "v.png", table.colorize(LABEL))
    label = folder.load(root, "val", "colors").load(0)[1]
    np.testing.assert_array_equal(label, LABEL)
    with pytest.raises(spec.DataError, match="a label of mode RGB holds colours"):
        folder.load(root, "val").load(0)


def test_the_classes_file_may_lie_elsewhere(root, tmp_path):
    other = tmp_path / "lists" / "two.json"
    other.parent.mkdir()
    other.write_text('["crop", {"name": "weed", "color": [9, 8, 7]}]')
    for given in ("lists/two.json", str(other)):
        table = data.class_table("folder", root=root, classes=given)
        assert table.class_names == ("crop", "weed") and table.palette[1] == (9, 8, 7)
        assert data.load("folder", root=root, split="val", classes=given).table == table


def test_written_classes_are_read_again(tmp_path):
    for table in data.TABLES.values():
        folder.write_classes(table, tmp_path / "classes.json")
        again = folder.read_classes(tmp_path / "classes.json", table.name)
        assert again == table


def test_colours_that_are_not_given_are_pascals(tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join(f"class{chr(97 + i)}" for i in range(20)))
    palette = folder.read_classes(tmp_path / "classes.txt").palette
    assert palette[:4] == ((128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert palette[14] == (192, 128, 128) and palette[19] == (0, 64, 128)
    assert len(set(palette)) == 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("classes.txt", "", "0 classes; expects 1-253"),
        ("classes.txt", "\n".join(f"c{i}x" for i in range(254)), "254 classes; expects 1-253"),
        ("classes.txt", "a\nb 1 2\n", r"line 2: expects `name` or `name R G B`, got 'b 1 2'"),
        ("classes.txt", "a 1 2 256\n", r"line 1: a colour is R G B, each 0-255; got \(1, 2, 256\)"),
        ("classes.txt", "a\nb\na\n", "class 'a' is there twice"),
        ("classes.json", "{", "not JSON"),
        ("classes.json", '{"a": [1, 2, 3]}', "expects a list of names"),
        ("classes.json", '["a", 3]', "expects a list of names"),
        ("classes.json", '[{"name": "a", "color": "red"}]', r"class 0: a colour is R G B"),
    ],
)
def test_bad_classes_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(spec.DataError, match=message) as raised:
        folder.class_table(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / name}") and "\n" not in str(raised.value)


def test_no_classes_file(tmp_path):
    for ask in (
        lambda: folder.class_table(tmp_path),
        lambda: data.load("folder", root=tmp_path, split="train"),
    ):
        with pytest.raises(
            FileNotFoundError, match=r"/classes\.txt: no such file; expects a class per"
        ):
            ask()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"annotation": "colours"},
            "unknown annotation 'colours' of folder; choose one of ids, colors",
        ),
        (
            {"label_map": ((256, 0),)},
            "label_map (256, 0) is impossible; expects (raw value 0-255, class 0-2",
        ),
        ({"label_map": ((1, 3),)}, "label_map (1, 3) is impossible"),
        ({"ignore": 0}, "ignore 0 is also the id of class 'field'; give a label_map"),
        ({"ignore": 300}, "ignore 300 is impossible; expects a raw value, 0-255"),
        (
            {"annotation": "colors", "label_map": ((1, 1),)},
            "annotation='colors' reads the classes' colours",
        ),
    ],
)
def test_impossible_arguments(root, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load("folder", root=root, split="val", **arguments)


def test_colours_must_tell_the_classes_apart(root):
    (root / "classes.txt").write_text("a 1 1 1\nb 1 1 1\n")
    with pytest.raises(ValueError, match="needs a colour of its own for every class"):
        folder.load(root, "val", "colors")


@pytest.mark.parametrize("name", ["camvid", "cityscapes", "nyuv2", "ade20k"])
@pytest.mark.parametrize(
    "arguments", [{"classes": "c.txt"}, {"label_map": ((1, 1),)}, {"ignore": 0}]
)
def test_known_classes_take_no_map(root, name, arguments):
    with pytest.raises(ValueError, match=f"are for dataset 'folder', not for {name}"):
        data.load(name, root=root, split="train", **arguments)


def test_a_split_that_is_not_there(root):
    (root / "extra.txt").write_text("images/val/v.png labels/val/v.png\n")
    with pytest.raises(
        FileNotFoundError, match=r"images/test: no such folder.*found: extra, train, val$"
    ):
        folder.load(root, "test")


@pytest.mark.parametrize(("gone", "what"), [("images", "image"), ("labels", "label")])
def test_a_file_that_is_alone(root, gone, what):
    (root / gone / "train" / "north" / "a.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=f"/{gone}/train/north/a.png: the {what} of .* is missing; copy it"
    ):
        folder.load(root, "train")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            "images/val/v.png\n",
            spec.DataError,
            r"train\.txt, line 1: expects 'image label', got 'images",
        ),
        ("a b c\n", spec.DataError, "line 1: expects 'image label', got 'a b c'"),
        (" \n\n", spec.DataError, "the list is empty"),
        (
            "\nimages/val/x.png labels/val/v.png\n",
            FileNotFoundError,
            "images/val/x.png: the image of .* line 2",
        ),
        (
            "images/val/v.png labels/val/x.png\n",
            FileNotFoundError,
            "labels/val/x.png: the label of .* line 1",
        ),
    ],
)
def test_bad_lists(root, content, error, message):
    (root / "train.txt").write_text(content)
    with pytest.raises(error, match=message):
        folder.load(root, "train")


def test_an_empty_split(root):
    for kind in ("images", "labels"):
        (root / kind / "val" / "v.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"/images/val: the split is empty; expects"):
        folder.load(root, "val")


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("classes.txt", b"name,r,g,b\nc0,90,90,90\n c1 , 200,60,40\n", ("c0", "c1")),
        ("classes.csv", b"Name;R;G;B\r\nc0;90;90;90\r\nc1;200;60;40\r\n", ("c0", "c1")),
        ("classes.txt", b"name r g b\nsky blue 90 90 90\nc1 200 60 40\n", ("sky blue", "c1")),
        ("classes.txt", b"c0 90 90 90 # grass, and hay\nc1 200 60 40\n", ("c0", "c1")),
        ("classes.txt", "\ufeffäcker\nc1\n".encode(), ("äcker", "c1")),
        ("classes.txt", "äcker\r\nc1".encode("utf-16"), ("äcker", "c1")),
    ],
)
def test_lists_as_spreadsheets_and_editors_write_them(tmp_path, name, content, names):
    (tmp_path / name).write_bytes(content)
    table = folder.class_table(tmp_path)
    assert table.class_names == names
    if b"90" in content:
        assert table.palette == ((90, 90, 90), (200, 60, 40))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xe4cker\n", "classes.txt, line 2: not UTF-8; save the file as UTF-8"),
        (b"a,1,2,3\nb,1,2\n", "classes.txt, line 2: expects `name` or `name R G B`, got 'b,1,2'"),
        (b"wall, brick\n", "classes.txt, line 1: expects `name` or `name R G B`, got 'wall, bri"),
    ],
)
def test_lines_that_are_not_understood(tmp_path, content, message):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(spec.DataError, match=message):
        folder.class_table(tmp_path)


def test_what_is_hidden_is_no_data(root):
    names = data.load("folder", root=root, split="train").names
    for kind in ("images", "labels"):
        for hidden in (".ipynb_checkpoints", "__MACOSX"):
            for path in sorted((root / kind / "train").rglob("*.*")):
                if hidden not in path.parts and path.is_file() and not path.name.startswith("."):
                    copy = root / kind / "train" / hidden / "deep" / f"copy_{path.name}"
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copy)
    assert data.load("folder", root=root, split="train").names == names


def test_an_image_has_one_label(root):
    images, labels = (
        sorted(p.relative_to(root).as_posix() for p in (root / k / "train").rglob("*.png"))
        for k in ("images", "labels")
    )
    a, b = (line.replace("/", "\\") for line in images[:2])  # as Windows writes them
    (root / "twice.txt").write_text(f"image,label\n{a},{labels[0]}\n{a},{labels[0]}\n")
    assert len(data.load("folder", root=root, split="twice")) == 2
    (root / "twice.txt").write_text(f"{a}\t{labels[0]}\n{a}\t{labels[1]}\n")
    with pytest.raises(spec.DataError, match="line 2: .* has two labels, .* and .*; remove one l"):
        data.load("folder", root=root, split="twice")
    (root / "twice.txt").write_text(f"{a}\t{labels[0]}\n{b}\t{labels[0]}\n")
    with pytest.raises(spec.DataError, match="line 2: .* has two images, .* and .*; remove one l"):
        data.load("folder", root=root, split="twice")
