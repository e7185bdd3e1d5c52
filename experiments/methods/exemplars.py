"""iCaRL's memory: herded rows of every class seen, in equal shares of its slots."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments.methods.problem import Problem

# Rows whose logits are taken at a time when a whole task's are: with convolutions
# their activations, not the rows, are what fills memory.
_CHUNK = 100
_EMPTY = -1


class Exemplars(NamedTuple):
    """Rows of finished tasks, in C slots however many classes share them."""

    images: jax.Array
    """[C, ...]."""
    labels: jax.Array
    """[C] int32 classes, -1 where a slot is empty."""
    ranks: jax.Array
    """[C] int32: as which of its class herding picked the row, from 0."""
    logits: jax.Array
    """[C, Y] of the network at the end of the latest task."""


class TaskRows(NamedTuple):
    """Rows of the current task, from which its exemplars will be herded."""

    images: jax.Array
    """[N, ...], N = ``rows_per_task``."""
    labels: jax.Array
    """[N] int32."""
    count: jax.Array
    """Rows held, int32; they come first."""


def no_exemplars(problem: Problem, weights: lm.Params, capacity: int) -> Exemplars:
    """Builds ``capacity`` empty slots."""
    image = problem.example["image"]
    images = jnp.zeros((capacity, *image.shape), image.dtype)
    logits = jax.eval_shape(problem.logits_fn, weights, images)
    return Exemplars(
        images,
        jnp.full(capacity, _EMPTY, jnp.int32),
        jnp.zeros(capacity, jnp.int32),
        jnp.zeros(logits.shape, logits.dtype),
    )


def no_rows(problem: Problem) -> TaskRows:
    """Builds room for the rows of one task."""
    image, size = problem.example["image"], problem.rows_per_task
    images = jnp.zeros((size, *image.shape), image.dtype)
    return TaskRows(images, jnp.zeros(size, jnp.int32), jnp.int32(0))


def push(rows: TaskRows, batch: lm.Batch, mask: lm.Mask) -> TaskRows:
    """Appends the valid rows; what there is no room for is not kept.

    Args:
        rows: of the current task so far.
        batch: leaves [B, ...], with ``image`` and ``label``.
        mask: [B] booleans, True = valid.

    Returns:
        The rows so far.
    """
    size = rows.labels.shape[0]
    # Not jnp.cumsum: on a constant mask its reduce-window crashes XLA's simplifier.
    place = jax.lax.associative_scan(jnp.add, mask.astype(jnp.int32)) + rows.count
    slots = jnp.where(mask, place - 1, size)
    return TaskRows(
        rows.images.at[slots].set(batch["image"], mode="drop"),
        rows.labels.at[slots].set(batch["label"], mode="drop"),
        jnp.minimum(place[-1], size),
    )


def count_by_class(labels: jax.Array, num_classes: int) -> jax.Array:
    """Counts [num_classes] the ``labels`` [N] of each class; others are not counted."""
    classes = jnp.arange(num_classes)
    return jnp.sum(labels[None, :] == classes[:, None], axis=1, dtype=jnp.int32)


def one_per_class(exemplars: Exemplars, ranks: jax.Array) -> tuple[Exemplars, lm.Mask]:
    """Takes of every class the exemplar of the given rank.

    Args:
        exemplars: C slots.
        ranks: [Y] int32.

    Returns:
        ``Exemplars`` with leaves [Y, ...] and [Y] booleans, True where there is one.
    """
    classes = jnp.arange(ranks.shape[0])
    found = (exemplars.labels[None, :] == classes[:, None]) & (
        exemplars.ranks[None, :] == ranks[:, None]
    )
    slots = jnp.argmax(found, axis=1)
    return jax.tree.map(lambda x: x[slots], exemplars), jnp.any(found, axis=1)


def own_head(logits: jax.Array, labels: jax.Array, classes_per_task: int) -> jax.Array:
    """Takes the outputs of the task that owns each row's class.

    Args:
        logits: [B, Y].
        labels: [B] classes.
        classes_per_task: outputs of one task.

    Returns:
        [B, classes_per_task].
    """
    first = labels // classes_per_task * classes_per_task
    columns = first[:, None] + jnp.arange(classes_per_task)[None, :]
    return jnp.take_along_axis(logits, columns, axis=1)


def herd(features: jax.Array, mask: lm.Mask, size: int) -> tuple[jax.Array, lm.Mask]:
    """Orders rows such that the mean of the first n is near that of all, for every n.

    Args:
        features: [N, F].
        mask: [N] booleans, True = a row to choose from.
        size: rows to choose.

    Returns:
        Indices [size] in the order chosen, and [size] booleans, False from where no row
        was left.

    References:
        Rebuffi et al. 2017, arXiv:1611.07725, algorithm 4.
    """
    count = jnp.sum(mask)
    goal = jnp.sum(jnp.where(mask[:, None], features, 0), axis=0)
    goal = goal / jnp.maximum(count, 1).astype(features.dtype)

    def pick(carry, n) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        total, is_left = carry
        means = (total[None, :] + features) / (n + 1).astype(features.dtype)
        distances = jnp.sum((goal[None, :] - means) ** 2, axis=1)
        best = jnp.argmin(jnp.where(is_left, distances, jnp.inf))
        return (total + features[best], is_left.at[best].set(False)), best

    numbers = jnp.arange(size)
    _, order = jax.lax.scan(pick, (jnp.zeros_like(goal), mask), numbers)
    return order, numbers < count


def _map_logits(problem, weights, images) -> jax.Array:
    """Logits [N, Y] of many images, in memory for ``_CHUNK`` of them."""
    one = lambda image: problem.logits_fn(weights, image[None])[0]
    return jax.lax.map(one, images, batch_size=_CHUNK)


def _herd_task(
    problem, weights, rows: TaskRows, labels, size
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Herds every class of the task that ``rows`` are of.

    Returns ``order, is_row, classes``, each [classes_per_task * size], class by class.
    """
    per_task = problem.classes_per_task
    # Without rows, the classes of task 0: none of them has a row then.
    task = jnp.maximum(labels[0], 0) // per_task
    classes = task * per_task + jnp.arange(per_task)
    logits = _map_logits(problem, weights, rows.images)
    features = own_head(logits, rows.labels, per_task)
    order, is_row = jax.vmap(lambda c: herd(features, labels == c, size))(classes)
    return order.ravel(), is_row.ravel(), jnp.repeat(classes, size)


def renew(
    problem: Problem, weights: lm.Params, old: Exemplars, rows: TaskRows
) -> Exemplars:
    """Herds exemplars of the task that ends and makes room for them.

    Every class seen gets an equal share of the slots; older sets are cut to it in the
    order in which herding built them. A class with fewer rows than its share leaves
    slots empty and, unlike in the published code, does not shorten the others' sets.

    Args:
        problem: network and classes.
        weights: at the end of the task.
        old: exemplars of the tasks before.
        rows: of the task, all of its own classes.

    Returns:
        The exemplars, with the logits that the network gives them now.
    """
    capacity, num_rows = old.labels.shape[0], rows.labels.shape[0]
    size = min(capacity, num_rows)
    labels = jnp.where(jnp.arange(num_rows) < rows.count, rows.labels, _EMPTY)
    order, is_row, new_labels = _herd_task(problem, weights, rows, labels, size)
    new_ranks = jnp.arange(new_labels.shape[0], dtype=jnp.int32) % size

    is_new = count_by_class(labels, problem.num_classes) > 0
    is_seen = is_new | (count_by_class(old.labels, problem.num_classes) > 0)
    share = capacity // jnp.maximum(jnp.sum(is_seen), 1)

    # Candidates: the old slots, then the rows in the order of herding, class by class.
    all_labels = jnp.concatenate([old.labels, new_labels])
    ranks = jnp.concatenate([old.ranks, new_ranks])
    is_held = (old.labels != _EMPTY) & ~is_new[old.labels]
    is_kept = jnp.concatenate([is_held, is_row]) & (ranks < share)
    chosen = jnp.argsort(~is_kept)[:capacity]

    is_old = (chosen < capacity).reshape(-1, *[1] * (rows.images.ndim - 1))
    from_old = old.images[jnp.minimum(chosen, capacity - 1)]
    from_rows = rows.images[order[jnp.maximum(chosen - capacity, 0)]]
    images = jnp.where(is_old, from_old, from_rows)
    labels = jnp.where(is_kept[chosen], all_labels[chosen], _EMPTY)
    logits = _map_logits(problem, weights, images)
    return Exemplars(images, labels, ranks[chosen], logits)


def class_means(
    problem: Problem, weights: lm.Params, exemplars: Exemplars
) -> tuple[jax.Array, lm.Mask]:
    """Averages the outputs that the network gives now to each class's exemplars.

    Args:
        problem: network and classes.
        weights: of the network.
        exemplars: C slots.

    Returns:
        Means [Y, Y], one row per class, and [Y] booleans, True where there are any.
    """
    logits = _map_logits(problem, weights, exemplars.images)
    classes = jnp.arange(problem.num_classes)
    is_own = (exemplars.labels[None, :] == classes[:, None]).astype(logits.dtype)
    counts = jnp.sum(is_own, axis=1)
    sums = jnp.matmul(is_own, logits, precision="highest")
    return sums / jnp.maximum(counts, 1)[:, None], counts > 0
