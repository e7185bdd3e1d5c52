"""Plain descent on the incoming rows as a learner, the baseline of the examples."""

from typing import Any

import jax
import optax

import lamaml_jax as lm


def sgd_learner(
    loss_fn: lm.LossFn, tx: optax.GradientTransformation, glances: int = 1
) -> lm.Learner:
    """Builds a learner that takes ``glances`` steps on every batch and keeps nothing.

    Args:
        loss_fn: ``(weights, batch) -> [B]``.
        tx: of the gradients of its mean.
        glances: steps per batch.

    Returns:
        A ``Learner`` whose info is the mean loss before each step, [glances].
    """

    def init(key, weights):
        del key
        return lm.LearnerState(weights, tx.init(weights))

    def observe(key, state, batch, batch_mask=None, remember: Any = True):
        del key, remember
        loss = lambda weights: lm.losses.masked_mean(
            loss_fn(weights, batch), batch_mask
        )

        def glance(state, _):
            value, grads = jax.value_and_grad(loss)(state.weights)
            updates, opt_state = tx.update(grads, state.opt_state, state.weights)
            weights = optax.apply_updates(state.weights, updates)
            return lm.LearnerState(weights, opt_state), value

        return jax.lax.scan(glance, state, length=glances)

    return lm.Learner(init, observe)
