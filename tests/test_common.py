"""The battery that every transformation and every learner must pass.

A new member joins ``TRANSFORMS`` or ``LEARNERS``; the tests below then cover it.
"""

import contextlib
import functools
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from problems import stack

import lamaml_jax as lm

B, D, Y = 4, 3, 2
K = 2

# float32 against float32, the same operations fused or batched differently: a few units
# of 1e-7 per operation, and some tens of operations in a row.
FUSED = {"rtol": 2e-5, "atol": 2e-6}


def loss_fn(weights, batch):
    error = batch["x"] @ weights["w"] + weights["b"][None, :] - batch["y"]
    return jnp.sum(error**2, axis=-1) / 2


def waves(shape, phase, dtype=jnp.float32):
    """Fixed numbers in [-1, 1] that differ from one another and between phases."""
    size = int(np.prod(shape))
    return jnp.asarray(np.sin(1.7 * np.arange(size) + phase), dtype).reshape(shape)


def make_weights(dtype=jnp.float32):
    return {"w": waves((D, Y), 0.1, dtype), "b": waves((Y,), 0.2, dtype)}


def make_rows(phase, dtype=jnp.float32, leading=(B,)):
    return {
        "x": waves((*leading, D), phase, dtype),
        "y": waves((*leading, Y), phase + 0.5, dtype),
    }


def make_reservoir(dtype, **options):
    example = {
        "x": jax.ShapeDtypeStruct((D,), dtype),
        "y": jax.ShapeDtypeStruct((Y,), dtype),
    }
    return lm.make_reservoir(6, example, **options)


def explicit_data(n, dtype=jnp.float32):
    return {
        "support": make_rows(n, dtype, (K, B // K)),
        "query": make_rows(n + 0.3, dtype),
    }


def batch_data(n, dtype=jnp.float32):
    return {"batch": make_rows(n, dtype), "key": jax.random.key(n)}


def rate_grads(n, dtype=jnp.float32):
    grads = {"w": waves((D, Y), n + 0.4, dtype), "b": waves((Y,), n + 0.6, dtype)}
    return {"step_size_grads": grads}


class Member(NamedTuple):
    """A transformation by its dtype, and the extra arguments of its n-th update."""

    make: Callable[..., Any]
    data: Callable[..., dict[str, Any]]


def with_replay(constructor, **options):
    def make(dtype=jnp.float32, **more):
        return constructor(
            loss_fn,
            inner_steps=K,
            reservoir=make_reservoir(dtype),
            replay_size=2,
            **options,
            **more,
        )

    return Member(make, batch_data)


def make_explicit(dtype=jnp.float32, **options):
    del dtype
    return lm.lamaml_transform(loss_fn, **({"inner_steps": K} | options))


def make_rule(dtype=jnp.float32, **options):
    del dtype
    return lm.scale_by_step_sizes(0.1, optax.sgd(0.25), **options)


def make_utility(dtype=jnp.float32, **options):
    del dtype
    return lm.scale_by_utility(0.9, 0.1, **options)


def keys_alone(n, dtype=jnp.float32):
    del dtype
    return {"key": jax.random.key(n)}


def keyed_loss(weights, batch, *, key):
    factors = 1 + jax.random.uniform(key, (len(batch["x"]), 1)).astype(
        weights["b"].dtype
    )
    return loss_fn(weights, batch | {"y": batch["y"] * factors})


def stateful_loss(weights, batch, *, model_state):
    return loss_fn(weights, batch) + jnp.sum(model_state["mean"])


def keyed_stateful_loss(weights, batch, *, key, model_state):
    return keyed_loss(weights, batch, key=key) + jnp.sum(model_state["mean"])


def move_mean(weights, model_state, batch, **extras):
    del weights, extras
    mean = (model_state["mean"] + jnp.mean(batch["x"], axis=0)) / 2
    return {"mean": mean, "count": model_state["count"] + 1}


def keyed_data(n, dtype=jnp.float32):
    return explicit_data(n, dtype) | {"key": jax.random.key(n)}


def make_with_state(loss_fn, dtype=jnp.float32, **options):
    start = {"mean": jnp.zeros(D, dtype), "count": jnp.zeros((), jnp.int32)}
    return lm.lamaml_transform(
        loss_fn,
        inner_steps=K,
        reservoir=make_reservoir(dtype),
        replay_size=2,
        model_state=start,
        model_state_fn=move_mean,
        **options,
    )


def one_rate_per_leaf(params):
    return jax.tree.map(lambda _: 0.1, params)


TRANSFORMS = {
    "explicit": Member(make_explicit, explicit_data),
    "explicit_mixed_mode": Member(
        functools.partial(
            make_explicit,
            inner_ad="forward_over_reverse",
            objective="last",
            clip=0.5,
            rectify=False,
        ),
        explicit_data,
    ),
    "explicit_variance_reduced": Member(
        functools.partial(make_explicit, momentum=0.5), explicit_data
    ),
    "explicit_inner_optimiser": Member(
        functools.partial(
            make_explicit,
            inner_tx=optax.chain(optax.clip(0.5), optax.trace(0.9)),
            remat="sqrt",
        ),
        explicit_data,
    ),
    "explicit_keyed_loss": Member(
        lambda dtype=jnp.float32: lm.lamaml_transform(
            keyed_loss, inner_steps=K, loss_takes_key=True
        ),
        keyed_data,
    ),
    "replay": with_replay(lm.lamaml_transform),
    "replay_one_rate_per_leaf": with_replay(
        lm.lamaml_transform, step_size_init=one_rate_per_leaf, replay_weight=0.5
    ),
    "replay_model_state": Member(
        functools.partial(make_with_state, stateful_loss), batch_data
    ),
    "replay_keyed_loss_and_model_state": Member(
        functools.partial(
            make_with_state, keyed_stateful_loss, momentum=0.5, loss_takes_key=True
        ),
        batch_data,
    ),
    "replay_first_order": with_replay(lm.lamaml_transform, first_order=True),
    "replay_adaptive": with_replay(
        lm.lamaml_transform, step_size_tx=optax.adam(0.01), weight_tx=optax.adam(0.01)
    ),
    "replay_without_replacement": Member(
        lambda dtype=jnp.float32: lm.lamaml_transform(
            loss_fn,
            inner_steps=K,
            reservoir=make_reservoir(dtype, replace=False),
            replay_size=3,
            adapt_mask={"w": False, "b": True},
        ),
        batch_data,
    ),
    "replay_variance_reduced": with_replay(lm.lamaml_transform, momentum=0.5),
    "lamaml": with_replay(lm.lamaml),
    "sync_lamaml": with_replay(lm.sync_lamaml),
    "cmaml": with_replay(lm.cmaml),
    "scale_by_step_sizes": Member(make_rule, rate_grads),
    "scale_by_step_sizes_synchronous": Member(
        functools.partial(make_rule, weight_tx=optax.sgd(0.1, momentum=0.9)),
        rate_grads,
    ),
    "scale_by_utility": Member(make_utility, keys_alone),
}

LEARNERS = {
    "lamaml": lambda: lm.lamaml_learner(with_replay(lm.lamaml).make()),
    "lamaml_glances": lambda: lm.lamaml_learner(
        with_replay(lm.lamaml).make(), glances=2
    ),
    "sync_lamaml": lambda: lm.lamaml_learner(lm.sync_lamaml(loss_fn, inner_steps=K)),
    "cmaml": lambda: lm.lamaml_learner(with_replay(lm.cmaml).make()),
    "keyed_loss_and_model_state": lambda: lm.lamaml_learner(
        TRANSFORMS["replay_keyed_loss_and_model_state"].make(), glances=2
    ),
    "chain": lambda: lm.lamaml_learner(
        optax.chain(optax.add_decayed_weights(0.1), with_replay(lm.lamaml).make())
    ),
}

# Those that take a loss: they hold info, and refuse hidden weights.
LAMAML = [name for name in TRANSFORMS if not name.startswith("scale_by")]

# Every member is traced, which settles trees, shapes, dtypes and the branches of cond.
# Numbers are compared on members that share no code path, as each costs a compilation.
each_transform = pytest.mark.parametrize("name", TRANSFORMS)
each_lamaml = pytest.mark.parametrize("name", LAMAML)
each_learner = pytest.mark.parametrize("name", LEARNERS)
some_transforms = pytest.mark.parametrize(
    "name",
    [
        "explicit",
        "explicit_variance_reduced",
        "replay",
        "scale_by_step_sizes",
        "scale_by_utility",
    ],
)
cheap_transforms = pytest.mark.parametrize(
    "name", ["explicit", "scale_by_step_sizes", "scale_by_utility"]
)
some_learners = pytest.mark.parametrize("name", ["lamaml_glances", "sync_lamaml"])


@pytest.fixture(autouse=True)
def fresh_trace_counter():
    """chex counts by the identity of a function, which the next test may reuse."""
    chex.clear_trace_counter()


def extra_grads(n, dtype=jnp.float32):
    return {"w": waves((D, Y), n + 0.7, dtype), "b": waves((Y,), n + 0.9, dtype)}


@functools.cache
def jitted(name):
    """One member and its update, compiled once for the whole module."""
    tx = TRANSFORMS[name].make()
    return tx, jax.jit(tx.update)


def plain(tree):
    """Keys as their bits, so that numpy can compare them."""
    return jax.tree.map(
        lambda x: (
            jax.random.key_data(x)
            if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
            else x
        ),
        tree,
    )


def assert_close(first, second, **tolerance):
    chex.assert_trees_all_close(plain(first), plain(second), **tolerance)


# Structure and tracing ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each_transform
def test_tree_shapes_dtypes_and_state_structure_are_preserved(name, dtype):
    member = TRANSFORMS[name]
    tx, weights = member.make(dtype), make_weights(dtype)
    state = tx.init(weights)
    updates, new_state = jax.eval_shape(
        tx.update, extra_grads(0, dtype), state, weights, **member.data(0, dtype)
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, weights)
    step_sizes = optax.tree.get(new_state, "step_sizes")
    if name != "scale_by_utility":
        assert jax.tree.structure(step_sizes) == jax.tree.structure(weights)
        found = {leaf.dtype for leaf in jax.tree.leaves(step_sizes)}
        assert found == {jnp.dtype(dtype)}
    chex.assert_trees_all_equal_shapes_and_dtypes(plain(new_state), plain(state))


@pytest.mark.parametrize("name", ["replay", "explicit_mixed_mode"])
def test_half_precision_updates_are_finite_and_near_single_precision(name):
    member = TRANSFORMS[name]
    results = []
    for dtype in (jnp.float32, jnp.bfloat16):
        tx, weights = member.make(dtype), make_weights(dtype)
        grads = optax.tree.zeros_like(weights)
        updates, _ = jax.jit(tx.update)(
            grads, tx.init(weights), weights, **member.data(0, dtype)
        )
        results.append(optax.tree.cast(updates, jnp.float32))
    # bfloat16 keeps 8 bits (0.4 %); some ten roundings in a row, updates of order 0.1.
    assert_close(*results, rtol=0.1, atol=0.01)


@pytest.mark.slow
@each_transform
def test_every_wrapper_traces_and_keeps_the_state_structure(name):
    member = TRANSFORMS[name]
    tx, weights, data = member.make(), make_weights(), member.data(0)
    wrapped = {
        "chain": optax.chain(optax.add_decayed_weights(0.1), tx, optax.scale(0.5)),
        "apply_if_finite": optax.apply_if_finite(tx, max_consecutive_errors=3),
        "multi_steps": optax.MultiSteps(tx, 2).gradient_transformation(),
    }
    for outer in wrapped.values():
        state = outer.init(weights)

        def step(carry, extra, outer=outer):
            updates, state = outer.update(extra_grads(0), carry[1], carry[0], **extra)
            return (optax.apply_updates(carry[0], updates), state), None

        def maybe(run, carry, step=step):
            return jax.lax.cond(run, lambda: step(carry, data)[0], lambda: carry)

        carry = (weights, state)
        after, _ = jax.eval_shape(
            lambda c, xs, step=step: jax.lax.scan(step, c, xs),
            carry,
            stack([data, member.data(1)]),
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(plain(after), plain(carry))
        jax.eval_shape(maybe, True, carry)


@each_transform
def test_double_precision_keeps_the_state_structure(name, x64):
    member = TRANSFORMS[name]
    tx, weights = member.make(jnp.float64), make_weights(jnp.float64)
    state = tx.init(weights)
    updates, after = jax.eval_shape(
        tx.update,
        extra_grads(0, jnp.float64),
        state,
        weights,
        **member.data(0, jnp.float64),
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, weights)
    chex.assert_trees_all_equal_shapes_and_dtypes(plain(after), plain(state))


def types_along(step, state, *args):
    """The type of every leaf of a state before and after ``step``, as jit sees it.

    Shapes, dtypes, weak types and shardings: where they are equal, the second call
    finds the program of the first.
    """
    seen = []

    def run(state, *args):
        after = step(state, *args)
        seen.extend(jax.tree.map(jax.typeof, plain(tree)) for tree in (state, after))

    jax.eval_shape(run, state, *args)
    return seen


def explicit_mesh():
    """A mesh whose shardings are part of the types; the weights' last axis is split."""
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices, of which this process has one")
    sizes = len(jax.devices()) // 2, 2
    mesh = jax.make_mesh(sizes, ("y", "x"), axis_types=(AxisType.Explicit,) * 2)

    def shard(leaf):
        spec = P(*(None,) * (leaf.ndim - 1), "x")
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return mesh, lambda tree: jax.tree.map(shard, tree)


@pytest.mark.parametrize("on_mesh", [False, True])
@each_transform
def test_types_of_state_and_weights_are_unchanged_by_an_update(name, on_mesh):
    mesh, shard = explicit_mesh() if on_mesh else (None, lambda tree: tree)
    tx, data = TRANSFORMS[name].make(), TRANSFORMS[name].data(0)

    def step(carry, data):
        weights, state = carry
        updates, state = tx.update(extra, state, weights, **data)
        return optax.apply_updates(weights, updates), state

    with jax.set_mesh(mesh) if on_mesh else contextlib.nullcontext():
        weights, extra = shard(make_weights()), shard(extra_grads(0))
        before, after = types_along(step, (weights, tx.init(weights)), data)
        assert before == after
    if on_mesh:
        rates = jax.tree.leaves(optax.tree.get(after[1], "step_sizes"))
        assert name == "replay_one_rate_per_leaf" or all(
            leaf.sharding.spec[-1] == "x" for leaf in rates
        )


@pytest.mark.parametrize("on_mesh", [False, True])
@each_learner
def test_types_of_a_learners_state_are_unchanged_by_a_batch(name, on_mesh):
    mesh, shard = explicit_mesh() if on_mesh else (None, lambda tree: tree)
    learner = LEARNERS[name]()
    observe = lambda state, key, rows: learner.observe(key, state, rows)[0]
    with jax.set_mesh(mesh) if on_mesh else contextlib.nullcontext():
        state = learner.init(jax.random.key(0), shard(make_weights()))
        before, after = types_along(observe, state, jax.random.key(1), make_rows(0))
    assert before == after


@pytest.mark.slow
def test_types_are_unchanged_on_eight_devices():
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-n", 0]
    done = processes.run(
        [
            *pytest_here,
            __file__,
            "-p",
            "no:cacheprovider",
            "-k",
            "test_types_of and True",
        ],
        LAMAML_TEST_DEVICES="8",
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


@some_transforms
def test_ten_updates_trace_once(name):
    member = TRANSFORMS[name]
    tx, weights = member.make(), make_weights()
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(weights)
    for n in range(10):
        updates, state = update(extra_grads(n), state, weights, **member.data(n))
        weights = optax.apply_updates(weights, updates)
    chex.assert_tree_all_finite((weights, optax.tree.get(state, "step_sizes")))


@pytest.mark.slow
@some_transforms
def test_scan_equals_a_python_loop(name):
    tx, update = jitted(name)
    data = [TRANSFORMS[name].data(n) for n in range(3)]
    weights = make_weights()
    state = tx.init(weights)
    zeros = optax.tree.zeros_like(weights)

    def step(carry, extra):
        weights, state = carry
        updates, state = tx.update(zeros, state, weights, **extra)
        return (optax.apply_updates(weights, updates), state), None

    scanned, _ = jax.jit(lambda carry, xs: jax.lax.scan(step, carry, xs))(
        (weights, state), stack(data)
    )
    for extra in data:
        updates, state = update(zeros, state, weights, **extra)
        weights = optax.apply_updates(weights, updates)
    assert_close(scanned, (weights, state), **FUSED)


@cheap_transforms
def test_update_is_a_branch_of_cond(name):
    tx, update = jitted(name)
    weights, data = make_weights(), TRANSFORMS[name].data(0)
    grads, state = extra_grads(0), tx.init(weights)

    @jax.jit
    def maybe(run, state):
        return jax.lax.cond(
            run,
            lambda: tx.update(grads, state, weights, **data),
            lambda: (optax.tree.zeros_like(weights), state),
        )

    assert_close(maybe(True, state), update(grads, state, weights, **data), **FUSED)
    assert_close(maybe(False, state), (optax.tree.zeros_like(weights), state))


@cheap_transforms
def test_jit_equals_no_jit(name):
    tx, update = jitted(name)
    weights = make_weights()
    args = (extra_grads(1), tx.init(weights), weights)
    data = TRANSFORMS[name].data(1)
    assert_close(tx.update(*args, **data), update(*args, **data), **FUSED)


@each_transform
def test_unknown_extra_arguments_leave_the_program_unchanged(name):
    tx = TRANSFORMS[name].make()
    weights = make_weights()
    args = (extra_grads(1), tx.init(weights), weights)
    data = TRANSFORMS[name].data(1)
    foreign = {"value": 1.0, "loss_scale": 3.0, "tag": {"a": jnp.zeros(2)}}
    program, other = (
        jax.make_jaxpr(lambda *args, extra=extra: tx.update(*args, **data, **extra))(
            *args
        )
        for extra in ({}, foreign)
    )
    # Addresses of Python functions in a printed program differ from trace to trace.
    assert re.sub("0x[0-9a-f]+", "", str(program)) == re.sub(
        "0x[0-9a-f]+", "", str(other)
    )


@some_transforms
def test_state_can_be_donated(name):
    tx, update = jitted(name)
    weights, data = make_weights(), TRANSFORMS[name].data(0)
    donating = jax.jit(tx.update, donate_argnums=1)
    kept, given = tx.init(weights), tx.init(weights)
    for n in range(2):
        expected, kept = update(extra_grads(n), kept, weights, **data)
        updates, given = donating(extra_grads(n), given, weights, **data)
        assert_close(updates, expected, **FUSED)
    assert_close(given, kept, **FUSED)


@some_transforms
def test_arguments_are_not_mutated(name):
    tx, _ = jitted(name)
    weights, grads = make_weights(), extra_grads(0)
    state, data = tx.init(weights), TRANSFORMS[name].data(0)
    given = (weights, grads, state, data)
    before = jax.tree.map(np.array, plain(given))
    tx.update(grads, state, weights, **data)
    chex.assert_trees_all_equal(plain(given), before)


# Other transformations around it --------------------------------------------------


@cheap_transforms
def test_scale_after_it_halves_the_update(name):
    tx, update = jitted(name)
    weights, data = make_weights(), TRANSFORMS[name].data(0)
    halved = optax.chain(tx, optax.scale(0.5))
    got, state = jax.jit(halved.update)(
        extra_grads(0), halved.init(weights), weights, **data
    )
    expected, alone = update(extra_grads(0), tx.init(weights), weights, **data)
    assert_close(got, optax.tree.scale(0.5, expected), **FUSED)
    assert_close(state[0], alone, **FUSED)


@pytest.mark.parametrize("name", ["explicit", "replay"])
def test_weight_decay_before_it_enters_the_meta_gradient_before_clipping(name):
    tx, update = jitted(name)
    weights, data = make_weights(), TRANSFORMS[name].data(0)
    chain = optax.chain(optax.add_decayed_weights(50.0), tx)
    zeros = optax.tree.zeros_like(weights)
    got, state = jax.jit(chain.update)(zeros, chain.init(weights), weights, **data)
    decay = optax.tree.scale(50.0, weights)
    expected, alone = update(decay, tx.init(weights), weights, **data)
    assert_close(got, expected, **FUSED)
    norm = optax.tree.get(state, "info").weight_grad_norm
    without = update(zeros, tx.init(weights), weights, **data)[1].info.weight_grad_norm
    # 50 |weights| is about 80, the meta-gradient about 2: only the sum has this norm.
    assert abs(norm - optax.tree.norm(decay)) <= without * (1 + 1e-5)
    assert norm > 10 * without
    assert_close(norm, alone.info.weight_grad_norm, **FUSED)


def test_weight_decay_is_clipped_together_with_the_meta_gradient():
    weights, data = make_weights(), explicit_data(0)
    tx = optax.chain(optax.add_decayed_weights(50.0), make_explicit())
    zeros = optax.tree.zeros_like(weights)
    updates, state = tx.update(zeros, tx.init(weights), weights, **data)
    rates = optax.tree.get(state, "step_sizes")
    moved = jax.tree.map(
        lambda u, a: jnp.where(a > 0, u / jnp.where(a > 0, a, 1), 0), updates, rates
    )
    _, grads = lm.meta_value_and_grad(loss_fn)(
        lm.MetaParams(weights, optax.tree.full_like(weights, 0.1)), **data
    )
    total = jax.tree.map(lambda g, w: g + 50.0 * w, grads.weights, weights)
    scale = 2.0 / (optax.tree.norm(total) + 1e-6)
    expected = jax.tree.map(lambda g, a: jnp.where(a > 0, -scale * g, 0), total, rates)
    assert_close(moved, expected, **FUSED)


@cheap_transforms
def test_apply_if_finite_passes_finite_updates_and_drops_the_others(name):
    tx, update = jitted(name)
    weights, data = make_weights(), TRANSFORMS[name].data(0)
    guarded = optax.apply_if_finite(tx, max_consecutive_errors=3)
    guarded_update = jax.jit(guarded.update)
    state = guarded.init(weights)
    updates, state = guarded_update(extra_grads(0), state, weights, **data)
    expected, inner = update(extra_grads(0), tx.init(weights), weights, **data)
    assert_close((updates, state.inner_state), (expected, inner), **FUSED)
    bad = extra_grads(1)
    bad["b"] = bad["b"].at[0].set(jnp.nan)
    updates, after = guarded_update(bad, state, weights, **data)
    chex.assert_trees_all_equal(updates, optax.tree.zeros_like(weights))
    chex.assert_trees_all_equal(plain(after.inner_state), plain(state.inner_state))
    assert after.notfinite_count == 1


@cheap_transforms
def test_multi_steps_updates_every_second_time_with_the_mean_gradient(name):
    tx, update = jitted(name)
    weights, data = make_weights(), TRANSFORMS[name].data(5)
    every_two = optax.MultiSteps(tx, every_k_schedule=2)
    step = jax.jit(every_two.update)
    state = every_two.init(weights)
    first, state = step(extra_grads(0), state, weights, **TRANSFORMS[name].data(0))
    chex.assert_trees_all_equal(first, optax.tree.zeros_like(weights))
    chex.assert_trees_all_equal(plain(state.inner_opt_state), plain(tx.init(weights)))
    second, state = step(extra_grads(1), state, weights, **data)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, extra_grads(0), extra_grads(1))
    expected, inner = update(mean, tx.init(weights), weights, **data)
    assert_close((second, state.inner_opt_state), (expected, inner), **FUSED)


# Hyper-parameters in the state ----------------------------------------------------


STATIC = ("loss_fn", "inner_steps", "replay_size")


def test_injected_clip_changes_without_a_retrace():
    make = optax.inject_hyperparams(lm.lamaml_transform, static_args=STATIC)
    tx = make(loss_fn, step_size_init=0.1, clip=10.0, inner_steps=K)
    weights, data = make_weights(), explicit_data(0)
    zeros = optax.tree.zeros_like(weights)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(weights)
    assert set(state.hyperparams) >= {"step_size_init", "clip"}
    for clip in (10.0, 0.01):
        state.hyperparams["clip"] = jnp.asarray(clip)
        got, _ = update(zeros, state, weights, **data)
        fixed = make_explicit(clip=clip)
        expected, _ = jax.jit(fixed.update)(zeros, fixed.init(weights), weights, **data)
        assert_close(got, expected, **FUSED)


def test_injected_initial_step_size_reaches_the_state():
    make = optax.inject_hyperparams(lm.lamaml_transform, static_args=STATIC)
    tx = make(loss_fn, step_size_init=0.3, inner_steps=K)
    step_sizes = optax.tree.get(tx.init(make_weights()).inner_state, "step_sizes")
    assert_close(step_sizes, optax.tree.full_like(make_weights(), 0.3))


@pytest.mark.parametrize("missing", ["inner_steps", "replay_size"])
def test_injected_sizes_must_be_static_and_the_error_says_so(missing):
    static = [name for name in STATIC if name != missing]
    tx = optax.inject_hyperparams(lm.lamaml_transform, static_args=static)(loss_fn)
    with pytest.raises(TypeError, match=rf"{missing}: .*static_args"):
        tx.init(make_weights())


@pytest.mark.parametrize("constructor", [lm.lamaml, lm.sync_lamaml])
def test_learning_rate_of_a_variant_is_injected_without_a_retrace(constructor):
    make = optax.inject_hyperparams(constructor, static_args=STATIC)
    tx = make(loss_fn, step_size_learning_rate=0.25, inner_steps=K)
    weights, data = make_weights(), explicit_data(0)
    zeros = optax.tree.zeros_like(weights)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    state = tx.init(weights)
    assert "step_size_learning_rate" in state.hyperparams
    for rate in (0.25, 0.01):
        state.hyperparams["step_size_learning_rate"] = jnp.asarray(rate)
        got, after = update(zeros, state, weights, **data)
        fixed = constructor(loss_fn, step_size_learning_rate=rate, inner_steps=K)
        expected, fixed_after = jax.jit(fixed.update)(
            zeros, fixed.init(weights), weights, **data
        )
        assert_close(got, expected, **FUSED)
        assert_close(after.inner_state, fixed_after, **FUSED)


def test_options_of_a_variant_that_it_hands_on_are_injected_too():
    make = optax.inject_hyperparams(lm.lamaml, static_args=STATIC)
    schedule = optax.piecewise_constant_schedule(10.0, {1: 0.001})
    tx = make(loss_fn, inner_steps=K, clip=schedule, step_size_learning_rate=schedule)
    weights, data = make_weights(), explicit_data(0)
    zeros = optax.tree.zeros_like(weights)
    update, state = jax.jit(tx.update), tx.init(weights)
    for clip in (10.0, 0.01):
        _, state = update(zeros, state, weights, **data)
        np.testing.assert_allclose(state.hyperparams["clip"], clip)
        fixed = make_explicit(clip=clip, step_size_tx=optax.sgd(clip))
        alone = fixed.init(weights)
        _, expected = jax.jit(fixed.update)(zeros, alone, weights, **data)
        losses = optax.tree.get(state, "info").query_losses
        assert_close(losses, expected.info.query_losses, **FUSED)
        state = state._replace(inner_state=alone)


def test_a_function_of_the_initial_step_sizes_is_named_static():
    static = (*STATIC, "step_size_init")
    make = optax.inject_hyperparams(lm.lamaml, static_args=static)
    tx = make(loss_fn, step_size_init=one_rate_per_leaf, inner_steps=K)
    state = tx.init(make_weights())
    rates = optax.tree.get(state.inner_state, "step_sizes")
    assert_close(rates, jax.tree.map(lambda _: jnp.float32(0.1), make_weights()))
    assert "step_size_init" not in state.hyperparams


@pytest.mark.parametrize("injected", [True, False])
def test_step_sizes_follow_a_learning_rate_schedule(injected):
    schedule = optax.piecewise_constant_schedule(0.2, {1: 0.5})
    sgd = optax.inject_hyperparams(optax.sgd) if injected else optax.sgd
    tx = lm.scale_by_step_sizes(1.0, sgd(schedule))
    weights, grads = make_weights(), extra_grads(0)
    ones = optax.tree.ones_like(weights)
    state, seen = tx.init(weights), []
    for _ in range(3):
        _, state = tx.update(grads, state, weights, step_size_grads=ones)
        seen.append(state.step_sizes["b"][0])
    # 1 - 0.2, then the rate halves: - 0.1, - 0.1. Three float32 subtractions.
    np.testing.assert_allclose(seen, [0.8, 0.7, 0.6], rtol=1e-6)


# Hidden weights -------------------------------------------------------------------


MASK = {"w": True, "b": False}


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("init", [0.1, {"w": 0.1, "b": 0.7}])
def test_step_size_rule_works_under_masked_with_whole_gradients(init, compatible):
    rule = lm.scale_by_step_sizes(init, optax.sgd(0.25))
    tx = optax.masked(rule, MASK, mask_compatible_extra_args=compatible)
    weights, grads = make_weights(), extra_grads(0)
    updates, state = tx.update(grads, tx.init(weights), weights, **rate_grads(0))
    whole, whole_state = rule.update(
        grads, rule.init(weights), weights, **rate_grads(0)
    )
    assert_close(updates["w"], whole["w"])
    assert_close(updates["b"], grads["b"])
    step_sizes = state.inner_state.step_sizes
    assert_close(step_sizes["w"], whole_state.step_sizes["w"])
    assert jax.tree.leaves(step_sizes["b"]) == []


def test_step_size_rule_works_under_partition_with_whole_gradients():
    rule = lm.scale_by_step_sizes(0.1, optax.sgd(0.25))
    tx = optax.partition(
        {"fast": rule, "slow": optax.sgd(0.5)}, {"w": "slow", "b": "fast"}
    )
    weights, grads = make_weights(), extra_grads(0)
    updates, _ = tx.update(grads, tx.init(weights), weights, **rate_grads(0))
    whole, _ = rule.update(grads, rule.init(weights), weights, **rate_grads(0))
    assert_close(updates["b"], whole["b"])
    assert_close(updates["w"], optax.tree.scale(-0.5, grads["w"]))


@each_lamaml
def test_hidden_weights_raise_an_error_that_names_both_ways_out(name):
    tx, _ = jitted(name)
    weights = make_weights()
    parts = optax.partition(
        {"meta": tx, "rest": optax.sgd(0.1)}, {"w": "meta", "b": "rest"}
    )
    for hiding in (optax.masked(tx, MASK), parts):
        with pytest.raises(ValueError, match=r"(?s)scale_by_step_sizes.*adapt_mask"):
            hiding.init(weights)
    hidden = weights | {"b": optax.MaskedNode()}
    with pytest.raises(ValueError, match=r"(?s)params\['b'\].*adapt_mask"):
        tx.update(hidden, tx.init(weights), hidden, **TRANSFORMS[name].data(0))


# Reading the state ----------------------------------------------------------------


@each_lamaml
def test_tree_get_finds_the_fields_inside_a_chain(name):
    tx, _ = jitted(name)
    weights = make_weights()
    chain = optax.chain(optax.add_decayed_weights(0.1), tx, optax.scale(0.5))
    state, alone = chain.init(weights), tx.init(weights)
    found = {name: optax.tree.get(state, name) for name in ("step_sizes", "info")}
    assert isinstance(found["info"], lm.LamamlInfo)
    chex.assert_trees_all_equal(found["info"], alone.info)
    chex.assert_trees_all_equal(found["step_sizes"], alone.rule_state.step_sizes)
    if alone.reservoir is not None:
        assert isinstance(optax.tree.get(state, "reservoir"), lm.ReservoirState)
    chex.assert_trees_all_equal(optax.tree.get(state, "model_state"), alone.model_state)


# Seeds side by side ---------------------------------------------------------------


def seed_inputs(num_seeds):
    weights = [
        jax.tree.map(lambda w, s=s: w * (1 + 0.1 * s), make_weights())
        for s in range(num_seeds)
    ]
    return weights, [extra_grads(s) for s in range(num_seeds)]


@some_transforms
def test_vmap_over_seeds_equals_a_loop(name):
    tx, update = jitted(name)
    weights, grads = seed_inputs(3)
    data = [TRANSFORMS[name].data(n) for n in range(3)]
    states = [tx.init(w) for w in weights]
    got = jax.jit(jax.vmap(lambda g, s, w, d: tx.update(g, s, w, **d)))(
        stack(grads), jax.vmap(tx.init)(stack(weights)), stack(weights), stack(data)
    )
    expected = [
        update(g, s, w, **d)
        for g, s, w, d in zip(grads, states, weights, data, strict=True)
    ]
    assert_close(got, stack(expected), **FUSED)


def two_devices():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices, of which this process has one")
    return Mesh(np.array(jax.devices()[:2]), ("seeds",))


@pytest.mark.parametrize(
    "name", ["explicit_variance_reduced", "scale_by_step_sizes", "scale_by_utility"]
)
def test_shard_map_over_seeds_equals_one_device(name):
    mesh = two_devices()
    tx, _ = jitted(name)
    data = stack([TRANSFORMS[name].data(n) for n in range(2)])
    weights, grads = map(stack, seed_inputs(2))

    def two_updates(weights, grads, data):
        state = tx.init(weights)
        for _ in range(2):
            updates, state = tx.update(grads, state, weights, **data)
            weights = optax.apply_updates(weights, updates)
        return weights, state

    run = jax.vmap(two_updates)
    spec = P("seeds")
    sharded = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
    assert_close(
        jax.device_get(plain(jax.jit(sharded)(weights, grads, data))),
        jax.device_get(plain(jax.jit(run)(weights, grads, data))),
        **FUSED,
    )


# Learners -------------------------------------------------------------------------


@functools.cache
def jitted_learner(name):
    learner = LEARNERS[name]()
    return learner, jax.jit(learner.observe)


@each_learner
def test_learner_keeps_its_state_structure(name):
    learner = LEARNERS[name]()
    state = learner.init(jax.random.key(0), make_weights())
    after, _ = jax.eval_shape(learner.observe, jax.random.key(1), state, make_rows(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(plain(after), plain(state))
    assert isinstance(state, lm.LearnerState)


@some_learners
def test_learner_traces_once(name):
    learner = LEARNERS[name]()
    observe = jax.jit(chex.assert_max_traces(learner.observe, n=1))
    start = state = learner.init(jax.random.key(0), make_weights())
    for n in range(10):
        state, info = observe(jax.random.key(n), state, make_rows(n))
        chex.assert_trees_all_equal_shapes_and_dtypes(plain(state), plain(start))
    assert jnp.all(info.all_finite)
    chex.assert_tree_all_finite(state.weights)


@pytest.mark.slow
@some_learners
def test_learner_in_scan_and_cond_equals_a_loop(name):
    learner, observe = jitted_learner(name)
    state = learner.init(jax.random.key(0), make_weights())
    keys = jax.random.split(jax.random.key(3), 3)
    shown = jnp.array([True, False, True])
    rows = stack([make_rows(n) for n in range(3)])

    def step(state, inputs):
        key, batch, show = inputs
        return jax.lax.cond(
            show, lambda: learner.observe(key, state, batch)[0], lambda: state
        ), None

    scanned, _ = jax.jit(lambda s, xs: jax.lax.scan(step, s, xs))(
        state, (keys, rows, shown)
    )
    for n in (0, 2):
        state, _ = observe(keys[n], state, make_rows(n))
    assert_close(scanned, state, **FUSED)


@pytest.mark.parametrize("name", ["sync_lamaml"])
def test_learner_without_jit_equals_jit(name):
    learner, observe = jitted_learner(name)
    state = learner.init(jax.random.key(0), make_weights())
    key = jax.random.key(1)
    assert_close(
        learner.observe(key, state, make_rows(0)),
        observe(key, state, make_rows(0)),
        **FUSED,
    )


@some_learners
def test_learner_state_can_be_donated(name):
    learner, observe = jitted_learner(name)
    donating = jax.jit(learner.observe, donate_argnums=1)
    kept = learner.init(jax.random.key(0), make_weights())
    given = learner.init(jax.random.key(0), make_weights())
    for n in range(2):
        kept, _ = observe(jax.random.key(n), kept, make_rows(n))
        given, _ = donating(jax.random.key(n), given, make_rows(n))
    assert_close(given, kept, **FUSED)


@some_learners
def test_learner_under_vmap_equals_a_loop(name):
    learner, observe = jitted_learner(name)
    weights, _ = seed_inputs(2)
    keys = jax.random.split(jax.random.key(4), 2)
    states = jax.vmap(learner.init)(keys, stack(weights))
    got = jax.jit(jax.vmap(learner.observe))(
        keys, states, stack([make_rows(0), make_rows(1)])
    )
    expected = [
        observe(keys[n], learner.init(keys[n], weights[n]), make_rows(n))
        for n in range(2)
    ]
    assert_close(got, stack(expected), **FUSED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lamaml_glances"])
def test_whole_streams_under_shard_map_equal_one_device(name):
    mesh = two_devices()
    learner, _ = jitted_learner(name)
    batches = stack([make_rows(n) for n in range(3)])

    def train(key):
        state = learner.init(key, make_weights())
        return lm.observe_stream(learner, key, state, batches)

    keys = jax.random.split(jax.random.key(5), 4)
    # The fresh state is the same on all devices, the next ones are not; only the check
    # of replication, not the computation, minds that the scan's carry changes so.
    sharded = jax.shard_map(
        jax.vmap(train),
        mesh=mesh,
        in_specs=P("seeds"),
        out_specs=P("seeds"),
        check_vma=False,
    )
    assert_close(
        jax.device_get(plain(jax.jit(sharded)(keys))),
        jax.device_get(plain(jax.jit(jax.vmap(train))(keys))),
        **FUSED,
    )
