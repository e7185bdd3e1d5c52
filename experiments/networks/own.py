"""Networks of a person's own: flax nnx and equinox modules as pairs of functions."""

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

import lamaml_jax as lm
from experiments.networks.running import Running
from experiments.support.errors import UserError

if TYPE_CHECKING:
    from experiments.networks import NetworkForm


class Pair(NamedTuple):
    """A network as two functions; a flax linen module has the same two."""

    init: Callable[[lm.Key, jax.Array], lm.Params]
    """``init(key, images [1, ...]) -> weights``."""
    apply: Callable[..., jax.Array]
    """``apply(weights, images [B, ...]) -> logits [B, Y]``, in training."""
    running: Running | None = None
    """How it predicts, where that is not ``apply``, and what it carries beside its
    weights for that."""
    draws: bool = False
    """Whether ``apply`` and ``running.move`` draw random numbers, such as dropout, from
    a key, which they then take last."""

    def with_key(self, key: lm.Key) -> "Pair":
        """Returns the network whose random numbers are those of a key, if it draws."""
        running = self.running
        if not self.draws or running is None:
            return self

        def apply(weights: lm.Params, images: jax.Array) -> jax.Array:
            return self.apply(weights, images, key)

        def move(weights: lm.Params, averages: Any, images: jax.Array) -> Any:
            return running.move(weights, averages, images, key)

        return Pair(self.init, apply, running._replace(move=move))


def _named(tree: Any) -> dict[str, jax.Array]:
    """Names the leaves of a tree, so that weights are plain whatever made them."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _like(tree: Any, weights: Mapping[str, jax.Array]) -> Any:
    """Puts named leaves back into a tree of that form."""
    return jax.tree.unflatten(
        jax.tree.structure(tree), [weights[n] for n in _named(tree)]
    )


def from_nnx(make: Callable[..., Any]) -> "Callable[[NetworkForm], Pair]":
    """Makes what ``register`` takes of flax nnx modules.

    Args:
        make: ``make(form, rngs) -> nnx.Module`` that maps images [B, ...] to logits.
            It may have BatchNorm and dropout.

    Returns:
        A function of the form; weights are the module's ``nnx.Param`` by name, and its
        ``nnx.BatchStat`` is what it carries beside them. ``train()`` and ``eval()`` of
        the module say which is at hand.
    """
    from flax import nnx

    def parts(form: "NetworkForm", key: lm.Key) -> tuple[Any, Any, Any, Any, Any]:
        model = make(form, nnx.Rngs(key))
        split: Any = nnx.split(model, nnx.Param, nnx.BatchStat, nnx.RngState, ...)
        return split

    def build_pair(form: "NetworkForm") -> Pair:
        fixed = jax.random.key(0)  # made here: jax starts once devices are chosen

        def filled(weights: lm.Params, averages: Any, key: lm.Key) -> Any:
            graph, like, stats, draws, rest = parts(form, key)
            if averages is not None:
                stats = _like(stats, averages)
            like = _like(like, weights)
            return nnx.merge(graph, like, stats, draws, rest, copy=True)

        def train(
            weights: lm.Params, averages: Any, images: jax.Array, key: lm.Key = fixed
        ) -> tuple[jax.Array, Any]:
            model = filled(weights, averages, key)
            model.train()
            return model(images), _named(nnx.state(model, nnx.BatchStat))

        def predict(weights: lm.Params, averages: Any, images: jax.Array) -> jax.Array:
            model = filled(weights, averages, fixed)
            model.eval()
            return model(images)

        running = Running(
            lambda: _named(parts(form, fixed)[2]),
            lambda weights, averages, *given: train(weights, averages, *given)[1],
            predict,
        )
        stats, draws = jax.eval_shape(
            lambda: [_named(each) for each in parts(form, fixed)[2:4]]
        )
        return Pair(
            lambda key, images: _named(parts(form, key)[1]),
            lambda weights, *given: train(weights, None, *given)[0],
            running if stats or draws else None,
            bool(draws),
        )

    return build_pair


def _has_dropout(eqx: Any, model: Any) -> bool:
    is_dropout = lambda part: isinstance(part, eqx.nn.Dropout)
    parts = jax.tree.leaves(model, is_leaf=is_dropout)
    return any(is_dropout(each) and not each.inference for each in parts)


def from_equinox(make: Callable[..., Any]) -> "Callable[[NetworkForm], Pair]":
    """Makes what ``register`` takes of equinox modules.

    Args:
        make: ``make(form, key) -> eqx.Module`` that maps one row to its logits [Y]. It
            may have dropout: its ``__call__`` then has an argument ``key``.

    Returns:
        A function of the form; weights are the module's floating arrays by name.
    """
    import equinox as eqx

    def parts(form: "NetworkForm", key: lm.Key) -> tuple[Any, Any]:
        return eqx.partition(make(form, key), eqx.is_inexact_array)

    def build_pair(form: "NetworkForm") -> Pair:
        def filled(weights: lm.Params) -> Any:
            like, rest = parts(form, jax.random.key(0))
            return eqx.combine(_like(like, weights), rest)

        def apply(weights: lm.Params, images: jax.Array) -> jax.Array:
            return jax.vmap(filled(weights))(images)

        def drawn(weights: lm.Params, images: jax.Array, key: lm.Key) -> jax.Array:
            keys = jax.random.split(key, images.shape[0])
            model = filled(weights)
            return jax.vmap(lambda row, key: model(row, key=key))(images, keys)

        def predict(weights: lm.Params, averages: Any, images: jax.Array) -> jax.Array:
            del averages
            return jax.vmap(eqx.nn.inference_mode(filled(weights)))(images)

        def init(key: lm.Key, images: jax.Array) -> lm.Params:
            return _named(parts(form, key)[0])

        model = parts(form, jax.random.key(0))[1]
        if not _has_dropout(eqx, model):
            return Pair(init, apply)
        if "key" not in inspect.signature(model.__call__).parameters:
            raise UserError(
                f"network: {make!r} has dropout; give its __call__ an argument `key`"
            )
        nothing = Running(dict, lambda *given: {}, predict)
        return Pair(init, drawn, nothing, draws=True)

    return build_pair
