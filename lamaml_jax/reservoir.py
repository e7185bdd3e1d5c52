"""A uniform sample of an unbounded stream, kept in arrays of fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lamaml_jax import checks, memory, slots, types
from lamaml_jax.memory import HashablePartial, Reservoir

ACCEPTANCE_RULES = ("exact", "published")


class ReservoirState(NamedTuple):
    """Stored rows and how many rows have been offered.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> reservoir = lm.make_reservoir(3, jax.ShapeDtypeStruct((), jnp.int32))
        >>> rows = jnp.array([10, 11])
        >>> state = reservoir.add(jax.random.key(0), reservoir.init(), rows)
        >>> print(state.rows, state.num_seen)
        [10 11  0] 2
    """

    rows: types.Batch
    """Leaves [C, ...]; slots that were never filled hold zeros."""
    num_seen: jax.Array
    """Scalar int32, valid rows offered so far; stays at 2**31 - 2 once there."""


def init(capacity: int, example: types.Batch) -> ReservoirState:
    """Makes an empty reservoir.

    Args:
        capacity: C, number of rows kept, at least 1.
        example: one row as a pytree of ``jax.ShapeDtypeStruct`` or arrays.

    Returns:
        The state, every array in a buffer of its own.

    Raises:
        ValueError: capacity < 1, an example without leaves.
        TypeError: an example that jax has no arrays for.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import reservoir
        >>> print(reservoir.init(2, jax.ShapeDtypeStruct((3,), jnp.uint8)).rows)
        [[0 0 0]
         [0 0 0]]
    """
    capacity = checks.check_count("capacity", capacity)
    example = checks.check_example("example", example)
    rows = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return ReservoirState(rows, jnp.zeros((), jnp.int32))


def insert(
    state: ReservoirState,
    rows: types.Batch,
    draws: jax.Array,
    mask: types.Mask | None = None,
) -> ReservoirState:
    """Offers rows whose slots the caller has drawn.

    Args:
        state: from ``init`` or an earlier call.
        rows: pytree with leaves [B, ...], offered in order.
        draws: [B] integers, the slot of each row that finds the reservoir full; where
            there is no such slot, the row is not stored.
        mask: [B] booleans, True = valid; None takes every row.

    Returns:
        The new state, that of offering the rows one by one.

    Raises:
        ValueError: rows that do not fit those stored, leading axes that disagree.
        TypeError: another dtype than the stored rows', a mask that is not boolean,
            draws that are no integers.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import reservoir
        >>> state = reservoir.init(2, jax.ShapeDtypeStruct((), jnp.int32))
        >>> rows, draws = jnp.array([10, 11, 12, 13]), jnp.array([0, 0, 1, 2])
        >>> print(reservoir.insert(state, rows, draws).rows)
        [10 12]
    """
    rows, mask = memory.offered(state, rows, mask)
    draws = checks.check_draws("draws", draws, mask.shape[0])
    order, targets, num_seen = _targets(state, draws, mask)
    stored = slots.write(state.rows, targets, slots.read(rows, order))
    return ReservoirState(stored, num_seen)


def add(
    key: types.Key,
    state: ReservoirState,
    rows: types.Batch,
    mask: types.Mask | None = None,
    *,
    acceptance: str = "exact",
) -> ReservoirState:
    """Offers rows in order, as Vitter's algorithm R does.

    Args:
        key: consumed.
        state: from ``init`` or an earlier call.
        rows: pytree with leaves [B, ...].
        mask: [B] booleans, True = valid; None takes every row.
        acceptance: ``"exact"`` or ``"published"``, see ``make_reservoir``.

    Returns:
        The new state, distributed as if the rows had been offered one by one.

    Raises:
        ValueError: rows that do not fit those stored, leading axes that disagree.
        TypeError: another dtype than the stored rows', a mask that is not boolean.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import reservoir
        >>> state = reservoir.init(3, jax.ShapeDtypeStruct((), jnp.int32))
        >>> state = reservoir.add(jax.random.key(0), state, jnp.array([10, 11]))
        >>> print(state.rows, state.num_seen)
        [10 11  0] 2
    """
    checks.check_key("key", key)
    rows, mask = memory.offered(state, rows, mask)
    draws = _draws(key, state.num_seen, mask, acceptance)
    return insert(state, rows, draws, mask)


def sample(
    key: types.Key, state: memory.Store, size: int, *, replace: bool = True
) -> tuple[types.Batch, types.Mask]:
    """Draws stored rows uniformly.

    Args:
        key: consumed.
        state: of a reservoir, or of any memory that fills its slots in order.
        size: rows to draw, at least 1.
        replace: draw each on its own (as published) or a uniform subset.

    Returns:
        Rows, leaves [size, ...], and their mask [size]: min(size, stored) of them are
        valid, valid ones first, none while the reservoir is empty.

    Raises:
        ValueError: size < 1.
        TypeError: ``key`` is no key.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import reservoir
        >>> state = reservoir.init(3, jax.ShapeDtypeStruct((), jnp.int32))
        >>> state = reservoir.add(jax.random.key(0), state, jnp.array([10, 11]))
        >>> _, mask = reservoir.sample(jax.random.key(1), state, 4)
        >>> print(mask)
        [ True  True False False]
    """
    checks.check_key("key", key)
    size = checks.check_count("size", size)
    chosen, mask = slots.draw(key, memory.num_stored(state), size, replace=replace)
    return slots.read(state.rows, chosen), mask


def sample_and_add(
    sample_key: types.Key,
    add_key: types.Key,
    state: ReservoirState,
    size: int,
    rows: types.Batch,
    mask: types.Mask | None = None,
    *,
    acceptance: str = "exact",
    replace: bool = True,
) -> tuple[types.Batch, types.Mask, ReservoirState]:
    """Draws stored rows and then offers new ones, in place in a loop.

    Equals ``sample`` followed by ``add`` to the same state. After ``sample`` alone, a
    compiler that cannot see that the read comes first lets ``add`` write to a copy of
    the whole reservoir.

    Args:
        sample_key: consumed by ``sample``.
        add_key: consumed by ``add``.
        state: from ``init`` or an earlier call.
        size: rows to draw, at least 1.
        rows: pytree with leaves [B, ...], offered in order.
        mask: [B] booleans, True = valid; None takes every row.
        acceptance: as in ``add``.
        replace: as in ``sample``.

    Returns:
        The drawn rows, leaves [size, ...], their mask [size], and the new state.

    Raises:
        ValueError: as ``sample`` and ``add``.
        TypeError: as ``sample`` and ``add``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import reservoir
        >>> keys = jax.random.split(jax.random.key(0))
        >>> state = reservoir.init(1, jax.ShapeDtypeStruct((), jnp.int32))
        >>> state = reservoir.add(keys[0], state, jnp.array([10]))
        >>> rows = jnp.array([11])
        >>> old, mask, state = reservoir.sample_and_add(*keys, state, 1, rows)
        >>> print(old, mask, state.num_seen)
        [10] [ True] 2
    """
    checks.check_key("sample_key", sample_key)
    checks.check_key("add_key", add_key)
    size = checks.check_count("size", size)
    rows, mask = memory.offered(state, rows, mask)
    draws = _draws(add_key, state.num_seen, mask, acceptance)
    order, targets, num_seen = _targets(state, draws, mask)
    chosen, sampled_mask = slots.draw(
        sample_key, memory.num_stored(state), size, replace=replace
    )
    sampled, stored = slots.read_then_write(
        state.rows, chosen, targets, slots.read(rows, order)
    )
    return sampled, sampled_mask, ReservoirState(stored, num_seen)


def make_reservoir(
    capacity: int,
    example: types.Batch,
    *,
    acceptance: str = "exact",
    replace: bool = True,
) -> Reservoir[ReservoirState]:
    """Builds a reservoir sampler (Vitter's algorithm R) on fixed-size arrays.

    While it is not full, every row is stored. Once full, the n-th row (n from 1) draws
    a slot uniformly and is stored there if the slot exists: from [0, n - 1] under the
    ``"exact"`` rule, so that each row so far is stored with probability C / n; from
    [0, n] under the ``"published"`` rule of the authors' code, C / (n + 1).

    No cost depends on the capacity: inside a jitted scan, or with the state donated,
    rows are written in place. To replay old rows and then store the new ones, use
    ``sample_and_add``.

    Args:
        capacity: C, number of rows kept, at least 1.
        example: one row as a pytree of ``jax.ShapeDtypeStruct`` (or arrays), without
            the leading axis. Its dtypes are taken as jax takes them: without 64-bit
            types, int64 is int32.
        acceptance: ``"exact"`` or ``"published"``.
        replace: draw sampled rows independently (with replacement, as published) or as
            a uniform subset.

    Returns:
        A ``Reservoir`` of ``init``, ``add``, ``insert``, ``sample`` and
        ``sample_and_add`` of this module with the arguments bound. It equals any other
        that was made with equal arguments.

    Raises:
        ValueError: capacity < 1, an unknown rule, an example without leaves.
        TypeError: an example that jax has no arrays for, such as a string.

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

    References:
        Vitter 1985, Random sampling with a reservoir, algorithm R.
    """
    capacity = checks.check_count("capacity", capacity)
    example = checks.check_example("example", example)
    checks.check_choice("acceptance", acceptance, ACCEPTANCE_RULES)
    return Reservoir(
        init=HashablePartial(init, capacity, example),
        add=HashablePartial(add, acceptance=acceptance),
        insert=insert,
        sample=HashablePartial(sample, replace=replace),
        sample_and_add=HashablePartial(
            sample_and_add, acceptance=acceptance, replace=replace
        ),
    )


# Algorithm R ------------------------------------------------------------------------


def _positions(num_seen: jax.Array, mask: types.Mask) -> jax.Array:
    """Numbers the rows in the stream, from 1; a masked row has that before it."""
    room = memory.MAX_SEEN - num_seen
    # Not jnp.cumsum: on a constant mask its reduce-window crashes XLA's simplifier.
    count = jax.lax.associative_scan(jnp.add, mask.astype(jnp.int32))
    return num_seen + jnp.minimum(count, room)


def _draws(
    key: types.Key, num_seen: jax.Array, mask: types.Mask, acceptance: str
) -> jax.Array:
    nth = jnp.maximum(_positions(num_seen, mask), 1)
    extra = 0 if acceptance == "exact" else 1
    return jax.random.randint(key, mask.shape, 0, nth + extra, jnp.int32)


def _targets(
    state: ReservoirState, draws: jax.Array, mask: types.Mask
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Order and slots of the rows as of ``slots.last_writer``; the new ``num_seen``."""
    capacity = memory.capacity_of(state)
    nth = _positions(state.num_seen, mask)
    # The first C rows fill the slots in order, later ones go where they were drawn.
    targets = jnp.where(nth <= capacity, nth - 1, draws.astype(jnp.int32))
    is_slot = mask & (targets >= 0) & (targets < capacity)
    targets = jnp.where(is_slot, targets, capacity)
    return *slots.last_writer(targets, capacity), nth[-1]
