"""Standard output and error take every character, whatever their encoding lacks."""

import codecs
import os
import sys

from rich.console import Console

_ERRORS = "experiments.spelt"
_SPELT = {
    **{"±": "+-", "…": "...", "\u2212": "-", "\u00d7": "x", "━": "-"},
    **{"\u2013": "-", "\u2014": "-", "\u2018": "'", "\u2019": "'"},
}


class LastingConsole(Console):
    """A console whose reader may leave, as ``| head`` does, without ending a run."""

    def on_broken_pipe(self) -> None:
        """Says nothing from now on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Gives what stands for characters that an encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SPELT.get(letter, "?") for letter in missing), error.end


def never_fail() -> None:
    """Makes standard output and error replace what they cannot encode, from now on.

    A run must not be lost because a terminal or a log file lacks a character. Streams
    that are no text files of Python's, such as a notebook's, are left alone.
    """
    codecs.register_error(_ERRORS, _spell)
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors=_ERRORS)
