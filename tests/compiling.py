"""How tests compile: in the shortest time, or as users do.

Most of the time of these tests goes into compiling thousands of programs that run once
on a few numbers. XLA's emitters of fused loops and LLVM's optimisations take five
sixths of it, and half of a process's memory.
"""

import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jax
import jaxlib

_EMITTERS = "xla_cpu_use_fusion_emitters"
_PARTS = "xla_cpu_parallel_codegen_split_count"
_CHEAP: Mapping[str, str] = MappingProxyType({_EMITTERS: "false", _PARTS: "1"})
AS_USERS_DO: Mapping[str, str] = MappingProxyType(
    {
        "LAMAML_TEST_COMPILER": "as users do",
        "XLA_FLAGS": "",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    }
)
"""The environment of processes that compile with XLA's own settings."""


def _knows(option: str) -> bool:
    """Whether this jaxlib has the option; XLA ends a process that names an unknown.

    Its name is then a string between two zeros. That of an option which is gone stays
    among the reserved names of a message, between other bytes.
    """
    assert jaxlib.__file__ is not None
    name = b"\0" + option.encode() + b"\0"
    for path in Path(jaxlib.__file__).parent.glob("*jax_common*"):
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
        ):
            if library.find(name) >= 0:
                return True
    return False


def compile_cheaply() -> None:
    """Makes this process, and those that it starts, compile in the shortest time.

    Before the backend starts. What the environment says of an option already stays;
    with ``LAMAML_TEST_COMPILER`` in it, so does everything.
    """
    if "LAMAML_TEST_COMPILER" in os.environ:
        return
    given = os.environ.get("XLA_FLAGS", "")
    ours = [
        f"--{name}={value}"
        for name, value in _CHEAP.items()
        if name not in given and _knows(name)
    ]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
    level = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", level.lower() in ("1", "true"))


def compile_as_users_do(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles with XLA's own settings, for tests of what is in a compiled program."""
    options: dict[str, bool | str] = {
        "xla_backend_optimization_level": "3",
        "xla_llvm_disable_expensive_passes": False,
    }
    if _knows(_EMITTERS):
        options[_EMITTERS] = True
    return lowered.compile(compiler_options=options)
