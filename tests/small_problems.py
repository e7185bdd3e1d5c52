"""Losses and tolerances that the tests of inner and meta-gradients share."""

import jax.numpy as jnp

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
