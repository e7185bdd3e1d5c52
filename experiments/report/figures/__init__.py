"""Figures of a benchmark's runs; matplotlib is imported when the first is drawn."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments import run_folder
from experiments.report import wording
from experiments.report.entries import Entry
from experiments.report.figures.accuracy import bars, matrices
from experiments.report.figures.common import DPI, RC, WIDTH_IN, evaluated
from experiments.report.figures.compute import compute
from experiments.report.figures.curves import anytime, curves
from experiments.report.figures.scaling import scaling
from experiments.report.figures.training import alignment, probes, step_sizes

__all__ = [
    "DPI",
    "FORMATS",
    "KINDS",
    "RC",
    "WIDTH_IN",
    "alignment",
    "anytime",
    "bars",
    "compute",
    "curves",
    "evaluated",
    "matrices",
    "probes",
    "save",
    "scaling",
    "step_sizes",
    "write",
]

KINDS: dict[str, Callable[[str, Sequence[Entry]], Any | None]] = {
    "bars": bars,
    "curves": curves,
    "anytime": anytime,
    "tasks": matrices,
    "probes": probes,
    "step-sizes": step_sizes,
    "alignment": alignment,
    "compute": compute,
}
"""A kind returns None where no run has what it shows."""


FORMATS = ("svg", "pdf")
"""What figures can be written as beside PNG."""


def write(
    out_dir: Path, benchmark: str, entries: Sequence[Entry], formats: Sequence[str] = ()
) -> list[Path]:
    """Draws what figures a benchmark has and writes them as PNG, and as asked.

    Args:
        out_dir: an existing folder.
        benchmark: begins the file names, and in words stands above the figures.
        entries: its runs, best first.
        formats: of ``FORMATS``.

    Returns:
        The files; the same entries give the same bytes.

    Raises:
        RunFolderError: a file cannot be written.
    """
    from matplotlib import rc_context

    files, title = [], wording.benchmark_title(benchmark)
    with rc_context(RC):
        for kind, draw in KINDS.items():
            figure = draw(title, entries)
            if figure is not None:
                files += _save(figure, out_dir / f"{benchmark}_{kind}", formats)
    return files


def save(
    draw: Callable[[], Any], path: Path, formats: Sequence[str] = ()
) -> list[Path]:
    """Draws one figure and writes it as PNG, and in ``formats``, beside ``path``."""
    from matplotlib import rc_context

    with rc_context(RC):
        return _save(draw(), path, formats)


# Without a date, so that the same runs give the same bytes.
_METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def _compact(png: bytes) -> bytes:
    """The same picture in 256 colours, which take a third of the bytes.

    They are chosen to come near every colour that occurs, also the rare ones: colours
    mean something.
    """
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        few = picture.convert("RGB").quantize(
            256,
            method=Image.Quantize.MAXCOVERAGE,
            kmeans=2,
            dither=Image.Dither.NONE,
        )
        few.save(buffer, format="png", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def _save(figure: Any, path: Path, formats: Sequence[str]) -> list[Path]:
    files = []
    for suffix in dict.fromkeys(("png", *formats)):
        file = path.with_name(f"{path.name}.{suffix}")
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=_METADATA.get(suffix))
        data = buffer.getvalue()
        run_folder.write_file(file, _compact(data) if suffix == "png" else data)
        files.append(file)
    return files
