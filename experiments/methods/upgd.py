"""UPGD: descent on the stream that spares useful weights and perturbs the others."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

import lamaml_jax as lm
from experiments.methods.cost import Cost, updates_per_row
from experiments.methods.descent import clip_by_norm
from experiments.methods.problem import Problem
from experiments.methods.replay import SgdInfo, make_replay_learner
from experiments.schema.fields import Rate, Share
from experiments.schema.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpgdHyperparameters(Hyperparameters):
    """What UPGD is told besides."""

    utility_decay: Share
    """Share of the running utility that an update keeps."""
    noise_scale: Rate
    """Standard deviation of the noise on a gradient."""
    weight_decay: Rate
    """Decay of the weights, in units of the learning rate."""


def make_update(
    problem: Problem, hyper: UpgdHyperparameters
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Builds one step of UPGD on given rows.

    Args:
        problem: gives the loss.
        hyper: gives ``utility_decay``, ``noise_scale``, ``weight_decay``,
            ``learning_rate`` and ``max_grad_norm``.

    Returns:
        The optimiser and ``update(key, weights, opt_state, rows, mask) -> weights,
        opt_state, info``.
    """
    tx = optax.chain(
        clip_by_norm(hyper.max_grad_norm),
        lm.scale_by_utility(hyper.utility_decay, hyper.noise_scale),
        optax.add_decayed_weights(hyper.weight_decay),
        optax.scale_by_learning_rate(hyper.learning_rate),
    )

    def mean_loss(weights, rows, mask) -> jax.Array:
        return lm.losses.masked_mean(problem.loss_fn(weights, rows), mask)

    def update(
        key, weights, opt_state, rows, mask
    ) -> tuple[lm.Params, optax.OptState, SgdInfo]:
        loss, grads = jax.value_and_grad(mean_loss)(weights, rows, mask)
        updates, opt_state = tx.update(grads, opt_state, weights, key=key)
        info = SgdInfo(loss, optax.tree.norm(grads))
        return optax.apply_updates(weights, updates), opt_state, info

    return tx, update


def cost(problem: Problem, hyper: UpgdHyperparameters) -> Cost:
    """Counts a gradient of the incoming rows per glance; nothing is kept."""
    del problem
    return Cost(updates_per_row(hyper) * hyper.batch_size, 0)


def upgd(problem: Problem, hyper: UpgdHyperparameters) -> lm.Learner:
    """UPGD: SGD without a memory, smaller steps for useful weights, noise for others.

    The utility is of first order and compared over all weights. Unlike the published
    rule, gradients are clipped by their norm, as those of all methods here.

    References:
        Elsayed and Mahmood 2024, arXiv:2404.00781.
    """
    return make_replay_learner(make_update(problem, hyper), hyper, None)
