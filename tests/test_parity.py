"""Replays stored updates, the authors' and our own, number for number."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import own_updates
import pytest
import stored_updates as su
from parity import assert_close, assert_predictions_close

import lamaml_jax as lm

FAMILIES = ("lamaml", "cifar", "cifarmlp")
LOADERS = {
    path.stem: functools.partial(su.load, path)
    for family in FAMILIES
    for path in su.paths(family)
} | own_updates.cases("lamaml")


# Both floating types, orders and rules are in the others, whose programs are small.
SLOW = {path.stem for family in ("cifar", "cifarmlp") for path in su.paths(family)}
CASES = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else [])
    for name in LOADERS
]


@pytest.fixture(params=CASES)
def stored(request):
    """One file, and the floating type it was recorded in."""
    content = LOADERS[request.param]()
    with jax.enable_x64(content.meta["dtype"] == "f64"):
        yield content


def loss_of(config, multi_head, classes_per_task):
    def loss_fn(weights, batch):
        logits = su.apply_network(json.loads(config), weights, batch["x"])
        if multi_head:
            return lm.losses.multi_head_cross_entropy(
                logits, batch["y"], batch["t"], classes_per_task
            )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    return loss_fn


def loss_arguments(stored):
    meta = stored.meta
    return json.dumps(meta["config"]), meta["multi_head"], int(meta["nc_per_task"])


def clip_of(stored):
    """Only the multi-head code clips inner gradients."""
    return stored.meta["args"]["grad_clip_norm"] if stored.meta["multi_head"] else None


# Files of one network and order share what is compiled: the bound of the inner clip is
# an argument, and everything else that differs between them comes after the gradients.
@functools.cache
def adapt_function(loss_args):
    loss_fn, rectify = loss_of(*loss_args), not loss_args[1]

    @jax.jit
    def adapt(weights, step_sizes, support, mask, clip):
        return lm.adapt(
            loss_fn,
            weights,
            step_sizes,
            support,
            mask,
            rectify=rectify,
            clip=clip,
            probe_fn=lambda w: w,
        )

    return adapt


@functools.cache
def meta_function(loss_args, first_order, inner_ad):
    loss_fn, rectify = loss_of(*loss_args), not loss_args[1]

    @jax.jit
    def value_and_grad(params, support, query, support_mask, query_mask, clip):
        fn = lm.meta_value_and_grad(
            loss_fn,
            first_order=first_order,
            rectify=rectify,
            clip=clip,
            inner_ad=inner_ad,
        )
        return fn(params, support, query, support_mask, query_mask)

    return value_and_grad


def padded_data(stored):
    """Support, query and their masks of every update, all of one length."""
    updates = range(su.count(stored, "upd/{}/obs"))
    inner_rows = max(
        len(batch["y"]) for m in updates for batch in su.inner_batches(stored, m)
    )
    query_rows = max(len(su.query_rows(stored, m)["y"]) for m in updates)
    data = []
    for m in updates:
        support, support_mask = su.support(stored, m, inner_rows)
        query, query_mask = su.pad(su.query_rows(stored, m), query_rows)
        data.append((support, query, support_mask, query_mask))
    assert data, "the file holds no update"
    return data


def recorded_meta_losses(stored, m):
    number = su.count(stored, f"upd/{m}/inner/{{}}/meta_loss")
    return np.array(
        [stored.arrays[f"upd/{m}/inner/{i}/meta_loss"] for i in range(number)]
    )


def recorded_norms(stored, m):
    """Norms before clipping by half: 0 the weights, 1 the step sizes."""
    halves, norms, bounds = stored.arrays[f"upd/{m}/clip"].T
    assert np.all(bounds == stored.meta["args"]["grad_clip_norm"])
    assert len(set(halves)) == len(halves) > 0
    return {int(half): norm for half, norm in zip(halves, norms, strict=True)}


@su.needs_folder
@pytest.mark.parametrize("family", FAMILIES)
def test_folder_holds_the_family(family):
    assert su.paths(family), f"no {family}_*.npz in the folder of stored updates"


def test_adapt_gives_recorded_fast_weights(stored):
    adapt = adapt_function(loss_arguments(stored))
    for m, (support, _, mask, _) in enumerate(padded_data(stored)):
        weights, step_sizes = (
            su.state_before(stored, m, kind) for kind in ("param", "alpha")
        )
        last, trace = adapt(weights, step_sizes, support, mask, clip_of(stored))
        recorded = [
            su.leaves(stored, f"upd/{m}/inner/{i}/fast") for i in range(len(mask))
        ]
        for i, fast in enumerate(recorded):
            probed = [leaf[i] for leaf in trace.probed]
            assert_close(stored, f"update {m}, fast weights {i}", probed, fast)
        assert_close(stored, f"update {m}, returned", last, recorded[-1])


def test_meta_gradients_are_the_recorded_ones(stored):
    first_order = not stored.meta["args"]["second_order"]
    modes = ["reverse"] if first_order else ["reverse", "forward_over_reverse"]
    for mode in modes:
        function = meta_function(loss_arguments(stored), first_order, mode)
        for m, data in enumerate(padded_data(stored)):
            params = lm.MetaParams(
                su.state_before(stored, m, "param"), su.state_before(stored, m, "alpha")
            )
            (value, info), grads = function(params, *data, clip_of(stored))
            check_meta_gradient(stored, m, mode, value, info, grads)


def check_meta_gradient(stored, m, mode, value, info, grads):
    close = functools.partial(assert_close, stored)
    where = f"{mode}, update {m}"
    losses = recorded_meta_losses(stored, m)
    close(f"{where}, query losses", info.query_losses, losses)
    close(f"{where}, meta-loss", value, losses.mean())
    norms = recorded_norms(stored, m)
    for half, (kind, part) in enumerate(zip(("param", "alpha"), grads, strict=True)):
        # Each half is clipped once per update, so there is no @1. Where the authors'
        # code makes no use of a half (C-MAML), it need not be in the file.
        assert not su.leaves(stored, f"upd/{m}/grad/{kind}@1")
        recorded = su.leaves(stored, f"upd/{m}/grad/{kind}@0")
        assert (half in norms) == bool(recorded)
        assert recorded or (kind == "alpha" and not stored.meta["args"]["learn_lr"])
        if recorded:
            close(f"{where}, {kind} gradient", part, recorded)
            close(f"{where}, {kind} norm", optax.tree.norm(part), norms[half])


def test_observe_returns_the_meta_loss_of_the_last_glance(stored):
    for k in range(su.count(stored, "obs/{}/x")):
        losses = recorded_meta_losses(stored, su.updates_of(stored, k)[-1])
        assert_close(stored, f"call {k}", losses.mean(), stored.arrays[f"obs/{k}/loss"])


def generic_transform(is_sync, learns, rates, **options):
    """The case spelled out with the pieces of ``lamaml_transform``."""
    return lm.lamaml_transform(
        step_size_init=rates["step_size_init"],
        step_size_tx=optax.sgd(rates["eta"] if learns else 0.0),
        weight_tx=optax.sgd(rates["weight_rate"]) if is_sync else None,
        **options,
    )


def named_variant(is_sync, learns, rates, **options):
    """The same case by its name."""
    options["step_size_init"] = rates["step_size_init"]
    eta = rates["eta"] if learns else 0.0
    if not is_sync:
        return lm.lamaml(step_size_learning_rate=eta, **options)
    options["weight_learning_rate"] = rates["weight_rate"]
    if learns:
        return lm.sync_lamaml(step_size_learning_rate=eta, **options)
    return lm.cmaml(**options)


def rule_arguments(stored):
    args = stored.meta["args"]
    return args["sync_update"], args["learn_lr"], not args["second_order"]


def rates_of(stored):
    args = stored.meta["args"]
    return {
        "step_size_init": su.leaves(stored, "init/alpha"),
        "eta": args["opt_lr"],
        "weight_rate": args["opt_wt"],
        "max_norm": args["grad_clip_norm"],
        "clip": clip_of(stored),
    }


@functools.cache
def transform_functions(constructor, loss_args, rule_args, inner_steps):
    """Init, jitted step, and a list that grows by one at every trace of the step."""
    loss_fn = loss_of(*loss_args)
    is_sync, learns, first_order = rule_args
    traces = []

    def make(rates):
        return constructor(
            is_sync,
            learns,
            rates,
            loss_fn=loss_fn,
            inner_steps=inner_steps,
            first_order=first_order,
            rectify=not loss_args[1],
            clip=rates["clip"],
            meta_tx=lm.clip_meta_grads(rates["max_norm"]),
            remat=False,  # the default, True, is what the meta-gradients above ran
        )

    @jax.jit
    def step(rates, weights, state, support, query, support_mask, query_mask):
        traces.append(None)
        updates, state = make(rates).update(
            optax.tree.zeros_like(weights),
            state,
            weights,
            support=support,
            query=query,
            support_mask=support_mask,
            query_mask=query_mask,
        )
        return optax.apply_updates(weights, updates), state

    return lambda rates, weights: make(rates).init(weights), step, traces


def check_info(stored, m, info):
    close = functools.partial(assert_close, stored)
    losses = recorded_meta_losses(stored, m)
    close(f"info {m}, query losses", info.query_losses, losses)
    close(f"info {m}, meta-loss", info.meta_loss, losses.mean())
    norms = (info.weight_grad_norm, info.step_size_grad_norm)
    for half, norm in recorded_norms(stored, m).items():
        close(f"info {m}, norm {half}", norms[half], norm)


@pytest.mark.slow
@pytest.mark.parametrize("constructor", [generic_transform, named_variant])
def test_transformation_follows_the_recorded_run(stored, constructor):
    data = padded_data(stored)
    inner_steps = [len(mask) for _, _, mask, _ in data]
    functions = [
        transform_functions(
            constructor, loss_arguments(stored), rule_arguments(stored), num_steps
        )
        for num_steps in inner_steps
    ]
    rates = rates_of(stored)
    init, _, traces = functions[0]
    traced_before = len(traces)
    weights = jax.tree.map(jnp.asarray, su.leaves(stored, "init/param"))
    state = init(rates, weights)
    step_sizes = optax.tree.get(state, "step_sizes")
    assert_close(stored, "initially", step_sizes, su.leaves(stored, "init/alpha"))
    for m, ((_, step, _), arrays) in enumerate(zip(functions, data, strict=True)):
        weights, state = step(rates, weights, state, *arrays)
        step_sizes = optax.tree.get(state, "step_sizes")
        for kind, actual in (("param", weights), ("alpha", step_sizes)):
            recorded = su.leaves(stored, f"upd/{m}/{kind}")
            assert_close(stored, f"update {m}, {kind}", actual, recorded)
            assert [x.dtype for x in actual] == [x.dtype for x in recorded]
        check_info(stored, m, optax.tree.get(state, "info"))
        if stored.meta["dtype"] == "f32":
            # Each update starts where the recorded one did. In a free run the order of
            # sums, which differs by processor, once puts a unit on the other side of
            # its relu, and from then on two runs of one rule are 1e-4 apart.
            weights, step_sizes = (
                jax.tree.map(jnp.asarray, su.leaves(stored, f"upd/{m}/{kind}"))
                for kind in ("param", "alpha")
            )
            state = optax.tree.set(state, step_sizes=step_sizes)
    if len(set(inner_steps)) == 1:  # other files may have had the step traced before
        assert len(traces) - traced_before <= 1
    assert_predictions_close(stored, weights)


def recorded_draws(stored, k, num_seen, num_rows):
    """One slot per row of call k (-1 where none was drawn) and the rows' numbers."""
    nth = num_seen + 1 + np.arange(num_rows)
    is_full = nth > stored.meta["args"]["memories"]
    lowest, highest, slots = stored.arrays[f"obs/{k}/randint"].reshape(-1, 3).T
    # The published rule: the n-th row draws from [0, n], both ends included.
    np.testing.assert_array_equal(lowest, 0)
    np.testing.assert_array_equal(highest, nth[is_full])
    draws = np.full(num_rows, -1)
    draws[is_full] = slots
    return draws, nth


@functools.cache
def reservoir_functions(capacity, shape, dtype):
    """A published reservoir; ``add`` takes its draws and tells what it asked for."""
    label = jax.ShapeDtypeStruct((), jnp.result_type(int))
    example = {"x": jax.ShapeDtypeStruct(shape, np.dtype(dtype)), "y": label}
    reservoir = lm.make_reservoir(
        capacity, example | {"t": label}, acceptance="published"
    )

    @jax.jit
    def add(state, rows, mask, draws):
        asked = []

        def randint(key, shape, minval, maxval, dtype):
            del key
            assert shape == draws.shape and dtype == jnp.int32
            asked.append((minval, maxval))
            return draws

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "randint", randint)
            state = reservoir.add(jax.random.key(0), state, rows, mask)
        (bounds,) = asked
        return state, bounds

    return reservoir.init(), jax.jit(reservoir.insert), add


def add_in_batches(add, state, batches, draws, nth):
    """Offers inner batch after inner batch, padded to one length."""
    num_rows, start = max(len(batch["y"]) for batch in batches), 0
    for batch in batches:
        part = slice(start, start + len(batch["y"]))
        rows, mask = su.pad(batch, num_rows)
        slots = np.zeros(num_rows, draws.dtype)
        slots[mask] = draws[part]
        state, (lowest, past_highest) = add(state, rows, mask, slots)
        np.testing.assert_array_equal(lowest, 0)
        np.testing.assert_array_equal(past_highest[mask], nth[part] + 1)
        start = part.stop
    return state


def stored_rows(state, capacity):
    number = min(int(state.num_seen), capacity)
    return {name: np.asarray(rows)[:number] for name, rows in state.rows.items()}


def assert_same_rows(what, actual, expected):
    for name in "xyt":
        assert actual[name].dtype == expected[name].dtype or name != "x"
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=what)


def recorded_memory(stored, k, name):
    """A memory after call k, or None where the authors' list was still empty."""
    if f"obs/{k}/{name}_x" not in stored.arrays:
        return None
    return {part: stored.arrays[f"obs/{k}/{name}_{part}"] for part in "xyt"}


def check_query(stored, m, memory):
    """Replayed rows out of the memory, then the incoming ones as just shuffled."""
    number = stored.arrays[f"upd/{m}/mem_len"]
    replay = stored.arrays[f"upd/{m}/replay_idx"]
    query = su.query_rows(stored, m)
    limit = stored.meta["args"]["replay_batch_size"]
    assert number == (0 if memory is None else len(memory["y"]))
    assert len(replay) == min(limit, number)
    replayed = {name: rows[: len(replay)] for name, rows in query.items()}
    incoming = {name: rows[len(replay) :] for name, rows in query.items()}
    if len(replay):
        picked = {name: rows[replay] for name, rows in memory.items()}
        assert_same_rows(f"update {m}, replayed", replayed, picked)
    current = su.concatenate(su.inner_batches(stored, m))
    assert_same_rows(f"update {m}, incoming", incoming, current)


@pytest.mark.slow
def test_reservoir_holds_the_recorded_rows(stored):
    capacity, row = stored.meta["args"]["memories"], stored.arrays["obs/0/x"][0]
    empty, insert, add = reservoir_functions(capacity, row.shape, row.dtype.str)
    inserted = added = empty
    live, copy, task, is_alias = stored_rows(inserted, capacity), None, 0, False
    for k in range(su.count(stored, "obs/{}/x")):
        # The multi-head code copies its memory when the task changes; the single-head
        # code means to, but both of its names stand for one list.
        if stored.arrays[f"obs/{k}/t"] != task:
            task, copy = stored.arrays[f"obs/{k}/t"], live
            is_alias = not stored.meta["multi_head"]
        for glance, m in enumerate(su.updates_of(stored, k)):
            used = copy if stored.arrays[f"upd/{m}/mem_is_M"] else live
            check_query(stored, m, used)
            if glance == 0:
                batches = su.inner_batches(stored, m)
                rows = su.concatenate(batches)
                num_seen = int(inserted.num_seen)
                draws, nth = recorded_draws(stored, k, num_seen, len(rows["y"]))
                inserted = insert(inserted, rows, draws)
                added = add_in_batches(add, added, batches, draws, nth)
                live = stored_rows(inserted, capacity)
                copy = live if is_alias else copy
        memory = recorded_memory(stored, k, "Mnew")
        assert_same_rows(f"call {k}, insert", live, memory)
        assert_same_rows(f"call {k}, add", stored_rows(added, capacity), memory)
        old = recorded_memory(stored, k, "M")
        assert (old is None) == (copy is None or not len(copy["y"]))
        if old is not None:
            assert_same_rows(f"call {k}, memory of the last task switch", copy, old)
