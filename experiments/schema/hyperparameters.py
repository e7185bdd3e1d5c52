"""What several methods may be told; what one may be told is beside it."""

import dataclasses
from typing import Annotated

from experiments.schema.choices import Acceptance, Initializer, Objective
from experiments.schema.fields import Count, Positive, Rate, UpTo


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
    capacity: Annotated[int, UpTo(2**31 - 2)] | None = None
    """Rows of the reservoir."""
    replay_size: Annotated[int, UpTo("capacity")] | None = None
    """Rows replayed per update."""
    acceptance: Acceptance | None = None
    """The reservoir's rule once it is full."""
    inner_steps: Annotated[int, UpTo("batch_size")] | None = None
    """Inner steps K per meta-update."""
    step_size_init: Rate | None = None
    """Initial step size of every parameter."""
    step_size_learning_rate: Rate | None = None
    """Learning rate of the step sizes (eta)."""
    learning_rate: Rate | None = None
    """Learning rate of the weights (not La-MAML)."""
    max_grad_norm: Positive = 2.0
    """Largest global norm of a gradient, which is clipped to it."""
    initializer: Initializer = "kaiming"
    """Distribution of the initial weights."""
    first_order: bool | None = None
    """Hold inner gradients constant, or differentiate them."""
    objective: Objective | None = None
    """Meta-loss: mean over inner steps, or the last."""
    rectify: bool | None = None
    """Inner steps use relu of the step sizes, or the step sizes themselves."""
    inner_clip: Positive | None = None
    """Bound on each element of an inner gradient."""
