"""LOR: replay that descends where steps along several directions would lead."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.common import make_reservoir
from experiments.methods.cost import Cost, bytes_of, rows_in_query, updates_per_row
from experiments.methods.descent import clipped_sgd
from experiments.methods.problem import Problem
from experiments.methods.replay import make_replay_learner
from experiments.schema.fields import Count, Positive
from experiments.schema.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class LorHyperparameters(Hyperparameters):
    """What LOR is told besides."""

    directions: Count
    """Directions along which it looks ahead (K)."""
    concentration: Positive
    """Of the Dirichlet draws that mix the directions; 1 draws shares uniformly."""
    temperature: Positive
    """Nats by which losses ahead may differ and still count alike (mu)."""


class LorInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Smooth maximum of the loss over the points ahead, nats."""
    loss_spread: jax.Array
    """Largest minus smallest loss at these points, nats."""
    grad_norm: jax.Array
    """Global norm before clipping."""


def make_update(
    problem: Problem, hyper: LorHyperparameters
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Builds one step of LOR on given rows.

    Args:
        problem: gives the loss.
        hyper: gives ``directions`` (K), ``concentration``, ``temperature`` (mu),
            ``step_size_init`` (the step ahead), ``replay_size`` and the descent's.

    Returns:
        The optimiser and ``update(key, weights, opt_state, rows, mask) -> weights,
        opt_state, info``, the first ``replay_size`` rows being the replayed ones.
    """
    tx = clipped_sgd(hyper)

    def gradient(weights, rows, mask) -> lm.Params:
        mean_loss = lambda w: lm.losses.masked_mean(problem.loss_fn(w, rows), mask)
        return jax.grad(mean_loss)(weights)

    def update(
        key, weights, opt_state, rows, mask
    ) -> tuple[lm.Params, optax.OptState, LorInfo]:
        parts = slice(hyper.replay_size, None), slice(hyper.replay_size)
        incoming, replayed = (
            gradient(weights, *jax.tree.map(lambda x, p=part: x[p], (rows, mask)))
            for part in parts
        )
        # w_k = w - rate * (s_k g_incoming + (1 - s_k) g_replayed), held constant.
        mixtures = jax.random.dirichlet(
            key, jnp.full(2, hyper.concentration), (hyper.directions,)
        )
        points = lm.mixing.look_ahead_points(
            weights,
            jax.tree.map(lambda *pair: jnp.stack(pair), incoming, replayed),
            mixtures,
            hyper.step_size_init,
        )
        (value, losses), grads = lm.mixing.soft_maximum_value_and_grad(
            problem.loss_fn, points, rows, mask, temperature=hyper.temperature
        )
        updates, opt_state = tx.update(grads, opt_state, weights)
        info = LorInfo(value, jnp.ptp(losses), optax.tree.norm(grads))
        return optax.apply_updates(weights, updates), opt_state, info

    return tx, update


def cost(problem: Problem, hyper: LorHyperparameters) -> Cost:
    """Counts gradients at the weights and at every point, and the reservoir."""
    points = 1 + (hyper.directions or 0)
    return Cost(
        updates_per_row(hyper) * points * rows_in_query(hyper),
        (hyper.capacity or 0) * bytes_of(problem.example),
    )


def lor(problem: Problem, hyper: LorHyperparameters) -> lm.Learner:
    """LOR: descends the worst of the losses one step ahead, along mixed directions.

    In each glance, Dirichlet draws mix the gradients of the incoming and of the
    replayed rows into K directions; the weights descend a smooth maximum over the K
    points one step along them, of the mean loss over both kinds of rows. First order:
    the steps ahead are held constant, at one rate for all weights. That rate,
    ``step_size_init``, must be short: on a parabola of curvature h, whose descent at
    points a step ahead is one at curvature ``h * (1 - rate * h)``, the weights ascend
    where ``rate * h > 1``. What is known here of the paper leaves open how the two
    losses are weighed, here by one mean over all rows, and every number.

    References:
        Lai et al., "Beyond Myopic Alignment", CVPR 2026.
    """
    reservoir = make_reservoir(problem, hyper)
    return make_replay_learner(make_update(problem, hyper), hyper, reservoir)
