"""Alignment of tasks' gradients and variance of random ones, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamaml_jax as lm

pytestmark = pytest.mark.usefixtures("quick_compile")

T, B, D = 4, 6, 3


def loss_fn(weights, batch):
    error = batch["x"] @ weights["w"] + weights["b"] - batch["y"]
    return 0.5 * error**2


def problem():
    rng = np.random.default_rng(0)
    batches = {"x": rng.normal(size=(T, B, D)), "y": rng.normal(size=(T, B))}
    weights = {"w": rng.normal(size=D), "b": np.array(0.3)}
    return weights, batches


def gradients_by_hand(weights, batches, masks=None):
    masks = np.ones((T, B), bool) if masks is None else masks
    rows = []
    for x, y, mask in zip(batches["x"], batches["y"], masks, strict=True):
        error = (x @ weights["w"] + weights["b"] - y)[mask]
        design = np.concatenate([np.ones((len(x), 1)), x], axis=1)[mask]
        rows.append((error[:, None] * design).sum(0) / max(mask.sum(), 1))
    return np.array(rows)  # bias first, as leaves are sorted


def as_jax(tree):
    return jax.tree.map(jnp.asarray, tree)


MASKS = np.arange(B)[None, :] < np.array([6, 4, 1, 0])[:, None]


@pytest.mark.parametrize("masks", [None, MASKS], ids=["whole", "masked"])
def test_task_gradients_are_those_of_a_loop(masks, x64):
    weights, batches = problem()
    given = None if masks is None else jnp.asarray(masks)
    grads = lm.diagnostics.task_gradients(
        loss_fn, as_jax(weights), as_jax(batches), given
    )
    actual = np.concatenate([np.asarray(grads["b"])[:, None], grads["w"]], axis=1)
    expected = gradients_by_hand(weights, batches, masks)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("masks", [None, MASKS], ids=["whole", "masked"])
def test_alignment_is_the_cosine(masks, x64):
    weights, batches = problem()
    given = None if masks is None else jnp.asarray(masks)
    fn = jax.jit(lm.diagnostics.gradient_alignment, static_argnums=0)
    cosines = fn(loss_fn, as_jax(weights), as_jax(batches), given)
    rows = gradients_by_hand(weights, batches, masks)
    norms = np.linalg.norm(rows, axis=1)
    norms[norms == 0] = np.inf  # a task without rows
    expected = rows @ rows.T / np.outer(norms, norms)
    np.testing.assert_allclose(cosines, expected, rtol=1e-10, atol=1e-12)
    if masks is not None:
        assert (cosines[3] == 0).all() and (cosines[:, 3] == 0).all()


def test_alignment_of_seeds_side_by_side_is_that_of_each():
    weights, batches = problem()
    many = jax.tree.map(
        lambda x: jnp.stack([jnp.asarray(x), 2 * jnp.asarray(x)]), weights
    )
    fn = lambda w: lm.diagnostics.gradient_alignment(loss_fn, w, as_jax(batches))
    both = jax.vmap(fn)(many)
    for n in range(2):
        one = fn(jax.tree.map(lambda x, n=n: x[n], many))
        # float32 sums of another order
        np.testing.assert_allclose(both[n], one, atol=1e-5)


def test_opposed_tasks_have_negative_alignment():
    batches = {"x": jnp.ones((2, 1, D)), "y": jnp.array([[5.0], [-5.0]])}
    weights = {"w": jnp.zeros(D), "b": jnp.zeros(())}
    cosines = lm.diagnostics.gradient_alignment(loss_fn, weights, batches)
    np.testing.assert_allclose(cosines, [[1, -1], [-1, 1]], atol=1e-6)


def test_variance_is_that_of_the_draws(x64):
    keys = jax.random.split(jax.random.key(0), 50)

    def grad_fn(key):
        noise = jax.random.normal(key, (5,))
        return lm.MetaParams({"w": 3 + noise[:4]}, {"w": 10 * noise[4:]})

    result = jax.jit(lm.diagnostics.gradient_variance, static_argnums=0)(grad_fn, keys)
    draws = jax.vmap(grad_fn)(keys)
    for half in ("weights", "step_sizes"):
        values = np.asarray(getattr(draws, half)["w"])
        np.testing.assert_allclose(
            getattr(result.mean, half)["w"], values.mean(0), rtol=1e-12
        )
        np.testing.assert_allclose(
            getattr(result.variance, half)["w"], values.var(0).sum(), rtol=1e-10
        )
    total = sum(np.asarray(x).var(0).sum() for x in jax.tree.leaves(draws))
    np.testing.assert_allclose(result.total_variance, total, rtol=1e-10)
    norm = np.sqrt(
        sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(result.mean))
    )
    np.testing.assert_allclose(
        result.signal_to_noise, norm / np.sqrt(total), rtol=1e-10
    )


def test_a_gradient_without_noise_has_no_variance():
    keys = jax.random.split(jax.random.key(0), 3)
    result = lm.diagnostics.gradient_variance(lambda key: {"w": jnp.ones(2)}, keys)
    assert result.total_variance == 0
    assert result.signal_to_noise == np.inf


def test_mistakes_are_named():
    weights, batches = as_jax(problem())
    with pytest.raises(ValueError, match="batches"):
        lm.diagnostics.task_gradients(loss_fn, weights, batches | {"y": jnp.ones(3)})
    with pytest.raises(TypeError, match="masks"):
        lm.diagnostics.task_gradients(loss_fn, weights, batches, jnp.ones((T, B)))
    with pytest.raises(TypeError, match="weights"):
        lm.diagnostics.task_gradients(loss_fn, {"w": jnp.ones(3, int)}, batches)
    with pytest.raises(TypeError, match="keys: expected keys"):
        lm.diagnostics.gradient_variance(lambda key: key, jnp.ones(3))
    with pytest.raises(ValueError, match="keys: expected shape"):
        lm.diagnostics.gradient_variance(lambda key: key, jax.random.key(0))
