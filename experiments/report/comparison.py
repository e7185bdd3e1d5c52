"""Methods against benchmarks, in the layout of the paper's tables 1 and 3."""

import csv
import io
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.report import tables
from experiments.report.entries import Row, Spread
from experiments.support.styles import NAMES
from experiments.training import costs

# Benchmarks that stand in one table, by the beginning of their names.
_FAMILIES = (
    ("MNIST", ("mnist-",)),
    ("CIFAR-100 and Tiny ImageNet", ("cifar100-", "tinyimagenet-")),
    ("Fashion-MNIST", ("fashion-mnist-",)),
    ("Digits", ("digits-",)),
)
_OTHER = "Other benchmarks"
# The order of columns, by a word of the benchmark's name.
_COLUMNS = ("rotations", "permutations", "many", "cifar100", "tinyimagenet")


class Comparison(NamedTuple):
    """One table: a row per method, three columns per benchmark."""

    title: str
    num_seeds: int
    """Of most cells; the others name theirs."""
    benchmarks: tuple[str, ...]
    labels: tuple[str, ...]
    cells: dict[tuple[str, str], Row]
    """By label and benchmark."""


def _family(benchmark: str) -> str:
    for title, beginnings in _FAMILIES:
        if benchmark.startswith(beginnings):
            return title
    return _OTHER


def _column(benchmark: str) -> int:
    found = [n for n, word in enumerate(_COLUMNS) if word in benchmark]
    return found[0] if found else len(_COLUMNS)


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """Sorts the rows of a report into comparisons.

    Args:
        rows: from ``rows.make_rows``.

    Returns:
        One comparison per family of benchmarks, those of the paper first; methods in
        the order of ``styles.NAMES``, runs of other settings after their method.
    """
    titles = [title for title, _ in _FAMILIES] + [_OTHER]
    order = list(NAMES)

    def rank(row: Row) -> tuple[int, str]:
        method = row.entry.method
        return (order.index(method) if method in order else len(order), row.label)

    found = []
    for title in titles:
        part = [row for row in rows if _family(row.benchmark) == title]
        if part:
            labels = dict.fromkeys(row.label for row in sorted(part, key=rank))
            names = dict.fromkeys(row.benchmark for row in part)
            benchmarks = sorted(names, key=_column)
            cells = {(row.label, row.benchmark): row for row in part}
            num_seeds = statistics.mode(row.num_used for row in part)
            found.append(
                Comparison(title, num_seeds, tuple(benchmarks), tuple(labels), cells)
            )
    return found


def _text(spread: Spread, count: str) -> str:
    if np.isnan(spread.mean):
        return "-"
    sd = "" if np.isnan(spread.sd) else f" ± {spread.sd:.1f}"
    return f"{spread.mean:z.1f}{sd}{count}"


def _published(row: Row, name: str) -> str:
    values = [getattr(figure, name) for figure in row.entry.published]
    known = [f"{value:.1f}" for value in values if not np.isnan(value)]
    return f" [{', '.join(known)}]" if known else ""


def _cost(row: Row) -> str:
    seconds = tables.seconds_text(row)
    memory = tables.memory_text(row)
    texts = (tables.gradients_text(row), seconds, memory and f"{memory} MB")
    return ", ".join(filter(None, texts))


def table(comparison: Comparison) -> list[list[str]]:
    """Returns the texts of a comparison, its heading first."""
    head = ["method"]
    for benchmark in comparison.benchmarks:
        head += [f"{benchmark} RA %", f"{benchmark} BTI", f"{benchmark} cost"]
    lines = [head]
    for label in comparison.labels:
        line = [label]
        for benchmark in comparison.benchmarks:
            row = comparison.cells.get((label, benchmark))
            if row is None:
                line += ["", "", ""]
                continue
            usual = row.num_used == comparison.num_seeds
            count = "" if usual else f" ({row.num_used})"
            for spread, name in zip(row.spreads[:2], ("ra", "bti"), strict=True):
                line.append(_text(spread, count) + _published(row, name))
            line.append(_cost(row))
        lines.append(line)
    return lines


NOTE = (
    "Mean ± sample standard deviation (number of seeds, where it differs) [figures of "
    "others: the authors' code, their figures, the paper]. RA: accuracy over all tasks "
    "at the end, percent; BTI: its change since each task was learnt, percentage "
    "points. Cost: gradient evaluations per row of the stream (each a pass forward and "
    "one backward of one row; replayed rows, glances and epochs included, a Hessian's "
    "product with a vector as two), processor seconds of training per seed, and the "
    "rows and logits kept."
)


def heading(comparison: Comparison) -> str:
    """Returns the title of a comparison, with its number of seeds."""
    seeds = "seed" if comparison.num_seeds == 1 else "seeds"
    return f"{comparison.title}, {comparison.num_seeds} {seeds}"


def markdown(comparisons: Sequence[Comparison]) -> str:
    """Every comparison as a Markdown table under its title."""
    parts = []
    for comparison in comparisons:
        lines = table(comparison)
        lines.insert(1, ["---"] + ["---:"] * (len(lines[0]) - 1))
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        text = "".join(f"| {' | '.join(line)} |\n" for line in escaped)
        parts.append(f"## {heading(comparison)}\n\n{text}")
    return "\n".join([*parts, NOTE + "\n"])


def comma_separated(rows: Sequence[Row]) -> str:
    """One line per method and benchmark with the published figures, full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = ["table", "benchmark", "method", "ra_mean", "ra_sd", "bti_mean", "bti_sd"]
    head += ["num_seeds", "others_ra", "others_bti", "others_source"]
    head += [
        costs.GRADIENT_EVALUATIONS,
        costs.MEMORY_BYTES,
        "train_s_per_seed",
        "device",
    ]
    writer.writerow(head)

    def known(value):
        return "" if value is None or np.isnan(value) else repr(float(value))

    for row in rows:
        spreads = [known(value) for pair in row.spreads[:2] for value in pair]
        others = row.entry.published
        writer.writerow(
            [
                _family(row.benchmark),
                row.benchmark,
                row.label,
                *spreads,
                row.num_used,
                "; ".join(known(other.ra) for other in others),
                "; ".join(known(other.bti) for other in others),
                "; ".join(other.source for other in others),
                known(row.gradient_evaluations),
                row.memory_bytes,
                known(row.train_s),
                row.device,
            ]
        )
    return buffer.getvalue()
