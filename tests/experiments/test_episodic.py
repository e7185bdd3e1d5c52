"""GEM and A-GEM: memory, projections, and whole runs against a loop of lists."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import quadprog
from compiling import compile_as_users_do
from hlo import copies_in_loops
from problems import linear_logits, softmax_loss

import lamaml_jax as lm
from experiments.methods import episodic
from experiments.methods.problem import Problem
from experiments.methods.projection import end_of, project, project_on_mean
from experiments.methods.ring import init_memory, store
from experiments.support.errors import UserError

# In 64 bits throughout; the stored updates are replayed in 32 bits too.
pytestmark = pytest.mark.usefixtures("x64")

LEARNERS = {"gem": episodic.gem, "agem": episodic.agem}
NUM_TASKS, MEMORY, BATCH, NUM_FEATURES, NUM_CLASSES = 4, 5, 3, 6, 3


loss_fn = softmax_loss(linear_logits)


def problem(num_tasks=NUM_TASKS, *, aware=True):
    example = {
        "image": jax.ShapeDtypeStruct((NUM_FEATURES,), jnp.result_type(float)),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    }
    if aware:
        example["task"] = jax.ShapeDtypeStruct((), jnp.int32)
    return Problem(loss_fn, example, num_tasks=num_tasks)


def hyper(**changes):
    values = {
        "glances": 2,
        "learning_rate": 0.5,
        "max_grad_norm": 0.7,
        "memory_per_task": MEMORY,
        "margin": 0.5,
    }
    return episodic.GemHyperparameters(**values | changes)


@functools.cache
def default_learner(name):
    """One for all tests, so that its run is compiled once."""
    return LEARNERS[name](problem(), hyper())


def initial_weights():
    rng = np.random.default_rng(0)
    return {"b": jnp.zeros(NUM_CLASSES), "w": jnp.asarray(rng.normal(size=(6, 3)) / 9)}


def stream(seed, tasks):
    """Batches of tasks that disagree: each permutes the classes in its own way."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(len(tasks), BATCH, NUM_FEATURES))
    classes = np.argmax(images[..., :NUM_CLASSES], axis=-1)
    labels = (classes * (1 + np.asarray(tasks) % 2)[:, None] + tasks[:, None]) % 3
    return {
        "image": jnp.asarray(images),
        "label": jnp.asarray(labels, jnp.int32),
        "task": jnp.asarray(np.broadcast_to(tasks[:, None], labels.shape), jnp.int32),
    }


TASKS = np.repeat(np.arange(NUM_TASKS), 4)


def run(learner, state, batches, masks, remember):
    def step(state, inputs):
        batch, mask, keep = inputs
        return learner.observe(jax.random.key(0), state, batch, mask, keep)

    return jax.lax.scan(step, state, (batches, masks, remember))


jitted_run = jax.jit(run, static_argnums=0)


def start(learner):
    return learner.init(jax.random.key(0), initial_weights())


def some_masks(seed, tasks):
    """Some rows masked, now and then all of them; the last visit to a row is later."""
    rng = np.random.default_rng(seed)
    masks = rng.random((len(tasks), BATCH)) < 0.8
    masks[len(tasks) // 2] = False
    return masks, rng.random(len(tasks)) < 0.8


def everything():
    return np.ones((len(TASKS), BATCH), bool), np.ones(len(TASKS), bool)


# A loop of lists, with numpy gradients and quadprog.


def loop_gradient(weights, rows, max_norm):
    """Loss and clipped gradient of softmax regression over rows (image, label)."""
    bias, kernel = weights
    images, labels = (np.array(part) for part in zip(*rows, strict=True))
    logits = images @ kernel + bias
    logits -= logits.max(axis=1, keepdims=True)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(shares[np.arange(len(labels)), labels]).mean()
    errors = (shares - np.eye(NUM_CLASSES)[labels]) / len(labels)
    flat = np.concatenate([errors.sum(axis=0), (images.T @ errors).ravel()])
    norm = np.sqrt(np.sum(flat**2))
    return loss, norm, flat * min(1, max_norm / (norm + 1e-6))


def loop_direction(name, gradient, past, margin):
    """What the method descends along, and how many constraints the gradient broke."""
    if not past:
        return gradient, 0
    past = np.array(past)
    if name == "agem":
        mean = past.mean(axis=0)
        product = gradient @ mean
        return gradient - min(product, 0) / (mean @ mean) * mean, int(product < 0)
    products = past @ gradient
    if (products >= 0).all():
        return gradient, 0
    size = len(past)
    matrix = past @ past.T + 1e-3 * np.eye(size)
    weights = quadprog.solve_qp(matrix, -products, np.eye(size), np.full(size, margin))
    return gradient + weights[0] @ past, int(np.sum(products < 0))


def loop_run(name, settings, batches, masks, remember):
    """Weights, memories (oldest row first) and info of every glance."""
    bias, kernel = (np.asarray(initial_weights()[k], np.float64) for k in "bw")
    memories, infos = {}, []
    images, labels, tasks = (np.asarray(batches[k]) for k in ("image", "label", "task"))
    for n in range(len(tasks)):
        task, valid = int(tasks[n, 0]), np.flatnonzero(masks[n])
        rows = [(images[n, i], labels[n, i]) for i in valid]
        if remember[n]:
            kept = memories.setdefault(task, []) + rows
            memories[task] = kept[-settings.memory_per_task :]
        for _ in range(settings.glances):
            if not rows:
                infos.append((0, 0, 0))
                continue
            weights, clip = (bias, kernel), settings.max_grad_norm
            past = [
                loop_gradient(weights, kept, clip)[2]
                for other, kept in memories.items()
                if other != task and kept
            ]
            loss, norm, gradient = loop_gradient(weights, rows, clip)
            step, broken = loop_direction(name, gradient, past, settings.margin)
            step = settings.learning_rate * step
            bias = bias - step[:NUM_CLASSES]
            kernel = kernel - step[NUM_CLASSES:].reshape(kernel.shape)
            infos.append((loss, norm, broken))
    return {"b": bias, "w": kernel}, memories, np.array(infos).T


def rows_in_order(memory, task):
    """A task's rows as (image, label), oldest first."""
    count, following = int(memory.num_stored[task]), int(memory.next_slot[task])
    size = memory.rows["label"].shape[1]
    slots = [(following - count + i) % size for i in range(count)]
    assert sorted(slots) == list(range(count)) or count == size
    assert np.all(np.asarray(memory.rows["task"])[task, slots] == task)
    return [
        tuple(np.asarray(memory.rows[k])[task, i] for k in ("image", "label"))
        for i in slots
    ]


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("tasks", [TASKS, TASKS[::-1], np.tile([2, 0, 3, 2], 4)])
def test_learner_equals_a_loop_of_lists(name, tasks):
    settings, learner = hyper(), default_learner(name)
    batches, (masks, remember) = stream(1, tasks), some_masks(2, tasks)
    state, info = jitted_run(learner, start(learner), batches, masks, remember)
    weights, memories, infos = loop_run(name, settings, batches, masks, remember)
    # Order of sums, and for GEM the roundings of a programme's solution, 1e-16 over its
    # least eigenvalue of 1e-3, over some 30 steps.
    chex.assert_trees_all_close(state.weights, weights, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(info.loss.ravel(), infos[0], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(info.grad_norm.ravel(), infos[1], rtol=1e-9, atol=1e-10)
    np.testing.assert_array_equal(info.violations.ravel(), infos[2])
    assert infos[2].max() >= (2 if name == "gem" else 1)  # the stream does oppose
    assert infos[1].max() > settings.max_grad_norm > infos[1].min()  # and clips some
    for task in range(NUM_TASKS):
        expected = memories.get(task, [])
        actual = rows_in_order(state.memory, task)
        chex.assert_trees_all_equal(actual, [tuple(row) for row in expected])
        empty = np.asarray(state.memory.rows["image"])[task, len(expected) :]
        np.testing.assert_array_equal(empty, 0)


def test_ring_keeps_the_last_rows_of_a_batch_larger_than_it():
    row = {"label": jax.ShapeDtypeStruct((), jnp.int32)}
    add = jax.jit(store)
    memory, expected, position = init_memory(2, 3, row), [0, 0, 0], 0
    rng = np.random.default_rng(5)
    for n in range(12):
        labels, mask = 100 * n + np.arange(1, 8), rng.random(7) < 0.7
        memory = add(memory, {"label": labels.astype(np.int32)}, mask, 1)
        for label in labels[mask]:
            expected[position] = label
            position = (position + 1) % 3
        np.testing.assert_array_equal(memory.rows["label"], [[0, 0, 0], expected])
    np.testing.assert_array_equal(memory.num_stored, [0, 3])


@pytest.mark.parametrize("name", LEARNERS)
def test_first_task_is_sgd_on_the_clipped_gradient(name):
    learner, settings = default_learner(name), hyper()
    batches = stream(3, 0 * TASKS)
    state, info = jitted_run(learner, start(learner), batches, *everything())
    tx = optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.sgd(settings.learning_rate),
    )

    @jax.jit
    def step(weights, rows):
        grads = jax.grad(lambda w: jnp.mean(loss_fn(w, rows)))(weights)
        updates, _ = tx.update(grads, tx.init(weights))
        return optax.apply_updates(weights, updates)

    weights = initial_weights()
    for n in range(len(TASKS)):
        for _ in range(settings.glances):
            weights = step(weights, jax.tree.map(lambda x, n=n: x[n], batches))
    assert np.all(info.violations == 0)
    assert info.grad_norm.max() > settings.max_grad_norm
    # optax does not add 1e-6 to the norm: 1.4e-6 of each step of 0.35, 32 times.
    chex.assert_trees_all_close(state.weights, weights, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", LEARNERS)
def test_masked_rows_change_nothing(name):
    learner, batches = default_learner(name), stream(4, TASKS)
    masks, keep = everything()
    masks[-4:, 1:], masks[5] = False, False
    other = batches | {"image": batches["image"].at[-4:, 1:].set(9.0).at[5].set(-9.0)}
    one, _ = jitted_run(learner, start(learner), batches, masks, keep)
    two, info = jitted_run(learner, start(learner), other, masks, keep)
    chex.assert_trees_all_equal(one, two)
    assert np.all(info.violations[5] == 0) and np.all(info.loss[5] == 0)


def test_later_epochs_are_constrained_but_not_stored():
    learner, batches = default_learner("gem"), stream(6, TASKS)
    masks, keep = everything()
    once, _ = jitted_run(learner, start(learner), batches, masks, keep)
    again, info = jitted_run(learner, once, batches, masks, ~keep)
    chex.assert_trees_all_equal(once.memory, again.memory)
    # Task 0, met again, has the other three for past tasks.
    assert 1 <= info.violations[:4].max() <= 3


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_projected_gradient_opposes_no_past_gradient(margin):
    rng = np.random.default_rng(7)
    for size, scale, end in ((40, 1.0, 10), (40, 5.0, 3), (40, 1.0, 9), (12, 1.0, 10)):
        is_past = (np.arange(10) != 6) & (np.arange(10) < end)
        past = rng.normal(size=(10, size)) * scale / np.sqrt(size)
        past[~is_past] = -100.0  # what is not past does not count
        gradient = -past[is_past].mean(axis=0) + rng.normal(size=size) / 9
        found = jax.jit(project)(gradient, past, is_past, margin)
        assert found.violations == np.sum(past[is_past] @ gradient < 0) > 0
        weights = np.asarray(found.multipliers)
        assert np.all(weights[is_past] >= margin) and not np.any(weights[~is_past])
        np.testing.assert_allclose(  # sums of ten terms
            found.gradient, gradient + weights @ past, rtol=0, atol=1e-11
        )
        # The conditions of the programme: G (g + G' v) >= -ridge v.
        products = past[is_past] @ np.asarray(found.gradient)
        assert np.all(products >= -1e-3 * weights[is_past] - 1e-11)


def test_mean_projection_ends_at_a_right_angle():
    rng = np.random.default_rng(8)
    reference = rng.normal(size=30)
    gradient = rng.normal(size=30) - reference
    found, violation = project_on_mean(gradient, reference)
    assert violation == 1
    assert abs(np.asarray(found) @ reference) < 1e-13  # 30 products of about 1
    across = gradient - gradient @ reference / (reference @ reference) * reference
    np.testing.assert_allclose(found, across, rtol=0, atol=1e-14)
    for kept in (reference, np.zeros(30)):
        found, violation = project_on_mean(-gradient, kept)
        np.testing.assert_array_equal(found, -gradient)
        assert violation == 0


@pytest.mark.parametrize("name", LEARNERS)
def test_vmap_over_seeds_equals_each_alone(name):
    """Also where the seeds have met different numbers of tasks."""
    learner = default_learner(name)
    orders = [TASKS, np.repeat([0, 1], 8), np.repeat(3, 16)]
    parts = [(stream(9, tasks), *some_masks(10, tasks)) for tasks in orders]
    many = jax.tree.map(lambda *x: jnp.stack(x), *parts)
    states = jax.vmap(lambda _: start(learner))(jnp.arange(3))
    together = jax.jit(jax.vmap(lambda state, data: run(learner, state, *data)))
    state, info = together(states, many)
    for i, part in enumerate(parts):
        alone, alone_info = jitted_run(learner, start(learner), *part)
        one, one_info = jax.tree.map(lambda x, i=i: x[i], (state, info))
        # Batched products sum in another order; see the loop of lists.
        chex.assert_trees_all_close(one, alone, rtol=1e-9, atol=1e-10)
        chex.assert_trees_all_close(one_info, alone_info, rtol=1e-9, atol=1e-10)
    assert np.all(info.violations[2] == 0) and np.any(info.violations[0] > 0)


def test_loops_end_with_the_last_past_task_of_any_seed():
    is_past = jnp.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], bool)
    assert [int(end_of(row)) for row in is_past] == [3, 0, 2]
    jaxpr = jax.make_jaxpr(jax.vmap(end_of, out_axes=None))(is_past)
    assert jaxpr.out_avals[0].shape == ()
    nested = jax.vmap(jax.vmap(end_of, out_axes=None), out_axes=None)
    assert int(nested(jnp.stack([is_past, is_past[:, ::-1]]))) == 5


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("is_mapped", [False, True])
def test_memory_and_gradients_stay_in_place(name, is_mapped):
    """No copy of a memory or of all gradients per step, task or glance."""
    num_tasks, size, num_seeds = 37, 1009, 2
    learner = LEARNERS[name](problem(num_tasks), hyper(memory_per_task=size))

    def stream_of_batches(state, batches):
        return lm.observe_stream(learner, jax.random.key(0), state, batches)

    state = jax.eval_shape(lambda: start(learner))
    batches = jax.eval_shape(lambda: stream(0, TASKS))
    prefix, fn = "", stream_of_batches
    if is_mapped:
        prefix, fn = f"{num_seeds},", jax.vmap(fn)
        state, batches = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((num_seeds, *x.shape), x.dtype),
            (state, batches),
        )
    lowered = jax.jit(fn, donate_argnums=0).lower(state, batches)
    hlo = compile_as_users_do(lowered).as_text()
    buffers = [f"{prefix}{num_tasks},{size}"]
    if name == "gem":
        buffers.append(f"{prefix}{num_tasks},{NUM_FEATURES},{NUM_CLASSES}")
    for buffer in buffers:
        assert f"[{buffer}" in hlo
        assert copies_in_loops(hlo, buffer) == []
        assert not re.search(rf"\[{buffer}[,\]][^=]* select\(", hlo)


@pytest.mark.parametrize(
    ("name", "changes", "aware", "message"),
    [
        ("gem", {}, False, "gem: needs task ids"),
        ("agem", {}, False, "agem: needs task ids"),
        ("gem", {"memory_per_task": 0}, True, "memory_per_task: .* received 0"),
    ],
)
def test_what_does_not_fit_is_refused(name, changes, aware, message):
    with pytest.raises(UserError, match=message):
        LEARNERS[name](problem(aware=aware), hyper(**changes))
