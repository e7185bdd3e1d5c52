"""What a person asks for, in a file and on the command line, as configurations."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments import methods
from experiments.config import benchmarks, presets
from experiments.config.run_config import check_config
from experiments.config.settings import check_grid
from experiments.methods import kinds
from experiments.run_folder import FORMAT_VERSION
from experiments.schema.choices import Passes, Setting
from experiments.schema.fields import fields
from experiments.schema.hyperparameters import Hyperparameters
from experiments.schema.run import RunConfig
from experiments.support.errors import UserError
from experiments.support.suggestions import did_you_mean
from experiments.support.values import checked, read_yaml

DEFAULT_BENCHMARK = "digits-rotations"
DEFAULT_METHODS = ("lamaml", "cmaml", "er", "online")
DEFAULT_SEEDS = 5

_SIZES = {n: f.kind for n, f in fields(benchmarks.Benchmark).items() if n != "name"}
_DEFAULTS = {
    field.name: field.default
    for field in dataclasses.fields(RunConfig)
    if field.name not in ("benchmark", "method", "seeds", "hyper", "presets_from")
}
_WORDS = {
    "format_version": int,
    "benchmark": str,
    "method": str,
    "seeds": list[int],
    "first_seed": int,
    "presets_from": str,
}
_OTHERS = _WORDS | {name: fields(RunConfig)[name].kind for name in _DEFAULTS} | _SIZES


class Request(NamedTuple):
    """Runs on one benchmark."""

    benchmark: benchmarks.Benchmark
    hypers: tuple[tuple[str, Hyperparameters], ...]
    """Methods with their hyper-parameters."""
    seeds: tuple[int, ...]
    options: dict[str, Any]
    """Other fields of ``RunConfig``."""
    fits_source: bool
    """Whether a split has as many tasks as its data set gives, at most."""


def read_file(path: Path) -> dict[str, Any]:
    """Reads a configuration file: YAML, or the ``config.json`` of a run folder.

    Args:
        path: of a mapping with fields of ``RunConfig``, ``Benchmark`` and
            ``Hyperparameters``; ``benchmark`` and ``method`` are names or, for a
            sweep, lists of names, ``seeds`` is a list or a number of them, ``grid`` a
            mapping from hyper-parameters to lists.

    Returns:
        Its fields, of which null ones are left out.

    Raises:
        UserError: it cannot be read, a field is unknown, or a value of another type.
    """
    try:
        given = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(given, dict):
        raise UserError(f"{path}: expected fields with values, such as `method: er`")
    try:
        found = checked_fields(given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    version = found.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: has format_version {version}, this program reads {FORMAT_VERSION}"
        )
    return found


def checked_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Checks names and types of what was asked for.

    Args:
        given: as ``read_file`` finds it in a file.

    Returns:
        It, without null fields, and without ``presets_from``, which only says where
        values are from.

    Raises:
        UserError: a field is unknown, or a value of another type.
    """
    found = {n: _field(n, value) for n, value in given.items() if value is not None}
    found.pop("presets_from", None)
    return found


def _field(name: Any, value: Any) -> Any:
    if name == "grid":
        if not isinstance(value, dict):
            raise UserError("grid: expected hyper-parameters with lists of values")
        return {key: check_grid(key, each) for key, each in value.items()}
    known = _OTHERS | kinds()
    if name not in known:
        hint = did_you_mean(str(name), [*known, "grid"])
        raise UserError(f"unknown field {str(name)[:80]!r}{hint}")
    kind = known[name]
    if name in ("benchmark", "method") and isinstance(value, list):
        kind = list[str]
    elif name == "seeds" and not isinstance(value, list):
        kind = int
    return checked(name, kind, value)


def _seeds(given: Mapping[str, Any]) -> tuple[int, ...]:
    seeds, first = given.get("seeds", DEFAULT_SEEDS), given.get("first_seed")
    if isinstance(seeds, int) or first is not None:
        count = seeds if isinstance(seeds, int) else len(seeds)
        first = 0 if first is None else first
        if not 1 <= count <= 10_000 or not 0 <= first < 2**31 - count:
            raise UserError(
                "--seeds, --first-seed: expected 1 to 10000 seeds, none negative or "
                f"over 2**31 - 1, received {count} from {first}"
            )
        return tuple(range(first, first + count))
    if not 1 <= len(seeds) <= 10_000 or not all(0 <= s < 2**31 - 1 for s in seeds):
        raise UserError(
            "seeds: expected 1 to 10000 seeds, none negative or over 2**31 - 1"
        )
    if len(set(seeds)) < len(seeds):
        raise UserError("seeds: each seed once")
    return tuple(seeds)


def _names(value: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    names = default if value is None else (value,) if isinstance(value, str) else value
    if not names or len(set(names)) < len(names):
        raise UserError(f"method: each method once, received {', '.join(names)}")
    return tuple(names)


def make_request(given: Mapping[str, Any]) -> Request:
    """Completes what was asked for by the published values.

    Args:
        given: fields as ``read_file`` returns them; one benchmark, no ``grid``.

    Returns:
        The request, whose sizes and rates ``configs`` checks.

    Raises:
        UserError: names that there are none of, methods that do not fit the benchmark,
            or hyper-parameters that no method has.
    """
    name = given.get("benchmark", DEFAULT_BENCHMARK)
    if not isinstance(name, str):
        raise UserError("benchmark: several make a sweep")
    if "grid" in given:
        raise UserError("grid: makes a sweep, and this is one run of each method")
    benchmark = benchmarks.get_benchmark(name)
    if given.get("classes_per_task") and benchmark.classes_per_task is None:
        raise UserError(f"classes_per_task: the tasks of {name} share classes")
    sizes = {key: given[key] for key in _SIZES if key in given}
    benchmark = dataclasses.replace(benchmark, **sizes)
    usual = _DEFAULTS | {"setting": benchmark.usual_setting}
    options = {key: given.get(key, default) for key, default in usual.items()}
    names = _names(given.get("method"), DEFAULT_METHODS)
    for method in names:
        methods.check_method(method)
        methods.check_setting(
            method,
            task_aware=options["setting"] == "aware",
            own_classes=benchmark.classes_per_task is not None,
        )
    overrides = {key: given[key] for key in kinds() if key in given}
    resolved = presets.resolve(name, names, overrides, options["passes"])
    return Request(
        benchmark,
        tuple(zip(names, resolved, strict=True)),
        _seeds(given),
        options,
        "num_tasks" not in given,
    )


def configs(request: Request, num_classes: int | None = None) -> list[RunConfig]:
    """Makes the configuration of each method, and checks it.

    Args:
        request: from ``make_request``.
        num_classes: of the data set, once it is known.

    Returns:
        One configuration per method.

    Raises:
        UserError: a size or rate that is out of range.
    """
    benchmark, (_, passes) = request.benchmark, protocol(request)
    sources = [
        presets.taken_from(benchmark.name, name, passes) for name, _ in request.hypers
    ]
    if num_classes is not None and request.fits_source:
        benchmark = benchmarks.with_tasks_of(benchmark, num_classes)
    made = [
        RunConfig(
            benchmark,
            name,
            request.seeds,
            hyper,
            presets_from=source,
            **request.options,
        )
        for (name, hyper), source in zip(request.hypers, sources, strict=True)
    ]
    for config in made:
        check_config(config)
    return made


def protocol(request: Request) -> tuple[Setting, Passes]:
    """Returns the setting and the passes."""
    return request.options["setting"], request.options["passes"]


def run_name(request: Request) -> str:
    """Names the benchmark, and the passes and setting where they are not the usual."""
    setting, passes = protocol(request)
    other = [passes] if passes != _DEFAULTS["passes"] else []
    other += [setting] if setting != request.benchmark.usual_setting else []
    other += [f"blur-{request.benchmark.blur:g}"] if request.benchmark.blur else []
    return "-".join([request.benchmark.name, *other])


def grid_points(grid: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yields every combination of a grid's values, by hyper-parameter."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))
