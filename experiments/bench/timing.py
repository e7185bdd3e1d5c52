"""Clocks: alternating rounds in one process, and this machine's own rates."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_MATMUL_SIZE = 1024
_MATMULS = 40
_COPY_BYTES = 1 << 28
_COPIES = 4


class Timing(NamedTuple):
    """One timed stretch of work, seconds."""

    wall_s: float
    cpu_s: float
    """Of all threads."""


def timed(work: Callable[[], Any]) -> Timing:
    """Times ``work`` until what it returns is ready."""
    wall, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(work())
    return Timing(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(
    works: Mapping[Any, Callable[[], Any]], rounds: int
) -> dict[Any, list[Timing]]:
    """Times several works in turn, so that a slow spell of the machine hits all.

    Args:
        works: by any name; each is called ``rounds + 1`` times.
        rounds: how many calls are counted; the first is not.

    Returns:
        ``rounds`` timings of each.
    """
    timings: dict[Any, list[Timing]] = {name: [] for name in works}
    for count in range(rounds + 1):
        for name, work in works.items():
            timing = timed(work)
            if count:
                timings[name].append(timing)
    return timings


def median_wall_s(timings: Sequence[Timing]) -> float:
    """Median wall time, seconds."""
    return statistics.median(timing.wall_s for timing in timings)


def median_cpu_s(timings: Sequence[Timing]) -> float:
    """Median processor time, seconds."""
    return statistics.median(timing.cpu_s for timing in timings)


def median_ratio(numerator: Sequence[Timing], denominator: Sequence[Timing]) -> float:
    """Median over rounds of the ratio of two works' wall times."""
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(first.wall_s / second.wall_s for first, second in pairs)


class Rate(NamedTuple):
    """A work of known size, by which others are measured."""

    work: Callable[[], Any]
    amount: float
    """Floating-point operations or bytes of one call."""


def matmul_rate(size: int = _MATMUL_SIZE, precision: str = "default") -> Rate:
    """Chained float32 matrix products on the first device; amount in operations.

    Args:
        size: rows and columns; a card needs larger ones than a core to be busy.
        precision: as of ``jax.default_matmul_precision``; what a card's default makes
            of float32 is fewer bits than ``"highest"``.
    """
    matrix = np.random.default_rng(0).normal(size=(size, size)) / size
    matrix = jnp.asarray(matrix, jnp.float32)

    @jax.jit
    def chain(x: jax.Array) -> jax.Array:
        multiply = lambda _, y: jnp.matmul(y, matrix, precision=precision)
        return jax.lax.fori_loop(0, _MATMULS, multiply, x)

    return Rate(lambda: chain(matrix), _MATMULS * 2.0 * size**3)


def copy_rate(num_bytes: int = _COPY_BYTES) -> Rate:
    """Repeated negation of an array in place; amount in bytes read and written.

    Args:
        num_bytes: size of the array; small ones stay in a cache.
    """
    repeats = _COPIES * max(1, _COPY_BYTES // num_bytes)
    array = jnp.ones(num_bytes // 4, jnp.float32)

    @jax.jit
    def chain(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, lambda _, y: -y, x)

    return Rate(lambda: chain(array), repeats * 2.0 * num_bytes)
