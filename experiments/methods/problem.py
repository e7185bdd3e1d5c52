"""What a method needs to know of a benchmark."""

from collections.abc import Callable
from typing import NamedTuple

import jax

import lamaml_jax as lm


def _no_logits(weights: lm.Params, images: jax.Array) -> jax.Array:
    del weights, images
    raise NotImplementedError("this problem has a loss, and no outputs of a network")


class Problem(NamedTuple):
    """A loss, the network under it, and the form of one row."""

    loss_fn: lm.LossFn
    """``(weights, batch) -> [B]`` in nats: cross-entropy over the outputs of each row's
    own task where heads are masked, else over all outputs."""
    example: dict[str, jax.ShapeDtypeStruct]
    """One row of a batch: ``image``, ``label`` and, where the learner is told of tasks,
    ``task`` (int32). Its absence is the task-agnostic setting."""
    logits_fn: Callable[[lm.Params, jax.Array], jax.Array] = _no_logits
    """``(weights, images [B, ...]) -> [B, Y]``, all outputs of the network."""
    num_tasks: int = 1
    """T."""
    rows_per_task: int = 0
    """Training rows shown per task."""
    num_classes: int = 1
    """Y, outputs of the network."""
    classes_per_task: int | None = None
    """Classes that belong to one task alone, task t owning those from ``t *
    classes_per_task``; None where all tasks share their classes."""
    is_asymmetric: bool = False
    """Whether the loss covers the classes of ``batch["classes"]`` [B, Y], where a batch
    has that field; learners and memories see to it."""
    head_fn: Callable[[lm.Params], lm.Params] | None = None
    """``weights -> tree of bools``: True for the leaves of the last layer."""
    has_few_convolutions: bool = False
    """Whether the network is a published one of convolutions, six layers or seven."""

    @property
    def is_task_aware(self) -> bool:
        """Whether rows carry their task."""
        return "task" in self.example
