"""A report tells what evaluation.json, metrics.jsonl and the papers say, escaped, in one file that a browser renders."""

import base64
import dataclasses
import html.parser
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX import SummaryWriter

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.data import spec
from rtseg_jax.data.sets import folder
from rtseg_jax.inference import evaluator, metrics, pictures
from rtseg_jax.inference import network as networks
from rtseg_jax.inference import program as infer
from rtseg_jax.programs.evaluate import main as evaluate
from rtseg_jax.programs.report import charts, examples, runs
from rtseg_jax.programs.report import main as report
from rtseg_jax.train import logs
from tests import tiny_run

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOID = ("meta", "img", "input", "wbr")


def confusion_of(truth, classes, num_classes):
    truth, classes = jnp.asarray(truth[None], jnp.int32), jnp.asarray(classes[None])
    return np.asarray(metrics.confusion_matrix(truth, classes, num_classes))


class Page(html.parser.HTMLParser):
    """The elements of a page as (tag, attributes, own text and that of all below); refuses unbalanced tags."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def all(self, tag, kind=None):
        """(attributes, text) of the elements of a tag and a class."""
        return [
            (attributes, "".join(text).strip())
            for found, attributes, text in self.elements
            if found == tag and (kind is None or kind in attributes.get("class", "").split())
        ]

    @property
    def tiles(self):
        texts = [(tag, text) for tag, _, text in self.elements if tag in ("dt", "dd")]
        names = ["".join(text) for tag, text in texts if tag == "dt"]
        figures = ["".join(text[:1]) for tag, text in texts if tag == "dd"]
        return dict(zip(names, figures, strict=True))

    @property
    def notes(self):
        return [text for _, text in self.all("p", "note")]

    def table(self, kind):
        """The rows of the first table of a class: lists of texts, with their classes where asked for."""
        return [[text for _, text in row] for row in self.cells(kind)]

    def cells(self, kind):
        rows, inside = [], False
        for tag, attributes, text in self.elements:
            if tag == "table":
                if rows:
                    break
                inside = kind in attributes.get("class", "").split()
            elif inside and tag == "tr":
                rows.append([])
            elif inside and tag in ("td", "th"):
                rows[-1].append((attributes.get("class", ""), "".join(text).strip()))
        return rows

    @property
    def charts(self):
        """{title: {name of the curve: points}}."""
        titles = [text.partition(" bold:")[0] for _, text in self.all("figcaption")]
        drawn = [json.loads(a["data-chart"]) for a, _ in self.all("svg") if "data-chart" in a]
        curves = [{c["name"]: c["points"] for c in chart["curves"]} for chart in drawn]
        return dict(zip(titles, curves, strict=False))

    @property
    def matrix(self):
        (found,) = (json.loads(a["data-matrix"]) for a, _ in self.all("svg") if "data-matrix" in a)
        return found


def written(workdirs, **options):
    paths = [workdirs] if isinstance(workdirs, pathlib.Path) else list(workdirs)
    return Page(report.write_report(paths, **options).read_text())


def make(
    workdir, name="camvid_best:eacnet_erfnet,short", scores=(), seed=0, table=None, **overrides
):
    """The folder of a run without a checkpoint, as training leaves it; scores are facts of its evaluation, or None."""
    config = settings.load(name)
    with config.unlocked():
        config.input.update(overrides)
    workdir.mkdir(parents=True)
    settings.write(config, workdir)
    table = table or data.class_table(config.input.dataset)
    folder.write_classes(table, workdir / "classes.json")
    (workdir / "params.txt").write_text("a/kernel (3, 3, 4, 8)\na/bias (8,)\nalpha ()\n")
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in range(10, 101, 10):
            file.write(json.dumps({"step": step, "loss": 3 / step + seed, "learning_rate": 0.1}))
            file.write("\n")
        file.write('{"step": 100, "miou": 0.625, "pixel_accuracy": NaN}\n{"step": 110, "lo')
    if scores is not None:
        rng = np.random.default_rng(seed)
        k = table.num_classes
        confusion = rng.integers(0, 50, (k, k)) + np.diag(rng.integers(100, 900, k))
        confusion[-1] = confusion[:, -1] = 0  # a class that is nowhere
        split = spec.Dataset(table, "val", ("a", "b"), None, load=len)
        facts = {"model": config.model.name, "step": 100, **dict(scores)}
        evaluator.write_report(workdir / "evaluation.json", confusion, split, **facts)
    return workdir


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def percent(value):
    return "–" if value is None else f"{100 * value:.2f}"


# The page of a run


def test_every_figure_is_that_of_the_files(tmp_path):
    run = make(
        tmp_path / "run",
        scores={"scales": (0.5, 1.0), "flip": True, "size": (360, 480)},
        annotation="strict",
    )
    page = written(run)
    given = json.loads((run / "evaluation.json").read_text())
    assert page.tiles == {
        "mIoU, %": percent(given["miou"]),
        "pixel accuracy, %": percent(given["pixel_accuracy"]),
        "mean accuracy, %": percent(given["mean_accuracy"]),
        "frequency-weighted IoU, %": percent(given["frequency_weighted_iou"]),
        "parameters": "297",
        "steps": "100",
        "training time": "–",
    }
    assert "over 10 of 11 classes" in page.all("dd")[0][1]
    pixels = np.sum(given["confusion"], axis=1)
    expected = [
        [name, "", *map(percent, (iou, given["accuracy"][name], count / pixels.sum()))]
        for (name, iou), count in zip(given["iou"].items(), pixels, strict=True)
    ]
    assert page.table("classes")[1:] == expected
    assert expected[-1][2] == "–"
    assert page.matrix["counts"] == given["confusion"]
    assert page.matrix["names"] == list(given["iou"])
    assert page.charts["Training loss"] == {
        "run": [[s, float(f"{3 / s:.6g}")] for s in range(10, 101, 10)]
    }
    assert page.charts["mIoU on val, %"] == {"run": [[100, 62.5]]}
    assert "Pixel accuracy on val, %" not in page.charts
    assert page.all("p", "about")[0][1] == (
        "run · CamVid val · 2 images · strict labels · seen at 360x480 · scales 0.5, 1 · mirrored too"
    )


def test_the_official_figures_stand_beside_ours(tmp_path):
    official = {"miou": 0.71, "iiou": 0.42, "category_iou": None, "category_iiou": 0.1}
    page = written(make(tmp_path / "run", "eacnet:erfnet,cityscapes", {"official": official}))
    tiles = [text for _, text in page.all("dd") if "cityscapesscripts" in text]
    assert [text.partition("by ")[0] for text in tiles] == ["71.00", "42.00", "–"]


def test_bars_and_shades_have_the_colours_and_lengths_of_their_classes(tmp_path):
    run = make(tmp_path / "run")
    page = written(run)
    given = json.loads((run / "evaluation.json").read_text())
    styles = [a["style"] for a, _ in page.all("i") if a.get("style", "").startswith("width")]
    for style, iou, color in zip(
        styles, given["iou"].values(), spec.TABLES["camvid"].palette, strict=True
    ):
        assert style == f"width:{100 * (iou or 0):.2f}%;background:#{bytes(color).hex()}"
    confusion = np.array(given["confusion"])
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    matrix, found = page.matrix, np.zeros_like(shares)
    for a, _ in page.all("rect", "right") + page.all("rect", "wrong"):
        i, j = ((int(a[side]) - matrix["start"]) // matrix["cell"] for side in "yx")
        assert (a["class"] == "right") == (i == j)
        found[i, j] = float(a["fill-opacity"]) ** 2
    np.testing.assert_allclose(found, shares, atol=2e-3)
    i, j = np.unravel_index(np.argmax(shares * (1 - np.eye(11))), shares.shape)
    names = list(given["iou"])
    said = f"{100 * shares[i, j]:.1f} % of {names[i]} is taken for {names[j]}"
    assert page.all("ol", "mistaken")[0][1].startswith(said)


def test_the_config_is_there_whole(tmp_path):
    page = written(make(tmp_path / "run"))
    config = settings.read(tmp_path / "run")
    shown = dict(page.table("config"))
    assert shown["optim.lr"] == "0.001" and shown["augment.crop"] == "[360, 480]"
    assert set(shown) == {k for k in settings.keys(config) if not _is_tree(config, k)}


def _is_tree(config, key):
    for part in key.split("."):
        config = config[part]
    return hasattr(config, "items")


def test_nothing_is_fetched(tmp_path):
    page = written(make(tmp_path / "run"))
    links = [a[k] for _, a, _ in page.elements for k in ("src", "href", "data") if k in a]
    assert all(link.startswith("data:") for link in links)
    assert {tag for tag, _, _ in page.elements}.isdisjoint({"link", "iframe", "object", "base"})
    policy = [a["content"] for a, _ in page.all("meta") if "http-equiv" in a]
    assert policy and policy[0].startswith("default-src 'none';")


def test_time_is_summed_over_the_starts_of_a_run(tmp_path):
    run = make(tmp_path / "run")
    picture = np.zeros((64, 64, 3), np.uint8)
    for i, seconds in enumerate((3600, 1800)):
        board = SummaryWriter(str(run), filename_suffix=str(i))
        board.add_image("a", picture, 1, dataformats="HWC", walltime=time.time() + 60)
        board.add_scalar("loss", 1.0, 2, walltime=time.time() + seconds)
        board.close()
    assert runs.read(run).seconds == pytest.approx(5400, abs=20)
    assert written(run).tiles["training time"] == "1 h 30 min"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "–"), (12.4, "12 s"), (90.0, "2 min"), (3580.0, "1 h 00 min")]
)
def test_durations(seconds, shown):
    assert report._duration(seconds) == shown


def test_curves_are_those_of_a_real_log(tmp_path):
    run = make(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    writers = logs.Writers(run, 0)
    for step in range(1, 2001):
        writers.scalars(step, loss=step / 7, gradient_norm=1.0, aux=0.5)
    writers.close()
    page = written(run)
    points = page.charts["Training loss"]["run"]
    assert 250 <= len(points) <= charts.MAX_POINTS and points[-1][0] == 2000
    assert all(value == float(f"{step / 7:.6g}") for step, value in points)
    assert "bold: mean of the last 100 logged" in page.all("figcaption")[0][1]
    assert set(page.charts) == {"Training loss", "Gradient norm", "aux"}
    assert "More curves" in page.all("summary")[0][1]


# What the papers print


@pytest.mark.parametrize(
    ("name", "split", "rows", "classes"),
    [
        ("eacnet:erfnet,cityscapes", "val", ["73.74", "73.7", "72.4", "72.4"], "EACNet, Table 2, val"),
        ("eacnet:erfnet,cityscapes", "test", ["72.4", "72.4", "73.74", "73.7"], "EACNet, Table 2, test"),
        ("eacnet:erfnet,cityscapes,non_local", "val", ["73.94", "73.9", "71.0"], "EACNet, Table 2, val"),
        ("erfnet:base,cityscapes", "val", ["72.46", "72.5", "68.0", "68.0", "68.0"], "EACNet, Table 2, val"),
        ("camvid_best:eacnet_erfnet,short", "val", ["69.3"], ""),
        ("camvid_best:eacnet_erfnet_nonlocal,short", "val", [], ""),
        ("carnet:resnet101,nyuv2", "test", ["45.3"], ""),
        ("affnet:cityscapes,ewa", "val", ["67.28"], ""),
        ("asap:cityscapes", "val", ["73.1"], ""),
        ("asap:cityscapes,ln", "val", [], ""),
        ("asap:streets", "val", [], ""),  # they have Cityscapes' classes
    ],
)  # fmt: skip
def test_the_papers_rows_of_a_network(tmp_path, name, split, rows, classes):
    run = runs.read(make(tmp_path / "run", name, scores={}))
    run.evaluation["split"] = split
    assert [str(record.value) for record in runs.printed(run)] == rows
    place, figures = runs.printed_classes(run)
    assert place == classes and len(figures) == (19 if classes else 0)


def test_a_difference_is_of_one_split(tmp_path):
    run = make(tmp_path / "run", "eacnet:erfnet,cityscapes")
    miou = 100 * json.loads((run / "evaluation.json").read_text())["miou"]
    heads, *rows = written(run).table("papers")
    assert heads[:4] == ["printed in", "mIoU, %", "difference", "split"]
    assert rows[0][:4] == ["EACNet, Table 1", "73.74", f"{miou - 73.74:+.2f}", "val"]
    assert rows[-1][1:4] == ["72.4", "", "test"]
    for name, options in (("split", {}), ("part", {"num_eval": 2, "dataset": "cityscapes"})):
        other = make(tmp_path / name, "camvid_best:eacnet_erfnet,short", **options)
        assert "difference" not in written(other).table("papers")[0]


def test_ticks_are_the_papers_figures(tmp_path):
    page = written(make(tmp_path / "run", "eacnet:erfnet,cityscapes"))
    ticks = [a["style"] for a, _ in page.all("b") if "style" in a]
    figures = [row[3] for row in page.table("classes")[1:]]
    assert figures[:3] == ["97.7", "82.6", "91.4"]
    assert ticks == [f"left:{figure}%" for figure in figures]
    assert any("EACNet, Table 2, val prints; the mean of these is 73.75" in n for n in page.notes)


# Pictures


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The folder of a run with a checkpoint and seven images to evaluate, and what is loaded from it."""
    run = tiny_run.write(tmp_path_factory.mktemp("runs") / "tiny", input__num_eval=7)
    (run / "metrics.jsonl").write_text('{"step": 7, "loss": 1.5, "miou": 0.5}\n')
    return run, networks.load_run(run)


@pytest.fixture(scope="module")
def network(loaded):
    config, model, variables, _ = loaded[1]
    given = {"mean": config.augment.mean, "std": config.augment.std}
    return infer.freeze(model, variables, (1, 64, 128), **given)


@pytest.fixture(scope="module")
def predicted(loaded, network):
    """name -> (mIoU of the image, photo, prediction, truth)."""
    dataset = data.load(**settings.dataset_arguments(loaded[1][0], "val"))
    found = {}
    for name, (photo, truth) in zip(dataset.names, map(dataset.load, range(7)), strict=True):
        classes = np.asarray(network(photo[None]))[0]
        ious = []
        for c in range(19):
            union = ((classes == c) | (truth == c)) & (truth != 255)
            if union.any():
                ious.append(((classes == c) & (truth == c)).sum() / union.sum())
        found[name] = np.mean(ious), photo, classes, truth
    return found


@pytest.fixture(scope="module")
def trained(loaded, predicted):
    """The folder with its evaluation."""
    run, (config, _, _, step) = loaded
    confusion = np.zeros((19, 19), np.int64)
    for _, _, classes, truth in predicted.values():
        np.add.at(confusion, (truth[truth != 255], classes[truth != 255]), 1)
    dataset = data.load(**settings.dataset_arguments(config, "val"))
    facts = {"model": config.model.name, "step": step}
    evaluator.write_report(run / "evaluation.json", confusion, dataset, **facts)
    return run


@pytest.fixture(scope="module")
def compiled(loaded, network):
    """Functions in place of those that load the run and compile its network, which has been done once."""
    return {"load_run": lambda *_: loaded[1], "classifier": lambda *_, **options: network}


@pytest.fixture
def quick(compiled, monkeypatch):
    for name, function in compiled.items():
        monkeypatch.setattr(evaluate, name, function)


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


@pytest.mark.parametrize("images", [1, 4, 20])
def test_the_best_and_the_worst_images(trained, predicted, quick, tmp_path, images):
    page = written(trained, images=images, output=tmp_path / "page.html")
    ranking = sorted(predicted, key=lambda name: -predicted[name][0])
    count = min(images, 7)
    best = -(-count // 2)
    names = ranking[:best] + ranking[7 - (count - best) :]
    ranks = [f"best {i + 1}" for i in range(best)]
    ranks += [f"worst {i}" for i in range(count - best, 0, -1)]
    captions = [text for _, text in page.all("figcaption") if "mIoU " in text and "on" not in text]
    assert captions == [
        f"{rank} {name} mIoU {100 * predicted[name][0]:.2f} %"
        for rank, name in zip(ranks, names, strict=True)
    ]
    assert len(page.all("input")) == count


def test_a_picture_is_photo_prediction_and_truth(trained, predicted, quick, tmp_path):
    page = written(trained, images=1, output=tmp_path / "page.html")
    _, photo, classes, truth = max(predicted.values(), key=lambda found: found[0])
    layers = {a["class"]: decoded(a["src"]) for a, _ in page.all("img")}
    assert list(layers) == ["photo", "prediction", "truth"]
    table = spec.TABLES["cityscapes"]
    for name, ids in (("prediction", classes), ("truth", truth)):
        np.testing.assert_array_equal(layers[name].convert("RGB"), table.colorize(ids))
    assert np.abs(np.asarray(layers["photo"], int) - photo).mean() < 6  # JPEG
    shown = page.all("ul", "chips")[0][1]
    iou = metrics.scores(confusion_of(truth, classes, 19)).iou
    for name, value in zip(table.class_names, iou, strict=True):
        assert (f"{name} {100 * value:.1f}" in shown) == np.isfinite(value)


def test_large_pictures_are_embedded_smaller(trained, predicted, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_SIDE", 50)
    page = written(trained, images=1, output=tmp_path / "page.html")
    layers = {a["class"]: decoded(a["src"]) for a, _ in page.all("img")}
    assert [layer.size for layer in layers.values()] == [(50, 25)] * 3
    assert [(a["width"], a["height"]) for a, _ in page.all("img")] == [("50", "25")] * 3
    _, _, classes, truth = max(predicted.values(), key=lambda found: found[0])
    for name, ids in (("prediction", classes), ("truth", truth)):  # no class between two others
        colors = spec.TABLES["cityscapes"].colorize(ids).reshape(-1, 3).tolist()
        shown = np.asarray(layers[name].convert("RGB")).reshape(-1, 3).tolist()
        assert {*map(tuple, shown)} <= {*map(tuple, colors)}


def test_pictures_that_do_not_fit_the_evaluation_are_told(trained, quick, tmp_path):
    given = json.loads((trained / "evaluation.json").read_text())
    path = tmp_path / "evaluation.json"
    for off, told in ((0.004, False), (0.1, True)):
        path.write_text(json.dumps({**given, "pixel_accuracy": given["pixel_accuracy"] + off}))
        page = written(trained, images=1, output=tmp_path / "page.html", evaluation=str(path))
        assert any("do not fit this evaluation" in note for note in page.notes) == told


def test_pictures_are_of_the_evaluated_scales(trained, tmp_path):
    output = tmp_path / "small"
    options = {"split": "val", "which": "best", "batch_size": 1, "overlays": 0}
    evaluate.evaluate_run(trained, output=output, size=(32, 64), flip=True, **options)
    given = json.loads((output / "evaluation.json").read_text())
    run = runs.read(trained, str(output))
    pictures, note = examples.best_and_worst(run, 7)
    total = sum(confusion_of(p.truth, p.prediction, 19) for p in pictures)
    np.testing.assert_array_equal(total, given["confusion"])
    assert note == ""


def test_without_the_data_the_page_says_so(tmp_path, capsys):
    given = {"input__dataset": "camvid", "input__root": str(tmp_path / "gone")}
    run = tiny_run.write(tmp_path / "run", **given)
    scores = make(tmp_path / "other", "fast_scnn:cityscapes", dataset="camvid", scores={"step": 7})
    page = written(run, evaluation=str(scores))
    assert any(note.startswith("No pictures: ") and "gone" in note for note in page.notes)
    assert page.all("img") == [] and page.tiles["mIoU, %"] != "–"
    assert "no pictures: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"step": 6}, "No pictures: no checkpoint '6' in "),
        ({"split": "valid"}, "No pictures: unknown split 'valid' of streets; choose one of"),
    ],
)
def test_why_there_are_no_pictures(trained, tmp_path, change, note):
    shutil.copy(trained / "evaluation.json", tmp_path)
    edit(tmp_path / "evaluation.json", **change)
    page = written(trained, evaluation=str(tmp_path), output=tmp_path / "page.html")
    assert any(re.search(re.escape(note), n) for n in page.notes), page.notes


def test_data_of_other_classes_have_no_pictures(trained, tmp_path, monkeypatch):
    load, names = data.load, spec.TABLES["cityscapes"].class_names

    def other(**options):
        dataset = load(**options)
        table = dataclasses.replace(dataset.table, class_names=(*names[:-1], "drone"))
        return dataclasses.replace(dataset, table=table)

    monkeypatch.setattr(data, "load", other)
    page = written(trained, output=tmp_path / "page.html")
    assert page.all("img") == []
    expected = "No pictures: class 18 is 'drone' in the data and 'bicycle' in the run; give "
    assert any(note.startswith(expected) for note in page.notes)


def test_no_pictures_asked_for_needs_no_network(trained, tmp_path, monkeypatch):
    monkeypatch.delattr(networks, "load_run")
    page = written(trained, images=0, output=tmp_path / "page.html")
    assert page.all("img") == [] and not any("pictures" in note for note in page.notes)


# What is missing, wrong or hostile


def test_an_unfinished_run_has_curves_and_config(tmp_path):
    run = make(tmp_path / "run", scores=None)
    page = written(run)
    assert any("not finished: there is no evaluation.json yet" in note for note in page.notes)
    assert page.tiles == {"parameters": "297", "steps": "100", "training time": "–"}
    assert "Training loss" in page.charts and page.table("config")
    assert page.table("classes") == []


def test_a_run_that_has_only_begun(tmp_path):
    run = make(tmp_path / "run", scores=None)
    for name in ("metrics.jsonl", "params.txt", "classes.json"):
        (run / name).unlink()
    page = written(run)
    assert any("there is no metrics.jsonl" in note for note in page.notes)
    assert page.tiles["steps"] == page.tiles["parameters"] == "–"


def test_an_evaluation_without_a_labelled_pixel(tmp_path):
    run = make(tmp_path / "run")
    split = spec.Dataset(spec.TABLES["camvid"], "test", ("a",), None, load=len)
    nothing = np.zeros((11, 11), np.int64)
    evaluator.write_report(run / "evaluation.json", nothing, split, model="eacnet_erfnet", step=100)
    page = written(run)
    assert page.tiles["mIoU, %"] == "–" and "difference" not in page.table("papers")[0]
    assert {row[2] for row in page.table("classes")[1:]} == {"–"}


def test_names_are_escaped_wherever_they_stand(tmp_path):
    names = ("<b>", "</script><script>alert(1)</script>", "a&amp;b", "'\"`$x", "plain")
    colors = tuple((i, i, i) for i in range(5))
    table = spec.ClassTable("folder", names, colors)
    folder = tmp_path / "<i>&'\""
    given = {"dataset": "folder", "root": "<u>root</u>", "table": table}
    pair = [make(folder / n, "fast_scnn:cityscapes", seed=i, **given) for i, n in enumerate("ab")]
    alone = pair[0].rename(folder / "<s>run")
    page = written(alone)
    assert page.matrix["names"] == list(names)
    assert [row[0] for row in page.table("classes")[1:]] == list(names)
    assert page.all("p", "about")[0][1].startswith("<s>run · folder val")
    assert json.loads(dict(page.table("config"))["input.root"]) == "<u>root</u>"
    both = written((alone, pair[1]), output=tmp_path / "both.html")
    assert both.table("runs")[1][0] == "<s>run"
    assert list(both.charts["Training loss"]) == ["<s>run", "b"]
    for found in (page, both):
        tags = [tag for tag, _, _ in found.elements]
        assert not {"s", "u"} & set(tags) and tags.count("script") == 1


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda run: (run / "config.json").unlink(), FileNotFoundError,
         r"run holds no config.json; give the folder of a run"),
        (lambda run: (run / "config.json").write_text("{"), spec.DataError,
         r"config.json: not JSON \("),
        (lambda run: (run / "config.json").write_text('{"model_type": "bert"}'), spec.DataError,
         r"config.json: no config of ours; give the folder of a run"),
        (lambda run: (run / "evaluation.json").write_text("[]"), spec.DataError,
         r"evaluation.json: no evaluation.json of ours; it has no model, step, "),
        (lambda run: (run / "evaluation.json").write_text("{} {}"), spec.DataError,
         r"evaluation.json: not JSON \("),
        (lambda run: edit(run / "evaluation.json", model="asap"), ValueError,
         r"evaluation.json is of asap, the run is of eacnet_erfnet"),
        (lambda run: edit(run / "evaluation.json", iou={"sky": 1}), ValueError,
         r"evaluation.json has other classes than the run: sky; the run's are sky, building, "),
        (lambda run: edit(run / "evaluation.json", confusion=[[1]]), spec.DataError,
         r"evaluation.json: its accuracy is not of 11 classes, or its confusion no 11x11"),
        (lambda run: (run / "metrics.jsonl").write_text('{"loss": 1}\n'), spec.DataError,
         r"metrics.jsonl, line 1: not a step's figures \(KeyError"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "a": "b"}\n'), spec.DataError,
         r"metrics.jsonl, line 1: not a step's figures \(TypeError"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_run_is_said_in_a_line(tmp_path, damage, error, message):
    run = make(tmp_path / "run")
    damage(run)
    with pytest.raises(error, match=message):
        written(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output": "."}, ValueError, r"is a folder; give a file, as .*report.html"),
        ({"output": "no/page.html"}, FileNotFoundError, r"no: no such folder; create it first"),
        ({"evaluation": "evaluation_test"}, FileNotFoundError,
         r"no evaluation.json at .*run/evaluation_test, nor at .*; rtseg evaluate"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_options_is_said_in_a_line(tmp_path, options, error, message):
    if "output" in options:
        options = {"output": tmp_path / options["output"]}
    with pytest.raises(error, match=message):
        written(make(tmp_path / "run"), **options)


@pytest.mark.parametrize("workdirs", [[], ["run", "run"]])
def test_no_run_and_one_twice_are_refused(tmp_path, workdirs):
    with pytest.raises(ValueError, match="give the folder of a run, or those of several different"):
        written([tmp_path / name for name in workdirs])


def test_an_evaluation_is_found_in_the_run_and_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, other = make(tmp_path / "run"), make(tmp_path / "other", seed=1)
    (run / "test").mkdir()
    shutil.copy(other / "evaluation.json", run / "test")
    expected = percent(json.loads((other / "evaluation.json").read_text())["miou"])
    assert written(run).tiles["mIoU, %"] != expected
    for given in (
        "test",
        "test/evaluation.json",
        "other",
        str(other),
        str(other / "evaluation.json"),
    ):
        assert written(run, evaluation=given).tiles["mIoU, %"] == expected
    with pytest.raises(ValueError, match=r"--evaluation=.* is not in .*run; of several runs each"):
        written((run, other), evaluation=str(other), output=tmp_path / "page.html")


def test_many_classes_and_steps_stay_small(tmp_path):
    run = make(tmp_path / "run", "carnet:resnet101,ade20k")
    edit(run / "evaluation.json", confusion=np.full((150, 150), 123456).tolist())
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "loss": 1 / 3, "learning_rate": 1 / 7}) + "\n")
    page = written(run)
    assert len(page.all("rect", "wrong")) == 150 * 149
    assert (run / "report.html").stat().st_size < 3e6


# Several runs


def test_runs_side_by_side(tmp_path):
    folders = [make(tmp_path / name, seed=i) for i, name in enumerate(("a", "b"))]
    folders.append(make(tmp_path / "c", scores=None))
    edit(folders[1] / "evaluation.json", flip=True)
    edit(folders[1] / "config.json", batch_size=99)
    page = written(folders, output=tmp_path / "page.html")
    given = [json.loads((f / "evaluation.json").read_text()) for f in folders[:2]]
    heads, *rows = page.table("runs")
    assert heads[:3] == ["run", "mIoU, %", "pixel accuracy, %"]
    assert [row[:2] for row in rows] == [
        ["a", percent(given[0]["miou"])],
        ["b", percent(given[1]["miou"])],
        ["c", "not finished"],
    ]
    assert [row[4] for row in rows] == ["CamVid val", "CamVid val, mirrored too", "CamVid val"]
    best = [["best" in kind for kind, _ in row] for row in page.cells("runs")[1:]]
    winner = int(given[1]["miou"] > given[0]["miou"])
    assert [row.index(True) if any(row) else None for row in best] == [
        1 if i == winner else None for i in range(3)
    ]
    cells = [row for row in page.cells("sortable")[1:]]
    assert cells == page.cells("runs")[1:]  # the first table that sorts
    ious = _rows_of_classes(page)
    for name, *values in ious:
        expected = [g["iou"][name] for g in given]
        assert [text for _, text in values] == list(map(percent, expected))
        marked = ["best" in kind for kind, _ in values]
        assert marked == [v is not None and v == max(expected) for v in expected]
    assert len(ious) == 11
    assert page.table("config") == [["", "a", "b", "c"], ["batch_size", "4", "99", "4"]]
    assert list(page.charts["Training loss"]) == ["a", "b", "c"]
    assert page.charts["Training loss"]["b"] == [[s, float(f"{3 / s + 1:.6g}")] for s in range(10, 101, 10)]  # fmt: skip


def _rows_of_classes(page):
    """[name, (class, text), ...] of the second table."""
    tables, rows = 0, []
    for tag, attributes, text in page.elements:
        tables += tag == "table"
        if tables == 2 and tag == "tr":
            rows.append([])
        elif tables == 2 and tag == "th" and attributes.get("scope") == "row":
            rows[-1].append("".join(text).strip())
        elif tables == 2 and tag == "td":
            rows[-1].append((attributes["class"], "".join(text)))
    return rows[1:]


@pytest.mark.parametrize("other", ["split", "images", "data set", "classes"])
def test_scores_of_different_data_have_no_best(tmp_path, other):
    a = make(tmp_path / "a")
    b = make(
        tmp_path / "b", "eacnet:erfnet,cityscapes" if other == "data set" else "camvid_best:short"
    )
    edit(b / "evaluation.json", **{"split": {"split": "test"}, "images": {"images": 3}}.get(other, {}))  # fmt: skip
    if other == "classes":
        shutil.rmtree(b)
        names = tuple(reversed(spec.TABLES["camvid"].class_names))
        b = make(b, table=spec.ClassTable("camvid", names, spec.TABLES["camvid"].palette))
    page = written((a, b), output=tmp_path / "page.html")
    (note,) = (note for note in page.notes if "none is marked as the best" in note)
    assert "a: CamVid val, 2 images of 11 classes; b: " in note
    assert not page.all("td", "best")


@pytest.fixture
def pair(trained, loaded, network, tmp_path, monkeypatch):
    """Two runs: the trained one, and one that sees everything eight pixels too far to the right."""

    def shifted(frames):
        return np.roll(np.asarray(network(frames)), 8, axis=2)

    for name in ("a", "b"):
        shutil.copytree(trained, tmp_path / name)
    monkeypatch.setattr(
        networks, "load_run", lambda path, *_: (loaded[1][0], path.name, *loaded[1][2:])
    )
    both = {"a": network, "b": shifted}
    monkeypatch.setattr(networks, "classifier", lambda name, *_, **options: both[name])
    return tmp_path / "a", tmp_path / "b"


def test_the_images_on_which_runs_differ_most(pair, predicted, tmp_path, capsys):
    page = written(pair, images=3, output=tmp_path / "page.html")
    maps, mious = {}, {}
    for name, (miou, photo, classes, truth) in predicted.items():
        moved = np.roll(classes, 8, axis=1)
        scores = metrics.scores(confusion_of(truth, moved, 19))
        maps[name], mious[name] = (photo, truth, classes, moved), (miou, scores.miou)
    chosen = sorted(predicted, key=lambda name: -abs(np.subtract(*mious[name])))[:3]
    assert [text for _, text in page.all("h3") if text in predicted] == chosen
    shown = [decoded(a["src"]) for a, _ in page.all("img")]
    captions = [text for _, text in page.all("figcaption") if text.split()[0] in "photo truth a b"]
    table = spec.TABLES["cityscapes"]
    for name in chosen:
        (photo, *ids), (a, b) = maps[name], mious[name]
        images, texts = [[x.pop(0) for _ in range(4)] for x in (shown, captions)]
        assert np.abs(np.asarray(images[0], int) - photo).mean() < 6  # JPEG
        for image, classes in zip(images[1:], ids, strict=True):
            np.testing.assert_array_equal(image.convert("RGB"), table.colorize(classes))
        assert texts == ["photo", "truth", f"a {100 * a:.2f}", f"b {100 * b:.2f}"]
    assert not shown
    best = [text for _, text in page.all("b", "best")]
    assert best == [f"{100 * max(mious[name]):.2f}" for name in chosen]
    assert not written(pair, images=0, output=tmp_path / "page.html").all("img")


def test_why_runs_have_no_pictures_together(pair, tmp_path, capsys):
    def fail(*_):
        raise FileNotFoundError("no data here;\nset it")

    networks.load_run = fail
    page = written(pair, output=tmp_path / "page.html")
    assert "No pictures: no data here; set it" in page.notes and not page.all("img")
    assert "no pictures: no data here; set it\n" in capsys.readouterr().out


def test_equal_runs_in_folders_of_one_name(tmp_path):
    pair = [make(tmp_path / day / "run") for day in ("monday", "tuesday")]
    page = written(pair, output=tmp_path / "page.html")
    assert [row[0] for row in page.table("runs")[1:]] == ["monday/run", "tuesday/run"]
    assert "The configs are equal." in page.notes


def test_a_run_keeps_its_colour_where_another_has_logged_nothing(tmp_path):
    pair = [make(tmp_path / name) for name in ("a", "b")]
    (pair[0] / "metrics.jsonl").write_text("")
    page = written(pair, output=tmp_path / "page.html")
    assert {tuple(curves) for curves in page.charts.values()} == {("b",)}
    assert {a["class"] for a, _ in page.all("g")} == {"c1"}


def test_ten_runs_can_be_told_apart(tmp_path):
    many = [make(tmp_path / f"r{i}", seed=i) for i in range(10)]
    page = written(many, output=tmp_path / "page.html")
    kinds = [a["class"] for a, _ in page.all("i", "key")]
    assert len(set(kinds)) == 10


# Charts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.0015, [0, 0.0005, 0.001, 0.0015]),
        (34, 60, [35, 40, 45, 50, 55, 60]),
        (-1.5, 1.5, [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]),
        (0, 1980, [0, 500, 1000, 1500]),
        (1e6, 1e6 + 1, [1e6, 1e6 + 0.2, 1e6 + 0.4, 1e6 + 0.6, 1e6 + 0.8, 1e6 + 1]),
    ],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert charts.ticks(float(low), float(high)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 499, 500, 501, 1000, 12_345])
def test_thinned_curves_keep_their_ends(count):
    points = [(i, float(i)) for i in range(count)]
    kept = charts.thinned(points)
    assert len(kept) <= charts.MAX_POINTS and (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(set(kept)) and (count >= charts.MAX_POINTS or kept == points)


def test_means_are_of_the_last_values():
    points = [(1, 1.0), (2, 3.0), (5, 8.0), (9, 1.0)]
    assert charts.means(points, 3) == [(5, 4.0), (9, 4.0)]


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_a_curve_of_one_point_or_value_is_drawn_inside(value):
    for points in ([(0, value)], [(5, value), (6, value)]):
        page = Page(charts.chart("title", [("a", points)]))
        for a, _ in page.all("circle"):
            assert 0 < float(a["cx"]) < 360 and 0 < float(a["cy"]) < 220


def test_points_stand_where_the_axes_say():
    page = Page(charts.chart("title", [("a", [(0, 0.0), (50, 5.0), (100, 10.0)])]))
    at = {text: (float(a["x"]), float(a["y"])) for a, text in page.all("text", "y")}
    assert at["10"][1] < at["0"][1]  # upwards
    heights = [float(a["cy"]) for a, _ in page.all("circle")]
    assert heights == pytest.approx([at["0"][1], (at["0"][1] + at["10"][1]) / 2, at["10"][1]], abs=0.2)  # fmt: skip


# The program


def test_the_program(trained, tmp_path):
    def go(*arguments):
        command = [sys.executable, "-m", "rtseg_jax", "report", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    page = tmp_path / "page.html"
    done = go(trained, "--images=2", f"--output={page}")
    assert done.returncode == 0, done.stderr
    assert f"written: {page} (" in done.stdout
    assert len(Page(page.read_text()).all("figure", "picture")) == 2
    wrong = go(tmp_path)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path} holds no config.json; give the folder of a run"
    )


# In a browser


@pytest.fixture
def visit(browser):
    """Opens a page from disk; afterwards nothing was complained about and nothing fetched."""
    contexts, said, fetched = [], [], []

    def visit(path, width=1280, scheme="light"):
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []


@pytest.fixture(scope="module")
def page_file(trained, compiled, tmp_path_factory):
    output = tmp_path_factory.mktemp("pages") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        for name, function in compiled.items():
            patch.setattr(evaluate, name, function)
        return report.write_report([trained], images=3, output=output)


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
@pytest.mark.parametrize("pages", ["run", "runs", "compared", "many classes"])
def test_it_renders_without_scrolling_sideways(
    visit, page_file, tmp_path, request, width, scheme, pages
):
    path = page_file
    if pages == "compared":
        pair = request.getfixturevalue("pair")
        path = report.write_report(pair, images=2, output=tmp_path / "page.html")
    if pages == "runs":
        long = "a_name_without_a_place_to_break_it_" * 3
        pair = [make(tmp_path / long), make(tmp_path / "b", "eacnet:erfnet,cityscapes")]
        path = report.write_report(pair, output=tmp_path / "page.html")
    elif pages == "many classes":
        path = report.write_report([make(tmp_path / "run", "carnet:resnet101,ade20k")])
    page = visit(path, width, scheme)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("h1").is_visible() and page.locator("[data-chart]").first.is_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(v) for v in re.findall(r"\d+", background)[:3]])
    assert (brightness < 60) if scheme == "dark" else (brightness > 200)


def test_the_slider_goes_from_photo_to_prediction_to_truth(visit, page_file, predicted):
    page = visit(page_file)
    figure = page.locator(".picture").first
    view, slider = figure.locator(".view"), figure.locator("input")
    _, photo, classes, truth = max(predicted.values(), key=lambda found: found[0])
    table = spec.TABLES["cityscapes"]
    layers = [photo, *(pictures.overlay(photo, ids, table) for ids in (classes, truth))]

    def nearest():
        """Which layer each half of the picture shows."""
        shot = Image.open(io.BytesIO(view.screenshot())).convert("RGB")
        shot = np.asarray(shot.resize((128, 64)), int)
        halves = (slice(8, 56), slice(72, 120))
        return [
            int(np.argmin([np.abs(shot[:, half] - layer[:, half]).mean() for layer in layers]))
            for half in halves
        ]

    assert nearest() == [1, 0]  # as the page opens
    for at, shown in ((0, [0, 0]), (100, [1, 1]), (150, [2, 1]), (200, [2, 2])):
        slider.fill(str(at))
        assert nearest() == shown, at
    figure.get_by_role("button", name="photo").click()
    assert slider.input_value() == "0" and nearest() == [0, 0]
    slider.press("End")
    assert nearest() == [2, 2]
    slider.press("Home")
    box = view.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    assert abs(int(slider.input_value()) - 50) <= 1 and nearest() == [1, 0]


def test_pointing_tells_values(visit, tmp_path):
    run = make(tmp_path / "run")
    page = visit(report.write_report([run]))
    tip = page.locator("#tip")
    chart = page.locator("[data-chart]").first
    box = chart.bounding_box()
    chart.hover(position={"x": box["width"] * (50 + 0.3 * 298) / 360, "y": 60})
    assert tip.inner_text() == "step 30\n0.1"
    matrix = page.locator("#matrix")
    given = Page((run / "report.html").read_text()).matrix
    counts, start, cell = given["counts"], given["start"], given["cell"]
    side = start + 11 * cell + 2
    box = matrix.bounding_box()
    at = {"x": start + 2.5 * cell, "y": start + 1.5 * cell}
    matrix.hover(position={k: v * box["width"] / side for k, v in at.items()})
    share = 100 * counts[1][2] / sum(counts[1])
    assert tip.inner_text() == (
        f"truth: building\nprediction: pole\n{counts[1][2]} pixels, {share:.2f} % of the truth's"
    )
    page.mouse.move(1, 1)
    assert not tip.is_visible()


def test_a_column_sorts_both_ways_and_back(visit, tmp_path):
    run = make(tmp_path / "run")
    page = visit(report.write_report([run]))
    iou = json.loads((run / "evaluation.json").read_text())["iou"]
    present = [name for name in iou if iou[name] is not None]
    down = sorted(present, key=lambda name: -iou[name])
    button = page.locator(".classes").get_by_role("button", name="IoU, %")
    for order in (down, down[::-1], present):
        button.click()
        names = page.locator(".classes tbody th").all_inner_texts()
        assert names == [*order, "bicyclist"]  # which has none
