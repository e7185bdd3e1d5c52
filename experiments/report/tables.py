"""The rows of a report as Markdown, as comma-separated values and on a terminal."""

import csv
import io
import itertools
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import run_folder
from experiments.report import published
from experiments.report.entries import Row, Spread
from experiments.training import costs

_AUTHORS = "authors' "
# Narrower terminals break the lines; squeezed, the table would lose its methods.
_TABLE_WIDTH = 80
_HEADINGS = ("RA", "BTI", "LA", "FWT")
_ANYTIME = ("AAA %", "WC-ACC %")
_PUBLISHED = ("authors' RA %", "authors' BTI")
_WORDS = ("benchmark", "method", *_PUBLISHED, "remark")


def _remark(row: Row) -> str:
    """Names the seeds without a result."""
    used = run_folder.has_result(row.run)
    if used.all():
        return ""
    where = row.run.summary.get("diverged_at", {})
    lost = [
        f"{seed} in task {where[str(seed)]['task']}"
        if str(seed) in where
        else f"{seed}"
        for seed in row.run.seeds[~used]
    ]
    return f"seed {', '.join(lost)} diverged; mean over the other {row.num_used}"


def _authors(row: Row, name: str) -> str:
    """Gives the authors' figures with their source, percent."""
    texts = []
    for figure in row.entry.published:
        value, count = getattr(figure, name), len(figure.retained_accuracy)
        if np.isnan(value):
            continue
        if figure.source == published.AUTHORS_CODE:
            texts.append(f"{value:.1f} (code, n = {count})")
        else:
            texts.append(f"{value:.2f} ({figure.source.removeprefix(_AUTHORS)})")
    return ", ".join(texts)


def gradients_text(row: Row) -> str:
    """Gradient evaluations per row of the stream to three digits; "" if not known."""
    if row.gradient_evaluations is None:
        return ""
    return f"{float(f'{row.gradient_evaluations:.3g}'):g}"


def memory_text(row: Row) -> str:
    """Rows and logits kept, in units of 10^6 bytes, to two digits; "" if not known."""
    if row.memory_bytes is None:
        return ""
    return f"{float(f'{row.memory_bytes / 1e6:.2g}'):g}"


def _without_empty(table: list[list[str]], names: Sequence[str]) -> list[list[str]]:
    """Leaves out those of the named columns that say nothing in any line."""
    head, *body = table
    kept = [
        name not in names or any(line[column] for line in body)
        for column, name in enumerate(head)
    ]
    return [list(itertools.compress(line, kept)) for line in table]


def seconds_text(row: Row) -> str:
    """Seconds of training per seed, with the accelerator if it was on one."""
    if row.train_s is None:
        return ""
    device = "" if row.device.lower() == "cpu" else f" on {row.device}"
    return f"{row.train_s:,.{int(row.train_s < 10)}f} s{device}"


def lines(rows: Sequence[Row]) -> list[list[str]]:
    """Rounded figures beside the published ones, settings, remarks; heading first.

    Where none of the rows has published figures, or figures within tasks, there are no
    columns for them.
    """
    head = ["benchmark", "method", "RA %", *_HEADINGS[1:], *_ANYTIME, "seeds"]
    head += _PUBLISHED
    head += ["capacity", "glances", "gradients per row"]
    head += ["memory MB", "training per seed", "remark"]
    found = [head]
    for row in rows:
        config = row.run.config
        settings = [str(config.get(key, "")) for key in ("capacity", "glances")]
        others = [_authors(row, "ra"), _authors(row, "bti")]
        cells = [row.benchmark, row.label, *map(str, row.spreads)]
        cells += [*map(str, row.anytime or ("", "")), str(row.num_used)]
        asked = [gradients_text(row), memory_text(row), seconds_text(row)]
        found.append([*cells, *others, *settings, *asked, _remark(row)])
    return _without_empty(found, (*_ANYTIME, *_PUBLISHED))


NOTE = (
    "Mean ± sample standard deviation over seeds. RA: accuracy over all tasks at the "
    "end; BTI: its change since each task was learnt, divided by the number of tasks; "
    "LA: accuracy right after learning; FWT: gain on a task before learning it, over "
    "the untrained model. BTI and FWT in percentage points. Gradients per row: "
    "gradient evaluations (a forward and a backward pass of one row) per row of the "
    "stream, replayed rows, glances and epochs included; a Hessian's product with a "
    "vector counts two. Memory: rows and logits that the method keeps. Training per "
    "seed: processor seconds on a CPU; on the accelerator that is named, wall seconds "
    "over the number of seeds that shared it."
)


ANYTIME_NOTE = (
    "AAA: average anytime accuracy, over the classes seen so far at every evaluation "
    "along the stream. WC-ACC: worst-case accuracy, of the newest task at the end and "
    "of each earlier one the least since it ended. RA is the final accuracy on all "
    "classes. BTI, as any measure of forgetting, misleads where one head serves all "
    "classes: what was never learnt is not forgotten."
)


def notes(rows: Sequence[Row]) -> list[str]:
    """What the columns mean that a table of these rows has."""
    told = [NOTE, ANYTIME_NOTE] if any(row.anytime for row in rows) else [NOTE]
    others = {row.benchmark: row.run.config["metric"] for row in rows}
    return told + [
        f"All measures of {benchmark} are of {metric}, times 100, in accuracy's place."
        for benchmark, metric in others.items()
        if metric != "accuracy"
    ]


def markdown(rows: Sequence[Row], skipped: Sequence[str]) -> str:
    """The table of ``lines``, what its columns mean, and what is not in it."""
    head, *body = lines(rows)
    rule = ["---" if name in _WORDS else "---:" for name in head]
    text = "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in [head, rule, *body]
    )
    text += "".join(f"\n{note}\n" for note in notes(rows))
    return text + "".join(f"\nNot in the table: {reason}.\n" for reason in skipped)


def comma_separated(rows: Sequence[Row]) -> str:
    """Full precision, one column per quantity; empty where not known."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    short = [name.lower() for name in _HEADINGS]
    if has_anytime := any(row.anytime for row in rows):
        short += ["aaa", "wc_acc"]
    head = [f"{name}_{part}" for name in short for part in ("mean", "sd")]
    head = ["benchmark", "method", "label", *head, "num_seeds", "diverged_seeds"]
    head += ["authors_ra", "authors_bti", "authors_source", "capacity", "glances"]
    head += [costs.GRADIENT_EVALUATIONS, costs.MEMORY_BYTES]
    writer.writerow([*head, "train_s_per_seed", "device", "folder"])

    def known(value):
        return "" if value is None or np.isnan(value) else repr(float(value))

    for row in rows:
        config, authors = row.run.config, row.entry.published[:1]
        lost = row.run.seeds[~run_folder.has_result(row.run)]
        cells = [row.benchmark, config["method"], row.label]
        spreads = row.spreads
        if has_anytime:
            spreads += row.anytime or (Spread(np.nan, np.nan),) * 2
        cells += [known(value) for pair in spreads for value in pair]
        cells += [row.num_used, " ".join(map(str, lost))]
        cells += [known(p.ra) for p in authors] or [""]
        cells += [known(p.bti) for p in authors] or [""]
        cells += [p.source for p in authors] or [""]
        cells += [config.get("capacity", ""), config.get("glances", "")]
        cells += [known(row.gradient_evaluations), row.memory_bytes]
        writer.writerow([*cells, known(row.train_s), row.device, str(row.run.folder)])
    return buffer.getvalue()


def show(rows: Sequence[Row], skipped: Sequence[str], console: Console) -> None:
    """Prints a table per benchmark that fits 80 columns without cutting a number."""
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        table = Table(title=benchmark, box=None, pad_edge=False, collapse_padding=True)
        table.width = _TABLE_WIDTH if console.width < _TABLE_WIDTH else None
        table.add_column("method", overflow="fold")
        part = [row for row in rows if row.benchmark == benchmark]
        are_published = any(row.entry.published for row in part)
        has_anytime = any(row.anytime for row in part)
        # Online papers give these two with the final accuracy, and 80 columns hold
        # no more.
        shown = ["AAA %", "WC %"] if has_anytime else _HEADINGS[1:]
        headings = ["RA %", *shown, "n"]
        headings += ["authors'\nRA / BTI"] * are_published
        headings += ["grads\n/ row", "train\ns"]
        for name in headings:
            table.add_column(name, justify="right", no_wrap=True)
        for row in part:
            pairs = [(p.ra, p.bti) for p in row.entry.published[:1]]
            text = "".join(f"{ra:.1f} / {bti:.1f}" for ra, bti in pairs)
            seconds = "" if row.train_s is None else f"{row.train_s:.1f}"
            total = row.run.seeds.size
            count = f"{row.num_used}" + (f"/{total}" if row.num_used < total else "")
            spreads = row.spreads
            if has_anytime:
                spreads = (
                    (*row.spreads[:1], *row.anytime) if row.anytime else spreads[:1]
                )
            cells = [*map(str, spreads), *[""] * (len(shown) + 1 - len(spreads)), count]
            cells += [text.replace("nan", "n/a")] * are_published
            cells += [gradients_text(row), seconds]
            table.add_row(escape(row.label), *cells)
        console.print(table, crop=False)
        for row in part:
            if _remark(row):
                console.print(f"[yellow]{escape(row.label)}: {_remark(row)}[/]")
    for reason in skipped:
        console.print(f"[yellow]not in the table: {escape(reason)}[/]", soft_wrap=True)
