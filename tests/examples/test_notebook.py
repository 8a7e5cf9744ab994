"""The notebook is its script, and every cell of it runs."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = """
NUM_STEPS, NUM_PAIRS, HORIZON, WIDTHS, SEEDS = 2, 1, 20, (32, 48), (0,)
RATES, FOLDER = (1e-2,), "learned_optimizer"
"""


@pytest.fixture
def notebook():
    return nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)


def test_the_notebook_is_made_from_the_script(notebook):
    script = jupytext.read(EXAMPLES / "quickstart.py")
    for made, written in zip(notebook.cells, script.cells, strict=True):
        assert made.cell_type == written.cell_type
        assert made.source == written.source


def test_every_cell_runs_at_small_sizes(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (sizes,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    sizes.source = SMALL
    folder = tmp_path / "work"
    folder.mkdir()
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=240, resources=resources).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert any("width 48: learned" in out.get("text", "") for out in outputs)
    assert (folder / "learned_optimizer" / "config.json").exists()
