"""Which hyper-parameters a method takes on a benchmark."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from experiments.config.benchmarks import BENCHMARKS, STREAMS, Benchmark
from experiments.config.official import OFFICIAL
from experiments.methods import METHODS
from experiments.schema.choices import Passes
from experiments.schema.fields import fields
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError


def _distance(one: Benchmark, other: Benchmark) -> tuple[bool, float]:
    """Tells how far apart two benchmarks are: image networks or not, then in sizes."""
    sizes = (
        (one.num_tasks, other.num_tasks),
        (one.rows_per_task, other.rows_per_task),
    )
    far = sum(abs(math.log(a / b)) for a, b in sizes if min(a, b) > 0)
    return bool(one.channels) != bool(other.channels), far


def taken_from(benchmark: str, method: str, passes: Passes = "single") -> str | None:
    """Names the benchmark whose presets a method takes on another that has none.

    It is the nearest one with the same kind of stream: a stream of a person's own kind
    is a split where tasks have classes of their own, else of any other kind. Online
    benchmarks are near to online ones only.

    Args:
        benchmark: name of a benchmark.
        method: name of a method.
        passes: one of ``PASSES``.

    Returns:
        The name, or None if the benchmark or the method has presets of its own.

    Raises:
        UserError: there is none of that kind.
    """
    own = METHODS[method].hyper if method in METHODS else None
    if own is not None or method in OFFICIAL.get((benchmark, passes), {}):
        return None
    having = [b for (b, p), m in OFFICIAL.items() if p == passes and method in m]
    asked = BENCHMARKS[benchmark]

    def fits(name: str) -> bool:
        stream = BENCHMARKS[name].stream
        if BENCHMARKS[name].is_online != asked.is_online:
            return False
        if asked.stream in {BENCHMARKS[b].stream for b, _ in OFFICIAL}:
            return stream == asked.stream
        return (stream in STREAMS) == (asked.classes_per_task is None)

    near = [name for name in having if fits(name)]
    if not near:
        raise UserError(
            f"no preset for method {method!r} on {benchmark!r} with {passes} pass; "
            f"there is one on: {', '.join(having) or 'no benchmark'}"
        )
    return min(near, key=lambda name: _distance(asked, BENCHMARKS[name]))


def _find(benchmark: str, method: str, passes: Passes) -> Hyperparameters:
    """Returns what a method is told on a benchmark unless a person says otherwise."""
    own = METHODS[method].hyper if method in METHODS else None
    if own is not None:
        return own
    name = taken_from(benchmark, method, passes) or benchmark
    return OFFICIAL[name, passes][method]


def has(method: str, preset: Hyperparameters, name: str) -> bool:
    """Tells whether a method has a hyper-parameter of a name.

    Args:
        method: key of ``METHODS``.
        preset: what it is told on a benchmark.
        name: of the hyper-parameter. A method has those that are its own, and of those
            that several methods have the ones that its preset sets.
    """
    is_shared = name in fields(Hyperparameters)
    own = not is_shared and name in fields(METHODS[method].told)
    return own or getattr(preset, name, None) is not None


def resolve(
    benchmark: str,
    methods: Sequence[str],
    overrides: dict[str, Any] | None = None,
    passes: Passes = "single",
) -> list[Hyperparameters]:
    """Looks presets up and applies the caller's overrides.

    Args:
        benchmark: name of a benchmark; one without presets takes those of another, see
            ``taken_from``.
        methods: names of methods.
        overrides: values by field name; a None is no override. Each applies to the
            methods that have such a hyper-parameter.
        passes: one of ``PASSES``.

    Returns:
        The resolved hyper-parameters of each method.

    Raises:
        UserError: no such preset, or none of the methods has such a hyper-parameter.
    """
    given = {k: v for k, v in (overrides or {}).items() if v is not None}
    presets = {method: _find(benchmark, method, passes) for method in methods}

    for name in given:
        if not any(has(method, presets[method], name) for method in methods):
            raise UserError(
                f"{name}: none of these methods has it: {', '.join(methods)}"
            )
    return [
        dataclasses.replace(
            preset, **{k: v for k, v in given.items() if has(method, preset, k)}
        )
        for method, preset in presets.items()
    ]
