"""The running meta-gradient: its formula, its limits and what it is good for."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import rectified_step

import lamaml_jax as lm


def quadratic(params, target):
    """Half the squared distance of both halves to a target that is the data."""

    def loss(params):
        parts = jax.tree.map(lambda x: 0.5 * jnp.sum((x - target) ** 2), params)
        return parts.weights["w"] + 2 * parts.step_sizes["w"]

    value, grads = jax.value_and_grad(loss)(params)
    return (value, None), grads


def make_params(value):
    return lm.MetaParams({"w": jnp.full(3, value)}, {"w": jnp.full(3, -value)})


def run_by_hand(momentum, targets, rate):
    """Numpy float64 loop of the formula, on weights w and step sizes a."""
    point, running, before = np.array([2.0, -2.0]), None, None
    curvature = np.array([1.0, 2.0])
    grads = []
    for target in targets:
        grad = curvature * (point - target)
        if running is not None:
            grad = grad + momentum * (running - curvature * (before - target))
        running, before = grad, point
        grads.append(grad)
        point = point - rate * grad
    return np.array(grads)


def run(momentum, targets, rate, params=None):
    stage = lm.variance_reduced(quadratic, momentum)
    params = make_params(2.0) if params is None else params
    state = stage.init(params)
    grads = []
    for target in targets:
        _, grad, state = stage.apply(params, state, target)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grad)
        grads.append(grad)
    return grads


TARGETS = (0.3, -1.0, 0.7, 2.0, -0.4)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_gradients_follow_the_formula(momentum):
    expected = run_by_hand(momentum, TARGETS, rate=0.1)
    for grad, by_hand in zip(run(momentum, TARGETS, 0.1), expected, strict=True):
        # float32 rounding of five short steps
        np.testing.assert_allclose(grad.weights["w"], by_hand[0], rtol=1e-5)
        np.testing.assert_allclose(grad.step_sizes["w"], by_hand[1], rtol=1e-5)


def test_first_gradient_is_the_plain_one():
    params = make_params(2.0)
    (grad,) = run(0.9, TARGETS[:1], 0.1)
    chex.assert_trees_all_equal(grad, quadratic(params, TARGETS[0])[1])


def test_on_fixed_data_it_stays_the_plain_gradient():
    for momentum in (0.5, 1.0):
        params = make_params(2.0)
        for grad in run(momentum, [0.5] * 6, 0.1):
            plain = quadratic(params, 0.5)[1]
            # the differences telescope, up to rounding
            chex.assert_trees_all_close(grad, plain, atol=1e-5)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grad)


def test_its_variance_is_lower_on_noisy_data():
    """Weights that hardly move: the running gradient averages (1 - r) / (1 + r)."""
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(400, 30)).astype(np.float32)

    def last(momentum):
        @jax.jit
        def one(targets):
            stage = lm.variance_reduced(quadratic, momentum)
            params = make_params(0.0)
            state = stage.init(params)

            def step(state, target):
                _, grad, state = stage.apply(params, state, target)
                return state, grad.weights["w"][0]

            return jax.lax.scan(step, state, targets)[1][-1]

        return np.asarray(jax.vmap(one)(targets)).var()

    # The variance of 400 draws has a relative standard error of 7 %.
    assert last(0.0) == pytest.approx(1.0, rel=0.25)
    assert last(0.8) == pytest.approx(0.2 / 1.8, rel=0.35)


def loss_fn(weights, batch):
    return 0.5 * jnp.sum((batch["x"] - weights["w"][None, :]) ** 2, axis=1)


def explicit_data(key):
    support_key, query_key = jax.random.split(key)
    return {
        "support": {"x": jax.random.normal(support_key, (2, 3, 4))},
        "query": {"x": jax.random.normal(query_key, (5, 4))},
    }


def test_an_unjitted_update_shares_no_buffer_with_its_caller():
    stage, params = lm.variance_reduced(quadratic, 0.5), make_params(2.0)
    _, grads, state = stage.apply(params, stage.init(params), 0.3)
    held = jax.tree.map(np.array, (params, grads))
    # Donation frees the state's buffers, and with them whatever they are shared with.
    jax.jit(lambda s: optax.tree.scale(2, s), donate_argnums=0)(state)
    chex.assert_trees_all_equal((params, grads), held)


def test_half_precision_stays_half_and_near_single():
    half = optax.tree.cast(make_params(2.0), jnp.bfloat16)
    for got, expected in zip(
        run(0.5, TARGETS, 0.1, half), run(0.5, TARGETS, 0.1), strict=True
    ):
        assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(got))
        got = optax.tree.cast(got, jnp.float32)
        # bfloat16 rounds by 0.4 %: numbers up to 6, some ten roundings each.
        chex.assert_trees_all_close(got, expected, rtol=0.05, atol=0.05)


def run_transform(num_updates=4, **options):
    tx = lm.lamaml(loss_fn, inner_steps=2, step_size_init=0.1, **options)
    weights = {"w": jnp.arange(4.0)}
    state = tx.init(weights)
    update = jax.jit(tx.update)
    for key in jax.random.split(jax.random.key(0), num_updates):
        updates, state = update(
            optax.tree.zeros_like(weights), state, weights, **explicit_data(key)
        )
        weights = optax.apply_updates(weights, updates)
    return weights, state


def test_momentum_zero_is_the_plain_transformation():
    plain, _ = run_transform()
    reduced, _ = run_transform(momentum=0.0)
    # Adding zero times a difference changes nothing but a sign of zero.
    chex.assert_trees_all_equal(plain, reduced)
    other, _ = run_transform(momentum=0.5)
    assert not np.allclose(plain["w"], other["w"])


def test_without_momentum_there_is_no_state():
    _, state = run_transform()
    assert state.variance_reduction is None


def test_step_sizes_are_found_once():
    _, state = run_transform(momentum=0.5)
    chex.assert_trees_all_equal(
        optax.tree.get(state, "step_sizes"), state.rule_state.step_sizes
    )


def test_transformation_steps_along_the_running_gradient():
    """Two updates by hand, with the meta-gradients of the library."""
    value_and_grad = lm.meta_value_and_grad(loss_fn)
    tx_options = {"step_size_tx": optax.sgd(0.2), "meta_tx": optax.identity()}
    tx = lm.lamaml_transform(loss_fn, inner_steps=2, momentum=0.6, **tx_options)
    weights = {"w": jnp.arange(4.0)}
    state = tx.init(weights)
    rates = {"w": jnp.full(4, 0.1)}
    running = before = None
    for key in jax.random.split(jax.random.key(3), 2):
        data = explicit_data(key)
        here = lm.MetaParams(weights, rates)
        _, grads = value_and_grad(here, data["support"], data["query"])
        if running is not None:
            _, old = value_and_grad(before, data["support"], data["query"])
            grads = jax.tree.map(lambda g, r, o: g + 0.6 * (r - o), grads, running, old)
        running, before = grads, here
        rates = jax.tree.map(lambda a, g: a - 0.2 * g, rates, grads.step_sizes)
        updates, state = tx.update(
            optax.tree.zeros_like(weights), state, weights, **data
        )
        weights = rectified_step(weights, rates, grads.weights)
        expected = jax.tree.map(jnp.subtract, weights, before.weights)
        chex.assert_trees_all_close(updates, expected, rtol=1e-5)


def test_it_is_differentiable_in_the_momentum():
    def final(momentum):
        grads = run(momentum, TARGETS[:3], 0.1)
        return jnp.sum(grads[-1].weights["w"])

    step = 0.01
    slope = (final(0.5 + step) - final(0.5 - step)) / (2 * step)
    # the function is a polynomial of degree 2 in r: only float32 rounding remains
    np.testing.assert_allclose(jax.grad(final)(0.5), slope, rtol=1e-3)


@pytest.mark.parametrize(
    ("momentum", "error"),
    [
        (-0.1, ValueError),
        (1.5, ValueError),
        (float("nan"), ValueError),
        (np.full(2, 0.5), ValueError),
        ("half", TypeError),
        (True, TypeError),
        (np.array(True), TypeError),
        (0.5j, TypeError),
        ([0.5], TypeError),
        (lambda count: 0.5, TypeError),
    ],
)
def test_wrong_momentum_is_an_error(momentum, error):
    with pytest.raises(error, match=r"momentum: expected a (number|scalar)"):
        lm.variance_reduced(quadratic, momentum)
    with pytest.raises(error, match=r"momentum: expected a (number|scalar)"):
        lm.lamaml(loss_fn, momentum=momentum)


def test_injected_momentum_changes_without_a_retrace():
    static = ("loss_fn", "inner_steps", "replay_size")
    make = optax.inject_hyperparams(lm.lamaml_transform, static_args=static)
    tx = make(loss_fn, step_size_init=0.1, inner_steps=2, momentum=0.0)
    weights = {"w": jnp.arange(4.0)}
    zeros = optax.tree.zeros_like(weights)
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    first, second = map(explicit_data, jax.random.split(jax.random.key(1)))
    updates, state = update(zeros, tx.init(weights), weights, **first)
    weights = optax.apply_updates(weights, updates)
    found = []
    for momentum in (0.0, 0.9):
        state.hyperparams["momentum"] = jnp.asarray(momentum, jnp.float32)
        found.append(update(zeros, state, weights, **second)[0]["w"])
    assert not np.allclose(*found)


def test_traced_momentum_needs_one_compilation():
    @functools.partial(jax.jit, static_argnums=())
    @chex.assert_max_traces(1)
    def last(momentum):
        return run(momentum, TARGETS[:2], 0.1)[-1]

    chex.clear_trace_counter()
    assert not np.allclose(last(0.1).weights["w"], last(0.9).weights["w"])
