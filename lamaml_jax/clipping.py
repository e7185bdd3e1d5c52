"""Clipping of the two meta-gradients, each by its own global norm."""

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, types


def clip_meta_grads(
    max_norm: chex.Numeric, *, eps: chex.Numeric = 1e-6
) -> optax.GradientTransformation:
    """Clips the weights' and the step sizes' meta-gradients separately.

    Each half is scaled by ``min(1, max_norm / (norm + eps))`` with its own global norm;
    ``optax.clip_by_global_norm`` on the pair would let a large gradient of one half
    shrink the other.

    Args:
        max_norm: largest global norm of each half, nats; may be a traced scalar.
        eps: scalar, nats, added to the norm as the published code does.

    Returns:
        A stateless transformation of ``MetaParams``, the ``meta_tx`` of
        ``lamaml_transform``. A non-finite norm makes its half non-finite.

    Raises:
        ValueError: ``max_norm`` is a Python number that is not > 0.
        TypeError: the updates are not ``MetaParams``.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> tx = lm.clip_meta_grads(1.0, eps=0.0)
        >>> grads = lm.MetaParams(weights=jnp.float32(4), step_sizes=jnp.float32(0.5))
        >>> clipped, _ = tx.update(grads, tx.init(grads))
        >>> print(clipped.weights, clipped.step_sizes)
        1.0 0.5
    """
    checks.check_positive("max_norm", max_norm)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        grads = checks.check_is_meta_params("updates", updates)
        return types.MetaParams(*(_clip(half, max_norm, eps) for half in grads)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _clip(
    grads: types.Params, max_norm: chex.Numeric, eps: chex.Numeric
) -> types.Params:
    # Not optax.tree.norm: before optax 0.2.8 its derivative at 0 was NaN.
    squared = optax.tree.norm(grads, squared=True)
    is_zero = squared == 0
    norm = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, squared)))
    factor = jnp.minimum(1, max_norm / (norm + eps))
    return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)
