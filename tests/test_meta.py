"""Meta-gradients: closed form, numpy reference, finite differences, edges."""

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
    wide_loss,
)

import lamaml_jax as lm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

K, S, Q = 3, 2, 5
SUPPORT_MASK = np.array([[True, False], [False, False], [True, True]])
QUERY_MASK = np.array([True, False, True, True, False])
OBJECTIVES = ("mean", "last")
PUBLISHED = {
    "single_head": {"rectify": True, "clip": None},
    "multi_head": {"rectify": False, "clip": 0.05},
}
ORDERS_AND_MODES = [
    (False, "reverse"),
    (False, "forward_over_reverse"),
    (True, "reverse"),
]


def make_net(seed):
    """Weights, step sizes of both signs, support and query with random masks."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (D, H), "b1": (H,), "w2": (H, Y), "b2": (Y,)}
    params = lm.MetaParams(
        weights={name: rng.normal(size=shape) for name, shape in shapes.items()},
        step_sizes={
            name: rng.uniform(-0.2, 0.8, size=shape) for name, shape in shapes.items()
        },
    )
    support = (rng.normal(size=(K, S, D)), rng.integers(0, Y, size=(K, S)))
    query = (rng.normal(size=(Q, D)), rng.integers(0, Y, size=Q))
    return params, support, query, SUPPORT_MASK, QUERY_MASK


def make_logistic(seed):
    rng = np.random.default_rng(seed)
    params = lm.MetaParams({"w": rng.normal(size=D)}, {"w": np.array([0.7, -0.1, 0.4])})
    support = (rng.normal(size=(K, S, D)), rng.choice([-1.0, 1.0], (K, S)))
    query = (rng.normal(size=(Q, D)), rng.choice([-1.0, 1.0], Q))
    return params, support, query, SUPPORT_MASK, QUERY_MASK


# Layer a: closed form ---------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_quadratic_has_its_closed_form(x64, steps, first_order, objective):
    curvature = np.array([0.5, 1.0, 3.0])
    weights = np.array([1.0, -2.0, 0.3])
    rates = np.array([0.3, 0.9, 0.05])
    target, goal = np.array([0.2, 0.1, -0.4]), np.array([-1.0, 0.5, 0.7])

    def loss_fn(params, batch):
        gaps = params["w"][None, :] - batch
        return jnp.sum(curvature[None, :] * gaps**2, axis=-1) / 2

    fn = lm.meta_value_and_grad(loss_fn, objective=objective, first_order=first_order)
    params = as_jax(lm.MetaParams({"w": weights}, {"w": rates}))
    support = jnp.broadcast_to(jnp.asarray(target), (steps, 2, 3))
    (meta_loss, info), grads = jax.jit(fn)(params, support, jnp.asarray(goal)[None, :])

    shrink, gap = 1 - rates * curvature, weights - target
    counted = range(1, steps + 1) if objective == "mean" else [steps]
    losses, at_weights, at_rates = [], [], []
    for i in counted:
        miss = target + shrink**i * gap - goal
        losses.append(np.sum(curvature * miss**2) / 2)
        query_grad = curvature * miss
        if first_order:
            summed = sum(curvature * shrink**j * gap for j in range(i))
            at_weights.append(query_grad)
            at_rates.append(-summed * query_grad)
        else:
            slope = -i * curvature * shrink ** (i - 1) * gap
            at_weights.append(shrink**i * query_grad)
            at_rates.append(slope * query_grad)
    np.testing.assert_allclose(info.query_losses, losses, **EXACT)
    np.testing.assert_allclose(meta_loss, np.mean(losses), **EXACT)
    np.testing.assert_allclose(grads.weights["w"], np.mean(at_weights, 0), **EXACT)
    np.testing.assert_allclose(grads.step_sizes["w"], np.mean(at_rates, 0), **EXACT)


# Layer b: numpy reference -----------------------------------------------------------


def assert_equals_reference(fn, seed, options, frozen=()):
    params, support, query, support_mask, query_mask = make_net(seed)
    masks = [
        (support_mask, query_mask),
        (np.ones_like(support_mask), np.ones_like(query_mask)),
    ]
    for s_mask, q_mask in masks:
        (meta_loss, info), grads = fn(*as_jax((params, support, query, s_mask, q_mask)))
        expected = reference.meta_gradient(
            reference.tanh_net(),
            *params,
            list(zip(*support, s_mask, strict=True)),
            (*query, q_mask),
            frozen=frozen,
            **options,
        )
        np.testing.assert_allclose(meta_loss, expected.meta_loss, **EXACT)
        assert_trees_close(grads.weights, expected.weights, **EXACT)
        assert_trees_close(grads.step_sizes, expected.step_sizes, **EXACT)
        np.testing.assert_allclose(info.inner_losses, expected.inner_losses, **EXACT)
        np.testing.assert_allclose(info.query_losses, expected.query_losses, **EXACT)
        np.testing.assert_allclose(info.alignment, expected.alignment, **EXACT)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_switch_equals_the_numpy_reference(
    x64, objective, first_order, rectify, clip
):
    options = {
        "objective": objective,
        "first_order": first_order,
        "rectify": rectify,
        "clip": clip,
    }
    fn = jax.jit(lm.meta_value_and_grad(net_loss, **options))
    assert_equals_reference(fn, 11, options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "objective"), [("single_head", "mean"), ("multi_head", "last")]
)
@pytest.mark.parametrize(
    "route",
    [{"inner_ad": "forward_over_reverse"}, {"remat": "sqrt"}, {"remat": False}],
    ids=str,
)
def test_every_route_equals_the_numpy_reference(x64, route, variant, objective):
    options = {
        "objective": objective,
        "first_order": False,
        **PUBLISHED[variant],
    }
    fn = jax.jit(lm.meta_value_and_grad(net_loss, **route, **options))
    assert_equals_reference(fn, 12, options)


def test_quadratic_with_a_full_hessian_equals_the_numpy_reference(x64):
    factor = np.random.default_rng(13).normal(size=(3, 3))
    hessian = factor @ factor.T / 3

    def loss_fn(weights, batch):
        gaps = weights["w"][None, :] - batch
        return jnp.sum((gaps @ hessian) * gaps, axis=-1) / 2

    rng = np.random.default_rng(14)
    params = lm.MetaParams({"w": rng.normal(size=3)}, {"w": rng.uniform(0, 0.5, 3)})
    support, query = rng.normal(size=(K, S, 3)), rng.normal(size=(Q, 3))
    _, grads = jax.jit(lm.meta_value_and_grad(loss_fn))(
        *as_jax((params, support, query))
    )
    expected = reference.meta_gradient(
        reference.quadratic(hessian),
        *params,
        [(rows, np.ones(S, bool)) for rows in support],
        (query, np.ones(Q, bool)),
        objective="mean",
        first_order=False,
        rectify=True,
        clip=None,
    )
    assert_trees_close(grads.weights, expected.weights, **EXACT)
    assert_trees_close(grads.step_sizes, expected.step_sizes, **EXACT)


# Layer c: finite differences --------------------------------------------------------


@pytest.mark.parametrize("inner_ad", ["reverse", "forward_over_reverse"])
def test_meta_gradient_equals_finite_differences(x64, inner_ad):
    params, *data = as_jax(make_logistic(seed=15))
    fn = lm.meta_value_and_grad(logistic_loss, inner_ad=inner_ad)

    @jax.custom_vjp
    def meta_loss(params):
        return fn(params, *data)[0][0]

    def forward(params):
        (loss, _), grads = fn(params, *data)
        return loss, grads

    meta_loss.defvjp(forward, lambda grads, ct: (jax.tree.map(ct.__mul__, grads),))
    # The returned gradients are the vjp; central differences of step 1e-5 err by about
    # 1e-10 from the step and 1e-11 from rounding.
    check_grads(
        jax.jit(meta_loss), (params,), 1, ["rev"], eps=1e-5, rtol=1e-6, atol=1e-8
    )


def grads_norm(fn, params, data):
    """Half the squared norm of both meta-gradients, as a function of step sizes."""

    def value(step_sizes):
        _, grads = fn(params._replace(step_sizes=step_sizes), *data)
        return sum(jnp.sum(g**2) / 2 for g in jax.tree.leaves(grads))

    return jax.jit(value)


def test_meta_gradient_is_itself_differentiable(x64):
    params, *data = as_jax(make_logistic(seed=16))
    found = []
    for inner_ad in ("reverse", "forward_over_reverse"):
        fn = lm.meta_value_and_grad(logistic_loss, inner_ad=inner_ad)
        value = grads_norm(fn, params, data)
        found.append(jax.jit(jax.grad(value))(params.step_sizes))
    assert max(jnp.max(jnp.abs(g)) for g in jax.tree.leaves(found[0])) > 1e-3
    assert_trees_close(*found, **EXACT)
    # As above: central differences of step 1e-5.
    check_grads(value, (params.step_sizes,), 1, ["rev"], eps=1e-5, rtol=1e-6, atol=1e-8)


def test_first_order_meta_gradient_has_its_true_derivative(x64):
    params, *data = as_jax(make_logistic(seed=17))
    fn = lm.meta_value_and_grad(logistic_loss, first_order=True)
    value = grads_norm(fn, params, data)
    found = jax.jit(jax.grad(value))(params.step_sizes)
    assert max(jnp.max(jnp.abs(g)) for g in jax.tree.leaves(found)) > 1e-3
    # As above: central differences of step 1e-5, in both modes.
    check_grads(
        value,
        (params.step_sizes,),
        1,
        ["fwd", "rev"],
        eps=1e-5,
        rtol=1e-6,
        atol=1e-8,
    )


# Layers d and e: the same numbers by other routes -----------------------------------


@pytest.fixture(scope="module")
def small_run():
    """float32 problem with the default options, evaluated once under jit."""
    arguments = as_jax(make_logistic(seed=18), jnp.float32)
    return arguments, jax.jit(lm.meta_value_and_grad(logistic_loss))(*arguments)


def test_jit_equals_no_jit(small_run):
    arguments, expected = small_run
    assert_trees_close(
        lm.meta_value_and_grad(logistic_loss)(*arguments), expected, **FUSED
    )


@pytest.mark.parametrize("options", [{}, {"first_order": True}], ids=str)
def test_unrolling_keeps_the_numbers(small_run, options):
    arguments, _ = small_run
    actual, expected = (
        jax.jit(lm.meta_value_and_grad(logistic_loss, unroll=n, **options))(*arguments)
        for n in (2, 1)
    )
    assert_trees_close(actual, expected, **FUSED)


@pytest.mark.parametrize("first_order", [False, True])
def test_vmap_equals_a_loop(small_run, first_order):
    (params, *data), _ = small_run
    stacked = jax.tree.map(lambda w: jnp.stack([w, 0.5 * w, -w]), params)
    fn = lm.meta_value_and_grad(logistic_loss, first_order=first_order)
    in_axes = (0, None, None, None, None)
    batched = jax.jit(jax.vmap(fn, in_axes=in_axes))(stacked, *data)
    single = jax.jit(fn)
    for i in range(3):
        one, each = jax.tree.map(lambda x, i=i: x[i], (stacked, batched))
        assert_trees_close(each, single(one, *data), **FUSED)


@pytest.mark.parametrize(("first_order", "inner_ad"), ORDERS_AND_MODES)
def test_everything_masked_gives_zero_without_a_nan(small_run, first_order, inner_ad):
    (params, support, query, support_mask, query_mask), _ = small_run
    fn = lm.meta_value_and_grad(
        logistic_loss, first_order=first_order, inner_ad=inner_ad
    )
    with jax.debug_nans(True):
        (meta_loss, info), grads = jax.jit(fn)(
            params,
            support,
            query,
            jnp.zeros_like(support_mask),
            jnp.zeros_like(query_mask),
        )
    assert meta_loss == 0
    assert info.alignment == 0
    assert all(jnp.all(g == 0) for g in jax.tree.leaves(grads))


# Edges ------------------------------------------------------------------------------


@pytest.mark.parametrize(("first_order", "inner_ad"), ORDERS_AND_MODES)
@pytest.mark.parametrize("rate", [0.0, -0.5])
def test_frozen_step_sizes_get_zero_gradient(rate, first_order, inner_ad):
    fn = lm.meta_value_and_grad(
        quadratic_loss, first_order=first_order, inner_ad=inner_ad
    )
    params = lm.MetaParams({"w": jnp.ones(1)}, {"w": jnp.full(1, rate)})
    (meta_loss, _), grads = fn(params, jnp.zeros((2, 1, 1)), jnp.full((1, 1), 3.0))
    # No step is taken: loss (1 - 3)^2 / 2, gradient 1 - 3, exactly.
    assert meta_loss == 2
    assert grads.weights["w"][0] == -2
    assert grads.step_sizes["w"][0] == 0


@pytest.mark.parametrize(("first_order", "inner_ad"), ORDERS_AND_MODES)
def test_unrectified_step_size_of_zero_gets_its_gradient(first_order, inner_ad):
    fn = lm.meta_value_and_grad(
        quadratic_loss, rectify=False, first_order=first_order, inner_ad=inner_ad
    )
    params = lm.MetaParams({"w": jnp.ones(1)}, {"w": jnp.zeros(1)})
    _, grads = fn(params, jnp.zeros((1, 1, 1)), jnp.full((1, 1), 3.0))
    # Minus inner gradient (1 - 0) times query gradient (1 - 3).
    assert grads.step_sizes["w"][0] == 2


def test_info_of_a_hand_case():
    fn = lm.meta_value_and_grad(quadratic_loss, first_order=True)
    params = lm.MetaParams({"w": jnp.zeros(2)}, {"w": jnp.ones(2)})
    support = jnp.array([[[1.0, 0.0]]])
    # The inner gradient is (-1, 0), the fast weights are (1, 0), and the query pulls
    # towards (2, 1): its gradient there is (-1, -1).
    (meta_loss, info), grads = fn(params, support, jnp.array([[2.0, 1.0]]))
    np.testing.assert_array_equal(info.inner_losses, [0.5])
    np.testing.assert_array_equal(info.query_losses, [1.0])
    assert meta_loss == 1
    np.testing.assert_array_equal(grads.weights["w"], [-1.0, -1.0])
    np.testing.assert_array_equal(grads.step_sizes["w"], [-1.0, 0.0])
    # 45 degrees apart; float32 rounding of a square root and a quotient.
    np.testing.assert_allclose(info.alignment, np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("objective", "expected"), [("mean", [0.125, 0.03125]), ("last", [0.03125])]
)
def test_query_losses_are_those_the_meta_loss_averages(objective, expected):
    fn = lm.meta_value_and_grad(quadratic_loss, objective=objective)
    params = lm.MetaParams({"w": jnp.ones(1)}, {"w": jnp.full(1, 0.5)})
    (meta_loss, info), _ = fn(params, jnp.zeros((2, 1, 1)), jnp.zeros((1, 1)))
    np.testing.assert_array_equal(info.query_losses, expected)
    assert meta_loss == np.mean(expected)


@pytest.mark.parametrize("options", [{}, {"first_order": True}, {"remat": False}])
def test_query_weights_mix_what_the_rows_give_alone(x64, options):
    params, support, query, support_mask, query_mask = as_jax(make_logistic(seed=21))
    row_weights = jnp.array([0.1, 0.7, 0.0, -0.3, 0.5])
    fn = lm.meta_value_and_grad(logistic_loss, **options)

    @jax.jit
    def weighed(row_weights):
        return fn(
            params, support, query, support_mask, query_mask, query_weights=row_weights
        )

    def alone(row):
        one = jax.tree.map(lambda leaf: leaf[None], row)
        return fn(params, support, one, support_mask)

    (loss, info), grads = weighed(row_weights)
    (losses, infos), each = jax.jit(jax.vmap(alone))(query)
    # Row weights are shares of a sum, not of a mean; masked rows have none.
    shares = jnp.where(query_mask, row_weights, 0)
    mix = lambda leaf: jnp.tensordot(shares, leaf, 1)
    np.testing.assert_allclose(loss, mix(losses), **EXACT)
    np.testing.assert_allclose(info.query_losses, mix(infos.query_losses), **EXACT)
    assert_trees_close(grads, jax.tree.map(mix, each), **EXACT)
    # The mean over the valid rows is one choice of them.
    valid = query_mask.astype(loss.dtype)
    mean = jax.jit(fn)(params, support, query, support_mask, query_mask)
    assert_trees_close(weighed(valid / jnp.sum(valid)), mean, **EXACT)


@pytest.mark.parametrize("first_order", [False, True])
def test_scalar_loss_equals_the_mean_of_per_example_losses(first_order):
    params = lm.MetaParams({"w": jnp.ones(2)}, {"w": jnp.full(2, 0.25)})
    rng = np.random.default_rng(19)
    support, query = rng.normal(size=(K, S, 2)), rng.normal(size=(Q, 2))
    data = as_jax((support, query), jnp.float32)
    options = {"first_order": first_order}
    expected = lm.meta_value_and_grad(quadratic_loss, **options)(params, *data)
    actual = lm.meta_value_and_grad(
        lambda w, b: jnp.mean(quadratic_loss(w, b)), **options
    )(params, *data)
    assert_trees_close(actual, expected, **FUSED)


@pytest.mark.parametrize(("first_order", "inner_ad"), ORDERS_AND_MODES)
def test_bfloat16_weights_get_bfloat16_gradients(first_order, inner_ad):
    params = lm.MetaParams(
        {"w": jnp.ones(1, jnp.bfloat16)}, {"w": jnp.full(1, 0.5, jnp.float32)}
    )
    fn = lm.meta_value_and_grad(
        quadratic_loss, first_order=first_order, inner_ad=inner_ad
    )
    support = jnp.zeros((2, 1, 1), jnp.bfloat16)
    (meta_loss, _), grads = fn(params, support, jnp.zeros((1, 1), jnp.bfloat16))
    assert grads.weights["w"].dtype == jnp.bfloat16
    assert grads.step_sizes["w"].dtype == jnp.float32
    # Small dyadic numbers are exact in bfloat16: w = 1, 1/2, 1/4.
    assert meta_loss == (0.125 + 0.03125) / 2
    assert grads.weights["w"][0] == (0.375 if first_order else 0.15625)
    assert grads.step_sizes["w"][0] == (-0.4375 if first_order else -0.375)


@pytest.mark.parametrize("inner_ad", ["reverse", "forward_over_reverse"])
def test_leaves_of_two_dtypes_mix_under_strict_promotion(inner_ad):
    def loss_fn(weights, batch):
        return weights["half"].astype(jnp.float32) + weights["full"] - batch

    weights = {"half": jnp.ones(1, jnp.bfloat16), "full": jnp.ones(1)}
    params = lm.MetaParams(weights, weights)
    fn = lm.meta_value_and_grad(loss_fn, inner_ad=inner_ad)
    (_, info), grads = fn(params, jnp.zeros((1, 1)), jnp.zeros(1))
    assert grads.weights["half"].dtype == jnp.bfloat16
    assert grads.weights["full"].dtype == jnp.float32
    # Both gradients are (1, 1): parallel, up to float32 rounding.
    np.testing.assert_allclose(info.alignment, 1, rtol=1e-6)


# adapt_mask: a slow representation and a fast head ----------------------------------


@pytest.mark.parametrize(("first_order", "inner_ad"), ORDERS_AND_MODES)
def test_head_only_adaptation_equals_the_numpy_reference(x64, first_order, inner_ad):
    mask = {"w1": False, "b1": False, "w2": True, "b2": True}
    options = {"objective": "mean", "first_order": first_order, "rectify": True}
    options["clip"] = None
    fn = jax.jit(
        lm.meta_value_and_grad(net_loss, adapt_mask=mask, inner_ad=inner_ad, **options)
    )
    assert_equals_reference(fn, 20, options, frozen=("w1", "b1"))
    arguments = as_jax(make_net(seed=20))
    _, grads = fn(*arguments)  # compiled above
    for name in ("w1", "b1"):
        assert not np.any(grads.step_sizes[name])
        assert np.any(grads.weights[name])


# Memory -----------------------------------------------------------------------------


def lowered(num_steps, hidden=200, **options):
    """A meta-gradient as XLA is given it, and the size of its weights."""
    weights = {"w": jnp.ones((300, hidden)), "v": jnp.ones((hidden, 300))}

    params = lm.MetaParams(weights, jax.tree.map(lambda w: 1e-3 * w, weights))
    support, query = jnp.ones((num_steps, 1, 300)), jnp.ones((20, 300))
    fn = jax.jit(lm.meta_value_and_grad(wide_loss, **options))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return fn.lower(params, support, query), size


def temporary_bytes(num_steps, hidden=200, **options):
    """Compiled temporary memory of a meta-gradient, and the size of its weights."""
    program, size = lowered(num_steps, hidden, **options)
    return program.compile().memory_analysis().temp_size_in_bytes, size


@pytest.mark.parametrize(
    ("num_steps", "hidden", "num_loops"), [(5, 400, 0), (6, 400, 2), (5, 500, 2)]
)
def test_few_steps_of_small_weights_have_no_loop(num_steps, hidden, num_loops):
    """300 x 400 x 2 numbers are below 1 MiB, 300 x 500 x 2 above."""
    program, _ = lowered(num_steps, hidden)
    assert program.as_text().count("stablehlo.while") == num_loops


@pytest.mark.parametrize("inner_ad", ["reverse", "forward_over_reverse"])
def test_memory_is_that_of_the_fast_weights(inner_ad):
    used, size = temporary_bytes(100, inner_ad=inner_ad)
    assert 100 * size <= used <= 1.3 * 100 * size


def test_memory_of_segments_grows_with_the_square_root():
    used, size = temporary_bytes(100, remat="sqrt")
    assert 20 * size <= used <= 1.3 * 30 * size
    assert temporary_bytes(400, remat="sqrt")[0] < 2.2 * used


def test_memory_of_the_closed_form_does_not_grow():
    few, many = (temporary_bytes(k, first_order=True)[0] for k in (10, 100))
    assert many < 1.1 * few


@pytest.mark.parametrize(("num_steps", "hidden"), [(10, 600), (5, 1000)])
def test_gradients_of_large_weights_do_not_wait_for_one_another(num_steps, hidden):
    """300 x 1000 x 2 numbers are above 2 MiB, where five steps have a loop too.

    A loop holds 3.6 times the weights; five steps unrolled 5.0 times with jaxlib
    0.10.2 and 4.6 times with 0.12.0.
    """
    options = {"hidden": hidden, "first_order": True}
    used, size = temporary_bytes(num_steps, **options)
    unrolled, _ = temporary_bytes(num_steps, **options, unroll=num_steps)
    assert used < 4 * size < unrolled


@pytest.mark.parametrize(
    ("num_steps", "hidden", "is_loop"),
    [(5, 800, False), (5, 1000, True), (2, 1000, False)],
)
def test_first_order_unrolls_by_the_size_of_the_weights(num_steps, hidden, is_loop):
    program, _ = lowered(num_steps, hidden, first_order=True)
    assert ("stablehlo.while" in program.as_text()) == is_loop
