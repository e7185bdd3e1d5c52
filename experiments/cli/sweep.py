"""The command ``sweep``."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.cli import options, starting, terminal
from experiments.support import stopping

if TYPE_CHECKING:  # jax is imported once devices are chosen
    from experiments.training.sweep import Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepWords(options.Words):
    """What a sweep is asked for by words that are no field of a configuration."""

    benchmark: Annotated[list[str] | None, typer.Option("--benchmark", "-b")] = None
    """Name from `list`; repeat it for several [default: digits-rotations]"""
    grid: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE,...")] = None
    """Values of a hyper-parameter that `list` shows; repeat it for several, of which
    every combination is tried."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepDoing(options.Doing):
    """Where and how ``sweep`` works."""

    out: Path = Path("sweeps")
    """Folder of the runs and tables."""
    at_a_time: Annotated[int | None, typer.Option(min=1)] = None
    """Points trained side by side at most [default: all that share a compiled
    program]"""


@options.takes(
    [
        *options.own_options(SweepWords),
        *options.protocol_options(but=("probes", "alignment", "linear_probe")),
    ],
    SweepDoing,
    options.size_options(but=("classes_per_task", "eval_every")),
)
def sweep(context: typer.Context, given: dict[str, Any], doing: SweepDoing) -> None:
    """Try grids of hyper-parameters on validation tasks, and rank them.

    Tasks are drawn anew and evaluated on a tenth of the training rows that is held out:
    no test row or test task is seen. Points that differ in numbers only (learning
    rates, clips, shares) are trained side by side in one compiled program. A sweep that
    was interrupted goes on by the same command. Each method's best point is written to
    best.json, for `run --config`.
    """
    starting.load_plugins(doing.plugin, doing.devices)
    from experiments.config import request
    from experiments.data import sources
    from experiments.report.leaderboard import leaderboard
    from experiments.training import launch

    points = _points(given, doing)
    planned = []
    for point in points:
        planned += request.configs(point.asked)
        sources.check_source(point.asked.benchmark.source, doing.data_dir)
    folders = [doing.out / point.folder for point in points]
    by_method = list(dict.fromkeys(folder.parent for folder in folders))
    held = context.with_resource(contextlib.ExitStack())
    hearing = context.with_resource(contextlib.ExitStack())
    stop = hearing.enter_context(stopping.requests(terminal.tell))
    launch.take_folders(held, folders, doing.fresh, by_method, terminal.tell)
    starting.start_jax(doing.devices, doing.compile_cache)
    launch.tell_presets(planned, terminal.tell)
    diverged = {}
    for name in dict.fromkeys(point.asked.benchmark.name for point in points):
        stop.check(f"the points on {name} had not begun")
        own = [point for point in points if point.asked.benchmark.name == name]
        diverged |= _train(name, own, doing)
    stop.check("every point is complete; the leaderboard is not made yet")
    hearing.close()
    terminal.tell_diverged(diverged)
    leaderboard(folders, doing.out, terminal.console, doing.plugin or [])


def _points(given: dict[str, Any], doing: SweepDoing) -> "list[Point]":
    """Puts together what the file says, and before it what options do."""
    from experiments.config import request, settings
    from experiments.training import sweep as sweeping

    stored = {} if doing.config is None else request.read_file(doing.config)
    grid = stored.get("grid", {}) | settings.parse_grid(given.pop("grid", []))
    for name in ("benchmark", "method"):
        named = terminal.words(given.pop(name, None))
        given |= {} if named is None else {name: named}
    given |= settings.parse(doing.settings or []) | {"grid": grid}
    return sweeping.plan(stored | given)


def _train(
    name: str, points: "Sequence[Point]", doing: SweepDoing
) -> dict[Path, list[int]]:
    """Trains the points on a benchmark; returns diverged seeds, by folder."""
    from experiments.config import request
    from experiments.data import sources
    from experiments.training import launch, placement, sessions
    from experiments.training import sweep as sweeping
    from experiments.training.storing import Part

    source = sources.load_source(points[0].asked.benchmark.source, doing.data_dir)
    parts = [
        Part(config, doing.out / point.folder)
        for point in points
        for config in request.configs(point.asked, source.num_classes)
    ]
    groups = list(sweeping.groups(parts, doing.at_a_time))
    todo = launch.incomplete(groups, terminal.console)
    terminal.console.print(
        f"[bold]{name}[/]: {len(parts)} points; results in {doing.out}"
    )
    watch = sessions.Watch(terminal.console, doing.checkpoint_every)
    return sessions.run_groups(todo, source, placement.make_mesh(doing.devices), watch)
