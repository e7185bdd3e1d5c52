"""The learned-rate rule alone: step sizes move first, then they scale the weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, types


class StepSizesState(NamedTuple):
    """State of ``scale_by_step_sizes``."""

    step_sizes: types.Params
    """One rate per weight, unitless; the tree and shapes of the weights."""
    step_size_tx_state: optax.OptState
    weight_tx_state: optax.OptState
    """State of ``weight_tx``; empty under the asynchronous rule."""


def _without_hidden(name: str, tree: Any, like: types.Params) -> Any:
    """Hides in ``tree`` what optax.masked or optax.partition hid in ``like``."""
    checks.check_covers(name, tree, like)
    return jax.tree.map(
        lambda leaf, part: leaf if checks.is_masked_node(leaf) else part,
        like,
        tree,
        is_leaf=checks.is_masked_node,
    )


def _initial_step_sizes(init: Any, params: types.Params) -> types.Params:
    if jax.tree_util.treedef_is_leaf(jax.tree.structure(init)):
        init = jax.tree.map(lambda _: init, params)
    else:
        init = _without_hidden("init", init, params)
    checks.check_step_size_init("init", init, params)

    def fill(leaf: jax.Array, value: Any) -> jax.Array:
        # Both branches are the value. The choice ties it to the parameter, so that
        # under shard_map step sizes vary over the same mesh axes as their weights;
        # otherwise their gradient would be summed over the devices.
        return jnp.where(leaf == leaf, *[jnp.asarray(value, leaf.dtype)] * 2)

    return jax.tree.map(fill, params, init)


def scale_by_step_sizes(
    init: Any,
    step_size_tx: optax.GradientTransformation,
    *,
    weight_tx: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Learns one rate per parameter and applies it to the incoming updates.

    ``update(updates, state, params, step_size_grads=g_a)`` first moves the step sizes,
    ``a' = a + step_size_tx(g_a)``, and then returns ``-relu(a') * updates`` (the
    asynchronous rule), or what ``weight_tx`` makes of the updates (the synchronous
    rule). It needs no loss, and so works under ``optax.masked`` and
    ``optax.partition``, where ``step_size_grads`` may be passed whole.

    Args:
        init: initial step sizes: one number for all, or a pytree with the structure of
            the parameters whose leaves are numbers or arrays of the leaf's shape.
        step_size_tx: any optax transformation of the step sizes' gradients, signed as
            optimisers are (``optax.sgd(eta)``); ``optax.set_to_zero()`` freezes them.
        weight_tx: None for the asynchronous rule, or an optax optimiser
            (``optax.sgd(rate)``) for the synchronous one.

    Returns:
        Transformation whose state is a ``StepSizesState``; step sizes have the dtypes
        of their parameters.

    Raises:
        ValueError: ``step_size_grads`` is missing, or trees or shapes disagree.
        TypeError: a parameter is not floating, a transformation is none.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import lamaml_jax as lm
        >>> tx = lm.scale_by_step_sizes(0.25, optax.sgd(0.5))
        >>> weights, grads = jnp.float32(1), jnp.float32(2)
        >>> state = tx.init(weights)
        >>> updates, state = tx.update(
        ...     grads, state, weights, step_size_grads=jnp.float32(-0.5)
        ... )
        >>> print(state.step_sizes, updates)
        0.5 -1.0

    References:
        Gupta et al. 2020, arXiv:2007.13904, Algorithm 1, lines 13 and 14.
    """
    checks.check_transformation("step_size_tx", step_size_tx)
    if weight_tx is not None:
        checks.check_transformation("weight_tx", weight_tx)
    step_size_tx = optax.with_extra_args_support(step_size_tx)
    weight_rule = optax.with_extra_args_support(weight_tx or optax.identity())

    def init_fn(params: types.Params) -> StepSizesState:
        checks.check_floating("params", params)
        step_sizes = _initial_step_sizes(init, params)
        return StepSizesState(
            step_sizes, step_size_tx.init(step_sizes), weight_rule.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: types.Params | None = None,
        *,
        step_size_grads: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        checks.check_given(
            "step_size_grads", step_size_grads, "scale_by_step_sizes.update"
        )
        step_size_grads = _without_hidden("step_size_grads", step_size_grads, updates)
        step_sizes = state.step_sizes
        checks.check_same_tree("updates", updates, "step_sizes", step_sizes)
        checks.check_same_tree("step_size_grads", step_size_grads, "updates", updates)
        moves, step_size_tx_state = step_size_tx.update(
            step_size_grads, state.step_size_tx_state, step_sizes, **extra_args
        )
        step_sizes = optax.apply_updates(step_sizes, moves)
        updates, weight_tx_state = weight_rule.update(
            updates, state.weight_tx_state, params, **extra_args
        )
        if weight_tx is None:
            updates = jax.tree.map(
                lambda g, a: -jax.nn.relu(a).astype(g.dtype) * g, updates, step_sizes
            )
        return updates, StepSizesState(step_sizes, step_size_tx_state, weight_tx_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
