"""What two compiled training programs do, which no busy machine can blur.

A stored figure is of one jax version and one kind of processor, whose compiler it
shows. After a change that moves it on purpose, ``python -m
tests.experiments.test_programs`` writes what is found now; the commit says why.
"""

import json
import pathlib
import platform
import re

import jax
import jax.numpy as jnp
import pytest

import lamaml_jax as lm
from experiments import methods
from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig
from experiments.methods import lookahead
from experiments.networks import Network, convolution_for
from experiments.training.inputs import DataForm
from experiments.training.problem import make_problem
from tests.compiling import compile_as_users_do

STORED = pathlib.Path(__file__).with_name("programs.json")
PROGRAMS = {
    "MNIST, first order": ("mnist-rotations", DataForm((784,), 10, 255)),
    "CIFAR-100, second order": ("cifar100-split", DataForm((32, 32, 3), 100, 255)),
}
NUM_BATCHES = 4
SHARE = 0.02
"""No figure has noise. A compiler may round an operation more or less in a program of
hundreds; what the guard is for, a step that is not unrolled or a copy of the weights in
a loop, moves one by a fifth and more."""


def _vectors():
    """The widest vectors that XLA may write for: it fuses and splits by them."""
    path = pathlib.Path("/proc/cpuinfo")
    flags = path.read_text() if path.exists() else ""
    return "AVX-512" if "avx512f" in flags else "other vectors"


ON = f"jax {jax.__version__}, {platform.machine()}, {_vectors()}"


def compile_training(name, **overrides):
    """Compiles La-MAML on a few batches of a benchmark, with its own sizes."""
    benchmark, form = PROGRAMS[name]
    (hyper,) = presets.resolve(benchmark, ["lamaml"], overrides)
    benchmark = benchmarks.get_benchmark(benchmark)
    config = RunConfig(benchmark, "lamaml", (0,), hyper)
    model = Network(
        benchmark.hidden,
        form.num_classes,
        benchmark.channels,
        hyper.initializer,
        convolve=convolution_for("cpu"),
    )
    problem = make_problem(config, form, model.apply)
    learner = methods.make_learner("lamaml", problem, hyper)
    key = jax.random.key(0)
    rows = jnp.zeros((1, *form.image_shape))
    state = jax.eval_shape(lambda key: learner.init(key, model.init(key, rows)), key)
    batches = jax.tree.map(
        lambda row: jax.ShapeDtypeStruct(
            (NUM_BATCHES, hyper.batch_size, *row.shape), row.dtype
        ),
        problem.example,
    )

    def train(key, state, batches):
        return lm.observe_stream(learner, key, state, batches)

    lowered = jax.jit(train, donate_argnums=1).lower(key, state, batches)
    return compile_as_users_do(lowered)


def measure(program):
    """Counts what is done; what stands in a loop counts once.

    Returns:
        Operations; bytes that they read and write; bytes of temporaries; fused
        operations; copies of arrays as large as a layer's weights.
    """
    text, costs = program.as_text(), program.cost_analysis()
    copies = re.findall(r" = f32\[([\d,]+)\]\S* copy\(", text)
    sizes = [jnp.prod(jnp.array([int(n) for n in c.split(",")])) for c in copies]
    return {
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "fusions": len(re.findall(r" fusion\(", text)),
        "copies": sum(int(size) >= 1000 for size in sizes),
    }


def moved(expected, found):
    """Names the figures that are not within ``SHARE`` of what was stored."""
    return {
        name: (value, found[name])
        for name, value in expected.items()
        if abs(found[name] - value) > SHARE * value
    }


@pytest.fixture
def stored():
    figures = json.loads(STORED.read_text())
    if jax.default_backend() != "cpu" or ON not in figures:
        pytest.skip(f"programs are stored for {', '.join(figures)} on CPUs, not {ON}")
    return figures[ON]


@pytest.mark.slow
def test_first_order_does_what_it_did_when_it_was_measured(stored):
    name = "MNIST, first order"
    assert not moved(stored[name], measure(compile_training(name)))


@pytest.mark.slow
def test_second_order_does_what_it_did_when_it_was_measured(stored):
    name = "CIFAR-100, second order"
    assert not moved(stored[name], measure(compile_training(name)))


@pytest.mark.slow
def test_a_loop_over_the_inner_steps_is_noticed(stored, monkeypatch):
    monkeypatch.setattr(lookahead, "make_unroll", lambda problem, hyper: 1)
    name = "MNIST, first order"
    found = moved(stored[name], measure(compile_training(name)))
    assert {"flops", "bytes", "fusions"} <= found.keys()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cifar100-split", 5), ("cifar100-online", None), ("mnist-rotations", None)],
)
def test_inner_steps_of_few_convolutions_alone_are_unrolled(name, expected):
    (hyper,) = presets.resolve(name, ["lamaml"], {})
    config = RunConfig(benchmarks.get_benchmark(name), "lamaml", (0,), hyper)
    problem = make_problem(config, DataForm((32, 32, 3), 100, 255))
    assert lookahead.make_unroll(problem, hyper) == expected


def test_what_the_guard_is_for_moves_a_figure():
    figures = {"flops": 100.0, "bytes": 100.0, "copies": 0}
    assert not moved(figures, {"flops": 101.9, "bytes": 98.1, "copies": 0})
    worse = {"flops": 97.9, "bytes": 102.1, "copies": 1}
    assert moved(figures, worse).keys() == worse.keys()


if __name__ == "__main__":
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    stored[ON] = {name: measure(compile_training(name)) for name in PROGRAMS}
    STORED.write_text(json.dumps(stored, indent=1) + "\n")
