"""What a whole meta-update costs in time and memory, to plan with."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lamaml_jax as lm
from experiments.bench import timing
from experiments.bench.settings import Settings
from experiments.networks import Network
from experiments.run_folder.measurements import Result

_PIXELS, _CLASSES, _ROWS = 784, 10, 2
_MIB = 2**20
_LIMIT_MIB = 4096
"""Programs that ask for more are compiled and not run."""
_LEAST_S = 0.2
"""Of one timed stretch."""
_GRAINS: dict[str, Callable[[Any], Any]] = {
    "weight": lambda weights: optax.tree.full_like(weights, 0.01),
    "leaf": lambda weights: jax.tree.map(lambda _: jnp.full((), 0.01), weights),
}
"""Step sizes by what has a rate of its own."""
_NOTE = (
    f"perceptrons of two equal hidden layers on {_PIXELS} inputs; {_ROWS} rows in each "
    "inner step; ms of processor time. MiB: all that the compiled update holds, its "
    "arguments (weights and step sizes), which its results replace, and temporaries; "
    "over_weights: as a multiple of the size of the weights. No time: would need "
    f"more than {_LIMIT_MIB} MiB, and is compiled only."
)


class _Case(NamedTuple):
    width: int
    inner_steps: int = 5
    query_rows: int = 20
    rates: str = "weight"
    """Key of ``_GRAINS``."""


_WIDTHS = (100, 700, 2_800, 9_600)
"""Of 0.09, 1.05, 10.1 and 99.8 million weights."""
_CASES = (
    *(_Case(width, rates=rates) for width in _WIDTHS for rates in _GRAINS),
    *(_Case(700, inner_steps=count) for count in (1, 10, 32)),
    *(_Case(700, query_rows=count) for count in (100, 1_000)),
)


class _Program(NamedTuple):
    work: Callable[[], Any]
    """One meta-update, the state going on from call to call."""
    mib: float


def _compiled(case: _Case, first_order: bool) -> _Program:
    model = Network((case.width, case.width), _CLASSES)
    rng = np.random.default_rng(0)

    def rows(*shape: int) -> tuple[jax.Array, jax.Array]:
        images = rng.uniform(size=(*shape, _PIXELS)).astype(np.float32)
        return jnp.asarray(images), jnp.asarray(rng.integers(0, _CLASSES, shape))

    def loss_fn(weights: Any, batch: Any) -> jax.Array:
        images, labels = batch
        logits: Any = model.apply(weights, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    tx = lm.lamaml(
        loss_fn,
        step_size_init=_GRAINS[case.rates],
        inner_steps=case.inner_steps,
        first_order=first_order,
    )
    support, query = rows(case.inner_steps, _ROWS), rows(case.query_rows)

    def init(key):
        weights = model.init(key, query[0][:1])
        return weights, tx.init(weights)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(held, support, query):
        weights, state = held
        zeros = optax.tree.zeros_like(weights)
        updates, state = tx.update(zeros, state, weights, support=support, query=query)
        return optax.apply_updates(weights, updates), state

    key = jax.random.key(0)
    program = update.lower(jax.eval_shape(init, key), support, query).compile()
    memory: Any = program.memory_analysis()
    mib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / _MIB
    held: list[Any] = []

    def work():
        held[:] = [program(held.pop() if held else jax.jit(init)(key), support, query)]
        return held[0]

    return _Program(work, mib)


def _measure_case(case: _Case, settings: Settings) -> dict[str, Any]:
    """A line of the table."""
    num_weights = case.width * (_PIXELS + case.width + _CLASSES + 2) + _CLASSES
    row = {"weights": num_weights, **case._asdict()}
    del row["width"]
    for order, first_order in (("first", True), ("second", False)):
        work, mib = _compiled(case, first_order)
        milliseconds = None
        if mib <= _LIMIT_MIB:
            jax.block_until_ready(work())
            once = timing.timed(work).cpu_s
            repeats = 1 if settings.quick else max(1, round(_LEAST_S / once))
            chain = lambda work=work, n=repeats: [work() for _ in range(n)][-1]
            timings = timing.alternate({"": chain}, settings.rounds)[""]
            milliseconds = 1e3 * timing.median_cpu_s(timings) / repeats
        row |= {
            f"{order}_order_ms": milliseconds,
            f"{order}_order_mib": mib,
            f"{order}_order_over_weights": mib * _MIB / (4 * num_weights),
        }
    return row


def measure(settings: Settings) -> Sequence[Result]:
    """Measures La-MAML's update by its weights, rates, inner steps and query rows."""
    cases = [_Case(20, 2, 3)] if settings.quick else _CASES
    rows = []
    for case in cases:
        rows.append(_measure_case(case, settings))
        settings.keep([Result("Costs of a meta-update", list(rows), _NOTE)])
    return [Result("Costs of a meta-update", rows, _NOTE)]
