"""Runs methods one after the other, shows progress and writes run folders."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

import lamaml_jax as lm
from experiments import run_folder
from experiments.config import benchmarks
from experiments.config.run_config import (
    RunConfig,
    anytime_after,
    config_record,
    num_meta_updates,
)
from experiments.data import sources
from experiments.run_folder.environment import environment
from experiments.support.progress import show_progress, show_step
from experiments.support.stopping import Requests, Stopped, requests
from experiments.training import placement, runner
from experiments.training.checkpoints import Checkpoint, Checkpoints
from experiments.training.costs import cost_record
from experiments.training.history import (
    History,
    join,
    num_tasks,
    of_result,
    of_seeds,
    to_arrays,
)
from experiments.training.loggers import Logger


def _note(
    config: RunConfig, num_seeds: int, task: int, retained: np.ndarray, train_s: float
) -> str:
    updates = num_meta_updates(config) * num_seeds
    updates = updates * (task + 1) / config.benchmark.num_tasks
    finite = retained[np.isfinite(retained)]
    shown = f"{100 * finite.mean():5.1f} %" if finite.size else "n/a"
    return f"{updates / max(train_s, 1e-9):6.0f} updates/s  RA {shown}"


def _evaluation_records(
    config: RunConfig, result: runner.TaskResult, retained: np.ndarray, place: slice
) -> Iterator[dict[str, Any]]:
    """Yields a line for each seed of one part of a group."""
    for n, seed in zip(range(place.start, place.stop), config.seeds, strict=True):
        yield {
            "seed": seed,
            "task": result.task,
            "accuracy": [round(float(x), 6) for x in result.accuracy[n]],
            "retained_accuracy": round(float(retained[n]), 6),
            "train": {name: float(value[n]) for name, value in result.info.items()},
        }


def _summary(
    accuracy: np.ndarray,
    initial: np.ndarray,
    diverged: Mapping[int, dict[str, int]],
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
        "diverged_at": {str(seed): where for seed, where in diverged.items()},
    }


def _anytime_summary(accuracy: np.ndarray) -> dict[str, list[float]]:
    """Sums up accuracies [S, T, G, T] within tasks."""
    num_seeds, num_tasks, count, _ = accuracy.shape
    along = accuracy.reshape(num_seeds, num_tasks * count, num_tasks)
    tasks = np.repeat(np.arange(num_tasks), count)
    return {
        name: np.asarray(getattr(lm.metrics, name)(along, tasks)).tolist()
        for name in run_folder.ANYTIME_METRICS
    }


class Watch(NamedTuple):
    """How runs are watched."""

    console: Console
    """Where progress is shown."""
    checkpoint_s: float = 60.0
    """Seconds between two checkpoints at least."""
    loggers: tuple[Logger, ...] = ()
    """Told of every line of evaluations.jsonl."""
    find_causes: bool = False
    """Whether the first NaN of a seed that diverges is looked for."""
    command: str | None = None
    """What started the runs, as ``environment`` takes it."""

    def tell(self, text: str) -> None:
        """Shows a sentence as it is."""
        self.console.print(text, soft_wrap=True, markup=False)


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
    watch: Watch,
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
            lambda text: watch.console.print(
                f"{parts[0].folder}: {text}", soft_wrap=True
            ),
        )
    num_done = 0 if found is None else num_tasks(found.history)
    for part, record, progress in zip(parts, stored, done, strict=True):
        if progress == run_folder.Progress.NEW:
            run_folder.create(part.folder, record, environment(watch.command))
        elif progress == run_folder.Progress.INTERRUPTED:
            place = f"task {num_done}" if num_done else "the beginning"
            text = f"{part.folder}: was interrupted, goes on from {place}"
            watch.console.print(text, soft_wrap=True)
            run_folder.reopen(part.folder, environment(watch.command), num_done)
    return found, [progress != run_folder.Progress.COMPLETE for progress in done]


def _start(program: runner.Program, found: Checkpoint | None) -> tuple[Any, ...]:
    """Tells every process where the first one found that the group goes on."""
    first = -1 if found is None else num_tasks(found.history)
    first = int(placement.from_first_process(np.int32(first)))
    if first < 0:
        return ()
    like = _state_like(program), np.zeros(program.num_seeds, bool)
    own = like if found is None else (found.state, found.history["finite"][-1])
    state, finite = placement.from_first_process(own)
    return state, first, finite


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
    diverged = {}
    for n, seed in enumerate(config.seeds):
        if not own["finite"][-1, n]:
            task = int(np.argmin(own["finite"][:, n])) - 1
            batch = int(own["first_bad"][task + 1, n])
            diverged[seed] = {"task": task, "batch": batch}
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
    if cost := cost_record(config, inputs.form):
        summary["cost"] = cost
    if "anytime_accuracy" in arrays:
        arrays["anytime_after"] = np.asarray(anytime_after(config), np.int32)
        summary |= _anytime_summary(arrays["anytime_accuracy"])
    if "step_size_quantiles" in arrays:
        summary["step_size_leaves"] = runner.leaf_names(program)
    run_folder.finish(part.folder, arrays, summary)
    return list(diverged)


def _tell_causes(
    config: RunConfig, result: runner.TaskResult, seeds: np.ndarray, console: Console
) -> None:
    for place, cause in result.causes.items():
        where = f"task {result.task}, batch {result.first_bad[place]}"
        console.print(
            f"{config.method}, seed {seeds[place]} diverged in {where}: {cause}",
            soft_wrap=True,
            markup=False,
        )


def run_group(
    parts: Sequence[Part],
    program: runner.Program,
    inputs: runner.Inputs,
    watch: Watch,
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
        watch: how the runs are watched.

    Returns:
        The seeds of each part that diverged; in the first process only.

    Raises:
        RunFolderError: a folder cannot be written, or all hold complete runs.
        Stopped: by Ctrl-C or SIGTERM; the task at hand was finished and saved.
    """
    config, folder = parts[0]
    places = _seeds_of_parts(parts)
    all_seeds = np.concatenate([part.config.seeds for part in parts])
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, watch.checkpoint_s)
    found, wanted = None, [False] * len(parts)
    if placement.is_first_process():
        found, wanted = _open(parts, program, checkpoints, watch)
    histories = [] if found is None else [found.history]
    train_s = sum(float(history["train_s"].sum()) for history in histories)
    start = _start(program, found)
    num_seeds, total = program.num_seeds, config.benchmark.num_tasks
    with (
        contextlib.closing(checkpoints),
        show_progress(config.method, total, watch.console) as show,
        requests(watch.tell) as stop,
        stop.answering("saving after this task"),
    ):
        results = runner.train(
            config, program, inputs, *start, find_causes=watch.find_causes
        )
        for result in results:
            histories.append(of_result(result))
            train_s += result.train_s
            if result.task < 0:
                continue
            retained = runner.running_retained_accuracy(result.accuracy, result.task)
            for part, place, is_wanted in zip(parts, places, wanted, strict=True):
                lines = _evaluation_records(part.config, result, retained, place)
                for line in lines if is_wanted else ():
                    run_folder.append_evaluation(part.folder, line)
                    for log in watch.loggers:
                        log(part.folder, line)
            _tell_causes(config, result, all_seeds, watch.console)
            note = _note(config, num_seeds, result.task, retained, train_s)
            show(result.task + 1, note)
            is_due, signal = placement.from_first_process(
                np.int32([checkpoints.is_due(), stop.number])
            ).tolist()
            if (is_due or signal) and result.task + 1 < total:
                state = _host_state(result.state, num_seeds)
                if any(wanted):
                    checkpoints.save(Checkpoint(state, join(histories)))
                if signal:
                    done = f"{result.task + 1} of {total} tasks of {config.method}"
                    raise Stopped(signal, f"{done} are saved in {folder}")
    whole = join(histories)
    diverged: list[list[int]] = [[] for _ in parts]
    for n in reversed(range(len(parts))):
        if wanted[n]:
            diverged[n] = _finish(parts[n], places[n], program, inputs, whole)
    return diverged


def _check_stop(stop: Requests, parts: Sequence[Part]) -> None:
    """Stops all processes between two steps before a group's training."""
    number = int(placement.from_first_process(np.int32(stop.number)))
    if number:
        config, folder = parts[0]
        raise Stopped(
            number,
            f"the training of {config.method} in {folder} had not begun",
        )


def run_groups(
    groups: Sequence[Sequence[Part]],
    source: sources.Source,
    mesh: Mesh,
    watch: Watch,
) -> dict[Path, list[int]]:
    """Runs groups on one benchmark, one after the other.

    Args:
        groups: what to run, on the same seeds and the same streams.
        source: data set of the benchmark.
        mesh: from ``placement.make_mesh``.
        watch: how the runs are watched.

    Returns:
        The seeds that diverged, by folder.

    Raises:
        UserError: sizes or hyper-parameters that do not fit together, or a folder that
            cannot be written.
        Stopped: by Ctrl-C or SIGTERM; what was trained is saved.
    """
    with requests(watch.tell) as stop:
        return _run_groups(groups, source, mesh, watch, stop)


def _run_groups(
    groups: Sequence[Sequence[Part]],
    source: sources.Source,
    mesh: Mesh,
    watch: Watch,
    stop: Requests,
) -> dict[Path, list[int]]:
    diverged: dict[Path, list[int]] = {}
    for size in dict.fromkeys(len(parts) for parts in groups):
        same = [list(parts) for parts in groups if len(parts) == size]
        config = same[0][0].config
        seeds = config.seeds * size
        _check_stop(stop, same[0])
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
            _check_stop(stop, parts)
            with show_step(f"compiling {parts[0].config.method}", watch.console):
                program = next(programs)
            _check_stop(stop, parts)
            lost = run_group(parts, program, inputs, watch)
            folders = [part.folder for part in parts]
            diverged |= dict(zip(folders, lost, strict=True))
    return diverged
