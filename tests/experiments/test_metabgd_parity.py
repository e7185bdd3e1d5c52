"""Replays the authors' stored updates of Meta-BGD, number for number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored_updates as su
from parity import assert_close, assert_predictions_close

import lamaml_jax as lm
from experiments.methods import metabgd

if not su.FOLDER.is_dir():
    pytest.skip("needs the stored updates (LAMAML_FIXTURES)", allow_module_level=True)

FILES = su.paths("metabgd")


def with_draws_as_updates(content):
    """Lets ``stored_updates`` read draw c of update m as the update ``m/mc/c``."""
    calls = {
        f"upd/{m}/mc/{c}/obs": content.arrays[f"upd/{m}/obs"]
        for m in range(su.count(content, "upd/{}/obs"))
        for c in range(content.meta["args"]["train_mc_iters"])
    }
    return content._replace(arrays=content.arrays | calls)


# Of one pass in the quick tests, of several in the slow ones.
CASES = [
    pytest.param(path, marks=pytest.mark.slow if "multi" in path.stem else [])
    for path in FILES
]


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def stored(request):
    content = su.load(request.param)
    with jax.enable_x64(content.meta["dtype"] == "f64"):
        yield with_draws_as_updates(content)


def hyper_of(stored):
    args = stored.meta["args"]
    return metabgd.MetaBgdHyperparameters(
        max_grad_norm=args["grad_clip_norm"],
        step_size_init=args["alpha_init"],
        objective="mean",
        first_order=False,
        rectify=False,
        inner_clip=args["grad_clip_norm"],
        mc_samples=args["train_mc_iters"],
        std_init=args["std_init"],
        mean_learning_rate=args["mean_eta"],
    )


def draws_of(stored, m):
    return [f"{m}/mc/{c}" for c in range(stored.meta["args"]["train_mc_iters"])]


def pair(leaves):
    """Weights come first, then as many step sizes."""
    half = len(leaves) // 2
    return lm.MetaParams(leaves[:half], leaves[half:])


def stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def data_of(stored, m, num_support, num_query):
    """Noise, support, query and masks of an update, each with an axis of draws."""
    draws = draws_of(stored, m)
    support, support_mask = stack(su.support(stored, d, num_support) for d in draws)
    query, query_mask = stack(
        su.pad(su.query_rows(stored, d), num_query) for d in draws
    )
    noise = stack(pair(su.leaves(stored, f"upd/{d}/eps")) for d in draws)
    return noise, support, query, support_mask, query_mask


def check_draws(stored, m, mean, std, info):
    """Sampled parameters, meta-losses and norms of an update's draws."""
    losses, rate_norms = [], []
    for d in draws_of(stored, m):
        noise = pair(su.leaves(stored, f"upd/{d}/eps"))
        sampled = jax.tree.map(lambda a, s, n: a + s * n, mean, std, noise)
        assert_close(stored, d, sampled, su.leaves(stored, f"upd/{d}/sampled"))
        number = su.count(stored, f"upd/{d}/inner/{{}}/meta_loss")
        inner = [stored.arrays[f"upd/{d}/inner/{i}/meta_loss"] for i in range(number)]
        losses.append(np.mean(inner))
        clipped = pair(su.leaves(stored, f"upd/{d}/grad/clipped"))
        rate_norms.append(
            np.sqrt(sum(np.sum(np.square(g)) for g in clipped.step_sizes))
        )
    halves, norms, bounds = stored.arrays[f"upd/{m}/clip"].T
    assert not np.any(halves) and len(norms) == len(draws_of(stored, m))
    assert np.all(bounds == stored.meta["args"]["grad_clip_norm"])
    assert_close(
        stored, f"{m}, info", info, list(map(np.asarray, (losses, norms, rate_norms)))
    )


def test_folder_holds_the_family():
    assert FILES, "no metabgd_*.npz in the folder of stored updates"


def test_updates_follow_the_recorded_run(stored):
    hyper = hyper_of(stored)
    update = jax.jit(metabgd.make_update(su.loss_of(stored), hyper))
    updates = range(su.count(stored, "upd/{}/obs"))
    assert updates
    draws = [d for m in updates for d in draws_of(stored, m)]
    num_support = max(len(b["y"]) for d in draws for b in su.inner_batches(stored, d))
    num_query = max(len(su.query_rows(stored, d)["y"]) for d in draws)
    mean = lm.MetaParams(
        su.leaves(stored, "init/param"), su.leaves(stored, "init/alpha")
    )
    std_init = stored.meta["args"]["std_init"]
    std = jax.tree.map(lambda leaf: np.full_like(leaf, std_init), mean)
    for m in updates:
        data = data_of(stored, m, num_support, num_query)
        new_mean, new_std, info = update(mean, std, *data)
        check_draws(stored, m, mean, std, info)
        mean, std = new_mean, new_std
        assert_close(stored, f"{m}, mean", mean, su.leaves(stored, f"upd/{m}/mean"))
        assert_close(stored, f"{m}, std", std, su.leaves(stored, f"upd/{m}/std"))
        for half, kind in zip(mean, ("param", "alpha"), strict=True):
            recorded = su.leaves(stored, f"upd/{m}/{kind}")
            assert_close(stored, f"{m}, {kind} kept", half, recorded)
    assert_predictions_close(stored, mean.weights)


def test_rows_come_from_the_batch_and_the_memory(stored):
    """The first draw of the first glance offers the rows, after it has replayed."""
    arrays, args = stored.arrays, stored.meta["args"]
    x = arrays["obs/0/x"]
    label = jax.ShapeDtypeStruct((), jnp.result_type(int))
    example = {"x": jax.ShapeDtypeStruct(x.shape[1:], x.dtype), "y": label, "t": label}
    capacity = args["memories"]
    reservoir = lm.make_reservoir(capacity, example, acceptance="published")
    insert, memory = jax.jit(reservoir.insert), reservoir.init()
    for k in range(su.count(stored, "obs/{}/x")):
        draws = [d for m in su.updates_of(stored, k) for d in draws_of(stored, m)]
        for n, d in enumerate(draws):
            num_stored = min(int(memory.num_seen), capacity)
            replay = arrays[f"upd/{d}/replay_idx"]
            assert arrays[f"upd/{d}/mem_len"] == num_stored
            assert len(replay) == min(args["replay_batch_size"], num_stored)
            incoming = su.concatenate(su.inner_batches(stored, d))
            for name, rows in su.query_rows(stored, d).items():
                replayed = np.asarray(memory.rows[name])[replay]
                np.testing.assert_array_equal(rows[: len(replay)], replayed)
                np.testing.assert_array_equal(rows[len(replay) :], incoming[name])
            if n == 0:
                nth = int(memory.num_seen) + 1 + np.arange(len(incoming["y"]))
                slots = np.zeros_like(nth)
                lowest, highest, drawn = arrays[f"obs/{k}/randint"].reshape(-1, 3).T
                assert not np.any(lowest)
                np.testing.assert_array_equal(highest, nth[nth > capacity])
                slots[nth > capacity] = drawn
                memory = insert(memory, incoming, slots)
        num_stored = min(int(memory.num_seen), capacity)
        for name, rows in memory.rows.items():
            recorded = arrays[f"obs/{k}/Mnew_{name}"]
            np.testing.assert_array_equal(rows[:num_stored], recorded)
        last = [
            np.mean([arrays[f"upd/{d}/inner/{i}/meta_loss"] for i in range(number)])
            for d in draws[-args["train_mc_iters"] :]
            for number in [su.count(stored, f"upd/{d}/inner/{{}}/meta_loss")]
        ]
        assert_close(stored, f"call {k}", np.mean(last), arrays[f"obs/{k}/loss"])
