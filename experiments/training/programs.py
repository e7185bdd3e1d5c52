"""Compiles methods for all seeds and devices."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments.config.run_config import RunConfig, check_memory
from experiments.methods.hyperparameters import rates_of
from experiments.support.cores import usable_cores
from experiments.support.errors import UserError
from experiments.support.memory import return_freed
from experiments.training import placement
from experiments.training.inputs import Inputs, Own, Shared
from experiments.training.one_seed import Trained, make_functions
from experiments.training.probes import step_sizes_of

Group = Sequence[RunConfig]
"""Runs that differ in ``rates_of`` only. One compiled program trains them
side by side: where others have S seeds, it has those of each run in turn."""


class Functions(NamedTuple):
    """A method's functions over all seeds, jitted, traced or compiled.

    Each is called with ``(state, shared, own)``; the training ones overwrite the state.
    """

    init: Any
    train_task: Any
    evaluate: Any
    train_part: Any = None
    look_ahead: Any = None
    """Both None unless probes are wanted and the method takes inner steps."""
    alignment: Any = None
    """None unless wanted, as is ``linear_probe``."""
    linear_probe: Any = None


@dataclasses.dataclass(frozen=True)
class Jitted:
    """A function, and shapes or arrays that it is compiled for."""

    fn: Any
    """From ``jax.jit``."""
    arguments: tuple[Any, Shared, Own]

    def trace(self) -> Any:
        """Traces the function."""
        return self.fn.trace(*self.arguments)


class Method(NamedTuple):
    """What there is to compile of a group."""

    functions: Functions
    """Of ``Jitted``."""
    own: Own
    """Seeds, streams and rates."""
    state: Any
    """Shapes and dtypes of the learner's state."""
    subject: Callable[[Any], Any]
    """What of a state is evaluated."""


def _own_rates(group: Group, mesh: Mesh) -> dict[str, jax.Array]:
    columns = [rates_of(config.hyper) for config in group for _ in config.seeds]
    return {
        name: placement.place_all(
            np.asarray([rates[name] for rates in columns], np.float32), mesh
        )
        for name in columns[0]
    }


def make_method(group: Group, inputs: Inputs) -> Method:
    """Builds a method's jitted functions, traced by nothing yet but for their shapes.

    Args:
        group: what to run.
        inputs: from ``inputs.place``; another ``platform`` than the mesh's gives what
            is lowered for that one.

    Returns:
        What ``group`` asks for.

    Raises:
        UserError: hyper-parameters that do not fit together.
        TypeError, ValueError: the same, found by the library.
    """
    mesh, platform, form, shared, own = inputs
    config = group[0]
    sharding = placement.by_seed(mesh)
    fns = make_functions(config, form, platform, mesh.shape[placement.ROW])

    def jitted(
        fn: Callable[[Shared, Own], Any],
        state: Any,
        shared: Shared,
        own: Own,
        **options: Any,
    ) -> Jitted:
        mapped = placement.over_seeds(fn, mesh, platform)
        whole = lambda state, shared, own: mapped(shared, own._replace(state=state))
        compiled = jax.jit(whole, out_shardings=sharding, **options)
        return Jitted(compiled, (state, shared, own))

    own = own._replace(rates=_own_rates(group, mesh))
    init = jitted(fns.init, None, shared, own)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(init.fn, *init.arguments),
    )
    alive = placement.place_all(np.ones(len(own.seed), bool), mesh)
    at_task = shared._replace(task=np.int32(0))
    at_batch = at_task._replace(first=np.int32(0))
    living = own._replace(is_alive=alive)
    wanted = shared._replace(wanted=np.ones(config.benchmark.num_tasks, bool))
    only_stream = Own(None, own.stream)
    found = Functions(
        init,
        jitted(fns.train_task, state, at_task, living, donate_argnums=0),
        jitted(fns.evaluate, fns.subject(state), wanted, only_stream),
    )
    if config.probes and step_sizes_of(state) is not None:
        found = found._replace(
            train_part=jitted(
                fns.train_part, state, at_batch, living, donate_argnums=0
            ),
            look_ahead=jitted(fns.look_ahead, state, at_batch, own),
        )
    if config.alignment:
        found = found._replace(
            alignment=jitted(fns.alignment, state, shared, only_stream)
        )
    if config.linear_probe:
        found = found._replace(
            linear_probe=jitted(
                fns.linear_probe, fns.subject(state), shared, only_stream
            )
        )
    return Method(found, own, state, fns.subject)


class Program(NamedTuple):
    """A group's compiled functions, on its inputs."""

    num_seeds: int
    """S of all runs of the group together, without padding."""
    compiled: Functions
    shared: Shared
    own: Own
    """Seeds, streams and rates."""
    state: Any
    """Shapes and dtypes of the learner's state."""
    subject: Callable[[Any], Any]
    """What of a state is evaluated."""
    compile_s: float
    """Wall time of tracing and compiling, seconds; the first method's includes what
    methods share."""

    def init(self) -> Any:
        """Returns the first state."""
        return self.compiled.init(None, self.shared, self.own)

    def train_task(self, state: Any, is_alive: jax.Array, task: int) -> Trained:
        """Trains on a task; ``state`` is gone."""
        shared = self.shared._replace(task=np.int32(task))
        own = self.own._replace(is_alive=is_alive)
        return self.compiled.train_task(state, shared, own)

    def train_part(
        self, state: Any, is_alive: jax.Array, task: int, first: int
    ) -> Trained:
        """Trains on the batches of a task from ``first`` on; ``state`` is gone."""
        shared = self.shared._replace(task=np.int32(task), first=np.int32(first))
        own = self.own._replace(is_alive=is_alive)
        return self.compiled.train_part(state, shared, own)

    def look_ahead(self, state: Any, task: int, index: int) -> Any:
        """Returns the weights after the inner steps on a batch."""
        shared = self.shared._replace(task=np.int32(task), first=np.int32(index))
        return self.compiled.look_ahead(state, shared, self.own)

    def evaluate(self, subject: Any, wanted: np.ndarray) -> Any:
        """Returns accuracies [S, T] of what is evaluated, and whether it is finite."""
        shared = self.shared._replace(wanted=wanted)
        return self.compiled.evaluate(subject, shared, Own(None, self.own.stream))

    def alignment(self, state: Any) -> jax.Array:
        """Returns cosines [S, T, T] between the gradients of the tasks' losses."""
        own = Own(None, self.own.stream)
        return self.compiled.alignment(state, self.shared, own)

    def linear_probe(self, subject: Any) -> jax.Array:
        """Returns accuracies [S, T] of a linear classifier on the last features."""
        own = Own(None, self.own.stream)
        return self.compiled.linear_probe(subject, self.shared, own)


def _form_of(evaluate: Jitted) -> str:
    """Says what is evaluated; methods for which it is the same share the program."""
    subject = evaluate.arguments[0]
    return f"{jax.tree.structure(subject)} {jax.tree.leaves(subject)}"


def _compile(traced: Any) -> Any:
    """Compiles a tree of traced functions, all at a time."""
    leaves, structure = jax.tree.flatten(traced)
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        made = list(pool.map(lambda each: each.lower().compile(), leaves))
    return jax.tree.unflatten(structure, made)


def compile_programs(groups: Sequence[Group], inputs: Inputs) -> Iterator[Program]:
    """Compiles the program of each group when it is asked for, ahead of its run.

    All are traced before the first is compiled, so that a mistake in any shows at
    once. What does not depend on the method is compiled once, beside the first. Later
    ones are not compiled beside a run, whose timings they would spoil.

    Args:
        groups: what to run, on one benchmark, each with the seeds of ``inputs``.
        inputs: from ``inputs.place``.

    Yields:
        One program per group.

    Raises:
        UserError: hyper-parameters that do not fit together.
    """
    for group in groups:
        check_memory(group[0], len(inputs.own.seed), inputs.form.image_shape)
    start = time.perf_counter()
    evaluations: dict[str, Any] = {}
    all_traced = []
    for group in groups:
        try:
            method = make_method(group, inputs)
            form = _form_of(method.functions.evaluate)
            if form not in evaluations:
                evaluations[form] = method.functions.evaluate.trace()
            others = method.functions._replace(evaluate=None)
            all_traced.append((method, form, jax.tree.map(Jitted.trace, others)))
        except (TypeError, ValueError) as error:
            raise UserError(f"method {group[0].method!r}: {error}") from error
    compiled: dict[str, Any] = {}
    for group, (method, form, traced) in zip(groups, all_traced, strict=True):
        if form not in compiled:
            done = _compile(traced._replace(evaluate=evaluations[form]))
            compiled[form] = done.evaluate
        else:
            done = _compile(traced)._replace(evaluate=compiled[form])
        return_freed()
        yield Program(
            sum(len(config.seeds) for config in group),
            done,
            inputs.shared,
            method.own,
            method.state,
            method.subject,
            time.perf_counter() - start,
        )
        start = time.perf_counter()
