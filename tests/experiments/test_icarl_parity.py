"""Replays the authors' stored updates of iCaRL, number for number."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored_updates as su
from parity import assert_close

from experiments.methods import exemplars, icarl
from experiments.methods.descent import clip_by_norm
from experiments.methods.problem import Problem

if not su.FOLDER.is_dir():
    pytest.skip("needs the stored updates (LAMAML_FIXTURES)", allow_module_level=True)

FILES = [pytest.param(path, id=path.stem) for path in su.paths("icarl")]


@pytest.fixture(params=FILES)
def stored(request):
    content = su.load(request.param)
    with jax.enable_x64(content.meta["dtype"] == "f64"):
        yield content


def problem_of(stored):
    meta, image = stored.meta, stored.arrays["obs/0/x"]
    loss_fn = su.loss_of(stored)
    names = {"x": "image", "y": "label", "t": "task"}
    form = {"image": image.dtype, "label": np.int32, "task": np.int32}
    return Problem(
        lambda weights, batch: loss_fn(weights, {n: batch[names[n]] for n in "xyt"}),
        {
            name: jax.ShapeDtypeStruct(image.shape[1:] if name == "image" else (), d)
            for name, d in form.items()
        },
        functools.partial(su.apply_network, meta["config"]),
        num_tasks=meta["n_tasks"],
        rows_per_task=meta["args"]["samples_per_task"],
        num_classes=meta["n_outputs"],
        classes_per_task=int(meta["nc_per_task"]),
    )


def hyper_of(stored):
    args = stored.meta["args"]
    return icarl.IcarlHyperparameters(
        glances=1,  # one recorded glance after the other
        learning_rate=args["lr"],
        max_grad_norm=args["grad_clip_norm"],
        capacity=args["n_memories"],
        distillation_weight=args["memory_strength"],
    )


def observed(stored, k):
    """Rows of a call, padded to the longest, and their mask."""
    calls = range(su.count(stored, "obs/{}/x"))
    size = max(len(stored.arrays[f"obs/{call}/y"]) for call in calls)
    x, y, t = (stored.arrays[f"obs/{k}/{name}"] for name in "xyt")
    tasks = np.full_like(y, t)
    batch = {"image": x, "label": y.astype(np.int32), "task": tasks.astype(np.int32)}
    padded, mask = su.pad({"x": x, "y": y, "t": tasks}, size)
    batch = {"image": padded["x"], "label": padded["y"].astype(np.int32)}
    return batch | {"task": padded["t"].astype(np.int32)}, mask


def recorded_sets(stored, k, num_classes):
    """Images and outputs of every class that has exemplars after call k."""
    keys = [f"obs/{k}/exemplar_{{}}/{c}" for c in range(num_classes)]
    return {
        c: tuple(stored.arrays[key.format(name)] for name in ("x", "out"))
        for c, key in enumerate(keys)
        if key.format("x") in stored.arrays
    }


def recorded_exemplars(stored, k, problem, capacity):
    """The recorded memory after call k in our slots, in an order of its own."""
    sets = recorded_sets(stored, k, problem.num_classes)
    labels = np.concatenate([[c] * len(sets[c][0]) for c in reversed(sets)] or [[]])
    ranks = np.concatenate([np.arange(len(sets[c][0])) for c in reversed(sets)] or [[]])
    empty = exemplars.no_exemplars(problem, su.leaves(stored, "init/param"), capacity)
    images, logits = (
        np.concatenate([sets[c][part] for c in reversed(sets)] + [np.asarray(room)])
        for part, room in enumerate((empty.images, empty.logits))
    )
    room = capacity - len(labels)
    return exemplars.Exemplars(
        jnp.asarray(images[:capacity]),
        jnp.asarray(np.append(labels, [-1] * room), jnp.int32),
        jnp.asarray(np.append(ranks, [0] * room), jnp.int32),
        jnp.asarray(logits[:capacity]),
    )


def recorded_ranks(stored, m, num_classes):
    """Rank of the exemplar that each class drew in update m, 0 where none did."""
    k = int(stored.arrays[f"upd/{m}/obs"])
    lowest, highest, drawn = stored.arrays[f"obs/{k}/randint"].reshape(-1, 3).T
    num_old = int(stored.arrays[f"obs/{k}/t"]) * int(stored.meta["nc_per_task"])
    glance = su.updates_of(stored, k).index(m)
    part = slice(glance * num_old, (glance + 1) * num_old)
    # One draw per class in the order of classes, among all its exemplars.
    if num_old:
        sets = recorded_sets(stored, k - 1, num_classes)
        np.testing.assert_array_equal(lowest[part], 0)
        expected = [len(sets[c][0]) - 1 for c in range(num_old)]
        np.testing.assert_array_equal(highest[part], expected)
    ranks = np.zeros(num_classes, np.int32)
    ranks[:num_old] = drawn[part]
    return ranks


def ends_task(stored, k):
    number = su.count(stored, "obs/{}/x")
    tasks = [int(stored.arrays[f"obs/{call}/t"]) for call in range(number)]
    return tasks[k : k + 2] != [tasks[k]] * 2


def is_stored(stored, k):
    """Whether the authors kept the rows: they did not keep a task's last batch."""
    arrays = stored.arrays
    seen = sum(
        len(arrays[f"obs/{call}/y"])
        for call in range(k + 1)
        if arrays[f"obs/{call}/t"] == arrays[f"obs/{k}/t"]
    )
    args = stored.meta["args"]
    return seen < args["samples_per_task"] * (1 - args["validation"])


def test_folder_holds_the_family():
    assert FILES, "no icarl_*.npz in the folder of stored updates"


def test_losses_and_gradients_are_the_recorded_ones(stored):
    problem, hyper = problem_of(stored), hyper_of(stored)
    clip = clip_by_norm(hyper.max_grad_norm)

    @jax.jit
    def gradients(weights, batch, mask, memory, ranks):
        old, old_mask = exemplars.one_per_class(memory, ranks)
        function = jax.value_and_grad(icarl.icarl_loss(problem, hyper), has_aux=True)
        value, grads = function(weights, batch, mask, old, old_mask)
        return value, grads, clip.update(grads, clip.init(weights))[0]

    for m in range(su.count(stored, "upd/{}/obs")):
        k = int(stored.arrays[f"upd/{m}/obs"])
        memory = recorded_exemplars(stored, k - 1, problem, hyper.capacity)
        (loss, distillation), raw, final = gradients(
            su.state_before(stored, m, "param"),
            *observed(stored, k),
            memory,
            recorded_ranks(stored, m, problem.num_classes),
        )
        entropy, *divergences = stored.arrays[f"upd/{m}/losses"]
        # The authors average the divergence over outputs too, and multiply them back.
        distilled = problem.classes_per_task * np.sum(divergences)
        expected = entropy + hyper.distillation_weight * distilled
        assert_close(stored, f"{m}, loss", loss, expected)
        # Its own size is no measure: a task's first divergences are 0 but for rounding.
        rest = loss - hyper.distillation_weight * distillation
        assert_close(stored, f"{m}, cross-entropy", rest, entropy)
        assert bool(divergences) == bool(stored.arrays[f"obs/{k}/t"] > 0)
        recorded = su.leaves(stored, f"upd/{m}/grad/param@0")
        assert_close(stored, f"{m}, raw gradient", raw, recorded)
        recorded = su.leaves(stored, f"upd/{m}/grad/final")
        assert_close(stored, f"{m}, clipped gradient", final, recorded)


def check_sets(stored, k, problem, memory):
    """Compares our exemplars after call k with those recorded."""
    sets = recorded_sets(stored, k, problem.num_classes)
    share = stored.meta["args"]["n_memories"] // len(sets)
    labels, ranks, images = (
        np.asarray(x) for x in (memory.labels, memory.ranks, memory.images)
    )
    counts = []
    for c, (recorded, outputs) in sets.items():
        own = np.flatnonzero(labels == c)
        own = own[np.argsort(ranks[own])]
        np.testing.assert_array_equal(ranks[own], range(len(own)))
        assert len(recorded) <= len(own) <= share
        counts.append(len(own))
        # The authors cut every set to the shortest of the newest task, we do not.
        own = own[: len(recorded)]
        np.testing.assert_array_equal(images[own], recorded)
        actual = np.asarray(memory.logits)[own]
        assert_close(stored, f"call {k}, outputs of class {c}", actual, outputs)
    if min(counts) == share:
        assert {len(recorded) for recorded, _ in sets.values()} == {share}
    assert sum(counts) == np.sum(labels >= 0)


def test_learner_follows_the_recorded_run(stored):
    problem, hyper = problem_of(stored), hyper_of(stored)
    learner = icarl.icarl(problem, hyper)

    @jax.jit
    def observe(state, batch, mask, remember, ranks):
        def randint(key, shape, minval, maxval, dtype):
            del key, minval, maxval
            assert (shape, dtype) == (ranks.shape, jnp.int32)
            return ranks

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "randint", randint)
            return learner.observe(jax.random.key(0), state, batch, mask, remember)

    end_task = jax.jit(learner.end_task)
    start = jax.tree.map(jnp.asarray, su.leaves(stored, "init/param"))
    state = learner.init(jax.random.key(0), start)
    ended = 0
    for k in range(su.count(stored, "obs/{}/x")):
        for glance, m in enumerate(su.updates_of(stored, k)):
            state, info = observe(
                state,
                *observed(stored, k),
                jnp.asarray(glance == 0 and is_stored(stored, k)),
                recorded_ranks(stored, m, problem.num_classes),
            )
            recorded = su.leaves(stored, f"upd/{m}/param")
            assert_close(stored, f"{m}, weights", state.weights, recorded)
            ((_, norm, _),) = stored.arrays[f"upd/{m}/clip"]
            assert_close(stored, f"{m}, norm", info.grad_norm[0], norm)
        # The authors return the loss of the last glance.
        assert_close(stored, f"call {k}", info.loss[0], stored.arrays[f"obs/{k}/loss"])
        if ends_task(stored, k):
            state, ended = end_task(jax.random.key(0), state), ended + 1
            check_sets(stored, k, problem, state.exemplars)
    assert ended == problem.num_tasks
    check_evaluation(stored, problem, hyper, state, k)


def check_evaluation(stored, problem, hyper, state, k):
    """The authors return 1 at the nearest class of the task asked for, else 0."""
    memory = recorded_exemplars(stored, k, problem, hyper.capacity)
    scores_fn = jax.jit(icarl.icarl_scores(problem, hyper))
    scores = scores_fn(state._replace(exemplars=memory), stored.arrays["eval/x"])
    for task in range(problem.num_tasks):
        start = task * problem.classes_per_task
        own = np.asarray(scores)[:, start : start + problem.classes_per_task]
        expected = np.zeros_like(scores)
        expected[np.arange(len(own)), start + own.argmax(axis=1)] = 1
        np.testing.assert_array_equal(expected, stored.arrays[f"eval/out/{task}"])
