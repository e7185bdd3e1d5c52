"""What was measured, and how that is shown and kept."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.support.errors import UserError

_FORMAT_VERSION = 2


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


def lines(result: Result) -> list[list[str]]:
    """The table as text, heading first; one row alone is turned on its side."""
    if len(result.rows) == 1:
        pairs = result.rows[0].items()
        body = [[_heading(name), _cell(value)] for name, value in pairs]
        return [["quantity", "value"], *body]
    head = [_heading(name) for name in result.rows[0]]
    return [head, *([_cell(value) for value in row.values()] for row in result.rows)]


def show(results: Sequence[Result], console: Console) -> None:
    """Prints every result as a table."""
    for result in results:
        table = Table(title=result.title, caption=result.note or None)
        head, *body = lines(result)
        for name in head:
            table.add_column(name, justify="right", overflow="fold")
        for row in body:
            table.add_row(*row)
        console.print(table)


class Record(NamedTuple):
    """What one benchmark measured, and where."""

    environment: Mapping[str, Any]
    results: Sequence[Result]


def write(path: Path, records: Mapping[str, Record]) -> None:
    """Writes records by the name of their benchmark, as JSON.

    Args:
        path: the file. If it holds records already, those of other names stay.
        records: what was measured.

    Raises:
        UserError: the file exists and is no such record.
    """
    kept = read(path) if path.exists() else {}
    benches = {
        name: {
            "environment": record.environment,
            "results": [result._asdict() for result in record.results],
        }
        for name, record in (kept | dict(records)).items()
    }
    found = {"format_version": _FORMAT_VERSION, "benches": benches}
    path.write_text(json.dumps(found, indent=1) + "\n")


def read(path: Path) -> dict[str, Record]:
    """Reads what ``write`` wrote.

    Args:
        path: the JSON file.

    Returns:
        Records by the name of their benchmark.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    try:
        found = json.loads(path.read_text())
        version = found["format_version"]
        if version != _FORMAT_VERSION:
            raise UserError(
                f"{path}: written by another version (format {version}, here "
                f"{_FORMAT_VERSION})"
            )
        return {
            name: Record(
                dict(record["environment"]),
                [Result(**result) for result in record["results"]],
            )
            for name, record in found["benches"].items()
        }
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(f"{path}: no benchmark record ({error})") from error
