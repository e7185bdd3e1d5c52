"""Weights of flax linen, flax nnx, equinox and plain pytrees, each end to end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training import train_state

import lamaml_jax as lm

B, K, D, H, Y = 8, 2, 4, 8, 3
NUM_UPDATES = 50


def make_batch():
    """Three classes by the largest of three inputs: easily learned."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(B, D)).astype(np.float32)
    return jnp.asarray(inputs), jnp.asarray(inputs[:, :Y].argmax(axis=1))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def make_transform(loss_fn):
    example = (
        jax.ShapeDtypeStruct((D,), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    return lm.lamaml(
        loss_fn,
        inner_steps=K,
        step_size_learning_rate=0.05,
        reservoir=lm.make_reservoir(2 * B, example),
        replay_size=2,
    )


def plain_pytree(key):
    first, second = jax.random.split(key)
    weights = [
        (jax.random.normal(first, (D, H)) / 2, jnp.zeros(H)),
        (jax.random.normal(second, (H, Y)) / 3, jnp.zeros(Y)),
    ]

    def loss_fn(weights, batch):
        (w1, b1), (w2, b2) = weights
        hidden = jnp.tanh(batch[0] @ w1 + b1[None, :])
        return cross_entropy(hidden @ w2 + b2[None, :], batch[1])

    return weights, loss_fn


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(Y)(jnp.tanh(nn.Dense(H)(inputs)))


def flax_linen(key):
    model = LinenNet()
    weights = model.init(key, jnp.zeros((1, D)))

    def loss_fn(weights, batch):
        return cross_entropy(model.apply(weights, batch[0]), batch[1])

    return weights, loss_fn


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(D, H, rngs=rngs)
        self.second = nnx.Linear(H, Y, rngs=rngs)

    def __call__(self, inputs):
        return self.second(jnp.tanh(self.first(inputs)))


def flax_nnx(key):
    graph, weights = nnx.split(NnxNet(nnx.Rngs(key)), nnx.Param)

    def loss_fn(weights, batch):
        return cross_entropy(nnx.merge(graph, weights)(batch[0]), batch[1])

    return weights, loss_fn


def equinox_module(key):
    model = eqx.nn.MLP(D, Y, H, depth=1, activation=jnp.tanh, key=key)
    weights, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(weights, batch):
        return cross_entropy(jax.vmap(eqx.combine(weights, static))(batch[0]), batch[1])

    return weights, loss_fn


FRAMEWORKS = {
    "plain_pytree": plain_pytree,
    "flax_linen": flax_linen,
    "flax_nnx": flax_nnx,
    "equinox": equinox_module,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "flax_linen" else pytest.mark.slow)
        for name in FRAMEWORKS
    ],
)
def test_meta_updates_reduce_the_meta_loss(name, key):
    weights, loss_fn = FRAMEWORKS[name](key)
    learner = lm.lamaml_learner(make_transform(loss_fn), glances=NUM_UPDATES)
    batch = make_batch()
    state, info = jax.jit(learner.observe)(key, learner.init(key, weights), batch)
    assert jax.tree.structure(state.weights) == jax.tree.structure(weights)
    rates = optax.tree.get(state, "step_sizes")
    assert jax.tree.structure(rates) == jax.tree.structure(weights)
    assert jnp.all(info.all_finite)
    # Eight rows that a network of this size can tell apart: to halve their loss in
    # fifty updates asks little, and nothing near it happens without learning.
    assert info.meta_loss[-1] < 0.5 * info.meta_loss[0]
    before = jnp.mean(loss_fn(weights, batch))
    assert jnp.mean(loss_fn(state.weights, batch)) < 0.7 * before


def test_equinox_weights_have_none_where_the_module_is_static(key):
    weights, _ = equinox_module(key)
    leaves = jax.tree.leaves(weights, is_leaf=lambda leaf: leaf is None)
    assert any(leaf is None for leaf in leaves)


def values_of(state):
    """The state without its Param wrappers; ``nnx.as_pure`` since flax 0.12.7."""
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)
    return jax.tree.map(lambda leaf: leaf.get_value(), state, is_leaf=is_variable)


@pytest.mark.slow
def test_nnx_optimizer_takes_the_data_through_update(key):
    model = NnxNet(nnx.Rngs(0))
    graph, start = nnx.split(model, nnx.Param)

    def loss_fn(weights, batch):
        return cross_entropy(nnx.merge(graph, weights)(batch[0]), batch[1])

    # nnx.Optimizer hands the transformation its state without the Param wrappers.
    weights = values_of(start)
    tx = make_transform(loss_fn)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, batch, key):
        zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
        optimizer.update(model, zeros, batch=batch, key=key)
        return optimizer.opt_state.info.meta_loss[...]

    batch, update, state = make_batch(), jax.jit(tx.update), tx.init(weights)
    losses = []
    for n in range(10):
        step_key = jax.random.fold_in(key, n)
        losses.append(train_step(model, optimizer, batch, step_key))
        zeros = optax.tree.zeros_like(weights)
        updates, state = update(zeros, state, weights, batch=batch, key=step_key)
        weights = optax.apply_updates(weights, updates)
        # As below; a loss of order 1.
        np.testing.assert_allclose(losses[-1], state.info.meta_loss, rtol=1e-3)
    assert losses[-1] < losses[0]
    got = values_of(nnx.state(model, nnx.Param))
    # float32 along ten updates of two differently compiled programs.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        got,
        weights,
    )


def test_train_state_that_drops_the_data_is_told_what_to_do(key):
    weights, loss_fn = plain_pytree(key)
    state = train_state.TrainState.create(
        apply_fn=None, params=weights, tx=make_transform(loss_fn)
    )
    zeros = optax.tree.zeros_like(weights)
    with pytest.raises(ValueError, match=r"TrainState.apply_gradients.*tx\.update"):
        state.apply_gradients(grads=zeros)
