"""What all figures share: size, fonts, ticks, bands and labels beside their lines."""

import itertools
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.entries import Entry
from experiments.support import styles

DPI = 150
WIDTH_IN = 6.75
LINES = ("-", "--", ":", "-.")
FAINT = "#D4D4D4"
"""Of what stands behind, so that those of interest can be compared with it."""
_LABEL_PT = 7.0
RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "lamaml_jax",
}


class Label(NamedTuple):
    """A name that stands beside the end of a line."""

    text: str
    y: float
    """Of the line's end, in data units."""
    color: str


def figure(height_in: float) -> Any:
    """Makes an empty matplotlib figure, ``WIDTH_IN`` wide."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")


def ink(color: str) -> tuple[float, float, float]:
    """A colour as text on white: darkened, where it is light, until it can be read."""
    from matplotlib.colors import to_rgb

    rgb = np.array(to_rgb(color))
    while (0.2126, 0.7152, 0.0722) @ rgb**2.2 > 0.28:  # a contrast of 3.2 to white
        rgb = 0.95 * rgb
    return tuple(rgb)


def wrap(label: str, width: int = 24) -> str:
    """Breaks a label into lines."""
    if len(label) > width:  # a setting in brackets begins a line of its own
        label = label.replace(" (", "\n(").replace(" [", "\n[")
    return "\n".join(textwrap.fill(line, width) for line in label.split("\n"))


def task_ticks(num_tasks: int) -> list[int]:
    """Ticks from the first task to the last: all of few tasks, else about five.

    >>> task_ticks(5), task_ticks(20), task_ticks(100)
    ([1, 2, 3, 4, 5], [1, 5, 10, 15, 20], [1, 20, 40, 60, 80, 100])
    """
    if num_tasks <= 6:
        return list(range(1, num_tasks + 1))
    step = next(
        size * 10**power
        for power, size in itertools.product(range(9), (1, 2, 5))
        if num_tasks <= 5 * size * 10**power
    )
    inside = [n for n in range(step, num_tasks, step) if num_tasks - n >= step / 2]
    return [1, *(n for n in inside if n > 1), num_tasks]


def evaluated(accuracy: np.ndarray) -> np.ndarray:
    """Returns the tasks i after which all tasks up to i were evaluated, for all seeds.

    Args:
        accuracy: [S, T, T], NaN where not evaluated.
    """
    known = np.asarray(np.isfinite(accuracy).all(axis=0))
    return np.array([i for i in range(len(known)) if known[i, : i + 1].all()], int)


def followed(entries: Sequence[Entry]) -> list[Entry]:
    """Those of which all tasks so far were evaluated three times at least, or always.

    Of a run that was evaluated at its beginning and end only, a curve would show a
    straight line where nothing is known.
    """
    return [
        entry
        for entry in entries
        if len(evaluated(entry.accuracy)) >= min(3, entry.accuracy.shape[-1])
    ]


def mean_and_sd(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the first axis, that of seeds; of one seed the sample deviation is 0."""
    mean = values.mean(axis=0)
    return mean, values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)


def band(
    axes: Any, x: np.ndarray, values: np.ndarray, entry: Entry, **line: Any
) -> None:
    """Draws the mean over seeds of [S, N] and a band of one sd, as an entry's line."""
    (mean, sd), color = mean_and_sd(values), entry.style.color
    look = {
        "color": color,
        "linestyle": LINES[entry.variant % len(LINES)],
        "marker": entry.style.marker,
        "markerfacecolor": "white" if entry.variant else color,
        "markersize": 3.2,
        "linewidth": 1.2,
        "label": entry.title,
    }
    axes.plot(x, mean, **look | line)
    if len(values) > 1:
        axes.fill_between(x, mean - sd, mean + sd, color=color, alpha=0.16, lw=0)


def families(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Groups entries by the families of ``styles``, in its order, references last."""
    order = [name for name in styles.FAMILIES if name != styles.REFERENCES]
    groups: dict[str, list[Entry]] = {
        name: [] for name in (*order, styles.OWN, styles.REFERENCES)
    }
    for entry in entries:
        groups[styles.family(entry.method)].append(entry)
    return {name: part for name, part in groups.items() if part}


def _spread_out(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Moves places in [0, 1] apart, by as little as it takes, keeping their order.

    Neighbours that are too close form a block about its middle, and blocks that meet
    join.
    """
    order = sorted(range(len(places)), key=lambda n: places[n])
    blocks: list[list[int]] = []
    middles: list[float] = []

    def size(block: list[int]) -> float:
        return sum(heights[n] for n in block)

    for n in order:
        blocks.append([n])
        middles.append(places[n])
        while len(blocks) > 1 and (
            middles[-1] - size(blocks[-1]) / 2 < middles[-2] + size(blocks[-2]) / 2
        ):
            upper, below = blocks.pop(), blocks[-1]
            middle, lower = middles.pop(), middles[-1]
            total = size(below) + size(upper)
            middles[-1] = (lower * size(below) + middle * size(upper)) / total
            blocks[-1] = below + upper
    found = [0.0] * len(places)
    for block, middle in zip(blocks, middles, strict=True):
        low = middle - size(block) / 2
        for n in block:
            found[n] = low + heights[n] / 2
            low += heights[n]
    return found


def label_ends(axes: Any, labels: Sequence[Label], height_in: float) -> None:
    """Writes names beside the right ends of lines, moved apart where they would meet.

    Args:
        axes: whose limits are final.
        labels: in any order.
        height_in: of the axes, about.
    """
    low, high = axes.get_ylim()
    line = 1.15 * _LABEL_PT / (72 * height_in)
    ends = [(label.y - low) / (high - low) for label in labels]
    heights = [line * (label.text.count("\n") + 1) for label in labels]
    for label, end, place in zip(labels, ends, _spread_out(ends, heights), strict=True):
        axes.annotate(
            label.text,
            (1, end),
            (1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=ink(label.color),
            fontsize=_LABEL_PT,
            linespacing=1.0,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": label.color,
                "linewidth": 0.5,
                "relpos": (0, 0.5),  # the left end, so that no line crosses a label
                "shrinkA": 1,
                "shrinkB": 1,
            },
        )
