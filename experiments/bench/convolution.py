"""Two ways to write a convolution on a CPU, in turn."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import networks
from experiments.bench import timing
from experiments.bench.settings import Settings
from experiments.run_folder.measurements import Result

_CHAIN = 8
_PADDING = ((1, 1), (1, 1))
_NOTE = (
    "3x3 kernels with padding 1: the convolution, and its gradients with "
    f"respect to images and kernel, {_CHAIN} times one after the other. ratio: the "
    "median over rounds of fewer products' time over that of one product over patches; "
    "used: whether convolve_by_fewer_products takes this size so of itself."
)


class _Case(NamedTuple):
    rows: int
    size: int
    """Rows and columns of the image."""
    channels: int
    out_channels: int = 160
    stride: int = 2


_CASES = (
    *(_Case(20, size, 160) for size in (32, 16, 8)),
    *(_Case(2, size, 160) for size in (32, 16, 8)),
    _Case(20, 16, 40, 80),
    _Case(20, 32, 20, 40),
    _Case(20, 32, 3),
    # Of the reduced ResNet-18
    *(
        _Case(rows, size, channels, channels, 1)
        for rows in (20, 2)
        for size, channels in ((32, 20), (16, 40), (8, 80), (4, 160))
    ),
    _Case(20, 32, 3, 20, 1),
)


def _work(case: _Case, always: bool) -> Callable[[], Any]:
    """The chain of one way: by fewer products, or by one."""
    convolve = networks.fewer_products if always else networks.convolve_by_matmul
    strides = (case.stride, case.stride)
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    images = normal(case.rows, case.size, case.size, case.channels)
    kernel = normal(3, 3, case.channels, case.out_channels) / (9 * case.channels) ** 0.5

    def loss(images, kernel):
        return jnp.sum(jnp.square(convolve(images, kernel, strides, _PADDING)))

    @jax.jit
    def chain(images, kernel):
        def step(_, at):
            # Each depends on the one before, or patches would be made once
            grads = jax.grad(loss, (0, 1))(*at)
            return jax.tree.map(lambda x, g: x - 1e-9 * g, at, grads)

        return jax.lax.fori_loop(0, _CHAIN, step, (images, kernel))

    return lambda: chain(images, kernel)


def measure(settings: Settings) -> Sequence[Result]:
    """Measures both on the sizes of the image and the online benchmarks' networks."""
    rows = []
    for case in [_Case(2, 4, 3, 4)] if settings.quick else _CASES:
        works = {always: _work(case, always) for always in (False, True)}
        timings = timing.alternate(works, settings.rounds)
        one, few = (1e3 * timing.median_cpu_s(timings[w]) / _CHAIN for w in works)
        positions = case.rows * (case.size // case.stride) ** 2
        rows.append(
            {
                **case._asdict(),
                "one_product_ms": one,
                "fewer_products_ms": few,
                "ratio": timing.median_ratio(timings[True], timings[False]),
                "used": str(networks.is_worth_fewer(positions, case.channels)),
            }
        )
    return [Result("Convolutions: 16 or 25 products in the place of 36", rows, _NOTE)]
