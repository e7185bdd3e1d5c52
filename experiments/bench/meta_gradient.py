"""Ways to take a meta-gradient: time and compiled memory."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lamaml_jax as lm
from experiments.bench import timing
from experiments.bench.settings import Settings
from experiments.config import benchmarks
from experiments.networks import Network, convolution_for
from experiments.run_folder.measurements import Result

_PIXELS, _CLASSES, _QUERY = 784, 10, 20
_PERCEPTRONS = {"32": (32,), "100x100": (100, 100), "512x512": (512, 512)}
_CONVOLUTIONS = "tinyimagenet-split"
_STEPS = (1, 5, 10, 32, 100)
_BATCHES = (1, 256)
_TARGET_S = 0.1
_TITLES = (
    "Meta-gradients: milliseconds",
    "Meta-gradients: time over that of reverse",
    "Meta-gradients: temporary memory over the size of the weights",
)
_FIRST = {"first_order": True}
_MODES: dict[str, dict[str, Any]] = {
    "reverse": {"inner_ad": "reverse"},
    "sqrt": {"inner_ad": "reverse", "remat": "sqrt"},
    "no_remat": {"inner_ad": "reverse", "remat": False},
    "forward": {"inner_ad": "forward_over_reverse"},
    "first_order": _FIRST,
    "first_order_1": {"unroll": 1, **_FIRST},
    "first_order_5": {"unroll": 5, **_FIRST},
}
_NOTE = (
    f"{_PIXELS} inputs (convolutions: 64x64x3), {_CLASSES} classes, {_QUERY} query "
    "rows; rows: of the support in each inner step. reverse: the default; sqrt: "
    "remat='sqrt'; no_remat: remat=False; forward: forward_over_reverse. first_order: "
    "one forward scan; first_order_1, first_order_5: with that unroll."
)


class _Case(NamedTuple):
    network: str
    inner_steps: int
    rows: int


def _network(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Builds a network, and returns the shape of its inputs too."""
    if name in _PERCEPTRONS:
        return Network(_PERCEPTRONS[name], _CLASSES), (_PIXELS,)
    benchmark = benchmarks.get_benchmark(name)
    convolve = convolution_for(jax.default_backend())
    model = Network(benchmark.hidden, _CLASSES, benchmark.channels, convolve=convolve)
    return model, (64, 64, 3)


def _compiled(
    case: _Case, options: dict[str, Any], repeats: int
) -> tuple[jax.stages.Compiled, tuple[Any, ...]]:
    """Compiles a chain of meta-gradients, and returns its arguments too."""
    model, image_shape = _network(case.network)
    rng = np.random.default_rng(0)

    def rows(*shape: int) -> tuple[jax.Array, jax.Array]:
        images = rng.uniform(size=(*shape, *image_shape)).astype(np.float32)
        return jnp.asarray(images), jnp.asarray(rng.integers(0, _CLASSES, shape))

    support, query = rows(case.inner_steps, case.rows), rows(_QUERY)
    weights = model.init(jax.random.key(0), support[0][0])
    params = lm.MetaParams(weights, optax.tree.full_like(weights, 0.05))

    def loss_fn(weights: Any, batch: Any, **_: Any) -> jax.Array:
        images, labels = batch
        logits = jnp.asarray(model.apply(weights, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    value_and_grad = lm.meta_value_and_grad(loss_fn, **options)

    @functools.partial(jax.jit, static_argnums=0)
    def chain(
        repeats: int, params: lm.MetaParams, support: Any, query: Any
    ) -> lm.MetaParams:
        def step(params: lm.MetaParams, nothing: None) -> tuple[lm.MetaParams, None]:
            _, grads = value_and_grad(params, support, query)
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), None

        return jax.lax.scan(step, params, None, length=repeats)[0]

    arguments = params, support, query
    return chain.lower(repeats, *arguments).compile(), arguments


def _measure_case(
    case: _Case, settings: Settings
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Returns milliseconds, ratios of time and of memory, by mode."""
    works, memory = {}, {}
    compiled, arguments = _compiled(case, _MODES["reverse"], 1)
    compiled(*arguments)
    once = timing.timed(lambda: compiled(*arguments)).wall_s
    repeats = 1 if settings.quick else max(1, round(_TARGET_S / once))
    for name, options in _MODES.items():
        single, arguments = _compiled(case, options, 1)
        sizes = single.memory_analysis()
        assert sizes is not None, "every backend tells"
        memory[name] = sizes.temp_size_in_bytes
        chain = single if repeats == 1 else _compiled(case, options, repeats)[0]
        works[name] = functools.partial(chain, *arguments)
    timings = timing.alternate(works, settings.rounds)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(arguments[0].weights))
    head = case._asdict()
    milliseconds = {
        name: 1e3 * timing.median_wall_s(timings[name]) / repeats for name in _MODES
    }
    ratios = {
        name: timing.median_ratio(timings[name], timings["reverse"]) for name in _MODES
    }
    weights = {name: memory[name] / size for name in _MODES}
    return head | milliseconds, head | ratios, head | weights


def measure(settings: Settings) -> Sequence[Result]:
    """Measures every mode on three perceptrons and on Tiny ImageNet's convolutions.

    Times are of meta-gradients in a loop, modes in turn; memory is what the compiled
    program of a single one asks for beside its arguments and results.
    """
    largest_first = itertools.product(
        reversed(_PERCEPTRONS), reversed(_STEPS), _BATCHES
    )
    cases = [_Case(_CONVOLUTIONS, 5, 2), *(_Case(*sizes) for sizes in largest_first)]
    if settings.quick:
        cases = [_Case("32", 3, 2)]
    rows: dict[str, list[dict[str, Any]]] = {title: [] for title in _TITLES}
    for case in cases:
        for title, row in zip(_TITLES, _measure_case(case, settings), strict=True):
            rows[title].append(row)
        settings.keep([Result(title, list(rows[title]), _NOTE) for title in _TITLES])
    return [Result(title, rows[title], _NOTE) for title in _TITLES]
