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
    if platform.libc_ver()[0] != "glibc" or {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def return_freed_memory(above: int = 0) -> None:
    """Give back to the system what is kept and free at the moment, where the C library can.

    Args:
        above: Bytes that may stay (``freed_memory``); below them nothing is done, since pages that are given back
            cost time when they are needed again.
    """
    if platform.libc_ver()[0] == "glibc" and (not above or freed_memory() > above):
        ctypes.CDLL(None).malloc_trim(0)


def freed_memory() -> int:
    """Bytes that the process holds and does not use: resident ones without those that ``malloc`` has handed out.

    Code and data of libraries count, too: some hundred MB. 0 where it is not known: with other C libraries than glibc
    2.33 or later on Linux.
    """
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None) if platform.libc_ver()[0] == "glibc" else None
    if mallinfo is None:
        return 0
    mallinfo.restype = _MallInfo
    used = mallinfo()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return max(resident - used.uordblks - used.hblkhd, 0)


class _MallInfo(ctypes.Structure):
    """``struct mallinfo2`` of glibc's malloc.h: uordblks bytes are in use within its heaps, hblkhd mapped apart."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]
