"""What the tables of a report say of an entry: each column is written once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.report import published, tables
from experiments.report.entries import Entry
from experiments.run_folder import (
    ANYTIME_METRICS,
    GRADIENT_EVALUATIONS,
    LINEAR_PROBE,
    MEMORY_BYTES,
    METRICS,
)

_AUTHORS = "authors' "


class Column(NamedTuple):
    """One quantity in every kind of table."""

    heading: str
    text: Callable[[Entry], str]
    """Rounded, as a person reads it; "" where not known."""
    fields: tuple[str, ...] = ()
    """Its columns in CSV."""
    values: Callable[[Entry], Sequence[object]] = lambda entry: ()
    """In full precision, one per field; None where not known."""


def _known(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)


def _spread_column(heading: str, metric: str, short: str) -> Column:
    """Mean and sd of a metric over the seeds."""

    def text(entry: Entry) -> str:
        found = entry.spread(metric)
        return "" if found is None else str(found)

    def values(entry: Entry) -> Sequence[object]:
        return [_known(each) for each in entry.spread(metric) or (None, None)]

    return Column(heading, text, (f"{short}_mean", f"{short}_sd"), values)


def authors_text(entry: Entry, name: str) -> str:
    """Gives the authors' figures with their source, percent."""
    texts = []
    for figure in entry.published:
        value, count = getattr(figure, name), len(figure.retained_accuracy)
        if np.isnan(value):
            continue
        if figure.source == published.AUTHORS_CODE:
            texts.append(f"{value:.1f} (code, n = {count})")
        else:
            texts.append(f"{value:.2f} ({figure.source.removeprefix(_AUTHORS)})")
    return ", ".join(texts)


def gradients_text(entry: Entry) -> str:
    """Gradient evaluations per row of the stream to three digits; "" if not known."""
    found = entry.gradient_evaluations
    return "" if found is None else f"{float(f'{found:.3g}'):g}"


def memory_text(entry: Entry) -> str:
    """Rows and logits kept, in units of 10^6 bytes, to two digits; "" if not known."""
    found = entry.memory_bytes
    return "" if found is None else f"{float(f'{found / 1e6:.2g}'):g}"


def seconds_text(entry: Entry) -> str:
    """Seconds of training per seed, with the accelerator if it was on one."""
    if entry.train_s is None:
        return ""
    device = "" if entry.device.lower() == "cpu" else f" on {entry.device}"
    return f"{entry.train_s:,.{int(entry.train_s < 10)}f} s{device}"


def remark(entry: Entry) -> str:
    """Names the seeds without a result."""
    used = entry.has_result
    if used.all():
        return ""
    where = entry.run.summary.get("diverged_at", {})
    lost = [
        f"{seed} in task {where[str(seed)]['task']}"
        if str(seed) in where
        else f"{seed}"
        for seed in entry.run.seeds[~used]
    ]
    return f"seed {', '.join(lost)} diverged; mean over the other {entry.num_used}"


def _lost(entry: Entry) -> str:
    return " ".join(map(str, entry.run.seeds[~entry.has_result]))


def _setting(name: str) -> Column:
    text = lambda entry: str(entry.run.config.get(name, ""))
    return Column(name, text, (name,), lambda entry: [entry.run.config.get(name)])


def _folders(entry: Entry) -> str:
    return ", ".join(str(run.folder) for run in entry.parts)


def _authors_values(entry: Entry, name: str) -> list[object]:
    return [_known(getattr(figure, name)) for figure in entry.published[:1]] or [None]


def _source(entry: Entry) -> list[object]:
    return [figure.source for figure in entry.published[:1]] or [None]


BENCHMARK = Column(
    "benchmark", lambda e: e.benchmark, ("benchmark",), lambda e: [e.benchmark]
)
METHOD = Column(
    "method",
    lambda e: e.label,
    ("method", "label"),
    lambda e: [e.method, e.label],
)
RA, BTI, LA, FWT = (
    _spread_column(heading, metric, short)
    for heading, metric, short in zip(
        ("RA %", "BTI", "LA", "FWT"), METRICS, ("ra", "bti", "la", "fwt"), strict=True
    )
)
AAA, WORST = (
    _spread_column(heading, metric, short)
    for heading, metric, short in zip(
        ("AAA %", "WC-ACC %"), ANYTIME_METRICS, ("aaa", "wc_acc"), strict=True
    )
)
PROBE = _spread_column("linear probe %", LINEAR_PROBE, "linear_probe")
SEEDS = Column(
    "seeds",
    lambda e: str(e.num_used),
    ("num_seeds", "diverged_seeds"),
    lambda e: [e.num_used, _lost(e)],
)
AUTHORS_RA = Column(
    "authors' RA %",
    lambda e: authors_text(e, "ra"),
    ("authors_ra",),
    lambda e: _authors_values(e, "ra"),
)
AUTHORS_BTI = Column(
    "authors' BTI",
    lambda e: authors_text(e, "bti"),
    ("authors_bti", "authors_source"),
    lambda e: _authors_values(e, "bti") + _source(e),
)
GRADIENTS = Column(
    "gradients per row",
    gradients_text,
    (GRADIENT_EVALUATIONS,),
    lambda e: [_known(e.gradient_evaluations)],
)
MEMORY = Column("memory MB", memory_text, (MEMORY_BYTES,), lambda e: [e.memory_bytes])
SECONDS = Column(
    "training per seed",
    seconds_text,
    ("train_s_per_seed", "device"),
    lambda e: [_known(e.train_s), e.device],
)
REMARK = Column("remark", remark)
_FOLDER = Column("folder", _folders, ("folder",), lambda e: [_folders(e)])
_ANYTIME = (AAA, WORST)
_MEASURED = (RA, BTI, LA, FWT, AAA, WORST, PROBE)
_AUTHORS_COLUMNS = (AUTHORS_RA, AUTHORS_BTI)
_COST = (GRADIENTS, MEMORY, SECONDS)
_ALL = (
    *(BENCHMARK, METHOD, *_MEASURED, SEEDS, *_AUTHORS_COLUMNS),
    *(_setting("capacity"), _setting("glances"), *_COST, REMARK),
)
"""Of table.md and, with the folder, of table.csv."""
OF_ONE_BENCHMARK = (METHOD, *_MEASURED, *_AUTHORS_COLUMNS, *_COST, SEEDS, REMARK)
"""Of the page, which has a table for each benchmark."""
_MAY_BE_EMPTY = {column.heading for column in (*_ANYTIME, PROBE, *_AUTHORS_COLUMNS)}


def make_table(entries: Sequence[Entry], columns: Sequence[Column]) -> tables.Table:
    """Rounded figures, a line per entry."""
    head = tuple(column.heading for column in columns)
    body = tuple(tuple(column.text(e) for column in columns) for e in entries)
    return tables.Table(head, body)


def full_table(entries: Sequence[Entry]) -> tables.Table:
    """Everything of every entry.

    Where none of the entries has published figures, or figures within tasks, there are
    no columns for them.
    """
    return tables.without_empty(make_table(entries, _ALL), _MAY_BE_EMPTY)


def markdown(entries: Sequence[Entry], skipped: Sequence[str]) -> str:
    """The full table, what its columns mean, and what is not in it."""
    text = tables.markdown(full_table(entries))
    text += f"\n{SPREAD}\n\n{meanings_markdown(entries)}"
    return text + "".join(f"\nNot in the table: {reason}.\n" for reason in skipped)


def comma_separated(
    entries: Sequence[Entry], columns: Sequence[Column] | None = None
) -> str:
    """Full precision, one column per quantity; empty where not known.

    Args:
        entries: a line each.
        columns: of the table; those of the full table, and the folder, if None.
    """
    if columns is None:
        has = lambda metric: any(entry.spread(metric) for entry in entries)
        dropped = () if has(ANYTIME_METRICS[0]) else _ANYTIME
        dropped += () if has(LINEAR_PROBE) else (PROBE,)
        columns = [column for column in (*_ALL, _FOLDER) if column not in dropped]
    head = [field for column in columns for field in column.fields]
    body = [[v for column in columns for v in column.values(e)] for e in entries]
    return tables.comma_separated([head, *body])


_MEANINGS = {
    RA: "accuracy over all tasks at the end of the stream, percent",
    BTI: "backward transfer and interference: the change of that accuracy since each "
    "task was learnt, divided by the number of tasks; percentage points",
    LA: "learning accuracy: on each task right after it was learnt, percent",
    FWT: "forward transfer: the gain on a task before it is learnt, over the untrained "
    "model; percentage points",
    AAA: "average anytime accuracy, over the classes seen so far at every evaluation "
    "along the stream. Where one head serves all classes, BTI misleads as any measure "
    "of forgetting does: what was never learnt is not forgotten",
    WORST: "worst-case accuracy, of the newest task at the end and of each earlier one "
    "the least since it ended",
    PROBE: "accuracy on all classes of a linear classifier that is fitted, at the end "
    "of the stream, to the network's last features of every training row: what the "
    "network could tell apart, whatever its last layer has forgotten",
    GRADIENTS: "gradient evaluations (a forward and a backward pass of one row) per "
    "row of the stream, replayed rows, glances and epochs included; a Hessian's "
    "product with a vector counts two",
    MEMORY: "rows and logits that the method keeps",
    SECONDS: "processor seconds on a CPU; on the accelerator that is named, wall "
    "seconds over the number of seeds that shared it",
}
SPREAD = "Figures are mean ± sample standard deviation over the seeds."


def meanings(entries: Sequence[Entry]) -> dict[str, str]:
    """What the columns mean that a table of these entries has, by their headings.

    Benchmarks whose figures are of something else than accuracy are named after them.
    """
    head = full_table(entries).head
    metrics = {entry.benchmark: entry.run.config["metric"] for entry in entries}
    return {
        column.heading: meaning
        for column, meaning in _MEANINGS.items()
        if column.heading in head
    } | {
        benchmark: f"all figures are of {metric}, times 100, in accuracy's place"
        for benchmark, metric in metrics.items()
        if metric != "accuracy"
    }


def meanings_markdown(entries: Sequence[Entry]) -> str:
    """The same as a list in Markdown."""
    found = meanings(entries).items()
    return "".join(f"- *{name}*: {meaning}.\n" for name, meaning in found)
