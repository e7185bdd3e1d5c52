"""Methods against benchmarks, in the layout of the paper's tables 1 and 3."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.report import columns, tables, wording
from experiments.report.columns import Column
from experiments.report.entries import Entry
from experiments.run_folder import ANYTIME_METRICS, LINEAR_PROBE
from experiments.support.styles import NAMES

# What a cell gives: heading, metric, and the name of others' figures.
_METRICS = (
    ("RA %", "retained_accuracy", "ra"),
    ("BTI", "backward_transfer_interference", "bti"),
)
_ONLINE = (
    ("RA %", "retained_accuracy", "ra"),
    *(
        (heading, metric, "")
        for heading, metric in zip(("AAA %", "WC-ACC %"), ANYTIME_METRICS, strict=True)
    ),
)


_PROBE = (("linear probe %", LINEAR_PROBE, ""),)


class Comparison(NamedTuple):
    """Benchmarks that stand in one table, a row per method."""

    title: str
    num_seeds: int
    """Of most cells; the others name theirs."""
    benchmarks: tuple[str, ...]
    labels: tuple[str, ...]
    cells: dict[tuple[str, str], Entry]
    """By label and benchmark."""

    @property
    def heading(self) -> str:
        """The title, with the number of seeds."""
        seeds = "seed" if self.num_seeds == 1 else "seeds"
        return f"{self.title}, {self.num_seeds} {seeds}"

    def of(self, benchmark: str) -> list[Entry]:
        """The entries of one benchmark, best RA first."""
        found = [entry for (_, b), entry in self.cells.items() if b == benchmark]
        return sorted(found, key=lambda entry: -entry.retained_accuracy.mean())


def rank(entry: Entry) -> tuple[int, str]:
    """Where a method stands in tables, for sorting; a person's own come last."""
    order = list(NAMES)
    known = entry.method in order
    return (order.index(entry.method) if known else len(order), entry.label)


def compare(entries: Sequence[Entry]) -> list[Comparison]:
    """Sorts the entries of a report into comparisons.

    Args:
        entries: from ``entries.make_entries``.

    Returns:
        One comparison per section of ``wording``, in its order; methods in the order of
        ``styles.NAMES``, runs of other settings after their method.
    """
    ordered = sorted(entries, key=lambda e: wording.benchmark_order(e.benchmark))
    groups: dict[str, list[Entry]] = {}
    for entry in ordered:
        groups.setdefault(wording.section_title(entry.benchmark), []).append(entry)
    return [
        Comparison(
            title,
            statistics.mode(entry.num_used for entry in part),
            tuple(dict.fromkeys(entry.benchmark for entry in part)),
            tuple(dict.fromkeys(entry.label for entry in sorted(part, key=rank))),
            {(entry.label, entry.benchmark): entry for entry in part},
        )
        for title, part in groups.items()
    ]


def _published(entry: Entry, name: str) -> str:
    values = [getattr(figure, name) for figure in entry.published if name]
    known = [f"{value:.1f}" for value in values if not np.isnan(value)]
    return f" [{', '.join(known)}]" if known else ""


def _cell(entry: Entry, metric: str, name: str, count: str) -> str:
    spread = entry.spread(metric)
    if spread is None or np.isnan(spread.mean):
        return "-"
    return f"{spread}{count}{_published(entry, name)}"


def cost_text(entry: Entry) -> str:
    """Gradients per row, seconds and bytes, as far as they are known."""
    memory = columns.memory_text(entry)
    parts = (columns.gradients_text(entry), columns.seconds_text(entry))
    return ", ".join(filter(None, (*parts, memory and f"{memory} MB")))


def accuracy_table(comparison: Comparison) -> tables.Table:
    """RA and BTI of each benchmark, of online streams RA and the anytime measures.

    Where there are linear probes, they have a column of their own.
    """
    head, body = ["method"], [[label] for label in comparison.labels]
    for benchmark in comparison.benchmarks:
        entries = comparison.of(benchmark)
        is_online = any(entry.spread(ANYTIME_METRICS[0]) for entry in entries)
        is_probed = any(entry.spread(LINEAR_PROBE) for entry in entries)
        metrics = _ONLINE if is_online else _METRICS
        metrics += _PROBE if is_probed else ()
        title = wording.benchmark_title(benchmark)
        head += [f"{title} {heading}" for heading, _, _ in metrics]
        for line in body:
            entry = comparison.cells.get((line[0], benchmark))
            if entry is None:
                line += [""] * len(metrics)
                continue
            usual = entry.num_used == comparison.num_seeds
            count = "" if usual else f" ({entry.num_used})"
            line += [_cell(entry, metric, name, count) for _, metric, name in metrics]
    return tables.table([head, *body])


def cost_table(comparison: Comparison) -> tables.Table:
    """What each benchmark cost each method."""
    titles = [wording.benchmark_title(b) for b in comparison.benchmarks]
    lines = [["method", *(f"{title} cost" for title in titles)]]
    for label in comparison.labels:
        found = [comparison.cells.get((label, b)) for b in comparison.benchmarks]
        lines.append([label, *("" if e is None else cost_text(e) for e in found)])
    return tables.table(lines)


def overview_table(comparisons: Sequence[Comparison]) -> tables.Table:
    """RA of every method on every benchmark."""
    entries = [entry for each in comparisons for entry in each.cells.values()]
    labels = dict.fromkeys(entry.label for entry in sorted(entries, key=rank))
    benchmarks = [b for each in comparisons for b in each.benchmarks]
    cells = {(entry.label, entry.benchmark): entry for entry in entries}
    lines = [["method", *map(wording.benchmark_title, benchmarks)]]
    for label in labels:
        found = [cells.get((label, benchmark)) for benchmark in benchmarks]
        lines.append([label, *("" if e is None else columns.RA.text(e) for e in found)])
    return tables.table(lines)


NOTE = (
    "Mean ± sample standard deviation (number of seeds, where it differs) [figures of "
    "others: the authors' code, their figures, the paper, a survey]. What it cost: "
    "gradients per row, training per seed and memory."
)


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Every comparison as Markdown under its title: accuracies, then costs."""
    parts = []
    for each in comparisons:
        parts.append(f"## {each.heading}\n\n{tables.markdown(accuracy_table(each))}")
        costs = tables.markdown(cost_table(each))
        parts.append(f"## What it cost: {each.title}\n\n{costs}")
    entries = [entry for each in comparisons for entry in each.cells.values()]
    return "\n".join([*parts, f"{NOTE}\n", columns.meanings_markdown(entries)])


def _others(entry: Entry, name: str) -> str:
    values = [getattr(figure, name) for figure in entry.published]
    if name == "source":
        return "; ".join(values)
    return "; ".join("" if np.isnan(value) else repr(value) for value in values)


_CSV = (
    Column("", str, ("table",), lambda e: [wording.section_title(e.benchmark)]),
    columns.BENCHMARK,
    Column("", str, ("method",), lambda e: [e.label]),
    *(columns.RA, columns.BTI),
    Column("", str, ("num_seeds",), lambda e: [e.num_used]),
    Column(
        "",
        str,
        ("others_ra", "others_bti", "others_source"),
        lambda e: [_others(e, name) for name in ("ra", "bti", "source")],
    ),
    *(columns.GRADIENTS, columns.MEMORY, columns.SECONDS),
)


def comma_separated(entries: Sequence[Entry]) -> str:
    """One line per method and benchmark with the published figures, full precision."""
    return columns.comma_separated(entries, _CSV)
