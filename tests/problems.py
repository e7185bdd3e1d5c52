"""Losses, tolerances and helpers that the tests of gradients share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

D, H, Y = 3, 4, 3

# float64 against float64: only the order of sums differs, a few units of 2e-16.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
# float32 against float32, the same operations fused or batched differently.
FUSED = {"rtol": 2e-5, "atol": 2e-6}


def net_loss(weights, batch) -> jax.Array:
    inputs, labels = batch
    hidden = jnp.tanh(inputs @ weights["w1"] + weights["b1"][None, :])
    logits = hidden @ weights["w2"] + weights["b2"][None, :]
    own = labels[:, None] == jnp.arange(Y, dtype=labels.dtype)[None, :]
    at_label = jnp.sum(jnp.where(own, logits, 0), axis=-1)
    return jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) - at_label


def logistic_loss(weights, batch) -> jax.Array:
    """One leaf only: the tests that compile it many times stay quick."""
    inputs, signs = batch
    return jnp.log1p(jnp.exp(-signs * (inputs @ weights["w"])))


def quadratic_loss(weights, batch) -> jax.Array:
    return jnp.sum((weights["w"][None, :] - batch) ** 2, axis=-1) / 2


def bent_loss(weights, batch) -> jax.Array:
    """Rows [B, D] that are targets themselves; no two derivatives are constant."""
    return jnp.sum(jnp.tanh(weights["w"][None, :] - batch) ** 2, axis=-1)


def line_loss(weights, batch) -> jax.Array:
    """Half the squared error of a line; rows are a dict of x [B, D] and y [B]."""
    error = batch["x"] @ weights["w"] + weights["b"] - batch["y"]
    return error**2 / 2


def regression_loss(weights, batch) -> jax.Array:
    """Half the squared error of one tanh layer, "w" and "v"; rows (x [B, D], y [B])."""
    inputs, targets = batch
    return (jnp.tanh(inputs @ weights["w"]) @ weights["v"] - targets) ** 2 / 2


def wide_loss(weights, batch) -> jax.Array:
    """Of layers as wide as a test of memory asks for; rows are their own targets."""
    out = jnp.tanh(batch @ weights["w"]) @ weights["v"]
    return jnp.sum(jnp.square(out - batch), axis=1)


def squares(outputs, targets) -> jax.Array:
    return jnp.sum((outputs - targets) ** 2, axis=-1) / 2


def linear_logits(weights, images) -> jax.Array:
    return images @ weights["w"] + weights["b"][None, :]


def softmax_loss(logits_fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Cross-entropy of those logits on rows as the experiments' methods see them."""

    def loss_fn(weights, batch) -> jax.Array:
        logits = logits_fn(weights, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    return loss_fn


def rectified_step(weights, step_sizes, grads) -> Any:
    """The inner and the asynchronous rule, leaf by leaf: w - relu(a) * g."""
    step = lambda w, a, g: w - jax.nn.relu(a) * g
    return jax.tree.map(step, weights, step_sizes, grads)


def as_jax(tree, dtype=None) -> Any:
    """Arrays of jax, the floating ones in ``dtype`` if it is given."""

    def convert(x) -> jax.Array:
        x = jnp.asarray(x)
        return x.astype(dtype) if dtype and x.dtype.kind == "f" else x

    return jax.tree.map(convert, tree)


def waves(shape, phase) -> np.ndarray:
    """Numbers between -1 and 1 with no pattern that a test could lean on, float64."""
    size = int(np.prod(shape))
    return np.sin(1.7 * np.arange(size) + phase).reshape(shape)


def waves32(shape, phase) -> jax.Array:
    """``waves`` as a float32 jax array."""
    return jnp.asarray(waves(shape, phase), jnp.float32)


def tree_vdot(first, second) -> Any:
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return sum(jnp.vdot(x, y) for x, y in pairs)


def stack(trees) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def rows_of(tree) -> set[tuple[float, ...]]:
    """The rows (x, y) as a set of tuples, whatever their order."""
    flat = np.concatenate([np.asarray(tree["x"]), np.asarray(tree["y"])[:, None]], 1)
    return {tuple(row) for row in flat}


def assert_close(first, second, **tolerance) -> None:
    """Of trees whose containers may be of other types."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second
    )


def assert_equal(first, second) -> None:
    jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_trees_close(actual, expected, **tolerance) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **tolerance), actual, expected
    )
