"""Runs a function in several processes that are joined as in a training on several devices."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from icda.distributed import process_group


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_ranks(function: Callable[..., Any], size: int, folder: Path, *args: Any, timeout: float = 300) -> list[Any]:
    """What ``function(*args)`` returns in each of ``size`` processes.

    Args:
        function: Of a module's top level.
        size: Number of processes.
        folder: Empty; takes the results.
        *args: Can be pickled.
        timeout: Seconds after which the processes are ended and the call fails.
    """
    port = free_port()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work, args=(function, number, size, port, folder, args), daemon=True)
        for number in range(size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + timeout
    while any(p.is_alive() for p in processes) and time.monotonic() < end:
        if any(p.exitcode for p in processes):
            break
        time.sleep(0.05)
    codes = [p.exitcode for p in processes]
    for process in processes:
        process.kill()
        process.join()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert codes == [0] * size, "\n".join([f"exit codes {codes} (None: still running)", *errors])
    return [torch.load(folder / f"{number}.result", weights_only=False) for number in range(size)]


def _work(
    function: Callable[..., Any], number: int, size: int, port: int, folder: Path, args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    names = {
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        with process_group(torch.device("cpu")):
            torch.save(function(*args), folder / f"{number}.result")
    except BaseException:
        (folder / f"{number}.error").write_text(f"process {number}:\n{traceback.format_exc()}")
        raise
