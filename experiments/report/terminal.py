"""The table of a report on a terminal."""

import textwrap
from collections.abc import Sequence

from rich.console import Console

from experiments.report import columns, tables, wording
from experiments.report.columns import Column
from experiments.report.entries import Entry

# Narrower terminals break the lines; squeezed, the table would lose its methods.
_WIDTH = 80


def _authors_pair(entry: Entry) -> str:
    texts = [f"{p.ra:.1f} / {p.bti:.1f}" for p in entry.published[:1]]
    return "".join(texts).replace("nan", "n/a")


def _count(entry: Entry) -> str:
    total = entry.run.seeds.size
    return str(entry.num_used) + (f"/{total}" if entry.num_used < total else "")


_TERMINAL = (
    *(columns.METHOD, columns.RA, columns.BTI, columns.LA, columns.AAA),
    Column("WC %", columns.WORST.text),
    Column("probe %", columns.PROBE.text),
    Column("n", _count),
    Column("authors'", _authors_pair),
    Column("grads", columns.gradients_text),
    Column("train s", lambda e: "" if e.train_s is None else f"{e.train_s:,.1f}"),
)

# The columns in a few words; the report's page has them in full.
_WORDS = {
    "RA %": "accuracy on all tasks at the end",
    "BTI": "its change since each task was learnt",
    "LA": "right after",
    "AAA %": "mean accuracy along the stream",
    "WC %": "worst-case accuracy",
    "probe %": "of a linear classifier on the features",
    "n": "seeds",
    "grads": "gradients per row",
}


def show(entries: Sequence[Entry], skipped: Sequence[str], console: Console) -> None:
    """Prints one table that fits 80 columns without cutting a number."""
    has_anytime = any(columns.AAA.text(entry) for entry in entries)
    unused = {"LA"} if has_anytime else {"WC %", "AAA %"}
    if not any(entry.published for entry in entries) or has_anytime:
        unused.add("authors'")
    if not any(columns.PROBE.text(entry) for entry in entries):
        unused.add("probe %")
    shown = [column for column in _TERMINAL if column.heading not in unused]
    parts = [
        (
            wording.benchmark_title(benchmark),
            columns.make_table([e for e in entries if e.benchmark == benchmark], shown),
        )
        for benchmark in dict.fromkeys(entry.benchmark for entry in entries)
    ]
    say = lambda text, style=None: console.print(
        text, style=style, soft_wrap=True, markup=False, highlight=False
    )
    width = max(_WIDTH, console.width)
    titles = {title for title, _ in parts}
    for line in tables.text_lines(parts, width):
        say(line, "bold" if line in titles else None)
    words = [f"{name}: {text}" for name, text in _WORDS.items() if name not in unused]
    for line in textwrap.wrap("; ".join(words), _WIDTH):
        say(line, "dim")
    for entry in entries:
        if text := columns.remark(entry):
            say(f"{entry.label}: {text}", "yellow")
    for reason in skipped:
        say(f"not in the table: {reason}", "yellow")
