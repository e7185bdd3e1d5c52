"""The shape of a memory: a container of pure functions on rows in fixed slots."""

import functools
from collections.abc import Hashable
from typing import Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

from lamaml_jax import checks, types

MAX_SEEN = 2**31 - 2
"""Where counters of rows stop, so that one more still fits an int32."""

R = TypeVar("R")
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)


class Store(Protocol):
    """What the state of every memory here has; rows fill the slots in order."""

    @property
    def rows(self) -> types.Batch:
        """Leaves [C, ...]."""
        ...

    @property
    def num_seen(self) -> jax.Array:
        """Scalar int32, rows counted so far."""
        ...


class InitFn(Protocol[S_co]):
    """Makes an empty memory."""

    def __call__(self) -> S_co:
        """Returns the state."""
        ...


class AddFn(Protocol[S]):
    """Offers rows [B, ...] in order, skipping those with mask False."""

    def __call__(
        self,
        key: types.Key,
        state: S,
        rows: types.Batch,
        mask: types.Mask | None = None,
    ) -> S:
        """Returns the new state."""
        ...


class InsertFn(Protocol[S]):
    """``AddFn`` with one integer per row, ``draws`` [B], in place of a key."""

    def __call__(
        self,
        state: S,
        rows: types.Batch,
        draws: jax.Array,
        mask: types.Mask | None = None,
    ) -> S:
        """Returns the new state."""
        ...


class SampleFn(Protocol[S_contra]):
    """Draws stored rows: min(size, stored) valid ones, which come first."""

    def __call__(
        self, key: types.Key, state: S_contra, size: int
    ) -> tuple[types.Batch, types.Mask]:
        """Returns rows [size, ...] and their mask [size]."""
        ...


class SampleAndAddFn(Protocol[S]):
    """``SampleFn`` and then ``AddFn`` on the same state, in place in a loop."""

    def __call__(
        self,
        sample_key: types.Key,
        add_key: types.Key,
        state: S,
        size: int,
        rows: types.Batch,
        mask: types.Mask | None = None,
    ) -> tuple[types.Batch, types.Mask, S]:
        """Returns sampled rows [size, ...], their mask [size] and the new state."""
        ...


class Reservoir(NamedTuple, Generic[S]):
    """A memory: pure functions with their sizes bound by a ``make_`` function.

    Memories made with equal arguments are equal and have equal hashes, so that a jitted
    function which takes one as a static argument is not compiled again for another.

    Raises:
        ValueError: from its functions: rows that do not fit those stored, a size < 1.
        TypeError: from its functions: a key that is none, another dtype than the stored
            rows', a mask that is not boolean.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> reservoir = lm.make_reservoir(100, jax.ShapeDtypeStruct((2,), jnp.float32))
        >>> add_key, sample_key = jax.random.split(jax.random.key(0))
        >>> state = reservoir.add(add_key, reservoir.init(), jnp.ones((5, 2)))
        >>> rows, mask = reservoir.sample(sample_key, state, 3)
        >>> print(rows.shape, mask)
        (3, 2) [ True  True  True]
    """

    init: InitFn[S]
    """``init() -> state``, empty."""
    add: AddFn[S]
    """``add(key, state, rows, mask=None) -> state``: offers rows [B, ...]."""
    insert: InsertFn[S]
    """``insert(state, rows, draws, mask=None) -> state``: ``add`` with given draws."""
    sample: SampleFn[S]
    """``sample(key, state, size) -> rows [size, ...], mask [size]``."""
    sample_and_add: SampleAndAddFn[S]
    """``sample_and_add(sample_key, add_key, state, size, rows, mask=None) -> rows
    [size, ...], mask [size], state``: both on the old state, in place in a loop."""


class HashablePartial(functools.partial[R]):
    """A partial that equals another of the same function and bound arguments.

    ``functools.partial`` compares by identity. Bound arguments may be pytrees; their
    leaves must be hashable.
    """

    def _bound(self) -> tuple[Hashable, ...]:
        leaves, tree = jax.tree.flatten((self.args, self.keywords))
        return self.func, tree, *leaves

    def __eq__(self, other: object) -> bool:
        """Compares the functions and what is bound to them."""
        return isinstance(other, HashablePartial) and self._bound() == other._bound()

    def __hash__(self) -> int:
        """Hashes the function and what is bound to it."""
        return hash(self._bound())


def offered(
    state: Store, rows: types.Batch, mask: types.Mask | None
) -> tuple[types.Batch, types.Mask]:
    """Makes jax arrays of rows that fit the stored ones, and a mask of all of them."""
    rows = checks.check_like_stored("rows", rows, state.rows)
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if mask is None:
        return rows, jnp.ones(num_rows, jnp.bool_)
    return rows, checks.check_mask("mask", mask, (num_rows,))


def capacity_of(state: Store) -> int:
    """Number of slots."""
    return jax.tree.leaves(state.rows)[0].shape[0]


def num_stored(state: Store) -> jax.Array:
    """Number of slots that hold a row, scalar int32."""
    return jnp.minimum(state.num_seen, capacity_of(state))
