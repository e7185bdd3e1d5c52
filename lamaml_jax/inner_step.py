"""One inner step, w_i = w_{i-1} - rect(a) * d_i, in the parts that it is made of."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, grain, losses, types

AdaptMask: TypeAlias = types.PyTree | Callable[[types.Params], types.PyTree] | None


class InnerBatch(NamedTuple):
    """What one inner step sees, leaves [S, ...]; of all steps, leaves [K, S, ...]."""

    rows: types.Batch
    mask: types.Mask | None
    """[S] booleans, True = valid, or None."""
    key: types.Key | None
    """For a loss that draws random numbers, or None."""


class InnerRule(NamedTuple):
    """The three parts of an inner step, w_i = move(w_{i-1}, a, direct(grad L_i))."""

    loss_and_grads: Callable[[types.Params, InnerBatch], tuple[jax.Array, types.Params]]
    """Mean loss L_i (nats) and its gradient, as it is."""
    direct: Callable[
        [types.Params, optax.OptState, types.Params, InnerBatch],
        tuple[types.Params, optax.OptState],
    ]
    """``(grads, opt_state, weights, batch) -> (d_i, opt_state)``: adapt_mask, clip and
    inner_tx."""
    move: Callable[[types.Params, types.StepSizes, types.Params], types.Params]
    """``w_i = w_{i-1} - rect(a) * d_i``, leaf by leaf."""
    init: Callable[[types.Params], optax.OptState]
    """State of inner_tx, new for each adaptation."""
    rectify: bool
    """Whether rect is relu or the identity."""


def resolve_adapt_mask(adapt_mask: AdaptMask, weights: types.Params) -> types.Params:
    """Expands ``adapt_mask`` to one Python bool per leaf of ``weights``.

    Args:
        adapt_mask: None (all leaves adapt), a pytree of bools with the structure of
            ``weights`` or a prefix of it, or a function from weights to such a tree. A
            tree whose leaves are all bools is a tree even where its container, such as
            an equinox module, can be called.
        weights: any pytree.

    Returns:
        Tree of Python bools with the structure of ``weights``.

    Raises:
        ValueError: the tree is no prefix of ``weights``.
        TypeError: a leaf is not a bool.
    """
    if adapt_mask is None:
        return jax.tree.map(lambda _: True, weights)
    mask = checks.called(adapt_mask, weights)
    checks.check_bool_prefix("adapt_mask", mask, "weights", weights)
    return jax.tree.map(
        lambda flag, part: jax.tree.map(lambda _: flag, part), mask, weights
    )


def make_inner_rule(
    loss_fn: types.LossFn,
    weights: types.Params,
    *,
    rectify: bool,
    clip: chex.Numeric | None,
    adapt_mask: AdaptMask,
    inner_tx: optax.GradientTransformation | None,
) -> InnerRule:
    """Builds the inner step from the options of ``adapt``.

    Args:
        loss_fn: as in ``adapt``, and so are the options.
        weights: slow weights, of which only the tree matters.
        rectify: use relu of the step sizes.
        clip: bound on each element of a gradient, or None.
        adapt_mask: the leaves that adapt.
        inner_tx: transformation of the gradients, or None.

    Returns:
        An ``InnerRule``.
    """
    adapted = resolve_adapt_mask(adapt_mask, weights)
    tx = optax.with_extra_args_support(inner_tx or optax.identity())

    def mean_loss(weights: types.Params, batch: InnerBatch) -> jax.Array:
        loss = losses.with_extras(loss_fn, key=batch.key)
        return losses.mean_loss(loss, weights, batch.rows, batch.mask)

    def hide(grads: types.Params) -> types.Params:
        return jax.tree.map(lambda g, a: g if a else jnp.zeros_like(g), grads, adapted)

    def direct(
        grads: types.Params,
        opt_state: optax.OptState,
        weights: types.Params,
        batch: InnerBatch,
    ) -> tuple[types.Params, optax.OptState]:
        grads = hide(grads)
        if clip is not None:
            bound = jnp.asarray(clip)
            grads = jax.tree.map(
                lambda g: jnp.clip(g, -bound.astype(g.dtype), bound.astype(g.dtype)),
                grads,
            )
        if inner_tx is None:
            return grads, opt_state
        if batch.mask is None:
            directions, after = tx.update(grads, opt_state, weights)
            return hide(directions), after
        # A fully masked inner batch is no step, not one that momentum goes on with.
        # inner_tx sees ones in its place: roots and norms have no slope at zero, and a
        # NaN passes through the branch not taken.
        is_step = jnp.any(batch.mask)
        grads = jax.tree.map(lambda g: jnp.where(is_step, g, 1), grads)
        directions, after = tx.update(grads, opt_state, weights)
        zero = lambda d: jnp.where(is_step, d, 0)
        keep = lambda new, old: jnp.where(is_step, new, old)
        return (
            jax.tree.map(zero, hide(directions)),
            jax.tree.map(keep, after, opt_state),
        )

    def move(
        weights: types.Params, step_sizes: types.StepSizes, directions: types.Params
    ) -> types.Params:
        def step(weight: jax.Array, rate: jax.Array, direction: jax.Array) -> jax.Array:
            rate = jax.nn.relu(rate) if rectify else rate
            return weight - rate.astype(weight.dtype) * direction

        rates = grain.spread(step_sizes, weights)
        return jax.tree.map(step, weights, rates, directions)

    return InnerRule(jax.value_and_grad(mean_loss), direct, move, tx.init, rectify)
