"""POCL: hypergradients of all tasks, those of past tasks made into the shortest one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.common import make_reservoir
from experiments.methods.cost import (
    HESSIAN_PRODUCT,
    Cost,
    bytes_of,
    rows_in_query,
    updates_per_row,
)
from experiments.methods.descent import clipped_sgd
from experiments.methods.problem import Problem
from experiments.methods.replay import make_replay_learner
from experiments.schema.hyperparameters import Hyperparameters

INNER = "is_inner"
"""Field of rows that an inner step is taken on; its values do not matter."""


class PoclInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Mean loss over all rows one step ahead on the current task, nats."""
    num_past: jax.Array
    """Past tasks of which rows were replayed."""
    largest_share: jax.Array
    """Largest of the past tasks' weights, a fraction."""
    grad_norm: jax.Array
    """Global norm before clipping."""


def make_task_fn(problem: Problem) -> Callable[[lm.Batch], jax.Array]:
    """Builds ``tasks_of(rows) -> [B]``: a row's task, or the one that owns its class.

    Raises:
        ValueError: rows carry no task, and tasks share their classes.
    """
    if problem.is_task_aware:
        return lambda rows: rows["task"]
    if problem.classes_per_task is None:
        raise ValueError(
            "a gradient for each task needs task ids or tasks with classes of their own"
        )
    return lambda rows: rows["label"] // problem.classes_per_task


def make_loss(problem: Problem) -> Callable[..., jax.Array]:
    """Builds the loss of rows, of which those of an inner step have a field ``INNER``.

    Returns:
        ``fn(weights, batch) -> [B]``, nats: that of the problem, but in an inner step,
        where one head serves tasks with classes of their own, a row competes with its
        task's classes only.
    """

    def loss_fn(weights, batch) -> jax.Array:
        rows = {name: leaf for name, leaf in batch.items() if name != INNER}
        size = problem.classes_per_task
        if INNER not in batch or problem.is_task_aware or size is None:
            return problem.loss_fn(weights, rows)
        logits, labels = problem.logits_fn(weights, rows["image"]), rows["label"]
        return lm.losses.multi_head_cross_entropy(logits, labels, labels // size, size)

    return loss_fn


def split_tasks(
    tasks: jax.Array, mask: lm.Mask, replay_size: int, num_tasks: int
) -> tuple[lm.Mask, lm.Mask]:
    """Divides rows, replayed ones first, among the past tasks and the current one.

    Args:
        tasks: [R + B] integers.
        mask: [R + B] booleans, True = valid.
        replay_size: R.
        num_tasks: T.

    Returns:
        Masks ``past`` [T, R] and ``current`` [R + B]. The current task is that of the
        incoming rows, or all of theirs if they are of several; it takes the replayed
        rows of these too.
    """
    owns = (tasks[None, :] == jnp.arange(num_tasks)[:, None]) & mask[None, :]
    is_current = jnp.any(owns[:, replay_size:], axis=1)
    past = owns[:, :replay_size] & ~is_current[:, None]
    return past, jnp.any(owns & is_current[:, None], axis=0)


def make_update(
    problem: Problem, hyper: Hyperparameters
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Builds one step of POCL on given rows.

    Args:
        problem: gives the loss and the tasks.
        hyper: gives ``step_size_init`` (the inner rate), ``inner_clip``,
            ``first_order``, ``replay_size`` and the descent's.

    Returns:
        The optimiser and ``update(key, weights, opt_state, rows, mask) -> weights,
        opt_state, info``, the first ``replay_size`` rows being the replayed ones.
    """
    tx, tasks_of = clipped_sgd(hyper), make_task_fn(problem)
    value_and_grad = lm.meta_value_and_grad(
        make_loss(problem),
        objective="last",
        first_order=hyper.first_order,
        rectify=False,
        clip=hyper.inner_clip,
    )

    def update(
        key, weights, opt_state, rows, mask
    ) -> tuple[lm.Params, optax.OptState, PoclInfo]:
        del key
        num_old = hyper.replay_size
        past, current = split_tasks(tasks_of(rows), mask, num_old, problem.num_tasks)
        params = lm.MetaParams(weights, hyper.step_size_init)
        support = jax.tree.map(lambda x: x[None], rows | {INNER: mask})

        # One inner step on a task's rows, then the loss of all rows.
        def hypergradient(support, of_task) -> tuple[jax.Array, lm.Params]:
            masks = of_task[None], mask
            (loss, _), grads = value_and_grad(params, support, rows, *masks)
            return loss, grads.weights

        loss, own = hypergradient(support, current)
        old = jax.tree.map(lambda x: x[:, :num_old], support)
        # One task after another, so that those of which no row was drawn cost nothing.
        others = jax.lax.map(
            lambda of_task: jax.lax.cond(
                jnp.any(of_task),
                lambda: hypergradient(old, of_task)[1],
                lambda: jax.tree.map(jnp.zeros_like, weights),
            ),
            past,
        )
        is_past = jnp.any(past, axis=1)
        shared, shares = lm.mixing.min_norm_gradient(others, is_past)
        grads = jax.tree.map(jnp.add, shared, own)
        updates, opt_state = tx.update(grads, opt_state, weights)
        info = PoclInfo(loss, jnp.sum(is_past), jnp.max(shares), optax.tree.norm(grads))
        return optax.apply_updates(weights, updates), opt_state, info

    return tx, update


def cost(problem: Problem, hyper: Hyperparameters) -> Cost:
    """Counts an inner step on every row, a query for each task seen, the reservoir."""
    per_row = 1 if hyper.first_order else 1 + HESSIAN_PRODUCT
    # There are (T + 1) / 2 tasks on average over the stream, the current one included.
    seen = (problem.num_tasks + 1) / 2
    return Cost(
        updates_per_row(hyper) * (per_row + seen) * rows_in_query(hyper),
        (hyper.capacity or 0) * bytes_of(problem.example),
    )


def pocl(problem: Problem, hyper: Hyperparameters) -> lm.Learner:
    """POCL: the current task's hypergradient plus the shortest mean of past tasks'.

    A task's hypergradient is that of the mean loss over all rows, incoming and
    replayed, after one inner step on its own. The method needs to know which rows
    belong together: their task, or, where rows carry none, the one that owns their
    class. So it is told more than others on a stream without task ids.

    The authors' code draws 300 rows to replay, weighs those past the 300th of a query
    by half, and descends the plain loss on the first task; the weights of past tasks
    start there from those of the step before, here from equal ones.

    Raises:
        ValueError: neither rows nor their classes tell of tasks.

    References:
        Wu et al., "Modeling Previous Task Interrelations via Pareto Optimization",
        ICML 2024.
    """
    reservoir = make_reservoir(problem, hyper)
    return make_replay_learner(make_update(problem, hyper), hyper, reservoir)
