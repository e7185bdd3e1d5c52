"""Runs that differ in their seeds only, made one: seeds may be trained apart."""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.run_folder import ANYTIME_METRICS, LINEAR_PROBE, METRICS, Run
from experiments.run_folder.arrays import MEASURES

_AXES = {
    **{"accuracy": ("S", "T", "T"), "initial_accuracy": ("S", "T"), "seeds": ("S",)},
    **{name: axes for group in MEASURES for name, axes in group.items()},
}
"""Of what a report draws; means of what a learner told, "info_*", are not drawn."""
_SAY_NOTHING = {"seeds", "description"}


class Joined(NamedTuple):
    """One run or several, as one."""

    run: Run
    """All seeds, in the order of ``parts``. Of several parts, folder, environment and
    timing are those of the first, and what learners told is left out."""
    parts: tuple[Run, ...]
    """As they were read, by first seed."""


def is_by_seed(name: str) -> bool:
    """Tells whether an array that a report draws has a leading seed axis."""
    return name in _AXES and _AXES[name][0] == "S"


def _settings(run: Run) -> str:
    """Everything that runs must share, to the places where they were measured."""
    config = {k: v for k, v in run.config.items() if k not in _SAY_NOTHING}
    shared = {
        name: [array.shape[1:]] if is_by_seed(name) else array.tolist()
        for name, array in run.arrays.items()
        if name in _AXES
    }
    leaves = run.summary.get("step_size_leaves")
    return json.dumps([config, shared, leaves], sort_keys=True)


def _join(parts: Sequence[Run]) -> Run:
    first = parts[0]
    if len(parts) == 1:
        return first
    stacked = lambda arrays: np.concatenate([*arrays])
    measures = [
        name
        for name in (*METRICS, *ANYTIME_METRICS, LINEAR_PROBE)
        if name in first.summary
    ]
    summary = first.summary | {
        "diverged_seeds": [s for p in parts for s in p.summary["diverged_seeds"]],
        "diverged_at": {
            seed: place
            for part in parts
            for seed, place in part.summary.get("diverged_at", {}).items()
        },
        **{name: stacked(part.summary[name] for part in parts) for name in measures},
    }
    return first._replace(
        config=first.config | {"seeds": [s for p in parts for s in p.config["seeds"]]},
        accuracy=stacked(part.accuracy for part in parts),
        initial_accuracy=stacked(part.initial_accuracy for part in parts),
        seeds=stacked(part.seeds for part in parts),
        summary=summary,
        arrays={
            name: stacked(part.arrays[name] for part in parts)
            if is_by_seed(name)
            else array
            for name, array in first.arrays.items()
            if name in _AXES
        },
    )


def join_seeds(runs: Sequence[Run]) -> list[Joined]:
    """Joins the runs that differ in their seeds only.

    Runs that were told the same and measured the same are one if no seed is in two of
    them. Where one is, none is joined to another: they repeat each other.

    Args:
        runs: from ``run_folder.read``.

    Returns:
        In the order of their first runs.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_settings(run), []).append(run)
    found = []
    for group in groups.values():
        seeds = [seed for run in group for seed in run.config["seeds"]]
        is_repeated = len(set(seeds)) < len(seeds)
        for parts in [[run] for run in group] if is_repeated else [group]:
            parts = tuple(sorted(parts, key=lambda run: min(run.config["seeds"])))
            found.append(Joined(_join(parts), parts))
    return found
