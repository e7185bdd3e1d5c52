"""MER steps on single rows and interpolates within and across rounds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compile_as_users_do
from hlo import copies_in_loops
from problems import linear_logits, softmax_loss

import lamaml_jax as lm
from experiments.methods.mer import MerHyperparameters, interpolate, make_round, mer
from experiments.methods.problem import Problem
from experiments.support.errors import UserError

NUM_FEATURES, NUM_CLASSES, BATCH = 6, 3, 4


loss_fn = softmax_loss(linear_logits)


def problem(dtype=jnp.float32):
    example = {
        "image": jax.ShapeDtypeStruct((NUM_FEATURES,), dtype),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
    }
    return Problem(loss_fn, example)


def hyper(**changes):
    values = {
        "capacity": 20,
        "replay_size": 3,
        "acceptance": "exact",
        "learning_rate": 0.2,
        "max_grad_norm": 0.9,
        "rounds": 2,
        "within_rate": 0.3,
        "across_rate": 0.7,
    }
    return MerHyperparameters(**values | changes)


LEARNER = mer(problem(), hyper())
jitted_observe = jax.jit(LEARNER.observe)
EVERY = jnp.ones(BATCH, bool)
run = jax.jit(lm.observe_stream, static_argnums=0)


def weights(dtype=jnp.float32):
    return {
        "w": jnp.zeros((NUM_FEATURES, NUM_CLASSES), dtype),
        "b": jnp.zeros(NUM_CLASSES, dtype),
    }


def start(learner=LEARNER):
    return learner.init(jax.random.key(0), weights())


def observe(seed, state, rows, mask=EVERY, remember=True):
    return jitted_observe(jax.random.key(seed), state, rows, mask, remember)


def stream(seed, num_batches=1):
    images = np.random.default_rng(seed).normal(size=(num_batches, BATCH, NUM_FEATURES))
    labels = np.argmax(images[..., :NUM_CLASSES], axis=-1)
    return {"image": jnp.float32(images), "label": jnp.int32(labels)}


def batch(seed):
    return jax.tree.map(lambda x: x[0], stream(seed))


def loop_step(parameters, image, label, settings):
    """One step of softmax regression; was its gradient clipped?"""
    kernel, bias = parameters
    shares = np.exp(image @ kernel + bias)
    error = shares / shares.sum() - np.eye(NUM_CLASSES)[label]
    norm = np.sqrt(np.sum(error**2) * (1 + np.sum(image**2)))
    rate = settings.learning_rate * min(1, settings.max_grad_norm / (norm + 1e-6))
    return (kernel - rate * np.outer(image, error), bias - rate * error), norm


def loop_row(parameters, rows, settings):
    """All rounds of the first of ``rows``, replaying the rest; norms of its steps."""
    norms, beginning = [], parameters
    for _ in range(settings.rounds):
        before = parameters
        for n, (image, label) in enumerate(rows):
            parameters, norm = loop_step(parameters, image, label, settings)
            norms += [norm] if n == 0 else []
        parameters = [
            a + settings.within_rate * (b - a)
            for a, b in zip(before, parameters, strict=True)
        ]
    return [
        a + settings.across_rate * (b - a)
        for a, b in zip(beginning, parameters, strict=True)
    ], norms


@pytest.mark.usefixtures("x64")
def test_update_equals_a_loop_over_rows_rounds_and_steps():
    """Copies of one row leave nothing to chance: what is replayed is known."""
    settings = hyper()
    learner = mer(problem(jnp.float64), settings)
    rng = np.random.default_rng(1)
    known, new = rng.normal(size=(2, NUM_FEATURES))
    new *= 0.2  # so that its gradients are not clipped
    images = np.stack([known] * 5 + [new])
    labels = np.array([1] * 5 + [2], np.int32)
    parameters, norms = [np.zeros((NUM_FEATURES, NUM_CLASSES)), np.zeros(3)], []
    for n in range(6):
        replayed = [(known, 1)] * min(n, settings.replay_size)
        parameters, row_norms = loop_row(
            parameters, [(images[n], labels[n]), *replayed], settings
        )
        norms.append(row_norms)
    state = learner.init(jax.random.key(0), weights(jnp.float64))
    rows = {"image": images, "label": labels}
    state, info = jax.jit(learner.observe)(jax.random.key(1), state, rows)
    # Order of sums alone, 48 steps of 1e-16 each.
    np.testing.assert_allclose(state.weights["w"], parameters[0], rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.weights["b"], parameters[1], rtol=0, atol=1e-13)
    np.testing.assert_allclose(info.grad_norm, np.mean(norms, axis=0), rtol=1e-12)
    assert np.min(norms) < settings.max_grad_norm < np.max(norms)


def test_learns_a_linear_problem():
    batches = stream(2, 30)
    state, info = run(LEARNER, jax.random.key(3), start(), batches)
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
    before, after = (
        float(jnp.mean(loss_fn(w, rows))) for w in (weights(), state.weights)
    )
    # A round moves 0.3 of four steps of 0.2: log 3 comes down to about 0.4 of it.
    assert after < 0.6 * before
    assert np.isfinite(jax.tree.leaves(info)).all()
    assert all(leaf.shape == (30, 2) for leaf in info)
    last = [leaf[-10:].mean() for leaf in (info.loss, info.replay_loss)]
    assert max(last) < 0.8 * before


def test_every_round_draws_its_own_replay():
    learner = mer(problem(), hyper(learning_rate=0.0, replay_size=1))
    known = {"w": jnp.eye(NUM_FEATURES, NUM_CLASSES), "b": jnp.zeros(NUM_CLASSES)}
    state = learner.init(jax.random.key(0), known)
    infos = run(learner, jax.random.key(4), state, stream(5, 20))[1]
    chex.assert_trees_all_equal(infos.loss[:, 0], infos.loss[:, 1])
    # With weights at rest a replay loss tells which rows were drawn for the batch.
    assert np.mean(infos.replay_loss[1:, 0] != infos.replay_loss[1:, 1]) > 0.9


def test_masked_rows_change_nothing():
    state, _ = observe(0, start(), batch(6))
    rows, mask = batch(7), jnp.array([True, False, True, False])
    other = rows | {"image": jnp.where(mask[:, None], rows["image"], 9.0)}
    one, two = (observe(1, state, some, mask) for some in (rows, other))
    chex.assert_trees_all_equal(one, two)
    assert one[0].reservoir.num_seen == BATCH + 2
    nothing, info = observe(2, state, rows, ~EVERY)
    chex.assert_trees_all_equal(nothing, state)
    assert np.all(np.asarray(info) == 0)


def test_rows_are_offered_once_and_only_if_remembered():
    kept, _ = observe(1, start(), batch(8))
    unseen, info = observe(1, start(), batch(8), remember=False)
    assert (kept.reservoir.num_seen, unseen.reservoir.num_seen) == (BATCH, 0)
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x[:BATCH], kept.reservoir.rows), batch(8)
    )
    assert np.all(info.replay_loss == 0) and np.any(unseen.weights["w"] != 0)


def test_vmap_over_seeds_equals_each_alone():
    keys, rows = jax.random.split(jax.random.key(9), 2), batch(9)
    state, _ = observe(0, start(), batch(10))
    together = jax.jit(
        jax.vmap(lambda key: LEARNER.observe(key, state, rows, EVERY, True))
    )(keys)
    for i, key in enumerate(keys):
        # Batched products sum in another order: some 1e-7 a step, 32 steps.
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], together),
            jitted_observe(key, state, rows, EVERY, True),
            rtol=0,
            atol=5e-6,
        )


@pytest.mark.slow
@pytest.mark.parametrize("is_mapped", [False, True])
def test_reservoir_stays_in_place(is_mapped):
    """The cost of a row must not grow with the capacity."""
    capacity = 20_011
    learner = mer(problem(), hyper(capacity=capacity))
    state = jax.eval_shape(lambda: start(learner))
    prefix, fn = (
        "",
        lambda state: lm.observe_stream(
            learner, jax.random.key(0), state, stream(0, 2)
        ),
    )
    if is_mapped:
        prefix, fn = "2,", jax.vmap(fn)
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), state
        )
    lowered = jax.jit(fn, donate_argnums=0).lower(state)
    hlo = compile_as_users_do(lowered).as_text()
    assert f"[{prefix}{capacity}" in hlo
    assert copies_in_loops(hlo, f"{prefix}{capacity}") == []


def test_round_keeps_dtypes_of_mixed_precision():
    mixed = {"w": weights()["w"].astype(jnp.bfloat16), "b": weights()["b"]}
    round_fn = make_round(loss_fn, hyper())
    end, _ = round_fn(mixed, batch(1), jnp.ones(BATCH, bool))
    assert [leaf.dtype for leaf in jax.tree.leaves(end)] == ["float32", "bfloat16"]


def test_interpolation_of_equal_weights_is_exact():
    same = {"w": jnp.float32(np.random.default_rng(0).normal(size=100))}
    chex.assert_trees_all_equal(interpolate(same, same, 0.1), same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds: .* received 0"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        mer(problem(), hyper(**changes))
