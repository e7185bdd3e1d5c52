"""Costs of the reservoir by its capacity."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

import lamaml_jax as lm
from experiments.bench import timing
from experiments.bench.settings import Settings
from experiments.run_folder.measurements import Result

_ROW = jax.ShapeDtypeStruct((784,), jnp.float32)
_BATCH, _REPLAY = 10, 10
_CAPACITIES = (200, 5_000, 100_000)


def _work(capacity: int, num_seen: int, steps: int) -> Callable[[], jax.Array]:
    """Returns a call that replays from and adds to a reservoir ``steps`` times."""
    reservoir = lm.make_reservoir(capacity, _ROW)

    def run(
        state: lm.ReservoirState, key: jax.Array
    ) -> tuple[lm.ReservoirState, jax.Array]:
        def step(
            state: lm.ReservoirState, key: jax.Array
        ) -> tuple[lm.ReservoirState, jax.Array]:
            sample_key, add_key = jax.random.split(key)
            rows = jax.random.uniform(key, (_BATCH, *_ROW.shape))
            replayed, _, state = reservoir.sample_and_add(
                sample_key, add_key, state, _REPLAY, rows
            )
            return state, jnp.sum(replayed[:, 0])

        return jax.lax.scan(step, state, jax.random.split(key, steps))

    compiled = jax.jit(run, donate_argnums=0)
    empty = reservoir.init()
    held = [lm.ReservoirState(empty.rows, jnp.int32(num_seen))]

    def work() -> jax.Array:
        held[0], sums = compiled(held[0], jax.random.key(0))
        return sums

    return work


def measure(settings: Settings) -> Sequence[Result]:
    """Measures replaying 10 rows of 784 numbers and adding 10, in a compiled loop."""
    steps = 10 if settings.quick else 2_000
    capacities = (10, 100) if settings.quick else _CAPACITIES
    cases = [(c, n) for c in capacities for n in (0, 10**6)]
    timings = timing.alternate(
        {case: _work(*case, steps) for case in cases}, settings.rounds
    )
    rows = [
        {
            "capacity": capacity,
            "rows_offered_before": num_seen,
            "us_per_batch": 1e6
            * timing.median_wall_s(timings[capacity, num_seen])
            / steps,
            "over_first": timing.median_ratio(
                timings[capacity, num_seen], timings[cases[0]]
            ),
        }
        for capacity, num_seen in cases
    ]
    note = f"{_REPLAY} rows of {_ROW.shape[0]} numbers replayed, {_BATCH} added"
    return [Result("Reservoir: sample_and_add by capacity", rows, note)]
