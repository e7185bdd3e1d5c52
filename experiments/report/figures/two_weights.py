"""A stream of two weights, of which old and new rows contest one.

The only module of a report that imports jax; ``front`` draws what it learns.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lamaml_jax as lm
from experiments.report.figures.contest import (
    INNER_STEPS,
    NEW,
    NEW_CURVATURE,
    NUM_UPDATES,
    OLD,
    OLD_CURVATURE,
    START,
    STEP_SIZE,
    STEP_SIZE_RATE,
    Learnt,
)


def loss_fn(weights: lm.Params, batch: lm.Batch) -> jax.Array:
    """A row wants the weights at its ``target``, as firmly as its ``curvature`` says.

    Args:
        weights: [2].
        batch: ``target`` and ``curvature``, [B, 2].

    Returns:
        [B].
    """
    distances = weights[None, :] - batch["target"]
    return jnp.sum(batch["curvature"] * distances**2, axis=1) / 2


# Its protocol allows for arguments that this loss does not have.
_LOSS_FN = cast(lm.LossFn, loss_fn)


def learn_two_step_sizes() -> Learnt:
    """Learns new rows beside replayed old ones, which contest the first weight only."""
    tx = lm.lamaml(
        _LOSS_FN,
        step_size_init=STEP_SIZE,
        step_size_learning_rate=STEP_SIZE_RATE,
        inner_steps=INNER_STEPS,
    )
    start = jnp.array(START)
    old = {"target": jnp.array([OLD]), "curvature": jnp.array([OLD_CURVATURE])}
    new = {"target": jnp.array([NEW]), "curvature": jnp.array([NEW_CURVATURE])}
    query = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, new)
    support = jax.tree.map(lambda leaf: jnp.stack([leaf] * INNER_STEPS), new)

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        weights, state = carry
        zeros = optax.tree.zeros_like(weights)
        updates, state = tx.update(zeros, state, weights, support=support, query=query)
        step_sizes = optax.tree.get(state, "step_sizes")
        return (optax.apply_updates(weights, updates), state), step_sizes

    initial = jnp.full(2, STEP_SIZE)
    _, found = jax.lax.scan(step, (start, tx.init(start)), length=NUM_UPDATES)

    def along(step_sizes: Any) -> np.ndarray:
        paths = [start]
        for k in range(1, INNER_STEPS + 1):
            steps = jax.tree.map(lambda leaf, k=k: leaf[:k], support)
            paths.append(lm.adapt(_LOSS_FN, start, step_sizes, steps)[0])
        return np.stack(paths)

    step_sizes = np.concatenate([initial[None, :], found])
    return Learnt(step_sizes, along(initial), along(found[-1]))
