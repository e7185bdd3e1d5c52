"""Speed of the main job, as ratios measured in one process."""

import itertools
import json
import math
import resource
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import benchmarks, presets, runner
from experiments.config import RunConfig, check_config, num_meta_updates

_MATMUL_SIZE = 1024
_MATMULS = 40


class Timing(NamedTuple):
    """One timed stretch of work."""

    wall_s: float
    cpu_s: float


def _timed(fn: Any) -> tuple[Any, Timing]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(fn())
    return result, Timing(time.perf_counter() - wall, time.process_time() - cpu)


def _matmul_seconds(repeats: int) -> Timing:
    """Times chained float32 matrix products on the first device."""
    size = _MATMUL_SIZE
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)) / size)
    matrix = matrix.astype(jnp.float32)

    @jax.jit
    def chain(x):
        return jax.lax.fori_loop(0, repeats, lambda _, y: y @ matrix, x)

    jax.block_until_ready(chain(matrix))
    return _timed(lambda: chain(matrix))[1]


def flops_per_meta_update(
    benchmark: benchmarks.Benchmark,
    hyper: presets.Hyperparameters,
    image_shape: tuple[int, ...],
    num_classes: int,
) -> float:
    """Counts the matrix products of one first-order meta-update.

    Each inner step takes a gradient on its share of the batch and one on the query. A
    gradient costs two products per layer and row in the forward and the weights'
    backward pass, and one more per layer but the first.

    Args:
        benchmark: gives the hidden widths.
        hyper: gives batch, replay and inner steps.
        image_shape: inputs of the network.
        num_classes: outputs of the network.

    Returns:
        Floating-point operations.
    """
    widths = (math.prod(image_shape), *benchmark.hidden, num_classes)
    layers = [a * b for a, b in itertools.pairwise(widths)]
    per_row = 2 * (2 * sum(layers) + sum(layers[1:]))
    query = hyper.batch_size + (hyper.replay_size or 0)
    return per_row * (hyper.batch_size + (hyper.inner_steps or 0) * query)


class _Job(NamedTuple):
    """A compiled run whose training can be repeated."""

    config: RunConfig
    inputs: runner.Inputs
    program: runner.Program


def _prepare(
    benchmark: benchmarks.Benchmark, seeds: int, data_dir: Path | None, **overrides: Any
) -> _Job:
    (hyper,) = presets.resolve(benchmark.name, ["lamaml"], overrides)
    config = RunConfig(benchmark, "lamaml", tuple(range(seeds)), hyper)
    check_config(config)
    data = benchmarks.load(benchmark, config.seeds, data_dir)
    inputs = runner.place(data, config.seeds, runner.seed_mesh())
    (program,) = runner.compile_programs([config], inputs)
    return _Job(config, inputs, program)


def _train(job: _Job, state: Any, tasks: int) -> tuple[Any, Timing]:
    """Trains on the first ``tasks`` tasks; consumes and returns the state."""
    _, _, shared, streams, seeds = job.inputs

    def stretch():
        after = state
        for task in range(tasks):
            after, _ = job.program.train_task(
                shared, streams, seeds, after, jnp.int32(task)
            )
        return after

    return _timed(stretch)


def _updates(job: _Job, tasks: int) -> float:
    """Meta-updates of one seed in ``tasks`` tasks."""
    return num_meta_updates(job.config) * tasks / job.config.benchmark.num_tasks


def measure(
    benchmark: benchmarks.Benchmark,
    *,
    seeds: int,
    tasks: int,
    rounds: int,
    data_dir: Path | None,
) -> dict[str, Any]:
    """Measures La-MAML training against the matmul rate of the same process.

    Training stretches and matrix products alternate; medians are reported.

    Args:
        benchmark: any of the named ones.
        seeds: seeds trained side by side.
        tasks: tasks trained in each round.
        rounds: alternations, after one that is not counted.
        data_dir: folder of the prepared data sets.

    Returns:
        A JSON-compatible record; seconds, updates per second, bytes and ratios.
    """
    job = _prepare(benchmark, seeds, data_dir)
    form, hyper = job.inputs.form, job.config.hyper
    flops = flops_per_meta_update(benchmark, hyper, form.image_shape, form.num_classes)
    trained: list[Timing] = []
    peaks: list[float] = []
    state, _ = _train(job, job.program.init(), tasks)
    for _ in range(rounds):
        state, timing = _train(job, state, tasks)
        trained.append(timing)
        products = _matmul_seconds(_MATMULS)
        peaks.append(_MATMULS * 2 * _MATMUL_SIZE**3 / products.cpu_s)
    wall = statistics.median(t.wall_s for t in trained)
    cpu = statistics.median(t.cpu_s for t in trained)
    peak = statistics.median(peaks)
    run_seeds = len(job.inputs.seeds)
    updates = _updates(job, tasks)
    return {
        "benchmark": benchmark.name,
        "device": jax.devices()[0].device_kind,
        "devices": job.inputs.mesh.size,
        "seeds": seeds,
        "rounds": rounds,
        "tasks_per_round": tasks,
        "meta_updates_per_s": updates * seeds / wall,
        "cpu_ms_per_meta_update": 1e3 * cpu / (updates * run_seeds),
        "cpu_s_per_seed": cpu / run_seeds * benchmark.num_tasks / tasks,
        "compile_s": job.program.compile_s,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "flops_per_meta_update": flops,
        "matmul_flops_per_cpu_s": peak,
        "ratio_to_matmul_peak": flops * updates * run_seeds / cpu / peak,
    }


def measure_capacity(
    benchmark: benchmarks.Benchmark,
    capacities: tuple[int, int],
    *,
    tasks: int,
    rounds: int,
    data_dir: Path | None,
) -> dict[str, Any]:
    """Measures whether a meta-update costs more with a larger reservoir.

    Args:
        benchmark: any of the named ones.
        capacities: the reservoir's rows, twice; the second over the first is reported.
        tasks: tasks trained in each round, by each in turn.
        rounds: alternations, after one that is not counted.
        data_dir: folder of the prepared data sets.

    Returns:
        A JSON-compatible record; milliseconds per meta-update and their ratio, medians.
    """
    jobs = [_prepare(benchmark, 1, data_dir, capacity=c) for c in capacities]
    states = [_train(job, job.program.init(), tasks)[0] for job in jobs]
    walls: list[list[float]] = []
    for _ in range(rounds):
        timings = [_train(*pair, tasks) for pair in zip(jobs, states, strict=True)]
        states = [state for state, _ in timings]
        walls.append([timing.wall_s for _, timing in timings])
    updates = _updates(jobs[0], tasks)
    return {
        "capacities": list(capacities),
        "ms_per_meta_update": [
            1e3 * statistics.median(column) / updates
            for column in zip(*walls, strict=True)
        ],
        "ratio": statistics.median(large / small for small, large in walls),
    }


def show(record: dict[str, Any], console: Console) -> None:
    """Prints a record of ``measure`` as a table."""
    table = Table(title=f"La-MAML on {record['benchmark']}, {record['device']}")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    rows = [
        ("meta-updates per second, all seeds", f"{record['meta_updates_per_s']:.0f}"),
        ("CPU ms per meta-update", f"{record['cpu_ms_per_meta_update']:.2f}"),
        ("CPU s per seed, whole stream", f"{record['cpu_s_per_seed']:.1f}"),
        ("compile s", f"{record['compile_s']:.1f}"),
        ("peak memory MiB", f"{record['peak_memory_bytes'] / 2**20:.0f}"),
        ("MFLOP per meta-update", f"{record['flops_per_meta_update'] / 1e6:.1f}"),
        (
            "float32 matmul peak GFLOP per CPU s",
            f"{record['matmul_flops_per_cpu_s'] / 1e9:.1f}",
        ),
        ("share of that peak", f"{100 * record['ratio_to_matmul_peak']:.1f} %"),
    ]
    if "reservoir" in record:
        small, large = record["reservoir"]["capacities"]
        ratio = record["reservoir"]["ratio"]
        rows.append((f"time at capacity {large} over {small}", f"{ratio:.3f}"))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write(record: dict[str, Any], path: Path) -> None:
    """Writes a record as JSON."""
    path.write_text(json.dumps(record, indent=2) + "\n")
