"""What there is to plot of one meta-update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lamaml_jax import meta, types


class LamamlInfo(NamedTuple):
    """What a person may want to plot of one meta-update; zeros before the first.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> tx = optax.chain(lm.lamaml(loss_fn, inner_steps=2), optax.scale(0.5))
        >>> weights, key = jnp.float32(0), jax.random.key(0)
        >>> _, state = tx.update(
        ...     weights, tx.init(weights), weights, batch=jnp.ones(4), key=key
        ... )
        >>> info = optax.tree.get(state, "info")
        >>> print(info.inner_losses[0], info.frozen_fraction, info.all_finite)
        0.5 0.0 True
    """

    meta_loss: jax.Array
    """Scalar, nats."""
    inner_losses: jax.Array
    """[K] support losses before each inner step, nats."""
    query_losses: jax.Array
    """[K] query losses after each inner step (objective "last": [1]), nats."""
    weight_grad_norm: jax.Array
    """Scalar, nats: global norm of the weights' meta-gradient before ``meta_tx``."""
    step_size_grad_norm: jax.Array
    """Scalar, nats: global norm of the step sizes' meta-gradient before ``meta_tx``."""
    alignment: jax.Array
    """Scalar, the cosine between the summed inner gradients and the weights'
    meta-gradient."""
    step_size_mean: jax.Array
    """Scalar, unitless: mean of all step sizes after the update."""
    step_size_min: jax.Array
    """Scalar, unitless: the smallest of them."""
    step_size_max: jax.Array
    """Scalar, unitless: the largest."""
    frozen_fraction: jax.Array
    """Scalar fraction of the step sizes that are <= 0 after the update."""
    all_finite: jax.Array
    """Scalar boolean: meta-loss and both norms are finite."""


def _floating(value: jax.Array) -> jax.Array:
    return value.astype(jnp.result_type(float))


def empty_info(inner_steps: int, objective: str) -> LamamlInfo:
    """Zeros, each in a buffer of its own so that the state can be donated."""
    dtype = jnp.result_type(float)
    shapes = {
        "inner_losses": (inner_steps,),
        "query_losses": (inner_steps if objective == "mean" else 1,),
    }
    info = LamamlInfo(
        *(jnp.zeros(shapes.get(name, ()), dtype) for name in LamamlInfo._fields)
    )
    return info._replace(all_finite=jnp.zeros((), jnp.bool_))


def make_info(
    meta_loss: jax.Array,
    meta_info: meta.MetaInfo,
    grads: types.MetaParams,
    rates: types.StepSizes,
) -> LamamlInfo:
    """Norms of the gradients before meta_tx, statistics of the rates after it."""
    weight_norm = _floating(optax.tree.norm(grads.weights))
    rate_norm = _floating(optax.tree.norm(grads.step_sizes))
    meta_loss = _floating(meta_loss)
    leaves = [_floating(leaf) for leaf in jax.tree.leaves(rates)]
    count = max(sum(leaf.size for leaf in leaves), 1)
    return LamamlInfo(
        meta_loss=meta_loss,
        inner_losses=_floating(meta_info.inner_losses),
        query_losses=_floating(meta_info.query_losses),
        weight_grad_norm=weight_norm,
        step_size_grad_norm=rate_norm,
        alignment=_floating(meta_info.alignment),
        step_size_mean=jnp.sum(jnp.stack([jnp.sum(leaf) for leaf in leaves])) / count,
        step_size_min=jnp.min(
            jnp.stack([jnp.min(leaf, initial=jnp.inf) for leaf in leaves])
        ),
        step_size_max=jnp.max(
            jnp.stack([jnp.max(leaf, initial=-jnp.inf) for leaf in leaves])
        ),
        frozen_fraction=jnp.sum(
            jnp.stack([jnp.sum(_floating(leaf <= 0)) for leaf in leaves])
        )
        / count,
        all_finite=jnp.isfinite(meta_loss)
        & jnp.isfinite(weight_norm)
        & jnp.isfinite(rate_norm),
    )
