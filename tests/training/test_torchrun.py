"""Several processes under torchrun: the run of one process with all images, and an end where one of them ends."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from ranks import free_port
from training_runs import ENVIRONMENT, ROOT, assert_same_run, finish, settings, start, tensors

pytestmark = pytest.mark.slow

# What is drawn for each process by itself: dropout and stochastic depth.
FIXED = ("model.head.dropout=0", "model.dar.drop_path=0", "model.encoder.drop_path_rate=0")
SMALL = ("model.encoder.name=test_efficientnet", "schedule.batch_size=1")
FIVE = ("schedule.max_steps=5", "schedule.val_every=5", "schedule.save_every=2", "logger=csv")


def torchrun(tmp_path: Path, arguments: list[str], before: str = "", processes: int = 2) -> subprocess.Popen:
    """Start ``scripts/train.py`` under torchrun, each process after some lines of Python."""
    script = tmp_path / "train_under_test.py"
    script.write_text(
        f"import os, runpy, sys\n{textwrap.dedent(before)}\n"
        "if __name__ == '__main__':\n"
        f"    runpy.run_path({str(ROOT / 'scripts' / 'train.py')!r}, run_name='__main__')\n"
    )
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(script), *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def scalars(folder: Path) -> dict[tuple[str, str], float]:
    with (folder / "scalars.csv").open() as file:
        rows = {(row["name"], row["step"]): float(row["value"]) for row in csv.DictReader(file)}
    return {key: value for key, value in rows.items() if not key[0].startswith("memory")}


def test_two_processes_are_one_with_the_joined_batch(demo_data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    # bfloat16 rounds a batch of one otherwise than one of two
    same = (*FIXED, *FIVE, "schedule.accumulate=2", "no_grad_precision=same")
    finish(start(settings(demo_data, one, *same, "schedule.batch_size=2")))
    out, err = finish(torchrun(tmp_path, settings(demo_data, two, *same, "schedule.batch_size=1")))
    assert out.count("2 processes") == 1 and "Traceback" not in err  # the first one alone speaks
    expected, found = scalars(one), scalars(two)
    assert expected.keys() == found.keys() and ("train/pca_target", "5") in expected
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    expected, found = (tensors(torch.load(f / "checkpoints" / "last.pt", weights_only=True)) for f in (one, two))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())


DIES = """
    import icda.training.engine as engine
    from icda.errors import UserError
    real = engine.Engine.step
    def dying(self, batches, step):
        if step == 3 and os.environ["RANK"] == "1":
            {how}
        return real(self, batches, step)
    engine.Engine.step = dying
"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raise UserError('street.png is no image')", "error: process 1: street.png is no image"),
        ("os.kill(os.getpid(), 9)", "exitcode: -9"),
    ],
)
def test_a_process_that_dies_ends_the_run_with_its_message(demo_data, tmp_path, how, expected):
    process = torchrun(tmp_path, settings(demo_data, tmp_path / "run", *FIVE, *SMALL), DIES.format(how=how))
    _, err = process.communicate(timeout=120)  # no hang
    assert process.returncode == 1 and expected in err, err
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert last["step"] == 2
    outcome = json.loads((tmp_path / "run" / "record.json").read_text())[-1]["outcome"]
    assert outcome is None or outcome.startswith("failed: ")  # None where torchrun's own signal came first


def test_a_signal_to_torchrun_saves(demo_data, tmp_path):
    """torchrun hands the signal on; from a terminal its processes get it twice."""
    arguments = settings(demo_data, tmp_path / "whole", *FIVE, *SMALL)
    finish(torchrun(tmp_path, arguments))
    arguments = settings(demo_data, tmp_path / "run", *FIVE, *SMALL, "schedule.save_every=100")
    before = f"""
        import signal, time
        import icda.training.engine as engine
        real = engine.Engine.step
        def signalled(self, batches, step):
            if step == 3 and os.environ["RANK"] == "0":
                os.killpg(0, {int(signal.SIGINT)})
                time.sleep(0.5)
            return real(self, batches, step)
        engine.Engine.step = signalled
    """
    process = torchrun(tmp_path, arguments, before)
    out, err = process.communicate(timeout=120)
    assert process.returncode not in (0, -signal.SIGKILL), err
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert last["step"] in (3, 4), out + err
    finish(torchrun(tmp_path, [*arguments, "resume=auto"]))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_processes_that_find_other_checkpoints_say_so(demo_data, tmp_path):
    """As on a machine that does not see the run's folder."""
    arguments = settings(demo_data, tmp_path / "run", *FIVE, *SMALL, "loss=source_only")
    finish(start([*arguments, "schedule.max_steps=2"]))
    before = """
        import icda.training.loop as loop
        if os.environ["RANK"] == "1":
            loop.find_start = lambda *arguments: None
    """
    _, err = finish(torchrun(tmp_path, [*arguments, "resume=auto"], before), 1)
    assert "the processes of this run do not agree on where the run starts" in err
