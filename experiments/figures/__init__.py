"""Figures of a benchmark's runs; matplotlib is imported when the first is drawn."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import run_folder
from experiments.figures.accuracy import bars, curves, evaluated, matrices
from experiments.figures.common import DPI, RC, WIDTH_IN, Entry
from experiments.figures.training import alignment, probes, step_sizes

__all__ = [
    "DPI",
    "KINDS",
    "WIDTH_IN",
    "Entry",
    "alignment",
    "bars",
    "curves",
    "evaluated",
    "matrices",
    "probes",
    "step_sizes",
    "write",
]

KINDS: dict[str, Callable[[str, Sequence[Entry]], Any | None]] = {
    "bars": bars,
    "curves": curves,
    "tasks": matrices,
    "probes": probes,
    "step-sizes": step_sizes,
    "alignment": alignment,
}
"""A kind returns None where no run has what it shows."""


def write(out_dir: Path, title: str, entries: Sequence[Entry]) -> list[Path]:
    """Draws what figures a benchmark has and writes them as PNG and SVG.

    Args:
        out_dir: an existing folder.
        title: the benchmark; begins the file names.
        entries: its runs, best first.

    Returns:
        The files; the same entries give the same bytes.

    Raises:
        RunFolderError: a file cannot be written.
    """
    from matplotlib import rc_context

    files = []
    with rc_context(RC):
        for kind, draw in KINDS.items():
            figure = draw(title, entries)
            if figure is None:
                continue
            for suffix in ("png", "svg"):
                path = out_dir / f"{title}_{kind}.{suffix}"
                buffer = io.BytesIO()
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(buffer, format=suffix, metadata=metadata)
                run_folder.write_file(path, buffer.getvalue())
                files.append(path)
    return files
