"""lamaml_transform: data forms, order of moves, clipping, reservoir and info."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import line_loss as loss_fn
from problems import rows_of, waves32

import lamaml_jax as lm

B, K, R, D = 4, 2, 3, 2

# float32 against float32, the same operations fused or ordered differently.
FUSED = {"rtol": 2e-5, "atol": 2e-6}


WEIGHTS = {"w": waves32((D,), 0.1), "b": waves32((), 0.2)}
ZEROS = optax.tree.zeros_like(WEIGHTS)
EXAMPLE = {
    "x": jax.ShapeDtypeStruct((D,), jnp.float32),
    "y": jax.ShapeDtypeStruct((), jnp.float32),
}


def make_rows(phase, *leading):
    return {"x": waves32((*leading, D), phase), "y": waves32(leading, phase + 0.5)}


BATCH = make_rows(0.0, B)
SUPPORT, QUERY = make_rows(1.0, K, B // K), make_rows(2.0, B)


def make(**options):
    return lm.lamaml_transform(loss_fn, **({"inner_steps": K} | options))


def with_reservoir(capacity=6, **options):
    reservoir = lm.make_reservoir(capacity, EXAMPLE)
    return make(reservoir=reservoir, replay_size=R, **options)


@functools.cache
def replaying():
    """A transformation with a reservoir, its update compiled once."""
    tx = with_reservoir()
    return tx, jax.jit(tx.update)


# By hand --------------------------------------------------------------------------


def quadratic(weight, target):
    return (weight - target) ** 2 / 2


def test_step_sizes_move_first_and_their_new_value_scales_the_weights():
    # Loss (w - x)^2 / 2, w = 1, a = 0.5, one inner step on x = 0, query at x = 2:
    # w_1 = 1 - 0.5 * 1 = 0.5, meta-loss 1.125, d/dw = (w_1 - 2)(1 - a) = -0.75,
    # d/da = (w_1 - 2)(-1) = 1.5. So a' = 0.5 - 0.1 * 1.5 = 0.35 and
    # w' - w = -0.35 * -0.75 = 0.2625 (with the old a it would be 0.375).
    tx = lm.lamaml_transform(
        quadratic,
        step_size_init=0.5,
        step_size_tx=optax.sgd(0.1),
        meta_tx=optax.identity(),
        inner_steps=1,
    )
    weight = jnp.asarray(1.0)
    updates, state = tx.update(
        jnp.asarray(0.0),
        tx.init(weight),
        weight,
        support=jnp.zeros((1, 1)),
        query=jnp.full((1,), 2.0),
    )
    # One float32 rounding per operation.
    np.testing.assert_allclose(state.rule_state.step_sizes, 0.35, rtol=1e-6)
    np.testing.assert_allclose(updates, 0.2625, rtol=1e-6)
    info = state.info
    np.testing.assert_allclose(info.meta_loss, 1.125, rtol=1e-6)
    np.testing.assert_allclose(info.inner_losses, [0.5], rtol=1e-6)
    np.testing.assert_allclose(info.query_losses, [1.125], rtol=1e-6)
    np.testing.assert_allclose(info.weight_grad_norm, 0.75, rtol=1e-6)
    np.testing.assert_allclose(info.step_size_grad_norm, 1.5, rtol=1e-6)
    np.testing.assert_allclose(info.alignment, -1.0, rtol=1e-6)


def test_step_sizes_that_turn_negative_freeze_their_weight():
    # As above with eta = 1: a' = 0.5 - 1.5 = -1, whose relu is 0.
    tx = lm.lamaml_transform(
        quadratic,
        step_size_init=0.5,
        step_size_tx=optax.sgd(1.0),
        meta_tx=optax.identity(),
        inner_steps=1,
    )
    weight = jnp.asarray(1.0)
    updates, state = tx.update(
        jnp.asarray(0.0),
        tx.init(weight),
        weight,
        support=jnp.zeros((1, 1)),
        query=jnp.full((1,), 2.0),
    )
    assert updates == 0
    np.testing.assert_allclose(state.rule_state.step_sizes, -1.0, rtol=1e-6)
    assert state.info.frozen_fraction == 1


# Meta-gradient, extra gradients, meta_tx --------------------------------------------


def meta_grads(**options):
    params = lm.MetaParams(WEIGHTS, optax.tree.full_like(WEIGHTS, 0.1))
    return lm.meta_value_and_grad(loss_fn, **options)(params, SUPPORT, QUERY)


def test_extra_gradients_are_added_before_meta_tx():
    seen = []

    def record(updates, params=None):
        seen.append((updates, params))
        return updates

    tx = make(meta_tx=optax.stateless(record))
    extra = {"w": waves32((D,), 3.0), "b": waves32((), 3.5)}
    state = tx.init(WEIGHTS)
    tx.update(extra, state, WEIGHTS, support=SUPPORT, query=QUERY)
    ((got, params),) = seen
    _, grads = meta_grads()
    expected = lm.MetaParams(
        jax.tree.map(jnp.add, grads.weights, extra), grads.step_sizes
    )
    assert isinstance(got, lm.MetaParams)
    chex.assert_trees_all_close(got, expected, **FUSED)
    chex.assert_trees_all_equal(
        params, lm.MetaParams(WEIGHTS, state.rule_state.step_sizes)
    )


def test_default_meta_tx_clips_each_half_at_two_and_info_keeps_the_norms_before():
    steep = jax.tree.map(lambda w: w + 20.0, WEIGHTS)
    clipped, plain = make(), make(meta_tx=optax.identity())
    data = {"support": SUPPORT, "query": QUERY}
    updates, state = clipped.update(ZEROS, clipped.init(steep), steep, **data)
    _, plain_state = plain.update(ZEROS, plain.init(steep), steep, **data)
    params = lm.MetaParams(steep, optax.tree.full_like(steep, 0.1))
    (meta_loss, _), grads = lm.meta_value_and_grad(loss_fn)(params, **data)
    norms = [optax.tree.norm(half) for half in grads]
    assert min(norms) > 2
    for info in (state.info, plain_state.info):
        got = (info.meta_loss, info.weight_grad_norm, info.step_size_grad_norm)
        chex.assert_trees_all_close(got, (meta_loss, *norms), **FUSED)
    halves = [
        optax.tree.scale(2 / (n + 1e-6), g) for n, g in zip(norms, grads, strict=True)
    ]
    rates = jax.tree.map(lambda g: 0.1 - 0.25 * g, halves[1])
    chex.assert_trees_all_close(state.rule_state.step_sizes, rates, **FUSED)
    expected = jax.tree.map(lambda a, g: -jax.nn.relu(a) * g, rates, halves[0])
    chex.assert_trees_all_close(updates, expected, **FUSED)


def test_meta_tx_state_is_carried_and_sees_extra_arguments():
    def update(updates, state, params=None, *, factor, **extra):
        return optax.tree.scale(factor, updates), state + 1

    tx = make(
        meta_tx=optax.GradientTransformationExtraArgs(
            lambda params: jnp.zeros((), jnp.int32), update
        )
    )
    state = tx.init(WEIGHTS)
    for n in (1, 2):
        updates, state = tx.update(
            ZEROS, state, WEIGHTS, support=SUPPORT, query=QUERY, factor=0.0
        )
        assert state.meta_tx_state == n
    chex.assert_trees_all_equal(updates, ZEROS)


def test_adapt_mask_holds_step_sizes_of_the_other_leaves():
    tx = make(adapt_mask={"w": False, "b": True})
    state = tx.init(WEIGHTS)
    updates, after = tx.update(ZEROS, state, WEIGHTS, support=SUPPORT, query=QUERY)
    before = state.rule_state.step_sizes
    chex.assert_trees_all_equal(after.rule_state.step_sizes["w"], before["w"])
    assert after.rule_state.step_sizes["b"] != before["b"]
    _, grads = meta_grads(adapt_mask={"w": False, "b": True})
    clip = min(1.0, 2 / float(optax.tree.norm(grads.weights)))
    # The slow leaf still learns, at its constant rate.
    chex.assert_trees_all_close(updates["w"], -0.1 * clip * grads.weights["w"], **FUSED)
    assert jnp.all(updates["w"] != 0)


# Data from a batch ------------------------------------------------------------------


def test_without_reservoir_the_query_is_the_batch():
    seen = []

    def spy(weights, batch):
        jax.debug.callback(lambda b: seen.append(jax.tree.map(np.array, b)), batch)
        return loss_fn(weights, batch)

    tx = lm.lamaml_transform(spy, inner_steps=K)
    tx.update(ZEROS, tx.init(WEIGHTS), WEIGHTS, batch=BATCH, key=jax.random.key(0))
    jax.effects_barrier()
    queries = [batch for batch in seen if batch["y"].shape == (B,)]
    supports = [batch for batch in seen if batch["y"].shape == (B // K,)]
    assert queries and supports
    for query in queries:
        chex.assert_trees_all_equal(query, jax.tree.map(np.array, BATCH))
    assert set().union(*map(rows_of, supports)) == rows_of(BATCH)


def test_batch_form_equals_some_split_of_the_batch_given_as_support():
    # Two rows, two inner steps: the shuffle has two outcomes, both of which occur.
    batch = make_rows(0.0, 2)
    tx = make()
    state = tx.init(WEIGHTS)
    outcomes = []
    for order in ([0, 1], [1, 0]):
        support = jax.tree.map(lambda x, o=order: x[jnp.array(o)][:, None], batch)
        outcomes.append(
            tx.update(ZEROS, state, WEIGHTS, support=support, query=batch)[0]
        )
    update = jax.jit(tx.update)
    hits = [0, 0]
    for seed in range(6):
        got, _ = update(ZEROS, state, WEIGHTS, batch=batch, key=jax.random.key(seed))
        match = [
            all(np.allclose(got[name], one[name], **FUSED) for name in got)
            for one in outcomes
        ]
        assert sum(match) == 1
        hits[match.index(True)] += 1
    assert min(hits) > 0


def test_first_update_of_an_empty_reservoir_equals_no_replay():
    tx, update = replaying()
    alone = make()
    key = jax.random.key(0)
    got, state = update(ZEROS, tx.init(WEIGHTS), WEIGHTS, batch=BATCH, key=key)
    expected, plain = alone.update(
        ZEROS, alone.init(WEIGHTS), WEIGHTS, batch=BATCH, key=key
    )
    assert state.info.all_finite
    chex.assert_trees_all_close(got, expected, **FUSED)
    chex.assert_trees_all_close(state.info, plain.info, **FUSED)


@pytest.mark.slow
def test_replayed_rows_stand_before_the_batch_and_are_masked_while_missing():
    seen = []

    def spy(weights, batch):
        jax.debug.callback(lambda b: seen.append(jax.tree.map(np.array, b)), batch)
        return loss_fn(weights, batch)

    reservoir = lm.make_reservoir(6, EXAMPLE)
    tx = lm.lamaml_transform(spy, inner_steps=K, reservoir=reservoir, replay_size=R)
    state = tx.init(WEIGHTS)
    old = make_rows(5.0, 1)
    stored = reservoir.add(jax.random.key(0), state.reservoir, old)
    _, after = tx.update(
        ZEROS,
        state._replace(reservoir=stored),
        WEIGHTS,
        batch=BATCH,
        key=jax.random.key(1),
    )
    jax.effects_barrier()
    queries = [batch for batch in seen if batch["y"].shape == (R + B,)]
    assert queries
    for query in queries:
        np.testing.assert_array_equal(query["x"][0], old["x"][0])
        np.testing.assert_array_equal(query["x"][R:], BATCH["x"])
        # Slots without a stored row repeat an incoming one.
        np.testing.assert_array_equal(query["y"][1:R], np.repeat(BATCH["y"][0], R - 1))
    # The mean is over the 1 + B valid rows, not over R + B: check it at the weights
    # that do not move.
    frozen = with_reservoir(step_size_init=0.0)
    frozen_state = frozen.init(WEIGHTS)._replace(reservoir=stored)
    _, frozen_after = frozen.update(
        ZEROS, frozen_state, WEIGHTS, batch=BATCH, key=jax.random.key(1)
    )
    valid = jnp.concatenate([loss_fn(WEIGHTS, old), loss_fn(WEIGHTS, BATCH)])
    np.testing.assert_allclose(frozen_after.info.meta_loss, jnp.mean(valid), rtol=1e-6)
    assert after.reservoir.num_seen == 1 + B


def test_reservoir_stores_the_rows_of_the_batch():
    tx, update = replaying()
    _, state = update(
        ZEROS, tx.init(WEIGHTS), WEIGHTS, batch=BATCH, key=jax.random.key(0)
    )
    stored = jax.tree.map(lambda leaf: leaf[:B], state.reservoir.rows)
    assert rows_of(stored) == rows_of(BATCH)
    assert state.reservoir.num_seen == B
    assert not jnp.any(state.reservoir.rows["x"][B:])


def test_a_batch_is_offered_after_it_was_replayed_against():
    # Step sizes of 0 keep the weights: with the batch already stored, the second
    # update's query holds rows of the first batch only, besides its own.
    tx = with_reservoir(step_size_init=0.0)
    update = jax.jit(tx.update)
    state = tx.init(WEIGHTS)
    _, state = update(ZEROS, state, WEIGHTS, batch=BATCH, key=jax.random.key(0))
    np.testing.assert_allclose(
        state.info.meta_loss, jnp.mean(loss_fn(WEIGHTS, BATCH)), rtol=1e-6
    )
    same = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], B, 0), BATCH)
    one = loss_fn(WEIGHTS, same)[0]
    state = tx.init(WEIGHTS)
    _, state = update(ZEROS, state, WEIGHTS, batch=same, key=jax.random.key(0))
    _, state = update(ZEROS, state, WEIGHTS, batch=BATCH, key=jax.random.key(1))
    expected = (R * one + jnp.sum(loss_fn(WEIGHTS, BATCH))) / (R + B)
    np.testing.assert_allclose(state.info.meta_loss, expected, rtol=1e-6)


def test_remember_may_be_traced_and_false_leaves_the_reservoir_alone():
    tx, _ = replaying()
    update = jax.jit(
        lambda state, remember, key: tx.update(
            ZEROS, state, WEIGHTS, batch=BATCH, key=key, remember=remember
        )
    )
    start = tx.init(WEIGHTS)
    _, kept = update(start, True, jax.random.key(0))
    _, after = update(kept, False, jax.random.key(1))
    chex.assert_trees_all_equal(after.reservoir, kept.reservoir)
    assert kept.reservoir.num_seen == B
    _, more = update(kept, True, jax.random.key(1))
    assert more.reservoir.num_seen == 2 * B


def test_explicit_data_leaves_the_reservoir_alone():
    tx, _ = replaying()
    state = tx.init(WEIGHTS)
    _, after = tx.update(ZEROS, state, WEIGHTS, support=SUPPORT, query=QUERY)
    chex.assert_trees_all_equal(after.reservoir, state.reservoir)


def test_explicit_masks_leave_rows_out():
    tx = make()
    state = tx.init(WEIGHTS)
    mask = jnp.array([True, True, False, True])
    support_mask = jnp.array([[True, False], [True, True]])
    spoil = {"x": 9.0, "y": -7.0}

    def run(support, query):
        return tx.update(
            ZEROS,
            state,
            WEIGHTS,
            support=support,
            query=query,
            support_mask=support_mask,
            query_mask=mask,
        )

    other_support = {n: SUPPORT[n].at[0, 1].set(spoil[n]) for n in SUPPORT}
    other_query = {n: QUERY[n].at[2].set(spoil[n]) for n in QUERY}
    chex.assert_trees_all_equal(run(SUPPORT, QUERY), run(other_support, other_query))
    unmasked = tx.update(ZEROS, state, WEIGHTS, support=SUPPORT, query=QUERY)
    assert not np.allclose(run(SUPPORT, QUERY)[1].info.meta_loss, unmasked[1].info[0])


# Info -----------------------------------------------------------------------------


def test_info_before_the_first_update_is_zero():
    info = with_reservoir().init(WEIGHTS).info
    assert info.inner_losses.shape == info.query_losses.shape == (K,)
    assert all(not jnp.any(leaf) for leaf in info)
    assert make(objective="last").init(WEIGHTS).info.query_losses.shape == (1,)


def test_info_describes_the_step_sizes_after_the_update():
    init = {"w": jnp.array([0.3, -0.2]), "b": 0.0}
    tx = make(step_size_init=init)
    _, state = tx.update(ZEROS, tx.init(WEIGHTS), WEIGHTS, support=SUPPORT, query=QUERY)
    rates = state.rule_state.step_sizes
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(rates)])
    info = state.info
    np.testing.assert_allclose(info.step_size_mean, flat.mean(), rtol=1e-5)
    np.testing.assert_allclose(info.step_size_min, flat.min())
    np.testing.assert_allclose(info.step_size_max, flat.max())
    # The negative and the zero step size have no gradient: they stay frozen.
    np.testing.assert_allclose(info.frozen_fraction, np.mean(flat <= 0), rtol=1e-6)
    assert info.frozen_fraction > 0.6
    assert info.all_finite


@pytest.mark.parametrize("part", ["support", "query"])
def test_info_tells_of_rows_that_are_not_finite_and_the_step_can_be_undone(part):
    tx = make()
    update = jax.jit(tx.update)
    good = {"support": SUPPORT, "query": QUERY}
    updates, state = update(ZEROS, tx.init(WEIGHTS), WEIGHTS, **good)
    assert state.info.all_finite
    old = (optax.apply_updates(WEIGHTS, updates), state)
    index = (1, 0) if part == "support" else (1,)
    bad = good | {part: good[part] | {"y": good[part]["y"].at[index].set(jnp.nan)}}
    updates, state = update(ZEROS, old[1], old[0], **bad)
    assert not state.info.all_finite
    new = (optax.apply_updates(old[0], updates), state)
    assert not jnp.all(jnp.isfinite(new[0]["w"]))
    kept = jax.tree.map(functools.partial(jnp.where, state.info.all_finite), new, old)
    chex.assert_trees_all_equal(kept, old)


def test_infinite_extra_gradients_are_told():
    tx = make()
    bad = ZEROS | {"b": jnp.asarray(jnp.inf)}
    _, state = tx.update(bad, tx.init(WEIGHTS), WEIGHTS, support=SUPPORT, query=QUERY)
    assert not state.info.all_finite


# Errors ---------------------------------------------------------------------------


EXPLICIT = {"support": SUPPORT, "query": QUERY}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"batch: .*received neither"),
        ({"key": None}, r"batch: .*received neither"),
        ({"support": SUPPORT}, r"query: .*received None"),
        ({"query": QUERY}, r"support: .*received None"),
        (EXPLICIT | {"batch": BATCH}, r"batch: .*received both"),
        ({"batch": BATCH, "query": QUERY}, r"batch: .*received both"),
        ({"batch": BATCH}, r"key: .*received None"),
        (
            {"support": make_rows(0.0, K + 1, 2), "query": QUERY},
            r"support: expected leading axis 2 \(inner_steps\), received 3",
        ),
        (EXPLICIT | {"query_mask": jnp.ones(B + 1, bool)}, r"query_mask: .*\(5,\)"),
    ],
)
def test_data_that_is_missing_or_wrong_is_named(data, message):
    tx = make()
    if data.get("batch") is not None and "query" not in data and "support" not in data:
        assert "key" not in data
    with pytest.raises(ValueError, match=message):
        tx.update(ZEROS, tx.init(WEIGHTS), WEIGHTS, **data)


@pytest.mark.slow
def test_a_batch_shorter_than_the_inner_steps_leaves_the_last_ones_empty():
    tx = make(inner_steps=B + 1)
    state = tx.init(WEIGHTS)
    updates, state = tx.update(
        ZEROS, state, WEIGHTS, batch=BATCH, key=jax.random.key(0)
    )
    info = optax.tree.get(state, "info")
    assert info.inner_losses.shape == (B + 1,)
    assert info.all_finite and info.inner_losses[-1] == 0
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(updates))


def test_missing_params_is_an_error():
    tx = make()
    with pytest.raises(ValueError, match=r"params: .*received None"):
        tx.update(ZEROS, tx.init(WEIGHTS), **EXPLICIT)


def test_updates_of_another_tree_or_shape_are_an_error():
    tx = make()
    state = tx.init(WEIGHTS)
    with pytest.raises(ValueError, match="updates: expected the tree of params"):
        tx.update({"w": ZEROS["w"]}, state, WEIGHTS, **EXPLICIT)
    with pytest.raises(ValueError, match=r"updates\['b'\]: expected shape \(\)"):
        tx.update(ZEROS | {"b": jnp.zeros(2)}, state, WEIGHTS, **EXPLICIT)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"inner_steps": 0}, ValueError, "inner_steps"),
        ({"inner_steps": 2.0}, TypeError, "inner_steps"),
        ({"replay_size": 0}, ValueError, "replay_size"),
        ({"unroll": 0}, ValueError, "unroll"),
        ({"objective": "first"}, ValueError, "objective"),
        ({"inner_ad": "forward"}, ValueError, "inner_ad"),
        ({"inner_ad": "forward_over_reverse", "remat": False}, ValueError, "remat"),
        ({"clip": 0.0}, ValueError, "clip"),
        ({"meta_tx": 2.0}, TypeError, "meta_tx"),
        ({"step_size_tx": 0.1}, TypeError, "step_size_tx"),
        ({"weight_tx": 0.1}, TypeError, "weight_tx"),
    ],
)
def test_wrong_options_raise_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_a_loss_that_is_not_callable_raises_at_construction():
    with pytest.raises(TypeError, match="loss_fn"):
        lm.lamaml_transform(None)


def test_a_scalar_loss_needs_every_row_valid():
    def scalar_loss(weights, batch):
        return jnp.mean(loss_fn(weights, batch))

    tx, per_row = lm.lamaml_transform(scalar_loss, inner_steps=K), make()
    state = tx.init(WEIGHTS)
    got, _ = tx.update(ZEROS, state, WEIGHTS, **EXPLICIT)
    expected, _ = per_row.update(ZEROS, state, WEIGHTS, **EXPLICIT)
    chex.assert_trees_all_close(got, expected, **FUSED)
    with pytest.raises(ValueError, match="one loss per example"):
        tx.update(ZEROS, state, WEIGHTS, batch=BATCH, key=jax.random.key(0))


def test_integer_weights_are_an_error():
    with pytest.raises(TypeError, match=r"\['n'\].*floating"):
        make().init({"n": jnp.arange(3)})
