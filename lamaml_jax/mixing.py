"""Several gradients made into one, and the points that their mixtures lead to."""

import chex
import jax
import jax.numpy as jnp

from lamaml_jax import checks, grain, losses, types


def _combine(shares: jax.Array, trees: types.Params) -> types.Params:
    """``sum_t shares[..., t] trees_t`` of a tree with leaves [T, ...]."""
    return jax.tree.map(
        lambda leaf: jnp.tensordot(
            shares.astype(leaf.dtype), leaf, axes=1, precision="highest"
        ),
        trees,
    )


def min_norm_weights(
    gradients: types.Params, mask: types.Mask | None = None, *, num_steps: int = 50
) -> jax.Array:
    """Weights of the shortest vector among the averages of T gradients.

    Minimises ``|sum_t weights_t gradients_t|^2`` over weights that are at least 0 and
    sum to 1. Minus that average descends on every task unless it is zero, and then no
    direction does (Pareto). By Frank-Wolfe steps between two tasks, each of the exact
    best length: from the one among those in use that helps least to the one that helps
    most. They converge linearly and keep every weight in its range.

    Args:
        gradients: tree with leaves [T, ...], such as hypergradients of T tasks.
        mask: [T] booleans, True = counts; None takes every task.
        num_steps: Frank-Wolfe steps, each of T operations. Two tasks need one.

    Returns:
        [T] weights, unitless, 0 for masked tasks; all 0 if every one is masked. Where
        several minimise, such as for equal gradients, one of them.

    Raises:
        ValueError: leading axes disagree, or ``num_steps`` < 1.
        TypeError: a leaf is not floating, or ``mask`` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> gradients = {"w": jnp.array([[2.0, 0.0], [0.0, 1.0]])}
        >>> print(lm.mixing.min_norm_weights(gradients))
        [0.2 0.8]

    References:
        Sener and Koltun 2018, arXiv:1810.04650; POCL (Wu et al. 2024, ICML) aggregates
        the hypergradients of past tasks by such weights. The steps: Lacoste-Julien and
        Jaggi 2015, arXiv:1511.05932, pairwise variant.
    """
    num_steps = checks.check_count("num_steps", num_steps)
    checks.check_floating("gradients", gradients)
    (num_tasks,) = checks.check_rows("gradients", gradients)
    is_used = jnp.ones(num_tasks, bool)
    if mask is not None:
        is_used = checks.check_mask("mask", mask, (num_tasks,))
    rows = [leaf.reshape(num_tasks, -1) for leaf in jax.tree.leaves(gradients)]
    rows = [jnp.where(is_used[:, None], row, 0) for row in map(jnp.asarray, rows)]
    products = (jnp.matmul(row, row.T, precision="highest") for row in rows)
    gram = jnp.asarray(sum(products))

    def step(weights: jax.Array, _: None) -> tuple[jax.Array, None]:
        slopes = gram @ weights
        to = jnp.argmin(jnp.where(is_used, slopes, jnp.inf))
        start = jnp.argmax(jnp.where(weights > 0, slopes, -jnp.inf))
        # Along weights + length (e_to - e_start) the objective is a parabola.
        curvature = gram[to, to] - 2 * gram[to, start] + gram[start, start]
        best = (slopes[start] - slopes[to]) / jnp.where(curvature > 0, curvature, 1)
        length = jnp.clip(jnp.where(curvature > 0, best, 0), 0, weights[start])
        return weights.at[to].add(length).at[start].add(-length), None

    shares = is_used.astype(gram.dtype)
    first = shares / jnp.maximum(jnp.sum(shares), 1)
    weights, _ = jax.lax.scan(step, first, length=num_steps)
    return weights


def min_norm_gradient(
    gradients: types.Params, mask: types.Mask | None = None, *, num_steps: int = 50
) -> tuple[types.Params, jax.Array]:
    """The shortest vector among the averages of T gradients, and its weights.

    POCL moves the weights by it, over the hypergradients of past tasks, plus the
    current task's hypergradient: what past tasks have in common is kept, whichever of
    them has the largest gradient.

    Args:
        gradients: as in ``min_norm_weights``, as are ``mask`` and ``num_steps``.
        mask: [T] booleans, True = counts; masked gradients are left out even where they
            are not finite.
        num_steps: Frank-Wolfe steps.

    Returns:
        ``gradient``, the tree of one gradient, and ``weights`` [T],
        unitless. Zeros if every task is masked.

    Raises:
        ValueError: as ``min_norm_weights``.
        TypeError: as ``min_norm_weights``.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> gradients = {"w": jnp.array([[2.0, 0.0], [0.0, 1.0]])}
        >>> gradient, weights = lm.mixing.min_norm_gradient(gradients)
        >>> print(gradient["w"], weights)
        [0.4 0.8] [0.2 0.8]

    References:
        Wu et al. 2024, ICML, "Mitigating Catastrophic Forgetting in Online Continual
        Learning by Modeling Previous Task Interrelations via Pareto Optimization".
    """
    weights = min_norm_weights(gradients, mask, num_steps=num_steps)
    gradients = checks.as_arrays("gradients", gradients)
    if mask is not None:
        # Not by a weight of zero, which lets a NaN through.
        gradients = jax.vmap(
            lambda is_used, tree: jax.tree.map(lambda x: jnp.where(is_used, x, 0), tree)
        )(jnp.asarray(mask), gradients)
    return _combine(weights, gradients), weights


def look_ahead_points(
    weights: types.Params,
    gradients: types.Params,
    mixtures: chex.Array,
    step_sizes: types.StepSizes,
) -> types.Params:
    """K points, each one step from the weights along a mixture of T gradients.

    ``points_k = weights - step_sizes * sum_t mixtures[k, t] gradients_t``. LOR looks
    ahead along mixtures of two gradients, that of the incoming rows (plasticity) and
    that of the replayed ones (stability), and descends a smooth maximum of the loss
    there, see ``soft_maximum_value_and_grad``.

    Args:
        weights: any pytree of floating arrays.
        gradients: tree of ``weights`` with leaves [T, ...].
        mixtures: [K, T] shares of the gradients, unitless, such as draws of
            ``jax.random.dirichlet``, whose rows sum to 1; any numbers will do.
        step_sizes: unitless, of any grain, as in ``adapt``; used as they are, negative
            ones included.

    Returns:
        Tree of ``weights`` with leaves [K, ...]. As a function it is linear in the
        gradients, so that stop-gradients on them give LOR's first order.

    Raises:
        ValueError: trees, shapes or leading axes disagree.
        TypeError: a leaf is not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> weights = jnp.array([1.0, 1.0])
        >>> gradients = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> mixtures = jnp.array([[1.0, 0.0], [0.5, 0.5]])
        >>> print(lm.mixing.look_ahead_points(weights, gradients, mixtures, 0.5))
        [[0.5  1.  ]
         [0.75 0.75]]

    References:
        Lai et al. 2026, CVPR, "Beyond Myopic Alignment" (LOR).
    """
    params = checks.check_meta_params(types.MetaParams(weights, step_sizes))
    checks.check_floating("gradients", gradients)
    checks.check_floating("mixtures", mixtures)
    (num_gradients,) = checks.check_rows("gradients", gradients)
    _, num_shares = checks.check_rows("mixtures", mixtures, axes=2)
    checks.check_equal("mixtures.T", num_shares, "rows of gradients", num_gradients)
    gradients = checks.as_arrays("gradients", gradients)
    first = jax.tree.map(lambda leaf: leaf[0], gradients)
    checks.check_same_tree("gradients[0]", first, "weights", params.weights)
    directions = _combine(jnp.asarray(mixtures), gradients)
    return jax.tree.map(
        lambda weight, rate, move: (
            weight[None] - rate[None].astype(weight.dtype) * move
        ),
        params.weights,
        grain.spread(params.step_sizes, params.weights),
        directions,
    )


def soft_maximum_value_and_grad(
    loss_fn: types.LossFn,
    points: types.Params,
    batch: types.Batch,
    mask: types.Mask | None = None,
    *,
    temperature: float | jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], types.Params]:
    """A smooth maximum of a loss over K points, and its gradient.

    ``temperature log(1/K sum_k exp(loss(points_k) / temperature))``, which lies between
    the mean and the largest of the losses. Its gradient is ``sum_k softmax(losses /
    temperature)_k grad loss(points_k)``: that of a displacement common to all points,
    so of the weights from which they were reached if the steps are held constant (first
    order). LOR takes it at ``look_ahead_points`` along mixtures of the incoming and the
    replayed rows' gradients.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        points: tree of weights with leaves [K, ...].
        batch: pytree with leaves [B, ...], the same for all points.
        mask: [B] booleans, True = valid; None takes every row.
        temperature: scalar in nats, > 0. Small ones approach the maximum, large ones
            the mean.

    Returns:
        ``(value, losses [K]), gradient``: nats, and the tree of one point.

    Raises:
        ValueError: axes disagree, or the temperature is not positive.
        TypeError: a leaf or loss is not floating, or ``mask`` not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2
        >>> points, batch = jnp.array([0.0, 1.0]), jnp.array([3.0])
        >>> (value, losses), grad = lm.mixing.soft_maximum_value_and_grad(
        ...     loss_fn, points, batch, temperature=0.1)
        >>> print(losses, grad)
        [9. 4.] -6.0

    References:
        Lai et al. 2026, CVPR, "Beyond Myopic Alignment" (LOR).
    """
    checks.check_callable("loss_fn", loss_fn)
    checks.check_floating("points", points)
    checks.check_positive("temperature", temperature)
    checks.check_rows("points", points)
    points = checks.as_arrays("points", points)

    def at(point: types.Params) -> tuple[jax.Array, types.Params]:
        mean_loss = lambda w: losses.mean_loss(loss_fn, w, batch, mask)
        return jax.value_and_grad(mean_loss)(point)

    values, grads = jax.vmap(at)(points)
    scaled = values / temperature
    shares = jax.nn.softmax(scaled)
    value = jax.nn.logsumexp(scaled) - jnp.log(values.shape[0])
    return (temperature * value, values), _combine(shares, grads)
