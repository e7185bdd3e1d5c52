"""Continual-learning metrics of an accuracy matrix.

``accuracy[..., i, j]`` is the accuracy on task j after training on task i, a fraction.
Leading axes (seeds) are kept.
"""

import jax
import jax.numpy as jnp

from lamaml_jax import checks


def retained_accuracy(accuracy: jax.Array) -> jax.Array:
    """Mean accuracy over all tasks after the last one (RA).

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
