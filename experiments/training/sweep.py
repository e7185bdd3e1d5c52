"""Grids of hyper-parameters, chosen between without ever seeing a test row or task."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config import presets, request
from experiments.config.request import Request
from experiments.config.run_config import RunConfig, shape_of
from experiments.methods import kinds
from experiments.support.errors import UserError
from experiments.training.storing import Part

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
        if name not in kinds() or presets.has(method, preset, name)
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
