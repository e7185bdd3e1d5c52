"""Several gradients made into one, against a quadratic programme and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import quadratic_loss, waves

from lamaml_jax import losses, mixing

pytestmark = pytest.mark.usefixtures("x64")


def shortest_average(rows):
    """Solves the quadratic programme by trying every set of weights above zero.

    On a set, the minimum under ``sum = 1`` alone is a linear system; the least of those
    that are not negative is the solution.
    """
    best, found = np.inf, None
    for size in range(1, min(len(rows), rows.shape[1]) + 1):
        for chosen in itertools.combinations(range(len(rows)), size):
            part = rows[list(chosen)]
            system = np.block(
                [[part @ part.T, -np.ones((size, 1))], [np.ones(size), 0]]
            )
            shares = np.linalg.solve(system, np.eye(size + 1)[-1])[:size]
            norm = np.linalg.norm(shares @ part)
            if (shares >= 0).all() and norm < best - 1e-12:
                best, found = norm, np.zeros(len(rows))
                found[list(chosen)] = shares
    return found


def as_tree(rows):
    return {"a": rows[:, :2], "b": rows[:, 2:].reshape(len(rows), -1, 1)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("offset", [0.3, 1.0])
def test_shortest_average_solves_the_quadratic_programme(seed, offset):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(6, 9)) * rng.uniform(0.1, 3, size=(6, 1)) + offset
    expected = shortest_average(rows)
    found = jax.jit(mixing.min_norm_weights, static_argnames="num_steps")(
        as_tree(rows), num_steps=300
    )
    # Linear convergence, to the rounding of the slopes.
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_the_default_number_of_steps_comes_close():
    rows = np.random.default_rng(3).normal(size=(8, 40)) + 0.2
    shares = mixing.min_norm_weights(rows)
    least = np.linalg.norm(shortest_average(rows) @ rows)
    # 50 steps for eight tasks: a thousandth of the norm is far below a batch's noise.
    # The least itself may be reached; two float64 sums of it differ in their last bits.
    assert 1 - 1e-14 <= np.linalg.norm(shares @ rows) / least <= 1.001


def test_two_gradients_need_one_step():
    rows = waves((2, 5), 0.4)
    first, second = rows
    share = (second - first) @ second / ((first - second) @ (first - second))
    found = mixing.min_norm_weights(rows, num_steps=1)
    np.testing.assert_allclose(found, [share, 1 - share], rtol=1e-12)
    assert 0 < share < 1


def test_the_average_descends_on_every_task():
    rows = np.random.default_rng(8).normal(size=(5, 30))
    shares = mixing.min_norm_weights(rows, num_steps=300)
    average = shares @ rows
    # At the optimum, every slope is at least the squared norm.
    assert (rows @ average >= average @ average - 1e-9).all()
    np.testing.assert_allclose(shares.sum(), 1, rtol=1e-14)


def test_masked_tasks_do_not_count_even_if_not_finite():
    rows = waves((4, 5), 1.0)
    mask = np.array([True, False, True, True])
    spoilt = np.where(mask[:, None], rows, np.nan)
    found = mixing.min_norm_weights(spoilt, mask)
    assert found[1] == 0
    np.testing.assert_allclose(
        found[mask], mixing.min_norm_weights(rows[mask]), atol=1e-12
    )
    np.testing.assert_array_equal(mixing.min_norm_weights(rows, ~mask), [0, 1, 0, 0])
    nothing = mixing.min_norm_weights(rows, np.zeros(4, bool))
    np.testing.assert_array_equal(nothing, np.zeros(4))


def test_equal_and_opposite_gradients():
    with jax.debug_nans(True):
        equal = mixing.min_norm_weights(np.ones((3, 2)))
        np.testing.assert_allclose(equal.sum(), 1, rtol=1e-15)
        opposite = mixing.min_norm_weights(np.array([[1.0, 2.0], [-1.0, -2.0]]))
        np.testing.assert_array_equal(opposite, [0.5, 0.5])
        slopes = jax.grad(lambda rows: mixing.min_norm_weights(rows)[0])(
            jnp.ones((3, 2))
        )
        assert np.isfinite(slopes).all()
        zeros = mixing.min_norm_weights(np.zeros((3, 2)))
        np.testing.assert_allclose(zeros.sum(), 1, rtol=1e-15)


def test_a_smooth_maximum_has_the_gradient_of_a_common_displacement():
    points, batch = (
        {"w": jnp.asarray(waves((3, 4), 0.2))},
        jnp.asarray(waves((5, 4), 2)),
    )
    mask = np.array([True, True, False, True, True])

    def smooth(shift):
        at = lambda w: losses.mean_loss(quadratic_loss, {"w": w + shift}, batch, mask)
        values = jax.vmap(at)(points["w"])
        return 0.5 * jnp.log(jnp.mean(jnp.exp(values / 0.5))), values

    (value, values), grad = mixing.soft_maximum_value_and_grad(
        quadratic_loss, points, batch, mask, temperature=0.5
    )
    (expected, each), slope = jax.value_and_grad(smooth, has_aux=True)(jnp.zeros(4))
    # float64, and sums in another order.
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    np.testing.assert_allclose(values, each, rtol=1e-13)
    np.testing.assert_allclose(grad["w"], slope, rtol=1e-12)


def test_temperatures_lead_from_the_maximum_to_the_mean():
    points, batch = (
        {"w": jnp.asarray(waves((3, 4), 0.2))},
        jnp.asarray(waves((5, 4), 2)),
    )
    at = lambda temperature: mixing.soft_maximum_value_and_grad(
        quadratic_loss, points, batch, temperature=temperature
    )
    (cold, values), cold_grad = at(1e-4)
    (hot, _), hot_grad = at(1e6)
    grads = jax.vmap(
        jax.grad(lambda w: losses.mean_loss(quadratic_loss, {"w": w}, batch))
    )(points["w"])
    np.testing.assert_allclose(cold_grad["w"], grads[jnp.argmax(values)], rtol=1e-12)
    # Off by temperature log(K), and by variance / temperature.
    np.testing.assert_allclose(cold, jnp.max(values), atol=2e-4)
    np.testing.assert_allclose(hot, jnp.mean(values), atol=1e-5)
    np.testing.assert_allclose(hot_grad["w"], grads.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mixing.min_norm_weights(np.ones((2, 2), int)), TypeError, "gradients"),
        (
            lambda: mixing.min_norm_weights(np.ones((2, 2)), num_steps=0),
            ValueError,
            "num_steps: expected 1 <= num_steps",
        ),
        (
            lambda: mixing.min_norm_weights(np.ones((2, 2)), np.ones(3, bool)),
            ValueError,
            r"mask: expected shape \(2,\)",
        ),
        (
            lambda: mixing.soft_maximum_value_and_grad(
                quadratic_loss, {"w": np.ones((2, 2))}, np.ones((1, 2)), temperature=0.0
            ),
            ValueError,
            "temperature: expected a number > 0, received 0.0",
        ),
    ],
)
def test_wrong_arguments_are_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
