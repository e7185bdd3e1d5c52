"""Stream learners: ``init`` and ``observe``, scanned over a whole task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, types


class LearnerState(NamedTuple):
    """What the next observation needs."""

    weights: types.Params
    """Slow weights."""
    opt_state: optax.OptState
    """State of the transformation, reservoir included."""


class Learner(NamedTuple):
    """A container of pure functions; every method of the experiments has this shape."""

    init: Callable[[types.Key, types.Params], Any]
    """``init(key, weights) -> state``; the state has a field ``weights``."""
    observe: Callable[..., tuple[Any, Any]]
    """``observe(key, state, batch, mask=None, remember=True) -> (state, info)``.

    ``batch`` has leaves [B, ...], ``mask`` [B] is True where a row is valid, and
    ``remember`` is False where the rows were offered to the memory before (later
    epochs). The key is consumed.
    """
    end_task: Callable[..., Any] | None = None
    """``end_task(key, state) -> state``, once after the last batch of a task; None for
    learners that need not know where tasks end."""


def lamaml_learner(
    tx: optax.GradientTransformationExtraArgs, *, glances: int = 1
) -> Learner:
    """Learns a stream of batches with ``lamaml_transform`` or a chain around it.

    Every batch is observed ``glances`` times, each time with a new shuffle and new
    replayed rows; its rows enter the reservoir once, after the first meta-update.

    Args:
        tx: from ``lamaml``, ``sync_lamaml``, ``cmaml`` or ``lamaml_transform``, or an
            optax chain with one of them inside.
        glances: meta-updates per incoming batch, at least 1.

    Returns:
        A ``Learner`` whose state is a ``LearnerState`` and whose info is the
        ``LamamlInfo`` of every glance, leaves [glances, ...].

    Raises:
        ValueError: ``glances`` < 1, and what ``lamaml_transform`` raises.
        TypeError: ``tx`` is not a transformation.
    """
    checks.check_transformation("tx", tx)
    glances = checks.check_count("glances", glances)
    tx = optax.with_extra_args_support(tx)

    def init(key: types.Key, weights: types.Params) -> LearnerState:
        del key
        return LearnerState(weights, tx.init(weights))

    def observe(
        key: types.Key,
        state: LearnerState,
        batch: types.Batch,
        mask: types.Mask | None = None,
        remember: Any = True,
    ) -> tuple[LearnerState, Any]:
        checks.check_key("key", key)

        def glance(state: LearnerState, inputs: Any) -> tuple[LearnerState, Any]:
            glance_key, is_first = inputs
            updates, opt_state = tx.update(
                optax.tree.zeros_like(state.weights),
                state.opt_state,
                state.weights,
                batch=batch,
                batch_mask=mask,
                key=glance_key,
                remember=is_first & remember,
            )
            weights = optax.apply_updates(state.weights, updates)
            info = optax.tree.get(opt_state, "info")
            return LearnerState(weights, opt_state), info

        keys = jax.random.split(key, glances)
        return jax.lax.scan(glance, state, (keys, jnp.arange(glances) == 0))

    return Learner(init, observe)


def observe_stream(
    learner: Learner,
    key: types.Key,
    state: Any,
    batches: types.Batch,
    masks: types.Mask | None = None,
    first: chex.Numeric = 0,
) -> tuple[Any, Any]:
    """Shows a learner a sequence of batches in one ``jax.lax.scan``.

    Args:
        learner: any ``Learner``.
        key: batch n is observed with ``jax.random.fold_in(key, first + n)``.
        state: from ``learner.init`` or an earlier call.
        batches: pytree with leaves [N, B, ...].
        masks: [N, B] booleans, True = valid; None takes every row.
        first: number of batches shown before with the same key, so that a sequence
            shown in parts gives the same numbers; may be traced.

    Returns:
        The new state, and the learner's info stacked along N.

    Raises:
        ValueError: leading axes disagree.
        TypeError: ``key`` is no key, ``masks`` not boolean.
    """
    checks.check_key("key", key)
    axes = checks.check_rows("batches", batches, axes=2)
    if masks is not None:
        checks.check_mask("masks", masks, axes)

    def step(state: Any, inputs: Any) -> tuple[Any, Any]:
        n, batch, mask = inputs
        return learner.observe(jax.random.fold_in(key, first + n), state, batch, mask)

    return jax.lax.scan(step, state, (jnp.arange(axes[0]), batches, masks))
