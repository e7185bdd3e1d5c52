"""Values of hyper-parameters as they are written: NAME=VALUE, and grids."""

from collections.abc import Sequence
from typing import Any

from experiments.methods import kinds
from experiments.support.errors import UserError
from experiments.support.suggestions import did_you_mean
from experiments.support.values import checked, read_yaml


def parse(settings: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """Reads ``NAME=VALUE`` settings of hyper-parameters.

    Args:
        settings: such as ``["momentum=0.9"]``.
        option: what they were given to, for messages.

    Returns:
        Values by field name.

    Raises:
        UserError: no such hyper-parameter, one named twice, or a value of another type.
    """
    known = kinds()
    return {
        name: checked(name, known[name], value)
        for name, value in _named(settings, option).items()
    }


def parse_grid(settings: Sequence[str], option: str = "--grid") -> dict[str, list[Any]]:
    """Reads ``NAME=VALUE,VALUE,...`` settings of hyper-parameters.

    Args:
        settings: such as ``["momentum=0.5,0.9"]``.
        option: what they were given to, for messages.

    Returns:
        Lists of values by field name.

    Raises:
        UserError: as ``parse``, or a value given twice.
    """
    lists = [
        f"{setting.partition('=')[0]}=[{setting.partition('=')[2]}]"
        if "=" in setting and "[" not in setting
        else setting
        for setting in settings
    ]
    return {
        name: check_grid(name, values) for name, values in _named(lists, option).items()
    }


def check_grid(name: str, values: Any) -> list[Any]:
    """Checks the values that a hyper-parameter takes in turn.

    Args:
        name: of the hyper-parameter.
        values: a list from ``read_yaml``.

    Returns:
        It.

    Raises:
        UserError: it is no list of different values of the right type, or there is no
            such hyper-parameter.
    """
    known = kinds()
    if name not in known:
        names = f"expected one of {', '.join(known)}, "
        hint = did_you_mean(str(name), known)
        raise UserError(f"grid: {'' if hint else names}received {str(name)!r}{hint}")
    if not isinstance(values, list) or not values:
        raise UserError(f"{name}: expected a list of values, received {values!r}")
    found = [checked(name, known[name], value) for value in values]
    if None in found or len(set(found)) < len(found):
        raise UserError(f"{name}: expected different values, received {values}")
    return found


def _named(settings: Sequence[str], option: str) -> dict[str, Any]:
    names = list(kinds())
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in names:
            hint = "" if name in names else did_you_mean(name, names)
            known = "" if hint else f" with one of {', '.join(names)}"
            raise UserError(
                f"{option}: expected NAME=VALUE{known}, received {setting!r}{hint}"
            )
        if name in values:
            raise UserError(f"{option}: {name} is given twice")
        try:
            values[name] = read_yaml(text)
        except ValueError as error:
            raise UserError(f"{option}: {name}: {error}") from error
        if values[name] is None:
            raise UserError(f"{option}: {name} has no value")
    return values
