"""What is freed goes back to the system."""

import sys

import pytest
from processes import ended, start

PIECES = """
import ctypes, os
from pathlib import Path
from experiments.support.memory import return_freed

def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
# Pieces too small for pages of their own, the last of which stays.
pieces = [libc.malloc(50_000) for _ in range(4000)]
for piece in pieces:
    ctypes.memset(ctypes.c_void_p(piece), 1, 50_000)
for piece in pieces[:-1]:
    libc.free(piece)
before = resident_mb()
return_freed()
print(before - resident_mb() > 150)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_freed_pieces_go_back_to_the_system():
    assert ended(start([sys.executable, "-c", PIECES])) == "True\n"
