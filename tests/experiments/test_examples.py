"""The worked examples and the notebooks run, and show what they say."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from experiments.examples import drifting_sine, frozen_backbone

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "experiments/notebooks").glob("*.ipynb"))


@pytest.mark.slow
def test_lamaml_keeps_a_drifting_sine_that_sgd_forgets():
    errors = {name: np.asarray(found) for name, found in drifting_sine.main().items()}
    assert (errors["La-MAML"] < 0.5 * errors["SGD"]).all()


@pytest.mark.slow
def test_lamaml_keeps_angles_on_a_frozen_backbone():
    found = {name: np.asarray(x) for name, x in frozen_backbone.main().items()}
    assert found["La-MAML"].mean() > found["SGD"].mean() + 0.1
    assert found["La-MAML"].min() > 0.4


def test_there_are_three_notebooks():
    assert len(NOTEBOOKS) == 3


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_figures(path):
    notebook = nbformat.read(path, as_version=4)
    stored = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert stored, "the notebook is kept with its figures"
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) == len(stored)
