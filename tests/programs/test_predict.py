"""Predictions have their frames' sizes, names of their own and the evaluated classes; a bad input is named and stops nothing."""

import itertools
import os
import pathlib
import re
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.data import spec
from rtseg_jax.data.sets import folder
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import pictures
from rtseg_jax.programs.evaluate import main as evaluate
from rtseg_jax.programs.predict import main as predict
from rtseg_jax.programs.predict import video
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = spec.TABLES["cityscapes"]
H, W = 40, 56
RNG = np.random.default_rng(5)
# Smooth, as photos are: of noise, the classes of neighbouring pixels are a toss-up.
PHOTO = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8)).resize((W, H), Image.BILINEAR)
)


def brightness(frame):
    """In place of a network: four classes by brightness, so that every pixel can be followed."""
    return (frame.mean(axis=-1) // 64).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_network):
    return tiny.write(tmp_path_factory.mktemp("runs") / "run", tiny.config())


def save(path, array=PHOTO, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def read(path):
    return np.asarray(Image.open(path))


def go(inputs, output, **options):
    return predict.predict(brightness, TABLE, list(map(str, inputs)), output, **options)


# What is written


def test_ids_mask_and_overlay_of_a_photo(tmp_path):
    assert go([save(tmp_path / "a.png")], tmp_path / "out") == []
    ids = read(tmp_path / "out" / "ids" / "a.png")
    np.testing.assert_array_equal(ids, brightness(PHOTO))
    assert ids.dtype == np.uint8 and len(np.unique(ids)) > 2
    np.testing.assert_array_equal(
        read(tmp_path / "out" / "masks" / "a.png"), np.array(TABLE.palette, np.uint8)[ids]
    )
    overlay = read(tmp_path / "out" / "overlays" / "a.png")
    blended = 0.35 * PHOTO + 0.65 * np.array(TABLE.palette)[ids]
    assert np.abs(overlay[:H, :W] - blended).max() <= 1
    strip = overlay[H:].reshape(-1, 3).tolist()
    for c, color in enumerate(TABLE.palette[:9]):
        if color not in TABLE.palette[:c]:
            assert (list(color) in strip) == (c in ids), TABLE.class_names[c]
    table = folder.read_classes(tmp_path / "out" / "classes.json")
    assert (table.class_names, table.palette) == (TABLE.class_names, TABLE.palette)


def test_only_the_kinds_that_are_wanted_are_written(tmp_path):
    go([save(tmp_path / "a.png")], tmp_path / "out", kinds=("ids",))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["classes.json", "ids"]


def test_many_images_keep_their_own_results(tmp_path):
    photos = {f"{i:02d}": RNG.integers(0, 256, (8 + i % 3, 9, 3), np.uint8) for i in range(20)}
    for name, photo in photos.items():
        save(tmp_path / "in" / f"{name}.png", photo)
    assert go([tmp_path / "in"], tmp_path / "out", kinds=("ids",)) == []
    for name, photo in photos.items():
        np.testing.assert_array_equal(
            read(tmp_path / "out" / "ids" / f"{name}.png"), brightness(photo)
        )


def test_a_legend_fits_long_names_and_narrow_pictures():
    table = spec.ClassTable("t", ("a" * 60, "b"), ((255, 0, 0), (0, 255, 0)))
    picture = pictures.with_legend(np.zeros((3, 1, 3), np.uint8), table, (0, 1))
    assert picture.shape[1] > 300 and (picture[:3, 1:] == 255).all()
    row = (picture[3:] == (0, 255, 0)).all(-1).any(axis=1)
    assert row.any() and not (picture[3:][row] == (255, 0, 0)).all(-1).any()


# Which files


def test_folders_patterns_and_names_are_found_once(tmp_path, monkeypatch):
    for name in ("b.PNG", "deep/er/c.jpg", ".hidden.png", "._mac.png", "notes.txt"):
        save(tmp_path / "in" / name, format="PNG")
    (tmp_path / "in" / "clip.mp4").write_bytes(b"x")
    (tmp_path / "in" / "deep" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "folder.png").mkdir()
    save(tmp_path / "in" / "a[1].png")
    monkeypatch.chdir(tmp_path)
    found = predict.find(["in", "in/**/*.jpg", "in/a[1].png", "in/clip.mp4", "0", "0"])
    relative = [str(p.relative_to(tmp_path / "in")) for p in found.images]
    assert relative == ["a[1].png", "b.PNG", "deep/er/c.jpg"]
    assert [p.name for p in found.videos] == ["clip.mp4"]
    assert (found.cameras, found.problems) == ((0,), ())


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("in", ["b.png"]),
        ("in/*", ["b.png"]),
        ("in/**/*.png", ["b.png"]),
        ("in/.*", [".DS_Store", ".a.png", ".checkpoints/c.png"]),
        ("in/.check*/*", [".checkpoints/c.png"]),
        ("in/.checkpoints", [".checkpoints/c.png"]),
        ("in/.a.png", [".a.png"]),
        ("in/.a*/*", []),
    ],
)
def test_what_is_hidden_is_found_by_its_name_alone(given, names, tmp_path, monkeypatch):
    home = tmp_path / ".cache"  # what lies above is no matter
    for name in (".a.png", ".DS_Store", ".checkpoints/c.png", ".checkpoints/.d.png", "b.png"):
        save(home / "in" / name, format="PNG")
    monkeypatch.chdir(home)
    found = predict.find([given]).images
    assert [str(path.relative_to(home / "in")) for path in found] == names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/x/a.png", "/x/b.jpg"], ["a", "b"]),
        (["/x/a/1.png", "/x/b/1.png"], ["a/1", "b/1"]),
        (["/x/1.png", "/x/1.jpg"], ["1.png", "1.jpg"]),
        (["/x/1.png", "/x/1.jpg", "/x/1.jpg.png"], ["1.png", "1.jpg", "1.jpg.png"]),
        (["/1.png", "/x/1.png"], ["1", "x/1"]),
        (["/x/a.b.png"], ["a.b"]),
        ([], []),
    ],
)
def test_no_two_results_share_a_name(paths, names):
    found = predict.output_names([pathlib.Path(p) for p in paths])
    assert list(found) == names


def test_results_never_overwrite_an_input(tmp_path):
    path = save(tmp_path / "ids" / "a.png")
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match="would overwrite the input .*a.png; give another --output"
    ):
        go([path], tmp_path)
    assert path.read_bytes() == before


# Hostile inputs


def jpeg_turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    save(path, exif=exif, quality=100, subsampling=0)


def bomb(path):
    Image.new("1", (20000, 20000)).save(path)


def large(path):
    Image.new("1", (10000, 10000)).save(path)


def broken_link(path):
    path.symlink_to(path.with_name("nothing.png"))


def unreadable(path):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    save(path).chmod(0)


def flipped_bit(path):
    content = bytearray(save(path).read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def unknown_codec(path):
    content = clip(path).read_bytes()
    path.write_bytes(content.replace(b"avc1", b"xyzw"))


def pipe(path):
    os.mkfifo(path)


GREY = PHOTO[..., 0]
INPUTS = {
    # name: (file, how it is made, the size of its class map or what is said of it)
    "empty": ("x.png", lambda p: p.write_bytes(b""), "x.png: the file is empty"),
    "truncated png": (
        "x.png",
        lambda p: p.write_bytes(save(p).read_bytes()[:300]),
        "x.png: truncated or corrupt",
    ),
    "truncated jpg": (
        "x.jpg",
        lambda p: p.write_bytes(save(p).read_bytes()[:400]),
        "x.jpg: truncated or corrupt",
    ),
    "flipped bit": ("x.png", flipped_bit, "x.png: truncated or corrupt"),
    "text": ("x.png", lambda p: p.write_text("hello"), "x.png: not an image"),
    "unknown ending": ("x.xyz", lambda p: p.write_text("hello"), "x.xyz: not an image"),
    "1x1": ("x.png", lambda p: save(p, PHOTO[:1, :1]), (1, 1)),
    "one row": ("x.png", lambda p: save(p, PHOTO[:1]), (1, W)),
    "16 bits": (
        "x.png",
        lambda p: save(p, GREY.astype(np.uint16)),
        "x.png: a 16-bit image; expects 8 bits",
    ),
    "1 bit": ("x.png", lambda p: save(p, GREY > 9), "x.png: an image of mode 1"),
    "cmyk": (
        "x.jpg",
        lambda p: Image.fromarray(PHOTO).convert("CMYK").save(p),
        "x.jpg: an image of mode CMYK; expects 8-bit RGB",
    ),
    "palette": ("x.png", lambda p: Image.fromarray(PHOTO).quantize(16).save(p), (H, W)),
    "grey": ("x.png", lambda p: save(p, GREY), (H, W)),
    "grey with alpha": ("x.png", lambda p: save(p, np.dstack([GREY, GREY])), (H, W)),
    "alpha": ("x.png", lambda p: save(p, np.dstack([PHOTO, GREY])), (H, W)),
    "webp": ("x.webp", save, (H, W)),
    "animated": (
        "x.gif",
        lambda p: Image.fromarray(PHOTO).save(
            p, save_all=True, append_images=[Image.fromarray(PHOTO[::-1])]
        ),
        (H, W),
    ),
    "turned by exif": ("x.jpg", jpeg_turned, (W, H)),
    "bomb": ("x.png", bomb, "x.png: more than 89 million pixels; make it smaller"),
    "large": ("x.png", large, "x.png: more than 89 million pixels"),
    "missing": ("x.png", lambda p: None, "x.png: no such file, folder or camera"),
    "empty folder": ("x.png", lambda p: p.mkdir(), "x.png: no images and videos in this folder"),
    "broken link": ("x.png", broken_link, "x.png: a broken link, or no regular file"),
    "pipe": ("x.png", pipe, "x.png: a broken link, or no regular file"),
    "unreadable": ("x.png", unreadable, r"x.png: cannot be read \(Permission denied\)"),
    "empty pattern": ("x*.png", lambda p: None, "no file matches this pattern"),
    "spaces and unicode": ("ä 名 前😀.png", save, (H, W)),
    "line break": ("a\nb.png", lambda p: p.write_text("hello"), "a b.png: not an image"),
    "not a video": ("x.mp4", lambda p: p.write_text("hello"), "x.mp4: cannot be read or written"),
    "unknown codec": (
        "x.mp4",
        unknown_codec,
        "x.mp4: cannot be read or written .*[dD]ecoder not found",
    ),
    "absent camera": ("987", lambda p: None, "camera 987: cannot be read or written"),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_a_hostile_input_is_handled_or_named_and_stops_nothing(kind, tmp_path, monkeypatch):
    name, make, expected = INPUTS[kind]
    if name in ("x.mp4", "987"):
        pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    save(tmp_path / "good.png")
    problems = go([name, "good.png"], tmp_path / "out")
    np.testing.assert_array_equal(read("out/ids/good.png"), brightness(PHOTO))
    if isinstance(expected, tuple):
        assert problems == []
        assert read(f"out/ids/{pathlib.Path(name).stem}.png").shape == expected
    else:
        assert len(problems) == 1 and "\n" not in problems[0]
        assert re.search(expected, problems[0]), problems[0]
        assert [p.name for p in (tmp_path / "out" / "ids").iterdir()] == ["good.png"]


@pytest.mark.parametrize("name", ["x.jpg", "x.tif"])
def test_exif_turns_the_pixels_too(name, tmp_path):
    jpeg_turned(tmp_path / name)
    go([tmp_path / name], tmp_path / "out")
    ids = read(tmp_path / "out" / "ids" / "x.png")
    assert ids.shape == (W, H)
    assert (ids == np.rot90(brightness(PHOTO), -1)).mean() > 0.95  # JPEG loses a little


def test_a_result_that_cannot_be_written_is_named(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "out" / "ids" / "a.png").mkdir(parents=True)
    problems = go([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out", kinds=("ids",))
    assert len(problems) == 1 and "a.png: its results cannot be written (" in problems[0]
    assert read(tmp_path / "out" / "ids" / "b.png").shape == (H, W)


def test_of_nothing_readable_no_sizes_are_told(tmp_path, capsys):
    (tmp_path / "x.png").write_text("hello")
    assert len(go([tmp_path / "x.png"], tmp_path / "out")) == 1
    assert capsys.readouterr().out == ""


def test_no_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give --input=PATH"):
        go([], tmp_path)


# What the network sees


@pytest.mark.parametrize(
    ("frame", "size", "max_pixels", "seen"),
    [
        ((480, 640), None, 480 * 640, (480, 640)),
        ((960, 1280), None, 480 * 640, (480, 640)),
        ((960, 1280), (100, 100), 480 * 640, (100, 100)),
        ((480, 640), (480, 640), 100, (480, 640)),
        ((1, 1), None, 10**6, (32, 32)),
        ((20, 4000), None, 10**6, (32, 4000)),
    ],
)
def test_what_the_network_sees(frame, size, max_pixels, seen):
    assert networks.View(size=size, max_pixels=max_pixels).seen(frame) == seen


def frame(height, width):
    return np.asarray(Image.fromarray(PHOTO).resize((width, height), Image.BILINEAR))


def test_predicted_classes_are_the_evaluated_ones(run, tmp_path, monkeypatch):
    maps = {}
    monkeypatch.setattr(evaluate, "write_overlays", lambda folder, dataset, m: maps.update(m))
    evaluate.evaluate_run(run, split="val", which="best", output=tmp_path, batch_size=1, overlays=3)
    config = networks.load(run).config
    dataset = data.load(
        config.input.dataset, root=None, split="val", size=config.input.size,
        num_examples=config.input.num_eval, seed=config.seed,
    )  # fmt: skip
    classes = networks.load(run)
    assert classes.table.class_names == TABLE.class_names and len(maps) == 3
    for i, expected in maps.items():
        assert len(np.unique(expected)) > 1
        np.testing.assert_array_equal(classes(dataset.load(i)[0]), expected)


@pytest.mark.parametrize(
    ("options", "like"),
    [
        ({"size": "own"}, {"size": (90, 70)}),
        ({"size": "own", "max_pixels": 1575}, {"size": (45, 35)}),
    ],
)
def test_frames_of_any_size_are_seen_by_the_rule(run, options, like):
    photo = frame(90, 70)
    classes = networks.load(run).seeing(**options)(photo)
    assert classes.shape == (90, 70) and len(np.unique(classes)) > 1
    np.testing.assert_array_equal(classes, networks.load(run).seeing(**like)(photo))


@pytest.mark.parametrize("shape", [(640, 1280), (90, 70), (20, 300), (64, 128)])
def test_frames_are_resized_as_the_data_of_the_run_were(run, shape):
    """Of a noisy frame, most pixels would have other classes without the antialiasing of input.size."""
    noise = np.random.default_rng(1).normal(0, 90, (*shape, 3))
    photo = np.clip(frame(*shape) + noise, 0, 255).astype(np.uint8)
    own = spec.Dataset(TABLE, "val", ("a",), shape, lambda i: (photo, photo[..., 0]))
    evaluated = networks.load(run).seeing(size="own")(spec.resized(own, (64, 128)).load(0)[0])
    classes = networks.load(run)(photo)
    assert classes.shape == shape and len(np.unique(classes)) > 1
    np.testing.assert_array_equal(classes, spec.resize_label(evaluated, shape))


def test_what_was_resized_is_padded_as_in_evaluation(run):
    photo = frame(90, 70)
    small = np.asarray(Image.fromarray(photo).resize((128, 64), Image.BILINEAR))
    padded = np.pad(small, ((0, 32), (0, 16), (0, 0)), mode="edge")
    expected = networks.load(run).seeing(size="own", multiple=1)(padded)[:64, :128]
    expected = np.asarray(Image.fromarray(expected).resize((70, 90), Image.NEAREST))
    np.testing.assert_array_equal(networks.load(run).seeing(multiple=48)(photo), expected)


def test_padding_lets_sizes_share_a_program(run):
    classes = networks.load(run).seeing(size="own", multiple=32)
    exact = networks.load(run).seeing(size="own", multiple=0)
    assert classes(frame(50, 90)).shape == (50, 90)
    padded = np.pad(frame(50, 90), ((0, 14), (0, 6), (0, 0)), mode="edge")
    np.testing.assert_array_equal(classes(frame(50, 90)), exact(padded)[:50, :90])


@pytest.mark.parametrize(
    ("view", "told", "compiled"),
    [
        (networks.View(), "12 sizes, each compiled once; --multiple=64 would let similar", 12),
        (networks.View(multiple=64), "2 sizes, each compiled once", 2),
        (networks.View(multiple=4), "7 sizes, each compiled once", 7),
        (networks.View(resized=(20, 30)), "one size", 1),
    ],
)
def test_images_of_one_program_come_one_after_the_other(view, told, compiled, tmp_path, capsys):
    for i in range(12):
        save(tmp_path / "in" / f"{i:02d}.png", frame(40 + i, (60, 70)[i % 2]))
    given = []

    def network(shown):
        given.append(view.given(shown.shape[:2]))
        return brightness(shown)

    options = {"given": view.given, "kinds": ("ids",)}
    assert predict.predict(network, TABLE, [str(tmp_path / "in")], tmp_path, **options) == []
    assert f"12 images in frames of {told}" in capsys.readouterr().out.partition("\n")[0]
    assert sum(a != b for a, b in itertools.pairwise([None, *given])) == compiled
    assert len(given) == 12 + compiled  # one call each before the clock counts


def test_more_padding_is_not_advised_where_there_is_enough(tmp_path, capsys):
    for i in range(10):
        save(tmp_path / "in" / f"{i}.png", np.zeros((64, 64 + 64 * i, 3), np.uint8))
    go([tmp_path / "in"], tmp_path / "out", kinds=("ids",))
    first = capsys.readouterr().out.partition("\n")[0]
    assert first == "10 images in frames of 10 sizes, each compiled once"


# Videos

RATE = Fraction(25, 2)


def clip(path, count=13, height=H, width=W, stamps=None):
    """A video of ever brighter grey, from 0 to 240, with a white top left quarter; the index of an .mp4 comes first."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv444p"
        stream.options = {"crf": "0"}
        for i in range(count):
            picture = np.full((height, width, 3), 240 * i // count, np.uint8)
            picture[: height // 2, : width // 2] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i if stamps is None else stamps[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode(path):
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        return [f.to_ndarray(format="rgb24") for f in frames], [f.time for f in frames], stream


def test_a_video_keeps_its_frames_order_and_times(tmp_path, capsys):
    stamps = [0, 1, 2, 5, 6, 7, 8, 9, 20, 21, 22, 23, 24]  # a pause, and a longer one
    source = clip(tmp_path / "clip.mp4", stamps=stamps)
    assert go([source], tmp_path / "out") == []
    frames, times, stream = decode(tmp_path / "out" / "videos" / "clip.mp4")
    assert len(frames) == 13
    assert "13 frames in" in capsys.readouterr().out
    np.testing.assert_allclose(np.diff(times), np.diff(decode(source)[1]), atol=1e-3)
    corner = slice(H - 10, H - 4), slice(W - 20, W - 4)
    originals = decode(source)[0]
    expected = [pictures.overlay(f, brightness(f), TABLE)[corner].mean((0, 1)) for f in originals]
    found = [frame[corner].mean((0, 1)) for frame in frames]
    away = np.abs(np.array(found)[:, None] - np.array(expected)).max(-1)  # 6 from one to the next
    assert np.diag(away).max() < 5
    np.testing.assert_array_equal(away.argmin(axis=1), range(13))
    assert frames[0].shape[0] > H + 16
    context = stream.codec_context
    assert (context.pix_fmt, int(context.colorspace)) == ("yuv420p", 6)


def test_odd_sides_become_even(tmp_path):
    source = clip(tmp_path / "clip.mkv", count=2, height=41, width=131)
    assert go([source], tmp_path / "out") == []
    frames, _, _ = decode(tmp_path / "out" / "videos" / "clip.mp4")
    assert len(frames) == 2
    assert frames[0].shape[1] == 132 and frames[0].shape[0] % 2 == 0


def test_a_turned_video_is_upright(tmp_path):
    """A phone's video: the frames lie, and a matrix in the header says how to turn them."""
    source = clip(tmp_path / "clip.mp4", count=2)
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    one, minus, w = (v.to_bytes(4, "big", signed=True) for v in (1 << 16, -(1 << 16), 1 << 30))
    zero = bytes(4)
    content[at : at + 36] = b"".join((zero, one, zero, minus, zero, zero, zero, zero, w))
    source.write_bytes(content)  # clockwise by 90 degrees: top left comes to top right
    assert go([source], tmp_path / "out") == []
    frame = decode(tmp_path / "out" / "videos" / "clip.mp4")[0][0]
    white = np.array(TABLE.palette[3]) * 0.65 + 0.35 * 255
    assert np.abs(frame[4 : W // 2 - 4, H // 2 + 4 : H - 4].mean((0, 1)) - white).max() < 10
    assert np.abs(frame[4 : W // 2 - 4, 4 : H // 2 - 4].mean((0, 1)) - white).max() > 50


@pytest.mark.parametrize(
    "rest, message", [(5, "cannot be read or written after"), (0, "of its 40")]
)
def test_a_damaged_video_is_used_as_far_as_it_goes(rest, message, tmp_path):
    """Cut off in a packet, which fails to decode, and between two, which looks like an end."""
    source = clip(tmp_path / "clip.mp4", count=40)
    with pytest.importorskip("av").open(str(source)) as container:
        packet = [p for p in container.demux(video=0) if p.size][25]
    source.write_bytes(source.read_bytes()[: packet.pos + packet.size + rest])
    save(tmp_path / "good.png")
    problems = go([source, tmp_path / "good.png"], tmp_path / "out")
    frames, _, _ = decode(tmp_path / "out" / "videos" / "clip.mp4")
    assert 5 < len(frames) <= 26
    assert len(problems) == 1 and "clip.mp4: " in problems[0] and message in problems[0]
    assert f" {len(frames)} " in problems[0]
    assert (tmp_path / "out" / "ids" / "good.png").is_file()


def trimmed(source, path, start):
    """The packets of a video, the first of which an edit list hides: the others are decoded from them."""
    av = pytest.importorskip("av")
    options = {"movflags": "faststart"}
    with av.open(str(source)) as given, av.open(str(path), "w", options=options) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        packets = [p for p in given.demux(video=0) if p.dts is not None]
        first = sorted(p.pts for p in packets)[start]
        for packet in packets:
            packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, stream
            container.mux(packet)
    return path


def test_a_video_that_was_cut_without_encoding_is_whole(tmp_path):
    source = trimmed(clip(tmp_path / "long.mp4", count=20), tmp_path / "clip.mp4", start=8)
    with pytest.importorskip("av").open(str(source)) as container:
        assert container.streams.video[0].frames == 20
    assert go([source], tmp_path / "out") == []
    assert len(decode(tmp_path / "out" / "videos" / "clip.mp4")[0]) == 12


def test_a_cut_video_that_is_damaged_is_told(tmp_path):
    source = trimmed(clip(tmp_path / "long.mp4", count=40), tmp_path / "clip.mp4", start=8)
    with pytest.importorskip("av").open(str(source)) as container:
        packet = [p for p in container.demux(video=0) if p.size][25]
    source.write_bytes(source.read_bytes()[: packet.pos + packet.size])
    (problem,) = go([source], tmp_path / "out")
    assert re.search(r"clip.mp4: \d+ of its 32 frames could be decoded; the file is", problem)


def test_a_camera_ends_with_ctrl_c_and_leaves_a_video(tmp_path, monkeypatch, capsys):
    av = pytest.importorskip("av")
    source = clip(tmp_path / "clip.mkv", count=30)
    monkeypatch.setattr(video, "_open_camera", lambda number: av.open(str(source)))
    calls = []

    def until_the_tenth(frame):
        calls.append(1)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return brightness(frame)

    assert predict.predict(until_the_tenth, TABLE, ["3"], tmp_path / "out") == []
    assert "camera 3: ended by Ctrl-C after 9 frames" in capsys.readouterr().out  # one to warm up
    assert len(decode(tmp_path / "out" / "videos" / "camera3.mp4")[0]) == 9


def test_videos_end_after_max_frames(tmp_path):
    source = clip(tmp_path / "clip.mp4")
    assert go([source], tmp_path / "out", max_frames=4) == []
    assert len(decode(tmp_path / "out" / "videos" / "clip.mp4")[0]) == 4


def test_without_pyav_a_video_is_named_and_images_go_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    save(tmp_path / "good.png")
    problems = go([tmp_path / "clip.mp4", tmp_path / "good.png"], tmp_path / "out")
    assert len(problems) == 1 and "pip install 'rtseg_jax[video]'" in problems[0]
    assert (tmp_path / "out" / "ids" / "good.png").is_file()


# The program


def test_the_program_lists_bad_files_and_ends_with_1(tmp_path):
    save(tmp_path / "photos" / "a.png")
    save(tmp_path / "photos" / "b.png", PHOTO[1:])
    (tmp_path / "photos" / "bad.png").write_text("hello")
    tiny.write(tmp_path / "run")
    given = ["--workdir=~/run", "--output=~/out", "--size=32x64", "--multiple=32"]
    done = subprocess.run(
        [sys.executable, "-m", "rtseg_jax", "predict", *given, "--input=photos", "none.jpg"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=600,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert "fast_scnn, step 7: sees 32x64, computes in float32" in lines
    assert "3 images in frames of one size" in lines
    assert any(line.startswith("2 frames in ") for line in lines)
    assert lines[-1] == "2 inputs could not be used"
    assert "none.jpg: no such file" in lines[-3] and "bad.png: not an image" in lines[-2]
    assert read(tmp_path / "out" / "ids" / "a.png").shape == (H, W)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=nothing", "--output=out", "a.png"], "nothing: no such folder or file"),
        (["--workdir=nothing", "--output=out", "--write=id"], "choose of ids, masks, overlays"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "prepare_process", lambda: None)
    assert predict.PROGRAM.run(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said


def test_an_output_that_is_a_file_is_refused_first(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "taken").write_text("a file")

    def never(frame):
        raise AssertionError("computed")

    with pytest.raises(ValueError, match="taken is a file where a folder is to be; give another"):
        predict.predict(never, TABLE, [str(tmp_path / "a.png")], tmp_path / "taken")


def test_files_of_several_pages_and_of_unread_kinds_are_named(tmp_path, capsys):
    pages = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())]
    for name in ("moving.gif", "pages.tif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    save(tmp_path / "plain.jpg")
    (tmp_path / "phone.heic").write_bytes(b"x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    problems = go([tmp_path], tmp_path / "out")
    assert problems == [
        f"{tmp_path}/phone.heic: images of this kind are not read; save it as JPEG or PNG"
    ]
    said = capsys.readouterr().out
    for name in ("moving.gif", "pages.tif"):
        assert f"note: {tmp_path}/{name} has 2 pages, and the first one is taken" in said
    assert len(list((tmp_path / "out" / "ids").iterdir())) == 3


def test_a_legend_has_no_boxes(capsys, monkeypatch):
    """Names that no font can write are numbers; those that one on the system can, are written with it."""
    matplotlib = pytest.importorskip("matplotlib")
    for cached in (pictures._font_of, pictures._say_once, pictures.legend):
        cached.cache_clear()
    names = {"\u80cc\u666f": "class 0", "car": "class 1"}
    monkeypatch.setattr(pictures, "_FONTS", ())
    assert pictures.writable(names, 10)[0] == ["class 0", "car"]
    assert capsys.readouterr().out.startswith("no font here has all letters of \u80cc\u666f: ")
    pictures._font_of.cache_clear()
    monkeypatch.setattr(pictures, "_FONTS", (matplotlib.get_data_path(),))
    russian = "\u0437\u0434\u0430\u043d\u0438\u0435"
    written, font = pictures.writable({russian: "class 0", "car": "class 1"}, 10)
    assert written == [russian, "car"] and "DejaVu" in font.path
    pictures._font_of.cache_clear()
    assert not capsys.readouterr().out
