"""The main jobs against loops of Python lists that share none of their code."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import published_loop_images as images_loop
import pytest
from published_loop import run as run_loop

import lamaml_jax as lm
from experiments.config import benchmarks, presets
from experiments.config.run_config import RunConfig
from experiments.networks import Network, convolve_by_matmul
from experiments.training import loop, placement
from experiments.training.inputs import DataForm, place
from experiments.training.problem import make_problem
from experiments.training.programs import compile_programs

SEEDS = (0, 1, 2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lamaml", "online"])
def test_retained_accuracy_is_that_of_a_plain_loop(method):
    """Same streams, other initial weights, shuffles and replayed rows.

    A run's RA has a standard deviation of about 0.04 (Online) or 0.02 and its LA of
    0.015, so the bounds are some three standard errors of the difference of two means
    of four. Without its replay La-MAML retains 0.2 less.
    """
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark("digits-rotations"), num_tasks=8
    )
    (hyper,) = presets.resolve(benchmark.name, [method])
    config = RunConfig(benchmark, method, SEEDS, hyper)
    data = benchmarks.load(benchmark, SEEDS)
    inputs = place(data, SEEDS, placement.make_mesh(1))
    (program,) = compile_programs([[config]], inputs)
    matrix = np.stack([r.accuracy for r in loop.train(config, program, inputs)], 1)
    matrix = matrix[:, 1:]
    learnt = np.diagonal(matrix, axis1=1, axis2=2).mean()
    expected = np.array(
        [
            run_loop(data, i, benchmark.hidden, hyper=hyper, seed=seed)
            for i, seed in enumerate(SEEDS)
        ]
    )
    retained = matrix[:, -1].mean()
    assert retained == pytest.approx(expected[:, 0].mean(), abs=0.07)
    assert learnt == pytest.approx(expected[:, 1].mean(), abs=0.03)


@pytest.mark.slow
def test_the_loop_on_images_has_the_same_meta_gradient():
    """Second order, clipped inner steps, queries of two tasks, float32.

    Both sum some hundred products per number, in another order; relative to a leaf's
    largest number that is some units of 6e-8 per layer.
    """
    benchmark = dataclasses.replace(
        benchmarks.get_benchmark("cifar100-split"), channels=(4, 6), hidden=(8,)
    )
    (hyper,) = presets.resolve(benchmark.name, ["lamaml"])
    hyper = dataclasses.replace(hyper, inner_clip=0.05, step_size_init=0.2)
    form = DataForm((8, 8, 3), 100, 255)
    model = Network(benchmark.hidden, 100, benchmark.channels, "kaiming", None)
    model = model.clone(convolve=convolve_by_matmul)
    problem = make_problem(
        RunConfig(benchmark, "lamaml", (0,), hyper), form, model.apply
    )
    rng = np.random.default_rng(5)
    sizes = images_loop.sizes_of(8, benchmark.channels, benchmark.hidden, 100)
    weights = images_loop.initial_weights(rng, sizes)
    names = ("Conv_0", "Conv_1", "Dense_0", "Dense_1")
    as_tree = lambda leaves: {
        "params": {
            name: {"kernel": leaves[2 * n], "bias": leaves[2 * n + 1]}
            for n, name in enumerate(names)
        }
    }
    images = rng.normal(size=(20, 8, 8, 3)).astype(np.float32)
    tasks = np.repeat([3, 7], 10)
    labels = 5 * tasks + rng.integers(0, 5, size=20)
    rows = {"image": images, "label": labels, "task": tasks}
    query = jax.tree.map(jnp.asarray, rows)
    support = jax.tree.map(lambda x: x[10:].reshape(5, 2, *x.shape[1:]), query)
    step_sizes = [np.full_like(w, hyper.step_size_init) for w in weights]
    meta_grad = lm.meta_value_and_grad(
        problem.loss_fn, first_order=False, rectify=False, clip=hyper.inner_clip
    )
    params = lm.MetaParams(as_tree(weights), as_tree(step_sizes))
    _, grads = jax.jit(meta_grad)(params, support, query)

    pairs = np.stack([labels, tasks], axis=1)
    parts = [slice(10 + 2 * k, 12 + 2 * k) for k in range(5)]
    found = images_loop.META_GRADIENT(
        weights,
        step_sizes,
        [(images[part], pairs[part]) for part in parts],
        (images, pairs),
        inner_clip=hyper.inner_clip,
        per_task=5,
    )
    for actual, expected in zip(found, grads, strict=True):
        for one, other in zip(actual, listed(expected), strict=True):
            scale = np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)


def listed(tree):
    """Kernel and bias of every layer, in the order of the loop's list."""
    layers = tree["params"]
    return [layers[name][part] for name in layers for part in ("kernel", "bias")]
