"""What a method costs, counted from its configuration."""

import math
from typing import NamedTuple

import jax

from experiments.schema.hyperparameters import Hyperparameters

HESSIAN_PRODUCT = 2
"""Gradient evaluations in a product of a Hessian with a vector: forward and backward
through a gradient, which is itself a pass forward and one backward."""


class Cost(NamedTuple):
    """What a method asks for on one stream."""

    gradient_evaluations: float
    """Per row of the stream, over all its glances and epochs.

    One is the gradient of the loss of one row: a pass forward and one backward, of
    whatever share of the weights. So a step on B incoming and R replayed rows is 1 +
    R / B of them, and a product of a Hessian with a vector is two more for each row
    that the Hessian is of. Passes forward alone (predictions, logits to be stored) do
    not count, nor do masked rows; a reservoir counts as full, and what grows with the
    tasks seen is averaged over the stream.
    """
    memory_bytes: int
    """Rows kept, and logits kept with them, as they lie in memory."""


def updates_per_row(hyper: Hyperparameters) -> float:
    """Updates on a batch, over all glances and epochs, per row of it."""
    return hyper.glances * hyper.epochs / hyper.batch_size


def rows_in_query(hyper: Hyperparameters) -> int:
    """Incoming and replayed rows of one update."""
    return hyper.batch_size + (hyper.replay_size or 0)


def rows_in_meta_gradient(
    hyper: Hyperparameters, objective: str | None = None
) -> float:
    """Gradient evaluations in one meta-gradient.

    The inner steps take one on each row of the batch, and in second order a Hessian
    product. The query is passed once for each fast weights that it is evaluated at.

    Args:
        hyper: gives rows, inner steps and order.
        objective: ``"mean"`` for a query after every inner step, ``"last"`` for one;
            that of ``hyper`` if None.
    """
    own = objective or hyper.objective
    queries = (hyper.inner_steps or 1) if own == "mean" else 1
    per_row = 1 if hyper.first_order else 1 + HESSIAN_PRODUCT
    return hyper.batch_size * per_row + queries * rows_in_query(hyper)


def bytes_of(tree: object) -> int:
    """Size of arrays, or of their ``jax.ShapeDtypeStruct``, in bytes."""
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )
