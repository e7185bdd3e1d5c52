"""La-MAML, its published relatives Sync and C-MAML, and two later uses of them."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.common import as_replayed, make_reservoir
from experiments.methods.cost import (
    Cost,
    bytes_of,
    rows_in_meta_gradient,
    updates_per_row,
)
from experiments.methods.problem import Problem
from experiments.schema.fields import Share
from experiments.schema.hyperparameters import Hyperparameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookAheadHyperparameters(Hyperparameters):
    """What methods that look ahead may be told besides; no preset sets any of it."""

    grain: Literal["parameter", "channel", "leaf", "all"] | None = None
    """Weights that share a step size: those of a parameter, channel, leaf, or all."""
    inner_momentum: Share | None = None
    """Share of the last inner gradient that goes on in the next inner step."""
    memory: Literal["uniform", "balanced"] | None = None
    """Rows that are kept: a uniform sample, or one balanced over classes."""
    replay_weight: Share | None = None
    """Weight of the replayed rows' mean loss, which is 1 minus the incoming ones'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VrmclHyperparameters(LookAheadHyperparameters):
    """What VR-MCL is told besides."""

    momentum: Share
    """Share of the running meta-gradient."""


def _step_size_init(hyper: LookAheadHyperparameters) -> Any:
    """One number, which gives every parameter its rate, or rates of a coarser grain."""
    value = hyper.step_size_init
    grains = {
        "channel": lambda leaf: jnp.full(leaf.shape[-1:], value, leaf.dtype),
        "leaf": lambda leaf: jnp.full((), value, leaf.dtype),
    }
    if hyper.grain == "all":
        return lambda weights: jnp.asarray(value, jnp.float32)
    if (rates := grains.get(hyper.grain or "parameter")) is not None:
        return lambda weights: jax.tree.map(rates, weights)
    return value


def make_memory(problem: Problem, hyper: LookAheadHyperparameters) -> lm.Reservoir:
    """Builds the memory that ``hyper`` asks for."""
    if hyper.memory == "balanced":
        reservoir = lm.make_balanced_reservoir(
            hyper.capacity,
            problem.example,
            num_classes=problem.num_classes,
            label_fn=_labels,
        )
        return as_replayed(problem, reservoir)
    return make_reservoir(problem, hyper)


def _labels(rows: lm.Batch) -> jax.Array:
    return rows["label"]


def make_inner_tx(hyper: Hyperparameters) -> optax.GradientTransformation | None:
    """What inner gradients pass through, or None; of methods that look ahead only."""
    momentum = getattr(hyper, "inner_momentum", None)
    return None if momentum is None else optax.trace(momentum)


def make_unroll(problem: Problem, hyper: Hyperparameters) -> int | None:
    """How many inner steps are unrolled; None leaves it to the library.

    Of a network of convolutions products take longer than passes over its weights, so
    that a few unrolled steps gain where a perceptron of that size would lose. Of many
    layers they take too long to compile: four steps of the reduced ResNet-18 three
    times as long as a loop, minutes, for a tenth of the time of an update.
    """
    if problem.has_few_convolutions and (hyper.inner_steps or 0) <= 5:
        return hyper.inner_steps
    return None


def _options(problem: Problem, hyper: LookAheadHyperparameters) -> dict[str, Any]:
    return {
        "step_size_init": _step_size_init(hyper),
        "meta_tx": lm.clip_meta_grads(hyper.max_grad_norm),
        "inner_steps": hyper.inner_steps,
        "objective": hyper.objective,
        "first_order": hyper.first_order,
        "rectify": hyper.rectify,
        "clip": hyper.inner_clip,
        "inner_tx": make_inner_tx(hyper),
        "reservoir": make_memory(problem, hyper),
        "replay_size": hyper.replay_size,
        "replay_weight": hyper.replay_weight,
        "unroll": make_unroll(problem, hyper),
    }


def cost(problem: Problem, hyper: Hyperparameters) -> Cost:
    """Counts a meta-gradient per glance, and the reservoir."""
    return Cost(
        updates_per_row(hyper) * rows_in_meta_gradient(hyper),
        (hyper.capacity or 0) * bytes_of(problem.example),
    )


def lamaml(problem: Problem, hyper: LookAheadHyperparameters) -> lm.Learner:
    """La-MAML: learned step sizes in the inner loop and for the weights.

    References:
        Gupta et al. 2020, arXiv:2007.13904, algorithm 1.
    """
    tx = lm.lamaml(
        problem.loss_fn,
        step_size_learning_rate=hyper.step_size_learning_rate,
        **_options(problem, hyper),
    )
    return lm.lamaml_learner(tx, glances=hyper.glances)


def sync(problem: Problem, hyper: LookAheadHyperparameters) -> lm.Learner:
    """Sync: learned step sizes in the inner loop, a fixed rate for the weights.

    References:
        Gupta et al. 2020, arXiv:2007.13904.
    """
    tx = lm.sync_lamaml(
        problem.loss_fn,
        step_size_learning_rate=hyper.step_size_learning_rate,
        weight_learning_rate=hyper.learning_rate,
        **_options(problem, hyper),
    )
    return lm.lamaml_learner(tx, glances=hyper.glances)


def cmaml(problem: Problem, hyper: LookAheadHyperparameters) -> lm.Learner:
    """C-MAML: fixed rates in both loops.

    References:
        Gupta et al. 2020, arXiv:2007.13904.
    """
    tx = lm.cmaml(
        problem.loss_fn,
        weight_learning_rate=hyper.learning_rate,
        **_options(problem, hyper),
    )
    return lm.lamaml_learner(tx, glances=hyper.glances)


def vrmcl(problem: Problem, hyper: VrmclHyperparameters) -> lm.Learner:
    """VR-MCL: La-MAML on a variance-reduced running meta-gradient.

    As its authors' code, the weights move at a ``learning_rate`` of their own, while
    the step sizes of the inner loop are learned; without one they move by the learned
    step sizes, as La-MAML's. That code clips each meta-gradient before the correction,
    here the corrected one is clipped; its step sizes follow the sum of the gradients at
    old and new weights, here they have a running one too.

    References:
        Wu et al., "Meta Continual Learning Revisited", ICLR 2024.
    """
    options: dict[str, Any] = _options(problem, hyper) | {
        "step_size_learning_rate": hyper.step_size_learning_rate,
        "momentum": hyper.momentum,
    }
    if hyper.learning_rate is None:
        tx = lm.lamaml(problem.loss_fn, **options)
    else:
        tx = lm.sync_lamaml(
            problem.loss_fn, weight_learning_rate=hyper.learning_rate, **options
        )
    return lm.lamaml_learner(tx, glances=hyper.glances)


def vrmcl_cost(problem: Problem, hyper: Hyperparameters) -> Cost:
    """Counts La-MAML's cost, twice for the meta-gradients: at old weights and new."""
    plain = cost(problem, hyper)
    return plain._replace(gradient_evaluations=2 * plain.gradient_evaluations)


def oml(problem: Problem, hyper: LookAheadHyperparameters) -> lm.Learner:
    """OML's split: the inner loop adapts the last layer, the outer loop all weights.

    Rates are fixed in both loops, as in C-MAML.

    References:
        Javed and White 2019, arXiv:1905.12588.
    """
    tx = lm.cmaml(
        problem.loss_fn,
        weight_learning_rate=hyper.learning_rate,
        adapt_mask=problem.head_fn,
        **_options(problem, hyper),
    )
    return lm.lamaml_learner(tx, glances=hyper.glances)
