"""Clipping of the two meta-gradients by their own norms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import lamaml_jax as lm


def clip(grads, max_norm, **options):
    tx = lm.clip_meta_grads(max_norm, **options)
    clipped, state = tx.update(grads, tx.init(grads))
    assert state == optax.EmptyState()
    return clipped


def test_each_half_is_clipped_by_its_own_norm():
    grads = lm.MetaParams(
        {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])},
        {"a": jnp.array([0.3]), "b": jnp.array([[0.4]])},
    )
    clipped = clip(grads, 1.0)
    # Norms 5 and 0.5; eps 1e-6 takes 2e-7 off the first, float32 rounding the rest.
    np.testing.assert_allclose(clipped.weights["a"], [0.6], rtol=1e-6)
    np.testing.assert_allclose(clipped.weights["b"], [[0.8]], rtol=1e-6)
    for name in ("a", "b"):
        np.testing.assert_array_equal(clipped.step_sizes[name], grads.step_sizes[name])


@pytest.mark.parametrize("max_norm", [0.5, 2.0, 100.0])
def test_clipping_equals_the_numpy_reference(x64, max_norm):
    rng = np.random.default_rng(22)
    halves = [{"a": rng.normal(size=5), "b": rng.normal(size=(2, 3))} for _ in range(2)]
    grads = lm.MetaParams(*jax.tree.map(jnp.asarray, halves))
    for half, expected in zip(clip(grads, max_norm), halves, strict=True):
        expected = reference.clip_by_norm(expected, max_norm)
        for name in expected:
            # float64 against float64: order of one sum.
            np.testing.assert_allclose(half[name], expected[name], rtol=1e-13)


def test_eps_is_added_to_the_norm():
    grads = lm.MetaParams({"w": jnp.array([1.0])}, {"w": jnp.array([3.0])})
    clipped = clip(grads, 1.0, eps=1.0)
    np.testing.assert_array_equal(clipped.weights["w"], [0.5])
    np.testing.assert_array_equal(clipped.step_sizes["w"], [0.75])
    # At the bound itself the default eps already scales, as the published code does.
    assert clip(grads, 1.0).weights["w"] < 1


def test_max_norm_may_be_traced():
    grads = lm.MetaParams({"w": jnp.array([4.0])}, {"w": jnp.array([1.0])})
    traces = []

    @jax.jit
    def run(max_norm):
        traces.append(None)
        return clip(grads, max_norm, eps=0.0).weights["w"]

    assert run(2.0) == 2
    assert run(1.0) == 1
    assert len(traces) == 1


def test_dtypes_are_kept():
    grads = lm.MetaParams(
        {"half": jnp.ones(2, jnp.bfloat16), "full": jnp.ones(2)}, {"w": jnp.ones(2)}
    )
    clipped = clip(grads, 0.5)
    assert clipped.weights["half"].dtype == jnp.bfloat16
    assert clipped.weights["full"].dtype == jnp.float32


def test_non_finite_norm_spoils_only_its_half():
    grads = lm.MetaParams({"w": jnp.array([jnp.nan, 1.0])}, {"w": jnp.array([1.0])})
    clipped = clip(grads, 2.0)
    assert jnp.isnan(clipped.weights["w"]).all()
    np.testing.assert_array_equal(clipped.step_sizes["w"], [1.0])


def test_a_zero_half_stays_zero():
    with jax.debug_nans(True):
        clipped = clip(lm.MetaParams({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}), 0.5)
    np.testing.assert_array_equal(clipped.weights["w"], [0.0, 0.0])


def test_a_zero_half_has_finite_derivatives():
    def total(scale):
        halves = {"w": scale * jnp.ones(2)}, {"w": scale * jnp.zeros(2)}
        return sum(jnp.sum(half["w"]) for half in clip(lm.MetaParams(*halves), 10.0))

    assert jax.grad(total)(1.0) == 2


def test_only_a_pair_is_accepted():
    with pytest.raises(TypeError, match="updates: expected MetaParams, received dict"):
        clip({"w": jnp.ones(2)}, 1.0)


@pytest.mark.parametrize("max_norm", [0, -1.0])
def test_max_norm_must_be_positive(max_norm):
    with pytest.raises(ValueError, match="max_norm: expected a number > 0, received"):
        lm.clip_meta_grads(max_norm)
