"""Support and query sets, cut from an incoming batch and replayed rows."""

import chex
import jax
import jax.numpy as jnp

from lamaml_jax import checks, types


def split_support(
    key: types.Key, batch: types.Batch, batch_mask: types.Mask | None, inner_steps: int
) -> tuple[types.Batch, types.Mask, types.Batch, types.Mask]:
    """Shuffles a batch and deals it into K inner batches of ceil(B / K) rows.

    Args:
        key: consumed.
        batch: pytree with leaves [B, ...].
        batch_mask: [B] booleans, True = valid; None takes every row. Valid rows are
            dealt first.
        inner_steps: K, at least 1. Of more steps than rows, the last ones get no valid
            row: an inner step on them changes nothing.

    Returns:
        ``support`` leaves [K, ceil(B / K), ...] and its mask; the shuffled rows [B,
        ...] and their mask. Padding repeats the last shuffled row and is masked.

    Raises:
        ValueError: K < 1, or leading axes disagree.
        TypeError: ``batch_mask`` is not boolean.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> rows = jnp.arange(5)
        >>> support, mask, *_ = lm.split_support(jax.random.key(0), rows, None, 2)
        >>> print(support.shape, int(mask.sum()))
        (2, 3) 5
    """
    checks.check_key("key", key)
    inner_steps = checks.check_count("inner_steps", inner_steps)
    (num_rows,) = checks.check_rows("batch", batch)
    batch = checks.as_arrays("batch", batch)
    order = jax.random.permutation(key, num_rows)
    if batch_mask is None:
        row_mask = jnp.ones(num_rows, jnp.bool_)
    else:
        mask = checks.check_mask("batch_mask", batch_mask, (num_rows,))
        order = order[jnp.argsort(~mask[order], stable=True)]
        row_mask = mask[order]
    rows = jax.tree.map(lambda leaf: leaf[order], batch)
    per_step = -(-num_rows // inner_steps)
    slots = jnp.arange(inner_steps * per_step)
    source = jnp.minimum(slots, num_rows - 1).reshape(inner_steps, per_step)
    support_mask = row_mask[source] & (slots < num_rows).reshape(source.shape)
    support = jax.tree.map(lambda leaf: leaf[source], rows)
    return support, support_mask, rows, row_mask


def join_replay(
    replayed: types.Batch,
    replay_mask: types.Mask,
    batch: types.Batch,
    batch_mask: types.Mask | None,
) -> tuple[types.Batch, types.Mask]:
    """Places replayed rows before the incoming ones.

    Slots without a replayed row repeat an incoming one, masked out, so that the loss
    stays finite on them.

    Args:
        replayed: pytree with leaves [R, ...].
        replay_mask: [R] booleans, True = valid.
        batch: pytree with leaves [B, ...], the same tree.
        batch_mask: [B] booleans, True = valid; None takes every row.

    Returns:
        The query, leaves [R + B, ...], and its mask [R + B].

    Raises:
        ValueError: leading axes disagree.
        TypeError: a mask is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> old, stored = jnp.array([7, 0]), jnp.array([True, False])
        >>> query, mask = lm.join_replay(old, stored, jnp.array([1, 2]), None)
        >>> print(query, mask)
        [7 1 1 2] [ True False  True  True]
    """
    (num_replayed,) = checks.check_rows("replayed", replayed)
    (num_rows,) = checks.check_rows("batch", batch)
    replayed = checks.as_arrays("replayed", replayed)
    batch = checks.as_arrays("batch", batch)
    is_replayed = checks.check_mask("replay_mask", replay_mask, (num_replayed,))
    if batch_mask is None:
        batch_mask = jnp.ones(num_rows, jnp.bool_)
    batch_mask = checks.check_mask("batch_mask", batch_mask, (num_rows,))

    def join(old: jax.Array, new: jax.Array) -> jax.Array:
        valid = is_replayed.reshape((-1,) + (1,) * (old.ndim - 1))
        return jnp.concatenate([jnp.where(valid, old, new[:1]), new])

    query = jax.tree.map(join, replayed, batch)
    return query, jnp.concatenate([is_replayed, batch_mask])


def weigh_rows(
    replay_mask: types.Mask, batch_mask: types.Mask, replay_weight: chex.Numeric
) -> jax.Array:
    """Weighs the rows of a query so that replayed and incoming ones count as told.

    The mean loss over the replayed rows gets the weight r, that over the incoming ones
    1 - r, however many there are of each. Pooled, as published, the share of replayed
    rows is R / (R + B).

    Args:
        replay_mask: [R] booleans, True = valid.
        batch_mask: [B] booleans.
        replay_weight: r in [0, 1], unitless; may be traced. Where no replayed row is
            valid, incoming ones count 1.

    Returns:
        [R + B] unitless weights of the rows in the order of ``join_replay``. They add
        up to 1, and rows that are not valid have 0.

    Raises:
        ValueError: ``replay_weight`` is a Python number outside [0, 1].
        TypeError: ``replay_weight`` is no number.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> replay_mask = jnp.array([True, True, False])
        >>> print(lm.weigh_rows(replay_mask, jnp.ones(2, bool), 0.5))
        [0.25 0.25 0.   0.25 0.25]
    """
    checks.check_share("replay_weight", replay_weight)
    dtype = jnp.result_type(float)
    replayed = replay_mask.astype(dtype)
    incoming = batch_mask.astype(dtype)
    share = jnp.asarray(replay_weight, dtype)
    share = jnp.where(jnp.any(replay_mask), share, 0)
    return jnp.concatenate(
        [
            replayed * (share / jnp.maximum(jnp.sum(replayed), 1)),
            incoming * ((1 - share) / jnp.maximum(jnp.sum(incoming), 1)),
        ]
    )
