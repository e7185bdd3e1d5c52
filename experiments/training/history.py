"""What a run has measured so far, as arrays that grow along their first axis."""

from collections.abc import Sequence

import numpy as np

from experiments.training.runner import TaskResult

History = dict[str, np.ndarray]
"""``accuracy`` [N, S, T], row 0 before any training; ``finite`` and ``first_bad``
[N, S]; ``train_s``, ``train_cpu_s`` and ``evaluate_s`` [N] seconds; ``info_*``
[N - 1, S]; and whatever else was measured, times first and seeds second."""

_PER_TIME = ("train_s", "train_cpu_s", "evaluate_s")
_INDICES = ("alignment_after", "probe_updates", "probe_tasks")


def of_result(result: TaskResult) -> History:
    """Turns the result of one task into a history of its own."""
    history = {
        "accuracy": result.accuracy[None],
        "finite": result.finite[None],
        "first_bad": result.first_bad[None],
        **{name: np.asarray([getattr(result, name)]) for name in _PER_TIME},
        **{f"info_{name}": value[None] for name, value in result.info.items()},
        **{name: value[None] for name, value in result.measures.items()},
    }
    if "task_alignment" in result.measures:
        history["alignment_after"] = np.asarray([result.task + 1], np.int32)
    if result.probes:
        updates = [probe.num_updates for probe in result.probes]
        history["probe_updates"] = np.asarray(updates, np.int32)
        history["probe_tasks"] = np.full(len(updates), result.task, np.int32)
        history["probe_slow"] = np.stack([probe.slow for probe in result.probes])
        history["probe_fast"] = np.stack([probe.fast for probe in result.probes])
    return history


def join(histories: Sequence[History]) -> History:
    """Puts histories one after the other; what some of them lack is left out there."""
    names = dict.fromkeys(name for history in histories for name in history)
    return {
        name: np.concatenate([h[name] for h in histories if name in h])
        for name in names
    }


def num_tasks(history: History) -> int:
    """Tasks that are done."""
    return len(history["accuracy"]) - 1


def of_seeds(history: History, place: slice) -> History:
    """Takes the part of a history that is about some of its seeds."""
    return {
        name: value if name in (*_PER_TIME, *_INDICES) else value[:, place]
        for name, value in history.items()
    }


def to_arrays(history: History) -> dict[str, np.ndarray]:
    """Turns a whole history into the arrays of a run folder, seeds first."""
    measured = {
        name: value if name in _INDICES else np.moveaxis(value, 1, 0)
        for name, value in history.items()
        if name not in ("accuracy", "finite", "first_bad", *_PER_TIME)
    }
    accuracy = np.moveaxis(history["accuracy"], 1, 0)
    return {
        "accuracy": accuracy[:, 1:],
        "initial_accuracy": accuracy[:, 0],
        **measured,
    }
