"""Meta-BGD: Bayesian gradient descent on the meta-loss of La-MAML."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import lamaml_jax as lm
from experiments.methods.common import make_reservoir, valid_rows
from experiments.methods.cost import (
    Cost,
    bytes_of,
    rows_in_meta_gradient,
    updates_per_row,
)
from experiments.methods.descent import clip_by_norm
from experiments.methods.problem import Problem
from experiments.schema.fields import POSITIVE, Count, Positive, Rate
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaBgdHyperparameters(Hyperparameters):
    """What Meta-BGD is told besides."""

    mc_samples: Count
    """Monte-Carlo draws per update."""
    std_init: Positive
    """Initial standard deviation of every parameter."""
    mean_learning_rate: Annotated[Rate, POSITIVE]
    """Learning rate of the means (eta)."""


class MetaBgdState(NamedTuple):
    """State of Meta-BGD: a normal distribution of every parameter, and the memory."""

    weights: lm.Params
    """Means of the weights, with which the method predicts."""
    step_sizes: lm.Params
    """Means of the step sizes."""
    weight_stds: lm.Params
    """Standard deviations of the weights."""
    step_size_stds: lm.Params
    """Standard deviations of the step sizes."""
    reservoir: lm.ReservoirState


class MetaBgdInfo(NamedTuple):
    """What one update reports of each draw."""

    meta_loss: jax.Array
    """[S] before the update, nats."""
    weight_grad_norm: jax.Array
    """[S] global norm of the weights' meta-gradient before clipping."""
    step_size_grad_norm: jax.Array
    """[S] global norm of the step sizes' meta-gradient, which is not clipped."""


def bayes_update(
    mean: jax.Array, std: jax.Array, grad: jax.Array, grad_noise: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
    """Closed-form step of Bayesian gradient descent, element by element.

    Args:
        mean: mean of the parameter, any shape.
        std: standard deviation, the same shape.
        grad: expectation of the gradient g at a draw ``mean + std * noise``.
        grad_noise: expectation of ``g * noise``.
        rate: learning rate of the mean (eta).

    Returns:
        ``mean - rate * std**2 * grad`` and ``std * (sqrt(1 + x**2) - x)`` with ``x =
        std * grad_noise / 2``. The difference is written so that no rounding makes a
        positive deviation 0 before it is too small for its type.

    References:
        Zeno et al. 2018, arXiv:1803.10123, algorithm 1.
    """
    x = std * grad_noise / 2
    root = jnp.sqrt(1 + x * x)
    factor = jnp.where(x > 0, 1 / (root + jnp.abs(x)), root - x)
    return mean - rate * std**2 * grad, std * factor


def make_update(
    loss_fn: lm.LossFn, hyper: MetaBgdHyperparameters
) -> Callable[..., Any]:
    """Builds one update on given draws.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        hyper: the resolved hyper-parameters.

    Returns:
        ``update(mean, std, noise, support, query, support_mask, query_mask) -> mean,
        std, info``. Mean, std and noise are ``MetaParams``. Every argument after std
        has a leading axis for the draws: standard normal noise, support leaves [S, K,
        R, ...] and query leaves [S, Q, ...]. Each draw's meta-gradient, that of the
        weights clipped by its global norm, counts as many times as there are incoming
        rows: Bayes' rule is about their joint loss, not its mean.
    """
    meta_value_and_grad = lm.meta_value_and_grad(
        loss_fn,
        objective=hyper.objective,
        first_order=hyper.first_order,
        rectify=hyper.rectify,
        clip=hyper.inner_clip,
    )
    clip = clip_by_norm(hyper.max_grad_norm)

    def update(
        mean, std, noise, support, query, support_mask, query_mask
    ) -> tuple[lm.MetaParams, lm.MetaParams, MetaBgdInfo]:
        def draw(sums, inputs) -> tuple[Any, MetaBgdInfo]:
            noise, support, query, support_mask, query_mask = inputs
            params = jax.tree.map(lambda m, s, n: m + s * n, mean, std, noise)
            (loss, _), grads = meta_value_and_grad(
                params, support, query, support_mask, query_mask
            )
            info = MetaBgdInfo(loss, *map(optax.tree.norm, grads))
            clipped, _ = clip.update(grads.weights, optax.EmptyState())
            num_rows = jnp.sum(support_mask)
            grads = jax.tree.map(
                lambda g: num_rows.astype(g.dtype) * g,
                lm.MetaParams(clipped, grads.step_sizes),
            )
            products = jax.tree.map(jnp.multiply, grads, noise)
            return jax.tree.map(jnp.add, sums, (grads, products)), info

        zeros = jax.tree.map(jnp.zeros_like, mean)
        inputs = (noise, support, query, support_mask, query_mask)
        sums, infos = jax.lax.scan(draw, (zeros, zeros), inputs)
        num_draws = infos.meta_loss.shape[0]
        expected = jax.tree.map(lambda total: total / num_draws, sums)
        pairs = jax.tree.map(
            functools.partial(bayes_update, rate=hyper.mean_learning_rate),
            mean,
            std,
            *expected,
        )
        mean, std = jax.tree.transpose(jax.tree.structure(mean), None, pairs)
        return mean, std, infos

    return update


def normal_like(key: lm.Key, tree: Any) -> Any:
    """Standard normal draws in the shapes and types of a tree's leaves."""
    # Drawn as one vector: compiling a draw for each leaf took most of the compilation.
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def cost(problem: Problem, hyper: MetaBgdHyperparameters) -> Cost:
    """Counts a meta-gradient per draw and glance, and the reservoir."""
    draws = hyper.mc_samples
    return Cost(
        updates_per_row(hyper) * draws * rows_in_meta_gradient(hyper),
        (hyper.capacity or 0) * bytes_of(problem.example),
    )


def _begin(
    hyper: MetaBgdHyperparameters, weights: lm.Params
) -> tuple[lm.Params, lm.Params, lm.Params, lm.Params]:
    """Means of weights and step sizes, and the deviations of both."""
    step_sizes, weight_stds, step_size_stds = (
        jax.tree.map(lambda w, value=value: jnp.full_like(w, value), weights)
        for value in (hyper.step_size_init, hyper.std_init, hyper.std_init)
    )
    return weights, step_sizes, weight_stds, step_size_stds


def _draw(
    hyper: Hyperparameters,
    reservoir: lm.Reservoir,
    add_key: lm.Key,
    weights: lm.Params,
    incoming: tuple[lm.Batch, lm.Mask, Any],
    memory: lm.ReservoirState,
    inputs: tuple[lm.Key, jax.Array],
) -> tuple[lm.ReservoirState, Any]:
    """Draws noise like ``weights``, a shuffle of the incoming rows, and rows to replay.

    ``incoming`` are rows, their mask and whether they are remembered; ``inputs`` a key
    and whether this is the draw that offers them to the reservoir.
    """
    key, is_first = inputs
    batch, batch_mask, remember = incoming
    noise_key, shuffle_key, replay_key = jax.random.split(key, 3)
    support, support_mask, rows, row_mask = lm.split_support(
        shuffle_key, batch, batch_mask, hyper.inner_steps
    )
    old, old_mask, memory = reservoir.sample_and_add(
        replay_key,
        add_key,
        memory,
        hyper.replay_size,
        rows,
        row_mask & remember & is_first,
    )
    query, query_mask = lm.join_replay(old, old_mask, batch, batch_mask)
    noise = normal_like(noise_key, lm.MetaParams(weights, weights))
    return memory, (noise, support, query, support_mask, query_mask)


def metabgd(problem: Problem, hyper: MetaBgdHyperparameters) -> lm.Learner:
    """Meta-BGD: means and deviations of weights and step sizes by Bayes' rule.

    Each of ``glances`` updates takes ``mc_samples`` draws; each draw has parameters, a
    shuffle and replayed rows of its own. The rows of a batch are offered to the
    reservoir by the first draw of the first glance, so that later ones may replay them,
    as published. Predictions are those of the means.

    Not taken over from the published code: an inner batch without rows, when they do
    not suffice for ``inner_steps``, makes it NaN there and is a step of 0 here; its
    memory of the last task switch is the live one under another name.

    References:
        Gupta et al. 2020, arXiv:2007.13904, a baseline of section 5; He et al. 2019,
        arXiv:1906.05201; Zeno et al. 2018, arXiv:1803.10123.

    Raises:
        UserError: ``mc_samples`` < 1.
    """
    if hyper.mc_samples < 1:
        raise UserError(f"mc_samples: expected at least 1, received {hyper.mc_samples}")
    reservoir = make_reservoir(problem, hyper)
    update = make_update(problem.loss_fn, hyper)

    def observe(
        key, state, batch, batch_mask=None, remember: Any = True
    ) -> tuple[MetaBgdState, MetaBgdInfo]:
        batch_mask = valid_rows(batch, batch_mask)
        glances_key, add_key = jax.random.split(key)
        draw = functools.partial(
            _draw,
            hyper,
            reservoir,
            add_key,
            state.weights,
            (batch, batch_mask, remember),
        )

        def glance(state, inputs) -> tuple[MetaBgdState, MetaBgdInfo]:
            key, is_first = inputs
            keys = jax.random.split(key, hyper.mc_samples)
            is_first &= jnp.arange(hyper.mc_samples) == 0
            memory, draws = jax.lax.scan(draw, state.reservoir, (keys, is_first))
            mean = lm.MetaParams(state.weights, state.step_sizes)
            std = lm.MetaParams(state.weight_stds, state.step_size_stds)
            mean, std, info = update(mean, std, *draws)
            moments = mean.weights, mean.step_sizes, std.weights, std.step_sizes
            return MetaBgdState(*moments, memory), info

        keys = jax.random.split(glances_key, hyper.glances)
        return jax.lax.scan(glance, state, (keys, jnp.arange(hyper.glances) == 0))

    def init(key: lm.Key, weights: lm.Params) -> MetaBgdState:
        del key
        return MetaBgdState(*_begin(hyper, weights), reservoir.init())

    return lm.Learner(init, observe)
