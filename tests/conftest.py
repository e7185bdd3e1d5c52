"""Strict flags for every test, what a process keeps, and fixtures that tests share."""

import collections
import os
import sys
from collections.abc import Iterator

import jax
import pytest
from compiling import compile_cheaply

# Before the backend starts: programs that compile in the shortest time, and two CPU
# devices, over which runs of several seeds shard, or as many as a test asks for that
# starts another process.
compile_cheaply()
jax.config.update("jax_num_cpu_devices", int(os.environ.get("LAMAML_TEST_DEVICES", 2)))
jax.config.update("jax_numpy_rank_promotion", "raise")

# XLA was once seen to crash in a process that kept programs of 5 GB, while it compiled
# another. Small ones take a MB each.
MOST_PROGRAMS = 500
_compiled = collections.Counter()
_peaks: dict[str, float] = {}


def _count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    _compiled["programs"] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and jax.default_backend() == "cpu":
        pytest.skip("needs an accelerator; only the CPU is present")


def pytest_runtest_teardown() -> None:
    """Frees what was compiled, once it is a lot: many tests need the same."""
    if _compiled["programs"] > MOST_PROGRAMS:
        jax.clear_caches()
        _compiled.clear()


def _peak_gb() -> float:
    """The most memory that this process has had, in GB; 0 where that is unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e6)


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["peak_gb"] = _peak_gb()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error: object) -> None:
    output = getattr(node, "workeroutput", {})  # none of one that crashed
    _peaks[node.gateway.id] = output.get("peak_gb", float("nan"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    peaks = _peaks or {"this process": _peak_gb()}
    text = ", ".join(f"{name} {peak:.1f} GB" for name, peak in sorted(peaks.items()))
    terminalreporter.write_line(f"peak memory: {text}")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs the test with 64-bit types."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_dtypes() -> Iterator[None]:
    """Raises on implicit dtype promotion; optax's own optimisers need it off."""
    with jax.numpy_dtype_promotion("strict"):
        yield
