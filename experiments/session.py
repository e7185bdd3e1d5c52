"""Runs methods one after the other, shows progress and writes run folders."""

import dataclasses
import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from experiments import run_folder, runner
from experiments.config import RunConfig, num_meta_updates

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
    devices = jax.devices()
    return {
        "versions": {name: metadata.version(name) for name in _PACKAGES}
        | {"lamaml_jax": lm.__version__, "python": platform.python_version()},
        "device": devices[0].device_kind,
        "device_count": len(devices),
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
        **benchmark,
        **{key: value for key, value in hyper.items() if value is not None},
    }


@contextmanager
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


def _note(config: RunConfig, rows: Sequence[np.ndarray], train_s: float) -> str:
    task = len(rows) - 1
    updates = num_meta_updates(config) * len(config.seeds)
    updates = updates * (task + 1) / config.benchmark.num_tasks
    finite = runner.running_retained_accuracy(rows, task)
    finite = finite[np.isfinite(finite)]
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


def run_method(
    config: RunConfig,
    program: runner.Program,
    inputs: runner.Inputs,
    folder: Path,
    console: Console,
) -> list[int]:
    """Trains one method on all seeds and writes its run folder.

    Args:
        config: what to run.
        program: from ``runner.compile_programs``.
        inputs: from ``runner.place``.
        folder: created; must not hold anything yet.
        console: where progress is shown.

    Returns:
        The seeds that diverged.

    Raises:
        RunFolderError: the folder cannot be written or is in use.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    run_folder.create(folder, config_record(config), environment())
    results: list[runner.TaskResult] = []
    rows: list[np.ndarray] = []
    train_s = 0.0
    with _progress(config, console) as show:
        for result in runner.train(config, program, inputs):
            results.append(result)
            train_s += result.train_s
            if result.task < 0:
                continue
            rows.append(result.accuracy)
            retained = runner.running_retained_accuracy(rows, result.task)
            for record in _evaluation_records(
                config, result.task, result.accuracy, retained
            ):
                run_folder.append_evaluation(folder, record)
            show(result.task + 1, _note(config, rows, train_s))
    accuracy, initial = np.stack(rows, axis=1), results[0].accuracy
    finite = results[-1].finite
    diverged = [s for s, ok in zip(config.seeds, finite, strict=True) if not ok]
    cpu_s = sum(result.train_cpu_s for result in results)
    timing = {
        "compile_s": program.compile_s,
        "train_s": train_s,
        "train_cpu_s_per_seed": cpu_s / len(inputs.seeds),
        "evaluate_s": sum(result.evaluate_s for result in results),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
    }
    arrays = {
        "accuracy": accuracy,
        "initial_accuracy": initial,
        "seeds": np.asarray(config.seeds, np.int32),
        **_measured(results),
    }
    summary = _summary(accuracy, initial, diverged, config, timing)
    if "step_size_quantiles" in arrays:
        summary["step_size_leaves"] = runner.leaf_names(program)
    run_folder.finish(folder, arrays, summary)
    return diverged


def _measured(results: Sequence[runner.TaskResult]) -> dict[str, np.ndarray]:
    """Stacks what was measured besides accuracies, seeds first."""
    arrays = {
        f"info_{name}": np.stack([result.info[name] for result in results[1:]], axis=1)
        for name in results[1].info
    }
    if "step_size_quantiles" in results[0].measures:
        quantiles = [result.measures["step_size_quantiles"] for result in results]
        arrays["step_size_quantiles"] = np.stack(quantiles, axis=1)
    aligned = [r for r in results[1:] if "task_alignment" in r.measures]
    if aligned:
        cosines = [result.measures["task_alignment"] for result in aligned]
        arrays["task_alignment"] = np.stack(cosines, axis=1)
        after = [result.task + 1 for result in aligned]
        arrays["alignment_after"] = np.asarray(after, np.int32)
    probes = [probe for result in results for probe in result.probes]
    if probes:
        for name, field in (("updates", "num_updates"), ("tasks", "task")):
            values = [getattr(probe, field) for probe in probes]
            arrays[f"probe_{name}"] = np.asarray(values, np.int32)
        for name in ("slow", "fast"):
            values = [getattr(probe, name) for probe in probes]
            arrays[f"probe_{name}"] = np.stack(values, axis=1)
    return arrays
