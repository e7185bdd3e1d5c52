"""Accuracies at the end: bars, and matrices of tasks against tasks."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report.entries import Entry
from experiments.report.figures.common import (
    WIDTH_IN,
    evaluated,
    figure,
    followed,
    task_ticks,
    wrap,
)
from experiments.report.published import PAPER
from experiments.run_folder import ANYTIME_METRICS, METRICS

# Metric, name of others' figures, label of the axis.
_BARS = (
    (METRICS[0], "ra", "retained accuracy RA (%)"),
    (METRICS[1], "bti", "backward transfer and interference\nBTI (percentage points)"),
)
_ONLINE_BARS = (
    (METRICS[0], "ra", "final accuracy RA (%)"),
    (ANYTIME_METRICS[0], "", "average anytime\naccuracy AAA (%)"),
    (ANYTIME_METRICS[1], "", "worst-case accuracy\nWC-ACC (%)"),
)


def _draw_bars(axes: Any, entries: Sequence[Entry], metric: str) -> None:
    for place, entry in enumerate(entries):
        value = entry.percent.get(metric)
        if value is None or np.isnan(value).any():  # means nothing for this method
            continue
        mean, color = value.mean(), entry.style.color
        axes.barh(place, mean, height=0.76, color=color, alpha=0.45, linewidth=0)
        if len(value) > 1:
            axes.errorbar(
                mean,
                place,
                xerr=value.std(ddof=1),
                color="black",
                linewidth=0.9,
                capsize=2,
                linestyle="none",
                label="mean ± sd",
            )
        axes.scatter(
            value,
            np.full(len(value), place + 0.26),
            s=6,
            color=color,
            edgecolor="black",
            linewidth=0.4,
            zorder=3,
        )


def _draw_published(axes: Any, entries: Sequence[Entry], name: str) -> None:
    for place, entry in enumerate(entries):
        for row in entry.published:
            paper = row.source == PAPER
            axes.plot(
                getattr(row, name),
                place - 0.25,
                marker="*" if paper else "D",
                markersize=6 if paper else 3.5,
                color="black" if paper else "white",
                markeredgecolor="black",
                markeredgewidth=0.8,
                linestyle="none",
                label=row.source,
                clip_on=False,
                zorder=4,
            )


def bars(title: str, entries: Sequence[Entry]) -> Any:
    """Draws RA and BTI side by side: mean, sd, seeds, and others' figures.

    Args:
        title: the benchmark, in words.
        entries: one bar each, from the top.

    Returns:
        A matplotlib figure, ``WIDTH_IN`` wide; of runs that were evaluated within
        tasks it has the anytime measures beside RA.
    """
    is_online = any(ANYTIME_METRICS[0] in entry.percent for entry in entries)
    shown = _ONLINE_BARS if is_online else _BARS
    labels = [wrap(entry.title, 32) for entry in entries]
    most_lines = max(label.count("\n") + 1 for label in labels)
    page = figure(1.05 + len(entries) * max(0.25, 0.06 + 0.13 * most_lines))
    panels = page.subplots(1, len(shown), sharey=True)
    for axes, (metric, name, label) in zip(panels, shown, strict=True):
        _draw_bars(axes, entries, metric)
        if name:
            _draw_published(axes, entries, name)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color="black", linewidth=0.7)
        axes.spines.left.set_visible(False)
    first = panels[0]
    first.set_yticks(range(len(entries)), labels)
    first.set_ylim(len(entries) - 0.4, -0.6)
    first.set_xlim(left=0)
    page.suptitle(title, fontsize=9)
    seed = first.scatter([], [], s=6, color="white", edgecolor="black", linewidth=0.4)
    handles, names = first.get_legend_handles_labels()
    named = {"one seed": seed, **dict(zip(names, handles, strict=True))}
    page.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=len(named)
    )
    return page


def draw_matrix(axes: Any, accuracy: np.ndarray, norm: Any) -> Any:
    """Draws [T, T] percent, a row for each time that all tasks were evaluated."""
    num_tasks = accuracy.shape[-1]
    rows = evaluated(accuracy[None])
    later = np.arange(num_tasks)[None, :] > rows[:, None]
    mesh = axes.pcolormesh(
        np.arange(num_tasks + 1) + 0.5,
        np.arange(len(rows) + 1) - 0.5,
        np.ma.masked_array(accuracy[rows], later),
        cmap="viridis",
        norm=norm,
        rasterized=True,
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_box_aspect(1)
    few = [1, num_tasks // 2, num_tasks]
    axes.set_xticks(few if num_tasks >= 50 else task_ticks(num_tasks))
    if len(rows) == num_tasks:
        shown = [tick - 1 for tick in task_ticks(num_tasks)]
    else:  # evaluated now and then: every second of these, the last one among them
        shown = list(range(len(rows)))[:: -2 if len(rows) > 6 else -1]
    axes.set_yticks(shown, [str(rows[n] + 1) for n in shown])
    return mesh


def _grid(count: int) -> tuple[int, int]:
    """Rows and columns of at most five, as even as can be."""
    rows = -(-count // 5)
    return rows, -(-count // rows)


def _draw_colors(
    page: Any, mesh: Any, used: Sequence[Any], spare: Sequence[Any]
) -> None:
    """Draws the colour bar, where a panel would be missing if there is such a place."""
    for axes in spare:
        axes.set_axis_off()
    if not spare:
        page.colorbar(mesh, ax=used, shrink=0.8, aspect=25, label="accuracy (%)")
        return
    bar = spare[0].inset_axes((0.05, 0.45, 0.9, 0.1))
    page.colorbar(mesh, cax=bar, orientation="horizontal", label="accuracy (%)")


def matrices(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws accuracy[i, j] of tasks already learnt, mean over seeds, per method.

    Args:
        title: the benchmark, in words.
        entries: a panel each, from the upper left; those that were hardly evaluated on
            the way are left out.

    Returns:
        A matplotlib figure, or None if none is left. The colour bar takes the place of
        a panel that would be missing in the last row.
    """
    from matplotlib.colors import Normalize

    entries = followed(entries)
    if not entries:
        return None
    rows, columns = _grid(len(entries))
    titles = [wrap(entry.title, 18) for entry in entries]
    title_in = 0.25 + 0.13 * max(text.count("\n") for text in titles)
    panel_in = (WIDTH_IN - 1.35) / max(columns, 3) - 0.15
    page = figure(0.68 + rows * (title_in + panel_in))
    panels = page.subplots(rows, columns, squeeze=False)
    means = [100 * entry.accuracy.mean(axis=0) for entry in entries]
    learnt = [m[np.tri(len(m)) > 0] for m in means]
    lowest, highest = (
        10 * round_(found(map(reach, learnt)) / 10)
        for round_, found, reach in (
            (np.floor, min, np.nanmin),
            (np.ceil, max, np.nanmax),
        )
    )
    norm = Normalize(lowest, highest)
    mesh, used = None, list(panels.flat[: len(entries)])
    for number, (axes, text, mean) in enumerate(zip(used, titles, means, strict=True)):
        mesh = draw_matrix(axes, mean, norm)
        axes.set_title(text)
        below = number + columns < len(entries)
        axes.tick_params(labelbottom=not below, labelleft=number % columns == 0)
    _draw_colors(page, mesh, used, list(panels.flat[len(entries) :]))
    page.supxlabel("task tested", fontsize=8)
    learnt_label = "number of tasks learnt"
    if columns < 3:  # in the middle, with the label beside them
        page.set_layout_engine("compressed")
        used[0].set_ylabel(learnt_label)
    else:
        page.supylabel(learnt_label, fontsize=8)
    page.suptitle(title, fontsize=9)
    return page
