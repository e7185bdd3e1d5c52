"""UPGD's steps, against the definition of a weight's utility and the published rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_trees_close, waves

import lamaml_jax as lm

KEY = jax.random.key(7)


def as_tree(vector):
    return {"a": jnp.asarray(vector[:2]), "b": jnp.asarray(vector[2:]).reshape(-1, 1)}


def affine_loss(weights):
    """Affine in each weight with the others held, and in no other way simple."""
    (a, b), (c, d, e) = weights["a"], weights["b"][:, 0]
    return 0.3 + a * b - 2 * c * d * e + a * c * e - b * d + 0.7 * e


def test_utility_is_what_the_loss_rises_by_without_the_weight(x64):
    vector = waves((5,), 0.4)
    weights = as_tree(vector)
    tx = lm.scale_by_utility(0.0, 0.0)
    grads = jax.grad(affine_loss)(weights)
    _, state = tx.update(grads, tx.init(weights), weights, key=KEY)
    rises = [
        affine_loss(as_tree(np.where(np.arange(5) == i, 0, vector)))
        - affine_loss(weights)
        for i in range(5)
    ]
    # float64: the cancellation of two losses of order 1.
    assert_trees_close(state.utilities, as_tree(np.array(rises)), atol=1e-14)


def test_updates_without_noise_follow_the_published_rule(x64):
    """Five steps in numpy: a running utility, its sigmoid, decay of the weights."""
    decay, rate, shrink = 0.8, 0.1, 0.02
    tx = optax.chain(
        lm.scale_by_utility(decay, 0.0),
        optax.add_decayed_weights(shrink),
        optax.scale(-rate),
    )
    w, u = waves((5,), 0.4), np.zeros(5)
    weights = as_tree(w)
    state, update = tx.init(weights), jax.jit(tx.update)
    for n in range(5):
        g = waves((5,), n + 2.0)
        updates, state = update(as_tree(g), state, weights, key=KEY)
        weights = optax.apply_updates(weights, updates)
        u = decay * u - (1 - decay) * g * w
        corrected = u / (1 - decay ** (n + 1))
        assert corrected.max() > 0
        free = 1 - 1 / (1 + np.exp(-corrected / corrected.max()))
        w = w * (1 - rate * shrink) - rate * g * free
        # float64: some ten roundings a step.
        assert_trees_close(weights, as_tree(w), rtol=1e-12)


def test_the_largest_utility_is_that_of_all_leaves():
    tx = lm.scale_by_utility(0.0, 0.0)
    weights, grads = {"a": jnp.ones(1), "b": jnp.ones(1)}, {"a": -jnp.ones(1)}
    free = lambda other: tx.update(
        grads | {"b": other}, tx.init(weights), weights, key=KEY
    )[0]["a"][0]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    # float32, one sigmoid.
    np.testing.assert_allclose(-free(-jnp.ones(1)), 1 - sigmoid(1.0), rtol=1e-6)
    np.testing.assert_allclose(-free(-4 * jnp.ones(1)), 1 - sigmoid(0.25), rtol=1e-6)


def test_without_a_useful_weight_nothing_is_protected():
    tx = lm.scale_by_utility(0.5, 0.0)
    with jax.debug_nans(True):
        weights, grads = jnp.array([1.0, 0.0]), jnp.array([2.0, 2.0])
        updates, _ = tx.update(grads, tx.init(weights), weights, key=KEY)
        np.testing.assert_array_equal(updates, [2.0, 1.0])
        nothing, _ = tx.update(0 * grads, tx.init(weights), weights, key=KEY)
        np.testing.assert_array_equal(nothing, [0.0, 0.0])


def test_noise_is_normal_fades_with_utility_and_is_new_with_each_key():
    num = 4000
    weights = jnp.concatenate([jnp.ones(num), -jnp.ones(num)])
    grads = -jnp.ones(2 * num)  # the first half is useful, the second harmful
    tx, quiet = (lm.scale_by_utility(0.0, scale) for scale in (0.5, 0.0))
    step = lambda tx, key: tx.update(grads, tx.init(weights), weights, key=key)[0]
    noise = step(tx, KEY) - step(quiet, KEY)
    for part, free in ((noise[:num], 0.26894142), (noise[num:], 0.73105858)):
        # Five standard errors of a mean and of a standard deviation.
        assert abs(part.mean()) < 5 * 0.5 * free / np.sqrt(num)
        np.testing.assert_allclose(part.std(), 0.5 * free, rtol=5 / np.sqrt(2 * num))
    np.testing.assert_array_equal(step(tx, KEY), step(tx, KEY))
    other = step(tx, jax.random.key(8)) - step(quiet, KEY)
    assert abs(np.corrcoef(noise, other)[0, 1]) < 5 / np.sqrt(2 * num)


def test_leaves_of_one_shape_get_noise_of_their_own():
    weights = {"a": jnp.ones(50), "b": jnp.ones(50)}
    tx = lm.scale_by_utility(0.0, 1.0)
    updates, _ = tx.update(
        optax.tree.zeros_like(weights), tx.init(weights), weights, key=KEY
    )
    assert not np.isclose(updates["a"], updates["b"]).any()


def test_half_precision_keeps_its_slow_means_in_single():
    weights = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = lm.scale_by_utility(0.9999, 0.1)
    state = tx.init(weights)
    assert state.utilities["w"].dtype == jnp.float32
    updates, state = tx.update(
        optax.tree.full_like(weights, -1.0), state, weights, key=KEY
    )
    assert updates["w"].dtype == jnp.bfloat16
    # In bfloat16 0.9999 is 1, and the mean would never move. float32 rounds it by 3e-8.
    np.testing.assert_allclose(state.utilities["w"], 1e-4, rtol=1e-3)


def test_hidden_weights_have_no_utility():
    tx = optax.masked(lm.scale_by_utility(0.0, 0.0), {"a": True, "b": False})
    weights = {"a": jnp.ones(1), "b": jnp.ones(1)}
    grads = {"a": -jnp.ones(1), "b": -9 * jnp.ones(1)}
    updates, _ = tx.update(grads, tx.init(weights), weights, key=KEY)
    np.testing.assert_array_equal(updates["b"], grads["b"])
    # The useful weight that is hidden does not lower the others' shares.
    np.testing.assert_allclose(updates["a"], -0.26894142, rtol=1e-6)


def test_numbers_may_be_traced_or_injected():
    weights, grads = jnp.ones(3), -jnp.arange(3.0)
    tx = optax.inject_hyperparams(lm.scale_by_utility)(decay=0.9, noise_scale=0.0)
    state = tx.init(weights)
    assert set(state.hyperparams) == {"decay", "noise_scale"}
    updates, _ = jax.jit(tx.update)(grads, state, weights, key=KEY)
    plain = lm.scale_by_utility(0.9, 0.0)
    expected, _ = plain.update(grads, plain.init(weights), weights, key=KEY)
    # float32, one sigmoid fused.
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_it_is_lowered_for_accelerators():
    tx, weights = lm.scale_by_utility(0.9, 0.1), {"w": jnp.ones((3, 2))}
    update = jax.jit(
        lambda seed: tx.update(
            weights, tx.init(weights), weights, key=jax.random.key(seed)
        )
    )
    exported = jax.export.export(update, platforms=["tpu", "cuda"])(jnp.uint32(0))
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lm.scale_by_utility(1.5, 0.0), ValueError, r"decay: .*\[0, 1\]"),
        (lambda: lm.scale_by_utility("0.9", 0.0), TypeError, "decay: expected a numb"),
        (lambda: lm.scale_by_utility(0.9, -1.0), ValueError, "noise_scale: .*>= 0"),
        (
            lambda: lm.scale_by_utility(0.9, 0.0).init(jnp.ones(2, int)),
            TypeError,
            "params: expected a floating array",
        ),
        (lambda: step(params=None), ValueError, "params: scale_by_utility.update need"),
        (lambda: step(key=None), ValueError, "key: scale_by_utility.update needs it"),
        (lambda: step(key=jnp.ones(2)), TypeError, "key: expected"),
        (
            lambda: step(grads=jnp.ones(3)),
            ValueError,
            r"updates: expected shape \(2,\) as in params, received \(3,\)",
        ),
    ],
)
def test_wrong_arguments_are_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


ONES = jnp.ones(2)


def step(grads=ONES, params=ONES, key=KEY):
    tx = lm.scale_by_utility(0.9, 0.0)
    return tx.update(grads, tx.init(ONES), params, key=key)
