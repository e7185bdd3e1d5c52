"""Accuracy along the stream: families of methods as small multiples."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.entries import Entry
from experiments.report.figures.common import (
    FAINT,
    Label,
    band,
    evaluated,
    families,
    figure,
    followed,
    label_ends,
    mean_and_sd,
    task_ticks,
    wrap,
)
from experiments.support import styles

_FEW = 4
"""Entries that one panel holds."""
_LONG = 20
"""Characters of a label beyond which panels stand below one another."""
_DENSE = 60
"""Points of a line, likewise."""


class Line(NamedTuple):
    """A quantity of one entry along the stream."""

    x: np.ndarray
    """[N] tasks."""
    values: np.ndarray
    """[S, N] percent."""
    marker: str | None = None
    """Instead of the method's own."""


def _learnt_so_far(entry: Entry) -> Line:
    tasks = evaluated(entry.accuracy)
    means = [entry.accuracy[:, i, : i + 1].mean(1) for i in tasks]
    return Line(tasks + 1, 100 * np.stack(means, 1))


def _anytime(entry: Entry) -> Line | None:
    accuracy, after = (entry.measure(f"anytime_{n}") for n in ("accuracy", "after"))
    if accuracy is None or after is None:
        return None
    num_tasks = accuracy.shape[1]
    curve = [accuracy[:, t, :, : t + 1].mean(axis=2) for t in range(num_tasks)]
    x = np.concatenate([t + after / after[-1] for t in range(num_tasks)])
    return Line(x, 100 * np.concatenate(curve, axis=1), "")


def _draw(axes: Any, entry: Entry, line: Line) -> Label:
    """Draws one entry; what sees all tasks mixed is a level line, its RA."""
    color, last = entry.style.color, float(line.values[:, -1].mean())
    if entry.method in styles.MIXED:
        last = float(entry.retained_accuracy.mean())
        axes.axhline(last, color=color, linestyle="--", linewidth=1.0, zorder=1)
        return Label(f"{wrap(entry.title, 32)}, at the end", last, color)
    if styles.family(entry.method) == styles.REFERENCES:
        look = {"linestyle": "--", "marker": "", "linewidth": 1.0, "zorder": 1}
        band(axes, line.x, line.values, entry, **look)
    else:
        look = {} if line.marker is None else {"marker": line.marker}
        band(axes, line.x, line.values, entry, **look)
    return Label(wrap(entry.title, 32), last, color)


def _drawn(entry: Entry, line: Line) -> tuple[np.ndarray, np.ndarray]:
    """A line's mean and sd, [N]; of what sees all tasks mixed those of its level."""
    if entry.method in styles.MIXED:
        return np.atleast_1d(entry.retained_accuracy.mean()), np.zeros(1)
    return mean_and_sd(line.values)


def _limits(lines: Sequence[tuple[Entry, Line]]) -> tuple[float, float]:
    """Of the vertical axis, tens of percent around all lines and their bands."""
    drawn = [_drawn(entry, line) for entry, line in lines]
    low = min(float((mean - sd).min()) for mean, sd in drawn)
    high = max(float((mean + sd).max()) for mean, sd in drawn)
    bottom, top = 10 * np.floor((low - 2) / 10), 10 * np.ceil((high + 1) / 10)
    if all(mean.max() <= 100 for mean, _ in drawn):  # a band's edge may be above
        top = min(top, 100.0)
    return max(0.0, bottom), top


def _panels(groups: Sequence[str], is_wide: bool) -> tuple[int, int]:
    """Rows and columns without a hole; wide panels have a row each."""
    count = max(len(groups), 1)
    if is_wide or count == 1:
        return count, 1
    columns = 3 if count % 3 == 0 else 2
    if count % columns:
        return count, 1
    return count // columns, columns


def _small_multiples(
    title: str, ylabel: str, xlabel: str, lines: Sequence[tuple[Entry, Line]]
) -> Any:
    """A panel per family over all others in grey, with the references in each."""
    by_entry = {id(entry): line for entry, line in lines}
    groups = families([entry for entry, _ in lines])
    references = groups.pop(styles.REFERENCES, [])
    if sum(map(len, groups.values())) <= _FEW:
        groups = {"": [entry for part in groups.values() for entry in part]}
    is_wide = any(
        len(entry.title) > _LONG or len(line.x) > _DENSE for entry, line in lines
    )
    rows, columns = _panels(list(groups), is_wide)
    panel_in = 2.3 if rows == 1 else 1.95
    page = figure(0.75 + panel_in * rows)
    panels = page.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    low, high = _limits(lines)
    for axes, (name, part) in zip(panels.flat, groups.items(), strict=True):
        axes.set_ylim(low, high)
        for entry, line in lines:
            if entry not in part and entry not in references:
                x, values = line.x, line.values.mean(axis=0)
                axes.plot(x, values, color=FAINT, linewidth=0.8, zorder=0)
        labels = [
            _draw(axes, entry, by_entry[id(entry)]) for entry in [*references, *part]
        ]
        label_ends(axes, labels, panel_in - 0.5)
        axes.set_title(name)
    panels[0, 0].set_xticks(task_ticks(lines[0][0].accuracy.shape[-1]))
    for axes in panels[:, 0]:
        axes.set_ylabel(ylabel)
    page.supxlabel(xlabel, fontsize=8)
    page.suptitle(title, fontsize=9)
    return page


def _all_lines(
    entries: Sequence[Entry], line_of: Callable[[Entry], Line | None]
) -> list[tuple[Entry, Line]]:
    found = [(entry, line_of(entry)) for entry in entries]
    return [(entry, line) for entry, line in found if line is not None]


def curves(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws the mean accuracy over the tasks learnt so far, with its sd over seeds.

    Args:
        title: the benchmark, in words.
        entries: its runs; those that were hardly evaluated on the way are left out.

    Returns:
        A matplotlib figure, a panel per family of methods, or None if no run is left.
        Points stand at the tasks after which all so far were evaluated.
    """
    lines = _all_lines(followed(entries), _learnt_so_far)
    if not lines:
        return None
    return _small_multiples(
        title,
        "mean accuracy on\nthe tasks learnt (%)",
        "number of tasks learnt",
        lines,
    )


def anytime(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws the accuracy on all classes seen so far, along the stream.

    Args:
        title: the benchmark, in words.
        entries: its runs; those that were not evaluated within tasks are left out.

    Returns:
        As ``curves``, or None if no run was evaluated within tasks.
    """
    lines = _all_lines(entries, _anytime)
    if not lines:
        return None
    page = _small_multiples(
        f"{title}: anytime accuracy",
        "accuracy on the\nclasses seen so far (%)",
        "tasks shown",
        lines,
    )
    for axes in page.axes:
        for end in range(1, lines[0][0].accuracy.shape[-1]):
            axes.axvline(end, color="0.9", linewidth=0.7, zorder=-1)
    return page
