"""Imports point strictly down, heavy packages stay where they belong, and this test can fail."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rtseg_jax"

# Longest prefix counts. A module imports only from floors below its own.
FLOORS = {
    "nn.form": 0,
    "nn": 0.1,
    "nn.conv": 0.2,  # ConvBatchNorm pairs a convolution with a norm
    "nn.blocks": 0.3,
    "data.spec": 0,
    "data.canvas": 0,
    "data.streets": 1,
    "data.camvid": 1,
    "data.cityscapes": 1,
    "data.nyuv2": 1,
    "data.ade20k": 1,
    "data.folder": 1,
    "data.cache": 1,
    "data.prepared": 1.1,  # what data.camvid and data.cityscapes say of their labels
    "data.builders": 6,
    "data.builders.camvid": 1.1,
    "data": 2,
    "data.pipeline": 3,
    "backbones": 1,
    "augment": 1,
    "losses": 1,
    "metrics": 1,
    "mesh": 1,
    "flops": 1,
    "published": 0,
    "tables": 0,
    "labels": -1,
    "layouts": 0,
    "drawing": 1,
    "submission": 2,
    "models.affnet": 2,
    "models.asap": 2,
    "models.carnet": 2,
    "models.eacnet": 2,
    "models": 2.1,  # the table of what models/ holds
    "step": 3,
    "infer": 3,
    "optim": 3,
    "checkpoint": 3,
    "settings": 3,
    "logs": 3,
    "evaluate": 4,
    "train": 5,
    "main": 6,
    "predict": 6,
    "demo": 6.1,  # predict, on a page
    "export": 6,
    "export_onnx": 3,
    "convert": 4.5,  # a program, and where training begins from a file
    "summary": 6,
    "check_data": 6,
    "charts": 1,
    "runs": 5,
    "report": 6,
    "bench": 6,
    "bench_rivals": 9.1,  # a process of bench's; torch_ref in those that measure it
    "torch_ref": 9,  # nobody imports it but programs, lazily
}
FORBIDDEN = {
    "nn": {"tensorflow", "torch", "ml_collections"},
    "backbones": {"tensorflow", "torch", "ml_collections"},
    "models": {"tensorflow", "torch", "ml_collections"},
    "losses": {"tensorflow", "torch", "ml_collections"},
    "augment": {"tensorflow", "torch", "ml_collections"},
    "data": {"flax", "torch", "ml_collections"},
    "torch_ref": {"jax", "flax", "tensorflow", "rtseg_jax"},
    "": {"torch"},
}
TORCH_ALLOWED = ("torch_ref",)


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def floor(module: str) -> float | None:
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in FLOORS:
            return FLOORS[".".join(parts[:end])]
    return None


def is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(source: str, top_level_only: bool = False) -> list[str]:
    """Absolute names of what is imported, `from package import module` resolved to the module."""
    tree = ast.parse(source)
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                ours = full.removeprefix("rtseg_jax.")
                found.append(
                    full if full.startswith("rtseg_jax.") and is_module(ours) else node.module
                )
    return found


def violations(module: str, source: str) -> list[str]:
    problems = []
    mine = floor(module)
    if mine is None:
        return [f"{module} stands on no floor"]
    for name in imports(source):
        if name.startswith("rtseg_jax."):
            other = name.removeprefix("rtseg_jax.")
            if floor(other) is None or floor(other) >= mine:
                if not (module.startswith("torch_ref") and other.startswith("torch_ref")):
                    problems.append(
                        f"{module} (floor {mine}) imports {other} (floor {floor(other)})"
                    )
    for prefix, packages in FORBIDDEN.items():
        if prefix and not (module == prefix or module.startswith(prefix + ".")):
            continue
        if prefix == "" and module.startswith(TORCH_ALLOWED):
            continue
        lazily = (
            prefix == "data" or prefix == ""
        )  # a function there may import one when it is called
        for name in imports(source, top_level_only=lazily):
            top = name.split(".")[0]
            if top in packages and not (prefix == "torch_ref" and "torch_ref" in name):
                problems.append(f"{module} imports {name}")
    return problems


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: module_name(p) or "rtseg_jax")
def test_imports_point_down(path):
    if module_name(path) == "":
        assert imports(path.read_text()) == []
    else:
        assert violations(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nn.pool", "from rtseg_jax import models"),
        ("models.eacnet", "from rtseg_jax.data import spec\nfrom rtseg_jax.step import TrainState"),
        ("losses", "import tensorflow"),
        ("data.spec", "import flax.linen as nn"),
        ("evaluate", "import torch"),
        ("brand_new", "import os"),
        ("torch_ref.eacnet", "import jax"),
    ],
)
def test_a_violation_is_seen(module, source):
    assert violations(module, source)


def test_configs_are_plain_data():
    for path in (ROOT / "configs").glob("*.py"):
        for name in imports(path.read_text()):
            assert name.split(".")[0] in ("ml_collections", "configs"), f"{path.name}: {name}"


HEAVY = ("tensorflow", "tensorflow_datasets", "torch", "gradio")


@pytest.mark.parametrize(
    "module",
    [
        "train",
        "evaluate",
        "predict",
        "demo",
        "report",
        "export",
        "convert",
        "summary",
        "models",
        "data.pipeline",
        "bench",
        "bench_rivals",
    ],
)
def test_importing_stays_light(module):
    code = f"import sys, rtseg_jax.{module}\nprint([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert result.stdout.strip() == "[]"


def test_help_needs_no_tensorflow():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['main', '--help']\n"
        "try: runpy.run_module('rtseg_jax.main', run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "--config" in result.stdout
    assert result.stdout.strip().endswith("[]")
