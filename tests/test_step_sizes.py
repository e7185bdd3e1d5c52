"""The learned-rate rule: hand-computed updates, order, frozen rates, optax wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import lamaml_jax as lm

PARAMS = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[3.0]])}
GRADS = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[2.0]])}
RATE_GRADS = {"a": jnp.array([0.25, -0.5]), "b": jnp.array([[1.0]])}


def assert_trees_equal(actual, expected):
    """Dyadic numbers throughout: every operation is exact in float32."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def one_update(tx, params=PARAMS, grads=GRADS, rate_grads=RATE_GRADS):
    return tx.update(grads, tx.init(params), params, step_size_grads=rate_grads)


def test_weights_move_by_the_step_sizes_just_moved():
    tx = lm.scale_by_step_sizes(0.5, optax.sgd(0.5))
    updates, state = one_update(tx)
    # 0.5 - 0.5 * g_a = 0.375, 0.75 and 0; then minus these times g_w.
    rates = {"a": jnp.array([0.375, 0.75]), "b": jnp.array([[0.0]])}
    assert_trees_equal(state.step_sizes, rates)
    assert_trees_equal(
        updates, {"a": jnp.array([-0.1875, 0.75]), "b": jnp.array([[0.0]])}
    )


def test_negative_step_sizes_freeze_their_weights_and_can_return():
    tx = lm.scale_by_step_sizes(0.25, optax.sgd(0.5))
    updates, state = one_update(tx)
    assert state.step_sizes["b"] == -0.25
    assert updates["b"] == 0
    back = jax.tree.map(jnp.negative, RATE_GRADS)
    updates, state = tx.update(GRADS, state, PARAMS, step_size_grads=back)
    assert_trees_equal(state.step_sizes["b"], jnp.array([[0.25]]))
    assert_trees_equal(updates["b"], jnp.array([[-0.5]]))


def test_synchronous_rule_moves_weights_by_their_own_rate():
    tx = lm.scale_by_step_sizes(0.5, optax.sgd(0.5), weight_tx=optax.sgd(0.25))
    updates, state = one_update(tx)
    assert_trees_equal(
        state.step_sizes, {"a": jnp.array([0.375, 0.75]), "b": jnp.array([[0.0]])}
    )
    assert_trees_equal(
        updates, {"a": jnp.array([-0.125, 0.25]), "b": jnp.array([[-0.5]])}
    )


@pytest.mark.parametrize("weight_rate", [None, 0.3])
def test_five_updates_equal_the_numpy_reference(x64, weight_rate):
    rng = np.random.default_rng(21)
    weights = {"a": rng.normal(size=3), "b": rng.normal(size=(2, 2))}
    rates = {"a": np.full(3, 0.1), "b": np.full((2, 2), 0.1)}
    weight_tx = None if weight_rate is None else optax.sgd(weight_rate)
    tx = optax.chain(lm.scale_by_step_sizes(0.1, optax.sgd(0.2), weight_tx=weight_tx))
    params = jax.tree.map(jnp.asarray, weights)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(5):
        grads = {name: rng.normal(size=w.shape) for name, w in weights.items()}
        rate_grads = {name: rng.normal(size=w.shape) for name, w in weights.items()}
        updates, state = update(
            grads, state, params, step_size_grads=rate_grads, unknown=3
        )
        params = optax.apply_updates(params, updates)
        weights, rates = reference.meta_update(
            weights,
            rates,
            grads,
            rate_grads,
            max_norm=None,
            eta=0.2,
            weight_rate=weight_rate,
        )
        found = optax.tree.get(state, "step_sizes")
        for name in weights:
            # float64 against float64, the same five operations.
            np.testing.assert_allclose(found[name], rates[name], rtol=1e-13)
            np.testing.assert_allclose(params[name], weights[name], rtol=1e-12)


@pytest.mark.parametrize("step_size_tx", [optax.set_to_zero(), optax.sgd(0.0)])
def test_step_sizes_may_be_frozen(step_size_tx):
    tx = lm.scale_by_step_sizes(0.5, step_size_tx)
    updates, state = one_update(tx)
    assert all(jnp.all(a == 0.5) for a in jax.tree.leaves(state.step_sizes))
    assert_trees_equal(updates, jax.tree.map(lambda g: -0.5 * g, GRADS))


def test_any_optax_optimiser_moves_the_step_sizes():
    tx = lm.scale_by_step_sizes(0.5, optax.adam(0.125))
    _, state = one_update(tx)
    # Adam's first step is its learning rate against the sign; float32 rounds
    # 1 - b2 = 0.001 by a few units of 1e-5 and its square root by half of that.
    expected = {"a": jnp.array([0.375, 0.625]), "b": jnp.array([[0.375]])}
    for name, rates in expected.items():
        np.testing.assert_allclose(state.step_sizes[name], rates, rtol=1e-5)
    _, state = tx.update(GRADS, state, PARAMS, step_size_grads=RATE_GRADS)
    assert optax.tree.get(state, "count") == 2


def test_learning_rate_of_the_step_sizes_may_be_a_schedule_or_traced():
    traces = []

    @jax.jit
    def rates_after(eta):
        traces.append(None)
        return one_update(lm.scale_by_step_sizes(0.5, optax.sgd(eta)))[1].step_sizes

    assert rates_after(0.5)["b"] == 0.0
    assert rates_after(0.25)["b"] == 0.25
    assert len(traces) == 1
    schedule = optax.piecewise_constant_schedule(0.5, {1: 0.5})
    tx = lm.scale_by_step_sizes(1.0, optax.sgd(schedule))
    state = tx.init(PARAMS)
    for expected in (0.5, 0.25):
        _, state = tx.update(GRADS, state, PARAMS, step_size_grads=RATE_GRADS)
        assert state.step_sizes["b"] == expected


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (0.25, {"a": [0.25, 0.25], "b": [[0.25]]}),
        (1, {"a": [1.0, 1.0], "b": [[1.0]]}),
        (jnp.float32(0.5), {"a": [0.5, 0.5], "b": [[0.5]]}),
        ({"a": 0.5, "b": 2.0}, {"a": [0.5, 0.5], "b": [[2.0]]}),
        (
            {"a": jnp.array([0.5, 0.25]), "b": np.array([[4.0]])},
            {"a": [0.5, 0.25], "b": [[4.0]]},
        ),
    ],
    ids=["float", "int", "array", "tree of numbers", "tree of arrays"],
)
def test_initial_step_sizes(init, expected):
    state = lm.scale_by_step_sizes(init, optax.sgd(0.1)).init(PARAMS)
    for name, rates in expected.items():
        assert state.step_sizes[name].dtype == PARAMS[name].dtype
        np.testing.assert_array_equal(state.step_sizes[name], rates)


def test_step_sizes_take_the_dtype_of_their_weights():
    params = {"half": jnp.ones(2, jnp.bfloat16), "full": jnp.ones(2)}
    tx = lm.scale_by_step_sizes(0.5, optax.sgd(0.5))
    updates, state = one_update(tx, params, params, params)
    for tree in (updates, state.step_sizes):
        assert tree["half"].dtype == jnp.bfloat16
        assert tree["full"].dtype == jnp.float32


def test_masked_leaves_keep_their_own_rule():
    tx = optax.masked(
        lm.scale_by_step_sizes(0.5, optax.sgd(0.5)), {"a": True, "b": False}
    )
    updates, state = one_update(tx)  # step_size_grads passed whole
    assert_trees_equal(
        updates, {"a": jnp.array([-0.1875, 0.75]), "b": jnp.array([[2.0]])}
    )
    rates = optax.tree.get(state, "step_sizes")
    assert_trees_equal(rates["a"], jnp.array([0.375, 0.75]))
    assert isinstance(rates["b"], optax.MaskedNode)


def test_masked_accepts_a_whole_tree_of_initial_step_sizes():
    init = {"a": 0.5, "b": 0.25}
    tx = optax.masked(
        lm.scale_by_step_sizes(init, optax.sgd(0.5)), {"a": False, "b": True}
    )
    updates, _ = one_update(tx)
    # 0.25 - 0.5 * 1 < 0: frozen.
    assert_trees_equal(updates, {"a": GRADS["a"], "b": jnp.array([[0.0]])})


def test_partition_gives_each_part_its_own_rule():
    tx = optax.partition(
        {
            "learned": lm.scale_by_step_sizes(0.5, optax.sgd(0.5)),
            "plain": optax.sgd(0.25),
        },
        {"a": "learned", "b": "plain"},
    )
    updates, _ = one_update(tx)
    assert_trees_equal(
        updates, {"a": jnp.array([-0.1875, 0.75]), "b": jnp.array([[-0.5]])}
    )


def test_partition_into_two_learned_parts():
    tx = optax.partition(
        {
            "fast": lm.scale_by_step_sizes(0.5, optax.sgd(0.5)),
            "slow": lm.scale_by_step_sizes(1.0, optax.sgd(0.5)),
        },
        {"a": "fast", "b": "slow"},
    )
    updates, _ = one_update(tx)
    assert_trees_equal(
        updates, {"a": jnp.array([-0.1875, 0.75]), "b": jnp.array([[-1.0]])}
    )
