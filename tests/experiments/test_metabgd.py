"""Meta-BGD moves means and deviations of weights and step sizes by Bayes' rule."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compile_as_users_do
from hlo import copies_in_loops
from problems import linear_logits, softmax_loss

import lamaml_jax as lm
from experiments.methods.metabgd import (
    MetaBgdHyperparameters,
    bayes_update,
    metabgd,
    normal_like,
)
from experiments.methods.problem import Problem
from experiments.support.errors import UserError

NUM_FEATURES, NUM_CLASSES, BATCH = 6, 3, 10


loss_fn = softmax_loss(linear_logits)
PROBLEM = Problem(
    loss_fn,
    {
        "image": jax.ShapeDtypeStruct((NUM_FEATURES,), jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    },
)


def hyper(**changes):
    values = {
        "glances": 2,
        "capacity": 20,
        "replay_size": 4,
        "acceptance": "exact",
        "inner_steps": 3,
        "step_size_init": 0.1,
        "first_order": False,
        "objective": "mean",
        "rectify": False,
        "inner_clip": 2.0,
        "mc_samples": 2,
        "std_init": 0.02,
        "mean_learning_rate": 50.0,
    }
    return MetaBgdHyperparameters(**values | changes)


LEARNER = metabgd(PROBLEM, hyper())
jitted_observe = jax.jit(LEARNER.observe)
EVERY = jnp.ones(BATCH, bool)


def weights():
    return {"w": jnp.zeros((NUM_FEATURES, NUM_CLASSES)), "b": jnp.zeros(NUM_CLASSES)}


def start(learner=LEARNER):
    return learner.init(jax.random.key(0), weights())


def observe(seed, state, rows, mask=EVERY, remember=True):
    return jitted_observe(jax.random.key(seed), state, rows, mask, remember)


def same_rows(seed):
    return jax.tree.map(lambda x: jnp.repeat(x[:1], BATCH, axis=0), batch(seed))


def stream(seed, num_batches=1):
    images = np.random.default_rng(seed).normal(size=(num_batches, BATCH, NUM_FEATURES))
    labels = np.argmax(images[..., :NUM_CLASSES], axis=-1)
    return {"image": jnp.float32(images), "label": jnp.int32(labels)}


def batch(seed):
    return jax.tree.map(lambda x: x[0], stream(seed))


def test_closed_form_is_the_published_one(x64):
    rng = np.random.default_rng(0)
    mean, grad, noise = rng.normal(size=(3, 1000))
    std = rng.uniform(0.01, 2, size=1000)
    new_mean, new_std = bayes_update(mean, std, grad, noise, 3.0)
    x = std * noise / 2
    # A few roundings; the published difference loses one digit at x of some 3.
    np.testing.assert_allclose(new_mean, mean - 3 * std**2 * grad, rtol=0, atol=1e-14)
    np.testing.assert_allclose(new_std, std * (np.sqrt(1 + x**2) - x), rtol=1e-13)
    same = bayes_update(mean, std, 0 * grad, 0 * noise, 3.0)
    chex.assert_trees_all_equal(same, (mean, std))


def test_deviations_stay_positive_in_float32():
    std, noise = np.float32(0.5), np.logspace(-6, 12, 50, dtype=np.float32)
    for sign in (1, -1):
        _, new = bayes_update(0.0, std, 0.0, sign * noise, 1.0)
        x = sign * 0.25 * noise.astype(np.float64)
        # Four roundings of 6e-8. The published difference is 0 from x = 3000 on.
        expected = 0.5 * np.exp(-np.arcsinh(x))
        np.testing.assert_allclose(new, expected, rtol=1e-6)


@pytest.mark.slow
def test_vanishing_deviations_give_gradient_descent_on_the_meta_loss():
    """Copies of one row make support and query known; and then noise is too small."""
    settings = hyper(
        std_init=1e-6,
        mean_learning_rate=1e10,  # times the variance, 1e-12: a rate of 0.01
        glances=1,
        max_grad_norm=0.3,
        step_size_init=-0.1,  # not rectified
        inner_clip=0.05,
    )
    learner = metabgd(PROBLEM, settings)
    known = {"w": 0.1 * jnp.eye(NUM_FEATURES, NUM_CLASSES), "b": jnp.arange(3.0) / 9}
    rows, mask = same_rows(1), jnp.arange(BATCH) < 9
    support = jax.tree.map(lambda x: x[:6].reshape(3, 2, *x.shape[1:]), rows)
    step_sizes = jax.tree.map(lambda w: jnp.full_like(w, -0.1), known)
    value_and_grad = jax.jit(lm.meta_value_and_grad(loss_fn, rectify=False, clip=0.05))
    (loss, _), grads = value_and_grad(lm.MetaParams(known, step_sizes), support, rows)
    norm = optax.tree.norm(grads.weights)
    assert norm > settings.max_grad_norm
    moves = lm.MetaParams(0.3 / norm, 1.0)  # the step sizes' gradients are not clipped
    expected = [
        jax.tree.map(lambda p, g, m=move: p - 0.01 * 9 * m * g, half, grad)
        for half, grad, move in zip((known, step_sizes), grads, moves, strict=True)
    ]
    state = learner.init(jax.random.key(0), known)
    state, info = jax.jit(learner.observe)(jax.random.key(1), state, rows, mask)
    # Noise of 1e-6 moves a gradient by some 1e-6 and that by 0.09; float32 rounds.
    chex.assert_trees_all_close(state.weights, expected[0], rtol=0, atol=5e-7)
    chex.assert_trees_all_close(state.step_sizes, expected[1], rtol=0, atol=5e-7)
    np.testing.assert_allclose(info.meta_loss, [[loss] * 2], rtol=1e-4)
    np.testing.assert_allclose(info.weight_grad_norm, [[norm] * 2], rtol=1e-4)
    rate_norm = optax.tree.norm(grads.step_sizes)
    np.testing.assert_allclose(info.step_size_grad_norm, [[rate_norm] * 2], rtol=1e-4)


def test_learns_a_linear_problem():
    batches = stream(2, 30)
    run = jax.jit(lm.observe_stream, static_argnums=0)
    state, info = run(LEARNER, jax.random.key(3), start(), batches)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
    before, after = (
        float(jnp.mean(loss_fn(w, rows))) for w in (weights(), state.weights)
    )
    # 60 steps at a rate of 50 * 0.02**2 * 10 = 0.2 on normal inputs.
    assert after < 0.5 * before
    for leaf in jax.tree.leaves((state.weight_stds, state.step_size_stds)):
        assert np.all(leaf > 0) and np.any(leaf != hyper().std_init)
    # What the data say makes the weights surer.
    assert np.mean(state.weight_stds["w"]) < hyper().std_init
    assert all(leaf.shape == (30, 2, 2) and np.isfinite(leaf).all() for leaf in info)


def test_masked_rows_change_nothing():
    state, _ = observe(0, start(), batch(4))
    rows, mask = batch(5), jnp.arange(BATCH) % 3 != 1
    other = rows | {"image": jnp.where(mask[:, None], rows["image"], 9.0)}
    one, two = (observe(1, state, some, mask) for some in (rows, other))
    chex.assert_trees_all_equal(one, two)
    assert one[0].reservoir.num_seen == BATCH + np.sum(mask)
    nothing, _ = observe(2, state, rows, ~EVERY)
    chex.assert_trees_all_equal(nothing, state)


def test_rows_are_offered_once_and_only_if_remembered():
    kept, _ = observe(1, start(), batch(6))
    unseen, _ = observe(1, start(), batch(6), remember=False)
    assert (kept.reservoir.num_seen, unseen.reservoir.num_seen) == (BATCH, 0)
    assert np.any(unseen.weights["w"] != 0)
    # Rows enter in the order of a shuffle.
    stored = kept.reservoir.rows["image"][:BATCH].tolist()
    assert sorted(stored) == sorted(batch(6)["image"].tolist())


def test_noise_is_normal_and_differs_between_leaves():
    like = lm.MetaParams({"w": jnp.zeros((200, 100))}, {"w": jnp.zeros((200, 100))})
    noise = normal_like(jax.random.key(7), like)
    chex.assert_trees_all_equal_shapes_and_dtypes(noise, like)
    first, second = (leaf.ravel() for leaf in jax.tree.leaves(noise))
    error = 1 / np.sqrt(20_000)  # of a mean; five of them for each test
    for leaf in (first, second):
        assert abs(np.mean(leaf)) < 5 * error
        assert abs(np.mean(leaf**2) - 1) < 5 * error * np.sqrt(2)
    assert abs(np.mean(first * second)) < 5 * error


def test_every_draw_and_glance_has_noise_of_its_own():
    """All rows are the same here and none is new, so nothing moves and losses tell."""
    state, _ = observe(8, start(), same_rows(8))
    after, info = observe(9, state, same_rows(8), ~EVERY)
    chex.assert_trees_all_equal(after, state)
    assert len(set(info.meta_loss.ravel().tolist())) == 4


def test_later_draws_may_replay_the_rows_of_the_batch():
    _, info = observe(10, start(), batch(10))
    _, unseen = observe(10, start(), batch(10), remember=False)
    changed = np.asarray(info.meta_loss != unseen.meta_loss)
    np.testing.assert_array_equal(changed.ravel(), [False, True, True, True])


@pytest.mark.slow
def test_vmap_over_seeds_equals_each_alone():
    keys, rows = jax.random.split(jax.random.key(9), 2), batch(9)
    state, _ = observe(0, start(), batch(11))
    together = jax.jit(
        jax.vmap(lambda key: LEARNER.observe(key, state, rows, EVERY, True))
    )(keys)
    for i, key in enumerate(keys):
        # Batched products sum in another order: some 1e-7 an update.
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], together),
            jitted_observe(key, state, rows, EVERY, True),
            rtol=0,
            atol=2e-6,
        )


@pytest.mark.slow
def test_reservoir_stays_in_place():
    """The cost of a batch must not grow with the capacity."""
    capacity = 20_011
    learner = metabgd(PROBLEM, hyper(capacity=capacity))
    state = jax.eval_shape(lambda: start(learner))
    run = jax.jit(
        lambda state: lm.observe_stream(learner, jax.random.key(0), state, stream(0)),
        donate_argnums=0,
    )
    hlo = compile_as_users_do(run.lower(state)).as_text()
    assert f"[{capacity}" in hlo
    assert copies_in_loops(hlo, capacity) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mc_samples": 0}, "mc_samples: .* received 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        metabgd(PROBLEM, hyper(**changes))
