"""Tables, figures and a page from run folders; reads what is stored, never trains."""

import functools
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from experiments import run_folder
from experiments.report import (
    columns,
    comparison,
    figures,
    provenance,
    sections,
    terminal,
)
from experiments.report import page as pages
from experiments.report.entries import Entry, make_entries
from experiments.report.sections import Records
from experiments.run_folder import RunFolderError, measurements
from experiments.support import naming
from experiments.support.errors import UserError

Paths = Iterable[Path | str | run_folder.Run]
_FEW = 4
"""Run folders that the next command names."""


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


def read_runs(paths: Paths) -> tuple[list[run_folder.Run], list[str]]:
    """Reads all runs among and below paths that have a result.

    Args:
        paths: run folders, or parents of them, or runs that were read.

    Returns:
        The runs, and why each of the others is left out.

    Raises:
        RunFolderError: a path without runs, or no run has a result.
    """
    runs, skipped = [], []
    given = [x.folder if isinstance(x, run_folder.Run) else Path(x) for x in paths]
    for folder in run_folder.find(given):
        try:
            runs.append(run_folder.read(folder))
        except RunFolderError as error:
            skipped.append(str(error))
    if not runs:
        raise RunFolderError("no run to report on: " + "; ".join(skipped))
    return runs, skipped


def _check_formats(formats: Sequence[str]) -> None:
    for name in formats:
        if name not in figures.FORMATS:
            known = ", ".join(figures.FORMATS)
            raise UserError(f"unknown format {name!r}; choose of: {known}")


def _draw(
    out_dir: Path, entries: Sequence[Entry], formats: Sequence[str]
) -> dict[str, list[Path]]:
    """Draws the figures of each benchmark; returns their files by its name."""
    drawn = {}
    for benchmark in dict.fromkeys(entry.benchmark for entry in entries):
        part = [entry for entry in entries if entry.benchmark == benchmark]
        drawn[benchmark] = figures.write(out_dir, benchmark, part, formats)
    return drawn


def _draw_scaling(
    out_dir: Path, measured: Sequence[Records], formats: Sequence[str]
) -> list[Path]:
    scaled = [records["scaling"] for records in measured if "scaling" in records]
    files = []
    for number, record in enumerate(scaled, start=1):
        path = out_dir / ("scaling" + f"-{number}" * (len(scaled) > 1))
        first = record.results[0]
        draw = functools.partial(figures.scaling, first.title, first.rows)
        files += figures.save(draw, path, formats)
    return files


def _tell_where(console: Console, page: Path, folders: Sequence[str]) -> None:
    """Names the folder of a report, and the command for vector figures of few runs."""
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    out_dir = page.parent
    say(f"\ntables and figures are in {out_dir}, all on one page in {page.name}")
    if 0 < len(folders) <= _FEW:
        command = [*naming.command(), "report", *folders, "--out", str(out_dir)]
        say(f"vector figures: {shlex.join([*command, '--format', 'svg,pdf'])}")


def make_report(
    paths: Paths,
    out_dir: Path | str,
    *,
    benches: Iterable[Path] = (),
    formats: Sequence[str] = (),
    console: Console | None = None,
) -> ReportFiles:
    """Writes tables and figures (PNG) of any set of runs, and prints a table.

    Args:
        paths: run folders, or parents of them, or runs that were read.
        out_dir: made if need be; files of an earlier report are replaced.
        benches: records of ``bench --json``; they join the page, and scaling is drawn.
        formats: of ``figures.FORMATS``, what figures are also written as.
        console: where the table is printed; standard output if None.

    Returns:
        The files, and why runs were left out: those that are unfinished, damaged, of
        another version or diverged on every seed are named below the tables, not
        silently dropped.

    Raises:
        RunFolderError: a path without runs, no run with a result, or an ``out_dir``
            that cannot be written to.
        UserError: a damaged record, or an unknown format.
    """
    console = console or Console()
    _check_formats(formats)
    measured = [measurements.read(path) for path in benches]
    runs, skipped = read_runs(paths)
    entries, out_dir = make_entries(runs), Path(out_dir)
    compared, page = comparison.compare(entries), out_dir / "report.html"
    run_folder.make_folder(out_dir)
    texts = (
        ("table.md", columns.markdown(entries, skipped)),
        ("table.csv", columns.comma_separated(entries)),
        ("comparison.md", comparison.markdown(compared)),
        ("comparison.csv", comparison.comma_separated(entries)),
    )
    for name, text in texts:
        run_folder.write_file(out_dir / name, text.encode())
    terminal.show(entries, skipped, console)
    drawn = _draw(out_dir, entries, formats)
    scaling = _draw_scaling(out_dir, measured, formats)
    content = [
        *sections.of_results(compared, drawn),
        *sections.of_speed(measured, scaling),
        *sections.of_runs(compared, skipped),
    ]
    html = pages.page("Results", [provenance.opening(entries)], content)
    run_folder.write_file(page, html.encode())
    folders = [str(run.folder) for run in runs]
    _tell_where(console, page, folders if not formats else [])
    written = tuple(path for part in (*drawn.values(), scaling) for path in part)
    files = [out_dir / name for name, _ in texts]
    return ReportFiles(*files, page=page, figures=written, skipped=tuple(skipped))
