"""Fast weights: closed form, numpy reference, finite differences, edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.test_util import check_grads
from problems import (
    EXACT,
    FUSED,
    D,
    H,
    Y,
    as_jax,
    assert_trees_close,
    logistic_loss,
    net_loss,
    quadratic_loss,
    rectified_step,
    tree_vdot,
)

import lamaml_jax as lm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

K, S = 4, 3


def make_net(seed):
    """Weights, step sizes of both signs, K inner batches, random masks, a direction."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (D, H), "b1": (H,), "w2": (H, Y), "b2": (Y,)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    step_sizes = {
        name: rng.uniform(-0.2, 0.8, size=shape) for name, shape in shapes.items()
    }
    support = (rng.normal(size=(K, S, D)), rng.integers(0, Y, size=(K, S)))
    mask = rng.random((K, S)) < 0.7
    mask[1] = False
    direction = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    return weights, step_sizes, support, mask, direction


def make_logistic(seed):
    rng = np.random.default_rng(seed)
    weights = {"w": rng.normal(size=D)}
    step_sizes = {"w": np.array([0.7, -0.1, 0.4])}
    support = (rng.normal(size=(K, S, D)), rng.choice([-1.0, 1.0], (K, S)))
    mask = rng.random((K, S)) < 0.7
    mask[1] = False
    direction = {"w": rng.normal(size=D)}
    return weights, step_sizes, support, mask, direction


def projected_adapt(support, direction, loss_fn=logistic_loss, **options):
    """Jitted: a linear function of w_K with gradients in weights and step sizes."""

    def value(weights, step_sizes, mask):
        fast, trace = lm.adapt(loss_fn, weights, step_sizes, support, mask, **options)
        return tree_vdot(fast, direction), (fast, trace)

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))


# Layer a: closed form ---------------------------------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_quadratic_has_its_closed_form(x64, steps, first_order):
    curvature = np.array([0.5, 1.0, 3.0])
    weights = np.array([1.0, -2.0, 0.3])
    target = np.array([0.2, 0.1, -0.4])
    rates = np.array([0.3, 0.9, 0.05])
    direction = np.array([1.0, 2.0, -1.0])
    support = jnp.broadcast_to(jnp.asarray(target), (steps, 2, 3))

    def loss_fn(w, batch):
        return jnp.sum(curvature[None, :] * (w[None, :] - batch) ** 2, axis=-1) / 2

    def value(w, a):
        fast, _ = lm.adapt(loss_fn, w, a, support, first_order=first_order)
        return jnp.vdot(fast, direction), fast

    (_, fast), (at_weights, at_rates) = jax.value_and_grad(
        value, argnums=(0, 1), has_aux=True
    )(jnp.asarray(weights), jnp.asarray(rates))

    shrink = 1 - rates * curvature
    gap = weights - target
    np.testing.assert_allclose(fast, target + shrink**steps * gap, **EXACT)
    if first_order:
        summed = sum(curvature * shrink**j * gap for j in range(steps))
        np.testing.assert_allclose(at_weights, direction, **EXACT)
        np.testing.assert_allclose(at_rates, -summed * direction, **EXACT)
    else:
        slope = -steps * curvature * shrink ** (steps - 1) * gap
        np.testing.assert_allclose(at_weights, shrink**steps * direction, **EXACT)
        np.testing.assert_allclose(at_rates, slope * direction, **EXACT)


# Layer b: numpy reference -----------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("first_order", [True, False])
def test_adapt_equals_the_numpy_reference(x64, first_order, rectify, clip):
    weights, step_sizes, support, mask, direction = make_net(seed=1)
    run = projected_adapt(
        as_jax(support),
        as_jax(direction),
        net_loss,
        rectify=rectify,
        clip=clip,
        first_order=first_order,
    )
    for row_mask in (mask, np.ones_like(mask)):
        (_, (fast, trace)), grads = run(weights, step_sizes, jnp.asarray(row_mask))

        problem = reference.tanh_net()
        batches = list(zip(*support, row_mask, strict=True))
        expected = reference.adapt(
            problem, weights, step_sizes, batches, rectify=rectify, clip=clip
        )
        zeros = {name: np.zeros_like(value) for name, value in weights.items()}
        expected_grads = reference.pull_back(
            problem,
            expected,
            step_sizes,
            batches,
            [zeros] * (K - 1) + [direction],
            first_order=first_order,
            rectify=rectify,
            clip=clip,
        )
        assert_trees_close(fast, expected.path[-1], **EXACT)
        assert_trees_close(grads, expected_grads, **EXACT)
        np.testing.assert_allclose(trace.losses, expected.losses, **EXACT)
        summed = {n: sum(g[n] for g in expected.grads) for n in weights}
        assert_trees_close(trace.grad_sum, summed, **EXACT)
    if clip is not None:  # the bound separates some elements from others
        flat = np.concatenate(
            [g.ravel() for r in expected.raw_grads for g in r.values()]
        )
        assert 0.1 < np.mean(np.abs(flat) > clip) < 0.9


# Layer c: finite differences --------------------------------------------------------


@pytest.mark.parametrize(("rectify", "clip"), [(True, None), (False, 0.07)])
def test_gradients_equal_finite_differences(x64, rectify, clip):
    weights, step_sizes, (inputs, signs), mask, direction = make_logistic(seed=2)
    options = {"rectify": rectify, "clip": clip}

    @jax.jit
    def value(weights, step_sizes, inputs):
        fast, _ = lm.adapt(
            logistic_loss, weights, step_sizes, (inputs, signs), mask, **options
        )
        return tree_vdot(fast, direction)

    arguments = as_jax((weights, step_sizes, inputs))
    # Central differences of step 1e-5: error of the order 1e-10 / 1e-5 + 1e-10.
    check_grads(value, arguments, 1, modes=["rev"], eps=1e-5, rtol=1e-6, atol=1e-8)


# Layers d and e: the same numbers by other routes -----------------------------------


@pytest.fixture(scope="module")
def small_run():
    """float32 problem with the default options, evaluated once under jit."""
    weights, step_sizes, support, mask, direction = make_logistic(seed=3)
    arguments = as_jax((weights, step_sizes), jnp.float32)
    support, direction = as_jax((support, direction), jnp.float32)
    mask = jnp.asarray(mask)
    run = projected_adapt(support, direction)
    return arguments, support, mask, direction, run(*arguments, mask)


def test_scan_equals_a_python_loop(small_run):
    (weights, step_sizes), support, mask, direction, expected = small_run

    def mean_loss(weights, batch, row_mask):
        losses = jnp.where(row_mask, logistic_loss(weights, batch), 0)
        return jnp.sum(losses) / max(int(np.sum(row_mask)), 1)

    def value(weights, step_sizes):
        for i in range(K):
            batch = jax.tree.map(lambda x, i=i: x[i], support)
            grads = jax.grad(mean_loss)(weights, batch, np.asarray(mask)[i])
            weights = rectified_step(weights, step_sizes, grads)
        return tree_vdot(weights, direction)

    actual = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(weights, step_sizes)
    assert_trees_close(actual, (expected[0][0], expected[1]), **FUSED)


@pytest.mark.parametrize(
    "options",
    [
        {"remat": False},
        {"remat": "sqrt"},
        {"unroll": 3},
        {"adapt_mask": True},
    ],
    ids=str,
)
def test_options_that_change_only_the_route_keep_the_numbers(small_run, options):
    arguments, support, mask, direction, expected = small_run
    actual = projected_adapt(support, direction, **options)(*arguments, mask)
    assert_trees_close(actual, expected, **FUSED)


def test_jit_equals_no_jit(small_run):
    (weights, step_sizes), support, mask, _, expected = small_run
    fast, trace = lm.adapt(logistic_loss, weights, step_sizes, support, mask)
    assert_trees_close((fast, trace), expected[0][1], **FUSED)


def test_vmap_equals_a_loop(small_run):
    (weights, step_sizes), support, mask, _, _ = small_run
    stacked = jax.tree.map(lambda w: jnp.stack([w, 2 * w, -w]), weights)
    run = functools.partial(lm.adapt, logistic_loss)
    batched = jax.jit(jax.vmap(run, in_axes=(0, None, None, None)))(
        stacked, step_sizes, support, mask
    )
    single = jax.jit(run)
    for i in range(3):
        one = jax.tree.map(lambda w, i=i: w[i], stacked)
        assert_trees_close(
            jax.tree.map(lambda x, i=i: x[i], batched),
            single(one, step_sizes, support, mask),
            **FUSED,
        )


# Masks ------------------------------------------------------------------------------


def test_padded_inner_batch_equals_the_short_one(small_run):
    (weights, step_sizes), support, _, direction, _ = small_run
    short = jax.tree.map(lambda x: x[:, :2], support)
    padded = jax.tree.map(lambda x: x.at[:, 2:].set(2), support)
    mask = jnp.broadcast_to(jnp.array([True, True, False])[None, :], (K, S))
    expected = projected_adapt(short, direction)(weights, step_sizes, None)
    actual = projected_adapt(padded, direction)(weights, step_sizes, mask)
    assert_trees_close(actual, expected, **FUSED)


@pytest.fixture(scope="module")
def run_without_first(small_run):
    (weights, step_sizes), support, _, direction, _ = small_run
    kept = jax.tree.map(lambda x: x[1:], support)
    run = projected_adapt(kept, direction)
    (_, (fast, _)), grads = run(weights, step_sizes, jnp.ones((K - 1, S), bool))
    return fast, grads


def test_fully_masked_inner_batch_changes_nothing(small_run, run_without_first):
    (weights, step_sizes), support, _, direction, _ = small_run
    mask = jnp.ones((K, S), bool).at[0].set(False)
    with jax.debug_nans(True):
        run = projected_adapt(support, direction)
        (_, (fast, trace)), grads = run(weights, step_sizes, mask)
    assert trace.losses[0] == 0
    assert_trees_close((fast, grads), run_without_first, **FUSED)


def test_no_valid_row_at_all_returns_the_weights(small_run):
    (weights, step_sizes), support, mask, direction, _ = small_run
    run = projected_adapt(support, direction)
    with jax.debug_nans(True):
        (_, (fast, trace)), grads = run(weights, step_sizes, jnp.zeros_like(mask))
    zeros = jax.tree.map(jnp.zeros_like, weights)
    assert_trees_close(fast, weights, rtol=0, atol=0)
    assert_trees_close(grads, (direction, zeros), rtol=0, atol=0)
    assert_trees_close(trace.grad_sum, zeros, rtol=0, atol=0)


# Edges ------------------------------------------------------------------------------


def quadratic_case(rate, **options):
    """One weight at 1, target 0, two steps: value w_2 and its gradients."""
    support = jnp.zeros((2, 1, 1))

    def value(w, a):
        fast, _ = lm.adapt(quadratic_loss, {"w": w}, {"w": a}, support, **options)
        return fast["w"][0]

    w, a = jnp.ones(1), jnp.full(1, rate)
    value, (at_w, at_a) = jax.value_and_grad(value, argnums=(0, 1))(w, a)
    return float(value), float(at_w[0]), float(at_a[0])


@pytest.mark.parametrize(
    ("rate", "rectify", "expected"),
    [
        # w_2 = (1 - a)^2, dw_2/dw = (1 - a)^2, dw_2/da = -2 (1 - a); powers of two.
        (0.5, True, (0.25, 0.25, -1.0)),
        (0.0, True, (1.0, 1.0, 0.0)),
        (-0.5, True, (1.0, 1.0, 0.0)),
        (0.0, False, (1.0, 1.0, -2.0)),
        (-0.5, False, (2.25, 2.25, -3.0)),
    ],
)
def test_rectified_step_sizes_up_to_zero_are_frozen(rate, rectify, expected):
    assert quadratic_case(rate, rectify=rectify) == expected


def test_one_step_is_plain_gradient_descent(small_run):
    (weights, _), support, _, _, _ = small_run
    one = jax.tree.map(lambda x: x[:1], support)
    rates = jax.tree.map(lambda w: jnp.full_like(w, 0.5), weights)
    fast, trace = jax.jit(functools.partial(lm.adapt, logistic_loss))(
        weights, rates, one
    )
    batch = jax.tree.map(lambda x: x[0], support)
    mean_loss = jax.value_and_grad(lambda w: jnp.mean(logistic_loss(w, batch)))
    loss, grads = jax.jit(mean_loss)(weights)
    expected = jax.tree.map(lambda w, g: w - 0.5 * g, weights, grads)
    assert_trees_close(fast, expected, **FUSED)
    assert_trees_close(trace.grad_sum, grads, **FUSED)
    np.testing.assert_allclose(trace.losses, loss[None], **FUSED)


def test_clip_bounds_every_element_and_may_be_traced():
    traces = []
    support = jnp.array([[[10.0, -10.0, 0.25]]])
    weights = {"w": jnp.zeros(3)}
    rates = {"w": jnp.ones(3)}

    @jax.jit
    def run(clip):
        traces.append(None)
        return lm.adapt(quadratic_loss, weights, rates, support, clip=clip)[0]["w"]

    np.testing.assert_array_equal(run(0.5), [0.5, -0.5, 0.25])
    np.testing.assert_array_equal(run(2.0), [2.0, -2.0, 0.25])
    assert len(traces) == 1


def test_scalar_loss_equals_the_mean_of_per_example_losses(small_run):
    (weights, step_sizes), support, _, _, _ = small_run
    expected = jax.jit(functools.partial(lm.adapt, logistic_loss))(
        weights, step_sizes, support
    )
    scalar = functools.partial(lm.adapt, lambda w, b: jnp.mean(logistic_loss(w, b)))
    actual = jax.jit(scalar)(weights, step_sizes, support)
    assert_trees_close(actual, expected, **FUSED)


def test_probe_sees_the_fast_weights_after_every_step():
    support = jnp.zeros((3, 1, 1))
    weights, rates = {"w": jnp.ones(1)}, {"w": jnp.full(1, 0.5)}
    fast, trace = lm.adapt(
        quadratic_loss, weights, rates, support, probe_fn=lambda w: w["w"][0]
    )
    np.testing.assert_array_equal(trace.probed, [0.5, 0.25, 0.125])
    np.testing.assert_array_equal(trace.losses, [0.5, 0.125, 0.03125])
    np.testing.assert_array_equal(trace.grad_sum["w"], [1.75])
    np.testing.assert_array_equal(fast["w"], [0.125])
    assert lm.adapt(quadratic_loss, weights, rates, support)[1].probed is None


def test_trace_grad_sum_is_a_constant():
    support = jnp.zeros((2, 1, 1))

    def total(w):
        _, trace = lm.adapt(quadratic_loss, {"w": w}, {"w": jnp.ones(1)}, support)
        return trace.grad_sum["w"][0]

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(1)), [0.0])


def test_inner_losses_are_differentiable(x64):
    weights, step_sizes, support, mask, _ = make_logistic(seed=4)

    @jax.jit
    def value(weights, step_sizes):
        _, trace = lm.adapt(logistic_loss, weights, step_sizes, support, mask)
        return jnp.sum(trace.losses)

    # As above: central differences of step 1e-5.
    check_grads(
        value, as_jax((weights, step_sizes)), 1, ["rev"], eps=1e-5, rtol=1e-6, atol=1e-8
    )


def test_bfloat16_weights_stay_bfloat16(small_run):
    (weights, step_sizes), support, mask, _, expected = small_run
    rounded = as_jax((weights, step_sizes), jnp.bfloat16)
    run = functools.partial(lm.adapt, logistic_loss)
    fast, trace = jax.jit(run)(*rounded, as_jax(support, jnp.bfloat16), mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(fast)} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(trace)} == {jnp.dtype(jnp.bfloat16)}
    # 8 bits of mantissa: 2^-8 per operation, a few of them in a row, values of size 1.
    fast = jax.tree.map(lambda x: x.astype(jnp.float32), fast)
    assert_trees_close(fast, expected[0][1][0], rtol=0, atol=0.06)


def test_float32_step_sizes_serve_bfloat16_weights():
    support = jnp.zeros((2, 1, 1), jnp.bfloat16)
    weights = {"w": jnp.ones(1, jnp.bfloat16)}
    rates = {"w": jnp.full(1, 0.5)}
    fast, _ = lm.adapt(quadratic_loss, weights, rates, support)
    assert fast["w"].dtype == jnp.bfloat16
    assert fast["w"][0] == 0.25


# adapt_mask -------------------------------------------------------------------------


def nested_loss(weights, batch):
    flat = {
        "w1": weights["body"]["w1"],
        "b1": weights["body"]["b1"],
        "w2": weights["head"]["w2"],
        "b2": weights["head"]["b2"],
    }
    return net_loss(flat, batch)


def nest(tree):
    return {
        "body": {"w1": tree["w1"], "b1": tree["b1"]},
        "head": {"w2": tree["w2"], "b2": tree["b2"]},
    }


HEAD_ONLY = {
    "prefix": {"body": False, "head": True},
    "leaves": {"body": {"w1": False, "b1": False}, "head": {"w2": True, "b2": True}},
    "function": lambda weights: {"body": False, "head": True},
}


@pytest.mark.parametrize("form", HEAD_ONLY)
def test_masked_leaves_do_not_adapt(x64, form):
    weights, step_sizes, support, mask, direction = make_net(seed=5)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(weights, step_sizes):
        fast, _ = lm.adapt(
            nested_loss,
            weights,
            step_sizes,
            as_jax(support),
            mask,
            adapt_mask=HEAD_ONLY[form],
        )
        return tree_vdot(fast, nest(direction)), fast

    (_, fast), (at_weights, at_rates) = run(nest(weights), nest(step_sizes))
    problem = reference.tanh_net()
    batches = list(zip(*support, mask, strict=True))
    options = {"rectify": True, "clip": None, "frozen": ("w1", "b1")}
    expected = reference.adapt(problem, weights, step_sizes, batches, **options)
    zeros = {name: np.zeros_like(value) for name, value in weights.items()}
    expected_grads = reference.pull_back(
        problem,
        expected,
        step_sizes,
        batches,
        [zeros] * (K - 1) + [direction],
        first_order=False,
        **options,
    )
    assert_trees_close(fast["body"], nest(weights)["body"], rtol=0, atol=0)
    assert_trees_close(at_rates["body"], nest(zeros)["body"], rtol=0, atol=0)
    assert_trees_close(fast, nest(expected.path[-1]), **EXACT)
    assert_trees_close(
        (at_weights, at_rates), tuple(map(nest, expected_grads)), **EXACT
    )
