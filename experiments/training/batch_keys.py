"""Learners whose loss draws random numbers, anew with every batch that they observe."""

from collections.abc import Callable
from typing import Any

import jax

import lamaml_jax as lm

_KEY_OF_LOSS = 2**31 - 3


def keyed_by_batch(make: Callable[[lm.Key], lm.Learner]) -> lm.Learner:
    """Makes a learner whose loss draws its random numbers anew with every batch.

    A memory can then keep rows as they are stored, uint8, and a replayed row is another
    crop of its image each time; and a network can have dropout. Within what one batch
    leads to, inner steps and glances included, the loss is one function of the weights,
    as the derivative of a look-ahead asks for.

    Args:
        make: builds the method's learner, with a loss that draws from a key.

    Returns:
        The learner.
    """
    first = make(jax.random.key(0))

    def own(key: lm.Key) -> lm.Learner:
        return make(jax.random.fold_in(key, _KEY_OF_LOSS))

    def observe(
        key: lm.Key,
        state: Any,
        batch: Any,
        batch_mask: lm.Mask | None = None,
        remember: Any = True,
    ) -> tuple[Any, Any]:
        return own(key).observe(key, state, batch, batch_mask, remember)

    def end_task(key: lm.Key, state: Any) -> Any:
        end = own(key).end_task
        assert end is not None
        return end(key, state)

    return lm.Learner(first.init, observe, None if first.end_task is None else end_task)
