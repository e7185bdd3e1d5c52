"""ER-ACE's loss as an option of any method: which classes a row's loss covers.

The loss of an incoming row covers the classes of its batch, so that it does not push
down the outputs of classes that are not shown; that of a replayed row covers all
(Caccia et al. 2022, arXiv:2104.05025). ``er_ace`` sums the means over the two kinds of
rows, as published; here a method weighs rows as it does without.

A batch says it in a field beside its rows, which a memory neither stores nor needs:
what is drawn from it covers all classes.
"""

from typing import Any

import jax
import jax.numpy as jnp

import lamaml_jax as lm

CLASSES = "classes"
"""Field of a batch: [B, Y] bools, the classes that each row's loss covers."""


def _all_classes(rows: Any, num_classes: int) -> Any:
    count = rows["label"].shape[0]
    return rows | {CLASSES: jnp.ones((count, num_classes), bool)}


def _stored(rows: Any) -> Any:
    return {name: value for name, value in rows.items() if name != CLASSES}


def covering_all(reservoir: lm.Reservoir, num_classes: int) -> lm.Reservoir:
    """Makes a memory of batches with ``classes``: what it returns covers all of them.

    Args:
        reservoir: of rows without that field.
        num_classes: Y.
    """

    def add(key: lm.Key, state: Any, rows: Any, mask: lm.Mask | None = None) -> Any:
        return reservoir.add(key, state, _stored(rows), mask)

    def insert(
        state: Any, rows: Any, draws: jax.Array, mask: lm.Mask | None = None
    ) -> Any:
        return reservoir.insert(state, _stored(rows), draws, mask)

    def sample(key: lm.Key, state: Any, size: int) -> tuple[Any, lm.Mask]:
        rows, mask = reservoir.sample(key, state, size)
        return _all_classes(rows, num_classes), mask

    def sample_and_add(
        sample_key: lm.Key,
        add_key: lm.Key,
        state: Any,
        size: int,
        rows: Any,
        mask: lm.Mask | None = None,
    ) -> tuple[Any, lm.Mask, Any]:
        old, old_mask, state = reservoir.sample_and_add(
            sample_key, add_key, state, size, _stored(rows), mask
        )
        return _all_classes(old, num_classes), old_mask, state

    return lm.Reservoir(reservoir.init, add, insert, sample, sample_and_add)


def of_batch(labels: jax.Array, mask: lm.Mask | None, num_classes: int) -> jax.Array:
    """Returns the classes that the losses of a batch's rows cover.

    Args:
        labels: [B] integer classes in [0, Y).
        mask: [B] booleans, False where a row is padding and its class does not count;
            None counts all.
        num_classes: Y.

    Returns:
        [B, Y] bools: the classes of the batch, and each row's own.
    """
    own = jax.nn.one_hot(labels, num_classes, dtype=bool)
    counted = own if mask is None else own & mask[:, None]
    return own | jnp.any(counted, axis=0, keepdims=True)


def covering_own(learner: lm.Learner, num_classes: int) -> lm.Learner:
    """Makes a learner whose incoming rows' losses cover the classes of their batch.

    Args:
        learner: whose loss covers ``classes`` and whose memory ``covering_all``.
        num_classes: Y.
    """

    def observe(
        key: lm.Key,
        state: Any,
        batch: Any,
        batch_mask: lm.Mask | None = None,
        remember: Any = True,
    ) -> tuple[Any, Any]:
        classes = of_batch(batch["label"], batch_mask, num_classes)
        shown = batch | {CLASSES: classes}
        return learner.observe(key, state, shown, batch_mask, remember)

    return learner._replace(observe=observe)
