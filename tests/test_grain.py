"""Step sizes of any grain: their gradients are the sums that broadcasting implies."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import (
    EXACT,
    FUSED,
    as_jax,
    assert_trees_close,
    rectified_step,
    waves,
    wide_loss,
)

import lamaml_jax as lm
from lamaml_jax import grain

K, S, Q, B, D, H = 3, 2, 3, 4, 2, 3
FROZEN_BODY = {"body": False, "head": True}


def loss_fn(weights, batch):
    inputs, targets = batch
    body, head = weights["body"], weights["head"]
    hidden = jnp.tanh(inputs @ body["w"] + body["b"][None, :])
    return (hidden @ head["v"] + head["c"] - targets) ** 2 / 2


WEIGHTS = {
    "body": {"w": waves((D, H), 0.1), "b": waves((H,), 0.2)},
    "head": {"v": waves((H,), 0.3), "c": waves((), 0.4)},
}
# Negative and zero rates among them, whose rectified gradient is zero.
GRAINS = {
    "full tree": {
        "body": {"w": waves((D, H), 0.5), "b": waves((H,), 0.6)},
        "head": {"v": waves((H,), 0.7), "c": np.array(0.3)},
    },
    "one": np.array(0.3),
    "one per leaf": {
        "body": {"w": np.array(0.3), "b": np.array(-0.2)},
        "head": {"v": np.array(0.0), "c": np.array(0.4)},
    },
    "one per layer": {"body": np.array(0.3), "head": np.array(-0.2)},
    "one per output channel": {
        "body": {"w": np.array([[0.3, -0.2, 0.4]]), "b": np.array([0.2, 0.0, 0.1])},
        "head": {"v": np.array([0.3]), "c": np.array(0.4)},
    },
    "channels shared by leaves": {
        "body": np.array([0.3, -0.2, 0.4]),
        "head": {"v": np.array(0.3), "c": np.array(0.1)},
    },
}
each_grain = pytest.mark.parametrize("name", [g for g in GRAINS if g != "full tree"])


def make_data(dtype=None):
    support = (waves((K, S, D), 0.8), waves((K, S), 0.9))
    query = (waves((Q, D), 1.0), waves((Q,), 1.1))
    return as_jax((support, query), dtype)


def full_rates(rates):
    """The same rates as a full tree, by numpy's own broadcasting."""
    below = lambda rate, part: jax.tree.map(
        lambda leaf: jnp.asarray(np.broadcast_to(rate, np.shape(leaf))), part
    )
    return jax.tree.map(below, rates, WEIGHTS)


def summed(full, rates):
    """What belongs to one rate added up: jax's own transpose of broadcasting."""

    def spread(rates):
        below = lambda rate, part: jax.tree.map(
            lambda leaf: jnp.broadcast_to(rate, jnp.shape(leaf)), part
        )
        return jax.tree.map(below, rates, WEIGHTS)

    with jax.numpy_rank_promotion("allow"):
        return jax.vjp(spread, as_jax(rates))[1](full)[0]


# Spread and gather -------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAINS)
def test_spread_gives_every_weight_its_rate_without_a_copy(x64, name):
    rates, weights = as_jax((GRAINS[name], WEIGHTS))
    spread = grain.spread(rates, weights)
    assert jax.tree.map(jnp.ndim, spread) == jax.tree.map(jnp.ndim, weights)
    held = {id(leaf): leaf.size for leaf in jax.tree.leaves(rates)}
    assert max(x.size for x in jax.tree.leaves(spread)) == max(held.values())
    broadcast = jax.tree.map(
        lambda x, w: jnp.broadcast_to(x, jnp.shape(w)), spread, weights
    )
    assert_trees_close(broadcast, full_rates(GRAINS[name]), rtol=0, atol=0)


@pytest.mark.parametrize("name", GRAINS)
def test_gather_is_the_transpose_of_spread(x64, name):
    rates, weights = as_jax((GRAINS[name], WEIGHTS))
    assert_trees_close(
        grain.gather(weights, rates), summed(weights, GRAINS[name]), **EXACT
    )


def test_gather_adds_up_in_the_dtype_of_the_rate():
    ones = {"w": jnp.ones((64, 64), jnp.bfloat16)}
    total = grain.gather(ones, jnp.float32(0))
    # bfloat16 counts in steps of 32 at this size.
    assert total.dtype == jnp.float32
    assert grain.gather({"w": ones["w"][:33, :31]}, jnp.float32(0)) == 33 * 31
    assert total == 64 * 64


def test_a_rate_without_weights_below_it_gets_zero():
    rates = {"w": jnp.float32(0.1), "empty": jnp.float32(0.2)}
    weights = {"w": jnp.ones(2), "empty": {}}
    assert grain.spread(rates, weights)["empty"] == {}
    assert grain.gather(weights, rates) == {"w": 2.0, "empty": 0.0}


# Adaptation and meta-gradients -------------------------------------------------------

OPTIONS = {
    "second order": {},
    "first order": {"first_order": True},
    "unrectified, last, by vector products": {
        "rectify": False,
        "objective": "last",
        "inner_ad": "forward_over_reverse",
    },
    "unrectified, first order, clipped": {
        "rectify": False,
        "first_order": True,
        "clip": 0.1,
    },
    "head only, clipped, by definition": {
        "adapt_mask": FROZEN_BODY,
        "clip": 0.1,
        "remat": False,
    },
    "head only, first order": {"adapt_mask": FROZEN_BODY, "first_order": True},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=pytest.mark.slow if "only" in name else [])
        for name, options in OPTIONS.items()
    ],
)
def test_meta_gradients_are_sums_of_those_of_the_full_tree(x64, options):
    support, query = make_data()
    fn = jax.jit(lm.meta_value_and_grad(loss_fn, **options))
    # The full tree with the rates of each grain is one program.
    for name in ("one", "one per layer", "one per output channel"):
        params = as_jax(lm.MetaParams(WEIGHTS, GRAINS[name]))
        (loss, info), grads = fn(params, support, query)
        full = params._replace(step_sizes=full_rates(GRAINS[name]))
        (full_loss, full_info), full_grads = fn(full, support, query)
        assert_trees_close((loss, info), (full_loss, full_info), **EXACT)
        assert_trees_close(grads.weights, full_grads.weights, **EXACT)
        expected = summed(full_grads.step_sizes, GRAINS[name])
        assert_trees_close(grads.step_sizes, expected, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one per leaf", "channels shared by leaves"])
def test_adapt_takes_rates_that_many_weights_share(x64, name):
    support, _ = make_data()

    @functools.partial(jax.jit, static_argnames="first_order")
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(rates, weights, first_order):
        fast, trace = lm.adapt(
            loss_fn, weights, rates, support, first_order=first_order
        )
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(fast)), (fast, trace)

    for first_order in (False, True):
        rates, weights = as_jax((GRAINS[name], WEIGHTS))
        result, grads = run(rates, weights, first_order=first_order)
        expected, full = run(full_rates(rates), weights, first_order=first_order)
        assert_trees_close(result, expected, **EXACT)
        assert_trees_close(grads, summed(full, GRAINS[name]), **EXACT)


def test_a_python_float_is_one_rate():
    weights, (support, query) = as_jax(WEIGHTS, jnp.float32), make_data(jnp.float32)
    fn = lm.meta_value_and_grad(loss_fn)
    found, expected = (
        fn(lm.MetaParams(weights, rate), support, query)
        for rate in (0.25, jnp.float32(0.25))
    )
    assert_trees_close(found, expected, rtol=0, atol=0)
    fast, _ = lm.adapt(loss_fn, weights, {"body": 0.0, "head": 0.25}, support)
    assert_trees_close(fast["body"], weights["body"], rtol=0, atol=0)
    assert fast["head"]["c"] != weights["head"]["c"]


def test_an_inner_optimiser_takes_every_grain(x64):
    support, query = make_data()
    rates = GRAINS["channels shared by leaves"]
    for first_order in (False, True):
        fn = lm.meta_value_and_grad(
            loss_fn,
            inner_tx=optax.scale_by_adam(eps_root=1e-8),
            first_order=first_order,
        )
        fn, params = jax.jit(fn), as_jax(lm.MetaParams(WEIGHTS, rates))
        _, grads = fn(params, support, query)
        _, full = fn(params._replace(step_sizes=full_rates(rates)), support, query)
        assert_trees_close(grads.step_sizes, summed(full.step_sizes, rates), **EXACT)
        assert_trees_close(grads.weights, full.weights, **EXACT)


def test_wrong_grains_are_refused():
    weights, (support, _) = as_jax(WEIGHTS, jnp.float32), make_data(jnp.float32)
    adapt = lambda rates: lm.adapt(loss_fn, weights, rates, support)
    with pytest.raises(ValueError, match="step_sizes: expected the tree of weights or"):
        adapt({"body": jnp.float32(0.1)})
    match = r"step_sizes\['body'\]: expected shape \(3,\) as in weights\['b'\], or one"
    with pytest.raises(ValueError, match=match):
        adapt({"body": jnp.full((2, 1), 0.1), "head": jnp.float32(0.1)})
    with pytest.raises(ValueError, match=r"step_sizes\['head'\]: expected shape \(\)"):
        adapt({"body": jnp.float32(0.1), "head": jnp.ones(3)})


# The rule alone ----------------------------------------------------------------------

GRADS = jax.tree.map(lambda leaf: leaf + 0.5, WEIGHTS)


def positive(rates):
    return jax.tree.map(np.abs, rates)


@pytest.mark.parametrize("weight_tx", [None, optax.sgd(0.3)], ids=["async", "sync"])
@each_grain
def test_the_rule_moves_rates_and_weights_of_every_grain(x64, name, weight_tx):
    rates, weights, grads = as_jax((positive(GRAINS[name]), WEIGHTS, GRADS))
    rate_grads = jax.tree.map(lambda a: 0.7 + a, rates)
    tx = lm.scale_by_step_sizes(lambda _: rates, optax.sgd(0.2), weight_tx=weight_tx)
    state = tx.init(weights)
    assert_trees_close(state.step_sizes, rates, rtol=0, atol=0)
    updates, state = jax.jit(tx.update)(
        grads, state, weights, step_size_grads=rate_grads
    )
    moved = jax.tree.map(lambda a, g: a - 0.2 * g, rates, rate_grads)
    factors = full_rates(moved)
    if weight_tx is not None:
        factors = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.3), weights)
    expected = jax.tree.map(lambda a, g: -jax.nn.relu(a) * g, factors, grads)
    assert_trees_close((updates, state.step_sizes), (expected, moved), **EXACT)


def test_initial_step_sizes_keep_the_grain_they_are_given():
    weights = as_jax(WEIGHTS, jnp.bfloat16)
    init = lambda init: (
        lm.scale_by_step_sizes(init, optax.sgd(0.1)).init(weights).step_sizes
    )
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    # Numbers give every weight a rate; a function and arrays keep what they are.
    assert shapes(init(0.1)) == shapes(weights)
    assert shapes(init({"body": 0.1, "head": {"v": 0.2, "c": 0.3}})) == shapes(weights)
    assert init(lambda params: 0.1).shape == ()
    per_leaf = lambda params: jax.tree.map(lambda _: 0.1, params)
    assert shapes(init(per_leaf)) == jax.tree.map(lambda _: (), weights)
    by_layer = init({"body": jnp.full(H, 0.5), "head": 0.25})
    assert shapes(by_layer) == {"body": (H,), "head": shapes(weights["head"])}
    # A Python number takes the dtype of its weights, an array keeps its own.
    assert init(lambda params: 0.1).dtype == jnp.bfloat16
    assert by_layer["body"].dtype == jnp.float32
    assert by_layer["head"]["v"].dtype == jnp.bfloat16


def test_masked_hides_weights_from_rates_of_any_grain():
    """``step_size_grads`` and ``init`` may be passed whole."""
    weights, grads = as_jax((WEIGHTS, GRADS), jnp.float32)
    rates = {"body": jnp.float32(0.5), "head": jnp.full(1, 0.25)}
    rates["head"] = {"v": jnp.full(1, 0.25), "c": jnp.float32(0.25)}
    tx = optax.masked(
        lm.scale_by_step_sizes(lambda _: rates, optax.sgd(0.25)), FROZEN_BODY
    )
    rate_grads = jax.tree.map(jnp.ones_like, rates)
    state = tx.init(weights)
    updates, state = tx.update(grads, state, weights, step_size_grads=rate_grads)
    assert_trees_close(updates["body"], grads["body"], rtol=0, atol=0)
    found = optax.tree.get(state, "step_sizes")
    # 0.25 - 0.25 * 1 = 0: the head stands still.
    assert jax.tree.leaves(found) == [0.0, 0.0]
    assert not any(map(np.any, jax.tree.leaves(updates["head"])))


def test_partition_gives_each_part_rates_of_its_own_grain():
    weights, grads = as_jax((WEIGHTS, GRADS), jnp.float32)
    by_layer = lambda params: {"body": 0.5, "head": 0.5}
    by_channel = {"body": 0.5, "head": {"v": jnp.full(1, 0.5), "c": jnp.full((), 1.0)}}
    tx = optax.partition(
        {
            "layers": lm.scale_by_step_sizes(by_layer, optax.sgd(0.25)),
            "channels": lm.scale_by_step_sizes(by_channel, optax.sgd(0.25)),
        },
        {"body": "layers", "head": "channels"},
    )
    # One tree for both, in the grain of each.
    rate_grads = {
        "body": jnp.float32(1),
        "head": {"v": jnp.full(1, -1.0), "c": jnp.float32(2)},
    }
    state = tx.init(weights)
    updates, _ = jax.jit(tx.update)(grads, state, weights, step_size_grads=rate_grads)
    # 0.5 - 0.25 * 1, 0.5 + 0.25 * 1 and 1 - 0.25 * 2; dyadic, so exact.
    factors = {"body": 0.25, "head": {"v": 0.75, "c": 0.5}}
    expected = jax.tree.map(
        lambda a, part: jax.tree.map(lambda g: -a * g, part), factors, grads
    )
    assert_trees_close(updates, expected, rtol=0, atol=0)


# The transformation and the learner --------------------------------------------------


def run_updates(rates, num_updates=2, **options):
    """A few updates; the weights, the state and what a full tree would have seen."""
    weights, (support, query) = as_jax(WEIGHTS), make_data()
    tx = lm.lamaml_transform(
        loss_fn,
        step_size_init=lambda _: as_jax(rates),
        step_size_tx=optax.sgd(0.2),
        inner_steps=K,
        **options,
    )

    def update(carry, _):
        weights, state = carry
        updates, state = tx.update(
            optax.tree.zeros_like(weights), state, weights, support=support, query=query
        )
        return (optax.apply_updates(weights, updates), state), state.info

    run = jax.jit(lambda c: jax.lax.scan(update, c, length=num_updates))
    return run((weights, tx.init(weights)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "momentum"),
    [
        ("one", None),
        ("one per output channel", None),
        ("one per layer", 0.5),
        ("channels shared by leaves", None),
    ],
)
def test_updates_equal_plain_loops(x64, name, momentum):
    """The rule written out, with meta-gradients of the full tree added up."""
    rates = positive(GRAINS[name])
    (weights, state), info = run_updates(
        rates, momentum=momentum, meta_tx=optax.identity()
    )
    by_hand = as_jax(lm.MetaParams(WEIGHTS, rates))
    fn, running, before = jax.jit(lm.meta_value_and_grad(loss_fn)), None, None

    def gradient(params):
        full = params._replace(step_sizes=full_rates(params.step_sizes))
        _, grads = fn(full, *make_data())
        return grads._replace(step_sizes=summed(grads.step_sizes, rates))

    for n in range(2):
        grads = gradient(by_hand)
        if momentum is not None and n > 0:
            grads = jax.tree.map(
                lambda g, r, b: g + momentum * (r - b), grads, running, gradient(before)
            )
        running, before = grads, by_hand
        moved = jax.tree.map(
            lambda a, g: a - 0.2 * g, by_hand.step_sizes, grads.step_sizes
        )
        by_hand = lm.MetaParams(
            rectified_step(by_hand.weights, full_rates(moved), grads.weights),
            moved,
        )
    found = lm.MetaParams(weights, state.rule_state.step_sizes)
    assert_trees_close(found, by_hand, **EXACT)
    # Reports count rates, not weights.
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradient(before)[1])))
    np.testing.assert_allclose(info.step_size_mean[-1], flat.mean(), **EXACT)
    np.testing.assert_allclose(info.step_size_min[-1], flat.min(), **EXACT)
    np.testing.assert_allclose(info.step_size_max[-1], flat.max(), **EXACT)
    np.testing.assert_allclose(info.frozen_fraction[-1], np.mean(flat <= 0), **EXACT)
    if momentum is None:
        np.testing.assert_allclose(info.step_size_grad_norm[-1], norm, **EXACT)


def make_learner(rates, **options):
    row = (
        jax.ShapeDtypeStruct((D,), jnp.float32),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    tx = lm.lamaml(
        loss_fn,
        step_size_init=lambda _: as_jax(rates, jnp.float32),
        inner_steps=2,
        reservoir=lm.make_reservoir(6, row),
        replay_size=2,
        **options,
    )
    return lm.lamaml_learner(tx)


@pytest.mark.slow
def test_learner_keeps_the_grain_under_scan_vmap_and_shard_map():
    rates = positive(GRAINS["channels shared by leaves"])
    learner = make_learner(rates, first_order=True)
    weights = as_jax(WEIGHTS, jnp.float32)
    batches = as_jax((waves((3, B, D), 0.4), waves((3, B), 0.5)), jnp.float32)

    def train(key):
        state = learner.init(key, weights)
        state, info = lm.observe_stream(learner, key, state, batches)
        return state.weights, optax.tree.get(state, "step_sizes"), info.meta_loss

    keys = jax.random.split(jax.random.key(0), 2)
    batched = jax.jit(jax.vmap(train))(keys)
    shapes = jax.tree.map(lambda leaf: (2, *np.shape(leaf)), rates)
    assert jax.tree.map(jnp.shape, batched[1]) == shapes
    single = jax.jit(train)
    for n, key in enumerate(keys):
        one = jax.tree.map(lambda leaf, n=n: leaf[n], batched)
        assert_trees_close(one, single(key), **FUSED)
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices, of which this process has one")
    mesh = Mesh(np.array(jax.devices()[:2]), ("seeds",))
    sharded = jax.shard_map(
        jax.vmap(train),
        mesh=mesh,
        in_specs=P("seeds"),
        out_specs=P("seeds"),
        # The fresh state is the same on both devices, the next ones are not.
        check_vma=False,
    )
    assert_trees_close(jax.device_get(jax.jit(sharded)(keys)), batched, **FUSED)


def test_a_rate_varies_over_devices_as_its_weights_do():
    """Else the gradients of a rate would be added up over the devices."""
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices, of which this process has one")
    rates = jnp.float32(0.3)
    mesh = Mesh(np.array(jax.devices()[:2]), ("seeds",))
    # Second order: a vjp adds up over devices what does not vary over them.
    tx = lm.lamaml_transform(loss_fn, step_size_init=lambda _: rates, inner_steps=K)
    support, query = make_data(jnp.float32)

    def update(weights):
        state = tx.init(weights)
        return tx.update(
            optax.tree.zeros_like(weights), state, weights, support=support, query=query
        )

    weights = jax.tree.map(
        lambda leaf: jnp.stack([jnp.float32(leaf), jnp.float32(leaf) + 0.1]), WEIGHTS
    )
    run = jax.vmap(update)
    spec = P("seeds")
    sharded = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
    found = jax.device_get(jax.jit(sharded)(weights))
    assert_trees_close(found, jax.device_get(jax.jit(run)(weights)), **FUSED)


def test_bfloat16_weights_learn_with_a_float32_rate():
    weights, (support, query) = as_jax(WEIGHTS, jnp.bfloat16), make_data(jnp.bfloat16)
    rates = {"body": jnp.float32(0.2), "head": jnp.full((), 0.1, jnp.float32)}
    for first_order in (False, True):
        tx = lm.lamaml_transform(
            loss_fn,
            step_size_init=lambda _: rates,
            inner_steps=K,
            first_order=first_order,
        )
        updates, state = jax.jit(tx.update)(
            optax.tree.zeros_like(weights),
            tx.init(weights),
            weights,
            support=support,
            query=query,
        )
        dtypes = lambda tree: {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
        assert dtypes(updates) == {"bfloat16"}
        assert dtypes(state.rule_state.step_sizes) == {"float32"}
        assert state.rule_state.step_sizes["body"] != 0.2


# Memory ------------------------------------------------------------------------------


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_one_rate_per_leaf_carries_no_second_copy_of_the_weights():
    """A tree of 100 million weights, by shapes alone."""
    weights = {
        f"layer_{n}": jax.ShapeDtypeStruct((10_000, 1_000), jnp.float32)
        for n in range(10)
    }
    assert nbytes(weights) == 400_000_000

    def state_bytes(init):
        tx = lm.lamaml_transform(loss_fn, step_size_init=init)
        return nbytes(jax.eval_shape(tx.init, weights))

    one_each = lambda params: jax.tree.map(lambda _: 0.1, params)
    # Ten rates and what there is to plot.
    assert state_bytes(one_each) < 200
    assert state_bytes(lambda params: 0.1) < 200
    assert nbytes(weights) < state_bytes(0.1) < nbytes(weights) + 200


def test_one_rate_per_leaf_needs_no_tree_of_rates_in_an_update():
    """Neither the rates nor their gradients are ever spread out in memory."""

    # More than stays in a cache: steps of fewer weights are unrolled, for more memory.
    weights = {"w": jnp.ones((600, 400)), "v": jnp.ones((400, 600))}
    size = nbytes(weights)
    support, query = jnp.ones((3, 1, 600)), jnp.ones((2, 600))

    def used(rates):
        fn = jax.jit(lm.meta_value_and_grad(wide_loss))
        params = lm.MetaParams(weights, rates)
        analysis = fn.lower(params, support, query).compile().memory_analysis()
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    full = used(jax.tree.map(lambda leaf: 0.1 * leaf, weights))
    one_each = used(jax.tree.map(lambda leaf: jnp.float32(0.1), weights))
    assert one_each < full - 0.9 * size


# Containers that can be called -------------------------------------------------------


class Affine(eqx.Module):
    """A model, a tree of step sizes and a mask alike, which must not be called."""

    w: jax.Array | float | bool
    b: jax.Array | float | bool

    def __call__(self, x):
        return jax.tree.map(lambda _: True, x)


def affine_loss(model, batch):
    return jnp.sum(((model.w + model.b)[None, :] - batch) ** 2, axis=-1)


AFFINE = Affine(jnp.zeros(2), jnp.zeros(2))


def test_a_mask_that_can_be_called_is_read():
    support = jnp.ones((1, 3, 2))
    rates = Affine(jnp.full(2, 0.1), jnp.full(2, 0.1))

    mask = Affine(False, True)
    fast, _ = lm.adapt(affine_loss, AFFINE, rates, support, adapt_mask=mask)
    np.testing.assert_array_equal(fast.w, [0.0, 0.0])
    # float32: one step of 0.1 along a gradient of -2.
    np.testing.assert_allclose(fast.b, [0.2, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (Affine(0.5, 0.25), Affine(jnp.full(2, 0.5), jnp.full(2, 0.25))),
        (
            Affine(jnp.array([0.5, 0.25]), jnp.full(1, 0.125)),
            Affine(jnp.array([0.5, 0.25]), jnp.full(1, 0.125)),
        ),
        (lambda model: Affine(0.5, 0.25), Affine(jnp.float32(0.5), jnp.float32(0.25))),
    ],
    ids=["numbers", "arrays", "function"],
)
def test_initial_step_sizes_that_can_be_called_are_read(init, expected):
    state = lm.scale_by_step_sizes(init, optax.sgd(0.1)).init(AFFINE)
    assert_trees_close(state.step_sizes, expected, rtol=0, atol=0)


def test_step_sizes_that_can_be_called_are_read():
    fn = lm.meta_value_and_grad(affine_loss)
    params = lm.MetaParams(AFFINE, Affine(0.0, 0.125))
    _, grads = fn(params, jnp.ones((1, 1, 2)), jnp.ones((1, 2)))
    # One step along -2 per weight: b = 0.25, and the query pulls by -2 * 0.75 there,
    # which the step shrinks by 1 - 2 * 0.125; the rate of b gets -(-2) * -1.5, twice.
    np.testing.assert_array_equal(grads.weights.b, [-1.125, -1.125])
    assert grads.step_sizes.b == -6
    assert grads.step_sizes.w == 0
