"""Losses, tolerances and helpers that the tests of gradients share."""

import jax
import jax.numpy as jnp
import numpy as np

D, H, Y = 3, 4, 3

# float64 against float64: only the order of sums differs, a few units of 2e-16.
EXACT = {"rtol": 1e-10, "atol": 1e-12}
# float32 against float32, the same operations fused or batched differently.
FUSED = {"rtol": 2e-5, "atol": 2e-6}


def net_loss(weights, batch):
    inputs, labels = batch
    hidden = jnp.tanh(inputs @ weights["w1"] + weights["b1"][None, :])
    logits = hidden @ weights["w2"] + weights["b2"][None, :]
    own = labels[:, None] == jnp.arange(Y, dtype=labels.dtype)[None, :]
    at_label = jnp.sum(jnp.where(own, logits, 0), axis=-1)
    return jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) - at_label


def logistic_loss(weights, batch):
    """One leaf only: the tests that compile it many times stay quick."""
    inputs, signs = batch
    return jnp.log1p(jnp.exp(-signs * (inputs @ weights["w"])))


def quadratic_loss(weights, batch):
    return jnp.sum((weights["w"][None, :] - batch) ** 2, axis=-1) / 2


def as_jax(tree, dtype=None):
    """Arrays of jax, the floating ones in ``dtype`` if it is given."""

    def convert(x):
        x = jnp.asarray(x)
        return x.astype(dtype) if dtype and x.dtype.kind == "f" else x

    return jax.tree.map(convert, tree)


def waves(shape, phase):
    """Numbers between -1 and 1 with no pattern that a test could lean on, float64."""
    size = int(np.prod(shape))
    return np.sin(1.7 * np.arange(size) + phase).reshape(shape)


def waves32(shape, phase):
    """``waves`` as a float32 jax array."""
    return jnp.asarray(waves(shape, phase), jnp.float32)


def tree_vdot(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return sum(jnp.vdot(x, y) for x, y in pairs)


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **tolerance), actual, expected
    )
