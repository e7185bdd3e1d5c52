"""Type aliases and containers shared by every module; imports nothing of ours."""

from typing import Any, NamedTuple, Protocol, TypeAlias

import chex
import jax

Key: TypeAlias = chex.PRNGKey
"""One jax random key, consumed by the function it is passed to."""
Params: TypeAlias = Any
"""Any pytree of floating arrays."""
Batch: TypeAlias = Any
"""Any pytree of arrays with a common leading example axis."""
Mask: TypeAlias = jax.Array
"""Boolean array, True where a row is valid."""


class LossFn(Protocol):
    """Per-example loss: ``loss_fn(weights, batch) -> [B]`` in nats, unreduced.

    A scalar is accepted wherever every row is valid (no mask is passed).
    """

    def __call__(self, weights: Params, batch: Batch, /) -> jax.Array:
        """Returns the loss of every example of ``batch``."""
        ...


class MetaParams(NamedTuple):
    """What the meta-gradient is taken with respect to."""

    weights: Params
    """Slow weights, any pytree of floating arrays."""
    step_sizes: Params
    """One rate per weight: same tree and leaf shapes as ``weights``, unitless."""
