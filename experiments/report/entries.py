"""Entries of a report: which runs stand together, and what tells them apart."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import run_folder
from experiments.report import joining, old_costs, published, wording
from experiments.run_folder import (
    ANYTIME_METRICS,
    GRADIENT_EVALUATIONS,
    LINEAR_PROBE,
    MEMORY_BYTES,
    METRICS,
    Run,
)
from experiments.schema.hyperparameters import NO_CLIP
from experiments.support import styles

# What may differ between runs without making one a variant of the other.
_NOT_SETTINGS = {
    *("format_version", "benchmark", "method", "seeds", "description"),
    *("probes", "alignment", "linear_probe", "eval_every", "presets_from"),
    *("anytime_every", "anytime_rows"),
}


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


class Entry(NamedTuple):
    """One run in a report, whole or in parts: what tables and figures say of it."""

    benchmark: str
    """What it is compared within: a benchmark and what is unusual of the protocol."""
    label: str
    """Name of the method and, where several runs have it, what tells them apart."""
    variant: int
    """0 for the first run of a method on a benchmark, 1 for the next."""
    run: Run
    """With the seeds of all ``parts``."""
    parts: tuple[Run, ...]
    """The run folders that it comes from."""
    percent: Mapping[str, np.ndarray]
    """[S] of the seeds that have a result, percent or percentage points: ``METRICS``,
    and ``ANYTIME_METRICS`` and ``LINEAR_PROBE`` where it has them. NaN where it means
    nothing."""
    published: tuple[published.Published, ...]
    """Figures of others that it may be set beside."""
    cost: Mapping[str, float]
    """Under the names of run folders; empty where not known."""

    @property
    def method(self) -> str:
        """Name of the method on the command line."""
        return self.run.config["method"]

    @property
    def style(self) -> styles.Style:
        """Colour and marker of the method."""
        return styles.STYLES.get(self.method, styles.OTHER)

    @property
    def has_result(self) -> np.ndarray:
        """[S] booleans of all seeds."""
        return run_folder.has_result(self.run)

    @property
    def num_used(self) -> int:
        """Number of seeds that have a result."""
        return int(self.has_result.sum())

    @property
    def title(self) -> str:
        """The label, and how many seeds count where some have no result."""
        used = self.has_result
        return self.label + (
            "" if used.all() else f" [{used.sum()} of {used.size} seeds]"
        )

    @property
    def accuracy(self) -> np.ndarray:
        """[S, T, T] fractions of the seeds that have a result."""
        return self.run.accuracy[self.has_result]

    @property
    def retained_accuracy(self) -> np.ndarray:
        """[S] percent."""
        return self.percent["retained_accuracy"]

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of the leaves that have step sizes."""
        return tuple(self.run.summary.get("step_size_leaves", ()))

    @property
    def gradient_evaluations(self) -> float | None:
        """Per row of the stream, as ``methods.cost.Cost`` counts them."""
        return self.cost.get(GRADIENT_EVALUATIONS)

    @property
    def memory_bytes(self) -> int | None:
        """Rows kept, and logits kept with them."""
        found = self.cost.get(MEMORY_BYTES)
        return None if found is None else int(found)

    @property
    def device(self) -> str:
        """What it was trained on, such as "cpu" or "NVIDIA H200"; each kind once."""
        return ", ".join(dict.fromkeys(map(_device, self.parts)))

    @property
    def train_s(self) -> float | None:
        """Of training per seed, seconds.

        Processor time on a CPU; on an accelerator, which its seeds share, the wall time
        over their number. None if not known, or if devices of several kinds trained
        the seeds: their seconds have no common mean.
        """
        if len(set(map(_device, self.parts))) > 1:
            return None
        each = [(_train_s(part), part.seeds.size) for part in self.parts]
        known = [s for s, count in each if s is not None for _ in range(count)]
        return statistics.mean(known) if len(known) == self.run.seeds.size else None

    def spread(self, metric: str) -> Spread | None:
        """Mean and sd of one of ``percent``; None if it is not there."""
        values = self.percent.get(metric)
        return None if values is None else spread(values)

    def measure(self, name: str) -> np.ndarray | None:
        """What was measured along the run, of the seeds that have a result.

        Args:
            name: an array of the run folder, such as ``probe_slow`` or
                ``anytime_accuracy``; None is returned where it has none.
        """
        array = self.run.arrays.get(name)
        return (
            array[self.has_result]
            if array is not None and joining.is_by_seed(name)
            else array
        )


def _device(run: Run) -> str:
    return str(run.environment.get("device", "cpu"))


def _train_s(run: Run) -> float | None:
    timing = run.summary["timing"]
    if _device(run).lower() == "cpu":
        return timing.get("train_cpu_s_per_seed")
    side_by_side = timing.get("seeds_side_by_side", run.seeds.size)
    return timing["train_s"] / side_by_side if "train_s" in timing else None


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """Returns mean and sample sd of at least one value; sd NaN for one value."""
    array = np.asarray(values, np.float64)
    sd = array.std(ddof=1) if array.size > 1 else np.nan
    return Spread(float(array.mean()), float(sd))


def _shown(key: str, config: dict[str, Any]) -> str:
    name = key.replace("_", " ")
    if key not in config:
        return f"no {name}"
    value = config[key]
    if key == "max_grad_norm" and value == NO_CLIP:
        return "no clipping"
    if key == "first_order":
        return "first order" if value else "second order"
    return f"{name} {value if isinstance(value, str) else json.dumps(value)}"


def seeds_text(seeds: Sequence[int]) -> str:
    """Names seeds: the first and the last where they follow one another."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"seeds {seeds[0]}-{seeds[-1]}"
    return f"seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}"


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
        [seeds_text(run.config["seeds"]) for run in runs],
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


def _entry(joined: joining.Joined, benchmark: str, variant: int, suffix: str) -> Entry:
    run = joined.run
    used = run_folder.has_result(run)
    method = str(run.config["method"])
    name = styles.NAMES.get(method, method)
    has_anytime = "anytime_accuracy" in run.arrays
    known = METRICS + (ANYTIME_METRICS if has_anytime else ())
    percent = {metric: 100 * run.summary[metric][used] for metric in known}
    if method in styles.MIXED:
        nothing = np.full(int(used.sum()), np.nan)
        percent |= dict.fromkeys(known[1:], nothing)
    if LINEAR_PROBE in run.arrays:
        percent[LINEAR_PROBE] = 100 * run.summary[LINEAR_PROBE][used]
    return Entry(
        benchmark,
        f"{name} ({suffix})" if suffix else name,
        variant,
        run,
        joined.parts,
        percent,
        published.look_up(run.config),
        run.summary.get("cost") or old_costs.derive(run.config),
    )


def protocol(config: dict[str, Any]) -> str:
    """Names what is compared: the benchmark, with what is unusual of its protocol."""
    setting = "agnostic" if config["is_online"] or config["blur"] else "aware"
    usual = (("passes", "single"), ("setting", setting), ("evaluate_on", "test"))
    other = [config[key] for key, value in usual if config[key] != value]
    other += [f"blur-{config['blur']:g}"] if config["blur"] else []
    return "-".join([config["benchmark"], *other])


def make_entries(runs: Sequence[Run]) -> list[Entry]:
    """Joins seeds, groups by protocol and length, labels, and sorts groups by RA.

    Args:
        runs: from ``run_folder.read``.

    Returns:
        One entry per run, runs that differ in their seeds only being one
        (``joining``), in the order of ``wording.benchmark_order``; a benchmark run
        with several numbers of tasks becomes several benchmarks, because their figures
        do not compare.
    """
    groups: dict[tuple[str, int], list[joining.Joined]] = {}
    for joined in joining.join_seeds(runs):
        config = joined.run.config
        key = protocol(config), config["num_tasks"]
        groups.setdefault(key, []).append(joined)
    entries = []
    ordered = sorted(
        groups.items(), key=lambda each: (wording.benchmark_order(each[0][0]), each[0])
    )
    for (benchmark, num_tasks), group in ordered:
        lengths = [key for key in groups if key[0] == benchmark]
        title = f"{benchmark}-{num_tasks}-tasks" if len(lengths) > 1 else benchmark
        methods = [joined.run.config["method"] for joined in group]
        part = []
        for method in dict.fromkeys(methods):
            same = [each for each in group if each.run.config["method"] == method]
            suffixes = variant_labels([each.run for each in same])
            for variant, suffix in enumerate(suffixes):
                part.append(_entry(same[variant], title, variant, suffix))
        entries += sorted(part, key=lambda entry: -entry.retained_accuracy.mean())
    return entries
