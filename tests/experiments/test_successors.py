"""Replay methods since 2019, each against its published formulas in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import waves

from experiments import methods
from experiments.config import presets
from experiments.methods import cls_er, lookahead, lor, mir, pocl, replay, upgd
from experiments.methods.problem import Problem
from experiments.support.errors import UserError

pytestmark = pytest.mark.usefixtures("x64")

D, Y, B, R = 4, 6, 3, 5
KEY = jax.random.key(11)
# float64 against float64: sums in another order, and a clip that divides by a norm.
EXACT = {"rtol": 1e-9, "atol": 1e-13}


def logits_fn(weights, images):
    return images @ weights


def loss_fn(weights, batch):
    logits = logits_fn(weights, batch["image"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


EXAMPLE = {
    "image": jax.ShapeDtypeStruct((D,), jnp.float64),
    "label": jax.ShapeDtypeStruct((), jnp.int32),
}
# Three tasks of two classes, one head over all, no task ids.
PROBLEM = Problem(
    loss_fn, EXAMPLE, logits_fn, num_tasks=3, num_classes=Y, classes_per_task=2
)
WEIGHTS = waves((D, Y), 2.5)


def hyper_of(name, **values):
    (preset,) = presets.resolve("mnist-online", [name])
    plain = {"capacity": 8, "replay_size": R, "max_grad_norm": 1e9, "glances": 1}
    known = {k: v for k, v in plain.items() if getattr(preset, k) is not None}
    return dataclasses.replace(preset, **known | values)


def rows(labels, phase=3.0):
    labels = np.asarray(labels, np.int32)
    return {"image": 2 * waves((len(labels), D), phase), "label": labels}


# Replayed rows come first, of tasks 0, 0, 1, 1 and 2; the batch is of task 2.
ROWS = rows([0, 1, 2, 3, 4, 5, 4, 5])
MASK = np.arange(R + B) != 3


def mean_loss(weights, of_rows, mask=MASK, at=ROWS):
    return jnp.sum(jnp.where(mask & of_rows, loss_fn(weights, at), 0)) / jnp.sum(
        mask & of_rows
    )


def step(method, hyper, key=KEY, at=ROWS, mask=MASK):
    tx, update = method.make_update(PROBLEM, hyper)
    weights = jnp.asarray(WEIGHTS)
    return jax.jit(update)(key, weights, tx.init(weights), at, mask)


EVERY = np.ones(R + B, bool)
INCOMING = np.arange(R + B) >= R


# LOR ---------------------------------------------------------------------------------


def test_lor_descends_the_losses_ahead_by_their_softmax():
    hyper = hyper_of("lor", directions=3, temperature=0.2, concentration=0.7)
    moved, _, info = step(lor, hyper)
    shares = np.asarray(jax.random.dirichlet(KEY, jnp.full(2, 0.7), (3,)))
    new, old = (
        np.asarray(jax.grad(mean_loss)(WEIGHTS, part)) for part in (INCOMING, ~INCOMING)
    )
    points = [WEIGHTS - hyper.step_size_init * (s * new + t * old) for s, t in shares]
    losses = np.array([mean_loss(point, EVERY) for point in points])
    parts = np.exp(losses / 0.2) / np.exp(losses / 0.2).sum()
    grads = [np.asarray(jax.grad(mean_loss)(point, EVERY)) for point in points]
    slope = sum(p * g for p, g in zip(parts, grads, strict=True))
    np.testing.assert_allclose(moved, WEIGHTS - hyper.learning_rate * slope, **EXACT)
    np.testing.assert_allclose(info.loss_spread, np.ptp(losses), **EXACT)
    value = 0.2 * np.log(np.mean(np.exp(losses / 0.2)))
    np.testing.assert_allclose(info.loss, value, **EXACT)


@pytest.mark.slow
def test_lor_draws_new_directions_with_each_key():
    hyper = hyper_of("lor")
    first, again, other = (
        step(lor, hyper, key)[0] for key in (KEY, KEY, jax.random.key(12))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


# POCL --------------------------------------------------------------------------------


def test_rows_are_divided_among_past_tasks_and_the_current_one():
    tasks = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    past, current = pocl.split_tasks(tasks, MASK, R, 3)
    expected = [[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(past, np.array(expected, bool))
    # The replayed row of the current task is one of its rows.
    np.testing.assert_array_equal(current, np.arange(R + B) >= 4)


def test_pocl_adds_the_shortest_mean_of_past_hypergradients_to_the_current_one():
    hyper = hyper_of("pocl", step_size_init=0.2, inner_clip=0.25)
    moved, _, info = step(pocl, hyper)

    def inner_loss(weights, part, task):  # of a task's own two classes
        logits = jnp.asarray(ROWS["image"]) @ weights[:, 2 * task : 2 * task + 2]
        own = jnp.clip(ROWS["label"] - 2 * task, 0, 1)
        losses = jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(R + B), own]
        return jnp.sum(jnp.where(part, losses, 0)) / jnp.sum(part)

    def hypergradient(part, task):
        def ahead(weights):
            grad = jax.grad(inner_loss)(weights, part & MASK, task)
            return mean_loss(weights - 0.2 * jnp.clip(grad, -0.25, 0.25), EVERY)

        return np.asarray(jax.grad(ahead)(WEIGHTS))

    labels = ROWS["label"] // 2
    first, second, current = (hypergradient(labels == task, task) for task in range(3))
    # The shortest point between two vectors.
    gap = first - second
    share = np.clip((-second * gap).sum() / (gap**2).sum(), 0, 1)
    slope = share * first + (1 - share) * second + current
    np.testing.assert_allclose(moved, WEIGHTS - hyper.learning_rate * slope, **EXACT)
    assert info.num_past == 2 and 0 < share < 1
    np.testing.assert_allclose(info.largest_share, max(share, 1 - share), **EXACT)


def test_on_the_first_task_pocl_descends_its_hypergradient_alone():
    hyper = hyper_of("pocl", first_order=True, inner_clip=1e9)
    of_one = rows([0, 1, 0, 1, 0, 1, 0, 1])
    moved, _, info = step(pocl, hyper, at=of_one, mask=EVERY)
    two = lambda w: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            of_one["image"] @ w[:, :2], of_one["label"]
        )
    )
    ahead = WEIGHTS - hyper.step_size_init * jax.grad(two)(WEIGHTS)
    slope = jax.grad(lambda w: mean_loss(w, EVERY, EVERY, of_one))(ahead)
    np.testing.assert_allclose(moved, WEIGHTS - hyper.learning_rate * slope, **EXACT)
    assert info.num_past == 0 and info.largest_share == 0


def test_pocl_takes_task_ids_where_there_are_some_and_says_where_it_needs_them():
    shared = PROBLEM._replace(classes_per_task=None)
    with pytest.raises(UserError, match=r"'pocl'.*needs task ids"):
        methods.make_learner("pocl", shared, hyper_of("pocl"))
    told = EXAMPLE | {"task": jax.ShapeDtypeStruct((), jnp.int32)}
    aware = shared._replace(example=told)
    tasks = np.array([5, 7])
    assert pocl.make_task_fn(aware)({"task": tasks}) is tasks


@pytest.mark.parametrize("rows_of_inner_step", [False, True])
def test_a_loss_of_pocl_passes_the_network_once(rows_of_inner_step):
    passes = []

    def logits_fn(weights, images):
        passes.append(images)
        return PROBLEM.logits_fn(weights, images)

    counting = PROBLEM._replace(
        logits_fn=logits_fn,
        loss_fn=lambda weights, batch: optax.softmax_cross_entropy_with_integer_labels(
            logits_fn(weights, batch["image"]), batch["label"]
        ),
    )
    batch = rows([0, 1, 2])
    if rows_of_inner_step:
        batch |= {pocl.INNER: jnp.ones(3, bool)}
    pocl.make_loss(counting)(jnp.asarray(WEIGHTS), batch)
    assert len(passes) == 1


def test_pocl_costs_a_query_for_each_task_seen():
    hyper = hyper_of("pocl", batch_size=10, replay_size=10)
    # Inner steps of 20 rows in second order; of 3 tasks, 2 are seen on average.
    count = methods.METHODS["pocl"].cost(PROBLEM, hyper).gradient_evaluations
    assert count == pytest.approx((3 * 20 + 2 * 20) / 10)


# CLS-ER ------------------------------------------------------------------------------


def test_cls_er_holds_each_row_to_the_average_that_knows_its_label_better():
    hyper = hyper_of("cls_er", consistency_weight=0.7)
    plastic, stable = waves((D, Y), 1.1), waves((D, Y), 2.2)
    loss, (distance, share) = cls_er.make_loss(PROBLEM, hyper)(
        WEIGHTS, plastic, stable, ROWS, MASK
    )
    squares, chosen = [], []
    for n in np.flatnonzero(MASK[:R]):
        x, label = ROWS["image"][n], ROWS["label"][n]
        own, *both = (x @ w for w in (WEIGHTS, plastic, stable))
        known = [(np.exp(z) / np.exp(z).sum())[label] for z in both]
        chosen.append(known[1] > known[0])
        squares.append(((own - both[int(chosen[-1])]) ** 2).mean())
    assert 0 < np.mean(chosen) < 1
    np.testing.assert_allclose(share, np.mean(chosen), **EXACT)
    np.testing.assert_allclose(distance, np.mean(squares), **EXACT)
    expected = mean_loss(WEIGHTS, EVERY) + 0.7 * np.mean(squares)
    np.testing.assert_allclose(loss, expected, **EXACT)


def test_an_average_starts_as_a_mean_and_then_forgets():
    at = [waves((3,), n) for n in range(6)]
    average = at[0]
    for n in range(1, 6):
        average = cls_er.follow(KEY, average, at[n], jnp.int32(n), 0.75, 1.0)
        if n <= 3:  # 1 - 1 / (n + 1) is at most 0.75
            np.testing.assert_allclose(average, np.mean(at[: n + 1], axis=0), **EXACT)
            kept = average
    expected = 0.75 * (0.75 * kept + 0.25 * at[4]) + 0.25 * at[5]
    np.testing.assert_allclose(average, expected, **EXACT)


def test_an_average_moves_with_its_probability():
    keys = jax.random.split(KEY, 4000)
    follow = lambda key: cls_er.follow(key, jnp.zeros(1), jnp.ones(1), 9, 0.5, 0.3)
    moved = jax.vmap(follow)(keys)[:, 0]
    assert set(np.unique(moved)) == {0.0, 0.5}
    # Five standard errors of a proportion.
    assert abs(np.mean(moved > 0) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 4000)


def test_cls_er_predicts_with_the_stable_average():
    hyper = hyper_of("cls_er", stable_rate=0.0)
    learner = methods.make_learner("cls_er", PROBLEM, hyper)
    start = learner.init(KEY, jnp.asarray(WEIGHTS))
    state, _ = jax.jit(learner.observe)(KEY, start, rows([0, 1, 0]))
    assert not np.array_equal(state.weights, WEIGHTS)
    # The first move leaves an average half way between.
    np.testing.assert_allclose(state.plastic, (WEIGHTS + state.weights) / 2, **EXACT)
    predicting = methods.METHODS["cls_er"].predicting_weights
    np.testing.assert_array_equal(predicting(state), WEIGHTS)


# MIR ---------------------------------------------------------------------------------


def test_mir_replays_the_rows_that_the_batch_would_harm():
    hyper = hyper_of("mir", candidates=R, replay_size=2, learning_rate=0.5)
    moved, _, info = step(mir, hyper)
    new = np.asarray(jax.grad(mean_loss)(WEIGHTS, INCOMING))
    rise = loss_fn(WEIGHTS - 0.5 * new, ROWS) - loss_fn(WEIGHTS, ROWS)
    order = np.argsort(-np.where(MASK & ~INCOMING, rise, -np.inf))
    chosen = np.isin(np.arange(R + B), order[:2])
    slope = new + np.asarray(jax.grad(mean_loss)(WEIGHTS, chosen))
    np.testing.assert_allclose(moved, WEIGHTS - 0.5 * slope, **EXACT)
    expected = mean_loss(WEIGHTS, INCOMING) + mean_loss(WEIGHTS, chosen)
    np.testing.assert_allclose(info.loss, expected, **EXACT)


def test_mir_replays_fewer_rows_while_fewer_are_stored():
    hyper = hyper_of("mir", candidates=R, replay_size=2, learning_rate=0.5)
    mask = np.isin(np.arange(R + B), [1, 5, 6, 7])
    moved, _, _ = step(mir, hyper, mask=mask)
    slope = sum(
        jax.grad(mean_loss)(WEIGHTS, part, mask) for part in (INCOMING, ~INCOMING)
    )
    np.testing.assert_allclose(moved, WEIGHTS - 0.5 * slope, **EXACT)
    nothing, _, _ = step(mir, hyper, mask=INCOMING)
    alone = jax.grad(mean_loss)(WEIGHTS, INCOMING)
    np.testing.assert_allclose(nothing, WEIGHTS - 0.5 * alone, **EXACT)


def test_mir_needs_as_many_candidates_as_it_replays():
    hyper = hyper_of("mir", candidates=R - 1)
    with pytest.raises(UserError, match=f"candidates: expected at least the {R} rows"):
        methods.make_learner("mir", PROBLEM, hyper)


# UPGD --------------------------------------------------------------------------------


def test_upgd_takes_the_published_step():
    hyper = hyper_of("upgd", noise_scale=0.0, weight_decay=0.03, learning_rate=0.2)
    moved, _, info = step(upgd, hyper)
    slope = np.asarray(jax.grad(mean_loss)(WEIGHTS, EVERY))
    worth = -slope * WEIGHTS
    free = 1 - 1 / (1 + np.exp(-worth / worth.max()))
    expected = WEIGHTS * (1 - 0.2 * 0.03) - 0.2 * slope * free
    np.testing.assert_allclose(moved, expected, **EXACT)
    np.testing.assert_allclose(info.loss, mean_loss(WEIGHTS, EVERY), **EXACT)


def test_upgd_keeps_no_rows_and_perturbs_each_seed_in_its_own_way():
    learner = methods.make_learner("upgd", PROBLEM, hyper_of("upgd"))
    state = learner.init(KEY, jnp.asarray(WEIGHTS))
    assert isinstance(state, replay.SgdState) and state.reservoir is None
    keys = jax.random.split(KEY, 2)
    observe = lambda key: learner.observe(key, state, rows([0, 1, 0]))[0].weights
    first, second = jax.vmap(observe)(keys)
    assert not np.isclose(first, second).any()


# VR-MCL ------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [None, 0.35])
def test_the_weights_of_vr_mcl_move_at_their_own_rate_if_it_has_one(rate):
    hyper = hyper_of("vrmcl", inner_steps=3, learning_rate=rate)
    learner = lookahead.vrmcl(PROBLEM, hyper)
    # The first update is that of the plain meta-gradient.
    make = lookahead.lamaml if rate is None else lookahead.sync
    plain = make(PROBLEM, hyper)
    results = [
        jax.jit(each.observe)(
            KEY, each.init(KEY, jnp.asarray(WEIGHTS)), rows([0, 1, 0])
        )
        for each in (learner, plain)
    ]
    np.testing.assert_allclose(results[0][0].weights, results[1][0].weights, **EXACT)
