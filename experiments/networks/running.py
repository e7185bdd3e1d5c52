"""What a network carries beside its weights: BatchNorm's running averages.

In training such a network normalises by the rows that it is given, so that its loss is
a function of weights and rows as any other's is. The averages are moved beside the
updates, and used for what is evaluated.
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
    """How running averages begin, move and are used."""

    init: Callable[[], Any]
    """Returns them before the first row."""
    move: Callable[[lm.Params, Any, jax.Array], Any]
    """``move(weights, averages, images [B, ...]) -> averages``."""
    predict: Callable[[lm.Params, Any, jax.Array], jax.Array]
    """``predict(weights, averages, images [B, ...]) -> logits [B, Y]``."""


def takes_train(model: nn.Module) -> bool:
    """Tells whether ``__call__(images, train)`` is what a linen module has."""
    return "train" in inspect.signature(type(model).__call__).parameters


def check_stateless(name: str, variables: Any) -> None:
    """Checks that a linen module without ``train`` has weights alone.

    Raises:
        UserError: it has more.
    """
    if state := set(variables) - {"params"}:
        raise UserError(
            f"network {name!r}: has state besides its weights, {', '.join(state)}; for "
            f"{_STATE} give its __call__ an argument `train`, True to normalise by the "
            "rows at hand and move the averages, False to use them"
        )


def of_linen(
    name: str, model: Any, image_shape: tuple[int, ...]
) -> tuple[Callable[..., Any], Callable[..., Any], Running]:
    """Takes a linen module whose ``__call__`` has an argument ``train`` apart.

    Args:
        name: of the network, for messages.
        model: the module.
        image_shape: of one row.

    Returns:
        ``init(key, images) -> weights``, ``apply(weights, images) -> logits`` of
        training, and the running averages.

    Raises:
        UserError: it has other state than ``batch_stats``, or draws random numbers.
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

    def train(weights: lm.Params, averages: Any, images: jax.Array) -> Any:
        variables = {**weights, _STATE: averages}
        return model.apply(variables, images, train=True, mutable=[_STATE])

    def apply(weights: lm.Params, images: jax.Array) -> jax.Array:
        return train(weights, begin(), images)[0]

    def move(weights: lm.Params, averages: Any, images: jax.Array) -> Any:
        return train(weights, averages, images)[1].get(_STATE, {})

    def predict(weights: lm.Params, averages: Any, images: jax.Array) -> jax.Array:
        return model.apply({**weights, _STATE: averages}, images, train=False)

    try:
        jax.eval_shape(apply, {"params": shapes["params"]}, row)
    except flax.errors.InvalidRngError as error:
        raise UserError(
            f"network {name!r}: draws random numbers in training, such as dropout, for "
            "which runs give no key"
        ) from error
    return init, apply, Running(begin, move, predict)
