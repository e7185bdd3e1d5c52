"""What a run is told, counted, flattened, and checked."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

from experiments import methods
from experiments.data import targets
from experiments.methods.hyperparameters import rates_of
from experiments.networks import check_network
from experiments.run_folder import FORMAT_VERSION
from experiments.schema import fields
from experiments.schema.run import RunConfig
from experiments.support.errors import UserError


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
    """Blanks the rates: what is equal for runs that can share a compiled program."""
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
    """Checks names, sizes and rates before any work.

    Raises:
        UserError: the first that is unknown or out of range.
    """
    benchmark, hyper = config.benchmark, config.hyper
    methods.check_method(config.method)
    methods.check_setting(
        config.method,
        task_aware=config.is_aware,
        own_classes=benchmark.classes_per_task is not None,
    )
    for part in (benchmark, hyper, config):
        fields.check(part, {**vars(benchmark), **vars(hyper)})
    every, most = benchmark.anytime_every, batches_per_task(config)
    if every is not None and every > most:
        raise UserError(f"anytime_every: expected 1 to {most}, received {every}")
    if benchmark.is_online and (config.is_aware or hyper.epochs > 1):
        raise UserError(
            f"{benchmark.name}: online, with one pass and no task ids; choose another "
            "benchmark for --setting aware or several epochs"
        )
    if benchmark.anytime_every is not None and (config.probes or hyper.epochs > 1):
        raise UserError(
            "anytime_every: not with --probes or several epochs, which evaluate or "
            "pass within a task in a way of their own"
        )
    _check_targets(config)
    if benchmark.raw_memory and methods.METHODS[config.method].scores_by_rows:
        raise UserError(
            f"raw_memory: method {config.method!r} predicts with rows that it keeps as "
            "they were shown; choose another, or raw_memory: false in a file"
        )
    if benchmark.blur and (config.is_aware or config.alignment):
        raise UserError(
            "blur: tasks that show each other's rows have no ids; not with --setting "
            "aware or --alignment"
        )
    check_network(benchmark.network)


def _check_targets(config: RunConfig) -> None:
    """Checks that loss, metric, method and memory are of the same targets."""
    benchmark = config.benchmark
    targets.check_names(benchmark.loss, benchmark.metric)
    of_classes = targets.LOSSES[benchmark.loss].of_classes
    methods.check_targets(config.method, of_classes=of_classes)
    if config.linear_probe and not of_classes:
        raise UserError(f"linear_probe: of classes, and {benchmark.loss} has none")
    if targets.LOSSES[benchmark.loss].is_asymmetric and (
        config.is_aware or config.method == "er_ace"
    ):
        raise UserError(
            f"loss: {benchmark.loss} is about the outputs of all classes, and what "
            "er_ace has of its own; choose another for --setting aware and for er_ace"
        )
    if getattr(config.hyper, "memory", None) == "balanced" and not of_classes:
        raise UserError(f"memory: balanced over classes, and {benchmark.loss} has none")


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
