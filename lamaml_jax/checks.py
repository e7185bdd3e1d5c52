"""Trace-time checks of arguments, and the only place that words their errors.

Every function raises ``ValueError`` (shapes, trees, static ranges) or ``TypeError``
(dtypes, kinds) with a message that names the argument, the leaf, what was expected
and what was received. Values inside arrays are never looked at.
"""

import difflib
import operator
from collections.abc import Collection
from typing import NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import optax

from lamaml_jax import types

_Path: TypeAlias = tuple[types.PyTree, ...]


def is_masked_node(leaf: types.PyTree) -> bool:
    """Tells whether ``leaf`` stands for weights that optax hides from an inner tx."""
    return isinstance(leaf, optax.MaskedNode)


def is_function(value: types.PyTree) -> bool:
    """Tells a function from a tree of numbers whose container can be called."""
    leaves = jax.tree.leaves(value)
    is_tree = bool(leaves) and all(
        isinstance(leaf, bool | int | float) or hasattr(leaf, "dtype")
        for leaf in leaves
    )
    return callable(value) and not is_tree


def called(value: types.PyTree, params: types.PyTree) -> types.PyTree:
    """Returns the tree that ``value`` is, or that it makes of the parameters."""
    return value(params) if is_function(value) else value


def is_prefix(tree: types.PyTree, like: types.PyTree) -> bool:
    """Tells whether ``tree`` is ``like`` with some of its parts replaced by leaves."""
    try:
        jax.tree.map(lambda *_: None, tree, like)
    except ValueError:
        return False
    return True


def _path(name: str, path: _Path) -> str:
    return name + jax.tree_util.keystr(path)


def _shape(name: str, value: types.PyTree) -> tuple[int, ...]:
    """Returns the shape of an array or number; nothing else is taken for one."""
    if hasattr(value, "shape"):
        return tuple(value.shape)
    if isinstance(value, bool | int | float | complex):
        return ()
    raise TypeError(f"{name}: expected an array, received {type(value).__name__}")


def _describe(leaf: types.PyTree) -> str:
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return f"{leaf.dtype}{list(leaf.shape)}"
    return f"{type(leaf).__name__} {leaf!r}"


def _is_number(value: types.PyTree) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_real(value: types.PyTree) -> bool:
    """Whether it is a number, or an array of numbers: floating or integer, no bool."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return _is_number(value)
    return any(jnp.issubdtype(dtype, k) for k in (jnp.floating, jnp.integer))


def as_arrays(name: str, tree: types.PyTree) -> types.PyTree:
    """Makes every leaf of ``tree`` a jax array, as ``jax.jit`` does with arguments.

    A numpy array cannot be indexed by a traced one, which every function that indexes
    meets when it runs outside jit, or inside it on rows that are closed over.
    """

    def as_array(path: _Path, leaf: types.PyTree) -> jax.Array:
        try:
            return jnp.asarray(leaf)
        except TypeError:
            raise TypeError(
                f"{_path(name, path)}: expected an array, received {_describe(leaf)}"
            ) from None

    return jax.tree_util.tree_map_with_path(as_array, tree)


def check_count(name: str, value: types.PyTree, *, minimum: int = 1) -> int:
    """Returns ``value`` as a Python int, which it must be, at least ``minimum``."""
    if isinstance(value, jax.Array | bool):
        raise TypeError(
            f"{name}: expected a Python int that fixes a shape, received "
            f"{_describe(value)}; under optax.inject_hyperparams list it in static_args"
        )
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name}: expected an int, received {_describe(value)}"
        ) from None
    if not minimum <= value < 2**31 - 1:
        raise ValueError(
            f"{name}: expected {minimum} <= {name} < 2**31 - 1, received {value}"
        )
    return value


def check_choice(name: str, value: types.PyTree, choices: Collection[object]) -> None:
    """Checks that ``value`` is one of the ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, received {value!r}")


def check_by_definition(inner_ad: str, remat: bool | str) -> None:
    """Refuses a choice that differentiating the definition would ignore."""
    if inner_ad != "reverse" and not remat:
        raise ValueError(
            "inner_ad: expected 'reverse' with remat=False, which differentiates the "
            f"definition in reverse, received {inner_ad!r}"
        )


def check_positive(name: str, value: types.PyTree) -> None:
    """Checks a Python number to be > 0; arrays and None pass (values unseen)."""
    if isinstance(value, int | float) and not value > 0:
        raise ValueError(f"{name}: expected a number > 0, received {value!r}")


def check_share(name: str, value: types.PyTree) -> None:
    """Checks a real scalar; a Python number lies in [0, 1], an array goes unseen."""
    if not _is_real(value):
        raise TypeError(f"{name}: expected a number, received {_describe(value)}")
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name}: expected a scalar, received {_describe(value)}")
    if isinstance(value, int | float) and not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], received {value!r}")


def check_callable(name: str, value: types.PyTree) -> None:
    """Checks that ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name}: expected a callable, received {_describe(value)}")


def check_transformation(name: str, value: types.PyTree) -> None:
    """Checks that ``value`` is an optax transformation (a pair of functions)."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(
            f"{name}: expected an optax.GradientTransformation, received "
            f"{_describe(value)}"
        )


_WORKS_INSTEAD = (
    "so batches are neither learned nor stored; put it around a part of "
    "lamaml_transform instead, as meta_tx=, step_size_tx= or weight_tx="
)


_HIDING_WRAPPERS = {
    "conditionally_mask": "skips updates, " + _WORKS_INSTEAD,
    "conditionally_transform": "skips updates, " + _WORKS_INSTEAD,
    "flatten": "hides the tree of the weights, which the loss needs; leave it away",
    "lookahead": "wants pairs of weights, which the loss does not take; leave it away",
}


def check_hands_on(name: str, tx: types.PyTree) -> None:
    """Refuses optax's wrappers that keep batches from what they wrap, where seen."""
    owner = getattr(tx.update, "__self__", tx)
    wrapper = getattr(tx.update, "__qualname__", "").split(".")[0]
    if isinstance(owner, optax.MultiSteps):
        raise ValueError(
            f"{name}: optax.MultiSteps skips all updates but every k-th, "
            + _WORKS_INSTEAD
        )
    if wrapper in _HIDING_WRAPPERS:
        raise ValueError(f"{name}: optax.{wrapper} {_HIDING_WRAPPERS[wrapper]}")


_HIDING_STATES = {
    optax.MultiStepsState: "MultiSteps skips updates, " + _WORKS_INSTEAD,
    optax.ConditionallyTransformState: (
        "conditionally_transform skips updates, " + _WORKS_INSTEAD
    ),
    optax.ConditionallyMaskState: "conditionally_mask skips updates, " + _WORKS_INSTEAD,
    optax.LookaheadState: "lookahead " + _HIDING_WRAPPERS["lookahead"],
}


def check_hands_on_state(
    name: str, state: types.PyTree, inside: type, weights: types.PyTree
) -> None:
    """Refuses the wrappers of ``check_hands_on`` by their states, also in a chain."""
    is_hiding = lambda node: type(node) in _HIDING_STATES
    is_inside = lambda node: isinstance(node, inside)
    for node in jax.tree.leaves(state, is_leaf=is_hiding):
        within = jax.tree.leaves(node, is_leaf=is_inside) if is_hiding(node) else []
        if any(map(is_inside, within)):
            raise ValueError(f"{name}: optax.{_HIDING_STATES[type(node)]}")
    for node in filter(is_inside, jax.tree.leaves(state, is_leaf=is_inside)):
        try:
            check_grain("step_sizes", node.rule_state.step_sizes, "weights", weights)
        except ValueError:
            raise ValueError(
                f"{name}: a wrapper around it, such as optax.flatten, "
                + _HIDING_WRAPPERS["flatten"]
            ) from None


def check_keys(name: str, keys: types.PyTree) -> None:
    """Checks that ``keys`` are one or more typed jax random keys, [N]."""
    dtype = getattr(keys, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(
            f"{name}: expected keys from jax.random.split, received {_describe(keys)}"
        )
    if keys.ndim != 1 or keys.shape[0] < 1:
        raise ValueError(
            f"{name}: expected shape (N,) with N >= 1, received {keys.shape}"
        )


def check_key(name: str, key: types.PyTree) -> None:
    """Checks that ``key`` is one typed or raw jax random key."""
    if key is None:
        raise ValueError(f"{name}: expected a key from jax.random.key, received None")
    dtype = getattr(key, "dtype", None)
    if dtype is None:
        raise TypeError(f"{name}: expected a jax random key, received {_describe(key)}")
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and dtype != jnp.uint32:
        raise TypeError(f"{name}: expected a jax random key, received {_describe(key)}")
    if len(key.shape) != (0 if typed else 1):
        raise ValueError(f"{name}: expected one key, received shape {key.shape}")


def check_floating(name: str, tree: types.PyTree) -> None:
    """Checks that ``tree`` has leaves and that all are floating arrays."""
    leaves = jax.tree.leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name}: expected at least one array, received an empty tree")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{_path(name, path)}: expected a floating array, received "
                f"{_describe(leaf)}"
            )


def check_same_tree(
    name: str, tree: types.PyTree, like_name: str, like: types.PyTree
) -> None:
    """Checks that ``tree`` has the structure and the leaf shapes of ``like``."""
    received, expected = jax.tree.structure(tree), jax.tree.structure(like)
    if received != expected:
        raise ValueError(
            f"{name}: expected the tree of {like_name}, {expected}, received {received}"
        )
    for (path, leaf), other in zip(
        jax.tree.leaves_with_path(tree), jax.tree.leaves(like), strict=True
    ):
        shape, like_shape = _shape(_path(name, path), leaf), _shape(like_name, other)
        if shape != like_shape:
            raise ValueError(
                f"{_path(name, path)}: expected shape {like_shape} as in {like_name}, "
                f"received {shape}"
            )


def check_grain(
    name: str, step_sizes: types.PyTree, like_name: str, like: types.PyTree
) -> None:
    """Checks step sizes of any grain: a prefix of ``like`` that broadcasts to it."""

    def check(path: _Path, rate: types.PyTree, part: types.PyTree) -> None:
        for below, leaf in jax.tree.leaves_with_path(part):
            shape, size = jnp.shape(rate), jnp.shape(leaf)
            padded = (1,) * (len(size) - len(shape)) + shape
            if len(padded) != len(size) or any(
                n not in (1, m) for n, m in zip(padded, size, strict=True)
            ):
                raise ValueError(
                    f"{_path(name, path)}: expected shape {size} as in {like_name}"
                    f"{jax.tree_util.keystr(below)}, or one that broadcasts to it, "
                    f"received {shape}"
                )

    if not is_prefix(step_sizes, like):
        raise ValueError(
            f"{name}: expected the tree of {like_name} or a prefix of it, "
            f"{jax.tree.structure(like)}, received {jax.tree.structure(step_sizes)}"
        )
    jax.tree.map_with_path(check, step_sizes, like)


def check_meta_params(params: types.MetaParams) -> types.MetaParams:
    """Checks slow weights and step sizes, and returns them as arrays.

    Both are floating, and step sizes have any grain; a Python number is one rate.
    """
    weights, step_sizes = params
    check_floating("weights", weights)
    step_sizes = jax.tree.map(
        lambda rate: jnp.asarray(float(rate)) if _is_number(rate) else rate, step_sizes
    )
    check_floating("step_sizes", step_sizes)
    check_grain("step_sizes", step_sizes, "weights", weights)
    weights, step_sizes = jax.tree.map(jnp.asarray, (weights, step_sizes))
    return types.MetaParams(weights, step_sizes)


def check_bool_prefix(
    name: str, mask: types.PyTree, like_name: str, like: types.PyTree
) -> None:
    """Checks ``mask``: Python bools in the tree of ``like`` or in a prefix of it."""
    for path, leaf in jax.tree.leaves_with_path(mask):
        if not isinstance(leaf, bool):
            raise TypeError(
                f"{_path(name, path)}: expected a Python bool, received "
                f"{_describe(leaf)}"
            )
    if not is_prefix(mask, like):
        raise ValueError(
            f"{name}: expected the tree of {like_name} or a prefix of it, "
            f"{jax.tree.structure(like)}, received {jax.tree.structure(mask)}"
        )


def check_unmasked(name: str, params: types.PyTree) -> None:
    """Refuses parameters of which optax.masked or optax.partition hides a part."""
    leaves = jax.tree.leaves_with_path(params, is_leaf=is_masked_node)
    for path, leaf in leaves:
        if is_masked_node(leaf):
            raise ValueError(
                f"{_path(name, path)}: hidden by optax.masked or optax.partition, but "
                "the loss needs every weight. Two ways work: wrap only "
                "lamaml_jax.scale_by_step_sizes, which needs no loss; or pass "
                "adapt_mask= to lamaml_transform, which selects the leaves that the "
                "inner loop adapts"
            )


def check_rows(name: str, batch: types.PyTree, *, axes: int = 1) -> tuple[int, ...]:
    """Checks that all leaves of ``batch`` share ``axes`` leading axes; returns them."""
    leaves = jax.tree.leaves_with_path(batch)
    if not leaves:
        raise ValueError(f"{name}: expected at least one array, received an empty tree")
    first_path, first = leaves[0]
    leading = _shape(_path(name, first_path), first)[:axes]
    for path, leaf in leaves:
        shape = _shape(_path(name, path), leaf)
        if len(shape) < axes:
            raise ValueError(
                f"{_path(name, path)}: expected {axes} leading axes, received {shape}"
            )
        if shape[:axes] != leading:
            raise ValueError(
                f"{_path(name, path)}: expected leading axes {leading} as in "
                f"{_path(name, first_path)}, received {shape}"
            )
    if 0 in leading:
        raise ValueError(f"{name}: expected at least one row, received axes {leading}")
    return leading


def check_mask(name: str, mask: types.PyTree, shape: tuple[int, ...]) -> types.Mask:
    """Checks that ``mask`` is boolean and has ``shape``; returns it as a jax array."""
    received = _shape(name, mask)
    if received != shape:
        raise ValueError(f"{name}: expected shape {shape}, received {received}")
    if jnp.result_type(mask) != jnp.bool_:
        raise TypeError(
            f"{name}: expected a boolean array, received {jnp.result_type(mask)}"
        )
    return jnp.asarray(mask)


def check_support(
    support: types.PyTree, mask: types.PyTree
) -> tuple[types.PyTree, types.PyTree, int]:
    """Checks support rows [K, S, ...] and their mask [K, S] or None.

    Returns both as jax arrays, and K.
    """
    axes = check_rows("support", support, axes=2)
    if mask is not None:
        mask = check_mask("support_mask", mask, axes)
    return as_arrays("support", support), mask, axes[0]


def check_query(
    query: types.PyTree, mask: types.PyTree, weights: types.PyTree
) -> tuple[types.PyTree, types.PyTree, types.PyTree]:
    """Checks query rows [Q, ...], their mask [Q] and weights [Q] or None.

    Returns them as jax arrays.
    """
    axes = check_rows("query", query)
    if mask is not None:
        mask = check_mask("query_mask", mask, axes)
    if weights is not None:
        shape = _shape("query_weights", weights)
        if shape != axes:
            raise ValueError(f"query_weights: expected shape {axes}, received {shape}")
        if not jnp.issubdtype(jnp.result_type(weights), jnp.floating):
            raise TypeError(
                "query_weights: expected a floating array, received "
                f"{jnp.result_type(weights)}"
            )
        weights = jnp.asarray(weights)
    return as_arrays("query", query), mask, weights


def check_losses(losses: types.PyTree, num_rows: int, *, masked: bool) -> None:
    """Checks what a loss function returned: [num_rows], or a scalar if unmasked."""
    dtype = getattr(losses, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"loss_fn: expected floating losses, received {_describe(losses)}"
        )
    if losses.shape == () and masked:
        raise ValueError(
            f"loss_fn: expected losses of shape ({num_rows},) because rows are masked "
            "or weighed, received a scalar; return one loss per example"
        )
    if losses.shape not in ((), (num_rows,)):
        raise ValueError(
            f"loss_fn: expected losses of shape ({num_rows},), one per example, or a "
            f"scalar, received {losses.shape}"
        )


def check_draws(name: str, draws: types.PyTree, num_rows: int) -> jax.Array:
    """Checks one integer per row; returns them as a jax array."""
    shape = _shape(name, draws)
    if shape != (num_rows,):
        raise ValueError(f"{name}: expected shape ({num_rows},), received {shape}")
    if not jnp.issubdtype(jnp.result_type(draws), jnp.integer):
        raise TypeError(f"{name}: expected integers, received {jnp.result_type(draws)}")
    return jnp.asarray(draws)


def check_like_stored(
    name: str, rows: types.PyTree, stored: types.PyTree
) -> types.PyTree:
    """Checks rows [B, ...] against stored ones [C, ...]; returns them as jax arrays."""
    check_rows(name, rows)
    received, expected = jax.tree.structure(rows), jax.tree.structure(stored)
    if received != expected:
        raise ValueError(
            f"{name}: expected the tree of the example row, {expected}, received "
            f"{received}"
        )
    rows = as_arrays(name, rows)
    for (path, leaf), kept in zip(
        jax.tree.leaves_with_path(rows), jax.tree.leaves(stored), strict=True
    ):
        if leaf.shape[1:] != kept.shape[1:]:
            raise ValueError(
                f"{_path(name, path)}: expected rows of shape {kept.shape[1:]}, "
                f"received {leaf.shape[1:]}"
            )
        if leaf.dtype != kept.dtype:
            raise TypeError(
                f"{_path(name, path)}: expected dtype {kept.dtype}, received "
                f"{leaf.dtype}"
            )
    return rows


def check_example(name: str, example: types.PyTree) -> types.PyTree:
    """Checks one example row; returns its shapes, and its dtypes as jax takes them."""
    if not jax.tree.leaves(example):
        raise ValueError(f"{name}: expected at least one array, received an empty tree")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _row_form(_path(name, path), leaf), example
    )


def _row_form(name: str, leaf: types.PyTree) -> jax.ShapeDtypeStruct:
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise TypeError(
            f"{name}: expected a jax.ShapeDtypeStruct or an array, received "
            f"{_describe(leaf)}"
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    if not any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.number, jnp.bool_)):
        raise TypeError(
            f"{name}: expected a dtype of jax arrays, received {_describe(leaf)}"
        )
    # What jax makes of it: int64 is int32 without 64-bit types.
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def check_covers(name: str, tree: types.PyTree, like: types.PyTree) -> None:
    """Checks that ``tree`` has every part of ``like`` that optax does not hide."""
    try:
        jax.tree.map(lambda leaf, part: None, like, tree, is_leaf=is_masked_node)
    except ValueError:
        raise ValueError(
            f"{name}: expected the tree of the parameters, "
            f"{jax.tree.structure(like)}, received {jax.tree.structure(tree)}"
        ) from None


def check_rate(name: str, value: types.PyTree) -> None:
    """Checks one initial step size: a real number, not negative, or an array of it."""
    if not _is_real(value):
        raise TypeError(
            f"{name}: expected a number or an array of numbers, received "
            f"{_describe(value)}"
        )
    if _is_number(value) and not value >= 0:
        raise ValueError(f"{name}: expected a number >= 0, received {value!r}")


def check_step_size_init(name: str, init: types.PyTree, params: types.PyTree) -> None:
    """Checks initial step sizes: numbers, or arrays that broadcast to their weights."""
    for path, value in jax.tree.leaves_with_path(init):
        check_rate(_path(name, path), value)
    check_grain(name, init, "params", params)


def check_is_meta_params(name: str, value: types.PyTree) -> types.MetaParams:
    """Checks a pair of weights and step sizes; makes their leaves jax arrays."""
    if not isinstance(value, types.MetaParams):
        raise TypeError(f"{name}: expected MetaParams, received {_describe(value)}")
    return as_arrays(name, value)


def check_given(name: str, value: types.PyTree, caller: str) -> None:
    """Checks that a required keyword argument was passed."""
    if value is None:
        raise ValueError(f"{name}: {caller} needs it, received None")


def check_fits(name: str, value: int, limit_name: str, limit: int) -> None:
    """Checks a static size against the number of rows it is taken from."""
    if value > limit:
        raise ValueError(
            f"{name}: expected at most the {limit} {limit_name}, received {value}"
        )


def check_equal(name: str, value: int, expected_name: str, expected: int) -> None:
    """Checks a leading axis against the size bound at construction."""
    if value != expected:
        raise ValueError(
            f"{name}: expected leading axis {expected} ({expected_name}), received "
            f"{value}"
        )


def check_data_form(
    support: types.PyTree, query: types.PyTree, batch: types.PyTree
) -> None:
    """Checks that data came either as support and query or as a batch."""
    if batch is not None and (support is not None or query is not None):
        raise ValueError(
            "batch: expected either batch= and key=, or support= and query=, received "
            "both"
        )
    if batch is None and support is None and query is None:
        raise ValueError(
            "batch: lamaml_transform.update needs batch= and key=, or support= and "
            "query=, received neither. Wrappers that drop extra arguments, such as "
            "flax's TrainState.apply_gradients, cannot hand them on: call tx.update "
            "and optax.apply_updates yourself"
        )
    if batch is None:
        check_given("support", support, "lamaml_transform.update")
        check_given("query", query, "lamaml_transform.update")


_NEAR_MISSES = {
    "mask": "batch_mask",
    "masks": "batch_mask",
    "rng": "key",
    "rngs": "key",
    "prng_key": "key",
    "rows": "batch",
    "weights": "query_weights",
}


def check_near_misses(names: Collection[str], ours: Collection[str]) -> None:
    """Refuses extra arguments that were surely meant to be one of ours."""
    for name in names:
        close = difflib.get_close_matches(name, ours, n=1, cutoff=0.8)
        meant = _NEAR_MISSES.get(name) or (close[0] if close else None)
        if meant is not None:
            raise ValueError(
                f"{name}: no argument of lamaml_transform.update, which would ignore "
                f"it; {meant}= is meant, or another name"
            )


def refuse_line_search(*args: object, **kwargs: object) -> NoReturn:
    """Stands for ``value_fn``, which a line search would call."""
    raise ValueError(
        "value_fn: lamaml_transform serves value= and grad= to meta_tx, step_size_tx "
        "and weight_tx, but no line search, which would run the inner steps anew at "
        "every trial; build optax.lbfgs with linesearch=None or take another optimiser"
    )


def check_accuracy(accuracy: types.PyTree) -> jax.Array:
    """Checks an accuracy matrix: floating, square, not empty; makes it a jax array."""
    shape = _shape("accuracy", accuracy)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"accuracy: expected shape [..., T, T], received {shape}")
    if not jnp.issubdtype(jnp.result_type(accuracy), jnp.floating):
        raise TypeError(
            f"accuracy: expected floating fractions, received "
            f"{jnp.result_type(accuracy)}"
        )
    return jnp.asarray(accuracy)


def check_initial_accuracy(
    accuracy: jax.Array, initial_accuracy: types.PyTree
) -> jax.Array:
    """Checks the untrained model's accuracies and makes them a jax array."""
    expected = accuracy.shape[:-1]
    shape = _shape("initial_accuracy", initial_accuracy)
    if shape != expected:
        raise ValueError(
            f"initial_accuracy: expected shape {expected}, received {shape}"
        )
    return jnp.asarray(initial_accuracy)


def check_evaluations(
    accuracy: types.PyTree, tasks: types.PyTree
) -> tuple[jax.Array, jax.Array]:
    """Checks accuracies along a stream and the task at hand at each; makes arrays."""
    shape = _shape("accuracy", accuracy)
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(f"accuracy: expected shape [..., N, T], received {shape}")
    if not jnp.issubdtype(jnp.result_type(accuracy), jnp.floating):
        raise TypeError(
            f"accuracy: expected floating fractions, received "
            f"{jnp.result_type(accuracy)}"
        )
    if _shape("tasks", tasks) != shape[-2:-1]:
        raise ValueError(
            f"tasks: expected shape {shape[-2:-1]}, a task for each evaluation, "
            f"received {_shape('tasks', tasks)}"
        )
    if not jnp.issubdtype(jnp.result_type(tasks), jnp.integer):
        raise TypeError(f"tasks: expected integers, received {jnp.result_type(tasks)}")
    return jnp.asarray(accuracy), jnp.asarray(tasks)


def check_labels(name: str, labels: types.PyTree, num_rows: int) -> jax.Array:
    """Checks what a function of rows returned as their classes, [num_rows] integers."""
    dtype = getattr(labels, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(
            f"{name}: expected integer classes, received {_describe(labels)}"
        )
    if labels.shape != (num_rows,):
        raise ValueError(
            f"{name}: expected classes of shape ({num_rows},), one per row, received "
            f"{labels.shape}"
        )
    return jnp.asarray(labels)
