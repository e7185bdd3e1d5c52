"""A running meta-gradient of lower variance than that of one draw of the data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from lamaml_jax import checks, types


class VarianceReductionState(NamedTuple):
    """State of ``variance_reduced``.

    No field is called ``step_sizes``, which ``optax.tree.get`` must find once only.
    """

    weights_before: types.Params
    """Slow weights at the update before."""
    rates_before: types.Params
    """Step sizes at the update before."""
    weight_grads: types.Params
    """Running meta-gradient of the weights; zeros before the first update."""
    rate_grads: types.Params
    """Running meta-gradient of the step sizes."""
    num_updates: jax.Array
    """Scalar int32."""


class VarianceReduction(NamedTuple):
    """A pair of pure functions, built by ``variance_reduced``."""

    init: Callable[[types.MetaParams], VarianceReductionState]
    """``init(params) -> state``."""
    apply: Callable[..., tuple[Any, types.MetaParams, VarianceReductionState]]
    """``apply(params, state, *data) -> (value, info), grads, state``."""


def _own(tree: Any) -> Any:
    """Buffers of the state's own: what the caller holds survives its donation."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def variance_reduced(
    value_and_grad: Callable[..., tuple[Any, types.MetaParams]],
    momentum: chex.Numeric,
) -> VarianceReduction:
    """Replaces a meta-gradient by a running one that is corrected at every step.

    ``g_b = grad(w_b; e_b) + momentum * (g_{b-1} - grad(w_{b-1}; e_b))``, where e_b is
    the data of update b, drawn anew each time, and w_b both slow weights and step
    sizes. What two neighbouring gradients on the same data have in common cancels, so
    that the running one averages over the draws without lagging behind the weights.
    Each update takes two meta-gradients.

    Args:
        value_and_grad: from ``meta_value_and_grad``, or any function of that form:
            ``(params, *data) -> (value, info), grads``.
        momentum: r in [0, 1]; 0 is the plain meta-gradient. May be a traced scalar.

    Returns:
        A ``VarianceReduction``. The first update gives the plain meta-gradient. A
        non-finite gradient stays in the running one from then on.

    Raises:
        ValueError: ``momentum`` is a Python number outside [0, 1], or no scalar.
        TypeError: ``momentum`` is no real number, ``value_and_grad`` not callable.

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
        params: types.MetaParams, state: VarianceReductionState, *data: Any
    ) -> tuple[Any, types.MetaParams, VarianceReductionState]:
        value, grads = value_and_grad(params, *data)
        before = types.MetaParams(state.weights_before, state.rates_before)
        running = types.MetaParams(state.weight_grads, state.rate_grads)
        _, grads_before = value_and_grad(before, *data)
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
