"""What must not grow along a stream: time per batch, and memory of the host."""

import dataclasses
import gc
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.bench import timing
from experiments.bench.job import Job
from experiments.bench.settings import Settings
from experiments.run_folder.measurements import Result
from experiments.support.errors import UserError

_TASKS = 200
_PARTS = 20
_CAPACITY = 100_000


def _resident_mib() -> float:
    """Memory that this process occupies now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _memory(job: Job) -> Result:
    """Reads the process's memory while it trains task after task."""
    num_tasks = job.config.benchmark.num_tasks
    found, done = [], 0
    for mark in np.linspace(0, num_tasks, 5).astype(int):
        jax.block_until_ready(job.train(done, mark - done))
        done = mark
        gc.collect()
        found.append({"tasks_done": int(mark), "resident_mib": _resident_mib()})
    return Result("Memory of the host along a run", found)


def _by_position(
    settings: Settings, num_tasks: int, rows: int, capacities: Sequence[int]
) -> list[Result]:
    """Times the first and the last task of a long stream, and watches the memory."""
    benchmark = dataclasses.replace(
        settings.benchmark, num_tasks=num_tasks, rows_per_task=rows
    )
    places = (0, num_tasks - 1)
    jobs = {
        c: Job(benchmark, range(1), settings.data_dir, capacity=c, **settings.overrides)
        for c in capacities
    }
    works = {
        (capacity, place): (lambda job=job, place=place: job.train(place, 1))
        for capacity, job in jobs.items()
        for place in places
    }
    timings = timing.alternate(works, settings.rounds)
    first = timings[capacities[0], 0]
    rows_found = [
        {
            "capacity": capacity,
            "task": place + 1,
            "ms_per_meta_update": 1e3
            * timing.median_wall_s(timings[capacity, place])
            / jobs[capacity].updates(1),
            "over_first": timing.median_ratio(timings[capacity, place], first),
        }
        for capacity, place in works
    ]
    title = f"Meta-updates along {num_tasks} tasks of {benchmark.name}"
    return [Result(title, rows_found), _memory(jobs[capacities[0]])]


def _by_length(settings: Settings, lengths: Sequence[int]) -> Result:
    """Times the last batches of streams of several lengths.

    The rows before them are not shown; the stream is an array of row indices of that
    length, and the reservoir counts as many rows offered.
    """
    jobs = {}
    for length in lengths:
        benchmark = dataclasses.replace(
            settings.benchmark, num_tasks=_PARTS, rows_per_task=length // _PARTS
        )
        jobs[length] = Job(
            benchmark, range(1), settings.data_dir, probes=True, **settings.overrides
        )
    works = {
        length: (lambda job=job: job.train_last_part()) for length, job in jobs.items()
    }
    timings = timing.alternate(works, settings.rounds)
    first = timings[lengths[0]]
    rows = [
        {
            "stream_rows": length,
            "ms_per_meta_update": 1e3
            * timing.median_wall_s(timings[length])
            / jobs[length].updates_per_part,
            "over_first": timing.median_ratio(timings[length], first)
            * jobs[lengths[0]].updates_per_part
            / jobs[length].updates_per_part,
        }
        for length in lengths
    ]
    return Result("Meta-updates at the end of a stream, by its length", rows)


def measure(settings: Settings) -> Sequence[Result]:
    """Measures costs that a longer stream must not raise.

    Raises:
        UserError: the benchmark's tasks have classes of their own, so that there cannot
            be as many tasks as this needs.
    """
    if settings.benchmark.classes_per_task is not None:
        raise UserError(f"{settings.benchmark.name}: a stream of any length is needed")
    if settings.quick:
        return [
            *_by_position(settings, 8, 20, (200,)),
            _by_length(settings, (200, 400)),
        ]
    capacities = (200, _CAPACITY)
    return [
        *_by_position(settings, _TASKS, 100, capacities),
        _by_length(settings, (10**3, 10**6)),
    ]
