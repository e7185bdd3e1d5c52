"""A report as one self-contained HTML page; nothing is fetched."""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.report import tables
from experiments.support import styles

_HERE = Path(__file__).parent


class Picture(NamedTuple):
    """A PNG file with what it shows, in sentences."""

    path: Path
    caption: str


class Listing(NamedTuple):
    """A table with what it shows, in sentences."""

    table: tables.Table
    caption: str


class Facts(NamedTuple):
    """What each of some names stands for."""

    facts: Mapping[str, str]


class Folded(NamedTuple):
    """Facts that are shown when their summary is opened."""

    summary: str
    facts: Mapping[str, str]


class Key(NamedTuple):
    """Explains the colours of methods, by family."""

    methods: Sequence[str]


Part = str | Picture | Listing | Facts | Folded | Key
"""What stands in a section; text is a paragraph."""


class Section(NamedTuple):
    """A heading and what is below it."""

    title: str
    parts: Sequence[Part] = ()
    sections: Sequence["Section"] = ()
    lists_sections: bool = True
    """Whether the contents name those, too."""


def _picture(picture: Picture) -> str:
    from PIL import Image

    # The same pixels as the file's in three quarters of its bytes.
    buffer = io.BytesIO()
    with Image.open(picture.path) as image:
        image.convert("RGB").save(buffer, format="webp", lossless=True, quality=100)
        # With these the place is kept while it loads, and links lead where they should.
        width, height = image.size
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = html.escape(picture.caption)
    return (
        f"<figure><div class='wide'><img width='{width}' height='{height}' "
        f'alt="{caption}" src="data:image/webp;base64,{data}"></div>'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _facts(facts: Mapping[str, str]) -> str:
    found = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
        for name, text in facts.items()
    )
    return f"<dl>{found}</dl>\n"


def _folded(folded: Folded) -> str:
    summary = html.escape(folded.summary)
    return f"<details><summary>{summary}</summary>{_facts(folded.facts)}</details>\n"


def _key(key: Key) -> str:
    families: dict[str, list[str]] = {
        name: [] for name in (*styles.FAMILIES, styles.OWN)
    }
    for method in key.methods:
        color = html.escape(styles.STYLES.get(method, styles.OTHER).color, quote=True)
        name = html.escape(styles.NAMES.get(method, method))
        families[styles.family(method)].append(
            f"<span><i style='background:{color}'></i>{name}</span>"
        )
    items = (
        f"<li><b>{family}</b>{''.join(names)}</li>"
        for family, names in families.items()
        if names
    )
    return f"<ul class='key'>{''.join(items)}</ul>\n"


def _part(part: Part) -> str:
    match part:
        case Picture():
            return _picture(part)
        case Listing():
            return tables.as_html(part.table, part.caption)
        case Facts():
            return _facts(part.facts)
        case Folded():
            return _folded(part)
        case Key():
            return _key(part)
        case str():
            return f"<p>{html.escape(part)}</p>\n"


def _anchor(titles: Sequence[str]) -> str:
    words = re.findall(r"\w+", " ".join(titles).lower())
    return "-".join(words) or "section"


def _section(section: Section, above: tuple[str, ...] = ()) -> str:
    path = (*above, section.title)
    level = 1 + len(path)
    head = f"<h{level} id='{_anchor(path)}'>{html.escape(section.title)}</h{level}>\n"
    body = "".join(map(_part, section.parts))
    return head + body + "".join(_section(each, path) for each in section.sections)


def _contents(sections: Iterable[Section], above: tuple[str, ...] = ()) -> str:
    items = ""
    for section in sections:
        path = (*above, section.title)
        is_listed = section.sections and section.lists_sections
        below = _contents(section.sections, path) if is_listed else ""
        title = html.escape(section.title)
        items += f"<li><a href='#{_anchor(path)}'>{title}</a>{below}</li>"
    return f"<ol>{items}</ol>"


def page(title: str, opening: Sequence[Part], sections: Sequence[Section]) -> str:
    """Puts a report into one page.

    Args:
        title: its heading.
        opening: what stands below that, before the first section.
        sections: in the order of the contents; titles side by side differ.

    Returns:
        HTML with its style and script; everything that is given is escaped.
    """
    style, script = (
        (_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js")
    )
    heading = html.escape(title)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>lamaml_jax: {heading}</title>\n<style>\n{style}</style></head><body>\n"
        f"<nav aria-label='Contents'><p>{heading}</p>{_contents(sections)}</nav>\n"
        f"<main><h1>{heading}</h1>\n{''.join(map(_part, opening))}"
        f"{''.join(map(_section, sections))}</main>\n"
        f"<script>\n{script}</script></body></html>\n"
    )
