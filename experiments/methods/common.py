"""What several methods share: rows that are valid, a reservoir, glances at a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments.schema.hyperparameters import Hyperparameters


def valid_rows(batch: lm.Batch, batch_mask: lm.Mask | None) -> lm.Mask:
    """Returns the mask [B] of a batch; all True if there is none."""
    if batch_mask is not None:
        return batch_mask
    return jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)


def make_reservoir(
    hyper: Hyperparameters, example: Mapping[str, jax.ShapeDtypeStruct]
) -> lm.Reservoir:
    """Builds the reservoir that ``hyper`` asks for, of rows like ``example``."""
    return lm.make_reservoir(hyper.capacity, example, acceptance=hyper.acceptance)


def scan_glances(
    glance: Callable[[Any, tuple[lm.Key, jax.Array]], tuple[Any, Any]],
    state: Any,
    key: lm.Key,
    glances: int,
) -> tuple[Any, Any]:
    """Looks at a batch several times.

    Args:
        glance: ``(state, (key, is_last)) -> state, info``, where ``is_last`` tells
            whether the batch is to be remembered now: it is once, at last.
        state: before the first.
        key: split into one for each.
        glances: how many.

    Returns:
        The state, and the infos with a leading axis [glances].
    """
    keys = jax.random.split(key, glances)
    is_last = jnp.arange(glances) == glances - 1
    return jax.lax.scan(glance, state, (keys, is_last))
