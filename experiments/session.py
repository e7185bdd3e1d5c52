"""Runs methods one after the other, shows progress and writes run folders."""

import contextlib
import dataclasses
import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
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
from experiments import placement, run_folder, runner
from experiments.checkpoints import Checkpoint, Checkpoints
from experiments.config import RunConfig, num_meta_updates
from experiments.history import History, join, num_tasks, of_result, to_arrays

FORMAT_VERSION = 1
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


def config_record(config: RunConfig) -> dict[str, Any]:
    """Flattens a configuration to what ``config.json`` stores."""
    benchmark = dataclasses.asdict(config.benchmark)
    name = benchmark.pop("name")
    hyper = dataclasses.asdict(config.hyper)
    return {
        "format_version": FORMAT_VERSION,
        "benchmark": name,
        "method": config.method,
        "seeds": list(config.seeds),
        "stream_seed": config.stream_seed,
        "setting": config.setting,
        "passes": config.passes,
        "probes": config.probes,
        "alignment": config.alignment,
        "precision": config.precision,
        **benchmark,
        **{key: value for key, value in hyper.items() if value is not None},
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
    config: RunConfig, task: int, retained_accuracy: np.ndarray, train_s: float
) -> str:
    updates = num_meta_updates(config) * len(config.seeds)
    updates = updates * (task + 1) / config.benchmark.num_tasks
    finite = retained_accuracy[np.isfinite(retained_accuracy)]
    retained = f"{100 * finite.mean():5.1f} %" if finite.size else "n/a"
    return f"{updates / max(train_s, 1e-9):6.0f} updates/s  RA {retained}"


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


def _host_state(state: Any, num_seeds: int) -> Any:
    """Copies a learner's state, without the padding of seeds; of all processes."""
    whole = placement.gather(state)
    return jax.tree.map(lambda leaf: np.array(leaf)[:num_seeds], whole)


def _state_like(config: RunConfig, program: runner.Program) -> Any:
    """Returns zeros like a learner's state, without the padding of seeds."""
    num_seeds = len(config.seeds)
    return jax.tree.map(
        lambda x: np.zeros((num_seeds, *x.shape[1:]), x.dtype), program.state
    )


def _open(
    config: RunConfig,
    program: runner.Program,
    checkpoints: Checkpoints,
    folder: Path,
    console: Console,
) -> Checkpoint | None:
    """Starts a run folder, or finds where an interrupted run can go on, and tells."""
    record = config_record(config)
    progress = run_folder.progress(folder, record)
    if progress == run_folder.Progress.COMPLETE:
        raise run_folder.RunFolderError(f"{folder}: complete; give another --out")
    if progress == run_folder.Progress.NEW:
        run_folder.create(folder, record, environment())
        return None
    found = checkpoints.latest(
        _state_like(config, program),
        lambda text: console.print(f"{folder}: {text}", soft_wrap=True),
    )
    done = 0 if found is None else num_tasks(found.history)
    place = f"task {done}" if done else "the beginning"
    console.print(f"{folder}: was interrupted, goes on from {place}", soft_wrap=True)
    run_folder.reopen(folder, environment(), done)
    return found


def _start(
    config: RunConfig, program: runner.Program, found: Checkpoint | None
) -> tuple[Any, ...]:
    """Tells every process where the first one found that the run goes on."""
    first = -1 if found is None else num_tasks(found.history)
    first = int(placement.from_first_process(np.int32(first)))
    if first < 0:
        return ()
    state = _state_like(config, program) if found is None else found.state
    return placement.from_first_process(state), first


def _finish(
    config: RunConfig,
    program: runner.Program,
    inputs: runner.Inputs,
    folder: Path,
    whole: History,
) -> list[int]:
    """Writes what a whole run measured, and returns the seeds that diverged."""
    finite = whole["finite"][-1]
    diverged = [s for s, ok in zip(config.seeds, finite, strict=True) if not ok]
    arrays = to_arrays(whole) | {"seeds": np.asarray(config.seeds, np.int32)}
    cpu_s = float(whole["train_cpu_s"].sum())  # of this process
    timing = {
        "compile_s": program.compile_s,
        "train_s": float(whole["train_s"].sum()),
        "train_cpu_s_per_seed": cpu_s / placement.num_own(inputs.seeds),
        "evaluate_s": float(whole["evaluate_s"].sum()),
    }
    summary = _summary(
        arrays["accuracy"], arrays["initial_accuracy"], diverged, config, timing
    )
    if "step_size_quantiles" in arrays:
        summary["step_size_leaves"] = runner.leaf_names(program)
    run_folder.finish(folder, arrays, summary)
    return diverged


def run_method(
    config: RunConfig,
    program: runner.Program,
    inputs: runner.Inputs,
    folder: Path,
    console: Console,
    checkpoint_s: float,
) -> list[int]:
    """Trains one method on all seeds and writes its run folder.

    In a run of several processes all call it, and the first one writes.

    Args:
        config: what to run.
        program: from ``runner.compile_programs``.
        inputs: from ``runner.place``.
        folder: new, or of the same run, interrupted; it then goes on from the latest
            checkpoint and ends with the numbers of a run that was not interrupted.
        console: where progress is shown.
        checkpoint_s: seconds between two checkpoints at least.

    Returns:
        The seeds that diverged; in the first process only.

    Raises:
        RunFolderError: the folder cannot be written, or holds a complete run.
    """
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, checkpoint_s)
    writes = placement.is_first_process()
    found = None
    if writes:
        found = _open(config, program, checkpoints, folder, console)
    histories = [] if found is None else [found.history]
    train_s = sum(float(history["train_s"].sum()) for history in histories)
    start = _start(config, program, found)
    with contextlib.closing(checkpoints), _progress(config, console) as show:
        for result in runner.train(config, program, inputs, *start):
            histories.append(of_result(result))
            train_s += result.train_s
            if result.task < 0:
                continue
            retained = runner.running_retained_accuracy(result.accuracy, result.task)
            for record in _evaluation_records(
                config, result.task, result.accuracy, retained
            ):
                if writes:
                    run_folder.append_evaluation(folder, record)
            show(result.task + 1, _note(config, result.task, retained, train_s))
            is_due = bool(placement.from_first_process(np.bool_(checkpoints.is_due())))
            if is_due and result.task + 1 < config.benchmark.num_tasks:
                state = _host_state(result.state, len(config.seeds))
                if writes:
                    checkpoints.save(Checkpoint(state, join(histories)))
    if not writes:
        return []
    return _finish(config, program, inputs, folder, join(histories))


def run_methods(
    todo: Sequence[tuple[RunConfig, Path]],
    inputs: runner.Inputs,
    console: Console,
    checkpoint_s: float,
) -> dict[str, list[int]]:
    """Runs methods on one benchmark, one after the other.

    Args:
        todo: what to run, and its folder; on the same seeds.
        inputs: from ``runner.place``.
        console: where progress is shown.
        checkpoint_s: seconds between two checkpoints at least.

    Returns:
        The seeds that diverged, by method.

    Raises:
        UserError: hyper-parameters that do not fit together, or a folder that cannot
            be written.
    """
    programs = runner.compile_programs([config for config, _ in todo], inputs)
    diverged = {}
    for config, folder in todo:
        with console.status(f"compiling {config.method}"):
            program = next(programs)
        diverged[config.method] = run_method(
            config, program, inputs, folder, console, checkpoint_s
        )
    return diverged
