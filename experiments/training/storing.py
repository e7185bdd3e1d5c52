"""What of a group of runs is read from their folders, and written there."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import run_folder
from experiments.config.run_config import RunConfig, anytime_after, config_record
from experiments.run_folder.environment import environment
from experiments.training import loop, placement, recording
from experiments.training.checkpoints import Checkpoint, Checkpoints
from experiments.training.costs import cost_record
from experiments.training.inputs import Inputs
from experiments.training.loggers import Logger
from experiments.training.probes import leaf_names
from experiments.training.programs import Program


class Part(NamedTuple):
    """One run of a group, and where it is written."""

    config: RunConfig
    folder: Path


def seeds_of(parts: Sequence[Part]) -> list[slice]:
    """Places of each part's seeds among those of the group."""
    ends = np.cumsum([len(part.config.seeds) for part in parts])
    return [
        slice(int(end) - len(part.config.seeds), int(end))
        for end, part in zip(ends, parts, strict=True)
    ]


def state_like(program: Program) -> Any:
    """Returns zeros like a learner's state, without the padding of seeds."""
    return jax.tree.map(
        lambda x: np.zeros((program.num_seeds, *x.shape[1:]), x.dtype), program.state
    )


def open_folders(
    parts: Sequence[Part],
    program: Program,
    checkpoints: Checkpoints,
    tell: Callable[[str], None],
    command: str | None,
) -> tuple[Checkpoint | None, list[bool]]:
    """Starts run folders, or finds where an interrupted group can go on, and tells.

    Args:
        parts: the group.
        program: of it.
        checkpoints: of its first folder.
        tell: shows a person a sentence.
        command: what started the runs, as ``environment`` takes it.

    Returns:
        The checkpoint, and which parts are still to be written.

    Raises:
        RunFolderError: all hold complete runs.
    """
    stored = [config_record(part.config) for part in parts]
    done = [
        run_folder.progress(part.folder, record)
        for part, record in zip(parts, stored, strict=True)
    ]
    if all(progress == run_folder.Progress.COMPLETE for progress in done):
        raise run_folder.RunFolderError(
            f"{parts[0].folder}: complete; give another --out"
        )
    found = None
    if run_folder.Progress.NEW not in done:  # a new folder lacks the lines so far
        found = checkpoints.latest(
            state_like(program),
            lambda text: tell(f"{parts[0].folder}: {text}"),
        )
    num_done = 0 if found is None else recording.num_tasks(found.history)
    for part, record, progress in zip(parts, stored, done, strict=True):
        if progress == run_folder.Progress.NEW:
            run_folder.create(part.folder, record, environment(command))
        elif progress == run_folder.Progress.INTERRUPTED:
            place = f"task {num_done}" if num_done else "the beginning"
            tell(f"{part.folder}: was interrupted, goes on from {place}")
            run_folder.reopen(part.folder, environment(command), num_done)
    return found, [progress != run_folder.Progress.COMPLETE for progress in done]


def finish(part: Part, program: Program, inputs: Inputs, history: Any) -> list[int]:
    """Writes what a run measured.

    Args:
        part: the run.
        program: of its group.
        inputs: of its group.
        history: of its own seeds.

    Returns:
        The seeds that diverged.
    """
    config = part.config
    diverged = recording.diverged_at(config.seeds, history)
    arrays = recording.to_arrays(history)
    arrays["seeds"] = np.asarray(config.seeds, np.int32)
    cpu_s = float(history["train_cpu_s"].sum())  # of this process, all seeds
    timing = {
        "compile_s": program.compile_s,
        "train_s": float(history["train_s"].sum()),
        "train_cpu_s_per_seed": cpu_s / placement.num_own(inputs.own.seed),
        "evaluate_s": float(history["evaluate_s"].sum()),
        "seeds_side_by_side": program.num_seeds,
    }
    summary = recording.summary_of(
        arrays["accuracy"], arrays["initial_accuracy"], diverged, config, timing
    )
    if cost := cost_record(config, inputs.form):
        summary["cost"] = cost
    if "anytime_accuracy" in arrays:
        arrays["anytime_after"] = np.asarray(anytime_after(config), np.int32)
        summary |= recording.anytime_summary(arrays["anytime_accuracy"])
    if (probed := arrays.get(run_folder.LINEAR_PROBE)) is not None:
        summary[run_folder.LINEAR_PROBE] = probed.mean(axis=1).tolist()
    if "step_size_quantiles" in arrays:
        summary["step_size_leaves"] = leaf_names(program.state)
    run_folder.finish(part.folder, arrays, summary)
    return list(diverged)


def write(
    part: Part, result: loop.TaskResult, own: slice, loggers: Iterable[Logger]
) -> None:
    """Writes a task's lines, and tells the loggers."""
    for line in recording.evaluation_records(part.config, result, own):
        run_folder.append_evaluation(part.folder, line)
        for log in loggers:
            log(part.folder, line)
