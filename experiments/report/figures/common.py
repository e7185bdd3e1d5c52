"""What all figures share: size, fonts, lines, and the run as a figure sees it."""

import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.report.published import Published
from experiments.support.styles import OTHER, STYLES, Style

DPI = 150
WIDTH_IN = 6.75
LINES = ("-", "--", ":", "-.")
RC = {
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


class Entry(NamedTuple):
    """One run as a figure shows it: its seeds that have a result, best RA first."""

    label: str
    method: str
    variant: int
    """0 for the first run of a method, 1 for the next."""
    accuracy: np.ndarray
    """[S, T, T] fractions."""
    retained_accuracy: np.ndarray
    """[S] percent."""
    backward_transfer_interference: np.ndarray
    """[S] percentage points."""
    published: tuple[Published, ...]
    measures: Mapping[str, np.ndarray] = {}
    """What was measured along the run, of the same seeds: ``probe_*``,
    ``step_size_quantiles``, ``task_alignment``, ``alignment_after``,
    ``anytime_accuracy``, ``anytime_after``."""
    leaves: tuple[str, ...] = ()
    """Names of the leaves that have step sizes."""
    gradient_evaluations: float | None = None
    """Per row of the stream, as ``methods.cost.Cost`` counts them."""

    @property
    def style(self) -> Style:
        """Colour and marker of the method."""
        return STYLES.get(self.method, OTHER)


def figure(height_in: float) -> Any:
    """Makes an empty matplotlib figure, ``WIDTH_IN`` wide."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")


def wrap(label: str, width: int = 24) -> str:
    """Breaks a label into lines."""
    if len(label) > width:  # a setting in brackets begins a line of its own
        label = label.replace(" (", "\n(").replace(" [", "\n[")
    return "\n".join(textwrap.fill(line, width) for line in label.split("\n"))


def task_ticks(num_tasks: int) -> list[int]:
    """Ticks from the first task to the last: all of few tasks, else about five."""
    if num_tasks <= 6:
        return list(range(1, num_tasks + 1))
    return sorted({1, *np.linspace(0, num_tasks, 5).round().astype(int)[1:].tolist()})
