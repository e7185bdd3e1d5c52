"""Clipped gradient descent, the update that most baselines share."""

import jax
import jax.numpy as jnp
import optax

from experiments.schema.hyperparameters import Hyperparameters

_EPS = 1e-6


def clip_factor(norm: jax.Array, max_norm: float) -> jax.Array:
    """Returns ``min(1, max_norm / (norm + 1e-6))``, by which a gradient is scaled.

    The published methods clip so; ``optax.clip_by_global_norm`` has no such constant
    and differs from it by one part in a million.
    """
    return jnp.minimum(1, max_norm / (norm + _EPS))


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients by ``clip_factor``.

    Args:
        max_norm: bound on the global norm.

    Returns:
        A stateless transformation.
    """

    def update(updates, state, params=None) -> tuple[optax.Updates, optax.OptState]:
        del params
        factor = clip_factor(optax.tree.norm(updates), max_norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def clipped_sgd(hyper: Hyperparameters) -> optax.GradientTransformation:
    """SGD with ``learning_rate`` on gradients clipped to ``max_grad_norm``."""
    return optax.chain(
        clip_by_norm(hyper.max_grad_norm), optax.sgd(hyper.learning_rate)
    )
