"""Accuracy against what a method asks for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report.figures.common import Entry, figure, wrap

_DECADE = (1, 2, 5)
# Of the first run of a method, and of further ones.
_FILLS = ("full", "none", "left", "bottom", "top", "right")


def _ticks(low: float, high: float) -> list[float]:
    """Ones, twos and fives of every decade from about ``low`` to about ``high``."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [digit * 10.0**decade for decade in decades for digit in _DECADE]
    return [tick for tick in ticks if low / 1.3 <= tick <= 1.3 * high]


def compute(title: str, entries: Sequence[Entry]) -> Any | None:
    """Draws RA against gradient evaluations per row, mean and sd over seeds.

    Args:
        title: the benchmark.
        entries: its runs; those whose cost is not known are left out.

    Returns:
        A matplotlib figure, ``WIDTH_IN`` wide; None if all runs cost the same.
    """
    shown = [entry for entry in entries if entry.gradient_evaluations]
    amounts = [entry.gradient_evaluations or 0.0 for entry in shown]
    if len(set(amounts)) < 2:
        return None
    page = figure(
        max(3.0, 0.5 + 0.19 * sum(wrap(e.label).count("\n") + 1 for e in shown))
    )
    axes = page.subplots()
    for entry, amount in zip(shown, amounts, strict=True):
        values, style = entry.retained_accuracy, entry.style
        axes.errorbar(
            amount,
            values.mean(),
            yerr=values.std(ddof=1) if len(values) > 1 else None,
            color=style.color,
            marker=style.marker,
            fillstyle=_FILLS[entry.variant % len(_FILLS)],
            markersize=5,
            linestyle="none",
            elinewidth=0.9,
            capsize=2,
            label=wrap(entry.label),
        )
    axes.set_xscale("log")
    ticks = _ticks(min(amounts), max(amounts))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(min(amounts) / 1.4, 1.4 * max(amounts))
    axes.set_xlabel("gradient evaluations per row of the stream")
    axes.set_ylabel("retained accuracy RA (%)")
    axes.set_title(title)
    page.legend(loc="outside right center")
    return page
