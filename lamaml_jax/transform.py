"""La-MAML as one optax transformation; joins the pieces, no numerics of its own."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import (
    batching,
    checks,
    clipping,
    meta,
    step_sizes,
    types,
    variance_reduction,
)
from lamaml_jax.reservoir import Reservoir, ReservoirState

_DEFAULT_MAX_NORM = 2.0


class LamamlInfo(NamedTuple):
    """What a person may want to plot of one meta-update; zeros before the first."""

    meta_loss: jax.Array
    """Scalar, nats."""
    inner_losses: jax.Array
    """[K] support losses before each inner step, nats."""
    query_losses: jax.Array
    """[K] query losses after each inner step (objective "last": [1]), nats."""
    weight_grad_norm: jax.Array
    """Global norm of the weights' meta-gradient before ``meta_tx``."""
    step_size_grad_norm: jax.Array
    """Global norm of the step sizes' meta-gradient before ``meta_tx``."""
    alignment: jax.Array
    """Cosine between the summed inner gradients and the weights' meta-gradient."""
    step_size_mean: jax.Array
    """Mean of all step sizes after the update, unitless."""
    step_size_min: jax.Array
    step_size_max: jax.Array
    frozen_fraction: jax.Array
    """Fraction of step sizes <= 0 after the update."""
    all_finite: jax.Array
    """Boolean: meta-loss and both norms are finite."""


class LamamlState(NamedTuple):
    """State of ``lamaml_transform``."""

    rule_state: step_sizes.StepSizesState
    """Step sizes and the states of ``step_size_tx`` and ``weight_tx``."""
    meta_tx_state: optax.OptState
    reservoir: ReservoirState | None
    variance_reduction: variance_reduction.VarianceReductionState | None
    """None unless ``momentum`` is given."""
    info: LamamlInfo


class _Data(NamedTuple):
    support: types.Batch
    query: types.Batch
    support_mask: types.Mask | None
    query_mask: types.Mask | None


def _float_info(value: jax.Array) -> jax.Array:
    return value.astype(jnp.result_type(float))


def _empty_info(inner_steps: int, objective: str) -> LamamlInfo:
    """Zeros, each in a buffer of its own so that the state can be donated."""
    dtype = jnp.result_type(float)
    shapes = {
        "inner_losses": (inner_steps,),
        "query_losses": (inner_steps if objective == "mean" else 1,),
    }
    info = LamamlInfo(
        *(jnp.zeros(shapes.get(name, ()), dtype) for name in LamamlInfo._fields)
    )
    return info._replace(all_finite=jnp.zeros((), jnp.bool_))


def _make_info(
    meta_loss: jax.Array,
    meta_info: meta.MetaInfo,
    grads: types.MetaParams,
    rates: types.Params,
) -> LamamlInfo:
    weight_norm = _float_info(optax.tree.norm(grads.weights))
    rate_norm = _float_info(optax.tree.norm(grads.step_sizes))
    meta_loss = _float_info(meta_loss)
    leaves = [_float_info(leaf) for leaf in jax.tree.leaves(rates)]
    count = max(sum(leaf.size for leaf in leaves), 1)
    return LamamlInfo(
        meta_loss=meta_loss,
        inner_losses=_float_info(meta_info.inner_losses),
        query_losses=_float_info(meta_info.query_losses),
        weight_grad_norm=weight_norm,
        step_size_grad_norm=rate_norm,
        alignment=_float_info(meta_info.alignment),
        step_size_mean=jnp.sum(jnp.stack([jnp.sum(leaf) for leaf in leaves])) / count,
        step_size_min=jnp.min(
            jnp.stack([jnp.min(leaf, initial=jnp.inf) for leaf in leaves])
        ),
        step_size_max=jnp.max(
            jnp.stack([jnp.max(leaf, initial=-jnp.inf) for leaf in leaves])
        ),
        frozen_fraction=jnp.sum(
            jnp.stack([jnp.sum(_float_info(leaf <= 0)) for leaf in leaves])
        )
        / count,
        all_finite=jnp.isfinite(meta_loss)
        & jnp.isfinite(weight_norm)
        & jnp.isfinite(rate_norm),
    )


def _draw(
    key: Any,
    memory: ReservoirState | None,
    batch: types.Batch,
    batch_mask: types.Mask | None,
    remember: Any,
    *,
    reservoir: Reservoir | None,
    replay_size: int,
    inner_steps: int,
) -> tuple[_Data, ReservoirState | None]:
    """Makes support and query from a batch and the reservoir; then stores the batch."""
    checks.check_key("key", key)
    replay_key, shuffle_key, add_key = jax.random.split(key, 3)
    support, support_mask, rows, row_mask = batching.split_support(
        shuffle_key, batch, batch_mask, inner_steps
    )
    if reservoir is None:
        return _Data(support, batch, support_mask, batch_mask), memory
    replayed, replay_mask, memory = reservoir.sample_and_add(
        replay_key, add_key, memory, replay_size, rows, row_mask & remember
    )
    query, query_mask = batching.join_replay(replayed, replay_mask, batch, batch_mask)
    return _Data(support, query, support_mask, query_mask), memory


def lamaml_transform(
    loss_fn: types.LossFn,
    *,
    step_size_init: Any = 0.1,
    step_size_tx: optax.GradientTransformation = optax.sgd(0.25),
    weight_tx: optax.GradientTransformation | None = None,
    meta_tx: optax.GradientTransformation | None = None,
    inner_steps: int = 5,
    objective: str = "mean",
    first_order: bool = False,
    rectify: bool = True,
    clip: chex.Numeric | None = None,
    adapt_mask: Any | Callable[[types.Params], Any] | None = None,
    inner_ad: str = "auto",
    remat: bool | str = True,
    unroll: int | None = None,
    reservoir: Reservoir | None = None,
    replay_size: int = 10,
    momentum: chex.Numeric | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Look-ahead meta-learning for continual learning as an optax transformation.

    One update takes the meta-gradient of the query loss at the fast weights, adds the
    incoming updates to its weights' half, applies ``meta_tx``, moves the step sizes and
    then the weights (see ``scale_by_step_sizes``). The data come in either form::

        tx.update(extra_grads, state, params, support=..., query=...)
        tx.update(extra_grads, state, params, batch=rows, key=key, remember=True)

    The first takes support leaves [K, S, ...] and query leaves [Q, ...], with optional
    ``support_mask`` and ``query_mask``. The second takes rows [B, ...], with optional
    ``batch_mask``: the query is ``replay_size`` rows drawn from the reservoir (fewer
    while it holds fewer) followed by the batch, the support is the batch shuffled into
    K inner batches, and afterwards the rows are offered to the reservoir unless
    ``remember`` (a bool, may be traced) is False. Unknown extra arguments are ignored.

    Args:
        loss_fn: ``(weights, batch) -> [B]`` per-example losses (nats); with explicit
            support and query and no masks a scalar mean will do.
        step_size_init: initial step sizes, as ``init`` of ``scale_by_step_sizes``.
        step_size_tx: optax transformation of the step sizes' meta-gradient.
        weight_tx: None for the asynchronous rule (La-MAML), or an optimiser of the
            weights' meta-gradient for the synchronous one (Sync).
        meta_tx: optax transformation of the ``MetaParams`` of both meta-gradients, by
            default ``clip_meta_grads(2.0)``; ``optax.identity()`` for none.
        inner_steps: K, at most the number of rows of a batch.
        objective: as in ``meta_value_and_grad``; so are ``first_order``, ``rectify``,
            ``clip``, ``adapt_mask``, ``inner_ad``, ``remat`` and ``unroll``.
        first_order: hold inner gradients constant.
        rectify: use relu of the step sizes in the inner steps.
        clip: bound on each element of an inner gradient, or None.
        adapt_mask: the leaves that the inner loop adapts.
        inner_ad: how inner gradients are differentiated.
        remat: recompute inner steps in the backward pass: True, False or "sqrt".
        unroll: inner steps unrolled per iteration, or None for what is fastest.
        reservoir: from ``make_reservoir``; its state then lives in this one's. None
            replays nothing.
        replay_size: R, rows drawn from the reservoir per update.
        momentum: None for the plain meta-gradient, or the share in [0, 1] of a running
            one of lower variance (see ``variance_reduced``), which stands in its place
            before ``extra_grads`` and ``meta_tx``. Doubles the cost of an update.

    Returns:
        Transformation whose state is a ``LamamlState``; ``optax.tree.get`` finds
        ``step_sizes``, ``reservoir`` and ``info`` in it, also inside a chain. Its
        updates on the weights ``extra_grads`` are gradients: pass
        ``optax.tree.zeros_like(params)`` for plain La-MAML.

    Raises:
        ValueError: ``params`` or data missing or given in both forms, K > B, shapes,
            trees or choices wrong, or weights hidden by ``optax.masked``.
        TypeError: weights, losses, masks or keys of another kind.

    References:
        Gupta et al. 2020, arXiv:2007.13904, Algorithm 1. Differs from the authors' code
        where the README says so.
    """
    inner_steps = checks.check_count("inner_steps", inner_steps)
    replay_size = checks.check_count("replay_size", replay_size)
    if meta_tx is None:
        meta_tx = clipping.clip_meta_grads(_DEFAULT_MAX_NORM)
    checks.check_transformation("meta_tx", meta_tx)
    meta_tx = optax.with_extra_args_support(meta_tx)
    rule = step_sizes.scale_by_step_sizes(
        step_size_init, step_size_tx, weight_tx=weight_tx
    )
    value_and_grad = meta.meta_value_and_grad(
        loss_fn,
        objective=objective,
        first_order=first_order,
        rectify=rectify,
        clip=clip,
        adapt_mask=adapt_mask,
        inner_ad=inner_ad,
        remat=remat,
        unroll=unroll,
    )

    reduction = None
    if momentum is not None:
        reduction = variance_reduction.variance_reduced(value_and_grad, momentum)

    draw = functools.partial(
        _draw, reservoir=reservoir, replay_size=replay_size, inner_steps=inner_steps
    )

    def init_fn(params: types.Params) -> Any:
        checks.check_unmasked("params", params)
        rule_state: Any = rule.init(params)
        meta_params = types.MetaParams(params, rule_state.step_sizes)
        return LamamlState(
            rule_state,
            meta_tx.init(meta_params),
            None if reservoir is None else reservoir.init(),
            None if reduction is None else reduction.init(meta_params),
            _empty_info(inner_steps, objective),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: types.Params = None,
        *,
        support: types.Batch = None,
        query: types.Batch = None,
        support_mask: types.Mask | None = None,
        query_mask: types.Mask | None = None,
        batch: types.Batch = None,
        batch_mask: types.Mask | None = None,
        key: types.Key | None = None,
        remember: chex.Numeric = True,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        checks.check_given("params", params, "lamaml_transform.update")
        checks.check_unmasked("params", params)
        checks.check_same_tree("updates", updates, "params", params)
        checks.check_data_form(support, query, batch)
        data = _Data(support, query, support_mask, query_mask)
        memory = state.reservoir
        if batch is not None:
            data, memory = draw(key, memory, batch, batch_mask, remember)
        else:
            num_steps, _ = checks.check_rows("support", support, axes=2)
            checks.check_equal("support", num_steps, "inner_steps", inner_steps)
        meta_params = types.MetaParams(params, state.rule_state.step_sizes)
        running = state.variance_reduction
        if reduction is None:
            (meta_loss, meta_info), grads = value_and_grad(meta_params, *data)
        else:
            (meta_loss, meta_info), grads, running = reduction.apply(
                meta_params, running, *data
            )
        weight_grads = jax.tree.map(
            lambda g, extra: g + extra.astype(g.dtype), grads.weights, updates
        )
        grads = grads._replace(weights=weight_grads)
        clipped: Any
        rule_state: Any
        clipped, meta_tx_state = meta_tx.update(
            grads, state.meta_tx_state, meta_params, **extra_args
        )
        updates, rule_state = rule.update(
            clipped.weights,
            state.rule_state,
            params,
            step_size_grads=clipped.step_sizes,
            **extra_args,
        )
        info = _make_info(meta_loss, meta_info, grads, rule_state.step_sizes)
        return updates, LamamlState(rule_state, meta_tx_state, memory, running, info)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
