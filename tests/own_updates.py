"""Updates of our own in the form of the stored ones, from the loops of reference.py.

The stored ones start from one step size for every parameter. These differ by parameter
and entry, some below 0, so that a replay which takes the initial step sizes from
anywhere but the file goes astray. Numpy float64; no line of the library has a part.
"""

import functools
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import reference
from reference import Tree
from stored_updates import Stored

D, H, Y = 3, 4, 3
B, K, CAPACITY, REPLAY = 5, 2, 6, 3
MAX_NORM = 0.5  # below most norms here, so that clipping is active
NAMES = ("w1", "b1", "w2", "b2")
CONFIG = [["linear", [H, D]], ["tanh", []], ["linear", [Y, H]]]
Case = namedtuple(
    "Case", "seed multi_head sync_update learn_lr second_order", defaults=[False] * 4
)

LAMAML = {
    "own_async_fo": Case(1, learn_lr=True),
    "own_async_so": Case(2, learn_lr=True, second_order=True),
    "own_multi_sync_so": Case(
        3, multi_head=True, sync_update=True, learn_lr=True, second_order=True
    ),
    "own_cmaml_fo": Case(4, sync_update=True),
}
LA_ER = {
    "own_laer_multi_so": Case(5, multi_head=True, second_order=True),
    "own_laer_single_fo": Case(6),
}


def torch_layout(tree) -> list[np.ndarray]:
    """Leaves in the file's order; a matrix is (out, in)."""
    return [tree[name].T for name in NAMES]


def file(prefix, tree) -> Tree:
    return {f"{prefix}/{j}": leaf for j, leaf in enumerate(torch_layout(tree))}


def arguments(case) -> dict[str, Any]:
    """The recorded options; ``alpha_init`` is not where the step sizes start."""
    return {
        **case._asdict(),
        "alpha_init": 0.1,
        "opt_lr": 0.3,
        "opt_wt": 0.2,
        "lr": 0.05,
        "grad_clip_norm": MAX_NORM,
        "memories": CAPACITY,
        "replay_batch_size": REPLAY,
    }


def rows_of(rows) -> Tree:
    """Arrays x, y, t of a list of rows; there is one task, number 0."""
    x, y = (np.stack(part) for part in zip(*rows, strict=True))
    return {"x": x, "y": y, "t": np.zeros_like(y)}


def batch_of(rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = rows_of(rows)
    return arrays["x"], arrays["y"], np.ones(len(rows), bool)


def inner_rule(case, objective="mean") -> dict[str, Any]:
    """Raw step sizes and a clip in the multi-head code and in all of La-ER."""
    is_raw = case.multi_head or objective == "last"
    return {"rectify": not is_raw, "clip": MAX_NORM if is_raw else None}


def meta_gradient(
    case, weights, step_sizes, support, query, objective
) -> reference.MetaGradient:
    return reference.meta_gradient(
        reference.tanh_net(),
        weights,
        step_sizes,
        [batch_of(rows) for rows in support],
        batch_of(query),
        objective=objective,
        first_order=not case.second_order,
        **inner_rule(case, objective),
    )


def lamaml_update(
    case, weights, step_sizes, support, query
) -> tuple[Tree, Tree, Tree, float]:
    """One update: new weights and step sizes, and what the file holds of it."""
    found = meta_gradient(case, weights, step_sizes, support, query, "mean")
    path = reference.adapt(
        reference.tanh_net(),
        weights,
        step_sizes,
        [batch_of(rows) for rows in support],
        **inner_rule(case),
    ).path
    record = file("grad/param@0", found.weights)
    record |= file("grad/alpha@0", found.step_sizes)
    for i, loss in enumerate(found.query_losses):
        record[f"inner/{i}/meta_loss"] = np.array(loss)
        record |= file(f"inner/{i}/fast", path[i + 1])
    norms = map(reference.global_norm, (found.weights, found.step_sizes))
    record["clip"] = np.array([[half, n, MAX_NORM] for half, n in enumerate(norms)])
    args = arguments(case)
    weights, step_sizes = reference.meta_update(
        weights,
        step_sizes,
        found.weights,
        found.step_sizes,
        max_norm=MAX_NORM,
        eta=args["opt_lr"] if case.learn_lr else 0.0,
        weight_rate=args["opt_wt"] if case.sync_update else None,
    )
    return weights, step_sizes, record, found.meta_loss


def la_er_update(
    case, weights, step_sizes, support, query
) -> tuple[Tree, Tree, Tree, float]:
    """Step sizes by the last inner step's loss, weights by the loss at the start."""
    found = meta_gradient(case, weights, step_sizes, support, query, "last")
    problem, batch = reference.tanh_net(), batch_of(query)
    loss, grads = problem.loss(weights, batch), problem.grad(weights, batch)
    norms = map(reference.global_norm, (found.weights, found.step_sizes, grads))
    record = {
        "losses": np.array([found.meta_loss, loss]),
        "clip": np.array([[0, n, MAX_NORM] for n in norms]),
    }
    weights, step_sizes = reference.meta_update(
        weights,
        step_sizes,
        grads,
        found.step_sizes,
        max_norm=MAX_NORM,
        eta=arguments(case)["opt_lr"],
    )
    return weights, step_sizes, record, loss


def make(case, update) -> Stored:
    """Two calls of two glances each, with a memory by the published rule."""
    rng = np.random.default_rng(case.seed)
    shapes = {"w1": (D, H), "b1": (H,), "w2": (H, Y), "b2": (Y,)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    step_sizes = {
        name: rng.uniform(-0.1, 0.1) + rng.uniform(0.0, 0.4, shape)
        for name, shape in shapes.items()
    }
    arrays = file("init/param", weights) | file("init/alpha", step_sizes)
    memory, num_seen, m = [], 0, 0
    for k in range(2):
        rows = [(rng.normal(size=D), rng.integers(Y)) for _ in range(B)]
        incoming = rows_of(rows)
        arrays |= {f"obs/{k}/x": incoming["x"], f"obs/{k}/y": incoming["y"]}
        arrays[f"obs/{k}/t"] = np.array(0)
        for glance in range(2):
            rows = [rows[i] for i in rng.permutation(B)]
            size = -(-B // K)
            support = [rows[i * size : (i + 1) * size] for i in range(K)]
            replay = rng.integers(len(memory), size=REPLAY) if memory else np.zeros(0)
            replay = replay.astype(int)
            query = [memory[i] for i in replay] + rows
            of_update = {
                "obs": np.array(k),
                "mem_len": np.array(len(memory)),
                "mem_is_M": np.array(0),
                "replay_idx": replay,
                **{f"b{name}": part for name, part in rows_of(query).items()},
            }
            for i, inner in enumerate(support):
                for name, part in rows_of(inner).items():
                    of_update[f"inner/{i}/{name}"] = part
            weights, step_sizes, record, loss = update(
                case, weights, step_sizes, support, query
            )
            of_update |= record
            of_update |= file("param", weights) | file("alpha", step_sizes)
            arrays |= {f"upd/{m}/{name}": part for name, part in of_update.items()}
            m += 1
            if glance == 0:
                nth = num_seen + 1 + np.arange(B)
                draws = rng.integers(0, nth + 1)
                memory, num_seen = reference.reservoir_insert(
                    memory, num_seen, CAPACITY, rows, draws, np.ones(B, bool)
                )
                drawn = [(0, n, d) for n, d in zip(nth, draws, strict=True)]
                drawn = [triple for triple in drawn if triple[1] > CAPACITY]
                arrays[f"obs/{k}/randint"] = np.array(drawn, int)
                for name, part in rows_of(memory).items():
                    arrays[f"obs/{k}/Mnew_{name}"] = part
        arrays[f"obs/{k}/loss"] = np.array(loss)
    arrays["eval/x"] = rng.normal(size=(4, D))
    hidden = np.tanh(arrays["eval/x"] @ weights["w1"] + weights["b1"])
    arrays["eval/out/0"] = hidden @ weights["w2"] + weights["b2"]
    meta = {
        "dtype": "f64",
        "config": CONFIG,
        "multi_head": case.multi_head,
        "nc_per_task": Y,
        "args": arguments(case),
    }
    return Stored(meta, arrays)


def cases(family) -> dict[str, Callable[[], Stored]]:
    """Functions without arguments that make the updates of a family, by name."""
    named, update = {
        "lamaml": (LAMAML, lamaml_update),
        "laer": (LA_ER, la_er_update),
    }[family]
    return {name: functools.partial(make, case, update) for name, case in named.items()}
