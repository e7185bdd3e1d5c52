"""Speed of the main job, as ratios measured in one process."""

import itertools
import json
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

from experiments import benchmarks, presets, runner, train

_MATMUL_SIZE = 1024


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
    num_pixels: int,
    num_classes: int,
) -> float:
    """Counts the matrix products of one first-order meta-update.

    Each inner step takes a gradient on its share of the batch and one on the query. A
    gradient costs two products per layer and row in the forward and the weights'
    backward pass, and one more per layer but the first.

    Args:
        benchmark: gives the hidden widths.
        hyper: gives batch, replay and inner steps.
        num_pixels: inputs of the network.
        num_classes: outputs of the network.

    Returns:
        Floating-point operations.
    """
    widths = (num_pixels, *benchmark.hidden, num_classes)
    layers = [a * b for a, b in itertools.pairwise(widths)]
    per_row = 2 * (2 * sum(layers) + sum(layers[1:]))
    query = hyper.batch_size + (hyper.replay_size or 0)
    return per_row * (hyper.batch_size + (hyper.inner_steps or 0) * query)


def measure(
    benchmark_name: str, *, seeds: int, tasks: int, rounds: int, data_dir: Path | None
) -> dict[str, Any]:
    """Measures La-MAML training against the matmul rate of the same process.

    Training stretches and matrix products alternate; medians are reported.

    Args:
        benchmark_name: a benchmark with images.
        seeds: seeds trained side by side.
        tasks: tasks trained in each round.
        rounds: alternations.
        data_dir: folder of the prepared data sets.

    Returns:
        A JSON-compatible record; seconds, updates per second, bytes and ratios.
    """
    benchmark = benchmarks.get_benchmark(benchmark_name)
    (hyper,) = presets.resolve(benchmark_name, ["lamaml"])
    config = train.RunConfig(benchmark, "lamaml", tuple(range(seeds)), hyper)
    data = benchmarks.load(benchmark, config.seeds, data_dir)
    inputs = runner.place(data, config.seeds, runner.seed_mesh())
    (program,) = runner.compile_programs([config], inputs)
    state = program.init()
    matmuls = 40
    flops = flops_per_meta_update(
        benchmark, hyper, data.train_images.shape[1], data.num_classes
    )
    trained: list[Timing] = []
    peaks: list[float] = []
    for _ in range(rounds):

        def stretch(state=state):
            for task in range(tasks):
                state, _ = program.train_task(
                    inputs.shared,
                    inputs.streams,
                    inputs.seeds,
                    state,
                    jnp.int32(task),
                )
            return state

        state, timing = _timed(stretch)
        trained.append(timing)
        peak = _matmul_seconds(matmuls)
        peaks.append(matmuls * 2 * _MATMUL_SIZE**3 / peak.cpu_s)
    updates_per_seed = train.num_meta_updates(config) * tasks / benchmark.num_tasks
    wall = statistics.median(t.wall_s for t in trained)
    cpu = statistics.median(t.cpu_s for t in trained)
    peak_rate = statistics.median(peaks)
    padded = len(inputs.seeds)
    rate_per_cpu = flops * updates_per_seed * padded / cpu
    return {
        "benchmark": benchmark_name,
        "device": jax.devices()[0].device_kind,
        "devices": inputs.mesh.size,
        "seeds": seeds,
        "rounds": rounds,
        "tasks_per_round": tasks,
        "meta_updates_per_s": updates_per_seed * seeds / wall,
        "cpu_ms_per_meta_update": 1e3 * cpu / (updates_per_seed * padded),
        "cpu_s_per_seed": cpu / padded * benchmark.num_tasks / tasks,
        "compile_s": program.compile_s,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "flops_per_meta_update": flops,
        "matmul_flops_per_cpu_s": peak_rate,
        "ratio_to_matmul_peak": rate_per_cpu / peak_rate,
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
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write(record: dict[str, Any], path: Path) -> None:
    """Writes a record as JSON."""
    path.write_text(json.dumps(record, indent=2) + "\n")
