"""What methods say they cost, against what their compiled programs do and keep."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import optax
import pytest
from problems import softmax_loss

from experiments import methods, run_folder
from experiments.config import presets
from experiments.methods.cost import bytes_of
from experiments.methods.problem import Problem
from experiments.report import old_costs
from experiments.run_folder import GRADIENT_EVALUATIONS, MEMORY_BYTES

# Square layers: a gradient of a row takes 6 * WIDTH**2 operations in each, and the
# first, which needs no gradient of its inputs, two thirds of it.
WIDTH, DEPTH, NUM_TASKS = 64, 8, 3


def logits_fn(weights, images):
    for matrix in weights:
        images = jnp.tanh(images @ matrix)
    return images


loss_fn = softmax_loss(logits_fn)
PROBLEM = Problem(
    loss_fn,
    {
        "image": jax.ShapeDtypeStruct((WIDTH,), jnp.float32),
        "label": jax.ShapeDtypeStruct((), jnp.int32),
        "task": jax.ShapeDtypeStruct((), jnp.int32),
    },
    logits_fn,
    num_tasks=NUM_TASKS,
    rows_per_task=300,
    num_classes=WIDTH,
    classes_per_task=WIDTH,
    head_fn=lambda weights: [True] * DEPTH,
)


def problem_of(name):
    """The problem, whose one task has all classes; heads are not masked by task."""
    shares_classes = methods.METHODS[name].needs_one_head
    return PROBLEM._replace(classes_per_task=None) if shares_classes else PROBLEM


def hyper_of(name, **overrides):
    (hyper,) = presets.resolve("fashion-mnist-split", [name])
    if hyper.inner_steps == 3:  # 10 rows in 3 inner batches are padded to 12
        overrides = {"inner_steps": 5} | overrides
    return dataclasses.replace(hyper, glances=1, **overrides)


def products(jaxpr):
    """Operations of all matrix products; a scan's count for each of its rounds."""
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        rounds = params["length"] if equation.primitive.name == "scan" else 1
        for value in params.values():
            for each in value if isinstance(value, tuple) else (value,):
                if hasattr(each, "eqns") or hasattr(each, "jaxpr"):
                    total += rounds * products(getattr(each, "jaxpr", each))
    return total


def weights():
    keys = jax.random.split(jax.random.key(0), DEPTH)
    return [jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5 for key in keys]


def measured(name, hyper):
    """Products of one batch, in gradients of a row, per row of the batch."""
    rows = {
        "image": jnp.ones((hyper.batch_size, WIDTH)),
        "label": jnp.zeros(hyper.batch_size, jnp.int32),
        "task": jnp.zeros(hyper.batch_size, jnp.int32),
    }
    learner = methods.make_learner(name, problem_of(name), hyper)
    state = learner.init(jax.random.key(0), weights())
    jaxpr = jax.make_jaxpr(learner.observe)(jax.random.key(1), state, rows)
    row = jax.tree.map(lambda x: x[:1], rows)
    one = jax.make_jaxpr(jax.grad(lambda w: loss_fn(w, row).sum()))(weights())
    return products(jaxpr.jaxpr) / products(one.jaxpr) / hyper.batch_size


# What is no gradient evaluation, in evaluations per row of the batch: DER++ takes the
# logits that it stores, a third of a gradient; MER sums squares by a product with ones,
# two operations per weight in each of 55 steps.
GRADIENT = (6 * DEPTH - 2) * WIDTH**2
BESIDE = {"derpp": 2 * DEPTH * WIDTH**2 / GRADIENT}
BESIDE["mer"] = 55 * 2 * DEPTH * WIDTH**2 / GRADIENT
# Passed forward only: MIR's candidates, at two weights; CLS-ER's replayed rows, at two
# averages, for their labels and for their logits.
BESIDE["mir"] = 2 * 50 / 10 * BESIDE["derpp"]
BESIDE["cls_er"] = 4 * BESIDE["derpp"]
# LOR mixes two gradients into four directions, and four into one, by products.
BESIDE["lor"] = (4 * 2 + 4) / 10 * BESIDE["derpp"]
# GEM's projection multiplies gradients with one another. POCL's program passes all rows
# for each task, most of them masked; test_successors.py has its count.
COUNTED = sorted(set(methods.METHODS) - {"gem", "pocl"})


@pytest.mark.parametrize("name", COUNTED)
def test_a_method_counts_the_gradients_of_its_program(name):
    hyper = hyper_of(name)
    cost = methods.METHODS[name].cost(PROBLEM, hyper)
    wanted = cost.gradient_evaluations / hyper.epochs + BESIDE.get(name, 0)
    if name == "ewc":  # outside of the batches
        wanted -= hyper.fisher_rows / PROBLEM.rows_per_task
    if hyper.first_order is False:  # inner steps are taken again in the backward pass
        wanted += hyper.mc_samples or 1
    # Inner products of gradients (alignment, A-GEM's) and second derivatives of the
    # first layer, which has no gradient of its inputs, come to at most 3 % here.
    assert measured(name, hyper) == pytest.approx(wanted, rel=0.035)


@pytest.mark.parametrize("name", ["lamaml", "la_er", "vrmcl"])
def test_second_order_costs_a_hessian_product_for_every_inner_row(name):
    count = methods.METHODS[name].cost
    first, second = (
        count(PROBLEM, hyper_of(name, first_order=order)).gradient_evaluations
        for order in (True, False)
    )
    assert second - first == pytest.approx(4 if name == "vrmcl" else 2)


def test_more_glances_epochs_and_replay_cost_in_proportion():
    count = methods.METHODS["er"].cost
    hyper = hyper_of("er", batch_size=10, replay_size=30, epochs=3)
    assert count(PROBLEM, hyper).gradient_evaluations == pytest.approx(12)
    hyper = dataclasses.replace(hyper, glances=5)
    assert count(PROBLEM, hyper).gradient_evaluations == pytest.approx(60)


def rows_kept(name, state):
    if name in ("gem", "agem"):
        return state.memory.rows
    if name == "icarl":
        return state.exemplars, state.task_rows.images, state.task_rows.labels
    if name == "ewc":
        return state.rows
    reservoir = optax.tree.get(state, "reservoir")
    return None if reservoir is None else reservoir.rows


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_counts_the_rows_that_it_keeps(name):
    hyper = hyper_of(name)
    learner = methods.make_learner(name, problem_of(name), hyper)
    state = jax.eval_shape(learner.init, jax.random.key(0), weights())
    expected = bytes_of(rows_kept(name, state))
    assert methods.METHODS[name].cost(PROBLEM, hyper).memory_bytes == expected


RESULTS = pathlib.Path(__file__).parents[2] / "experiments/results"


def test_the_cost_of_an_old_run_is_derived_from_its_configuration():
    run = run_folder.read(RESULTS / "mnist-rotations/lamaml")
    # Five glances of 10 inner rows and ten queries of 20 rows, per 10 rows; 200 rows of
    # 784 pixels, label and task, 4 bytes each.
    assert old_costs.derive(run.config) == {
        GRADIENT_EVALUATIONS: pytest.approx(5 * (10 + 10 * 20) / 10),
        MEMORY_BYTES: 200 * (784 + 2) * 4,
    }


def test_a_run_of_unknown_sizes_or_method_has_no_cost():
    config = run_folder.read(RESULTS / "mnist-rotations/lamaml").config
    assert old_costs.derive(config | {"source": "of a user"}) == {}
    assert old_costs.derive(config | {"method": "of a user"}) == {}
    assert old_costs.derive({k: v for k, v in config.items() if k != "stream"}) == {}
