"""Strict flags for every test, and the fixtures they share."""

import os

import jax
import pytest

# Before the backend starts: two CPU devices, over which runs of several seeds shard, or
# as many as a test asks for that starts another process.
jax.config.update("jax_num_cpu_devices", int(os.environ.get("LAMAML_TEST_DEVICES", 2)))
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and jax.default_backend() == "cpu":
        pytest.skip("needs an accelerator; only the CPU is present")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Frees what a module compiled.

    A process that keeps thousands of programs grows to 5 GB, and XLA was once seen to
    crash in one while it compiled another.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Runs the test with 64-bit types."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict_dtypes():
    """Raises on implicit dtype promotion; optax's own optimisers need it off."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def quick_compile():
    """Compiles without XLA's costly passes, for modules of many tiny programs."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def full_compile():
    """Compiles as users do, within a module marked ``quick_compile``."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
