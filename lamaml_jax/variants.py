"""The algorithm's published variants: thin constructors over ``lamaml_transform``.

They bind the arguments in which the variants differ, and hand every other option on to
``lamaml_transform``.
"""

from typing import Unpack

import chex
import optax

from lamaml_jax import step_sizes, transform, types
from lamaml_jax.options import LamamlOptions, with_options_of

_BOUND = ("step_size_tx", "weight_tx")


@with_options_of(transform.lamaml_transform, without=_BOUND)
def lamaml(
    loss_fn: types.LossFn,
    *,
    step_size_init: step_sizes.StepSizeInit = 0.1,
    step_size_learning_rate: optax.ScalarOrSchedule = 0.25,
    **options: Unpack[LamamlOptions],
) -> optax.GradientTransformationExtraArgs:
    """La-MAML: learned step sizes that also scale the weights' update.

    Args:
        loss_fn: as in ``lamaml_transform``.
        step_size_init: initial step sizes, unitless: a number, or any grain.
        step_size_learning_rate: eta, learning rate of the step sizes.
        **options: as in ``lamaml_transform``.

    Returns:
        ``lamaml_transform`` with the asynchronous rule.

    Raises:
        ValueError: see ``lamaml_transform``.
        TypeError: see ``lamaml_transform``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> tx = lm.lamaml(loss_fn, inner_steps=2, step_size_learning_rate=0.1)
        >>> weights = jnp.float32(0)
        >>> updates, state = tx.update(
        ...     jnp.float32(0), tx.init(weights), weights,
        ...     batch=jnp.ones(4), key=jax.random.key(0),
        ... )
        >>> print(updates > 0)  # towards the rows
        True

    References:
        Gupta et al. 2020, arXiv:2007.13904, section 4 ("La-MAML").
    """
    return transform.lamaml_transform(
        loss_fn,
        step_size_init=step_size_init,
        step_size_tx=optax.sgd(step_size_learning_rate),
        **options,
    )


@with_options_of(transform.lamaml_transform, without=_BOUND)
def sync_lamaml(
    loss_fn: types.LossFn,
    *,
    step_size_init: step_sizes.StepSizeInit = 0.1,
    step_size_learning_rate: optax.ScalarOrSchedule = 0.35,
    weight_learning_rate: optax.ScalarOrSchedule = 0.1,
    **options: Unpack[LamamlOptions],
) -> optax.GradientTransformationExtraArgs:
    """Sync: learned step sizes in the inner loop, a fixed rate for the weights.

    Args:
        loss_fn: as in ``lamaml_transform``.
        step_size_init: initial step sizes, unitless: a number, or any grain.
        step_size_learning_rate: eta, learning rate of the step sizes.
        weight_learning_rate: learning rate of the slow weights.
        **options: as in ``lamaml_transform``.

    Returns:
        ``lamaml_transform`` with the synchronous rule.

    Raises:
        ValueError: see ``lamaml_transform``.
        TypeError: see ``lamaml_transform``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> tx = lm.sync_lamaml(
        ...     loss_fn, inner_steps=1, step_size_init=0.5, weight_learning_rate=0.25
        ... )
        >>> weights = jnp.float32(0)
        >>> updates, state = tx.update(
        ...     jnp.float32(0), tx.init(weights), weights,
        ...     batch=jnp.ones(4), key=jax.random.key(0),
        ... )
        >>> print(updates)  # 0.25 * (1 - 0.5) * (1 - 0.5)
        0.0625

    References:
        Gupta et al. 2020, arXiv:2007.13904, section 4 ("Sync La-MAML").
    """
    return transform.lamaml_transform(
        loss_fn,
        step_size_init=step_size_init,
        step_size_tx=optax.sgd(step_size_learning_rate),
        weight_tx=optax.sgd(weight_learning_rate),
        **options,
    )


@with_options_of(transform.lamaml_transform, without=_BOUND)
def cmaml(
    loss_fn: types.LossFn,
    *,
    step_size_init: chex.Numeric = 0.1,
    weight_learning_rate: optax.ScalarOrSchedule = 0.1,
    **options: Unpack[LamamlOptions],
) -> optax.GradientTransformationExtraArgs:
    """C-MAML: one fixed inner rate and a fixed rate for the weights.

    Args:
        loss_fn: as in ``lamaml_transform``.
        step_size_init: the inner rate, one unitless number, which never changes.
        weight_learning_rate: learning rate of the slow weights.
        **options: as in ``lamaml_transform``.

    Returns:
        ``lamaml_transform`` with the synchronous rule and frozen step sizes.

    Raises:
        ValueError: see ``lamaml_transform``.
        TypeError: see ``lamaml_transform``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> tx = lm.cmaml(loss_fn, inner_steps=1, step_size_init=0.5)
        >>> weights = jnp.float32(0)
        >>> _, state = tx.update(
        ...     jnp.float32(0), tx.init(weights), weights,
        ...     batch=jnp.ones(4), key=jax.random.key(0),
        ... )
        >>> print(state.rule_state.step_sizes)  # as before
        0.5

    References:
        Gupta et al. 2020, arXiv:2007.13904, section 3 ("C-MAML").
    """
    return transform.lamaml_transform(
        loss_fn,
        step_size_init=step_size_init,
        step_size_tx=optax.set_to_zero(),
        weight_tx=optax.sgd(weight_learning_rate),
        **options,
    )
