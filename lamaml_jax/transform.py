"""La-MAML as one optax transformation; joins the pieces, no numerics of its own."""

from typing import NamedTuple, Unpack, cast

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import (
    batching,
    checks,
    clipping,
    info,
    losses,
    meta,
    step_sizes,
    types,
    variance_reduction,
)
from lamaml_jax.memory import Reservoir
from lamaml_jax.options import MetaOptions, with_options_of

_DATA_ARGUMENTS = (
    "support",
    "query",
    "support_mask",
    "query_mask",
    "query_weights",
    "batch",
    "batch_mask",
    "key",
    "remember",
)
_DEFAULT_MAX_NORM = 2.0


class LamamlState(NamedTuple):
    """State of ``lamaml_transform``.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> state = lm.lamaml(loss_fn, step_size_init=0.1).init(jnp.float32(0))
        >>> print(state.rule_state.step_sizes, state.reservoir)
        0.1 None
        >>> print(optax.tree.get((state,), "step_sizes"))  # inside a chain too
        0.1
    """

    rule_state: step_sizes.StepSizesState
    """Step sizes and the states of ``step_size_tx`` and ``weight_tx``."""
    meta_tx_state: optax.OptState
    """State of ``meta_tx``."""
    reservoir: types.PyTree
    """State of the reservoir, a pytree, or None."""
    variance_reduction: variance_reduction.VarianceReductionState | None
    """None unless ``momentum`` is given."""
    model_state: types.ModelState
    """What ``model_state_fn`` moves, such as running averages, a pytree; or None."""
    info: info.LamamlInfo
    """What there is to plot of the last update."""


class _Drawing(NamedTuple):
    """How support and query are drawn from a batch and the reservoir."""

    reservoir: Reservoir[types.PyTree] | None
    replay_size: int
    replay_weight: chex.Numeric | None
    inner_steps: int
    loss_takes_key: bool


class _Parts(NamedTuple):
    """What a transformation is made of, in the order of use."""

    value_and_grad: meta.MetaValueAndGrad
    reduction: (
        variance_reduction.VarianceReduction[tuple[jax.Array, meta.MetaInfo]] | None
    )
    meta_tx: optax.GradientTransformationExtraArgs
    rule: optax.GradientTransformationExtraArgs
    model_state_fn: types.ModelStateFn | None


class _Data(NamedTuple):
    """What a meta-gradient is taken on: arguments of ``MetaValueAndGrad``."""

    support: types.Batch
    query: types.Batch
    support_mask: types.Mask | None = None
    query_mask: types.Mask | None = None
    query_weights: jax.Array | None = None
    key: types.Key | None = None


def _draw(
    key: types.Key | None,
    memory: types.PyTree,
    batch: types.Batch,
    batch_mask: types.Mask | None,
    remember: chex.Numeric,
    drawing: _Drawing,
) -> tuple[_Data, types.PyTree]:
    """Makes support and query from a batch and the reservoir; then stores the batch."""
    checks.check_key("key", key)
    batch = checks.as_arrays("batch", batch)
    num_keys = 4 if drawing.loss_takes_key else 3
    keys = jax.random.split(cast(types.Key, key), num_keys)
    replay_key, shuffle_key, add_key, *more = keys
    loss_key = more[0] if more else None
    support, support_mask, rows, row_mask = batching.split_support(
        shuffle_key, batch, batch_mask, drawing.inner_steps
    )
    reservoir = drawing.reservoir
    if reservoir is None:
        data = _Data(support, batch, support_mask, batch_mask, key=loss_key)
        return data, memory
    replayed, replay_mask, memory = reservoir.sample_and_add(
        replay_key, add_key, memory, drawing.replay_size, rows, row_mask & remember
    )
    query, query_mask = batching.join_replay(replayed, replay_mask, batch, batch_mask)
    weights = None
    if drawing.replay_weight is not None:
        incoming_mask = query_mask[drawing.replay_size :]
        weights = batching.weigh_rows(replay_mask, incoming_mask, drawing.replay_weight)
    data = _Data(support, query, support_mask, query_mask, weights, loss_key)
    return data, memory


@with_options_of(meta.meta_value_and_grad)
def lamaml_transform(
    loss_fn: types.LossFn,
    *,
    step_size_init: step_sizes.StepSizeInit = 0.1,
    step_size_tx: optax.GradientTransformation = optax.sgd(0.25),
    weight_tx: optax.GradientTransformation | None = None,
    meta_tx: optax.GradientTransformation | None = None,
    inner_steps: int = 5,
    reservoir: Reservoir[types.PyTree] | None = None,
    replay_size: int = 10,
    replay_weight: chex.Numeric | None = None,
    momentum: chex.Numeric | None = None,
    loss_takes_key: bool = False,
    model_state: types.ModelState = None,
    model_state_fn: types.ModelStateFn | None = None,
    **options: Unpack[MetaOptions],
) -> optax.GradientTransformationExtraArgs:
    """Look-ahead meta-learning for continual learning as an optax transformation.

    One update, and who does what::

        query = R replayed rows + B incoming ones      reservoir, join_replay
        support = the B rows in K inner batches        split_support
        w_0 = w                                        adapt:
        for i = 1 ... K:
            w_i = w_{i-1} - rect(a) * grad L_i(w_{i-1})
        meta-loss = mean over i of L(w_i; query)       meta_value_and_grad:
        g_w, g_a = its gradients in w and a
        g_w, g_a = meta_tx(g_w + extra_grads, g_a)     clip_meta_grads
        a <- a - eta g_a                               scale_by_step_sizes:
        w <- w - relu(a) * g_w                         or weight_tx(g_w)
        the B rows are offered to the reservoir        make_reservoir

    The data come in either form::

        tx.update(extra_grads, state, params, support=..., query=...)
        tx.update(extra_grads, state, params, batch=rows, key=key, remember=True)

    The first takes support leaves [K, S, ...] and query leaves [Q, ...], with optional
    ``support_mask``, ``query_mask`` and ``query_weights``. The second takes rows [B,
    ...], with optional ``batch_mask``: the query is ``replay_size`` rows drawn from the
    reservoir (fewer while it holds fewer) followed by the batch, the support is the
    batch shuffled into K inner batches, and afterwards the rows are offered to the
    reservoir unless ``remember`` (a bool, may be traced) is False. Unknown extra
    arguments are ignored, but for misspelt ones of these.

    Args:
        loss_fn: ``(weights, batch) -> [B]`` per-example losses (nats); with explicit
            support and query and no masks a scalar mean will do.
        step_size_init: initial step sizes, as ``init`` of ``scale_by_step_sizes``: a
            number gives every parameter a rate of its own, a function any grain.
        step_size_tx: optax transformation of the step sizes' meta-gradient.
        weight_tx: None for the asynchronous rule (La-MAML), or an optimiser of the
            weights' meta-gradient for the synchronous one (Sync).
        meta_tx: optax transformation of the ``MetaParams`` of both meta-gradients, by
            default ``clip_meta_grads(2.0)``; ``optax.identity()`` for none. It,
            ``step_size_tx`` and ``weight_tx`` are handed ``value=``, the meta-loss, and
            ``grad=``, as ``optax.contrib.reduce_on_plateau`` and others ask.
        inner_steps: K, the number of inner steps.
        reservoir: from ``make_reservoir`` or ``make_balanced_reservoir``; its state, a
            pytree, then lives in this one's. None replays nothing.
        replay_size: R, rows drawn from the reservoir per update.
        replay_weight: None scores replayed and incoming rows in one mean, as published,
            so that R / (R + B) of it is replay; a number in [0, 1] scores each on their
            own, and gives the replayed ones that weight, unitless (see
            ``weigh_rows``).
        momentum: None for the plain meta-gradient, or the share, a number in [0, 1],
            unitless, of a running one of lower variance (see ``variance_reduced``),
            which stands in its place before ``extra_grads`` and ``meta_tx``. Doubles
            the cost of an update.
        loss_takes_key: ``loss_fn`` also takes ``key=``, new in every inner step and
            every query (dropout, augmentation); ``update`` then needs ``key=`` in both
            forms.
        model_state: what a model carries beside its weights before the first update,
            such as BatchNorm's running averages; any pytree of arrays. The loss is then
            handed ``model_state=`` too.
        model_state_fn: ``(weights, model_state, batch) -> model_state``, one pass per
            update over the rows of its query at the weights before it, or None to leave
            the state as it is. ``optax.tree.get(state, "model_state")`` is what
            evaluation needs. The function takes ``key=`` if the loss does.
        objective: as in ``meta_value_and_grad``, and so are the other options below.
        first_order: hold inner directions constant.
        rectify: use relu of the step sizes in the inner steps.
        clip: bound on each element of an inner gradient, a number in nats, or None.
        inner_tx: optax transformation of the inner gradients, or None.
        adapt_mask: the leaves that the inner loop adapts.
        inner_ad: how products with inner Hessians are taken.
        remat: recompute inner steps in the backward pass: True, False or "sqrt".
        unroll: inner steps unrolled per iteration, or None for what is fastest.

    Returns:
        Transformation whose state is a ``LamamlState``; ``optax.tree.get`` finds
        ``step_sizes``, ``reservoir``, ``model_state`` and ``info`` in it, also inside a
        chain. Its updates on the weights ``extra_grads`` are gradients: pass
        ``optax.tree.zeros_like(params)`` for plain La-MAML.

    Raises:
        ValueError: ``params`` or data missing or given in both forms, shapes, trees or
            choices wrong, weights hidden by ``optax.masked``, or a line search asked
            for.
        TypeError: weights, losses, masks or keys of another kind.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> tx = lm.lamaml_transform(loss_fn, inner_steps=2, step_size_init=0.5)
        >>> weights = jnp.float32(0)
        >>> state = tx.init(weights)
        >>> zeros = optax.tree.zeros_like(weights)
        >>> batch, key = jnp.ones(4), jax.random.key(0)
        >>> updates, state = tx.update(zeros, state, weights, batch=batch, key=key)
        >>> weights = optax.apply_updates(weights, updates)
        >>> print(weights, state.rule_state.step_sizes, state.info.meta_loss)
        0.09277344 0.59375 0.078125

    References:
        Gupta et al. 2020, arXiv:2007.13904, Algorithm 1. Differs from the authors' code
        where lamaml_jax/README.md says so.
    """
    inner_steps = checks.check_count("inner_steps", inner_steps)
    replay_size = checks.check_count("replay_size", replay_size)
    if replay_weight is not None:
        checks.check_share("replay_weight", replay_weight)
        checks.check_given("reservoir", reservoir, "replay_weight")
    if model_state_fn is not None:
        checks.check_given("model_state", model_state, "model_state_fn")
    if meta_tx is None:
        meta_tx = clipping.clip_meta_grads(_DEFAULT_MAX_NORM)
    checks.check_transformation("meta_tx", meta_tx)
    value_and_grad, reduction = meta.meta_value_and_grad(loss_fn, **options), None
    if momentum is not None:
        reduction = variance_reduction.variance_reduced(value_and_grad, momentum)
    drawing = _Drawing(
        reservoir, replay_size, replay_weight, inner_steps, loss_takes_key
    )
    parts = _Parts(
        value_and_grad,
        reduction,
        step_sizes.with_extra_args(meta_tx),
        step_sizes.make_rule("step_size_init", step_size_init, step_size_tx, weight_tx),
        model_state_fn,
    )

    def init_fn(params: types.Params) -> types.PyTree:
        checks.check_unmasked("params", params)
        rule_state: types.PyTree = parts.rule.init(params)
        meta_params = types.MetaParams(params, rule_state.step_sizes)
        return LamamlState(
            rule_state,
            parts.meta_tx.init(meta_params),
            None if reservoir is None else reservoir.init(),
            None if reduction is None else reduction.init(meta_params),
            jax.tree.map(jnp.array, model_state),
            info.empty_info(inner_steps, options.get("objective", "mean")),
        )

    def update_fn(
        updates: optax.Updates,
        state: types.PyTree,
        params: types.Params | None = None,
        *,
        support: types.Batch = None,
        query: types.Batch = None,
        support_mask: types.Mask | None = None,
        query_mask: types.Mask | None = None,
        query_weights: jax.Array | None = None,
        batch: types.Batch = None,
        batch_mask: types.Mask | None = None,
        key: types.Key | None = None,
        remember: chex.Numeric = True,
        **extra_args: object,
    ) -> tuple[types.PyTree, types.PyTree]:
        checks.check_given("params", params, "lamaml_transform.update")
        checks.check_unmasked("params", params)
        checks.check_same_tree("updates", updates, "params", params)
        checks.check_near_misses(extra_args, _DATA_ARGUMENTS)
        checks.check_data_form(support, query, batch)
        if batch is not None:
            memory = state.reservoir
            data, memory = _draw(key, memory, batch, batch_mask, remember, drawing)
            state = state._replace(reservoir=memory)
        else:
            *_, num_steps = checks.check_support(support, support_mask)
            checks.check_equal("support", num_steps, "inner_steps", inner_steps)
            loss_key = key if loss_takes_key else None
            masks = support_mask, query_mask
            data = _Data(support, query, *masks, query_weights, loss_key)
        if loss_takes_key:
            checks.check_key("key", data.key)
        return _meta_update(parts, updates, state, params, data, extra_args)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _meta_update(
    parts: _Parts,
    updates: optax.Updates,
    state: LamamlState,
    params: types.Params,
    data: _Data,
    extra_args: dict[str, object],
) -> tuple[types.PyTree, LamamlState]:
    """One meta-update on data that is at hand."""
    # The meta-gradient, or its running average of lower variance
    meta_params = types.MetaParams(params, state.rule_state.step_sizes)
    running, named = state.variance_reduction, data._asdict()
    named["model_state"] = state.model_state
    if parts.reduction is None or running is None:
        (meta_loss, meta_info), grads = parts.value_and_grad(meta_params, **named)
    else:
        (meta_loss, meta_info), grads, running = parts.reduction.apply(
            meta_params, running, **named
        )
    # Extra gradients join it before meta_tx clips it
    add = lambda g, extra: g + extra.astype(g.dtype)
    weight_grads = jax.tree.map(add, grads.weights, updates)
    grads = grads._replace(weights=weight_grads)
    served = {
        "value": meta_loss,
        "grad": grads,
        "value_fn": checks.refuse_line_search,
    }
    clipped: types.PyTree
    rule_state: types.PyTree
    clipped, meta_tx_state = parts.meta_tx.update(
        grads, state.meta_tx_state, meta_params, **(extra_args | served)
    )
    # Step sizes first, then the weights
    updates, rule_state = parts.rule.update(
        clipped.weights,
        state.rule_state,
        params,
        step_size_grads=clipped.step_sizes,
        **(extra_args | served),
    )
    return updates, LamamlState(
        rule_state,
        meta_tx_state,
        state.reservoir,
        running,
        _moved_model_state(parts.model_state_fn, params, state.model_state, data),
        info.make_info(meta_loss, meta_info, grads, rule_state.step_sizes),
    )


def _moved_model_state(
    move_fn: types.ModelStateFn | None,
    params: types.Params,
    model_state: types.ModelState,
    data: _Data,
) -> types.ModelState:
    """One pass over the rows of the query, with a key that nothing else has used."""
    if move_fn is None:
        return model_state
    # The meta-gradient splits its own key in two, 0 and 1.
    key = None if data.key is None else jax.random.fold_in(data.key, 2)
    return losses.with_extras(move_fn, key=key)(params, model_state, data.query)
