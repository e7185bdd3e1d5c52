"""iCaRL: herded exemplars, distillation of old heads, nearest mean of exemplars."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods import exemplars
from experiments.methods.common import valid_rows
from experiments.methods.cost import Cost, bytes_of, updates_per_row
from experiments.methods.descent import clipped_sgd
from experiments.methods.exemplars import Exemplars, TaskRows
from experiments.methods.problem import Problem
from experiments.schema.fields import Rate
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class IcarlHyperparameters(Hyperparameters):
    """What iCaRL is told besides."""

    distillation_weight: Rate
    """Weight of the distillation of old heads."""


class IcarlState(NamedTuple):
    """State of iCaRL."""

    weights: lm.Params
    opt_state: optax.OptState
    exemplars: Exemplars
    task_rows: TaskRows


class IcarlInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Cross-entropy plus weighted distillation before the update, nats."""
    distillation: jax.Array
    """The distillation term before its weight, nats."""
    grad_norm: jax.Array
    """Global norm before clipping."""


def icarl_loss(problem: Problem, hyper: IcarlHyperparameters) -> Callable[..., Any]:
    """Builds the loss of iCaRL.

    Args:
        problem: loss and network.
        hyper: gives ``distillation_weight``.

    Returns:
        ``fn(weights, batch, mask, old, old_mask) -> loss, distillation``: the mean
        cross-entropy of the batch, plus, for each past task, the mean over its classes
        of the Kullback-Leibler divergence of its head's outputs from those stored.
        ``old`` are ``Exemplars``, one per class, with leaves [Y, ...]; ``old_mask`` [Y]
        tells which there are.
    """
    per_task = problem.classes_per_task or problem.num_classes

    def fn(weights, batch, mask, old, old_mask) -> tuple[jax.Array, jax.Array]:
        classes = jnp.arange(problem.num_classes)
        logits = problem.logits_fn(weights, old.images)
        new_logs, old_logs = (
            jax.nn.log_softmax(exemplars.own_head(x, classes, per_task))
            for x in (logits, old.logits)
        )
        divergences = jnp.sum(jnp.exp(old_logs) * (old_logs - new_logs), axis=1)
        distillation = jnp.sum(jnp.where(old_mask, divergences, 0)) / per_task
        loss = lm.losses.masked_mean(problem.loss_fn(weights, batch), mask)
        return loss + hyper.distillation_weight * distillation, distillation

    return fn


def _check(problem: Problem, hyper: Hyperparameters) -> None:
    if hyper.capacity is None or hyper.capacity < problem.num_classes:
        raise UserError(
            f"capacity: expected at least the {problem.num_classes} classes, each of "
            f"which keeps an exemplar, received {hyper.capacity}"
        )
    if problem.rows_per_task < 1:
        raise UserError(
            f"rows_per_task: expected at least 1, received {problem.rows_per_task}"
        )


def cost(problem: Problem, hyper: Hyperparameters) -> Cost:
    """Counts gradients of the batch and of an exemplar of every past class, per glance.

    Kept are exemplars with ranks and logits, and all rows of the current task.
    """
    # There are (T - 1) / 2 past tasks on average over the stream.
    past = (problem.classes_per_task or 0) * (problem.num_tasks - 1) / 2
    row = {name: problem.example[name] for name in ("image", "label")}
    rank = jax.ShapeDtypeStruct((), jnp.int32)
    logits = jax.ShapeDtypeStruct((problem.num_classes,), jnp.float32)
    kept = (hyper.capacity or 0) * bytes_of((row, rank, logits))
    return Cost(
        updates_per_row(hyper) * (hyper.batch_size + past),
        kept + problem.rows_per_task * bytes_of(row),
    )


def icarl(problem: Problem, hyper: IcarlHyperparameters) -> lm.Learner:
    """iCaRL: SGD on cross-entropy and on distillation of old heads.

    Each update draws one exemplar of every class seen for the distillation. Exemplars
    are chosen where a task ends, from its rows as they were shown; the buffer for those
    has ``rows_per_task`` rows.

    Raises:
        UserError: fewer exemplars than classes, or no rows per task.

    References:
        Rebuffi et al. 2017, arXiv:1611.07725, with one head per task and logits for
        features, as in Gupta et al. 2020, arXiv:2007.13904.
    """
    _check(problem, hyper)
    tx = clipped_sgd(hyper)
    value_and_grad = jax.value_and_grad(icarl_loss(problem, hyper), has_aux=True)

    def init(key: lm.Key, weights: lm.Params) -> IcarlState:
        del key
        memory = exemplars.no_exemplars(problem, weights, hyper.capacity)
        return IcarlState(weights, tx.init(weights), memory, exemplars.no_rows(problem))

    def observe(
        key, state, batch, batch_mask=None, remember: Any = True
    ) -> tuple[IcarlState, IcarlInfo]:
        batch_mask = valid_rows(batch, batch_mask)
        labels = state.exemplars.labels
        counts = exemplars.count_by_class(labels, problem.num_classes)

        def glance(carry, key) -> tuple[Any, IcarlInfo]:
            weights, opt_state = carry
            limits = jnp.maximum(counts, 1)
            ranks = jax.random.randint(key, counts.shape, 0, limits, jnp.int32)
            old, old_mask = exemplars.one_per_class(state.exemplars, ranks)
            (loss, distillation), grads = value_and_grad(
                weights, batch, batch_mask, old, old_mask
            )
            updates, opt_state = tx.update(grads, opt_state, weights)
            weights = optax.apply_updates(weights, updates)
            info = IcarlInfo(loss, distillation, optax.tree.norm(grads))
            return (weights, opt_state), info

        keys = jax.random.split(key, hyper.glances)
        start = state.weights, state.opt_state
        (weights, opt_state), info = jax.lax.scan(glance, start, keys)
        rows = exemplars.push(state.task_rows, batch, batch_mask & remember)
        return IcarlState(weights, opt_state, state.exemplars, rows), info

    def end_task(key, state) -> IcarlState:
        del key
        rows = state.task_rows
        renewed = exemplars.renew(problem, state.weights, state.exemplars, rows)
        emptied = rows._replace(count=jnp.int32(0))
        return state._replace(exemplars=renewed, task_rows=emptied)

    return lm.Learner(init, observe, end_task)


def icarl_scores(
    problem: Problem, hyper: Hyperparameters
) -> Callable[[IcarlState, jax.Array], jax.Array]:
    """Builds the prediction of iCaRL, by the nearest mean of exemplars.

    Distances are taken over all Y outputs, from the mean of the outputs that the
    network gives a class's exemplars now. As published, only the classes of a row's own
    task compete; that mask is the caller's.

    Args:
        problem: network and classes.
        hyper: not read.

    Returns:
        ``scores(state, images [B, ...]) -> [B, Y]``: minus the squared distance; the
        lowest finite number for classes without exemplars, so that before a task was
        seen its own classes still come before masked ones.
    """
    del hyper

    def scores(state, images) -> jax.Array:
        means, is_held = exemplars.class_means(problem, state.weights, state.exemplars)
        outputs = problem.logits_fn(state.weights, images)
        distances = jnp.sum((outputs[:, None, :] - means[None, :, :]) ** 2, axis=-1)
        lowest = jnp.finfo(distances.dtype).min
        return jnp.where(is_held[None, :], -distances, lowest)

    return scores
