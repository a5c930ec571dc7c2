"""The notebook runs from its first cell to its last, in a kernel of its own, at its smallest."""

import os
import pathlib
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "launch" / "colab.ipynb"

pytestmark = pytest.mark.filterwarnings("default")  # of the Jupyter libraries


def test_notebook_has_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_notebook_runs(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("RTSEG_TINY", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # Its `!python` is this one.
    monkeypatch.setenv(
        "PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    )
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    # A `!command` that fails stops no notebook.
    assert "error: " not in text and "Traceback" not in text, text
    for said in (
        "best checkpoint, step 2",
        "fast_scnn | 32x64",
        "written: ",
        "(1, 64, 128) uint8",
        "'road'",
    ):
        assert said in text, text
    assert any("image/png" in output.get("data", {}) for output in outputs)
