"""Continual-learning metrics of accuracies after each task, and along a stream.

After each task: ``accuracy[..., i, j]`` is the accuracy on task j after training on
task i, a fraction. Along a stream, for what happens within tasks too:
``accuracy[..., n, j]`` is the accuracy on task j at evaluation n, and ``tasks[n]`` the
task that was being learnt then, which never decreases. A matrix [T, T] with ``tasks =
arange(T)`` is the coarsest such record. Leading axes (seeds) are kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lamaml_jax import checks


def retained_accuracy(accuracy: jax.Array) -> jax.Array:
    """Mean accuracy over all tasks after the last one (RA).

    Where tasks have classes of their own and as many test rows each, it is the accuracy
    on all classes that the online class-incremental papers call final or average.

    Args:
        accuracy: [..., T, T] fractions.

    Returns:
        [...] fractions.

    Raises:
        ValueError: the last two axes are not square.
        TypeError: not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.875, 0.125], [0.5, 0.75]])
        >>> print(lm.metrics.retained_accuracy(accuracy))
        0.625
    """
    accuracy = checks.check_accuracy(accuracy)
    return jnp.mean(accuracy[..., -1, :], axis=-1)


def _diagonal(accuracy: jax.Array) -> jax.Array:
    return jnp.diagonal(accuracy, axis1=-2, axis2=-1)


def learning_accuracy(accuracy: jax.Array) -> jax.Array:
    """Mean accuracy on each task right after learning it (LA).

    Args:
        accuracy: [..., T, T] fractions.

    Returns:
        [...] fractions.

    Raises:
        ValueError: the last two axes are not square.
        TypeError: not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.875, 0.125], [0.5, 0.75]])
        >>> print(lm.metrics.learning_accuracy(accuracy))
        0.8125
    """
    accuracy = checks.check_accuracy(accuracy)
    return jnp.mean(_diagonal(accuracy), axis=-1)


def backward_transfer_interference(
    accuracy: jax.Array, *, exclude_last: bool = False
) -> jax.Array:
    """Mean change of a task's accuracy from learning it to the end (BTI).

    Args:
        accuracy: [..., T, T] fractions.
        exclude_last: divide by T - 1 and leave out the last task, whose change is
            always 0 (the backward transfer of Lopez-Paz and Ranzato). The default
            divides by T, as La-MAML's published figures do.

    Returns:
        [...] differences of fractions, negative where tasks were forgotten; 0 for one
        task.

    Raises:
        ValueError: the last two axes are not square.
        TypeError: not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.875, 0.125], [0.5, 0.75]])
        >>> print(lm.metrics.backward_transfer_interference(accuracy))
        -0.1875
    """
    accuracy = checks.check_accuracy(accuracy)
    change = accuracy[..., -1, :] - _diagonal(accuracy)
    num_tasks = change.shape[-1]
    divisor = max(num_tasks - 1, 1) if exclude_last else num_tasks
    return jnp.sum(change, axis=-1) / divisor


def forward_transfer(accuracy: jax.Array, initial_accuracy: jax.Array) -> jax.Array:
    """Mean gain on a task just before learning it, over the untrained model (FWT).

    Args:
        accuracy: [..., T, T] fractions.
        initial_accuracy: [..., T] fractions, before any training.

    Returns:
        [...] differences of fractions, averaged over tasks 2 to T; 0 for one task.

    Raises:
        ValueError: axes disagree.
        TypeError: not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.875, 0.125], [0.5, 0.75]])
        >>> untrained = jnp.array([0.125, 0.0625])
        >>> print(lm.metrics.forward_transfer(accuracy, untrained))
        0.0625

    References:
        Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 4.
    """
    accuracy = checks.check_accuracy(accuracy)
    initial_accuracy = checks.check_initial_accuracy(accuracy, initial_accuracy)
    if accuracy.shape[-1] == 1:
        return jnp.zeros(accuracy.shape[:-2])
    before = jnp.diagonal(accuracy, offset=1, axis1=-2, axis2=-1)
    return jnp.mean(before - initial_accuracy[..., 1:], axis=-1)


def forgetting(accuracy: jax.Array) -> jax.Array:
    """Mean drop of the earlier tasks from their best accuracy to the end.

    ``1 / (T - 1) sum_{j < T} (max_{j <= i < T} A_ij - A_Tj)``, with the best taken from
    learning a task on. It misleads where one head serves all classes: a learner that
    names the newest classes whatever it is shown scores high right after each task,
    and so has much to forget, while one that never learns a task forgets nothing.
    Compare methods by `average_anytime_accuracy` and `worst_case_accuracy` there.

    Args:
        accuracy: [..., T, T] fractions. What is above the diagonal is not read.

    Returns:
        [...] differences of fractions, positive where tasks were forgotten and negative
        where they were best at the end; 0 for one task.

    Raises:
        ValueError: the last two axes are not square.
        TypeError: not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.875, 0.125], [0.5, 0.75]])
        >>> print(lm.metrics.forgetting(accuracy))
        0.375

    References:
        Chaudhry et al. 2018, arXiv:1801.10112. That it misleads online:
        Soutif-Cormerais et al. 2023, arXiv:2308.10328.
    """
    accuracy = checks.check_accuracy(accuracy)
    num_tasks = accuracy.shape[-1]
    if num_tasks == 1:
        return jnp.zeros(accuracy.shape[:-2], accuracy.dtype)
    earlier = accuracy[..., :-1, :-1]
    is_learnt = jnp.tril(jnp.ones((num_tasks - 1, num_tasks - 1), bool))
    best = jnp.max(earlier, axis=-2, where=is_learnt, initial=-jnp.inf)
    return jnp.mean(best - accuracy[..., -1, :-1], axis=-1)


def anytime_accuracy(accuracy: jax.Array, tasks: jax.Array) -> jax.Array:
    """Mean accuracy over the tasks seen so far, at every evaluation.

    ``1 / k_n sum_{j <= k_n} A_nj``, where ``k_n`` is the task being learnt at
    evaluation n; the curve that papers on online learning draw.

    Args:
        accuracy: [..., N, T] fractions. Tasks not seen yet are not read.
        tasks: [N] integers in [0, T), not decreasing: the task being learnt.

    Returns:
        [..., N] fractions.

    Raises:
        ValueError: the shapes disagree or are empty.
        TypeError: accuracies that are not floating, or tasks that are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.75, 0.0], [0.25, 0.5], [0.5, 1.0]])
        >>> print(lm.metrics.anytime_accuracy(accuracy, jnp.array([0, 1, 1])))
        [0.75  0.375 0.75 ]

    References:
        Soutif-Cormerais et al. 2023, arXiv:2308.10328.
    """
    accuracy, tasks = checks.check_evaluations(accuracy, tasks)
    is_seen = jnp.arange(accuracy.shape[-1])[None, :] <= tasks[:, None]
    return jnp.mean(accuracy, axis=-1, where=_like(is_seen, accuracy))


def average_anytime_accuracy(accuracy: jax.Array, tasks: jax.Array) -> jax.Array:
    """Mean of the anytime accuracy over all evaluations (AAA).

    ``1 / N sum_n 1 / k_n sum_{j <= k_n} A_nj``. Evaluations count alike, so they should
    be equally far apart.

    Args:
        accuracy: [..., N, T] fractions. Tasks not seen yet are not read.
        tasks: [N] integers in [0, T), not decreasing: the task being learnt.

    Returns:
        [...] fractions.

    Raises:
        ValueError: the shapes disagree or are empty.
        TypeError: accuracies that are not floating, or tasks that are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.75, 0.0], [0.25, 0.5], [0.5, 1.0]])
        >>> print(lm.metrics.average_anytime_accuracy(accuracy, jnp.array([0, 1, 1])))
        0.625

    References:
        Soutif-Cormerais et al. 2023, arXiv:2308.10328.
    """
    return jnp.mean(anytime_accuracy(accuracy, tasks), axis=-1)


def minimum_accuracy(accuracy: jax.Array, tasks: jax.Array) -> jax.Array:
    """Mean over the old tasks of the least accuracy since each ended (min-ACC).

    ``1 / (k - 1) sum_{j < k} min_n A_nj`` over the evaluations after task j, with k the
    last task.

    Args:
        accuracy: [..., N, T] fractions. Read of each task: what follows its end.
        tasks: [N] integers in [0, T), not decreasing: the task being learnt.

    Returns:
        [...] fractions; 0 where there is no old task.

    Raises:
        ValueError: the shapes disagree or are empty.
        TypeError: accuracies that are not floating, or tasks that are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.75, 0.0], [0.25, 0.5], [0.5, 1.0]])
        >>> print(lm.metrics.minimum_accuracy(accuracy, jnp.array([0, 1, 1])))
        0.25

    References:
        De Lange et al. 2023, arXiv:2205.13452.
    """
    accuracy, tasks = checks.check_evaluations(accuracy, tasks)
    every_task = jnp.arange(accuracy.shape[-1])
    is_later = _like(tasks[:, None] > every_task[None, :], accuracy)
    least = jnp.min(accuracy, axis=-2, where=is_later, initial=jnp.inf)
    total = jnp.sum(jnp.where(_like(every_task < tasks[-1], least), least, 0), axis=-1)
    return total / jnp.maximum(tasks[-1], 1).astype(accuracy.dtype)


def worst_case_accuracy(accuracy: jax.Array, tasks: jax.Array) -> jax.Array:
    """Accuracy on the newest task, averaged with the worst of the old ones (WC-ACC).

    ``A_Nk / k + (1 - 1 / k) min-ACC`` with k the last task, counted from 1, and min-ACC
    of `minimum_accuracy`: what a user may rely on at any moment after a task, beside
    what was learnt last.

    Args:
        accuracy: [..., N, T] fractions.
        tasks: [N] integers in [0, T), not decreasing: the task being learnt.

    Returns:
        [...] fractions.

    Raises:
        ValueError: the shapes disagree or are empty.
        TypeError: accuracies that are not floating, or tasks that are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.75, 0.0], [0.25, 0.5], [0.5, 1.0]])
        >>> print(lm.metrics.worst_case_accuracy(accuracy, jnp.array([0, 1, 1])))
        0.625

    References:
        De Lange et al. 2023, arXiv:2205.13452.
    """
    least = minimum_accuracy(accuracy, tasks)
    accuracy, tasks = checks.check_evaluations(accuracy, tasks)
    newest = jnp.take(accuracy[..., -1, :], tasks[-1], axis=-1)
    count = (tasks[-1] + 1).astype(accuracy.dtype)
    return newest / count + (1 - 1 / count) * least


class StabilityGap(NamedTuple):
    """What happens to the old tasks while each later one is learnt.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.75, 0.0], [0.25, 0.5], [0.5, 1.0]])
        >>> gap = lm.metrics.stability_gap(accuracy, jnp.array([0, 1, 1]))
        >>> print(gap.drop, gap.recovery)
        [0.5] [0.25]
    """

    drop: jax.Array
    """[..., T - 1] fractions lost at the worst moment, against the boundary."""
    recovery: jax.Array
    """[..., T - 1] fractions regained from the worst moment to the task's end."""


def stability_gap(accuracy: jax.Array, tasks: jax.Array) -> StabilityGap:
    """Depth of the fall of old tasks after every boundary, and how much comes back.

    With ``B_kn`` the mean accuracy at evaluation n over the tasks before task k: the
    last ``B_k`` of task k - 1 minus the least within task k, and the last within task
    k minus that least. Both name parts of one curve: a drop without a recovery is
    plain forgetting, a drop that is regained is the gap that evaluations after tasks
    alone do not show. Either is as deep as the evaluations are dense.

    Args:
        accuracy: [..., N, T] fractions. Tasks not seen yet are not read.
        tasks: [N] integers in [0, T), not decreasing: the task being learnt.

    Returns:
        Entry k - 1 is of the boundary before task k; NaN if one of the two tasks has no
        evaluation. A drop is negative where the old tasks only gained.

    Raises:
        ValueError: the shapes disagree or are empty.
        TypeError: accuracies that are not floating, or tasks that are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> accuracy = jnp.array([[0.75, 0.0], [0.25, 0.5], [0.5, 1.0]])
        >>> gap = lm.metrics.stability_gap(accuracy, jnp.array([0, 1, 1]))
        >>> print(gap.drop, gap.recovery)
        [0.5] [0.25]

    References:
        De Lange et al. 2023, arXiv:2205.13452, who name the phenomenon and draw it; the
        two numbers are this library's reading of their curves.
    """
    accuracy, tasks = checks.check_evaluations(accuracy, tasks)
    later = jnp.arange(1, accuracy.shape[-1])
    sums = jnp.cumsum(accuracy, axis=-1)[..., :-1]
    old = sums / _like(later.astype(accuracy.dtype), sums)  # [..., N, T - 1]
    last_before, last = (
        jnp.searchsorted(tasks, task, side="right") - 1 for task in (later - 1, later)
    )

    def at(evaluations: jax.Array) -> jax.Array:
        return jnp.diagonal(jnp.take(old, evaluations, axis=-2), axis1=-2, axis2=-1)

    is_within = _like(tasks[:, None] == later[None, :], old)
    low = jnp.min(old, axis=-2, where=is_within, initial=jnp.inf)
    is_known = (tasks[last_before] == later - 1) & (tasks[last] == later)
    is_known = _like(is_known, low)
    return StabilityGap(
        jnp.where(is_known, at(last_before) - low, jnp.nan),
        jnp.where(is_known, at(last) - low, jnp.nan),
    )


def _like(array: jax.Array, other: jax.Array) -> jax.Array:
    """Puts axes of one entry before ``array``, for as many axes as ``other``."""
    return array.reshape((1,) * (other.ndim - array.ndim) + array.shape)
