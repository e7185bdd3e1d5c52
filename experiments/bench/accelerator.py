"""What a card does to La-MAML: many seeds side by side, against its own peak."""

import concurrent.futures
import statistics
from collections.abc import Sequence
from typing import Any

import jax

from experiments.bench import timing
from experiments.bench.job import Job, shortened
from experiments.bench.settings import Settings
from experiments.bench.update import flops_per_meta_update
from experiments.run_folder.measurements import Result

_SEEDS = (1, 5, 20, 100, 1000)
_STRETCH_S = 8.0
_MATMUL_SIZE = 8192
_NOTE = (
    "compile_s: tracing and compiling, all rows of this table at once; train_s: the "
    "whole stream, without evaluation, from the tasks that were timed; percent of "
    "peak: operations of the matrix products alone"
)


def _task_seconds(job: Job, limit_s: float) -> list[float]:
    """Times one task after the other until all are done or ``limit_s`` is over."""
    job.train(0, 1)  # what happens only once is not counted
    seconds: list[float] = []
    for task in range(job.config.benchmark.num_tasks):
        seconds.append(timing.timed(lambda task=task: job.train(task, 1)).wall_s)
        if sum(seconds) > limit_s:
            break
    return seconds


def _row(job: Job, peak: float, limit_s: float) -> dict[str, Any]:
    config, form = job.config, job.inputs.form
    num_tasks, num_seeds = config.benchmark.num_tasks, len(config.seeds)
    seconds = _task_seconds(job, limit_s)
    task_s = statistics.median(seconds)
    rate = job.updates(1) * num_seeds / task_s
    flops = flops_per_meta_update(
        config.benchmark, config.hyper, form.image_shape, form.num_classes
    )
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "seeds": num_seeds,
        "compile_s": job.program.compile_s,
        "tasks_timed": len(seconds),
        "train_s": task_s * num_tasks,
        "meta_updates_per_s": rate,
        "us_per_meta_update_of_all_seeds": 1e6 * num_seeds / rate,
        "percent_of_matmul_peak": 100 * flops * rate / peak,
        "peak_memory_mib": memory.get("peak_bytes_in_use", 0) / 2**20 or None,
    }


def measure(settings: Settings) -> Sequence[Result]:
    """Measures La-MAML's training for growing numbers of seeds on one device."""
    benchmark, seeds, size, limit_s = (
        settings.benchmark,
        _SEEDS,
        _MATMUL_SIZE,
        _STRETCH_S,
    )
    if settings.quick:
        benchmark, seeds, size, limit_s = shortened(benchmark, 20), (1, 2), 256, 0.1

    def job(num_seeds: int) -> Job:
        return Job(
            benchmark,
            range(num_seeds),
            settings.data_dir,
            devices=1,
            **settings.overrides,
        )

    with concurrent.futures.ThreadPoolExecutor(len(seeds)) as pool:
        jobs = list(pool.map(job, seeds))
    peaks = {
        precision: timing.matmul_rate(size, precision)
        for precision in ("default", "highest")
    }
    timings = timing.alternate(
        {name: rate.work for name, rate in peaks.items()}, settings.rounds
    )
    rates = {
        name: rate.amount / timing.median_wall_s(timings[name])
        for name, rate in peaks.items()
    }
    rows = [_row(job, rates["default"], limit_s) for job in jobs]
    one = rows[0]["meta_updates_per_s"]
    rows = [row | {"over_one_seed": row["meta_updates_per_s"] / one} for row in rows]
    device = jax.devices()[0].device_kind
    peak_row = {
        f"matmul_tflop_per_s_{name}": rate / 1e12 for name, rate in rates.items()
    }
    return [
        Result(f"Peak of float32 products ({device})", [peak_row]),
        Result(f"La-MAML on {benchmark.name}, one {device}", rows, _NOTE),
    ]
