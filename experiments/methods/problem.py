"""What a method needs to know of a benchmark."""

from typing import NamedTuple

import jax

import lamaml_jax as lm


class Problem(NamedTuple):
    """A loss and the form of one row."""

    loss_fn: lm.LossFn
    """``(weights, batch) -> [B]`` in nats."""
    example: dict[str, jax.ShapeDtypeStruct]
    """One row of a batch: ``image`` and ``label``."""
