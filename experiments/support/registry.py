"""Adds what is a person's own to the benchmarks, methods and networks that are here."""

import re
from typing import TypeVar

from experiments.support.errors import UserError

T = TypeVar("T")
_NAME = re.compile(r"\w[\w.-]*")  # what ``run_folder.reading`` takes
_OWN: dict[str, set[str]] = {}


def add(known: dict[str, T], kind: str, name: str, value: T) -> None:
    """Adds a person's own value under a name.

    One that the person added before is replaced, so that a cell of a notebook can be
    run again.

    Args:
        known: what there is, changed in place.
        kind: what it is, such as ``"method"``.
        name: for the command line and for folders.
        value: what is known by it from now on.

    Raises:
        UserError: no such name can be, or it is that of one of this project's own.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{kind}: expected a name of letters, digits, '_', '-' and '.', received "
            f"{name!r}"
        )
    own = _OWN.setdefault(kind, set())
    if name in known and name not in own:
        raise UserError(f"{kind} {name!r}: there is one of that name; choose another")
    known[name] = value
    own.add(name)
