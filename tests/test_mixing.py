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
    # Below the least by no more than rounding.
    assert (1 - 1e-14) * least <= np.linalg.norm(shares @ rows) <= 1.001 * least


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


def test_the_shortest_average_comes_with_its_weights():
    rows = np.random.default_rng(4).normal(size=(6, 9)) + 0.3
    expected = shortest_average(rows)
    gradient, shares = mixing.min_norm_gradient(as_tree(rows), num_steps=300)
    # Linear convergence of the weights, to the rounding of the slopes.
    np.testing.assert_allclose(shares, expected, atol=1e-9)
    found = np.concatenate([gradient["a"], gradient["b"].reshape(-1)])
    np.testing.assert_allclose(found, expected @ rows, atol=1e-8)


def test_the_shortest_average_leaves_out_masked_gradients_that_are_not_finite():
    rows = waves((4, 5), 1.0)
    mask = np.array([True, False, True, True])
    spoilt = np.where(mask[:, None], rows, np.nan)
    found, _ = mixing.min_norm_gradient(spoilt, mask)
    expected, _ = mixing.min_norm_gradient(rows[mask])
    # The same numbers, with zeros among them.
    np.testing.assert_allclose(found, expected, atol=1e-12)
    nothing, _ = mixing.min_norm_gradient(spoilt, np.zeros(4, bool))
    np.testing.assert_array_equal(nothing, np.zeros(5))


@pytest.mark.parametrize("grain", ["number", "leaf", "column", "full"])
def test_points_lie_one_step_ahead_along_each_mixture(grain):
    weights = {"w": waves((3, 2), 0.1), "b": waves((2,), 0.4)}
    gradients = {"w": waves((2, 3, 2), 0.7), "b": waves((2, 2), 0.9)}
    mixtures = waves((5, 2), 0.3)
    rates = {
        "number": 0.3,
        "leaf": {"w": np.float64(0.3), "b": np.float64(-0.1)},
        "column": {"w": waves((1, 2), 0.2), "b": waves((2,), 0.2)},
        "full": {"w": waves((3, 2), 0.2), "b": waves((2,), 0.8)},
    }[grain]
    points = jax.jit(mixing.look_ahead_points)(weights, gradients, mixtures, rates)
    for name, weight in weights.items():
        rate = rates if grain == "number" else rates[name]
        for k, (first, second) in enumerate(mixtures):
            move = first * gradients[name][0] + second * gradients[name][1]
            # float64: the order of a sum of two.
            np.testing.assert_allclose(
                points[name][k], weight - rate * move, rtol=1e-13, atol=1e-15
            )


def quadratic_bowls():
    """Two quadratic losses, |A w - b|^2 / 2 each, and the weights to start from."""
    first, second = waves((4, 3), 0.2), waves((4, 3), 1.4)
    return (first, waves((4,), 2.0)), (second, waves((4,), 3.0)), waves((3,), 0.6)


def test_a_look_ahead_step_on_quadratics_is_the_closed_form():
    """LOR's step, from its formulas in numpy: two losses whose sum is descended."""
    (a, b), (c, d), w = quadratic_bowls()
    rate, temperature, mixtures = 0.1, 0.4, np.array([[1, 0], [0.3, 0.7], [0, 1.0]])
    grad = lambda at: (a.T @ (a @ at - b), c.T @ (c @ at - d))
    value = lambda at: (((a @ at - b) ** 2).sum() + ((c @ at - d) ** 2).sum()) / 2
    points = [w - rate * (s @ np.stack(grad(w))) for s in mixtures]
    values = np.array([value(point) for point in points])
    shares = np.exp(values / temperature) / np.exp(values / temperature).sum()
    expected = sum(
        s * sum(grad(point)) for s, point in zip(shares, points, strict=True)
    )

    loss_fn = lambda w, rows: (rows[0] @ w - rows[1]) ** 2 / 2 * 8  # 8 rows: their sum
    rows = (np.concatenate([a, c]), np.concatenate([b, d]))
    grad_of = jax.grad(lambda w, mask: losses.mean_loss(loss_fn, w, rows, mask))
    grads = jnp.stack([grad_of(w, m) / 2 for m in (np.arange(8) < 4, np.arange(8) > 3)])
    ahead = mixing.look_ahead_points(w, grads, mixtures, rate)
    (_, found), slope = mixing.soft_maximum_value_and_grad(
        loss_fn, ahead, rows, temperature=temperature
    )
    # float64: sums in another order.
    np.testing.assert_allclose(ahead, points, rtol=1e-13)
    np.testing.assert_allclose(found, values, rtol=1e-13)
    np.testing.assert_allclose(slope, expected, rtol=1e-12)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_ahead_of_a_parabola_descent_is_at_another_curvature(rate):
    """``h (1 - rate h)``: none at ``rate h = 1``, and an ascent beyond."""
    h, w = 10.0, np.array([1.5])
    loss_fn = lambda weights, rows: h / 2 * weights[0] ** 2 + 0 * rows
    points = mixing.look_ahead_points(w, h * w[None], np.ones((1, 1)), rate)
    (_, _), slope = mixing.soft_maximum_value_and_grad(
        loss_fn, points, np.zeros(2), temperature=1.0
    )
    # float64: a handful of roundings of numbers of order ten.
    np.testing.assert_allclose(slope, h * (1 - rate * h) * w, atol=1e-13)


@pytest.mark.parametrize("name", ["min_norm_gradient", "look_ahead_points"])
def test_they_are_lowered_for_accelerators(name):
    trees = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    call = {
        "min_norm_gradient": lambda: mixing.min_norm_gradient(trees),
        "look_ahead_points": lambda: mixing.look_ahead_points(
            {"w": jnp.ones(2), "b": jnp.ones(())}, trees, jnp.ones((4, 3)), 0.1
        ),
    }[name]
    exported = jax.export.export(jax.jit(call), platforms=["tpu", "cuda"])()
    assert exported.platforms == ("tpu", "cuda")


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
        (
            lambda: mixing.look_ahead_points(
                np.ones(3), np.ones((2, 3)), np.ones((4, 3)), 0.1
            ),
            ValueError,
            r"mixtures.T: expected leading axis 2 \(rows of gradients\), received 3",
        ),
        (
            lambda: mixing.look_ahead_points(
                np.ones(3), np.ones((2, 4)), np.ones((4, 2)), 0.1
            ),
            ValueError,
            r"gradients\[0\]: expected shape \(3,\) as in weights",
        ),
        (
            lambda: mixing.look_ahead_points(
                np.ones(3), np.ones((2, 3)), np.ones((4, 2), int), 0.1
            ),
            TypeError,
            "mixtures: expected a floating array",
        ),
    ],
)
def test_wrong_arguments_are_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
