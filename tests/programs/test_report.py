"""A report tells what evaluation.json, metrics.jsonl and the papers say, escaped, in one file that a browser renders."""

import base64
import dataclasses
import io
import json
import re
import shutil
import time
from xml.etree import ElementTree

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
from tests import tiny


def confusion_of(truth, classes, num_classes):
    truth, classes = jnp.asarray(truth[None], jnp.int32), jnp.asarray(classes[None])
    return np.asarray(metrics.confusion_matrix(truth, classes, num_classes))


def figures(*workdirs, evaluation=None, images=6):
    return report.figures(runs.read_several(workdirs, evaluation), images)


def curves(found):
    """{title: {name of the curve: points}}."""
    return {chart["title"]: dict(chart["curves"]) for chart in found["charts"]}


def drawn(found):
    """The elements of a page; one with unbalanced tags, or an attribute given twice, is no XML and refused."""
    page = report.draw(found)
    return ElementTree.fromstring(re.sub(r"(?s)<(script|style)>.*?</\1>", "", page))


def texts(page, path):
    return [" ".join("".join(element.itertext()).split()) for element in page.iterfind(path)]


def table(page, kind):
    """The rows of the first table of a class, as lists of texts."""
    found = page.find(f".//table[@class='{kind}']")
    return [texts(row, "*") for row in found.iter("tr")]


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
    found = figures(run)
    given = json.loads((run / "evaluation.json").read_text())
    (facts,) = found["runs"]
    assert facts["evaluation"] == given
    assert (facts["parameters"], facts["steps"], facts["seconds"]) == (297, 100, None)
    pixels = np.sum(given["confusion"], axis=1)
    assert found["classes"] == [
        {
            "name": name,
            "color": f"#{bytes(color).hex()}",
            "iou": given["iou"][name],
            "paper": None,
            "accuracy": given["accuracy"][name],
            "share": pytest.approx(count / pixels.sum()),
        }
        for name, color, count in zip(
            given["iou"], spec.TABLES["camvid"].palette, pixels, strict=True
        )
    ]
    assert found["classes"][-1]["iou"] is None
    assert curves(found)["Training loss"] == {"run": [(s, 3 / s) for s in range(10, 101, 10)]}
    assert curves(found)["mIoU on val, %"] == {"run": [(100, 0.625)]}
    assert "Pixel accuracy on val, %" not in curves(found)
    assert found["about"] == [
        *("run", "CamVid val", "2 images", "strict labels", "seen at 360x480"),
        *("scales 0.5, 1", "mirrored too"),
    ]


def test_shares_and_mistakes_are_those_of_the_confusion(tmp_path):
    run = make(tmp_path / "run")
    found = figures(run)["confusion"]
    given = json.loads((run / "evaluation.json").read_text())
    assert found["counts"] == given["confusion"] and list(found["names"]) == list(given["iou"])
    confusion = np.array(given["confusion"])
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    drawn = np.zeros_like(shares)
    for i, j, share in found["shares"]:
        drawn[i, j] = share
    np.testing.assert_allclose(drawn, shares, atol=5e-4)
    wrong = shares * (1 - np.eye(11))
    told = [share for _, _, share in found["mistakes"]]
    assert told == pytest.approx(np.sort(wrong, axis=None)[::-1][:6])
    assert told == [wrong[i, j] for i, j, _ in found["mistakes"]]


def test_the_config_is_there_whole(tmp_path):
    shown = figures(make(tmp_path / "run"))["config"]
    config = settings.read(tmp_path / "run")
    assert shown["optim.lr"] == "0.001" and shown["augment.crop"] == "[360, 480]"
    assert set(shown) == {
        key for key in settings.keys(config) if not hasattr(settings.get(config, key), "items")
    }


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """The figures of a run whose network papers print, and the page of them."""
    official = {"miou": 0.71, "iiou": 0.42, "category_iou": None, "category_iiou": 0.1}
    folder = tmp_path_factory.mktemp("city") / "run"
    found = figures(make(folder, "eacnet:erfnet,cityscapes", {"official": official}))
    return found, drawn(found)


def test_the_page_shows_the_figures(city):
    found, page = city
    given = found["runs"][0]["evaluation"]
    assert texts(page, ".//h1") == ["eacnet_erfnet on Cityscapes"]
    assert texts(page, ".//p[@class='about']") == ["run · Cityscapes val · 2 images"]
    assert list(zip(texts(page, ".//dt"), texts(page, ".//dd"), strict=True)) == [
        ("mIoU, %",
         f"{percent(given['miou'])}over 18 of 19 classesEACNet, Table 1 prints 73.74 on val"),
        ("pixel accuracy, %", percent(given["pixel_accuracy"])),
        ("mean accuracy, %", percent(given["mean_accuracy"])),
        ("frequency-weighted IoU, %", percent(given["frequency_weighted_iou"])),
        ("mIoU, %", "71.00by cityscapesscripts"),
        ("iIoU, %", "42.00by cityscapesscripts"),
        ("category IoU, %", "–by cityscapesscripts"),
        ("parameters", "297"),
        ("steps", "100evaluated: step 100"),
        ("training time", "–"),
    ]  # fmt: skip
    assert table(page, "classes sortable")[1:] == [
        [row["name"], "", percent(row["iou"]), str(row["paper"]), percent(row["accuracy"]),
         percent(row["share"])]
        for row in found["classes"]
    ]  # fmt: skip
    assert dict(table(page, "config")) == found["config"]
    assert json.loads(page.find(".//svg[@id='matrix']").get("data-matrix")) == {
        key: list(found["confusion"][key]) if key == "names" else found["confusion"][key]
        for key in ("names", "counts", "start", "cell")
    }


def test_bars_ticks_and_shades_have_the_lengths_and_places_of_their_figures(city):
    found, page = city
    bars = page.findall(".//td[@class='bar']/div")
    for bar, row in zip(bars, found["classes"], strict=True):
        length = f"width:{100 * (row['iou'] or 0):.2f}%;background:{row['color']}"
        assert bar.find("i").get("style") == length
        assert bar.find("b").get("style") == f"left:{row['paper']}%"
    confusion = found["confusion"]
    rects = [r for r in page.iter("rect") if r.get("class") in ("right", "wrong")]
    for rect, (i, j, share) in zip(rects, confusion["shares"], strict=True):
        at = [(int(rect.get(side)) - confusion["start"]) / confusion["cell"] for side in "yx"]
        assert at == [i, j] and rect.get("class") == ("right" if i == j else "wrong")
        assert float(rect.get("fill-opacity")) ** 2 == pytest.approx(share, abs=2e-3)
    names = confusion["names"]
    assert texts(page, ".//ol[@class='mistaken']/li") == [
        f"{100 * share:.1f} % of {names[i]} is taken for {names[j]}"
        for i, j, share in confusion["mistakes"]
    ]


def test_time_is_summed_over_the_starts_of_a_run(tmp_path):
    run = make(tmp_path / "run")
    picture = np.zeros((64, 64, 3), np.uint8)
    for i, seconds in enumerate((3600, 1800)):
        board = SummaryWriter(str(run), filename_suffix=str(i))
        board.add_image("a", picture, 1, dataformats="HWC", walltime=time.time() + 60)
        board.add_scalar("loss", 1.0, 2, walltime=time.time() + seconds)
        board.close()
    assert runs.read(run).seconds == pytest.approx(5400, abs=20)
    shown = texts(drawn(figures(run)), ".//dd")[-1]
    assert shown == "1 h 30 minevaluations included"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, "–"), (12.4, "12 s"), (90.0, "2 min"), (3580.0, "1 h 00 min")]
)
def test_durations(seconds, shown):
    assert report.duration(seconds) == shown


def test_curves_are_those_of_a_real_log(tmp_path):
    run = make(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    writers = logs.Writers(run, 0)
    for step in range(1, 2001):
        writers.scalars(step, loss=step / 7, gradient_norm=1.0, aux=0.5)
    writers.close()
    found = figures(run)
    assert curves(found)["Training loss"]["run"] == [
        (step, pytest.approx(step / 7)) for step in range(1, 2001)
    ]
    assert [(chart["title"], chart["first"]) for chart in found["charts"]] == [
        ("Training loss", True),
        ("Gradient norm", False),
        ("aux", False),
    ]
    page = drawn(found)
    assert texts(page, ".//section[@id='curves']/div//figcaption") == [
        "Training loss bold: mean of the last 100 logged"
    ]
    assert len(page.findall(".//section[@id='curves']/details//figcaption")) == 2


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


def test_a_difference_is_of_one_split(city, tmp_path):
    found, page = city
    miou = 100 * found["runs"][0]["evaluation"]["miou"]
    heads, *rows = table(page, "papers")
    assert heads[:4] == ["printed in", "mIoU, %", "difference", "split"]
    assert rows[0][:4] == ["EACNet, Table 1", "73.74", f"{miou - 73.74:+.2f}", "val"]
    assert rows[-1][1:4] == ["72.4", "", "test"]
    for name, options in (("split", {}), ("part", {"num_eval": 2, "dataset": "cityscapes"})):
        other = figures(make(tmp_path / name, "camvid_best:eacnet_erfnet,short", **options))
        assert {row["difference"] for row in other["printed"]} == {None}
    assert "difference" not in table(drawn(other), "papers")[0]


def test_the_papers_figures_of_classes(city):
    found, page = city
    assert [str(row["paper"]) for row in found["classes"][:3]] == ["97.7", "82.6", "91.4"]
    said = (
        "The tick on a bar is the IoU that EACNet, Table 2, val prints; the mean of these is 73.75."
    )
    assert said in texts(page, ".//p[@class='note']")


# Pictures


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, tiny_network):
    """The folder of a run with a checkpoint and seven images to evaluate, and what is loaded from it."""
    run = tiny.write(tmp_path_factory.mktemp("runs") / "run", tiny.config(input__num_eval=7))
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
        monkeypatch.setattr(networks, name, function)


def layers(image):
    """The layers of an image of a page, decoded."""
    coded = [layer["uri"].partition("base64,")[2] for layer in image["layers"]]
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in coded]


def check_layers(image, photo, *maps):
    shown, *ids = layers(image)
    assert np.abs(np.asarray(shown, int) - photo).mean() < 8  # JPEG
    for layer, classes in zip(ids, maps, strict=True):
        expected = spec.TABLES["cityscapes"].colorize(classes)
        np.testing.assert_array_equal(layer.convert("RGB"), expected)


@pytest.mark.parametrize("images", [1, 4, 20])
def test_the_best_and_the_worst_images(trained, predicted, quick, images):
    shown = figures(trained, images=images)["images"]["shown"]
    ranking = sorted(predicted, key=lambda name: -predicted[name][0])
    count = min(images, 7)
    best = -(-count // 2)
    names = ranking[:best] + ranking[7 - (count - best) :]
    ranks = [f"best {i + 1}" for i in range(best)]
    ranks += [f"worst {i}" for i in range(count - best, 0, -1)]
    assert [(image["rank"], image["name"], image["miou"]) for image in shown] == [
        (rank, name, pytest.approx(predicted[name][0]))
        for rank, name in zip(ranks, names, strict=True)
    ]


def test_a_picture_is_photo_prediction_and_truth(trained, predicted, quick):
    found = figures(trained, images=1)
    (image,) = found["images"]["shown"]
    name, (miou, photo, classes, truth) = max(predicted.items(), key=lambda found: found[1][0])
    assert [layer["name"] for layer in image["layers"]] == ["photo", "prediction", "truth"]
    check_layers(image, photo, classes, truth)
    iou = metrics.scores(confusion_of(truth, classes, 19)).iou
    present = {
        n: v
        for n, v in zip(spec.TABLES["cityscapes"].class_names, iou, strict=True)
        if np.isfinite(v)
    }
    assert {c["name"]: c["iou"] for c in image["classes"]} == pytest.approx(present)
    page = drawn(found)
    figure = page.find(".//figure[@class='picture']")
    assert [(i.get("class"), i.get("src")) for i in figure.iter("img")] == [
        (layer["name"], layer["uri"]) for layer in image["layers"]
    ]
    assert texts(figure, "figcaption") == [f"best 1 {name} mIoU {100 * miou:.2f} %"]
    assert texts(figure, "ul/li") == [f"{n} {100 * v:.1f}" for n, v in present.items()]


def test_nothing_is_fetched(trained, quick):
    page = drawn(figures(trained, images=1))
    links = [e.get(k) for e in page.iter() for k in ("src", "href", "data") if e.get(k)]
    assert len(links) == 3 and all(link.startswith("data:") for link in links)
    assert {e.tag for e in page.iter()}.isdisjoint({"link", "iframe", "object", "base"})
    assert page.find(".//meta[@http-equiv]").get("content").startswith("default-src 'none';")


def test_large_pictures_are_embedded_smaller(trained, predicted, quick, monkeypatch):
    monkeypatch.setattr(examples, "MAX_SIDE", 50)
    (image,) = figures(trained, images=1)["images"]["shown"]
    assert [image["width"], image["height"]] == [50, 25]
    assert [layer.size for layer in layers(image)] == [(50, 25)] * 3
    _, _, *maps = max(predicted.values(), key=lambda found: found[0])
    for layer, ids in zip(layers(image)[1:], maps, strict=True):  # no class between two others
        colors = spec.TABLES["cityscapes"].colorize(ids).reshape(-1, 3).tolist()
        shown = np.asarray(layer.convert("RGB")).reshape(-1, 3).tolist()
        assert {*map(tuple, shown)} <= {*map(tuple, colors)}


def test_pictures_that_do_not_fit_the_evaluation_are_told(trained, quick, tmp_path):
    given = json.loads((trained / "evaluation.json").read_text())
    path = tmp_path / "evaluation.json"
    for off, told in ((0.004, False), (0.1, True)):
        path.write_text(json.dumps({**given, "pixel_accuracy": given["pixel_accuracy"] + off}))
        note = figures(trained, images=1, evaluation=str(path))["images"]["note"]
        assert ("do not fit this evaluation" in note) == told


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
    run = tiny.write(tmp_path / "run", **given)
    scores = make(tmp_path / "other", "fast_scnn:cityscapes", dataset="camvid", scores={"step": 7})
    found = figures(run, evaluation=str(scores))
    (note,) = (n for n in texts(drawn(found), ".//section[@id='images']/p") if n)
    assert note.startswith("No pictures: ") and "gone" in note and found["images"]["shown"] == []
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
    assert figures(trained, evaluation=str(tmp_path))["images"]["note"].startswith(note)


def test_data_of_other_classes_have_no_pictures(trained, monkeypatch):
    load, names = data.load, spec.TABLES["cityscapes"].class_names

    def other(**options):
        dataset = load(**options)
        table = dataclasses.replace(dataset.table, class_names=(*names[:-1], "drone"))
        return dataclasses.replace(dataset, table=table)

    monkeypatch.setattr(data, "load", other)
    images = figures(trained)["images"]
    expected = "No pictures: class 18 is 'drone' in the data and 'bicycle' in the network; give "
    assert images["shown"] == [] and images["note"].startswith(expected)


def test_no_pictures_asked_for_needs_no_network(trained, monkeypatch):
    monkeypatch.delattr(networks, "load_run")
    found = figures(trained, images=0)
    assert (found["images"]["shown"], found["images"]["note"]) == ([], "")
    assert drawn(found).find(".//section[@id='images']") is None


# What is missing, wrong or hostile


def test_an_unfinished_run_has_curves_and_config(tmp_path):
    page = drawn(figures(make(tmp_path / "run", scores=None)))
    notes = texts(page, ".//p[@class='note']")
    assert any("not finished: there is no evaluation.json yet" in note for note in notes)
    assert texts(page, ".//dt") == ["parameters", "steps", "training time"]
    assert texts(page, ".//dd") == ["297", "100", "–"]
    assert [section.get("id") for section in page.iter("section")] == ["curves", "config"]


def test_a_run_that_has_only_begun(tmp_path):
    run = make(tmp_path / "run", scores=None)
    for name in ("metrics.jsonl", "params.txt", "classes.json"):
        (run / name).unlink()
    page = drawn(figures(run))
    assert any("there is no metrics.jsonl" in note for note in texts(page, ".//p[@class='note']"))
    assert texts(page, ".//dd") == ["–", "–", "–"]


def test_an_evaluation_without_a_labelled_pixel(tmp_path):
    run = make(tmp_path / "run")
    split = spec.Dataset(spec.TABLES["camvid"], "test", ("a",), None, load=len)
    nothing = np.zeros((11, 11), np.int64)
    evaluator.write_report(run / "evaluation.json", nothing, split, model="eacnet_erfnet", step=100)
    page = drawn(figures(run))
    assert texts(page, ".//dd")[0].startswith("–over 0 of 11")
    assert "difference" not in table(page, "papers")[0]
    assert {row[2] for row in table(page, "classes sortable")[1:]} == {"–"}


def test_names_are_escaped_wherever_they_stand(tmp_path):
    names = ("<b>", "</script><script>alert(1)</script>", "a&amp;b", "'\"`$x{{ 7 }}", "plain")
    colors = tuple((i, i, i) for i in range(5))
    classes = spec.ClassTable("folder", names, colors)
    folder = tmp_path / "<i>&'\""
    given = {"dataset": "folder", "root": "<u>root</u>", "table": classes}
    pair = [make(folder / n, "fast_scnn:cityscapes", seed=i, **given) for i, n in enumerate("ab")]
    alone = pair[0].rename(folder / "<s>run")
    one, both = figures(alone), figures(alone, pair[1])
    page, compared = drawn(one), drawn(both)
    matrix = json.loads(page.find(".//svg[@id='matrix']").get("data-matrix"))
    assert matrix["names"] == list(names)
    assert [row[0] for row in table(page, "classes sortable")[1:]] == list(names)
    assert texts(page, ".//p[@class='about']")[0].startswith("<s>run · folder val")
    assert json.loads(dict(table(page, "config"))["input.root"]) == "<u>root</u>"
    assert table(compared, "runs sortable")[1][0] == "<s>run"
    chart = json.loads(compared.find(".//svg[@data-chart]").get("data-chart"))
    assert [curve["name"] for curve in chart["curves"]] == ["<s>run", "b"]
    for found, tree in ((one, page), (both, compared)):
        assert {"s", "u"}.isdisjoint(element.tag for element in tree.iter())
        assert report.draw(found).count("<script") == 1


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
        report.write_report([run])
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
        report.write_report([make(tmp_path / "run")], **options)


@pytest.mark.parametrize("workdirs", [[], ["run", "run"]])
def test_no_run_and_one_twice_are_refused(tmp_path, workdirs):
    with pytest.raises(ValueError, match="give the folder of a run, or those of several different"):
        report.write_report([tmp_path / name for name in workdirs])


def test_an_evaluation_is_found_in_the_run_and_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, other = make(tmp_path / "run"), make(tmp_path / "other", seed=1)
    (run / "test").mkdir()
    shutil.copy(other / "evaluation.json", run / "test")
    miou = json.loads((other / "evaluation.json").read_text())["miou"]
    assert runs.read(run).evaluation["miou"] != miou
    elsewhere = ("other", str(other), str(other / "evaluation.json"))
    for given in ("test", "test/evaluation.json", *elsewhere):
        assert runs.read(run, given).evaluation["miou"] == miou
    with pytest.raises(ValueError, match=r"--evaluation=.* is not in .*run; of several runs each"):
        report.write_report([run, other], evaluation=str(other), output=tmp_path / "page.html")


def test_many_classes_and_steps_stay_small(tmp_path):
    run = make(tmp_path / "run", "carnet:resnet101,ade20k")
    edit(run / "evaluation.json", confusion=np.full((150, 150), 123456).tolist())
    with open(run / "metrics.jsonl", "w") as file:
        for step in range(20_000):
            file.write(json.dumps({"step": step, "loss": 1 / 3, "learning_rate": 1 / 7}) + "\n")
    page = report.draw(figures(run))
    assert page.count('<rect class="wrong"') == 150 * 149 and len(page) < 3e6


# Several runs


def test_runs_side_by_side(tmp_path):
    folders = [make(tmp_path / name, seed=i) for i, name in enumerate(("a", "b"))]
    folders.append(make(tmp_path / "c", scores=None))
    edit(folders[1] / "evaluation.json", flip=True)
    edit(folders[1] / "config.json", batch_size=99)
    found = figures(*folders)
    page = drawn(found)
    given = [json.loads((f / "evaluation.json").read_text()) for f in folders[:2]]
    heads, *rows = table(page, "runs sortable")
    assert heads[:3] == ["run", "mIoU, %", "pixel accuracy, %"]
    mious = [g["miou"] for g in given]
    assert [row[:2] for row in rows] == [
        ["a", percent(mious[0])],
        ["b", percent(mious[1])],
        ["c", "not finished"],
    ]
    assert [row[4] for row in rows] == ["CamVid val", "CamVid val, mirrored too", "CamVid val"]
    assert best(page, "runs sortable") == [percent(max(mious))]
    for row in found["classes"]:
        assert row["ious"] == [g["iou"][row["name"]] for g in given]
    assert [row["name"] for row in found["classes"]] == list(given[0]["iou"])
    assert table(page, "sortable")[1:] == [
        [row["name"], *map(percent, row["ious"])] for row in found["classes"]
    ]
    assert best(page, "sortable") == [
        percent(max(row["ious"])) for row in found["classes"] if row["ious"][0] is not None
    ]
    assert table(page, "config") == [["", "a", "b", "c"], ["batch_size", "4", "99", "4"]]
    assert curves(found)["Training loss"] == {
        name: points
        for name, add in (("a", 0), ("b", 1), ("c", 0))
        for points in [[(s, 3 / s + add) for s in range(10, 101, 10)]]
    }


def best(page, kind):
    """The texts of a table's cells that are marked as the best."""
    return texts(page.find(f".//table[@class='{kind}']"), ".//td[@class='number best']")


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
    page = drawn(figures(a, b))
    (note,) = (n for n in texts(page, ".//p[@class='note']") if "none is marked as the best" in n)
    assert "a: CamVid val, 2 images of 11 classes; b: " in note and note.endswith("classes.")
    assert "best" not in {td.get("class").split()[-1] for td in page.iterfind(".//td[@data-key]")}


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


def test_the_images_on_which_runs_differ_most(pair, predicted):
    maps, mious = {}, {}
    for name, (miou, photo, classes, truth) in predicted.items():
        moved = np.roll(classes, 8, axis=1)
        scores = metrics.scores(confusion_of(truth, moved, 19))
        maps[name], mious[name] = (photo, truth, classes, moved), (miou, scores.miou)
    chosen = sorted(predicted, key=lambda name: -abs(np.subtract(*mious[name])))[:3]
    found = figures(*pair, images=3)
    assert [image["name"] for image in found["images"]["shown"]] == chosen
    for image in found["images"]["shown"]:
        check_layers(image, *maps[image["name"]])
    page = drawn(found)
    expected = []
    for a, b in map(mious.get, chosen):
        expected += ["photo", "truth", f"a {100 * a:.2f}", f"b {100 * b:.2f}"]
    assert texts(page, ".//div[@class='contrast']//figcaption") == expected
    marked = [f"{100 * max(mious[name]):.2f}" for name in chosen]
    assert texts(page, ".//figcaption/b[@class='best']") == marked
    assert figures(*pair, images=0)["images"]["shown"] == []


def test_why_runs_have_no_pictures_together(pair, monkeypatch, capsys):
    def fail(*_):
        raise FileNotFoundError("no <s> here;\nset it")

    monkeypatch.setattr(networks, "load_run", fail)
    page = drawn(figures(*pair))
    assert texts(page, ".//section[@id='images']/*")[1:] == ["No pictures: no <s> here; set it"]
    assert "no pictures: no <s> here; set it\n" in capsys.readouterr().out


def test_equal_runs_in_folders_of_one_name(tmp_path):
    found = figures(*(make(tmp_path / day / "run") for day in ("monday", "tuesday")))
    assert [run["name"] for run in found["runs"]] == ["monday/run", "tuesday/run"]
    assert "The configs are equal." in texts(drawn(found), ".//p[@class='note']")


def test_a_run_keeps_its_colour_where_another_has_logged_nothing(tmp_path):
    pair = [make(tmp_path / name) for name in ("a", "b")]
    (pair[0] / "metrics.jsonl").write_text("")
    page = drawn(figures(*pair))
    assert {g.get("class") for g in page.iter("g")} == {"c1"}
    assert [i.get("class") for i in page.iterfind(".//ul[@class='legend']/li/i")] == ["key c0", "key c1"]  # fmt: skip


def test_ten_runs_can_be_told_apart(tmp_path):
    page = drawn(figures(*(make(tmp_path / f"r{i}", seed=i) for i in range(10))))
    keys = page.findall(".//table[@class='runs sortable']//th/i")
    assert len({key.get("class") for key in keys}) == 10


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
        figure = ElementTree.fromstring(charts.chart("title", [("a", points)]))
        circles = list(figure.iter("circle"))
        assert len(circles) == len(points)
        for circle in circles:
            assert 0 < float(circle.get("cx")) < 360 and 0 < float(circle.get("cy")) < 220


def test_points_stand_where_the_axes_say():
    points = [(0, 0.0), (50, 5.0), (100, 10.0)]
    figure = ElementTree.fromstring(charts.chart("title", [("a", points)]))
    at = {text.text: float(text.get("y")) for text in figure.iterfind(".//text[@class='y']")}
    assert at["10"] < at["0"]  # upwards
    heights = [float(circle.get("cy")) for circle in figure.iter("circle")]
    assert heights == pytest.approx([at["0"], (at["0"] + at["10"]) / 2, at["10"]], abs=0.2)


def test_the_script_is_given_the_drawn_values():
    points = [(step, step / 7) for step in range(1, 2001)]
    figure = ElementTree.fromstring(charts.chart("title", [("a", points)], scale=100.0))
    (curve,) = json.loads(figure.find("svg").get("data-chart"))["curves"]
    assert 250 <= len(curve["points"]) <= charts.MAX_POINTS and curve["points"][-1][0] == 2000
    assert all(value == float(f"{100 * step / 7:.6g}") for step, value in curve["points"])


# The program


def test_the_program(trained, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "prepare_process", lambda: None)
    page = tmp_path / "page.html"
    assert report.PROGRAM.run([str(trained), "--images=2", f"--output={page}"]) == 0
    assert f"written: {page} (" in capsys.readouterr().out
    assert page.read_text().count('<figure class="picture">') == 2
    assert report.PROGRAM.run([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(
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
    given = figures(run)["confusion"]
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
