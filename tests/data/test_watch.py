"""What workers note about themselves, and the errors that are made of it."""

from __future__ import annotations

import os
import re
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

from icda.data.watch import Watch, first_lost, lost, out_of_shared_memory, read_note, stalled


def process(pid: int, code: int | None):
    return SimpleNamespace(pid=pid, exitcode=code, is_alive=lambda: code is None)


def on(*files: str | Path, worker: int = 0, workers: int = 2, sample: int = 7) -> Watch:
    watch = Watch(workers)
    watch.enter(worker)
    watch.begin(sample)
    for file in files:
        watch.file(Path(file))
    return watch


def test_a_reading_tells_sample_and_last_file():
    watch = on("a/first.png", "a/last.png", worker=1)
    reading = watch.reading(1)
    assert (reading.pid, reading.sample, reading.busy, reading.file) == (os.getpid(), 7, True, "a/last.png")
    assert watch.reading(0).sample is None and "has not begun" in str(watch.reading(0))
    watch.end()
    assert "done with sample 7" in str(watch.reading(1)) and "a/last.png" in str(watch.reading(1))
    watch.begin(8)  # the file of the sample before is not blamed for this one
    assert watch.reading(1).file is None and watch.reading(1).sample == 8


def test_time_counts_from_the_last_file():
    before = time.monotonic()
    watch = on("a.png")
    time.sleep(0.05)
    assert 0.05 <= watch.reading(0).seconds <= time.monotonic() - before
    before = time.monotonic()
    watch.file(Path("b.png"))
    seconds = watch.reading(0).seconds
    assert 0 <= seconds <= time.monotonic() - before


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("näch\u0142/夜.png", "näch\u0142/夜.png"),
        (os.fsdecode(b"night/\xff\xfe.png"), "night/\\udcff\\udcfe.png"),
        ("two\nlines\x1b.png", "two\\nlines\\x1b.png"),
    ],
)
def test_any_name_can_be_shown(path, shown):
    watch = on(path)
    error = stalled(watch, 0, 5)
    assert shown in str(error) and "\n" not in str(error)
    str(error).encode("utf-8")


def test_of_a_very_long_path_the_end_is_kept():
    shown = on("/" + "ä" * 9000 + "/the_file.png").reading(0).file
    assert shown.startswith("...") and shown.endswith("ä/the_file.png") and len(shown.encode()) < 4200


def test_a_slot_that_was_left_in_the_middle_of_writing_can_be_read():
    watch = on("a.png")
    watch._slots[0].version += 1
    assert watch.reading(0).file == "a.png"


def _note(watch: Watch, worker: int) -> None:
    watch.enter(worker)
    watch.begin(100 + worker)
    watch.file(Path(f"{worker}.png"))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_notes_of_killed_processes_stay_however_they_were_started(method):
    context = get_context(method)
    watch = Watch(2)
    processes = [context.Process(target=_note, args=(watch, worker)) for worker in range(2)]
    for started in processes:
        started.start()
    for worker, started in enumerate(processes):
        started.join(240)
        assert started.exitcode == -signal.SIGKILL
        reading = watch.reading(worker)
        assert (reading.pid, reading.sample, reading.file) == (started.pid, 100 + worker, f"{worker}.png")
        assert f"(process {started.pid})" in str(lost(watch, worker, started))
        assert "killed by SIGKILL" in str(lost(watch, worker, started))


def test_a_stall_names_the_worker_with_the_next_batch_first():
    watch = on("stuck.png", worker=1, workers=3)
    watch.enter(2)
    watch.begin(9)
    watch.file(Path("other.png"))
    text = str(stalled(watch, 1, 30))
    assert text.startswith("no batch has come for 30 s (worker_timeout=30): worker 1 (process ")
    assert text.index("stuck.png") < text.index("the others: worker 0 has not begun") < text.index("other.png")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-signal.SIGKILL, "was killed by SIGKILL: .* memory ran out"),
        (-signal.SIGBUS, r"was killed by SIGBUS: .* shared memory may be too small.*workers=0"),
        (-signal.SIGSEGV, "was killed by SIGSEGV: .* may be damaged"),
        (-signal.SIGUSR1, "was killed by SIGUSR1: .* what sent it"),
        (-250, "was killed by signal 250"),
        (3, "ended with status 3"),
        (0, "ended with status 0"),
    ],
)
def test_how_a_worker_was_lost(code, expected):
    text = str(lost(on("a.png"), 0, process(5, code)))
    assert "on sample 7, the last file that it opened is a.png" in text and "\n" not in text
    assert re.search(expected, text), text


def test_a_worker_that_was_lost_before_it_read():
    assert "worker 1 (process 5) had not begun to read" in str(lost(on("a.png"), 1, process(5, 1)))


def test_the_first_lost_is_one_that_failed():
    assert first_lost([process(1, None), process(2, None)]) is None
    assert first_lost([process(1, None), process(2, 0), process(3, -9)]) == 2
    assert first_lost([process(1, 0), process(2, None)]) == 0


def test_too_little_shared_memory_is_recognised():
    for message in (
        "unable to allocate shared memory(shm) for file </torch_1_2_3>: Resource temporarily unavailable (11)",
        "unable to write to file </torch_1_2_3>: No space left on device (28)",
    ):
        assert "--shm-size" in str(out_of_shared_memory(f"Caught RuntimeError in DataLoader worker: {message}"))
    assert out_of_shared_memory("No space left on device: /data/cache/a.npy") is None


def test_the_note_of_an_exception():
    assert read_note(on("a.png").reading()) == "This happened at sample 7; the last file that was opened is a.png"
    assert read_note(on().reading()) == "This happened at sample 7"
