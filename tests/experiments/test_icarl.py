"""iCaRL herds, shares its slots among classes and predicts by nearest mean."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compile_as_users_do
from hlo import copies_in_loops

import lamaml_jax as lm
from experiments.methods import exemplars, icarl
from experiments.methods.problem import Problem
from experiments.support.errors import UserError

NUM_FEATURES, NUM_TASKS, PER_TASK = 6, 3, 2
NUM_CLASSES = NUM_TASKS * PER_TASK
NUM_ROWS, BATCH = 16, 4


def logits_fn(weights, images):
    return jnp.tanh(images @ weights["w"]) @ weights["v"]


def loss_fn(weights, batch):
    logits = logits_fn(weights, batch["image"])
    return lm.losses.multi_head_cross_entropy(
        logits, batch["label"], batch["task"], PER_TASK
    )


PROBLEM = Problem(
    loss_fn,
    {
        "image": jax.ShapeDtypeStruct((NUM_FEATURES,), jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
        "task": jax.ShapeDtypeStruct((), jnp.int32),
    },
    logits_fn,
    num_tasks=NUM_TASKS,
    rows_per_task=NUM_ROWS,
    num_classes=NUM_CLASSES,
    classes_per_task=PER_TASK,
)
HYPER = icarl.IcarlHyperparameters(
    glances=2, learning_rate=0.3, capacity=14, distillation_weight=1.0
)
LEARNER = icarl.icarl(PROBLEM, HYPER)


def weights(seed=0):
    keys = jax.random.split(jax.random.key(seed))
    shapes = {"w": (NUM_FEATURES, 8), "v": (8, NUM_CLASSES)}
    return {
        name: 0.5 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def task_stream(task, seed=0):
    """Batches of one task; the feature at a row's class is large."""
    rng = np.random.default_rng([seed, task])
    labels = task * PER_TASK + rng.integers(0, PER_TASK, NUM_ROWS)
    images = rng.normal(size=(NUM_ROWS, NUM_FEATURES)) + 3 * np.eye(6)[labels]
    rows = {"image": images.astype(np.float32), "label": labels.astype(np.int32)}
    rows["task"] = np.full(NUM_ROWS, task, np.int32)
    return jax.tree.map(lambda x: x.reshape(-1, BATCH, *x.shape[1:]), rows)


def train(key, start, stream):
    """Runs over all tasks, each with its end; leaves of ``stream`` [T, N, B, ...]."""

    def task(state, inputs):
        key, batches = inputs
        key, end_key = jax.random.split(key)
        state, info = lm.observe_stream(LEARNER, key, state, batches)
        state = LEARNER.end_task(end_key, state)
        return state, (info, state.exemplars)

    init_key, key = jax.random.split(key)
    state = LEARNER.init(init_key, start)
    return jax.lax.scan(task, state, (jax.random.split(key, NUM_TASKS), stream))


def whole_stream(seed=0):
    tasks = [task_stream(task, seed) for task in range(NUM_TASKS)]
    return jax.tree.map(lambda *x: np.stack(x), *tasks)


jitted_train = jax.jit(train)
scores_fn = jax.jit(icarl.icarl_scores(PROBLEM, HYPER))


@functools.cache
def trained():
    out = jitted_train(jax.random.key(1), weights(), whole_stream())
    return jax.tree.map(np.asarray, out)


def herd_in_loops(features, size):
    """The greedy rule row by row, in float64."""
    goal, order = features.mean(axis=0), []
    for n in range(min(size, len(features))):
        total = features[order].sum(axis=0)
        costs = [
            np.inf if i in order else np.linalg.norm(goal - (total + row) / (n + 1))
            for i, row in enumerate(features)
        ]
        order.append(int(np.argmin(costs)))
    return order


def test_herding_picks_as_a_loop_does():
    features = np.random.default_rng(0).normal(size=(12, 3))
    mask = np.arange(12) % 3 != 1
    order, is_row = jax.jit(exemplars.herd, static_argnums=2)(features, mask, 10)
    rows = np.flatnonzero(mask)
    assert rows[herd_in_loops(features[mask], 10)].tolist() == list(order[:8])
    np.testing.assert_array_equal(is_row, np.arange(10) < 8)


def test_herding_from_no_rows_gives_none():
    order, is_row = exemplars.herd(jnp.ones((3, 2)), jnp.zeros(3, bool), 2)
    assert order.shape == (2,) and not np.any(is_row)


def test_slots_are_shared_equally_and_cut_in_the_order_of_herding():
    _, (_, stages) = trained()
    for task in range(NUM_TASKS):
        labels, ranks, images = (
            x[task] for x in (stages.labels, stages.ranks, stages.images)
        )
        num_seen = PER_TASK * (task + 1)
        share = 14 // num_seen
        for c in range(num_seen):
            rows = task_stream(c // PER_TASK)
            own = rows["image"].reshape(-1, NUM_FEATURES)[rows["label"].ravel() == c]
            count = min(share, len(own))
            np.testing.assert_array_equal(np.sort(ranks[labels == c]), range(count))
            # Every image is one of its class, and none is there twice.
            found = (images[labels == c][:, None, :] == own[None, :, :]).all(axis=-1)
            assert found.sum() == found.any(axis=0).sum() == count
            if task > c // PER_TASK:  # a prefix of what was kept before
                before = stages.labels[task - 1] == c
                for rank in range(count):
                    (then,) = np.flatnonzero(before & (stages.ranks[task - 1] == rank))
                    (now,) = np.flatnonzero((labels == c) & (ranks == rank))
                    np.testing.assert_array_equal(
                        stages.images[task - 1][then], images[now]
                    )
        assert set(labels) <= {*range(num_seen), -1}


def test_herding_is_on_the_logits_of_the_own_head():
    (state, _), batches = trained(), task_stream(2)
    rows = jax.tree.map(lambda x: np.asarray(x.reshape(-1, *x.shape[2:])), batches)
    logits = np.asarray(logits_fn(state.weights, rows["image"]), np.float64)
    memory = state.exemplars
    for c in (4, 5):
        own = rows["label"] == c
        order = herd_in_loops(logits[own][:, 4:6], 14 // NUM_CLASSES)
        slots = np.flatnonzero(memory.labels == c)
        slots = slots[np.argsort(memory.ranks[slots])]
        np.testing.assert_array_equal(memory.images[slots], rows["image"][own][order])


def test_stored_logits_are_those_at_the_end_of_the_latest_task():
    state, _ = trained()
    expected = logits_fn(state.weights, state.exemplars.images)
    # float32, a product of two small matrices in another order
    np.testing.assert_allclose(state.exemplars.logits, expected, atol=1e-5)


def rows_of_first_task(start, num_second):
    """Twelve rows, ``num_second`` of them of class 1."""
    images = (start + np.arange(NUM_ROWS * NUM_FEATURES).reshape(NUM_ROWS, -1)) / 50
    labels = np.where(np.arange(NUM_ROWS) < num_second, 1, 0).astype(np.int32)
    return exemplars.TaskRows(images.astype(np.float32), labels, jnp.int32(12))


renew = jax.jit(functools.partial(exemplars.renew, PROBLEM))


def test_a_class_with_few_rows_leaves_the_others_their_share():
    empty = LEARNER.init(jax.random.key(0), weights()).exemplars
    memory = renew(weights(), empty, rows_of_first_task(0, num_second=1))
    counts = exemplars.count_by_class(memory.labels, NUM_CLASSES)
    np.testing.assert_array_equal(counts, [7, 1, 0, 0, 0, 0])


def test_a_task_seen_again_replaces_its_exemplars():
    memory = LEARNER.init(jax.random.key(0), weights()).exemplars
    for start in (0, 1000):
        memory = renew(weights(), memory, rows_of_first_task(start, num_second=6))
    assert np.sum(memory.labels >= 0) == 12
    assert np.all(memory.images[memory.labels >= 0] >= 1000 / 50)


def test_a_task_without_rows_leaves_the_exemplars():
    state, _ = trained()
    again = jax.jit(LEARNER.end_task)(jax.random.key(0), state)
    chex.assert_trees_all_equal(again.exemplars[:3], state.exemplars[:3])


def test_buffer_keeps_valid_remembered_rows_while_it_has_room():
    batch = jax.tree.map(lambda x: x[0], task_stream(0))
    mask = jnp.array([True, False, True, True])
    observe = jax.jit(LEARNER.observe)
    start = LEARNER.init(jax.random.key(0), weights())
    state, _ = observe(jax.random.key(1), start, batch, mask, True)
    unseen, _ = observe(jax.random.key(2), state, batch, mask, False)
    assert state.task_rows.count == unseen.task_rows.count == 3
    for _ in range(5):
        unseen, _ = observe(jax.random.key(3), unseen, batch, mask, True)
    assert unseen.task_rows.count == NUM_ROWS
    kept = np.asarray(batch["image"])[np.asarray(mask)]
    expected = np.concatenate([kept] * 6)[:NUM_ROWS]
    np.testing.assert_array_equal(unseen.task_rows.images, expected)


def test_masked_rows_change_nothing():
    state, _ = trained()
    batch = jax.tree.map(lambda x: x[0], task_stream(2, seed=3))
    other = batch | {
        "image": np.append(batch["image"][:3], 0 * batch["image"][3:] + 9, 0)
    }
    mask = jnp.arange(BATCH) < 3
    observe = jax.jit(LEARNER.observe)
    one, two = (observe(jax.random.key(1), state, b, mask) for b in (batch, other))
    chex.assert_trees_all_equal(one, two)  # a masked row has no term in any sum


def test_loss_adds_the_divergence_of_old_heads():
    state, _ = trained()
    memory, mask = exemplars.one_per_class(state.exemplars, jnp.ones(NUM_CLASSES, int))
    batch = jax.tree.map(lambda x: x[0], task_stream(1))
    present = mask & (jnp.arange(NUM_CLASSES) != 3)
    start = weights(2)
    hyper = icarl.IcarlHyperparameters(distillation_weight=0.7)
    loss, distillation = jax.jit(icarl.icarl_loss(PROBLEM, hyper))(
        start, batch, jnp.ones(BATCH, bool), memory, present
    )
    logits = np.asarray(logits_fn(start, memory.images), np.float64)
    expected = 0.0
    for c in np.flatnonzero(present):
        head = slice(c // PER_TASK * PER_TASK, c // PER_TASK * PER_TASK + PER_TASK)
        p, q = (
            np.exp(x[c, head]) / np.exp(x[c, head]).sum()
            for x in (np.asarray(memory.logits, np.float64), logits)
        )
        expected += np.sum(p * np.log(p / q)) / PER_TASK
    # float32 logarithms of probabilities
    np.testing.assert_allclose(distillation, expected, rtol=1e-4)
    entropy = jnp.mean(loss_fn(start, batch))
    np.testing.assert_allclose(loss, entropy + 0.7 * expected, rtol=1e-5)


def test_first_task_is_plain_descent():
    _, (info, _) = trained()
    np.testing.assert_array_equal(info.distillation[0], 0)
    # A task's first update meets the outputs just stored, equal but for rounding.
    np.testing.assert_allclose(info.distillation[1, 0, 0], 0, atol=1e-6)
    assert np.all(info.distillation[1, 1:] > 1e-6)


def test_each_exemplar_of_a_class_is_drawn():
    state, _ = trained()
    labels = np.where(np.arange(14) < 3, 4, -1).astype(np.int32)
    memory = state.exemplars._replace(
        labels=labels, ranks=np.arange(14, dtype=np.int32)
    )
    state = state._replace(exemplars=memory, weights=weights(5))
    batch = jax.tree.map(lambda x: x[0], task_stream(2))
    keys = jax.random.split(jax.random.key(0), 60)
    observe = jax.jit(jax.vmap(LEARNER.observe, (0, None, None)))
    _, info = observe(keys, state, batch)
    # The distance between different exemplars' divergences is far above 1e-5.
    drawn = np.unique(np.round(info.distillation[:, 0], 5), return_counts=True)[1]
    # 60 draws of 3: the mean is 20, five standard errors are 18.
    assert len(drawn) == 3 and drawn.min() > 2


def test_scores_are_distances_to_current_means():
    state, _ = trained()
    state = state._replace(weights=weights(7))  # other logits than those stored
    held = state.exemplars.labels != 3
    memory = state.exemplars._replace(
        labels=jnp.where(held, state.exemplars.labels, -1)
    )
    state = state._replace(exemplars=memory)
    images = task_stream(1, seed=4)["image"][0]
    scores = scores_fn(state, images)
    assert scores.shape == (BATCH, NUM_CLASSES)
    logits, outputs = (
        np.asarray(logits_fn(state.weights, x), np.float64)
        for x in (memory.images, images)
    )
    for c in (0, 1, 2, 4, 5):
        mean = logits[np.asarray(memory.labels) == c].mean(axis=0)
        expected = -np.sum((outputs - mean[None, :]) ** 2, axis=1)
        # float32 sums of a few terms of size 1
        np.testing.assert_allclose(scores[:, c], expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(scores).all() and (scores[:, 3] < scores.min(axis=1) / 2).all()


def test_before_a_task_its_own_classes_come_before_masked_ones():
    state = LEARNER.init(jax.random.key(0), weights())
    scores = scores_fn(state, jnp.ones((2, NUM_FEATURES)))
    masked = jnp.where(jnp.arange(NUM_CLASSES)[None, :] >= 4, scores, -jnp.inf)
    np.testing.assert_array_equal(jnp.argmax(masked, axis=1), [4, 4])


def test_old_tasks_are_still_told_apart():
    state, _ = trained()
    hits = []
    for task in range(NUM_TASKS):
        for seed in range(10, 20):
            rows = jax.tree.map(np.concatenate, task_stream(task, seed))
            scores = np.asarray(scores_fn(state, rows["image"]))
            own = scores[:, task * PER_TASK : (task + 1) * PER_TASK]
            hits.append(task * PER_TASK + own.argmax(axis=1) == rows["label"])
    # 480 rows, classes 4 standard deviations apart; chance is 0.5, its sd 0.02.
    assert np.mean(hits) > 0.7


def test_seeds_side_by_side_equal_one_by_one():
    keys = jax.random.split(jax.random.key(1))
    streams = [whole_stream(seed) for seed in range(2)]
    starts = [weights(seed) for seed in range(2)]
    together = jax.jit(jax.vmap(train))(
        keys, *(jax.tree.map(lambda *x: np.stack(x), *xs) for xs in (starts, streams))
    )
    for seed in range(2):
        alone = jitted_train(keys[seed], starts[seed], streams[seed])
        picked = jax.tree.map(lambda x, i=seed: x[i], together)
        # float32 through some 24 updates, with sums in another order
        chex.assert_trees_all_close(picked, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rows_are_written_in_place():
    """The cost of a batch must not grow with the rows of a task."""
    size = 20_000
    problem = PROBLEM._replace(rows_per_task=size)
    learner = icarl.icarl(problem, HYPER)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(learner.init, key, jax.eval_shape(weights))
    batches = jax.eval_shape(lambda: task_stream(0))
    run = jax.jit(lm.observe_stream, static_argnums=0, donate_argnums=2)
    lowered = run.lower(learner, key, state, batches)
    hlo = compile_as_users_do(lowered).as_text()
    assert f"[{size}" in hlo
    assert copies_in_loops(hlo, size) == []


@pytest.mark.parametrize(
    ("problem", "hyper", "message"),
    [
        (PROBLEM, {"capacity": 5}, r"capacity: expected at least the 6 classes.* 5$"),
        (PROBLEM, {"capacity": None}, r"capacity: expected at least.* None$"),
        (PROBLEM._replace(rows_per_task=0), {}, r"rows_per_task: .*1, received 0"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(problem, hyper, message):
    given = {"learning_rate": 0.1, "capacity": 6, "distillation_weight": 1.0} | hyper
    with pytest.raises(UserError, match=message):
        icarl.icarl(problem, icarl.IcarlHyperparameters(**given))
