"""Real targets: their losses and metrics, from arrays to tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import experiments
from experiments.config import benchmarks, request
from experiments.data import own, targets
from experiments.report import columns, entries
from experiments.support.errors import UserError
from experiments.training import inputs
from experiments.training.evaluation import make_evaluate

pytestmark = pytest.mark.usefixtures("registries")
QUIET = Console(quiet=True)
D, Y = 6, 2
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(200, D))
TARGETS = 3 + ROWS @ RNG.normal(size=(D, Y))


def source(train=TARGETS[:150], test=TARGETS[150:]):
    return own.from_arrays(ROWS[:150], train, ROWS[150:], test)


def register(**fields):
    fields = {
        "loss": "squared_error",
        "metric": "r2",
        "stream": "permutations",
    } | fields
    fields = {"num_tasks": 2, "rows_per_task": 100} | fields
    return benchmarks.register("lines", source, **fields)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_floats_are_targets(shape):
    labels = RNG.normal(size=(200, *shape))
    found = source(labels[:150], labels[150:])
    width = shape[0] if shape else 1
    assert (found.num_classes, found.has_classes) == (width, False)
    assert found.train_labels.dtype == np.float32
    np.testing.assert_array_equal(
        found.test_labels, labels[150:].reshape(50, width).astype(np.float32)
    )


@pytest.mark.parametrize("name", ["squared_error", "absolute_error", "huber"])
def test_losses_are_means_over_outputs(name):
    outputs, expected = RNG.normal(size=(2, 5, Y), scale=3)
    error = outputs - expected
    by_hand = {
        "squared_error": error**2,
        "absolute_error": np.abs(error),
        "huber": np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5),
    }[name]
    found = targets.LOSSES[name].fn(jnp.asarray(outputs), jnp.asarray(expected))
    # float32: seven digits.
    np.testing.assert_allclose(found, by_hand.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("chunked", [False, True])
def test_r2_over_a_task_is_what_the_sums_of_squares_give(chunked, monkeypatch):
    from experiments.training import evaluation

    if chunked:  # 50 rows in parts of 16, the last of which is padded
        monkeypatch.setattr(evaluation, "_TEST_CHUNK", 16)
    made = register()
    (config,) = request.configs(
        request.make_request({"benchmark": "lines", "method": "er"})
    )
    data = benchmarks.load(made, (3,))
    stream = inputs.StreamArrays(
        *(jnp.asarray(getattr(data, name)[0]) for name in inputs.StreamArrays._fields)
    )
    images = (jnp.asarray(getattr(data, name)) for name in inputs.IMAGES)
    shared = inputs.Shared(*images, wanted=jnp.array([True, False]))
    weights = jnp.asarray(RNG.normal(size=(D, Y)), jnp.float32)
    evaluate = make_evaluate(
        config, inputs.DataForm((D,), Y, 1.0), lambda w, x: x @ w, lambda w: w
    )
    seen = inputs.Own(jnp.int32(3), stream, state=weights)
    found = jax.jit(evaluate)(shared, seen).accuracy
    outputs = data.test_images[:, data.pixel_maps[0, 0]] @ np.asarray(weights)
    residual = ((outputs - data.test_labels) ** 2).sum(axis=0)
    total = ((data.test_labels - data.test_labels.mean(axis=0)) ** 2).sum(axis=0)
    # float32 sums of 50 squares.
    np.testing.assert_allclose(found[0], np.mean(1 - residual / total), rtol=1e-5)
    assert np.isnan(found[1])


@pytest.mark.slow
def test_lines_are_learnt_and_the_table_says_by_what(tmp_path):
    register()
    runs = experiments.run(
        "lines",
        ["er", "lamaml"],
        seeds=2,
        out=tmp_path,
        console=QUIET,
        initializer="xavier",
    )
    for run in runs:
        assert (run.config["loss"], run.config["metric"]) == ("squared_error", "r2")
        # 0 is what a constant gives.
        assert (run.summary["learning_accuracy"] > 0.5).all()
    told = columns.meanings(entries.make_entries(runs))
    assert told["lines"] == "all figures are of r2, times 100, in accuracy's place"


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["online", "iid", "derpp", "mer", "gem", "agem", "ewc", "cmaml", "metabgd"],
)
def test_methods_that_do_not_need_classes_learn_targets(method, tmp_path):
    # Huber's gradients are bounded: rates are those for classes.
    register(loss="huber", metric="negative_squared_error")
    (run,) = experiments.run("lines", method, seeds=1, out=tmp_path, console=QUIET)
    assert (run.accuracy <= 0).all()


@pytest.mark.parametrize(
    ("fields", "asked", "message"),
    [
        ({}, {"method": "icarl"}, "'icarl' needs tasks with classes of their own"),
        (
            {},
            {"method": "er_ace", "setting": "agnostic"},
            "'er_ace' needs classes, and",
        ),
        (
            {},
            {"memory": "balanced"},
            "memory: balanced over classes, and squared_error",
        ),
        ({}, {"method": "cls_er"}, "'cls_er' needs classes, and"),
        ({"loss": "cubic_error"}, {}, "loss: there is no 'cubic_error'"),
        ({"metric": "r3"}, {}, "metric: there is no 'r3'; choose one of: acc"),
        ({"metric": "accuracy"}, {}, "one is of classes, the other of real numbers"),
    ],
)
def test_what_does_not_fit_targets_is_a_sentence(fields, asked, message):
    register(**fields)
    asked = {"benchmark": "lines", "method": "lamaml"} | asked
    with pytest.raises(UserError, match=message):
        request.configs(request.make_request(asked))


def test_targets_and_losses_have_to_agree():
    made = register(loss="cross_entropy", metric="accuracy")
    with pytest.raises(
        UserError, match="'cross_entropy' is of classes, and the labels"
    ):
        benchmarks.load(made, (0,))
    benchmarks.register(
        "digits-lines",
        "digits",
        stream="rotations",
        num_tasks=2,
        rows_per_task=20,
        loss="huber",
        metric="r2",
    )
    with pytest.raises(UserError, match="'huber' is of real numbers, and the labels"):
        benchmarks.load(benchmarks.get_benchmark("digits-lines"), (0,))
    made = register(stream="split", classes_per_task=1)
    with pytest.raises(UserError, match="classes_per_task: the targets are real"):
        benchmarks.load(made, (0,))


def test_a_tenth_of_the_rows_is_held_out_for_validation():
    held = benchmarks.load(register(rows_per_task=90), (0,), evaluate_on="validation")
    assert (len(held.train_labels), len(held.test_labels)) == (135, 15)
    together = np.concatenate([held.train_labels, held.test_labels])
    expected = source().train_labels
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(expected, axis=0))


def test_a_loss_and_a_metric_of_ones_own(tmp_path):
    experiments.targets.register_loss(
        "quartic", lambda outputs, y: jnp.mean((outputs - y) ** 4, axis=-1)
    )
    experiments.targets.register_metric(
        "within_one",
        lambda outputs, y, variance: jnp.all(jnp.abs(outputs - y) < 1, axis=-1),
        "the share of rows within 1",
    )
    register(loss="quartic", metric="within_one")
    (run,) = experiments.run("lines", "online", seeds=1, out=tmp_path, console=QUIET)
    assert ((run.accuracy >= 0) & (run.accuracy <= 1)).all()
