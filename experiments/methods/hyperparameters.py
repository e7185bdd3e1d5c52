"""What a method may be told."""

import dataclasses
import functools
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.support.errors import UserError
from experiments.support.suggestions import did_you_mean
from experiments.support.values import checked, read_yaml


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """What a method may be told; None where a method has no such quantity."""

    batch_size: int = 10
    """Rows per incoming batch."""
    glances: int = 5
    """Updates per incoming batch."""
    epochs: int = 1
    """Passes over each task."""
    capacity: int | None = None
    """Rows of the reservoir."""
    replay_size: int | None = None
    """Rows replayed per update."""
    acceptance: str | None = None
    """The reservoir's rule, exact or published."""
    inner_steps: int | None = None
    """Inner steps K per meta-update."""
    step_size_init: float | None = None
    """Initial step size of every parameter."""
    step_size_learning_rate: float | None = None
    """Learning rate of the step sizes (eta)."""
    learning_rate: float | None = None
    """Learning rate of the (slow) weights."""
    max_grad_norm: float = 2.0
    """Largest global norm of a gradient."""
    initializer: str = "kaiming"
    """Distribution of the initial weights, kaiming or xavier."""
    first_order: bool | None = None
    """Whether inner gradients are held constant."""
    objective: str | None = None
    """Query losses that make the meta-loss: mean over the inner steps, or last."""
    rectify: bool | None = None
    """Whether inner steps use relu of the step sizes."""
    inner_clip: float | None = None
    """Bound on each element of an inner gradient."""
    grain: str | None = None
    """Weights that share a step size: those of a parameter, channel, leaf, or all."""
    inner_momentum: float | None = None
    """Share of the last inner gradient that goes on in the next inner step."""
    memory: str | None = None
    """Rows that are kept: a uniform sample, or one balanced over classes."""
    replay_weight: float | None = None
    """Weight of the replayed rows' mean loss, which is 1 minus the incoming ones'."""
    momentum: float | None = None
    """VR-MCL: share of the running meta-gradient."""
    memory_per_task: int | None = None
    """GEM, A-GEM: rows kept of each task."""
    margin: float | None = None
    """GEM: least weight of a past task's gradient in a projection."""
    penalty: float | None = None
    """EWC: weight of the quadratic penalty."""
    fisher_rows: int | None = None
    """EWC: latest rows of a task on which its Fisher information is estimated."""
    logit_weight: float | None = None
    """DER++: weight of the distance to the stored logits (alpha)."""
    label_weight: float | None = None
    """DER++: weight of the replayed rows' cross-entropy (beta)."""
    rounds: int | None = None
    """MER: rounds per incoming row."""
    within_rate: float | None = None
    """MER: share of a round's movement that is kept (beta)."""
    across_rate: float | None = None
    """MER: share of all rounds' movement that is kept (gamma)."""
    distillation_weight: float | None = None
    """iCaRL: weight of the distillation of old heads."""
    mc_samples: int | None = None
    """Meta-BGD: Monte-Carlo draws per update."""
    std_init: float | None = None
    """Meta-BGD: initial standard deviation of every parameter."""
    mean_learning_rate: float | None = None
    """Meta-BGD: learning rate of the means (eta)."""


GRAINS = ("parameter", "channel", "leaf", "all")
MEMORIES = ("uniform", "balanced")
OPTIONAL = ("grain", "inner_momentum", "memory", "replay_weight")
"""What no preset sets; the methods of ``methods/lookahead.py`` can be told."""


@functools.cache
def _rates(kind: type[Hyperparameters]) -> tuple[str, ...]:
    hints = typing.get_type_hints(kind).items()
    return tuple(n for n, hint in hints if float in (hint, *typing.get_args(hint)))


RATES = _rates(Hyperparameters)
"""Hyper-parameters that are numbers only: a compiled program takes them as arguments,
so that runs which differ in nothing else share it. All others decide shapes or code."""

_OWN: dict[str, dict[str, type]] = {}  # by method
_OWN_KINDS = (bool, int, float, str)


def kinds() -> dict[str, Any]:
    """Returns the types of all hyper-parameters by name, also of a person's own."""
    known: dict[str, Any] = typing.get_type_hints(Hyperparameters)
    for own in _OWN.values():
        known |= own
    return known


def with_own(
    method: str, values: Mapping[str, Any], taken: Sequence[str] = ()
) -> Hyperparameters:
    """Makes the hyper-parameters of a person's own method.

    Args:
        method: its name.
        values: by name. A name that there is not yet becomes a hyper-parameter of its
            own, of its value's type: bool, int, float or str. A float is an argument of
            the compiled program, so that the method must not compare it.
        taken: names that mean something else.

    Returns:
        The values, and the defaults of all others; one that is not here is an
        attribute besides.

    Raises:
        UserError: a name or a type that cannot be.

    >>> hyper = with_own("mine", {"learning_rate": 0.1, "temperature": 2.0})
    >>> hyper.temperature, hyper.batch_size
    (2.0, 10)
    """
    hints = typing.get_type_hints(Hyperparameters)
    known = {n: checked(n, hints[n], v) for n, v in values.items() if n in hints}
    own = {name: value for name, value in values.items() if name not in hints}
    others: dict[str, type] = {}
    for other in _OWN.keys() - {method}:
        others |= _OWN[other]
    for name, value in own.items():
        if not name.isidentifier() or name in taken:
            raise UserError(f"hyper-parameter {name!r}: choose another name")
        if type(value) not in _OWN_KINDS:
            raise UserError(
                f"hyper-parameter {name!r}: expected a bool, int, float or str as its "
                f"default, received {value!r}"
            )
        if others.get(name, type(value)) is not type(value):
            raise UserError(
                f"hyper-parameter {name!r}: is of type {others[name].__name__} in "
                f"another method, received {value!r}"
            )
    _OWN[method] = {name: type(value) for name, value in own.items()}
    fields = [(n, type(v), dataclasses.field(default=v)) for n, v in own.items()]
    kind = dataclasses.make_dataclass(
        "OwnHyperparameters", fields, bases=(Hyperparameters,), frozen=True
    )
    return kind(**known)


def check_given(hyper: Hyperparameters, *names: str) -> None:
    """Checks that a method was told what it cannot do without.

    Raises:
        UserError: it was not.
    """
    for name in names:
        if getattr(hyper, name) is None:
            raise UserError(f"{name}: expected a number, received None")


def rates_of(hyper: Hyperparameters) -> dict[str, float]:
    """Returns the numbers that a method has, by name: ``RATES``, and its own."""
    values = ((name, getattr(hyper, name)) for name in _rates(type(hyper)))
    return {name: value for name, value in values if value is not None}


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
