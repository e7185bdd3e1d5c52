"""Scans whose memory is bounded: the same numbers and derivatives as plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import EXACT, assert_trees_close, stack, waves

from lamaml_jax import scans

# One step, segments without and with a lead, a square number of steps.
LENGTHS = (1, 2, 4, 5)
ROUTES = [
    {"remat": True, "unroll": 1},
    {"remat": True, "unroll": 3},
    {"remat": "sqrt", "unroll": 1},
    {"remat": "sqrt", "unroll": 2},
]


def step(carry, x):
    """Carries and outputs of two shapes, so that none can stand for another."""
    position, speed = carry
    speed = jnp.tanh(speed + x["force"])
    return (position + x["time"] * speed, speed), (jnp.sum(speed), position)


def step_back(back, inputs):
    (position, speed), x = inputs
    back = jnp.cos(back) * x["time"] + position @ speed + jnp.sum(x["force"])
    return back, back * x["time"]


def make_steps(length):
    carry = (jnp.asarray(waves((2,), 0.1)), jnp.asarray(waves((2,), 0.2)))
    xs = {"force": waves((length, 2), 0.3), "time": waves((length,), 0.4)}
    return carry, jax.tree.map(jnp.asarray, xs)


def loop(carry, xs):
    carries, outs = [], []
    for x in unstack(xs):
        carries.append(carry)
        carry, out = step(carry, x)
        outs.append(out)
    return carry, stack(outs), carries


def unstack(xs):
    length = jax.tree.leaves(xs)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], xs) for i in range(length)]


def total(tree):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))


def value_and_slopes(fn):
    """Jitted: what ``fn`` returns, and its slopes in reverse and in forward mode."""

    def run(carry, xs):
        scalar = lambda carry, xs: total(fn(carry, xs))
        ones = jax.tree.map(jnp.ones_like, (carry, xs))
        slope = jax.jvp(scalar, (carry, xs), ones)[1]
        return fn(carry, xs), jax.grad(scalar, argnums=(0, 1))(carry, xs), slope

    return jax.jit(run)


@pytest.mark.parametrize("length", range(1, 13))
def test_segments_put_together_are_the_steps(length):
    xs = {"a": np.arange(length), "b": np.arange(2 * length).reshape(length, 2)}
    lead, segments = scans._split(xs)
    number, size = segments["a"].shape
    # Segments are as long as the root of the number of steps, rounded up.
    assert (size - 1) ** 2 < length <= size**2
    assert len(lead["a"]) == length - number * size < size
    assert_trees_close(scans._join(lead, segments), xs, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("length", LENGTHS)
def test_checkpointed_scan_equals_a_loop(x64, length):
    carry, xs = make_steps(length)
    expected = value_and_slopes(lambda *arguments: loop(*arguments)[:2])(carry, xs)
    for route in [*ROUTES, {"remat": False, "unroll": 1}]:
        scan = functools.partial(scans.checkpointed_scan, step, **route)
        assert_trees_close(value_and_slopes(scan)(carry, xs), expected, **EXACT)


@pytest.mark.parametrize(
    "length",
    [pytest.param(n, marks=pytest.mark.slow if n < 5 else []) for n in LENGTHS],
)
def test_way_there_and_back_equals_two_loops(x64, length):
    carry, xs = make_steps(length)
    turn = lambda carry: carry[0] @ carry[1]

    def by_hand(carry, xs):
        carry, outs, carries = loop(carry, xs)
        back, back_outs = turn(carry), []
        for here, x in reversed([*zip(carries, unstack(xs), strict=True)]):
            back, out = step_back(back, (here, x))
            back_outs.append(out)
        return back, outs, stack(back_outs[::-1])

    expected = value_and_slopes(by_hand)(carry, xs)
    for route in ROUTES:

        def both(carry, xs, route=route):
            return scans.there_and_back(step, step_back, carry, turn, xs, **route)

        assert_trees_close(value_and_slopes(both)(carry, xs), expected, **EXACT)


def wide_bytes(scan, length):
    """Compiled temporary memory of a gradient, in sizes of the carry."""
    carry, xs = jnp.ones(10_000), jnp.ones(length)

    def value(carry, xs):
        sine = lambda c, x: (jnp.sin(jnp.sin(jnp.sin(c)) * x), None)
        return jnp.sum(scan(sine, carry, xs)[0])

    compiled = jax.jit(jax.grad(value)).lower(carry, xs).compile()
    return compiled.memory_analysis().temp_size_in_bytes / carry.nbytes


def test_memory_of_a_checkpointed_scan_is_that_of_the_carries_kept():
    scan = functools.partial(scans.checkpointed_scan, unroll=1)
    used = {
        remat: wide_bytes(functools.partial(scan, remat=remat), 100)
        for remat in scans.REMAT_POLICIES
    }
    assert 100 <= used[True] <= 1.1 * 100
    # The carries of ten segments and the ten of one, with a few at hand.
    assert 20 <= used["sqrt"] <= 30
    # Every residual of a step, of which this one has several.
    assert used[False] >= 2 * 100
