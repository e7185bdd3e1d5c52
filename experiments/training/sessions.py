"""Runs methods one after the other, shows progress and writes run folders."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from experiments import run_folder
from experiments.config import benchmarks
from experiments.config.run_config import (
    RunConfig,
    num_meta_updates,
)
from experiments.data import sources
from experiments.support.progress import show_progress, show_step
from experiments.support.stopping import Requests, Stopped, requests
from experiments.training import loop, placement, recording, storing
from experiments.training.checkpoints import Checkpoint, Checkpoints
from experiments.training.inputs import Inputs, place
from experiments.training.loggers import Logger
from experiments.training.programs import Program, compile_programs


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


def _host_state(state: Any, num_seeds: int) -> Any:
    """Copies a learner's state, without the padding of seeds; of all processes."""
    whole = placement.gather(state)
    return jax.tree.map(lambda leaf: np.array(leaf)[:num_seeds], whole)


def _start(program: Program, found: Checkpoint | None) -> loop.Start | None:
    """Tells every process where the first one found that the group goes on."""
    first = -1 if found is None else recording.num_tasks(found.history)
    first = int(placement.from_first_process(np.int32(first)))
    if first < 0:
        return None
    like = storing.state_like(program), np.zeros(program.num_seeds, bool)
    own = like if found is None else (found.state, found.history["finite"][-1])
    state, finite = placement.from_first_process(own)
    return loop.Start(state, first, finite)


def _tell_causes(
    config: RunConfig, result: loop.TaskResult, seeds: np.ndarray, console: Console
) -> None:
    """Says what produced the first NaN of seeds that diverged."""
    for index, cause in result.causes.items():
        where = f"task {result.task}, batch {result.first_bad[index]}"
        console.print(
            f"{config.method}, seed {seeds[index]} diverged in {where}: {cause}",
            soft_wrap=True,
            markup=False,
        )


def _mean_of(accuracy: np.ndarray) -> str:
    finite = accuracy[np.isfinite(accuracy)]
    return f"{100 * finite.mean():5.1f} %" if finite.size else "n/a"


def _note(
    config: RunConfig,
    program: Program,
    result: loop.TaskResult,
    recorder: recording.Recorder,
) -> str:
    """Says beside the progress how fast and how good the run is."""
    updates = num_meta_updates(config) * program.num_seeds
    updates = updates * (result.task + 1) / config.benchmark.num_tasks
    retained = loop.running_retained_accuracy(result.accuracy, result.task)
    note = f"{updates / max(recorder.train_s, 1e-9):6.0f} updates/s"
    note += f"  RA {_mean_of(retained)}"
    anytime = recorder.anytime_accuracy()
    return note if anytime is None else f"{note}  AAA {_mean_of(anytime)}"


def run_group(
    parts: Sequence[storing.Part], program: Program, inputs: Inputs, watch: Watch
) -> list[list[int]]:
    """Trains a group of runs side by side and writes their run folders.

    Checkpoints are in the first part's folder, which is completed last. In a run of
    several processes all call this, and the first one writes.

    Args:
        parts: what to run; they differ in ``rates_of`` only. Their folders
            are new, or of the same runs, interrupted; those then go on from the latest
            checkpoint and end with the numbers of runs that were not interrupted.
        program: from ``programs.compile_programs`` for their configurations.
        inputs: from ``inputs.place``.
        watch: how the runs are watched.

    Returns:
        The seeds of each part that diverged; in the first process only.

    Raises:
        RunFolderError: a folder cannot be written, or all hold complete runs.
        Stopped: by Ctrl-C or SIGTERM; the task at hand was finished and saved.
    """
    config, folder = parts[0]
    all_seeds = np.concatenate([part.config.seeds for part in parts])
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, watch.checkpoint_s)
    found, wanted = None, [False] * len(parts)
    if placement.is_first_process():
        found, wanted = storing.open_folders(
            parts, program, checkpoints, watch.tell, watch.command
        )
    written = [
        (part, own)
        for part, own, is_wanted in zip(
            parts, storing.seeds_of(parts), wanted, strict=True
        )
        if is_wanted
    ]
    recorder = recording.Recorder(None if found is None else found.history)
    start = _start(program, found)
    total = config.benchmark.num_tasks
    with (
        contextlib.closing(checkpoints),
        show_progress(config.method, total, watch.console) as show,
        requests(watch.tell) as stop,
        stop.answering("saving after this task"),
    ):
        for result in loop.train(config, program, inputs, start, watch.find_causes):
            recorder.add(result)
            if result.task < 0:
                continue
            for part, own in written:
                storing.write(part, result, own, watch.loggers)
            _tell_causes(config, result, all_seeds, watch.console)
            show(result.task + 1, _note(config, program, result, recorder))
            is_due, signal = placement.from_first_process(
                np.asarray([checkpoints.is_due(), stop.number], np.int32)
            ).tolist()
            if (is_due or signal) and result.task + 1 < total:
                state = _host_state(result.state, program.num_seeds)
                if written:
                    checkpoints.save(Checkpoint(state, recorder.history()))
                if signal:
                    done = f"{result.task + 1} of {total} tasks of {config.method}"
                    raise Stopped(signal, f"{done} are saved in {folder}")
    diverged: dict[Path, list[int]] = {}
    for part, own in reversed(written):
        history = recording.of_seeds(recorder.history(), own)
        diverged[part.folder] = storing.finish(part, program, inputs, history)
    return [diverged.get(part.folder, []) for part in parts]


def _check_stop(stop: Requests, parts: Sequence[storing.Part]) -> None:
    """Stops all processes between two steps before a group's training."""
    number = int(placement.from_first_process(np.int32(stop.number)))
    if number:
        config, folder = parts[0]
        raise Stopped(
            number,
            f"the training of {config.method} in {folder} had not begun",
        )


def run_groups(
    groups: Sequence[Sequence[storing.Part]],
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
    groups: Sequence[Sequence[storing.Part]],
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
        inputs = place(data, seeds, mesh)
        configs = [[part.config for part in parts] for parts in same]
        programs = compile_programs(configs, inputs)
        for parts in same:
            _check_stop(stop, parts)
            with show_step(f"compiling {parts[0].config.method}", watch.console):
                program = next(programs)
            _check_stop(stop, parts)
            lost = run_group(parts, program, inputs, watch)
            folders = [part.folder for part in parts]
            diverged |= dict(zip(folders, lost, strict=True))
    return diverged
