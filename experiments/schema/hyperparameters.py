"""What several methods may be told; what one may be told is beside it."""

import dataclasses
from typing import Annotated, Any

from experiments.schema.choices import Acceptance, Initializer, Objective
from experiments.schema.fields import Count, Positive, Rate, UpTo

NONE: Any = None
"""Default of a quantity that not every method has. One that has it is always told, so
that its type is without None."""
NO_CLIP = 1e6
"""A ``max_grad_norm`` that no gradient reaches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What several methods may be told; None where a method has no such quantity.

    A float is an argument of the compiled program, so that runs which differ in nothing
    else share it, and a method must not compare it. All others decide shapes or code.
    """

    batch_size: Annotated[int, UpTo("rows_per_task")] = 10
    """Rows per incoming batch."""
    glances: Count = 5
    """Updates per incoming batch."""
    epochs: Annotated[int, UpTo(2**16)] = 1
    """Passes over each task."""
    capacity: Annotated[int, UpTo(2**31 - 2)] = NONE
    """Rows of the reservoir."""
    replay_size: Annotated[int, UpTo("capacity")] = NONE
    """Rows replayed per update."""
    acceptance: Acceptance = NONE
    """The reservoir's rule once it is full."""
    inner_steps: Annotated[int, UpTo("batch_size")] = NONE
    """Inner steps K per meta-update."""
    step_size_init: Rate = NONE
    """Initial step size of every parameter."""
    step_size_learning_rate: Rate = NONE
    """Learning rate of the step sizes (eta)."""
    learning_rate: Rate = NONE
    """Learning rate of the weights (not La-MAML)."""
    max_grad_norm: Positive = 2.0
    """Largest global norm of a gradient, which is clipped to it."""
    initializer: Initializer = "kaiming"
    """Distribution of the initial weights."""
    first_order: bool = NONE
    """Hold inner gradients constant, or differentiate them."""
    objective: Objective = NONE
    """Meta-loss: mean over inner steps, or the last."""
    rectify: bool = NONE
    """Inner steps use relu of the step sizes, or the step sizes themselves."""
    inner_clip: Positive | None = None
    """Bound on each element of an inner gradient."""
