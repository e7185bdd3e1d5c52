"""GEM and A-GEM: past tasks' gradients, taken on a memory of each, constrain a step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lamaml_jax as lm
from experiments.methods.common import valid_rows
from experiments.methods.cost import Cost, bytes_of, updates_per_row
from experiments.methods.descent import clip_factor
from experiments.methods.problem import Problem
from experiments.methods.projection import end_of, project, project_on_mean
from experiments.methods.ring import RingMemory, init_memory, store
from experiments.schema.fields import Rate, UpTo
from experiments.schema.hyperparameters import Hyperparameters
from experiments.support.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodicHyperparameters(Hyperparameters):
    """What GEM and A-GEM are told besides."""

    memory_per_task: Annotated[int, UpTo(2**31 - 2)]
    """Rows kept of each task."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemHyperparameters(EpisodicHyperparameters):
    """What GEM alone is told."""

    margin: Rate
    """Least weight of a past task's gradient in a projection."""


class EpisodicState(NamedTuple):
    """State of GEM and A-GEM."""

    weights: lm.Params
    memory: RingMemory


class EpisodicInfo(NamedTuple):
    """What one update reports."""

    loss: jax.Array
    """Mean loss of the incoming rows before the update, nats."""
    grad_norm: jax.Array
    """Global norm of their gradient before clipping."""
    violations: jax.Array
    """int32, constraints that the clipped gradient violates: of GEM's, one for each
    past task; of A-GEM's, one in all."""


class Gradient(NamedTuple):
    """A gradient of given rows."""

    loss: jax.Array
    """Mean loss of the rows it was taken on, nats."""
    norm: jax.Array
    """Global norm before clipping."""
    clipped: lm.Params
    """By its global norm."""


GradientFn = Callable[[lm.Params, lm.Batch, lm.Mask], Gradient]


def clipped_gradient(
    loss_fn: lm.LossFn,
    max_norm: float,
    weights: lm.Params,
    rows: lm.Batch,
    mask: lm.Mask,
) -> Gradient:
    """Gradient of the mean loss of the valid rows, clipped by its global norm.

    The factor is ``min(1, max_norm / (norm + 1e-6))``, as published. No valid row gives
    a loss and a gradient of 0.
    """
    loss, grads = jax.value_and_grad(
        lambda weights: lm.losses.mean_loss(loss_fn, weights, rows, mask)
    )(weights)
    norm = optax.tree.norm(grads)
    factor = clip_factor(norm, max_norm)
    return Gradient(loss, norm, optax.tree.scale(factor, grads))


def _gradient_fn(loss_fn: lm.LossFn, hyper: Hyperparameters) -> GradientFn:
    return functools.partial(clipped_gradient, loss_fn, hyper.max_grad_norm)


def _visit_past(gradient_fn, weights, memory, is_past, carry, visit) -> Any:
    """Hands each past task's clipped gradient to ``visit(task, gradient, carry)``.

    Tasks after the last one that is past cost nothing; one before it that is not past
    gives a gradient of 0.
    """
    places = jnp.arange(jax.tree.leaves(memory.rows)[0].shape[1])

    def body(task, carry) -> Any:
        rows = jax.tree.map(lambda x: x[task], memory.rows)
        mask = (places < memory.num_stored[task]) & is_past[task]
        return visit(task, gradient_fn(weights, rows, mask).clipped, carry)

    return jax.lax.fori_loop(0, end_of(is_past), body, carry)


def past_gradients(
    gradient_fn: GradientFn,
    weights: lm.Params,
    memory: RingMemory,
    is_past: jax.Array,
    past: lm.Params,
) -> lm.Params:
    """Writes the clipped gradients of past tasks into ``past``, leaves [T, ...]."""

    def visit(task, gradient, past) -> lm.Params:
        return jax.tree.map(lambda all_, one: all_.at[task].set(one), past, gradient)

    return _visit_past(gradient_fn, weights, memory, is_past, past, visit)


def mean_past_gradient(
    gradient_fn: GradientFn,
    weights: lm.Params,
    memory: RingMemory,
    is_past: jax.Array,
) -> lm.Params:
    """Mean over past tasks of their clipped gradients; 0 if there are none."""

    def visit(_, gradient, total) -> lm.Params:
        return jax.tree.map(jnp.add, total, gradient)

    zeros = jax.tree.map(jnp.zeros_like, weights)
    total = _visit_past(gradient_fn, weights, memory, is_past, zeros, visit)
    count = jnp.maximum(jnp.sum(is_past), 1)
    return jax.tree.map(lambda leaf: leaf / count.astype(leaf.dtype), total)


def _descend(
    weights, rate, gradient, direction, violations
) -> tuple[lm.Params, EpisodicInfo]:
    info = EpisodicInfo(gradient.loss, gradient.norm, violations)
    return jax.tree.map(lambda w, d: w - rate * d, weights, direction), info


def gem_update(loss_fn: lm.LossFn, hyper: GemHyperparameters) -> Callable[..., Any]:
    """Builds GEM's update on given rows and memory.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        hyper: the resolved hyper-parameters.

    Returns:
        ``update((weights, past), batch, mask, memory, is_past) -> (weights, past),
        info``. ``past``, leaves [T, ...], comes back with the gradients of past tasks;
        what it held is written over, so that no update need clear so large an array.
    """
    gradient_fn = _gradient_fn(loss_fn, hyper)

    def update(carry, batch, mask, memory, is_past) -> tuple[Any, EpisodicInfo]:
        weights, past = carry
        gradient = gradient_fn(weights, batch, mask)
        past = past_gradients(gradient_fn, weights, memory, is_past, past)
        found = project(gradient.clipped, past, is_past, hyper.margin)
        weights, info = _descend(
            weights, hyper.learning_rate, gradient, found.gradient, found.violations
        )
        return (weights, past), info

    return update


def agem_update(loss_fn: lm.LossFn, hyper: Hyperparameters) -> Callable[..., Any]:
    """Builds A-GEM's update on given rows and memory.

    Args:
        loss_fn: ``(weights, batch) -> [B]``, nats.
        hyper: the resolved hyper-parameters.

    Returns:
        ``update((weights,), batch, mask, memory, is_past) -> (weights,), info``.
    """
    gradient_fn = _gradient_fn(loss_fn, hyper)

    def update(carry, batch, mask, memory, is_past) -> tuple[Any, EpisodicInfo]:
        (weights,) = carry
        gradient = gradient_fn(weights, batch, mask)
        reference = mean_past_gradient(gradient_fn, weights, memory, is_past)
        direction, violation = project_on_mean(gradient.clipped, reference)
        weights, info = _descend(
            weights, hyper.learning_rate, gradient, direction, violation
        )
        return (weights,), info

    return update


def _check(name: str, problem: Problem, hyper: EpisodicHyperparameters) -> None:
    if not problem.is_task_aware:
        raise UserError(
            f"{name}: needs task ids, which the task-agnostic setting hides"
        )
    if hyper.memory_per_task < 1:
        raise UserError(
            f"memory_per_task: expected at least 1, received {hyper.memory_per_task}"
        )


def _learner(
    problem: Problem,
    hyper: EpisodicHyperparameters,
    start: Callable[..., Any],
    update: Callable[..., Any],
) -> lm.Learner:
    """Keeps a memory of every task and updates ``glances`` times per batch.

    ``start(weights)`` is what the updates on one batch carry, the weights first.
    """

    def init(key: lm.Key, weights: lm.Params) -> EpisodicState:
        del key
        memory = init_memory(problem.num_tasks, hyper.memory_per_task, problem.example)
        return EpisodicState(weights, memory)

    def observe(
        key, state, batch, batch_mask=None, remember: Any = True
    ) -> tuple[EpisodicState, EpisodicInfo]:
        del key
        batch_mask = valid_rows(batch, batch_mask)
        task = batch["task"][0]
        memory = store(state.memory, batch, batch_mask & remember, task)
        is_past = memory.num_stored > 0
        is_past &= jnp.arange(problem.num_tasks) != task

        (weights, *_), info = jax.lax.scan(
            lambda carry, _: update(carry, batch, batch_mask, memory, is_past),
            start(state.weights),
            length=hyper.glances,
        )
        return EpisodicState(weights, memory), info

    return lm.Learner(init, observe)


def cost(problem: Problem, hyper: EpisodicHyperparameters) -> Cost:
    """Counts gradients of the batch and of every past task's memory, per glance."""
    per_task = hyper.memory_per_task
    # There are (T - 1) / 2 past tasks on average over the stream.
    rows = hyper.batch_size + per_task * (problem.num_tasks - 1) / 2
    return Cost(
        updates_per_row(hyper) * rows,
        problem.num_tasks * per_task * bytes_of(problem.example),
    )


def gem(problem: Problem, hyper: GemHyperparameters) -> lm.Learner:
    """GEM: no step may raise the loss of a past task's memory, to first order.

    Every task keeps its latest ``memory_per_task`` rows, stored before the first glance
    at them. ``margin`` pulls a projected step towards the past tasks' descent.

    References:
        Lopez-Paz and Ranzato 2017, arXiv:1706.08840. Gradients are clipped as in Gupta
        et al. 2020, arXiv:2007.13904: each on its own, and not after the projection.
    """
    _check("gem", problem, hyper)

    def start(weights) -> tuple[lm.Params, lm.Params]:
        return weights, jax.tree.map(
            lambda leaf: jnp.zeros((problem.num_tasks, *leaf.shape), leaf.dtype),
            weights,
        )

    return _learner(problem, hyper, start, gem_update(problem.loss_fn, hyper))


def agem(problem: Problem, hyper: EpisodicHyperparameters) -> lm.Learner:
    """A-GEM: GEM with one constraint, the mean of the past tasks' gradients.

    The mean is taken over tasks, of gradients on the whole memory of each, clipped one
    by one; the article takes the gradient of some rows drawn from all memories.

    References:
        Chaudhry et al. 2019, arXiv:1812.00420.
    """
    _check("agem", problem, hyper)
    update = agem_update(problem.loss_fn, hyper)
    return _learner(problem, hyper, lambda weights: (weights,), update)
