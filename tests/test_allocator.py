"""Freed memory is written again without the system handing out new pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from icda.allocator import freed_memory, keep_freed_memory

COUNT = """
import ctypes
import resource
from icda.allocator import freed_memory, keep_freed_memory, return_freed_memory

c = ctypes.CDLL(None)
c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults(size=64 * 2**20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = c.malloc(size)
    c.memset(place, 1, size)
    c.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = [faults(), faults()]
kept = keep_freed_memory()
again = [faults(), faults()]
held = freed_memory()
return_freed_memory(above=held + 2**20)
stayed = faults()
return_freed_memory(above=held - 2**24)
print(*plain, kept, *again, stayed, faults(), held, freed_memory())
"""


def counted(**environment: str) -> list[str]:
    child = subprocess.run(
        [sys.executable, "-c", COUNT], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return child.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_pages_are_handed_out_once():
    first, second, kept, third, fourth, stayed, returned, held, left = counted()
    pages = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    few = pages // 50
    assert kept == "True"
    assert min(int(first), int(second), int(third), int(returned)) > pages // 2
    assert max(int(fourth), int(stayed)) < few
    assert int(held) - int(left) <= 2**20  # the last call of faults took its pages again
    assert int(held) > 64 * 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_what_a_person_wants_stays():
    _, _, kept, third, fourth, *_ = counted(MALLOC_MMAP_MAX_="1000")
    assert kept == "False" and int(fourth) >= int(third) // 2
    *_, stayed, later, _, _ = counted(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="1000000000")
    few = 64 * 2**20 // os.sysconf("SC_PAGE_SIZE") // 50
    assert max(int(stayed), int(later)) < few


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_files_in_memory_are_not_counted(tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 2**26)
    before = freed_memory()
    pages = np.memmap(tmp_path / "big", mode="r")
    assert pages.sum() == ord("x") * 2**26
    assert freed_memory() - before < 2**24


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert keep_freed_memory() is False and freed_memory() == 0
