"""Give back the pages of program text that starting up has touched once and nothing touches again.

Loading onnxruntime and making a session run through some 20 MB of its code, most of it never again. Those pages are
clean copies of a file: the kernel may drop them, and reads again whatever is needed after all. On a device it would
do so once memory is short; here it is asked to at once. Linux only; elsewhere nothing happens.
"""

import ctypes
import mmap
from pathlib import Path

MAPS = Path("/proc/self/maps")
TEXT = "r-xp"  # never what the loader has written to: that is private, and would be lost


def drop_untouched_text() -> int:
    """Ask the kernel to drop the text of every loaded library; the number of bytes that this spoke of."""
    try:
        maps = MAPS.read_text()
        madvise = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return 0
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    total = 0
    for line in maps.splitlines():
        span, mode, _, _, inode, *_ = line.split(maxsplit=5)
        if mode != TEXT or inode == "0":
            continue
        start, end = (int(part, 16) for part in span.split("-"))
        if madvise(start, end - start, mmap.MADV_DONTNEED) == 0:
            total += end - start
    return total
