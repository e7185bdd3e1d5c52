"""The quadratic programme against quadprog, its conditions and its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog

from experiments.methods.quadratic import minimise_above

RIDGE = 1e-3
solve = jax.jit(minimise_above)


def plain(rng, num_tasks, size):
    return rng.normal(size=(num_tasks, size)), rng.normal(size=size)


def all_violated(rng, num_tasks, size):
    past, _ = plain(rng, num_tasks, size)
    return past, -past.sum(axis=0)


def none_violated(rng, num_tasks, size):
    past, _ = plain(rng, num_tasks, size)
    return past, past.sum(axis=0)


def duplicated(rng, num_tasks, size):
    past, gradient = plain(rng, -(-num_tasks // 3), size)
    return np.tile(past, (3, 1))[:num_tasks], gradient


def nearly_parallel(rng, num_tasks, size):
    past, _ = plain(rng, num_tasks, size)
    past = past[:1] + 1e-3 * past
    return past, -past[0] + rng.normal(size=size)


def alike_in_turn(rng, num_tasks, size):
    """Neighbouring tasks agree, distant ones do not."""
    past, gradient = plain(rng, num_tasks, size)
    steps = (np.arange(num_tasks)[:, None] - np.arange(num_tasks)[None, :]) / 4
    past = np.linalg.cholesky(np.exp(-(steps**2)) + 1e-6 * np.eye(num_tasks)) @ past
    return past, gradient - past[num_tasks // 2]


def rank_three(rng, num_tasks, size):
    past, gradient = plain(rng, 3, size)
    return rng.normal(size=(num_tasks, 3)) @ past, gradient


KINDS = (
    plain,
    all_violated,
    none_violated,
    duplicated,
    nearly_parallel,
    alike_in_turn,
    rank_three,
)


def programme(kind, rng, num_tasks, size, norm=2.0):
    """Gradients of one norm, as clipping leaves them, and their programme."""
    past, gradient = kind(rng, num_tasks, size)
    past *= norm / np.linalg.norm(past, axis=1, keepdims=True)
    gradient *= norm / np.linalg.norm(gradient)
    matrix = past @ past.T
    return (
        past,
        gradient,
        (matrix + matrix.T) / 2 + RIDGE * np.eye(num_tasks),
        past @ gradient,
    )


def by_quadprog(matrix, vector, margin):
    size = len(vector)
    return quadprog.solve_qp(matrix, -vector, np.eye(size), np.full(size, margin))[0]


def check_conditions(matrix, vector, lower, values, tolerance):
    """Feasible, and no direction that is allowed goes down."""
    matrix, vector, values = (
        np.asarray(x, np.float64) for x in (matrix, vector, values)
    )
    assert np.all(values >= lower)
    gradient = matrix @ values + vector
    terms = np.abs(matrix) @ np.abs(values) + np.abs(vector)
    assert np.all(gradient >= -tolerance * terms)
    assert np.all(
        np.abs(gradient)[values > lower] <= (tolerance * terms)[values > lower]
    )


@pytest.mark.parametrize("num_tasks", [1, 2, 20, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_solution_is_that_of_quadprog(x64, kind, num_tasks):
    rng = np.random.default_rng(num_tasks)
    for size in (max(2, num_tasks // 2), 3 * num_tasks):
        for margin in (0.0, 0.1, 0.5):
            past, gradient, matrix, vector = programme(kind, rng, num_tasks, size)
            expected = by_quadprog(matrix, vector, margin)
            found = solve(matrix, vector, margin)
            assert found.converged
            scale = max(1.0, np.abs(expected).max())
            # Rounding of the matrix's products (norms of 2, 100 terms: 1e-13) over its
            # least eigenvalue, 1e-3, in either solver.
            error = np.abs(found.values - expected).max() / scale
            assert error < 1e-9
            # What GEM uses does not move along the directions that were lost.
            moved, by_other = (gradient + v @ past for v in (found.values, expected))
            assert np.abs(moved - by_other).max() < 1e-11 * scale
            # 100 terms per sum, a few sums: 1000 roundings.
            check_conditions(matrix, vector, margin, found.values, 1000 * 2.3e-16)


@pytest.mark.parametrize("num_tasks", [2, 20, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_near_quadprog(kind, num_tasks):
    rng = np.random.default_rng(num_tasks)
    for margin in (0.0, 0.5):
        past, gradient, matrix, vector = programme(kind, rng, num_tasks, 300)
        expected = gradient + by_quadprog(matrix, vector, margin) @ past
        found = solve(matrix.astype(np.float32), vector.astype(np.float32), margin)
        values = np.asarray(found.values, np.float64)
        assert np.all(values >= margin)
        # The matrix itself is rounded to 6e-8 of 4, and v moves by that over 1e-3; the
        # gradient made from it by the root of the two.
        error = np.abs(gradient + values @ past - expected).max()
        assert error < 1e-3 * np.abs(past).max() * np.sqrt(num_tasks)


def test_iterations_are_few(x64):
    """28 on average; variables freed one by one would take 49."""
    counts = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        _, _, matrix, vector = programme(plain, rng, 100, 50)
        counts.append(int(solve(matrix, vector, 0.5).num_iterations))
    assert np.mean(counts) < 38
    for kind in KINDS:
        _, _, matrix, vector = programme(kind, rng, 100, 1000)
        assert solve(matrix, vector, 0.5).num_iterations <= 12


def test_rounding_does_not_keep_the_search_going():
    """A float32 matrix this near to singular has solutions that undo one another."""
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        _, _, matrix, vector = programme(plain, rng, 20, 10, norm=300.0)
        for linear in (vector, vector - matrix.sum(axis=1)):
            found.append(solve(matrix.astype("f4"), linear.astype("f4"), 0.5))
    assert not all(each.converged for each in found)
    assert max(int(each.num_iterations) for each in found) < 40  # of at most 120


@pytest.mark.parametrize("kind", [duplicated, rank_three])
def test_large_gradients_in_float32_end_with_a_feasible_point(kind):
    """Norms of 300: rounding, 9e4 times 6e-8, outweighs the ridge of 1e-3."""
    rng = np.random.default_rng(1)
    _, _, matrix, vector = programme(kind, rng, 20, 200, norm=300.0)
    rounded = matrix.astype(np.float32)
    vector = vector - matrix.sum(axis=1)  # most variables leave their bound
    assert np.linalg.eigvalsh(rounded.astype(np.float64)).min() < 0
    found = solve(rounded, vector.astype(np.float32), 0.5)
    assert np.isfinite(found.values).all() and np.all(found.values >= 0.5)
    assert found.num_iterations < 100
    value, at_bound, best = (
        v @ matrix @ v / 2 + vector @ v
        for v in (
            np.asarray(found.values, np.float64),
            np.full(20, 0.5),
            by_quadprog(matrix, vector, 0.5),
        )
    )
    # As near the least objective as the rounding of the matrix lets it be.
    assert value - best < 1e-4 * (at_bound - best)


def test_absent_variables_are_left_out(x64):
    rng = np.random.default_rng(2)
    _, _, matrix, vector = programme(plain, rng, 20, 12)
    present = rng.random(20) < 0.6
    lower = np.where(present, 0.5, np.nan)
    expected = by_quadprog(matrix[np.ix_(present, present)], vector[present], 0.5)
    matrix[~present], matrix[:, ~present], vector[~present] = np.nan, np.nan, np.inf
    found = solve(matrix, vector, lower, present)
    assert found.converged
    # As above.
    np.testing.assert_allclose(found.values[present], expected, rtol=1e-9)
    np.testing.assert_array_equal(found.values[~present], 0)


def test_nothing_present_takes_no_iteration(x64):
    found = solve(np.eye(20), np.ones(20), np.full(20, 0.5), np.zeros(20, bool))
    assert found.converged and found.num_iterations == 0
    np.testing.assert_array_equal(found.values, 0)


def test_bounds_may_differ(x64):
    lower = np.arange(20) / 4
    found = solve(2 * np.eye(20), np.full(20, -5.0), lower)
    # One division each.
    np.testing.assert_allclose(found.values, np.maximum(lower, 2.5), rtol=1e-15)


def test_vmap_solves_each_programme(x64):
    rng = np.random.default_rng(3)
    parts = [programme(kind, rng, 20, 12)[2:] for kind in KINDS]
    matrices, vectors = map(np.stack, zip(*parts, strict=True))
    margins = np.linspace(0, 1, len(KINDS))
    many = jax.jit(jax.vmap(minimise_above))(matrices, vectors, margins)
    for i, part in enumerate(zip(matrices, vectors, margins, strict=True)):
        one = solve(*part)
        assert many.num_iterations[i] == one.num_iterations
        # The batched factorisation may sum in another order, see above.
        np.testing.assert_allclose(many.values[i], one.values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", ["matrix", "vector"])
def test_a_value_that_is_not_finite_shows(place):
    matrix, vector = jnp.eye(20), -jnp.ones(20)
    if place == "matrix":
        matrix = matrix.at[1, 1].set(jnp.nan)
    else:
        vector = vector.at[1].set(jnp.inf)
    found = solve(matrix, vector, 0.5)
    assert np.isnan(found.values).all() and not found.converged
    assert found.num_iterations == 0


def test_too_few_iterations_give_a_feasible_point(x64):
    rng = np.random.default_rng(4)
    _, _, matrix, vector = programme(plain, rng, 20, 10)
    objective = lambda v: v @ matrix @ v / 2 + vector @ v
    values = [np.full(20, 0.1)]
    for limit in (1, 2, 4):
        found = solve(matrix, vector, 0.1, max_iterations=limit)
        assert not found.converged and np.all(found.values >= 0.1)
        values.append(np.asarray(found.values))
    objectives = [objective(v) for v in values]
    # Never rising; the start is the bound itself, reached by adding 0 to it.
    assert np.all(np.diff(objectives) <= 1e-12 * np.abs(objectives[0]))
    assert objectives[-1] < objectives[0]


def test_programme_lowers_for_accelerators():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 4), (4,))]
    for platform in ("tpu", "cuda"):
        lowered = jax.jit(lambda m, v: minimise_above(m, v, 0.5)).trace(*shapes)
        assert lowered.lower(lowering_platforms=(platform,)).as_text()
