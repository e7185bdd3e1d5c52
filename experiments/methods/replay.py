"""Plain gradient descent on the stream: with replay (ER, ER-ACE) and without."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.common import make_reservoir, scan_glances, valid_rows
from experiments.methods.cost import (
    Cost,
    bytes_of,
    rows_in_query,
    updates_per_row,
)
from experiments.methods.descent import clipped_sgd
from experiments.methods.problem import Problem
from experiments.schema.hyperparameters import Hyperparameters


class SgdState(NamedTuple):
    """State of a method that descends the loss of the rows it sees."""

    weights: lm.Params
    opt_state: optax.OptState
    reservoir: lm.ReservoirState | None


class SgdInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Mean loss over incoming and replayed rows before the update, nats."""
    grad_norm: jax.Array
    """Global norm before clipping."""


def make_update(
    loss_fn: lm.LossFn, hyper: Hyperparameters
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Builds one step of SGD on given rows.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        hyper: gives ``learning_rate`` and ``max_grad_norm``.

    Returns:
        The optimiser and ``update(key, weights, opt_state, rows, mask) -> weights,
        opt_state, info``, which does not read the key.
    """

    def mean_loss(weights, rows, mask) -> jax.Array:
        return lm.losses.masked_mean(loss_fn(weights, rows), mask)

    return _make_descent(mean_loss, hyper)


def _make_descent(
    mean_loss: Callable[..., Any], hyper: Hyperparameters
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Builds the step of ``make_update`` on ``mean_loss(weights, rows, mask)``."""
    tx = clipped_sgd(hyper)

    def update(
        key, weights, opt_state, rows, mask
    ) -> tuple[lm.Params, optax.OptState, SgdInfo]:
        del key
        loss, grads = jax.value_and_grad(mean_loss)(weights, rows, mask)
        updates, opt_state = tx.update(grads, opt_state, weights)
        info = SgdInfo(loss, optax.tree.norm(grads))
        return optax.apply_updates(weights, updates), opt_state, info

    return tx, update


def make_replay_learner(
    step: tuple[optax.GradientTransformation, Callable],
    hyper: Hyperparameters,
    reservoir: lm.Reservoir | None,
    num_draws: int | None = None,
) -> lm.Learner:
    """Descends on incoming plus replayed rows, ``glances`` times per batch.

    Rows are offered to the reservoir after the last glance, as published.

    Args:
        step: as ``make_update`` returns it. The key that it is given is new in each
            glance; of its rows, the replayed ones come first.
        hyper: gives ``glances`` and ``replay_size``.
        reservoir: None replays nothing.
        num_draws: rows drawn in each glance; ``replay_size`` of them if None.

    Returns:
        A learner with an ``SgdState``.
    """
    tx, update = step
    num_draws = num_draws or hyper.replay_size

    def init(key: lm.Key, weights: lm.Params) -> SgdState:
        del key
        memory = None if reservoir is None else reservoir.init()
        return SgdState(weights, tx.init(weights), memory)

    def observe(
        key: lm.Key,
        state: SgdState,
        batch: lm.Batch,
        batch_mask: lm.Mask | None = None,
        remember: Any = True,
    ) -> tuple[SgdState, SgdInfo]:
        batch_mask = valid_rows(batch, batch_mask)
        replay_key, add_key = jax.random.split(key)

        def glance(state, inputs) -> tuple[SgdState, SgdInfo]:
            glance_key, is_last = inputs
            rows, row_mask, memory = batch, batch_mask, None
            if reservoir is not None:
                old, old_mask, memory = reservoir.sample_and_add(
                    glance_key,
                    add_key,
                    state.reservoir,
                    num_draws,
                    batch,
                    batch_mask & remember & is_last,
                )
                rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, batch)
                row_mask = jnp.concatenate([old_mask, batch_mask])
            weights, opt_state, info = update(
                jax.random.fold_in(glance_key, 1),  # the draw has the key itself
                state.weights,
                state.opt_state,
                rows,
                row_mask,
            )
            return SgdState(weights, opt_state, memory), info

        return scan_glances(glance, state, replay_key, hyper.glances)

    return lm.Learner(init, observe)


def cost(problem: Problem, hyper: Hyperparameters) -> Cost:
    """Counts a gradient of incoming and replayed rows per glance, and the reservoir."""
    return Cost(
        updates_per_row(hyper) * rows_in_query(hyper),
        (hyper.capacity or 0) * bytes_of(problem.example),
    )


def er(problem: Problem, hyper: Hyperparameters) -> lm.Learner:
    """ER, experience replay: SGD on incoming and replayed rows together.

    References:
        Chaudhry et al. 2019, arXiv:1902.10486.
    """
    reservoir = make_reservoir(problem, hyper)
    return make_replay_learner(make_update(problem.loss_fn, hyper), hyper, reservoir)


def er_ace(problem: Problem, hyper: Hyperparameters) -> lm.Learner:
    """ER-ACE: ER whose incoming rows compete with the classes of the batch only.

    The loss is the mean over the incoming rows of their cross-entropy over the classes
    in the batch, plus the mean over the replayed rows of theirs over all classes.

    References:
        Caccia et al. 2022, arXiv:2104.05025.
    """
    reservoir = make_reservoir(problem, hyper)

    def mean_loss(weights, rows, mask) -> Any:
        logits = problem.logits_fn(weights, rows["image"])
        is_replayed = jnp.arange(mask.shape[0]) < hyper.replay_size
        losses = lm.losses.asymmetric_cross_entropy(
            logits, rows["label"], is_replayed, mask
        )
        parts = (mask & part for part in (is_replayed, ~is_replayed))
        return sum(lm.losses.masked_mean(losses, part) for part in parts)

    return make_replay_learner(_make_descent(mean_loss, hyper), hyper, reservoir)


def online(problem: Problem, hyper: Hyperparameters) -> lm.Learner:
    """Online: SGD on the incoming rows alone.

    References:
        Gupta et al. 2020, arXiv:2007.13904, a baseline.
    """
    return make_replay_learner(make_update(problem.loss_fn, hyper), hyper, None)


def iid(problem: Problem, hyper: Hyperparameters) -> lm.Learner:
    """IID: Online on the rows of all tasks mixed, an upper bound; ER where it replays.

    The rows are mixed by whoever shows them, see ``Method.mixes_tasks``. With a
    ``replay_size`` it is ER on them, at ER's cost, as the ceiling of online benchmarks
    is in the survey of Soutif-Cormerais et al. 2023, arXiv:2308.10328.

    References:
        Gupta et al. 2020, arXiv:2007.13904, a baseline.
    """
    reservoir = make_reservoir(problem, hyper) if hyper.replay_size else None
    return make_replay_learner(make_update(problem.loss_fn, hyper), hyper, reservoir)
