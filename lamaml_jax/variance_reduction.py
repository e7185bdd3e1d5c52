"""A running meta-gradient of lower variance than that of one draw of the data."""

from typing import Generic, NamedTuple, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp

from lamaml_jax import checks, types

Value = TypeVar("Value", covariant=True)


class GradFn(Protocol[Value]):
    """``meta_value_and_grad``'s function, or any other of its form."""

    def __call__(
        self, params: types.MetaParams, /, *data: types.PyTree, **named: types.PyTree
    ) -> tuple[Value, types.MetaParams]:
        """Returns ``(value, info)`` and the gradients at ``params``."""
        ...


class InitFn(Protocol):
    """Makes the first state of a running meta-gradient."""

    def __call__(self, params: types.MetaParams) -> "VarianceReductionState":
        """Returns a state that has seen no update yet."""
        ...


class ApplyFn(Protocol[Value]):
    """Takes the plain meta-gradient, and corrects the running one."""

    def __call__(
        self,
        params: types.MetaParams,
        state: "VarianceReductionState",
        /,
        *data: types.PyTree,
        **named: types.PyTree,
    ) -> tuple[Value, types.MetaParams, "VarianceReductionState"]:
        """Returns ``(value, info)``, the running gradients and the new state."""
        ...


class VarianceReductionState(NamedTuple):
    """State of ``variance_reduced``.

    No field is called ``step_sizes``, which ``optax.tree.get`` must find once only.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> running = lm.variance_reduced(lm.meta_value_and_grad(loss_fn), 0.5)
        >>> params = lm.MetaParams(weights=jnp.float32(0), step_sizes=jnp.float32(0.5))
        >>> state = running.init(params)
        >>> print(state.weights_before, state.weight_grads, state.num_updates)
        0.0 0.0 0
    """

    weights_before: types.Params
    """Slow weights at the update before, their tree."""
    rates_before: types.Params
    """Step sizes at the update before, their tree."""
    weight_grads: types.Params
    """Running meta-gradient of the weights, their tree; zeros before the first
    update."""
    rate_grads: types.Params
    """Running meta-gradient of the step sizes, their tree."""
    num_updates: jax.Array
    """Scalar int32, updates so far."""


class VarianceReduction(NamedTuple, Generic[Value]):
    """A pair of pure functions, built by ``variance_reduced``.

    Raises:
        ValueError: what the function that takes the plain meta-gradient raises.
        TypeError: as ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> running = lm.variance_reduced(lm.meta_value_and_grad(loss_fn), 0.5)
        >>> params = lm.MetaParams(weights=jnp.float32(0), step_sizes=jnp.float32(0.5))
        >>> data, state = (jnp.ones((2, 1)), jnp.ones(1)), running.init(params)
        >>> (meta_loss, _), grads, state = running.apply(params, state, *data)
        >>> print(meta_loss, grads.weights, state.num_updates)
        0.078125 -0.15625 1
    """

    init: InitFn
    """``init(params) -> state``."""
    apply: ApplyFn[Value]
    """``apply(params, state, *data, **named) -> (value, info), grads, state``."""


def _own(tree: types.Params) -> types.Params:
    """Buffers of the state's own: what the caller holds survives its donation."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def variance_reduced(
    value_and_grad: GradFn[Value], momentum: chex.Numeric
) -> VarianceReduction[Value]:
    """Replaces a meta-gradient by a running one that is corrected at every step.

    ``g_b = grad(w_b; e_b) + momentum * (g_{b-1} - grad(w_{b-1}; e_b))``, where e_b is
    the data of update b, drawn anew each time, and w_b both slow weights and step
    sizes. What two neighbouring gradients on the same data have in common cancels, so
    that the running one averages over the draws without lagging behind the weights.
    Each update takes two meta-gradients.

    Args:
        value_and_grad: from ``meta_value_and_grad``, or any function of that form:
            ``(params, *data, **named) -> (value, info), grads``.
        momentum: r in [0, 1], unitless; 0 is the plain meta-gradient. May be a traced
            scalar.

    Returns:
        A ``VarianceReduction``. The first update gives the plain meta-gradient. A
        non-finite gradient stays in the running one from then on.

    Raises:
        ValueError: ``momentum`` is a Python number outside [0, 1], or no scalar.
        TypeError: ``momentum`` is no real number, ``value_and_grad`` not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> init, apply = lm.variance_reduced(lm.meta_value_and_grad(loss_fn), 0.5)
        >>> params = lm.MetaParams(weights=jnp.float32(0), step_sizes=jnp.float32(0.5))
        >>> support, query = jnp.ones((2, 1)), jnp.ones(1)
        >>> _, grads, state = apply(params, init(params), support, query)
        >>> print(grads.weights)  # the first is the plain one
        -0.15625

    References:
        Wu et al., "Meta Continual Learning Revisited: Implicitly Enhancing Online
        Hessian Approximation via Variance Reduction", ICLR 2024; Cutkosky and Orabona
        2019, arXiv:1905.10018.
    """
    checks.check_callable("value_and_grad", value_and_grad)
    checks.check_share("momentum", momentum)

    def init(params: types.MetaParams) -> VarianceReductionState:
        before = _own(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return VarianceReductionState(
            before.weights,
            before.step_sizes,
            zeros.weights,
            zeros.step_sizes,
            jnp.zeros((), jnp.int32),
        )

    def apply(
        params: types.MetaParams,
        state: VarianceReductionState,
        /,
        *data: types.PyTree,
        **named: types.PyTree,
    ) -> tuple[Value, types.MetaParams, VarianceReductionState]:
        value, grads = value_and_grad(params, *data, **named)
        before = types.MetaParams(state.weights_before, state.rates_before)
        running = types.MetaParams(state.weight_grads, state.rate_grads)
        _, grads_before = value_and_grad(before, *data, **named)
        is_first = state.num_updates == 0

        def correct(
            grad: jax.Array, running: jax.Array, before: jax.Array
        ) -> jax.Array:
            share = jnp.asarray(momentum).astype(grad.dtype)
            return jnp.where(is_first, grad, grad + share * (running - before))

        grads = jax.tree.map(correct, grads, running, grads_before)
        before, running = _own(params), _own(grads)
        state = VarianceReductionState(
            before.weights,
            before.step_sizes,
            running.weights,
            running.step_sizes,
            state.num_updates + 1,
        )
        return value, grads, state

    return VarianceReduction(init, apply)
