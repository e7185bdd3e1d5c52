"""The two pictures that the README opens with.

    python -m experiments.report.figures.front

Draws ``forgetting`` from committed run folders, and ``step-sizes`` from a stream of two
parameters that it learns on the spot, into ``experiments/results/front``.
"""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import run_folder
from experiments.report import figures
from experiments.report.entries import Entry, make_entries
from experiments.report.figures.accuracy import draw_matrix
from experiments.report.figures.common import figure
from experiments.report.figures.contest import (
    NEW,
    NEW_CURVATURE,
    NUM_UPDATES,
    OLD,
    OLD_CURVATURE,
    Learnt,
)
from experiments.support.styles import STYLES

RESULTS = Path(__file__).parents[2] / "results"


def forgetting(left: Entry, right: Entry) -> Any:
    """Draws the accuracy matrices of two runs on one stream side by side.

    Args:
        left: a run; its accuracies are [S, T, T] fractions.
        right: another one on the same stream.

    Returns:
        A matplotlib figure, ``WIDTH_IN`` wide.
    """
    from matplotlib.colors import Normalize

    page = figure(3.45)
    panels = page.subplots(1, 2, sharex=True, sharey=True)
    means = [100 * entry.accuracy.mean(axis=0) for entry in (left, right)]
    lowest = min(mean[np.tri(len(mean)) > 0].min() for mean in means)
    norm = Normalize(10 * np.floor(lowest / 10), 100)
    mesh = None
    for axes, entry, mean in zip(panels, (left, right), means, strict=True):
        mesh = draw_matrix(axes, mean, norm)
        axes.set_title(
            f"{entry.label}: {mean[-1].mean():.0f} % over all tasks at the end",
            fontsize=9,
        )
        axes.text(
            0.96,
            0.95,
            "not yet learnt",
            transform=axes.transAxes,
            ha="right",
            va="top",
            color="#8C8C8C",
        )
    bar = page.colorbar(mesh, ax=list(panels), shrink=0.86, aspect=25)
    bar.set_label("accuracy (%), mean of the seeds")
    page.supxlabel("task tested: each turns MNIST by an angle of its own", fontsize=8)
    panels[0].set_ylabel("number of tasks learnt")
    return page


def step_sizes(learnt: Learnt) -> Any:
    """Draws inner steps before and after their sizes were learnt, and the sizes."""
    page = figure(2.6)
    plane, sizes = page.subplots(1, 2, width_ratios=(1.25, 1))
    x, y = np.meshgrid(np.linspace(-1.5, 1.25, 120), np.linspace(-0.3, 1.5, 120))
    query_loss = sum(
        curvature[0] * (x - target[0]) ** 2 + curvature[1] * (y - target[1]) ** 2
        for target, curvature in ((OLD, OLD_CURVATURE), (NEW, NEW_CURVATURE))
    )
    plane.contour(x, y, query_loss, levels=12, colors="#C8C8C8", linewidths=0.6)
    plane.axvline(OLD[0], color="black", linewidth=0.9, linestyle=":")
    plane.text(OLD[0] - 0.04, 1.4, "best for\nthe old\nrows", ha="right", va="top")
    plane.plot(*NEW, marker="*", color="black", markersize=8)
    plane.text(NEW[0] - 0.07, NEW[1], "best for\nthe new rows", ha="right", va="center")
    for path, color, text, place, align in (
        (
            learnt.first,
            STYLES["online"].color,
            "initial\nstep sizes",
            (0.3, 0.3),
            "left",
        ),
        (
            learnt.last,
            STYLES["lamaml"].color,
            "learned\nstep sizes",
            (-0.42, 0.66),
            "left",
        ),
    ):
        plane.plot(*path.T, color=color, marker="o", markersize=3.5, linewidth=1.3)
        plane.text(*place, text, color=color, ha=align)
    plane.set_xlabel("first weight: old and new rows disagree")
    plane.set_ylabel("second weight: matters to\nthe new rows only")
    for k, (name, line) in enumerate((("first weight", "-"), ("second weight", "--"))):
        values, color = np.maximum(learnt.step_sizes[:, k], 0), STYLES["lamaml"].color
        sizes.plot(values, color=color, linestyle=line, linewidth=1.3)
        sizes.text(NUM_UPDATES, values[-1] + 0.012, name, color=color, ha="right")
    sizes.set_ylim(bottom=-0.01)
    sizes.set_xlabel("number of meta-updates")
    sizes.set_ylabel("step size")
    return page


def main() -> list[Path]:
    """Draws both pictures; returns their files."""
    from experiments.report.figures.two_weights import learn_two_step_sizes

    folders = (RESULTS / f"mnist-rotations/{name}" for name in ("online", "lamaml"))
    found = {
        entry.method: entry
        for entry in make_entries([run_folder.read(folder) for folder in folders])
    }
    out_dir = RESULTS / "front"
    run_folder.make_folder(out_dir)
    pair = found["online"], found["lamaml"]
    return [
        *figures.save(lambda: forgetting(*pair), out_dir / "forgetting"),
        *figures.save(
            lambda: step_sizes(learn_two_step_sizes()), out_dir / "step-sizes"
        ),
    ]


if __name__ == "__main__":
    for path in main():
        print(path)
