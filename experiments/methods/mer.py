"""MER: steps on single rows, old and new, drawn together by interpolation."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments.methods.common import make_reservoir, scan_glances, valid_rows
from experiments.methods.cost import Cost, bytes_of
from experiments.methods.descent import clip_factor
from experiments.methods.problem import Problem
from experiments.schema.fields import POSITIVE, Count, Share
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MerHyperparameters(Hyperparameters):
    """What MER is told besides."""

    rounds: Count
    """Rounds per incoming row."""
    within_rate: Annotated[Share, POSITIVE]
    """Share of a round's movement that is kept (beta)."""
    across_rate: Annotated[Share, POSITIVE]
    """Share of all rounds' movement that is kept (gamma)."""


class MerState(NamedTuple):
    """State of MER."""

    weights: lm.Params
    reservoir: lm.ReservoirState


class MerInfo(NamedTuple):
    """What a batch reports of each round, means over its valid rows."""

    loss: jax.Array
    """[rounds] loss of an incoming row before its round, nats."""
    replay_loss: jax.Array
    """[rounds] mean loss of the replayed rows, each before its step, nats."""
    grad_norm: jax.Array
    """[rounds] global norm of an incoming row's gradient before clipping."""


class StepInfo(NamedTuple):
    """What one step on one row reports."""

    loss: jax.Array
    """Before the step, nats; 0 for a masked row."""
    grad_norm: jax.Array
    """Global norm before clipping."""


def _norm(tree: lm.Params) -> jax.Array:
    """Global norm, its sums written as products with ones.

    XLA leaves the plain sum of a large leaf scalar on a CPU, where it took most of a
    step; the product is vectorised.
    """

    def sum_of_squares(leaf) -> jax.Array:
        squares = leaf * leaf
        if leaf.ndim > 1:
            squares = squares.reshape(-1, leaf.shape[-1])
            ones = jnp.ones(squares.shape[0], leaf.dtype)
            squares = jnp.matmul(ones, squares, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(squares)

    return jnp.sqrt(sum(map(sum_of_squares, jax.tree.leaves(tree))))


def interpolate(start: lm.Params, end: lm.Params, rate: float) -> lm.Params:
    """Reptile's update: ``start + rate * (end - start)``, leaf by leaf."""
    return jax.tree.map(lambda a, b: a + rate * (b - a), start, end)


def make_descent(loss_fn: lm.LossFn, hyper: Hyperparameters) -> Callable[..., Any]:
    """Builds a sequence of SGD steps on single rows.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        hyper: gives ``learning_rate`` and ``max_grad_norm``.

    Returns:
        ``descend(weights, rows, mask) -> weights, info`` with leaves [N, ...] and a
        ``StepInfo`` of leaves [N]. Each gradient is clipped to ``max_grad_norm``; a row
        with mask False takes no step.
    """

    def step(weights, inputs) -> tuple[lm.Params, StepInfo]:
        row, valid = jax.tree.map(lambda x: x[None], inputs)
        loss, grads = jax.value_and_grad(
            lambda weights: lm.losses.mean_loss(loss_fn, weights, row, valid)
        )(weights)
        norm = _norm(grads)
        rate = hyper.learning_rate * clip_factor(norm, hyper.max_grad_norm)
        weights = jax.tree.map(
            lambda w, g: w - rate.astype(g.dtype) * g, weights, grads
        )
        return weights, StepInfo(loss, norm)

    def descend(weights, rows, mask) -> tuple[lm.Params, StepInfo]:
        return jax.lax.scan(step, weights, (rows, mask))

    return descend


def make_round(loss_fn: lm.LossFn, hyper: MerHyperparameters) -> Callable[..., Any]:
    """Builds one round on given rows.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        hyper: the resolved hyper-parameters.

    Returns:
        ``round_fn(weights, rows, mask) -> weights, info``: ``descend`` of
        ``make_descent``, of whose movement the share ``within_rate`` is kept.
    """
    descend = make_descent(loss_fn, hyper)

    def round_fn(weights, rows, mask) -> tuple[lm.Params, StepInfo]:
        end, info = descend(weights, rows, mask)
        return interpolate(weights, end, hyper.within_rate), info

    return round_fn


def _summary(info: StepInfo, row_masks: jax.Array, mask: lm.Mask) -> MerInfo:
    """Reduces infos [B, rounds, 1 + R] and the masks of their rows to [rounds]."""
    over_replayed = jax.vmap(jax.vmap(lm.losses.masked_mean))
    over_incoming = jax.vmap(lm.losses.masked_mean, in_axes=(1, None))
    values = MerInfo(
        info.loss[..., 0],
        over_replayed(info.loss[..., 1:], row_masks[..., 1:]),
        info.grad_norm[..., 0],
    )
    return MerInfo(*(over_incoming(value, mask) for value in values))


def cost(problem: Problem, hyper: MerHyperparameters) -> Cost:
    """Counts the incoming and the replayed rows of every round, and the reservoir."""
    rows = hyper.rounds * (1 + (hyper.replay_size or 0))
    return Cost(
        float(hyper.epochs * rows), (hyper.capacity or 0) * bytes_of(problem.example)
    )


def _make_observe_row(
    loss_fn: lm.LossFn, hyper: MerHyperparameters, reservoir: lm.Reservoir
) -> Callable[..., Any]:
    """Builds the rounds of one incoming row, after which it is offered."""
    round_fn = make_round(loss_fn, hyper)

    def observe_row(state, inputs) -> tuple[MerState, Any]:
        key, row, valid, remember = inputs
        replay_key, add_key = jax.random.split(key)
        row, valid = jax.tree.map(lambda x: x[None], (row, valid))

        # The row is offered by the last round's draw, which reads before it writes:
        # an ``add`` of its own, after the draws, would copy the reservoir.
        def one_round(state, inputs) -> tuple[MerState, Any]:
            round_key, is_last = inputs
            old, old_mask, memory = reservoir.sample_and_add(
                round_key,
                add_key,
                state.reservoir,
                hyper.replay_size,
                row,
                valid & remember & is_last,
            )
            rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), row, old)
            row_mask = jnp.concatenate([valid, old_mask & valid])
            weights, info = round_fn(state.weights, rows, row_mask)
            return MerState(weights, memory), (info, row_mask)

        end, infos = scan_glances(one_round, state, replay_key, hyper.rounds)
        weights = interpolate(state.weights, end.weights, hyper.across_rate)
        return MerState(weights, end.reservoir), infos

    return observe_row


def mer(problem: Problem, hyper: MerHyperparameters) -> lm.Learner:
    """MER, algorithm 1: experience replay inside two nested Reptile updates.

    Each valid row of a batch, in turn, takes ``rounds`` rounds. A round steps on the
    row, then on ``replay_size`` replayed rows (fewer while the reservoir holds fewer)
    drawn for this round, and keeps the share ``within_rate`` of the movement; of the
    movement of all rounds the share ``across_rate`` is kept. Then the row is offered to
    the reservoir. Rounds stand in for glances, and ``glances`` is ignored.

    References:
        Riemer et al. 2019, arXiv:1810.11910, algorithm 1. The incoming row precedes the
        replayed ones in a round, and rows already stored are not offered again in later
        epochs, where the published code would.

    Raises:
        UserError: ``rounds`` < 1.
    """
    if hyper.rounds < 1:
        raise UserError(f"rounds: expected at least 1, received {hyper.rounds}")
    reservoir = make_reservoir(problem, hyper)
    observe_row = _make_observe_row(problem.loss_fn, hyper, reservoir)

    def init(key: lm.Key, weights: lm.Params) -> MerState:
        del key
        return MerState(weights, reservoir.init())

    def observe(
        key, state, batch, batch_mask=None, remember: Any = True
    ) -> tuple[MerState, MerInfo]:
        num_rows = jax.tree.leaves(batch)[0].shape[0]
        batch_mask = valid_rows(batch, batch_mask)
        keys = jax.random.split(key, num_rows)
        remembered = jnp.broadcast_to(remember, (num_rows,))
        state, (info, row_masks) = jax.lax.scan(
            observe_row, state, (keys, batch, batch_mask, remembered)
        )
        return state, _summary(info, row_masks, batch_mask)

    return lm.Learner(init, observe)
