"""DER++: its three terms, and the logits that it stores."""

import jax
import jax.numpy as jnp
import numpy as np
from problems import softmax_loss

from experiments.methods import derpp
from experiments.methods.problem import Problem

D, Y, B, R = 4, 3, 5, 2


def logits_fn(weights, images):
    return images @ weights["w"]


loss_fn = softmax_loss(logits_fn)
PROBLEM = Problem(
    loss_fn,
    {
        "image": jax.ShapeDtypeStruct((D,), jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    },
    logits_fn,
    num_classes=Y,
)
HYPER = derpp.DerHyperparameters(
    glances=1,
    capacity=B,
    replay_size=R,
    acceptance="exact",
    learning_rate=0.1,
    logit_weight=0.7,
    label_weight=0.4,
)


def rows(seed, count=B):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(count, D)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, Y, count), jnp.int32),
    }


def weights(seed=0):
    values = np.random.default_rng(seed).normal(size=(D, Y))
    return {"w": jnp.asarray(values, jnp.float32)}


def cross_entropy(values, batch):
    logits = np.asarray(batch["image"], np.float64) @ np.asarray(
        values["w"], np.float64
    )
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -logs[np.arange(len(logs)), np.asarray(batch["label"])], logits


def test_loss_is_the_sum_of_its_three_terms():
    values, batch = weights(), rows(1)
    old = rows(2, 2 * R) | {"logits": jnp.ones((2 * R, Y)) * 0.3}
    mask, old_mask = jnp.arange(B) < 4, jnp.array([True, False, True, True])
    loss, distance = derpp.der_loss(PROBLEM, HYPER)(values, batch, mask, old, old_mask)
    own, _ = cross_entropy(values, batch)
    replayed, logits = cross_entropy(values, old)
    expected_distance = ((logits[0] - 0.3) ** 2).mean()
    expected = own[:4].mean() + 0.7 * expected_distance + 0.4 * replayed[2:].mean()
    # float32 sums of a dozen terms
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-5)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_rows_are_stored_with_the_logits_before_the_update():
    learner = derpp.derpp(PROBLEM, HYPER)
    start, batch = weights(), rows(3)
    state = learner.init(jax.random.key(0), start)
    state, _ = jax.jit(learner.observe)(jax.random.key(1), state, batch)
    assert not np.allclose(state.weights["w"], start["w"])
    stored = state.reservoir.rows
    np.testing.assert_array_equal(stored["label"], batch["label"])
    np.testing.assert_allclose(
        stored["logits"], logits_fn(start, batch["image"]), rtol=1e-6
    )


def test_without_old_rows_it_is_sgd():
    learner = derpp.derpp(PROBLEM, HYPER)
    start, batch = weights(), rows(3)
    state = learner.init(jax.random.key(0), start)
    state, info = jax.jit(learner.observe)(jax.random.key(1), state, batch)
    grads = jax.grad(lambda w: jnp.mean(loss_fn(w, batch)))(start)
    expected = start["w"] - 0.1 * grads["w"]
    np.testing.assert_allclose(state.weights["w"], expected, rtol=1e-5)
    assert info.logit_distance[0] == 0


def test_few_stored_rows_serve_both_terms():
    """With two rows stored and four draws asked for, each term has a valid row."""
    learner = derpp.derpp(PROBLEM, HYPER)
    state = learner.init(jax.random.key(0), weights())
    mask = jnp.arange(B) < 2
    observe = jax.jit(learner.observe)
    state, _ = observe(jax.random.key(1), state, rows(4), mask)
    state = state._replace(weights=weights(5))  # so that no stored logits are met
    _, info = observe(jax.random.key(2), state, rows(6), mask)
    assert info.logit_distance[0] > 0
