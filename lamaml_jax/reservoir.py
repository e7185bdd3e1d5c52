"""A uniform sample of an unbounded stream, kept in arrays of fixed size."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lamaml_jax import checks, types

ACCEPTANCE_RULES = ("exact", "published")
_MAX_SEEN = 2**31 - 2


class ReservoirState(NamedTuple):
    """Stored rows and how many rows have been offered."""

    rows: types.Batch
    """Leaves [C, ...]; slots that were never filled hold zeros."""
    num_seen: jax.Array
    """Scalar int32, valid rows offered so far; stays at 2**31 - 2 once there."""


class Reservoir(NamedTuple):
    """A container of pure functions with their sizes bound by ``make_reservoir``."""

    init: Callable[[], ReservoirState]
    """``init() -> state``, empty."""
    add: Callable[..., ReservoirState]
    """``add(key, state, rows, mask=None) -> state``: offers rows [B, ...]."""
    insert: Callable[..., ReservoirState]
    """``insert(state, rows, draws, mask=None) -> state``: ``add`` with given draws."""
    sample: Callable[..., tuple[types.Batch, jax.Array]]
    """``sample(key, state, size) -> rows [size, ...], mask [size]``."""
    sample_and_add: Callable[..., tuple[types.Batch, jax.Array, ReservoirState]]
    """``sample_and_add(sample_key, add_key, state, size, rows, mask=None) -> rows
    [size, ...], mask [size], state``: both on the old state, in place in a loop."""


def _last_writer(slots: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Sorts writes by slot and sends all but the last to each slot out of bounds.

    A scatter with repeated indices has no defined order, so only one write per slot may
    remain. Returns the order of the rows and the slot of each row in that order.
    """
    order = jnp.argsort(slots, stable=True)
    ordered = slots[order]
    is_last = jnp.concatenate([ordered[1:] != ordered[:-1], jnp.ones(1, jnp.bool_)])
    return order, jnp.where(is_last, ordered, capacity)


def _uniform_subset(key: types.Key, size: int, num_stored: jax.Array) -> jax.Array:
    """Draws ``size`` distinct indices below ``num_stored`` (Floyd's algorithm).

    If fewer are stored, the first ``num_stored`` results are all of them.
    """
    start = jnp.maximum(num_stored - size, 0)
    limits = start + jnp.arange(size, dtype=jnp.int32)
    draws = jax.random.randint(key, (size,), 0, limits + 1, jnp.int32)

    def choose(i: jax.Array, chosen: jax.Array) -> jax.Array:
        taken = jnp.any((chosen == draws[i]) & (jnp.arange(size) < i))
        return chosen.at[i].set(jnp.where(taken, limits[i], draws[i]))

    return jax.lax.fori_loop(0, size, choose, jnp.zeros(size, jnp.int32))


def make_reservoir(
    capacity: int,
    example: types.Batch,
    *,
    acceptance: str = "exact",
    replace: bool = True,
) -> Reservoir:
    """Builds a reservoir sampler (Vitter's algorithm R) on fixed-size arrays.

    While it is not full, every row is stored. Once full, the n-th row (n from 1) draws
    a slot uniformly and is stored there if the slot exists: from [0, n - 1] under the
    ``"exact"`` rule, so that each row so far is stored with probability C / n; from
    [0, n] under the ``"published"`` rule of the authors' code, C / (n + 1).

    No cost depends on the capacity: inside a jitted scan, or with the state donated,
    rows are written in place. To replay old rows and then store the new ones, use
    ``sample_and_add``: after ``sample``, a compiler that cannot see that the read comes
    first lets ``add`` write to a copy of the whole reservoir.

    Args:
        capacity: C, number of rows kept, at least 1.
        example: one row as a pytree of ``jax.ShapeDtypeStruct`` (or arrays), without
            the leading axis.
        acceptance: ``"exact"`` or ``"published"``.
        replace: draw sampled rows independently (with replacement, as published) or as
            a uniform subset.

    Returns:
        A ``Reservoir``. ``add(key, state, rows, mask)`` offers rows [B, ...] in order,
        skipping those with mask False, and equals offering them one by one.
        ``insert`` does the same with the slots drawn by the caller (``draws`` [B],
        used only by rows that find the reservoir full). ``sample(key, state, size)``
        returns rows and their mask: min(size, stored) of them are valid, valid ones
        first, none while it is empty. ``sample_and_add(sample_key, add_key, state,
        size, rows, mask)`` equals ``sample`` followed by ``add`` to the same state.

    Raises:
        ValueError: capacity < 1, an unknown rule, rows that do not fit the example.
        TypeError: another dtype than the example's, a mask that is not boolean.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> reservoir = lm.make_reservoir(3, jax.ShapeDtypeStruct((), jnp.int32))
        >>> rows = jnp.array([10, 11])
        >>> state = reservoir.add(jax.random.key(0), reservoir.init(), rows)
        >>> print(state.rows, state.num_seen)
        [10 11  0] 2
        >>> _, mask = reservoir.sample(jax.random.key(1), state, 4)
        >>> print(mask)
        [ True  True False False]
    """
    capacity = checks.check_count("capacity", capacity)
    checks.check_choice("acceptance", acceptance, ACCEPTANCE_RULES)
    checks.check_example("example", example)
    extra = 0 if acceptance == "exact" else 1

    def init() -> ReservoirState:
        rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
        return ReservoirState(rows, jnp.zeros((), jnp.int32))

    def positions(num_seen: jax.Array, mask: jax.Array) -> jax.Array:
        room = _MAX_SEEN - num_seen
        # Not jnp.cumsum: on a constant mask its reduce-window crashes XLA's simplifier.
        count = jax.lax.associative_scan(jnp.add, mask.astype(jnp.int32))
        return num_seen + jnp.minimum(count, room)

    def row_mask(rows: types.Batch, mask: types.Mask | None) -> jax.Array:
        num_rows = checks.check_like_example("rows", rows, example)
        if mask is None:
            return jnp.ones(num_rows, jnp.bool_)
        checks.check_mask("mask", mask, (num_rows,))
        return mask

    def add_draws(key: types.Key, num_seen: jax.Array, mask: jax.Array) -> jax.Array:
        nth = jnp.maximum(positions(num_seen, mask), 1)
        return jax.random.randint(key, mask.shape, 0, nth + extra, jnp.int32)

    def sample_slots(
        key: types.Key, num_seen: jax.Array, size: int
    ) -> tuple[jax.Array, jax.Array]:
        num_stored = jnp.minimum(num_seen, capacity)
        mask = jnp.arange(size, dtype=jnp.int32) < num_stored
        if not replace:
            return _uniform_subset(key, size, num_stored), mask
        limit = jnp.maximum(num_stored, 1)
        return jax.random.randint(key, (size,), 0, limit, jnp.int32), mask

    def insert_slots(
        num_seen: jax.Array, draws: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        nth = positions(num_seen, mask)
        slots = jnp.where(nth <= capacity, nth - 1, draws.astype(jnp.int32))
        slots = jnp.where(mask, jnp.minimum(slots, capacity), capacity)
        return *_last_writer(slots, capacity), nth[-1]

    def read(stored: types.Batch, slots: jax.Array) -> types.Batch:
        return jax.tree.map(lambda kept: kept[slots], stored)

    def write(stored: types.Batch, slots: jax.Array, rows: types.Batch) -> types.Batch:
        return jax.tree.map(
            lambda kept, new: kept.at[slots].set(new, mode="drop"), stored, rows
        )

    def insert(
        state: ReservoirState,
        rows: types.Batch,
        draws: jax.Array,
        mask: types.Mask | None = None,
    ) -> ReservoirState:
        mask = row_mask(rows, mask)
        checks.check_draws("draws", draws, mask.shape[0])
        order, slots, num_seen = insert_slots(state.num_seen, draws, mask)
        return ReservoirState(write(state.rows, slots, read(rows, order)), num_seen)

    def add(
        key: types.Key,
        state: ReservoirState,
        rows: types.Batch,
        mask: types.Mask | None = None,
    ) -> ReservoirState:
        checks.check_key("key", key)
        mask = row_mask(rows, mask)
        return insert(state, rows, add_draws(key, state.num_seen, mask), mask)

    def sample(
        key: types.Key, state: ReservoirState, size: int
    ) -> tuple[types.Batch, jax.Array]:
        checks.check_key("key", key)
        size = checks.check_count("size", size)
        slots, mask = sample_slots(key, state.num_seen, size)
        return read(state.rows, slots), mask

    def sample_and_add(
        sample_key: types.Key,
        add_key: types.Key,
        state: ReservoirState,
        size: int,
        rows: types.Batch,
        mask: types.Mask | None = None,
    ) -> tuple[types.Batch, jax.Array, ReservoirState]:
        checks.check_key("sample_key", sample_key)
        checks.check_key("add_key", add_key)
        size = checks.check_count("size", size)
        mask = row_mask(rows, mask)
        draws = add_draws(add_key, state.num_seen, mask)
        order, add_slots, num_seen = insert_slots(state.num_seen, draws, mask)
        read_slots, sampled_mask = sample_slots(sample_key, state.num_seen, size)
        new = read(rows, order)

        # A write before each read is what XLA does in place, a read before a write it
        # guards with a copy. So the first round writes nowhere and reads the sample,
        # the second writes; what that one reads is dropped.
        def write_and_read(
            stored: types.Batch, slots: jax.Array
        ) -> tuple[types.Batch, types.Batch]:
            stored = write(stored, slots, new)
            return stored, read(stored, read_slots)

        rounds = jnp.stack([jnp.full_like(add_slots, capacity), add_slots])
        stored, both = jax.lax.scan(write_and_read, state.rows, rounds)
        sampled = jax.tree.map(lambda x: x[0], both)
        return sampled, sampled_mask, ReservoirState(stored, num_seen)

    return Reservoir(init, add, insert, sample, sample_and_add)
