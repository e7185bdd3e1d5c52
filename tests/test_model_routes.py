"""A key inside the loss: what draws what, and when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, assert_equal, rectified_step, squares, waves32

import lamaml_jax as lm

B, K, R, D, Y = 4, 2, 3, 3, 2
RATE = 0.3

# float32 against float32, the same operations in another order: a few units of 1e-7
# per operation, and some tens of operations in a row.
FUSED = {"rtol": 2e-5, "atol": 2e-6}


def make_rows(phase, *leading):
    return waves32((*leading, D), phase), waves32((*leading, Y), phase + 0.5)


def make_reservoir():
    example = (
        jax.ShapeDtypeStruct((D,), jnp.float32),
        jax.ShapeDtypeStruct((Y,), jnp.float32),
    )
    return lm.make_reservoir(2 * B, example)


def drawn_loss(weights, batch, *, key=None):
    """Draws one factor per row; without a key all are 1, as in evaluation."""
    inputs, targets = batch
    factors = jnp.ones(len(inputs))
    if key is not None:
        factors = jax.random.uniform(key, factors.shape, minval=0.5)
    outputs = jnp.tanh(inputs @ weights["w"]) * factors[:, None]
    return squares(outputs, targets)


def draw_only(weights, batch, *, key):
    """The loss is its draw, so that what is reported shows all of them."""
    return jax.random.uniform(key) + 0 * jnp.sum(weights["w"]) + 0 * batch[0][:, 0]


PARAMS = lm.MetaParams({"w": waves32((D, Y), 0.1)}, {"w": jnp.full((D, Y), RATE)})
SUPPORT, QUERY = make_rows(0.2, K, 2), make_rows(0.4, B)


def keys_of(key, num_steps):
    """The keys that the loss gets: of every inner step, and of every query."""
    inner_key, query_key = jax.random.split(key)
    return (
        jax.random.split(inner_key, num_steps),
        jax.random.split(query_key, num_steps),
    )


def meta_loss_by_hand(params, support, query, key, *, first_order=False):
    """The definition in a Python loop, given the same keys."""
    weights, rates = params
    inner_keys, query_keys = keys_of(key, K)
    losses = []
    for n in range(K):
        rows = jax.tree.map(lambda leaf, n=n: leaf[n], support)
        inner_loss = lambda w, n=n, rows=rows: jnp.mean(
            drawn_loss(w, rows, key=inner_keys[n])
        )
        grads = jax.grad(inner_loss)(weights)
        if first_order:
            grads = jax.tree.map(jax.lax.stop_gradient, grads)
        weights = rectified_step(weights, rates, grads)
        losses.append(jnp.mean(drawn_loss(weights, query, key=query_keys[n])))
    return jnp.mean(jnp.stack(losses))


@pytest.mark.parametrize("remat", [True, "sqrt", False])
@pytest.mark.parametrize("first_order", [False, True])
def test_every_inner_step_and_query_has_a_draw_of_its_own(remat, first_order, key):
    num_steps = 9
    fn = lm.meta_value_and_grad(draw_only, first_order=first_order, remat=remat)
    support = make_rows(0.2, num_steps, 2)
    (_, info), _ = jax.jit(fn)(PARAMS, support, QUERY, key=key)
    draws = np.concatenate([info.inner_losses, info.query_losses])
    assert len(set(draws.tolist())) == 2 * num_steps
    expected = jax.vmap(jax.random.uniform)(jnp.concatenate(keys_of(key, num_steps)))
    # The mean of equal numbers rounds.
    np.testing.assert_allclose(draws, expected, rtol=1e-6)


def test_all_draws_of_an_update_differ_and_those_of_the_next_one_too(key):
    tx = lm.lamaml(
        draw_only,
        inner_steps=K,
        reservoir=make_reservoir(),
        replay_size=R,
        loss_takes_key=True,
    )
    learner = lm.lamaml_learner(tx, glances=2)
    observe = jax.jit(learner.observe)
    state, draws = learner.init(key, PARAMS.weights), []
    for n in range(2):
        state, info = observe(jax.random.fold_in(key, n), state, make_rows(n, B))
        draws += np.ravel((info.inner_losses, info.query_losses)).tolist()
    assert len(set(draws)) == 2 * 2 * 2 * K


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"inner_ad": "reverse", "remat": True},
        {"inner_ad": "reverse", "remat": "sqrt"},
        {"inner_ad": "reverse", "remat": False},
        {"inner_ad": "forward_over_reverse", "remat": True},
        {"inner_ad": "forward_over_reverse", "remat": "sqrt"},
        {"first_order": True},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_a_recomputed_step_draws_what_it_drew_before(options, key):
    fn = jax.jit(lm.meta_value_and_grad(drawn_loss, **options))
    (loss, _), grads = fn(PARAMS, SUPPORT, QUERY, key=key)
    by_hand = functools.partial(
        meta_loss_by_hand, first_order=options.get("first_order", False)
    )
    expected, expected_grads = jax.jit(jax.value_and_grad(by_hand))(
        PARAMS, SUPPORT, QUERY, key
    )
    assert_close((loss, grads), (expected, expected_grads), **FUSED)


@pytest.mark.slow
def test_query_at_the_last_step_has_the_last_of_the_keys(key):
    for remat in (True, False):
        fn = lm.meta_value_and_grad(draw_only, objective="last", remat=remat)
        (loss, _), _ = fn(PARAMS, SUPPORT, QUERY, key=key)
        expected = jax.random.uniform(keys_of(key, K)[1][-1])
        np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_adapt_gives_every_step_a_key_of_its_own(key):
    _, trace = lm.adapt(draw_only, *PARAMS, SUPPORT, key=key)
    expected = jax.vmap(jax.random.uniform)(jax.random.split(key, K))
    np.testing.assert_allclose(trace.losses, expected, rtol=1e-6)


def test_evaluation_is_the_same_function_without_a_key(key):
    with_key, without = (drawn_loss(PARAMS.weights, QUERY, key=k) for k in (key, None))
    expected = squares(jnp.tanh(QUERY[0] @ PARAMS.weights["w"]), QUERY[1])
    assert_equal(without, expected)
    assert jnp.all(with_key != without)


def test_update_by_hand_with_a_key_in_both_forms(key):
    """Also the order of the keys that a batch's own key is split into."""
    tx = lm.lamaml(drawn_loss, inner_steps=K, step_size_init=RATE, loss_takes_key=True)
    state = tx.init(PARAMS.weights)
    zeros = optax.tree.zeros_like(PARAMS.weights)
    update = jax.jit(tx.update)
    shuffle_key, loss_key = (jax.random.split(key, 4)[n] for n in (1, 3))
    support, _, *_ = lm.split_support(shuffle_key, QUERY, None, K)
    by_batch = update(zeros, state, PARAMS.weights, batch=QUERY, key=key)
    by_hand = update(
        zeros, state, PARAMS.weights, support=support, query=QUERY, key=loss_key
    )
    assert_close(by_batch[0], by_hand[0], **FUSED)
    expected = meta_loss_by_hand(PARAMS, support, QUERY, loss_key)
    np.testing.assert_allclose(by_hand[1].info.meta_loss, expected, rtol=1e-5)


def test_without_the_option_neither_loss_nor_numbers_know_of_a_key(key):
    """The loss takes no key, and would raise if it were handed one."""
    plain_loss = lambda weights, batch: drawn_loss(weights, batch)
    tx = lm.lamaml(plain_loss, inner_steps=K, step_size_init=RATE)
    zeros = optax.tree.zeros_like(PARAMS.weights)
    state = tx.init(PARAMS.weights)
    update = jax.jit(tx.update)
    updates, _ = update(zeros, state, PARAMS.weights, batch=QUERY, key=key)
    support, mask, *_ = lm.split_support(jax.random.split(key, 3)[1], QUERY, None, K)
    data = {"support": support, "query": QUERY, "support_mask": mask}
    expected, _ = update(zeros, state, PARAMS.weights, **data)
    assert_close(updates, expected, **FUSED)
    again, _ = update(zeros, state, PARAMS.weights, **data, key=key)
    assert_equal(again, expected)


def test_a_missing_key_is_named():
    tx = lm.lamaml(drawn_loss, inner_steps=K, loss_takes_key=True)
    state, zeros = tx.init(PARAMS.weights), optax.tree.zeros_like(PARAMS.weights)
    for data in ({"support": SUPPORT, "query": QUERY}, {"batch": QUERY}):
        with pytest.raises(ValueError, match=r"key: expected a key .*received None"):
            tx.update(zeros, state, PARAMS.weights, **data)
    with pytest.raises(TypeError, match="key: expected a jax random key"):
        lm.meta_value_and_grad(drawn_loss)(PARAMS, SUPPORT, QUERY, key=3)


def test_seeds_side_by_side_draw_what_each_draws_alone(key):
    fn = jax.jit(lm.meta_value_and_grad(drawn_loss))
    keys = jax.random.split(key, 3)
    together = jax.vmap(lambda k: fn(PARAMS, SUPPORT, QUERY, key=k))(keys)
    alone = [fn(PARAMS, SUPPORT, QUERY, key=k) for k in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    assert_close(together, stacked, **FUSED)
    assert len(set(together[0][0].tolist())) == 3


def test_running_gradient_takes_both_gradients_with_the_same_draws(key):
    fn = jax.jit(lm.meta_value_and_grad(drawn_loss))
    init, apply = lm.variance_reduced(fn, 0.5)
    _, first, state = apply(PARAMS, init(PARAMS), SUPPORT, QUERY, key=key)
    later = jax.random.fold_in(key, 1)
    _, second, _ = apply(PARAMS, state, SUPPORT, QUERY, key=later)
    # At unmoved weights both gradients are of the same draws, and half of the
    # difference between the first update's draws and these is what is left.
    _, plain = fn(PARAMS, SUPPORT, QUERY, key=later)
    expected = jax.tree.map(lambda g, r: g + 0.5 * (r - g), plain, first)
    assert_close(second, expected, **FUSED)


def test_replayed_rows_are_augmented_anew_in_every_query(key):
    """A loss that shifts its rows by its key: what is stored stays as it was."""

    def augmented(weights, batch, *, key):
        inputs, targets = batch
        shifts = jax.random.normal(key, (len(inputs), 1))
        return squares((inputs + shifts) @ weights["w"], targets)

    tx = lm.lamaml(
        augmented,
        inner_steps=1,
        reservoir=make_reservoir(),
        replay_size=R,
        loss_takes_key=True,
    )
    learner = lm.lamaml_learner(tx)
    observe, losses = jax.jit(learner.observe), []
    first, second = make_rows(1.0, B), make_rows(2.0, B)
    filled, _ = observe(key, learner.init(key, PARAMS.weights), first)
    for n in range(3):
        after, info = observe(jax.random.fold_in(key, n), filled, second)
        losses.append(info.query_losses.item())
    assert len(set(losses)) == 3
    rows = jax.tree.map(lambda leaf: leaf[:B], after.opt_state.reservoir.rows)
    assert {tuple(row) for row in np.asarray(rows[0]).tolist()} == {
        tuple(row) for row in np.asarray(first[0]).tolist()
    }
