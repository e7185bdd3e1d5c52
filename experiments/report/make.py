"""Tables and figures from run folders; reads only what is stored, never trains."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from experiments import bench, run_folder
from experiments.report import comparison, figures, tables
from experiments.report import page as pages
from experiments.report.entries import make_rows
from experiments.run_folder import RunFolderError
from experiments.support.errors import UserError

# The figure that a page opens with, where there are such runs: the paper's claim is
# about images.
_OPENING = "cifar100-split_bars"


class ReportFiles(NamedTuple):
    """What ``make_report`` wrote."""

    table_md: Path
    table_csv: Path
    comparison_md: Path
    comparison_csv: Path
    page: Path
    """Everything in one HTML file."""
    figures: tuple[Path, ...]
    skipped: tuple[str, ...]
    """Why each run that is not in the tables is not, in a sentence."""


def make_report(
    paths: Iterable[Path | str | run_folder.Run],
    out_dir: Path | str,
    *,
    benches: Iterable[Path] = (),
    formats: Sequence[str] = (),
    console: Console | None = None,
) -> ReportFiles:
    """Writes tables and figures (PNG) of any set of runs, and prints the tables.

    Args:
        paths: run folders, or parents of them, or runs that were read.
        out_dir: made if need be; files of an earlier report are replaced.
        benches: records of ``bench --json``; they join the page, and scaling is drawn.
        formats: of ``figures.FORMATS``, what figures are also written as.
        console: where the tables are printed; standard output if None.

    Returns:
        The files, and why runs were left out: those that are unfinished, damaged, of
        another version or diverged on every seed are named below the tables, not
        silently dropped.

    Raises:
        RunFolderError: a path without runs, no run with a result, or an ``out_dir``
            that cannot be written to.
        UserError: a damaged record, or an unknown format.
    """
    console = Console() if console is None else console
    for name in formats:
        if name not in figures.FORMATS:
            known = ", ".join(figures.FORMATS)
            raise UserError(f"unknown format {name!r}; choose of: {known}")
    measured = [bench.read(path) for path in benches]
    runs, skipped = [], []
    given = [x.folder if isinstance(x, run_folder.Run) else Path(x) for x in paths]
    for folder in run_folder.find(given):
        try:
            runs.append(run_folder.read(folder))
        except RunFolderError as error:
            skipped.append(str(error))
    if not runs:
        raise RunFolderError("no run to report on: " + "; ".join(skipped))
    out_dir = Path(out_dir)
    rows = make_rows(runs)
    run_folder.make_folder(out_dir)
    table_md, table_csv = out_dir / "table.md", out_dir / "table.csv"
    run_folder.write_file(table_md, tables.markdown(rows, skipped).encode())
    run_folder.write_file(table_csv, tables.comma_separated(rows).encode())
    compared = comparison.compare(rows)
    comparison_md, comparison_csv = (
        out_dir / f"comparison.{ending}" for ending in ("md", "csv")
    )
    run_folder.write_file(comparison_md, comparison.markdown(compared).encode())
    run_folder.write_file(comparison_csv, comparison.comma_separated(rows).encode())
    tables.show(rows, skipped, console)
    written: list[Path] = []
    for benchmark in dict.fromkeys(row.benchmark for row in rows):
        entries = [row.entry for row in rows if row.benchmark == benchmark]
        written += figures.write(out_dir, benchmark, entries, formats)
    all_tables = [
        (comparison.heading(each), comparison.table(each)) for each in compared
    ]
    all_tables.append(("All figures", tables.lines(rows)))
    scaled = sum("scaling" in records for records in measured)
    for number, records in enumerate(measured):
        for name, (_, results) in records.items():
            all_tables += [(result.title, bench.lines(result)) for result in results]
            if name == "scaling":
                path = out_dir / ("scaling" + f"-{number + 1}" * (scaled > 1))
                first = results[0]
                draw = functools.partial(figures.scaling, first.title, first.rows)
                written += figures.save(draw, path, formats)
    notes = [comparison.NOTE, *tables.notes(rows)]
    notes += [f"Not in the tables: {reason}." for reason in skipped]
    pictures = [path for path in written if path.suffix == ".png"]
    opening = next((path for path in pictures if path.stem == _OPENING), None)
    page = out_dir / "report.html"
    text = pages.page(all_tables, pictures, notes, opening)
    run_folder.write_file(page, text.encode())
    console.print(f"tables and figures are in {escape(str(out_dir))}", soft_wrap=True)
    return ReportFiles(
        table_md,
        table_csv,
        comparison_md,
        comparison_csv,
        page,
        tuple(written),
        tuple(skipped),
    )
