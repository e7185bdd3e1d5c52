"""lamaml_learner and observe_stream: glances, memory, masks, a small real stream."""

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

B, K, R, D = 4, 2, 2, 3

# float32 against float32, the same operations fused or ordered differently.
FUSED = {"rtol": 2e-5, "atol": 2e-6}


def make_rows(phase, *leading):
    return {"x": waves32((*leading, D), phase), "y": waves32(leading, phase + 0.5)}


WEIGHTS = {"w": waves32((D,), 0.1), "b": waves32((), 0.2)}
EXAMPLE = {
    "x": jax.ShapeDtypeStruct((D,), jnp.float32),
    "y": jax.ShapeDtypeStruct((), jnp.float32),
}
GLANCES = 3


@functools.cache
def learner_and_tx():
    reservoir = lm.make_reservoir(2 * B, EXAMPLE)
    tx = lm.lamaml(loss_fn, inner_steps=K, reservoir=reservoir, replay_size=R)
    return lm.lamaml_learner(tx, glances=GLANCES), tx


@functools.cache
def jitted_observe():
    return jax.jit(learner_and_tx()[0].observe)


def fresh():
    return learner_and_tx()[0].init(jax.random.key(0), WEIGHTS)


def test_glances_equal_a_loop_of_updates_with_the_split_keys():
    _, tx = learner_and_tx()
    update = jax.jit(tx.update)
    key, batch = jax.random.key(7), make_rows(1.0, B)
    state, info = jitted_observe()(key, fresh(), batch)
    weights, opt_state, infos = WEIGHTS, tx.init(WEIGHTS), []
    for n, glance_key in enumerate(jax.random.split(key, GLANCES)):
        updates, opt_state = update(
            optax.tree.zeros_like(weights),
            opt_state,
            weights,
            batch=batch,
            key=glance_key,
            remember=jnp.asarray(n == 0),
        )
        weights = optax.apply_updates(weights, updates)
        infos.append(opt_state.info)
    chex.assert_trees_all_close(state, lm.LearnerState(weights, opt_state), **FUSED)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *infos)
    chex.assert_trees_all_close(info, stacked, **FUSED)
    assert isinstance(info, lm.LamamlInfo)
    assert info.meta_loss.shape == (GLANCES,)
    assert info.inner_losses.shape == (GLANCES, K)


def test_rows_enter_the_reservoir_once_however_many_glances():
    batch = make_rows(1.0, B)
    state, _ = jitted_observe()(jax.random.key(0), fresh(), batch)
    assert state.opt_state.reservoir.num_seen == B
    stored = jax.tree.map(lambda leaf: leaf[:B], state.opt_state.reservoir.rows)
    assert rows_of(stored) == rows_of(batch)
    state, _ = jitted_observe()(jax.random.key(1), state, make_rows(2.0, B))
    assert state.opt_state.reservoir.num_seen == 2 * B


def test_remember_false_updates_the_weights_but_not_the_reservoir():
    batch, key = make_rows(1.0, B), jax.random.key(0)
    state, _ = jitted_observe()(key, fresh(), batch)
    again, _ = jitted_observe()(key, state, batch, None, False)
    chex.assert_trees_all_equal(again.opt_state.reservoir, state.opt_state.reservoir)
    assert jnp.any(again.weights["w"] != state.weights["w"])


def test_masked_rows_change_nothing_and_never_enter_the_reservoir():
    batch = make_rows(1.0, B)
    mask = jnp.array([True, False, True, True])
    other = {"x": batch["x"].at[1].set(9.0), "y": batch["y"].at[1].set(-7.0)}
    results = [
        jitted_observe()(jax.random.key(0), fresh(), rows, mask)
        for rows in (batch, other)
    ]
    states, infos = zip(*results, strict=True)
    chex.assert_trees_all_equal(states[0].weights, states[1].weights)
    chex.assert_trees_all_equal(infos[0], infos[1])
    reservoir = states[0].opt_state.reservoir
    assert reservoir.num_seen == B - 1
    chex.assert_trees_all_equal(reservoir, states[1].opt_state.reservoir)
    stored = jax.tree.map(lambda leaf: leaf[: B - 1], reservoir.rows)
    valid = jax.tree.map(lambda leaf: leaf[np.array(mask)], batch)
    assert rows_of(stored) == rows_of(valid)


@pytest.mark.slow
def test_a_mask_of_true_equals_no_mask():
    batch, key = make_rows(1.0, B), jax.random.key(0)
    chex.assert_trees_all_close(
        jitted_observe()(key, fresh(), batch, jnp.ones(B, bool)),
        jitted_observe()(key, fresh(), batch),
        **FUSED,
    )


def test_a_fully_masked_batch_leaves_weights_and_reservoir_as_they_are():
    batch = make_rows(1.0, B)
    state, info = jitted_observe()(
        jax.random.key(0), fresh(), batch, jnp.zeros(B, bool)
    )
    chex.assert_trees_all_equal(state.weights, WEIGHTS)
    assert state.opt_state.reservoir.num_seen == 0
    assert jnp.all(info.all_finite)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_stream_equals_a_loop_with_folded_keys(masked):
    learner, _ = learner_and_tx()
    batches = make_rows(1.0, 3, B)
    masks = jnp.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]], bool)
    masks = masks if masked else None
    key = jax.random.key(3)
    run = jax.jit(functools.partial(lm.observe_stream, learner))
    state, info = run(key, fresh(), batches, masks)
    expected, infos = fresh(), []
    for n in range(3):
        batch = jax.tree.map(lambda leaf, n=n: leaf[n], batches)
        mask = None if masks is None else masks[n]
        expected, one = jitted_observe()(
            jax.random.fold_in(key, n), expected, batch, mask
        )
        infos.append(one)
    chex.assert_trees_all_close(state, expected, **FUSED)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *infos)
    chex.assert_trees_all_close(info, stacked, **FUSED)
    assert info.inner_losses.shape == (3, GLANCES, K)
    # Once more, bit for bit; and another key gives other numbers.
    chex.assert_trees_all_equal(run(key, fresh(), batches, masks), (state, info))
    other, _ = run(jax.random.key(4), fresh(), batches, masks)
    assert jnp.any(other.weights["w"] != state.weights["w"])


def test_learner_state_holds_the_given_weights():
    state = fresh()
    assert isinstance(state, lm.LearnerState)
    chex.assert_trees_all_equal(state.weights, WEIGHTS)


@pytest.mark.parametrize(
    ("glances", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_wrong_glances_raise_at_construction(glances, error):
    with pytest.raises(error, match="glances"):
        lm.lamaml_learner(learner_and_tx()[1], glances=glances)


def test_wrong_arguments_are_named():
    learner, _ = learner_and_tx()
    with pytest.raises(TypeError, match="tx: expected an optax"):
        lm.lamaml_learner(loss_fn)
    key, state, batch = jax.random.key(0), fresh(), make_rows(1.0, B)
    with pytest.raises(ValueError, match=r"key: .*None"):
        learner.observe(None, state, batch)
    with pytest.raises(ValueError, match=r"batch_mask: expected shape \(4,\)"):
        learner.observe(key, state, batch, jnp.ones(3, bool))
    with pytest.raises(TypeError, match="batch_mask: expected a boolean"):
        learner.observe(key, state, batch, jnp.ones(B))
    batches = make_rows(1.0, 3, B)
    with pytest.raises(ValueError, match=r"masks: expected shape \(3, 4\)"):
        lm.observe_stream(learner, key, state, batches, jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"batches\['y'\]: expected leading axes"):
        lm.observe_stream(learner, key, state, batches | {"y": batches["y"][:, :2]})
    with pytest.raises(TypeError, match="key: expected a jax random key"):
        lm.observe_stream(learner, 0, state, batches)


def test_rows_that_do_not_fit_the_reservoir_are_an_error():
    learner, _ = learner_and_tx()
    batch = make_rows(1.0, B)
    wrong = batch | {"y": batch["y"].astype(jnp.bfloat16)}
    with pytest.raises(TypeError, match=r"rows\['y'\]: expected dtype float32"):
        learner.observe(jax.random.key(0), fresh(), wrong)


def digits_loss(weights, batch):
    images, labels = batch
    hidden = jax.nn.relu(images @ weights["w1"] + weights["b1"][None, :])
    logits = hidden @ weights["w2"] + weights["b2"][None, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@pytest.mark.slow
@pytest.mark.parametrize("constructor", [lm.lamaml, lm.sync_lamaml, lm.cmaml])
def test_a_stream_of_two_digit_tasks_is_learned(constructor):
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8)[:600]
    labels = labels[:600].astype(np.int32)
    # Two tasks, one after the other: upright, then turned by a quarter.
    tasks = np.stack([images, np.rot90(images, axes=(1, 2))]).reshape(2, 600, 64)
    batches = (
        jnp.asarray(tasks.reshape(120, 10, 64)),
        jnp.asarray(np.tile(labels, 2).reshape(120, 10)),
    )
    rng = np.random.default_rng(0)
    weights = {
        "w1": jnp.asarray(rng.normal(size=(64, 32)) / 8, jnp.float32),
        "b1": jnp.zeros(32),
        "w2": jnp.asarray(rng.normal(size=(32, 10)) / 6, jnp.float32),
        "b2": jnp.zeros(10),
    }
    example = (
        jax.ShapeDtypeStruct((64,), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    tx = constructor(
        digits_loss,
        step_size_init=0.1,
        inner_steps=5,
        reservoir=lm.make_reservoir(100, example),
        replay_size=10,
    )
    learner = lm.lamaml_learner(tx, glances=2)
    state, info = jax.jit(functools.partial(lm.observe_stream, learner))(
        jax.random.key(0), learner.init(jax.random.key(1), weights), batches
    )
    assert jnp.all(info.all_finite)

    @jax.jit
    def loss(weights, task):
        return jnp.mean(digits_loss(weights, (task, jnp.asarray(labels))))

    for task in map(jnp.asarray, tasks):
        before, after = loss(weights, task), loss(state.weights, task)
        # Untrained, ten classes cost log(10) = 2.3 nats or more. Half of that on both
        # tasks means that the second was learned and the first not forgotten.
        assert before > 2.2
        assert after < 1.15
