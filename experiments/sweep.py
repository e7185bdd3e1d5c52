"""Grids of hyper-parameters, chosen between without ever seeing a test row or task."""

import functools
import hashlib
import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from experiments import naming, request, run_folder, tables
from experiments.config import RunConfig, shape_of
from experiments.errors import UserError
from experiments.hyperparameters import kinds
from experiments.request import Request
from experiments.rows import Row, make_rows
from experiments.session import Part

_LONGEST_NAME = 150


class Point(NamedTuple):
    """One method on one benchmark with one choice of hyper-parameters."""

    asked: Request
    folder: Path
    """Below that of the sweep."""


def _name(values: Mapping[str, Any]) -> str:
    """Names a choice of hyper-parameters as a folder."""
    name = ",".join(f"{key}={value}" for key, value in values.items()) or "presets"
    if len(name) > _LONGEST_NAME:
        return hashlib.sha256(name.encode()).hexdigest()[:20]
    return name.replace("/", "_")


def plan(given: Mapping[str, Any]) -> list[Point]:
    """Lists the points of a sweep.

    Each is evaluated on ``"validation"``: on training rows that are held out, of tasks
    other than those of the test.

    Args:
        given: fields as ``request.read_file`` returns them: several benchmarks and
            methods, and a ``grid``. A method takes the part of the grid that it has
            hyper-parameters for.

    Returns:
        The points, in the order of benchmarks, methods and the grid's values.

    Raises:
        UserError: no grid, a name that is unknown, or a hyper-parameter that no method
            has.
    """
    given = dict(given)
    grid = given.pop("grid", {})
    if not grid:
        raise UserError(
            "a sweep tries the values of a grid, and none was given: add for example "
            "--grid step_size_init=0.05,0.1 --grid capacity=100,200, or a `grid` in "
            "the file of --config; to train with the published values, use `run`"
        )
    for name in grid:
        if name in given:
            raise UserError(f"{name}: is both in the grid and outside of it")
    chosen = given.pop("benchmark", request.DEFAULT_BENCHMARK)
    names = [chosen] if isinstance(chosen, str) else chosen
    wanted = given.pop("method", list(request.DEFAULT_METHODS))
    methods = [wanted] if isinstance(wanted, str) else wanted
    if len(set(names)) < len(names) or len(set(methods)) < len(methods):
        raise UserError("a sweep takes each benchmark and each method once")
    used: set[str] = set()
    points = []
    for benchmark, method in itertools.product(names, methods):
        fields = {
            **_applicable(given, benchmark, method),
            "benchmark": benchmark,
            "method": method,
            "evaluate_on": "validation",
        }
        own = _applicable(grid, benchmark, method, given)
        used |= own.keys()
        for values in request.grid_points(own):
            folder = Path(benchmark) / method / _name(values)
            points.append(Point(request.make_request(fields | values), folder))
    if unused := grid.keys() - used:
        raise UserError(
            f"{', '.join(sorted(unused))}: none of these methods has it: "
            f"{', '.join(methods)}"
        )
    return points


def _applicable(
    fields: Mapping[str, Any],
    benchmark: str,
    method: str,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Leaves out the hyper-parameters that a method does not have."""
    options = fields if options is None else options
    asked = {"benchmark": benchmark, "method": method}
    asked |= {key: options[key] for key in ("setting", "passes") if key in options}
    ((_, preset),) = request.make_request(asked).hypers
    return {
        name: value
        for name, value in fields.items()
        if name not in kinds() or getattr(preset, name, None) is not None
    }


def groups(parts: Sequence[Part], at_a_time: int | None) -> Iterator[list[Part]]:
    """Puts together what can share a compiled program.

    Args:
        parts: of one benchmark.
        at_a_time: of one group at most; all if None.

    Yields:
        Lists of them.
    """
    by_shape: dict[RunConfig, list[Part]] = {}
    for part in parts:
        by_shape.setdefault(shape_of(part.config), []).append(part)
    for same in by_shape.values():
        size = at_a_time or len(same)
        for start in range(0, len(same), size):
            yield same[start : start + size]


def leaderboard(
    folders: Sequence[Path],
    out: Path,
    console: Console,
    plugins: Sequence[str] = (),
) -> None:
    """Writes and prints the points of each benchmark by RA, best first.

    ``leaderboard.md`` and ``leaderboard.csv`` hold all; ``best.json`` in the folder of
    a method is its best point, for ``run --config``.

    Args:
        folders: of the runs.
        out: folder of the sweep.
        console: where the tables are printed.
        plugins: what the next command needs, too.

    Raises:
        RunFolderError: no run has a result, or a file cannot be written.
    """
    runs, skipped = [], []
    for folder in folders:
        try:
            runs.append(run_folder.read(folder))
        except run_folder.RunFolderError as error:
            skipped.append(str(error))
    if not runs:
        raise run_folder.RunFolderError("no run to compare: " + "; ".join(skipped))
    rows = make_rows(runs)
    text = tables.markdown(rows, skipped)
    run_folder.write_file(out / "leaderboard.md", text.encode())
    values = tables.comma_separated(rows)
    run_folder.write_file(out / "leaderboard.csv", values.encode())
    tables.show(rows, skipped, console)
    say = functools.partial(console.print, soft_wrap=True, markup=False)
    say(f"all points are ranked in {out / 'leaderboard.md'} and .csv")
    seen = set()
    for row in rows:  # the best first
        parent = row.run.folder.parent
        if parent not in seen:
            seen.add(parent)
            best = json.dumps(_best(row), indent=2)
            path = parent / "best.json"
            run_folder.write_file(path, f"{best}\n".encode())
            say(f"the best of {row.run.config['method']}, on test tasks:")
            command = [*naming.command(), "run", "--config", str(path)]
            command += [word for each in plugins for word in ("--plugin", each)]
            say(f"  {shlex.join(command)}")


def _best(row: Row) -> dict[str, Any]:
    """Everything that decides a run's numbers, but that it is for validation."""
    config = dict(row.run.config)
    del config["evaluate_on"]
    return config
