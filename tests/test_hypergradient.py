"""Derivatives through whole meta-updates, against central differences in float64."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import EXACT, as_jax, assert_trees_close, tree_vdot, waves
from problems import regression_loss as net_loss

import lamaml_jax as lm

pytestmark = pytest.mark.usefixtures("x64")

N, K, S, Q, D, H = 3, 2, 2, 3, 2, 2


class Hyper(NamedTuple):
    """All that shapes the loss after N meta-updates."""

    eta: jax.Array
    step_size_init: jax.Array
    decay: jax.Array
    """A hyper-parameter that the loss closes over."""
    weights: dict[str, jax.Array]
    support: tuple[jax.Array, jax.Array]
    query: tuple[jax.Array, jax.Array]


def make_hyper():
    # Step sizes of 0.2 stay positive through all updates, where relu is smooth.
    numbers = (0.05, 0.2, 0.03)
    weights = {"w": waves((D, H), 0.1), "v": waves((H,), 1.1)}
    support = (waves((N, K, S, D), 0.4), waves((N, K, S), 0.5))
    query = (waves((N, Q, D), 0.6), waves((N, Q), 0.7))
    return jax.tree.map(jnp.asarray, Hyper(*numbers, weights, support, query))


def decayed(decay):
    """A loss that closes over what it is differentiated with respect to."""

    def loss_fn(weights, batch):
        penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(weights))
        return net_loss(weights, batch) + decay * penalty / 2

    return loss_fn


def loss_after(hyper, **options):
    """Mean query loss after N meta-updates in one scan."""
    tx = lm.lamaml_transform(
        decayed(hyper.decay),
        step_size_init=hyper.step_size_init,
        step_size_tx=optax.sgd(hyper.eta),
        inner_steps=K,
        **options,
    )

    def update(carry, data):
        weights, state = carry
        support, query = data
        zeros = optax.tree.zeros_like(weights)
        updates, state = tx.update(zeros, state, weights, support=support, query=query)
        return (optax.apply_updates(weights, updates), state), state.info

    start = (hyper.weights, tx.init(hyper.weights))
    (weights, _), info = jax.lax.scan(update, start, (hyper.support, hyper.query))
    last_query = jax.tree.map(lambda leaf: leaf[-1], hyper.query)
    return jnp.mean(net_loss(weights, last_query)), info


def one_per_field(hyper):
    """Directions, stacked: the n-th moves every number of the n-th field, no other."""
    fields = range(len(hyper))

    def direction(n):
        moved = (waves(np.shape(leaf), 1.0 + n) for leaf in jax.tree.leaves(hyper[n]))
        own = jax.tree.unflatten(jax.tree.structure(hyper[n]), moved)
        zeros = jax.tree.map(np.zeros_like, hyper)
        return zeros._replace(**{hyper._fields[n]: own})

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(direction, fields))


def assert_true_derivatives(value, hyper):
    """Forward and reverse mode give the central difference along every field."""
    step = 1e-5

    @jax.jit
    def measure(hyper, directions):
        def forward(direction, amount):
            moved = jax.tree.map(lambda x, d: x + amount * d, hyper, direction)
            return jax.jvp(value, (moved,), (direction,))

        # Both modes in one program, whose values are those of the forward mode.
        batched = jax.vmap(jax.vmap(forward, in_axes=(0, None)), in_axes=(None, 0))
        values, slopes = batched(directions, jnp.array([step, 0.0, -step]))
        grads = jax.grad(value)(hyper)
        reverse = jax.vmap(lambda v: tree_vdot(v, grads))(directions)
        return (values[0] - values[2]) / (2 * step), slopes[1], reverse

    expected, forward, reverse = measure(hyper, one_per_field(hyper))
    # The difference errs by step**2 ~ 1e-10 and by rounding / step ~ 1e-11.
    tolerance = {"rtol": 1e-6, "atol": 1e-9, "err_msg": str(hyper._fields)}
    np.testing.assert_allclose(forward, expected, **tolerance)
    np.testing.assert_allclose(reverse, expected, **tolerance)
    assert np.min(np.abs(expected)) > 1e-4, (hyper._fields, expected)


# The bounds of "clipped" are active at every update; see the test below.
CLIPPED = {"clip": 0.07, "meta_tx": lm.clip_meta_grads(0.035)}
FIRST_ORDER = {"first_order": True}
UPDATES = {
    "second order": {},
    "first order": FIRST_ORDER,
    "clipped, synchronous": {"weight_tx": optax.sgd(0.3), **CLIPPED},
    "first order, clipped, momentum": {"momentum": 0.6, **FIRST_ORDER, **CLIPPED},
    "momentum, inner momentum": {"momentum": 0.6, "inner_tx": optax.trace(0.5)},
    "first order, inner Adam": {
        "inner_tx": optax.scale_by_adam(eps_root=1e-8),
        **FIRST_ORDER,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UPDATES)
def test_derivatives_through_updates_equal_central_differences(name):
    options = UPDATES[name]
    assert_true_derivatives(lambda hyper: loss_after(hyper, **options)[0], make_hyper())


def test_the_bounds_of_the_clipped_updates_are_active_and_not_at_a_kink():
    hyper = make_hyper()
    _, info = jax.jit(functools.partial(loss_after, **CLIPPED))(hyper)
    norms = jnp.stack([info.weight_grad_norm, info.step_size_grad_norm])
    # Far from 0.035 in steps of 1e-5; each half is clipped in one update at least.
    assert np.min(np.abs(norms - 0.035)) > 1e-3
    assert np.all(np.max(norms, axis=1) > 0.035)
    fast_weights = [hyper.weights]
    rates, largest = hyper.step_size_init, []
    for i in range(K):
        batch = jax.tree.map(lambda leaf, i=i: leaf[0, i], hyper.support)
        mean_loss = lambda w, b=batch: jnp.mean(decayed(hyper.decay)(w, b))
        grads = jax.grad(mean_loss)(fast_weights[-1])
        largest += [np.abs(np.ravel(leaf)) for leaf in jax.tree.leaves(grads)]
        move = lambda w, g: w - rates * jnp.clip(g, -0.07, 0.07)
        fast_weights.append(jax.tree.map(move, fast_weights[-1], grads))
    elements = np.concatenate(largest)
    assert 0.1 < np.mean(elements > 0.07) < 0.9
    assert np.min(np.abs(elements - 0.07)) > 1e-3


# The inner loop of the published size, K = 5, through ten updates of one leaf.


def huber_after(eta, start, meta_gradient):
    """Query loss after ten asynchronous updates, written out."""
    curvature = jnp.array([0.5, 1.0, 2.0])

    def loss_fn(weights, batch):
        gaps = weights[None, :] - batch
        return jnp.sum(curvature[None, :] * (jnp.sqrt(1 + gaps**2) - 1), axis=-1)

    query = jnp.asarray(waves((3, 3), 0.8))

    def update(params, support):
        grads = meta_gradient(loss_fn, params, support, query)
        rates = params.step_sizes - eta * grads.step_sizes
        weights = params.weights - jax.nn.relu(rates) * grads.weights
        return lm.MetaParams(weights, rates), None

    support = jnp.asarray(waves((10, 5, 2, 3), 0.3))
    params, _ = jax.lax.scan(update, start, support)
    return jnp.mean(loss_fn(params.weights, query))


ETA = 0.5


def make_start():
    return lm.MetaParams(jnp.array([1.0, -0.7, 0.4]), jnp.full(3, 0.2))


def true_gradient(loss_fn, params, support, query, **options):
    return lm.meta_value_and_grad(loss_fn, **options)(params, support, query)[1]


def leaking_gradient(loss_fn, params, support, query):
    """First order by constants, which stay constants to whoever differentiates it."""

    def meta_loss(params):
        probe = lambda weights: jnp.mean(loss_fn(weights, query))
        _, trace = lm.adapt(loss_fn, *params, support, first_order=True, probe_fn=probe)
        return jnp.mean(trace.probed)

    return jax.grad(meta_loss)(params)


ROUTES = [
    {},
    {"remat": False},
    {"remat": "sqrt"},
    {"inner_ad": "forward_over_reverse"},
    FIRST_ORDER,
    {"remat": False, **FIRST_ORDER},
]


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_first_and_second_derivative_through_ten_updates(route):
    gradient, step, start = (
        functools.partial(true_gradient, **route),
        1e-5,
        make_start(),
    )

    def by_eta(eta):
        return huber_after(eta, start, gradient)

    @jax.jit
    def measure(eta):
        forward = lambda eta: jax.jvp(by_eta, (eta,), (1.0,))[1]
        return by_eta(eta), jax.grad(by_eta)(eta), forward(eta), jax.grad(forward)(eta)

    value, found, forward, second = measure(ETA)
    plus, minus = measure(ETA + step), measure(ETA - step)
    slope, curvature = ((plus[i] - minus[i]) / (2 * step) for i in (0, 1))
    # As above, differences good to 1e-10 and 1e-11.
    assert min(abs(slope), abs(curvature)) > 1e-3
    np.testing.assert_allclose([found, forward], slope, rtol=1e-6)
    np.testing.assert_allclose(second, curvature, rtol=1e-6)
    if route == FIRST_ORDER:
        # What stop_gradient inside the inner steps would make of it is another slope.
        by_leak = lambda eta: huber_after(eta, start, leaking_gradient)
        same, leaked = jax.jit(jax.value_and_grad(by_leak))(ETA)
        np.testing.assert_allclose(same, value, **EXACT)
        assert abs(leaked - slope) > 0.05 * abs(slope)


# The learner's scan ------------------------------------------------------------------

STREAM, B = 5, 4


class StreamHyper(NamedTuple):
    eta: jax.Array
    step_size_init: jax.Array
    weights: dict[str, jax.Array]
    rows: tuple[jax.Array, jax.Array]


def make_stream_hyper():
    hyper = make_hyper()
    rows = as_jax((waves((STREAM, B, D), 0.4), waves((STREAM, B), 0.5)))
    return StreamHyper(hyper.eta, hyper.step_size_init, hyper.weights, rows)


def make_learner(hyper, **options):
    """A learner that replays what it stored of the stream."""
    row = jax.tree.map(lambda leaf: leaf[0, 0], hyper.rows)
    example = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), row)
    tx = lm.lamaml(
        net_loss,
        step_size_init=hyper.step_size_init,
        step_size_learning_rate=hyper.eta,
        inner_steps=K,
        reservoir=lm.make_reservoir(6, example),
        replay_size=3,
        **options,
    )
    learner = lm.lamaml_learner(tx)
    return learner, learner.init(jax.random.key(0), hyper.weights)


def stream_losses(hyper, *, truncate_every=None, **options):
    """Meta-losses along the stream and the query loss at its end, [N + 1]."""
    learner, state = make_learner(hyper, **options)
    state, info = lm.observe_stream(
        learner, jax.random.key(1), state, hyper.rows, truncate_every=truncate_every
    )
    last = jax.tree.map(lambda leaf: leaf[-1], hyper.rows)
    end = jnp.mean(net_loss(state.weights, last))
    return jnp.append(info.meta_loss[:, 0], end)


@pytest.mark.slow
@pytest.mark.parametrize("first_order", [False, True])
def test_derivatives_through_the_learners_scan_equal_central_differences(first_order):
    # A truncation that is as long as the stream leaves them whole.
    options = {"first_order": first_order, "truncate_every": STREAM}
    value = lambda hyper: jnp.sum(stream_losses(hyper, **options))
    assert_true_derivatives(value, make_stream_hyper())


# Truncation: any learner will do, and this one is compiled in no time ----------------


class Walk(NamedTuple):
    place: jax.Array
    num_seen: jax.Array
    """An integer, which no derivative passes through anyway."""


def make_walker(rate):
    """Steps towards the mean of each batch, by ``rate`` and a little noise."""

    def observe(key, state, batch, batch_mask=None, remember=True):
        miss = jnp.tanh(state.place - jnp.mean(batch))
        noise = 0.1 * jax.random.normal(key)
        state = Walk(state.place - rate * miss + noise, state.num_seen + 1)
        return state, state.place

    return lm.Learner(lambda key, weights: Walk(weights, jnp.int32(0)), observe)


WALK = (0.3, 1.2)  # rate and start
PLACES = waves((STREAM, B), 0.3)


def walk(rate_and_start, **options):
    """Sum of the squared places along the stream."""
    rate, start = rate_and_start
    learner, key = make_walker(rate), jax.random.key(1)
    state = learner.init(key, start)
    _, places = lm.observe_stream(learner, key, state, PLACES, **options)
    return jnp.sum(places**2)


def plain_walk(rate_and_start, cuts, counted=range(STREAM)):
    """The same in a loop, with states that are constants before ``cuts``."""
    rate, start = rate_and_start
    learner, key, total = make_walker(rate), jax.random.key(1), 0
    state = learner.init(key, start)
    for n, batch in enumerate(PLACES):
        if n in cuts:
            state = jax.lax.stop_gradient(state)
        state, place = learner.observe(jax.random.fold_in(key, n), state, batch)
        total += place**2 if n in counted else 0
    return total


def value_and_derivative(fn, *arguments, **options):
    run = lambda hyper: fn(hyper, *arguments, **options)
    return jax.jit(jax.value_and_grad(run))(jnp.asarray(WALK))


@pytest.mark.parametrize(
    ("every", "cuts"),
    [(1, (1, 2, 3, 4)), (2, (2, 4)), (3, (3,)), (STREAM, ()), (STREAM + 2, ())],
)
def test_truncation_cuts_the_derivative_and_leaves_the_values(every, cuts):
    found = value_and_derivative(walk, truncate_every=every)
    assert_trees_close(found, value_and_derivative(plain_walk, cuts), **EXACT)
    value, whole = value_and_derivative(walk)
    np.testing.assert_allclose(found[0], value, **EXACT)
    assert np.allclose(found[1], whole) == (not cuts)


def test_truncation_counts_the_batches_of_a_stream_shown_in_parts():
    def in_parts(rate_and_start):
        rate, start = rate_and_start
        learner, key, total = make_walker(rate), jax.random.key(1), 0
        state = learner.init(key, start)
        for part in (slice(0, 3), slice(3, STREAM)):
            state, places = lm.observe_stream(
                learner, key, state, PLACES[part], first=part.start, truncate_every=2
            )
            total += jnp.sum(places**2)
        return total

    found = value_and_derivative(in_parts)
    assert_trees_close(found, value_and_derivative(walk, truncate_every=2), **EXACT)


def test_derivative_through_a_window_is_that_of_its_last_batches():
    before = STREAM - 2

    def recipe(rate_and_start):
        rate, start = rate_and_start
        learner, key = make_walker(rate), jax.random.key(1)
        state = learner.init(key, start)
        state, _ = lm.observe_stream(learner, key, state, PLACES[:before])
        state = jax.lax.stop_gradient(state)
        _, places = lm.observe_stream(
            learner, key, state, PLACES[before:], first=before
        )
        return jnp.sum(places**2)

    value, derivative = value_and_derivative(recipe)
    counted = range(before, STREAM)
    expected = value_and_derivative(plain_walk, (before,), counted)
    assert_trees_close((value, derivative), expected, **EXACT)
    # The start is before the window.
    assert derivative[0] != 0
    assert derivative[1] == 0
