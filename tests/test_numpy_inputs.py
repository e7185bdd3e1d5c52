"""Numpy arguments give what jax arrays give: outside jit, under it, and closed over.

Traced indices into a numpy array are an error of jax, which a function meets outside
jit once it has a loop inside, and under jit on data that are closed over.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamaml_jax as lm

pytestmark = pytest.mark.usefixtures("strict_dtypes")

KEY, OTHER_KEY = jax.random.split(jax.random.key(0))
# Of numpy's default types, float64 and int64, as a data set in numpy is.
NUMBERS = np.linspace(-1, 1, 8)
ROWS = {"x": NUMBERS.reshape(4, 2), "y": np.array([0, 1, 1, 0])}
OLD = {"x": NUMBERS[:6].reshape(3, 2), "y": np.array([1, 0, 1])}
MASK = np.array([True, False, True, True])
TASKS = {"x": NUMBERS.reshape(2, 2, 2), "y": np.array([[0, 1], [1, 0]])}
LOGITS = NUMBERS.reshape(2, 4)
ACCURACY = np.array([[0.9, 0.2], [0.6, 0.8]])
ALONG = ACCURACY, np.array([0, 1])
GRADS = lm.MetaParams({"w": NUMBERS * 9}, {"w": NUMBERS})
EXAMPLE = {"x": NUMBERS[:2], "y": np.arange(2)[0]}
MEMORIES = {
    "reservoir": lm.make_reservoir(3, EXAMPLE),
    "balanced": lm.make_balanced_reservoir(
        3, EXAMPLE, num_classes=2, label_fn=lambda rows: rows["y"]
    ),
}


def loss_fn(weights, batch):
    """Looks rows up in its weights, as an embedding does."""
    return weights["w"][batch["y"]] * jnp.sum(batch["x"], axis=-1)


WEIGHTS = {"w": np.array([0.5, -1.0])}


def memory_functions(name):
    memory = MEMORIES[name]
    full = memory.add(KEY, memory.init(), jax.tree.map(jnp.asarray, ROWS))
    return {
        f"{name} add": (lambda *args: memory.add(KEY, full, *args), (ROWS, MASK)),
        f"{name} insert": (
            lambda *args: memory.insert(full, *args),
            (ROWS, np.array([0, 7, 1, 2]), MASK),
        ),
        f"{name} sample_and_add": (
            lambda *args: memory.sample_and_add(KEY, OTHER_KEY, full, 2, *args),
            (ROWS, MASK),
        ),
    }


FUNCTIONS = {
    "split_support": (
        lambda rows, mask: lm.split_support(KEY, rows, mask, 3),
        (ROWS, MASK),
    ),
    "join_replay": (lm.join_replay, (OLD, MASK[:3], ROWS, MASK)),
    "masked_mean": (lm.losses.masked_mean, (NUMBERS[:4], MASK)),
    "mean_loss": (
        lambda *args: lm.losses.mean_loss(loss_fn, *args),
        (WEIGHTS, ROWS, MASK),
    ),
    "multi_head_cross_entropy": (
        lambda *args: lm.losses.multi_head_cross_entropy(*args, 2),
        (LOGITS, np.array([1, 2]), np.array([0, 1])),
    ),
    "masked_cross_entropy": (
        lm.losses.masked_cross_entropy,
        (LOGITS, np.array([1, 2]), LOGITS == LOGITS),
    ),
    "asymmetric_cross_entropy": (
        lm.losses.asymmetric_cross_entropy,
        (LOGITS, np.array([1, 2]), np.array([True, False]), np.array([True, True])),
    ),
    "accuracy": (
        lm.losses.accuracy,
        (LOGITS, np.array([3, 0]), np.array([True, True])),
    ),
    "retained_accuracy": (lm.metrics.retained_accuracy, (ACCURACY,)),
    "learning_accuracy": (lm.metrics.learning_accuracy, (ACCURACY,)),
    "backward_transfer_interference": (
        lm.metrics.backward_transfer_interference,
        (ACCURACY,),
    ),
    "forward_transfer": (lm.metrics.forward_transfer, (ACCURACY, ACCURACY[0])),
    "forgetting": (lm.metrics.forgetting, (ACCURACY,)),
    "anytime_accuracy": (lm.metrics.anytime_accuracy, ALONG),
    "average_anytime_accuracy": (lm.metrics.average_anytime_accuracy, ALONG),
    "minimum_accuracy": (lm.metrics.minimum_accuracy, ALONG),
    "worst_case_accuracy": (lm.metrics.worst_case_accuracy, ALONG),
    "stability_gap": (lm.metrics.stability_gap, ALONG),
    "min_norm_weights": (
        lm.mixing.min_norm_weights,
        (NUMBERS.reshape(4, 2), MASK),
    ),
    "min_norm_gradient": (
        lm.mixing.min_norm_gradient,
        (NUMBERS.reshape(4, 2), MASK),
    ),
    "look_ahead_points": (
        lm.mixing.look_ahead_points,
        (NUMBERS[:4], NUMBERS.reshape(2, 4), NUMBERS.reshape(4, 2), NUMBERS[:1]),
    ),
    "soft_maximum_value_and_grad": (
        lambda *args: lm.mixing.soft_maximum_value_and_grad(
            loss_fn, *args, temperature=0.5
        ),
        ({"w": NUMBERS.reshape(4, 2)}, ROWS, MASK),
    ),
    "task_gradients": (
        lambda *args: lm.diagnostics.task_gradients(loss_fn, *args),
        (WEIGHTS, TASKS, MASK.reshape(2, 2)),
    ),
    "gradient_alignment": (
        lambda *args: lm.diagnostics.gradient_alignment(loss_fn, *args),
        (WEIGHTS, TASKS, MASK.reshape(2, 2)),
    ),
    "gradient_variance": (
        lambda grads: lm.diagnostics.gradient_variance(
            lambda key: grads, jax.random.split(KEY, 3)
        ),
        (GRADS,),
    ),
    "clip_meta_grads": (
        lambda grads: lm.clip_meta_grads(1.0).update(grads, lm.clip_meta_grads(1.0))[0],
        (GRADS,),
    ),
    **memory_functions("reservoir"),
    **memory_functions("balanced"),
}


def under_jit(function, args):
    return jax.jit(function)(*args)


def outside_jit(function, args):
    return function(*args)


def closed_over_in_a_scan(function, args):
    def step(carry, _):
        return carry, function(*args)

    _, stacked = jax.lax.scan(step, None, None, length=1)
    return jax.tree.map(lambda leaf: leaf[0], stacked)


def closed_over_under_jit(function, args):
    return jax.jit(lambda: function(*args))()


@functools.cache
def of_jax_arrays(name):
    function, args = FUNCTIONS[name]
    return jax.jit(function)(*jax.tree.map(jnp.asarray, args))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    "way",
    [
        under_jit,
        closed_over_in_a_scan,
        *(
            pytest.param(way, marks=pytest.mark.slow)
            for way in (outside_jit, closed_over_under_jit)
        ),
    ],
)
def test_numpy_arguments_give_what_jax_arrays_give(name, way):
    function, args = FUNCTIONS[name]
    expected = of_jax_arrays(name)
    received = way(function, args)
    assert jax.tree.structure(received) == jax.tree.structure(expected)
    for one, other in zip(
        jax.tree.leaves(received), jax.tree.leaves(expected), strict=True
    ):
        assert isinstance(one, jax.Array)
        assert one.dtype == other.dtype
        # float32: the same operations, fused differently.
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_every_public_function_that_takes_arrays_is_here():
    named = {"split_support", "join_replay", "clip_meta_grads", "gradient_variance"}
    for module in (lm.losses, lm.metrics, lm.mixing, lm.diagnostics):
        named |= {
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
            and callable(value)
            and name[0].islower()
        }
    takes_no_arrays = {"with_extras"}
    assert named - takes_no_arrays <= set(FUNCTIONS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"x": ROWS["x"], "y": np.array(["a"] * 4)},
            r"batch\['y'\]: expected an array",
        ),
        (
            {"x": ROWS["x"], "y": "word"},
            r"batch\['y'\]: expected an array, received str",
        ),
    ],
)
def test_words_are_refused_by_name(rows, message):
    with pytest.raises(TypeError, match=message):
        lm.split_support(KEY, rows, None, 2)
