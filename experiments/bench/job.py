"""A compiled run of La-MAML whose training can be repeated."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig, check_config, num_meta_updates
from experiments.training import placement
from experiments.training.inputs import place
from experiments.training.probes import batches_per_part
from experiments.training.programs import compile_programs

FEW_ROWS = 60
"""Of a task, for a quick run, and where an update takes a part of a second."""


class Job:
    """La-MAML on a benchmark, compiled; the state goes on from call to call."""

    def __init__(
        self,
        benchmark: benchmarks.Benchmark,
        seeds: Sequence[int],
        data_dir: Path | None,
        *,
        devices: int | None = None,
        probes: bool = False,
        **overrides: Any,
    ) -> None:
        """Loads, compiles and initialises.

        Args:
            benchmark: possibly with replaced sizes.
            seeds: trained side by side.
            data_dir: folder of the prepared data sets.
            devices: how many; all if None.
            probes: needed for ``train_last_part``.
            **overrides: hyper-parameters.

        Raises:
            UserError: sizes or data that do not fit.
        """
        (hyper,) = presets.resolve(benchmark.name, ["lamaml"], overrides)
        source = benchmarks.sources.load_source(benchmark.source, data_dir)
        benchmark = benchmarks.with_tasks_of(benchmark, source.num_classes)
        # What is timed is updates, not the accuracies between them.
        benchmark = dataclasses.replace(benchmark, anytime_every=None)
        self.config = RunConfig(
            benchmark,
            "lamaml",
            tuple(seeds),
            hyper,
            setting=benchmark.usual_setting,
            probes=probes,
        )
        check_config(self.config)
        data = benchmarks.draw(benchmark, source, self.config.seeds)
        mesh = placement.make_mesh(devices)
        self.inputs = place(data, self.config.seeds, mesh)
        (self.program,) = compile_programs([[self.config]], self.inputs)
        self._state = self.program.init()
        alive = np.ones(len(self.config.seeds), bool)
        self._alive = placement.place_all(alive, mesh)

    def train(self, first: int, tasks: int) -> Any:
        """Trains on ``tasks`` tasks from ``first`` on; returns the state."""
        for task in range(first, first + tasks):
            self._state, *_ = self.program.train_task(self._state, self._alive, task)
        return self._state

    def train_last_part(self) -> Any:
        """Trains on the last ``updates_per_part`` of the stream; returns the state."""
        benchmark, hyper = self.config.benchmark, self.config.hyper
        assert self.program.compiled.train_part is not None, "made without probes"
        first = benchmark.rows_per_task // hyper.batch_size
        first -= batches_per_part(self.config)
        seen = benchmark.num_tasks * benchmark.rows_per_task
        self._state = optax.tree.set(
            self._state, num_seen=jnp.full(len(self.inputs.own.seed), seen, jnp.int32)
        )
        self._state, *_ = self.program.train_part(
            self._state, self._alive, benchmark.num_tasks - 1, first
        )
        return self._state

    @property
    def updates_per_part(self) -> int:
        """Meta-updates of one seed in a part."""
        return batches_per_part(self.config) * self.config.hyper.glances

    def updates(self, tasks: int) -> float:
        """Meta-updates of one seed in ``tasks`` tasks."""
        return num_meta_updates(self.config) * tasks / self.config.benchmark.num_tasks


def shortened(benchmark: benchmarks.Benchmark, rows: int) -> benchmarks.Benchmark:
    """Returns the benchmark with at most ``rows`` rows per task.

    They are whole batches of La-MAML's and as many of each class of a task that has
    classes of its own; where ``rows`` are too few for that, the least such number.
    """
    (hyper,) = presets.resolve(benchmark.name, ["lamaml"])
    least = math.lcm(hyper.batch_size, benchmark.classes_per_task or 1)
    rows = min(max(rows // least, 1) * least, benchmark.rows_per_task)
    return dataclasses.replace(benchmark, rows_per_task=rows)
