"""The demo's class maps are predict's, its page takes any upload, asks nobody but itself, and ends when it is told to."""

import base64
import importlib.util
import io
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import types
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from rtseg_jax.data import files, spec
from rtseg_jax.inference import network as networks
from rtseg_jax.programs import demo
from rtseg_jax.programs.predict import main as predict
from tests import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = spec.TABLES["cityscapes"]
H, W = 40, 56
RNG = np.random.default_rng(5)


def photo(height=H, width=W):
    """Smooth, as photos are: of noise, the classes of neighbouring pixels are a toss-up."""
    coarse = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8))
    return np.asarray(coarse.resize((width, height), Image.BILINEAR))


PHOTO = photo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_network):
    """A folder with two runs of one network with different weights."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("first", "second")):
        tiny.write(folder / name, tiny.config(), seed=seed)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Such a folder of Fast-SCNN, which the program in a process of its own knows."""
    folder = tmp_path_factory.mktemp("served")
    for seed, name in enumerate(("first", "second")):
        tiny.write(folder / name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def by_hand(served):
    """A function (run, frame) -> class map: what predict makes of it."""
    made = {name: networks.load(served / name) for name in ("first", "second")}
    return lambda name, frame: made[name](frame)


def keep(run, step, miou, like=7):
    """Adds a checkpoint of other figures and the same weights; it has no digests, as those of old versions."""
    target = run / "checkpoints" / str(step)
    shutil.copytree(run / "checkpoints" / str(like), target)
    (target / "digests.json").unlink()
    (target / "metrics" / "metrics").write_text(json.dumps({"miou": miou}))


def in_place_of_networks(monkeypatch):
    """predict.classifier() as classes by brightness; returns the arguments of its calls."""
    made = []

    def brightness(frame):
        return (frame.mean(axis=-1) // 64).astype(np.uint8)

    stand_in(monkeypatch, brightness, made)
    return made


def stand_in(monkeypatch, classes, made=None):
    """A function from frame to class map in place of every network; `made` gets what was asked for."""

    class Stand:
        name, table, sees = "fast_scnn", TABLE, networks.View(resized=(64, 128))

        def __call__(self, frame):
            return classes(frame)

        def seeing(self, size=None, **options):
            made is None or made[-1].update(size=size, **options)
            self.sees = networks.View(size=size if isinstance(size, tuple) else (64, 128))
            return self

    def load(workdir, which):
        made is None or made.append({"workdir": workdir, "which": which})
        return Stand()

    monkeypatch.setattr(networks, "load", load)


# Checkpoints


def test_checkpoints_are_told_apart_and_the_best_of_a_run_comes_first(folder, tmp_path):
    shutil.copytree(folder / "first", tmp_path / "a")
    shutil.copytree(folder / "second", tmp_path / "deep" / "b")
    keep(tmp_path / "a", 3, 0.75)
    keep(tmp_path / "a", 1200, -1.0)  # no valid pixel
    found = demo.kept([tmp_path / "a", tmp_path / "deep" / "b"])
    assert [(k.workdir.name, k.step) for k in found] == [("a", 3), ("a", 1200), ("a", 7), ("b", 7)]
    assert [k.label for k in found] == [
        "a · step 3, best · val mIoU 75.00 % · tiny",
        "a · step 1,200, latest · tiny",
        "a · step 7 · val mIoU 50.00 % · tiny",
        "deep/b · step 7, best, latest · val mIoU 50.00 % · tiny",
    ]
    for which, step in (("best", 3), ("latest", 1200)):
        assert networks.load(tmp_path / "a", which).step == step


def test_folders_without_checkpoints_are_refused(folder, tmp_path):
    run = folder / "first"
    with pytest.raises(ValueError, match="several different ones"):
        demo.kept([run, run])
    with pytest.raises(
        FileNotFoundError, match="holds no config.json; give the --workdir of a run"
    ):
        demo.kept([run, tmp_path])
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="train with that workdir first"):
        demo.kept([tmp_path])
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        demo.kept([tmp_path])


# Predictions


def test_class_maps_are_predicts_and_shares_are_of_all_pixels(folder):
    predict_frame = demo.predictor()
    for name in ("first", "second"):
        found = predict_frame(folder / name, 7, PHOTO)
        np.testing.assert_array_equal(found.ids, networks.load(folder / name)(PHOTO))
        assert found.preparing > 0 and found.milliseconds > 0 and 1 <= found.calls <= demo.CALLS
        assert (found.network, found.step, found.seen) == ("tiny", 7, (64, 128))
        shares = dict(found.shares)
        assert len(shares) > 1 and sum(shares.values()) == pytest.approx(1)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        for c, share in shares.items():
            assert share == pytest.approx((found.ids == c).mean())
    assert predict_frame(folder / "first", 7, PHOTO[::-1]).preparing is None


@pytest.mark.parametrize(
    ("options", "config", "frame", "seen"),
    [
        ({}, {}, (40, 56), (64, 128)),  # as evaluated: input.size
        ({"size": (32, 64)}, {}, (40, 56), (32, 64)),
        ({"size": "own"}, {}, (1, 1), (32, 32)),
        ({"size": "own", "max_pixels": 1575}, {}, (90, 70), (45, 35)),
        ({"size": "own"}, {"multiple": 32}, (40, 56), (64, 64)),
        ({}, {"size": (48, 96)}, (40, 56), (48, 96)),
    ],
)
def test_what_it_says_the_network_saw_is_what_predict_shows_it(
    folder, tmp_path, monkeypatch, options, config, frame, seen
):
    run = shutil.copytree(folder / "first", tmp_path / "run")
    written = json.loads((run / "config.json").read_text())
    written["eval"].update(config)
    (run / "config.json").write_text(json.dumps(written))
    shown = []

    def classifier(model, variables, *, seen, **_):
        def classify(frames):
            shown.append(seen(frames.shape[1:3]) or frames.shape[1:3])
            return np.zeros(frames.shape[:3], np.uint8)

        return classify

    monkeypatch.setattr(networks, "classifier", classifier)
    found = demo.predictor(**options)(run, 7, photo(*frame), 1)
    assert found.ids.shape == frame and found.seen == seen
    assert set(shown) == {seen}


def test_few_programs_are_kept(monkeypatch, folder):
    made = in_place_of_networks(monkeypatch)
    predict_frame = demo.predictor()
    sizes = [(40 + i, 56) for i in range(demo.KEPT + 1)]
    for size in sizes:
        assert predict_frame(folder / "first", 7, photo(*size)).preparing is not None
    assert predict_frame(folder / "first", 7, photo(*sizes[-1])).preparing is None
    assert predict_frame(folder / "first", 7, photo(*sizes[0])).preparing is not None
    assert predict_frame(folder / "second", 7, photo(*sizes[0])).preparing is not None
    assert len(made) == demo.KEPT + 3
    assert made[-1]["workdir"] == folder / "second" and made[-1]["which"] == "7"


def test_calls_take_turns(monkeypatch, folder):
    inside, most = [0], [0]

    def classes(frame):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return (frame[..., 0] // 64).astype(np.uint8)

    stand_in(monkeypatch, classes)
    predict_frame = demo.predictor()
    frames = [photo(40 + i % 3, 50) for i in range(6)]
    found = {}

    def ask(i):
        found[i] = predict_frame(folder / "first", 7, frames[i], 2)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(found[i].ids, frame[..., 0] // 64)


def test_slow_networks_are_called_less_often(monkeypatch, folder):
    monkeypatch.setattr(demo, "SECONDS", 0.05)

    def classes(frame):
        time.sleep(0.03)
        return np.zeros(frame.shape[:2], np.uint8)

    stand_in(monkeypatch, classes)
    found = demo.predictor()(folder / "first", 7, PHOTO)
    assert found.calls == 2 and found.milliseconds >= 30


# Pieces of the page


def prediction(ids, table=TABLE, **facts):
    given = {"network": "net", "step": 1200, "seen": (64, 128), "milliseconds": 12.345, "calls": 5}
    return demo.Prediction(ids=ids, table=table, **given | {"preparing": None} | facts)


def pictures(text):
    uris = re.findall(r'src="data:image/\w+;base64,([^"]*)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(uri))) for uri in uris]


def test_the_overlay_is_the_photo_and_the_class_map():
    ids = (PHOTO.mean(axis=-1) // 64).astype(np.uint8)
    seen, classes = pictures(demo.overlaid(PHOTO, prediction(ids)))
    assert np.abs(np.asarray(seen, int) - PHOTO).mean() < 5
    np.testing.assert_array_equal(classes, ids)
    np.testing.assert_array_equal(classes.convert("RGB"), TABLE.colorize(ids))
    large = np.zeros((20, 3 * demo.SHOWN_SIDE), np.uint8)
    for picture in pictures(demo.overlaid(np.dstack([large] * 3), prediction(large))):
        assert picture.size == (demo.SHOWN_SIDE, 7)


def test_the_legend_is_sorted_and_escaped():
    table = spec.ClassTable("t", ("<b>", "&", "c", "d"), tuple((c, 0, 9) for c in range(4)))
    ids = np.repeat(np.uint8([1, 3, 0]), [7000, 2999, 1]).reshape(100, 100)
    text = demo.legend(prediction(ids, table))
    names = re.findall(r"</i>([^<]*)</th>", text)
    assert names == ["&amp;", "d", "&lt;b&gt;"]
    assert re.findall(r"<td>([^<]*)</td>", text) == ["70.0 %", "30.0 %", "&lt; 0.1 %"]
    assert re.findall(r'row"><i style="background:([^"]*)"', text) == [
        "#010009",
        "#030009",
        "#000009",
    ]
    assert "<b>" not in demo.overlaid(np.zeros((100, 100, 3), np.uint8), prediction(ids, table))


def test_the_facts_tell_compiling_apart():
    ids = np.zeros((40, 56), np.uint8)
    text = re.sub("<[^>]*>", "|", demo.facts(prediction(ids)))
    for part in ("12.3 ms", f"median of 5 calls, {jax.devices()[0].device_kind}", "step 1,200"):
        assert f"|{part}|" in text
    assert "|64x128|" in text and "|of a frame of 40x56|" in text and "compiled" not in text
    text = re.sub("<[^>]*>", "|", demo.facts(prediction(ids, calls=1, preparing=2.04)))
    assert "|compiled in|" in text and "|2.0 s|" in text and "|one call, " in text


def test_examples_are_of_the_first_evaluation_set_that_can_be_read(folder, tmp_path):
    lost = shutil.copytree(folder / "first", tmp_path / "lost")
    config = json.loads((lost / "config.json").read_text())
    config["input"].update(dataset="camvid", root=str(tmp_path / "nowhere"))
    (lost / "config.json").write_text(json.dumps(config))
    assert demo.examples([lost], tmp_path) == ([], "")
    paths, of = demo.examples([lost, folder / "second"], tmp_path)
    assert of == "streets val" and len(paths) > 1
    assert all(files.read_frame(pathlib.Path(path)).shape == (64, 128, 3) for path in paths)


# The program


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 80), ("no address", None)])
def test_what_cannot_be_listened_on_is_one_line(monkeypatch, host, port):
    def launch(**options):
        assert (options["server_name"], options["server_port"]) == ("127.0.0.1", 80)
        raise OSError("Cannot find empty port in range: 80-80.")

    blocks = types.SimpleNamespace(launch=launch, close=lambda **_: None)
    themes = types.SimpleNamespace(Default=lambda **_: None)
    monkeypatch.setattr(demo, "optional", lambda *_: types.SimpleNamespace(themes=themes))
    monkeypatch.setattr(demo, "page", lambda answers: blocks)
    for name in ("GRADIO_TEMP_DIR", "NO_PROXY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with pytest.raises(ValueError, match=f"{host}, port .* cannot be listened on .* give another"):
        demo.serve([pathlib.Path("run")], host=host, port=port)


def test_without_gradio_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_TEMP_DIR", "NO_PROXY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with pytest.raises(ValueError, match=r"pip install 'rtseg_jax\[demo\]'"):
        demo.serve([folder / "first"])


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_0(number, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)

    def serve(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(10)
        raise AssertionError("not ended")

    monkeypatch.setattr(demo, "serve", serve)
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        demo.PROGRAM(["--workdir=a"])
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert codes == [0] and capsys.readouterr().out == "ended\n"


WATCHED = """
import os, sys

def watch(event, given):
    if event in ("socket.connect", "socket.sendto") and isinstance(given[1], tuple):
        address = given[1][0]
    elif event == "socket.getaddrinfo":
        address = given[0]
    else:
        return
    with open(os.environ["ASKED"], "a") as file:
        print(address, file=file)

sys.addaudithook(watch)
"""


class Server:
    """The program in a process whose every address that it asks for is noted."""

    def __init__(self, place, *runs):
        (place / "watch").mkdir()
        (place / "tmp").mkdir()
        (place / "watch" / "sitecustomize.py").write_text(WATCHED)
        self.place = place
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(place / "watch"), str(ROOT))),
            "PYTHONUNBUFFERED": "1",
            "ASKED": str(place / "asked"),
            "TMPDIR": str(place / "tmp"),
            "HTTP_PROXY": "http://127.0.0.1:9",  # nothing is there
            "GRADIO_SHARE": "True",
        }
        given = [f"--workdir={run}" for run in runs]
        with open(place / "log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rtseg_jax", "demo", "--port=0", *given],
                stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=place,
            )  # fmt: skip
        self.url = self.wait(r"(http\S+) shows it")[1]

    @property
    def said(self):
        return (self.place / "log").read_text()

    def wait(self, pattern):
        for _ in range(600):
            if found := re.search(pattern, self.said):
                return found
            assert self.process.poll() is None, self.said
            time.sleep(0.1)
        raise AssertionError(f"nothing like {pattern} in 60 s: {self.said}")

    def end(self, number):
        """Sends a signal; the exit code, after a look at what is left."""
        self.process.send_signal(number)
        code = self.process.wait(timeout=30)
        assert self.said.splitlines()[-1] == "ended", self.said
        assert "Traceback" not in self.said
        assert list((self.place / "tmp").glob("rtseg_demo_*")) == []
        asked = set((self.place / "asked").read_text().split())
        assert asked <= {"127.0.0.1", "localhost", "None"}, asked
        return code


@pytest.fixture(scope="module")
def server(browser, served, tmp_path_factory):
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs gradio")
    place = tmp_path_factory.mktemp("server")
    second = shutil.copytree(served / "second", place / "runs" / "second")
    started = Server(place, shutil.copytree(served / "first", place / "runs" / "first"), second)
    yield started
    started.process.kill()
    started.process.wait()


# In a browser


@pytest.fixture
def visit(server, browser):
    """Opens the page; afterwards there was no error in it, and nothing was asked of anybody else."""
    contexts, said, asked = [], [], []

    def visit(width=1280):
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 844}, permissions=["camera"])
        )
        page = contexts[-1].new_page()
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        page.locator("#download").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert [u for u in asked if not u.startswith((server.url, "data:", "blob:"))] == []


def upload(page, path):
    """What the page shows of a file, as HTML."""
    if (remove := page.get_by_label("Remove Image")).count():
        remove.click()
        page.locator("#view .hint").wait_for()
    page.locator("#image input[type=file]").set_input_files(path)
    return shown(page)


def shown(page, other_than=""):
    view = page.locator("#view .prose, #view .html-container").first
    for _ in range(600):
        text = view.inner_html()
        if ("overlaid" in text or "problem" in text) and text != other_than:
            return text
        page.wait_for_timeout(50)
    raise AssertionError(text)


def downloaded(page):
    with page.expect_download() as download:
        page.locator("#download").click()
    name = download.value.suggested_filename
    return name, pathlib.Path(download.value.path()).read_bytes()


def choose(page, label):
    page.locator("#choice input").click()
    page.get_by_role("option").filter(has_text=label).click()


def save(path, array=PHOTO, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_an_upload_is_overlaid_and_its_class_map_is_predicts(visit, served, tmp_path):
    page = visit()
    path = save(tmp_path / "street ä.png")
    before = upload(page, path)
    for name in ("first", "second"):
        if name == "second":
            choose(page, "second")
            assert shown(page, before) != before
        network = networks.load(served / name)
        assert (
            predict.predict(network, network.table, [str(path)], tmp_path / name, kinds=("ids",))
            == []
        )
        expected = tmp_path / name / "ids" / "street ä.png"
        assert downloaded(page) == ("street ä_ids.png", expected.read_bytes())
        ids = np.asarray(Image.open(expected))
        np.testing.assert_array_equal(pictures(page.locator("#view").inner_html())[1], ids)
        order = sorted(np.unique(ids).tolist(), key=lambda c: (-(ids == c).sum(), c))
        rows = page.locator("#view .legend tr").all_inner_texts()
        assert [row.split("\t")[0].strip() for row in rows] == [TABLE.class_names[c] for c in order]
        assert "compiled in" in page.locator("#view .facts").inner_text()
    assert (tmp_path / "first/ids/street ä.png").read_bytes() != expected.read_bytes()
    opacity = "getComputedStyle(document.querySelector('.overlaid .classes')).opacity"
    assert page.evaluate(opacity) == "0.65"
    page.get_by_role("spinbutton").fill("20")
    page.wait_for_function(f"{opacity} == '0.2'")


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    save(path, exif=exif, quality=100)


def bomb(path):
    """Its header tells of 90 million pixels, and there are none."""
    content = bytearray(save(path).read_bytes())
    content[16:24] = struct.pack(">II", 10000, 9000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


GREY = PHOTO[..., 0]
UPLOADS = {
    "text.png": (lambda p: p.write_text("hello"), "not an image"),
    "empty.png": (lambda p: p.write_bytes(b""), "empty"),
    "<b>&.png": (lambda p: p.write_text("hello"), "not an image"),
    "cut.png": (lambda p: p.write_bytes(save(p).read_bytes()[:300]), "truncated or corrupt"),
    "16.png": (lambda p: save(p, GREY.astype(np.uint16)), "a 16-bit image"),
    "cmyk.jpg": (lambda p: Image.fromarray(PHOTO).convert("CMYK").save(p), "of mode CMYK"),
    "bomb.png": (bomb, "more than 89 million pixels"),
    "drawing.svg": (lambda p: p.write_text("<svg/>"), "not an image"),
    "1x1.png": (lambda p: save(p, PHOTO[:1, :1]), (1, 1)),
    "alpha.png": (lambda p: save(p, np.dstack([PHOTO, GREY])), (H, W)),
    "grey.png": (lambda p: save(p, GREY), (H, W)),
    "palette.png": (lambda p: Image.fromarray(PHOTO).quantize(16).save(p), (H, W)),
    "turned.jpg": (turned, (W, H)),
}


def test_any_upload_gives_a_picture_or_one_line(visit, tmp_path, by_hand):
    page = visit()
    for name, (make, expected) in UPLOADS.items():
        make(tmp_path / name)
        text = upload(page, tmp_path / name)
        if isinstance(expected, str):
            said = page.locator("#view").inner_text().strip()
            assert "overlaid" not in text and page.locator("#download").is_disabled(), name
            assert expected in said and "\n" not in said and "/" not in said, (name, said)
            # Gradio keeps some of the characters of a name, one version more than another.
            assert re.sub("[<>&]", "", said).startswith(re.sub("[<>&]", "", name) + ": "), said
        else:
            ids = np.asarray(Image.open(io.BytesIO(downloaded(page)[1])))
            assert ids.shape == expected, name
            if name in ("alpha.png", "turned.jpg"):
                frame = files.read_frame(tmp_path / name)
                np.testing.assert_array_equal(ids, by_hand("first", frame), name)


def test_two_users_get_their_own(visit, tmp_path, by_hand):
    frames = {f"{i}.png": photo() for i in range(2)}
    pages = {name: visit() for name in frames}
    for name, frame in frames.items():
        pages[name].locator("#image input[type=file]").set_input_files(save(tmp_path / name, frame))
    for name, frame in frames.items():
        shown(pages[name])
        ids = np.asarray(Image.open(io.BytesIO(downloaded(pages[name])[1])))
        np.testing.assert_array_equal(ids, by_hand("first", frame))


WIDEST = """Math.max(document.documentElement.scrollWidth,
    ...[...document.querySelectorAll('main *')].map(e => e.getBoundingClientRect().right))"""


def test_a_narrow_page_does_not_scroll_sideways(visit, tmp_path):
    page = visit(width=390)
    assert page.evaluate(WIDEST) <= 390
    page.locator(".gallery-item").first.click()
    assert "overlaid" in shown(page)
    assert page.evaluate(WIDEST) <= 390
    box = page.locator("#view .overlaid").bounding_box()
    assert box["x"] >= 0 and 300 < box["width"] <= 390
    path = tmp_path / f"{'long' * 40}.png"
    path.write_text("")
    assert "problem" in upload(page, path)
    assert page.evaluate(WIDEST) <= 390


def test_a_checkpoint_that_is_kept_meanwhile_can_be_chosen(visit, server, tmp_path):
    keep(server.place / "runs" / "second", 9, 0.5)
    page = visit()
    before = upload(page, save(tmp_path / "a.png"))
    choose(page, "step 9")
    assert "fast_scnn" in shown(page, before)
    assert "step 9" in page.locator("#view .facts").inner_text()


def test_a_camera_is_overlaid_live(visit):
    page = visit()
    page.get_by_role("tab", name="Live camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.locator("#camera").get_by_text("Record").click()
    seen = set()
    for _ in itertools.takewhile(lambda _: len(seen) < 3, range(20)):
        seen.add(shown(page, *list(seen)[-1:]))
    assert len(seen) == 3 and not any("problem" in text for text in seen)
    assert "of a frame of 480x640" in page.locator("#view .facts").inner_text()
    page.locator("#camera").get_by_text("Stop").click()


def test_it_ends_with_0_while_it_compiles(server, browser, tmp_path):
    page = browser.new_page()
    page.goto(server.url)
    before = server.said.count("fast_scnn, step")
    path = save(tmp_path / "new.png", photo(333, 222))
    page.locator("#image input[type=file]").set_input_files(path)
    server.wait(rf"(?:fast_scnn, step[\s\S]*){{{before + 1}}}")
    page.close()
    assert server.end(signal.SIGTERM) == 0
