"""Step sizes of any grain: one per weight, per channel, per leaf, per layer, or one.

Step sizes are the tree of the weights or a prefix of it; each leaf broadcasts to every
weight below it. ``spread`` hands each weight its rate and ``gather`` is its transpose.
"""

import jax
import jax.numpy as jnp

from lamaml_jax import types


def spread(step_sizes: types.StepSizes, weights: types.Params) -> types.Params:
    """Gives every leaf of the weights its rate, with as many axes as the leaf.

    Args:
        step_sizes: a prefix of the tree of ``weights``; leaves broadcast to theirs.
        weights: any pytree of arrays.

    Returns:
        Tree of ``weights`` whose leaves broadcast to its leaves; nothing is copied.
    """

    def below(rate: jax.Array, part: types.Params) -> types.Params:
        return jax.tree.map(
            lambda leaf: jnp.reshape(
                rate, (1,) * (jnp.ndim(leaf) - jnp.ndim(rate)) + jnp.shape(rate)
            ),
            part,
        )

    return jax.tree.map(below, step_sizes, weights)


def gather(full: types.Params, step_sizes: types.StepSizes) -> types.StepSizes:
    """Adds up what belongs to one rate: the sums that broadcasting implies.

    Args:
        full: one number per weight, in the tree of the weights.
        step_sizes: gives the grain; its values do not matter.

    Returns:
        Tree, leaf shapes and, where anything was added up, dtypes of ``step_sizes``.
    """

    def total(rate: jax.Array, leaf: jax.Array) -> jax.Array:
        shape, size = jnp.shape(rate), jnp.shape(leaf)
        if shape == size:
            return leaf
        padded = (1,) * (len(size) - len(shape)) + shape
        axes = [i for i, n in enumerate(padded) if n == 1]
        summed = jnp.sum(leaf, axis=axes, keepdims=True, dtype=jnp.result_type(rate))
        return summed.reshape(shape)

    def below(rate: jax.Array, part: types.Params) -> jax.Array:
        totals = [total(rate, leaf) for leaf in jax.tree.leaves(part)]
        return sum(totals[1:], totals[0]) if totals else jnp.zeros_like(rate)

    return jax.tree.map(below, step_sizes, full)
