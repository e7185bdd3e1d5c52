"""Continual-learning metrics against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamaml_jax import metrics

# Dyadic fractions: sums and halves are exact; only divisions by 3 round.
ACCURACY = jnp.array([[0.75, 0.25, 0.5], [0.5, 1.0, 0.125], [0.25, 0.5, 0.875]])
INITIAL = jnp.array([0.125, 0.5, 0.25])
ROUNDING = {"rtol": 1e-6}

HAND = [
    (metrics.retained_accuracy, (0.25 + 0.5 + 0.875) / 3),
    (metrics.learning_accuracy, (0.75 + 1.0 + 0.875) / 3),
    (metrics.backward_transfer_interference, (-0.5 - 0.5 + 0) / 3),
    (
        lambda a: metrics.backward_transfer_interference(a, exclude_last=True),
        (-0.5 - 0.5) / 2,
    ),
    (
        lambda a: metrics.forward_transfer(a, jnp.broadcast_to(INITIAL, a.shape[:-1])),
        ((0.25 - 0.5) + (0.125 - 0.25)) / 2,
    ),
]
NAMES = ["RA", "LA", "BTI / T", "BTI / (T - 1)", "FWT"]


@pytest.mark.parametrize(("metric", "expected"), HAND, ids=NAMES)
def test_hand_computed_numbers(metric, expected):
    value = metric(ACCURACY)
    assert value.shape == ()
    np.testing.assert_allclose(value, expected, **ROUNDING)
    np.testing.assert_allclose(jax.jit(metric)(ACCURACY), expected, **ROUNDING)
    np.testing.assert_allclose(metric(np.asarray(ACCURACY)), expected, **ROUNDING)


@pytest.mark.parametrize("metric", [metric for metric, _ in HAND], ids=NAMES)
def test_leading_axes_are_kept(metric):
    seeds = jnp.stack([ACCURACY, ACCURACY / 2, jnp.ones((3, 3))])
    values = metric(seeds)
    assert values.shape == (3,)
    np.testing.assert_allclose(values, [metric(one) for one in seeds], **ROUNDING)
    assert metric(seeds[None, ...]).shape == (1, 3)


def test_one_task():
    accuracy = jnp.array([[[0.5]], [[0.75]]])
    np.testing.assert_array_equal(metrics.retained_accuracy(accuracy), [0.5, 0.75])
    np.testing.assert_array_equal(metrics.learning_accuracy(accuracy), [0.5, 0.75])
    for exclude_last in (False, True):
        change = metrics.backward_transfer_interference(
            accuracy, exclude_last=exclude_last
        )
        np.testing.assert_array_equal(change, [0.0, 0.0])
    gain = metrics.forward_transfer(accuracy, jnp.zeros((2, 1)))
    np.testing.assert_array_equal(gain, [0.0, 0.0])


def test_the_two_divisors_differ_by_their_ratio():
    by_tasks = metrics.backward_transfer_interference(ACCURACY)
    without_last = metrics.backward_transfer_interference(ACCURACY, exclude_last=True)
    np.testing.assert_allclose(without_last / by_tasks, 3 / 2, **ROUNDING)


@pytest.mark.parametrize("metric", [metric for metric, _ in HAND[:4]], ids=NAMES[:4])
@pytest.mark.parametrize(
    ("accuracy", "error", "message"),
    [
        (jnp.ones((2, 3)), ValueError, r"expected shape \[..., T, T\], received"),
        (jnp.ones(3), ValueError, r"received \(3,\)"),
        (jnp.ones((0, 0)), ValueError, r"received \(0, 0\)"),
        (jnp.ones((2, 2), int), TypeError, "expected floating fractions, received int"),
    ],
)
def test_wrong_matrices_are_errors(metric, accuracy, error, message):
    with pytest.raises(error, match="accuracy: .*" + message):
        metric(accuracy)


def test_wrong_initial_accuracies_are_an_error():
    with pytest.raises(
        ValueError, match=r"initial_accuracy: expected shape \(3,\), received \(2,\)"
    ):
        metrics.forward_transfer(ACCURACY, jnp.ones(2))
