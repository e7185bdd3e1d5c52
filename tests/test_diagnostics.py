"""Alignment of tasks' gradients and variance of random ones, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import as_jax

import lamaml_jax as lm

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


def test_alignment_is_the_same_with_and_without_jit():
    weights, batches = as_jax(problem())
    fn = lm.diagnostics.gradient_alignment
    plain = fn(loss_fn, weights, batches)
    # float32 sums of at most 24 terms, in another order
    np.testing.assert_allclose(
        jax.jit(fn, static_argnums=0)(loss_fn, weights, batches), plain, atol=1e-5
    )
    np.testing.assert_allclose(np.diagonal(plain), np.ones(T), rtol=1e-6)


def linear_loss(weights, batch):
    """Its gradient is the mean row."""
    return jnp.sum(batch["x"] * weights["w"][None, :], axis=1)


def aligned_rows(*rows):
    batches = {"x": jnp.array(rows)[:, None, :]}
    weights = {"w": jnp.ones(2), "unused": jnp.zeros((0, 3))}
    return np.asarray(lm.diagnostics.gradient_alignment(linear_loss, weights, batches))


def test_alignment_does_not_depend_on_the_gradients_size():
    # Squares of 1e-25 and 1e25 are outside the range of float32.
    cosines = aligned_rows([1.0, 2.0], [1e-25, 2e-25], [-1e25, -2e25])
    sign = np.array([1, 1, -1])
    np.testing.assert_allclose(cosines, np.outer(sign, sign), rtol=1e-6)


def test_a_gradient_that_is_not_finite_is_not_taken_for_no_alignment():
    for bad in (np.nan, np.inf):
        cosines = aligned_rows([1.0, 2.0], [bad, 1.0], [2.0, 4.0], [0.0, 0.0])
        assert np.isnan(cosines[1]).all() and np.isnan(cosines[:, 1]).all()
        others = np.delete(np.delete(cosines, 1, 0), 1, 1)
        expected = [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
        np.testing.assert_allclose(others, expected, rtol=1e-6)


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


def test_draws_in_half_precision_are_summed_in_single():
    keys = jax.random.split(jax.random.key(1), 400)

    def grad_fn(key):
        return {"w": (1 + jax.random.normal(key, (4,))).astype(jnp.bfloat16)}

    result = lm.diagnostics.gradient_variance(grad_fn, keys)
    draws = np.asarray(jax.vmap(grad_fn)(keys)["w"], np.float64)
    # 400 float32 additions; sums in bfloat16 stop growing at 256 times a term.
    np.testing.assert_allclose(result.mean["w"], draws.mean(0), rtol=1e-4)
    np.testing.assert_allclose(result.total_variance, draws.var(0).sum(), rtol=1e-4)


def test_variance_of_seeds_side_by_side_is_that_of_each():
    keys = jax.random.split(jax.random.key(2), (2, 5))
    fn = lambda keys: lm.diagnostics.gradient_variance(
        lambda key: {"w": 1 + jax.random.normal(key, (3,))}, keys
    )
    both = jax.vmap(fn)(keys)
    for n in range(2):
        one = fn(keys[n])
        # the same float32 operations, batched
        np.testing.assert_allclose(both.mean["w"][n], one.mean["w"], rtol=1e-5)
        np.testing.assert_allclose(
            both.signal_to_noise[n], one.signal_to_noise, rtol=1e-5
        )


def test_a_draw_that_is_not_finite_is_told():
    keys = jax.random.split(jax.random.key(0), 3)
    result = lm.diagnostics.gradient_variance(
        lambda key: {"w": jnp.full(2, jnp.nan)}, keys
    )
    assert np.isnan(result.total_variance) and np.isnan(result.signal_to_noise)


def test_mistakes_are_named():
    weights, batches = as_jax(problem())
    with pytest.raises(ValueError, match="batches"):
        lm.diagnostics.task_gradients(loss_fn, weights, batches | {"y": jnp.ones(3)})
    with pytest.raises(TypeError, match="masks"):
        lm.diagnostics.task_gradients(loss_fn, weights, batches, jnp.ones((T, B)))
    with pytest.raises(TypeError, match="weights"):
        lm.diagnostics.task_gradients(loss_fn, {"w": jnp.ones(3, int)}, batches)
    key = jax.random.split(jax.random.key(0), 1)
    with pytest.raises(TypeError, match=r"grad_fn\(key\)\['n'\]: .*int32"):
        lm.diagnostics.gradient_variance(lambda key: {"n": jnp.arange(3)}, key)
    with pytest.raises(ValueError, match=r"grad_fn\(key\): .*empty tree"):
        lm.diagnostics.gradient_variance(lambda key: {}, key)
    with pytest.raises(TypeError, match="keys: expected keys"):
        lm.diagnostics.gradient_variance(lambda key: key, jnp.ones(3))
    with pytest.raises(ValueError, match="keys: expected shape"):
        lm.diagnostics.gradient_variance(lambda key: key, jax.random.key(0))
