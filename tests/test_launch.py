"""What travels to a GPU machine: a packed CamVid, and a suite that says what it takes."""

import pathlib
import runpy
import subprocess

import numpy as np
import pytest
from PIL import Image

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / "launch"
PACKING = runpy.run_path(str(LAUNCH / "pack_camvid.py"))
SPLITS = ("train", "val", "test")


@pytest.fixture
def camvid(tmp_path):
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 32)[:, None, None] + np.arange(3) * 20
    for split in SPLITS:
        for kind in ("", "annot"):
            (tmp_path / "camvid" / f"{split}{kind}").mkdir(parents=True)
        for i in range(2):
            image = np.broadcast_to(ramp + i, (32, 48, 3)).astype(np.uint8)
            label = rng.integers(0, 12, (32, 48), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / "camvid" / split / f"{i}.png")
            Image.fromarray(label).save(tmp_path / "camvid" / f"{split}annot" / f"{i}.png")
    return tmp_path / "camvid"


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_packed_camvid_comes_back(camvid, tmp_path):
    """Labels bit for bit, images but for what JPEG loses, in the folders that data.camvid reads."""
    assert PACKING["pack"](camvid, tmp_path / "packed.zip", 95) == 6
    assert PACKING["unpack"](tmp_path / "packed.zip", tmp_path / "back") == 6
    names = sorted(path.relative_to(camvid) for path in camvid.rglob("*.png"))
    assert names == sorted(
        p.relative_to(tmp_path / "back") for p in (tmp_path / "back").rglob("*.*")
    )
    for name in names:
        before, after = read(camvid / name).astype(int), read(tmp_path / "back" / name).astype(int)
        assert np.abs(before - after).max() <= (0 if "annot" in name.parts[0] else 4), name


def test_packing_refuses_with_one_line(camvid, tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.zip is no zip file; make one with: pack_camvid.py"):
        PACKING["unpack"](tmp_path / "text.zip", tmp_path / "back")
    with PACKING["zipfile"].ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../outside.png", b"")
    with pytest.raises(ValueError, match="holds ../outside.png, which is no part of CamVid"):
        PACKING["unpack"](tmp_path / "evil.zip", tmp_path / "back")
    (camvid / "valannot" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"valannot/1.png is missing, the label of .*1.png"):
        PACKING["pack"](camvid, tmp_path / "packed.zip", 95)


@pytest.mark.parametrize("part", [[], ["no_such_part"]])
def test_suite_names_its_parts(part):
    result = subprocess.run(
        ["bash", str(LAUNCH / "gpu_suite.sh"), *part], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    for name in ("tests", "ops", "bench NET...", "camvid CONFIG"):
        assert f"launch/gpu_suite.sh {name}" in result.stderr
