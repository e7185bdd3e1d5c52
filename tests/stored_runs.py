"""Runs that were never trained, for tests of what reads them."""

import pathlib
from typing import Any

import numpy as np
from runs import write_run

from experiments import run_folder
from experiments.report.entries import make_entries
from experiments.run_folder import layout


def example(retained=0.6):
    """Three seeds, two tasks. RA 60, 65, 70 %; BTI -15, -10, -5; LA 75; FWT 30."""
    last = np.array([[retained - 0.1, 0.7]]) + np.array([[0.0], [0.1], [0.2]])
    last[:, 1] = 0.7
    learnt_first = 0.8
    accuracy = np.empty((3, 2, 2), np.float32)
    accuracy[:, 0] = [learnt_first, 0.4]
    accuracy[:, 1] = last
    return accuracy, np.full((3, 2), 0.1, np.float32)


def cost_of(evaluations, num_bytes):
    return {
        "gradient_evaluations_per_row": evaluations,
        "memory_bytes": num_bytes,
    }


def store_run(
    folder,
    method="er",
    accuracy=None,
    initial=None,
    lost=(),
    cost=None,
    environment=None,
    **config,
):
    """Writes a run with the measures of an accuracy matrix; returns its folder."""
    matrices: Any = example() if accuracy is None else (accuracy, initial)
    accuracy, initial = matrices
    count, num_tasks = accuracy.shape[:2]
    accuracy = accuracy.copy()
    accuracy[list(lost), -1] = np.nan
    config = {
        "format_version": 1,
        "benchmark": "digits-rotations",
        "method": method,
        "seeds": list(range(count)),
        "num_tasks": num_tasks,
        "glances": 5,
        **config,
    }
    last, learnt = accuracy[:, -1], np.diagonal(accuracy, axis1=1, axis2=2)
    before = np.diagonal(accuracy, offset=1, axis1=1, axis2=2)
    return write_run(
        folder,
        config,
        {
            "accuracy": accuracy,
            "initial_accuracy": initial,
            "seeds": np.array(config["seeds"]),
        },
        {
            "retained_accuracy": last.mean(1),
            "backward_transfer_interference": (last - learnt).mean(1),
            "learning_accuracy": learnt.mean(1),
            "forward_transfer": (before - initial[:, 1:]).mean(1),
            "timing": {
                "train_s": 30.0,
                "train_cpu_s_per_seed": 12.34,
                "seeds_side_by_side": count,
            },
            "diverged_seeds": [config["seeds"][i] for i in lost],
            **({} if cost is None else {"cost": cost}),
        },
        environment or {},
    )


def entry_of(accuracy, method="er", leaves=(), cost=None, **arrays):
    """The entry of a run that is in memory only; BTI is RA less 80."""
    last = accuracy[:, -1].mean(1)
    seeds = np.arange(len(accuracy))
    num_tasks = accuracy.shape[1]
    config = layout.DEFAULTS | {
        "benchmark": "x",
        "method": method,
        "num_tasks": num_tasks,
        "seeds": seeds.tolist(),
    }
    summary = {
        "retained_accuracy": last,
        "backward_transfer_interference": last - 0.8,
        "learning_accuracy": last,
        "forward_transfer": last,
        "diverged_seeds": [],
        "timing": {},
        "step_size_leaves": list(leaves),
        "cost": cost or {"memory_bytes": 0},
    }
    run = run_folder.Run(
        pathlib.Path("x"),
        config,
        {},
        accuracy,
        accuracy[:, 0],
        seeds,
        summary,
        arrays,
    )
    (entry,) = make_entries([run])
    return entry
