"""Type aliases and containers shared by every module; imports nothing of ours."""

from typing import Any, NamedTuple, Protocol, TypeAlias

import chex
import jax

PyTree: TypeAlias = Any
"""Any pytree."""
Key: TypeAlias = chex.PRNGKey
"""One jax random key, consumed by the function it is passed to."""
Params: TypeAlias = PyTree
"""Any pytree of floating arrays."""
StepSizes: TypeAlias = PyTree
"""Step sizes of any grain: the tree of the weights or a prefix of it, with leaves that
have the shapes of the weights or broadcast to them. A single number is one rate."""
Batch: TypeAlias = PyTree
"""Any pytree of arrays with a common leading example axis."""
ModelState: TypeAlias = PyTree
"""Any pytree of arrays that a model carries beside its weights (running averages)."""
Mask: TypeAlias = jax.Array
"""Boolean array, True where a row is valid."""


class LossFn(Protocol):
    """Per-example loss: ``loss_fn(weights, batch) -> [B]`` in nats, unreduced.

    A scalar is accepted wherever every row is valid (no mask is passed). Where a key
    or a model state is passed on, the loss receives it as ``key=`` or ``model_state=``.
    """

    def __call__(self, weights: Params, batch: Batch, /, **extras: PyTree) -> jax.Array:
        """Returns the loss of every example of ``batch``."""
        ...


class MetaParams(NamedTuple):
    """What the meta-gradient is taken with respect to."""

    weights: Params
    """Slow weights, any pytree of floating arrays."""
    step_sizes: StepSizes
    """Learned rates, unitless: one per weight (the tree and leaf shapes of
    ``weights``), or of a coarser grain, as ``StepSizes``."""


class ModelStateFn(Protocol):
    """One pass that moves what a model carries beside its weights."""

    def __call__(
        self,
        weights: Params,
        model_state: ModelState,
        batch: Batch,
        /,
        **extras: PyTree,
    ) -> ModelState:
        """Returns the model state after ``batch`` was seen at ``weights``."""
        ...
