"""Both orders of the meta-gradient without differentiating the meta-loss.

Letters: a step sizes, d_j the direction of inner step j, w_j the fast weights after it,
q_j the query gradient at w_j, c its weight in the meta-loss, ``*`` elementwise.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from lamaml_jax import grain, inner_step, scans, types


class QueryLoss(Protocol):
    """Query loss as a function of the weights, and of a key if it draws numbers."""

    def __call__(self, weights: types.Params, key: types.Key | None, /) -> jax.Array:
        """Returns the query loss at ``weights``, a scalar in nats."""
        ...


class Steps(NamedTuple):
    """Data of one inner step and of the query after it; of all, leaves [K, ...]."""

    inner: inner_step.InnerBatch
    query_key: types.Key | None


class MetaProblem(NamedTuple):
    """A meta-loss, and how its gradients are taken."""

    rule: inner_step.InnerRule
    query_loss: QueryLoss
    at_every_step: bool
    """The meta-loss is the mean over w_1 ... w_K, or taken at w_K only."""
    inner_ad: str
    remat: bool | str
    unroll: int


class MetaSums(NamedTuple):
    """The meta-gradients, and what was summed up beside them."""

    inner_losses: jax.Array
    """[K], nats."""
    query_losses: jax.Array
    """[K], or [1] at w_K, nats."""
    direction_sum: types.Params
    """d_1 + ... + d_K."""
    grads: types.MetaParams


class _Forward(NamedTuple):
    """w_j, inner_tx's state after step j, and the sums of the first order."""

    weights: types.Params
    opt_state: optax.OptState
    direction_sum: types.Params
    weight_sum: types.Params
    rate_sum: types.StepSizes


class _Back(NamedTuple):
    """w_j and the gradients of the meta-loss that pass through it."""

    weights: types.Params
    weight_grads: types.Params
    rate_grads: types.StepSizes
    kept_grads: list[jax.Array]
    """With respect to the floating leaves of inner_tx's state."""
    direction_sum: types.Params
    last_loss: jax.Array


_Here = tuple[types.Params, optax.OptState]


def make_steps(
    support: types.Batch, mask: types.Mask | None, key: types.Key | None, num_steps: int
) -> Steps:
    """Lays out the data of the steps, each with keys of its own if there is one."""
    if key is None:
        return Steps(inner_step.InnerBatch(support, mask, None), None)
    inner_key, query_key = jax.random.split(key)
    inner_keys = jax.random.split(inner_key, num_steps)
    return Steps(
        inner_step.InnerBatch(support, mask, inner_keys),
        jax.random.split(query_key, num_steps),
    )


def last_key(steps: Steps) -> types.Key | None:
    """The key of the query at w_K."""
    return None if steps.query_key is None else steps.query_key[-1]


def _add(total: types.Params, part: types.Params) -> types.Params:
    return jax.tree.map(jnp.add, total, part)


def first_order(
    problem: MetaProblem, params: types.MetaParams, steps: Steps
) -> MetaSums:
    """First order in one forward scan, whose memory does not grow with K.

    With directions constant, ``w_j = w - rect(a) * D_j`` where ``D_j = d_1 + ... +
    d_j``. So ``g_w = c sum_j q_j`` and ``g_a = -c rect'(a) * sum_j D_j * q_j``. Nothing
    here is differentiated or held constant: derivatives of both are the true ones.
    """
    rule, step_sizes = problem.rule, params.step_sizes
    query_value_and_grad = jax.value_and_grad(problem.query_loss)

    def add_query(at: _Forward, key: types.Key | None) -> tuple[_Forward, jax.Array]:
        loss, query_grads = query_value_and_grad(at.weights, key)
        # sum_j q_j, and sum_j D_j * q_j, added up over the weights that share a rate
        weight_sum = _add(at.weight_sum, query_grads)
        products = jax.tree.map(jnp.multiply, at.direction_sum, query_grads)
        rate_sum = _add(at.rate_sum, grain.gather(products, step_sizes))
        return at._replace(weight_sum=weight_sum, rate_sum=rate_sum), loss

    def step(at: _Forward, inputs: Steps) -> tuple[_Forward, tuple[jax.Array, ...]]:
        loss, grads = rule.loss_and_grads(at.weights, inputs.inner)
        directions, opt_state = rule.direct(
            grads, at.opt_state, at.weights, inputs.inner
        )
        at = at._replace(
            weights=rule.move(at.weights, step_sizes, directions),
            opt_state=opt_state,
            direction_sum=_add(at.direction_sum, directions),
        )
        if not problem.at_every_step:
            return at, (loss, loss)
        at, query_loss = add_query(at, inputs.query_key)
        return at, (loss, query_loss)

    weights = params.weights
    zeros = jax.tree.map(jnp.zeros_like, weights)
    rate_zeros = grain.gather(zeros, step_sizes)
    at, (inner_losses, query_losses) = scans.checkpointed_scan(
        step,
        _Forward(weights, rule.init(weights), zeros, zeros, rate_zeros),
        steps,
        remat=bool(problem.remat),
        unroll=problem.unroll,
    )
    if not problem.at_every_step:
        at, loss = add_query(at, last_key(steps))
        query_losses = loss[None]
    c = 1 / query_losses.shape[0]

    def rate_grad(total: jax.Array, rate: jax.Array) -> jax.Array:
        grad = (-c * total).astype(rate.dtype)
        return jnp.where(rate > 0, grad, 0) if rule.rectify else grad

    grads = types.MetaParams(
        jax.tree.map(lambda total: c * total, at.weight_sum),
        jax.tree.map(rate_grad, at.rate_sum, step_sizes),
    )
    return MetaSums(inner_losses, query_losses, at.direction_sum, grads)


def second_order(
    problem: MetaProblem, params: types.MetaParams, steps: Steps
) -> MetaSums:
    """Second order in one reverse recursion, which visits each fast weight once.

    The way there keeps w_0 ... w_{K-1}. On the way back, with J_j the Jacobian of
    direction d_j at w_{j-1}, step j = K ... 1 does::

        g_w <- g_w + c q_j;                   v = rect(a) * g_w
        g_a <- g_a - rect'(a) * d_j * g_w
        g_w <- g_w - J_j^T v

    Differentiating the meta-loss would evaluate every query loss once more.
    """
    rule = problem.rule
    num_steps = jax.tree.leaves(steps)[0].shape[0]
    num_queries = num_steps if problem.at_every_step else 1

    def step(here: _Here, inputs: Steps) -> tuple[_Here, jax.Array]:
        weights, opt_state = here
        loss, grads = rule.loss_and_grads(weights, inputs.inner)
        directions, opt_state = rule.direct(grads, opt_state, weights, inputs.inner)
        return (rule.move(weights, params.step_sizes, directions), opt_state), loss

    def turn(here: _Here) -> _Back:
        weights, opt_state = here
        kept, _ = _split_floating(opt_state)
        zeros = jax.tree.map(jnp.zeros_like, (weights, params.step_sizes, kept))
        back = _Back(weights, *zeros, direction_sum=zeros[0], last_loss=jnp.zeros(()))
        if problem.at_every_step:
            return back
        back, loss = _add_query(problem, back, last_key(steps), num_queries)
        return back._replace(last_loss=loss)

    back, inner_losses, query_losses = scans.there_and_back(
        step,
        functools.partial(_step_back, problem, params.step_sizes, num_queries),
        (params.weights, rule.init(params.weights)),
        turn,
        steps,
        remat=problem.remat,
        unroll=problem.unroll,
    )
    if not problem.at_every_step:
        query_losses = back.last_loss[None]
    grads = types.MetaParams(back.weight_grads, back.rate_grads)
    return MetaSums(inner_losses, query_losses, back.direction_sum, grads)


def _add_query(
    problem: MetaProblem, back: _Back, key: types.Key | None, num_queries: int
) -> tuple[_Back, jax.Array]:
    loss, query_grads = jax.value_and_grad(problem.query_loss)(back.weights, key)
    # g_w <- g_w + c q_j
    add = lambda total, grad: total + grad / num_queries
    weight_grads = jax.tree.map(add, back.weight_grads, query_grads)
    return back._replace(weight_grads=weight_grads), loss


def _step_back(
    problem: MetaProblem,
    step_sizes: types.StepSizes,
    num_queries: int,
    back: _Back,
    inputs: tuple[_Here, Steps],
) -> tuple[_Back, jax.Array]:
    """Pulls the gradients back from w_j to w_{j-1}, in the equations above."""
    rule = problem.rule
    (weights, opt_state), (batch, query_key) = inputs
    loss = back.last_loss
    if problem.at_every_step:
        back, loss = _add_query(problem, back, query_key, num_queries)
    gradient = lambda weights: rule.loss_and_grads(weights, batch)[1]
    grads, hessian_product = _linearize(gradient, weights, problem.inner_ad)
    kept, rebuild = _split_floating(opt_state)

    def direct(
        grads: types.Params, kept: list[jax.Array], weights: types.Params
    ) -> tuple[types.Params, list[jax.Array]]:
        directions, after = rule.direct(grads, rebuild(kept), weights, batch)
        return directions, _split_floating(after)[0]

    (directions, _), pull_direct = jax.vjp(direct, grads, kept, weights)
    _, pull_move = jax.vjp(rule.move, weights, step_sizes, directions)
    # -v = -rect(a) * g_w;  g_a <- g_a - rect'(a) * d_j * g_w
    weight_grads, step_grads, pulled = pull_move(back.weight_grads)
    rate_grads = _add(back.rate_grads, step_grads)
    # g_w <- g_w - J_j^T v: through inner_tx, clip and mask, and then by the Hessian
    pulled, kept_grads, at_weights = pull_direct((pulled, back.kept_grads))
    weight_grads = _add(weight_grads, at_weights)
    weight_grads = _add(weight_grads, hessian_product(pulled))
    direction_sum = _add(back.direction_sum, directions)
    there = weights, weight_grads, rate_grads, kept_grads, direction_sum
    return _Back(*there, back.last_loss), loss


def _linearize(
    gradient: Callable[[types.Params], types.Params], weights: types.Params, mode: str
) -> tuple[types.Params, Callable[[types.Params], types.Params]]:
    """An inner gradient, and the product with its Jacobian, which is symmetric."""
    if mode == "reverse":
        grads, pull = jax.vjp(gradient, weights)
        return grads, lambda cotangents: pull(cotangents)[0]
    product = lambda tangents: jax.jvp(gradient, (weights,), (tangents,))[1]
    return gradient(weights), product


def _split_floating(
    tree: optax.OptState,
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], optax.OptState]]:
    """The floating leaves of a tree, and how to put others in their place."""
    leaves, treedef = jax.tree.flatten(tree)
    is_floating = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]

    def rebuild(floating: list[jax.Array]) -> optax.OptState:
        others = iter(floating)
        pairs = zip(leaves, is_floating, strict=True)
        return treedef.unflatten([next(others) if is_f else x for x, is_f in pairs])

    return [x for x, is_f in zip(leaves, is_floating, strict=True) if is_f], rebuild
