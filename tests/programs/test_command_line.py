"""Every program's command line: help, mistakes in one line, paths, calls from Python."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from rtseg_jax.__main__ import PROGRAMS, main
from rtseg_jax.programs.shared.command_line import Flags, Program

ROOT = pathlib.Path(__file__).resolve().parents[2]


def program(word):
    return importlib.import_module(f"rtseg_jax.{PROGRAMS[word][0]}").PROGRAM


@pytest.mark.parametrize("word", PROGRAMS)
def test_help_tells_every_flag(word, capsys):
    assert main([word, "--help"]) == 0
    told = capsys.readouterr().out
    program(word).define(flags := Flags(()))
    assert flags.help() in told and told.index("Flags:") > 40
    assert len(flags.help().splitlines()) >= 4


@pytest.mark.parametrize("word", PROGRAMS)
def test_a_wrong_flag_is_one_line_that_names_the_nearest(word, capsys):
    program(word).define(flags := Flags(()))
    name = flags.help().split("--")[1].split("=")[0].removeprefix("[no]")
    assert main([word, f"--{name}x=1"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ")
    assert f"'{name}x'" in said and name in said.replace(f"'{name}x'", "")


@pytest.mark.parametrize("word", [word for word in PROGRAMS if not program(word).takes])
def test_a_stray_argument_is_refused(word, capsys):
    required = {"demo": ["--workdir=a"], "export": ["--network=a", "--output=b"]}
    assert main([word, "stray", *required.get(word, ["--network=a"] * (word == "evaluate"))]) == 1
    assert "unexpected argument 'stray'" in capsys.readouterr().err


def test_no_program_needs_a_heavy_package_for_its_help():
    code = f"""
import sys
from rtseg_jax.__main__ import main
for word in {list(PROGRAMS)}:
    assert main([word, "--help"]) == 0
print([m for m in ("tensorflow", "torch", "gradio") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip().endswith("[]")


def test_the_command_names_its_programs(capsys):
    assert main([]) == main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(told.count(f"rtseg {word} ") == 2 for word in PROGRAMS)
    assert main(["evalute"]) == 1
    assert capsys.readouterr().err == (
        "error: there is no program 'evalute'; did you mean 'evaluate'?\n"
    )
    assert main(["xyz"]) == 1
    assert "choose of train, check, evaluate" in capsys.readouterr().err


def test_the_home_folder_is_understood(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    flags = Flags(["--output=~/out", "--network=~/run"])
    flags.path("output", "A folder.")
    flags.network()
    given, _ = flags.parse()
    assert given.output == pathlib.Path("/home/me/out")
    assert given.network == "~/run"  # or a name, which load() tells apart


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give --network=...: A trained network: a run's folder, a bundle"),
        (["--network=a", "--workdir=b"], "--network and --workdir are two names for one thing"),
    ],
)
def test_one_network_is_asked_for(given, message):
    flags = Flags(given)
    flags.network()
    with pytest.raises(ValueError, match=message):
        flags.parse()


def test_two_programs_in_one_process_have_their_own_flags():
    seen = []

    def made(kind):
        def define(flags):
            getattr(flags, kind)(*(["in pixels"] if kind == "size" else ["size", "A word."]))

        return Program("", define, lambda given, _: seen.append(given.size))

    for _ in range(2):
        assert made("size")(["--size=2x3"]) == made("string")(["--size=large"]) == 0
    assert seen == [(2, 3), "large"] * 2


def test_what_the_user_did_wrong_is_one_line_and_a_mistake_of_ours_is_not(capsys, monkeypatch):
    monkeypatch.delenv("RTSEG_TRACEBACK", raising=False)

    def failing(error):
        def fail(*_):
            raise error

        return Program("", lambda flags: None, fail)

    assert failing(ValueError("of\nyours")).run([]) == 1
    assert capsys.readouterr().err == "error: of yours (RTSEG_TRACEBACK=1 shows where)\n"
    with pytest.raises(AssertionError):
        failing(AssertionError("of ours")).run([])
    monkeypatch.setenv("RTSEG_TRACEBACK", "1")
    with pytest.raises(ValueError):
        failing(ValueError("of yours")).run([])


def test_the_installed_command_is_the_module():
    done = subprocess.run(
        [sys.executable, "-m", "rtseg_jax", "summary", "--variants=dabnet", "--size=64x128"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert "64x128 pixels, 19 classes" in done.stdout


def test_a_reader_that_goes_is_no_error():
    command = [sys.executable, "-m", "rtseg_jax", "summary", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 141 and not said
