"""How much replay counts: replayed and incoming rows scored on their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import bent_loss as loss_fn
from problems import waves32

import lamaml_jax as lm

B, K, R, D = 4, 2, 3, 3
RATE = 0.3

# float32 against float32, the same operations in another order.
FUSED = {"rtol": 2e-5, "atol": 2e-6}


WEIGHTS = {"w": waves32((D,), 0.1)}
RESERVOIR = lm.make_reservoir(6, jax.ShapeDtypeStruct((D,), jnp.float32))
KEY = jax.random.key(3)
BATCH = waves32((B, D), 0.7)
ORDERS = {
    "first order": {"first_order": True},
    "recursion": {},
    "forward over reverse": {"inner_ad": "forward_over_reverse"},
    "definition": {"remat": False},
    "at the last step": {"objective": "last"},
}


def make(replay_weight, **options):
    """Updates are the weights' meta-gradient, with its sign turned."""
    return lm.lamaml_transform(
        loss_fn,
        step_size_init=RATE,
        weight_tx=optax.sgd(1.0),
        meta_tx=optax.identity(),
        inner_steps=K,
        reservoir=RESERVOIR,
        replay_size=R,
        replay_weight=replay_weight,
        **options,
    )


def filled(tx):
    state = tx.init(WEIGHTS)
    memory = RESERVOIR.add(
        jax.random.key(0), state.reservoir, waves32((5, D), 0.2), None
    )
    return state._replace(reservoir=memory)


def update(tx, state, batch=BATCH, **data):
    zeros = optax.tree.zeros_like(WEIGHTS)
    return tx.update(zeros, state, WEIGHTS, batch=batch, key=KEY, **data)


def by_hand(query_loss, memory, *, first_order=False, last=False, batch_mask=None):
    """Meta-loss and gradient, with ``query_loss(old losses, new losses)``."""
    replay_key, shuffle_key, _ = jax.random.split(KEY, 3)
    replayed, _ = RESERVOIR.sample(replay_key, memory, R)
    support, mask, *_ = lm.split_support(shuffle_key, BATCH, batch_mask, K)

    def meta_loss(weights):
        losses = []
        for rows, valid in zip(support, mask, strict=True):
            inner_loss = lambda w, rows=rows, valid=valid: lm.losses.masked_mean(
                loss_fn(w, rows), valid
            )
            grads = jax.grad(inner_loss)(weights)
            if first_order:
                grads = jax.lax.stop_gradient(grads)
            weights = jax.tree.map(lambda w, g: w - RATE * g, weights, grads)
            losses.append(
                query_loss(loss_fn(weights, replayed), loss_fn(weights, BATCH))
            )
        return losses[-1] if last else jnp.mean(jnp.stack(losses))

    return jax.jit(jax.value_and_grad(meta_loss))(WEIGHTS)


def mixed(share):
    return lambda old, new: share * jnp.mean(old) + (1 - share) * jnp.mean(new)


def assert_is(result, expected):
    updates, state = result
    loss, grads = expected
    np.testing.assert_allclose(state.info.meta_loss, loss, **FUSED)
    np.testing.assert_allclose(-updates["w"], grads["w"], **FUSED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDERS)
def test_each_half_is_scored_on_its_own(name):
    options = ORDERS[name]
    tx = make(0.5, **options)
    state = filled(tx)
    first_order, last = "first_order" in options, "objective" in options
    expected = by_hand(mixed(0.5), state.reservoir, first_order=first_order, last=last)
    assert_is(jax.jit(functools.partial(update, tx))(state), expected)


@pytest.mark.parametrize(
    "share", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1)), 0.8]
)
def test_the_share_is_that_of_replay_and_may_be_traced(share):
    state = filled(make(None))
    run = jax.jit(lambda share: update(make(share), state))
    assert_is(run(jnp.float32(share)), by_hand(mixed(share), state.reservoir))


def test_shares_side_by_side():
    shares = (0.2, 0.5, 0.9)
    state = filled(make(None))
    run = lambda share: update(make(share), state)
    together = jax.jit(jax.vmap(run))(jnp.array(shares))
    alone = [jax.jit(run)(jnp.float32(one)) for one in shares]
    for n, one in enumerate(alone):
        np.testing.assert_allclose(together[0]["w"][n], one[0]["w"], **FUSED)


def test_pooled_rows_are_the_default_and_count_alike():
    tx = make(None)
    state = filled(tx)
    pooled = lambda old, new: jnp.mean(jnp.concatenate([old, new]))
    result = jax.jit(functools.partial(update, tx))(state)
    assert_is(result, by_hand(pooled, state.reservoir))
    same_share = jax.jit(functools.partial(update, make(R / (R + B))))(state)
    np.testing.assert_allclose(same_share[0]["w"], result[0]["w"], **FUSED)
    default = lm.lamaml_transform(
        loss_fn,
        step_size_init=RATE,
        weight_tx=optax.sgd(1.0),
        meta_tx=optax.identity(),
        inner_steps=K,
        reservoir=RESERVOIR,
        replay_size=R,
    )
    np.testing.assert_array_equal(
        jax.jit(functools.partial(update, default))(state)[0]["w"], result[0]["w"]
    )


def test_an_empty_reservoir_leaves_the_incoming_rows_their_whole_weight():
    tx = make(0.9)
    state = tx.init(WEIGHTS)
    result = jax.jit(functools.partial(update, tx))(state)
    assert_is(result, by_hand(mixed(0.0), state.reservoir))


def test_masked_rows_are_left_out_of_the_mean_of_their_half():
    tx = make(0.5)
    state, mask = filled(tx), jnp.array([True, False, True, True])
    run = jax.jit(functools.partial(update, tx))
    result = run(state, batch_mask=mask)
    half = lambda old, new: (jnp.mean(old) + lm.losses.masked_mean(new, mask)) / 2
    assert_is(result, by_hand(half, state.reservoir, batch_mask=mask))
    # Without a valid incoming row only the replayed ones are left, with their share.
    nothing = run(state, batch_mask=jnp.zeros(B, bool))
    assert nothing[1].info.all_finite
    assert nothing[1].info.meta_loss > 0


def test_query_weights_of_explicit_data_are_those_of_a_weighted_sum():
    weights = jnp.array([0.1, 0.2, 0.3, 0.6])
    support = waves32((K, 2, D), 0.4)
    data = {"support": support, "query": BATCH, "query_weights": weights}
    tx = make(None)
    zeros = optax.tree.zeros_like(WEIGHTS)
    run = jax.jit(lambda data: tx.update(zeros, tx.init(WEIGHTS), WEIGHTS, **data))
    total = lambda params, batch: jnp.sum(weights * loss_fn(params, batch))
    first, second = (lm.adapt(loss_fn, WEIGHTS, RATE, support[:n])[0] for n in (1, 2))
    expected = (total(first, BATCH) + total(second, BATCH)) / 2
    np.testing.assert_allclose(run(data)[1].info.meta_loss, expected, **FUSED)
    mask = jnp.array([True, True, False, True])
    masked = run(data | {"query_mask": mask})
    zeroed = run(data | {"query_weights": jnp.where(mask, weights, 0)})
    np.testing.assert_allclose(masked[0]["w"], zeroed[0]["w"], **FUSED)


def test_weights_of_rows_add_up_to_one_and_skip_what_is_not_valid():
    old, new = jnp.array([True, False, True]), jnp.array([True, True, True, False])
    weights = lm.weigh_rows(old, new, 0.3)
    np.testing.assert_allclose(weights, [0.15, 0, 0.15, *[0.7 / 3] * 3, 0], rtol=1e-6)
    alone = lm.weigh_rows(jnp.zeros(2, bool), new, 0.3)
    np.testing.assert_allclose(alone, [0, 0, *[1 / 3] * 3, 0], rtol=1e-6)


MISTAKES = {
    "outside": (lambda: make(1.5), ValueError, r"replay_weight: .*\[0, 1\]"),
    "bool": (lambda: make(True), TypeError, "replay_weight: expected a number"),
    "vector": (lambda: make(jnp.ones(2)), ValueError, "replay_weight: .*a scalar"),
    "no reservoir": (
        lambda: lm.lamaml(loss_fn, replay_weight=0.5),
        ValueError,
        "reservoir: replay_weight needs it",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_weights_are_named(name):
    call, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        call()
