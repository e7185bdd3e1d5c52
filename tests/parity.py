"""How close a replay of stored updates must come."""

import jax
import numpy as np
import stored_updates

# Error of a leaf: max |actual - expected| / max |expected|, so that elements that
# cancelled to almost nothing are held to the rounding of their leaf, not to their own.
# Float64 replays differ from torch by the order of sums alone, some 1e-15 per update;
# 1e-10 leaves room for an ill-conditioned draw, and any wrong rule (the 1e-6 beside
# the clipped norm is the smallest) is far above it. Float32 rounds at 6e-8, which K
# nested steps amplify, and the cancellation in the step sizes' gradients (4e-5 seen).
TOLERANCES = {"f64": 1e-10, "f32": 1e-4}


def relative_error(actual, expected) -> float:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = max(np.max(np.abs(expected)), np.finfo(np.float64).tiny)
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    with np.errstate(over="ignore"):
        return float(np.max(difference) / scale)


def assert_close(stored, what, actual, expected) -> None:
    """Compares two trees leaf by leaf; a NaN on either side is a failure."""
    tolerance = TOLERANCES[stored.meta["dtype"]]
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    assert len(actual) == len(expected) > 0, what
    for j, (one, other) in enumerate(zip(actual, expected, strict=True)):
        error = relative_error(one, other)
        assert error <= tolerance, f"{what}, leaf {j}: {error:.2e} > {tolerance:.0e}"


def assert_predictions_close(stored, weights) -> None:
    """Compares the logits of every task after training."""
    found = stored_updates.predictions(stored, weights)
    assert found
    for task, (logits, recorded) in found.items():
        assert_close(stored, f"predictions of task {task}", logits, recorded)
