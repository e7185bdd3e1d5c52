"""Reductions and classification losses that stay finite when no row is valid."""

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, types

F = TypeVar("F", bound=Callable[..., object])


def masked_mean(values: jax.Array, mask: types.Mask | None = None) -> jax.Array:
    """Averages ``values`` over the rows that ``mask`` declares valid.

    Args:
        values: [B], any unit.
        mask: [B] booleans, True = valid; None takes every row.

    Returns:
        Scalar in the unit of ``values``; 0 with zero gradient if no row is valid.

    Raises:
        ValueError: ``mask`` has another shape than ``values``.
        TypeError: ``mask`` is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> values, mask = jnp.array([1.0, 2.0, 9.0]), jnp.array([True, True, False])
        >>> print(lm.losses.masked_mean(values, mask))
        1.5
    """
    values = jnp.asarray(values)
    if mask is None:
        return jnp.mean(values)
    mask = checks.check_mask("mask", mask, values.shape)
    count = jnp.maximum(jnp.sum(mask), 1).astype(values.dtype)
    return jnp.sum(jnp.where(mask, values, 0)) / count


def with_extras(function: F, **extras: types.PyTree) -> F:
    """Binds what a loss is handed beside weights and batch: a key, a model state.

    Args:
        function: any function that takes the extras by their names.
        **extras: bound by their names, unless they are None.

    Returns:
        ``function``, with what was given bound.

    Raises:
        Nothing.

    Example:
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch, key: (weights - batch) ** 2 + key
        >>> print(lm.losses.with_extras(loss_fn, key=1, model_state=None)(3, 2))
        2
    """
    given = {name: value for name, value in extras.items() if value is not None}
    return cast(F, functools.partial(function, **given)) if given else function


def mean_loss(
    loss_fn: types.LossFn,
    weights: types.Params,
    batch: types.Batch,
    mask: types.Mask | None = None,
    row_weights: jax.Array | None = None,
) -> jax.Array:
    """Reduces ``loss_fn`` to its mean over the valid rows of ``batch``.

    Args:
        loss_fn: ``(weights, batch) -> [B]`` per-example losses (nats), or a scalar
            that is taken as the mean where ``mask`` is None.
        weights: any pytree of floating arrays.
        batch: pytree with leaves [B, ...]. Rows with mask False are ignored, but must
            hold values at which the loss has a finite value and gradient.
        mask: [B] booleans, True = valid; None takes every row.
        row_weights: [B], unitless; the sum of losses times weights then stands in the
            place of the mean. None weighs all rows alike.

    Returns:
        Scalar, nats; 0 with zero gradient if no row is valid.

    Raises:
        ValueError: the losses are neither [B] nor, unmasked, a scalar.
        TypeError: the losses are not floating.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2
        >>> batch, mask = jnp.array([1.0, 3.0, 7.0]), jnp.array([True, True, False])
        >>> print(lm.losses.mean_loss(loss_fn, jnp.float32(0), batch, mask))
        5.0
    """
    (num_rows,) = checks.check_rows("batch", batch)
    batch = checks.as_arrays("batch", batch)
    losses = loss_fn(checks.as_arrays("weights", weights), batch)
    is_weighed = mask is not None or row_weights is not None
    checks.check_losses(losses, num_rows, masked=is_weighed)
    if row_weights is None:
        return masked_mean(losses, mask)
    weighed = losses * jnp.asarray(row_weights, losses.dtype)
    return jnp.sum(weighed if mask is None else jnp.where(mask, weighed, 0))


def masked_cross_entropy(
    logits: jax.Array, labels: jax.Array, classes: types.Mask
) -> jax.Array:
    """Cross-entropy of each row over some of the outputs.

    Args:
        logits: [B, Y] unnormalised log-probabilities of all Y classes, nats.
        labels: [B] integer classes in [0, Y).
        classes: [B, Y] booleans, True for the outputs that a row's loss covers, among
            them that of its label.

    Returns:
        [B] losses in nats. Outputs that are not covered get zero gradient.

    Raises:
        ValueError: axes disagree.
        TypeError: ``classes`` is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> logits, labels = jnp.zeros((1, 4)), jnp.array([3])
        >>> classes = jnp.array([[True, False, False, True]])
        >>> print(lm.losses.masked_cross_entropy(logits, labels, classes))
        [0.6931472]
    """
    checks.check_rows("(logits, labels, classes)", (logits, labels, classes))
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    classes = checks.check_mask("classes", classes, logits.shape)
    covered = jnp.where(classes, logits, jnp.finfo(logits.dtype).min)
    return optax.softmax_cross_entropy_with_integer_labels(covered, labels)


def multi_head_cross_entropy(
    logits: jax.Array, labels: jax.Array, tasks: jax.Array, classes_per_task: int
) -> jax.Array:
    """Cross-entropy of each row over the outputs of its own task only.

    Args:
        logits: [B, Y] unnormalised log-probabilities of all Y classes, nats.
        labels: [B] integer classes in [0, Y).
        tasks: [B] integer task ids; task t owns the classes from
            ``t * classes_per_task`` up to, not including, ``(t + 1) *
            classes_per_task``.
        classes_per_task: outputs of one task.

    Returns:
        [B] losses in nats. Outputs of other tasks get zero gradient.

    Raises:
        ValueError: axes disagree or ``classes_per_task`` is not in [1, Y].

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> logits = jnp.array([[9.0, 9.0, 1.0, 1.0]])
        >>> labels, tasks = jnp.array([2]), jnp.array([1])
        >>> print(lm.losses.multi_head_cross_entropy(logits, labels, tasks, 2))
        [0.6931472]
    """
    classes_per_task = checks.check_count("classes_per_task", classes_per_task)
    checks.check_rows("(logits, labels, tasks)", (logits, labels, tasks))
    logits, labels, tasks = map(jnp.asarray, (logits, labels, tasks))
    checks.check_fits(
        "classes_per_task", classes_per_task, "outputs of logits", logits.shape[-1]
    )
    own = jnp.arange(logits.shape[-1])[None, :] // classes_per_task == tasks[:, None]
    return masked_cross_entropy(logits, labels, own)


def asymmetric_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    is_replayed: types.Mask,
    mask: types.Mask | None = None,
) -> jax.Array:
    """Cross-entropy of replayed rows over all outputs, of the others over their own.

    A row that is not replayed competes with the classes of those rows only, so that
    learning a new class does not push the old ones' outputs down (ER-ACE). The paper
    adds the mean over the incoming rows to that over the replayed ones; `weigh_rows`
    and `masked_mean` do either reduction.

    Args:
        logits: [B, Y] unnormalised log-probabilities of all Y classes, nats.
        labels: [B] integer classes in [0, Y).
        is_replayed: [B] booleans, True for rows from a memory.
        mask: [B] booleans, True = valid; the classes of other rows do not count. None
            takes every row.

    Returns:
        [B] losses in nats. Those of incoming rows have zero gradient at the outputs of
        classes that no incoming row has.

    Raises:
        ValueError: axes disagree.
        TypeError: ``is_replayed`` or ``mask`` is not boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> logits, labels = jnp.zeros((3, 4)), jnp.array([2, 3, 0])
        >>> is_replayed = jnp.array([False, False, True])
        >>> print(lm.losses.asymmetric_cross_entropy(logits, labels, is_replayed))
        [0.6931472 0.6931472 1.3862944]

    References:
        Caccia et al. 2022, arXiv:2104.05025.
    """
    checks.check_rows("(logits, labels, is_replayed)", (logits, labels, is_replayed))
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    is_replayed = checks.check_mask("is_replayed", is_replayed, labels.shape)
    is_incoming = ~is_replayed
    if mask is not None:
        is_incoming &= checks.check_mask("mask", mask, labels.shape)
    own = labels[:, None] == jnp.arange(logits.shape[-1])[None, :]
    is_present = jnp.any(own & is_incoming[:, None], axis=0)
    # A row's own class stays in, so that masked rows cannot overflow.
    competes = is_replayed[:, None] | is_present[None, :] | own
    return masked_cross_entropy(logits, labels, competes)


def accuracy(
    logits: jax.Array, labels: jax.Array, mask: types.Mask | None = None
) -> jax.Array:
    """Fraction of valid rows whose largest logit is at the label.

    Args:
        logits: [B, Y] unnormalised log-probabilities, nats.
        labels: [B] integer classes in [0, Y).
        mask: [B] booleans, True = valid; None takes every row.

    Returns:
        Scalar fraction in [0, 1]; 0 if no row is valid.

    Raises:
        ValueError: axes disagree.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> logits, labels = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1, 1])
        >>> print(lm.losses.accuracy(logits, labels))
        0.5
    """
    checks.check_rows("(logits, labels)", (logits, labels))
    hits = jnp.argmax(jnp.asarray(logits), axis=-1) == jnp.asarray(labels)
    return masked_mean(hits.astype(jnp.float32), mask)
