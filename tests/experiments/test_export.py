"""What is compiled here runs elsewhere: other platforms, other processes."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import logistic_loss
from processes import ROOT, said

import lamaml_jax as lm
from experiments import methods
from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig
from experiments.training import placement
from experiments.training.inputs import place
from experiments.training.programs import make_method

# All but er, which is a quick test, and icarl, which needs classes of its own.
METHODS = sorted(set(methods.METHODS) - {"er", "icarl"})


def small_inputs(name, data=None, **sizes):
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark(name), num_tasks=2, rows_per_task=20, **sizes
    )
    data = benchmarks.load(benchmark, (0, 1)) if data is None else data(benchmark)
    inputs = place(data, (0, 1), placement.make_mesh(1))
    return benchmark, inputs._replace(platform="tpu")


def lower(benchmark, method, inputs, **options):
    (hyper,) = presets.resolve(benchmark.name, [method], {})
    config = RunConfig(benchmark, method, (0, 1), hyper, **options)
    train = make_method([config], inputs).functions.train_task
    return jax.export.export(train.fn, platforms=["tpu", "cuda"])(*train.arguments)


@pytest.mark.parametrize(
    "method", ["er", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS)]
)
def test_training_is_lowered_for_tpu_and_cuda(method):
    benchmark, inputs = small_inputs("digits-rotations")
    exported = lower(benchmark, method, inputs)
    assert exported.platforms == ("tpu", "cuda")
    assert "stablehlo.while" in exported.mlir_module()


def split(benchmark):
    rng = np.random.default_rng(0)
    labels = np.arange(400, dtype=np.int32) % 10
    source = benchmarks.sources.Source(
        rng.integers(0, 256, (400, 32, 32, 3), np.uint8),
        labels,
        rng.integers(0, 256, (100, 32, 32, 3), np.uint8),
        labels[:100],
        num_classes=10,
        max_value=255,
    )
    return benchmarks.draw(benchmark, source, (0, 1))


@pytest.mark.slow
def test_convolutions_are_those_of_the_platform_lowered_for():
    benchmark, inputs = small_inputs("cifar100-split", split)
    text = lower(benchmark, "lamaml", inputs, precision="bfloat16").mlir_module()
    assert "stablehlo.convolution" in text and "bf16" in text
    for platform in ("cpu", "gpu"):
        other = inputs._replace(platform=platform)
        text = lower(benchmark, "lamaml", other).mlir_module()
        assert "stablehlo.convolution" not in text, platform


LOADER = """
import sys
import jax
import numpy as np
with open(sys.argv[1], "rb") as file:
    update = jax.export.deserialize(bytearray(file.read()))
with np.load(sys.argv[2]) as file:
    leaves = [file[name] for name in file.files]
np.savez(sys.argv[3], *update.call(*leaves))
assert "lamaml_jax" not in sys.modules
"""


@pytest.mark.slow
def test_an_exported_update_runs_in_another_process(tmp_path):
    tx = lm.lamaml(
        logistic_loss,
        step_size_init=0.1,
        step_size_learning_rate=0.2,
        inner_steps=2,
        reservoir=lm.make_reservoir(
            8,
            (
                jax.ShapeDtypeStruct((3,), jnp.float32),
                jax.ShapeDtypeStruct((), jnp.float32),
            ),
        ),
        replay_size=3,
    )
    rng = np.random.default_rng(0)
    weights = {"w": jnp.asarray(rng.normal(size=3), jnp.float32)}
    batch = (
        jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
        jnp.asarray(rng.choice([-1.0, 1.0], 4), jnp.float32),
    )

    def update(seed, weights, state, batch):
        zeros = optax.tree.zeros_like(weights)
        updates, state = tx.update(
            zeros, state, weights, batch=batch, key=jax.random.key(seed)
        )
        return optax.apply_updates(weights, updates), state

    # An artifact holds arrays, not this library's tuples: it takes and returns leaves.
    arguments = (jnp.uint32(5), weights, tx.init(weights), batch)
    leaves, tree = jax.tree.flatten(arguments)

    def on_leaves(*leaves):
        return jax.tree.leaves(update(*jax.tree.unflatten(tree, leaves)))

    exported = jax.export.export(jax.jit(on_leaves), platforms=["cpu", "tpu", "cuda"])
    (tmp_path / "update").write_bytes(exported(*leaves).serialize())
    np.savez(tmp_path / "in.npz", *leaves)
    files = [str(tmp_path / name) for name in ("update", "in.npz", "out.npz")]
    said([sys.executable, "-c", LOADER, *files], ROOT, ROOT)
    with np.load(tmp_path / "out.npz") as file:
        found = [file[name] for name in file.files]
    expected = jax.tree.leaves(jax.jit(update)(*arguments))
    assert len(found) == len(expected)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
