"""lamaml, sync_lamaml and cmaml stand for lamaml_transform with named choices."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from problems import waves32

import lamaml_jax as lm

K, S, D = 2, 2, 3


def loss_fn(weights, batch):
    rows, targets = batch
    return (rows @ weights["w"] + weights["b"] - targets) ** 2 / 2


WEIGHTS = {"w": waves32((D,), 0.1), "b": waves32((), 0.2)}
ZEROS = optax.tree.zeros_like(WEIGHTS)
DATA = {
    "support": (waves32((K, S, D), 1.0), waves32((K, S), 1.5)),
    "query": (waves32((4, D), 2.0), waves32((4,), 2.5)),
}


def three_updates(tx):
    """Weights and states along three meta-updates of one compiled program."""
    update = jax.jit(lambda state, weights: tx.update(ZEROS, state, weights, **DATA))
    weights, state, path = WEIGHTS, tx.init(WEIGHTS), []
    for _ in range(3):
        updates, state = update(state, weights)
        weights = optax.apply_updates(weights, updates)
        path.append((weights, state))
    return path


VARIANTS = {
    "lamaml": (
        lambda **options: lm.lamaml(loss_fn, **options),
        {"step_size_init": 0.1, "step_size_tx": optax.sgd(0.25)},
    ),
    "lamaml_arguments": (
        lambda **options: lm.lamaml(
            loss_fn, step_size_init=0.2, step_size_learning_rate=0.05, **options
        ),
        {"step_size_init": 0.2, "step_size_tx": optax.sgd(0.05)},
    ),
    "sync_lamaml": (
        lambda **options: lm.sync_lamaml(loss_fn, **options),
        {
            "step_size_init": 0.1,
            "step_size_tx": optax.sgd(0.35),
            "weight_tx": optax.sgd(0.1),
        },
    ),
    "sync_lamaml_arguments": (
        lambda **options: lm.sync_lamaml(
            loss_fn,
            step_size_init=0.2,
            step_size_learning_rate=0.05,
            weight_learning_rate=0.03,
            **options,
        ),
        {
            "step_size_init": 0.2,
            "step_size_tx": optax.sgd(0.05),
            "weight_tx": optax.sgd(0.03),
        },
    ),
    "cmaml": (
        lambda **options: lm.cmaml(loss_fn, **options),
        {
            "step_size_init": 0.1,
            "step_size_tx": optax.set_to_zero(),
            "weight_tx": optax.sgd(0.1),
        },
    ),
    "cmaml_arguments": (
        lambda **options: lm.cmaml(
            loss_fn, step_size_init=0.2, weight_learning_rate=0.03, **options
        ),
        {
            "step_size_init": 0.2,
            "step_size_tx": optax.set_to_zero(),
            "weight_tx": optax.sgd(0.03),
        },
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_the_transformation_it_stands_for(name):
    construct, bound = VARIANTS[name]
    options = {
        "inner_steps": K,
        "objective": "last",
        "first_order": True,
        "clip": 0.5,
        "rectify": False,
    }
    got = three_updates(construct(**options))
    expected = three_updates(lm.lamaml_transform(loss_fn, **bound, **options))
    # The same program: not one bit may differ.
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize("construct", [lm.lamaml, lm.sync_lamaml, lm.cmaml])
def test_options_pass_through_and_unknown_ones_do_not(construct):
    reservoir = lm.make_reservoir(
        3,
        (
            jax.ShapeDtypeStruct((D,), jnp.float32),
            jax.ShapeDtypeStruct((), jnp.float32),
        ),
    )
    tx = construct(loss_fn, inner_steps=K, objective="last", reservoir=reservoir)
    state = tx.init(WEIGHTS)
    assert state.reservoir.rows[0].shape == (3, D)
    assert state.info.inner_losses.shape == (K,)
    assert state.info.query_losses.shape == (1,)
    with pytest.raises(TypeError, match="inner_step_size"):
        construct(loss_fn, inner_step_size=0.1)
    with pytest.raises(ValueError, match="objective"):
        construct(loss_fn, objective="first")


@pytest.mark.parametrize("construct", [lm.lamaml, lm.sync_lamaml])
def test_learned_step_sizes_move(construct):
    for _, state in three_updates(construct(loss_fn, inner_steps=K)):
        rates = state.rule_state.step_sizes
        assert all(jnp.all(leaf != 0.1) for leaf in jax.tree.leaves(rates))


def test_cmaml_never_moves_its_step_sizes():
    tx = lm.cmaml(loss_fn, step_size_init=0.2, inner_steps=K)
    start = tx.init(WEIGHTS).rule_state.step_sizes
    for _, state in three_updates(tx):
        chex.assert_trees_all_equal(state.rule_state.step_sizes, start)
        assert state.info.step_size_grad_norm > 0


@pytest.mark.parametrize("construct", [lm.sync_lamaml, lm.cmaml])
def test_synchronous_weights_move_by_the_fixed_rate_alone(construct):
    identity = optax.identity()
    tx = construct(loss_fn, weight_learning_rate=0.03, inner_steps=K, meta_tx=identity)
    updates, _ = tx.update(ZEROS, tx.init(WEIGHTS), WEIGHTS, **DATA)
    _, grads = lm.meta_value_and_grad(loss_fn)(
        lm.MetaParams(WEIGHTS, optax.tree.full_like(WEIGHTS, 0.1)), **DATA
    )
    # float32: the gradient is the same computation, compiled in another program.
    chex.assert_trees_all_close(
        updates, optax.tree.scale(-0.03, grads.weights), rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize("construct", [lm.sync_lamaml, lm.cmaml])
def test_weight_learning_rate_may_be_a_schedule(construct):
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.0})
    path = three_updates(
        construct(loss_fn, weight_learning_rate=schedule, inner_steps=K)
    )
    assert jnp.any(path[0][0]["w"] != WEIGHTS["w"])
    chex.assert_trees_all_equal(path[1][0], path[0][0])
