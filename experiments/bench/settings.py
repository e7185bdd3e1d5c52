"""What a measurement is told."""

from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import Benchmark


class Settings(NamedTuple):
    """What is measured, and how long."""

    benchmark: Benchmark
    data_dir: Path | None
    rounds: int
    """Alternations; medians over them are reported."""
    quick: bool
    """Smallest sizes, to see that everything works; its times mean little."""

    @property
    def overrides(self) -> dict[str, int]:
        """Hyper-parameters that make a program quick to compile, if it need be."""
        return {"inner_steps": 2} if self.quick else {}
