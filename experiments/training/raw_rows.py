"""Learners whose rows are as stored: scaled, changed and normalised in their loss."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import lamaml_jax as lm

_KEY_OF_CHANGES = 2**31 - 3

Prepare = Callable[[jax.Array], jax.Array]
"""``images [B, ...] as stored -> inputs of the network``."""


def changed_anew(
    make: Callable[[Prepare], lm.Learner],
    prepare: Callable[[lm.Key, jax.Array], jax.Array],
) -> lm.Learner:
    """Makes a learner that draws the changes of its rows anew with every batch.

    A memory then keeps rows as they are stored, uint8, and a replayed row is another
    crop of its image each time. Within what one batch leads to, inner steps and glances
    included, a row is always the same, so that the losses are functions of the weights.

    Args:
        make: builds the method's learner, with what makes inputs of rows.
        prepare: ``prepare(key, images)``, which does so for one key.

    Returns:
        The learner.
    """
    first = make(partial(prepare, jax.random.key(0)))

    def own(key: lm.Key) -> lm.Learner:
        return make(partial(prepare, jax.random.fold_in(key, _KEY_OF_CHANGES)))

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
