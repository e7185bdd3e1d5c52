"""Meta-gradients with respect to slow weights and step sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, inner, losses, types

OBJECTIVES = ("mean", "last")
META_AD_MODES = ("auto", "reverse", "forward_over_reverse", "accumulate")


class MetaInfo(NamedTuple):
    """What a person may want to plot of one meta-gradient."""

    inner_losses: jax.Array
    """[K] support losses before each inner step, nats."""
    query_losses: jax.Array
    """[K] query losses after each inner step (objective "last": [1]), nats."""
    alignment: jax.Array
    """Cosine between the summed inner gradients and the weights' meta-gradient."""


def _cosine(first: types.Params, second: types.Params) -> jax.Array:
    """Cosine of the angle between two trees; 0 if one of them is zero."""
    dtype = jnp.result_type(float)
    first, second = (
        jax.tree.map(lambda leaf: leaf.astype(dtype), tree) for tree in (first, second)
    )
    product = jnp.asarray(optax.tree.vdot(first, second))
    norms = optax.tree.norm(first) * optax.tree.norm(second)
    safe = jnp.where(norms > 0, norms, jnp.ones_like(norms))
    return jnp.where(norms > 0, product / safe, 0)


def _by_differentiation(objective, adapt_fn, query_loss):
    """Meta-gradients by reverse mode through the scan of inner steps."""

    def meta_loss_fn(params, support, support_mask):
        if objective == "mean":
            _, trace = adapt_fn(
                params.weights,
                params.step_sizes,
                support,
                support_mask,
                probe_fn=query_loss,
            )
            query_losses = trace.probed
        else:
            fast_weights, trace = adapt_fn(
                params.weights, params.step_sizes, support, support_mask
            )
            query_losses = query_loss(fast_weights)[None]
        return jnp.mean(query_losses), (trace.losses, query_losses, trace.grad_sum)

    return jax.value_and_grad(meta_loss_fn, has_aux=True)


def _by_accumulation(objective, inner_grads, query_loss, *, rectify, unroll):
    """First-order meta-gradients in one forward scan, without a reverse pass.

    With inner gradients g_i constant, ``w_j = w - rect(a) * G_j`` where ``G_j = g_1 +
    ... + g_j``. So with q_j the query gradient at w_j and c_j its weight in the
    meta-loss, ``g_w = sum_j c_j q_j`` and ``g_a = -rect'(a) * sum_j c_j G_j * q_j``:
    both sums are carried along, and memory does not grow with K.
    """
    value_and_grad = jax.value_and_grad(query_loss)

    def add_query(fast_weights, grad_sum, weight_sum, rate_sum):
        loss, grads = value_and_grad(fast_weights)
        weight_sum = jax.tree.map(jnp.add, weight_sum, grads)
        rate_sum = jax.tree.map(
            lambda total, moved, grad: total + moved * grad, rate_sum, grad_sum, grads
        )
        return loss, weight_sum, rate_sum

    def meta_value_and_grad_fn(params, support, support_mask):
        def step(carry, inner_batch):
            fast_weights, grad_sum, *sums = carry
            inner_loss, grads = inner_grads(fast_weights, *inner_batch)
            fast_weights = inner.inner_update(
                fast_weights, params.step_sizes, grads, rectify=rectify
            )
            grad_sum = jax.tree.map(jnp.add, grad_sum, grads)
            if objective == "last":
                return (fast_weights, grad_sum, *sums), (inner_loss, inner_loss)
            query_loss, *sums = add_query(fast_weights, grad_sum, *sums)
            return (fast_weights, grad_sum, *sums), (inner_loss, query_loss)

        zeros = jax.tree.map(jnp.zeros_like, params.weights)
        (fast_weights, grad_sum, *sums), (inner_losses, query_losses) = jax.lax.scan(
            step,
            (params.weights, zeros, zeros, zeros),
            (support, support_mask),
            unroll=unroll,
        )
        if objective == "last":
            last_loss, *sums = add_query(fast_weights, grad_sum, *sums)
            query_losses = last_loss[None]
        scale = 1 / query_losses.shape[0]

        def rate_grad(total, rate):
            grad = (-scale * total).astype(rate.dtype)
            return jnp.where(rate > 0, grad, 0) if rectify else grad

        grads = types.MetaParams(
            weights=jax.tree.map(lambda total: scale * total, sums[0]),
            step_sizes=jax.tree.map(rate_grad, sums[1], params.step_sizes),
        )
        constant = jax.tree.map(jax.lax.stop_gradient, grad_sum)
        return (jnp.mean(query_losses), (inner_losses, query_losses, constant)), grads

    return meta_value_and_grad_fn


def resolve_inner_ad(inner_ad: str, *, first_order: bool) -> str:
    """Checks ``inner_ad`` and turns ``"auto"`` into the mode it stands for."""
    checks.check_choice("inner_ad", inner_ad, META_AD_MODES)
    if inner_ad == "auto":
        return "accumulate" if first_order else "reverse"
    checks.check_accumulate(inner_ad, first_order=first_order)
    return inner_ad


def meta_value_and_grad(
    loss_fn: types.LossFn,
    *,
    objective: str = "mean",
    first_order: bool = False,
    rectify: bool = True,
    clip: chex.Numeric | None = None,
    adapt_mask: Any | Callable[[types.Params], Any] | None = None,
    inner_ad: str = "auto",
    remat: bool = True,
    unroll: int = 1,
) -> Callable[..., tuple[tuple[jax.Array, MetaInfo], types.MetaParams]]:
    """Builds the meta-loss and its gradients, a cousin of ``jax.value_and_grad``.

    The meta-loss is the query loss at the fast weights of ``lamaml_jax.adapt``,
    averaged over w_1 ... w_K (``objective="mean"``, the published code) or taken at w_K
    (``"last"``, the algorithm box of the paper).

    Args:
        loss_fn: ``(weights, batch) -> [B]`` per-example losses (nats), or a scalar mean
            where nothing is masked.
        objective: ``"mean"`` or ``"last"``.
        first_order: hold inner gradients constant; changes both meta-gradients.
        rectify: as in ``adapt``.
        clip: as in ``adapt``.
        adapt_mask: as in ``adapt``; leaves that do not adapt still get meta-gradients
            for their weights, and zeros for their step sizes.
        inner_ad: ``"reverse"`` (through the scan), ``"forward_over_reverse"`` (one jvp
            per inner step), ``"accumulate"`` (first order only: one forward scan
            whose memory does not grow with K) or ``"auto"``: accumulate in first
            order, else reverse. All give the same numbers.
        remat: as in ``adapt``; "accumulate" has nothing to rematerialise.
        unroll: as in ``adapt``.

    Returns:
        ``fn(params, support, query, support_mask=None, query_mask=None)`` that takes a
        ``MetaParams``, support leaves [K, S, ...], query leaves [Q, ...] and their [K,
        S] and [Q] masks (True = valid), and returns ``((meta_loss, info), grads)``:
        the scalar meta-loss in nats, a ``MetaInfo`` and the gradients as
        ``MetaParams``. ``fn`` is itself differentiable.

    Raises:
        ValueError: an unknown choice, trees, shapes or leading axes that disagree.
        TypeError: a weight, step size or loss is not floating, a mask not boolean.

    References:
        Gupta et al. 2020, arXiv:2007.13904, equations 3 to 6.
    """
    checks.check_callable("loss_fn", loss_fn)
    checks.check_choice("objective", objective, OBJECTIVES)
    checks.check_positive("clip", clip)
    inner_ad = resolve_inner_ad(inner_ad, first_order=first_order)
    unroll = checks.check_count("unroll", unroll)

    def meta_value_and_grad_fn(
        params: types.MetaParams,
        support: types.Batch,
        query: types.Batch,
        support_mask: types.Mask | None = None,
        query_mask: types.Mask | None = None,
    ) -> tuple[tuple[jax.Array, MetaInfo], types.MetaParams]:
        checks.check_meta_params(params)
        axes = checks.check_rows("support", support, axes=2)
        if support_mask is not None:
            checks.check_mask("support_mask", support_mask, axes)
        query_axes = checks.check_rows("query", query)
        if query_mask is not None:
            checks.check_mask("query_mask", query_mask, query_axes)

        def query_loss(weights):
            return losses.mean_loss(loss_fn, weights, query, query_mask)

        if inner_ad == "accumulate":
            inner_grads = inner.inner_grad_fn(
                loss_fn,
                adapt_mask=inner.resolve_adapt_mask(adapt_mask, params.weights),
                clip=clip,
                first_order=True,
                inner_ad="reverse",
            )
            run = _by_accumulation(
                objective, inner_grads, query_loss, rectify=rectify, unroll=unroll
            )
        else:

            def adapt_fn(weights, step_sizes, support, support_mask, probe_fn=None):
                return inner.adapt(
                    loss_fn,
                    weights,
                    step_sizes,
                    support,
                    support_mask,
                    rectify=rectify,
                    clip=clip,
                    first_order=first_order,
                    adapt_mask=adapt_mask,
                    inner_ad=inner_ad,
                    remat=remat,
                    unroll=unroll,
                    probe_fn=probe_fn,
                )

            run = _by_differentiation(objective, adapt_fn, query_loss)
        (meta_loss, (inner_losses, query_losses, grad_sum)), grads = run(
            params, support, support_mask
        )
        alignment = _cosine(grad_sum, grads.weights)
        info = MetaInfo(inner_losses, query_losses, alignment)
        return (meta_loss, info), grads

    return meta_value_and_grad_fn
