"""A run that is asked to stop: it finishes its step, saves, and leaves with a code that tells a scheduler so."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

STOPPED = os.EX_TEMPFAIL if hasattr(os, "EX_TEMPFAIL") else 75
"""Exit status of a run that stopped as it was asked to, with its state saved (75, "try again later")."""

_ECHO = 2.0  # seconds in which a second signal is the same wish: torchrun passes on what its terminal sent to all


class Stopped(SystemExit):
    """A run that was asked to stop has saved its state; not an ``Exception``, so that a sweep stops with it.

    Attributes:
        signal_name: Such as ``SIGTERM``.
        step: Step at which it goes on.

    Args:
        signal_name: Such as ``SIGTERM``.
        step: Step at which it goes on.
    """

    def __init__(self, signal_name: str, step: int) -> None:
        super().__init__(STOPPED)
        self.signal_name = signal_name
        self.step = step


class StopRequest:
    """Whether SIGTERM or SIGINT has come.

    The first signal is noted, for the loop to act on between two steps. A second one, unless it comes at once and is
    an echo of the first, ends the process as if nothing had been waiting for it.

    Attributes:
        signal_name: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.signal_name is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal_name is None:
            self.signal_name, self._since = signal.Signals(number).name, now
            # Not through logging or print, whose locks the interrupted code may hold.
            os.write(2, f"{self.signal_name}: the run saves and stops; again to leave at once\n".encode())
        elif now - self._since > _ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextlib.contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Watch for SIGTERM and SIGINT; what stood for them before is put back at the end.

    Outside the main thread, where Python takes no signals, nothing is watched.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request._handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
