"""What GEM and A-GEM make of a gradient that opposes those of past tasks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.methods.quadratic import minimise_above

# Added to the diagonal of the quadratic programme, as published.
_RIDGE = 1e-3
# Gradients are multiplied with one another in sets of this many, twice as many, ...
_SMALLEST_SET = 8


class Projection(NamedTuple):
    """GEM's projection of a gradient [P] under constraints from T tasks."""

    gradient: jax.Array
    """[P]; the one given if it violates no constraint."""
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
def _share(axis_size, in_batched, bound):
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


def _gram(vectors: jax.Array, end: jax.Array) -> jax.Array:
    """Inner products [T, T] of the first ``end`` rows; others need not be right."""
    sizes = [0, _SMALLEST_SET]
    while sizes[-1] < len(vectors):
        sizes.append(2 * sizes[-1])
    sizes[-1] = len(vectors)

    def make_branch(size):
        def branch(vectors):
            gram = _dot(vectors[:size], vectors[:size].T)
            return jnp.pad(gram, (0, len(vectors) - size))

        return branch

    index = jnp.sum(end > jnp.array(sizes[:-1]))
    return jax.lax.switch(index, [make_branch(size) for size in sizes], vectors)


def project(
    gradient: jax.Array, past: jax.Array, is_past: jax.Array, margin: float
) -> Projection:
    """Turns a gradient away from those it opposes, if there are any (GEM).

    With G the past gradients, g the one given and v the solution of

        min v' (G G' + 1e-3 I) v / 2 + (G g)' v,  v >= margin,

    the result is g + G' v. The products G G' cost no more than the past tasks ask for,
    rounded up, and nothing while none of G g is negative.

    Args:
        gradient: [P].
        past: [T, P]; rows of tasks that are not past may hold any finite values.
        is_past: [T] booleans.
        margin: least weight of a past gradient.

    References:
        Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equations 11 and 12.
    """
    products = jnp.where(is_past, _dot(past, gradient), 0)
    violations = jnp.sum(products < 0, dtype=jnp.int32)
    present = is_past & (violations > 0)
    ridge = _RIDGE * jnp.eye(len(past), dtype=past.dtype)
    matrix = _gram(past, end_of(present)) + ridge
    found = minimise_above(matrix, products, margin, present)
    projected = gradient + _dot(found.values, past)
    return Projection(projected, violations, products, matrix, found.values)


def project_on_mean(
    gradient: jax.Array, reference: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Removes what opposes a reference gradient, if the two are opposed (A-GEM).

    Args:
        gradient: [P].
        reference: [P], mean of the past gradients; 0 constrains nothing.

    Returns:
        The gradient [P], and whether it was opposed, int32.

    References:
        Chaudhry et al. 2019, arXiv:1812.00420, equation 11.
    """
    product = _dot(gradient, reference)
    is_opposed = product < 0
    squared = jnp.where(is_opposed, _dot(reference, reference), 1)
    share = jnp.where(is_opposed, product / squared, 0)
    return gradient - share * reference, is_opposed.astype(jnp.int32)
