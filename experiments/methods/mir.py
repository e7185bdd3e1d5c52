"""MIR: of the rows that are drawn, those are replayed that the batch would harm."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.common import make_reservoir
from experiments.methods.descent import clipped_sgd
from experiments.methods.problem import Problem
from experiments.methods.replay import SgdInfo, make_replay_learner
from experiments.schema.fields import Count
from experiments.schema.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class MirHyperparameters(Hyperparameters):
    """What MIR is told besides."""

    candidates: Count
    """Rows drawn, of which the most interfered are replayed."""


def make_update(
    problem: Problem, hyper: MirHyperparameters
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Builds one step of MIR on given rows.

    Args:
        problem: gives the loss.
        hyper: gives ``candidates``, ``replay_size`` and the descent's.

    Returns:
        The optimiser and ``update(key, weights, opt_state, rows, mask) -> weights,
        opt_state, info``, the first ``candidates`` rows being those drawn.
    """
    tx = clipped_sgd(hyper)

    def mean_loss(weights, rows, mask) -> jax.Array:
        return lm.losses.masked_mean(problem.loss_fn(weights, rows), mask)

    def update(
        key, weights, opt_state, rows, mask
    ) -> tuple[lm.Params, optax.OptState, SgdInfo]:
        del key
        (old, old_mask), (new, new_mask) = (
            jax.tree.map(lambda x, p=part: x[p], (rows, mask))
            for part in (slice(hyper.candidates), slice(hyper.candidates, None))
        )
        loss, grads = jax.value_and_grad(mean_loss)(weights, new, new_mask)
        # The step that the batch alone would take, without the clip.
        ahead = jax.tree.map(lambda w, g: w - hyper.learning_rate * g, weights, grads)
        rise = problem.loss_fn(ahead, old) - problem.loss_fn(weights, old)
        rise = jnp.where(old_mask, rise, -jnp.inf)  # missing rows come last
        _, chosen = jax.lax.top_k(rise, hyper.replay_size)
        old, old_mask = jax.tree.map(lambda x: x[chosen], (old, old_mask))
        old_loss, old_grads = jax.value_and_grad(mean_loss)(weights, old, old_mask)
        grads = jax.tree.map(jnp.add, grads, old_grads)
        updates, opt_state = tx.update(grads, opt_state, weights)
        info = SgdInfo(loss + old_loss, optax.tree.norm(grads))
        return optax.apply_updates(weights, updates), opt_state, info

    return tx, update


def mir(problem: Problem, hyper: MirHyperparameters) -> lm.Learner:
    """MIR: replays those of the drawn rows whose loss a step on the batch raises most.

    In each glance, ``candidates`` different rows are drawn, and the ``replay_size`` of
    them replayed whose loss would rise most by a step on the incoming rows alone. The
    loss is the mean over the incoming rows plus that over the replayed ones.

    It costs what ER does: the candidates are passed forward only.

    The criterion is the one that compares the loss with that before the step. The
    authors' code draws from earlier tasks only; here no task is told, and rows of the
    current one may be drawn.

    Raises:
        ValueError: fewer candidates than rows to replay.

    References:
        Aljundi et al. 2019, arXiv:1908.04742.
    """
    if hyper.candidates < hyper.replay_size:
        raise ValueError(
            f"candidates: expected at least the {hyper.replay_size} rows to replay, "
            f"received {hyper.candidates}"
        )
    reservoir = make_reservoir(problem, hyper, replace=False)
    return make_replay_learner(
        make_update(problem, hyper), hyper, reservoir, hyper.candidates
    )
