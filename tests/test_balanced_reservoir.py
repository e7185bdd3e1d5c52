"""The balanced memory: replay against Python lists, balance, presence, edges."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from compiling import compile_as_users_do
from hlo import copies_in_loops
from hypothesis import given

import lamaml_jax as lm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ROW = {
    "x": jax.ShapeDtypeStruct((2,), jnp.float32),
    "y": jax.ShapeDtypeStruct((), jnp.int32),
}
Y = 4
B = 6
# Derandomised: a failure is the same for everybody, and its example is in the report.
settings = hypothesis.settings(
    max_examples=60, derandomize=True, deadline=None, database=None
)


def label_fn(rows):
    return rows["y"]


def make(capacity, num_classes=Y, **options):
    return lm.make_balanced_reservoir(
        capacity, ROW, num_classes=num_classes, label_fn=label_fn, **options
    )


def rows_of(numbers, labels):
    """Rows that carry their number and their class."""
    numbers, labels = np.asarray(numbers, np.float32), np.asarray(labels, np.int32)
    return {"x": np.stack([numbers, -numbers], axis=-1), "y": labels}


def assert_is_reference(state, stored, seen, full, capacity):
    unused = [(0, 0)] * (capacity - len(stored))
    numbers, labels = zip(*(stored + unused), strict=True)
    jax.tree.map(np.testing.assert_array_equal, state.rows, rows_of(numbers, labels))
    empty = [len(seen)] * len(unused)
    np.testing.assert_array_equal(state.labels, [y for _, y in stored] + empty)
    assert state.num_seen == sum(seen)
    np.testing.assert_array_equal(state.class_seen, seen)
    assert set(np.flatnonzero(state.was_largest)) == full


# Replay against Python lists --------------------------------------------------------


@functools.cache
def jitted_insert(capacity):
    return jax.jit(make(capacity).insert)


batches = st.lists(
    st.lists(
        st.tuples(st.integers(-1, Y), st.integers(0, 9), st.integers(0, 4)),
        min_size=B,
        max_size=B,
    ),
    min_size=1,
    max_size=6,
)


@settings
@given(st.sampled_from([1, 2, 5, 50]), batches)
def test_insert_equals_python_lists_and_keeps_its_promises(capacity, batches):
    """Classes from -1 to Y, of which the first and the last are no classes."""
    state = make(capacity).init()
    stored, seen, full = [], [0] * Y, set()
    for n, batch in enumerate(batches):
        labels, draws, luck = map(np.array, zip(*batch, strict=True))
        mask = luck > 0  # one row in five is masked
        numbers = np.arange(n * B, (n + 1) * B)
        was_full = len(stored) == capacity
        state = jitted_insert(capacity)(
            state, rows_of(numbers, labels), draws.astype(np.int32), mask
        )
        reference.balanced_insert(
            stored,
            seen,
            full,
            capacity,
            numbers,
            labels,
            mask,
            lambda i, _, draws=draws: draws[i],
        )
        assert_is_reference(state, stored, seen, full, capacity)
        held = np.bincount(state.labels, minlength=Y + 1)
        assert held[:Y].sum() == min(capacity, sum(seen))
        assert not was_full or held[Y] == 0  # once full, it stays full
        if held[Y] == 0:
            # Balanced within one, where the stream had enough of a class.
            short = held[:Y] < held[:Y].max() - 1
            np.testing.assert_array_equal(held[:Y][short], np.array(seen)[short])


@pytest.mark.parametrize("capacity", [1, 4, 9])
def test_add_equals_python_lists_given_what_its_keys_draw(capacity):
    """The limit of a draw is the number of rows it chooses among."""
    rng = np.random.default_rng(capacity)
    add = jax.jit(make(capacity).add)
    randint = jax.jit(lambda key, limit: jax.random.randint(key, (), 0, limit))
    state, stored, seen, full = make(capacity).init(), [], [0] * Y, set()
    for n, key in enumerate(jax.random.split(jax.random.key(7), 8)):
        numbers = np.arange(n * B, (n + 1) * B)
        labels = rng.choice(Y, B, p=[0.6, 0.2, 0.15, 0.05])
        mask = rng.random(B) < 0.9
        state = add(key, state, rows_of(numbers, labels), mask)
        keys = jax.random.split(key, B)
        reference.balanced_insert(
            stored,
            seen,
            full,
            capacity,
            numbers,
            labels,
            mask,
            lambda i, limit, keys=keys: int(randint(keys[i], np.int32(limit))),
        )
        assert_is_reference(state, stored, seen, full, capacity)


def test_batch_insert_equals_one_by_one():
    insert = jax.jit(make(3).insert)
    rows = rows_of(range(12), [0, 0, 0, 1, 2, 1, 0, 0, 3, 3, 1, 0])
    draws = np.array([0, 0, 0, 1, 2, 1, 7, 0, 2, 2, 0, 1], np.int32)
    mask = np.arange(12) % 5 != 2
    together = insert(make(3).init(), rows, draws, mask)
    state = make(3).init()
    for i in range(12):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], (rows, draws, mask))
        state = insert(state, *one)
    jax.tree.map(np.testing.assert_array_equal, state, together)


@pytest.mark.slow
@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("num_stored", [0, 2, 30])
def test_sample_and_add_equals_sample_then_add(replace, num_stored):
    reservoir = make(4, replace=replace)
    keys = jax.random.split(jax.random.key(num_stored), 3)
    state = reservoir.init()
    if num_stored:
        rows = rows_of(range(num_stored), np.arange(num_stored) % 2)
        state = reservoir.add(keys[0], state, rows)
    rows, mask = rows_of(range(100, 150), np.arange(50) % Y), np.arange(50) % 3 != 0
    expected = reservoir.sample(keys[1], state, 6)
    added = reservoir.add(keys[2], state, rows, mask)
    both = jax.jit(reservoir.sample_and_add, static_argnums=3)
    received = both(keys[1], keys[2], state, 6, rows, mask)
    jax.tree.map(np.testing.assert_array_equal, received, (*expected, added))


# What it is for ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_rare_task_stays_where_a_plain_reservoir_loses_it():
    """Seven of 200 rows, 20 slots: absent from a uniform sample in 48 % of all runs."""
    labels = np.repeat(np.arange(Y), [7, 65, 64, 64])
    labels = np.random.default_rng(0).permutation(labels)
    rows = jax.tree.map(
        lambda x: x.reshape(20, 10, *x.shape[1:]), rows_of(range(200), labels)
    )
    num_keys = 2_000

    def rare_rows(reservoir):
        @jax.jit
        @jax.vmap
        def run(key):
            def add(state, inputs):
                return reservoir.add(inputs[0], state, inputs[1]), None

            keys = jax.random.split(key, 20)
            state, _ = jax.lax.scan(add, reservoir.init(), (keys, rows))
            return jnp.sum(state.rows["y"] == 0)

        return np.asarray(run(jax.random.split(jax.random.key(3), num_keys)))

    absent = math.comb(193, 20) / math.comb(200, 20)
    assert 0.45 < absent < 0.5
    plain = rare_rows(lm.make_reservoir(20, ROW))
    error = np.sqrt(absent * (1 - absent) / num_keys)
    assert abs(np.mean(plain == 0) - absent) < 5 * error  # 6e-7 by chance
    # A quarter of the slots, within one.
    assert set(rare_rows(make(20))) <= {4, 5, 6}


def test_rows_of_one_class_are_a_uniform_sample():
    """With one class, rule and law are the reservoir's: m / n, any slot."""
    capacity, num_rows, num_keys = 3, 12, 20_000
    reservoir = make(capacity, num_classes=1)
    rows = rows_of(range(num_rows), np.zeros(num_rows))

    @jax.jit
    @jax.vmap
    def run(key):
        return reservoir.add(key, reservoir.init(), rows).rows["x"][:, 0]

    stored = np.asarray(run(jax.random.split(jax.random.key(1), num_keys)))
    assert all(len(set(row)) == capacity for row in stored[:100].tolist())
    counts = np.bincount(stored.ravel().astype(int), minlength=num_rows)
    law = capacity / num_rows
    error = np.sqrt(law * (1 - law) / num_keys)
    # Five standard errors: 6e-7 by chance for each.
    assert np.all(np.abs(counts / num_keys - law) < 5 * error)


# Edges ------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 4])
def test_masked_rows_leave_no_trace(key, capacity):
    reservoir = make(capacity)
    rows, none = rows_of(range(6), [0, 1, 2, 3, 0, 0]), np.zeros(6, bool)
    empty = reservoir.add(key, reservoir.init(), rows, none)
    jax.tree.map(np.testing.assert_array_equal, empty, reservoir.init())
    full = reservoir.add(key, reservoir.init(), rows)
    same = reservoir.add(key, full, rows_of(range(9, 15), [3] * 6), none)
    jax.tree.map(np.testing.assert_array_equal, same, full)


@pytest.mark.parametrize(
    ("dtype", "label"),
    [
        (jnp.int32, -1),
        (jnp.int32, 4),
        (jnp.int8, -1),
        (jnp.int8, 100),
        (jnp.uint8, 255),
        (jnp.uint32, 2**31),
        (jnp.int64, 2**32),
    ],
)
def test_a_class_that_is_none_is_skipped_and_not_counted(x64, key, dtype, label):
    """Also one that would be class 0 were it cut to 32 bits."""
    row = jax.ShapeDtypeStruct((), dtype)
    reservoir = lm.make_balanced_reservoir(
        3, row, num_classes=Y, label_fn=lambda rows: rows
    )
    state = reservoir.add(key, reservoir.init(), jnp.array([2, label, 3], dtype))
    np.testing.assert_array_equal(state.rows, [2, 3, 0])
    np.testing.assert_array_equal(state.class_seen, [0, 0, 1, 1])
    assert state.num_seen == 2


def test_more_classes_than_a_dtype_can_name(key):
    reservoir = lm.make_balanced_reservoir(
        2, jax.ShapeDtypeStruct((), jnp.int8), num_classes=300, label_fn=lambda y: y
    )
    state = reservoir.add(key, reservoir.init(), jnp.array([127, -128], jnp.int8))
    np.testing.assert_array_equal(state.labels, [127, 300])


@pytest.mark.parametrize("replace", [True, False])
def test_sample_of_an_empty_memory_is_all_masked(key, replace):
    rows, mask = make(3, replace=replace).sample(key, make(3).init(), 4)
    assert not mask.any()
    assert rows["x"].shape == (4, 2)


def test_counters_stop_at_their_limit(key):
    limit = 2**31 - 2
    state = (
        make(1)
        .init()
        ._replace(
            num_seen=jnp.int32(limit - 1),
            labels=jnp.array([1], jnp.int32),
            class_seen=jnp.array([0, limit - 1, 0, 0], jnp.int32),
            was_largest=jnp.array([False, True, False, False]),
        )
    )
    state = make(1).add(key, state, rows_of(range(3), [1, 1, 1]))
    assert state.num_seen == state.class_seen[1] == limit
    np.testing.assert_array_equal(state.rows["x"], [[0, 0]])  # stored by chance 1e-9


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (lambda rows: rows["x"], TypeError, "label_fn: expected integer classes"),
        (
            lambda rows: rows["y"][:2],
            ValueError,
            r"label_fn: expected classes of shape \(3,\), one per row, received \(2,\)",
        ),
        (lambda rows: 1, TypeError, "label_fn: expected integer classes, received int"),
    ],
)
def test_wrong_classes_are_errors(key, labels, error, message):
    reservoir = lm.make_balanced_reservoir(2, ROW, num_classes=Y, label_fn=labels)
    with pytest.raises(error, match=message):
        reservoir.add(key, reservoir.init(), rows_of(range(3), [0, 1, 2]))


def test_equal_arguments_make_equal_memories():
    assert make(3) == make(3) and hash(make(3)) == hash(make(3))
    assert make(3) != make(4)
    assert make(3) != make(3, num_classes=Y + 1)
    assert make(3) != lm.make_balanced_reservoir(
        3, ROW, num_classes=Y, label_fn=lambda rows: rows["y"]
    )


# In the transformation --------------------------------------------------------------


def loss_fn(weights, rows):
    return (rows["x"] @ weights - rows["y"].astype(jnp.float32)) ** 2


def learner_of(capacity):
    tx = lm.lamaml(loss_fn, inner_steps=2, reservoir=make(capacity))
    return lm.lamaml_learner(tx, glances=2)


def test_a_learner_keeps_a_balanced_memory(key):
    with jax.numpy_dtype_promotion("standard"):  # optax's optimisers need it
        learner = learner_of(8)
        state = learner.init(key, jnp.zeros(2))
        labels = np.repeat([0, 1, 2, 3], [30, 4, 4, 2]).reshape(5, 8)
        numbers = np.linspace(-1, 1, 40)
        rows = rows_of(numbers, labels.ravel())
        rows = jax.tree.map(lambda x: x.reshape(5, 8, *x.shape[1:]), rows)
        state, _ = jax.jit(
            lambda key, state, rows: lm.observe_stream(learner, key, state, rows)
        )(key, state, rows)
    found = optax.tree.get(state, "reservoir")
    np.testing.assert_array_equal(np.sort(found.labels), [0, 0, 1, 1, 2, 2, 3, 3])
    assert found.num_seen == 40


CAPACITY = 20_000


@pytest.mark.slow
def test_a_learner_over_a_stream_writes_its_rows_in_place():
    with jax.numpy_dtype_promotion("standard"):
        learner = learner_of(CAPACITY)
        state = jax.eval_shape(learner.init, None, jnp.zeros(2))
        batches = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((5, 10, *x.shape), x.dtype), ROW
        )
        run = jax.jit(
            lambda key, state, batches: lm.observe_stream(learner, key, state, batches),
            donate_argnums=1,
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        hlo = compile_as_users_do(run.lower(key, state, batches)).as_text()
    rows = f"f32[{CAPACITY},2]"
    assert rows in hlo
    assert not [line for line in copies_in_loops(hlo, CAPACITY) if rows in line]
