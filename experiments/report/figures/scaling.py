"""How throughput grows with seeds and devices."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report.figures.common import LINES, figure

# Elsewhere a colour is a method's.
_GREYS = ("#000000", "#666666", "#9A9A9A", "#C0C0C0")
_MARKERS = "osD^v<"


def scaling(title: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Draws meta-updates per second over the number of seeds, a line per devices.

    Args:
        title: what was measured.
        rows: of the benchmark ``scaling``.

    Returns:
        A matplotlib figure.
    """
    page = figure(2.9)
    axes = page.subplots()
    for n, devices in enumerate(sorted({row["devices"] for row in rows})):
        part = sorted(
            (row["seeds"], row["meta_updates_per_s"])
            for row in rows
            if row["devices"] == devices
        )
        axes.plot(
            *zip(*part, strict=True),
            color=_GREYS[n % len(_GREYS)],
            marker=_MARKERS[n % len(_MARKERS)],
            linestyle=LINES[n % len(LINES)],
            linewidth=1.2,
            markersize=4,
            label=f"{devices} device" + ("s" if devices > 1 else ""),
        )
    seeds = sorted({row["seeds"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(seeds, [str(count) for count in seeds])
    axes.xaxis.set_minor_locator(_no_ticks())
    axes.set_ylim(0, 1.1 * max(row["meta_updates_per_s"] for row in rows))
    axes.set_xlabel("seeds side by side")
    axes.set_ylabel("meta-updates per second, all seeds")
    axes.legend(loc="lower right")
    page.suptitle(title, fontsize=9)
    return page


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()
