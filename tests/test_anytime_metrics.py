"""Metrics along a stream against numbers worked out by hand, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamaml_jax import metrics

pytestmark = pytest.mark.usefixtures("x64")

NAN = np.nan
# Two evaluations within each of three tasks; unseen tasks are never evaluated.
TASKS = np.array([0, 0, 1, 1, 2, 2])
ACCURACY = np.array(
    [
        [0.5, NAN, NAN],
        [0.9, NAN, NAN],
        [0.2, 0.1, NAN],
        [0.6, 0.8, NAN],
        [0.1, 0.4, 0.7],
        [0.3, 0.2, 0.6],
    ]
)
CURVE = [0.5, 0.9, 0.15, 0.7, 0.4, 1.1 / 3]
MINIMUM = (0.1 + 0.2) / 2
HAND = {
    "anytime_accuracy": CURVE,
    "average_anytime_accuracy": sum(CURVE) / 6,
    "minimum_accuracy": MINIMUM,
    "worst_case_accuracy": 0.6 / 3 + 2 / 3 * MINIMUM,
    # Task 0 falls from .9 to .2 and ends task 1 at .6; both old tasks together fall
    # from (.6 + .8) / 2 to (.1 + .4) / 2, which the last evaluation equals.
    "stability_gap": ([0.7, 0.45], [0.4, 0.0]),
}
# A few additions and divisions of fractions in float64.
ROUNDING = {"rtol": 1e-14, "atol": 1e-15}


@pytest.mark.parametrize("name", HAND)
def test_hand_computed_numbers(name):
    metric = getattr(metrics, name)
    for value in (metric(ACCURACY, TASKS), jax.jit(metric)(ACCURACY, TASKS)):
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(value))
        np.testing.assert_allclose(value, HAND[name], **ROUNDING)


@pytest.mark.parametrize("name", HAND)
def test_leading_axes_are_kept(name):
    metric = getattr(metrics, name)
    seeds = np.stack([ACCURACY, ACCURACY / 2])
    found = metric(seeds[None], TASKS)
    singly = jax.tree.map(
        lambda *x: jnp.stack(x), *(metric(one, TASKS) for one in seeds)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[None], **ROUNDING), found, singly
    )


def test_a_matrix_is_the_coarsest_record():
    matrix = ACCURACY[1::2].copy()
    np.testing.assert_allclose(
        metrics.anytime_accuracy(matrix, np.arange(3))[-1],
        metrics.retained_accuracy(matrix),
        **ROUNDING,
    )


def test_forgetting_counts_from_the_best_since_learning():
    matrix = np.array([[0.5, 0.9, NAN], [0.75, 0.5, NAN], [0.25, 0.625, 1.0]])
    expected = ((0.75 - 0.25) + (0.5 - 0.625)) / 2
    np.testing.assert_allclose(metrics.forgetting(matrix), expected, **ROUNDING)
    np.testing.assert_array_equal(metrics.forgetting(np.ones((2, 1, 1))), [0.0, 0.0])


def test_one_task_has_no_old_ones():
    accuracy, tasks = np.array([[0.25], [0.75]]), np.zeros(2, int)
    assert metrics.minimum_accuracy(accuracy, tasks) == 0
    assert metrics.worst_case_accuracy(accuracy, tasks) == 0.75
    assert metrics.average_anytime_accuracy(accuracy, tasks) == 0.5
    assert metrics.stability_gap(accuracy, tasks).drop.shape == (0,)


def test_a_stream_cut_short_counts_the_tasks_it_reached():
    found = metrics.worst_case_accuracy(ACCURACY[:4], TASKS[:4])
    np.testing.assert_allclose(found, 0.8 / 2 + 0.2 / 2, **ROUNDING)
    gap = metrics.stability_gap(ACCURACY[:4], TASKS[:4])
    np.testing.assert_allclose(gap, ([0.7, NAN], [0.4, NAN]), **ROUNDING)


@pytest.mark.parametrize("name", HAND)
@pytest.mark.parametrize(
    ("accuracy", "tasks", "error", "message"),
    [
        (np.ones(3), TASKS, ValueError, r"accuracy: expected shape \[..., N, T\]"),
        (np.ones((0, 3)), TASKS[:0], ValueError, r"received \(0, 3\)"),
        (np.ones((6, 3), int), TASKS, TypeError, "accuracy: expected floating"),
        (ACCURACY, TASKS[:2], ValueError, r"tasks: expected shape \(6,\), a task for"),
        (ACCURACY, TASKS / 2, TypeError, "tasks: expected integers, received float64"),
    ],
)
def test_wrong_records_are_errors(name, accuracy, tasks, error, message):
    with pytest.raises(error, match=message):
        getattr(metrics, name)(accuracy, tasks)
