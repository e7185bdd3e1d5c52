"""Small quadratic programmes with a lower bound on every variable."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# A gradient this many roundings of its own terms below zero still passes as zero.
_SLACK = 16


class Solution(NamedTuple):
    """What ``minimise_above`` found."""

    values: jax.Array
    """[N], at least ``lower`` where present, 0 where absent."""
    num_iterations: jax.Array
    """Scalar int32, linear systems solved; 0 if nothing is present."""
    converged: jax.Array
    """Scalar bool, whether the conditions of a minimum hold to rounding."""


class _Search(NamedTuple):
    point: jax.Array
    """[N], feasible (>= 0) and zero outside ``free``; its objective never rises."""
    free: jax.Array
    """[N] bools, variables to minimise over next."""
    lowest: jax.Array
    """Objective at the latest feasible minimum over the free variables."""
    ridge: jax.Array
    """Added to the diagonal of systems, 0 unless one could not be solved."""
    num_iterations: jax.Array
    converged: jax.Array
    is_done: jax.Array
    """Converged, or at the end of what this precision can tell."""


def _multiply(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    # At their default precision accelerators round the factors to 8 or 10 bits.
    return jnp.matmul(matrix, vector, precision="highest")


def _minimise_free(matrix, target, free, ridge) -> jax.Array:
    """Minimises over the free variables, the others being 0."""
    used = jnp.where(free[:, None] & free[None, :], matrix, 0)
    used += jnp.diag(jnp.where(free, ridge, 1).astype(matrix.dtype))
    factor = jax.scipy.linalg.cho_factor(used, lower=True)
    return jax.scipy.linalg.cho_solve(factor, jnp.where(free, target, 0))


def _approach(point, minimum, free) -> tuple[jax.Array, jax.Array]:
    """Goes towards the minimum until a bound is met; binds the variables that met it.

    At length 0, which only variables at their bound can cause, all of these go.
    """
    is_blocked = free & (minimum < 0)
    reach = jnp.where(is_blocked, point / jnp.where(is_blocked, point - minimum, 1), 1)
    length = jnp.min(reach)
    free = free & ~(is_blocked & (reach <= length))
    point = jnp.maximum(point + length * (minimum - point), 0)
    return jnp.where(free, point, 0), free


def _start(target: jax.Array, is_idle: jax.Array, is_finite: jax.Array) -> _Search:
    """All at their bounds, those free that would leave it."""
    return _Search(
        point=jnp.zeros_like(target),
        free=target > 0,
        lowest=jnp.full((), jnp.inf, target.dtype),
        ridge=jnp.zeros((), target.dtype),
        num_iterations=jnp.int32(0),
        converged=is_idle,
        is_done=is_idle | ~is_finite,
    )


def _step(matrix, target, search: _Search) -> _Search:
    minimum = _minimise_free(matrix, target, search.free, search.ridge)
    is_solved = jnp.all(jnp.isfinite(minimum))
    is_feasible = jnp.all(minimum >= 0)
    gradient = _multiply(matrix, minimum) - target
    terms = _multiply(jnp.abs(matrix), jnp.abs(minimum)) + jnp.abs(target)
    slack = _SLACK * jnp.finfo(matrix.dtype).eps * terms
    would_leave = ~search.free & (gradient < -slack)
    objective = minimum @ (gradient - target) / 2
    converged = is_feasible & ~jnp.any(would_leave)

    point, free = _approach(search.point, minimum, search.free)
    num_iterations = search.num_iterations + 1
    following = _Search(
        point=jnp.where(is_feasible, minimum, point),
        free=jnp.where(is_feasible, search.free | would_leave, free),
        lowest=jnp.where(is_feasible, objective, search.lowest),
        ridge=search.ridge,
        num_iterations=num_iterations,
        converged=converged,
        is_done=converged | (is_feasible & (objective >= search.lowest)),
    )
    # Not solved: rounding left the matrix indefinite. Again, with as much on its
    # diagonal as was lost.
    lost = len(target) * jnp.finfo(matrix.dtype).eps * jnp.trace(matrix)
    ridge = jnp.maximum(10 * search.ridge, lost)
    again = search._replace(ridge=ridge, num_iterations=num_iterations)
    return jax.tree.map(lambda a, b: jnp.where(is_solved, a, b), following, again)


def minimise_above(
    matrix: jax.Array,
    vector: jax.Array,
    lower: jax.Array | float,
    present: jax.Array | None = None,
    *,
    max_iterations: int | None = None,
) -> Solution:
    """Minimises ``v' matrix v / 2 + vector' v`` subject to ``v >= lower``.

    Lawson and Hanson's active sets, in blocks: solve for the free variables by one
    masked Cholesky factorisation; if that is feasible, free all variables that would
    leave their bound, else go as far as is feasible and bind those met on the way. Each
    feasible solution lowers the objective, so no set comes twice and the search ends;
    in a few iterations unless the matrix is nearly singular. Fixed shapes: runs under
    jit and vmap.

    ``v >= lower`` holds exactly. Once converged, the gradient ``matrix @ v + vector``
    is zero where v exceeds its bound, up to the backward error of a Cholesky solution,
    and elsewhere no further below zero than 16 roundings of its terms. The error of v
    itself is larger by the condition of the matrix. If the objective can fall no more
    in the precision at hand, or the iterations run out, v is the best point so far,
    never worse than ``lower``.

    Args:
        matrix: [N, N] floating, symmetric and positive definite.
        vector: [N].
        lower: scalar or [N].
        present: [N] bools; a variable that is absent is left out of the programme,
            whatever its entries hold. None takes all.
        max_iterations: bound on the systems solved; None takes ``20 + 5 * N``.

    Returns:
        A ``Solution``; its values are NaN if an entry in use is not finite.

    References:
        Lawson and Hanson 1974, "Solving least squares problems", chapter 23.
    """
    size = len(vector)
    limit = 20 + 5 * size if max_iterations is None else max_iterations
    present = jnp.ones(size, bool) if present is None else present
    lower = jnp.where(present, jnp.asarray(lower, matrix.dtype), 0)
    matrix = jnp.where(present[:, None] & present[None, :], matrix, 0)
    # With v = lower + x: minimise x' matrix x / 2 - target' x over x >= 0. An absent x
    # has zero target and gradient, so it is never free.
    target = -jnp.where(present, vector, 0) - _multiply(matrix, lower)
    is_finite = jnp.all(jnp.isfinite(matrix)) & jnp.all(jnp.isfinite(target))
    is_idle = ~jnp.any(present)
    found = jax.lax.while_loop(
        lambda search: ~search.is_done & (search.num_iterations < limit),
        lambda search: _step(matrix, target, search),
        _start(target, is_idle, is_finite),
    )
    values = jnp.where(present, lower + found.point, 0)
    values = jnp.where(is_finite, values, jnp.nan)
    return Solution(values, found.num_iterations, found.converged)
