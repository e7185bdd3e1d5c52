"""Accuracy against what a method asks for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.entries import Entry
from experiments.report.figures.common import figure, ink, mean_and_sd, wrap

_DECADE = (1, 2, 5)
# Of the first run of a method, and of further ones.
_FILLS = ("full", "none", "left", "bottom", "top", "right")
# Where a name may stand: side by side with its point, then ever farther from it.
_DIRECTIONS = ((1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))
_DISTANCES_PT = (6, 12, 20, 30, 42)


def _ticks(low: float, high: float) -> list[float]:
    """Ones, twos and fives of every decade from about ``low`` to about ``high``."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in _DECADE]
    return [tick for tick in ticks if low / 1.3 <= tick <= 1.3 * high]


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Area that two boxes [x0, y0, x1, y1] share."""
    low = np.maximum(first[:2], second[:2])
    high = np.minimum(first[2:], second[2:])
    return float(np.prod(np.clip(high - low, 0, None)))


def _text_box(point: np.ndarray, size: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The box of a text of a size that is moved off its point."""
    middle = point + shift + np.sign(shift) * size / 2
    return np.concatenate([middle - size / 2, middle + size / 2])


def _free_box(
    point: np.ndarray,
    size: np.ndarray,
    taken: Sequence[np.ndarray],
    bounds: np.ndarray,
    scale: float,
) -> np.ndarray:
    """The nearest box beside a point that hides the least and stays within bounds.

    Args:
        point: [2] pixels.
        size: [2] of the text.
        taken: boxes [x0, y0, x1, y1] that should not be hidden.
        bounds: the box of the axes.
        scale: pixels per typographic point.
    """

    def cost(box: np.ndarray, distance: float) -> float:
        hidden = sum(_overlap(box, other) for other in taken)
        outside = float(np.prod(size)) - _overlap(box, bounds)
        return 8 * hidden + 20 * outside + distance * scale

    tried = [
        (_text_box(point, size, distance * scale * np.array(direction)), distance)
        for distance in _DISTANCES_PT
        for direction in _DIRECTIONS
    ]
    return min(tried, key=lambda each: cost(*each))[0]


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
    places, taken = [], []
    for point in points:
        ends = [(point.x, point.y + sign * point.sd) for sign in (-1, 0, 1)]
        low, place, high = axes.transData.transform(ends)
        places.append(place)
        taken.append(np.concatenate([low - 4 * scale, high + 4 * scale]))
    for point, place in zip(points, places, strict=True):
        look = {"color": ink(point.color), "fontsize": 7, "linespacing": 1.0}
        text = axes.text(0, 0, point.name, **look)
        extent = text.get_window_extent(renderer)
        size = np.array([extent.width, extent.height]) + 4  # pixels between two names
        box = _free_box(place, size, taken, bounds, scale)
        taken.append(box)
        text.remove()
        _write_name(axes, text, place, (box[:2] + box[2:]) / 2)


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
        points.append(_Point(wrap(entry.title, 32), amount, mean, sd, style.color))
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
