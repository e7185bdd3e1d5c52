"""Tables and figures from run folders; reads only what is stored, never trains."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import figures, published, run_folder
from experiments.figures import Entry
from experiments.run_folder import METRICS, NothingToReportError, Run, RunFolderError

# What may differ between runs without making one a variant of the other.
_NOT_SETTINGS = {"format_version", "benchmark", "method", "seeds", "description"}
_AUTHORS = "authors' "
# Narrower terminals break the lines; squeezed, the table would lose its methods.
_TABLE_WIDTH = 80
_HEADINGS = ("RA", "BTI", "LA", "FWT")


class ReportFiles(NamedTuple):
    """What ``make_report`` wrote."""

    table_md: Path
    table_csv: Path
    figures: tuple[Path, ...]
    skipped: tuple[str, ...]
    """Why each run that is not in the tables is not, in a sentence."""


class Spread(NamedTuple):
    """A quantity over the seeds that have a result."""

    mean: float
    sd: float
    """Sample standard deviation (divided by n - 1); NaN for one seed."""

    def __str__(self) -> str:
        """Mean and sd to one decimal, n/a for what is not known."""
        if np.isnan(self.mean):
            return "n/a"
        return f"{self.mean:z.1f} ± " + (
            "n/a" if np.isnan(self.sd) else f"{self.sd:.1f}"
        )


class Row(NamedTuple):
    """One run in a table; percent and percentage points."""

    benchmark: str
    label: str
    run: Run
    spreads: tuple[Spread, ...]
    """In the order of ``METRICS``."""
    num_used: int
    """Seeds that have a result."""
    cpu_s: float | None
    """Processor time of training per seed, seconds."""
    entry: Entry


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


def _row(run: Run, benchmark: str, variant: int, suffix: str) -> Row:
    used = run_folder.has_result(run)
    method = run.config["method"]
    name = figures.NAMES.get(method, method)
    percent = [100 * run.summary[metric][used] for metric in METRICS]
    label = f"{name} ({suffix})" if suffix else name
    missing = "" if used.all() else f" [{used.sum()} of {used.size} seeds]"
    entry = Entry(
        label + missing,
        method,
        variant,
        run.accuracy[used],
        percent[0],
        percent[1],
        published.look_up(run.config),
    )
    cpu_s = run.summary["timing"].get("train_cpu_s_per_seed")
    spreads = tuple(map(spread, percent))
    return Row(benchmark, label, run, spreads, int(used.sum()), cpu_s, entry)


def make_rows(runs: Sequence[Run]) -> list[Row]:
    """Groups runs by benchmark and length, labels them, and sorts each group by RA.

    Args:
        runs: from ``run_folder.read``.

    Returns:
        One row per run; a benchmark run with several numbers of tasks becomes several
        benchmarks, because their figures do not compare.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        key = run.config["benchmark"], run.config["num_tasks"]
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


def _remark(row: Row) -> str:
    """Names the seeds without a result."""
    used = run_folder.has_result(row.run)
    if used.all():
        return ""
    lost = ", ".join(map(str, row.run.seeds[~used]))
    return f"seed {lost} diverged; mean over the other {row.num_used}"


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


def _markdown(rows: Sequence[Row], skipped: Sequence[str]) -> str:
    head = ["benchmark", "method", "RA %", *_HEADINGS[1:], "seeds", "authors' RA %"]
    head += ["authors' BTI", "capacity", "glances", "train CPU s per seed", "remark"]
    lines = [head, ["---"] * 2 + ["---:"] * 5 + ["---"] * 2 + ["---:"] * 3 + ["---"]]
    for row in rows:
        config = row.run.config
        settings = [str(config.get(key, "")) for key in ("capacity", "glances")]
        cpu = "" if row.cpu_s is None else f"{row.cpu_s:.1f}"
        others = [_authors(row, "ra"), _authors(row, "bti")]
        cells = [row.benchmark, row.label, *map(str, row.spreads), str(row.num_used)]
        lines.append([*cells, *others, *settings, cpu, _remark(row)])
    text = "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in lines
    )
    text += (
        "\nMean ± sample standard deviation over seeds. RA: accuracy over all tasks at "
        "the end; BTI: its change since each task was learnt, divided by the number "
        "of tasks; LA: accuracy right after learning; FWT: gain on a task before "
        "learning it, over the untrained model. BTI and FWT in percentage points.\n"
    )
    return text + "".join(f"\nNot in the table: {reason}.\n" for reason in skipped)


def _csv(rows: Sequence[Row]) -> str:
    """Full precision, one column per quantity; empty where not known."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    short = [name.lower() for name in _HEADINGS]
    head = [f"{name}_{part}" for name in short for part in ("mean", "sd")]
    head = ["benchmark", "method", "label", *head, "num_seeds", "diverged_seeds"]
    head += ["authors_ra", "authors_bti", "authors_source", "capacity", "glances"]
    writer.writerow([*head, "train_cpu_s_per_seed", "folder"])

    def known(value):
        return "" if value is None or np.isnan(value) else repr(float(value))

    for row in rows:
        config, authors = row.run.config, row.entry.published[:1]
        lost = row.run.seeds[~run_folder.has_result(row.run)]
        cells = [row.benchmark, config["method"], row.label]
        cells += [known(value) for pair in row.spreads for value in pair]
        cells += [row.num_used, " ".join(map(str, lost))]
        cells += [known(p.ra) for p in authors] or [""]
        cells += [known(p.bti) for p in authors] or [""]
        cells += [p.source for p in authors] or [""]
        cells += [config.get("capacity", ""), config.get("glances", "")]
        writer.writerow([*cells, known(row.cpu_s), str(row.run.folder)])
    return buffer.getvalue()


def _show(rows: Sequence[Row], skipped: Sequence[str], console: Console) -> None:
    """Prints a table per benchmark that fits 80 columns without cutting a number."""
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        table = Table(title=benchmark, box=None, pad_edge=False, collapse_padding=True)
        table.width = _TABLE_WIDTH if console.width < _TABLE_WIDTH else None
        table.add_column("method", overflow="fold")
        headings = ("RA %", *_HEADINGS[1:], "n", "authors'\nRA / BTI", "CPU s")
        for name in headings:
            table.add_column(name, justify="right", no_wrap=True)
        part = [row for row in rows if row.benchmark == benchmark]
        for row in part:
            pairs = [(p.ra, p.bti) for p in row.entry.published[:1]]
            text = "".join(f"{ra:.1f} / {bti:.1f}" for ra, bti in pairs)
            cpu = "" if row.cpu_s is None else f"{row.cpu_s:.1f}"
            total = row.run.seeds.size
            count = f"{row.num_used}" + (f"/{total}" if row.num_used < total else "")
            cells = [*map(str, row.spreads), count, text.replace("nan", "n/a"), cpu]
            table.add_row(escape(row.label), *cells)
        console.print(table, crop=False)
        for row in part:
            if _remark(row):
                console.print(f"[yellow]{escape(row.label)}: {_remark(row)}[/]")
    for reason in skipped:
        console.print(f"[yellow]not in the table: {escape(reason)}[/]", soft_wrap=True)


def make_report(
    paths: Iterable[Path], out_dir: Path, *, console: Console | None = None
) -> ReportFiles:
    """Writes tables and figures of any set of runs, and prints the tables.

    Args:
        paths: run folders, or parents of them.
        out_dir: made if need be; files of an earlier report are replaced.
        console: where the tables are printed; standard output if None.

    Returns:
        The files, and why runs were left out: those that are unfinished or diverged
        on every seed are named in the tables' place, not silently dropped.

    Raises:
        RunFolderError: a path without runs, no run with a result, a damaged run, or an
            ``out_dir`` that cannot be written to.
    """
    console = Console() if console is None else console
    runs, skipped = [], []
    for folder in run_folder.find(paths):
        try:
            runs.append(run_folder.read(folder))
        except NothingToReportError as error:
            skipped.append(str(error))
    if not runs:
        raise RunFolderError("no run to report on: " + "; ".join(skipped))
    out_dir = Path(out_dir)
    rows = make_rows(runs)
    run_folder.make_folder(out_dir)
    table_md, table_csv = out_dir / "table.md", out_dir / "table.csv"
    run_folder.write_file(table_md, _markdown(rows, skipped).encode())
    run_folder.write_file(table_csv, _csv(rows).encode())
    _show(rows, skipped, console)
    written: list[Path] = []
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        entries = [row.entry for row in rows if row.benchmark == benchmark]
        written += figures.write(out_dir, benchmark, entries)
    console.print(f"tables and figures are in {escape(str(out_dir))}", soft_wrap=True)
    return ReportFiles(table_md, table_csv, tuple(written), tuple(skipped))
