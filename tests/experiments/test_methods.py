"""Every method learns, remembers and keeps the shape of a learner."""

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
from experiments import methods
from experiments.config import presets
from experiments.methods.problem import Problem
from experiments.support.errors import UserError

NUM_FEATURES, NUM_CLASSES = 6, 3


loss_fn = softmax_loss(linear_logits)
EXAMPLE = {
    "image": jax.ShapeDtypeStruct((NUM_FEATURES,), jnp.float32),
    "label": jax.ShapeDtypeStruct((), jnp.int32),
}
PROBLEM = Problem(
    loss_fn,
    EXAMPLE | {"task": jax.ShapeDtypeStruct((), jnp.int32)},
    linear_logits,
    num_tasks=2,
    rows_per_task=300,
    num_classes=NUM_CLASSES,
    classes_per_task=NUM_CLASSES,
    head_fn=lambda weights: {"w": True, "b": True},
)


def hyper_of(name, **overrides):
    overrides = {"capacity": 20, "replay_size": 4, "glances": 2} | overrides
    if name == "upgd":  # its rate is for streams a hundred times as long
        overrides = {"learning_rate": 0.1} | overrides
    preset = presets.OFFICIAL["fashion-mnist-split", "single"][name]
    overrides = {k: v for k, v in overrides.items() if getattr(preset, k) is not None}
    (hyper,) = presets.resolve("fashion-mnist-split", [name], overrides)
    return hyper


def learner_of(name, **overrides):
    """On the problem, whose one task has all classes; heads are not masked by task."""
    shares_classes = methods.METHODS[name].needs_one_head
    problem = PROBLEM._replace(classes_per_task=None) if shares_classes else PROBLEM
    return methods.make_learner(name, problem, hyper_of(name, **overrides))


WITH_RESERVOIR = [
    name
    for name, preset in presets.OFFICIAL["fashion-mnist-split", "single"].items()
    if preset.acceptance is not None
]


def weights():
    return {"w": jnp.zeros((NUM_FEATURES, NUM_CLASSES)), "b": jnp.zeros(NUM_CLASSES)}


def stream(key, num_batches=30, batch_size=10):
    images = jax.random.normal(key, (num_batches, batch_size, NUM_FEATURES))
    labels = jnp.argmax(images[..., :NUM_CLASSES], axis=-1).astype(jnp.int32)
    tasks = jnp.zeros(labels.shape, jnp.int32)
    return {"image": images, "label": labels, "task": tasks}


# Three in the quick tests: the program of one takes a second to compile.
QUICK = ("lamaml", "er", "online")
ALL = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in methods.METHODS
]


@pytest.mark.parametrize("name", ALL)
def test_method_learns_a_linear_problem(name):
    learner = learner_of(name)
    data_key, run_key = jax.random.split(jax.random.key(3))
    batches = stream(data_key)
    state = learner.init(jax.random.key(4), weights())
    run = jax.jit(lm.observe_stream, static_argnums=0)
    start = state
    state, info = run(learner, run_key, start, batches)
    chex.assert_trees_all_equal(run(learner, run_key, start, batches)[0], state)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
    before = float(jnp.mean(loss_fn(weights(), rows)))
    after = float(jnp.mean(loss_fn(state.weights, rows)))
    # Online has the smallest rate, 0.03, and comes down to about 0.7 of log 3.
    assert after < 0.85 * before
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(info))


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.METHODS)
def test_masked_rows_change_nothing(name):
    learner = learner_of(name)
    batch = jax.tree.map(lambda x: x[0], stream(jax.random.key(5)))
    other = batch | {"image": batch["image"].at[7:].set(9.0)}
    mask = jnp.arange(10) < 7
    observe = jax.jit(learner.observe)
    start = learner.init(jax.random.key(0), weights())
    results = [observe(jax.random.key(1), start, rows, mask) for rows in (batch, other)]
    # Under a mask the shuffles agree, so results are equal bit for bit.
    chex.assert_trees_all_equal(results[0][0].weights, results[1][0].weights)


def test_er_offers_rows_once_and_only_if_remembered():
    learner = methods.make_learner("er", PROBLEM, hyper_of("er", glances=3))
    batch = jax.tree.map(lambda x: x[0], stream(jax.random.key(6)))
    state = learner.init(jax.random.key(0), weights())
    kept, _ = learner.observe(jax.random.key(1), state, batch)
    unseen, _ = learner.observe(jax.random.key(1), state, batch, remember=False)
    assert (kept.reservoir.num_seen, unseen.reservoir.num_seen) == (10, 0)
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x[:10], kept.reservoir.rows), batch
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_RESERVOIR)
def test_replay_writes_in_place(name):
    """The cost of a batch must not grow with the capacity."""
    capacity = 20_000
    learner = learner_of(name, capacity=capacity)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(learner.init, key, weights())
    batches = jax.eval_shape(lambda: stream(jax.random.key(0)))
    run = jax.jit(lm.observe_stream, static_argnums=0, donate_argnums=2)
    lowered = run.lower(learner, key, state, batches)
    hlo = compile_as_users_do(lowered).as_text()
    assert f"[{capacity}" in hlo
    assert copies_in_loops(hlo, capacity) == []


@pytest.mark.slow
def test_er_update_is_sgd_on_the_clipped_gradient_of_all_rows():
    hyper = hyper_of("er", glances=1, max_grad_norm=0.05, capacity=10, replay_size=10)
    learner = methods.make_learner("er", PROBLEM, hyper)
    batches = stream(jax.random.key(7), num_batches=2)
    first, second = (jax.tree.map(lambda x, i=i: x[i], batches) for i in range(2))
    # A memory of ten copies of one row leaves nothing to chance.
    same = jax.tree.map(lambda x: jnp.repeat(x[:1], 10, axis=0), first)
    state, _ = learner.observe(
        jax.random.key(1), learner.init(jax.random.key(0), weights()), same
    )
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), same, second)
    grads = jax.grad(lambda w: jnp.mean(loss_fn(w, rows)))(state.weights)
    norm = optax.tree.norm(grads)
    assert norm > 0.05
    expected = jax.tree.map(
        lambda w, g: w - 0.1 * g * 0.05 / norm, state.weights, grads
    )
    state, info = learner.observe(jax.random.key(2), state, second)
    # float32 sums of twenty rows in another order
    chex.assert_trees_all_close(state.weights, expected, atol=1e-6)
    np.testing.assert_allclose(info.grad_norm[0], norm, rtol=1e-5)


def test_online_has_no_memory():
    learner = methods.make_learner("online", PROBLEM, hyper_of("online"))
    assert learner.init(jax.random.key(0), weights()).reservoir is None


def test_unknown_method_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match=r"unknown method 'sgd'.*lamaml.*online"):
        methods.check_method("sgd")


def test_hyper_parameters_that_do_not_fit_are_an_error():
    with pytest.raises(UserError, match=r"method 'er'.*capacity"):
        methods.make_learner("er", PROBLEM, hyper_of("er", capacity=0))
