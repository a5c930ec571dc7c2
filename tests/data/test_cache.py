"""A packed copy gives the same bytes, is made again when the files change, and survives rivals, damage and full disks."""

import errno
import fcntl
import hashlib
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from rtseg_jax import data
from rtseg_jax.data import cache, pipeline, spec
from rtseg_jax.data import files as data_files

ROOT = pathlib.Path(__file__).resolve().parents[2]
N, H, W = 6, 10, 14
RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (N, H, W, 3), np.uint8)
LABELS = RNG.integers(0, 11, (N, H, W), np.uint8)
LUT = data_files.lookup((i, i) for i in range(11))


class Set:
    """Image and label files, and how often one was decoded."""

    def __init__(self, root):
        self.paths = [(root / f"{i}.png", root / f"{i}_label.png") for i in range(N)]
        self.loads = 0
        root.mkdir()
        for i in range(N):
            self.write(i, IMAGES[i], LABELS[i])

    def write(self, i, *arrays):
        for path, array in zip(self.paths[i], arrays, strict=True):
            Image.fromarray(array).save(path)

    def dataset(self):
        def load(i):
            self.loads += 1
            return data_files.read_pair(*self.paths[i], LUT)

        names = tuple(f"frame{i}" for i in range(N))
        return spec.Dataset(spec.TABLES["camvid"], "train", names, None, load)

    def packed(self, folder, **arguments):
        """Packed, and how many pairs were decoded for it."""
        self.loads = 0
        files = [path for pair in self.paths for path in pair]
        dataset = cache.packed(self.dataset(), folder, files=files, arguments=arguments)
        return dataset, self.loads


@pytest.fixture
def files(tmp_path):
    return Set(tmp_path / "set")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "cache"


def copies(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def assert_same(dataset, images=IMAGES, labels=LABELS):
    assert dataset.size == (H, W) and len(dataset) == N
    for i in range(N):
        image, label = dataset.load(i)
        assert image.dtype == label.dtype == np.uint8 and type(image) is np.ndarray
        np.testing.assert_array_equal(image, images[i])
        np.testing.assert_array_equal(label, labels[i])


def test_decoded_once(files, folder):
    dataset, loads = files.packed(folder)
    assert loads == N + 1  # the first tells the size
    assert_same(dataset)
    dataset, loads = files.packed(folder)
    assert loads == 0
    assert_same(dataset)
    (copy,) = copies(folder)
    assert copy.startswith("camvid-train-")
    assert sorted(p.name for p in (folder / copy).iterdir()) == [
        "images.npy",
        "index.json",
        "labels.npy",
    ]
    np.testing.assert_array_equal(np.load(folder / copy / "images.npy"), IMAGES)
    np.testing.assert_array_equal(np.load(folder / copy / "labels.npy"), LABELS)


def test_both_inputs_give_the_same_bytes_in_the_same_order(files, folder):
    plain, (packed, _) = files.dataset(), files.packed(folder)
    held, packed_held = (pipeline.Resident(d).arrays for d in (plain, packed))
    for kind in ("images", "labels"):
        for a, b in zip(held[kind], packed_held[kind], strict=True):
            np.testing.assert_array_equal(a, b)
    streams = [
        pipeline.Streaming(d, seed=4, batch_size=4, start_step=0, num_steps=5)
        for d in (plain, packed)
    ]
    files.loads = 0
    batches = [list(stream) for stream in streams]
    assert files.loads == 5 * 4
    assert len(batches[0]) == 5
    for a, b in zip(*batches, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    for a, b in zip(*(pipeline.eval_batches(d, 4) for d in (plain, packed)), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


# What makes it again


def test_a_changed_file(files, folder):
    before, _ = files.packed(folder)
    (copy,) = copies(folder)
    status = files.paths[2][1].stat()
    files.write(2, IMAGES[2], LABELS[3])
    # The time alone tells: the size may be the same.
    os.utime(files.paths[2][1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    after, loads = files.packed(folder)
    assert loads == N + 1 and copies(folder) == [copy]
    assert_same(after, labels=[*LABELS[:2], LABELS[3], *LABELS[3:]])
    assert_same(before)  # whoever reads the old copy goes on doing so


def test_a_file_more_takes_the_place_of_the_copy_without_it(files, folder):
    every = files.paths
    files.paths = every[:1]
    names = tuple(f"frame{i}" for i in range(N))
    one = spec.Dataset(spec.TABLES["camvid"], "train", names[:1], None, files.dataset().load)
    cache.packed(one, folder, files=every[0], arguments={})
    files.paths = every
    assert files.packed(folder)[1] == N + 1
    assert len(copies(folder)) == 1


def test_arguments_have_copies_of_their_own(files, folder):
    for arguments in ({"size": (5, 7)}, {"size": None}, {"size": (5, 7), "label_map": {"1": 2}}):
        assert files.packed(folder, **arguments)[1] == N + 1
        assert files.packed(folder, **arguments)[1] == 0
    assert len(copies(folder)) == 3


def test_streets_share_a_copy_wherever_they_are_drawn(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        data.load(
            "streets", root="", split="val", size=(32, 64), num_examples=2, cache=str(tmp_path)
        )
    assert len(list(tmp_path.glob("streets-*"))) == 1


def test_a_link_to_a_changed_file(files, folder, tmp_path):
    link, target = files.paths[2][1], tmp_path / "elsewhere.png"
    link.rename(target)
    link.symlink_to(target)
    files.packed(folder)
    os.utime(target, ns=(1, 1))
    assert files.packed(folder)[1] == N + 1


@pytest.mark.parametrize(("module", "name"), [(cache, "FORMAT"), (cache.PIL, "__version__")])
def test_another_version(files, folder, monkeypatch, module, name):
    files.packed(folder)
    monkeypatch.setattr(module, name, "0.0.0")
    assert files.packed(folder)[1] == N + 1
    assert len(copies(folder)) == 1


def test_a_file_that_has_gone_is_named_by_its_reader(files, folder):
    files.packed(folder)
    files.paths[3][0].unlink()
    with pytest.raises(spec.DataError, match=r"3\.png: cannot be read \(No such file"):
        files.packed(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.json", b""),
        ("index.json", b'{"source": {}}'),
        ("images.npy", b""),
        ("images.npy", None),
        ("labels.npy", None),
        ("labels.npy", "gone"),
    ],
)
def test_half_a_copy_is_never_used(files, folder, name, content):
    files.packed(folder)
    (copy,) = copies(folder)
    path = folder / copy / name
    if content == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    dataset, loads = files.packed(folder)
    assert loads == N + 1 and copies(folder) == [copy]
    assert_same(dataset)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_a_flipped_bit_is_noticed(files, folder, name):
    files.packed(folder)
    (copy,) = copies(folder)
    content = bytearray((folder / copy / name).read_bytes())
    content[-1] ^= 1  # of the last example
    (folder / copy / name).write_bytes(content)
    dataset, loads = files.packed(folder)
    assert loads == 0
    dataset.load(N - 2)
    for _ in range(2):
        with pytest.raises(spec.DataError) as raised:
            dataset.load(N - 1)
    assert str(raised.value) == (
        f"{folder / copy}: the packed copy of frame5 is damaged; "
        "delete the folder, and it is packed again"
    )


# What cannot be packed


def test_sizes_that_differ(files, folder):
    files.write(4, IMAGES[4, :8], LABELS[4, :8])
    with pytest.raises(spec.DataError) as raised:
        files.packed(folder)
    assert str(raised.value) == (
        "camvid train image frame4 is 8x14 pixels (h x w), the first one 10x14; a packed copy holds "
        "one size: set input.size=(h, w), which all are then resized to, or input.cache='' for none"
    )
    assert copies(folder) == []


def test_a_damaged_file_leaves_nothing(files, folder):
    files.paths[3][1].write_bytes(b"")
    with pytest.raises(spec.DataError, match=r"3_label\.png: the file is empty; copy it again$"):
        files.packed(folder)
    assert copies(folder) == []
    files.write(3, IMAGES[3], LABELS[3])
    assert_same(files.packed(folder)[0])


def test_a_file_that_changes_meanwhile(files, folder, monkeypatch):
    """It was read before the change, or after; nobody knows."""
    write = cache._write

    def write_and_change(*arguments):
        checksums = write(*arguments)
        files.write(1, IMAGES[0], LABELS[0])
        os.utime(files.paths[1][0], ns=(1, 1))
        return checksums

    monkeypatch.setattr(cache, "_write", write_and_change)
    with pytest.raises(spec.DataError, match=r"/1\.png: changed while it was read; start again$"):
        files.packed(folder)
    assert copies(folder) == []


def test_no_images(folder):
    empty = spec.Dataset(spec.TABLES["camvid"], "train", (), None, lambda i: None)
    with pytest.raises(ValueError, match=r"^camvid train has no images to pack$"):
        cache.packed(empty, folder, files=[], arguments={})


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_the_way(files, tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as raised:
        files.packed(tmp_path / "file" / below)
    assert str(raised.value).startswith(f"input.cache {tmp_path / 'file' / below} is a file or")


TOO_SMALL = "camvid train takes 0.00 GB packed, but {}; make room, set input.cache to another disk"


def test_too_little_room(files, folder, monkeypatch):
    """Told before anything is written."""
    need = N * H * W * 4
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=need - 1))
    with pytest.raises(ValueError) as raised:
        files.packed(folder)
    assert TOO_SMALL.format("0.00 GB are free") in str(raised.value)
    assert copies(folder) == []
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage._replace(free=need))
    assert_same(files.packed(folder)[0])


def test_a_disk_that_fills(files, folder):
    """The system refuses a write half-way: one line, and nothing is left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (N * H * W, limits[1]))
    try:
        with pytest.raises(ValueError) as raised:
            files.packed(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(raised.value).startswith(f"{folder}: ")
    assert TOO_SMALL.format("file too large") in str(raised.value)
    assert copies(folder) == []
    assert_same(files.packed(folder)[0])


# Several processes


@pytest.mark.parametrize("locks", [True, False])
def test_rivals_in_one_process(files, folder, monkeypatch, locks):
    """One decodes; where there are no locks, all have decoded everything before the first one is ready."""
    together = threading.Barrier(1 if locks else 3, timeout=30)
    if not locks:

        def refuse(file, operation):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
    load, found = files.dataset().load, []

    def slow(i):
        pair = load(i)
        if i == N - 1:
            together.wait()
        return pair

    def run():
        names = tuple(f"frame{i}" for i in range(N))
        dataset = spec.Dataset(spec.TABLES["camvid"], "train", names, None, slow)
        paths = [path for pair in files.paths for path in pair]
        found.append(cache.packed(dataset, folder, files=paths, arguments={}))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(copies(folder)) == 1
    assert files.loads == (N + 1) * (1 if locks else 3)
    for dataset in found:
        assert_same(dataset)


PROGRAM = """
import hashlib, pathlib, sys
import numpy as np
from rtseg_jax.data import cache, files as data_files, spec

root, folder = map(pathlib.Path, sys.argv[1:])
paths = [(root / f"{i}.png", root / f"{i}_label.png") for i in range(6)]
lut = data_files.lookup((i, i) for i in range(11))
names = tuple(map(str, range(6)))
dataset = spec.Dataset(spec.TABLES["camvid"], "train", names, None, lambda i: data_files.read_pair(*paths[i], lut))
files = [path for pair in paths for path in pair]
print("ready", flush=True)
for round in range(20):
    sys.stdin.readline()
    packed = cache.packed(dataset, folder / str(round), files=files, arguments={})
    pairs = b"".join(array.tobytes() for i in range(6) for array in packed.load(i))
    print(hashlib.sha256(pairs).hexdigest(), flush=True)
"""


def test_rival_processes(files, folder):
    """Started together, twenty times, half of them with a copy in the way that is out of date."""
    pairs = b"".join(a.tobytes() for i in range(N) for a in (IMAGES[i], LABELS[i]))
    expected = hashlib.sha256(pairs).hexdigest()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(files.paths[0][0].parent), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    try:
        assert [p.stdout.readline() for p in started] == ["ready\n"] * 2
        for number in range(20):
            if number % 2:
                files.packed(folder / str(number))
                (copy,) = copies(folder / str(number))
                index = folder / str(number) / copy / "index.json"
                index.write_text(index.read_text().replace("frame", "other"))
            for process in started:
                process.stdin.write("go\n")
                process.stdin.flush()
            assert [p.stdout.readline().strip() for p in started] == [expected] * 2
            assert len(copies(folder / str(number))) == 1
    finally:
        for process in started:
            process.stdin.close()
            process.stdout.close()
            process.wait()


def test_what_killed_processes_left(files, folder):
    """Removed when it is a day old; a younger one may still be at work."""
    files.packed(folder)
    (copy,) = copies(folder)
    (folder / copy / "index.json").unlink()
    old, young = folder / f".{copy}-old", folder / f".{copy}-young"
    for half_made in (old, young):
        half_made.mkdir()
        (half_made / "images.npy").write_bytes(b"half")
    for path in (old / "images.npy", old):
        os.utime(path, (1, 1))
    files.packed(folder)
    assert copies(folder) == [young.name, copy]


def test_the_index_tells_what_it_was_made_from(files, folder):
    files.packed(folder, size=(H, W))
    (copy,) = copies(folder)
    index = json.loads((folder / copy / "index.json").read_text())
    source, first = index["source"], files.paths[0][0]
    assert source["files"][0] == [str(first), first.stat().st_size, first.stat().st_mtime_ns]
    assert source["names"] == [f"frame{i}" for i in range(N)]
    assert source["arguments"] == {"size": [H, W]} and len(index["checksums"]) == N
