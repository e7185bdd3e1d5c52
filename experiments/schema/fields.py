"""Fields of dataclasses: a type says what is allowed, the docstring what it is for.

``margin: Rate`` is a finite number that is not negative, ``memory: Literal["uniform",
"balanced"]`` one of two words, ``Annotated[int, UpTo("capacity")]`` a whole number from
1 to the field of that name.
"""

import ast
import functools
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from experiments.support.errors import UserError


class UpTo(NamedTuple):
    """A whole number from 1 to a limit."""

    limit: int | str
    """Or the name of the field that is the limit."""


class Within(NamedTuple):
    """A number of some kind."""

    words: str
    """What is expected, for messages."""
    holds: Callable[[Any], bool]


POSITIVE = Within("a number > 0", lambda x: x > 0)
Count = Annotated[int, UpTo(2**31 - 1)]
Rate = Annotated[float, Within("a finite rate >= 0", lambda x: 0 <= x < math.inf)]
Share = Annotated[float, Within("a share in [0, 1]", lambda x: 0 <= x <= 1)]
Positive = Annotated[float, POSITIVE]
Seed = Annotated[int, Within("a whole number >= 0", lambda x: x >= 0)]


class Field(NamedTuple):
    """One field of a dataclass."""

    kind: Any
    """Its type without ranges, of which None is no part."""
    ranges: tuple[UpTo | Within, ...] = ()
    choices: tuple[str, ...] = ()
    """All that it may be, if there are few."""


def _parsed(hint: Any) -> Field:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        known = [a for a in typing.get_args(hint) if a is not types.NoneType]
        if len(known) == 1:
            return _parsed(known[0])
    if typing.get_origin(hint) is Annotated:
        kind, *ranges = typing.get_args(hint)
        return Field(kind, tuple(ranges))
    if typing.get_origin(hint) is Literal:
        return Field(hint, choices=typing.get_args(hint))
    return Field(hint)


@functools.cache
def fields(kind: type) -> dict[str, Field]:
    """Returns the fields of a dataclass by name, those of its bases first."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: _parsed(hint) for name, hint in hints.items()}


def helps(kind: type) -> dict[str, str]:
    """Returns the first paragraph of the docstring of each field.

    Args:
        kind: a dataclass whose source is at hand.

    Returns:
        By name; without the double backticks, for a terminal.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        body = typing.cast(ast.ClassDef, node).body
        for field, doc in itertools.pairwise(body):
            match field, doc:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    first = inspect.cleandoc(text).partition("\n\n")[0]
                    found[name] = " ".join(first.split()).replace("``", "`")
    return found


def check(record: Any, limits: Mapping[str, Any]) -> None:
    """Checks every field of a dataclass that is not None.

    Args:
        record: its instance.
        limits: values, among them of the fields that are limits of others; a None is
            no limit.

    Raises:
        UserError: the first that is out of range, or none of the choices.
    """
    for name, field in fields(type(record)).items():
        if (value := getattr(record, name)) is None:
            continue
        for each in field.ranges:
            _check_range(name, value, each, limits)
        if field.choices and value not in field.choices:
            raise UserError(
                f"{name}: expected one of {', '.join(field.choices)}, "
                f"received {value!r}"
            )


def _check_range(
    name: str, value: Any, allowed: UpTo | Within, limits: Mapping[str, Any]
) -> None:
    if isinstance(allowed, Within):
        if not allowed.holds(value):
            raise UserError(f"{name}: expected {allowed.words}, received {value}")
        return
    limit, which = allowed.limit, ""
    if isinstance(limit, str):
        limit, which = limits[limit], f" ({limit})"
    if limit is not None and not 1 <= value <= limit:
        raise UserError(f"{name}: expected 1 to {limit}{which}, received {value}")
