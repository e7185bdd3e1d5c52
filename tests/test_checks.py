"""Every caller mistake raises at trace time and says what, where, expected, received.

All through public functions, so that no check can be lost on the way to them.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lamaml_jax as lm

W = {"w": jnp.ones(3)}
RATES = {"w": jnp.full(3, 0.5)}
PARAMS = lm.MetaParams(W, RATES)
SUPPORT = jnp.zeros((2, 2, 3))
QUERY = jnp.zeros((4, 3))
BATCH = jnp.zeros((4, 3))
KEY = jax.random.key(0)
ROW = {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}
ROWS = {"x": jnp.zeros((4, 3))}


def loss_fn(weights, batch):
    return jnp.sum((weights["w"][None, :] - batch) ** 2, axis=-1)


def scalar_loss(weights, batch):
    return jnp.mean(loss_fn(weights, batch))


def adapt(loss=loss_fn, weights=W, step_sizes=RATES, support=SUPPORT, mask=None, **kw):
    return lm.adapt(loss, weights, step_sizes, support, mask, **kw)


def meta(loss=loss_fn, params=PARAMS, support=SUPPORT, query=QUERY, masks=(), **kw):
    return lm.meta_value_and_grad(loss, **kw)(params, support, query, *masks)


def add(key=KEY, rows=ROWS, mask=None, **options):
    reservoir = lm.make_reservoir(2, ROW, **options)
    return reservoir.add(key, reservoir.init(), rows, mask)


def insert(draws, rows=ROWS):
    reservoir = lm.make_reservoir(2, ROW)
    return reservoir.insert(reservoir.init(), rows, draws)


def sample(key=KEY, size=1):
    reservoir = lm.make_reservoir(2, ROW)
    return reservoir.sample(key, reservoir.init(), size)


def sample_and_add(sample_key=KEY, add_key=KEY, size=1, rows=ROWS, mask=None):
    reservoir = lm.make_reservoir(2, ROW)
    state = reservoir.init()
    return reservoir.sample_and_add(sample_key, add_key, state, size, rows, mask)


def rule(init=0.5, step_size_tx=optax.sgd(0.1), **options):
    return lm.scale_by_step_sizes(init, step_size_tx, **options)


def rule_update(updates=W, params=W, init=0.5, **extra):
    tx = rule(init)
    return tx.update(updates, tx.init(params), params, **extra)


def transform(**options):
    options = {"inner_steps": 2, **options}
    return lm.lamaml_transform(loss_fn, **options)


def transform_update(updates=W, params=W, *, options=None, **data):
    tx = transform(**(options or {}))
    return tx.update(updates, tx.init(W), params, **data)


COUNTS = {
    "capacity": lambda n: lm.make_reservoir(n, ROW),
    "size": lambda n: sample(size=n) and sample_and_add(size=n),
    "unroll": lambda n: adapt(unroll=n),
    "inner_steps": lambda n: transform(inner_steps=n),
    "replay_size": lambda n: transform(replay_size=n),
    "glances": lambda n: lm.lamaml_learner(transform(), glances=n),
    "classes_per_task": lambda n: lm.losses.multi_head_cross_entropy(
        QUERY, jnp.zeros(4, int), jnp.zeros(4, int), n
    ),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "received 0"),
        (-3, ValueError, "received -3"),
        (2**31 - 1, ValueError, f"received {2**31 - 1}"),
        (True, TypeError, "expected a Python int that fixes a shape, received bool"),
        (2.0, TypeError, "expected an int, received float 2.0"),
        ("2", TypeError, "expected an int, received str '2'"),
        (None, TypeError, "expected an int, received NoneType None"),
        (np.float32(2), TypeError, "expected an int, received float32[]"),
        (jnp.int32(2), TypeError, "received int32[]; under optax.inject_hyperparams"),
    ],
    ids=str,
)
def test_counts_are_python_ints_in_range(name, value, error, message):
    with pytest.raises(error, match=rf"^{name}: .*{re.escape(message)}"):
        COUNTS[name](value)


@pytest.mark.parametrize("name", COUNTS)
def test_traced_counts_are_refused(name):
    with pytest.raises(TypeError, match=rf"^{name}: expected a Python int that fixes"):
        jax.jit(COUNTS[name])(2)


@pytest.mark.parametrize("name", COUNTS)
def test_numpy_ints_are_counts(name):
    COUNTS[name](np.int64(1))


OTHER_SHAPE = {"w": jnp.ones(4)}
OTHER_TREE = {"v": jnp.ones(3)}
INTEGERS = {"w": jnp.ones(3, jnp.int32)}
TWO_KEYS = jax.random.split(KEY)
RAGGED = {"x": jnp.zeros((2, 2, 3)), "y": jnp.zeros((3, 2))}

MISTAKES = {
    # choices
    "objective": (
        lambda: meta(objective="median"),
        ValueError,
        "objective: expected one of ['mean', 'last'], received 'median'",
    ),
    "inner_ad": (
        lambda: meta(inner_ad="forward"),
        ValueError,
        "inner_ad: expected one of ['reverse', 'forward_over_reverse'], received "
        "'forward'",
    ),
    "inner_ad of the definition": (
        lambda: meta(inner_ad="forward_over_reverse", remat=False),
        ValueError,
        "inner_ad: expected 'reverse' with remat=False",
    ),
    "acceptance": (
        lambda: add(acceptance="all"),
        ValueError,
        "acceptance: expected one of ['exact', 'published'], received 'all'",
    ),
    # numbers
    "clip of adapt": (
        lambda: adapt(clip=0),
        ValueError,
        "clip: expected a number > 0, received 0",
    ),
    "clip": (
        lambda: meta(clip=-1.0),
        ValueError,
        "clip: expected a number > 0, received -1.0",
    ),
    # kinds of arguments
    "loss_fn of adapt": (
        lambda: adapt(loss="mse"),
        TypeError,
        "loss_fn: expected a callable, received str 'mse'",
    ),
    "loss_fn": (
        lambda: meta(loss=None),
        TypeError,
        "loss_fn: expected a callable, received NoneType None",
    ),
    "step_size_tx": (
        lambda: rule(step_size_tx=0.1),
        TypeError,
        "step_size_tx: expected an optax.GradientTransformation, received float 0.1",
    ),
    "weight_tx": (
        lambda: rule(weight_tx=0.1),
        TypeError,
        "weight_tx: expected an optax.GradientTransformation, received float 0.1",
    ),
    "meta_tx": (
        lambda: transform(meta_tx=2.0),
        TypeError,
        "meta_tx: expected an optax.GradientTransformation, received float 2.0",
    ),
    "tx": (
        lambda: lm.lamaml_learner(loss_fn),
        TypeError,
        "tx: expected an optax.GradientTransformation, received function",
    ),
    # weights and step sizes
    "integer weights": (
        lambda: adapt(weights=INTEGERS),
        TypeError,
        "weights['w']: expected a floating array, received int32[3]",
    ),
    "integer step sizes": (
        lambda: meta(params=lm.MetaParams(W, INTEGERS)),
        TypeError,
        "step_sizes['w']: expected a floating array, received int32[3]",
    ),
    "a number among the weights": (
        lambda: adapt(weights={"w": 1.0}),
        TypeError,
        "weights['w']: expected a floating array, received float 1.0",
    ),
    "no weights": (
        lambda: adapt(weights={}),
        ValueError,
        "weights: expected at least one array, received an empty tree",
    ),
    "tree of step sizes": (
        lambda: adapt(step_sizes=OTHER_TREE),
        ValueError,
        "step_sizes: expected the tree of weights or a prefix of it, "
        "PyTreeDef({'w': *}), received "
        "PyTreeDef({'v': *})",
    ),
    "shape of step sizes": (
        lambda: meta(params=lm.MetaParams(W, OTHER_SHAPE)),
        ValueError,
        "step_sizes['w']: expected shape (3,) as in weights, or one that broadcasts to "
        "it, received (4,)",
    ),
    "step sizes with more axes than the weights": (
        lambda: adapt(step_sizes={"w": jnp.ones((1, 3))}),
        ValueError,
        "step_sizes['w']: expected shape (3,) as in weights, or one that broadcasts to "
        "it, received (1, 3)",
    ),
    "step sizes of a bool": (
        lambda: adapt(step_sizes=True),
        TypeError,
        "step_sizes: expected a floating array, received bool True",
    ),
    "adapt_mask of another tree": (
        lambda: adapt(adapt_mask={"v": True}),
        ValueError,
        "adapt_mask: expected the tree of weights or a prefix of it, PyTreeDef({'w': "
        "*}), received PyTreeDef({'v': *})",
    ),
    "adapt_mask of arrays": (
        lambda: meta(adapt_mask={"w": jnp.ones(3, bool)}, inner_ad="reverse"),
        TypeError,
        "adapt_mask['w']: expected a Python bool, received bool[3]",
    ),
    "adapt_mask from a function": (
        lambda: meta(adapt_mask=lambda w: {"w": 1}, first_order=True),
        TypeError,
        "adapt_mask['w']: expected a Python bool, received int 1",
    ),
    # losses
    "scalar loss with masked support": (
        lambda: adapt(loss=scalar_loss, mask=jnp.ones((2, 2), bool)),
        ValueError,
        "loss_fn: expected losses of shape (2,) because rows are masked or "
        "weighed, received a scalar",
    ),
    "scalar loss with masked query": (
        lambda: meta(loss=scalar_loss, masks=(None, jnp.ones(4, bool))),
        ValueError,
        "loss_fn: expected losses of shape (4,) because rows are masked or "
        "weighed, received a scalar",
    ),
    "shape of losses": (
        lambda: adapt(loss=lambda w, b: b),
        ValueError,
        "loss_fn: expected losses of shape (2,), one per example, or a scalar, "
        "received (2, 3)",
    ),
    "integer losses": (
        lambda: adapt(loss=lambda w, b: jnp.zeros(2, jnp.int32)),
        TypeError,
        "loss_fn: expected floating losses, received int32[2]",
    ),
    "losses that are no array": (
        lambda: adapt(loss=lambda w, b: 1.0),
        TypeError,
        "loss_fn: expected floating losses, received float 1.0",
    ),
    # data
    "no support": (
        lambda: adapt(support={}),
        ValueError,
        "support: expected at least one array, received an empty tree",
    ),
    "no inner steps": (
        lambda: adapt(support=jnp.zeros((0, 2, 3))),
        ValueError,
        "support: expected at least one row, received axes (0, 2)",
    ),
    "empty inner batches": (
        lambda: meta(support=jnp.zeros((2, 0, 3))),
        ValueError,
        "support: expected at least one row, received axes (2, 0)",
    ),
    "empty query": (
        lambda: meta(query=jnp.zeros((0, 3))),
        ValueError,
        "query: expected at least one row, received axes (0,)",
    ),
    "support without inner axis": (
        lambda: adapt(support=jnp.zeros(2)),
        ValueError,
        "support: expected 2 leading axes, received (2,)",
    ),
    "leading axes of support": (
        lambda: meta(support=RAGGED),
        ValueError,
        "support['y']: expected leading axes (2, 2) as in support['x'], received "
        "(3, 2)",
    ),
    "leading axes of query": (
        lambda: meta(query={"x": jnp.zeros((4, 3)), "y": jnp.zeros(3)}),
        ValueError,
        "query['y']: expected leading axes (4,) as in query['x'], received (3,)",
    ),
    "scalar query": (
        lambda: meta(query=jnp.float32(0)),
        ValueError,
        "query: expected 1 leading axes, received ()",
    ),
    "shape of support_mask": (
        lambda: adapt(mask=jnp.ones(2, bool)),
        ValueError,
        "support_mask: expected shape (2, 2), received (2,)",
    ),
    "kind of support_mask": (
        lambda: meta(masks=(jnp.ones((2, 2)),)),
        TypeError,
        "support_mask: expected a boolean array, received float32",
    ),
    "shape of query_mask": (
        lambda: meta(masks=(None, jnp.ones((4, 1), bool))),
        ValueError,
        "query_mask: expected shape (4,), received (4, 1)",
    ),
    "kind of query_mask": (
        lambda: meta(masks=(None, jnp.ones(4, jnp.int32))),
        TypeError,
        "query_mask: expected a boolean array, received int32",
    ),
    # reservoir
    "example of numbers": (
        lambda: lm.make_reservoir(2, {"x": 1.0}),
        TypeError,
        "example['x']: expected a jax.ShapeDtypeStruct or an array, received float 1.0",
    ),
    "no example": (
        lambda: lm.make_reservoir(2, {}),
        ValueError,
        "example: expected at least one array, received an empty tree",
    ),
    "tree of rows": (
        lambda: add(rows={"y": jnp.zeros((4, 3))}),
        ValueError,
        "rows: expected the tree of the example row, PyTreeDef({'x': *}), received "
        "PyTreeDef({'y': *})",
    ),
    "shape of rows": (
        lambda: add(rows={"x": jnp.zeros((4, 2))}),
        ValueError,
        "rows['x']: expected rows of shape (3,), received (2,)",
    ),
    "dtype of rows": (
        lambda: add(rows={"x": jnp.zeros((4, 3), jnp.bfloat16)}),
        TypeError,
        "rows['x']: expected dtype float32, received bfloat16",
    ),
    "no rows": (
        lambda: add(rows={"x": jnp.zeros((0, 3))}),
        ValueError,
        "rows: expected at least one row, received axes (0,)",
    ),
    "shape of the rows' mask": (
        lambda: add(mask=jnp.ones(3, bool)),
        ValueError,
        "mask: expected shape (4,), received (3,)",
    ),
    "kind of the rows' mask": (
        lambda: add(mask=jnp.ones(4)),
        TypeError,
        "mask: expected a boolean array, received float32",
    ),
    "shape of draws": (
        lambda: insert(jnp.zeros(3, jnp.int32)),
        ValueError,
        "draws: expected shape (4,), received (3,)",
    ),
    "kind of draws": (
        lambda: insert(jnp.zeros(4)),
        TypeError,
        "draws: expected integers, received float32",
    ),
    # keys
    "no key": (
        lambda: add(key=None),
        ValueError,
        "key: expected a key from jax.random.key, received None",
    ),
    "a number as key": (
        lambda: sample(key=0),
        TypeError,
        "key: expected a jax random key, received int 0",
    ),
    "key of a sample that is added to": (
        lambda: sample_and_add(sample_key=0),
        TypeError,
        "sample_key: expected a jax random key, received int 0",
    ),
    "key of rows added after a sample": (
        lambda: sample_and_add(add_key=TWO_KEYS),
        ValueError,
        "add_key: expected one key, received shape (2,)",
    ),
    "mask of rows added after a sample": (
        lambda: sample_and_add(mask=jnp.ones(4)),
        TypeError,
        "mask: expected a boolean array, received float32",
    ),
    "an array as key": (
        lambda: sample(key=jnp.zeros(2)),
        TypeError,
        "key: expected a jax random key, received float32[2]",
    ),
    "two keys": (
        lambda: add(key=TWO_KEYS),
        ValueError,
        "key: expected one key, received shape (2,)",
    ),
    "two raw keys": (
        lambda: add(key=jax.random.key_data(TWO_KEYS)),
        ValueError,
        "key: expected one key, received shape (2, 2)",
    ),
    "no key for a batch": (
        lambda: transform_update(batch=BATCH),
        ValueError,
        "key: expected a key from jax.random.key, received None",
    ),
    # the rule
    "integer parameters": (
        lambda: rule().init(INTEGERS),
        TypeError,
        "params['w']: expected a floating array, received int32[3]",
    ),
    "tree of init": (
        lambda: rule({"v": 0.1}).init(W),
        ValueError,
        "init: expected the tree of params or a prefix of it, PyTreeDef({'w': *}), "
        "received PyTreeDef({'v': *})",
    ),
    "shape of init": (
        lambda: rule({"w": jnp.ones(2)}).init(W),
        ValueError,
        "init['w']: expected shape (3,) as in params, or one that broadcasts to it, "
        "received (2,)",
    ),
    "kind of init": (
        lambda: rule("0.1").init(W),
        TypeError,
        "init: expected a number or an array of numbers, received str '0.1'",
    ),
    "bool as init": (
        lambda: rule({"w": True}).init(W),
        TypeError,
        "init['w']: expected a number or an array of numbers, received bool True",
    ),
    "negative init": (
        lambda: rule(-0.1).init(W),
        ValueError,
        "init: expected a number >= 0, received -0.1",
    ),
    "init that is no number": (
        lambda: rule(lambda params: float("nan")).init(W),
        ValueError,
        "init: expected a number >= 0, received nan",
    ),
    "negative initial step size of the transformation": (
        lambda: transform(step_size_init=-0.1).init(W),
        ValueError,
        "step_size_init: expected a number >= 0, received -0.1",
    ),
    "no step_size_grads": (
        rule_update,
        ValueError,
        "step_size_grads: scale_by_step_sizes.update needs it, received None",
    ),
    "tree of step_size_grads": (
        lambda: rule_update(step_size_grads=OTHER_TREE),
        ValueError,
        "step_size_grads: expected the tree of step_sizes, PyTreeDef({'w': *}), "
        "received PyTreeDef({'v': *})",
    ),
    "shape of step_size_grads": (
        lambda: rule_update(step_size_grads=OTHER_SHAPE),
        ValueError,
        "step_size_grads['w']: expected shape (3,) as in step_sizes, received (4,)",
    ),
    "shape of updates": (
        lambda: rule_update(OTHER_SHAPE, step_size_grads=OTHER_SHAPE),
        ValueError,
        "step_sizes['w']: expected shape (4,) as in updates, or one that broadcasts to "
        "it, received (3,)",
    ),
    # the transformation
    "no params": (
        lambda: transform_update(params=None, support=SUPPORT, query=QUERY),
        ValueError,
        "params: lamaml_transform.update needs it, received None",
    ),
    "no data": (
        transform_update,
        ValueError,
        "batch: lamaml_transform.update needs batch= and key=, or support= and query=,"
        " received neither",
    ),
    "data in both forms": (
        lambda: transform_update(batch=BATCH, key=KEY, query=QUERY),
        ValueError,
        "batch: expected either batch= and key=, or support= and query=, received both",
    ),
    "support without query": (
        lambda: transform_update(support=SUPPORT),
        ValueError,
        "query: lamaml_transform.update needs it, received None",
    ),
    "query without support": (
        lambda: transform_update(query=QUERY),
        ValueError,
        "support: lamaml_transform.update needs it, received None",
    ),
    "number of inner steps": (
        lambda: transform_update(
            support=SUPPORT, query=QUERY, options={"inner_steps": 3}
        ),
        ValueError,
        "support: expected leading axis 3 (inner_steps), received 2",
    ),
    "shape of batch_mask": (
        lambda: transform_update(batch=BATCH, key=KEY, batch_mask=jnp.ones(3, bool)),
        ValueError,
        "batch_mask: expected shape (4,), received (3,)",
    ),
    "shape of extra gradients": (
        lambda: transform_update(OTHER_SHAPE, support=SUPPORT, query=QUERY),
        ValueError,
        "updates['w']: expected shape (3,) as in params, received (4,)",
    ),
    "hidden weights": (
        lambda: optax.masked(transform(), {"w": True, "v": False}).init(
            {"w": jnp.ones(3), "v": jnp.ones(2)}
        ),
        ValueError,
        "params['v']: hidden by optax.masked or optax.partition, but the loss needs "
        "every weight. Two ways work: wrap only lamaml_jax.scale_by_step_sizes",
    ),
    # losses and metrics
    "mask of masked_mean": (
        lambda: lm.losses.masked_mean(jnp.ones(3), jnp.ones(2, bool)),
        ValueError,
        "mask: expected shape (3,), received (2,)",
    ),
    "rows of labels": (
        lambda: lm.losses.accuracy(QUERY, jnp.zeros(3, int)),
        ValueError,
        "(logits, labels)[1]: expected leading axes (4,) as in (logits, labels)[0], "
        "received (3,)",
    ),
    "accuracy matrix": (
        lambda: lm.metrics.retained_accuracy(jnp.ones((2, 3))),
        ValueError,
        "accuracy: expected shape [..., T, T], received (2, 3)",
    ),
    # streams
    "masks of a stream": (
        lambda: lm.observe_stream(
            lm.lamaml_learner(transform()), KEY, None, SUPPORT, jnp.ones(2, bool)
        ),
        ValueError,
        "batch_masks: expected shape (2, 2), received (2,)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "mistake", ["shape of step sizes", "shape of support_mask", "dtype of rows"]
)
def test_mistakes_raise_under_jit_too(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match="^" + re.escape(message)):
        jax.jit(call)()


def test_values_inside_arrays_are_not_an_error():
    bad = {"w": jnp.array([jnp.nan, jnp.inf, 1.0])}
    fast, _ = adapt(weights=bad)
    assert jnp.isnan(fast["w"][0])
    (meta_loss, _), _ = meta(params=lm.MetaParams(W, bad))
    assert not jnp.isfinite(meta_loss)
    state = add(rows={"x": jnp.full((4, 3), jnp.nan)})
    assert jnp.isnan(state.rows["x"]).all()
    updates, _ = rule_update(bad, step_size_grads=bad)
    assert jnp.isnan(updates["w"][0])


@pytest.mark.parametrize("value", [jnp.float32(0.5), jnp.float32(-1.0), np.float32(2)])
def test_rates_given_as_arrays_pass_unseen(value):
    adapt(clip=value)
    lm.clip_meta_grads(value)


def test_raw_keys_are_accepted():
    add(key=jax.random.key_data(KEY))
