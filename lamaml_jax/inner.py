"""K inner gradient steps on fast weights, with learned step sizes."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, inner_step, losses, scans, types


class InnerTrace(NamedTuple):
    """What happened along the K inner steps.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> support = jnp.ones((2, 1))  # two inner batches of one row
        >>> _, trace = lm.adapt(
        ...     loss_fn, jnp.float32(0), 0.5, support, probe_fn=lambda w: 10 * w
        ... )
        >>> print(trace.losses, trace.grad_sum, trace.probed)
        [0.5   0.125] -1.5 [5.  7.5]
    """

    losses: jax.Array
    """[K] inner losses in nats, each before its step; 0 for a fully masked batch."""
    grad_sum: types.Params
    """Sum of the K directions d_1 ... d_K, the tree of the weights; a constant to
    jax.grad."""
    probed: types.PyTree
    """``probe_fn`` at the fast weights after each step, stacked [K, ...], or None."""


def run_steps(
    rule: inner_step.InnerRule,
    params: types.MetaParams,
    batches: inner_step.InnerBatch,
    *,
    first_order: bool,
    remat: bool | str,
    unroll: int,
    probe_fn: Callable[..., types.PyTree] | None = None,
    probe_keys: jax.Array | None = None,
) -> tuple[types.Params, InnerTrace]:
    """Runs the inner steps of ``adapt``, whose options these are.

    ``probe_fn(fast_weights)`` is called with one of ``probe_keys`` [K] too, if given.
    """

    def step(
        carry: types.PyTree, inputs: types.PyTree
    ) -> tuple[types.PyTree, types.PyTree]:
        fast_weights, opt_state, grad_sum = carry
        batch, *probe_key = inputs
        # w_i = w_{i-1} - rect(a) * d_i, where d_i comes from grad L_i(w_{i-1})
        loss, grads = rule.loss_and_grads(fast_weights, batch)
        directions, opt_state = rule.direct(grads, opt_state, fast_weights, batch)
        constant = jax.tree.map(jax.lax.stop_gradient, directions)
        if first_order:
            directions = constant
        fast_weights = rule.move(fast_weights, params.step_sizes, directions)
        grad_sum = jax.tree.map(jnp.add, grad_sum, constant)
        probed = None if probe_fn is None else probe_fn(fast_weights, *probe_key)
        return (fast_weights, opt_state, grad_sum), (loss, probed)

    zeros = jax.tree.map(jnp.zeros_like, params.weights)
    carry = (params.weights, rule.init(params.weights), zeros)
    inputs = (batches,) if probe_keys is None else (batches, probe_keys)
    (fast_weights, _, grad_sum), (inner_losses, probed) = scans.checkpointed_scan(
        step, carry, inputs, remat=remat, unroll=unroll
    )
    return fast_weights, InnerTrace(inner_losses, grad_sum, probed)


def adapt(
    loss_fn: types.LossFn,
    weights: types.Params,
    step_sizes: types.StepSizes,
    support: types.Batch,
    support_mask: types.Mask | None = None,
    *,
    rectify: bool = True,
    clip: chex.Numeric | None = None,
    inner_tx: optax.GradientTransformation | None = None,
    first_order: bool = False,
    adapt_mask: inner_step.AdaptMask = None,
    remat: bool | str = True,
    unroll: int = 1,
    probe_fn: Callable[[types.Params], types.PyTree] | None = None,
    key: types.Key | None = None,
    model_state: types.ModelState = None,
) -> tuple[types.Params, InnerTrace]:
    """Runs K inner gradient steps with learned step sizes.

    ``w_0 = weights``; ``w_i = w_{i-1} - rect(step_sizes) * d_i``, where d_i is the
    gradient at w_{i-1} of L_i, the mean loss of inner batch i, after ``clip`` and
    ``inner_tx``. One ``jax.lax.scan``, differentiable with respect to weights, step
    sizes, floating data and whatever ``loss_fn`` closes over.

    Args:
        loss_fn: ``(weights, batch) -> [S]`` per-example losses (nats), unreduced, or a
            scalar mean where ``support_mask`` is None.
        weights: slow weights, any pytree of floating arrays.
        step_sizes: unitless; one per weight (same tree and leaf shapes), or of a
            coarser grain: a prefix of the tree of ``weights``, leaves that broadcast
            to its leaves, or one number for all.
        support: pytree with leaves [K, S, ...]; K is the length of the scan.
        support_mask: [K, S] booleans, True = valid. A fully masked inner batch is a
            step that changes nothing. None takes every row.
        rectify: use ``relu(step_sizes)``: entries <= 0 freeze their parameter and get
            zero gradient. False uses them as they are, negative ones included.
        clip: bound on the absolute value of every element of an inner gradient, in
            nats, or None. May be a traced scalar.
        inner_tx: optax transformation of the inner gradients, after ``clip``, or None.
            It keeps gradients gradients: ``optax.scale_by_adam(eps_root=1e-8)`` and
            ``optax.trace(0.9)``, not ``optax.adam(rate)``, whose sign and rate the step
            sizes stand for. Its state starts anew at w_0.
        first_order: treat the directions d_i as constants when differentiating.
        adapt_mask: which leaves adapt: a pytree of bools, a prefix of one, or a
            function of the weights that returns it. None adapts all.
        remat: recompute each step in the backward pass, which then stores only the K
            fast weights instead of every activation; ``"sqrt"`` stores about 2 sqrt(K)
            of them and takes each step once more.
        unroll: steps unrolled in one iteration of the scan.
        probe_fn: ``fast_weights -> pytree``, evaluated after every step, if given.
        key: for a loss that draws random numbers, which then receives a new ``key=`` in
            every step. None passes none.
        model_state: any pytree, handed to the loss as ``model_state=``, unless None.

    Returns:
        ``fast_weights`` w_K, the tree of ``weights``, and an ``InnerTrace``.

    Raises:
        ValueError: trees, shapes or leading axes disagree, or a choice is unknown.
        TypeError: a weight, step size or loss is not floating, a mask not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> support = jnp.ones((2, 1))  # two inner batches of one row
        >>> fast_weights, trace = lm.adapt(loss_fn, jnp.float32(0), 0.5, support)
        >>> print(fast_weights, trace.losses)
        0.75 [0.5   0.125]

    References:
        Gupta et al. 2020, arXiv:2007.13904, Algorithm 1. The authors' single-head code
        uses ``rectify=True, clip=None``, their multi-head code ``rectify=False`` and an
        elementwise clip.
    """
    checks.check_callable("loss_fn", loss_fn)
    params = checks.check_meta_params(types.MetaParams(weights, step_sizes))
    checks.check_choice("remat", remat, scans.REMAT_POLICIES)
    checks.check_positive("clip", clip)
    if inner_tx is not None:
        checks.check_transformation("inner_tx", inner_tx)
    unroll = checks.check_count("unroll", unroll)
    support, support_mask, num_steps = checks.check_support(support, support_mask)
    if key is not None:
        checks.check_key("key", key)
    rule = inner_step.make_inner_rule(
        losses.with_extras(loss_fn, model_state=model_state),
        params.weights,
        rectify=rectify,
        clip=clip,
        adapt_mask=adapt_mask,
        inner_tx=inner_tx,
    )
    keys = None if key is None else jax.random.split(key, num_steps)
    return run_steps(
        rule,
        params,
        inner_step.InnerBatch(support, support_mask, keys),
        first_order=first_order,
        remat=remat,
        unroll=unroll,
        probe_fn=probe_fn,
    )
