"""Who may import whom is read from the folders; and importing stays light."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rtseg_jax"
LAYERS = (  # from the ground up; the folders of one row know nothing of each other
    ("base",),
    ("nn", "data", "weights", "torch_ref"),
    ("models",),
    ("inference",),
    ("train",),
    ("programs",),
)  # main.py, __main__.py and __init__.py stand on top
ROW = {folder: row for row, folders in enumerate(LAYERS) for folder in folders}
HEAVY = ("tensorflow", "tensorflow_datasets", "torch", "gradio")
# What a folder's files never import; where it is lazy, functions may.
FORBIDDEN = {
    "torch_ref": ("jax", "flax", "tensorflow", "ml_collections"),
    "nn": ("tensorflow", "torch", "ml_collections"),
    "models": ("tensorflow", "torch", "ml_collections"),
    "data": ("flax", "torch", "ml_collections"),
    "weights": ("ml_collections",),
}
GROWING = ("models/zoo", "torch_ref")  # with the networks


def modules(package):
    """Dotted name -> source of every file of a package."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        names[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return names


def imports(source, known, top_level_only=False):
    """Dotted names of what is imported; `from package import module` is the module."""
    tree = ast.parse(source)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module


def room(module):
    """The folder that a module is in; "" for what stands on top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROW else ""


def wrong(module, other):
    """Whether a module may not import another one, both as "rtseg_jax.folder.file"."""
    mine, theirs = room(module), room(other)
    if "torch_ref" in (mine, theirs):
        return mine != theirs and (mine, theirs) != ("programs", "torch_ref")
    if mine == theirs == "programs":  # a program imports its own files, and programs/shared/
        return len({module.split(".")[2], other.split(".")[2], "shared"}) == 3
    return mine not in ("", theirs) and not ROW.get(theirs, len(LAYERS)) < ROW[mine]


def findings(package):
    """Every import that points the wrong way, every one of a forbidden package, every circle."""
    sources = modules(package)
    graph = {
        name: {other for other in imports(source, sources) if other in sources} - {name}
        for name, source in sources.items()
    }
    found = [f"{a} imports {b}" for a in graph for b in sorted(graph[a]) if wrong(a, b)]
    for name, source in sources.items():
        if ".builders." in name:  # TFDS's own form of a data set
            continue
        lazy = room(name) not in ("nn", "models", "torch_ref")
        outside = {other.split(".")[0] for other in imports(source, sources, lazy)}
        banned = (*FORBIDDEN.get(room(name), ()), *(HEAVY if lazy else ()))
        found += [f"{name} imports {other}" for other in sorted(outside & {*banned})]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' -> '.join(error.args[1])}")
    return found


def test_imports_point_down():
    assert findings(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"nn/pool": "from rtseg_jax import models"}, "rtseg_jax.nn.pool imports rtseg_jax.models"),
        (
            {"programs/demo": "from rtseg_jax.programs.predict import main"},
            "rtseg_jax.programs.demo imports rtseg_jax.programs.predict.main",
        ),
        ({"base/mesh": "import rtseg_jax"}, "rtseg_jax.base.mesh imports rtseg_jax"),
        (
            {"weights/a": "from rtseg_jax.data import x"},
            "rtseg_jax.weights.a imports rtseg_jax.data",
        ),
        (
            {"train/loop": "from rtseg_jax import torch_ref"},
            "train.loop imports rtseg_jax.torch_ref",
        ),
        ({"nn/a": "import rtseg_jax.nn.b", "nn/b": "import rtseg_jax.nn.a"}, "circle: "),
        ({"models/net": "def f():\n    import torch"}, "rtseg_jax.models.net imports torch"),
        ({"inference/a": "import tensorflow"}, "rtseg_jax.inference.a imports tensorflow"),
        ({"data/a": "import flax.linen as nn"}, "rtseg_jax.data.a imports flax"),
        ({"torch_ref/net": "import jax"}, "rtseg_jax.torch_ref.net imports jax"),
    ],
)
def test_a_wrong_import_is_named(tmp_path, files, expected):
    package = tmp_path / "rtseg_jax"
    folders = ("", *ROW, "programs/predict", "programs/shared")
    there = {f"{folder}/__init__".lstrip("/"): "" for folder in folders}
    there |= {"programs/predict/main": "from rtseg_jax.programs.shared import line"}
    there |= {"programs/shared/line": "import rtseg_jax.nn"}
    for name, source in there.items():
        (package / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(source)
    assert findings(package) == []
    for name, source in files.items():
        (package / f"{name}.py").write_text(source)
    assert [line for line in findings(package) if expected in line]


def test_the_picture_stays_clear():
    """The package shows twelve names, and no folder is a crowd."""
    shown = {
        path.name for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "_shipped")
    }
    assert shown == {"__init__.py", "__main__.py", "main.py", *ROW}
    for folder in (path for path in PACKAGE.rglob("*") if path.is_dir()):
        name = folder.relative_to(PACKAGE).as_posix()
        if "__pycache__" not in name and name not in GROWING:
            entries = [path for path in folder.iterdir() if path.name != "__pycache__"]
            assert len(entries) <= 12, f"{name} holds {len(entries)} entries"


def test_configs_are_plain_data():
    for path in (ROOT / "configs").glob("*.py"):
        for name in imports(path.read_text(), ()):
            allowed = name.split(".")[0] in ("ml_collections", "configs")
            assert allowed or name == "rtseg_jax.base", f"{path.name}: {name}"  # of imagenet.py


def test_importing_stays_light():
    """No module loads a heavy package before a function of it is called; one process imports them all."""
    names = [name for name in modules(PACKAGE) if room(name) != "torch_ref"]
    names = [name for name in names if not name.startswith("rtseg_jax.data.builders")]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    loaded = [heavy for heavy in {HEAVY} if heavy in sys.modules]
    assert not loaded, (name, loaded)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_package_itself_imports_nothing():
    code = "import rtseg_jax, sys; print([m for m in ('jax', 'flax', 'numpy') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"
