"""The learned-rate rule alone: step sizes move first, then they scale the weights."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, grain, types

StepSizeInit: TypeAlias = (
    float | types.StepSizes | Callable[[types.Params], types.StepSizes]
)
"""Initial step sizes, as ``scale_by_step_sizes`` takes them."""


class StepSizesState(NamedTuple):
    """State of ``scale_by_step_sizes``.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import lamaml_jax as lm
        >>> tx = optax.chain(lm.scale_by_step_sizes(0.25, optax.sgd(0.5)))
        >>> state = tx.init({"w": jnp.zeros(2)})
        >>> print(state[0].step_sizes["w"], optax.tree.get(state, "step_sizes")["w"])
        [0.25 0.25] [0.25 0.25]
    """

    step_sizes: types.StepSizes
    """Rates, unitless: one per weight (the tree and shapes of the weights), or of the
    grain that ``init`` gave them."""
    step_size_tx_state: optax.OptState
    """State of ``step_size_tx``."""
    weight_tx_state: optax.OptState
    """State of ``weight_tx``; empty under the asynchronous rule."""


def _has_hidden(params: types.Params) -> bool:
    leaves = jax.tree.leaves(params, is_leaf=checks.is_masked_node)
    return any(checks.is_masked_node(leaf) for leaf in leaves)


def _without_hidden(
    name: str, tree: types.StepSizes, like: types.Params
) -> types.StepSizes:
    """Hides in ``tree`` what optax.masked or optax.partition hid in ``like``."""
    if not _has_hidden(like):
        return tree
    if checks.is_prefix(tree, like):
        hide = lambda part, below: below if checks.is_masked_node(below) else part
        return jax.tree.map(hide, tree, like)
    checks.check_covers(name, tree, like)
    return jax.tree.map(
        lambda leaf, part: leaf if checks.is_masked_node(leaf) else part,
        like,
        tree,
        is_leaf=checks.is_masked_node,
    )


def _fill(leaf: jax.Array, value: jax.typing.ArrayLike) -> jax.Array:
    """One rate per weight of a leaf.

    Both branches are the value. The choice ties it to the parameter, so that under
    shard_map step sizes vary over the same mesh axes as their weights; otherwise their
    gradient would be summed over the devices.
    """
    rate = jnp.asarray(value, leaf.dtype)
    return jnp.where(leaf == leaf, rate, rate)


def _tie(rate: jax.Array, part: types.Params) -> jax.Array:
    """A rate that many weights share, tied to all of them as in ``_fill``."""
    for leaf in jax.tree.leaves(part):
        rate = jnp.where(jnp.any(leaf == leaf), rate, rate)
    return rate


def _initial_step_sizes(
    name: str, init: StepSizeInit, params: types.Params
) -> types.StepSizes:
    """Step sizes as ``scale_by_step_sizes`` describes them, under the name ``init``."""
    is_function = checks.is_function(init)
    rates = checks.called(init, params)
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(rates))
    if is_leaf and not is_function and jnp.ndim(rates) == 0:
        checks.check_rate(name, rates)
        return jax.tree.map(lambda leaf: _fill(leaf, rates), params)
    rates = _without_hidden(name, rates, params)
    checks.check_step_size_init(name, rates, params)

    def start(value: jax.typing.ArrayLike, part: types.Params) -> types.StepSizes:
        below = jax.tree.leaves(part)
        dtype = jnp.result_type(*below) if below else jnp.result_type(float)
        if is_function or jnp.ndim(value) > 0:
            given = jnp.result_type(value)
            is_kept = hasattr(value, "dtype") and jnp.issubdtype(given, jnp.floating)
            return _tie(jnp.asarray(value, given if is_kept else dtype), part)
        return jax.tree.map(lambda leaf: _fill(leaf, value), part)

    return jax.tree.map(start, rates, params)


def scale_by_step_sizes(
    init: StepSizeInit,
    step_size_tx: optax.GradientTransformation,
    *,
    weight_tx: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Learns step sizes and applies them to the incoming updates.

    ``update(updates, state, params, step_size_grads=g_a)`` first moves the step sizes,
    ``a' = a + step_size_tx(g_a)``, and then returns ``-relu(a') * updates`` (the
    asynchronous rule), or what ``weight_tx`` makes of the updates (the synchronous
    rule). It needs no loss, and so works under ``optax.masked`` and
    ``optax.partition``, where ``step_size_grads`` may be passed whole.

    Args:
        init: initial step sizes, unitless and at least 0. One number, or a tree of
            numbers in the structure of the parameters or a prefix of it, gives every
            parameter a rate of its own. Arrays in such a tree keep their shapes, which
            must broadcast to those of the parameters: ``[1, H]`` beside weights ``[D,
            H]`` is a rate per column. A function of the parameters returns step sizes
            that are kept as they are: ``lambda params: 0.1`` is one rate for all,
            ``lambda params: jax.tree.map(lambda _: 0.1, params)`` one per leaf. Under
            ``optax.inject_hyperparams``, which takes a function for a schedule, name it
            in ``static_args``.
        step_size_tx: any optax transformation of the step sizes' gradients, signed as
            optimisers are (``optax.sgd(eta)``); ``optax.set_to_zero()`` freezes them.
        weight_tx: None for the asynchronous rule, or an optax optimiser
            (``optax.sgd(rate)``) for the synchronous one.

    Returns:
        Transformation whose state is a ``StepSizesState``; step sizes have the dtypes
        of their parameters, unless an array gave its own.

    Raises:
        ValueError: ``step_size_grads`` is missing, trees or shapes disagree, or an
            initial number is negative or NaN.
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
    return make_rule("init", init, step_size_tx, weight_tx)


def with_extra_args(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """``optax.with_extra_args_support``, which takes MultiSteps for one without."""
    if isinstance(getattr(tx.update, "__self__", None), optax.MultiSteps):
        return optax.GradientTransformationExtraArgs(tx.init, tx.update)
    return optax.with_extra_args_support(tx)


def make_rule(
    name: str,
    init: StepSizeInit,
    step_size_tx: optax.GradientTransformation,
    weight_tx: optax.GradientTransformation | None,
) -> optax.GradientTransformationExtraArgs:
    """``scale_by_step_sizes``, whose caller knows ``init`` under another ``name``."""
    checks.check_transformation("step_size_tx", step_size_tx)
    if weight_tx is not None:
        checks.check_transformation("weight_tx", weight_tx)
    step_size_tx = with_extra_args(step_size_tx)
    weight_rule = with_extra_args(weight_tx or optax.identity())

    def init_fn(params: types.Params) -> types.PyTree:
        checks.check_floating("params", params)
        step_sizes = _initial_step_sizes(name, init, params)
        return StepSizesState(
            step_sizes, step_size_tx.init(step_sizes), weight_rule.init(params)
        )

    def update_fn(
        updates: optax.Updates,
        state: types.PyTree,
        params: types.Params | None = None,
        *,
        step_size_grads: types.StepSizes = None,
        **extra_args: object,
    ) -> tuple[types.PyTree, types.PyTree]:
        checks.check_given(
            "step_size_grads", step_size_grads, "scale_by_step_sizes.update"
        )
        step_sizes = state.step_sizes
        step_size_grads = _without_hidden(
            "step_size_grads", step_size_grads, step_sizes
        )
        checks.check_grain("step_sizes", step_sizes, "updates", updates)
        checks.check_same_tree(
            "step_size_grads", step_size_grads, "step_sizes", step_sizes
        )
        weight_args, rate_args = dict(extra_args), dict(extra_args)
        grads = extra_args.get("grad")
        if isinstance(grads, types.MetaParams):
            weight_args["grad"], rate_args["grad"] = grads
        # First the step sizes, a' = a + step_size_tx(g_a) ...
        moves, step_size_tx_state = step_size_tx.update(
            step_size_grads, state.step_size_tx_state, step_sizes, **rate_args
        )
        step_sizes = optax.apply_updates(step_sizes, moves)
        # ... then the weights, by weight_tx or by -relu(a') * g_w.
        updates, weight_tx_state = weight_rule.update(
            updates, state.weight_tx_state, params, **weight_args
        )
        if weight_tx is None:
            updates = jax.tree.map(
                lambda g, a: -jax.nn.relu(a).astype(g.dtype) * g,
                updates,
                grain.spread(step_sizes, updates),
            )
        return updates, StepSizesState(step_sizes, step_size_tx_state, weight_tx_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
