"""What the gradients of a stream of tasks say about interference and noise."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, losses, types


class GradientVariance(NamedTuple):
    """Spread of a random gradient.

    Example:
        >>> import jax
        >>> import lamaml_jax as lm
        >>> grad_fn = lambda key: 3 + jax.random.normal(key)
        >>> keys = jax.random.split(jax.random.key(0), 1000)
        >>> spread = lm.diagnostics.gradient_variance(grad_fn, keys)
        >>> print(f"{spread.mean:.0f} {spread.variance:.0f}")
        3 1
        >>> print(f"{spread.signal_to_noise:.0f}")
        3
    """

    mean: types.Params
    """Mean over the draws, the tree of one gradient; at least float32."""
    variance: types.Params
    """The same tree of scalars: mean over the draws of each leaf's squared distance to
    its mean."""
    total_variance: jax.Array
    """Scalar, the sum of ``variance``, in the square of the gradient's unit."""
    signal_to_noise: jax.Array
    """Scalar, unitless: norm of the mean over the root of the total variance; infinite
    if there is none."""


def task_gradients(
    loss_fn: types.LossFn,
    weights: types.Params,
    batches: types.Batch,
    masks: types.Mask | None = None,
) -> types.Params:
    """Gradient of the mean loss on each task.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        weights: any pytree of floating arrays.
        batches: pytree with leaves [T, B, ...], rows of T tasks.
        masks: [T, B] booleans, True = valid; None takes every row.

    Returns:
        Tree like ``weights`` with leaves [T, ...]; zeros for a task without valid rows.
        One task's activations are held at a time.

    Raises:
        ValueError: leading axes disagree.
        TypeError: a weight or loss is not floating, a mask not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: batch @ weights
        >>> batches = jnp.array([[[1.0, 0.0]], [[-2.0, 0.0]]])  # two tasks of one row
        >>> print(lm.diagnostics.task_gradients(loss_fn, jnp.ones(2), batches))
        [[ 1.  0.]
         [-2.  0.]]
    """
    checks.check_callable("loss_fn", loss_fn)
    checks.check_floating("weights", weights)
    axes = checks.check_rows("batches", batches, axes=2)
    batches = checks.as_arrays("batches", batches)
    if masks is not None:
        masks = checks.check_mask("masks", masks, axes)
    grad = jax.grad(lambda w, batch, mask: losses.mean_loss(loss_fn, w, batch, mask))
    return jax.lax.map(lambda task: grad(weights, *task), (batches, masks))


def gradient_alignment(
    loss_fn: types.LossFn,
    weights: types.Params,
    batches: types.Batch,
    masks: types.Mask | None = None,
) -> jax.Array:
    """Cosines of the angles between the gradients of the tasks' losses.

    Positive entries are tasks that a step on one helps the other with, negative ones
    are tasks that interfere. All T gradients are held at once.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        weights: any pytree of floating arrays.
        batches: pytree with leaves [T, B, ...], rows of T tasks.
        masks: [T, B] booleans, True = valid; None takes every row.

    Returns:
        [T, T] cosines in [-1, 1] up to rounding, symmetric, with ones on the diagonal;
        rows and columns of a task with a zero gradient are 0, of one with a gradient
        that is not finite NaN.

    Raises:
        ValueError: leading axes disagree.
        TypeError: a weight or loss is not floating, a mask not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: batch @ weights
        >>> batches = jnp.array([[[1.0, 0.0]], [[-2.0, 0.0]]])  # two tasks of one row
        >>> print(lm.diagnostics.gradient_alignment(loss_fn, jnp.ones(2), batches))
        [[ 1. -1.]
         [-1.  1.]]

    References:
        Gupta et al. 2020, arXiv:2007.13904, section 3; Riemer et al. 2019,
        arXiv:1810.11910.
    """
    grads = task_gradients(loss_fn, weights, batches, masks)
    dtype = jnp.result_type(float)

    leaves = [
        leaf.reshape(leaf.shape[0], -1).astype(dtype) for leaf in jax.tree.leaves(grads)
    ]
    # With a largest entry of 1 no square of a small or large gradient leaves the range.
    peaks = jnp.max(
        jnp.stack([jnp.max(jnp.abs(leaf), axis=1, initial=0) for leaf in leaves]), 0
    )
    peaks = jnp.where(peaks == 0, 1, peaks)[:, None]

    def products(leaf: jax.Array) -> jax.Array:
        return jnp.matmul(leaf / peaks, (leaf / peaks).T, precision="highest")

    gram = jnp.sum(jnp.stack([products(leaf) for leaf in leaves]), 0)
    norms = jnp.sqrt(jnp.diagonal(gram))
    scale = norms[:, None] * norms[None, :]
    # Tested for 0, not for > 0: a NaN must not come out as no alignment.
    return jnp.where(scale == 0, 0, gram / jnp.where(scale == 0, 1, scale))


def gradient_variance(
    grad_fn: Callable[[types.Key], types.Params], keys: types.Key
) -> GradientVariance:
    """Mean and variance of a random gradient, such as a meta-gradient over replay.

    Two gradients are held at a time, whatever the number of draws (Welford's method);
    those of half precision are summed in float32. Of ``MetaParams``, ``variance`` tells
    weights and step sizes apart.

    Args:
        grad_fn: ``key -> gradient``, any pytree of floating arrays.
        keys: [N] typed keys, one per draw, at least 1.

    Returns:
        A ``GradientVariance``, the variance divided by N; NaN if a draw is not finite.

    Raises:
        ValueError: ``keys`` has no leading axis or no entry.
        TypeError: ``keys`` are no typed keys, a gradient is not floating.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> sign = lambda key: 2.0 * jax.random.bernoulli(key) - 1.0
        >>> found = lm.diagnostics.gradient_variance(
        ...     sign, jax.random.split(jax.random.key(0), 100)
        ... )
        >>> print(jnp.allclose(found.variance, 1 - found.mean**2))
        True
    """
    checks.check_callable("grad_fn", grad_fn)
    checks.check_keys("keys", keys)
    form = jax.eval_shape(grad_fn, keys[0])
    checks.check_floating("grad_fn(key)", form)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), form
    )
    scalars = jax.tree.map(lambda x: jnp.zeros((), x.dtype), zeros)

    def add(
        carry: tuple[types.Params, types.Params], inputs: tuple[jax.Array, types.Key]
    ) -> tuple[tuple[types.Params, types.Params], None]:
        mean, squares = carry
        count, key = inputs
        grads = checks.as_arrays("grad_fn(key)", grad_fn(key))
        grads = jax.tree.map(lambda g, m: g.astype(m.dtype), grads, mean)
        new_mean = jax.tree.map(
            lambda m, g: m + (g - m) / count.astype(g.dtype), mean, grads
        )
        squares = jax.tree.map(
            lambda s, g, old, new: s + jnp.sum((g - old) * (g - new)),
            squares,
            grads,
            mean,
            new_mean,
        )
        return (new_mean, squares), None

    num_draws = keys.shape[0]
    counts = jnp.arange(1, num_draws + 1)
    (mean, squares), _ = jax.lax.scan(add, (zeros, scalars), (counts, keys))
    variance = jax.tree.map(lambda s: s / num_draws, squares)
    dtype = jnp.result_type(float)
    parts = [leaf.astype(dtype) for leaf in jax.tree.leaves(variance)]
    total = jnp.sum(jnp.stack(parts))
    noise = jnp.sqrt(total)
    signal = optax.tree.norm(mean).astype(dtype)
    ratio = jnp.where(noise == 0, jnp.inf, signal / jnp.where(noise == 0, 1, noise))
    return GradientVariance(mean, variance, total, ratio)
