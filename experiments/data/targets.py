"""What is learnt of a row, a class or real numbers, and how an output is judged."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.support import registry
from experiments.support.errors import UserError
from experiments.support.suggestions import did_you_mean

LossFn = Callable[[jax.Array, jax.Array], jax.Array]
"""``(outputs [B, Y], targets) -> [B]``; targets are int32 [B], or float32 [B, Y]."""
MetricFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""``(outputs [B, Y], targets [B, Y], variance [Y]) -> [B]``: what is averaged over a
task's test rows, ``variance`` being that of their targets."""


class Loss(NamedTuple):
    """What training descends."""

    fn: LossFn
    of_classes: bool = False
    """Whether targets are classes."""
    is_asymmetric: bool = False
    """Whether incoming rows' losses cover the classes of their batch alone."""


class Metric(NamedTuple):
    """What stands in the accuracy matrix; more is better."""

    fn: MetricFn | None
    """None for accuracy, the share of rows whose largest output is their class."""
    title: str
    """For tables."""

    @property
    def of_classes(self) -> bool:
        """Whether targets are classes."""
        return self.fn is None


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over the Y outputs of the squared differences, [B].

    >>> print(squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 4.0]])))
    [2.]
    """
    return jnp.mean((outputs - targets) ** 2, axis=-1)


def absolute_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over the Y outputs of the absolute differences, [B]."""
    return jnp.mean(jnp.abs(outputs - targets), axis=-1)


def huber(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over the Y outputs of Huber's loss, quadratic within 1, [B]."""
    return jnp.mean(optax.huber_loss(outputs, targets), axis=-1)


def r2(outputs: jax.Array, targets: jax.Array, variance: jax.Array) -> jax.Array:
    """Averages over rows to the coefficient of determination, the mean of Y outputs'.

    R^2 = 1 - sum (y - f)^2 / sum (y - mean y)^2: 1 is perfect, 0 what the mean of the
    task's test targets gives, and there is no bound below.

    >>> targets = jnp.array([[0.0], [2.0]])
    >>> print(r2(jnp.ones((2, 1)), targets, jnp.var(targets, axis=0)).mean())
    0.0
    """
    return 1 - jnp.mean((outputs - targets) ** 2 / variance[None, :], axis=-1)


def negative_squared_error(
    outputs: jax.Array, targets: jax.Array, variance: jax.Array
) -> jax.Array:
    """Minus the mean over the Y outputs of the squared differences, [B]."""
    del variance
    return -squared_error(outputs, targets)


CROSS_ENTROPY, ACCURACY = "cross_entropy", "accuracy"
_cross_entropy = optax.softmax_cross_entropy_with_integer_labels
LOSSES: dict[str, Loss] = {
    CROSS_ENTROPY: Loss(_cross_entropy, of_classes=True),
    "asymmetric_cross_entropy": Loss(
        _cross_entropy, of_classes=True, is_asymmetric=True
    ),
    "squared_error": Loss(squared_error),
    "absolute_error": Loss(absolute_error),
    "huber": Loss(huber),
}
METRICS: dict[str, Metric] = {
    ACCURACY: Metric(None, "accuracy"),
    "r2": Metric(r2, "R^2, the coefficient of determination"),
    "negative_squared_error": Metric(
        negative_squared_error, "minus the mean squared error"
    ),
}


def register_loss(name: str, fn: LossFn, of_classes: bool = False) -> None:
    """Adds a person's own loss, for ``loss`` of a benchmark.

    Raises:
        UserError: the name is taken.
    """
    registry.add(LOSSES, "loss", name, Loss(fn, of_classes))


def register_metric(name: str, fn: MetricFn, title: str = "") -> None:
    """Adds a person's own metric of real targets, for ``metric`` of a benchmark.

    Raises:
        UserError: the name is taken.
    """
    registry.add(METRICS, "metric", name, Metric(fn, title or name))


def check_names(loss: str, metric: str) -> None:
    """Checks that a loss and a metric exist, and are of the same targets.

    Raises:
        UserError: they do not, or are not.
    """
    for kind, name, known in (("loss", loss, LOSSES), ("metric", metric, METRICS)):
        if name not in known:
            hint = did_you_mean(name, known) or f"; choose one of: {', '.join(known)}"
            raise UserError(f"{kind}: there is no {name!r}{hint}")
    if LOSSES[loss].of_classes != METRICS[metric].of_classes:
        raise UserError(
            f"loss, metric: {loss!r} and {metric!r}: one is of classes, the other of "
            "real numbers"
        )


def check_targets(loss: str, are_classes: bool) -> None:
    """Checks that a data set's targets are what a loss is of.

    Raises:
        UserError: they are not.
    """
    if LOSSES[loss].of_classes == are_classes:
        return
    if are_classes:
        raise UserError(
            f"loss: {loss!r} is of real numbers, and the labels are classes; make them "
            "floats, or leave loss and metric as they are"
        )
    raise UserError(
        f"loss: {loss!r} is of classes, and the labels are real numbers; say "
        'loss="squared_error" and metric="r2", or make them integers'
    )
