"""What README and docs/ show can be typed in: programs, flags, configs, keys, links; and the example of a set of one's own runs."""

import importlib
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from rtseg_jax.__main__ import PROGRAMS
from rtseg_jax.base import config as settings
from rtseg_jax.programs import check_data
from rtseg_jax.programs.shared import command_line
from rtseg_jax.train import loop

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = {p.relative_to(ROOT).as_posix(): p for p in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def commands():
    """(page, command) of every line, in a block or in backquotes, that starts a program of ours or a script of launch/."""
    for page, path in PAGES.items():
        text = path.read_text()
        lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
        lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        for line in lines:
            if "rtseg_jax." in line and "python -m" in line:
                yield page, line[line.index("python -m") :]
            elif re.match(r"rtseg [a-z]+ ?[^ ]", line):
                yield page, line
            elif re.match(r"(sbatch .*)?launch/\w+\.sh ", line):
                yield page, line


COMMANDS = sorted(set(commands()))


def flags_of(program):
    """Names of the flags that a program defines."""
    module = importlib.import_module(f"rtseg_jax.{PROGRAMS[program][0]}")
    module.PROGRAM.define(flags := command_line.Flags(()))
    return set(re.findall(r"^  --(?:\[no\])?(\w+)", flags.help(), re.M)) | {"help"}


def test_there_are_commands_on_every_page():
    assert {page for page, _ in COMMANDS} == PAGES.keys()
    assert len(COMMANDS) > 30
    shown = {command.split()[1] for _, command in COMMANDS if command.startswith("rtseg ")}
    assert shown == PROGRAMS.keys()


@pytest.mark.parametrize("page, command", COMMANDS)
def test_command_can_be_typed_in(page, command):
    words = [w for w in shlex.split(command, comments=True) if w != "..."]
    if words[0] == "rtseg":
        program, arguments = words[1:2], words[2:]
    elif words[0] == "python":
        if words[2] != "rtseg_jax.main":
            assert words[2] == "rtseg_jax.data.builders"
            return
        program, arguments = ["train"], words[3:]
    else:
        scripts = [w for w in words if w.startswith("launch/")]
        assert (ROOT / scripts[0]).is_file()
        if scripts[0] not in ("launch/slurm.sh", "launch/multihost.sh"):
            return
        program, arguments = ["train"], words[words.index(scripts[0]) + 1 :]
        if "--" in arguments:
            arguments = arguments[arguments.index("--") + 1 :]
    known = flags_of(*program)
    config, keys = None, []
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        name, _, value = argument.removeprefix("--").partition("=")
        if name == "config" and value != "...":
            config = settings.load(value)
        elif name.startswith("config."):
            keys.append(name.removeprefix("config."))
        else:
            assert name in known, name
    if keys and config is not None:
        assert set(keys) <= set(settings.keys(config))


@pytest.mark.parametrize("page", PAGES)
def test_keys_and_links_exist(page):
    text = PAGES[page].read_text()
    every = set(settings.keys(settings.load("eacnet"))) | set(
        settings.keys(settings.load("affnet"))
    )
    named = set(re.findall(r"--config\.([a-z_.]+[a-z_])", text))
    assert named <= every
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not link.startswith("https://"):
            assert (PAGES[page].parent / link).exists(), link


def test_readme_segments_its_photo(tmp_path, monkeypatch):
    """With the network that comes with the package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (code,) = blocks(PAGES["README.md"].read_text(), "python")
    exec(compile(code, "readme", "exec"), found := {})
    with Image.open(ROOT / "docs" / "street.jpg") as photo:
        assert found["classes"].shape == photo.size[::-1]
    shares = dict(zip(*np.unique(found["classes"], return_counts=True), strict=True))
    names = found["network"].class_names
    assert {"sky", "building", "road"} <= {names[c] for c in sorted(shares, key=shares.get)[-5:]}
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.width == found["classes"].shape[1]


def test_own_data_example_runs(tmp_path, monkeypatch, capsys):
    """The set is drawn, passes check_data, and is trained on."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(PAGES["docs/own_data.md"].read_text(), "python")
    exec(compile(code, "own_data", "exec"), {})
    config = settings.load("folder:fast_scnn")
    config.input.root, config.input.mode = "shapes", "resident"
    assert check_data.check(config, tmp_path / "check") == []
    assert (tmp_path / "check" / "contact_sheet.png").is_file()
    config.augment.crop = (96, 128)
    config.num_steps, config.batch_size, config.log_every = 2, 4, 1
    config.eval.update({"every_steps": 2, "batch_size": 4})
    result = loop.train_and_evaluate(config, "run")
    assert result["step"] == 2 and np.isfinite(result["miou"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("ground", "disc", "square", "folder: 64 train"))
