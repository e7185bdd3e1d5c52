"""Optax around lamaml_transform and within it: what works, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, waves32
from problems import bent_loss as loss_fn

import lamaml_jax as lm

B, K, D = 4, 2, 3
RATE = 0.2

# float32 against float32, the same operations in another order.
FUSED = {"rtol": 2e-5, "atol": 2e-6}


WEIGHTS = {"w": waves32((D,), 0.1)}
EXAMPLE = jax.ShapeDtypeStruct((D,), jnp.float32)
ZEROS = optax.tree.zeros_like(WEIGHTS)


def explicit_data(n):
    return {"support": waves32((K, 2, D), n + 0.3), "query": waves32((B, D), n + 0.7)}


def make(**options):
    return lm.lamaml_transform(
        loss_fn,
        **{
            "step_size_init": RATE,
            "step_size_tx": optax.set_to_zero(),
            "meta_tx": optax.identity(),
            "inner_steps": K,
        }
        | options,
    )


@functools.cache
def meta_gradient():
    return jax.jit(lm.meta_value_and_grad(loss_fn))


# Transformations that need the loss -----------------------------------------------


def recorder():
    """Keeps what it was handed in its state."""

    def init(params):
        return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)

    def update(updates, state, params=None, *, value, grad, **extra_args):
        del state, params, extra_args
        return updates, (value, grad)

    return optax.GradientTransformationExtraArgs(init, update)


def plateau():
    return optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1.0)


WEIGHT_TX = {
    "reduce_on_plateau": lambda: optax.chain(optax.sgd(0.1), plateau()),
    "polyak_sgd": optax.polyak_sgd,
    "momo": optax.contrib.momo,
    "momo_adam": optax.contrib.momo_adam,
    "lbfgs_without_line_search": lambda: optax.lbfgs(0.1, linesearch=None),
    "adam": lambda: optax.adam(0.1),
    "multi_steps": lambda: optax.MultiSteps(optax.sgd(0.1), 2),
    "multi_steps_of_polyak_sgd": lambda: optax.MultiSteps(optax.polyak_sgd(), 2),
    "its_transformation": lambda: optax.MultiSteps(
        optax.polyak_sgd(), 2
    ).gradient_transformation(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHT_TX)
def test_weight_tx_equals_a_loop_that_hands_it_the_meta_loss(name):
    weight_tx = WEIGHT_TX[name]()
    tx = make(weight_tx=weight_tx)
    update = jax.jit(tx.update)
    weights, state = WEIGHTS, tx.init(WEIGHTS)
    # MultiSteps hands extra arguments on in its own update only.
    inner = getattr(weight_tx.update, "__self__", weight_tx)
    if not isinstance(inner, optax.MultiSteps):
        inner = optax.with_extra_args_support(weight_tx)

    @jax.jit
    def by_hand(weights, state, data):
        rates = {"w": jnp.full(D, RATE)}
        (value, _), grads = lm.meta_value_and_grad(loss_fn)(
            lm.MetaParams(weights, rates), **data
        )
        updates, state = inner.update(
            grads.weights, state, weights, value=value, grad=grads.weights
        )
        return optax.apply_updates(weights, updates), state

    expected, expected_state = WEIGHTS, weight_tx.init(WEIGHTS)
    for n in range(4):
        updates, state = update(ZEROS, state, weights, **explicit_data(n))
        weights = optax.apply_updates(weights, updates)
        expected, expected_state = by_hand(expected, expected_state, explicit_data(n))
        assert_close(weights, expected, **FUSED)
    assert np.any(np.abs(weights["w"] - WEIGHTS["w"]) > 1e-3)


def test_each_part_is_handed_the_meta_loss_and_its_own_gradient():
    tx = make(meta_tx=recorder(), step_size_tx=recorder(), weight_tx=recorder())
    extra, data = {"w": waves32((D,), 0.9)}, explicit_data(0)
    _, state = jax.jit(tx.update)(extra, tx.init(WEIGHTS), WEIGHTS, **data)
    params = lm.MetaParams(WEIGHTS, {"w": jnp.full(D, RATE)})
    (value, _), grads = meta_gradient()(params, **data)
    weight_grads = jax.tree.map(jnp.add, grads.weights, extra)
    rule = state.rule_state
    assert_close(state.meta_tx_state, (value, grads._replace(weights=weight_grads)))
    assert_close(rule.weight_tx_state, (value, weight_grads), **FUSED)
    assert_close(rule.step_size_tx_state, (value, grads.step_sizes), **FUSED)


def test_a_plateau_of_the_meta_loss_scales_both_halves():
    """With rtol 1 nothing counts as progress, so the scale halves every time."""
    moves = {"step_size_tx": optax.sgd(1.0), "weight_tx": optax.sgd(1.0)}
    tx, bare = make(meta_tx=plateau(), **moves), make(**moves)
    update, bare_update = jax.jit(tx.update), jax.jit(bare.update)
    start, scales = tx.init(WEIGHTS), []
    meta_tx_state = start.meta_tx_state
    for n in range(3):
        data = explicit_data(n)
        state = start._replace(meta_tx_state=meta_tx_state)
        updates, state = update(ZEROS, state, WEIGHTS, **data)
        expected, other = bare_update(ZEROS, bare.init(WEIGHTS), WEIGHTS, **data)
        meta_tx_state = state.meta_tx_state
        scale = meta_tx_state.scale
        scales.append(float(scale))
        assert_close(updates, optax.tree.scale(scale, expected), **FUSED)
        moved, whole = (s.rule_state.step_sizes["w"] - RATE for s in (state, other))
        # Of step sizes of order 1, rounded to 1e-7.
        np.testing.assert_allclose(moved, scale * whole, rtol=1e-4, atol=1e-6)
    assert scales[-1] < 1


def test_meta_loss_reaches_the_parts_in_a_learner_too():
    tx = make(weight_tx=optax.chain(recorder(), optax.contrib.momo()))
    learner = lm.lamaml_learner(optax.chain(optax.add_decayed_weights(0.1), tx))
    key = jax.random.key(0)
    state, info = jax.jit(learner.observe)(
        key, learner.init(key, WEIGHTS), waves32((B, D), 0.7)
    )
    value, _ = optax.tree.get(state, "rule_state").weight_tx_state[0]
    assert value == info.meta_loss[-1] and value > 0


def test_a_value_of_the_callers_own_is_for_its_neighbours():
    tx = optax.chain(make(weight_tx=recorder()), recorder())
    run = jax.jit(functools.partial(tx.update, value=7.0, grad=ZEROS))
    _, (inner, outer) = run(ZEROS, tx.init(WEIGHTS), WEIGHTS, **explicit_data(0))
    assert outer[0] == 7
    assert inner.rule_state.weight_tx_state[0] == inner.info.meta_loss


LINE_SEARCHES = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)
    ),
    "zoom": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(5)),
}


@pytest.mark.parametrize("name", LINE_SEARCHES)
@pytest.mark.parametrize("place", ["weight_tx", "step_size_tx", "meta_tx"])
def test_a_line_search_is_refused_in_one_sentence(name, place):
    tx = make(**{place: LINE_SEARCHES[name]()})
    update = functools.partial(jax.eval_shape, tx.update)
    with pytest.raises(
        ValueError, match=r"value_fn: .*no line search.*linesearch=None"
    ):
        update(ZEROS, tx.init(WEIGHTS), WEIGHTS, **explicit_data(0))


# MultiSteps within ----------------------------------------------------------------


def test_multi_steps_as_meta_tx_gathers_gradients_while_every_batch_is_stored():
    multi = optax.MultiSteps(optax.identity(), 2)
    options = {"reservoir": lm.make_reservoir(9, EXAMPLE), "replay_size": 2}
    tx = make(meta_tx=multi, step_size_tx=optax.sgd(0.1), **options)
    learner = lm.lamaml_learner(tx)
    observe, key = jax.jit(learner.observe), jax.random.key(0)
    start = state = learner.init(key, WEIGHTS)
    for n in range(1, 5):
        before = state
        state, info = observe(jax.random.key(n), state, waves32((B, D), n))
        assert state.opt_state.reservoir.num_seen == n * B
        assert info.meta_loss[-1] > 0
        moved = jnp.any(state.weights["w"] != before.weights["w"])
        rates = (s.opt_state.rule_state.step_sizes["w"] for s in (before, state))
        assert moved == (n % 2 == 0) == jnp.any(jnp.not_equal(*rates))
    assert state.opt_state.meta_tx_state.gradient_step == 2
    assert start.opt_state.reservoir.num_seen == 0


def test_multi_steps_as_meta_tx_steps_by_the_mean_meta_gradient():
    tx = make(
        meta_tx=optax.MultiSteps(lm.clip_meta_grads(0.1), 2),
        step_size_tx=optax.sgd(0.1),
        weight_tx=optax.sgd(1.0),
    )
    update, state = jax.jit(tx.update), tx.init(WEIGHTS)
    params = lm.MetaParams(WEIGHTS, {"w": jnp.full(D, RATE)})
    gradients = [meta_gradient()(params, **explicit_data(n))[1] for n in range(2)]
    first, state = update(ZEROS, state, WEIGHTS, **explicit_data(0))
    second, state = update(ZEROS, state, WEIGHTS, **explicit_data(1))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    clipped, _ = lm.clip_meta_grads(0.1).update(mean, optax.EmptyState())
    assert not np.any(first["w"])
    assert_close(second["w"], -clipped.weights["w"], **FUSED)
    rates = params.step_sizes["w"] - 0.1 * clipped.step_sizes["w"]
    assert_close(state.rule_state.step_sizes["w"], rates, **FUSED)


# Wrappers around it ---------------------------------------------------------------


def never(step):
    return step < 0


WRAPPERS = {
    "MultiSteps": (lambda tx: optax.MultiSteps(tx, 2), "MultiSteps skips all"),
    "its transformation": (
        lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
        "MultiSteps skips",
    ),
    "conditionally_transform": (
        lambda tx: optax.conditionally_transform(tx, never),
        "conditionally_transform skips",
    ),
    "conditionally_mask": (
        lambda tx: optax.conditionally_mask(tx, never),
        "conditionally_mask skips",
    ),
    "lookahead": (lambda tx: optax.lookahead(tx, 5, 0.5), "lookahead wants pairs"),
    "flatten": (optax.flatten, "flatten.* hides the tree"),
}


@pytest.mark.parametrize("around", ["alone", "in a chain", "injected"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_what_keeps_batches_from_it_is_refused(name, around):
    wrap, message = WRAPPERS[name]

    def build(rate):
        return wrap(make(step_size_tx=optax.sgd(rate)))

    with pytest.raises(ValueError, match=f"tx: .*{message.removesuffix(' all')}"):
        if around == "injected":
            tx = optax.inject_hyperparams(build)(0.1)
        else:
            tx = build(0.1)
        if around == "in a chain":
            tx = optax.chain(optax.add_decayed_weights(0.1), optax.chain(tx))
        weights = WEIGHTS | {"b": jnp.zeros(())}
        lm.lamaml_learner(tx).init(jax.random.key(0), weights)


def test_the_refusal_of_multi_steps_names_what_works():
    with pytest.raises(ValueError, match=r"neither learned nor stored.*meta_tx="):
        lm.lamaml_learner(optax.MultiSteps(make(), 2))


PASSING = {
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "named_chain": lambda tx: optax.named_chain(("lamaml", tx)),
    "masked by nothing": lambda tx: optax.masked(tx, True),
    "one part": lambda tx: optax.partition({"all": tx}, "all"),
    "multi_steps within": lambda _: make(meta_tx=optax.MultiSteps(optax.identity(), 2)),
    "multi_steps beside it": lambda tx: optax.chain(
        tx, optax.MultiSteps(optax.identity(), 2).gradient_transformation()
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_hands_batches_on_is_not_refused(name):
    learner = lm.lamaml_learner(PASSING[name](make()))
    key = jax.random.key(0)
    state = learner.init(key, WEIGHTS)
    _, info = jax.eval_shape(learner.observe, key, state, waves32((B, D), 0.7))
    assert info.meta_loss.shape == (1,)


# Extra arguments ------------------------------------------------------------------


NEAR_MISSES = {
    "mask": "batch_mask",
    "masks": "batch_mask",
    "rng": "key",
    "keys": "key",
    "batch_maks": "batch_mask",
    "batchmask": "batch_mask",
    "remembers": "remember",
    "query_weight": "query_weights",
}


@pytest.mark.parametrize("name", NEAR_MISSES)
@pytest.mark.parametrize("chained", [False, True])
def test_a_misspelt_argument_is_refused_with_the_one_that_is_meant(name, chained):
    tx = optax.chain(make(), plateau()) if chained else make()
    data = {"batch": waves32((B, D), 0.7), "key": jax.random.key(0), "value": 1.0}
    given = {name: jnp.ones(B, bool)}
    with pytest.raises(ValueError, match=f"{name}: no argument .*{NEAR_MISSES[name]}="):
        tx.update(ZEROS, tx.init(WEIGHTS), WEIGHTS, **data, **given)


def test_arguments_of_others_are_ignored():
    tx = optax.chain(make(), plateau())
    foreign = {"loss_scale": 3.0, "tag": "a", "epoch": 2, "value": 1.0, "model": None}
    update = functools.partial(tx.update, **foreign)
    updates, _ = jax.eval_shape(
        update, ZEROS, tx.init(WEIGHTS), WEIGHTS, **explicit_data(0)
    )
    assert updates["w"].shape == (D,)
