"""Hyper-parameters of a method that is a person's own, and the rates among any's."""

import dataclasses
import functools
import typing
from collections.abc import Collection, Mapping
from typing import Any

from experiments.schema.benchmark import Benchmark
from experiments.schema.fields import fields
from experiments.schema.hyperparameters import Hyperparameters
from experiments.schema.run import RunConfig
from experiments.support.errors import UserError
from experiments.support.values import checked

_OWN_KINDS = (bool, int, float, str)
_TAKEN = {
    *("format_version", "first_seed", "grid"),  # other words of configuration files
    *fields(Benchmark),
    *fields(RunConfig),
}


def with_own(
    values: Mapping[str, Any], others: Collection[type[Hyperparameters]] = ()
) -> Hyperparameters:
    """Makes the hyper-parameters of a person's own method.

    Args:
        values: by name. A name that ``Hyperparameters`` does not have becomes one of
            the method's own, of its value's type: bool, int, float or str. A float is
            an argument of the compiled program, so that the method must not compare it.
        others: what other methods are told. A name that one of them has is of the same
            type and range.

    Returns:
        The values, and the defaults of all others; one that is not here is an
        attribute besides.

    Raises:
        UserError: a name or a type that cannot be.

    >>> hyper = with_own({"learning_rate": 0.1, "temperature": 2.0})
    >>> hyper.temperature, hyper.batch_size
    (2.0, 10)
    """
    shared = typing.get_type_hints(Hyperparameters)
    known = {n: checked(n, shared[n], v) for n, v in values.items() if n in shared}
    own = []
    for name, value in values.items():
        if name in shared:
            continue
        if not name.isidentifier() or name in _TAKEN:
            raise UserError(f"hyper-parameter {name!r}: choose another name")
        if type(value) not in _OWN_KINDS:
            raise UserError(
                f"hyper-parameter {name!r}: expected a bool, int, float or str as its "
                f"default, received {value!r}"
            )
        hint = _hint_of(name, value, others)
        own.append((name, hint, dataclasses.field(default=value)))
    kind = dataclasses.make_dataclass(
        "OwnHyperparameters",
        own,
        bases=(Hyperparameters,),
        frozen=True,
        kw_only=True,
    )
    return kind(**known)


def _hint_of(name: str, value: Any, others: Collection[type[Hyperparameters]]) -> Any:
    """Finds the type, with its range, that another method gives to a name."""
    for other in others:
        if name in (known := fields(other)):
            kind = str if known[name].choices else known[name].kind
            if type(value) is not kind:
                raise UserError(
                    f"hyper-parameter {name!r}: is of type {kind.__name__} in another "
                    f"method, received {value!r}"
                )
            return typing.get_type_hints(other, include_extras=True)[name]
    return type(value)


@functools.cache
def _rates(kind: type[Hyperparameters]) -> tuple[str, ...]:
    return tuple(name for name, field in fields(kind).items() if field.kind is float)


def rates_of(hyper: Hyperparameters) -> dict[str, float]:
    """Returns the numbers that a method has, by name.

    A compiled program takes them as arguments, so that runs which differ in nothing
    else share it. All others decide shapes or code.
    """
    values = ((name, getattr(hyper, name)) for name in _rates(type(hyper)))
    return {name: value for name, value in values if value is not None}
