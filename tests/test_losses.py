"""Reductions that stay finite without rows, and the multi-head loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lamaml_jax import losses


def test_masked_mean_averages_the_valid_rows():
    values = jnp.array([1.0, 2.0, 6.0, 100.0])
    mask = jnp.array([True, True, True, False])
    assert losses.masked_mean(values, mask) == 3
    assert losses.masked_mean(values) == 27.25
    np.testing.assert_array_equal(
        jax.grad(losses.masked_mean)(
            jnp.ones(4), jnp.array([True, False, True, False])
        ),
        [0.5, 0.0, 0.5, 0.0],
    )


def test_masked_mean_of_nothing_is_zero_with_zero_gradient():
    with jax.debug_nans(True):
        value, grad = jax.jit(jax.value_and_grad(losses.masked_mean))(
            jnp.array([1.0, 2.0]), jnp.zeros(2, bool)
        )
    assert value == 0
    np.testing.assert_array_equal(grad, [0.0, 0.0])


@pytest.mark.parametrize("filler", [jnp.nan, jnp.inf])
def test_masked_values_do_not_reach_the_mean(filler):
    value, grad = jax.value_and_grad(losses.masked_mean)(
        jnp.array([1.0, filler]), jnp.array([True, False])
    )
    assert value == 1
    np.testing.assert_array_equal(grad, [1.0, 0.0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_masked_mean_keeps_its_dtype(dtype):
    values, mask = jnp.ones(3, dtype), jnp.array([True, True, False])
    with jax.numpy_dtype_promotion("strict"):
        assert losses.masked_mean(values, mask).dtype == dtype


def test_mean_loss_accepts_scalars_where_nothing_is_masked():
    weights, batch = jnp.float32(2.0), jnp.array([1.0, 3.0])
    per_example = lambda w, b: w * b
    scalar = lambda w, b: jnp.mean(w * b)
    assert losses.mean_loss(per_example, weights, batch) == 4
    assert losses.mean_loss(scalar, weights, batch) == 4
    mask = jnp.array([True, False])
    assert losses.mean_loss(per_example, weights, batch, mask) == 2
    with pytest.raises(ValueError, match="received a scalar"):
        losses.mean_loss(scalar, weights, batch, mask)


# Multi-head cross-entropy: nine outputs, three tasks of three -----------------------


@pytest.fixture(scope="module")
def heads():
    rng = np.random.default_rng(23)
    tasks = np.array([0, 2, 1, 2, 0])
    labels = 3 * tasks + np.array([0, 2, 1, 0, 2])
    logits = rng.normal(scale=3, size=(5, 9)).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(tasks)


def sliced_cross_entropy(logits, labels, tasks):
    """Losses and gradients in numpy, each row cut to the outputs of its own task."""
    found, grads = [], np.zeros_like(logits)
    for i, task in enumerate(np.asarray(tasks)):
        own, label = slice(3 * task, 3 * task + 3), int(labels[i]) - 3 * task
        exponentials = np.exp(np.asarray(logits[i, own], np.float64))
        probabilities = exponentials / exponentials.sum()
        found.append(-np.log(probabilities[label]))
        grads[i, own] = probabilities - np.eye(3)[label]
    return np.array(found), grads


def test_multi_head_cross_entropy_equals_that_of_the_sliced_outputs(heads):
    logits, labels, tasks = heads
    actual = losses.multi_head_cross_entropy(logits, labels, tasks, 3)
    expected, _ = sliced_cross_entropy(*map(np.asarray, heads))
    # float32, a sum of nine terms of which six are exactly 0.
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_outputs_of_other_tasks_get_zero_gradient(heads):
    logits, labels, tasks = heads

    @jax.jit
    @jax.grad
    def grads_of(x):
        return jnp.sum(losses.multi_head_cross_entropy(x, labels, tasks, 3))

    with jax.debug_nans(True):
        grads = np.asarray(grads_of(logits))
    own = np.arange(9)[None, :] // 3 == np.asarray(tasks)[:, None]
    assert not np.any(grads[~own])
    assert np.all(grads[own] != 0)
    # float32 softmax: rounding of probabilities of size 1.
    _, expected = sliced_cross_entropy(*map(np.asarray, heads))
    np.testing.assert_allclose(grads, expected, atol=1e-6)


def test_large_outputs_of_other_tasks_do_not_matter(heads):
    logits, labels, tasks = heads
    own = jnp.arange(9)[None, :] // 3 == tasks[:, None]
    flooded = jnp.where(own, logits, 1e30)
    np.testing.assert_array_equal(
        losses.multi_head_cross_entropy(flooded, labels, tasks, 3),
        losses.multi_head_cross_entropy(logits, labels, tasks, 3),
    )


def test_one_task_with_all_outputs_is_plain_cross_entropy(heads):
    logits, labels, _ = heads
    np.testing.assert_array_equal(
        losses.multi_head_cross_entropy(logits, labels, jnp.zeros(5, jnp.int32), 9),
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
    )


def test_the_last_head_may_be_shorter():
    logits = jnp.zeros((1, 5))
    loss = losses.multi_head_cross_entropy(logits, jnp.array([4]), jnp.array([1]), 3)
    # Two outputs are left; float32 rounding of a logarithm.
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats_stay_finite(dtype):
    logits = jnp.array([[1.0, 2.0, 3.0, 4.0]], dtype)
    loss, grads = jax.value_and_grad(
        lambda x: losses.multi_head_cross_entropy(
            x, jnp.array([1]), jnp.array([0]), 2
        ).sum()
    )(logits)
    assert loss.dtype == dtype
    # log(1 + e^-1) = 0.3133; bfloat16 holds 8 bits, and two operations round.
    np.testing.assert_allclose(float(loss), np.log1p(np.exp(-1)), rtol=0.02)
    assert not np.any(np.asarray(grads, np.float32)[0, 2:])


@pytest.mark.parametrize(
    ("classes_per_task", "error", "message"),
    [
        (0, ValueError, "classes_per_task: expected 1 <= classes_per_task"),
        (10, ValueError, "classes_per_task: expected at most the 9 outputs of logits"),
        (3.0, TypeError, "classes_per_task: expected an int, received float 3.0"),
    ],
)
def test_wrong_head_sizes_are_errors(heads, classes_per_task, error, message):
    with pytest.raises(error, match=message):
        losses.multi_head_cross_entropy(*heads, classes_per_task)


def test_rows_that_disagree_are_an_error(heads):
    logits, labels, tasks = heads
    with pytest.raises(ValueError, match="expected leading axes"):
        losses.multi_head_cross_entropy(logits, labels[:4], tasks, 3)


# Asymmetric cross-entropy: incoming rows of classes 1 and 3, replayed ones of 0 and 4.


@pytest.fixture
def asymmetric():
    rng = np.random.default_rng(41)
    labels, is_replayed = np.array([3, 0, 1, 4]), np.array([False, True, False, True])
    return rng.normal(scale=2, size=(4, 5)), labels, is_replayed


def cross_entropy_over(logits, label, classes):
    terms = np.exp(logits[classes])
    return np.log(terms.sum()) - logits[label]


@pytest.mark.usefixtures("x64")
def test_incoming_rows_compete_with_incoming_classes_and_replayed_with_all(asymmetric):
    logits, labels, is_replayed = asymmetric
    fn = jax.jit(losses.asymmetric_cross_entropy)
    expected = [
        cross_entropy_over(row, label, slice(None) if old else [1, 3])
        for row, label, old in zip(*asymmetric, strict=True)
    ]
    # float64: one sum of five exponentials and a logarithm.
    np.testing.assert_allclose(fn(*asymmetric), expected, rtol=1e-13)
    grads = jax.grad(lambda x: fn(x, labels, is_replayed)[~is_replayed].sum())(logits)
    assert not np.any(grads[:, [0, 2, 4]])
    assert np.all(grads[~is_replayed][:, [1, 3]] != 0)


def test_classes_of_masked_rows_do_not_compete(asymmetric):
    logits, labels, is_replayed = asymmetric
    mask = np.array([False, True, True, True])
    found = losses.asymmetric_cross_entropy(logits, labels, is_replayed, mask)
    # Class 1 is alone. The masked row has a loss of usual size: it cannot overflow.
    assert found[2] == 0
    assert 0 < found[0] < 20


def test_replayed_rows_alone_have_plain_cross_entropy(asymmetric):
    logits, labels, _ = map(jnp.asarray, asymmetric)
    np.testing.assert_array_equal(
        losses.asymmetric_cross_entropy(logits, labels, jnp.ones(4, bool)),
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
    )


def test_marks_of_replay_that_are_not_boolean_are_an_error(asymmetric):
    logits, labels, is_replayed = asymmetric
    with pytest.raises(TypeError, match="is_replayed: expected a boolean array"):
        losses.asymmetric_cross_entropy(logits, labels, is_replayed.astype(int))
    with pytest.raises(ValueError, match="expected leading axes"):
        losses.asymmetric_cross_entropy(logits, labels[:2], is_replayed)


def test_classes_to_cover_that_are_not_boolean_or_of_another_shape_are_an_error():
    logits, labels = jnp.zeros((2, 3)), jnp.array([0, 1])
    with pytest.raises(TypeError, match="classes: expected a boolean array"):
        losses.masked_cross_entropy(logits, labels, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"classes: expected shape \(2, 3\)"):
        losses.masked_cross_entropy(logits, labels, jnp.ones((2, 4), bool))


def test_accuracy_counts_valid_hits():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [5.0, 1.0], [0.0, 3.0]])
    labels = jnp.array([0, 0, 0, 1])
    assert losses.accuracy(logits, labels) == 0.75
    mask = jnp.array([True, True, False, False])
    assert losses.accuracy(logits, labels, mask) == 0.5
    assert losses.accuracy(logits, labels, jnp.zeros(4, bool)) == 0
    with pytest.raises(ValueError, match="expected leading axes"):
        losses.accuracy(logits, labels[:2])
