"""The sections of a report's page, and what stands in each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.report import (
    captions,
    columns,
    comparison,
    provenance,
    tables,
    wording,
)
from experiments.report.comparison import Comparison
from experiments.report.entries import Entry
from experiments.report.page import (
    Facts,
    Folded,
    Key,
    Listing,
    Part,
    Picture,
    Section,
)
from experiments.run_folder import measurements

Records = Mapping[str, measurements.Record]


def _pictures(files: Sequence[Path]) -> list[Path]:
    return [path for path in files if path.suffix == ".png"]


def _benchmark_section(
    benchmark: str, entries: Sequence[Entry], files: Sequence[Path]
) -> Section:
    shown = [
        Picture(
            path,
            captions.caption(
                path.stem.removeprefix(f"{benchmark}_"), benchmark, entries
            ),
        )
        for path in _pictures(files)
    ]
    table = columns.make_table(entries, columns.OF_ONE_BENCHMARK)
    title = wording.benchmark_title(benchmark)
    caption = f"{title}. {columns.SPREAD}"
    listing = Listing(tables.without_empty(table), caption)
    first, *others = [*shown, listing]
    # The table follows the bars, of which it has the numbers.
    parts = [first, listing, *others[:-1]] if shown else [listing]
    return Section(title, parts)


def _overview(comparisons: Sequence[Comparison]) -> Section:
    entries = [entry for each in comparisons for entry in each.cells.values()]
    methods = dict.fromkeys(e.method for e in sorted(entries, key=comparison.rank))
    table = comparison.overview_table(comparisons)
    return Section(
        "Overview",
        [
            Listing(
                table,
                "Accuracy over all tasks at the end (RA), percent. "
                f"{columns.SPREAD} A click on a heading sorts by it.",
            ),
            "A method has one colour in every figure; its hue says the family.",
            Key(tuple(methods)),
            "Columns of the tables below:",
            Facts(columns.meanings(entries)),
        ],
    )


def of_speed(measured: Sequence[Records], scaling: Sequence[Path]) -> list[Section]:
    """Figures of throughput, then tables of what was measured, and where."""
    parts: list[Part] = [
        Picture(
            path,
            "Meta-updates per second of all seeds together, over the number of seeds "
            "that are trained side by side.",
        )
        for path in _pictures(scaling)
    ]
    for records in measured:
        for record in records.values():
            for result in record.results:
                caption = f"{result.title}. {result.note}".strip()
                parts.append(Listing(tables.table(measurements.lines(result)), caption))
            facts = provenance.environment_facts(record.environment)
            if facts:
                parts.append(Folded("How this was measured", facts))
    return [Section("Speed", parts)] if parts else []


def of_runs(comparisons: Sequence[Comparison], skipped: Sequence[str]) -> list[Section]:
    """How each run was made, and why others are not there."""
    below = [
        Section(
            wording.benchmark_title(benchmark),
            [
                Folded(provenance.run_summary(entry, run), provenance.run_facts(run))
                for entry in each.of(benchmark)
                for run in entry.parts
            ],
        )
        for each in comparisons
        for benchmark in each.benchmarks
    ]
    text = (
        "Each line opens to the command, date, commit, device, versions and "
        "hyper-parameters of a run."
    )
    found = [Section("Runs", [text], below, lists_sections=False)]
    if skipped:
        reasons = [f"Not in the tables: {reason}." for reason in skipped]
        found.append(Section("What is missing", reasons))
    return found


def of_results(
    comparisons: Sequence[Comparison], drawn: Mapping[str, Sequence[Path]]
) -> list[Section]:
    """An overview, then a section for each data set.

    Args:
        comparisons: from ``comparison.compare``.
        drawn: files of figures by benchmark.
    """
    of_data_sets = [
        Section(
            each.title,
            sections=[
                _benchmark_section(b, each.of(b), drawn[b]) for b in each.benchmarks
            ],
        )
        for each in comparisons
    ]
    return [_overview(comparisons), *of_data_sets]
