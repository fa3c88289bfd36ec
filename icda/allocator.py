"""How the C library hands out memory: what freed tensors took is kept for the next ones."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # numbers of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory in the process rather than give it back to the system.

    By default every array above 32 MB is mapped anew, and the system clears and hands out its pages one by one as
    they are first written, which on a CPU takes longer than what many layers compute: copying, normalising or
    rectifying a map of 34 MB takes 2 to 6 times as long. A process that calls this reuses its pages instead, and
    keeps what it once had until it ends. To be called at the start of a program that computes on large arrays;
    processes that are forked from it do the same.

    Returns:
        Whether it does; False with another C library than glibc, and where the environment variables
        ``MALLOC_MMAP_MAX_`` or ``MALLOC_TRIM_THRESHOLD_`` say what a person wants.
    """
    if platform.libc_ver()[0] != "glibc" or _told():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def return_freed_memory(above: int = 0) -> None:
    """Give back to the system what is kept and free at the moment, where the C library can.

    Args:
        above: Bytes that may stay (``freed_memory``), since pages that are given back cost time when they are needed
            again. Where a person has said by the environment what stays, nothing is done unless this is 0.
    """
    if platform.libc_ver()[0] == "glibc" and (not above or (not _told() and freed_memory() > above)):
        ctypes.CDLL(None).malloc_trim(0)


def freed_memory() -> int:
    """Bytes that the process holds of its own and does not use: resident ones that ``malloc`` has not handed out.

    What libraries and the interpreter hold beside ``malloc`` counts, too: some 100 MB. 0 where it is not known: with
    other C libraries than glibc 2.33 or later, and where there is no /proc.
    """
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None) if platform.libc_ver()[0] == "glibc" else None
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    except OSError:
        return 0
    if mallinfo is None:
        return 0
    mallinfo.restype = _MallInfo
    used = mallinfo()
    return max((resident - shared) * os.sysconf("SC_PAGE_SIZE") - used.uordblks - used.hblkhd, 0)


def _told() -> bool:
    """Whether a person has said by the environment what the C library is to keep."""
    return bool({"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys())


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc's malloc.h: uordblks bytes are in use within its heaps, hblkhd mapped apart."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]
