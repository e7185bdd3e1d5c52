"""EWC: a quadratic penalty holds the weights that past tasks needed."""

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.common import valid_rows
from experiments.methods.cost import Cost, bytes_of, updates_per_row
from experiments.methods.descent import clipped_sgd
from experiments.methods.problem import Problem
from experiments.schema.fields import Rate, UpTo
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EwcHyperparameters(Hyperparameters):
    """What EWC is told besides."""

    penalty: Rate
    """Weight of the quadratic penalty."""
    fisher_rows: Annotated[int, UpTo("rows_per_task")]
    """Latest rows of a task on which its Fisher information is estimated."""


class EwcState(NamedTuple):
    """State of EWC; its size depends neither on the tasks nor on their rows."""

    weights: lm.Params
    opt_state: optax.OptState
    importance: lm.Params
    """Sum over past tasks of their diagonal Fisher information, the tree of weights."""
    anchor: lm.Params
    """Mean of the weights at the ends of past tasks, each weighted with its Fisher
    information; arbitrary where ``importance`` is 0."""
    rows: dict[str, jax.Array]
    """Latest remembered rows of the current task, leaves [fisher_rows, ...]."""
    num_rows: jax.Array
    """Rows of the current task remembered so far, int32."""


class EwcInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Cross-entropy plus penalty before the update, nats."""
    penalty: jax.Array
    """The penalty alone, up to a constant within each task."""
    grad_norm: jax.Array
    """Global norm before clipping."""


def fisher_diagonal(
    loss_fn: lm.LossFn, weights: lm.Params, rows: lm.Batch, mask: lm.Mask
) -> lm.Params:
    """Estimates the diagonal of the empirical Fisher information.

    It is the mean over rows of the squared gradient of one row's log-likelihood at its
    own label. Gradients are taken row by row, so that memory does not grow with rows.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, minus the log-likelihood in nats.
        weights: where it is estimated.
        rows: leaves [B, ...].
        mask: [B] booleans, True = valid.

    Returns:
        The tree of ``weights``; zeros if no row is valid.
    """

    def row_loss(weights, row) -> jax.Array:
        return loss_fn(weights, jax.tree.map(lambda x: x[None], row))[0]

    def add(total, inputs) -> tuple[lm.Params, None]:
        row, is_valid = inputs
        grads = jax.grad(row_loss)(weights, row)
        total = jax.tree.map(
            lambda t, g: t + jnp.where(is_valid, g**2, 0), total, grads
        )
        return total, None

    total, _ = jax.lax.scan(add, optax.tree.zeros_like(weights), (rows, mask))
    count = jnp.maximum(jnp.sum(mask), 1)
    return jax.tree.map(lambda t: t / count.astype(t.dtype), total)


def add_task(
    importance: lm.Params, anchor: lm.Params, fisher: lm.Params, weights: lm.Params
) -> tuple[lm.Params, lm.Params]:
    """Adds a task's penalty to those of the tasks before it.

    A sum of parabolas is one parabola and a constant. Keeping its lowest point, rather
    than the sum of Fisher information times weights, leaves no difference of large
    numbers to the gradient.

    Args:
        importance: sum of the earlier tasks' Fisher information.
        anchor: where their penalty is lowest.
        fisher: the new task's Fisher information, not negative.
        weights: the weights at its end.

    Returns:
        ``importance`` and ``anchor`` with the task in them.
    """

    def move(anchor, total, fisher, weights) -> jax.Array:
        share = jnp.where(total > 0, fisher / jnp.where(total > 0, total, 1), 0)
        return anchor + share * (weights - anchor)

    total = jax.tree.map(jnp.add, importance, fisher)
    return total, jax.tree.map(move, anchor, total, fisher, weights)


def _penalty(weights, importance, anchor, scale) -> jax.Array:
    terms = jax.tree.map(
        lambda w, f, a: jnp.sum(f * (w - a) ** 2), weights, importance, anchor
    )
    return 0.5 * scale * optax.tree.sum(terms)


def _push(state: EwcState, batch: lm.Batch, mask: lm.Mask) -> EwcState:
    """Writes the valid rows over the oldest; the last rows of a long batch win."""
    size = state.rows["label"].shape[0]
    # Not jnp.cumsum: on a constant mask its reduce-window crashes XLA's simplifier.
    place = jax.lax.associative_scan(jnp.add, mask.astype(jnp.int32))
    is_kept = mask & (place > place[-1] - size)
    slots = jnp.where(is_kept, (state.num_rows + place - 1) % size, size)
    rows = jax.tree.map(
        lambda old, new: old.at[slots].set(new, mode="drop"), state.rows, batch
    )
    return state._replace(rows=rows, num_rows=state.num_rows + place[-1])


def _end_task(loss_fn: lm.LossFn, state: EwcState) -> EwcState:
    """Adds the penalty of the current task, by the Fisher information of its rows."""
    mask = jnp.arange(state.rows["label"].shape[0]) < state.num_rows
    fisher = fisher_diagonal(loss_fn, state.weights, state.rows, mask)
    importance, anchor = add_task(state.importance, state.anchor, fisher, state.weights)
    return state._replace(importance=importance, anchor=anchor, num_rows=jnp.int32(0))


def cost(problem: Problem, hyper: EwcHyperparameters) -> Cost:
    """Counts a gradient of the batch per glance, and the rows of the Fisher matrix."""
    rows = hyper.fisher_rows
    return Cost(
        updates_per_row(hyper) * hyper.batch_size + rows / problem.rows_per_task,
        rows * bytes_of(problem.example),
    )


def ewc(problem: Problem, hyper: EwcHyperparameters) -> lm.Learner:
    """EWC: SGD on cross-entropy plus half ``penalty`` times each past task's parabola.

    The penalty is the exact sum over tasks, ``penalty / 2 * sum_k F_k (w - w_k)^2``, in
    memory that does not grow with them. The Fisher information is the empirical one, at
    the labels of the latest ``fisher_rows`` remembered rows. The EWC in the
    repositories of GEM and of MER takes labels too, but squares the mean gradient of a
    task's first rows, and has no half; its ``memory_strength`` is not our ``penalty``.

    Raises:
        UserError: ``fisher_rows`` < 1.

    References:
        Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3.
    """
    size, scale = hyper.fisher_rows, hyper.penalty
    if size < 1:
        raise UserError(f"fisher_rows: expected at least 1, received {size}")
    tx = clipped_sgd(hyper)

    def init(key: lm.Key, weights: lm.Params) -> EwcState:
        del key
        zeros = optax.tree.zeros_like(weights)
        rows = jax.tree.map(
            lambda x: jnp.zeros((size, *x.shape), x.dtype), problem.example
        )
        return EwcState(weights, tx.init(weights), zeros, zeros, rows, jnp.int32(0))

    def observe(
        key, state, batch, batch_mask=None, remember: Any = True
    ) -> tuple[EwcState, EwcInfo]:
        del key
        batch_mask = valid_rows(batch, batch_mask)

        def loss(weights) -> tuple[jax.Array, jax.Array]:
            penalty = _penalty(weights, state.importance, state.anchor, scale)
            mean = lm.losses.masked_mean(problem.loss_fn(weights, batch), batch_mask)
            return mean + penalty, penalty

        def glance(carry, _) -> tuple[Any, EwcInfo]:
            weights, opt_state = carry
            (value, penalty), grads = jax.value_and_grad(loss, has_aux=True)(weights)
            updates, opt_state = tx.update(grads, opt_state, weights)
            weights = optax.apply_updates(weights, updates)
            return (weights, opt_state), EwcInfo(value, penalty, optax.tree.norm(grads))

        (weights, opt_state), info = jax.lax.scan(
            glance, (state.weights, state.opt_state), length=hyper.glances
        )
        state = _push(state, batch, batch_mask & remember)
        return state._replace(weights=weights, opt_state=opt_state), info

    return lm.Learner(
        init, observe, lambda key, state: _end_task(problem.loss_fn, state)
    )
