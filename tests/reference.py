"""The algorithm in numpy float64 loops, derived by hand; imports neither jax nor ours.

Weights, step sizes and gradients are dicts of arrays. An inner batch or a query is a
tuple of arrays whose last entry is a boolean mask of rows.

A problem is three functions of weights and a batch: the mean loss over valid rows, its
gradient, and its Hessian times a direction.
"""

from collections import Counter, namedtuple
from typing import Any

import numpy as np

Tree = dict[str, Any]
"""Arrays of float64 by name."""
Problem = namedtuple("Problem", ["loss", "grad", "hessian_product"])
Adaptation = namedtuple("Adaptation", ["path", "raw_grads", "grads", "losses"])
MetaGradient = namedtuple(
    "MetaGradient",
    ["meta_loss", "weights", "step_sizes", "inner_losses", "query_losses", "alignment"],
)


# Problems ---------------------------------------------------------------------------


def quadratic(hessian) -> Problem:
    """Mean over rows x of (w - x)' A (w - x) / 2 for symmetric A; weights {"w": [D]}.

    Gradient A (w - mean x), Hessian A; both 0 where no row is valid.
    """
    hessian = np.asarray(hessian, np.float64)

    def loss(weights, batch) -> float:
        rows, mask = batch
        total = 0.0
        for row in rows[mask]:
            gap = weights["w"] - row
            total += gap @ hessian @ gap / 2
        return total / max(mask.sum(), 1)

    def grad(weights, batch) -> Tree:
        rows, mask = batch
        if not mask.any():
            return {"w": np.zeros_like(weights["w"])}
        return {"w": hessian @ (weights["w"] - rows[mask].mean(axis=0))}

    def hessian_product(weights, direction, batch) -> Tree:
        if not batch[-1].any():
            return {"w": np.zeros_like(weights["w"])}
        return {"w": hessian @ direction["w"]}

    return Problem(loss, grad, hessian_product)


def _softmax(logits) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _net_forward(weights, inputs) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.tanh(inputs @ weights["w1"] + weights["b1"])
    return hidden, hidden @ weights["w2"] + weights["b2"]


def _net_loss(weights, batch) -> float:
    inputs, labels, mask = batch
    _, logits = _net_forward(weights, inputs)
    total = 0.0
    for row, label, valid in zip(logits, labels, mask, strict=True):
        if valid:
            top = row.max()
            total += top + np.log(np.exp(row - top).sum()) - row[label]
    return total / max(mask.sum(), 1)


def _net_grad(weights, batch) -> Tree:
    inputs, labels, mask = batch
    hidden, logits = _net_forward(weights, inputs)
    one_hot = np.eye(logits.shape[1])[labels]
    row_weight = (mask / max(mask.sum(), 1))[:, None]
    at_logits = (_softmax(logits) - one_hot) * row_weight
    at_hidden = (at_logits @ weights["w2"].T) * (1 - hidden**2)
    return {
        "w1": inputs.T @ at_hidden,
        "b1": at_hidden.sum(axis=0),
        "w2": hidden.T @ at_logits,
        "b2": at_logits.sum(axis=0),
    }


def _net_hessian_product(weights, direction, batch) -> Tree:
    """Applies d/dt at t = 0 of weights + t direction to every line of ``_net_grad``."""
    inputs, labels, mask = batch
    hidden, logits = _net_forward(weights, inputs)
    probabilities = _softmax(logits)
    one_hot = np.eye(logits.shape[1])[labels]
    row_weight = (mask / max(mask.sum(), 1))[:, None]
    slope = 1 - hidden**2

    hidden_dot = slope * (inputs @ direction["w1"] + direction["b1"])
    logits_dot = hidden_dot @ weights["w2"] + hidden @ direction["w2"] + direction["b2"]
    mean_dot = (probabilities * logits_dot).sum(axis=1, keepdims=True)
    probabilities_dot = probabilities * (logits_dot - mean_dot)

    at_logits = (probabilities - one_hot) * row_weight
    at_logits_dot = probabilities_dot * row_weight
    back = at_logits @ weights["w2"].T
    back_dot = at_logits_dot @ weights["w2"].T + at_logits @ direction["w2"].T
    at_hidden_dot = back_dot * slope - back * 2 * hidden * hidden_dot
    return {
        "w1": inputs.T @ at_hidden_dot,
        "b1": at_hidden_dot.sum(axis=0),
        "w2": hidden_dot.T @ at_logits + hidden.T @ at_logits_dot,
        "b2": at_logits_dot.sum(axis=0),
    }


def tanh_net() -> Problem:
    """Softmax cross-entropy of a net with one tanh layer; batch (inputs, labels, mask).

    Weights "w1" [D, H], "b1" [H], "w2" [H, Y], "b2" [Y].
    """
    return Problem(_net_loss, _net_grad, _net_hessian_product)


# Adaptation and its gradient --------------------------------------------------------


def _rectified(rate, rectify) -> np.ndarray:
    return np.where(rate > 0, rate, 0.0) if rectify else rate


def _rectified_slope(rate, rectify) -> np.ndarray:
    return np.where(rate > 0, 1.0, 0.0) if rectify else np.ones_like(rate)


def _clip(grad, bound) -> np.ndarray:
    return grad if bound is None else np.minimum(np.maximum(grad, -bound), bound)


def _clip_slope(grad, bound) -> np.ndarray:
    if bound is None:
        return np.ones_like(grad)
    return np.where(np.abs(grad) < bound, 1.0, 0.0)


def adapt(
    problem, weights, step_sizes, support, *, rectify, clip, frozen=()
) -> Adaptation:
    """K steps ``w <- w - rect(a) * clip(grad)``; leaves named in ``frozen`` stay."""
    path, raw_grads, grads, losses = [weights], [], [], []
    for batch in support:
        current = path[-1]
        losses.append(problem.loss(current, batch))
        raw = problem.grad(current, batch)
        taken = {
            name: np.zeros_like(grad) if name in frozen else _clip(grad, clip)
            for name, grad in raw.items()
        }
        path.append(
            {
                name: current[name]
                - _rectified(step_sizes[name], rectify) * taken[name]
                for name in current
            }
        )
        raw_grads.append(raw)
        grads.append(taken)
    return Adaptation(path, raw_grads, grads, losses)


def pull_back(
    problem,
    adaptation,
    step_sizes,
    support,
    at_path,
    *,
    first_order,
    rectify,
    clip,
    frozen=(),
) -> tuple[Tree, Tree]:
    """Gradients in w and a of a function with gradients ``at_path[i - 1]`` at w_i.

    With v_i the total gradient at w_i, going back from v_K = c_K:
    g_a += -rect'(a) g_i v_i, and, as dw_i/dw_{i-1} = I - rect(a) clip'(g_i) H_i,
    v_{i-1} = v_i - H_i (clip'(g_i) rect(a) v_i) + c_{i-1}. First order drops H.
    """
    v = {name: np.zeros_like(value) for name, value in step_sizes.items()}
    at_step_sizes = {name: np.zeros_like(value) for name, value in step_sizes.items()}
    for i in reversed(range(len(support))):
        v = {name: v[name] + at_path[i][name] for name in v}
        for name in v:
            slope = _rectified_slope(step_sizes[name], rectify)
            at_step_sizes[name] -= slope * adaptation.grads[i][name] * v[name]
        if not first_order:
            direction = {
                name: np.zeros_like(v[name])
                if name in frozen
                else _clip_slope(adaptation.raw_grads[i][name], clip)
                * _rectified(step_sizes[name], rectify)
                * v[name]
                for name in v
            }
            product = problem.hessian_product(adaptation.path[i], direction, support[i])
            v = {name: v[name] - product[name] for name in v}
    return v, at_step_sizes


def meta_gradient(
    problem,
    weights,
    step_sizes,
    support,
    query,
    *,
    objective,
    first_order,
    rectify,
    clip,
    frozen=(),
) -> MetaGradient:
    """Meta-loss and its gradients; ``objective`` "mean" over w_1..w_K, or "last"."""
    steps = len(support)
    adaptation = adapt(
        problem,
        weights,
        step_sizes,
        support,
        rectify=rectify,
        clip=clip,
        frozen=frozen,
    )
    shares = [1 / steps if objective == "mean" else 0.0] * steps
    if objective == "last":
        shares[-1] = 1.0
    at_path, query_losses = [], []
    for i in range(steps):
        grad = problem.grad(adaptation.path[i + 1], query)
        at_path.append({name: shares[i] * g for name, g in grad.items()})
        if shares[i]:
            query_losses.append(problem.loss(adaptation.path[i + 1], query))
    at_weights, at_step_sizes = pull_back(
        problem,
        adaptation,
        step_sizes,
        support,
        at_path,
        first_order=first_order,
        rectify=rectify,
        clip=clip,
        frozen=frozen,
    )
    summed = {name: sum(grads[name] for grads in adaptation.grads) for name in weights}
    norms = global_norm(summed) * global_norm(at_weights)
    product = sum((summed[name] * at_weights[name]).sum() for name in weights)
    return MetaGradient(
        sum(query_losses) / len(query_losses),
        at_weights,
        at_step_sizes,
        adaptation.losses,
        query_losses,
        product / norms if norms > 0 else 0.0,
    )


# The meta-update --------------------------------------------------------------------


def global_norm(tree) -> float:
    return np.sqrt(sum((value**2).sum() for value in tree.values()))


def clip_by_norm(tree, max_norm, eps=1e-6) -> Tree:
    factor = min(1.0, max_norm / (global_norm(tree) + eps))
    return {name: factor * value for name, value in tree.items()}


def meta_update(
    weights, step_sizes, at_weights, at_step_sizes, *, max_norm, eta, weight_rate=None
) -> tuple[Tree, Tree]:
    """Clips each half, moves the step sizes, then the weights.

    ``weight_rate`` None is the asynchronous rule: the weights move by relu of the step
    sizes just moved. A number is the synchronous rule.
    """
    if max_norm is not None:
        at_weights = clip_by_norm(at_weights, max_norm)
        at_step_sizes = clip_by_norm(at_step_sizes, max_norm)
    step_sizes = {
        name: rate - eta * at_step_sizes[name] for name, rate in step_sizes.items()
    }
    weights = {
        name: value
        - (_rectified(step_sizes[name], True) if weight_rate is None else weight_rate)
        * at_weights[name]
        for name, value in weights.items()
    }
    return weights, step_sizes


# The reservoir ----------------------------------------------------------------------


def reservoir_insert(
    stored, num_seen, capacity, rows, draws, mask
) -> tuple[list[Any], int]:
    """Offers rows one by one; ``stored`` is a list. Returns the new list and count.

    A row that finds the reservoir full goes to its drawn slot if that exists.
    """
    stored = list(stored)
    for row, draw, valid in zip(rows, draws, mask, strict=True):
        if not valid:
            continue
        num_seen += 1
        if len(stored) < capacity:
            stored.append(row)
        elif draw < capacity:
            stored[draw] = row
    return stored, num_seen


def balanced_insert(stored, seen, full, capacity, rows, labels, mask, draw_fn) -> None:
    """Offers rows one by one to a class-balancing reservoir; changes its arguments.

    ``stored`` is a list of pairs (row, class), ``seen`` a count of each class, ``full``
    a set of classes. ``draw_fn(i, limit)`` is the number drawn by row i.
    """
    for i, (row, label, valid) in enumerate(zip(rows, labels, mask, strict=True)):
        if not valid or not 0 <= label < len(seen):
            continue
        seen[label] += 1
        if len(stored) < capacity:
            stored.append((row, label))
        elif label in full:
            own = [slot for slot, (_, other) in enumerate(stored) if other == label]
            draw = draw_fn(i, seen[label])
            if draw < len(own):
                stored[own[draw]] = (row, label)
        else:
            most = largest_classes(stored)
            slots = [slot for slot, (_, other) in enumerate(stored) if other in most]
            stored[slots[draw_fn(i, len(slots)) % len(slots)]] = (row, label)
        if len(stored) == capacity:
            full |= largest_classes(stored)


def largest_classes(stored) -> set[int]:
    counts = Counter(label for _, label in stored)
    return {label for label, n in counts.items() if n == max(counts.values())}


def reservoir_draw_limit(n, acceptance) -> int:
    """Exclusive upper end of the slot drawn by the n-th row (n from 1)."""
    return {"exact": n, "published": n + 1}[acceptance]


def inclusion_probability(position, num_seen, capacity, acceptance) -> float:
    """Chance that the row at ``position`` (from 1) is stored after ``num_seen`` rows.

    Exact rule: C / N for all. Published rule: row n > C enters with C / (n + 1) and
    evicts each stored row with 1 / (n + 1); the product of n / (n + 1) telescopes.
    """
    if num_seen <= capacity:
        return 1.0
    if acceptance == "exact":
        return capacity / num_seen
    entered = 1.0 if position <= capacity else capacity / (position + 1)
    return entered * (max(position, capacity) + 1) / (num_seen + 1)
