"""Images of many sizes: each on a canvas to train on, padded to few sizes to be evaluated on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.base import config as settings
from rtseg_jax.data import augment, pipeline, spec
from rtseg_jax.data.sets import ade20k, folder
from rtseg_jax.inference import evaluator
from rtseg_jax.inference import network as networks
from rtseg_jax.train import loop
from tests import tiny

RNG = np.random.default_rng(0)
SIZES = ((6, 9), (12, 5), (6, 9), (20, 8), (7, 12))
EXAMPLES = [
    (RNG.integers(0, 256, (*s, 3), dtype=np.uint8), RNG.integers(0, 11, s, dtype=np.uint8))
    for s in SIZES
]
DATASET = spec.Dataset(spec.TABLES["camvid"], "train", tuple("abcde"), None, lambda i: EXAMPLES[i])
OPTIONS = {
    "seed": 3,
    "crop": (7, 11),
    "scales": (1.0,),
    "scale_range": (0.5, 2.0),
    "flip": 0.5,
    "jitter": (0.2, 0.2, 0.2),
    "mean": (100.0, 110.0, 120.0),
    "std": (50.0, 60.0, 70.0),
}


def test_on_canvas():
    dataset = spec.on_canvas(DATASET, (12, 13))
    assert dataset.size == (12, 13) and dataset.names == DATASET.names
    for i in (0, 1, 2, 4):
        (h, w), (image, label) = SIZES[i], dataset.load(i)
        np.testing.assert_array_equal(image[:h, :w], EXAMPLES[i][0])
        np.testing.assert_array_equal(label[:h, :w], EXAMPLES[i][1])
        assert (label == spec.OUTSIDE).sum() == 12 * 13 - h * w
    # 20x8 fits as 12x5.
    image, label = dataset.load(3)
    small = Image.fromarray(EXAMPLES[3][0]).resize((5, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image[:, :5], np.asarray(small))
    assert (label[:, :5] < 11).all() and (label[:, 5:] == spec.OUTSIDE).all()
    with pytest.raises(ValueError, match=r"^canvas \(12, 0\) is impossible"):
        spec.on_canvas(DATASET, (12, 0))


@pytest.mark.parametrize("options", [{}, {"squash": (10, 14)}])
def test_augmentation_sees_the_frame_alone(options):
    """A frame on a canvas gives what it gives without one, whatever lies beyond it."""
    run = jax.jit(lambda *batch: augment.augment(*batch, **OPTIONS, **options))
    canvases = spec.on_canvas(DATASET, (20, 13))
    for i in range(len(DATASET)):
        image, label = canvases.load(i)
        beyond = label == spec.OUTSIDE
        assert beyond.any()
        image = np.where(beyond[..., None], np.uint8(255), image)
        for step in range(6):
            rest = (jnp.array([i], jnp.int32), jnp.int32(step))
            alone = run(EXAMPLES[i][0][None], EXAMPLES[i][1][None], *rest)
            wide = run(image[None], label[None], *rest)
            np.testing.assert_array_equal(wide["label"], alone["label"])
            np.testing.assert_allclose(wide["image"], alone["image"], atol=2e-5)


def test_one_program_for_all_sizes():
    traced = []

    def run(*batch):
        traced.append(1)
        return augment.augment(*batch, **OPTIONS)

    run = jax.jit(run)
    examples = [spec.on_canvas(DATASET, (20, 13)).load(i) for i in range(5)]
    for i, (image, label) in enumerate(examples):
        out = run(image[None], label[None], jnp.array([i], jnp.int32), jnp.int32(0))
        assert set(np.unique(out["label"])) <= {*range(11), 255}
    assert len(traced) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_evaluation_pads_to_few_sizes(batch_size):
    seen, shapes = [], set()
    for images, labels, mask, indices in pipeline.eval_batches(DATASET, batch_size, multiple=6):
        shapes.add(images.shape)
        assert images.shape[:3] == labels.shape and images.shape[0] == batch_size
        assert (indices[~mask] == -1).all() and (labels[~mask] == 255).all()
        for row in np.flatnonzero(mask):
            i = int(indices[row])
            seen.append(i)
            h, w = SIZES[i]
            np.testing.assert_array_equal(images[row, :h, :w], EXAMPLES[i][0])
            np.testing.assert_array_equal(labels[row, :h, :w], EXAMPLES[i][1])
            assert (labels[row] != 255).sum() == h * w
            # What lies beyond repeats the frame's border.
            np.testing.assert_array_equal(
                images[row, h:, :w], images[row, h - 1 : h, :w].repeat(images.shape[1] - h, 0)
            )
            np.testing.assert_array_equal(
                images[row, :, w:], images[row, :, w - 1 : w].repeat(images.shape[2] - w, 1)
            )
    assert sorted(seen) == list(range(5))
    assert {s[1:3] for s in shapes} == {(6, 12), (12, 6), (24, 12), (12, 12)}


def test_processes_share_batches_of_many_sizes():
    whole = list(pipeline.eval_batches(DATASET, 4, multiple=6))
    parts = [
        list(pipeline.eval_batches(DATASET, 4, multiple=6, process_index=p, process_count=2))
        for p in range(2)
    ]
    for batch, *shared in zip(whole, *parts, strict=True):
        for array, *pieces in zip(batch, *shared, strict=True):
            np.testing.assert_array_equal(array, np.concatenate(pieces))
            assert {len(piece) for piece in pieces} == {2}


@pytest.mark.parametrize("wanted", [{3}, {4}, {1, 4}])
def test_the_first_process_gets_the_images_that_are_to_be_drawn(wanted):
    batches = pipeline.eval_batches(
        DATASET, 4, multiple=24, process_count=2, wanted=frozenset(wanted)
    )
    assert wanted <= {int(i) for *_, indices in batches for i in indices}


def test_what_to_do_about_sizes_is_said():
    with pytest.raises(
        spec.DataError, match=r"set input.canvas=\(h, w\) and eval.multiple=32, which keep"
    ):
        list(pipeline.eval_batches(DATASET, 2))


def test_maps_are_scored_and_drawn_without_their_padding():
    """A network that knows the classes by the image's red."""
    table = DATASET.table
    pairs = [(np.stack([label * 20] * 3, -1), label) for _, label in EXAMPLES]
    dataset = spec.Dataset(table, "val", tuple("abcde"), None, lambda i: pairs[i])

    def eval_step(images, labels, mask):
        classes = images[..., 0] // 20
        valid = (labels != 255) & mask[:, None, None]
        cells = labels[valid].astype(int) * 11 + classes[valid]
        return np.bincount(cells, minlength=121).reshape(11, 11), classes

    batches = pipeline.eval_batches(dataset, 2, multiple=8)
    confusion, maps = evaluator.evaluate(eval_step, batches, 11, frozenset(range(5)))
    assert confusion.sum() == np.trace(confusion) == sum(h * w for h, w in SIZES)
    for i, (h, w) in enumerate(SIZES):
        assert maps[i].shape != (h, w)
        panel = evaluator.overlay_panel(dataset, i, maps[i])
        np.testing.assert_array_equal(panel[:h, w : 2 * w], panel[:h, 2 * w : 3 * w])


# Whole runs on trees in the official layouts


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def blocks(size, count):
    """A label with large areas, of `count` classes."""
    coarse = RNG.integers(0, count, (-(-size[0] // 16), -(-size[1] // 16)), dtype=np.uint8)
    return coarse.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]]


def make_nyuv2(root):
    for name, split, count in (("train.nyu", "train", 8), ("val.nyu", "val", 2)):
        lines = []
        for i in range(count):
            label = blocks((48, 64), 40)
            save(root / f"{split}_labels/{i}.png", label)
            save(root / f"{split}_images/{i}.png", np.stack([label * 6] * 3, -1))
            lines.append(f"{split}_images/{i}.png\t{split}_labels/{i}.png\n")
        (root / name).write_text("".join(lines))


def make_ade20k(root):
    base = root / ade20k.FOLDER
    for i, size in enumerate(((48, 64), (64, 40), (33, 90))):
        label = blocks(size, 151)
        save(base / "annotations/training" / f"{i}.png", label)
        save(base / "images/training" / f"{i}.jpg", np.stack([label] * 3, -1))


def make_folder(root):
    """Eight images of two sizes to train, and two to validate that are padded to one."""
    for split, sizes in (
        ("train", ((48, 64), (40, 80))),
        ("val", ((30, 60), (32, 64))),
    ):
        for i in range(8 if split == "train" else 2):
            label = blocks(sizes[i % 2], 3)
            save(root / f"labels/{split}/{i}.png", label + np.uint8(10))
            save(root / f"images/{split}/{i}.png", np.stack([label * 80] * 3, -1))
    (root / "classes.txt").write_text("crop\nweed\nsoil\n")


def test_ade20ks_config_takes_images_of_any_size(tmp_path):
    make_ade20k(tmp_path)
    config = settings.load("carnet:resnet50,ade20k")
    with config.unlocked():
        config.input.root = str(tmp_path)
    dataset = data.load(**settings.dataset_arguments(config, "train"), canvas=config.input.canvas)
    (images,) = pipeline.Resident(dataset).arrays["images"]
    assert images.shape == (3, 1024, 1024, 3)
    assert config.eval.multiple == 32 and dataset.table.num_classes == 150


def test_a_config_of_before_the_keys_of_annotations(tmp_path):
    make_nyuv2(tmp_path)
    config = settings.load("carnet:nyuv2")
    with config.unlocked():
        config.input.root = str(tmp_path)
        for key in ("annotation", "classes", "label_map", "ignore"):
            del config.input[key]
    assert len(data.load(**settings.dataset_arguments(config, "train"))) == 8


def test_what_is_evaluated_are_whole_frames_of_the_files(tmp_path):
    """Also of the split that was trained on, in patches or on a canvas, from a packed copy."""
    make_folder(tmp_path / "data")
    config = settings.load("dabnet:camvid")
    with config.unlocked():
        config.input.update({"root": str(tmp_path / "data"), "cache": str(tmp_path / "cache")})
        config.input.update({**FOLDER, "patches": (1, 2, 8, 8)})
        config.eval.multiple = 32
    whole = data.load(**settings.dataset_arguments(config, "train"))
    trained = data.load(
        **settings.dataset_arguments(config, "train", training=True), canvas=config.input.canvas
    )
    assert (
        len(trained) == 2 * len(whole) and len({x.shape for _, x in map(whole.load, (0, 1))}) == 2
    )


FOLDER = {
    "dataset": "folder",
    "label_map": ((10, 0), (11, 1), (12, 2)),
    "canvas": (48, 80),
    "eval_split": "val",
}


@pytest.mark.parametrize(
    ("make", "given", "evaluation", "classes"),
    [
        (make_nyuv2, {"dataset": "nyuv2", "eval_split": "test"}, {"multiple": 0}, 40),
        (make_folder, FOLDER, {"multiple": 32}, 3),
        # On four devices, too.
        (make_folder, FOLDER, {"multiple": 0, "batch_size": 1}, 3),
    ],
)
def test_two_steps_and_an_evaluation(tmp_path, tiny_network, make, given, evaluation, classes):
    make(tmp_path / "data")
    config = tiny.config("dabnet:camvid")
    with config.unlocked():
        config.input.update({"root": str(tmp_path / "data"), "mode": "resident", **given})
        config.update({"num_steps": 2, "batch_size": 4, "log_every": 1})
        config.augment.crop = (32, 64)
        config.eval.update(evaluation)
        config.loss.class_weights = None
    result = loop.train_and_evaluate(config.lock(), str(tmp_path / "run"))
    assert result["step"] == 2
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["images"] == 2 and len(report["iou"]) == classes
    eval_set = data.load(**settings.dataset_arguments(config, config.input.eval_split))
    labelled = sum(int((eval_set.load(i)[1] != 255).sum()) for i in range(2))
    assert np.sum(report["confusion"]) == labelled
    # The run knows its classes without the data.
    names = folder.read_classes(tmp_path / "run" / "classes.json").class_names
    assert names == eval_set.table.class_names == tuple(report["iou"])
    (tmp_path / "data").rename(tmp_path / "moved")
    assert networks.load(tmp_path / "run").model.num_classes == classes
