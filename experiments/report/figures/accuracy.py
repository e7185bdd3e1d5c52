"""Accuracies: bars of RA and BTI, curves over tasks, and matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report.figures.common import (
    LINES,
    WIDTH_IN,
    Entry,
    figure,
    task_ticks,
    wrap,
)
from experiments.report.published import PAPER


def _draw_bars(axes: Any, entries: Sequence[Entry], values: Sequence[np.ndarray]):
    for place, (entry, value) in enumerate(zip(entries, values, strict=True)):
        if np.isnan(value).any():  # means nothing for this method
            continue
        mean, color = value.mean(), entry.style.color
        axes.barh(place, mean, height=0.76, color=color, alpha=0.5, linewidth=0)
        if len(value) > 1:
            axes.errorbar(
                mean,
                place - 0.22,
                xerr=value.std(ddof=1),
                color="black",
                linewidth=0.9,
                capsize=2,
                linestyle="none",
                label="mean ± sd",
            )
        axes.scatter(
            value,
            np.full(len(value), place),
            s=8,
            color=color,
            edgecolor="black",
            linewidth=0.5,
            zorder=3,
        )


def _draw_published(axes: Any, entries: Sequence[Entry], name: str) -> None:
    for place, entry in enumerate(entries):
        for row in entry.published:
            paper = row.source == PAPER
            axes.plot(
                getattr(row, name),
                place + (0.3 if paper else 0.18),
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
        title: the benchmark.
        entries: one bar each, from the top.

    Returns:
        A matplotlib figure, ``WIDTH_IN`` wide.
    """
    page = figure(1.15 + 0.34 * len(entries))
    left, right = page.subplots(1, 2, sharey=True)
    _draw_bars(left, entries, [e.retained_accuracy for e in entries])
    _draw_bars(right, entries, [e.backward_transfer_interference for e in entries])
    _draw_published(left, entries, "ra")
    _draw_published(right, entries, "bti")
    left.set_yticks(range(len(entries)), [wrap(e.label) for e in entries])
    left.set_ylim(len(entries) - 0.4, -0.6)
    left.set_xlim(left=0)
    left.set_xlabel("retained accuracy RA (%)")
    right.set_xlabel("backward transfer and interference\nBTI (percentage points)")
    right.axvline(0, color="black", linewidth=0.7)
    right.tick_params(left=False)
    right.spines.left.set_visible(False)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
    page.suptitle(title, fontsize=9)
    seed = left.scatter([], [], s=8, color="white", edgecolor="black", linewidth=0.5)
    handles, labels = left.get_legend_handles_labels()
    named = {"one seed": seed, **dict(zip(labels, handles, strict=True))}
    page.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=len(named)
    )
    return page


def evaluated(accuracy: np.ndarray) -> np.ndarray:
    """Returns the tasks i after which all tasks up to i were evaluated, for all seeds.

    Args:
        accuracy: [S, T, T], NaN where not evaluated.
    """
    known = np.isfinite(accuracy).all(axis=0)
    return np.array([i for i, row in enumerate(known) if row[: i + 1].all()], int)


def curves(title: str, entries: Sequence[Entry]) -> Any:
    """Draws the mean accuracy over the tasks learnt so far, with its sd over seeds."""
    page = figure(3.0)
    axes = page.subplots()
    for entry in entries:
        tasks = evaluated(entry.accuracy)
        means = 100 * np.stack(
            [entry.accuracy[:, i, : i + 1].mean(1) for i in tasks], 1
        )
        middle, color = means.mean(axis=0), entry.style.color
        axes.plot(
            tasks + 1,
            middle,
            color=color,
            marker=entry.style.marker,
            linestyle=LINES[entry.variant % len(LINES)],
            markerfacecolor="white" if entry.variant else color,
            markersize=3.5,
            linewidth=1.3,
            label=wrap(entry.label),
        )
        if len(means) > 1:
            sd = means.std(axis=0, ddof=1)
            axes.fill_between(
                tasks + 1, middle - sd, middle + sd, color=color, alpha=0.18, lw=0
            )
    axes.set_xlabel("number of tasks learnt")
    axes.set_ylabel("mean accuracy on the tasks learnt (%)")
    axes.set_xticks(task_ticks(entries[0].accuracy.shape[-1]))
    axes.set_title(title)
    page.legend(loc="outside right center", handlelength=2.4)
    return page


def draw_matrix(axes: Any, accuracy: np.ndarray, norm: Any) -> Any:
    """Draws [T, T] percent; a row reaches back to the evaluation before it."""
    num_tasks = accuracy.shape[-1]
    tasks = np.flatnonzero(np.isfinite(np.tril(accuracy)).all(axis=1))
    later = np.arange(num_tasks)[None, :] > tasks[:, None]
    edges = np.concatenate([[0], tasks + 1]) + 0.5
    mesh = axes.pcolormesh(
        np.arange(num_tasks + 1) + 0.5,
        edges,
        np.ma.masked_array(accuracy[tasks], later),
        cmap="viridis",
        norm=norm,
        rasterized=True,
    )
    axes.set_ylim(num_tasks + 0.5, 0.5)
    axes.set_aspect("equal")
    axes.set_xticks(task_ticks(num_tasks))
    axes.set_yticks(task_ticks(num_tasks))
    return mesh


def matrices(title: str, entries: Sequence[Entry]) -> Any:
    """Draws accuracy[i, j] of tasks already learnt, mean over seeds, per method."""
    from matplotlib.colors import Normalize

    rows = -(-len(entries) // 5)
    columns = -(-len(entries) // rows)
    titles = [wrap(entry.label, 18) for entry in entries]
    title_in = 0.25 + 0.13 * max(text.count("\n") for text in titles)
    panel_in = (WIDTH_IN - 1.35) / max(columns, 3) - 0.15
    page = figure(0.68 + rows * (title_in + panel_in))
    panels = page.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    means = [100 * entry.accuracy.mean(axis=0) for entry in entries]
    lowest = min(np.nanmin(np.where(np.tri(len(m)) > 0, m, np.nan)) for m in means)
    norm = Normalize(10 * np.floor(lowest / 10), 100)
    mesh = None
    for axes in panels.flat[len(entries) :]:
        axes.remove()
    for axes, text, mean in zip(panels.flat, titles, means, strict=False):
        mesh = draw_matrix(axes, mean, norm)
        axes.set_title(text)
    used = list(panels.flat[: len(entries)])
    page.colorbar(mesh, ax=used, label="accuracy (%)", shrink=0.8, aspect=25)
    page.supxlabel("task evaluated", fontsize=8)
    page.supylabel("number of tasks learnt", fontsize=8)
    page.suptitle(title, fontsize=9)
    return page
