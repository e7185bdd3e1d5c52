"""A memory of the latest rows of every task, in arrays of fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import lamaml_jax as lm


class RingMemory(NamedTuple):
    """The latest rows of every task."""

    rows: lm.Batch
    """Leaves [T, M, ...]; slots that were never filled hold zeros."""
    num_stored: jax.Array
    """[T] int32, filled slots of each task: its first ones."""
    next_slot: jax.Array
    """[T] int32, where each task's next row goes."""


def init_memory(num_tasks: int, size: int, example: lm.Batch) -> RingMemory:
    """Returns an empty memory of ``size`` rows like ``example`` for every task."""
    shape = (num_tasks, size)
    rows = jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), x.dtype), example)
    return RingMemory(rows, *(jnp.zeros(num_tasks, jnp.int32) for _ in range(2)))


def store(
    memory: RingMemory, rows: lm.Batch, mask: lm.Mask, task: jax.Array
) -> RingMemory:
    """Writes rows of one task over its oldest ones.

    Args:
        memory: M slots for every task.
        rows: leaves [B, ...]. If more than M are valid, the last M are kept.
        mask: [B] booleans; rows with mask False are not stored.
        task: scalar integer.
    """
    size = jax.tree.leaves(memory.rows)[0].shape[1]
    # Not jnp.cumsum: on a constant mask its reduce-window crashes XLA's simplifier.
    count = jax.lax.associative_scan(jnp.add, mask.astype(jnp.int32))
    start, total = memory.next_slot[task], count[-1]
    slots = jnp.where(mask & (count > total - size), (start + count - 1) % size, size)
    stored = jnp.minimum(memory.num_stored[task] + total, size)
    return RingMemory(
        jax.tree.map(
            lambda kept, new: kept.at[task, slots].set(new, mode="drop"),
            memory.rows,
            rows,
        ),
        memory.num_stored.at[task].set(stored),
        memory.next_slot.at[task].set((start + total) % size),
    )
