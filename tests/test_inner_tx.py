"""Inner optimisers: against plain loops written out and differentiated by jax.grad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import EXACT, as_jax, assert_trees_close, waves, wide_loss
from problems import regression_loss as loss_fn

import lamaml_jax as lm

K, S, Q, D, H = 4, 2, 3, 2, 2
# Full, empty, half full and full: momentum must not go on in the second step.
SUPPORT_MASK = np.array([[True, True], [False, False], [False, True], [True, True]])
QUERY_MASK = np.array([True, False, True])
HEAD_ONLY = {"w": False, "v": True}

TXS = {
    "momentum": optax.trace(0.9),
    "adam": optax.scale_by_adam(eps_root=1e-8),
    "clip": optax.clip(0.1),
    "global norm": optax.clip_by_global_norm(0.2),
    "decay": optax.add_decayed_weights(0.3),
    "chain": optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(0.1),
        optax.scale_by_adam(eps_root=1e-8),
        optax.trace(0.5),
    ),
}


def make_problem():
    weights = {"w": waves((D, H), 0.1), "v": waves((H,), 0.2)}
    rates = {"w": 0.3 + 0.4 * waves((D, H), 0.3), "v": 0.3 + 0.4 * waves((H,), 1.4)}
    support = (waves((K, S, D), 0.5), waves((K, S), 0.6))
    query = (waves((Q, D), 0.7), waves((Q,), 0.8))
    return as_jax((lm.MetaParams(weights, rates), support, query))


def masked_mean(losses, mask):
    return jnp.sum(jnp.where(mask, losses, 0)) / max(int(np.sum(mask)), 1)


def plain_path(
    params, support, inner_tx, *, first_order, mask=SUPPORT_MASK, clip=None, **options
):
    """Fast weights after each step; ``first_order`` holds every direction constant."""
    weights, rates = params
    rectify, adapted = options.get("rectify", True), options.get("adapt_mask")
    keep = lambda tree: (
        tree if adapted is None else jax.tree.map(lambda x, a: x * a, tree, adapted)
    )
    state, path = inner_tx.init(weights), []
    for i, row_mask in enumerate(mask):
        batch = jax.tree.map(lambda leaf, i=i: leaf[i], support)
        if row_mask.any():
            mean_loss = lambda w, b=batch, m=row_mask: masked_mean(loss_fn(w, b), m)
            grads = keep(jax.grad(mean_loss)(weights))
            if clip is not None:
                grads = jax.tree.map(lambda g: jnp.clip(g, -clip, clip), grads)
            directions, state = inner_tx.update(grads, state, weights)
            directions = keep(directions)
            if first_order:
                directions = jax.lax.stop_gradient(directions)
            weights = jax.tree.map(
                lambda w, a, d: w - (jax.nn.relu(a) if rectify else a) * d,
                weights,
                rates,
                directions,
            )
        path.append(weights)
    return path


def plain_meta_loss(
    params, support, query, inner_tx, *, objective="mean", mask=QUERY_MASK, **options
):
    path = plain_path(params, support, inner_tx, **options)
    counted = path if objective == "mean" else path[-1:]
    losses = [masked_mean(loss_fn(weights, query), mask) for weights in counted]
    return sum(losses) / len(losses)


def plain_meta_gradient(inner_tx, **options):
    """Jitted, like ``meta_value_and_grad`` with the masks above."""
    value_and_grad = jax.value_and_grad(plain_meta_loss)
    return jax.jit(functools.partial(value_and_grad, inner_tx=inner_tx, **options))


def assert_equals_plain_loop(inner_tx, expected, **options):
    params, support, query = make_problem()
    fn = jax.jit(lm.meta_value_and_grad(loss_fn, inner_tx=inner_tx, **options))
    (loss, _), grads = fn(params, support, query, SUPPORT_MASK, QUERY_MASK)
    np.testing.assert_allclose(loss, expected[0], **EXACT)
    assert_trees_close(grads, expected[1], **EXACT)


# "chain" has the other three in it.
ALONE = [
    pytest.param(
        name, marks=[] if name in ("momentum", "adam", "chain") else pytest.mark.slow
    )
    for name in TXS
]


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_meta_gradients_equal_a_plain_loop(x64, name, first_order):
    expected = plain_meta_gradient(TXS[name], first_order=first_order)(*make_problem())
    assert_equals_plain_loop(TXS[name], expected, first_order=first_order)


OPTIONS = {
    "last, unrectified, clipped": {"objective": "last", "rectify": False, "clip": 0.2},
    "head only": {"adapt_mask": HEAD_ONLY},
}
ROUTES = [
    {"first_order": False},
    {"first_order": False, "inner_ad": "forward_over_reverse"},
    {"first_order": False, "remat": "sqrt"},
    {"first_order": False, "remat": False},
    {"first_order": True},
]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_every_route_equals_a_plain_loop(x64, name):
    options, inner_tx = OPTIONS[name], TXS["chain"]
    expected = {
        order: plain_meta_gradient(inner_tx, first_order=order, **options)(
            *make_problem()
        )
        for order in (False, True)
    }
    for route in ROUTES:
        assert_equals_plain_loop(
            inner_tx, expected[route["first_order"]], **route, **options
        )


@pytest.mark.parametrize("first_order", [False, True])
def test_adapt_equals_a_plain_loop(x64, first_order):
    params, support, _ = make_problem()
    options = {"first_order": first_order, "clip": 0.4, "adapt_mask": HEAD_ONLY}
    # A second derivative as well, for a loss of the fast weights that has one.
    total = lambda tree: sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(tree))

    def by_library(params):
        fast, _ = lm.adapt(
            loss_fn, *params, support, SUPPORT_MASK, inner_tx=TXS["chain"], **options
        )
        return total(fast), fast

    def by_hand(params):
        fast = plain_path(params, support, TXS["chain"], **options)[-1]
        return total(fast), fast

    found, expected = (
        jax.jit(jax.value_and_grad(fn, has_aux=True))(params)
        for fn in (by_library, by_hand)
    )
    assert_trees_close(found, expected, **EXACT)


def test_meta_gradient_equals_central_differences(x64):
    params, support, query = make_problem()
    fn = lm.meta_value_and_grad(loss_fn, inner_tx=TXS["chain"])
    direction = jax.tree.map(lambda x: jnp.asarray(waves(x.shape, 2.0)), params)
    step = 1e-5

    @jax.jit
    def along(amount):
        moved = jax.tree.map(lambda x, d: x + amount * d, params, direction)
        (loss, _), grads = fn(moved, support, query, SUPPORT_MASK)
        products = jax.tree.map(lambda g, d: jnp.sum(g * d), grads, direction)
        return loss, sum(jax.tree.leaves(products))

    expected = (along(step)[0] - along(-step)[0]) / (2 * step)
    # The difference errs by step**2 ~ 1e-10 and by rounding / step ~ 1e-11.
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(along(0.0)[1], expected, rtol=1e-6)


@pytest.mark.parametrize("route", [{}, {"remat": False}], ids=str)
def test_roots_and_norms_at_a_masked_batch_give_no_nan(route):
    """Adam's root has no slope at zero, where the first batch leaves it."""
    params, support, query = as_jax(make_problem(), jnp.float32)
    mask = jnp.array([[False, False], [True, True]] * 2)
    inner_tx = optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam())
    fn = lm.meta_value_and_grad(loss_fn, inner_tx=inner_tx, **route)
    _, grads = jax.jit(fn)(params, support, query, mask)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("first_order", [False, True])
def test_a_fully_masked_batch_is_no_step(first_order):
    """Neither momentum nor decay goes on, nor Adam's count, as if it were not there."""
    params, support, query = as_jax(make_problem(), jnp.float32)
    empty = jnp.ones((K, S), bool).at[1].set(False)
    kept = np.array([0, 2, 3])
    short = jax.tree.map(lambda leaf: leaf[kept], support)
    fn = jax.jit(
        lm.meta_value_and_grad(
            loss_fn, inner_tx=TXS["chain"], objective="last", first_order=first_order
        )
    )
    (loss, _), grads = fn(params, support, query, empty)
    (expected_loss, _), expected = fn(params, short, query, empty[kept])
    # The same float32 operations in a scan of another length.
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert_trees_close(grads, expected, rtol=1e-5, atol=1e-6)


def test_frozen_leaves_stay_frozen_under_weight_decay():
    params, support, query = as_jax(make_problem(), jnp.float32)
    options = {"inner_tx": TXS["chain"], "adapt_mask": HEAD_ONLY}
    fast, trace = lm.adapt(loss_fn, *params, support, **options)
    np.testing.assert_array_equal(fast["w"], params.weights["w"])
    assert not np.any(trace.grad_sum["w"])
    assert np.all(fast["v"] != params.weights["v"])
    _, grads = jax.jit(lm.meta_value_and_grad(loss_fn, **options))(
        params, support, query
    )
    assert not np.any(grads.step_sizes["w"])
    assert np.all(grads.weights["w"] != 0)


# The transformation and its variants -------------------------------------------------

VARIANTS = {
    "lamaml": (lm.lamaml, {"step_size_learning_rate": 0.2}),
    "sync_lamaml": (
        lm.sync_lamaml,
        {"step_size_learning_rate": 0.2, "weight_learning_rate": 0.3},
    ),
    "cmaml": (lm.cmaml, {"weight_learning_rate": 0.3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_two_updates_equal_plain_loops_with_new_inner_states(x64, name, first_order):
    make, rates = VARIANTS[name]
    params, support, query = make_problem()
    tx = make(
        loss_fn,
        inner_steps=K,
        step_size_init=0.1,
        inner_tx=TXS["chain"],
        meta_tx=optax.identity(),
        first_order=first_order,
        **rates,
    )
    weights, state, update = params.weights, tx.init(params.weights), jax.jit(tx.update)
    step_sizes = jax.tree.map(lambda w: jnp.full_like(w, 0.1), weights)
    by_hand = lm.MetaParams(weights, step_sizes)
    gradient = plain_meta_gradient(TXS["chain"], first_order=first_order)
    data = {"support_mask": SUPPORT_MASK, "query_mask": QUERY_MASK}
    for _ in range(2):
        zeros = optax.tree.zeros_like(weights)
        updates, state = update(
            zeros, state, weights, support=support, query=query, **data
        )
        weights = optax.apply_updates(weights, updates)
        _, (g_w, g_a) = gradient(by_hand, support, query)
        eta, rate = 0.0 if name == "cmaml" else 0.2, rates.get("weight_learning_rate")
        moved = jax.tree.map(lambda a, g, eta=eta: a - eta * g, by_hand.step_sizes, g_a)
        by_hand = lm.MetaParams(
            jax.tree.map(
                lambda w, a, g, r=rate: w - (jax.nn.relu(a) if r is None else r) * g,
                by_hand.weights,
                moved,
                g_w,
            ),
            moved,
        )
    found = lm.MetaParams(weights, optax.tree.get(state, "step_sizes"))
    assert_trees_close(found, by_hand, **EXACT)


# Memory ------------------------------------------------------------------------------


def temporary_bytes(num_steps, inner_tx, **options):
    """Compiled temporary memory of a meta-gradient, in sizes of its weights."""
    weights = {"w": jnp.ones((300, 200)), "v": jnp.ones((200, 300))}

    params = lm.MetaParams(weights, jnp.float32(1e-3))
    support, query = jnp.ones((num_steps, 1, 300)), jnp.ones((20, 300))
    fn = jax.jit(lm.meta_value_and_grad(wide_loss, inner_tx=inner_tx, **options))
    compiled = fn.lower(params, support, query).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return compiled.memory_analysis().temp_size_in_bytes / size


@pytest.mark.parametrize(("name", "trees"), [("momentum", 2), ("adam", 3)])
def test_memory_is_that_of_the_fast_weights_and_the_inner_state(name, trees):
    used = temporary_bytes(100, TXS[name])
    assert 100 * trees <= used <= 1.3 * 100 * trees


def test_memory_of_segments_grows_with_the_square_root():
    used = temporary_bytes(100, TXS["momentum"], remat="sqrt")
    # Ten first carries and the ten of one segment, two trees each, and a third more.
    assert 2 * 20 <= used <= 1.3 * 2 * 30
    assert temporary_bytes(400, TXS["momentum"], remat="sqrt") < 2.2 * used


def test_memory_of_first_order_does_not_grow():
    few, many = (
        temporary_bytes(k, TXS["momentum"], first_order=True) for k in (10, 100)
    )
    assert many < 1.1 * few


# Errors ------------------------------------------------------------------------------


def test_what_is_no_transformation_is_refused():
    params, support, _ = as_jax(make_problem(), jnp.float32)
    for wrong in (0.9, optax.trace):
        match = "inner_tx: expected an optax.GradientTransformation, received"
        with pytest.raises(TypeError, match=match):
            lm.adapt(loss_fn, *params, support, inner_tx=wrong)
        with pytest.raises(TypeError, match=match):
            lm.meta_value_and_grad(loss_fn, inner_tx=wrong)
        with pytest.raises(TypeError, match=match):
            lm.lamaml(loss_fn, inner_tx=wrong)
