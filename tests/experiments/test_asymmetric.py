"""ER-ACE's loss as an option: what rows' losses cover, in every method that can."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import waves
from rich.console import Console

import experiments
import lamaml_jax as lm
from experiments import methods
from experiments.config import benchmarks, presets
from experiments.data import own
from experiments.methods import asymmetric
from experiments.methods.common import make_reservoir
from experiments.methods.problem import Problem
from experiments.support.errors import UserError

D, Y = 4, 6
KEY = jax.random.key(5)
EXACT = {"rtol": 1e-9, "atol": 1e-13}
OLD = {"image": waves((1, D), 0.4), "label": np.array([0])}
NEW = {"image": waves((3, D), 0.7), "label": np.array([4, 2, 4])}


def logits_fn(weights, images):
    return images @ weights


def loss_fn(weights, batch):
    logits = logits_fn(weights, batch["image"])
    return lm.losses.masked_cross_entropy(logits, batch["label"], batch["classes"])


@pytest.fixture
def problem():
    example = {
        "image": jax.ShapeDtypeStruct((D,), jnp.float64),
        "label": jax.ShapeDtypeStruct((), jnp.int64),
    }
    return Problem(
        loss_fn,
        example,
        logits_fn,
        num_tasks=3,
        num_classes=Y,
        classes_per_task=2,
        is_asymmetric=True,
    )


def test_losses_cover_the_classes_of_the_batch_and_never_those_of_padding():
    labels = jnp.array([4, 2, 0])
    covered = asymmetric.of_batch(labels, jnp.array([True, True, False]), Y)
    np.testing.assert_array_equal(covered[0], [0, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(covered[1], covered[0])
    # A padded row's own class stays, so that its loss is finite.
    np.testing.assert_array_equal(covered[2], [1, 0, 1, 0, 1, 0])


@pytest.mark.usefixtures("x64")
def test_classes_that_are_not_covered_have_no_part_in_a_loss():
    logits = jnp.asarray(waves((3, Y), 0.9))
    labels = jnp.asarray(NEW["label"])
    classes = asymmetric.of_batch(labels, None, Y)
    losses = lambda x: lm.losses.masked_cross_entropy(x, labels, classes)
    found = losses(logits)
    both = np.asarray(logits)[:, [2, 4]]
    expected = np.log(np.exp(both).sum(1)) - both[[0, 1, 2], [1, 0, 1]]
    np.testing.assert_allclose(found, expected, **EXACT)
    slope = jax.grad(lambda x: losses(x).sum())(logits)
    curve = jax.hessian(lambda x: losses(x).sum())(logits)
    assert np.isfinite(curve).all()
    np.testing.assert_array_equal(slope[:, [0, 1, 3, 5]], 0)


def after_two_batches(problem, name, **told):
    """Shows one row, which is all that the memory then holds, and a batch of others."""
    told = {"capacity": 1, "replay_size": 1, "glances": 1} | told
    (preset,) = presets.resolve("mnist-online", [name])
    hyper = dataclasses.replace(preset, **told)
    learner = methods.make_learner(name, problem, hyper)
    state = learner.init(KEY, jnp.asarray(waves((D, Y), 0.3)))
    state, _ = learner.observe(KEY, state, OLD)
    after, _ = learner.observe(KEY, state, NEW)
    return state.weights, after.weights


def reference(weights):
    """The query's losses by the library's function of whole batches."""
    images, labels = (
        np.concatenate([OLD[name], NEW[name]]) for name in ("image", "label")
    )
    is_old = jnp.arange(4) < 1
    logits = logits_fn(weights, images)
    return lm.losses.asymmetric_cross_entropy(logits, jnp.asarray(labels), is_old)


@pytest.mark.usefixtures("x64")
def test_er_descends_the_mean_of_losses_that_cover_what_they_should(problem):
    before, after = after_two_batches(problem, "er", learning_rate=0.3)
    slope = jax.grad(lambda w: reference(w).mean())(before)
    np.testing.assert_allclose(after, before - 0.3 * slope, **EXACT)


@pytest.mark.usefixtures("x64")
def test_cmaml_looks_ahead_by_incoming_classes_and_back_by_all(problem):
    before, after = after_two_batches(
        problem,
        "cmaml",
        batch_size=3,
        inner_steps=1,
        learning_rate=0.3,
        step_size_init=0.2,
        first_order=False,
        max_grad_norm=1e6,
    )

    def query(weights):
        inner = jax.grad(lambda w: reference(w)[1:].mean())(weights)
        return reference(weights - 0.2 * inner).mean()

    np.testing.assert_allclose(after, before - 0.3 * jax.grad(query)(before), **EXACT)


@pytest.mark.usefixtures("x64")
def test_a_memory_holds_what_it_holds_without(problem):
    plain = lm.make_reservoir(3, problem.example)
    marked = asymmetric.covering_all(plain, Y)
    chex.assert_trees_all_equal(marked.init(), plain.init())
    rows = NEW | {"classes": np.zeros((3, Y), bool)}
    state = marked.add(KEY, marked.init(), rows)
    chex.assert_trees_all_equal(state, plain.add(KEY, plain.init(), NEW))
    draws = jnp.arange(3)
    chex.assert_trees_all_equal(
        marked.insert(marked.init(), rows, draws),
        plain.insert(plain.init(), NEW, draws),
    )
    drawn, mask = marked.sample(KEY, state, 2)
    assert drawn.pop("classes").all()
    chex.assert_trees_all_equal((drawn, mask), plain.sample(KEY, state, 2))
    drawn, mask, after = marked.sample_and_add(KEY, KEY, state, 2, rows)
    assert drawn.pop("classes").all()
    expected = plain.sample_and_add(KEY, KEY, state, 2, NEW)
    chex.assert_trees_all_equal((drawn, mask, after), expected)


def averaged(problem, hyper):
    """Averaged descent on incoming and replayed rows, as a person may write it."""
    reservoir = make_reservoir(problem, hyper)

    def observe(key, state, batch, batch_mask=None, remember=True):
        old, mask = reservoir.sample(key, state.opt_state, hyper.replay_size)
        rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, old)
        mask = jnp.concatenate([batch_mask, mask])
        loss_fn = lambda w: lm.losses.mean_loss(problem.loss_fn, w, rows, mask)
        loss, grads = jax.value_and_grad(loss_fn)(state.weights)
        weights = jax.tree.map(lambda w, g: w - 0.1 * g, state.weights, grads)
        memory = reservoir.add(key, state.opt_state, batch, batch_mask & remember)
        return lm.LearnerState(weights, memory), {"loss": loss}

    init = lambda key, weights: lm.LearnerState(weights, reservoir.init())
    return lm.Learner(init, observe)


def clusters():
    rng = np.random.default_rng(0)
    labels = np.arange(240) % Y
    rows = rng.normal(size=(Y, D))[labels] + 0.3 * rng.normal(size=(240, D))
    return own.from_arrays(rows[:180], labels[:180], rows[180:], labels[180:])


ALL = sorted(
    name
    for name, method in methods.METHODS.items()
    if not method.needs_tasks and name != "er_ace"
)


@pytest.mark.slow
@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("method", [*ALL, "own"])
def test_every_method_without_task_ids_takes_it(method, tmp_path):
    methods.register("own", averaged, hyper={"capacity": 20, "replay_size": 4})
    benchmarks.register(
        "clusters",
        clusters,
        stream="split",
        num_tasks=3,
        rows_per_task=44,
        classes_per_task=2,
    )
    plain, found = (
        experiments.run(
            "clusters",
            method,
            setting="agnostic",
            seeds=1,
            out=tmp_path / loss,
            console=Console(quiet=True),
            loss=loss,
        )[0].arrays
        for loss in ("cross_entropy", "asymmetric_cross_entropy")
    )
    assert np.isfinite(found["accuracy"]).all()
    told = [name for name in found if name.startswith("info_")]
    assert any((found[name] != plain[name]).all() for name in told)


@pytest.mark.parametrize(
    ("method", "setting"), [("er", "aware"), ("er_ace", "agnostic")]
)
def test_heads_masked_by_task_and_er_ace_do_not_take_it(method, setting, tmp_path):
    with pytest.raises(UserError, match="loss: asymmetric_cross_entropy is about the"):
        experiments.run(
            "digits-rotations",
            method,
            setting=setting,
            out=tmp_path,
            loss="asymmetric_cross_entropy",
        )
