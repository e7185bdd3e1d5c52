"""What a method may be told."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from experiments.errors import UserError


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


def _value(name: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is types.UnionType:
        (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
    if kind is bool:
        words = {"true": True, "false": False}
        if text.lower() not in words:
            raise UserError(f"{name}: expected true or false, received {text!r}")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(
            f"{name}: expected {kind.__name__}, received {text!r}"
        ) from error


def parse(settings: Sequence[str]) -> dict[str, Any]:
    """Reads ``NAME=VALUE`` settings of hyper-parameters.

    Args:
        settings: such as ``["momentum=0.9"]``.

    Returns:
        Values by field name.

    Raises:
        UserError: no such hyper-parameter, one named twice, or a value of another type.
    """
    kinds = typing.get_type_hints(Hyperparameters)
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in kinds:
            raise UserError(
                f"--set: expected NAME=VALUE with one of {', '.join(kinds)}, received "
                f"{setting!r}"
            )
        if name in values:
            raise UserError(f"--set: {name} is given twice")
        values[name] = _value(name, kinds[name], text)
    return values
