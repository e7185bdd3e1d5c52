"""Carries a network's running averages beside a learner, whatever its method.

A method's loss is that of training: rows are normalised by the rows beside them. After
each batch that a learner has observed, the averages are moved by one pass over its rows
and as many replayed ones as the method draws, drawn anew from its memory: a method that
replays is evaluated by averages over old rows too. The pass is that of the weights with
which the method predicts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments.methods.method import trained_weights
from experiments.networks.running import Running

_MEMORIES = lm.ReservoirState, lm.BalancedReservoirState
_KEY_OF_DRAW = 2**31 - 2


class Carried(NamedTuple):
    """State of a learner, and of the network."""

    weights: lm.Params
    learner: Any
    """Of the method, without its weights."""
    averages: Any


class Subject(NamedTuple):
    """What is evaluated of a network with running averages."""

    weights: lm.Params
    averages: Any


def _joined(state: Carried) -> Any:
    """Returns the state of the method's learner."""
    return state.learner._replace(weights=state.weights)


def make_subject(
    predicting: Callable[[Any], lm.Params] = trained_weights,
) -> Callable[[Carried], Subject]:
    """Makes what returns what is evaluated.

    Args:
        predicting: the weights in a learner's state with which it predicts.
    """
    return lambda state: Subject(predicting(_joined(state)), state.averages)


def scores_of(running: Running) -> Callable[[Subject, jax.Array], jax.Array]:
    """Makes what predicts with the averages."""
    return lambda subject, images: running.predict(*subject, images)


def beside_averages(weights_fn: Callable[..., Any]) -> Callable[..., Subject]:
    """Makes a function of weights into one of what is evaluated."""
    return lambda shared, own: Subject(weights_fn(shared, own), own.state.averages)


def _replayed(
    key: lm.Key, state: Any, images: jax.Array, replay_size: int
) -> jax.Array | None:
    """Draws images from a learner's memory, of the first batch while it is empty."""
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, _MEMORIES))
    stores = [each for each in leaves if isinstance(each, _MEMORIES)]
    for store in stores:
        example = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), store.rows
        )
        capacity = jax.tree.leaves(store.rows)[0].shape[0]
        draw: Any = lm.make_reservoir(capacity, example).sample  # of either kind
        rows, mask = draw(key, store, replay_size)
        if isinstance(rows, dict) and "image" in rows:
            spare = images[jnp.arange(replay_size) % images.shape[0]]
            is_valid = mask.reshape(-1, *[1] * (images.ndim - 1))
            return jnp.where(is_valid, rows["image"], spare)
    return None


def carried(
    learner: lm.Learner,
    running: Running,
    replay_size: int | None,
    prepare: Callable[[jax.Array], jax.Array] | None = None,
    predicting: Callable[[Any], lm.Params] = trained_weights,
) -> lm.Learner:
    """Makes a learner that carries a network's running averages.

    Args:
        learner: of the method.
        running: of the network.
        replay_size: R, rows of its memory that the averages see beside each batch;
            None or no memory: none.
        prepare: what makes inputs of images; None if they are.
        predicting: the weights in a learner's state with which it predicts.

    Returns:
        A learner whose states are ``Carried``; rows have ``image``.
    """

    def split(state: Any, averages: Any) -> Carried:
        return Carried(state.weights, state._replace(weights=None), averages)

    def init(key: lm.Key, weights: lm.Params) -> Carried:
        return split(learner.init(key, weights), running.init())

    def observe(
        key: lm.Key,
        state: Carried,
        batch: Any,
        batch_mask: lm.Mask | None = None,
        remember: Any = True,
    ) -> tuple[Carried, Any]:
        after, info = learner.observe(key, _joined(state), batch, batch_mask, remember)
        images = batch["image"]
        draw_key = jax.random.fold_in(key, _KEY_OF_DRAW)
        old = _replayed(draw_key, after, images, replay_size) if replay_size else None
        seen = images if old is None else jnp.concatenate([old, images])
        seen = seen if prepare is None else prepare(seen)
        return split(after, running.move(predicting(after), state.averages, seen)), info

    def end_task(key: lm.Key, state: Carried) -> Carried:
        assert learner.end_task is not None
        return split(learner.end_task(key, _joined(state)), state.averages)

    return lm.Learner(init, observe, None if learner.end_task is None else end_task)
