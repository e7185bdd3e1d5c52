"""Networks that predict in another way than they train: BatchNorm and dropout.

In training BatchNorm normalises by the rows that it is given, so that the loss is a
function of weights and rows as any other's is. Its running averages are moved beside
the updates, and used for what is evaluated. Dropout draws from a key in training alone.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax

import lamaml_jax as lm
from experiments.support.errors import UserError

_STATE = "batch_stats"


class Running(NamedTuple):
    """How running averages begin, move and are used; an empty tree where none are."""

    init: Callable[[], Any]
    """Returns them before the first row."""
    move: Callable[..., Any]
    """``move(weights, averages, images [B, ...]) -> averages``; takes a key last if the
    network draws."""
    predict: Callable[[lm.Params, Any, jax.Array], jax.Array]
    """``predict(weights, averages, images [B, ...]) -> logits [B, Y]``."""

    @property
    def is_any(self) -> bool:
        """Whether there are averages."""
        return bool(jax.tree.leaves(jax.eval_shape(self.init)))


def takes_train(model: nn.Module) -> bool:
    """Tells whether ``__call__(images, train)`` is what a linen module has."""
    return "train" in inspect.signature(type(model).__call__).parameters


def check_plain(name: str, model: nn.Module, variables: Any, images: jax.Array) -> None:
    """Checks that a linen module without ``train`` has weights alone, and no dropout.

    Raises:
        UserError: it has more.
    """
    if state := set(variables) - {"params"}:
        raise UserError(
            f"network {name!r}: has state besides its weights, {', '.join(state)}; for "
            f"{_STATE} give its __call__ an argument `train`, True to normalise by the "
            "rows at hand and move the averages, False to use them"
        )
    if draws_numbers(model.apply, variables, images):
        raise UserError(
            f"network {name!r}: draws random numbers, such as dropout; give its "
            "__call__ an argument `train`, False to predict without them"
        )


def draws_numbers(apply: Callable[..., Any], weights: Any, row: Any) -> bool:
    """Tells whether a linen module asks for a key that it was not given."""
    try:
        jax.eval_shape(apply, weights, row)
    except flax.errors.InvalidRngError:
        return True
    return False


def of_linen(
    name: str, model: Any, image_shape: tuple[int, ...]
) -> tuple[Callable[..., Any], Callable[..., Any], Running, bool]:
    """Takes a linen module whose ``__call__`` has an argument ``train`` apart.

    Args:
        name: of the network, for messages.
        model: the module.
        image_shape: of one row.

    Returns:
        ``init(key, images) -> weights``, ``apply(weights, images) -> logits`` of
        training, the running averages, and whether it draws random numbers, for which
        ``apply`` and ``running.move`` then take a key last.

    Raises:
        UserError: it has other state than ``batch_stats``.
    """

    def variables_of(key: lm.Key, images: jax.Array) -> Any:
        return model.init(key, images, train=False)

    row = jax.ShapeDtypeStruct((1, *image_shape), "float32")
    shapes = jax.eval_shape(variables_of, jax.random.key(0), row)
    if others := set(shapes) - {"params", _STATE}:
        raise UserError(
            f"network {name!r}: has state besides its weights and {_STATE}, "
            f"{', '.join(others)}, which runs do not carry"
        )

    def init(key: lm.Key, images: jax.Array) -> lm.Params:
        return {"params": variables_of(key, images)["params"]}

    def begin() -> Any:
        # The first averages are constants; of no weights, of no image.
        images = jax.numpy.zeros(row.shape)
        return variables_of(jax.random.key(0), images).get(_STATE, {})

    def train(
        weights: lm.Params, averages: Any, images: jax.Array, key: lm.Key | None = None
    ) -> Any:
        # A lone key is that of whatever a module draws, whichever name it gives it.
        variables = {**weights, _STATE: averages}
        return model.apply(variables, images, train=True, mutable=[_STATE], rngs=key)

    def apply(weights: lm.Params, images: jax.Array, *key: lm.Key) -> jax.Array:
        return train(weights, begin(), images, *key)[0]

    def move(weights: lm.Params, averages: Any, images: jax.Array, *key: lm.Key) -> Any:
        return train(weights, averages, images, *key)[1].get(_STATE, {})

    def predict(weights: lm.Params, averages: Any, images: jax.Array) -> jax.Array:
        return model.apply({**weights, _STATE: averages}, images, train=False)

    draws = draws_numbers(apply, {"params": shapes["params"]}, row)
    return init, apply, Running(begin, move, predict), draws
