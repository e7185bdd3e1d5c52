"""Gradients through whole meta-updates, against finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

import lamaml_jax as lm

K, S, Q, D, H = 2, 2, 3, 2, 3

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

AD_MODES = ("reverse", "forward_over_reverse")


def loss_fn(weights, batch):
    inputs, targets = batch
    hidden = jnp.tanh(inputs @ weights["w1"] + weights["b1"][None, :])
    return (hidden @ weights["w2"] - targets) ** 2 / 2


def waves(shape, phase):
    size = int(np.prod(shape))
    return np.sin(1.7 * np.arange(size) + phase).reshape(shape)


def make_problem():
    weights = {
        "w1": waves((D, H), 0.1),
        "b1": waves((H,), 0.2),
        "w2": waves((H,), 0.3),
    }
    support = (waves((K, S, D), 0.4), waves((K, S), 0.5))
    query = (waves((Q, D), 0.6), waves((Q,), 0.7))
    return jax.tree.map(jnp.asarray, (weights, support, query))


def loss_after(hyper, *, inner_ad, num_updates=1, **options):
    """Query loss after meta-updates, a function of all that shapes them."""
    eta, step_size_init, weights, support, query = hyper
    tx = lm.lamaml_transform(
        loss_fn,
        step_size_init=step_size_init,
        step_size_tx=optax.sgd(eta),
        inner_steps=K,
        inner_ad=inner_ad,
        **options,
    )
    state = tx.init(weights)
    zeros = optax.tree.zeros_like(weights)
    for _ in range(num_updates):
        updates, state = tx.update(zeros, state, weights, support=support, query=query)
        weights = optax.apply_updates(weights, updates)
    return jnp.mean(loss_fn(weights, query))


def make_hyper():
    # Step sizes of 0.2 stay positive through both updates, where relu is smooth.
    return (jnp.asarray(0.05), jnp.asarray(0.2), *make_problem())


@pytest.mark.parametrize("num_updates", [1, 2])
@pytest.mark.parametrize("inner_ad", AD_MODES)
def test_gradient_through_meta_updates_equals_finite_differences(inner_ad, num_updates):
    # check_grads differs in a random direction of all hyper-parameters, weights and
    # data at once: central differences in float64 are good to about 1e-8.
    check_grads(
        jax.jit(
            lambda *hyper: loss_after(hyper, inner_ad=inner_ad, num_updates=num_updates)
        ),
        make_hyper(),
        order=1,
        modes=["rev"],
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("inner_ad", AD_MODES)
@pytest.mark.parametrize("name", ["eta", "step_size_init", "data"])
def test_each_hypergradient_alone_equals_a_central_difference(inner_ad, name):
    hyper = make_hyper()
    # Which entry of the arguments moves: the data move at one row of the support.
    position = {"eta": 0, "step_size_init": 1, "data": 3}[name]

    @jax.jit
    def along(amount):
        moved = list(hyper)
        if name == "data":
            inputs, targets = hyper[position]
            moved[position] = (inputs.at[0, 1].add(amount), targets)
        else:
            moved[position] = hyper[position] + amount
        return loss_after(tuple(moved), inner_ad=inner_ad, num_updates=2)

    step = 1e-5
    expected = (along(step) - along(-step)) / (2 * step)
    got = jax.jit(jax.grad(along))(0.0)
    # The difference errs by step**2 ~ 1e-10 and by rounding / step ~ 1e-11; the
    # gradients are of order 1e-2 and more.
    assert abs(got) > 1e-3
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_both_modes_and_rematerialisation_give_the_same_hypergradient():
    hyper = make_hyper()
    results = [
        jax.jit(
            jax.grad(
                lambda h, mode=mode, remat=remat: loss_after(
                    h, inner_ad=mode, remat=remat, num_updates=1
                )
            )
        )(hyper)
        for mode, remat in [
            ("reverse", True),
            ("reverse", False),
            ("reverse", "sqrt"),
            (AD_MODES[1], True),
        ]
    ]
    for other in results[1:]:
        # float64, the same derivative with its sums in another order.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            results[0],
            other,
        )


@pytest.mark.parametrize("inner_ad", AD_MODES)
def test_second_derivative_with_respect_to_eta_equals_finite_differences(inner_ad):
    hyper = make_hyper()

    def by_eta(eta):
        return loss_after((eta, *hyper[1:]), inner_ad=inner_ad)

    gradient = jax.jit(jax.grad(by_eta))
    step = 1e-5
    expected = (gradient(0.05 + step) - gradient(0.05 - step)) / (2 * step)
    # As above, a difference of gradients good to 1e-10 and 1e-11.
    got = jax.jit(jax.grad(jax.grad(by_eta)))(0.05)
    assert abs(got) > 1e-3
    np.testing.assert_allclose(got, expected, rtol=1e-6)
