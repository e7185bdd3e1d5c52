"""What several methods share: rows that are valid, a reservoir, glances at a batch."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments.methods.asymmetric import covering_all
from experiments.methods.problem import Problem
from experiments.schema.hyperparameters import Hyperparameters


def valid_rows(batch: lm.Batch, batch_mask: lm.Mask | None) -> lm.Mask:
    """Returns the mask [B] of a batch; all True if there is none."""
    if batch_mask is not None:
        return batch_mask
    return jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)


def make_reservoir(
    problem: Problem,
    hyper: Hyperparameters,
    *,
    example: Mapping[str, jax.ShapeDtypeStruct] | None = None,
    replace: bool = True,
) -> lm.Reservoir:
    """Builds the reservoir that ``hyper`` asks for.

    Args:
        problem: gives the form of one row, and what losses cover.
        hyper: gives capacity and rule, which is exact if it has none.
        example: form of a row that has more than the problem's.
        replace: whether a draw may hold a row twice.
    """
    reservoir = lm.make_reservoir(
        hyper.capacity,
        example or problem.example,
        acceptance=hyper.acceptance or "exact",
        replace=replace,
    )
    return as_replayed(problem, reservoir)


def as_replayed(problem: Problem, reservoir: lm.Reservoir) -> lm.Reservoir:
    """Makes a memory of the problem's rows one whose draws say what losses cover."""
    if problem.is_asymmetric:
        return covering_all(reservoir, problem.num_classes)
    return reservoir


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
