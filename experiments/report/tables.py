"""Tables as data, and what they become: Markdown, CSV, HTML and text."""

import csv
import html
import io
import itertools
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_LONG = 16
"""Characters of a cell beyond which it may be broken."""
_MANY = 30
"""Lines beyond which a table is shown when it is opened."""
_NUMBER = re.compile(r"-?[\d,.]+")


class Table(NamedTuple):
    """Texts in columns."""

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]

    @property
    def is_number(self) -> tuple[bool, ...]:
        """Of each column, whether every text in it begins as a number, or is empty."""
        columns = zip(*self.body, strict=True) if self.body else [()] * len(self.head)
        return tuple(
            all(_NUMBER.match(text) or text in ("", "-", "n/a") for text in column)
            for column in columns
        )


def table(lines: Iterable[Sequence[str]]) -> Table:
    """Makes a table of lines of texts, the heading first."""
    head, *body = map(tuple, lines)
    return Table(head, tuple(body))


def without_empty(full: Table, names: Iterable[str] = ()) -> Table:
    """Leaves out columns that say nothing in any line.

    Args:
        full: the table.
        names: of the columns that may be left out; all if there are none.
    """
    may = set(names) or set(full.head)
    kept = [
        name not in may or any(line[column] for line in full.body)
        for column, name in enumerate(full.head)
    ]
    lines = (full.head, *full.body)
    return table([tuple(itertools.compress(line, kept)) for line in lines])


def markdown(full: Table) -> str:
    """The table as Markdown; numbers are flush right."""
    rule = ["---:" if is_number else "---" for is_number in full.is_number]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n"
        for line in [full.head, rule, *full.body]
    )


def comma_separated(lines: Iterable[Sequence[object]]) -> str:
    """Lines of values as CSV, None as nothing."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _class(cell: str, is_number: bool) -> str:
    names = ["long"] * (len(cell) > _LONG) + ["text"] * (not is_number)
    return f" class='{' '.join(names)}'" if names else ""


def as_html(full: Table, caption: str) -> str:
    """The table as HTML that scrolls by itself; a heading sorts by its column.

    Args:
        full: the table.
        caption: sentences that say what it shows.

    Returns:
        A ``figure``, or of a long table ``details``; everything is escaped.
    """
    head = "".join(
        f"<th scope='col'{_class('', is_number)}><button type='button'>"
        f"{html.escape(name)}</button></th>"
        for name, is_number in zip(full.head, full.is_number, strict=True)
    )
    body = ""
    for first, *others in full.body:
        cells = "".join(
            f"<td{_class(cell, is_number)}>{html.escape(cell)}</td>"
            for cell, is_number in zip(others, full.is_number[1:], strict=True)
        )
        kind = _class(first, True)
        body += f"<tr><th scope='row'{kind}>{html.escape(first)}</th>{cells}</tr>\n"
    text, label = html.escape(caption), html.escape(caption, quote=True)
    wide = (
        f"<div class='wide' role='region' tabindex='0' aria-label=\"{label}\">"
        f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )
    if len(full.body) > _MANY:
        return f"<details><summary>{text}</summary>{wide}</details>\n"
    return f"<figure><figcaption>{text}</figcaption>\n{wide}</figure>\n"


def text_lines(parts: Sequence[tuple[str, Table]], width: int) -> list[str]:
    """Tables of the same columns as one, in lines of text.

    Args:
        parts: the title and the lines of each; a title stands above its lines.
        width: of a line, characters. A label that does not fit beside its numbers
            stands above them; where the numbers alone take more, lines are longer.

    Returns:
        The heading, and titles and rows below it.
    """
    (_, first), *_ = parts
    columns = list(
        zip(first.head, *(line for _, t in parts for line in t.body), strict=True)
    )
    widths = [max(map(len, column)) for column in columns[1:]]
    room = width - sum(widths) - 2 * len(widths)
    longest = max(map(len, columns[0]))
    room = min(max(room, 10), longest)

    def joined(label: str, cells: Sequence[str]) -> list[str]:
        numbers = "".join(
            f"  {cell:>{each}}" for cell, each in zip(cells, widths, strict=True)
        )
        if len(label) <= room:
            return [f"{label:<{room}}{numbers}".rstrip()]
        return [*textwrap.wrap(label, width), f"{'':<{room}}{numbers}".rstrip()]

    lines = joined(first.head[0], first.head[1:])
    for title, part in parts:
        lines += ["", title]
        for label, *cells in part.body:
            lines += joined(label, cells)
    return lines
