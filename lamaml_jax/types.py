"""Type aliases and containers shared by every module; imports nothing of ours."""

from typing import Any, NamedTuple, Protocol, TypeAlias

import chex
import jax

PyTree: TypeAlias = Any
"""Any pytree."""
Key: TypeAlias = chex.PRNGKey
"""One typed random key, consumed by the function it is passed to.

Example:
    >>> import jax
    >>> import lamaml_jax as lm
    >>> def noisy(key: lm.Key, rows: lm.Batch) -> lm.Batch:
    ...     return rows + jax.random.normal(key, rows.shape)
    >>> print(noisy(jax.random.key(0), jax.numpy.zeros((2, 3))).shape)
    (2, 3)
"""
Params: TypeAlias = PyTree
"""Any pytree of floating arrays, such as the weights of a network.

Example:
    >>> import jax.numpy as jnp
    >>> import lamaml_jax as lm
    >>> def init_weights(num_inputs: int, num_classes: int) -> lm.Params:
    ...     return {"w": jnp.zeros((num_inputs, num_classes))}
    >>> print(init_weights(3, 2)["w"].shape)
    (3, 2)
"""
StepSizes: TypeAlias = PyTree
"""Step sizes of any grain, unitless: the tree of the weights or a prefix of it.

Its leaves have the shapes of the weights, or broadcast to them. A single number is one
rate for all.

Example:
    >>> import jax.numpy as jnp
    >>> import lamaml_jax as lm
    >>> weights = {"body": {"w": jnp.ones(2), "b": jnp.ones(2)}, "head": jnp.ones(2)}
    >>> per_layer: lm.StepSizes = {"body": 0.0, "head": 0.5}
    >>> loss_fn = lambda w, batch: batch @ (w["body"]["w"] * w["head"])
    >>> fast_weights, _ = lm.adapt(loss_fn, weights, per_layer, jnp.ones((1, 1, 2)))
    >>> print(fast_weights["body"]["w"], fast_weights["head"])
    [1. 1.] [0.5 0.5]
"""
Batch: TypeAlias = PyTree
"""Any pytree of arrays whose first axis counts the rows: leaves [B, ...].

Example:
    >>> import jax.numpy as jnp
    >>> import lamaml_jax as lm
    >>> batch: lm.Batch = {"x": jnp.zeros((10, 4)), "y": jnp.zeros(10, jnp.int32)}
    >>> loss_fn = lambda weights, batch: batch["x"] @ weights - batch["y"]
    >>> print(lm.losses.mean_loss(loss_fn, jnp.ones(4), batch))
    0.0
"""
ModelState: TypeAlias = PyTree
"""Any pytree of arrays that a model carries beside its weights (running averages).

Example:
    >>> import jax.numpy as jnp
    >>> import lamaml_jax as lm
    >>> def loss_fn(weights, batch, *, model_state: lm.ModelState):
    ...     return ((batch - model_state["mean"]) * weights - 1) ** 2
    >>> state, support = {"mean": jnp.float32(1)}, jnp.full((1, 1), 3.0)
    >>> weights, _ = lm.adapt(loss_fn, jnp.float32(0), 0.1, support, model_state=state)
    >>> print(weights)  # 0.1 * 2 * (3 - 1)
    0.4
"""
Mask: TypeAlias = jax.Array
"""Booleans, True where a row is valid: [B] beside a batch with leaves [B, ...].

Example:
    >>> import jax.numpy as jnp
    >>> import lamaml_jax as lm
    >>> mask: lm.Mask = jnp.arange(4) < 3
    >>> print(lm.losses.masked_mean(jnp.array([1.0, 2.0, 3.0, 99.0]), mask))
    2.0
"""


class LossFn(Protocol):
    """A loss per example, unreduced: ``loss_fn(weights, batch) -> [B]`` in nats.

    The caller writes it; any function with this signature is one.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> def squared_error(weights: lm.Params, batch: lm.Batch):
        ...     return (batch["x"] @ weights - batch["y"]) ** 2
        >>> loss_fn: lm.LossFn = squared_error
        >>> batch = {"x": jnp.ones((3, 2)), "y": jnp.ones(3)}
        >>> print(lm.losses.mean_loss(loss_fn, jnp.ones(2), batch))
        1.0
    """

    # A gradual tail, ``*args`` and ``**extras`` of Any: a type checker then takes plain
    # functions of weights and batch, too.
    def __call__(
        self, weights: Params, batch: Batch, /, *args: Any, **extras: Any
    ) -> jax.Array:
        """Returns the loss of every example of ``batch``.

        Args:
            weights: any pytree of floating arrays.
            batch: pytree with leaves [B, ...].
            *args: nothing is passed here.
            **extras: ``key=`` and ``model_state=``, where these are passed on.

        Returns:
            [B], nats. A scalar, the mean, will do wherever every row is valid (no mask
            is passed).

        Raises:
            Nothing is caught, so that its errors reach the caller while tracing.
        """
        ...


class MetaParams(NamedTuple):
    """What the meta-gradient is taken with respect to, and the meta-gradient itself.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> params = lm.MetaParams(weights={"w": jnp.ones(2)}, step_sizes=0.1)
        >>> loss_fn = lambda weights, batch: batch @ weights["w"]
        >>> fn = lm.meta_value_and_grad(loss_fn)
        >>> _, grads = fn(params, jnp.ones((1, 4, 2)), jnp.ones((5, 2)))
        >>> print(grads.weights["w"], grads.step_sizes)
        [1. 1.] -2.0
    """

    weights: Params
    """Slow weights, any pytree of floating arrays."""
    step_sizes: StepSizes
    """Learned rates, unitless: one per weight (the tree and leaf shapes of
    ``weights``), or of a coarser grain, as ``StepSizes``."""


class ModelStateFn(Protocol):
    """One pass that moves what a model carries beside its weights.

    The caller writes it; any function with this signature is one.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import optax
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch, *, model_state: (weights - batch) ** 2
        >>> def move_mean(weights, model_state, batch):
        ...     return 0.75 * model_state + 0.25 * batch.mean()
        >>> fn: lm.ModelStateFn = move_mean
        >>> tx = lm.lamaml(loss_fn, model_state=jnp.float32(0), model_state_fn=fn)
        >>> weights, key = jnp.float32(0), jax.random.key(0)
        >>> _, state = tx.update(
        ...     weights, tx.init(weights), weights, batch=jnp.ones(4), key=key
        ... )
        >>> print(optax.tree.get(state, "model_state"))
        0.25
    """

    def __call__(
        self,
        weights: Params,
        model_state: ModelState,
        batch: Batch,
        /,
        *args: Any,
        **extras: Any,
    ) -> ModelState:
        """Returns the model state after ``batch`` was seen at ``weights``.

        Args:
            weights: any pytree of floating arrays.
            model_state: any pytree of arrays, from the update before.
            batch: pytree with leaves [B, ...], the rows of a query.
            *args: nothing is passed here.
            **extras: ``key=``, where the loss takes one.

        Returns:
            The next model state, the tree, shapes and dtypes of the last.

        Raises:
            Nothing is caught, so that its errors reach the caller while tracing.
        """
        ...
