"""Meta-gradients with respect to slow weights and step sizes.

``meta_loss`` is the definition. ``recursion`` holds the two ways in which its gradients
are taken: one forward scan in first order, one reverse recursion in second.
"""

from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, inner, inner_step, losses, recursion, scans, types

OBJECTIVES = ("mean", "last")
INNER_AD_MODES = ("reverse", "forward_over_reverse")
_CACHED_BYTES, _LARGE_BYTES = 2**20, 2**21
_SECOND_ORDER_UNROLL = 5


def _meta_loss(
    params: types.MetaParams, problem: recursion.MetaProblem, steps: recursion.Steps
) -> tuple[jax.Array, tuple[inner.InnerTrace, jax.Array]]:
    """The definition: the query loss at w_1 ... w_K on average, or at w_K."""

    def query_loss(weights: types.Params, key: types.Key | None = None) -> jax.Array:
        return problem.query_loss(weights, key)

    fast_weights, trace = inner.run_steps(
        problem.rule,
        params,
        steps.inner,
        first_order=False,
        remat=False,
        unroll=problem.unroll,
        probe_fn=query_loss if problem.at_every_step else None,
        probe_keys=steps.query_key if problem.at_every_step else None,
    )
    query_losses = trace.probed
    if not problem.at_every_step:
        query_losses = query_loss(fast_weights, recursion.last_key(steps))[None]
    return jnp.mean(query_losses), (trace, query_losses)


def _by_definition(
    problem: recursion.MetaProblem, params: types.MetaParams, steps: recursion.Steps
) -> recursion.MetaSums:
    value_and_grad = jax.value_and_grad(_meta_loss, has_aux=True)
    (_, (trace, query_losses)), grads = value_and_grad(params, problem, steps)
    return recursion.MetaSums(trace.losses, query_losses, trace.grad_sum, grads)


class MetaInfo(NamedTuple):
    """What a person may want to plot of one meta-gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> params = lm.MetaParams(weights=jnp.float32(0), step_sizes=jnp.float32(0.5))
        >>> support, query = jnp.ones((2, 1)), jnp.ones(1)
        >>> (_, info), _ = lm.meta_value_and_grad(loss_fn)(params, support, query)
        >>> print(info.inner_losses, info.query_losses, info.alignment)
        [0.5   0.125] [0.125   0.03125] 1.0
    """

    inner_losses: jax.Array
    """[K] support losses before each inner step, nats."""
    query_losses: jax.Array
    """[K] query losses after each inner step (objective "last": [1]), nats."""
    alignment: jax.Array
    """Scalar, the cosine between the summed inner directions and the weights'
    meta-gradient."""


class MetaValueAndGrad(Protocol):
    """The function that ``meta_value_and_grad`` builds.

    It can be differentiated in both modes, as the function that it is: first-order
    gradients too have their true derivatives.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> fn: lm.MetaValueAndGrad = lm.meta_value_and_grad(loss_fn)
        >>> params = lm.MetaParams(weights=jnp.float32(0), step_sizes=jnp.float32(0.5))
        >>> data = jnp.ones((2, 1)), jnp.ones(1)
        >>> _, grads = fn(params, *data)
        >>> print(grads == jax.grad(lambda params: fn(params, *data)[0][0])(params))
        True
    """

    def __call__(
        self,
        params: types.MetaParams,
        support: types.Batch,
        query: types.Batch,
        support_mask: types.Mask | None = None,
        query_mask: types.Mask | None = None,
        *,
        query_weights: jax.Array | None = None,
        key: types.Key | None = None,
        model_state: types.ModelState = None,
    ) -> tuple[tuple[jax.Array, MetaInfo], types.MetaParams]:
        """Takes the meta-loss and its gradients.

        Args:
            params: a tree of weights, and step sizes of any grain (see ``adapt``).
            support: pytree with leaves [K, S, ...]: K inner steps on S rows each.
            query: pytree with leaves [Q, ...], the rows of the meta-loss.
            support_mask: [K, S] booleans, True = valid; None takes every row.
            query_mask: [Q] booleans, True = valid; None takes every row.
            query_weights: [Q], unitless: the loss of the query is then the sum of its
                rows' losses times these, instead of their mean.
            key: gives the loss a new ``key=`` in every inner step and every query.
                Consumed.
            model_state: any pytree, handed to the loss as ``model_state=``.

        Returns:
            ``((meta_loss, info), grads)``: the scalar meta-loss in nats, a
            ``MetaInfo``, and the gradients as ``MetaParams``, in nats.

        Raises:
            ValueError: trees, shapes or leading axes disagree.
            TypeError: a weight, step size or loss is not floating, a mask not boolean.
        """
        ...


def _cosine(first: types.Params, second: types.Params) -> jax.Array:
    """Cosine of the angle between two trees; 0 if one of them is zero."""
    dtype = jnp.result_type(float)
    first, second = (
        jax.tree.map(lambda leaf: leaf.astype(dtype), tree) for tree in (first, second)
    )
    # Not a dot product, which would not know how to lay out what sharded axes leave.
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), first, second)
    product = jnp.asarray(optax.tree.sum(products))
    norms = optax.tree.norm(first) * optax.tree.norm(second)
    safe = jnp.where(norms > 0, norms, jnp.ones_like(norms))
    return jnp.where(norms > 0, product / safe, 0)


def _default_unroll(weights: types.Params, num_steps: int, first_order: bool) -> int:
    """How many steps are unrolled, by ``python -m experiments bench``.

    In second order XLA finds part of the inner gradients at hand on the way back if no
    loop is between: up to a third less time where weights stay in a cache, else more.

    In first order a pass over the weights for each sum and step costs as much as their
    products where these are small. Unrolled, XLA adds up several gradients in one pass,
    and without a loop copies nothing; but all of them wait until then, and fall out of
    the cache if they are too many or too large. Five steps of large weights are no
    faster than a loop and hold a third more; two are faster, and hold no more. A
    number that does not divide the steps would have the support copied in two parts.
    """
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    is_cached = num_bytes <= _CACHED_BYTES
    if not first_order:
        return num_steps if is_cached and num_steps <= _SECOND_ORDER_UNROLL else 1
    if num_steps <= (10 if is_cached else 5 if num_bytes <= _LARGE_BYTES else 2):
        return num_steps
    return max(n for n in range(1, 6 if is_cached else 2) if num_steps % n == 0)


def _query_loss(
    loss_fn: types.LossFn,
    query: types.Batch,
    mask: types.Mask | None,
    row_weights: jax.Array | None,
) -> recursion.QueryLoss:
    def query_loss(weights: types.Params, key: types.Key | None) -> jax.Array:
        loss = losses.with_extras(loss_fn, key=key)
        return losses.mean_loss(loss, weights, query, mask, row_weights)

    return query_loss


def meta_value_and_grad(
    loss_fn: types.LossFn,
    *,
    objective: str = "mean",
    first_order: bool = False,
    rectify: bool = True,
    clip: chex.Numeric | None = None,
    inner_tx: optax.GradientTransformation | None = None,
    adapt_mask: inner_step.AdaptMask = None,
    inner_ad: str = "reverse",
    remat: bool | str = True,
    unroll: int | None = None,
) -> MetaValueAndGrad:
    """Builds the meta-loss and its gradients, a cousin of ``jax.value_and_grad``.

    The meta-loss is the query loss at the fast weights of ``lamaml_jax.adapt``,
    averaged over w_1 ... w_K (``objective="mean"``, the published code) or taken at w_K
    (``"last"``, the algorithm box of the paper).

    Args:
        loss_fn: ``(weights, batch) -> [B]`` per-example losses (nats), or a scalar mean
            where nothing is masked.
        objective: ``"mean"`` or ``"last"``.
        first_order: hold the inner directions constant; changes both meta-gradients,
            which memory then does not grow with K.
        rectify: as in ``adapt``.
        clip: as in ``adapt``.
        inner_tx: as in ``adapt``.
        adapt_mask: as in ``adapt``; leaves that do not adapt still get meta-gradients
            for their weights, and zeros for their step sizes.
        inner_ad: how second order takes the product with an inner Hessian:
            ``"reverse"`` (a vjp of the inner gradient) or ``"forward_over_reverse"``
            (one jvp of it, arXiv:2505.00793); the same numbers.
        remat: of second order. True keeps only the K fast weights for the way back,
            which visits each once; ``"sqrt"`` about 2 sqrt(K) of them, and takes each
            step once more; False differentiates the definition and keeps every
            activation.
        unroll: steps unrolled in one iteration of the scan; None for what was
            measured to be fastest: 1, but for weights that stay in a cache all of at
            most 5 in second order, and in first order as many as 10, because their
            sums are then added up together. 1 needs least memory.

    Returns:
        ``fn(params, support, query, support_mask=None, query_mask=None, *,
        query_weights=None, key=None, model_state=None) -> (meta_loss, info), grads``,
        which ``MetaValueAndGrad`` describes: ``params`` and ``grads`` are
        ``MetaParams``, support leaves are [K, S, ...] and query leaves [Q, ...].

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
    checks.check_choice("inner_ad", inner_ad, INNER_AD_MODES)
    checks.check_choice("remat", remat, scans.REMAT_POLICIES)
    checks.check_by_definition(inner_ad, remat)
    if inner_tx is not None:
        checks.check_transformation("inner_tx", inner_tx)
    if unroll is not None:
        unroll = checks.check_count("unroll", unroll)
    if first_order:
        gradients = recursion.first_order
    else:
        gradients = recursion.second_order if remat else _by_definition

    def meta_value_and_grad_fn(
        params: types.MetaParams,
        support: types.Batch,
        query: types.Batch,
        support_mask: types.Mask | None = None,
        query_mask: types.Mask | None = None,
        *,
        query_weights: jax.Array | None = None,
        key: types.Key | None = None,
        model_state: types.ModelState = None,
    ) -> tuple[tuple[jax.Array, MetaInfo], types.MetaParams]:
        params = checks.check_meta_params(params)
        support, support_mask, num_steps = checks.check_support(support, support_mask)
        query, query_mask, query_weights = checks.check_query(
            query, query_mask, query_weights
        )
        if key is not None:
            checks.check_key("key", key)
        with_state = losses.with_extras(loss_fn, model_state=model_state)
        rule = inner_step.make_inner_rule(
            with_state,
            params.weights,
            rectify=rectify,
            clip=clip,
            adapt_mask=adapt_mask,
            inner_tx=inner_tx,
        )
        problem = recursion.MetaProblem(
            rule,
            _query_loss(with_state, query, query_mask, query_weights),
            objective == "mean",
            inner_ad,
            remat,
            unroll or _default_unroll(params.weights, num_steps, first_order),
        )
        steps = recursion.make_steps(support, support_mask, key, num_steps)
        sums = gradients(problem, params, steps)
        alignment = _cosine(sums.direction_sum, sums.grads.weights)
        info = MetaInfo(sums.inner_losses, sums.query_losses, alignment)
        return (jnp.mean(sums.query_losses), info), sums.grads

    return meta_value_and_grad_fn
