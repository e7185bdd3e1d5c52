"""Replays the authors' stored updates of GEM and A-GEM, number for number."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stored_updates as su

import lamaml_jax as lm
from experiments.methods import episodic
from experiments.methods.projection import project, project_on_mean
from experiments.methods.ring import RingMemory

if not su.FOLDER.is_dir():
    pytest.skip("needs the stored updates (LAMAML_FIXTURES)", allow_module_level=True)

FILES = {family: su.paths(family) for family in ("gem", "agem")}
# Error of a leaf: max |actual - expected| / max |expected|. Float64 differs from torch
# by the order of sums, some 1e-15; 1e-10 leaves room for an ill-conditioned draw, and
# any wrong rule (the 1e-6 beside the clipped norm is the smallest) is far above it.
# Float32 rounds at 6e-8; a gradient and a projection amplify that by some hundreds.
TOLERANCES = {"f64": 1e-10, "f32": 1e-4}


def stored_of(*families):
    """Parametrises over the files of some families, each read in its own precision."""
    files = [path for family in families for path in FILES[family]]
    return pytest.mark.parametrize(
        "stored", files, ids=lambda path: path.stem, indirect=True
    )


@pytest.fixture
def stored(request):
    content = su.load(request.param)
    with jax.enable_x64(content.meta["dtype"] == "f64"):
        yield content


def assert_close(stored, what, actual, expected, tolerance=0.0):
    """Compares two trees leaf by leaf; a NaN on either side is a failure."""
    tolerance = max(tolerance, TOLERANCES[stored.meta["dtype"]])
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected) > 0, what
    for j, (one, other) in enumerate(zip(actual, expected, strict=True)):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape, f"{what}, leaf {j}"
        scale = max(np.max(np.abs(other)), np.finfo(np.float64).tiny)
        error = np.max(np.abs(one - other)) / scale
        assert error <= tolerance, f"{what}, leaf {j}: {error:.2e} > {tolerance:.0e}"


def hyper_of(stored):
    args = stored.meta["args"]
    return episodic.GemHyperparameters(
        learning_rate=args["lr"],
        max_grad_norm=args["grad_clip_norm"],
        margin=args["memory_strength"],
        memory_per_task=args["n_memories"],
    )


@functools.cache
def functions_of(family, config, multi_head, classes_per_task, hyper):
    """Clipped gradient and update, jitted."""

    def loss_fn(weights, batch):
        logits = su.apply_network(json.loads(config), weights, batch["x"])
        if multi_head:
            return lm.losses.multi_head_cross_entropy(
                logits, batch["y"], batch["t"], classes_per_task
            )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])

    make_update = {"gem": episodic.gem_update, "agem": episodic.agem_update}[family]
    gradient_fn = functools.partial(
        episodic.clipped_gradient, loss_fn, hyper.max_grad_norm
    )
    return jax.jit(gradient_fn), jax.jit(make_update(loss_fn, hyper))


def functions(stored):
    meta = stored.meta
    family = meta["case"].split("_")[0]
    config, classes = json.dumps(meta["config"]), int(meta["nc_per_task"])
    return functions_of(family, config, meta["multi_head"], classes, hyper_of(stored))


def updates(stored):
    """Numbers of all updates, with the observe call that each belongs to."""
    number = su.count(stored, "upd/{}/obs")
    assert number > 0, "the file holds no update"
    return [(m, int(stored.arrays[f"upd/{m}/obs"])) for m in range(number)]


def past_tasks(stored, k):
    """Tasks that constrain in call k; the authors' A-GEM forgets the first one."""
    return stored.arrays[f"obs/{k}/observed_tasks"].tolist()[:-1]


def incoming(stored, k):
    x, y, t = (stored.arrays[f"obs/{k}/{name}"] for name in "xyt")
    return {"x": x, "y": y, "t": np.full_like(y, t)}, np.ones(len(y), bool)


def memory_of(stored, k):
    """Memories as they were in call k: rows are stored before its first gradient.

    The authors' code takes every slot for filled, and so does this.
    """
    x, y = (stored.arrays[f"obs/{k}/memory_{name}"] for name in ("data", "labs"))
    tasks = np.broadcast_to(np.arange(len(y), dtype=y.dtype)[:, None], y.shape)
    full = np.full(len(y), y.shape[1], np.int32)
    return RingMemory({"x": x, "y": y, "t": tasks}, full, np.zeros_like(full))


def task_memory(stored, k, task):
    memory = memory_of(stored, k)
    rows = {name: value[task] for name, value in memory.rows.items()}
    return rows, np.ones(len(rows["y"]), bool)


def past_mask(stored, k):
    mask = np.zeros(stored.meta["n_tasks"], bool)
    mask[past_tasks(stored, k)] = True
    return mask


def flat(leaves):
    return np.concatenate([np.ravel(leaf) for leaf in leaves])


def recorded_gradients(stored, m, k):
    """Clipped gradients of past tasks [T, P], zeros elsewhere."""
    size = sum(np.size(leaf) for leaf in su.leaves(stored, "init/param"))
    rows = np.zeros((stored.meta["n_tasks"], size), stored.arrays["obs/0/x"].dtype)
    for task in past_tasks(stored, k):
        rows[task] = np.ravel(stored.arrays[f"upd/{m}/G/{task}"])
    return rows


def own_gradient(stored, m, k):
    """Clipped gradient of the incoming rows, before any projection."""
    key = f"upd/{m}/G/{int(stored.arrays[f'obs/{k}/t'])}"
    if key in stored.arrays:
        return np.ravel(stored.arrays[key])
    assert f"upd/{m}/projected" not in stored.arrays
    return flat(su.leaves(stored, f"upd/{m}/grad/final"))


@pytest.mark.parametrize("family", FILES)
def test_folder_holds_the_family(family):
    assert FILES[family], f"no {family}_*.npz in the folder of stored updates"


@stored_of("gem", "agem")
def test_gradients_are_the_recorded_ones(stored):
    gradient_fn, _ = functions(stored)
    arrays = stored.arrays
    for m, k in updates(stored):
        weights = su.state_before(stored, m, "param")
        past = past_tasks(stored, k)
        data = [task_memory(stored, k, task) for task in past] + [incoming(stored, k)]
        expected = [*recorded_gradients(stored, m, k)[past], own_gradient(stored, m, k)]
        # One loss and one clipping each, past tasks first; 0 marks weights.
        assert len(arrays[f"upd/{m}/losses"]) == len(data)
        halves, norms, bounds = arrays[f"upd/{m}/clip"].T
        assert len(norms) == len(data) and not np.any(halves)
        assert np.all(bounds == stored.meta["args"]["grad_clip_norm"])
        for n, (rows, mask) in enumerate(data):
            where = f"update {m}, gradient {n}"
            gradient = gradient_fn(weights, rows, mask)
            assert_close(
                stored, f"{where}, loss", gradient.loss, arrays[f"upd/{m}/losses"][n]
            )
            assert_close(stored, f"{where}, norm", gradient.norm, norms[n])
            clipped = flat(jax.tree.leaves(gradient.clipped))
            assert_close(stored, where, clipped, expected[n])
            raw = flat(su.leaves(stored, f"upd/{m}/grad/param@{n}"))
            factor = np.minimum(1, bounds[n] / (norms[n] + 1e-6))
            assert_close(stored, f"{where}, raw", clipped, factor * raw)


@pytest.mark.slow
@stored_of("gem", "agem")
def test_update_gives_the_recorded_weights(stored):
    _, update = functions(stored)
    projected = 0
    for m, k in updates(stored):
        weights = su.state_before(stored, m, "param")
        own = own_gradient(stored, m, k)
        # GEM's carry has room for gradients, whose content must not matter.
        num_tasks = stored.meta["n_tasks"]
        room = ([jnp.full((num_tasks, *np.shape(leaf)), 7.0) for leaf in weights],)
        carry = (weights, *room) if "gem_" == stored.meta["case"][:4] else (weights,)
        data = (*incoming(stored, k), memory_of(stored, k), past_mask(stored, k))
        (weights, *_), info = update(carry, *data)
        assert_close(
            stored, f"update {m}", weights, su.leaves(stored, f"upd/{m}/param")
        )
        loss = stored.arrays[f"upd/{m}/losses"][-1]
        assert_close(stored, f"update {m}, loss", info.loss, loss)
        norm = stored.arrays[f"upd/{m}/clip"][-1, 1]
        assert_close(stored, f"update {m}, norm", info.grad_norm, norm)
        final = flat(su.leaves(stored, f"upd/{m}/grad/final"))
        assert (info.violations > 0) == np.any(final != own)
        projected += int(info.violations > 0)
        if m == su.updates_of(stored, k)[-1]:
            assert_close(stored, f"call {k}", loss, stored.arrays[f"obs/{k}/loss"])
    assert projected == stored.meta["violations"]


@stored_of("gem")
def test_projection_solves_the_recorded_programme(stored):
    projections, margin = jax.jit(project), hyper_of(stored).margin
    seen = 0
    for m, k in updates(stored):
        past, mask = recorded_gradients(stored, m, k), past_mask(stored, k)
        own = own_gradient(stored, m, k)
        found = projections(own, past, mask, margin)
        recorded = {
            name: stored.arrays.get(f"upd/{m}/qp/{name}")
            for name in ("P", "q", "h", "v")
        }
        assert (recorded["P"] is None) == (found.violations == 0)
        if recorded["P"] is None:
            np.testing.assert_array_equal(found.gradient, own)
            continue
        seen += 1
        np.testing.assert_array_equal(recorded["h"], margin)
        order = past_tasks(stored, k)
        part = np.ix_(order, order)
        where = f"update {m}"
        assert_close(stored, f"{where}, matrix", found.matrix[part], recorded["P"])
        # Their solver maximises with the vector, so it has the other sign.
        assert_close(
            stored, f"{where}, vector", -found.products[np.array(order)], recorded["q"]
        )
        # The solver's own tolerance: 16 roundings over the least eigenvalue.
        eps = np.finfo(past.dtype).eps
        tolerance = 16 * eps * np.linalg.cond(np.asarray(recorded["P"], np.float64))
        values = found.multipliers[np.array(order)]
        assert_close(stored, f"{where}, v", values, recorded["v"], tolerance)
        result = stored.arrays[f"upd/{m}/projected"]
        assert_close(stored, f"{where}, projected", found.gradient, np.ravel(result))
    assert seen == stored.meta["violations"]


@stored_of("agem")
def test_projection_on_the_mean_is_the_recorded_one(stored):
    seen = 0
    for m, k in updates(stored):
        if f"upd/{m}/projected" not in stored.arrays:
            continue
        order = past_tasks(stored, k)
        assert stored.arrays[f"upd/{m}/n_past"] == len(order) > 0
        reference = recorded_gradients(stored, m, k)[order].mean(axis=0)
        own = own_gradient(stored, m, k)
        found, violation = project_on_mean(own, reference)
        result = np.ravel(stored.arrays[f"upd/{m}/projected"])
        assert_close(stored, f"update {m}", found, result)
        assert violation == (own @ reference < 0)
        seen += int(violation)
    assert seen == stored.meta["violations"]
