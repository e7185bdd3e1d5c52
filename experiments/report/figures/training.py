"""What happens along a run: fast weights, step sizes, alignment of gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report import wording
from experiments.report.entries import Entry
from experiments.report.figures.common import (
    Label,
    band,
    figure,
    ink,
    label_ends,
    task_ticks,
    wrap,
)

_MOST_LEAVES = 8


def _probe_panel(axes: Any, entry: Entry) -> None:
    updates, tasks = entry.run.arrays["probe_updates"], entry.run.arrays["probe_tasks"]
    for end in updates[:-1][np.diff(tasks) > 0]:
        axes.axvline(end, color="0.8", linewidth=0.7, zorder=0)
    for name, style in (("slow", "-"), ("fast", "--")):
        values = 100 * np.asarray(entry.measure(f"probe_{name}"))
        band(axes, updates, values, entry, linestyle=style, marker="")
    axes.set_title(wrap(entry.title, 40), color=ink(entry.style.color))


def probes(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws the accuracy at slow and fast weights through the first tasks.

    Args:
        title: the benchmark, in words.
        entries: its runs; those without probes are left out.

    Returns:
        A matplotlib figure, a panel per run, or None if no run has probes.
    """
    from matplotlib.lines import Line2D

    entries = [entry for entry in entries if entry.measure("probe_slow") is not None]
    if not entries:
        return None
    columns = 2 if len(entries) % 2 == 0 else 1
    rows = len(entries) // columns
    page = figure(0.95 + (1.8 if columns == 2 else 1.3) * rows)
    panels = page.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, entry in zip(panels.flat, entries, strict=True):
        _probe_panel(axes, entry)
    handles = [
        Line2D([], [], color="0.3", linestyle="-", label="slow weights"),
        Line2D([], [], color="0.3", linestyle="--", label="fast weights"),
        Line2D([], [], color="0.8", linewidth=0.7, label="end of a task"),
    ]
    page.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    for axes in panels[-1]:
        axes.set_xlabel("number of meta-updates")
    page.supylabel("mean accuracy on the tasks seen (%)", fontsize=8)
    page.suptitle(f"{title}: before and after the inner steps", fontsize=9)
    return page


def shown_leaves(leaves: Sequence[str]) -> list[int]:
    """Every leaf if there are few, else weights, from the first layer to the last.

    Weights come before biases, so that those of one kind stand side by side, and dense
    layers after blocks and convolutions, which they follow in a network, not by name.
    """
    is_bias = [leaf.endswith(("bias", "scale")) for leaf in leaves]
    weights = [n for n, bias in enumerate(is_bias) if not bias]
    weights.sort(key=lambda n: leaves[n].startswith("Dense_"))
    if len(leaves) <= _MOST_LEAVES - 2:
        return weights + [n for n, bias in enumerate(is_bias) if bias]
    if len(weights) > _MOST_LEAVES:
        spaced = np.linspace(0, len(weights) - 1, _MOST_LEAVES).round().astype(int)
        weights = [weights[n] for n in spaced]
    return weights


def _step_size_grid(part: Any, entries: Sequence[Entry]) -> None:
    """A row per run and a column per leaf; all runs have the same leaves."""
    leaves = entries[0].leaves
    shown = shown_leaves(leaves)
    titles = [text.replace(", ", ",\n") for text in wording.leaf_titles(leaves)]
    panels = part.subplots(
        len(entries), len(shown), sharex=True, sharey=True, squeeze=False
    )
    for row, entry in zip(panels, entries, strict=True):
        quantiles = np.asarray(entry.measure("step_size_quantiles")).mean(axis=0)
        tasks, color = np.arange(len(quantiles)), entry.style.color
        for axes, leaf in zip(row, shown, strict=True):
            low, quarter, median, half, high = quantiles[:, leaf].T
            axes.axhline(0, color="black", linewidth=0.5)
            axes.fill_between(tasks, low, high, color=color, alpha=0.18, lw=0)
            axes.fill_between(tasks, quarter, half, color=color, alpha=0.4, lw=0)
            axes.plot(tasks, median, color=color, linewidth=1.1)
        row[0].set_ylabel(wrap(entry.title, 14), color=ink(color), fontsize=7.5)
    for axes, leaf in zip(panels[0], shown, strict=True):
        axes.set_title(wrap(titles[leaf], 15), fontsize=7.5 if len(shown) < 7 else 6.5)
    num_tasks = entries[0].accuracy.shape[-1]
    panels[0, 0].set_xticks([0, num_tasks])


def step_sizes(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws the step sizes of each leaf over the tasks, mean over seeds.

    Args:
        title: the benchmark, in words.
        entries: its runs; shown are those whose step sizes change.

    Returns:
        A matplotlib figure, a row of panels per run, or None if there is nothing to
        show. Bands hold 50 and 90 percent of a leaf's step sizes.
    """
    quantiles = [entry.measure("step_size_quantiles") for entry in entries]
    groups: dict[tuple[str, ...], list[Entry]] = {}  # of one network and one grain
    for entry, each in zip(entries, quantiles, strict=True):
        if each is not None and np.ptp(each) > 0:
            groups.setdefault(entry.leaves, []).append(entry)
    if not groups:
        return None
    heights = [0.45 + 0.85 * len(part) for part in groups.values()]
    page = figure(0.7 + sum(heights))
    parts = page.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)
    for part, group in zip(parts[:, 0], groups.values(), strict=True):
        _step_size_grid(part, group)
    page.supxlabel("number of tasks learnt", fontsize=8)
    page.supylabel("step size", fontsize=8)
    page.suptitle(
        f"{title}: median, 50 % and 90 % of the learned step sizes", fontsize=9
    )
    return page


def _cosines(entry: Entry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tasks learnt [E], mean cosine of all pairs and of the newest with the older."""
    matrix = np.asarray(entry.measure("task_alignment"))
    after = entry.run.arrays["alignment_after"]
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
        title: the benchmark, in words.
        entries: its runs; those without alignment, or of one task, are left out.

    Returns:
        A matplotlib figure with a panel for all pairs of learnt tasks and one for the
        newest with the older ones, or None if no run has the cosines.
    """
    entries = [
        entry
        for entry in entries
        if "task_alignment" in entry.run.arrays
        and entry.run.arrays["alignment_after"].max() >= 2
    ]
    if not entries:
        return None
    height = 2.7
    page = figure(height)
    panels = page.subplots(1, 2, sharex=True, sharey=True)
    found = [_cosines(entry) for entry in entries]
    for n, axes in enumerate(panels, start=1):
        for entry, cosines in zip(entries, found, strict=True):
            band(axes, cosines[0], cosines[n], entry)
        axes.axhline(0, color="black", linewidth=0.7, zorder=0)
    for n, axes in enumerate(panels, start=1):
        ends = [float(cosines[n][:, -1].mean()) for cosines in found]
        labels = [
            Label(wrap(entry.title), end, entry.style.color)
            for entry, end in zip(entries, ends, strict=True)
        ]
        label_ends(axes, labels, height - 0.9)
    names = ("all pairs of learnt tasks", "newest task with the older ones")
    for axes, name in zip(panels, names, strict=True):
        axes.set_title(name)
        axes.set_xticks(task_ticks(entries[0].accuracy.shape[-1]))
    panels[0].set_ylabel("mean cosine between gradients")
    page.supxlabel("number of tasks learnt", fontsize=8)
    page.suptitle(title, fontsize=9)
    return page
