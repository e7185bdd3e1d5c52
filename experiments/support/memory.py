"""Memory of the process."""

import ctypes
import sys


def return_freed() -> None:
    """Gives freed memory back to the system; does nothing where glibc is not there.

    XLA frees what it needed to compile, gigabytes for a deep network, in pieces that
    glibc would keep for the process.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
