"""The algorithm's published variants: thin constructors over ``lamaml_transform``.

They bind the arguments in which the variants differ, and pass every other keyword
argument on to ``lamaml_transform``.
"""

from typing import Any

import chex
import optax

from lamaml_jax import transform, types


def lamaml(
    loss_fn: types.LossFn,
    *,
    step_size_init: Any = 0.1,
    step_size_learning_rate: optax.ScalarOrSchedule = 0.25,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """La-MAML: learned step sizes that also scale the weights' update.

    Args:
        loss_fn: as in ``lamaml_transform``.
        step_size_init: initial step sizes.
        step_size_learning_rate: eta, learning rate of the step sizes.
        **options: as in ``lamaml_transform``.

    Returns:
        ``lamaml_transform`` with the asynchronous rule.

    Raises:
        ValueError: see ``lamaml_transform``.
        TypeError: see ``lamaml_transform``.

    References:
        Gupta et al. 2020, arXiv:2007.13904, section 4 ("La-MAML").
    """
    return transform.lamaml_transform(
        loss_fn,
        step_size_init=step_size_init,
        step_size_tx=optax.sgd(step_size_learning_rate),
        **options,
    )


def sync_lamaml(
    loss_fn: types.LossFn,
    *,
    step_size_init: Any = 0.1,
    step_size_learning_rate: optax.ScalarOrSchedule = 0.35,
    weight_learning_rate: optax.ScalarOrSchedule = 0.1,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Sync: learned step sizes in the inner loop, a fixed rate for the weights.

    Args:
        loss_fn: as in ``lamaml_transform``.
        step_size_init: initial step sizes.
        step_size_learning_rate: eta, learning rate of the step sizes.
        weight_learning_rate: learning rate of the slow weights.
        **options: as in ``lamaml_transform``.

    Returns:
        ``lamaml_transform`` with the synchronous rule.

    Raises:
        ValueError: see ``lamaml_transform``.
        TypeError: see ``lamaml_transform``.

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


def cmaml(
    loss_fn: types.LossFn,
    *,
    step_size_init: chex.Numeric = 0.1,
    weight_learning_rate: optax.ScalarOrSchedule = 0.1,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """C-MAML: one fixed inner rate and a fixed rate for the weights.

    Args:
        loss_fn: as in ``lamaml_transform``.
        step_size_init: the inner rate, which never changes.
        weight_learning_rate: learning rate of the slow weights.
        **options: as in ``lamaml_transform``.

    Returns:
        ``lamaml_transform`` with the synchronous rule and frozen step sizes.

    Raises:
        ValueError: see ``lamaml_transform``.
        TypeError: see ``lamaml_transform``.

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
