"""Rows of a report: which runs stand together, and what tells them apart."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import run_folder
from experiments.report import published
from experiments.report.figures import Entry
from experiments.run_folder import ANYTIME_METRICS, METRICS, Run
from experiments.support import styles
from experiments.training import costs

# What may differ between runs without making one a variant of the other.
_NOT_SETTINGS = {
    *("format_version", "benchmark", "method", "seeds", "description"),
    *("probes", "alignment", "eval_every", "presets_from"),
    *("anytime_every", "anytime_rows"),
}
# Measured along a run: the same for all seeds, and with a leading seed axis.
_SHARED = ("probe_updates", "probe_tasks", "alignment_after", "anytime_after")
_BY_SEED = (
    *("probe_slow", "probe_fast", "step_size_quantiles", "task_alignment"),
    "anytime_accuracy",
)


class Spread(NamedTuple):
    """A quantity over the seeds that have a result."""

    mean: float
    sd: float
    """Sample standard deviation (divided by n - 1); NaN for one seed."""

    def __str__(self) -> str:
        """Mean and sd to one decimal; n/a without a mean, the mean alone without sd."""
        if np.isnan(self.mean):
            return "n/a"
        sd = "" if np.isnan(self.sd) else f" ± {self.sd:.1f}"
        return f"{self.mean:z.1f}{sd}"


class Row(NamedTuple):
    """One run in a table; percent and percentage points."""

    benchmark: str
    label: str
    run: Run
    spreads: tuple[Spread, ...]
    """In the order of ``METRICS``."""
    num_used: int
    """Seeds that have a result."""
    train_s: float | None
    """Of training per seed, seconds: processor time on a CPU; on an accelerator, which
    its seeds share, the wall time over their number."""
    device: str
    """What it was trained on, such as "cpu" or "NVIDIA H200"."""
    gradient_evaluations: float | None
    """Per row of the stream, as ``methods.cost.Cost`` counts them."""
    memory_bytes: int | None
    """Rows kept, and logits kept with them."""
    entry: Entry
    anytime: tuple[Spread, ...] = ()
    """In the order of ``ANYTIME_METRICS``, where the run has them."""


def spread(values: Sequence[float]) -> Spread:
    """Returns mean and sample sd of at least one value; sd NaN for one value."""
    array = np.asarray(values, np.float64)
    sd = array.std(ddof=1) if array.size > 1 else np.nan
    return Spread(float(array.mean()), float(sd))


def _shown(key: str, config: dict[str, Any]) -> str:
    name = key.replace("_", " ")
    if key not in config:
        return f"no {name}"
    value = config[key]
    return f"{name} {value if isinstance(value, str) else json.dumps(value)}"


def _seeds_text(seeds: Sequence[int]) -> str:
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seeds {' '.join(map(str, seeds))}"


def variant_labels(runs: Sequence[Run]) -> list[str]:
    """Tells runs of one method apart by the settings in which they differ.

    Args:
        runs: of one benchmark and method.

    Returns:
        Per run ``""`` if it is the only one, else such as ``"capacity 100"``; runs of
        equal settings get what tells them apart: seeds, folder name or folder.
    """
    configs = [run.config for run in runs]
    keys = [key for key in dict.fromkeys(k for c in configs for k in c)]
    keys = [
        key
        for key in keys
        if key not in _NOT_SETTINGS
        and len({json.dumps(config.get(key, "absent")) for config in configs}) > 1
    ]
    labels = [", ".join(_shown(key, config) for key in keys) for config in configs]
    extras = (
        [_seeds_text(run.config["seeds"]) for run in runs],
        [run.folder.name for run in runs],
        [str(run.folder) for run in runs],
    )
    for extra in extras:
        told: dict[str, set[str]] = {}
        for label, more in zip(labels, extra, strict=True):
            told.setdefault(label, set()).add(more)
        labels = [
            ", ".join(filter(None, (label, more))) if len(told[label]) > 1 else label
            for label, more in zip(labels, extra, strict=True)
        ]
    return labels


def _train_s(run: Run, device: str) -> float | None:
    timing = run.summary["timing"]
    if device.lower() == "cpu":
        return timing.get("train_cpu_s_per_seed")
    side_by_side = timing.get("seeds_side_by_side", run.seeds.size)
    return timing["train_s"] / side_by_side if "train_s" in timing else None


def _row(run: Run, benchmark: str, variant: int, suffix: str) -> Row:
    used = run_folder.has_result(run)
    method = run.config["method"]
    name = styles.NAMES.get(method, method)
    percent = [100 * run.summary[metric][used] for metric in METRICS]
    has_anytime = "anytime_accuracy" in run.arrays
    known = ANYTIME_METRICS if has_anytime else ()
    anytime = [100 * run.summary[metric][used] for metric in known]
    if method in styles.MIXED:
        percent[1:] = [np.full_like(percent[0], np.nan)] * 3
        anytime = [np.full_like(percent[0], np.nan) for _ in anytime]
    label = f"{name} ({suffix})" if suffix else name
    missing = "" if used.all() else f" [{used.sum()} of {used.size} seeds]"
    cost = run.summary.get("cost") or costs.derive(run.config)
    evaluations = cost.get(costs.GRADIENT_EVALUATIONS)
    entry = Entry(
        label + missing,
        method,
        variant,
        run.accuracy[used],
        percent[0],
        percent[1],
        published.look_up(run.config),
        {name: run.arrays[name] for name in _SHARED if name in run.arrays}
        | {name: run.arrays[name][used] for name in _BY_SEED if name in run.arrays},
        tuple(run.summary.get("step_size_leaves", ())),
        evaluations,
    )
    device = str(run.environment.get("device", "cpu"))
    spreads = tuple(map(spread, percent))
    return Row(
        benchmark,
        label,
        run,
        spreads,
        int(used.sum()),
        _train_s(run, device),
        device,
        evaluations,
        cost.get(costs.MEMORY_BYTES),
        entry,
        tuple(map(spread, anytime)),
    )


def protocol(config: dict[str, Any]) -> str:
    """Names what is compared: the benchmark, with what is unusual of its protocol."""
    setting = "agnostic" if config["is_online"] or config["blur"] else "aware"
    usual = (("passes", "single"), ("setting", setting), ("evaluate_on", "test"))
    other = [config[key] for key, value in usual if config[key] != value]
    other += [f"blur-{config['blur']:g}"] if config["blur"] else []
    return "-".join([config["benchmark"], *other])


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """Groups runs by protocol and length, labels them, and sorts each group by RA.

    Args:
        runs: from ``run_folder.read``.

    Returns:
        One row per run; a benchmark run with several numbers of tasks becomes several
        benchmarks, because their figures do not compare.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        key = protocol(run.config), run.config["num_tasks"]
        groups.setdefault(key, []).append(run)
    rows = []
    for (benchmark, num_tasks), group in sorted(groups.items()):
        lengths = [key for key in groups if key[0] == benchmark]
        title = f"{benchmark}-{num_tasks}-tasks" if len(lengths) > 1 else benchmark
        methods = [run.config["method"] for run in group]
        part = []
        for method in dict.fromkeys(methods):
            same = [run for run in group if run.config["method"] == method]
            for variant, suffix in enumerate(variant_labels(same)):
                part.append(_row(same[variant], title, variant, suffix))
        rows += sorted(part, key=lambda row: -row.spreads[0].mean)
    return rows
