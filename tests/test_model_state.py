"""BatchNorm and dropout of linen, nnx and equinox, each against a loop by hand."""

import functools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from problems import assert_close, assert_equal, rectified_step, squares, waves32

import lamaml_jax as lm

B, K, R, D, H, Y = 4, 2, 3, 3, 4, 2
RATE, ETA, MOMENTUM, EPSILON, DROPOUT = 0.2, 0.05, 0.9, 1e-5, 0.5

# float32 against float32, the same operations in another order: a few units of 1e-7
# per operation, some hundreds of operations in a row, and a division by the spread of
# four rows.
FUSED = {"rtol": 1e-4, "atol": 1e-5}


def make_rows(phase, *leading):
    return waves32((*leading, D), phase), waves32((*leading, Y), phase + 0.5)


class Network(NamedTuple):
    """Linear without a bias, BatchNorm, tanh, dropout, linear, in one framework."""

    weights: Any
    model_state: Any
    apply: Callable[..., Any]
    """``(weights, model_state, inputs, key) -> outputs, model_state``; the key None
    evaluates: running averages, no dropout."""
    parts: Callable[..., Any]
    """``weights -> (w1, scale, bias, w2, b2)``."""
    is_debiased: bool = False
    """Running averages are divided by the sum of the shares of what was seen."""


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, inputs, is_training):
        hidden = nn.Dense(H, use_bias=False)(inputs)
        hidden = nn.BatchNorm(
            use_running_average=not is_training, momentum=MOMENTUM, epsilon=EPSILON
        )(hidden)
        hidden = nn.Dropout(DROPOUT, deterministic=not is_training)(jnp.tanh(hidden))
        return nn.Dense(Y)(hidden)


def linen_network():
    model = LinenNet()
    variables = model.init(jax.random.key(0), jnp.zeros((1, D)), is_training=False)

    def apply(weights, model_state, inputs, key):
        variables = {"params": weights, "batch_stats": model_state}
        if key is None:
            return model.apply(variables, inputs, is_training=False), model_state
        outputs, moved = model.apply(
            variables,
            inputs,
            is_training=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        return outputs, moved["batch_stats"]

    def parts(weights):
        first, norm, last = (
            weights[name] for name in ("Dense_0", "BatchNorm_0", "Dense_1")
        )
        affine = norm["scale"], norm["bias"]
        return first["kernel"], *affine, last["kernel"], last["bias"]

    return Network(variables["params"], variables["batch_stats"], apply, parts)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(D, H, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(H, momentum=MOMENTUM, epsilon=EPSILON, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT)
        self.last = nnx.Linear(H, Y, rngs=rngs)

    def __call__(self, inputs, rngs):
        hidden = jnp.tanh(self.norm(self.first(inputs)))
        return self.last(self.dropout(hidden, rngs=rngs))


def nnx_network():
    graph, weights, model_state = nnx.split(
        NnxNet(nnx.Rngs(0)), nnx.Param, nnx.BatchStat
    )

    def apply(weights, model_state, inputs, key):
        # A copy: BatchNorm writes its averages into the variables that it is given.
        model = nnx.merge(graph, weights, model_state, copy=True)
        if key is None:
            model.eval()
            return model(inputs, None), model_state
        model.train()
        outputs = model(inputs, nnx.Rngs(dropout=key))
        return outputs, nnx.state(model, nnx.BatchStat)

    def parts(weights):
        model = nnx.merge(graph, weights, model_state)
        first, norm, last = model.first, model.norm, model.last
        variables = first.kernel, norm.scale, norm.bias, last.kernel, last.bias
        return tuple(variable.get_value() for variable in variables)

    return Network(weights, model_state, apply, parts)


class EquinoxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear

    def __init__(self, key):
        first_key, last_key = jax.random.split(key)
        self.first = eqx.nn.Linear(D, H, use_bias=False, key=first_key)
        self.norm = eqx.nn.BatchNorm(
            H, "rows", EPSILON, momentum=MOMENTUM, mode="batch"
        )
        self.dropout = eqx.nn.Dropout(DROPOUT)
        self.last = eqx.nn.Linear(H, Y, key=last_key)

    def __call__(self, inputs, state, key):
        hidden, state = self.norm(self.first(inputs), state)
        return self.last(self.dropout(jnp.tanh(hidden), key=key)), state


def equinox_network():
    model, model_state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    weights, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(weights, model_state, inputs, key):
        model = eqx.combine(weights, static)
        keys = None if key is None else jax.random.split(key, len(inputs))
        if key is None:
            model = eqx.nn.inference_mode(model)
        run = jax.vmap(model, (0, None, 0), (0, None), axis_name="rows")
        return run(inputs, model_state, keys)

    def parts(weights):
        first, norm, last = weights.first, weights.norm, weights.last
        affine = norm.weight, norm.bias
        return first.weight.T, *affine, last.weight.T, last.bias

    return Network(weights, model_state, apply, parts, is_debiased=True)


NETWORKS = {"linen": linen_network, "nnx": nnx_network, "equinox": equinox_network}
each_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def network_and_learner(name):
    network = NETWORKS[name]()

    def loss_fn(weights, batch, *, model_state, key):
        return squares(network.apply(weights, model_state, batch[0], key)[0], batch[1])

    def move(weights, model_state, batch, *, key):
        return network.apply(weights, model_state, batch[0], key)[1]

    tx = lm.lamaml(
        loss_fn,
        step_size_init=RATE,
        step_size_learning_rate=ETA,
        meta_tx=optax.identity(),
        inner_steps=K,
        loss_takes_key=True,
        model_state=network.model_state,
        model_state_fn=move,
    )
    learner = lm.lamaml_learner(optax.chain(optax.identity(), tx))
    return network, loss_fn, learner


@functools.cache
def jitted_stream(name):
    """Donates the state; shows two batches, compiled once."""
    learner = network_and_learner(name)[2]
    return jax.jit(functools.partial(lm.observe_stream, learner), donate_argnums=1)


def fresh(name):
    network, _, learner = network_and_learner(name)
    weights = jax.tree.map(jnp.array, network.weights)  # donated
    return learner.init(jax.random.key(0), weights)


STREAM = make_rows(0.3, 4, B)
FIRST_HALF, SECOND_HALF = (
    jax.tree.map(lambda leaf, part=part: leaf[part], STREAM)
    for part in (slice(0, 2), slice(2, 4))
)


def update_by_hand(loss_fn, weights, rates, batch, key):
    """One update, in a Python loop over the inner steps, given the same keys."""
    _, shuffle_key, _, loss_key = jax.random.split(key, 4)
    support, *_ = lm.split_support(shuffle_key, batch, None, K)
    inner_keys, query_keys = (
        jax.random.split(part, K) for part in jax.random.split(loss_key)
    )

    def meta_loss(params):
        weights, rates = params
        losses = []
        for n in range(K):
            rows = jax.tree.map(lambda leaf, n=n: leaf[n], support)
            inner_loss = lambda w, n=n, rows=rows: jnp.mean(
                loss_fn(w, rows, key=inner_keys[n])
            )
            weights = rectified_step(weights, rates, jax.grad(inner_loss)(weights))
            losses.append(jnp.mean(loss_fn(weights, batch, key=query_keys[n])))
        return jnp.mean(jnp.stack(losses))

    loss, (weight_grads, rate_grads) = jax.value_and_grad(meta_loss)((weights, rates))
    rates = jax.tree.map(lambda a, g: a - ETA * g, rates, rate_grads)
    return loss, rectified_step(weights, rates, weight_grads), rates


def statistics(parts, inputs):
    hidden = inputs @ parts[0]
    return jnp.mean(hidden, axis=0), jnp.var(hidden, axis=0)


def evaluate_by_hand(parts, averages, inputs):
    w1, scale, bias, w2, b2 = (part[None] if part.ndim == 1 else part for part in parts)
    mean, variance = (average[None, :] for average in averages)
    hidden = (inputs @ w1 - mean) / jnp.sqrt(variance + EPSILON)
    return jnp.tanh(hidden * scale + bias) @ w2 + b2


@pytest.mark.slow
@each_network
def test_stream_equals_a_loop_by_hand_in_training_and_evaluation(name, key):
    network, loss_fn, _ = network_and_learner(name)
    state, info = jitted_stream(name)(key, fresh(name), FIRST_HALF)
    loss_fn = functools.partial(loss_fn, model_state=network.model_state)
    by_hand = jax.jit(functools.partial(update_by_hand, loss_fn))
    weights = network.weights
    rates = jax.tree.map(lambda leaf: jnp.full_like(leaf, RATE), weights)
    averages = jnp.zeros(H), jnp.ones(H)
    losses = []
    for n in range(2):
        batch = jax.tree.map(lambda leaf, n=n: leaf[n], FIRST_HALF)
        # One pass over the query at the weights before the update
        here = statistics(network.parts(weights), batch[0])
        averages = tuple(
            MOMENTUM * old + (1 - MOMENTUM) * new
            for old, new in zip(averages, here, strict=True)
        )
        (update_key,) = jax.random.split(jax.random.fold_in(key, n), 1)
        loss, weights, rates = by_hand(weights, rates, batch, update_key)
        losses.append(loss)
    assert_close(info.meta_loss[:, 0], jnp.stack(losses), **FUSED)
    assert_close(state.weights, weights, **FUSED)
    assert_close(optax.tree.get(state, "step_sizes"), rates, **FUSED)
    inputs = make_rows(0.9, B)[0]
    model_state = optax.tree.get(state, "model_state")
    outputs, _ = jax.jit(network.apply, static_argnums=3)(
        state.weights, model_state, inputs, None
    )
    if network.is_debiased:
        averages = tuple(average / (1 - MOMENTUM**2) for average in averages)
    expected = evaluate_by_hand(network.parts(weights), averages, inputs)
    assert_close(outputs, expected, **FUSED)


@pytest.mark.slow
@each_network
def test_seeds_side_by_side_carry_states_of_their_own(name, key):
    network, _, learner = network_and_learner(name)
    factors = jnp.array([1.0, 0.5])
    scaled = [
        jax.tree.map(lambda leaf, f=f: leaf * f, network.weights) for f in factors
    ]
    keys = jax.random.split(key)

    def run(key, factor):
        weights = jax.tree.map(lambda leaf: leaf * factor, network.weights)
        state = learner.init(key, weights)
        return lm.observe_stream(learner, key, state, FIRST_HALF)[0]

    together = jax.jit(jax.vmap(run))(keys, factors)
    alone = [
        jitted_stream(name)(k, learner.init(k, weights), FIRST_HALF)[0]
        for k, weights in zip(keys, scaled, strict=True)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    assert_close(together, stacked, **FUSED)
    moved = jax.tree.leaves(optax.tree.get(together, "model_state"))
    assert any(jnp.any(leaf[0] != leaf[1]) for leaf in moved)


@pytest.mark.slow
@each_network
def test_stored_state_goes_on_bit_for_bit(name, key):
    run = jitted_stream(name)
    half, _ = run(key, fresh(name), FIRST_HALF)
    leaves, treedef = jax.tree.flatten(half)
    stored = pickle.dumps(jax.device_get(leaves))
    through = run(key, half, SECOND_HALF, None, 2)
    restored = treedef.unflatten(map(jnp.asarray, pickle.loads(stored)))
    resumed = run(key, restored, SECOND_HALF, None, 2)
    assert_equal(resumed, through)


@pytest.mark.slow
@each_network
def test_given_state_survives_the_donation_of_the_learners(name, key):
    network, _, _ = network_and_learner(name)
    before = [np.array(leaf) for leaf in jax.tree.leaves(network.model_state)]
    jitted_stream(name)(key, fresh(name), FIRST_HALF)
    assert_equal(jax.tree.leaves(network.model_state), before)


# Without a framework --------------------------------------------------------------


def counting_loss(weights, batch, *, model_state):
    """The current offset shows in the loss."""
    return squares(batch[0] @ weights["w"], batch[1]) + model_state["offset"]


def count(weights, model_state, batch):
    """Sees the weights and the rows that it is shown."""
    return {
        "offset": model_state["offset"] + 1,
        "rows": jnp.int32(len(batch[0])),
        "weight": weights["w"][0, 0],
    }


START = {"offset": jnp.zeros(()), "rows": jnp.int32(0), "weight": jnp.zeros(())}
WEIGHTS = {"w": waves32((D, Y), 0.1)}


def make_learner(loss_fn, glances=1, **options):
    example = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), make_rows(0, B)
    )
    reservoir = lm.make_reservoir(2 * B, example)
    tx = lm.lamaml(
        loss_fn, inner_steps=K, reservoir=reservoir, replay_size=R, **options
    )
    return lm.lamaml_learner(tx, glances=glances)


def observe_once(learner, key):
    return jax.jit(learner.observe)(key, learner.init(key, WEIGHTS), make_rows(0, B))


@pytest.mark.slow
def test_state_moves_once_per_update_at_the_weights_before_over_the_query(key):
    options = {"model_state": START, "model_state_fn": count}
    state, info = observe_once(make_learner(counting_loss, 2, **options), key)
    moved = optax.tree.get(state, "model_state")
    assert moved["offset"] == 2 and moved["rows"] == R + B
    # The second glance began where the first one had left the weights.
    assert moved["weight"] not in (WEIGHTS["w"][0, 0], state.weights["w"][0, 0])
    # The losses of an update know the state as the update before left it.
    without = lambda weights, batch: squares(batch[0] @ weights["w"], batch[1])
    expected_state, expected = observe_once(make_learner(without, 2), key)
    offsets = jnp.arange(2.0)
    losses = (info.meta_loss, info.inner_losses[:, 0], info.query_losses[:, -1])
    plain = (expected.meta_loss, expected.inner_losses[:, 0])
    plain += (expected.query_losses[:, -1],)
    assert_close(losses, tuple(loss + offsets for loss in plain), **FUSED)
    assert_close(state.weights, expected_state.weights, **FUSED)
    assert optax.tree.get(expected_state, "model_state") is None


def test_state_without_a_function_stays_and_still_reaches_the_loss(key):
    start = START | {"offset": jnp.ones(())}
    state, info = observe_once(make_learner(counting_loss, model_state=start), key)
    assert_equal(optax.tree.get(state, "model_state"), start)
    assert info.meta_loss[0] > 1


def test_a_function_without_a_state_is_refused():
    with pytest.raises(ValueError, match="model_state: model_state_fn needs it"):
        make_learner(counting_loss, model_state_fn=count)


def test_meta_gradient_and_adaptation_hand_the_state_on(key):
    offset = {"offset": jnp.full((), 3.0)}
    support, query = make_rows(0.2, K, 2), make_rows(0.4, B)
    rates = {"w": jnp.full((D, Y), RATE)}
    _, trace = lm.adapt(counting_loss, WEIGHTS, rates, support, model_state=offset)
    fn = jax.jit(lm.meta_value_and_grad(counting_loss))
    (loss, info), _ = fn(
        lm.MetaParams(WEIGHTS, rates), support, query, model_state=offset
    )
    assert jnp.all(trace.losses > 3) and jnp.all(info.inner_losses > 3) and loss > 3
