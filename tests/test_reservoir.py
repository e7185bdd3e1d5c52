"""The reservoir: uniformity, replay against Python lists, edges, in-place writes."""

import collections
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from compiling import compile_as_users_do
from hlo import copies_in_loops
from processes import ROOT, said

import lamaml_jax as lm
from lamaml_jax.slots import last_writer

pytestmark = pytest.mark.usefixtures("strict_dtypes")

NUMBER = jax.ShapeDtypeStruct((), jnp.int32)
RULES = ("exact", "published")
NUM_KEYS = 20_000


def rows_of(numbers):
    """Rows that carry their number in two leaves of different shape and dtype."""
    numbers = np.asarray(numbers)
    return {
        "id": jnp.asarray(numbers, jnp.int32),
        "x": jnp.asarray(np.stack([numbers, -numbers], axis=-1), jnp.float32),
    }


ROW = {
    "id": jax.ShapeDtypeStruct((), jnp.int32),
    "x": jax.ShapeDtypeStruct((2,), jnp.float32),
}


def assert_within_standard_errors(counts, probabilities, trials):
    """Binomial counts within five standard errors: 6e-7 by chance for each."""
    error = np.sqrt(np.asarray(probabilities) * (1 - np.asarray(probabilities)))
    gap = np.abs(np.asarray(counts) / trials - probabilities)
    assert np.all(gap <= 5 * error / np.sqrt(trials) + 1e-12), gap


# Uniformity -------------------------------------------------------------------------


@pytest.mark.parametrize("acceptance", RULES)
@pytest.mark.parametrize("batch_size", [3, 15])
def test_every_position_is_stored_as_often_as_its_law_says(acceptance, batch_size):
    capacity, num_rows = 4, 15
    reservoir = lm.make_reservoir(capacity, NUMBER, acceptance=acceptance)
    batches = jnp.arange(num_rows, dtype=jnp.int32).reshape(-1, batch_size)

    @jax.jit
    @jax.vmap
    def run(key):
        def add(state, inputs):
            return reservoir.add(inputs[0], state, inputs[1]), None

        keys = jax.random.split(key, batches.shape[0])
        return jax.lax.scan(add, reservoir.init(), (keys, batches))[0].rows

    stored = np.asarray(run(jax.random.split(jax.random.key(1), NUM_KEYS)))
    assert stored.shape == (NUM_KEYS, capacity)
    assert all(len(set(row)) == capacity for row in stored[:100].tolist())
    counts = np.bincount(stored.ravel(), minlength=num_rows)
    laws = [
        reference.inclusion_probability(n, num_rows, capacity, acceptance)
        for n in range(1, num_rows + 1)
    ]
    np.testing.assert_allclose(sum(laws), capacity, rtol=1e-12)
    assert_within_standard_errors(counts, laws, NUM_KEYS)


def test_the_two_rules_differ_by_more_than_the_test_allows():
    laws = [reference.inclusion_probability(1, 15, 4, rule) for rule in RULES]
    error = np.sqrt(laws[0] * (1 - laws[0]) / NUM_KEYS)
    assert abs(laws[0] - laws[1]) > 10 * error


def sampled(size, *, num_stored, replace, capacity=5, num_keys=NUM_KEYS, seed=2):
    """Ids drawn for many keys from a reservoir that holds ids 0 .. num_stored - 1."""
    reservoir = lm.make_reservoir(capacity, NUMBER, replace=replace)
    state = reservoir.insert(
        reservoir.init(),
        jnp.arange(num_stored, dtype=jnp.int32),
        jnp.zeros(num_stored, jnp.int32),
    )
    run = jax.jit(jax.vmap(lambda key: reservoir.sample(key, state, size)))
    ids, mask = run(jax.random.split(jax.random.key(seed), num_keys))
    return np.asarray(ids), np.asarray(mask)


def test_draws_with_replacement_are_uniform_and_independent():
    ids, mask = sampled(3, num_stored=4, replace=True)
    assert mask.all()
    for first, second in itertools.combinations(range(3), 2):
        pairs = np.bincount(4 * ids[:, first] + ids[:, second], minlength=16)
        assert pairs.size == 16
        assert_within_standard_errors(pairs, np.full(16, 1 / 16), NUM_KEYS)


@pytest.mark.parametrize(("size", "num_stored"), [(2, 5), (3, 5), (2, 4), (1, 3)])
def test_draws_without_replacement_are_uniform_subsets(size, num_stored):
    ids, mask = sampled(size, num_stored=num_stored, replace=False)
    assert mask.all()
    subsets = list(itertools.combinations(range(num_stored), size))
    drawn = [tuple(sorted(row)) for row in ids.tolist()]
    tally = collections.Counter(drawn)
    counts = [tally[subset] for subset in subsets]
    assert sum(counts) == NUM_KEYS  # distinct, and only stored rows
    law = np.full(len(subsets), 1 / len(subsets))
    assert_within_standard_errors(counts, law, NUM_KEYS)


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("num_stored", [1, 3, 5])
def test_sample_larger_than_the_store_is_masked(num_stored, replace):
    ids, mask = sampled(7, num_stored=num_stored, replace=replace, num_keys=50)
    np.testing.assert_array_equal(
        mask, np.broadcast_to(np.arange(7) < num_stored, (50, 7))
    )
    for row in ids[:, :num_stored].tolist():
        assert set(row) <= set(range(num_stored))
        if not replace:
            assert sorted(row) == list(range(num_stored))


@pytest.mark.parametrize("replace", [True, False])
def test_sample_of_an_empty_reservoir_is_all_masked(key, replace):
    reservoir = lm.make_reservoir(3, ROW, replace=replace)
    rows, mask = reservoir.sample(key, reservoir.init(), 4)
    assert not mask.any()
    assert mask.shape == (4,)
    assert rows["x"].shape == (4, 2)
    assert jnp.isfinite(rows["x"]).all()


# Replay against Python lists --------------------------------------------------------


@pytest.mark.parametrize(
    ("capacity", "acceptance"),
    [(1, "exact"), (3, "exact"), (3, "published"), (40, "exact"), (100, "exact")],
)
def test_insert_equals_python_lists(capacity, acceptance):
    """Batches up to twice the small capacities, so slots repeat within one batch."""
    rng = np.random.default_rng(capacity)
    reservoir = lm.make_reservoir(capacity, ROW, acceptance=acceptance)
    insert = jax.jit(reservoir.insert)
    state, stored, num_seen = reservoir.init(), [], 0
    for start in range(0, 70, 7):
        numbers = np.arange(start, start + 7)
        mask = rng.random(7) < 0.8
        nth = num_seen + np.maximum(np.cumsum(mask), 1)
        limits = [reference.reservoir_draw_limit(n, acceptance) for n in nth]
        draws = rng.integers(0, limits)
        state = insert(
            state, rows_of(numbers), jnp.asarray(draws, jnp.int32), jnp.asarray(mask)
        )
        stored, num_seen = reference.reservoir_insert(
            stored, num_seen, capacity, numbers, draws, mask
        )
        assert state.num_seen == num_seen
        unused = [0] * (capacity - len(stored))
        jax.tree.map(
            np.testing.assert_array_equal, state.rows, rows_of(stored + unused)
        )


def test_last_write_to_a_slot_wins():
    reservoir = lm.make_reservoir(2, NUMBER)
    state = reservoir.insert(
        reservoir.init(),
        jnp.array([10, 11, 12, 13, 14, 15], jnp.int32),
        jnp.array([9, 9, 0, 1, 0, 5], jnp.int32),
    )
    np.testing.assert_array_equal(state.rows, [14, 13])
    assert state.num_seen == 6


def test_no_slot_is_written_twice_by_one_scatter():
    """JAX leaves the order of repeated indices open; on the CPU none would show."""
    slots = jnp.array([2, 0, 2, 5, 0, 5, 1], jnp.int32)
    order, targets = last_writer(slots, 5)
    written = {int(t): int(i) for i, t in zip(order, targets, strict=True) if t < 5}
    assert written == {0: 4, 1: 6, 2: 2}
    assert sum(int(t) < 5 for t in targets) == len(written)


def test_draws_of_rows_that_find_room_are_not_used():
    reservoir = lm.make_reservoir(4, NUMBER)
    rows = jnp.arange(4, dtype=jnp.int32)
    state = reservoir.insert(reservoir.init(), rows, jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(state.rows, [0, 1, 2, 3])


def test_add_draws_what_insert_is_given(key):
    """``add`` is ``insert`` with draws below the position of each valid row."""
    reservoir = lm.make_reservoir(3, NUMBER)
    rows = jnp.arange(9, dtype=jnp.int32)
    mask = jnp.array([True, True, False, True, True, False, True, True, True])
    nth = jnp.cumsum(mask, dtype=jnp.int32)
    draws = jax.random.randint(key, (9,), 0, nth)
    added = reservoir.add(key, reservoir.init(), rows, mask)
    inserted = reservoir.insert(reservoir.init(), rows, draws, mask)
    jax.tree.map(np.testing.assert_array_equal, added, inserted)


def test_batch_insert_equals_one_by_one():
    reservoir = lm.make_reservoir(3, NUMBER)
    insert = jax.jit(reservoir.insert)
    rows = jnp.arange(12, dtype=jnp.int32)
    draws = jnp.array([0, 0, 0, 1, 2, 1, 7, 0, 2, 2, 9, 1], jnp.int32)
    mask = jnp.arange(12) % 4 != 2
    together = insert(reservoir.init(), rows, draws, mask)
    state = reservoir.init()
    for i in range(12):
        one = slice(i, i + 1)
        state = insert(state, rows[one], draws[one], mask[one])
    jax.tree.map(np.testing.assert_array_equal, state, together)


@pytest.mark.parametrize("capacity", [1, 4])
def test_masked_rows_leave_no_trace(key, capacity):
    reservoir = lm.make_reservoir(capacity, NUMBER)
    rows = jnp.full(6, 7, jnp.int32)
    empty = reservoir.add(key, reservoir.init(), rows, jnp.zeros(6, bool))
    jax.tree.map(np.testing.assert_array_equal, empty, reservoir.init())
    full = reservoir.add(key, reservoir.init(), jnp.arange(6, dtype=jnp.int32))
    same = reservoir.add(key, full, rows, jnp.zeros(6, bool))
    jax.tree.map(np.testing.assert_array_equal, same, full)


@pytest.mark.slow
@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("num_stored", [0, 2, 30])
def test_sample_and_add_equals_sample_then_add(replace, num_stored):
    """The sample holds no row of the batch that is added, whatever it overwrites."""
    reservoir = lm.make_reservoir(4, ROW, replace=replace)
    keys = jax.random.split(jax.random.key(num_stored), 3)
    state = reservoir.init()
    if num_stored:
        state = reservoir.add(keys[0], state, rows_of(range(num_stored)))
    rows = rows_of(range(100, 150))
    mask = jnp.arange(50) % 3 != 0
    expected = reservoir.sample(keys[1], state, 6)
    added = reservoir.add(keys[2], state, rows, mask)
    assert (added.rows["id"] >= 100).any()
    both = jax.jit(reservoir.sample_and_add, static_argnums=3)
    received = both(keys[1], keys[2], state, 6, rows, mask)
    jax.tree.map(np.testing.assert_array_equal, received, (*expected, added))


@pytest.mark.parametrize("capacity", [9, 10])
def test_a_stream_no_longer_than_the_capacity_is_kept_in_order(key, capacity):
    reservoir = lm.make_reservoir(capacity, NUMBER)
    state = reservoir.init()
    for part in (jnp.arange(4), jnp.arange(4, 9)):
        state = reservoir.add(key, state, part.astype(jnp.int32))
    np.testing.assert_array_equal(state.rows[:9], np.arange(9))


# Counting, dtypes, composition ------------------------------------------------------


@pytest.mark.parametrize("acceptance", RULES)
def test_num_seen_stops_at_its_limit(key, acceptance):
    limit = 2**31 - 2
    reservoir = lm.make_reservoir(2, NUMBER, acceptance=acceptance)
    add = jax.jit(reservoir.add)
    rows = jnp.arange(3, 8, dtype=jnp.int32)
    for short_of_limit in (0, 1, 2, 10):
        state = lm.ReservoirState(
            jnp.array([1, 2], jnp.int32), jnp.int32(limit - short_of_limit)
        )
        for _ in range(2):
            state = add(key, state, rows)
        assert state.num_seen == limit
        # Each row is stored with probability 1e-9.
        np.testing.assert_array_equal(state.rows, [1, 2])
    _, mask = reservoir.sample(key, state, 2)
    assert mask.all()


@pytest.mark.slow
@pytest.mark.parametrize("replace", [True, False])
def test_works_with_64_bit_types(x64, replace):
    reservoir = lm.make_reservoir(3, ROW, replace=replace)
    key = jax.random.key(3)
    state = reservoir.add(key, reservoir.init(), rows_of(range(8)))
    assert state.num_seen.dtype == jnp.int32
    rows, mask = reservoir.sample(key, state, 2)
    assert mask.all()
    assert set(rows["id"].tolist()) <= set(state.rows["id"].tolist())


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bfloat16, jnp.bool_, jnp.int8])
def test_rows_keep_their_dtype(key, dtype):
    reservoir = lm.make_reservoir(2, jax.ShapeDtypeStruct((3,), dtype))
    state = reservoir.add(key, reservoir.init(), jnp.ones((2, 3), dtype))
    rows, _ = reservoir.sample(key, state, 4)
    assert state.rows.dtype == rows.dtype == dtype
    np.testing.assert_array_equal(rows, jnp.ones((4, 3), dtype))


@pytest.mark.parametrize("is_wide", [False, True])
def test_dtypes_of_the_example_are_taken_as_jax_takes_them(key, is_wide):
    """A row of a numpy data set is int64 or float64, and so are the rows to come."""
    with jax.enable_x64(is_wide):
        reservoir = lm.make_reservoir(3, {"y": np.arange(5)[0], "x": np.zeros(2)})
        rows = {"y": np.arange(3), "x": np.ones((3, 2))}
        state = reservoir.add(jax.random.key(0), reservoir.init(), rows)
        assert state.rows["y"].dtype == jnp.result_type(int)
        assert state.rows["x"].dtype == jnp.result_type(float)
        np.testing.assert_array_equal(state.rows["y"], rows["y"])


def test_keys_are_stored_as_rows(key):
    rows = jax.random.split(key, 3)
    reservoir = lm.make_reservoir(2, jax.ShapeDtypeStruct((), rows.dtype))
    state = reservoir.insert(reservoir.init(), rows, jnp.array([0, 0, 1], jnp.int32))
    old, _, state = reservoir.sample_and_add(key, key, state, 3, rows)
    assert old.dtype == rows.dtype
    assert state.rows.shape == (2,)


@pytest.mark.parametrize(
    "word",
    [
        np.str_("a"),
        np.array([b"a"]),
        np.array(["a"], np.dtypes.StringDType()),
        np.array([object()]),
        np.array(["2020-01-01"], "datetime64[D]"),
    ],
    ids=lambda word: str(word.dtype),
)
def test_an_example_that_jax_has_no_arrays_for_is_refused(word):
    with pytest.raises(
        TypeError, match=r"example\['x'\]: expected a dtype of jax arra"
    ):
        lm.make_reservoir(3, {"x": word})


def test_an_array_serves_as_example_row(key):
    reservoir = lm.make_reservoir(2, {"x": np.zeros(3, np.float32)})
    assert reservoir.init().rows["x"].shape == (2, 3)


def test_scan_equals_a_loop_and_vmap_equals_single_runs():
    reservoir = lm.make_reservoir(3, NUMBER, replace=False)

    def step(state, inputs):
        key, rows = inputs
        add_key, sample_key = jax.random.split(key)
        state = reservoir.add(add_key, state, rows)
        return state, reservoir.sample(sample_key, state, 2)

    def run(key):
        keys = jax.random.split(key, 6)
        rows = jnp.arange(24, dtype=jnp.int32).reshape(6, 4)
        return jax.lax.scan(step, reservoir.init(), (keys, rows))

    keys = jax.random.split(jax.random.key(4), 2)
    batched = jax.jit(jax.vmap(run))(keys)
    jitted_step = jax.jit(step)
    for i in range(2):
        state, drawn = reservoir.init(), []
        for step_key, start in zip(
            jax.random.split(keys[i], 6), range(0, 24, 4), strict=True
        ):
            rows = jnp.arange(start, start + 4, dtype=jnp.int32)
            state, sample = jitted_step(state, (step_key, rows))
            drawn.append(sample)
        expected = (state, jax.tree.map(lambda *x: jnp.stack(x), *drawn))
        jax.tree.map(
            lambda x, y, i=i: np.testing.assert_array_equal(x[i], y), batched, expected
        )


# Equality ---------------------------------------------------------------------------


def test_equal_arguments_make_equal_reservoirs():
    one, same = (
        lm.make_reservoir(3, {"x": np.zeros(2), "y": np.int64(0)}) for _ in range(2)
    )
    assert one is not same
    assert one == same and hash(one) == hash(same)


@pytest.mark.parametrize(
    ("capacity", "shape", "options"),
    [
        (4, (2,), {}),
        (3, (1,), {}),
        (3, (2,), {"acceptance": "published"}),
        (3, (2,), {"replace": False}),
    ],
)
def test_other_arguments_make_another_reservoir(capacity, shape, options):
    one = lm.make_reservoir(3, jax.ShapeDtypeStruct((2,), jnp.float32))
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert one != lm.make_reservoir(capacity, example, **options)


def test_an_equal_reservoir_is_not_compiled_again(key):
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def step(reservoir, key, state):
        traces.append(None)
        return reservoir.add(key, state, jnp.arange(2, dtype=jnp.int32))

    for _ in range(3):
        reservoir = lm.make_reservoir(3, NUMBER)
        step(reservoir, key, reservoir.init())
    assert len(traces) == 1


# In-place writes --------------------------------------------------------------------


CAPACITY = 20_000


def compiled_scan(step, reservoir):
    def run(state, keys, rows):
        return jax.lax.scan(functools.partial(step, reservoir), state, (keys, rows))

    state = jax.eval_shape(reservoir.init)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5))
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, 10, *x.shape), x.dtype), ROW)
    lowered = jax.jit(run, donate_argnums=0).lower(state, keys, rows)
    return compile_as_users_do(lowered)


@pytest.mark.slow
@pytest.mark.parametrize("replace", [True, False])
def test_scan_over_add_and_sample_writes_in_place(replace):
    def step(reservoir, state, inputs):
        key, rows = inputs
        add_key, sample_key = jax.random.split(key)
        state = reservoir.add(add_key, state, rows)
        return state, reservoir.sample(sample_key, state, 10)

    reservoir = lm.make_reservoir(CAPACITY, ROW, replace=replace)
    hlo = compiled_scan(step, reservoir).as_text()
    assert f"[{CAPACITY}" in hlo
    assert copies_in_loops(hlo, CAPACITY) == []


@pytest.mark.slow
def test_the_search_for_copies_finds_one():
    """Guards the tests beside it: a step that reads the old rows after the write."""

    def step(reservoir, state, inputs):
        key, rows = inputs
        new = reservoir.add(key, state, rows)
        return new, state.rows["x"][new.rows["id"][:10]]

    hlo = compiled_scan(step, lm.make_reservoir(CAPACITY, ROW)).as_text()
    assert copies_in_loops(hlo, CAPACITY)


def row_loss(weights, rows):
    return (rows["x"] @ weights["w"] - rows["id"].astype(jnp.float32)) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("replace", [True, False])
def test_scan_over_sample_and_add_writes_in_place(replace):
    def step(reservoir, state, inputs):
        key, rows = inputs
        old, mask, state = reservoir.sample_and_add(key, key, state, 10, rows)
        return state, (old, mask, jnp.sum(old["x"]))

    hlo = compiled_scan(
        step, lm.make_reservoir(CAPACITY, ROW, replace=replace)
    ).as_text()
    assert f"[{CAPACITY}" in hlo
    assert copies_in_loops(hlo, CAPACITY) == []


@pytest.mark.slow
@pytest.mark.parametrize("first_order", [True, False])
def test_learner_over_a_stream_writes_in_place(first_order):
    """The learner samples before it adds, so the read must not outlive the write."""
    with jax.numpy_dtype_promotion("standard"):
        tx = lm.lamaml(
            row_loss,
            inner_steps=2,
            first_order=first_order,
            reservoir=lm.make_reservoir(CAPACITY, ROW),
        )
        learner = lm.lamaml_learner(tx, glances=2)
        state = jax.eval_shape(learner.init, None, {"w": jnp.zeros(2)})
        batches = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((5, 10, *x.shape), x.dtype), ROW
        )
        run = jax.jit(
            lambda key, state, batches: lm.observe_stream(learner, key, state, batches),
            donate_argnums=1,
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        hlo = compile_as_users_do(run.lower(key, state, batches)).as_text()
    assert f"[{CAPACITY}" in hlo
    assert copies_in_loops(hlo, CAPACITY) == []


ADD_UNDER_A_CONSTANT_MASK = """
import jax, jax.numpy as jnp, lamaml_jax as lm
reservoir = lm.make_reservoir(3, jax.ShapeDtypeStruct((), jnp.int32))
rows, key = jnp.arange(5, dtype=jnp.int32), jax.random.key(0)
def step(state, remember):
    return reservoir.add(key, state, rows, jnp.ones(5, bool) & remember), None
run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(1) == 0)[0])
assert run(reservoir.init()).num_seen == 5
"""


@pytest.mark.slow
def test_add_compiles_under_a_mask_that_is_a_constant():
    """As a learner's single glance has it: XLA folds the scan of length one.

    In its own process, because XLA's failure is an abort of the process.
    """
    said([sys.executable, "-c", ADD_UNDER_A_CONSTANT_MASK], ROOT, ROOT)
