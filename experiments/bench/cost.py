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
_CPU_LIMIT_MIB = 4096
_LEAST_S = 0.2
"""Of one timed stretch."""
_GRAINS: dict[str, Callable[[Any], Any]] = {
    "weight": lambda weights: optax.tree.full_like(weights, 0.01),
    "leaf": lambda weights: jax.tree.map(lambda _: jnp.full((), 0.01), weights),
}
"""Step sizes by what has a rate of its own."""
_NOTE = (
    f"perceptrons of two equal hidden layers on {_PIXELS} inputs; {_ROWS} rows in each "
    "inner step; ms of processor time on a CPU, else of wall time. MiB: all that the "
    "compiled update holds, its arguments (weights and step sizes), which its results "
    "replace, and temporaries; over_weights: as a multiple of the size of the weights. "
    f"No time: would need more than {_CPU_LIMIT_MIB} MiB, on an accelerator more than "
    "nine tenths of what it lends, and is compiled only."
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
_LARGE_CASES = (
    *(_Case(9_600, inner_steps=count, rates="leaf") for count in (1, 10, 32, 100)),
    *(_Case(n, rates="leaf") for n in (20_000, 40_000, 48_000, 56_000, 70_000)),
)
"""Before the others on an accelerator: 1e8 weights, then 0.42 to 5e9 of them."""


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


def _limit_mib() -> float:
    """Programs that ask for more are compiled and not run."""
    memory = jax.devices()[0].memory_stats() or {}  # a CPU tells nothing
    lent = memory.get("bytes_limit")
    return 0.9 * lent / _MIB if lent else _CPU_LIMIT_MIB


def _milliseconds(work: Callable[[], Any], settings: Settings) -> float:
    """The median of one meta-update."""
    on_cpu = jax.default_backend() == "cpu"
    jax.block_until_ready(work())
    once = timing.timed(work)
    repeats = max(1, round(_LEAST_S / (once.cpu_s if on_cpu else once.wall_s)))
    if settings.quick:
        repeats = 1
    chain = lambda: [work() for _ in range(repeats)][-1]
    timings = timing.alternate({"": chain}, settings.rounds)[""]
    median_s = timing.median_cpu_s if on_cpu else timing.median_wall_s
    return 1e3 * median_s(timings) / repeats


def _measure_case(case: _Case, settings: Settings) -> dict[str, Any]:
    """A line of the table."""
    num_weights = case.width * (_PIXELS + case.width + _CLASSES + 2) + _CLASSES
    row = {"weights": num_weights, **case._asdict()}
    del row["width"]
    for order, first_order in (("first", True), ("second", False)):
        work, mib = _compiled(case, first_order)
        fits = mib <= _limit_mib()
        row |= {
            f"{order}_order_ms": _milliseconds(work, settings) if fits else None,
            f"{order}_order_mib": mib,
            f"{order}_order_over_weights": mib * _MIB / (4 * num_weights),
        }
        del work  # and with it weights that two programs may have no room for
    return row


def measure(settings: Settings) -> Sequence[Result]:
    """Measures La-MAML's update by its weights, rates, inner steps and query rows."""
    cases = _CASES if jax.default_backend() == "cpu" else (*_LARGE_CASES, *_CASES)
    if settings.quick:
        cases = (_Case(20, 2, 3),)
    rows = []
    for case in cases:
        rows.append(_measure_case(case, settings))
        settings.keep([Result("Costs of a meta-update", list(rows), _NOTE)])
    return [Result("Costs of a meta-update", rows, _NOTE)]
