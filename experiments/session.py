"""Runs methods one after the other, shows progress and writes run folders."""

import contextlib
import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import lamaml_jax as lm
from experiments import benchmarks, placement, run_folder, runner
from experiments.checkpoints import Checkpoint, Checkpoints
from experiments.config import RunConfig, config_record, num_meta_updates
from experiments.data import sources
from experiments.history import (
    History,
    join,
    num_tasks,
    of_result,
    of_seeds,
    to_arrays,
)

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def environment() -> dict[str, Any]:
    """Describes what a run's numbers depend on besides its configuration."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"lamaml_jax": lm.__version__, "python": platform.python_version()},
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "processor": platform.machine(),
        "cpu_count": os.cpu_count(),
        "command": shlex.join(["python", "-m", "experiments", *sys.argv[1:]]),
        "git_commit": commit.stdout.strip() or None,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@contextlib.contextmanager
def _progress(config: RunConfig, console: Console) -> Iterator[Any]:
    columns = (
        TextColumn("[bold]{task.description:<8}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("tasks  {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(
            config.method, total=config.benchmark.num_tasks, note=""
        )
        yield lambda done, note: progress.update(bar, completed=done, note=note)


def _note(
    config: RunConfig, num_seeds: int, task: int, retained: np.ndarray, train_s: float
) -> str:
    updates = num_meta_updates(config) * num_seeds
    updates = updates * (task + 1) / config.benchmark.num_tasks
    finite = retained[np.isfinite(retained)]
    shown = f"{100 * finite.mean():5.1f} %" if finite.size else "n/a"
    return f"{updates / max(train_s, 1e-9):6.0f} updates/s  RA {shown}"


def _evaluation_records(
    config: RunConfig, task: int, accuracy: np.ndarray, retained: np.ndarray
) -> Iterator[dict[str, Any]]:
    for seed, row, value in zip(config.seeds, accuracy, retained, strict=True):
        yield {
            "seed": seed,
            "task": task,
            "accuracy": [round(float(x), 6) for x in row],
            "retained_accuracy": round(float(value), 6),
        }


def _summary(
    accuracy: np.ndarray,
    initial: np.ndarray,
    diverged: Sequence[int],
    config: RunConfig,
    timing: dict[str, float],
) -> dict[str, Any]:
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
    }


class Part(NamedTuple):
    """One run of a group, and where it is written."""

    config: RunConfig
    folder: Path


def _seeds_of_parts(parts: Sequence[Part]) -> list[slice]:
    """Places of each part's seeds among those of the group."""
    ends = np.cumsum([len(part.config.seeds) for part in parts])
    return [
        slice(int(end) - len(part.config.seeds), int(end))
        for end, part in zip(ends, parts, strict=True)
    ]


def _host_state(state: Any, num_seeds: int) -> Any:
    """Copies a learner's state, without the padding of seeds; of all processes."""
    whole = placement.gather(state)
    return jax.tree.map(lambda leaf: np.array(leaf)[:num_seeds], whole)


def _state_like(program: runner.Program) -> Any:
    """Returns zeros like a learner's state, without the padding of seeds."""
    return jax.tree.map(
        lambda x: np.zeros((program.num_seeds, *x.shape[1:]), x.dtype), program.state
    )


def _open(
    parts: Sequence[Part],
    program: runner.Program,
    checkpoints: Checkpoints,
    console: Console,
) -> tuple[Checkpoint | None, list[bool]]:
    """Starts run folders, or finds where an interrupted group can go on, and tells.

    Returns:
        The checkpoint, and which parts are still to be written.
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
            _state_like(program),
            lambda text: console.print(f"{parts[0].folder}: {text}", soft_wrap=True),
        )
    num_done = 0 if found is None else num_tasks(found.history)
    for part, record, progress in zip(parts, stored, done, strict=True):
        if progress == run_folder.Progress.NEW:
            run_folder.create(part.folder, record, environment())
        elif progress == run_folder.Progress.INTERRUPTED:
            place = f"task {num_done}" if num_done else "the beginning"
            text = f"{part.folder}: was interrupted, goes on from {place}"
            console.print(text, soft_wrap=True)
            run_folder.reopen(part.folder, environment(), num_done)
    return found, [progress != run_folder.Progress.COMPLETE for progress in done]


def _start(program: runner.Program, found: Checkpoint | None) -> tuple[Any, ...]:
    """Tells every process where the first one found that the group goes on."""
    first = -1 if found is None else num_tasks(found.history)
    first = int(placement.from_first_process(np.int32(first)))
    if first < 0:
        return ()
    state = _state_like(program) if found is None else found.state
    return placement.from_first_process(state), first


def _finish(
    part: Part,
    place: slice,
    program: runner.Program,
    inputs: runner.Inputs,
    whole: History,
) -> list[int]:
    """Writes what a whole run measured, and returns the seeds that diverged."""
    config = part.config
    own = of_seeds(whole, place)
    finite = own["finite"][-1]
    diverged = [s for s, ok in zip(config.seeds, finite, strict=True) if not ok]
    arrays = to_arrays(own) | {"seeds": np.asarray(config.seeds, np.int32)}
    cpu_s = float(whole["train_cpu_s"].sum())  # of this process, all seeds
    timing = {
        "compile_s": program.compile_s,
        "train_s": float(whole["train_s"].sum()),
        "train_cpu_s_per_seed": cpu_s / placement.num_own(inputs.seeds),
        "evaluate_s": float(whole["evaluate_s"].sum()),
        "seeds_side_by_side": program.num_seeds,
    }
    summary = _summary(
        arrays["accuracy"], arrays["initial_accuracy"], diverged, config, timing
    )
    if "step_size_quantiles" in arrays:
        summary["step_size_leaves"] = runner.leaf_names(program)
    run_folder.finish(part.folder, arrays, summary)
    return diverged


def run_group(
    parts: Sequence[Part],
    program: runner.Program,
    inputs: runner.Inputs,
    console: Console,
    checkpoint_s: float,
) -> list[list[int]]:
    """Trains a group of runs side by side and writes their run folders.

    Checkpoints are in the first part's folder, which is completed last. In a run of
    several processes all call this, and the first one writes.

    Args:
        parts: what to run; they differ in ``hyperparameters.RATES`` only. Their folders
            are new, or of the same runs, interrupted; those then go on from the latest
            checkpoint and end with the numbers of runs that were not interrupted.
        program: from ``runner.compile_programs`` for their configurations.
        inputs: from ``runner.place``.
        console: where progress is shown.
        checkpoint_s: seconds between two checkpoints at least.

    Returns:
        The seeds of each part that diverged; in the first process only.

    Raises:
        RunFolderError: a folder cannot be written, or all hold complete runs.
    """
    config, folder = parts[0]
    places = _seeds_of_parts(parts)
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, checkpoint_s)
    found, wanted = None, [False] * len(parts)
    if placement.is_first_process():
        found, wanted = _open(parts, program, checkpoints, console)
    histories = [] if found is None else [found.history]
    train_s = sum(float(history["train_s"].sum()) for history in histories)
    start = _start(program, found)
    with contextlib.closing(checkpoints), _progress(config, console) as show:
        for result in runner.train(config, program, inputs, *start):
            histories.append(of_result(result))
            train_s += result.train_s
            if result.task < 0:
                continue
            retained = runner.running_retained_accuracy(result.accuracy, result.task)
            for part, place, is_wanted in zip(parts, places, wanted, strict=True):
                lines = _evaluation_records(
                    part.config, result.task, result.accuracy[place], retained[place]
                )
                for line in lines if is_wanted else ():
                    run_folder.append_evaluation(part.folder, line)
            num_seeds = program.num_seeds
            show(
                result.task + 1,
                _note(config, num_seeds, result.task, retained, train_s),
            )
            is_due = bool(placement.from_first_process(np.bool_(checkpoints.is_due())))
            if is_due and result.task + 1 < config.benchmark.num_tasks:
                state = _host_state(result.state, num_seeds)
                if any(wanted):
                    checkpoints.save(Checkpoint(state, join(histories)))
    whole = join(histories)
    diverged: list[list[int]] = [[] for _ in parts]
    for n in reversed(range(len(parts))):
        if wanted[n]:
            diverged[n] = _finish(parts[n], places[n], program, inputs, whole)
    return diverged


def run_groups(
    groups: Sequence[Sequence[Part]],
    source: sources.Source,
    mesh: Mesh,
    console: Console,
    checkpoint_s: float,
) -> dict[Path, list[int]]:
    """Runs groups on one benchmark, one after the other.

    Args:
        groups: what to run, on the same seeds and the same streams.
        source: data set of the benchmark.
        mesh: from ``placement.make_mesh``.
        console: where progress is shown.
        checkpoint_s: seconds between two checkpoints at least.

    Returns:
        The seeds that diverged, by folder.

    Raises:
        UserError: sizes or hyper-parameters that do not fit together, or a folder that
            cannot be written.
    """
    diverged: dict[Path, list[int]] = {}
    for size in dict.fromkeys(len(parts) for parts in groups):
        same = [list(parts) for parts in groups if len(parts) == size]
        config = same[0][0].config
        seeds = config.seeds * size
        data = benchmarks.draw(
            config.benchmark,
            source,
            placement.own_seeds(seeds, mesh),
            config.stream_seed,
            config.evaluate_on,
        )
        inputs = runner.place(data, seeds, mesh)
        configs = [[part.config for part in parts] for parts in same]
        programs = runner.compile_programs(configs, inputs)
        for parts in same:
            with console.status(f"compiling {parts[0].config.method}"):
                program = next(programs)
            lost = run_group(parts, program, inputs, console, checkpoint_s)
            folders = [part.folder for part in parts]
            diverged |= dict(zip(folders, lost, strict=True))
    return diverged
