"""What happens along a run: anytime accuracy, fast weights, step sizes, alignment."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report.figures.common import LINES, Entry, figure, task_ticks, wrap
from experiments.support.styles import MIXED


def _band(axes: Any, x: np.ndarray, values: np.ndarray, **line: Any) -> None:
    """Draws the mean over seeds of [S, N] and a band of one sd."""
    mean = values.mean(axis=0)
    axes.plot(x, mean, **line)
    if len(values) > 1:
        sd = values.std(axis=0, ddof=1)
        axes.fill_between(
            x, mean - sd, mean + sd, color=line["color"], alpha=0.15, lw=0
        )


def anytime(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws the accuracy on all classes seen so far, along the stream.

    Args:
        title: the benchmark.
        entries: its runs; those that were not evaluated within tasks are left out.

    Returns:
        A matplotlib figure, mean over seeds and a band of one sd, or None if no run was
        evaluated within tasks. A method that sees all tasks mixed is a level line, its
        accuracy at the end.
    """
    entries = [entry for entry in entries if "anytime_accuracy" in entry.measures]
    if not entries:
        return None
    page = figure(3.2)
    axes = page.subplots()
    num_tasks = entries[0].accuracy.shape[-1]
    for end in range(1, num_tasks):
        axes.axvline(end, color="0.9", linewidth=0.7, zorder=0)
    for entry in entries:
        if entry.method in MIXED:
            axes.axhline(
                entry.retained_accuracy.mean(),
                color=entry.style.color,
                linestyle="--",
                linewidth=1.0,
                label=wrap(f"{entry.label}, at the end"),
            )
            continue
        accuracy, after = (
            entry.measures[f"anytime_{name}"] for name in ("accuracy", "after")
        )
        curve = [accuracy[:, t, :, : t + 1].mean(axis=2) for t in range(num_tasks)]
        x = [t + after / after[-1] for t in range(num_tasks)]
        _band(
            axes,
            np.concatenate(x),
            100 * np.concatenate(curve, axis=1),
            color=entry.style.color,
            linestyle=LINES[entry.variant % len(LINES)],
            marker=entry.style.marker,
            markevery=len(after),
            markersize=3,
            linewidth=1.0,
            label=wrap(entry.label),
        )
    axes.set_xticks(task_ticks(num_tasks))
    axes.set_xlabel("tasks shown")
    axes.set_ylabel("accuracy on the classes seen (%)")
    axes.set_ylim(bottom=0)
    page.legend(loc="outside right center")
    page.suptitle(f"{title}: anytime accuracy", fontsize=9)
    return page


def probes(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws the accuracy at slow and fast weights through the first tasks.

    Args:
        title: the benchmark.
        entries: its runs; those without probes are left out.

    Returns:
        A matplotlib figure, a panel per run, or None if no run has probes.
    """
    entries = [entry for entry in entries if "probe_slow" in entry.measures]
    if not entries:
        return None
    columns = min(len(entries), 2)
    rows = -(-len(entries) // columns)
    page = figure(0.7 + 2.0 * rows)
    panels = page.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    if len(entries) % columns:
        panels[-1, 1].remove()
        panels[-2, 1].tick_params(labelbottom=True)
    for axes, entry in zip(panels.flat, entries, strict=False):
        updates, tasks = (entry.measures[f"probe_{n}"] for n in ("updates", "tasks"))
        for end in updates[:-1][np.diff(tasks) > 0]:
            axes.axvline(end, color="0.8", linewidth=0.7, zorder=0)
        for name, style in (("slow", "-"), ("fast", "--")):
            _band(
                axes,
                updates,
                100 * entry.measures[f"probe_{name}"],
                color=entry.style.color,
                linestyle=style,
                linewidth=1.2,
                label=f"{name} weights",
            )
        axes.set_title(wrap(entry.label, 40))
        axes.legend(loc="lower right")
    page.supxlabel("meta-updates", fontsize=8)
    page.supylabel("mean accuracy on the tasks seen (%)", fontsize=8)
    page.suptitle(
        f"{title}: before (slow) and after (fast) the inner steps", fontsize=9
    )
    return page


def _shown_leaves(leaves: Sequence[str]) -> list[int]:
    """Every leaf if there are few, else the kernels."""
    if len(leaves) <= 8:
        return list(range(len(leaves)))
    return [n for n, leaf in enumerate(leaves) if not leaf.endswith(("bias", "scale"))]


def step_sizes(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws the step sizes of each leaf over the tasks, mean over seeds.

    Args:
        title: the benchmark.
        entries: its runs; shown are those whose step sizes change.

    Returns:
        A matplotlib figure, a row of panels per run, or None if there is nothing to
        show. Bands hold 50 and 90 percent of a leaf's step sizes.
    """
    name = "step_size_quantiles"
    entries = [
        e for e in entries if name in e.measures and np.ptp(e.measures[name]) > 0
    ]
    if not entries:
        return None
    # Runs with step sizes of another grain have other leaves.
    most = max(len(_shown_leaves(entry.leaves)) for entry in entries)
    columns = 3 if most in (3, 5, 6) else min(most, 4)
    blocks = -(-most // columns)
    page = figure(0.6 + 1.45 * blocks * len(entries))
    parts = page.subfigures(len(entries), 1, squeeze=False)[:, 0]
    for part, entry in zip(parts, entries, strict=True):
        panels = part.subplots(blocks, columns, sharex=True, sharey=True, squeeze=False)
        quantiles = entry.measures[name].mean(axis=0)
        tasks = np.arange(len(quantiles))
        shown = _shown_leaves(entry.leaves)
        for axes in panels.flat[len(shown) :]:
            axes.remove()
        for axes, leaf in zip(panels.flat, shown, strict=False):
            low, quarter, median, half, high = quantiles[:, leaf].T
            color = entry.style.color
            axes.fill_between(tasks, low, high, color=color, alpha=0.15, lw=0)
            axes.fill_between(tasks, quarter, half, color=color, alpha=0.35, lw=0)
            axes.plot(tasks, median, color=color, linewidth=1.2)
            axes.axhline(0, color="black", linewidth=0.6)
            axes.set_title(entry.leaves[leaf])
        part.suptitle(entry.label, fontsize=8.5)
        part.supylabel("step size", fontsize=8)
        part.supxlabel("number of tasks learnt", fontsize=8)
    page.suptitle(f"{title}: median, 50 % and 90 % of the step sizes", fontsize=9)
    return page


def _cosines(entry: Entry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tasks learnt [E], mean cosine of all pairs and of the newest with the older."""
    matrix, after = (entry.measures[n] for n in ("task_alignment", "alignment_after"))
    keep = np.flatnonzero(after >= 2)
    pairs, newest = [], []
    for index in keep:
        count = after[index]
        block = matrix[:, index, :count, :count]
        upper = np.triu_indices(count, 1)
        pairs.append(block[:, upper[0], upper[1]].mean(axis=1))
        newest.append(block[:, count - 1, : count - 1].mean(axis=1))
    return after[keep], np.stack(pairs, axis=1), np.stack(newest, axis=1)


def alignment(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws the mean cosine between the gradients of the tasks' losses.

    Args:
        title: the benchmark.
        entries: its runs; those without alignment, or of one task, are left out.

    Returns:
        A matplotlib figure with a panel for all pairs of learnt tasks and one for the
        newest with the older ones, or None if no run has the cosines.
    """
    entries = [
        entry
        for entry in entries
        if "task_alignment" in entry.measures
        and entry.measures["alignment_after"].max() >= 2
    ]
    if not entries:
        return None
    page = figure(2.9)
    panels = page.subplots(1, 2, sharey=True)
    for entry in entries:
        after, *values = _cosines(entry)
        for axes, value in zip(panels, values, strict=True):
            _band(
                axes,
                after,
                value,
                color=entry.style.color,
                marker=entry.style.marker,
                markersize=3,
                linewidth=1.2,
                label=wrap(entry.label),
            )
    num_tasks = entries[0].accuracy.shape[-1]
    names = ("all pairs of learnt tasks", "newest task with the older ones")
    for axes, name in zip(panels, names, strict=True):
        axes.axhline(0, color="black", linewidth=0.7)
        axes.set_title(name)
        axes.set_xticks(task_ticks(num_tasks))
        axes.set_xlabel("number of tasks learnt")
    panels[0].set_ylabel("mean cosine between gradients")
    handles, labels = panels[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside right center")
    page.suptitle(title, fontsize=9)
    return page
