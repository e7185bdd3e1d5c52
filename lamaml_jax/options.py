"""Keyword options that several constructors share, written and typed once."""

import inspect
from collections.abc import Callable
from typing import TypedDict, TypeVar

import chex
import optax

from lamaml_jax import inner_step, types
from lamaml_jax.memory import Reservoir

F = TypeVar("F", bound=Callable[..., object])


class MetaOptions(TypedDict, total=False):
    """Options of ``meta_value_and_grad``, whose docstring describes them."""

    objective: str
    first_order: bool
    rectify: bool
    clip: chex.Numeric | None
    inner_tx: optax.GradientTransformation | None
    adapt_mask: inner_step.AdaptMask
    inner_ad: str
    remat: bool | str
    unroll: int | None


class LamamlOptions(MetaOptions, total=False):
    """Options of ``lamaml_transform`` that its variants hand on."""

    meta_tx: optax.GradientTransformation | None
    inner_steps: int
    reservoir: Reservoir[types.PyTree] | None
    replay_size: int
    replay_weight: chex.Numeric | None
    momentum: chex.Numeric | None
    loss_takes_key: bool
    model_state: types.ModelState
    model_state_fn: types.ModelStateFn | None


def with_options_of(
    source: Callable[..., object], *, without: tuple[str, ...] = ()
) -> Callable[[F], F]:
    """Shows the options of ``source`` in a signature that ends in ``**options``.

    So help pages show them with their defaults, and ``optax.inject_hyperparams``, which
    reads signatures, finds each by its name.

    Args:
        source: its keyword-only parameters take the place of ``**options``, but for
            those that the decorated function has itself.
        without: parameters of ``source`` that are left out.

    Returns:
        A decorator, which changes nothing but the signature.
    """
    offered = inspect.signature(source).parameters.values()

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in kept} | set(without)
        more = [p for p in offered if p.kind is p.KEYWORD_ONLY and p.name not in names]
        signature = own.replace(parameters=kept + more)
        setattr(function, "__signature__", signature)  # noqa: B010
        return function

    return decorate
