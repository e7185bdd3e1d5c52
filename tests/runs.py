"""A small run of two seeds and two tasks, stored as a finished one is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments import run_folder

NAN = float("nan")
SEEDS = [3, 5]
CONFIG = {
    "format_version": 1,
    "benchmark": "digits-rotations",
    "method": "er",
    "seeds": SEEDS,
    "num_tasks": 2,
    "learning_rate": 0.1,
}
ACCURACY = np.array([[[0.8, 0.5], [0.6, 0.9]], [[0.9, NAN], [0.7, 0.8]]], np.float32)
INITIAL = np.full((2, 2), 0.1, np.float32)


def arrays(**changes: Any) -> dict[str, Any]:
    return {
        "accuracy": ACCURACY,
        "initial_accuracy": INITIAL,
        "seeds": np.array(SEEDS, np.int32),
        **changes,
    }


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "retained_accuracy": [0.75, 0.75],
        "backward_transfer_interference": [-0.1, -0.1],
        "learning_accuracy": [0.85, 0.85],
        "forward_transfer": [0.4, NAN],
        "timing": {"train_s": 1.0},
        "diverged_seeds": [],
        **changes,
    }


def write_run(
    folder: Path,
    config: Mapping[str, Any] = CONFIG,
    run_arrays: Mapping[str, Any] | None = None,
    run_summary: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] = {"device": "cpu"},
) -> Path:
    """Writes the files of a run one after the other; returns its folder."""
    run_folder.create(folder, config, environment)
    accuracy = (run_arrays or arrays())["accuracy"]
    for task in range(accuracy.shape[1]):
        for index, seed in enumerate(config["seeds"]):
            record = {"seed": seed, "task": task, "accuracy": accuracy[index, task]}
            run_folder.append_evaluation(folder, record)
    run_folder.finish(folder, run_arrays or arrays(), run_summary or summary())
    return folder
