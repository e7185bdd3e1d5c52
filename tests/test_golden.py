"""Five stored meta-updates: no change of library or jax may move them unseen.

Inputs are closed formulas, not random draws; the expected numbers were printed by this
computation once, after the library agreed with the numpy reference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lamaml_jax as lm

K, S, Q, D, H, Y = 3, 4, 6, 3, 5, 4


def loss_fn(weights, batch):
    inputs, labels = batch
    hidden = jnp.tanh(inputs @ weights["w1"] + weights["b1"][None, :])
    logits = hidden @ weights["w2"] + weights["b2"][None, :]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def waves(shape, phase):
    size = int(np.prod(shape))
    return jnp.asarray(np.sin(1.7 * np.arange(size) + phase)).reshape(shape)


def labels(shape, phase):
    size = int(np.prod(shape))
    return jnp.asarray((3 * np.arange(size) + phase) % Y).reshape(shape)


def run(**options):
    """Weights' norm, mean step size and the losses after each of five updates."""
    weights = {
        "w1": waves((D, H), 0.1),
        "b1": waves((H,), 0.2) / 10,
        "w2": waves((H, Y), 0.3),
        "b2": waves((Y,), 0.4) / 10,
    }
    tx = lm.lamaml_transform(loss_fn, step_size_init=0.3, inner_steps=K, **options)
    zeros = optax.tree.zeros_like(weights)

    @jax.jit
    def step(weights, state, n):
        updates, state = tx.update(
            zeros,
            state,
            weights,
            support=(waves((K, S, D), 0.5) * jnp.cos(n), labels((K, S), 1)),
            query=(waves((Q, D), 0.7) * jnp.cos(n), labels((Q,), 2)),
        )
        weights = optax.apply_updates(weights, updates)
        norms = (optax.tree.norm(weights), optax.tree.norm(state.rule_state.step_sizes))
        info = state.info
        losses = (info.meta_loss, info.inner_losses[-1], info.alignment)
        return weights, state, jnp.stack(norms + losses)

    state, path = tx.init(weights), []
    for n in range(5):
        weights, state, numbers = step(weights, state, float(n))
        path.append(np.asarray(numbers))
    return np.stack(path)


GOLDEN = {}

OPTIONS = {
    "lamaml": {},
    "first_order_clipped": {
        "first_order": True,
        "clip": 0.05,
        "rectify": False,
        "objective": "last",
    },
    "synchronous": {"weight_tx": optax.sgd(0.1), "step_size_tx": optax.sgd(0.35)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_five_meta_updates_give_the_stored_numbers(name, x64):
    got = run(**OPTIONS[name])
    # float64, some hundreds of operations that another version may order or fuse in
    # another way: 1e-10 is far above their rounding and far below any change of rule.
    np.testing.assert_allclose(got, GOLDEN[name], rtol=1e-10, atol=1e-10)
