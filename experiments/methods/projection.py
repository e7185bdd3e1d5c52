"""What GEM and A-GEM make of a gradient that opposes those of past tasks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.quadratic import minimise_above

# Added to the diagonal of the quadratic programme, as published.
_RIDGE = 1e-3
# Gradients are multiplied with one another in sets of this many, twice as many, ...
_SMALLEST_SET = 8


class Projection(NamedTuple):
    """GEM's projection of a gradient under constraints from T tasks."""

    gradient: lm.Params
    """The one given if it violates no constraint."""
    violations: jax.Array
    """Scalar int32."""
    products: jax.Array
    """[T], of each past task's gradient with the one given; 0 elsewhere."""
    matrix: jax.Array
    """[T, T] of the programme, which takes its rows and columns of past tasks; the
    ridge alone if no constraint is violated."""
    multipliers: jax.Array
    """[T], solution of the programme; 0 if no constraint is violated."""


@jax.custom_batching.custom_vmap
def _shared_bound(bound: jax.Array) -> jax.Array:
    """Returns a loop's bound; under vmap, the largest of the batch for all.

    A loop that ends at another iteration for every seed would copy what it carries in
    each one, to keep that of the seeds which have ended.
    """
    return bound


@_shared_bound.def_vmap
def _share(axis_size, in_batched, bound) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return _shared_bound(jnp.max(bound, axis=0)), False


def end_of(is_past: jax.Array) -> jax.Array:
    """One past the last task that is past, 0 if none is."""
    ends = jnp.where(is_past, jnp.arange(1, len(is_past) + 1), 0)
    return _shared_bound(jnp.max(ends))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # At their default precision accelerators round the factors to 8 or 10 bits, an
    # error as large as the ridge.
    return jnp.matmul(a, b, precision="highest")


def _rows(past: lm.Params) -> list[jax.Array]:
    """Every leaf [T, ...] as a matrix of T rows.

    The gradients stay trees: to join their leaves into vectors costs a CPU more than
    to compute them.
    """
    return [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(past)]


def _products(past: lm.Params, gradient: lm.Params) -> jax.Array:
    """Inner products [T] of T trees with one."""
    pairs = zip(_rows(past), jax.tree.leaves(gradient), strict=True)
    return jnp.asarray(sum(_dot(rows, leaf.reshape(-1)) for rows, leaf in pairs))


def _gram(past: lm.Params, end: jax.Array) -> jax.Array:
    """Inner products [T, T] of the first ``end`` trees; others need not be right."""
    rows = _rows(past)
    num_tasks = len(rows[0])
    sizes = [0, _SMALLEST_SET]
    while sizes[-1] < num_tasks:
        sizes.append(2 * sizes[-1])
    sizes[-1] = num_tasks

    def make_branch(size) -> Callable[[list[jax.Array]], jax.Array]:
        def branch(rows) -> jax.Array:
            gram = sum(_dot(each[:size], each[:size].T) for each in rows)
            return jnp.pad(gram, (0, num_tasks - size))

        return branch

    index = jnp.sum(end > jnp.array(sizes[:-1]))
    return jax.lax.switch(index, [make_branch(size) for size in sizes], rows)


def project(
    gradient: lm.Params, past: lm.Params, is_past: jax.Array, margin: float
) -> Projection:
    """Turns a gradient away from those it opposes, if there are any (GEM).

    With G the past gradients, g the one given and v the solution of

        min v' (G G' + 1e-3 I) v / 2 + (G g)' v,  v >= margin,

    the result is g + G' v. The products G G' cost no more than the past tasks ask for,
    rounded up, and nothing while none of G g is negative.

    Args:
        gradient: any tree.
        past: tree like it, leaves [T, ...]; those of tasks that are not past may hold
            any finite values.
        is_past: [T] booleans.
        margin: least weight of a past gradient.

    References:
        Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equations 11 and 12.
    """
    products = jnp.where(is_past, _products(past, gradient), 0)
    violations = jnp.sum(products < 0, dtype=jnp.int32)
    present = is_past & (violations > 0)
    ridge = _RIDGE * jnp.eye(len(is_past), dtype=products.dtype)
    matrix = _gram(past, end_of(present)) + ridge
    found = minimise_above(matrix, products, margin, present)
    projected = jax.tree.map(
        lambda one, others: (
            one + _dot(found.values, others.reshape(len(others), -1)).reshape(one.shape)
        ),
        gradient,
        past,
    )
    return Projection(projected, violations, products, matrix, found.values)


def project_on_mean(
    gradient: lm.Params, reference: lm.Params
) -> tuple[lm.Params, jax.Array]:
    """Removes what opposes a reference gradient, if the two are opposed (A-GEM).

    Args:
        gradient: any tree.
        reference: tree like it, mean of the past gradients; 0 constrains nothing.

    Returns:
        The gradient, and whether it was opposed, int32.

    References:
        Chaudhry et al. 2019, arXiv:1812.00420, equation 11.
    """
    dot = optax.tree.vdot  # at the highest precision
    product = jnp.asarray(dot(gradient, reference))
    is_opposed = product < 0
    squared = jnp.where(is_opposed, dot(reference, reference), 1)
    share = jnp.where(is_opposed, product / squared, 0)
    projected = jax.tree.map(lambda g, r: g - share * r, gradient, reference)
    return projected, is_opposed.astype(jnp.int32)
