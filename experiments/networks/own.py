"""Networks of a person's own: flax nnx and equinox modules as pairs of functions."""

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
    apply: Callable[[lm.Params, jax.Array], jax.Array]
    """``apply(weights, images [B, ...]) -> logits [B, Y]``, in training."""
    running: Running | None = None
    """What it carries beside its weights, if anything."""


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
            It may have BatchNorm, and no dropout.

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
        counts = jax.eval_shape(
            lambda: [_named(each) for each in parts(form, jax.random.key(0))[2:4]]
        )
        if counts[1]:
            raise UserError(
                f"network: {make!r} draws random numbers in training, such as dropout, "
                "for which runs give no key"
            )

        def train(
            weights: lm.Params, averages: Any, images: jax.Array
        ) -> tuple[jax.Array, Any]:
            graph, like, stats, _, rest = parts(form, jax.random.key(0))
            if averages is not None:
                stats = _like(stats, averages)
            model = nnx.merge(graph, _like(like, weights), stats, rest, copy=True)
            model.train()
            return model(images), _named(nnx.state(model, nnx.BatchStat))

        def predict(weights: lm.Params, averages: Any, images: jax.Array) -> jax.Array:
            graph, like, stats, _, rest = parts(form, jax.random.key(0))
            stats = _like(stats, averages)
            model = nnx.merge(graph, _like(like, weights), stats, rest, copy=True)
            model.eval()
            return model(images)

        running = Running(
            lambda: _named(parts(form, jax.random.key(0))[2]),
            lambda weights, averages, images: train(weights, averages, images)[1],
            predict,
        )
        return Pair(
            lambda key, images: _named(parts(form, key)[1]),
            lambda weights, images: train(weights, None, images)[0],
            running if counts[0] else None,
        )

    return build_pair


def from_equinox(make: Callable[..., Any]) -> "Callable[[NetworkForm], Pair]":
    """Makes what ``register`` takes of equinox modules.

    Args:
        make: ``make(form, key) -> eqx.Module`` that maps one row to its logits [Y].

    Returns:
        A function of the form; weights are the module's floating arrays by name.
    """
    import equinox as eqx

    def parts(form: "NetworkForm", key: lm.Key) -> tuple[Any, Any]:
        return eqx.partition(make(form, key), eqx.is_inexact_array)

    def build_pair(form: "NetworkForm") -> Pair:
        def apply(weights: lm.Params, images: jax.Array) -> jax.Array:
            like, rest = parts(form, jax.random.key(0))
            return jax.vmap(eqx.combine(_like(like, weights), rest))(images)

        return Pair(lambda key, images: _named(parts(form, key)[0]), apply)

    return build_pair
