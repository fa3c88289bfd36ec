from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from icda.training import signals
from icda.training.signals import STOPPED, Stopped, stop_request


def test_the_first_signal_is_noted_and_the_handlers_are_put_back(monkeypatch):
    monkeypatch.setattr(signals, "_ECHO", 60.0)  # however slow the machine is
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with stop_request() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop and stop.signal_name == number.name
            os.kill(os.getpid(), number)  # an echo, as torchrun sends it
            assert stop
    assert before == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]


def test_the_handlers_are_put_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="x"), stop_request():
        raise ValueError("x")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_leaves_at_once(number):
    script = """
        import time
        from icda.training.signals import stop_request
        with stop_request() as stop:
            print("ready", flush=True)
            while True:
                time.sleep(0.05)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    assert child.stderr.readline() == f"{number.name}: the run saves and stops; again to leave at once\n"
    time.sleep(signals._ECHO + 0.3)  # from when the first signal was taken
    assert child.poll() is None
    child.send_signal(number)
    assert child.communicate(timeout=60) == ("", "") and child.returncode == -number


def test_outside_the_main_thread_nothing_is_watched():
    seen = []

    def work():
        with stop_request() as stop:
            seen.append(bool(stop))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False] and signal.getsignal(signal.SIGTERM) is before


def test_stopped_ends_a_script_with_its_code():
    stopped = Stopped("SIGTERM", 7)
    assert stopped.code == STOPPED == 75 and not isinstance(stopped, Exception)
