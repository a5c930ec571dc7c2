"""One order, two inputs: a resident set and a stream give the same bytes, and evaluation drops nothing."""

import contextlib
import pathlib
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rtseg_jax.data import pipeline, spec

ROOT = pathlib.Path(__file__).resolve().parents[2]
N, H, W = 11, 3, 5
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (N, H, W, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 11, (N, H, W), dtype=np.uint8)


def make_dataset(n=N, load=lambda i: (IMAGES[i], LABELS[i]), size=None):
    names = tuple(f"frame{i}" for i in range(n))
    return spec.Dataset(spec.TABLES["camvid"], "train", names, size, load)


DATASET = make_dataset()


def mesh_of(n):
    devices = jax.devices()[:n]
    return jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


# The order


def test_order_is_this_one_for_ever():
    """A resumed run continues an older version's order, so these may never change."""
    assert pipeline.epoch_order(0, 0, 12).tolist() == [0, 8, 9, 3, 7, 5, 1, 11, 2, 10, 6, 4]
    assert pipeline.epoch_order(0, 1, 12).tolist() == [3, 7, 4, 2, 9, 8, 1, 6, 5, 0, 10, 11]
    assert pipeline.epoch_order(1, 0, 12).tolist() == [2, 0, 1, 11, 4, 5, 6, 7, 8, 10, 3, 9]


def test_order_is_a_fair_permutation():
    n, epochs = 7, 4000
    orders = np.stack([pipeline.epoch_order(5, epoch, n) for epoch in range(epochs)])
    assert orders.dtype == np.int64
    np.testing.assert_array_equal(
        np.sort(orders, axis=1), np.broadcast_to(np.arange(n), orders.shape)
    )
    # Each example at each place: epochs / n times, within five standard deviations.
    counts = np.stack([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    assert np.abs(counts - epochs / n).max() < 5 * np.sqrt(epochs / n)


def test_negative_seed():
    with pytest.raises(ValueError, match=r"^seed -1 is negative; use 0 or more$"):
        pipeline.epoch_order(-1, 0, 4)


def test_batches_walk_through_the_epochs():
    for epoch in range(3):
        order = pipeline.epoch_order(9, epoch, N)
        for k in range(2):  # 11 // 4, the last three examples are dropped
            indices = pipeline.batch_indices(9, 2 * epoch + k, N, 4)
            assert indices.dtype == np.int32
            np.testing.assert_array_equal(indices, order[4 * k : 4 * k + 4])


def test_batches_do_not_share_memory():
    first = pipeline.batch_indices(9, 0, N, 4)
    first[:] = -7
    assert pipeline.batch_indices(9, 0, N, 4).min() >= 0


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_a_batch(count):
    parts = [
        pipeline.batch_indices(3, 5, N, 8, process_index=p, process_count=count)
        for p in range(count)
    ]
    assert {len(p) for p in parts} == {8 // count}
    np.testing.assert_array_equal(np.concatenate(parts), pipeline.batch_indices(3, 5, N, 8))


@pytest.mark.parametrize(
    ("n", "batch_size", "count", "message"),
    [
        (11, 12, 1, "11 images do not fill a batch of 12; use a batch_size of 1-11"),
        (0, 4, 1, "the dataset has no images; training needs at least one batch of them"),
        (11, 6, 4, "batch_size 6 cannot be divided among 4 processes; use a multiple of 4"),
        (11, 0, 1, "batch_size 0 cannot be divided among 1 processes; use a multiple of 1"),
    ],
)
def test_impossible_batches(n, batch_size, count, message):
    with pytest.raises(ValueError) as raised:
        pipeline.batch_indices(0, 0, n, batch_size, process_count=count)
    assert str(raised.value) == message


# The resident set

gather = jax.jit(pipeline.gather)


def chunk_rows(rows):
    """A limit that `rows` images and a bit keep."""
    return rows * H * W * 3 + 7


@pytest.mark.parametrize(
    ("limit", "rows"),
    [
        (2**31 - 1, [11]),
        (chunk_rows(11), [11]),
        (chunk_rows(4), [4, 4, 3]),
        (chunk_rows(1), [1] * 11),
    ],
)
def test_gather_from_chunks(limit, rows):
    resident = pipeline.Resident(DATASET, chunk_elements=limit)
    assert [len(c) for c in resident.arrays["images"]] == rows
    assert [len(c) for c in resident.arrays["labels"]] == rows
    assert all(c.size <= limit for c in resident.arrays["images"])
    indices = np.array([10, 0, 3, 4, 4, 7, 8], np.int32)
    images, labels = gather(resident.arrays, indices)
    assert images.dtype == labels.dtype == np.uint8
    np.testing.assert_array_equal(images, IMAGES[indices])
    np.testing.assert_array_equal(labels, LABELS[indices])


def test_resident_is_replicated_by_default():
    resident = pipeline.Resident(DATASET)
    (images,) = resident.arrays["images"]
    assert images.sharding.is_fully_replicated and images.sharding.num_devices == 4


def test_a_split_batch():
    """The batch lands where its indices are."""
    split = NamedSharding(mesh_of(4), PartitionSpec("data"))
    resident = pipeline.Resident(DATASET, chunk_elements=chunk_rows(9))
    indices = np.array([10, 0, 3, 7, 5, 9, 8, 1], np.int32)
    step = jax.jit(pipeline.gather, out_shardings=(split, split))
    images, labels = step(resident.arrays, jax.device_put(indices, split))
    assert images.sharding == split
    np.testing.assert_array_equal(images, IMAGES[indices])
    np.testing.assert_array_equal(labels, LABELS[indices])


def test_impossible_resident_sets():
    with pytest.raises(ValueError, match=r"^camvid train has no images to load$"):
        pipeline.Resident(make_dataset(0))
    with pytest.raises(
        ValueError, match=r"^camvid train image frame0 has 45 values, more than fit"
    ):
        pipeline.Resident(DATASET, chunk_elements=44)


# The stream


def stream_of(dataset=DATASET, *, seed=2, batch_size=4, start_step=0, num_steps=5, **options):
    return pipeline.Streaming(
        dataset,
        seed=seed,
        batch_size=batch_size,
        start_step=start_step,
        num_steps=num_steps,
        **options,
    )


def test_both_inputs_give_the_same_bytes():
    resident = pipeline.Resident(DATASET, chunk_elements=chunk_rows(4))
    steps = 0
    with stream_of() as stream:
        for step, (images, labels, indices) in enumerate(stream):
            expected = pipeline.batch_indices(2, step, N, 4)
            assert indices.dtype == np.int32 and images.dtype == labels.dtype == np.uint8
            np.testing.assert_array_equal(indices, expected)
            held_images, held_labels = gather(resident.arrays, expected)
            np.testing.assert_array_equal(images, held_images)
            np.testing.assert_array_equal(labels, held_labels)
            np.testing.assert_array_equal(images, IMAGES[expected])
            steps += 1
    assert steps == 5


def test_resuming_is_skipping():
    whole = list(stream_of())
    rest = list(stream_of(start_step=2, num_steps=3))
    assert len(whole) == 5 and len(rest) == 3
    for a, b in zip(whole[2:], rest, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_order_does_not_depend_on_the_speed_of_files():
    """Slow examples are waited for, not overtaken."""

    def load(i):
        time.sleep(0.02 * (i % 3))
        return IMAGES[i], LABELS[i]

    for num_workers in (1, 8):
        with stream_of(make_dataset(load=load), num_workers=num_workers) as stream:
            found = [indices.tolist() for _, _, indices in stream]
        assert found == [pipeline.batch_indices(2, step, N, 4).tolist() for step in range(5)]
    batches = list(pipeline.eval_batches(make_dataset(load=load), 4, num_workers=8))
    np.testing.assert_array_equal(np.concatenate([b[0] for b in batches])[:N], IMAGES)


def test_examples_are_decoded_at_the_same_time():
    """As many as asked for, more than there may be cores: each load waits until four are under way."""
    together = threading.Barrier(4, timeout=30)

    def load(i):
        together.wait()
        return IMAGES[i], LABELS[i]

    dataset = make_dataset(8, load=load, size=(H, W))
    assert len(list(stream_of(dataset, num_workers=4))) == 5
    assert len(list(pipeline.eval_batches(dataset, 4, num_workers=4))) == 2


def test_processes_share_the_stream():
    parts = [
        np.concatenate([b[0] for b in stream_of(process_index=p, process_count=2, num_steps=1)])
        for p in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), IMAGES[pipeline.batch_indices(2, 0, N, 4)])


def test_an_exhausted_and_a_closed_stream_stay_so():
    stream = stream_of(num_steps=1)
    assert len(list(stream)) == 1 and list(stream) == []
    stream = stream_of(num_steps=100)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    assert list(stream_of(num_steps=0)) == []


def test_impossible_streams():
    with pytest.raises(ValueError, match=r"^11 images do not fill a batch of 12"):
        stream_of(batch_size=12)
    error = KeyError("a reader's own fault")

    def load(i):
        if i == 3:
            raise error
        return IMAGES[i], LABELS[i]

    with pytest.raises(KeyError) as raised:
        list(stream_of(make_dataset(load=load, size=(H, W)), num_steps=5))
    assert raised.value is error


def test_without_tensorflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError) as raised:
        stream_of()
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith("input.mode=streaming needs tensorflow")
    assert "pip install" in text and text.endswith("or use input.mode=resident")


PROGRAM = """
import os, signal, sys, time
import numpy as np
from rtseg_jax.data import pipeline, spec

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it

def load(i):
    time.sleep(0.01)
    if i == 13 and sys.argv[1] == "error":
        raise spec.DataError("a.png: bad")
    if i == 13 and sys.argv[1] == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    return np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)

dataset = spec.Dataset(spec.TABLES["camvid"], "train", tuple(map(str, range(40))), None, load)
stream = pipeline.Streaming(dataset, seed=0, batch_size=4, start_step=0, num_steps=100)
for step, batch in enumerate(stream):
    if step == 3 and sys.argv[1] == "leave":
        break
print("end")
"""


@pytest.mark.parametrize(
    ("way", "status", "last"),
    [
        ("leave", (0,), ""),
        ("error", (1,), "rtseg_jax.data.spec.DataError: a.png: bad"),
        ("interrupt", (-2, 130), "KeyboardInterrupt"),
    ],
)
def test_a_program_ends_with_its_stream_open(way, status, last):
    """Neither hangs nor drowns the error in tensorflow's own text."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert result.returncode in status, result.stderr
    assert result.stderr.strip().split("\n")[-1] == last
    # Python itself may ignore a first interrupt, in a destructor, and says so.
    text = result.stderr.split("Exception ignored in")[0] if way == "interrupt" else result.stderr
    assert text.count("Traceback") <= (way != "leave")
    assert (result.stdout == "end\n") == (way == "leave")


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 16])
def test_evaluation_drops_nothing(batch_size):
    seen = []
    batches = list(pipeline.eval_batches(DATASET, batch_size))
    assert len(batches) == -(-N // batch_size)
    for images, labels, mask, indices in batches:
        assert images.shape == (batch_size, H, W, 3) and labels.shape == (batch_size, H, W)
        assert mask.dtype == bool and indices.dtype == np.int32
        np.testing.assert_array_equal(images[mask], IMAGES[indices[mask]])
        np.testing.assert_array_equal(labels[mask], LABELS[indices[mask]])
        assert (labels[~mask] == 255).all() and (images[~mask] == 0).all()
        assert (indices[~mask] == -1).all()
        seen += indices[mask].tolist()
    assert seen == list(range(N))
    assert all(mask.all() for _, _, mask, _ in batches[:-1])


@pytest.mark.parametrize("size", [None, (H, W)])
def test_processes_share_the_evaluation(size):
    """As many batches in each, though the last one is padding alone in some."""
    dataset = make_dataset(1 + 8, size=size)
    parts = [
        list(pipeline.eval_batches(dataset, 8, process_index=p, process_count=4)) for p in range(4)
    ]
    assert [len(p) for p in parts] == [2] * 4
    seen = []
    for step in range(2):
        for part in parts:
            images, _, mask, indices = part[step]
            assert images.shape == (2, H, W, 3)
            np.testing.assert_array_equal(images[mask], IMAGES[indices[mask]])
            seen += indices[mask].tolist()
    assert seen == list(range(9))


@pytest.mark.parametrize("size", [None, (H, W)])
def test_processes_without_any_example(size):
    batches = list(
        pipeline.eval_batches(make_dataset(1, size=size), 4, process_index=3, process_count=4)
    )
    ((images, labels, mask, indices),) = batches
    assert images.shape == (1, H, W, 3) and (labels == 255).all()
    assert not mask.any() and indices.tolist() == [-1]


def test_processes_with_one_image_each_must_have_one_size():
    """None of them sees two images of a batch, which all of them together form."""

    def load(i):
        side = H - (i == 1)
        return IMAGES[i, :side], LABELS[i, :side]

    dataset = make_dataset(4, load=load)
    order = pipeline.batch_indices(2, 0, 4, 4)
    assert order[0] != 1
    for p in range(4):
        part = {"process_index": p, "process_count": 4}
        refused = pytest.raises(spec.DataError, match="frame1.* is 2x5 pixels")
        with refused if p == 1 else contextlib.nullcontext():
            list(pipeline.eval_batches(dataset, 4, **part))
        # Alone a process cannot stop: the others learn of it from the indices.
        stream = stream_of(dataset, num_steps=1, **part)
        ((_, _, indices),) = stream
        assert indices.tolist() == [-1 if order[p] == 1 else order[p]]
        assert ("frame1" in str(stream.error)) == (order[p] == 1)


def test_evaluation_refuses_before_it_starts():
    with pytest.raises(ValueError, match=r"^batch_size 6 cannot be divided among 4 processes"):
        pipeline.eval_batches(DATASET, 6, process_count=4)
    assert list(pipeline.eval_batches(make_dataset(0), 4)) == []


def test_evaluation_loads_ahead_but_not_everything():
    loaded = []

    def load(i):
        loaded.append(i)
        return IMAGES[i % N], LABELS[i % N]

    batches = pipeline.eval_batches(make_dataset(100, load=load), 4, num_workers=2)
    next(batches)
    batches.close()
    assert 4 <= len(loaded) <= 4 + 2 * 2 + 1
    assert sorted(loaded) == list(range(len(loaded)))
