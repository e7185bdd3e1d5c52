"""Accuracy against what a method asks for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.entries import Entry
from experiments.report.figures import names
from experiments.report.figures.common import figure, ink, mean_and_sd, wrap

_DECADE = (1, 2, 5)
# Of the first run of a method, and of further ones.
_FILLS = ("full", "none", "left", "bottom", "top", "right")


def _ticks(low: float, high: float) -> list[float]:
    """Ones, twos and fives of every decade from about ``low`` to about ``high``."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in _DECADE]
    return [tick for tick in ticks if low / 1.3 <= tick <= 1.3 * high]


def _write_name(axes: Any, text: Any, point: np.ndarray, middle: np.ndarray) -> None:
    """Writes a text about a place, and draws a fine line from its point to it."""
    # Pixels are those of PNG; other formats have others.
    places = axes.transAxes.inverted().transform([point, middle])
    axes.annotate(
        text.get_text(),
        *places,
        xycoords="axes fraction",
        textcoords="axes fraction",
        color=text.get_color(),
        fontsize=7,
        linespacing=1.0,
        ha="center",
        va="center",
        in_layout=False,
        arrowprops={
            "arrowstyle": "-",
            "linewidth": 0.4,
            "color": text.get_color(),
            "shrinkA": 0,
            "shrinkB": 3,
        },
    )


class _Point(NamedTuple):
    """One run: its name, and where it and its error bar lie, in data units."""

    name: str
    x: float
    y: float
    sd: float
    """0 where there is no bar."""
    color: str


def _place_names(page: Any, axes: Any, points: Sequence[_Point]) -> None:
    """Writes names beside points where they hide nothing, the nearest such place.

    Args:
        page: the figure.
        axes: with everything else drawn and final limits.
        points: all that is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(page).get_renderer()
    scale = page.dpi / 72
    inside = axes.get_window_extent(renderer)
    bounds = np.array([inside.x0, inside.y0, inside.x1, inside.y1])
    texts, places, bars, sizes = [], [], [], []
    for point in points:
        ends = [(point.x, point.y + sign * point.sd) for sign in (-1, 0, 1)]
        low, place, high = axes.transData.transform(ends)
        look = {"color": ink(point.color), "fontsize": 7, "linespacing": 1.0}
        text = axes.text(0, 0, point.name, **look)
        extent = text.get_window_extent(renderer)
        text.remove()
        texts.append(text)
        places.append(place)
        bars.append(np.concatenate([low - 4 * scale, high + 4 * scale]))
        sizes.append([extent.width + 4, extent.height + 4])  # pixels between two names
    arrays = map(np.array, (places, bars, sizes))
    boxes = names.place_names(*arrays, bounds=bounds, scale=scale)
    for text, place, middle in zip(texts, places, names.middles(boxes), strict=True):
        _write_name(axes, text, place, middle)


def compute(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws RA against gradient evaluations per row, mean and sd over seeds.

    Args:
        title: the benchmark, in words.
        entries: its runs; those whose cost is not known are left out.

    Returns:
        A matplotlib figure, ``WIDTH_IN`` wide; None if all runs cost the same.
    """
    shown = [entry for entry in entries if entry.gradient_evaluations]
    amounts = [entry.gradient_evaluations or 0.0 for entry in shown]
    if len(set(amounts)) < 2:
        return None
    page = figure(3.1 if len(shown) <= 8 else 3.7)
    axes = page.subplots()
    points = []
    for entry, amount in zip(shown, amounts, strict=True):
        values, style = entry.retained_accuracy, entry.style
        mean, sd = map(float, mean_and_sd(values))
        axes.errorbar(
            amount,
            mean,
            yerr=sd or None,
            color=style.color,
            marker=style.marker,
            fillstyle=_FILLS[entry.variant % len(_FILLS)],
            markersize=5,
            linestyle="none",
            elinewidth=0.9,
            capsize=2,
            label=entry.title,
        )
        name = wrap(entry.title.replace(", ", ",\n"))
        points.append(_Point(name, amount, mean, sd, style.color))
    axes.set_xscale("log")
    ticks = _ticks(min(amounts), max(amounts))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(amounts) / 1.6, 1.9 * max(amounts))
    axes.set_xlabel("gradient evaluations per row of the stream")
    axes.set_ylabel("retained accuracy RA (%)")
    axes.set_title(title)
    page.draw_without_rendering()
    _place_names(page, axes, points)
    return page
