"""K inner gradient steps on fast weights, with one rate per parameter."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from lamaml_jax import checks, losses, types

INNER_AD_MODES = ("reverse", "forward_over_reverse")
REMAT_POLICIES = (True, False, "sqrt")


class InnerTrace(NamedTuple):
    """What happened along the K inner steps."""

    losses: jax.Array
    """[K] inner losses in nats, each before its step; 0 for a fully masked batch."""
    grad_sum: types.Params
    """Sum of the K inner gradients (after clipping), a constant to jax.grad."""
    probed: Any
    """``probe_fn`` at the fast weights after each step, stacked [K, ...], or None."""


def resolve_adapt_mask(
    adapt_mask: Any | Callable[[types.Params], Any] | None, weights: types.Params
) -> types.Params:
    """Expands ``adapt_mask`` to one Python bool per leaf of ``weights``.

    Args:
        adapt_mask: None (all leaves adapt), a pytree of bools with the structure of
            ``weights`` or a prefix of it, or a function from weights to such a tree.
        weights: any pytree.

    Returns:
        Tree of Python bools with the structure of ``weights``.

    Raises:
        ValueError: the tree is no prefix of ``weights``.
        TypeError: a leaf is not a bool.
    """
    if adapt_mask is None:
        return jax.tree.map(lambda _: True, weights)
    mask = adapt_mask(weights) if callable(adapt_mask) else adapt_mask
    checks.check_bool_prefix("adapt_mask", mask, "weights", weights)
    return jax.tree.map(
        lambda flag, part: jax.tree.map(lambda _: flag, part), mask, weights
    )


def _hessian_by_jvp(
    value_and_grad: Callable[..., tuple[jax.Array, types.Params]],
) -> Callable[..., tuple[jax.Array, types.Params]]:
    """Gives a gradient function a backward pass that is one jvp of itself.

    The Hessian is symmetric, so the vector-Hessian product that reverse mode needs
    equals the Hessian-vector product that forward mode gives; the inner backward pass
    is then never transposed (mixed mode, arXiv:2505.00793).
    """

    @jax.custom_vjp
    def wrapped(
        weights: types.Params, batch: types.Batch, mask: types.Mask | None
    ) -> tuple[jax.Array, types.Params]:
        return value_and_grad(weights, batch, mask)

    def forward(
        weights: types.Params, batch: types.Batch, mask: types.Mask | None
    ) -> tuple[Any, Any]:
        value, grads = value_and_grad(weights, batch, mask)
        return (value, grads), (weights, batch, mask, grads)

    def backward(
        residuals: Any, cotangents: Any
    ) -> tuple[types.Params, types.Batch, None]:
        weights, batch, mask, grads = residuals
        value_ct, grads_ct = cotangents
        _, (_, product) = jax.jvp(
            lambda w: value_and_grad(w, batch, mask), (weights,), (grads_ct,)
        )
        weights_ct = jax.tree.map(
            lambda p, g: p + value_ct.astype(g.dtype) * g, product, grads
        )
        _, batch_vjp = jax.vjp(lambda b: value_and_grad(weights, b, mask), batch)
        (batch_ct,) = batch_vjp(cotangents)
        return weights_ct, batch_ct, None

    wrapped.defvjp(forward, backward)
    return wrapped


def inner_grad_fn(
    loss_fn: types.LossFn,
    *,
    adapt_mask: types.Params,
    clip: chex.Numeric | None,
    first_order: bool,
    inner_ad: str,
) -> Callable[..., tuple[jax.Array, types.Params]]:
    """Builds the function ``(weights, batch, mask) -> (loss, gradients)`` of one step.

    Args:
        loss_fn: ``(weights, batch) -> [S]`` per-example losses (nats).
        adapt_mask: tree of bools; leaves with False get zero gradients.
        clip: largest absolute value of a gradient's element, or None.
        first_order: treat the gradients as constants.
        inner_ad: how the gradients are differentiated, one of ``INNER_AD_MODES``.

    Returns:
        Function of weights, one inner batch with leaves [S, ...] and its [S] mask or
        None, to the scalar mean loss (nats) and gradients like ``weights``.
    """

    def mean_loss(
        weights: types.Params, batch: types.Batch, mask: types.Mask | None
    ) -> jax.Array:
        return losses.mean_loss(loss_fn, weights, batch, mask)

    value_and_grad = jax.value_and_grad(mean_loss)
    if inner_ad == "forward_over_reverse" and not first_order:
        value_and_grad = _hessian_by_jvp(value_and_grad)

    def inner_grads(
        weights: types.Params, batch: types.Batch, mask: types.Mask | None
    ) -> tuple[jax.Array, types.Params]:
        loss, grads = value_and_grad(weights, batch, mask)
        grads = jax.tree.map(
            lambda g, adapted: g if adapted else jnp.zeros_like(g), grads, adapt_mask
        )
        if clip is not None:
            bound = jnp.asarray(clip)
            grads = jax.tree.map(
                lambda g: jnp.clip(g, -bound.astype(g.dtype), bound.astype(g.dtype)),
                grads,
            )
        if first_order:
            grads = jax.tree.map(jax.lax.stop_gradient, grads)
        return loss, grads

    return inner_grads


def inner_update(
    fast_weights: types.Params,
    step_sizes: types.Params,
    grads: types.Params,
    *,
    rectify: bool,
) -> types.Params:
    """One step: ``fast_weights - rect(step_sizes) * grads``, leaf by leaf."""

    def step(fast: jax.Array, rate: jax.Array, grad: jax.Array) -> jax.Array:
        rate = jax.nn.relu(rate) if rectify else rate
        return fast - rate.astype(fast.dtype) * grad

    return jax.tree.map(step, fast_weights, step_sizes, grads)


def split_steps(batches: Any, num_steps: int) -> tuple[Any, Any]:
    """Cuts K inner batches into segments of about sqrt(K), and a shorter lead.

    Args:
        batches: pytree with leaves [K, ...].
        num_steps: K.

    Returns:
        ``lead`` with leaves [K mod L, ...] and ``segments`` with leaves [K // L, L,
        ...] in order, where L is the square root of K rounded up.
    """
    length = math.isqrt(num_steps - 1) + 1
    cut = num_steps % length
    lead = jax.tree.map(lambda leaf: leaf[:cut], batches)
    segments = jax.tree.map(
        lambda leaf: leaf[cut:].reshape(-1, length, *leaf.shape[1:]), batches
    )
    return lead, segments


def join_steps(lead: Any, segments: Any) -> Any:
    """Undoes ``split_steps``."""
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first, rest.reshape(-1, *rest.shape[2:])]),
        lead,
        segments,
    )


def adapt(
    loss_fn: types.LossFn,
    weights: types.Params,
    step_sizes: types.Params,
    support: types.Batch,
    support_mask: types.Mask | None = None,
    *,
    rectify: bool = True,
    clip: chex.Numeric | None = None,
    first_order: bool = False,
    adapt_mask: Any | Callable[[types.Params], Any] | None = None,
    inner_ad: str = "reverse",
    remat: bool | str = True,
    unroll: int = 1,
    probe_fn: Callable[[types.Params], Any] | None = None,
) -> tuple[types.Params, InnerTrace]:
    """Runs K inner gradient steps with one learned rate per parameter.

    ``w_0 = weights``; ``w_i = w_{i-1} - rect(step_sizes) * clip(grad L_i(w_{i-1}))``,
    where ``L_i`` is the mean loss of inner batch i. One ``jax.lax.scan``,
    differentiable with respect to weights, step sizes and floating data.

    Args:
        loss_fn: ``(weights, batch) -> [S]`` per-example losses (nats), unreduced, or a
            scalar mean where ``support_mask`` is None.
        weights: slow weights, any pytree of floating arrays.
        step_sizes: same tree and leaf shapes as ``weights``, unitless.
        support: pytree with leaves [K, S, ...]; K is the length of the scan.
        support_mask: [K, S] booleans, True = valid. A fully masked inner batch is a
            step that changes nothing. None takes every row.
        rectify: use ``relu(step_sizes)``: entries <= 0 freeze their parameter and get
            zero gradient. False uses them as they are, negative ones included.
        clip: bound on the absolute value of every element of an inner gradient, or
            None. May be a traced scalar.
        first_order: treat inner gradients as constants when differentiating.
        adapt_mask: which leaves adapt: a pytree of bools, a prefix of one, or a
            function of the weights that returns it. None adapts all.
        inner_ad: how an inner gradient is differentiated again: ``"reverse"`` or
            ``"forward_over_reverse"`` (one jvp per step, the same numbers;
            ``loss_fn`` must then not close over values being differentiated).
        remat: recompute each step in the backward pass, which then stores only the K
            fast weights instead of every activation; ``"sqrt"`` stores about 2 sqrt(K)
            of them and takes each step once more.
        unroll: steps unrolled in one iteration of the scan.
        probe_fn: evaluated at the fast weights after every step, if given.

    Returns:
        ``fast_weights`` w_K, like ``weights``, and an ``InnerTrace``.

    Raises:
        ValueError: trees, shapes or leading axes disagree, or a choice is unknown.
        TypeError: a weight, step size or loss is not floating, a mask not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> support = jnp.ones((2, 1))  # two inner batches of one row
        >>> start, rate = jnp.float32(0), jnp.float32(0.5)
        >>> fast_weights, trace = lm.adapt(loss_fn, start, rate, support)
        >>> print(fast_weights, trace.losses)
        0.75 [0.5   0.125]

    References:
        Gupta et al. 2020, arXiv:2007.13904, Algorithm 1. The authors' single-head code
        uses ``rectify=True, clip=None``, their multi-head code ``rectify=False`` and an
        elementwise clip.
    """
    checks.check_callable("loss_fn", loss_fn)
    checks.check_meta_params(types.MetaParams(weights, step_sizes))
    checks.check_choice("inner_ad", inner_ad, INNER_AD_MODES)
    checks.check_choice("remat", remat, REMAT_POLICIES)
    checks.check_positive("clip", clip)
    unroll = checks.check_count("unroll", unroll)
    axes = checks.check_rows("support", support, axes=2)
    if support_mask is not None:
        checks.check_mask("support_mask", support_mask, axes)
    inner_grads = inner_grad_fn(
        loss_fn,
        adapt_mask=resolve_adapt_mask(adapt_mask, weights),
        clip=clip,
        first_order=first_order,
        inner_ad=inner_ad,
    )

    def step(carry: Any, inner_batch: Any) -> tuple[Any, Any]:
        fast_weights, grad_sum = carry
        loss, grads = inner_grads(fast_weights, *inner_batch)
        fast_weights = inner_update(fast_weights, step_sizes, grads, rectify=rectify)
        constant = jax.tree.map(jax.lax.stop_gradient, grads)
        grad_sum = jax.tree.map(jnp.add, grad_sum, constant)
        probed = None if probe_fn is None else probe_fn(fast_weights)
        return (fast_weights, grad_sum), (loss, probed)

    body = jax.checkpoint(step, prevent_cse=False) if remat else step

    def run(carry: Any, batches: Any) -> tuple[Any, Any]:
        return jax.lax.scan(body, carry, batches, unroll=unroll)

    start = (weights, jax.tree.map(jnp.zeros_like, weights))
    batches = (support, support_mask)
    if remat == "sqrt":
        lead, segments = split_steps(batches, axes[0])
        carry, first = run(start, lead)
        run_again = jax.checkpoint(run, prevent_cse=False)
        carry, rest = jax.lax.scan(run_again, carry, segments)
        out = join_steps(first, rest)
    else:
        carry, out = run(start, batches)
    (fast_weights, grad_sum), (inner_losses, probed) = carry, out
    return fast_weights, InnerTrace(inner_losses, grad_sum, probed)
