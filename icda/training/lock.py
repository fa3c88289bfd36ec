"""One process at a time that writes to a run's folder."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from icda.errors import UserError

_PATIENCE = 30.0  # seconds that a process which is asked to stop may take to save


@contextlib.contextmanager
def only_writer(folder: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold the folder's ``.lock``, which the system lets go when the process ends, however it ends.

    Where the system has no such locks (Windows, some network file systems), nothing is held.

    Args:
        folder: The run's folder; made if need be.
        patience: Seconds to wait for another process to leave, as one does that is saving before it stops.

    Raises:
        UserError: If another process writes there.
        OSError: If the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        end = time.monotonic() + patience
        while True:
            try:
                # Of the process alone: workers that outlive it for a moment do not hold it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError) as error:
                if time.monotonic() > end:
                    file.seek(0)
                    other = file.read(100).strip() or "another process"
                    raise UserError(
                        f"{other} trains in {folder}; wait for it, stop it, or give another folder (hydra.run.dir)"
                    ) from error
                time.sleep(0.2)
            except OSError:  # there are no locks on this file system
                break
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
