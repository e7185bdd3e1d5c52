"""Random trees, shapes, masks and options: correct against numpy, or a stated error."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from hypothesis import given
from problems import net_loss

import lamaml_jax as lm

# Derandomised: a failure is the same for everybody, and its example is in the report.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")
few = hypothesis.settings(max_examples=25)
more = hypothesis.settings(max_examples=100)

sizes = st.integers(1, 4)
rates = st.sampled_from([-1.0, 0.0, 1e-30, 0.05, 0.3, 3.0])
shapes = st.sampled_from([(), (1,), (3,), (2, 3), (1, 1, 2), (0,), (2, 0)])


def normal(rng, shape):
    return rng.normal(size=shape)


# The meta-gradient ------------------------------------------------------------------


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d, h, k, s, q = (draw(sizes) for _ in range(5))
    shapes = {"w1": (d, h), "b1": (h,), "w2": (h, 3), "b2": (3,)}
    weights = {name: normal(rng, shape) for name, shape in shapes.items()}
    extreme = draw(rates)
    step_sizes = {
        name: np.where(rng.random(shape) < 0.5, extreme, rng.uniform(0, 0.5, shape))
        for name, shape in shapes.items()
    }
    support = (normal(rng, (k, s, d)), rng.integers(0, 3, (k, s)))
    query = (normal(rng, (q, d)), rng.integers(0, 3, q))
    masks = rng.random((k, s)) < 0.7, rng.random(q) < 0.7
    return weights, step_sizes, support, query, masks


@st.composite
def option_sets(draw):
    remat = draw(st.sampled_from([True, False, "sqrt"]))
    modes = ["reverse", "forward_over_reverse"] if remat else ["reverse"]
    return {
        "objective": draw(st.sampled_from(["mean", "last"])),
        "first_order": draw(st.booleans()),
        "rectify": draw(st.booleans()),
        "clip": draw(st.sampled_from([None, 1e-3, 0.2, 10.0])),
        "inner_ad": draw(st.sampled_from(modes)),
        "remat": remat,
        "unroll": draw(st.sampled_from([None, 1, 3])),
    }


@pytest.mark.slow
@few
@given(problems(), option_sets())
def test_meta_gradient_is_the_references(problem, options):
    weights, step_sizes, support, query, (support_mask, query_mask) = problem
    shared = ("objective", "first_order", "rectify", "clip")
    expected = reference.meta_gradient(
        reference.tanh_net(),
        weights,
        step_sizes,
        list(zip(*support, support_mask, strict=True)),
        (*query, query_mask),
        **{name: options[name] for name in shared},
    )
    with jax.enable_x64(True):
        fn = jax.jit(lm.meta_value_and_grad(net_loss, **options))
        params = lm.MetaParams(*jax.tree.map(jnp.asarray, (weights, step_sizes)))
        (loss, info), grads = fn(params, support, query, support_mask, query_mask)
    # float64 on both sides; step sizes of 3 amplify rounding along the inner steps.
    close = {"rtol": 1e-7, "atol": 1e-9}
    np.testing.assert_allclose(loss, expected.meta_loss, **close)
    np.testing.assert_allclose(info.inner_losses, expected.inner_losses, **close)
    for name in weights:
        np.testing.assert_allclose(grads.weights[name], expected.weights[name], **close)
        np.testing.assert_allclose(
            grads.step_sizes[name], expected.step_sizes[name], **close
        )


# Whole updates on random trees ------------------------------------------------------


def trees(leaves):
    return st.recursive(
        leaves,
        lambda part: st.one_of(
            st.lists(part, min_size=1, max_size=3),
            st.tuples(part, part),
            st.dictionaries(st.sampled_from("abc"), part, min_size=1, max_size=3),
        ),
        max_leaves=5,
    )


def is_shape(tree):
    return isinstance(tree, tuple) and all(isinstance(size, int) for size in tree)


def square_loss(weights, batch):
    total = sum(jnp.sum(leaf * leaf) for leaf in jax.tree.leaves(weights))
    rows = sum(jax.tree.leaves(batch))
    return rows * total.astype(rows.dtype) / 2


@pytest.mark.slow
@few
@given(
    trees(shapes),
    rates,
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
def test_update_of_any_tree_is_the_formula(tree, rate, k, q, seed, rectify):
    rng = np.random.default_rng(seed)
    weights = jax.tree.map(lambda shape: normal(rng, shape), tree, is_leaf=is_shape)
    support, query = rng.uniform(0, 0.5, (k, 1)), rng.uniform(0, 1, q)
    eta, max_norm = 0.1, 0.7
    # The loss is x |w|^2 / 2, so that a step multiplies w by 1 - a x, and with P_j the
    # product of the first j factors the gradient of the j-th query loss is q P_j^2 w.
    used = max(rate, 0.0) if rectify else rate
    factors = np.cumprod(1 - used * support[:, 0])
    slopes = np.array(
        [
            -np.sum(support[: j + 1, 0] / (1 - used * support[: j + 1, 0]))
            for j in range(k)
        ]
    )
    scale = np.mean(query) * np.mean(factors**2)
    rate_scale = np.mean(query) * np.mean(factors**2 * slopes)
    rate_scale *= 1.0 if rate > 0 or not rectify else 0.0
    flat = [np.ravel(leaf) for leaf in jax.tree.leaves(weights)]
    vector = np.concatenate(flat) if flat else np.zeros(0)
    grads = {"w": scale * vector}
    rate_grads = {"w": rate_scale * vector**2}
    expected, expected_rates = reference.meta_update(
        {"w": vector},
        {"w": np.full_like(vector, rate)},
        grads,
        rate_grads,
        max_norm=max_norm,
        eta=eta,
    )
    with jax.enable_x64(True):
        tx = lm.lamaml(
            square_loss,
            # As arrays, whose values are not looked at: numbers < 0 are refused.
            step_size_init=optax.tree.full_like(weights, rate),
            step_size_learning_rate=eta,
            inner_steps=k,
            meta_tx=lm.clip_meta_grads(max_norm),
            rectify=rectify,
        )
        params = jax.tree.map(jnp.asarray, weights)
        state = tx.init(params)

        @jax.jit
        def update(params, state):
            zeros = optax.tree.zeros_like(params)
            data = {"support": jnp.asarray(support), "query": jnp.asarray(query)}
            updates, state = tx.update(zeros, state, params, **data)
            return optax.apply_updates(params, updates), state

        moved, state = update(params, state)
        rates = optax.tree.get(state, "step_sizes")
    assert jax.tree.structure(moved) == jax.tree.structure(weights)
    for got, wanted in ((moved, expected["w"]), (rates, expected_rates["w"])):
        leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(got)]
        np.testing.assert_allclose(
            np.concatenate(leaves), wanted, rtol=1e-9, atol=1e-11
        )
    for leaf, like in zip(
        jax.tree.leaves(moved), jax.tree.leaves(weights), strict=True
    ):
        assert leaf.shape == like.shape and leaf.dtype == jnp.float64


@pytest.mark.slow
@few
@given(
    st.lists(
        st.sampled_from([jnp.float16, jnp.bfloat16, jnp.float32]),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_weights_keep_their_types(dtypes, first_order):
    weights = [jnp.full((2, 2), 0.5, dtype) for dtype in dtypes]
    tx = lm.lamaml(square_loss, inner_steps=2, first_order=first_order)
    state = tx.init(weights)
    updates, state = tx.update(
        optax.tree.zeros_like(weights),
        state,
        weights,
        support=jnp.ones((2, 1)),
        query=jnp.ones(2),
    )
    moved = optax.apply_updates(weights, updates)
    for leaf, rate, dtype in zip(
        moved, optax.tree.get(state, "step_sizes"), dtypes, strict=True
    ):
        assert leaf.dtype == rate.dtype == dtype
        assert jnp.isfinite(leaf.astype(jnp.float32)).all() and (leaf < 0.5).all()


# The reservoir ----------------------------------------------------------------------


@pytest.mark.slow
@more
@given(
    st.integers(1, 6),
    st.lists(st.integers(0, 7), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["exact", "published"]),
)
def test_reservoir_is_the_references(capacity, batches, seed, acceptance):
    rng = np.random.default_rng(seed)
    example = {"x": jax.ShapeDtypeStruct((2,), jnp.float32)}
    reservoir = lm.make_reservoir(capacity, example, acceptance=acceptance)
    state, stored, num_seen = reservoir.init(), [], 0
    insert = jax.jit(reservoir.insert)
    for size in batches:
        rows = rng.normal(size=(size, 2)).astype(np.float32)
        draws = rng.integers(0, 2 * capacity, size).astype(np.int32)
        mask = rng.random(size) < 0.8
        if size == 0:  # a batch has rows; the masked kind of none is B rows, none valid
            with pytest.raises(ValueError, match="rows"):
                insert(state, {"x": rows}, draws, mask)
            continue
        state = insert(state, {"x": rows}, draws, mask)
        stored, num_seen = reference.reservoir_insert(
            stored, num_seen, capacity, list(rows), list(draws), list(mask)
        )
    assert state.num_seen == num_seen
    expected = np.zeros((capacity, 2), np.float32)
    if stored:
        expected[: len(stored)] = np.stack(stored)
    np.testing.assert_array_equal(state.rows["x"], expected)
    rows, mask = reservoir.sample(jax.random.key(seed), state, 3)
    assert mask.sum() == min(3, len(stored))
    for row, valid in zip(rows["x"], mask, strict=True):
        assert not valid or any((row == old).all() for old in stored)


# Mistakes ---------------------------------------------------------------------------


def valid_call():
    return {
        "weights": {"w": jnp.ones((3,))},
        "step_sizes": {"w": jnp.full((3,), 0.1)},
        "support": jnp.ones((2, 2)),
        "query": jnp.ones((4,)),
        "support_mask": jnp.ones((2, 2), bool),
        "query_mask": jnp.ones((4,), bool),
    }


MUTATIONS = {
    "integers": lambda x: x.astype(jnp.int32),
    "another axis": lambda x: x[None],
    "one axis less": lambda x: x[0],
    "longer": lambda x: jnp.concatenate([x, x], axis=-1),
    "a number": lambda x: 1.0,
    "a word": lambda x: "x",
    "nothing": lambda x: None,
    "a list": lambda x: [x, x],
}


@pytest.mark.slow
@more
@given(st.sampled_from(sorted(valid_call())), st.sampled_from(sorted(MUTATIONS)))
def test_a_wrong_argument_is_a_stated_error_or_makes_sense(name, mutation):
    arguments = valid_call()
    if isinstance(arguments[name], dict):
        arguments[name] = {"w": MUTATIONS[mutation](arguments[name]["w"])}
    else:
        arguments[name] = MUTATIONS[mutation](arguments[name])
    params = lm.MetaParams(arguments.pop("weights"), arguments.pop("step_sizes"))
    try:
        (loss, _), grads = lm.meta_value_and_grad(square_loss)(params, **arguments)
    except (TypeError, ValueError) as error:
        assert "expected" in str(error)  # one of lamaml_jax.checks, not of jax's depths
        return
    assert jnp.isfinite(loss) and loss.shape == ()
    assert jax.tree.structure(grads) == jax.tree.structure(params)
