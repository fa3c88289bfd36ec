from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from icda.errors import UserError
from icda.training.lock import only_writer

HOLD = """
import sys, time, pathlib, multiprocessing
from icda.training.lock import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    if sys.argv[2] == "child":
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(folder), *(arguments or ("alone",))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_named_and_waited_for(tmp_path):
    process = holder(tmp_path)
    expected = rf"process {process.pid} on .* trains in {tmp_path}; wait"
    with pytest.raises(UserError, match=expected), only_writer(tmp_path, patience=0.3):
        pass
    process.stdin.close()
    with only_writer(tmp_path, patience=60):  # until it has left
        assert process.wait(60) == 0


def test_a_killed_process_holds_nothing_nor_do_its_workers(tmp_path):
    process = holder(tmp_path, "child")
    process.kill()
    process.wait(60)
    with only_writer(tmp_path, patience=60):
        pass
    os.killpg(process.pid, signal.SIGKILL)  # the worker was still there


def test_one_after_the_other(tmp_path):
    for _ in range(2):
        with only_writer(tmp_path / "run", patience=0):
            assert (tmp_path / "run" / ".lock").read_text().startswith("process ")
