"""What a run is told, and whether it can be done."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from experiments import methods
from experiments.config import benchmarks
from experiments.data import targets
from experiments.methods.hyperparameters import (
    GRAINS,
    MEMORIES,
    Hyperparameters,
    rates_of,
)
from experiments.networks import INITIALIZERS, check_network
from experiments.run_folder import FORMAT_VERSION
from experiments.support.errors import UserError

SETTINGS = ("aware", "agnostic")
PRECISIONS = ("float32", "bfloat16")
PARTS = ("test", "validation")
_MAX_TASKS = 10_000
_RATES = (
    "step_size_learning_rate",
    "learning_rate",
    "step_size_init",
    "margin",
    "penalty",
    "logit_weight",
    "label_weight",
    "distillation_weight",
    "mean_learning_rate",
)
_LIMITED_BY = {
    "batch_size": "rows_per_task",
    "replay_size": "capacity",
    "inner_steps": "batch_size",
    "fisher_rows": "rows_per_task",
}
_SHARES = (
    *("momentum", "within_rate", "across_rate"),
    *("inner_momentum", "replay_weight"),
)
_POSITIVE = (
    *("max_grad_norm", "inner_clip", "within_rate", "across_rate"),
    *("std_init", "mean_learning_rate"),
)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers."""

    benchmark: benchmarks.Benchmark
    method: str
    seeds: tuple[int, ...]
    hyper: Hyperparameters
    stream_seed: int | None = None
    """Decides the transformations of every seed's stream; None: each seed its own."""
    setting: str = "aware"
    """Whether the learner is told of tasks and heads are masked by task, one of
    ``SETTINGS``."""
    passes: str = "single"
    """Whose presets these are, single or multi."""
    probes: bool = False
    """Accuracy at fast and slow weights about every 25 updates of the first tasks."""
    alignment: bool = False
    """Cosines between the gradients of the tasks' losses after every evaluation."""
    precision: str = "float32"
    """What the network computes in, one of ``PRECISIONS``; weights are float32."""
    evaluate_on: str = "test"
    """One of ``PARTS``. On ``"validation"`` a tenth of the training rows is held out
    for evaluation, tasks are drawn anew, and no test row or test task is seen."""
    presets_from: str | None = None
    """The benchmark whose presets these are, where this one has none."""


def batches_per_task(config: RunConfig) -> int:
    """Batches of one pass over a task, the last of which may be smaller."""
    return -(-config.benchmark.rows_per_task // max(config.hyper.batch_size, 1))


def anytime_after(config: RunConfig) -> list[int]:
    """Batches of a task that were shown at each evaluation within it.

    Returns:
        ``anytime_every`` and its multiples, and all batches at the end.
    """
    total, every = batches_per_task(config), config.benchmark.anytime_every
    return [] if every is None else [*range(every, total, every), total]


def num_meta_updates(config: RunConfig) -> int:
    """Updates that one seed makes over the whole stream."""
    hyper = config.hyper
    updates = batches_per_task(config) * hyper.glances * hyper.epochs
    return config.benchmark.num_tasks * updates


def with_rates(config: RunConfig, rates: Mapping[str, Any]) -> RunConfig:
    """Replaces hyper-parameters by values, which may be traced."""
    hyper = dataclasses.replace(config.hyper, **rates)
    return dataclasses.replace(config, hyper=hyper)


def shape_of(config: RunConfig) -> RunConfig:
    """Blanks ``RATES``: what is equal for runs that can share a compiled program."""
    return with_rates(config, dict.fromkeys(rates_of(config.hyper), 1.0))


def config_record(config: RunConfig) -> dict[str, Any]:
    """Flattens a configuration to what a run folder stores of it."""
    benchmark = dataclasses.asdict(config.benchmark)
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in ("benchmark", "method", "seeds", "hyper")
    }
    hyper = dataclasses.asdict(config.hyper)
    return {
        "format_version": FORMAT_VERSION,
        "benchmark": benchmark.pop("name"),
        "method": config.method,
        "seeds": list(config.seeds),
        **options,
        **benchmark,
        **{key: value for key, value in hyper.items() if value is not None},
    }


def check_config(config: RunConfig) -> None:
    """Checks sizes and rates before any work.

    Raises:
        UserError: the first that is out of range.
    """
    benchmark, hyper = config.benchmark, config.hyper
    methods.check_method(config.method)
    methods.check_setting(
        config.method,
        task_aware=config.setting == "aware",
        own_classes=benchmark.classes_per_task is not None,
    )
    limits = {
        "num_tasks": (benchmark.num_tasks, _MAX_TASKS),
        "rows_per_task": (benchmark.rows_per_task, 2**31 - 1),
        "eval_every": (benchmark.eval_every, 2**31 - 1),
        "anytime_every": (benchmark.anytime_every, batches_per_task(config)),
        "anytime_rows": (benchmark.anytime_rows, 2**31 - 1),
        "batch_size": (hyper.batch_size, benchmark.rows_per_task),
        "glances": (hyper.glances, 2**31 - 1),
        "epochs": (hyper.epochs, 2**16),
        "classes_per_task": (benchmark.classes_per_task, 2**31 - 1),
        "capacity": (hyper.capacity, 2**31 - 2),
        "replay_size": (hyper.replay_size, hyper.capacity),
        "inner_steps": (hyper.inner_steps, hyper.batch_size),
        "rounds": (hyper.rounds, 2**31 - 1),
        "memory_per_task": (hyper.memory_per_task, 2**31 - 2),
        "fisher_rows": (hyper.fisher_rows, benchmark.rows_per_task),
        "mc_samples": (hyper.mc_samples, 2**31 - 1),
    }
    for name, (size, limit) in limits.items():
        if size is not None and limit is not None and not 1 <= size <= limit:
            which = f" ({_LIMITED_BY[name]})" if name in _LIMITED_BY else ""
            raise UserError(f"{name}: expected 1 to {limit}{which}, received {size}")
    if benchmark.is_online and (config.setting == "aware" or hyper.epochs > 1):
        raise UserError(
            f"{benchmark.name}: online, with one pass and no task ids; choose another "
            "benchmark for --setting aware or several epochs"
        )
    if benchmark.anytime_every is not None and (config.probes or hyper.epochs > 1):
        raise UserError(
            "anytime_every: not with --probes or several epochs, which evaluate or "
            "pass within a task in a way of their own"
        )
    targets.check_names(benchmark.loss, benchmark.metric)
    of_classes = targets.LOSSES[benchmark.loss].of_classes
    methods.check_targets(config.method, of_classes=of_classes)
    if benchmark.raw_memory and methods.METHODS[config.method].make_scores is not None:
        raise UserError(
            f"raw_memory: method {config.method!r} predicts with rows that it keeps as "
            "they were shown; choose another, or raw_memory: false in a file"
        )
    if hyper.memory == "balanced" and not of_classes:
        raise UserError(f"memory: balanced over classes, and {benchmark.loss} has none")
    if not 0 <= benchmark.blur < 1:
        raise UserError(f"blur: expected a share in [0, 1), received {benchmark.blur}")
    if benchmark.blur and (config.setting == "aware" or config.alignment):
        raise UserError(
            "blur: tasks that show each other's rows have no ids; not with --setting "
            "aware or --alignment"
        )
    for name in _RATES:
        rate = getattr(hyper, name)
        if rate is not None and not 0 <= rate < math.inf:
            raise UserError(f"{name}: expected a finite rate >= 0, received {rate}")
    for name in _SHARES:
        share = getattr(hyper, name)
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"{name}: expected a share in [0, 1], received {share}")
    for name in _POSITIVE:
        bound = getattr(hyper, name)
        if bound is not None and not 0 < bound:
            raise UserError(f"{name}: expected a number > 0, received {bound}")
    choices = {
        "setting": (config.setting, SETTINGS),
        "precision": (config.precision, PRECISIONS),
        "evaluate_on": (config.evaluate_on, PARTS),
        "initializer": (hyper.initializer, INITIALIZERS),
        "grain": (hyper.grain or GRAINS[0], GRAINS),
        "memory": (hyper.memory or MEMORIES[0], MEMORIES),
    }
    check_network(benchmark.network)
    for name, (value, known) in choices.items():
        if value not in known:
            raise UserError(
                f"{name}: expected one of {', '.join(known)}, received {value!r}"
            )


def check_memory(
    config: RunConfig, num_seeds: int, image_shape: tuple[int, ...]
) -> None:
    """Checks that the reservoirs of all seeds fit in this machine's memory.

    Raises:
        UserError: they do not.
    """
    needed = (config.hyper.capacity or 0) * num_seeds * math.prod(image_shape) * 4
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > present:
        raise UserError(
            f"capacity: {config.hyper.capacity} rows for {num_seeds} seeds "
            f"need {needed / 2**30:.0f} GiB of {present / 2**30:.0f} GiB of memory; "
            "choose a smaller one"
        )
