"""Replays stored updates of ER and La-ER, number for number."""

import functools

import jax
import optax
import own_updates
import pytest
import stored_updates as su
from parity import assert_close

from experiments.methods import la_er, replay
from experiments.schema.hyperparameters import Hyperparameters


@pytest.fixture
def stored(request):
    content = request.param()
    with jax.enable_x64(content.meta["dtype"] == "f64"):
        yield content


def files(family):
    found = {path.stem: functools.partial(su.load, path) for path in su.paths(family)}
    if family == "laer":
        found |= own_updates.cases(family)
    return [pytest.param(load, id=name) for name, load in found.items()]


def hyper_of(stored):
    args = stored.meta["args"]
    return Hyperparameters(
        learning_rate=args["lr"],
        max_grad_norm=args["grad_clip_norm"],
        step_size_init=args["alpha_init"],
        step_size_learning_rate=args["opt_lr"],
        first_order=not args["second_order"],
        rectify=False,
        inner_clip=args["grad_clip_norm"],
    )


def padded_query(stored, m):
    updates = range(su.count(stored, "upd/{}/obs"))
    size = max(len(su.query_rows(stored, each)["y"]) for each in updates)
    return su.pad(su.query_rows(stored, m), size)


@su.needs_folder
@pytest.mark.parametrize("family", ["er", "laer"])
def test_folder_holds_the_family(family):
    assert su.paths(family), f"no {family}_*.npz in the folder of stored updates"


@pytest.mark.parametrize("stored", files("er"), indirect=True)
def test_er_updates_are_the_recorded_ones(stored):
    hyper = hyper_of(stored)
    loss_fn = su.loss_of(stored)
    tx, update = replay.make_update(loss_fn, hyper)
    update = jax.jit(update)
    weights = su.leaves(stored, "init/param")
    opt_state = tx.init(weights)
    for m in range(su.count(stored, "upd/{}/obs")):
        rows, mask = padded_query(stored, m)
        assert_close(
            stored, f"{m}, weights before", weights, su.state_before(stored, m, "param")
        )
        weights, opt_state, info = update(None, weights, opt_state, rows, mask)
        assert_close(
            stored, f"{m}, loss", info.loss, stored.arrays[f"upd/{m}/losses"][0]
        )
        ((_, norm, _),) = stored.arrays[f"upd/{m}/clip"]
        assert_close(stored, f"{m}, norm", info.grad_norm, norm)
        assert_close(
            stored, f"{m}, weights", weights, su.leaves(stored, f"upd/{m}/param")
        )


@pytest.mark.slow
@pytest.mark.parametrize("stored", files("laer"), indirect=True)
def test_la_er_updates_are_the_recorded_ones(stored):
    hyper = hyper_of(stored)
    rule, update = la_er.make_update(su.loss_of(stored), hyper)
    update = jax.jit(update)
    weights = su.leaves(stored, "init/param")
    rule_state = rule.init(weights)
    rule_state = optax.tree.set(rule_state, step_sizes=su.leaves(stored, "init/alpha"))
    updates = range(su.count(stored, "upd/{}/obs"))
    size = max(len(b["y"]) for m in updates for b in su.inner_batches(stored, m))
    for m in updates:
        query, query_mask = padded_query(stored, m)
        support, support_mask = su.support(stored, m, size)
        weights, rule_state, info = update(
            weights, rule_state, support, query, support_mask, query_mask
        )
        *inner, er_loss = stored.arrays[f"upd/{m}/losses"]
        _, rate_norm, er_norm = stored.arrays[f"upd/{m}/clip"][:, 1]
        for what, actual, expected in [
            ("loss", info.loss, er_loss),
            ("meta-loss", info.meta_loss, inner[-1]),
            ("norm", info.weight_grad_norm, er_norm),
            ("step sizes' norm", info.step_size_grad_norm, rate_norm),
            ("weights", weights, su.leaves(stored, f"upd/{m}/param")),
            ("step sizes", rule_state.step_sizes, su.leaves(stored, f"upd/{m}/alpha")),
        ]:
            assert_close(stored, f"{m}, {what}", actual, expected)
