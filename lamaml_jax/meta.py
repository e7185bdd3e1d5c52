"""Meta-gradients with respect to slow weights and step sizes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, inner, losses, types

OBJECTIVES = ("mean", "last")
META_AD_MODES = ("auto", "reverse", "forward_over_reverse", "accumulate")
_CACHED_BYTES = 2**20
_MetaGradFn = Callable[..., tuple[Any, types.MetaParams]]


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


def _by_differentiation(
    objective: str,
    adapt_fn: Callable[..., Any],
    query_loss: Callable[[types.Params], jax.Array],
) -> _MetaGradFn:
    """Meta-gradients by reverse mode through the scan, all activations kept."""

    def meta_loss_fn(
        params: types.MetaParams, support: types.Batch, support_mask: types.Mask | None
    ) -> tuple[jax.Array, Any]:
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


def _by_reverse_scan(
    objective: str,
    inner_grads: Callable[..., Any],
    query_loss: Callable[[types.Params], jax.Array],
    *,
    rectify: bool,
    remat: bool | str,
    unroll: int,
) -> _MetaGradFn:
    """Meta-gradients by a reverse scan that visits each fast weight once.

    The forward scan keeps the K fast weights and nothing else. The reverse scan carries
    the meta-loss's gradients ``g_w`` w.r.t. w_j and ``g_a`` w.r.t. the step sizes: at
    w_j it adds the query gradient, then pulls both back through inner step j, which it
    recomputes. Differentiating the forward scan instead would evaluate every query loss
    once more. With ``remat="sqrt"`` the forward scan keeps the first fast weights of
    each segment only, from which the reverse one runs the segment again.
    """
    value_and_grad = jax.value_and_grad(query_loss)

    def inner_step(
        fast_weights: types.Params, step_sizes: types.Params, inner_batch: Any
    ) -> tuple[types.Params, Any]:
        loss, grads = inner_grads(fast_weights, *inner_batch)
        moved = inner.inner_update(fast_weights, step_sizes, grads, rectify=rectify)
        return moved, (loss, grads)

    def meta_value_and_grad_fn(
        params: types.MetaParams, support: types.Batch, support_mask: types.Mask | None
    ) -> tuple[Any, types.MetaParams]:
        weights, step_sizes = params
        num_steps = jax.tree.leaves(support)[0].shape[0]
        num_queries = 1 if objective == "last" else num_steps
        lead, segments = (support, support_mask), None
        if remat == "sqrt":
            lead, segments = inner.split_steps(lead, num_steps)

        def forward(carry: Any, inner_batch: Any) -> tuple[Any, Any]:
            fast_weights, grad_sum = carry
            moved, (loss, grads) = inner_step(fast_weights, step_sizes, inner_batch)
            constant = jax.tree.map(jax.lax.stop_gradient, grads)
            grad_sum = jax.tree.map(jnp.add, grad_sum, constant)
            return (moved, grad_sum), (fast_weights, loss)

        def add_query(
            fast_weights: types.Params, weight_grads: types.Params
        ) -> tuple[jax.Array, types.Params]:
            loss, grads = value_and_grad(fast_weights)
            add = lambda total, grad: total + grad / num_queries
            return loss, jax.tree.map(add, weight_grads, grads)

        def backward(carry: Any, inputs: Any) -> tuple[Any, Any]:
            moved, weight_grads, rate_grads = carry
            before, inner_batch = inputs
            loss = jnp.zeros(())
            if objective == "mean":
                loss, weight_grads = add_query(moved, weight_grads)
            _, pull_back, _ = jax.vjp(
                lambda w, a: inner_step(w, a, inner_batch),
                before,
                step_sizes,
                has_aux=True,
            )
            weight_grads, step_grads = pull_back(weight_grads)
            rate_grads = jax.tree.map(jnp.add, rate_grads, step_grads)
            return (before, weight_grads, rate_grads), loss

        def run_forward(carry: Any, batches: Any) -> tuple[Any, Any]:
            return jax.lax.scan(forward, carry, batches, unroll=unroll)

        def run_backward(carry: Any, inputs: Any) -> tuple[Any, Any]:
            return jax.lax.scan(backward, carry, inputs, reverse=True, unroll=unroll)

        def forward_segment(carry: Any, batches: Any) -> tuple[Any, Any]:
            start, _ = carry
            carry, (_, losses) = run_forward(carry, batches)
            return carry, (start, losses)

        def backward_segment(carry: Any, inputs: Any) -> tuple[Any, Any]:
            start, batches = inputs
            _, (fast_weights, _) = run_forward((start, zeros), batches)
            return run_backward(carry, (fast_weights, batches))

        zeros = jax.tree.map(jnp.zeros_like, weights)
        carry, (fast_weights, inner_losses) = run_forward((weights, zeros), lead)
        starts = None
        if segments is not None:
            carry, (starts, losses) = jax.lax.scan(forward_segment, carry, segments)
            inner_losses = inner.join_steps(inner_losses, losses)
        last_weights, grad_sum = carry
        weight_grads, rate_grads = jax.tree.map(jnp.zeros_like, (weights, step_sizes))
        last_loss = None
        if objective == "last":
            last_loss, weight_grads = add_query(last_weights, weight_grads)
        carry, losses = (last_weights, weight_grads, rate_grads), None
        if segments is not None:
            carry, losses = jax.lax.scan(
                backward_segment, carry, (starts, segments), reverse=True
            )
        carry, query_losses = run_backward(carry, (fast_weights, lead))
        if segments is not None:
            query_losses = inner.join_steps(query_losses, losses)
        if last_loss is not None:
            query_losses = last_loss[None]
        grads = types.MetaParams(*carry[1:])
        return (jnp.mean(query_losses), (inner_losses, query_losses, grad_sum)), grads

    return meta_value_and_grad_fn


def _by_accumulation(
    objective: str,
    inner_grads: Callable[..., Any],
    query_loss: Callable[[types.Params], jax.Array],
    *,
    rectify: bool,
    unroll: int,
) -> _MetaGradFn:
    """First-order meta-gradients in one forward scan, without a reverse pass.

    With inner gradients g_i constant, ``w_j = w - rect(a) * G_j`` where ``G_j = g_1 +
    ... + g_j``. So with q_j the query gradient at w_j and c_j its weight in the
    meta-loss, ``g_w = sum_j c_j q_j`` and ``g_a = -rect'(a) * sum_j c_j G_j * q_j``:
    both sums are carried along, and memory does not grow with K.
    """
    value_and_grad = jax.value_and_grad(query_loss)

    def add_query(
        fast_weights: types.Params,
        grad_sum: types.Params,
        weight_sum: types.Params,
        rate_sum: types.Params,
    ) -> tuple[jax.Array, types.Params, types.Params]:
        loss, grads = value_and_grad(fast_weights)
        weight_sum = jax.tree.map(jnp.add, weight_sum, grads)
        rate_sum = jax.tree.map(
            lambda total, moved, grad: total + moved * grad, rate_sum, grad_sum, grads
        )
        return loss, weight_sum, rate_sum

    def meta_value_and_grad_fn(
        params: types.MetaParams, support: types.Batch, support_mask: types.Mask | None
    ) -> tuple[Any, types.MetaParams]:
        def step(carry: Any, inner_batch: Any) -> tuple[Any, Any]:
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

        def rate_grad(total: jax.Array, rate: jax.Array) -> jax.Array:
            grad = (-scale * total).astype(rate.dtype)
            return jnp.where(rate > 0, grad, 0) if rectify else grad

        grads = types.MetaParams(
            weights=jax.tree.map(lambda total: scale * total, sums[0]),
            step_sizes=jax.tree.map(rate_grad, sums[1], params.step_sizes),
        )
        constant = jax.tree.map(jax.lax.stop_gradient, grad_sum)
        return (jnp.mean(query_losses), (inner_losses, query_losses, constant)), grads

    return meta_value_and_grad_fn


def _summed_together(weights: types.Params, num_steps: int) -> int:
    """How many steps "accumulate" unrolls, by ``python -m experiments bench``.

    A pass over the weights for each sum and step costs as much as their products where
    these are small. Unrolled, XLA adds up several gradients in one pass, and without a
    loop copies nothing; but all of them wait until then, and fall out of the cache if
    they are too many or too large. A number that does not divide the steps would have
    the support copied in two parts.
    """
    is_cached = sum(leaf.nbytes for leaf in jax.tree.leaves(weights)) <= _CACHED_BYTES
    if num_steps <= (10 if is_cached else 5):
        return num_steps
    return max(n for n in range(1, 6 if is_cached else 2) if num_steps % n == 0)


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
    remat: bool | str = True,
    unroll: int | None = None,
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
        remat: keep only the K fast weights for the backward pass, which visits each
            once; False keeps every activation too, ``"sqrt"`` about 2 sqrt(K) fast
            weights, and takes each inner step once more. "accumulate" keeps none.
        unroll: steps unrolled in one iteration of the scan; None for what was
            measured to be fastest: 1, but with "accumulate" as many as 10 for weights
            that stay in a cache, because their sums are then added up together.

    Returns:
        ``fn(params, support, query, support_mask=None, query_mask=None)`` that takes a
        ``MetaParams``, support leaves [K, S, ...], query leaves [Q, ...] and their [K,
        S] and [Q] masks (True = valid), and returns ``((meta_loss, info), grads)``:
        the scalar meta-loss in nats, a ``MetaInfo`` and the gradients as
        ``MetaParams``. ``fn`` is itself differentiable.

    Raises:
        ValueError: an unknown choice, trees, shapes or leading axes that disagree.
        TypeError: a weight, step size or loss is not floating, a mask not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> params = lm.MetaParams(weights=jnp.float32(0), step_sizes=jnp.float32(0.5))
        >>> support, query = jnp.ones((2, 1)), jnp.ones(1)
        >>> fn = lm.meta_value_and_grad(loss_fn)
        >>> (loss, info), grads = fn(params, support, query)
        >>> print(loss, grads.weights, grads.step_sizes)
        0.078125 -0.15625 -0.375

    References:
        Gupta et al. 2020, arXiv:2007.13904, equations 3 to 6.
    """
    checks.check_callable("loss_fn", loss_fn)
    checks.check_choice("objective", objective, OBJECTIVES)
    checks.check_positive("clip", clip)
    inner_ad = resolve_inner_ad(inner_ad, first_order=first_order)
    checks.check_choice("remat", remat, inner.REMAT_POLICIES)
    if unroll is not None:
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

        def query_loss(weights: types.Params) -> jax.Array:
            return losses.mean_loss(loss_fn, weights, query, query_mask)

        steps = unroll
        if steps is None:
            is_summed = inner_ad == "accumulate"
            steps = _summed_together(params.weights, axes[0]) if is_summed else 1
        if inner_ad == "accumulate" or remat:
            if inner_ad == "accumulate":
                by_scan = _by_accumulation
            else:
                by_scan = functools.partial(_by_reverse_scan, remat=remat)
            inner_grads = inner.inner_grad_fn(
                loss_fn,
                adapt_mask=inner.resolve_adapt_mask(adapt_mask, params.weights),
                clip=clip,
                first_order=first_order,
                inner_ad="reverse" if inner_ad == "accumulate" else inner_ad,
            )
            run = by_scan(
                objective, inner_grads, query_loss, rectify=rectify, unroll=steps
            )
        else:

            def adapt_fn(
                weights: types.Params,
                step_sizes: types.Params,
                support: types.Batch,
                support_mask: types.Mask | None,
                probe_fn: Callable[[types.Params], Any] | None = None,
            ) -> tuple[types.Params, inner.InnerTrace]:
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
                    remat=False,
                    unroll=steps,
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
