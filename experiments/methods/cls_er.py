"""CLS-ER: replay that is held to two slow averages of the weights."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.common import make_reservoir, scan_glances, valid_rows
from experiments.methods.cost import Cost, bytes_of, updates_per_row
from experiments.methods.descent import clipped_sgd
from experiments.methods.problem import Problem
from experiments.schema.fields import Rate, Share
from experiments.schema.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClsErHyperparameters(Hyperparameters):
    """What CLS-ER is told besides."""

    consistency_weight: Rate
    """Weight of the distance to the averages' logits."""
    plastic_decay: Share
    """Share of itself that the plastic average keeps."""
    plastic_rate: Share
    """Probability that the plastic average moves after an update."""
    stable_decay: Share
    """Share of itself that the stable average keeps."""
    stable_rate: Share
    """Probability that the stable average moves after an update."""


class ClsErState(NamedTuple):
    """State of CLS-ER."""

    weights: lm.Params
    opt_state: optax.OptState
    plastic: lm.Params
    """Average of the weights that follows them quickly."""
    stable: lm.Params
    """Average that follows slowly, and predicts."""
    num_updates: jax.Array
    """Scalar int32."""
    reservoir: lm.ReservoirState


class ClsErInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Cross-entropy plus the weighted distance, before the update."""
    logit_distance: jax.Array
    """Mean squared distance of replayed rows' logits to those of an average."""
    stable_share: jax.Array
    """Fraction of replayed rows for which the stable average was the better one."""
    grad_norm: jax.Array
    """Global norm before clipping."""


def make_loss(problem: Problem, hyper: ClsErHyperparameters) -> Callable[..., Any]:
    """Builds the loss of CLS-ER.

    Args:
        problem: loss and network.
        hyper: gives ``consistency_weight`` and ``replay_size``.

    Returns:
        ``fn(weights, plastic, stable, rows, mask) -> loss, (distance, stable_share)``,
        of rows whose first ``replay_size`` are replayed: the mean cross-entropy of all,
        plus the weighted mean squared distance of the replayed ones' logits to those of
        the average that gives their label the larger probability.
    """

    def fn(
        weights, plastic, stable, rows, mask
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        old, old_mask = jax.tree.map(lambda x: x[: hyper.replay_size], (rows, mask))
        logits = [
            problem.logits_fn(w, old["image"]) for w in (weights, plastic, stable)
        ]
        # The smaller cross-entropy is the larger probability of the label.
        is_stable = problem.loss_fn(stable, old) < problem.loss_fn(plastic, old)
        target = jnp.where(is_stable[:, None], logits[2], logits[1])
        squares = jnp.mean((logits[0] - target) ** 2, axis=-1)
        distance = lm.losses.masked_mean(squares, old_mask)
        loss = lm.losses.masked_mean(problem.loss_fn(weights, rows), mask)
        share = lm.losses.masked_mean(is_stable.astype(loss.dtype), old_mask)
        return loss + hyper.consistency_weight * distance, (distance, share)

    return fn


def follow(
    key: lm.Key,
    average: lm.Params,
    weights: lm.Params,
    num_updates: jax.Array,
    decay: Any,
    rate: Any,
) -> lm.Params:
    """Moves an average towards the weights, with a probability.

    Args:
        key: consumed.
        average: to be moved.
        weights: to be moved to.
        num_updates: n, how often weights moved; the average keeps at most ``1 - 1 / (n
            + 1)`` of itself, so that it starts as a plain mean.
        decay: share that it keeps once it has seen enough.
        rate: probability of a move.

    Returns:
        The average, moved or as it was.
    """
    is_moved = jax.random.bernoulli(key, rate)

    def move(mean: jax.Array, weight: jax.Array) -> jax.Array:
        seen = jnp.asarray(num_updates, mean.dtype)
        kept = jnp.minimum(1 - 1 / (seen + 1), jnp.asarray(decay, mean.dtype))
        return jnp.where(is_moved, kept * mean + (1 - kept) * weight, mean)

    return jax.tree.map(move, average, weights)


def cost(problem: Problem, hyper: ClsErHyperparameters) -> Cost:
    """Counts a gradient of the batch and two of replayed rows, and the reservoir.

    Replayed rows are passed for their labels and for their logits. Of the averages
    there are passes forward only.
    """
    rows = hyper.batch_size + 2 * (hyper.replay_size or 0)
    return Cost(
        updates_per_row(hyper) * rows,
        (hyper.capacity or 0) * bytes_of(problem.example),
    )


def make_step(problem: Problem, hyper: ClsErHyperparameters) -> Callable[..., Any]:
    """Builds one update of the weights and both averages.

    Args:
        problem: gives the network and its loss.
        hyper: rates, decays and weights.

    Returns:
        ``step(keys, state, rows, mask) -> state, info``, the replayed rows first.
    """
    tx = clipped_sgd(hyper)
    value_and_grad = jax.value_and_grad(make_loss(problem, hyper), has_aux=True)

    def step(keys, state, rows, mask) -> tuple[ClsErState, ClsErInfo]:
        (loss, (distance, share)), grads = value_and_grad(
            state.weights, state.plastic, state.stable, rows, mask
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        count = state.num_updates + 1
        moved = state._replace(
            weights=weights,
            opt_state=opt_state,
            plastic=follow(
                keys[0],
                state.plastic,
                weights,
                count,
                hyper.plastic_decay,
                hyper.plastic_rate,
            ),
            stable=follow(
                keys[1],
                state.stable,
                weights,
                count,
                hyper.stable_decay,
                hyper.stable_rate,
            ),
            num_updates=count,
        )
        return moved, ClsErInfo(loss, distance, share, optax.tree.norm(grads))

    return step


def cls_er(problem: Problem, hyper: ClsErHyperparameters) -> lm.Learner:
    """CLS-ER: ER held to a plastic and a stable average, of which the latter predicts.

    Both averages start at the initial weights and move after every update, each with
    its own probability. The distance is over all outputs, also where heads are masked.

    References:
        Arani et al. 2022, arXiv:2201.12604, algorithm 1.
    """
    reservoir = make_reservoir(problem, hyper)
    tx = clipped_sgd(hyper)
    step = make_step(problem, hyper)

    def init(key: lm.Key, weights: lm.Params) -> ClsErState:
        del key
        # Buffers of their own: a state may be donated.
        plastic, stable = (
            jax.tree.map(lambda x: jnp.array(x, copy=True), weights) for _ in range(2)
        )
        return ClsErState(
            weights, tx.init(weights), plastic, stable, jnp.int32(0), reservoir.init()
        )

    def observe(
        key, state, batch, batch_mask=None, remember: Any = True
    ) -> tuple[ClsErState, ClsErInfo]:
        batch_mask = valid_rows(batch, batch_mask)
        glance_key, add_key = jax.random.split(key)

        def glance(state, inputs) -> tuple[ClsErState, ClsErInfo]:
            key, is_last = inputs
            replay_key, *keys = jax.random.split(key, 3)
            old, old_mask, memory = reservoir.sample_and_add(
                replay_key,
                add_key,
                state.reservoir,
                hyper.replay_size,
                batch,
                batch_mask & remember & is_last,
            )
            rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, batch)
            mask = jnp.concatenate([old_mask, batch_mask])
            moved, info = step(keys, state, rows, mask)
            return moved._replace(reservoir=memory), info

        return scan_glances(glance, state, glance_key, hyper.glances)

    return lm.Learner(init, observe)
