"""Speed and memory, as ratios measured in one process; see ``BENCHES``."""

from collections.abc import Callable, Sequence

from experiments.bench import (
    compilation,
    meta_gradient,
    reservoir,
    scaling,
    stream,
    update,
)
from experiments.bench.results import Result, Settings, read, show, write

__all__ = ["BENCHES", "Result", "Settings", "read", "show", "write"]

BENCHES: dict[str, Callable[[Settings], Sequence[Result]]] = {
    "update": update.measure,
    "meta-gradient": meta_gradient.measure,
    "reservoir": reservoir.measure,
    "stream": stream.measure,
    "compile": compilation.measure,
    "scaling": scaling.measure,
}
