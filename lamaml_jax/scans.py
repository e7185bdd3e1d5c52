"""Scans over the inner steps whose memory is bounded by recomputing them."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")
Back = TypeVar("Back")
X = TypeVar("X")
Out = TypeVar("Out")
BackOut = TypeVar("BackOut")

REMAT_POLICIES = (True, False, "sqrt")


def _split(xs: X) -> tuple[X, X]:
    """Cuts K steps, leaves [K, ...], into segments of L = ceil(sqrt(K)) and a lead.

    Returns:
        ``lead`` with leaves [K mod L, ...], then ``segments`` with [K // L, L, ...].
    """
    num_steps = jax.tree.leaves(xs)[0].shape[0]
    length = math.isqrt(num_steps - 1) + 1
    cut = num_steps % length
    lead = jax.tree.map(lambda leaf: leaf[:cut], xs)
    segments = jax.tree.map(
        lambda leaf: leaf[cut:].reshape(-1, length, *leaf.shape[1:]), xs
    )
    return lead, segments


def _join(lead: X, segments: X) -> X:
    """Undoes ``_split``."""
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first, rest.reshape(-1, *rest.shape[2:])]),
        lead,
        segments,
    )


def checkpointed_scan(
    step: Callable[[Carry, X], tuple[Carry, Out]],
    carry: Carry,
    xs: X,
    *,
    remat: bool | str,
    unroll: int,
) -> tuple[Carry, Out]:
    """``jax.lax.scan`` whose backward pass recomputes what ``remat`` says.

    Args:
        step: ``(carry, x) -> (carry, out)``.
        carry: what the first step starts from.
        xs: pytree with leaves [K, ...].
        remat: False keeps all residuals, True the K carries, ``"sqrt"`` about 2 sqrt(K)
            of them.
        unroll: steps unrolled in one iteration.

    Returns:
        The last carry and the outputs, stacked along K.
    """
    body = jax.checkpoint(step, prevent_cse=False) if remat else step

    def run(carry: Carry, xs: X) -> tuple[Carry, Out]:
        return jax.lax.scan(body, carry, xs, unroll=unroll)

    if remat != "sqrt":
        return run(carry, xs)
    lead, segments = _split(xs)
    carry, first = run(carry, lead)
    run_again = jax.checkpoint(run, prevent_cse=False)
    carry, rest = jax.lax.scan(run_again, carry, segments)
    return carry, _join(first, rest)


def there_and_back(
    step: Callable[[Carry, X], tuple[Carry, Out]],
    step_back: Callable[[Back, tuple[Carry, X]], tuple[Back, BackOut]],
    carry: Carry,
    turn: Callable[[Carry], Back],
    xs: X,
    *,
    remat: bool | str,
    unroll: int,
) -> tuple[Back, Out, BackOut]:
    """Scans K steps forward, and then visits each of them once on the way back.

    Args:
        step: ``(carry, x) -> (carry, out)``, the way there.
        step_back: ``(back, (carry, x)) -> (back, out)`` with the carry from which
            ``step`` went on with ``x``, the last step first.
        carry: what the first step starts from.
        turn: the first ``back``, made of the last carry.
        xs: pytree with leaves [K, ...].
        remat: True keeps the K carries for the way back; ``"sqrt"`` the first carry of
            each of about sqrt(K) segments, which the way back runs forward again.
        unroll: steps unrolled in one iteration.

    Returns:
        The last ``back``, and the outputs of both ways, each stacked along K.
    """
    # The checkpoints cost nothing here. They bound the memory of whoever
    # differentiates both ways again.
    step = jax.checkpoint(step, prevent_cse=False)
    step_back = jax.checkpoint(step_back, prevent_cse=False)

    def keep(carry: Carry, x: X) -> tuple[Carry, tuple[Carry, Out]]:
        after, out = step(carry, x)
        return after, (carry, out)

    def keep_first(carry: Carry, xs: X) -> tuple[Carry, tuple[Carry, Out]]:
        after, outs = jax.lax.scan(step, carry, xs, unroll=unroll)
        return after, (carry, outs)

    def segment_back(back: Back, inputs: tuple[Carry, X]) -> tuple[Back, BackOut]:
        first, xs = inputs
        _, (carries, _) = jax.lax.scan(keep, first, xs, unroll=unroll)
        return jax.lax.scan(step_back, back, (carries, xs), reverse=True, unroll=unroll)

    if remat != "sqrt":
        carry, (carries, outs) = jax.lax.scan(keep, carry, xs, unroll=unroll)
        back, back_outs = jax.lax.scan(
            step_back, turn(carry), (carries, xs), reverse=True, unroll=unroll
        )
        return back, outs, back_outs
    lead, segments = _split(xs)
    carry, (carries, outs) = jax.lax.scan(keep, carry, lead, unroll=unroll)
    carry, (firsts, more_outs) = jax.lax.scan(keep_first, carry, segments)
    back, more_back_outs = jax.lax.scan(
        segment_back, turn(carry), (firsts, segments), reverse=True
    )
    back, back_outs = jax.lax.scan(
        step_back, back, (carries, lead), reverse=True, unroll=unroll
    )
    return back, _join(outs, more_outs), _join(back_outs, more_back_outs)
