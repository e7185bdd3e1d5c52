"""Rows in a fixed number of slots: which are drawn, and which write to one wins.

What the memories share. A slot outside [0, C) is nowhere: writes to it are dropped.
"""

import jax
import jax.numpy as jnp

from lamaml_jax import types


def draw(
    key: types.Key, num_stored: jax.Array, size: int, *, replace: bool
) -> tuple[jax.Array, types.Mask]:
    """Draws slots uniformly from the first ``num_stored``.

    Args:
        key: consumed.
        num_stored: scalar int32, slots that hold a row.
        size: how many to draw.
        replace: draw each on its own, or a uniform subset.

    Returns:
        Slots [size] and their mask: min(size, num_stored) are valid, valid ones first.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import slots
        >>> chosen, mask = slots.draw(
        ...     jax.random.key(0), jnp.int32(2), 3, replace=False
        ... )
        >>> print(sorted(chosen[mask].tolist()), mask)
        [0, 1] [ True  True False]
    """
    mask = jnp.arange(size, dtype=jnp.int32) < num_stored
    if not replace:
        return _uniform_subset(key, size, num_stored), mask
    limit = jnp.maximum(num_stored, 1)
    return jax.random.randint(key, (size,), 0, limit, jnp.int32), mask


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


def last_writer(slots: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Sorts writes by slot and sends all but the last to each slot nowhere.

    A scatter with repeated indices has no defined order, so only one write per slot may
    remain.

    Args:
        slots: [B] int32, where each row goes; ``capacity`` for nowhere.
        capacity: C, number of slots.

    Returns:
        The order of the rows [B], and the slot of each row in that order [B].

    Example:
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import slots
        >>> order, targets = slots.last_writer(jnp.array([1, 0, 1]), 2)
        >>> print(order, targets)  # row 0 loses slot 1 to row 2
        [1 0 2] [0 2 1]
    """
    order = jnp.argsort(slots, stable=True)
    ordered = slots[order]
    is_last = jnp.concatenate([ordered[1:] != ordered[:-1], jnp.ones(1, jnp.bool_)])
    return order, jnp.where(is_last, ordered, capacity)


def read(stored: types.Batch, slots: jax.Array) -> types.Batch:
    """Takes the rows at ``slots``.

    Args:
        stored: pytree with leaves [C, ...].
        slots: [R] int32 in [0, C).

    Returns:
        Pytree with leaves [R, ...].

    Example:
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import slots
        >>> print(slots.read(jnp.array([5, 6, 7]), jnp.array([2, 0])))
        [7 5]
    """
    return jax.tree.map(lambda leaf: leaf[slots], stored)


def write(stored: types.Batch, slots: jax.Array, rows: types.Batch) -> types.Batch:
    """Puts each row at its slot.

    Args:
        stored: pytree with leaves [C, ...].
        slots: [B] int32; C and above for nowhere, below C no two equal.
        rows: pytree with leaves [B, ...].

    Returns:
        Pytree with leaves [C, ...].

    Example:
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import slots
        >>> print(slots.write(jnp.zeros(2), jnp.array([1, 2]), jnp.array([8.0, 9.0])))
        [0. 8.]
    """
    return jax.tree.map(
        lambda leaf, new: leaf.at[slots].set(new, mode="drop"), stored, rows
    )


def read_then_write(
    stored: types.Batch,
    read_slots: jax.Array,
    write_slots: jax.Array,
    rows: types.Batch,
) -> tuple[types.Batch, types.Batch]:
    """Reads some slots as they were and writes others, without a copy of the store.

    Args:
        stored: pytree with leaves [C, ...].
        read_slots: [R] int32 in [0, C).
        write_slots: [B] int32, as of ``write``.
        rows: pytree with leaves [B, ...].

    Returns:
        The rows read, leaves [R, ...], and the new store, leaves [C, ...].

    Example:
        >>> import jax.numpy as jnp
        >>> from lamaml_jax import slots
        >>> old, stored = slots.read_then_write(
        ...     jnp.array([5, 6]), jnp.array([0]), jnp.array([0]), jnp.array([9])
        ... )
        >>> print(old, stored)
        [5] [9 6]
    """

    # A write before each read is what XLA does in place, a read before a write it
    # guards with a copy. So the first round writes nowhere and reads what is asked for,
    # the second writes; what that one reads is dropped.
    def write_and_read(
        stored: types.Batch, slots: jax.Array
    ) -> tuple[types.Batch, types.Batch]:
        stored = write(stored, slots, rows)
        return stored, read(stored, read_slots)

    capacity = jax.tree.leaves(stored)[0].shape[0]
    rounds = jnp.stack([jnp.full_like(write_slots, capacity), write_slots])
    stored, both = jax.lax.scan(write_and_read, stored, rounds)
    return jax.tree.map(lambda leaf: leaf[0], both), stored
