"""The worked examples and the notebooks run, and show what they say."""

import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from experiments.examples import drifting_sine, frozen_backbone

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments/notebooks").glob("*.ipynb"))
NEED_MNIST = {"online_class_incremental"}
PREPARED = Path(os.environ.get("LAMAML_TFDS_DIR") or ROOT.parent / "shared" / "tfds")


@pytest.mark.slow
def test_lamaml_keeps_a_drifting_sine_that_sgd_forgets():
    errors = {name: np.asarray(found) for name, found in drifting_sine.main().items()}
    assert (errors["La-MAML"] < 0.5 * errors["SGD"]).all()


@pytest.mark.slow
def test_lamaml_keeps_angles_on_a_frozen_backbone():
    found = {name: np.asarray(x) for name, x in frozen_backbone.main().items()}
    assert found["La-MAML"].mean() > found["SGD"].mean() + 0.1
    assert found["La-MAML"].min() > 0.4


def figures_of(notebook):
    return [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]


def test_the_guide_leads_to_every_notebook():
    page = (ROOT / "experiments/README.md").read_text()
    assert len(NOTEBOOKS) == 5
    assert not [path for path in NOTEBOOKS if f"](notebooks/{path.name})" not in page]


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_the_transformation_joins_a_flax_network_in_twelve_lines(framework):
    path = ROOT / "experiments/notebooks/lamaml_in_your_optax_chain.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = [c for c in cells if framework in c.metadata.get("tags", [])]
    assert len([line for line in cell.source.splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_imports_public_names_only(path):
    cells = nbformat.read(path, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert "import lamaml_jax as lm" in code
    for package in ("experiments", "lamaml_experiments", "lamaml_jax"):
        assert f"from {package}" not in code and f"import {package}." not in code


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_figures(path, monkeypatch, tmp_path):
    if path.stem in NEED_MNIST:
        if not PREPARED.is_dir():
            pytest.skip("needs the prepared data sets (LAMAML_TFDS_DIR)")
        monkeypatch.setenv("TFDS_DATA_DIR", str(PREPARED))
        monkeypatch.setenv("LAMAML_CACHE_DIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    num_stored = len(figures_of(notebook))
    assert num_stored, "the notebook is kept with its figures"
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    assert len(figures_of(notebook)) == num_stored
