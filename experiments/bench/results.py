"""What a benchmark is told, what it returns, and how that is shown and kept."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.benchmarks import Benchmark
from experiments.errors import UserError

_FORMAT_VERSION = 1


class Settings(NamedTuple):
    """What is measured, and how long."""

    benchmark: Benchmark
    data_dir: Path | None
    rounds: int
    """Alternations; medians over them are reported."""
    quick: bool
    """Smallest sizes, to see that everything works; its times mean little."""


class Result(NamedTuple):
    """One table."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    """Every row has the same keys: the columns, with their units."""
    note: str = ""
    """What a reader must know about the columns."""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)


def _heading(name: str) -> str:
    return name.replace("_", " ")


def show(results: Sequence[Result], console: Console) -> None:
    """Prints every result as a table; one row alone is turned on its side."""
    for result in results:
        table = Table(title=result.title, caption=result.note or None)
        if len(result.rows) == 1:
            table.add_column("quantity")
            table.add_column("value", justify="right")
            for name, value in result.rows[0].items():
                table.add_row(_heading(name), _cell(value))
        else:
            for name in result.rows[0]:
                table.add_column(_heading(name), justify="right", overflow="fold")
            for row in result.rows:
                table.add_row(*map(_cell, row.values()))
        console.print(table)


def write(
    path: Path, results: Mapping[str, Sequence[Result]], environment: Mapping[str, Any]
) -> None:
    """Writes results by the name of their benchmark, as JSON."""
    record = {
        "format_version": _FORMAT_VERSION,
        "environment": environment,
        "benches": {
            name: [result._asdict() for result in group]
            for name, group in results.items()
        },
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def read(path: Path) -> tuple[dict[str, list[Result]], dict[str, Any]]:
    """Reads what ``write`` wrote.

    Args:
        path: the JSON file.

    Returns:
        Results by the name of their benchmark, and the environment.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    try:
        record = json.loads(path.read_text())
        version = record["format_version"]
        if version != _FORMAT_VERSION:
            raise UserError(
                f"{path}: written by another version (format {version}, here "
                f"{_FORMAT_VERSION})"
            )
        benches = {
            name: [Result(**result) for result in group]
            for name, group in record["benches"].items()
        }
        return benches, record["environment"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no benchmark record ({error})") from error
