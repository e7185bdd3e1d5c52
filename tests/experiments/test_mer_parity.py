"""Replays the authors' stored updates of MER, number for number."""

import jax
import numpy as np
import pytest
import stored_updates as su
from parity import assert_close, assert_predictions_close

import lamaml_jax as lm
from experiments.methods import mer

if not su.FOLDER.is_dir():
    pytest.skip("needs the stored updates (LAMAML_FIXTURES)", allow_module_level=True)

FILES = su.paths("mer")


# Of one pass in the quick tests, of several in the slow ones.
CASES = [
    pytest.param(path, marks=pytest.mark.slow if "multi" in path.stem else [])
    for path in FILES
]


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def stored(request):
    content = su.load(request.param)
    with jax.enable_x64(content.meta["dtype"] == "f64"):
        yield content


def hyper_of(stored):
    args = stored.meta["args"]
    return mer.MerHyperparameters(
        learning_rate=args["lr"],
        max_grad_norm=args["grad_clip_norm"],
        rounds=args["batches_per_example"],
        within_rate=args["beta"],
        across_rate=args["gamma"],
    )


def test_folder_holds_the_family():
    assert FILES, "no mer_*.npz in the folder of stored updates"


def test_rounds_follow_the_recorded_run(stored):
    hyper, arrays = hyper_of(stored), stored.arrays
    loss_fn = su.loss_of(stored)
    descend = jax.jit(mer.make_descent(loss_fn, hyper))
    round_fn = jax.jit(mer.make_round(loss_fn, hyper))
    number = su.count(stored, "upd/{}/obs")
    size = max(len(su.query_rows(stored, m)["y"]) for m in range(number))
    assert number == hyper.rounds * su.count(stored, "smp/{}/obs") > 0
    weights = row_start = su.leaves(stored, "init/param")
    for m in range(number):
        rows, mask = su.pad(su.query_rows(stored, m), size)
        end, _ = descend(weights, rows, mask)
        assert_close(stored, f"{m}, SGD", end, su.leaves(stored, f"upd/{m}/param_sgd"))
        weights, info = round_fn(weights, rows, mask)
        recorded = su.leaves(stored, f"upd/{m}/param")
        assert_close(stored, f"{m}, round", weights, recorded)
        assert_close(stored, f"{m}, loss", info.loss[mask], arrays[f"upd/{m}/losses"])
        norms = arrays[f"upd/{m}/clip"][:, 1]
        assert_close(stored, f"{m}, norms", info.grad_norm[mask], norms)
        assert np.all(info.loss[~mask] == 0) and np.all(info.grad_norm[~mask] == 0)
        if (m + 1) % hyper.rounds == 0:
            s = m // hyper.rounds
            weights = mer.interpolate(row_start, weights, hyper.across_rate)
            recorded = su.leaves(stored, f"smp/{s}/param")
            assert_close(stored, f"row {s}", weights, recorded)
            row_start = weights
    assert_predictions_close(stored, weights)


def test_rows_come_from_the_batch_and_the_memory(stored):
    """A round shows the incoming row first; it is offered after its last round."""
    arrays, args = stored.arrays, stored.meta["args"]
    x, rounds = arrays["obs/0/x"], args["batches_per_example"]
    label = jax.ShapeDtypeStruct((), np.dtype(jax.numpy.result_type(int)))
    example = {"x": jax.ShapeDtypeStruct(x.shape[1:], x.dtype), "y": label, "t": label}
    reservoir = lm.make_reservoir(args["memories"], example, acceptance="published")
    insert = jax.jit(reservoir.insert)
    memory, m = reservoir.init(), 0
    for k in range(su.count(stored, "obs/{}/x")):
        y, draws = arrays[f"obs/{k}/y"], list(arrays[f"obs/{k}/randint"].reshape(-1, 3))
        for i in range(len(y)):
            incoming = {"x": arrays[f"obs/{k}/x"][i : i + 1], "y": y[i : i + 1]}
            incoming["t"] = np.full_like(incoming["y"], arrays[f"obs/{k}/t"])
            num_stored = min(int(memory.num_seen), args["memories"])
            for _ in range(rounds):
                replay = arrays[f"upd/{m}/replay_idx"]
                assert arrays[f"upd/{m}/obs"] == k
                assert arrays[f"upd/{m}/mem_len"] == num_stored
                assert len(replay) == min(args["replay_batch_size"], num_stored)
                replayed = jax.tree.map(lambda a, r=replay: a[r], memory.rows)
                for name, rows in su.query_rows(stored, m).items():
                    np.testing.assert_array_equal(rows[:1], incoming[name])
                    np.testing.assert_array_equal(rows[1:], replayed[name])
                m += 1
            draw = [0]
            if num_stored == args["memories"]:
                lowest, highest, *draw = draws.pop(0)
                assert (lowest, highest) == (0, memory.num_seen + 1)
            memory = insert(memory, incoming, np.asarray(draw))
        assert not draws
        num_stored = min(int(memory.num_seen), args["memories"])
        for name, rows in memory.rows.items():
            recorded = arrays[f"obs/{k}/M_{name}"]
            np.testing.assert_array_equal(rows[:num_stored], recorded)
        last = np.sum(arrays[f"upd/{m - 1}/losses"]) / rounds
        assert_close(stored, f"call {k}", last, arrays[f"obs/{k}/loss"])
    assert m == su.count(stored, "upd/{}/obs")
