"""Stream learners: ``init`` and ``observe``, scanned over a whole task."""

from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax

from lamaml_jax import checks, transform, types


class LearnerState(NamedTuple):
    """What the next observation needs.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> learner = lm.lamaml_learner(lm.lamaml(loss_fn, step_size_init=0.1))
        >>> state = learner.init(jax.random.key(0), jnp.float32(0))
        >>> print(state.weights, state.opt_state.rule_state.step_sizes)
        0.0 0.1
    """

    weights: types.Params
    """Slow weights, any pytree of floating arrays."""
    opt_state: types.PyTree
    """State of the transformation, reservoir and model state included, a pytree."""


class LearnerInit(Protocol):
    """Makes a learner's first state, which has a field ``weights``."""

    def __call__(self, key: types.Key, weights: types.Params) -> types.PyTree:
        """Returns the state before the first batch; the key is consumed."""
        ...


class Observe(Protocol):
    """Shows a learner one batch."""

    def __call__(
        self,
        key: types.Key,
        state: types.PyTree,
        batch: types.Batch,
        batch_mask: types.Mask | None = None,
        remember: chex.Numeric = True,
    ) -> tuple[types.PyTree, types.PyTree]:
        """Returns the next state, and what there is to plot.

        ``batch`` has leaves [B, ...], ``batch_mask`` [B] is True where a row is valid,
        and ``remember`` is False where the rows were offered to the memory before
        (later epochs). The key is consumed.
        """
        ...


class EndTask(Protocol):
    """Tells a learner that a task has ended."""

    def __call__(self, key: types.Key, state: types.PyTree) -> types.PyTree:
        """Returns the next state; the key is consumed."""
        ...


class Learner(NamedTuple):
    """Pure functions that learn a stream; every method of the experiments is one.

    Two learners are equal if their functions are the same objects. Under ``jax.jit``
    with a learner as a static argument make one and keep it: each new one compiles.

    Raises:
        ValueError: what the functions raise; those of ``lamaml_learner`` where shapes,
            trees or leading axes disagree.
        TypeError: likewise, where dtypes do, or a key is none.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> def observe(key, state, batch, batch_mask=None, remember=True):
        ...     loss_fn = lambda w: lm.losses.masked_mean((w - batch) ** 2, batch_mask)
        ...     loss, grad = jax.value_and_grad(loss_fn)(state.weights)
        ...     return lm.LearnerState(state.weights - 0.25 * grad, ()), loss
        >>> sgd = lm.Learner(lambda key, weights: lm.LearnerState(weights, ()), observe)
        >>> key, stream = jax.random.key(0), jnp.ones((3, 4))
        >>> state = sgd.init(key, jnp.float32(0))
        >>> state, losses = lm.observe_stream(sgd, key, state, stream)
        >>> print(losses)
        [1.     0.25   0.0625]
    """

    init: LearnerInit
    """``init(key, weights) -> state``."""
    observe: Observe
    """``observe(key, state, batch, batch_mask=None, remember=True) -> (state, info)``.
    """
    end_task: EndTask | None = None
    """``end_task(key, state) -> state``, once after the last batch of a task; None for
    learners that need not know where tasks end."""


def lamaml_learner(
    tx: optax.GradientTransformationExtraArgs, *, glances: int = 1
) -> Learner:
    """Learns a stream of batches with ``lamaml_transform`` or a chain around it.

    Every batch is observed ``glances`` times, each time with a new shuffle and new
    replayed rows; its rows enter the reservoir once, after the first meta-update.

    Args:
        tx: from ``lamaml``, ``sync_lamaml``, ``cmaml`` or ``lamaml_transform``, or an
            optax chain with one of them inside.
        glances: meta-updates per incoming batch, at least 1.

    Returns:
        A ``Learner`` whose state is a ``LearnerState`` and whose info is the
        ``LamamlInfo`` of every glance, leaves [glances, ...].

    Raises:
        ValueError: ``glances`` < 1, a wrapper around the transformation that keeps
            batches from it (``optax.MultiSteps``), and what ``lamaml_transform``
            raises.
        TypeError: ``tx`` is not a transformation.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> learner = lm.lamaml_learner(lm.lamaml(loss_fn, inner_steps=2), glances=3)
        >>> state = learner.init(jax.random.key(0), jnp.float32(0))
        >>> state, info = learner.observe(jax.random.key(1), state, jnp.ones(4))
        >>> print(state.weights > 0, info.meta_loss.shape)
        True (3,)
    """
    checks.check_transformation("tx", tx)
    checks.check_hands_on("tx", tx)
    glances = checks.check_count("glances", glances)
    tx = optax.with_extra_args_support(tx)

    def init(key: types.Key, weights: types.Params) -> LearnerState:
        del key
        opt_state = tx.init(weights)
        checks.check_hands_on_state("tx", opt_state, transform.LamamlState, weights)
        return LearnerState(weights, opt_state)

    def observe(
        key: types.Key,
        state: LearnerState,
        batch: types.Batch,
        batch_mask: types.Mask | None = None,
        remember: chex.Numeric = True,
    ) -> tuple[LearnerState, types.PyTree]:
        checks.check_key("key", key)
        batch = checks.as_arrays("batch", batch)

        def glance(
            state: LearnerState, inputs: tuple[types.Key, jax.Array]
        ) -> tuple[LearnerState, types.PyTree]:
            glance_key, is_first = inputs
            updates, opt_state = tx.update(
                optax.tree.zeros_like(state.weights),
                state.opt_state,
                state.weights,
                batch=batch,
                batch_mask=batch_mask,
                key=glance_key,
                remember=is_first & remember,
            )
            weights = optax.apply_updates(state.weights, updates)
            info = optax.tree.get(opt_state, "info")
            return LearnerState(weights, opt_state), info

        keys = jax.random.split(key, glances)
        return jax.lax.scan(glance, state, (keys, jnp.arange(glances) == 0))

    return Learner(init, observe)


def observe_stream(
    learner: Learner,
    key: types.Key,
    state: types.PyTree,
    batches: types.Batch,
    batch_masks: types.Mask | None = None,
    first: chex.Numeric = 0,
    *,
    truncate_every: int | None = None,
) -> tuple[types.PyTree, types.PyTree]:
    """Shows a learner a sequence of batches in one ``jax.lax.scan``.

    Everything can be differentiated with respect to whatever the state and the learner
    are made of. ``truncate_every=n`` cuts that derivative between batches n - 1 and n,
    2n - 1 and 2n, and so on, counted as the keys are from ``first``, so that it never
    passes through more than n; to differentiate through the last n of N batches only,
    show the others first and go on from ``jax.lax.stop_gradient(state)`` with
    ``first=N - n``.

    Args:
        learner: any ``Learner``.
        key: batch i is observed with ``jax.random.fold_in(key, first + i)``.
        state: the tree from ``learner.init`` or an earlier call.
        batches: pytree with leaves [N, B, ...].
        batch_masks: [N, B] booleans, True = valid; None takes every row.
        first: integer, the batches shown before with the same key, so that a sequence
            shown in parts gives the same numbers; may be traced.
        truncate_every: n, or None for the whole derivative. Values do not change.

    Returns:
        The tree of the new state, and the learner's info, leaves [N, ...].

    Raises:
        ValueError: leading axes disagree.
        TypeError: ``key`` is no key, ``batch_masks`` not boolean.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lamaml_jax as lm
        >>> loss_fn = lambda weights, batch: (weights - batch) ** 2 / 2
        >>> learner = lm.lamaml_learner(lm.lamaml(loss_fn, inner_steps=2))
        >>> state = learner.init(jax.random.key(0), jnp.float32(0))
        >>> stream = jnp.ones((5, 4))  # five batches of four rows
        >>> state, info = lm.observe_stream(learner, jax.random.key(1), state, stream)
        >>> print(info.meta_loss[0] > info.meta_loss[-1])
        [ True]
    """
    checks.check_key("key", key)
    axes = checks.check_rows("batches", batches, axes=2)
    batches = checks.as_arrays("batches", batches)
    if batch_masks is not None:
        batch_masks = checks.check_mask("batch_masks", batch_masks, axes)
    if truncate_every is not None:
        truncate_every = checks.check_count("truncate_every", truncate_every)

    def step(
        state: types.PyTree, inputs: tuple[jax.Array, types.Batch, types.Mask | None]
    ) -> tuple[types.PyTree, types.PyTree]:
        n, batch, mask = inputs
        count = jnp.asarray(first) + n
        if truncate_every is not None:
            is_cut = (count > 0) & (count % truncate_every == 0)
            state = _cut_where(is_cut, state)
        return learner.observe(jax.random.fold_in(key, count), state, batch, mask)

    return jax.lax.scan(step, state, (jnp.arange(axes[0]), batches, batch_masks))


def _cut_where(is_cut: jax.Array, state: types.PyTree) -> types.PyTree:
    """The same state, through which no derivative passes where ``is_cut``."""

    def cut(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.where(is_cut, jax.lax.stop_gradient(leaf), leaf)

    return jax.tree.map(cut, state)
