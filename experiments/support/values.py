"""Reads values that a person writes, as YAML, and checks their types."""

import reprlib
import types
import typing
from typing import Any, Literal

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from experiments.support.errors import UserError

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
}


def read_yaml(text: str) -> Any:
    """Reads YAML 1.2, of which JSON is a part, without ever making objects of it.

    Raises:
        ValueError: it is no YAML; the message is one line.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError("; ".join(line.strip() for line in lines)) from error


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
    if typing.get_origin(kind) in (list, tuple):
        return f"a list, each {_describe(typing.get_args(kind)[0])}"
    return _WORDS.get(kind, str(kind))


def checked(name: str, kind: Any, value: Any) -> Any:
    """Checks that a value is what a field takes.

    Args:
        name: of the field, for the message.
        kind: its type; a number is no string, and a whole number also a float.
        value: from ``read_yaml``.

    Returns:
        The value; a list where the type is a tuple becomes one.

    Raises:
        UserError: it is not.
    """
    try:
        given = value
        if typing.get_origin(kind) is tuple and isinstance(value, list):
            given = tuple(value)
        return pydantic.TypeAdapter(kind).validate_python(given, strict=True)
    except pydantic.ValidationError as error:
        raise UserError(
            f"{name}: expected {_describe(kind)}, received {reprlib.repr(value)}"
        ) from error
