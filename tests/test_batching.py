"""Support and query sets: every row dealt once, masks, filler rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamaml_jax as lm
from lamaml_jax import batching


def rows_of(num_rows, start=0):
    ids = jnp.arange(start, start + num_rows, dtype=jnp.int32)
    return {"id": ids, "x": jnp.stack([ids, -ids], axis=-1).astype(jnp.float32)}


@pytest.mark.parametrize(
    ("num_rows", "inner_steps", "per_step"),
    [(10, 5, 2), (10, 1, 10), (10, 10, 1), (10, 3, 4), (4, 3, 2), (1, 1, 1), (7, 5, 2)],
)
def test_every_row_is_dealt_exactly_once(key, num_rows, inner_steps, per_step):
    support, support_mask, rows, row_mask = batching.split_support(
        key, rows_of(num_rows), None, inner_steps
    )
    assert support["id"].shape == support_mask.shape == (inner_steps, per_step)
    assert support["x"].shape == (inner_steps, per_step, 2)
    dealt = np.asarray(support["id"])[np.asarray(support_mask)]
    assert sorted(dealt.tolist()) == list(range(num_rows))
    # The padding stands at the end, and the rows are those of the shuffled batch.
    assert np.asarray(support_mask).ravel().tolist() == [
        i < num_rows for i in range(inner_steps * per_step)
    ]
    np.testing.assert_array_equal(dealt, rows["id"])
    assert row_mask.all()
    np.testing.assert_array_equal(support["x"][..., 0], support["id"])
    np.testing.assert_array_equal(rows["x"][:, 1], -rows["id"])


def test_four_rows_in_three_steps_leave_the_last_one_empty(key):
    """ceil(4 / 3) = 2 rows each: the published code meets a mean of nothing here."""
    _, support_mask, _, _ = batching.split_support(key, rows_of(4), None, 3)
    np.testing.assert_array_equal(support_mask.sum(axis=1), [2, 2, 0])


def test_padding_repeats_a_row(key):
    support, _, rows, _ = batching.split_support(key, rows_of(4), None, 3)
    np.testing.assert_array_equal(support["id"][2], [rows["id"][-1]] * 2)


@pytest.mark.parametrize("num_valid", [0, 1, 3, 5])
def test_valid_rows_are_dealt_first(key, num_valid):
    valid = np.zeros(5, bool)
    valid[[4, 1, 0, 2, 3][:num_valid]] = True
    split = jax.jit(batching.split_support, static_argnums=3)
    support, support_mask, rows, row_mask = split(
        key, rows_of(5), jnp.asarray(valid), 3
    )
    assert np.asarray(row_mask).tolist() == [i < num_valid for i in range(5)]
    assert np.asarray(support_mask).ravel().tolist() == [
        i < num_valid for i in range(6)
    ]
    dealt = np.asarray(support["id"])[np.asarray(support_mask)]
    assert sorted(dealt.tolist()) == np.flatnonzero(valid).tolist()
    assert sorted(rows["id"].tolist()) == list(range(5))


@pytest.mark.parametrize("masked", [False, True])
def test_the_order_is_uniform(masked):
    """Each of the 24 orders of four valid rows; five standard errors, fixed keys."""
    num_keys = 10_000
    mask = jnp.array([True, True, False, True, True]) if masked else None
    batch = rows_of(5 if masked else 4)

    @jax.jit
    @jax.vmap
    def orders(key):
        return batching.split_support(key, batch, mask, 2)[2]["id"][:4]

    drawn = np.asarray(orders(jax.random.split(jax.random.key(6), num_keys)))
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert counts.size == 24
    error = np.sqrt(num_keys * (1 / 24) * (23 / 24))
    assert np.all(np.abs(counts - num_keys / 24) < 5 * error)


@pytest.mark.parametrize("num_valid", [1, 3])
def test_more_steps_than_rows_leave_the_last_steps_empty(key, num_valid):
    """A last batch may be shorter than K; a step without a valid row does nothing."""
    mask = jnp.arange(3) < num_valid
    support, support_mask, rows, row_mask = batching.split_support(
        key, rows_of(3), mask, 5
    )
    assert support["x"].shape == (5, 1, 2)
    np.testing.assert_array_equal(support_mask[:, 0], np.arange(5) < num_valid)
    np.testing.assert_array_equal(row_mask, np.arange(3) < num_valid)
    np.testing.assert_array_equal(support["id"][:3, 0], rows["id"])
    np.testing.assert_array_equal(support["id"][3:, 0], [rows["id"][-1]] * 2)


def test_a_step_without_rows_leaves_the_weights():
    """One row in three steps is one row in one step, whatever K says."""
    loss_fn = lambda w, rows: (w - rows) ** 2
    support, mask, _, _ = batching.split_support(
        jax.random.key(1), jnp.array([3.0]), None, 3
    )
    last, trace = lm.adapt(loss_fn, jnp.float32(1), jnp.float32(0.1), support, mask)
    once, _ = lm.adapt(loss_fn, jnp.float32(1), jnp.float32(0.1), support[:1], mask[:1])
    assert last == once
    np.testing.assert_array_equal(trace.losses[1:], [0, 0])


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (jnp.ones(3, bool), ValueError, r"batch_mask: expected shape \(4,\)"),
        (jnp.ones(4), TypeError, "batch_mask: expected a boolean array"),
    ],
)
def test_wrong_masks_are_errors(key, mask, error, message):
    with pytest.raises(error, match=message):
        batching.split_support(key, rows_of(4), mask, 2)


def test_replayed_rows_stand_before_the_incoming_ones():
    mask = jnp.array([True, True, True])
    query, query_mask = batching.join_replay(rows_of(3, 100), mask, rows_of(2), None)
    np.testing.assert_array_equal(query["id"], [100, 101, 102, 0, 1])
    np.testing.assert_array_equal(query["x"][:, 0], query["id"])
    assert query_mask.all()


def test_missing_replayed_rows_repeat_an_incoming_one_and_are_masked():
    """The store's own filler could be anything, here NaN."""
    replayed = {
        "id": jnp.array([100, -1, -1], jnp.int32),
        "x": jnp.array([[100.0, -100.0], [jnp.nan] * 2, [jnp.nan] * 2]),
    }
    query, query_mask = batching.join_replay(
        replayed,
        jnp.array([True, False, False]),
        rows_of(2, 5),
        jnp.array([True, False]),
    )
    np.testing.assert_array_equal(query["id"], [100, 5, 5, 5, 6])
    assert jnp.isfinite(query["x"]).all()
    np.testing.assert_array_equal(query_mask, [True, False, False, True, False])


@pytest.mark.parametrize(
    ("replay_mask", "batch_mask", "error", "message"),
    [
        (jnp.ones(2, bool), None, ValueError, r"replay_mask: expected shape \(3,\)"),
        (jnp.ones(3), None, TypeError, "replay_mask: expected a boolean array"),
        (
            jnp.ones(3, bool),
            jnp.ones(3, bool),
            ValueError,
            r"batch_mask: expected shape \(2,\)",
        ),
    ],
)
def test_wrong_masks_of_a_query_are_errors(replay_mask, batch_mask, error, message):
    with pytest.raises(error, match=message):
        batching.join_replay(rows_of(3), replay_mask, rows_of(2), batch_mask)
