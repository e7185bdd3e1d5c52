"""A sample of an unbounded stream that is balanced over classes, in fixed arrays."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lamaml_jax import checks, memory, reservoir, slots, types
from lamaml_jax.memory import HashablePartial, Reservoir


class BalancedReservoirState(NamedTuple):
    """Stored rows, their classes, and what has been seen of each class.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> memory = lm.make_balanced_reservoir(
        ...     3, jax.ShapeDtypeStruct((), jnp.int32), num_classes=2,
        ...     label_fn=lambda rows: rows % 2,
        ... )
        >>> state = memory.add(jax.random.key(0), memory.init(), jnp.array([10, 11]))
        >>> print(state.rows, state.labels, state.class_seen)  # label 2: no row
        [10 11  0] [0 1 2] [1 1]
    """

    rows: types.Batch
    """Leaves [C, ...]; slots that were never filled hold zeros."""
    num_seen: jax.Array
    """Scalar int32, valid rows offered so far; stays at 2**31 - 2 once there."""
    labels: jax.Array
    """[C] int32, the class of each stored row; Y where none is stored."""
    class_seen: jax.Array
    """[Y] int32, valid rows offered so far of each class."""
    was_largest: jax.Array
    """[Y] booleans: the class had the most rows at some time since the memory was
    full. Such a class is called full."""


class _Counts(NamedTuple):
    """What placing a row changes, all but the rows themselves."""

    num_seen: jax.Array
    labels: jax.Array
    class_stored: jax.Array
    class_seen: jax.Array
    was_largest: jax.Array


LabelFn = Callable[[types.Batch], jax.Array]
"""``rows [B, ...] -> classes [B]``, integers."""


def init(
    capacity: int, example: types.Batch, *, num_classes: int
) -> BalancedReservoirState:
    """Makes an empty memory.

    Args:
        capacity: C, number of rows kept, at least 1.
        example: one row as a pytree of ``jax.ShapeDtypeStruct`` or arrays.
        num_classes: Y, at least 1.

    Returns:
        The state, every array in a buffer of its own.

    Raises:
        ValueError: a size < 1, an example without leaves.
        TypeError: an example that jax has no arrays for.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import balanced_reservoir
        >>> row = jax.ShapeDtypeStruct((), jnp.int32)
        >>> state = balanced_reservoir.init(2, row, num_classes=3)
        >>> print(state.labels, state.class_seen)
        [3 3] [0 0 0]
    """
    num_classes = checks.check_count("num_classes", num_classes)
    rows, num_seen = reservoir.init(capacity, example)
    return BalancedReservoirState(
        rows,
        num_seen,
        jnp.full(capacity, num_classes, jnp.int32),
        jnp.zeros(num_classes, jnp.int32),
        jnp.zeros(num_classes, jnp.bool_),
    )


def insert(
    state: BalancedReservoirState,
    rows: types.Batch,
    draws: jax.Array,
    mask: types.Mask | None = None,
    *,
    label_fn: LabelFn,
) -> BalancedReservoirState:
    """Offers rows whose places the caller has drawn.

    Args:
        state: from ``init`` or an earlier call.
        rows: pytree with leaves [B, ...], offered in order.
        draws: [B] integers >= 0, used by rows that find the memory full. A row of a
            full class takes the place of the row of its class with this number (from
            0, by slot), if there is one; a row of another class that of the row of
            the largest classes with this number, modulo how many these are.
        mask: [B] booleans, True = valid; None takes every row.
        label_fn: ``rows -> [B]``, the class of each row.

    Returns:
        The new state, that of offering the rows one by one.

    Raises:
        ValueError: rows that do not fit those stored, axes that disagree.
        TypeError: another dtype than the stored rows', a mask that is not boolean,
            draws or classes that are no integers.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import balanced_reservoir
        >>> tens = lambda rows: rows // 10
        >>> row = jax.ShapeDtypeStruct((), jnp.int32)
        >>> state = balanced_reservoir.init(3, row, num_classes=2)
        >>> rows, draws = jnp.array([1, 2, 3, 11, 4]), jnp.array([0, 0, 0, 1, 2])
        >>> state = balanced_reservoir.insert(state, rows, draws, label_fn=tens)
        >>> print(state.rows, state.labels)  # 11 replaced 2; 4 found no third row of 0
        [ 1 11  3] [0 1 0]
    """
    rows, mask = memory.offered(state, rows, mask)
    draws = checks.check_draws("draws", draws, mask.shape[0])
    placed, counts = _place(
        state, rows, mask, draws.astype(jnp.int32), lambda draw, _: draw, label_fn
    )
    return _store(state, rows, placed, counts)


def add(
    key: types.Key,
    state: BalancedReservoirState,
    rows: types.Batch,
    mask: types.Mask | None = None,
    *,
    label_fn: LabelFn,
) -> BalancedReservoirState:
    """Offers rows in order.

    Args:
        key: consumed.
        state: from ``init`` or an earlier call.
        rows: pytree with leaves [B, ...].
        mask: [B] booleans, True = valid; None takes every row.
        label_fn: ``rows -> [B]``, the class of each row.

    Returns:
        The new state, distributed as if the rows had been offered one by one.

    Raises:
        ValueError: rows that do not fit those stored, axes that disagree.
        TypeError: another dtype than the stored rows', a mask that is not boolean,
            classes that are no integers.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import balanced_reservoir
        >>> tens = lambda rows: rows // 10
        >>> row = jax.ShapeDtypeStruct((), jnp.int32)
        >>> state = balanced_reservoir.init(2, row, num_classes=2)
        >>> state = balanced_reservoir.add(
        ...     jax.random.key(0), state, jnp.array([1, 2, 11, 3, 4]), label_fn=tens
        ... )
        >>> print(jnp.sort(state.labels), state.class_seen)
        [0 1] [4 1]
    """
    checks.check_key("key", key)
    rows, mask = memory.offered(state, rows, mask)
    placed, counts = _place(state, rows, mask, *_keys(key, mask), label_fn)
    return _store(state, rows, placed, counts)


def sample_and_add(
    sample_key: types.Key,
    add_key: types.Key,
    state: BalancedReservoirState,
    size: int,
    rows: types.Batch,
    mask: types.Mask | None = None,
    *,
    label_fn: LabelFn,
    replace: bool = True,
) -> tuple[types.Batch, types.Mask, BalancedReservoirState]:
    """Draws stored rows and then offers new ones, in place in a loop.

    Equals ``reservoir.sample`` followed by ``add`` to the same state.

    Args:
        sample_key: consumed by ``sample``.
        add_key: consumed by ``add``.
        state: from ``init`` or an earlier call.
        size: rows to draw, at least 1.
        rows: pytree with leaves [B, ...], offered in order.
        mask: [B] booleans, True = valid; None takes every row.
        label_fn: ``rows -> [B]``, the class of each row.
        replace: draw each row on its own, or a uniform subset.

    Returns:
        The drawn rows, leaves [size, ...], their mask [size], and the new state.

    Raises:
        ValueError: as ``reservoir.sample`` and ``add``.
        TypeError: as ``reservoir.sample`` and ``add``.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import balanced_reservoir
        >>> tens = lambda rows: rows // 10
        >>> keys = jax.random.split(jax.random.key(0))
        >>> row = jax.ShapeDtypeStruct((), jnp.int32)
        >>> state = balanced_reservoir.init(2, row, num_classes=2)
        >>> rows = jnp.array([1, 2])
        >>> state = balanced_reservoir.add(keys[0], state, rows, label_fn=tens)
        >>> old, mask, state = balanced_reservoir.sample_and_add(
        ...     *keys, state, 3, jnp.array([11]), label_fn=tens
        ... )
        >>> print(mask, jnp.sort(state.labels))
        [ True  True False] [0 1]
    """
    checks.check_key("sample_key", sample_key)
    checks.check_key("add_key", add_key)
    size = checks.check_count("size", size)
    rows, mask = memory.offered(state, rows, mask)
    placed, counts = _place(state, rows, mask, *_keys(add_key, mask), label_fn)
    chosen, sampled_mask = slots.draw(
        sample_key, memory.num_stored(state), size, replace=replace
    )
    order, targets = slots.last_writer(placed, memory.capacity_of(state))
    sampled, stored = slots.read_then_write(
        state.rows, chosen, targets, slots.read(rows, order)
    )
    return sampled, sampled_mask, _with_rows(stored, counts)


def make_balanced_reservoir(
    capacity: int,
    example: types.Batch,
    *,
    num_classes: int,
    label_fn: LabelFn,
    replace: bool = True,
) -> Reservoir[BalancedReservoirState]:
    """Builds a memory that keeps as many rows of each class as of any other.

    Class-balancing reservoir sampling. While it is not full, every row is stored. Once
    full, the classes with the most rows are called full, and stay so. A row of a class
    that is not full takes the place of a random row of the classes that are now the
    largest. A row of a full class takes the place of a random row of its own class with
    probability m / n, of which m rows are stored out of n seen, so that each class is
    stored as a reservoir stores it. No class ever has fewer rows than the largest less
    one, unless all its rows are stored.

    A row costs one pass over the capacity's class labels; rows themselves are written
    once per call, in place inside a jitted scan. Rows drawn for replay are drawn
    uniformly from the slots.

    Args:
        capacity: C, number of rows kept, at least 1.
        example: one row as a pytree of ``jax.ShapeDtypeStruct`` (or arrays), without
            the leading axis. Its dtypes are taken as jax takes them: without 64-bit
            types, int64 is int32.
        num_classes: Y, at least 1.
        label_fn: ``rows -> [B]``, the class of each of the rows [B, ...] in [0, Y), an
            integer: ``lambda rows: rows["y"]``, or a task number to balance tasks. A
            row of another class is skipped like one with mask False, so that
            ``num_seen`` tells of it.
        replace: draw sampled rows independently (with replacement) or as a uniform
            subset.

    Returns:
        A ``Reservoir`` whose state is a ``BalancedReservoirState``; it stands wherever
        one of ``make_reservoir`` does. It equals any other that was made with equal
        arguments, the same ``label_fn`` among them.

    Raises:
        ValueError: a size < 1, an example without leaves.
        TypeError: an example that jax has no arrays for, a ``label_fn`` that is no
            function.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> row = {"x": jax.ShapeDtypeStruct((), jnp.float32)}
        >>> row["y"] = jax.ShapeDtypeStruct((), jnp.int32)
        >>> reservoir = lm.make_balanced_reservoir(
        ...     4, row, num_classes=2, label_fn=lambda rows: rows["y"]
        ... )
        >>> rows = {"x": jnp.zeros(50), "y": (jnp.arange(50) >= 48).astype(jnp.int32)}
        >>> state = reservoir.add(jax.random.key(0), reservoir.init(), rows)
        >>> print(jnp.sort(state.rows["y"]))  # the two rows of class 1 are kept
        [0 0 1 1]

    References:
        Chrysakis and Moens 2020, Online continual learning from imbalanced data,
        ICML, algorithm 1.
    """
    capacity = checks.check_count("capacity", capacity)
    example = checks.check_example("example", example)
    num_classes = checks.check_count("num_classes", num_classes)
    checks.check_callable("label_fn", label_fn)
    return Reservoir(
        init=HashablePartial(init, capacity, example, num_classes=num_classes),
        add=HashablePartial(add, label_fn=label_fn),
        insert=HashablePartial(insert, label_fn=label_fn),
        sample=HashablePartial(reservoir.sample, replace=replace),
        sample_and_add=HashablePartial(
            sample_and_add, label_fn=label_fn, replace=replace
        ),
    )


# The algorithm ----------------------------------------------------------------------

DrawFn = Callable[[jax.Array, jax.Array], jax.Array]
"""``(key or number of a row, limit) -> number``, an int32."""


def _keys(key: types.Key, mask: types.Mask) -> tuple[jax.Array, DrawFn]:
    """One key per row, and its draw below a limit that hangs on the rows before."""

    def draw(row_key: jax.Array, limit: jax.Array) -> jax.Array:
        return jax.random.randint(row_key, (), 0, limit, jnp.int32)

    return jax.random.split(key, mask.shape[0]), draw


def _place(
    state: BalancedReservoirState,
    rows: types.Batch,
    mask: types.Mask,
    sources: jax.Array,
    draw_fn: DrawFn,
    label_fn: LabelFn,
) -> tuple[jax.Array, _Counts]:
    """Finds the slot of each row, C for nowhere, and the counts after all of them."""
    labels = checks.check_labels("label_fn", label_fn(rows), mask.shape[0])
    num_classes = state.class_seen.shape[0]
    last = min(num_classes - 1, int(jnp.iinfo(labels.dtype).max))
    is_class = (labels >= 0) & (labels <= last)
    labels = jnp.where(is_class, labels, 0).astype(jnp.int32)
    class_stored = jnp.zeros_like(state.class_seen)
    counts = _Counts(
        state.num_seen,
        state.labels,
        class_stored.at[state.labels].add(1, mode="drop"),
        state.class_seen,
        state.was_largest,
    )

    def place(
        counts: _Counts, row: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[_Counts, jax.Array]:
        return _place_row(counts, *row, draw_fn)

    counts, placed = jax.lax.scan(place, counts, (labels, mask & is_class, sources))
    return placed, counts


def _place_row(
    counts: _Counts,
    label: jax.Array,
    is_valid: jax.Array,
    source: jax.Array,
    draw_fn: DrawFn,
) -> tuple[_Counts, jax.Array]:
    """One row of algorithm 1."""
    num_seen, labels, class_stored, class_seen, was_largest = counts
    capacity, num_classes = labels.shape[0], class_seen.shape[0]
    seen = is_valid.astype(jnp.int32)
    class_seen = class_seen.at[label].set(
        jnp.minimum(class_seen[label], memory.MAX_SEEN - seen) + seen
    )

    # Which rows may have to go: of the own class if it is full, else of the largest.
    is_full = was_largest[label]
    is_largest = class_stored == jnp.max(class_stored)
    # An empty slot has no class; nobody asks while there is one.
    of_largest = is_largest.at[labels].get(mode="fill", fill_value=False)
    candidates = jnp.where(is_full, labels == label, of_largest)
    # Not jnp.cumsum, for the reason given in reservoir.py.
    upto = jax.lax.associative_scan(jnp.add, candidates.astype(jnp.int32))
    num_candidates = jnp.maximum(upto[-1], 1)

    # A full class: below n, stored if below m. Another: any of the candidates.
    limit = jnp.where(is_full, jnp.maximum(class_seen[label], 1), num_candidates)
    number = draw_fn(source, limit)
    number = jnp.where(is_full, number, number % num_candidates)
    is_there = (number >= 0) & (number < upto[-1])
    replaced = jnp.where(is_there, jnp.argmax(upto > number), capacity)
    slot = jnp.where(num_seen < capacity, num_seen, replaced.astype(jnp.int32))
    slot = jnp.where(is_valid, slot, capacity)

    gone = labels.at[slot].get(mode="fill", fill_value=num_classes)
    come = jnp.where(slot < capacity, label, num_classes)
    class_stored = (
        class_stored.at[gone].add(-1, mode="drop").at[come].add(1, mode="drop")
    )
    labels = labels.at[slot].set(label, mode="drop")
    num_seen = jnp.minimum(num_seen, memory.MAX_SEEN - seen) + seen
    is_largest = class_stored == jnp.max(class_stored)
    was_largest |= is_largest & (num_seen >= capacity)
    return _Counts(num_seen, labels, class_stored, class_seen, was_largest), slot


def _store(
    state: BalancedReservoirState,
    rows: types.Batch,
    placed: jax.Array,
    counts: _Counts,
) -> BalancedReservoirState:
    order, targets = slots.last_writer(placed, memory.capacity_of(state))
    stored = slots.write(state.rows, targets, slots.read(rows, order))
    return _with_rows(stored, counts)


def _with_rows(stored: types.Batch, counts: _Counts) -> BalancedReservoirState:
    return BalancedReservoirState(
        stored, counts.num_seen, counts.labels, counts.class_seen, counts.was_largest
    )
