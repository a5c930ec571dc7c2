"""The whole loop on tiny rendered streets: it learns, resumes bit for bit, is the same on any devices."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from rtseg_jax import main
from rtseg_jax.base import config as settings
from rtseg_jax.base import mesh
from rtseg_jax.base.mesh import make_mesh
from rtseg_jax.programs.evaluate import main as evaluate
from rtseg_jax.programs.shared.command_line import Flags, Program
from rtseg_jax.train import loop, step
from rtseg_jax.train.begin import begin
from rtseg_jax.weights import checkpoint
from tests import tiny
from tests.networks import shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("tiny_network")


def final_state(workdir):
    with checkpoint.open_manager(pathlib.Path(workdir), read_only=True) as manager:
        step = manager.latest_step()
        tree = manager.restore(step, args=checkpoint.ocp.args.StandardRestore())
    return step, {
        jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def log(workdir):
    return [
        json.loads(x) for x in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    ]


def assert_same_run(a, b):
    step_a, state_a = final_state(a)
    step_b, state_b = final_state(b)
    assert step_a == step_b
    assert state_a.keys() == state_b.keys()
    for name, value in state_a.items():
        np.testing.assert_array_equal(value, state_b[name], err_msg=name)
    assert log(a) == log(b)


@contextlib.contextmanager
def stopped_at(step):
    """Within the context a run is sent SIGTERM while a step is logged."""
    check = loop._check_and_log

    def interrupted(window, done, *rest):
        check(window, done, *rest)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_check_and_log", interrupted)
        yield


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "four"
    config = tiny.config(num_steps=4, eval__every_steps=2, ema_decay=0.9)
    result = loop.train_and_evaluate(config, str(workdir))
    return workdir, result


def test_what_a_run_leaves_behind(four_steps):
    workdir, result = four_steps
    lines = log(workdir)
    assert [x["step"] for x in lines if "loss" in x] == [1, 2, 3, 4]
    assert [x["step"] for x in lines if "miou" in x] == [2, 4]
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["miou"] == result["miou"]
    assert report["images"] == 3
    assert set(report["iou"]) >= {"road", "sky", "bicycle"}
    confusion = np.array(report["confusion"])
    assert confusion.shape == (19, 19)
    assert 0.8 * 3 * 64 * 128 < confusion.sum() <= 3 * 64 * 128  # void does not count
    assert len(list((workdir / "overlays").glob("*.png"))) == 1
    assert list(workdir.glob("events.out.tfevents*"))
    assert "backbone/stem/conv/kernel (3, 3, 3, 8)" in (workdir / "params.txt").read_text()
    assert json.loads((workdir / "config.json").read_text())["num_steps"] == 4


def test_evaluating_the_run_again_gives_the_same_figures(four_steps, tmp_path):
    workdir, result = four_steps
    scores = evaluate.evaluate_run(
        workdir, split="val", which="best", output=tmp_path / "out", batch_size=2, overlays=1
    )
    assert scores.miou == pytest.approx(result["miou"], abs=1e-4)
    assert (tmp_path / "out" / "evaluation.json").exists()


def test_two_and_two_steps_are_four(four_steps, tmp_path, capsys):
    """Stopped by a signal while step 2 is logged and started again: the same log and weights, bit for bit."""
    whole, _ = four_steps
    config = tiny.config(num_steps=4, eval__every_steps=2, ema_decay=0.9)
    with stopped_at(2):
        result = loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert result == {"step": 3, "miou": None}
    assert "the same command goes on" in capsys.readouterr().out
    loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert f"resuming {tmp_path / 'run'} at step 3 of 4" in capsys.readouterr().out
    assert_same_run(whole, tmp_path / "run")


def test_streaming_and_resident_input_train_the_same(four_steps, tmp_path):
    pytest.importorskip("tensorflow")
    config = tiny.config(num_steps=4, eval__every_steps=2, ema_decay=0.9, input__mode="streaming")
    loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert_same_run(four_steps[0], tmp_path / "run")


def test_one_device_equals_four(tmp_path, monkeypatch):
    """With small steps of SGD: Adam's have the size of the rate however small a gradient, so they amplify rounding."""
    config = tiny.config(num_steps=3, optim__method__name="sgd", optim__lr=0.001)
    for name, devices in (("four", jax.devices()), ("one", jax.devices()[:1])):
        chosen = make_mesh(devices)
        assert chosen.devices.size == {"four": 4, "one": 1}[name]
        monkeypatch.setattr(mesh, "make_mesh", lambda chosen=chosen: chosen)
        loop.train_and_evaluate(config, str(tmp_path / name))
    for a, b in zip(log(tmp_path / "four"), log(tmp_path / "one"), strict=True):
        assert a["step"] == b["step"]
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    _, four = final_state(tmp_path / "four")
    _, single = final_state(tmp_path / "one")
    compared = 0
    for name, value in four.items():
        if "batch_stats" in name:
            np.testing.assert_allclose(value, single[name], rtol=2e-3, atol=2e-4, err_msg=name)
            compared += 1
    assert compared == 8  # of the average, too


def test_few_steps_wait_for_the_devices(tmp_path, monkeypatch):
    """Though nothing is logged: over several CPU devices too many at once never end."""
    begun, ended = [], set()
    make, wait = loop.make_train_step, jax.block_until_ready

    def counted(*arguments, **options):
        step = make(*arguments, **options)

        def count(*batch):
            state, logged = step(*batch)
            begun.append(id(logged))
            assert len(begun) - len(ended) <= loop.IN_FLIGHT + 1
            kept.append(logged)
            return state, logged

        return count

    def waited(logged):
        ended.update(begun[: begun.index(id(logged)) + 1])
        return wait(logged)

    kept = []  # an id is one object's as long as it lives
    monkeypatch.setattr(loop, "IN_FLIGHT", 2)
    monkeypatch.setattr(loop, "make_train_step", counted)
    monkeypatch.setattr(jax, "block_until_ready", waited)
    config = tiny.config(num_steps=7, log_every=7, eval__every_steps=7)
    loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert len(begun) == 7 and len(ended) == 5


def test_a_run_cut_short_before_it_was_evaluated_reports_what_it_has(tmp_path, capsys):
    config = {"num_steps": 4, "eval__every_steps": 4, "log_every": 1}
    with stopped_at(2):
        stopped = loop.train_and_evaluate(tiny.config(**config), str(tmp_path / "run"))
    result = loop.train_and_evaluate(
        tiny.config(**config | {"num_steps": 1}), str(tmp_path / "run")
    )
    assert result["step"] == stopped["step"] < 4
    assert "mIoU" in capsys.readouterr().out


def test_stage_two_begins_with_stage_one(four_steps, tmp_path, capsys):
    """As EACNet's: backbone and classifier come from the first, the attention is fresh."""
    first = tmp_path / "first"
    loop.train_and_evaluate(
        tiny.config(num_steps=2, model__options={"attention": "none"}), str(first)
    )
    capsys.readouterr()
    config = tiny.config(num_steps=2, init_from__network=str(first), optim__lr=0.0)
    loop.train_and_evaluate(config, str(tmp_path / "second"))
    assert f"initialised from {first}, step 2; drawn anew: attention\n" in capsys.readouterr().out
    _, one = final_state(first)
    _, two = final_state(tmp_path / "second")
    shared = [n for n in one if n.startswith("['ema']['params']")]
    assert len(shared) == 8
    for name in shared:  # a learning rate of 0 keeps what was taken
        np.testing.assert_array_equal(
            two[name.replace("ema", "params", 1).replace("['params']['params']", "['params']")],
            one[name],
        )
    assert not np.any(two["['params']['attention']['alpha']"])


def test_backbone_from_a_torch_file(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from rtseg_jax import torch_ref

    twin = torch_ref.create("dabnet", 7)
    torch.save(twin.state_dict(), tmp_path / "dabnet.pth")
    file = str(tmp_path / "dabnet.pth")
    config = tiny.override(settings.load("eacnet:smoke"), {"init_from__file": file})
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes("eacnet_dabnet", 19))
    tx = optax.sgd(0.1)
    with checkpoint.open_manager(tmp_path) as manager:
        fresh = step.create_state(zeros, tx, ema=False)
        state = begin(config, tmp_path, manager, fresh, tx, make_mesh(), 1)
    assert "dabnet.pth; drawn anew: attention, classifier" in capsys.readouterr().out
    kernel = twin.backbone.block1_2.conv3x3.weight.detach().numpy().transpose(2, 3, 1, 0)
    params = state.now()["params"]
    np.testing.assert_array_equal(params["backbone"]["block1_2"]["conv3x3"]["kernel"], kernel)
    assert not np.any(params["classifier"]["kernel"])


def test_two_stages_are_one_command(tmp_path, capsys):
    config = tiny.config(num_steps=3, init_from__first=(("model.options.attention", "none"),))
    whole, cut = str(tmp_path / "whole"), str(tmp_path / "cut")
    loop.train_and_evaluate(config, whole)
    said = capsys.readouterr().out
    assert re.search(rf"initialised from {whole}/first, step \d; drawn anew: attention\n", said)
    assert "attention" not in (tmp_path / "whole/first/params.txt").read_text()
    for _ in range(2):  # within the first stage, then within the second
        with stopped_at(1):
            assert loop.train_and_evaluate(config, cut)["miou"] is None
    loop.train_and_evaluate(config, cut)
    assert_same_run(whole, cut)
    assert "resuming" in capsys.readouterr().out


def test_whatever_fits_is_taken_with_its_normalisation(tmp_path, capsys):
    """What one's own data begin with: another list of classes, and no mean of its own."""
    first = tmp_path / "first"
    shown = {"augment__mean": (1.0, 2.0, 3.0), "augment__channels": "bgr"}
    loop.train_and_evaluate(tiny.config(num_steps=2, **shown), str(first))
    root = tmp_path / "mine"
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True)
            for i in range(4):
                values = np.random.default_rng(i).integers(0, 3, (64, 96), np.uint8)
                Image.fromarray(values).save(root / kind / split / f"{i}.png")
    (root / "classes.txt").write_text("a\nb\nc\n")
    config = tiny.config(
        "folder:eacnet_dabnet,smoke",
        input__dataset="folder",
        input__root=str(root),
        input__size=(64, 96),
        input__num_train=None,
        optim__lr=0.0,
        init_from__network=str(first),
        augment__mean=None,
        augment__std=None,
    )
    capsys.readouterr()
    loop.train_and_evaluate(config, str(tmp_path / "second"))
    said = capsys.readouterr().out
    assert "drawn anew: attention/value, classifier\n" in said, said
    used = json.loads((tmp_path / "second" / "config.json").read_text())["augment"]
    assert used["mean"] == [1.0, 2.0, 3.0] and used["channels"] == "bgr" and "note:" not in said
    (_, one), (_, two) = (final_state(tmp_path / name) for name in ("first", "second"))
    name = "['params']['backbone']['block']['conv']['kernel']"
    np.testing.assert_array_equal(two[name], one[f"['ema']{name}"])


def test_what_a_network_was_shown_otherwise_is_said(four_steps, tmp_path, capsys):
    shown = {"augment__std": (9.0, 9.0, 9.0), "augment__channels": "bgr"}
    config = tiny.config(num_steps=2, init_from__network=str(four_steps[0]), **shown)
    capsys.readouterr()
    loop.train_and_evaluate(config, str(tmp_path / "run"))
    assert (
        f"note: {four_steps[0]} was trained with --config.augment.std=(60.0, 60.0, 60.0)"
        " --config.augment.channels=rgb; this run is not" in capsys.readouterr().out
    )


def test_how_the_paper_begins_is_said_where_a_run_does_not(tmp_path, capsys):
    for name in ("asap", "eacnet", "carnet:resnet50,nyuv2"):
        assert settings.load(name).init_from.papers
    for name in ("asap:streets", "eacnet:two_stage", "eacnet:stage1", "asap:smoke"):
        assert not settings.load(name).init_from.papers
    loop.train_and_evaluate(
        tiny.config(num_steps=1, init_from__papers="a hat"), str(tmp_path / "run")
    )
    assert "note: all weights are drawn; the paper begins with a hat\n" in capsys.readouterr().out


def test_stage_two_without_a_first_run_says_so(tmp_path):
    config = tiny.config(init_from__required=True)
    with pytest.raises(ValueError, match="--config.init_from.network=RUN"):
        loop.train_and_evaluate(config, str(tmp_path / "run"))


def test_another_network_in_the_same_folder_is_refused(four_steps, tmp_path):
    import shutil

    shutil.copytree(four_steps[0], tmp_path / "run")
    config = tiny.config(num_steps=4, model__options={"attention": "none"}, ema_decay=0.9)
    with pytest.raises(ValueError, match="only in the file: .*attention"):
        loop.train_and_evaluate(config, str(tmp_path / "run"))


def test_crop_schedule():
    schedule = ((0.5, (1, 2)), (0.85, (3, 4)))
    assert loop.crop_at(0.0, (5, 6), schedule) == (1, 2)
    assert loop.crop_at(0.5, (5, 6), schedule) == (3, 4)
    assert loop.crop_at(0.9, (5, 6), schedule) == (5, 6)
    assert loop.crop_at(0.0, (5, 6), ()) == (5, 6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"batch_size": 6}, "6 cannot be divided among 4 devices; use 4 or 8"),
        ({"batch_size": 16}, "batch_size 16 exceeds the 8 images"),
        ({"model__name": "eacnett_dabnet"}, "did you mean 'eacnet_dabnet'"),
        (
            {"input__mode": "resdent"},
            "input.mode='resdent' is impossible; allowed: resident or str",
        ),
        ({"optim__method__name": "lion"}, "choose one of adam, adamw, sgd"),
        ({"loss__kind": "dice"}, "'cross_entropy' or 'ohem'"),
        ({"init_from__file": "a.pth", "init_from__network": "b"}, "both given; choose one"),
        ({"init_from__file": "nothing.pth"}, "no file nothing.pth"),
    ],
)
def test_wrong_values_are_one_line(overrides, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        loop.train_and_evaluate(tiny.config(**overrides), str(tmp_path / "run"))
    assert "\n" not in str(error.value)


def test_workdir_needs_its_parent(tmp_path):
    with pytest.raises(FileNotFoundError, match="parent folder does not exist"):
        loop.train_and_evaluate(tiny.config(), str(tmp_path / "a" / "b"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=eacnet:smoke", "--workdir=w", "--config.optm.lr=1"], "config.optim.lr?"),
        (["--config=eacnet:smoke", "--workdir=w", "--config.optm.lr=None"], "config.optim.lr?"),
        (
            ["--config=eacnet:smoke", "--workdir=w", "--config.seed=None"],
            "allowed: 0 to 4294967295",
        ),
        (["--config=eacnet:smoke", "--workdir=w", "--config.optim.lr=fast"], "fast"),
        (["--config=ecanet", "--workdir=w"], "did you mean 'eacnet'"),
        (["--config=eacnet:dab", "--workdir=w"], "unknown argument 'dab'"),
        (["--config=eacnet:camvid", "--workdir=w"], "streets"),
        (["--workdir=w", "--confg=x"], "confg"),
        (["--config=eacnet:smoke", "--workdir=no/such/w"], "parent folder"),
    ],
)
def test_the_program_answers_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "prepare_process", lambda: None)
    assert main.PROGRAM.run(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said


def started(*arguments, cwd):
    """The program in a process of its own, with the tiny network."""
    return subprocess.Popen(
        [sys.executable, "-m", "rtseg_jax.main", f"--config={tiny.FILE}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
    )


def test_a_run_that_is_refused_when_its_checkpoints_are_open_ends_its_process(tmp_path):
    process = started("--workdir=w", "--config.init_from.file=no.pth", cwd=tmp_path)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in said
    (error,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert "no.pth" in error


def test_values_of_the_command_line_that_ml_collections_misreads(capsys):
    """Of None it would make (None,) in a tuple and an error of a number, and of a,b ("a,b",)."""

    def show(given, _):
        found = [given.config.input[key] for key in ("size", "num_train", "root")]
        print(*found, given.config.init_from.modules)

    program = Program("", Flags.config, show)
    given = [
        "--config=eacnet:smoke",
        "--config.input.size=None",
        "--config.input.num_train",
        "None",
    ]
    again = [*given, "--config.input.size=(8,9)", "--config.input.root=Nonesuch"]
    two = ["--config.init_from.modules", "backbone,attention", "--config.input.size=8,9"]
    usual = "('backbone', 'classifier')"
    for arguments, printed in (
        (given, f"None None data/cityscapes {usual}"),
        (given[:1], f"(64, 128) 8 data/cityscapes {usual}"),
        (again, f"(8, 9) None Nonesuch {usual}"),
        ([*given[:1], "--config.input.root=a,b"], f"(64, 128) 8 a,b {usual}"),
        ([*given[:1], *two], "(8, 9) 8 data/cityscapes ('backbone', 'attention')"),
        ([*given[:1], "--config.init_from.modules=a"], "(64, 128) 8 data/cityscapes ('a',)"),
    ):
        program(arguments)
        assert capsys.readouterr().out.strip() == printed


@pytest.mark.usefixtures("usual_signals")
def test_a_run_whose_terminal_goes_is_saved(tmp_path):
    """SIGHUP, and nobody at the other end of stdout: the state of the last step is there."""
    options = ["--config.num_steps=500", "--config.eval.every_steps=500", "--config.log_every=1"]
    process = started("--workdir=run", *options, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    process.send_signal(signal.SIGHUP)
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    step, _ = final_state(tmp_path / "run")
    assert 2 <= step == log(tmp_path / "run")[-1]["step"] < 500


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--workdir=stopped"], 0),
        (["--workdir=stopped", "--stopped_exit_code=75"], 75),
        (["--workdir=done", "--stopped_exit_code=75"], 0),
    ],
)
def test_the_exit_code_says_what_a_scheduler_is_to_know(flags, code, monkeypatch):
    def train(config, workdir):
        return {"step": 3, "miou": None if "stopped" in workdir else 0.5}

    monkeypatch.setattr(main, "train_and_evaluate", train)
    monkeypatch.setattr(main, "prepare_process", lambda: None)
    assert main.PROGRAM([*flags, "--config=fast_scnn:smoke"]) == code


def test_without_a_workdir_a_run_goes_to_a_folder_of_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "prepare_process", lambda: None)
    seen = []
    monkeypatch.setattr(
        main, "train_and_evaluate", lambda config, path: seen.append(path) or {"miou": 1.0}
    )
    assert main.PROGRAM(["--config=eacnet:erfnet,smoke"]) == 0
    assert seen == [pathlib.Path("runs/eacnet-erfnet-smoke")] and pathlib.Path("runs").is_dir()
    assert capsys.readouterr().out == "the run goes to runs/eacnet-erfnet-smoke\n"
    assert main.default_name("/x/configs/asap.py:") == "asap"
