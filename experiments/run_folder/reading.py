"""Reads runs and checks that their files are sound and agree."""

import enum
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from experiments.run_folder import layout
from experiments.run_folder.arrays import (
    bad,
    read_arrays,
    read_bytes,
    read_json,
    recomputed,
    recomputed_anytime,
)
from experiments.run_folder.layout import (
    FORMAT_VERSION,
    METRICS,
    NothingToReportError,
    RunFolderError,
)

# Stored and recomputed figures are means of at most a few hundred float32 fractions.
_TOLERANCE = 1e-5


class Run(NamedTuple):
    """A complete run."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    accuracy: np.ndarray
    """[S, T, T] fractions: on task j after training on task i."""
    initial_accuracy: np.ndarray
    """[S, T] fractions, before any training."""
    seeds: np.ndarray
    """[S] integers."""
    summary: dict[str, Any]
    """As stored, except that the lists named in ``METRICS``, and in ``ANYTIME_METRICS``
    and ``LINEAR_PROBE`` if there are any, are arrays [S]."""
    arrays: dict[str, np.ndarray]
    """Everything in arrays.npz, the three above included."""


def find(paths: Iterable[Path]) -> list[Path]:
    """Returns the run folders among and below ``paths``, each once, in their order.

    Raises:
        RunFolderError: a path does not exist or has no run folder at or below it.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise RunFolderError(f"{path}: no such folder; check the path")
        here = (path / layout.CONFIG).is_file()
        inside = [path] if here else sorted(p.parent for p in path.rglob(layout.CONFIG))
        if not inside:
            raise RunFolderError(
                f"{path}: no run folder here or below, none has a {layout.CONFIG}; "
                "give the folder that `experiments run` wrote"
            )
        for folder in inside:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder, layout.CONFIG)
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise bad(
            folder,
            layout.CONFIG,
            f"has format_version {version!r}, this program reads {FORMAT_VERSION}",
            "use the program that wrote it, or run again",
        )
    for key in ("benchmark", "method"):
        if not re.fullmatch(r"\w[\w.-]*", str(config.get(key))):
            raise bad(folder, layout.CONFIG, f"has no valid {key}: {config.get(key)!r}")
    seeds, num_tasks = config.get("seeds"), config.get("num_tasks")
    if not (isinstance(seeds, list) and seeds and all(map(_whole, seeds))):
        raise bad(folder, layout.CONFIG, f"has no list of seeds: {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise bad(folder, layout.CONFIG, f"names a seed twice: {seeds}")
    if not (_whole(num_tasks) and num_tasks >= 1):
        raise bad(folder, layout.CONFIG, f"has no valid num_tasks: {num_tasks!r}")
    for key in ("setting", "passes", "evaluate_on"):
        if not isinstance(config.get(key, ""), str):
            raise bad(folder, layout.CONFIG, f"has no valid {key}: {config[key]!r}")
    if "inner_steps" in config:  # all early runs with inner steps were of one head
        config.setdefault("rectify", True)
    return layout.DEFAULTS | config


def _read_summary(
    folder: Path, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    summary = read_json(folder, layout.SUMMARY)
    expected = recomputed(arrays["accuracy"], arrays["initial_accuracy"])
    if "anytime_accuracy" in arrays:
        expected |= recomputed_anytime(arrays["anytime_accuracy"])
    if layout.LINEAR_PROBE in arrays:
        expected[layout.LINEAR_PROBE] = arrays[layout.LINEAR_PROBE].mean(axis=1)
    for name, values in expected.items():
        try:
            stored = np.array(summary.get(name), np.float64)  # None becomes NaN
        except (TypeError, ValueError) as error:
            raise bad(folder, layout.SUMMARY, f"has no list {name}") from error
        if stored.shape != values.shape:
            raise bad(folder, layout.SUMMARY, f"has no {name} for each seed")
        if not np.allclose(stored, values, rtol=0, atol=_TOLERANCE, equal_nan=True):
            problem = f"gives {name} {stored}, but {layout.ARRAYS} gives {values}"
            raise bad(folder, layout.SUMMARY, problem)
        summary[name] = stored
    diverged, timing = summary.get("diverged_seeds"), summary.get("timing")
    if not isinstance(diverged, list) or not all(
        s in config["seeds"] for s in diverged
    ):
        raise bad(folder, layout.SUMMARY, f"has no valid diverged_seeds: {diverged!r}")
    where = summary.get("diverged_at", {})
    if not isinstance(where, dict) or not all(
        isinstance(place, dict) and _whole(place.get("task"))
        for place in where.values()
    ):
        raise bad(folder, layout.SUMMARY, f"has no valid diverged_at: {where!r}")
    leaves = summary.get("step_size_leaves", [])
    if "step_size_quantiles" in arrays and not (
        isinstance(leaves, list)
        and len(leaves) == arrays["step_size_quantiles"].shape[2]
        and all(isinstance(leaf, str) for leaf in leaves)
    ):
        raise bad(
            folder, layout.SUMMARY, f"has no name for each step size leaf: {leaves!r}"
        )
    cost = summary.get("cost", {})
    if not isinstance(cost, dict) or not all(
        isinstance(value, int | float) and 0 <= value < math.inf
        for value in cost.values()
    ):
        raise bad(folder, layout.SUMMARY, f"has no valid cost: {cost!r}")
    if not isinstance(timing, dict):
        raise bad(folder, layout.SUMMARY, f"has no valid timing: {timing!r}")
    return summary


def _check_evaluations(
    folder: Path, config: Mapping[str, Any], accuracy: np.ndarray
) -> None:
    """Holds the lines written along the way against the matrix written at the end."""
    logged = np.full_like(accuracy, -1)
    lines = read_bytes(folder, layout.EVALUATIONS).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            index = config["seeds"].index(record["seed"]), record["task"]
            logged[index] = record["accuracy"]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            problem = f"has no evaluation in line {number} ({error})"
            raise bad(folder, layout.EVALUATIONS, problem) from error
    if not np.allclose(logged, accuracy, rtol=0, atol=_TOLERANCE, equal_nan=True):
        raise bad(
            folder, layout.EVALUATIONS, f"lacks lines, or differs from {layout.ARRAYS}"
        )


class Progress(enum.Enum):
    """How far a run folder is."""

    NEW = "new"
    INTERRUPTED = "interrupted"
    COMPLETE = "complete"


def progress(folder: Path, config: Mapping[str, Any]) -> Progress:
    """Tells how far the run of a configuration is in a folder.

    Args:
        folder: new, or of a run.
        config: what the run should be, as ``create`` takes it.

    Returns:
        Whether the run has to start, has to go on or is done.

    Raises:
        RunFolderError: the folder holds a run of another configuration.
    """
    if not (folder / layout.CONFIG).is_file():
        return Progress.NEW
    stored = _read_config(folder)
    wanted = layout.DEFAULTS | json.loads(json.dumps(config))
    differing = [
        f"{name} {stored.get(name)!r} instead of {wanted.get(name)!r}"
        for name in sorted({*stored, *wanted})
        if stored.get(name) != wanted.get(name)
    ]
    if differing:
        raise RunFolderError(
            f"{folder}: holds another run, with {', '.join(differing)}; give another "
            "--out, or --fresh to replace it"
        )
    is_complete = (folder / layout.SUMMARY).is_file()
    return Progress.COMPLETE if is_complete else Progress.INTERRUPTED


def read(folder: Path) -> Run:
    """Reads a complete run and checks that its files are sound and agree.

    Args:
        folder: one of ``find``.

    Returns:
        The run; entries of seeds that diverged are NaN.

    Raises:
        NothingToReportError: no summary.json yet, or no seed that has all accuracies.
        RunFolderError: a file is missing, damaged, of another version or in conflict.
    """
    folder = Path(folder)
    config = _read_config(folder)
    if not (folder / layout.SUMMARY).exists():
        raise NothingToReportError(
            f"{folder}: incomplete, there is no {layout.SUMMARY}; let the run finish, "
            "or go on with it by the same command"
        )
    environment = read_json(folder, layout.ENVIRONMENT)
    arrays = read_arrays(folder, config)
    summary = _read_summary(folder, config, arrays)
    _check_evaluations(folder, config, arrays["accuracy"])
    run = Run(
        folder,
        config,
        environment,
        arrays["accuracy"],
        arrays["initial_accuracy"],
        arrays["seeds"],
        summary,
        arrays,
    )
    if not has_result(run).any():
        raise NothingToReportError(
            f"{folder}: {layout.ARRAYS} has no seed with all accuracies, every one "
            "diverged; run again with smaller learning rates or step sizes"
        )
    return run


def has_result(run: Run) -> np.ndarray:
    """Tells which seeds count, [S] booleans: not diverged and all figures known."""
    diverged = np.isin(run.seeds, run.summary["diverged_seeds"])
    known = [np.isfinite(run.summary[name]) for name in METRICS[:3]]
    return ~diverged & np.logical_and.reduce(known)
