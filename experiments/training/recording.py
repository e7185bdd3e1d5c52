"""What a run has measured so far, and what of it a run folder is told."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import lamaml_jax as lm
from experiments import run_folder
from experiments.config.run_config import RunConfig, num_meta_updates
from experiments.training.loop import TaskResult, running_retained_accuracy

History = dict[str, np.ndarray]
"""``accuracy`` [N, S, T], row 0 before any training; ``finite`` and ``first_bad``
[N, S]; ``train_s``, ``train_cpu_s`` and ``evaluate_s`` [N] seconds; ``info_*``
[N - 1, S]; and whatever else was measured, times first and seeds second."""

_PER_TIME = ("train_s", "train_cpu_s", "evaluate_s")
_INDICES = ("alignment_after", "probe_updates", "probe_tasks")
_AT_END = (run_folder.LINEAR_PROBE,)


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
    measured |= {name: measured[name][:, 0] for name in _AT_END if name in measured}
    return {
        "accuracy": accuracy[:, 1:],
        "initial_accuracy": accuracy[:, 0],
        **measured,
    }


class Recorder:
    """Keeps the results of a run as they come.

    Attributes:
        train_s: wall time of all training so far, seconds.
    """

    def __init__(self, before: History | None = None) -> None:
        """Begins with nothing, or with what an interrupted run had measured."""
        self._parts = [] if before is None else [before]
        self.train_s = 0.0 if before is None else float(before["train_s"].sum())

    def add(self, result: TaskResult) -> None:
        """Adds the result of the next task."""
        self._parts.append(of_result(result))
        self.train_s += result.train_s

    def anytime_accuracy(self) -> np.ndarray | None:
        """Returns the average anytime accuracy so far, [S], if any was taken."""
        name = "anytime_accuracy"
        along = [each for part in self._parts for each in part.get(name, ())]
        if not along:
            return None
        seen = [each[:, :, : n + 1].mean(axis=(1, 2)) for n, each in enumerate(along)]
        return np.mean(seen, axis=0)

    def history(self) -> History:
        """Returns all of them."""
        return join(self._parts)


def evaluation_records(
    config: RunConfig, result: TaskResult, place: slice
) -> Iterator[dict[str, Any]]:
    """Yields what evaluations.jsonl says of each seed after a task.

    Args:
        config: of one run of a group.
        result: of all its runs.
        place: of this run's seeds among those of the group.
    """
    retained = running_retained_accuracy(result.accuracy, result.task)
    for n, seed in zip(range(place.start, place.stop), config.seeds, strict=True):
        yield {
            "seed": seed,
            "task": result.task,
            "accuracy": [round(float(x), 6) for x in result.accuracy[n]],
            "retained_accuracy": round(float(retained[n]), 6),
            "train": {name: float(value[n]) for name, value in result.info.items()},
        }


def diverged_at(seeds: Sequence[int], own: History) -> dict[int, dict[str, int]]:
    """Says in which task and batch seeds diverged, by seed."""
    found = {}
    for n, seed in enumerate(seeds):
        if not own["finite"][-1, n]:
            task = int(np.argmin(own["finite"][:, n])) - 1
            batch = int(own["first_bad"][task + 1, n])
            found[seed] = {"task": task, "batch": batch}
    return found


def summary_of(
    accuracy: Any,
    initial: Any,
    diverged: Mapping[int, dict[str, int]],
    config: RunConfig,
    timing: dict[str, float],
) -> dict[str, Any]:
    """Sums up a run for its summary.json."""
    metrics = {
        "retained_accuracy": lm.metrics.retained_accuracy(accuracy),
        "backward_transfer_interference": lm.metrics.backward_transfer_interference(
            accuracy
        ),
        "learning_accuracy": lm.metrics.learning_accuracy(accuracy),
        "forward_transfer": lm.metrics.forward_transfer(accuracy, initial),
    }
    return {
        **{name: np.asarray(value).tolist() for name, value in metrics.items()},
        "timing": timing,
        "num_meta_updates": num_meta_updates(config),
        "diverged_seeds": list(diverged),
        "diverged_at": {str(seed): where for seed, where in diverged.items()},
    }


def anytime_summary(accuracy: np.ndarray) -> dict[str, list[float]]:
    """Sums up accuracies [S, T, G, T] within tasks."""
    num_seeds, num_tasks, count, _ = accuracy.shape
    along = accuracy.reshape(num_seeds, num_tasks * count, num_tasks)
    tasks = np.repeat(np.arange(num_tasks), count)
    return {
        name: np.asarray(getattr(lm.metrics, name)(along, tasks)).tolist()
        for name in run_folder.ANYTIME_METRICS
    }
