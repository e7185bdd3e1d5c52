"""Steps scaled by what each weight is worth: UPGD, for learning without a memory."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, types


class UtilityState(NamedTuple):
    """State of ``scale_by_utility``.

    Example:
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> state = lm.scale_by_utility(0.9, 0.0).init({"w": jnp.ones(2)})
        >>> print(state.utilities["w"])
        [0. 0.]
    """

    utilities: types.Params
    """Running means of each weight's utility, their tree, in the unit of the loss, not
    corrected for their start at 0; float32 at least, as a slow mean needs."""


def scale_by_utility(
    decay: chex.Numeric, noise_scale: chex.Numeric
) -> optax.GradientTransformationExtraArgs:
    """Protects useful weights and perturbs the others (UPGD).

    ``update(updates, state, params, key=key)`` returns ``(g + noise) * (1 -
    sigmoid(u / max(u)))``, where g are the incoming gradients, the noise is normal, and
    u is the running mean of ``-g * w``: to first order, what the loss would rise by if
    weight w were set to zero. The maximum is over all weights. It needs no memory of
    rows, no tasks and no loss: a stream learner at the cost of SGD. Published as

    ``optax.chain(scale_by_utility(0.999, 0.01), optax.add_decayed_weights(0.001),
    optax.scale(-rate))``.

    Of the rules for streams without a memory (IDBD, MetaOptimize, UPGD) it is the one
    whose published form is defined for any network as it stands, and its utility has a
    closed form to be tested against: it is exact for a loss that is affine in each
    weight. IDBD has one for linear models only, and needs a curvature beyond them.

    Args:
        decay: share of the running utility that an update keeps, a number in [0, 1),
            unitless.
        noise_scale: standard deviation of the noise, a number in the unit of the
            gradients, at least 0.

    Returns:
        Transformation whose state is a ``UtilityState``. ``key``, an extra argument, is
        consumed, a new one each time, so that seeds side by side draw their own noise.
        Where no weight has a positive utility, those of negative utility take their
        whole steps and those of zero utility half of them.

    Raises:
        ValueError: a number is out of range, or ``params`` or ``key`` are missing.
        TypeError: a parameter is not floating, or an argument is no real number.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> tx = lm.scale_by_utility(0.9, 0.0)
        >>> weights, grads = jnp.array([1.0, 1.0, 0.0]), jnp.array([-2.0, 2.0, 2.0])
        >>> updates, state = tx.update(
        ...     grads, tx.init(weights), weights, key=jax.random.key(0))
        >>> print(updates)  # useful: 27 % of the step; harmful: 73 %; neither: half
        [-0.5378828  1.4621172  1.       ]

    References:
        Elsayed and Mahmood 2024, arXiv:2404.00781, the global first-order rule. Their
        code divides utilities that are corrected for their start by the largest that is
        not, so that its first ``1 / (1 - decay)`` updates nearly freeze useful weights;
        here the same correction of both cancels.
    """
    checks.check_share("decay", decay)
    checks.check_rate("noise_scale", noise_scale)

    def init_fn(params: types.Params) -> types.PyTree:
        checks.check_floating("params", params)
        wide = lambda leaf: jnp.promote_types(leaf.dtype, jnp.float32)
        # Of the leaf, so that they lie where it does.
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf).astype(wide(leaf)), params
        )
        return UtilityState(zeros)

    def update_fn(
        updates: optax.Updates,
        state: types.PyTree,
        params: types.Params | None = None,
        *,
        key: types.PyTree = None,
        **extra_args: object,
    ) -> tuple[types.PyTree, types.PyTree]:
        del extra_args
        checks.check_given("params", params, "scale_by_utility.update")
        checks.check_given("key", key, "scale_by_utility.update")
        checks.check_key("key", key)
        checks.check_same_tree("updates", updates, "params", params)

        def follow(mean: jax.Array, grad: jax.Array, weight: jax.Array) -> jax.Array:
            kept = jnp.asarray(decay, mean.dtype)
            worth = -grad.astype(mean.dtype) * weight.astype(mean.dtype)
            return kept * mean + (1 - kept) * worth

        utilities = jax.tree.map(follow, state.utilities, updates, params)
        leaves, tree = jax.tree.flatten(utilities)
        largest = jnp.max(jnp.stack([jnp.max(leaf) for leaf in leaves]))
        # Where it is not positive, -u / tiny leaves harmful weights unprotected.
        largest = jnp.maximum(largest, jnp.finfo(largest.dtype).tiny)
        keys = jax.tree.unflatten(tree, list(jax.random.split(key, len(leaves))))

        def scale(grad: jax.Array, utility: jax.Array, key: types.Key) -> jax.Array:
            free = 1 - jax.nn.sigmoid(utility / largest.astype(utility.dtype))
            noise = jax.random.normal(key, grad.shape, grad.dtype)
            noise *= jnp.asarray(noise_scale, grad.dtype)
            return free.astype(grad.dtype) * (grad + noise)

        return jax.tree.map(scale, updates, utilities, keys), UtilityState(utilities)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
