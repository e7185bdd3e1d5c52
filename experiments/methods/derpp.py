"""DER++: experience replay of labels and of the logits given when a row was stored."""

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
from experiments.methods.replay import SgdState
from experiments.schema.fields import Rate
from experiments.schema.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class DerHyperparameters(Hyperparameters):
    """What DER++ is told besides."""

    logit_weight: Rate
    """Weight of the distance to the stored logits (alpha)."""
    label_weight: Rate
    """Weight of the replayed rows' cross-entropy (beta)."""


class DerInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Sum of the three terms before the update."""
    logit_distance: jax.Array
    """Mean squared distance of replayed rows' logits to those stored."""
    grad_norm: jax.Array
    """Global norm before clipping."""


def der_loss(problem: Problem, hyper: DerHyperparameters) -> Callable[..., Any]:
    """Builds the loss of DER++.

    Args:
        problem: loss and network.
        hyper: gives ``logit_weight`` and ``label_weight``.

    Returns:
        ``fn(weights, batch, mask, old, old_mask) -> loss, distance``: cross-entropy of
        the batch, plus the mean squared distance of the logits of the first half of the
        replayed rows ``old`` to their stored ``logits``, plus the cross-entropy of the
        second half, each with its weight.
    """

    def fn(weights, batch, mask, old, old_mask) -> tuple[jax.Array, jax.Array]:
        half = old_mask.shape[0] // 2
        first, second = (
            {name: rows[part] for name, rows in old.items() if name != "logits"}
            for part in (slice(half), slice(half, None))
        )
        logits = problem.logits_fn(weights, first["image"])
        squares = jnp.mean((logits - old["logits"][:half]) ** 2, axis=-1)
        distance = lm.losses.masked_mean(squares, old_mask[:half])
        loss = lm.losses.masked_mean(problem.loss_fn(weights, batch), mask)
        labels = problem.loss_fn(weights, second)
        loss += hyper.logit_weight * distance
        loss += hyper.label_weight * lm.losses.masked_mean(labels, old_mask[half:])
        return loss, distance

    return fn


def _example(problem: Problem) -> dict[str, jax.ShapeDtypeStruct]:
    logits = jax.ShapeDtypeStruct((problem.num_classes,), jnp.float32)
    return problem.example | {"logits": logits}


def cost(problem: Problem, hyper: Hyperparameters) -> Cost:
    """Counts a gradient of the batch and both draws per glance, and the reservoir."""
    rows = hyper.batch_size + 2 * (hyper.replay_size or 0)
    return Cost(
        updates_per_row(hyper) * rows,
        (hyper.capacity or 0) * bytes_of(_example(problem)),
    )


def derpp(problem: Problem, hyper: DerHyperparameters) -> lm.Learner:
    """DER++: two independent replay draws, one for logits and one for labels.

    Rows enter the reservoir after the last glance, with the logits of all outputs that
    the network gave them before its update. It keeps rows as they were shown, so that
    augmentation is not drawn anew.

    References:
        Buzzega et al. 2020, arXiv:2004.07211, equation 6.
    """
    reservoir = make_reservoir(problem, hyper, example=_example(problem))
    tx = clipped_sgd(hyper)
    value_and_grad = jax.value_and_grad(der_loss(problem, hyper), has_aux=True)

    def init(key: lm.Key, weights: lm.Params) -> SgdState:
        del key
        return SgdState(weights, tx.init(weights), reservoir.init())

    def observe(
        key, state, batch, batch_mask=None, remember: Any = True
    ) -> tuple[SgdState, DerInfo]:
        batch_mask = valid_rows(batch, batch_mask)
        replay_key, add_key = jax.random.split(key)

        def glance(state, inputs) -> tuple[SgdState, DerInfo]:
            glance_key, is_last = inputs
            logits = problem.logits_fn(state.weights, batch["image"])
            old, old_mask, memory = reservoir.sample_and_add(
                glance_key,
                add_key,
                state.reservoir,
                2 * hyper.replay_size,
                batch | {"logits": logits},
                batch_mask & remember & is_last,
            )
            # Half of the draws may be missing while the reservoir is small, and valid
            # ones come first: dealt in turn, both halves get their share.
            old, old_mask = jax.tree.map(
                lambda x: jnp.concatenate([x[::2], x[1::2]]), (old, old_mask)
            )
            (loss, distance), grads = value_and_grad(
                state.weights, batch, batch_mask, old, old_mask
            )
            updates, opt_state = tx.update(grads, state.opt_state, state.weights)
            weights = optax.apply_updates(state.weights, updates)
            info = DerInfo(loss, distance, optax.tree.norm(grads))
            return SgdState(weights, opt_state, memory), info

        return scan_glances(glance, state, replay_key, hyper.glances)

    return lm.Learner(init, observe)
