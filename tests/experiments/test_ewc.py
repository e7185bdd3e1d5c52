"""EWC holds weights by the Fisher information of each past task."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import softmax_loss

import lamaml_jax as lm
from experiments.methods import ewc, replay
from experiments.methods.problem import Problem
from experiments.support.errors import UserError

NUM_FEATURES, NUM_CLASSES, BATCH = 5, 3, 4
HYPER = ewc.EwcHyperparameters(glances=2, learning_rate=0.1, penalty=8.0, fisher_rows=6)


def logits_fn(weights, images):
    return jnp.tanh(images @ weights["w"]) @ weights["v"]


loss_fn = softmax_loss(logits_fn)
PROBLEM = Problem(
    loss_fn,
    {
        "image": jax.ShapeDtypeStruct((NUM_FEATURES,), jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
        "task": jax.ShapeDtypeStruct((), jnp.int32),
    },
    logits_fn,
    num_tasks=3,
    num_classes=NUM_CLASSES,
)
LEARNER = ewc.ewc(PROBLEM, HYPER)


def weights(seed=0, dtype=jnp.float32):
    w_key, v_key = jax.random.split(jax.random.key(seed))
    return {
        "w": jax.random.normal(w_key, (NUM_FEATURES, 4), dtype),
        "v": jax.random.normal(v_key, (4, NUM_CLASSES), dtype),
    }


def stream(seed=0, num_batches=5, size=BATCH):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(num_batches, size, NUM_FEATURES)).astype(np.float32)
    labels = np.argmax(images[..., :NUM_CLASSES], axis=-1).astype(np.int32)
    return {"image": images, "label": labels, "task": np.zeros_like(labels)}


def first_batch(seed=0, size=BATCH):
    return jax.tree.map(lambda x: x[0], stream(seed, 1, size))


def row_of(rows, i):
    return jax.tree.map(lambda x: x[i : i + 1], rows)


@pytest.mark.usefixtures("x64")
def test_fisher_is_the_mean_of_squared_gradients_of_rows():
    rows = first_batch(size=7)
    rows["image"] = rows["image"].astype(np.float64)
    mask = jnp.arange(7) % 3 != 1
    start = weights(dtype=jnp.float64)
    fisher = jax.jit(ewc.fisher_diagonal, static_argnums=0)(loss_fn, start, rows, mask)
    grad = jax.jit(jax.grad(lambda w, row: loss_fn(w, row)[0]))
    squares = [
        jax.tree.map(np.square, grad(start, row_of(rows, i)))
        for i in np.flatnonzero(mask)
    ]
    expected = jax.tree.map(lambda *x: np.mean(x, axis=0), *squares)
    # float64; the rows' gradients are summed in the same order
    chex.assert_trees_all_close(fisher, expected, rtol=1e-12)


def test_fisher_of_no_rows_is_zero():
    rows, mask = first_batch(), jnp.zeros(BATCH, bool)
    fisher = ewc.fisher_diagonal(loss_fn, weights(), rows, mask)
    chex.assert_trees_all_equal(fisher, optax.tree.zeros_like(fisher))


def test_fisher_holds_one_gradient_at_a_time():
    rows, mask = first_batch(size=37), jnp.ones(37, bool)
    text = str(jax.make_jaxpr(ewc.fisher_diagonal, 0)(loss_fn, weights(), rows, mask))
    assert "[37,5]" in text and "[5,4]" in text
    assert "[37,5,4]" not in text and "[37,4,3]" not in text


@pytest.mark.usefixtures("x64")
def test_penalty_gradient_is_the_sum_over_past_tasks():
    rng = np.random.default_rng(0)
    draw = lambda fn: {name: jnp.asarray(fn(w.shape)) for name, w in weights().items()}
    # Some parameters matter to no task, some to one alone.
    fishers = [
        draw(lambda s: rng.exponential(size=s) * rng.integers(0, 2, size=s))
        for _ in range(3)
    ]
    ends = [draw(lambda s: rng.normal(size=s)) for _ in range(3)]
    now = draw(lambda s: rng.normal(size=s))
    hyper = ewc.EwcHyperparameters(
        glances=1, learning_rate=0.1, max_grad_norm=1e6, penalty=8.0, fisher_rows=6
    )
    image = jax.ShapeDtypeStruct((NUM_FEATURES,), jnp.float64)
    problem = PROBLEM._replace(example=PROBLEM.example | {"image": image})
    learner = ewc.ewc(problem, hyper)
    state = learner.init(jax.random.key(0), now)
    importance, anchor = state.importance, state.anchor
    for fisher, end in zip(fishers, ends, strict=True):
        importance, anchor = ewc.add_task(importance, anchor, fisher, end)
    state = state._replace(importance=importance, anchor=anchor)
    batch = first_batch()
    batch["image"] = batch["image"].astype(np.float64)
    moved, info = jax.jit(learner.observe)(jax.random.key(1), state, batch)

    def explicit(w):
        squares = jax.tree.map(
            lambda w, *rest: sum(
                jnp.sum(f * (w - end) ** 2)
                for f, end in zip(rest[:3], rest[3:], strict=True)
            ),
            w,
            *fishers,
            *ends,
        )
        return jnp.mean(loss_fn(w, batch)) + 8.0 / 2 * optax.tree.sum(squares)

    grads = jax.jit(jax.grad(explicit))(now)
    norm = optax.tree.norm(grads)
    # SGD at rate 0.1; the factor of a clip that is not active is 1.
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, now, grads)
    # float64 sums of three tasks in another order
    chex.assert_trees_all_close(moved.weights, expected, rtol=1e-10)
    np.testing.assert_allclose(info.grad_norm[0], norm, rtol=1e-10)
    assert info.penalty[0] > 0


def test_first_task_is_plain_sgd():
    run = jax.jit(lm.observe_stream, static_argnums=0)
    batches, key = stream(), jax.random.key(1)
    online = replay.online(PROBLEM, HYPER)
    ours, info = run(LEARNER, key, LEARNER.init(key, weights()), batches)
    plain, other = run(online, key, online.init(key, weights()), batches)
    np.testing.assert_array_equal(info.penalty, 0)
    # The same sums, but float32 rounding may differ where two programs fuse them apart.
    chex.assert_trees_all_close(ours.weights, plain.weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info.loss, other.loss, rtol=1e-5)


def test_end_of_a_task_adds_its_fisher_and_anchors_its_weights():
    start = LEARNER.init(jax.random.key(0), weights())
    state, _ = jax.jit(LEARNER.observe)(jax.random.key(1), start, first_batch())
    end_task = jax.jit(LEARNER.end_task)
    ended = end_task(jax.random.key(2), state)
    mask = jnp.ones(BATCH, bool)
    fisher = ewc.fisher_diagonal(loss_fn, state.weights, first_batch(), mask)
    # float32 squares summed in the same order
    chex.assert_trees_all_close(ended.importance, fisher, rtol=1e-5)
    held = jax.tree.map(
        lambda f, a, w: jnp.where(f > 0, a - w, 0), fisher, ended.anchor, state.weights
    )
    chex.assert_trees_all_equal(held, optax.tree.zeros_like(held))
    assert ended.num_rows == 0
    chex.assert_trees_all_equal(ended.weights, state.weights)
    again = end_task(jax.random.key(3), ended)  # no rows since
    chex.assert_trees_all_equal(again, ended)


@pytest.mark.parametrize("size", [2, 4, 9])
def test_latest_remembered_rows_are_kept(size):
    """For batches shorter and longer than the six rows there is room for."""
    observe = jax.jit(LEARNER.observe)
    state = LEARNER.init(jax.random.key(0), weights())
    shown = []
    for n in range(5):
        batch, mask = first_batch(n, size), np.arange(size) != 1
        remember = n != 3
        state, _ = observe(jax.random.key(n), state, batch, mask, remember)
        shown += [np.asarray(batch["image"])[mask]] * remember
    images = np.concatenate(shown)
    assert state.num_rows == len(images)
    # Only which rows there are matters, so their order is that of a ring.
    filled = np.asarray(state.rows["image"])[: min(len(images), 6)]
    order = np.lexsort(filled.T), np.lexsort(images[-6:].T)
    np.testing.assert_array_equal(filled[order[0]], images[-6:][order[1]])


def test_masked_rows_change_nothing():
    start = LEARNER.init(jax.random.key(0), weights())
    ones = jax.tree.map(jnp.ones_like, start.importance)
    start = start._replace(importance=ones)
    batch = first_batch(1)
    other = batch | {
        "image": np.append(batch["image"][:3], 0 * batch["image"][3:] + 9, 0)
    }
    mask = jnp.arange(BATCH) < 3
    observe = jax.jit(LEARNER.observe)
    one, two = (observe(jax.random.key(1), start, b, mask) for b in (batch, other))
    chex.assert_trees_all_equal(one, two)  # a masked row has no term in any sum


def train(key, start, first, second):
    state = LEARNER.init(key, start)
    for task, batches in enumerate((first, second)):
        task_key, end_key = jax.random.split(jax.random.fold_in(key, task))
        state, info = lm.observe_stream(LEARNER, task_key, state, batches)
        state = LEARNER.end_task(end_key, state)
    return state, info


def test_seeds_side_by_side_equal_one_by_one():
    keys = jax.random.split(jax.random.key(1))
    inputs = [(weights(s), stream(s), stream(s + 2)) for s in range(2)]
    together = jax.jit(jax.vmap(train))(
        keys, *jax.tree.map(lambda *x: jnp.stack(x), *inputs)
    )
    alone = jax.jit(train)
    for seed in range(2):
        state, info = alone(keys[seed], *inputs[seed])
        picked = jax.tree.map(lambda x, i=seed: x[i], together)
        # float32 through 20 updates, with sums in another order
        chex.assert_trees_all_close(picked, (state, info), rtol=1e-4, atol=1e-5)
        assert np.all(info.penalty[1:] > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fisher_rows": 0}, "fisher_rows: expected at least 1, received 0"),
    ],
)
def test_values_out_of_range_are_an_error(change, message):
    given = {"learning_rate": 0.1, "penalty": 1.0, "fisher_rows": 2} | change
    with pytest.raises(UserError, match=message):
        ewc.ewc(PROBLEM, ewc.EwcHyperparameters(**given))
