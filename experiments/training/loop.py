"""Drives a compiled program over a stream, task by task."""

import concurrent.futures
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from experiments import run_folder
from experiments.config import benchmarks
from experiments.config.run_config import RunConfig, batches_per_task
from experiments.training import placement
from experiments.training.inputs import Inputs
from experiments.training.one_seed import Trained, make_functions
from experiments.training.probes import batches_per_part, step_size_quantiles
from experiments.training.programs import Program

PROBED_TASKS = 5


class Probe(NamedTuple):
    """Accuracies in the middle of a task."""

    task: int
    num_updates: int
    """Meta-updates made so far, over all tasks."""
    slow: np.ndarray
    """[S] mean accuracy over the tasks seen so far at the slow weights."""
    fast: np.ndarray
    """[S] the same at the fast weights after the inner steps on the latest batch."""


class TaskResult(NamedTuple):
    """What is known after one task, on the host."""

    task: int
    """-1 before any training."""
    accuracy: np.ndarray
    """[S, T] fractions, NaN where not evaluated or diverged."""
    info: dict[str, np.ndarray]
    """[S] means over the task of the learner's info; empty for task -1."""
    finite: np.ndarray
    """[S] booleans: all weights and all infos so far are finite."""
    first_bad: np.ndarray
    """[S] the first batch of the task in which an info was not finite, or -1."""
    causes: dict[int, str]
    """By place of a seed that diverged in this task: what produced the first NaN. Empty
    unless asked for."""
    measures: dict[str, np.ndarray]
    """``anytime_accuracy`` [S, G, T], ``step_size_quantiles`` [S, L, 5] and
    ``task_alignment`` [S, T, T], where the method and the program have them; after the
    last task ``linear_probe_accuracy`` [S, T]."""
    probes: list[Probe]
    """Empty unless this task was probed."""
    train_s: float
    """Wall time of the task's training (and probes), seconds."""
    train_cpu_s: float
    """Processor time of the task's training, all threads, seconds."""
    evaluate_s: float
    """Wall time of the evaluation after it, seconds."""
    state: Any
    """Of the learner, over all seeds; gone once the next result is asked for."""


class Start(NamedTuple):
    """Where a run that was interrupted goes on."""

    state: Any
    """Of the learner, numpy arrays [S, ...]."""
    task: int
    """The first to be trained on."""
    finite: np.ndarray
    """[S] seeds that have not diverged so far."""


def wanted_tasks(benchmark: benchmarks.Benchmark, task: int) -> np.ndarray:
    """Tells which tasks are evaluated after ``task`` (-1: before training), [T]."""
    num_tasks = benchmark.num_tasks
    if (task + 1) % benchmark.eval_every == 0 or task == num_tasks - 1:
        return np.ones(num_tasks, bool)
    wanted = np.zeros(num_tasks, bool)
    wanted[task : task + 2] = True
    return wanted


def _probed_task(
    config: RunConfig, program: Program, state: Any, alive: jax.Array, task: int
) -> tuple[Trained, list[Probe]]:
    """Trains one task in parts, and probes after each."""
    size, num_batches = batches_per_part(config), batches_per_task(config)
    seen = np.arange(config.benchmark.num_tasks) <= task
    probes, infos, bad = [], [], []
    for first in range(0, num_batches, size):
        state, info, first_bad, _ = program.train_part(state, alive, task, first)
        infos.append(info)
        bad.append(placement.gather(first_bad))
        fast = program.look_ahead(state, task, first + size - 1)
        accuracies = [
            placement.gather(program.evaluate(weights, seen)).accuracy
            for weights in (program.subject(state), fast)
        ]
        num_updates = (task * num_batches + first + size) * config.hyper.glances
        slow, fast = (each[: program.num_seeds, seen].mean(1) for each in accuracies)
        probes.append(Probe(task, num_updates, slow, fast))
    info = jax.tree.map(lambda *parts: jnp.mean(jnp.stack(parts), axis=0), *infos)
    bad = np.stack(bad)
    first_bad = np.take_along_axis(bad, np.argmax(bad >= 0, axis=0)[None], 0)[0]
    return Trained(state, info, first_bad), probes


def info_by_name(info: Any) -> dict[str, Any]:
    """Names the leaves of a learner's info, of whatever pytree it is.

    Args:
        info: such as a NamedTuple, whose fields are the names; a leaf alone is
            ``"value"``.

    Returns:
        Its leaves by name.

    >>> info_by_name({"loss": 1, "norms": (2, 3)})
    {'loss': 1, 'norms/0': 2, 'norms/1': 3}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(info)
    }


def _wait(arrays: Any) -> None:
    """Waits for arrays in another thread, so that this one can take signals."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(jax.block_until_ready, arrays).result()


def _measures(
    config: RunConfig, program: Program, trained: Trained, task: int, finite: np.ndarray
) -> dict[str, np.ndarray]:
    """Takes what is measured beside accuracies, without the padding of seeds."""
    num_seeds, measures = program.num_seeds, {}
    if trained.anytime is not None:
        own = placement.gather(trained.anytime)[:num_seeds]
        measures["anytime_accuracy"] = np.where(finite[:, None, None], own, np.nan)
    if (quantiles := step_size_quantiles(trained.state)) is not None:
        measures["step_size_quantiles"] = quantiles[:num_seeds]
    is_whole = wanted_tasks(config.benchmark, task).all()
    if program.compiled.alignment is not None and is_whole:
        cosines = np.array(placement.gather(program.alignment(trained.state)))
        unseen = np.arange(config.benchmark.num_tasks) > task
        cosines[:, unseen | unseen[:, None]] = np.nan
        measures["task_alignment"] = cosines[:num_seeds]
    is_last = task == config.benchmark.num_tasks - 1
    if program.compiled.linear_probe is not None and is_last:
        found = program.linear_probe(program.subject(trained.state))
        own = placement.gather(found)[:num_seeds]
        measures[run_folder.LINEAR_PROBE] = np.where(finite[:, None], own, np.nan)
    return measures


def train(
    config: RunConfig,
    program: Program,
    inputs: Inputs,
    start: Start | None = None,
    find_causes: bool = False,
) -> Iterator[TaskResult]:
    """Runs all tasks in order and yields the result of each, task -1 first.

    Args:
        config: what to run, the first of its group.
        program: from ``programs.compile_programs``.
        inputs: from ``inputs.place``.
        start: where to go on; None: at the beginning.
        find_causes: keep each task's first state, and train a seed that diverges
            again, alone and checked, to find out where its first NaN comes from.

    Yields:
        One ``TaskResult`` per task. A seed that diverged has NaN accuracies from then
        on and weights that no longer move; the others do not notice.
    """
    num_seeds = program.num_seeds
    if start is None:
        state, first_task, finite = program.init(), -1, np.ones(num_seeds, bool)
    else:
        _, first_task, finite = start
        put = lambda leaf: placement.place_all(leaf, inputs.mesh)
        state = jax.tree.map(put, start.state)
    for task in range(first_task, config.benchmark.num_tasks):
        before = placement.gather(state) if find_causes and task >= 0 else None
        was_finite, began = finite, _Clock.now()
        trained, probes = _train_task(config, program, inputs, state, finite, task)
        state, at_end = trained.state, _Clock.now()
        wanted = wanted_tasks(config.benchmark, task)
        accuracy, weights_finite = placement.gather(
            program.evaluate(program.subject(state), wanted)
        )
        first_bad = np.asarray(placement.gather(trained.first_bad))[:num_seeds]
        finite = was_finite & weights_finite[:num_seeds] & (first_bad < 0)
        accuracy = np.where(finite[:, None], accuracy[:num_seeds], np.nan)
        causes = {}
        if before is not None:
            causes = {
                index: find_cause(config, program, inputs, before, index, task)
                for index in np.flatnonzero(was_finite & ~finite).tolist()
            }
        means = info_by_name(placement.gather(trained.info))
        yield TaskResult(
            task,
            accuracy,
            {name: value[:num_seeds] for name, value in means.items()},
            finite,
            first_bad,
            causes,
            _measures(config, program, trained, task, finite),
            probes,
            train_s=at_end.wall_s - began.wall_s,
            train_cpu_s=at_end.cpu_s - began.cpu_s,
            evaluate_s=_Clock.now().wall_s - at_end.wall_s,
            state=state,
        )


def _train_task(
    config: RunConfig,
    program: Program,
    inputs: Inputs,
    state: Any,
    finite: np.ndarray,
    task: int,
) -> tuple[Trained, list[Probe]]:
    """Trains on one task, on none before the first."""
    if task < 0:
        return Trained(state, None, np.full(program.num_seeds, -1)), []
    alive = placement.place_all(finite, inputs.mesh)
    if task < PROBED_TASKS and program.compiled.train_part is not None:
        return _probed_task(config, program, state, alive, task)
    trained = program.train_task(state, alive, task)
    _wait(trained.state)
    return trained, []


class _Clock(NamedTuple):
    """Seconds of the wall and of this process on all its threads."""

    wall_s: float
    cpu_s: float

    @classmethod
    def now(cls) -> "_Clock":
        return cls(time.perf_counter(), time.process_time())


def find_cause(
    config: RunConfig,
    program: Program,
    inputs: Inputs,
    state: Any,
    index: int,
    task: int,
) -> str:
    """Trains one seed on one task again, and tells what produced its first NaN.

    Args:
        config: what is run.
        program: from ``programs.compile_programs``.
        inputs: from ``inputs.place``.
        state: of all seeds before the task, on the host.
        index: of the seed.
        task: its index.

    Returns:
        A sentence with the operation and the line of code.
    """
    own = jax.tree.map(
        lambda leaf: np.asarray(leaf)[index],
        placement.gather(program.own._replace(state=state)),
    )
    fns = make_functions(config, inputs.form, inputs.platform)
    checked = jax.jit(checkify.checkify(fns.train_task, errors=checkify.nan_checks))
    shared = jax.device_get(inputs.shared._replace(task=np.int32(task)))
    error, _ = checked(shared, own._replace(is_alive=np.bool_(True)))
    return error.get() or "an infinity, without any NaN"


def running_retained_accuracy(accuracy: np.ndarray, task: int) -> np.ndarray:
    """Mean accuracy over the tasks learnt so far, [S].

    Args:
        accuracy: [S, T] after the latest task.
        task: its index.

    Returns:
        Fractions; NaN where one of those tasks was not evaluated.
    """
    return accuracy[:, : task + 1].mean(axis=1)
