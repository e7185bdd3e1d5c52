"""A report as one self-contained HTML page: no script, nothing fetched."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem;
       padding: 0 1rem; color: #111; background: #fff; }
table { border-collapse: collapse; margin: 0.8rem 0 1.6rem; font-size: 13px; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th { border-bottom: 2px solid #333; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
figure { margin: 1rem 0 2rem; } img { max-width: 100%; }
figcaption, .note { color: #555; font-size: 13px; }
"""


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *body = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)
        for tag, line in zip(["th"] + ["td"] * len(lines), lines, strict=False)
    ]
    rows = "".join(f"<tr>{line}</tr>\n" for line in body)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>"
    return f"<div class='wide'>{table}</div>\n"


def _picture(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    alt = html.escape(alt, quote=True)
    return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
        f"<figcaption>{alt}</figcaption></figure>\n"
    )


def page(
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]],
    figures: Sequence[Path],
    notes: Sequence[str],
    opening: Path | None = None,
) -> str:
    """Puts tables and figures into one page.

    Args:
        tables: title and lines of cells of each, the heading first.
        figures: PNG files, captioned with their names.
        notes: sentences that stand below the tables.
        opening: one of the figures, shown before the tables instead.

    Returns:
        HTML; everything that is given is escaped.
    """
    picture = lambda path: _picture(path, path.stem.replace("_", ": "))
    parts = [] if opening is None else [picture(opening)]
    parts += [
        f"<h2>{html.escape(title)}</h2>\n{_table(lines)}" for title, lines in tables
    ]
    parts += [f"<p class='note'>{html.escape(note)}</p>\n" for note in notes]
    if figures:
        parts.append("<h2>Figures</h2>\n")
    parts += [picture(path) for path in figures if path != opening]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<title>lamaml_jax: results</title>"
        f"<style>{_STYLE}</style></head><body>\n<h1>Results</h1>\n"
        f"{''.join(parts)}</body></html>\n"
    )
