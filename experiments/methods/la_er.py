"""La-ER: experience replay whose weights move at learned step sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import lamaml_jax as lm
from experiments.methods.common import make_reservoir, scan_glances, valid_rows
from experiments.methods.cost import (
    Cost,
    bytes_of,
    rows_in_meta_gradient,
    rows_in_query,
    updates_per_row,
)
from experiments.methods.problem import Problem
from experiments.schema.hyperparameters import Hyperparameters


class LaErState(NamedTuple):
    """State of La-ER."""

    weights: lm.Params
    rule_state: lm.StepSizesState
    """Step sizes and the state of their optimiser."""
    reservoir: lm.ReservoirState


class LaErInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Mean query loss at the slow weights before the update, nats."""
    meta_loss: jax.Array
    """Query loss after the last inner step, nats."""
    weight_grad_norm: jax.Array
    """Global norm of the query gradient before clipping."""
    step_size_grad_norm: jax.Array
    """Global norm of the step sizes' meta-gradient before clipping."""


def make_update(
    loss_fn: lm.LossFn, hyper: Hyperparameters
) -> tuple[Any, Callable[..., Any]]:
    """Builds one update on given data.

    The step sizes move first, by the meta-gradient of the query loss after the last
    inner step; then the weights by ``-relu(step_sizes)`` times the clipped gradient of
    the query loss at the slow weights.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        hyper: the resolved hyper-parameters.

    Returns:
        The rule (an optax transformation, for its ``init``), and ``update(weights,
        rule_state, support, query, support_mask, query_mask) -> weights, rule_state,
        info`` with support leaves [K, S, ...] and query leaves [Q, ...].
    """
    meta_value_and_grad = lm.meta_value_and_grad(
        loss_fn,
        objective="last",
        first_order=hyper.first_order,
        rectify=hyper.rectify,
        clip=hyper.inner_clip,
    )
    rule = lm.scale_by_step_sizes(
        hyper.step_size_init, optax.sgd(hyper.step_size_learning_rate)
    )
    clip = lm.clip_meta_grads(hyper.max_grad_norm)

    def mean_loss(weights, query, query_mask) -> jax.Array:
        return lm.losses.masked_mean(loss_fn(weights, query), query_mask)

    def update(
        weights, rule_state, support, query, support_mask, query_mask
    ) -> tuple[lm.Params, optax.OptState, LaErInfo]:
        params = lm.MetaParams(weights, rule_state.step_sizes)
        (meta_loss, _), meta_grads = meta_value_and_grad(
            params, support, query, support_mask, query_mask
        )
        loss, grads = jax.value_and_grad(mean_loss)(weights, query, query_mask)
        raw = lm.MetaParams(grads, meta_grads.step_sizes)
        clipped: Any = clip.update(raw, clip.init(params))[0]  # MetaParams, as given
        moves, rule_state = rule.update(
            clipped.weights, rule_state, weights, step_size_grads=clipped.step_sizes
        )
        info = LaErInfo(loss, meta_loss, *map(optax.tree.norm, raw))
        return optax.apply_updates(weights, moves), rule_state, info

    return rule, update


def cost(problem: Problem, hyper: Hyperparameters) -> Cost:
    """Counts a meta-gradient and a gradient of the query per glance, and the reservoir.

    The meta-gradient is that of the last inner step's loss, the gradient that at the
    slow weights.
    """
    rows = rows_in_meta_gradient(hyper, "last") + rows_in_query(hyper)
    return Cost(
        updates_per_row(hyper) * rows,
        (hyper.capacity or 0) * bytes_of(problem.example),
    )


def la_er(problem: Problem, hyper: Hyperparameters) -> lm.Learner:
    """La-ER: ER on the weights, with La-MAML's learned step sizes.

    Rows are offered to the reservoir after the last glance, as published.

    References:
        Gupta et al. 2020, arXiv:2007.13904, appendix ("La-ER").
    """
    reservoir = make_reservoir(problem, hyper)
    rule, update = make_update(problem.loss_fn, hyper)

    def init(key: lm.Key, weights: lm.Params) -> LaErState:
        del key
        return LaErState(weights, rule.init(weights), reservoir.init())

    def observe(
        key, state, batch, batch_mask=None, remember: Any = True
    ) -> tuple[LaErState, LaErInfo]:
        batch_mask = valid_rows(batch, batch_mask)
        glances_key, add_key = jax.random.split(key)

        def glance(state, inputs) -> tuple[LaErState, LaErInfo]:
            glance_key, is_last = inputs
            replay_key, shuffle_key = jax.random.split(glance_key)
            old, old_mask, memory = reservoir.sample_and_add(
                replay_key,
                add_key,
                state.reservoir,
                hyper.replay_size,
                batch,
                batch_mask & remember & is_last,
            )
            support, support_mask, _, _ = lm.split_support(
                shuffle_key, batch, batch_mask, hyper.inner_steps
            )
            query, query_mask = lm.join_replay(old, old_mask, batch, batch_mask)
            weights, rule_state, info = update(
                state.weights,
                state.rule_state,
                support,
                query,
                support_mask,
                query_mask,
            )
            return LaErState(weights, rule_state, memory), info

        return scan_glances(glance, state, glances_key, hyper.glances)

    return lm.Learner(init, observe)
