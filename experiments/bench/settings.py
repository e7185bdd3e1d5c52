"""What a measurement is told."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.benchmarks import Benchmark
from experiments.run_folder.measurements import Result


def _forget(results: Sequence[Result]) -> None:
    del results


class Settings(NamedTuple):
    """What is measured, and how long."""

    benchmark: Benchmark
    data_dir: Path | None
    rounds: int
    """Alternations; medians over them are reported."""
    quick: bool
    """Smallest sizes, to see that everything works; its times mean little."""
    keep: Callable[[Sequence[Result]], None] = _forget
    """Given what is measured so far by what may take minutes more, or never end."""

    @property
    def overrides(self) -> dict[str, Any]:
        """Hyper-parameters that make a program quick to compile, if it need be."""
        return {"inner_steps": 2} if self.quick else {}
