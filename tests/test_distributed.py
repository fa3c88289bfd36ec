"""Several processes: what they say of themselves, what they join, and that one process is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import free_port, on_ranks
from torch.multiprocessing import get_context

from icda import distributed
from icda.errors import UserError

CPU = torch.device("cpu")
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SUBMITIT_EXECUTOR")


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_alone_and_everything_is_as_given():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert (distributed.launched(), distributed.local_rank()) == (False, 0)
    tensor, value = torch.ones(2), object()
    assert distributed.sum_over_ranks(tensor) is tensor
    assert distributed.any_over_ranks([True, False], CPU) == [True, False]
    assert distributed.from_main(value) is value
    distributed.wait_for_all()


def test_entering_without_a_launcher_does_nothing():
    with distributed.process_group(CPU):
        assert not dist.is_initialized()


def test_torchruns_environment(monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() and distributed.local_rank() == 1
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT is not set"), distributed.process_group(CPU):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not distributed.launched()


@pytest.mark.parametrize(("tasks", "launched"), [("4", True), ("1", False)])
def test_submitits_environment(monkeypatch, tasks, launched):
    pytest.importorskip("submitit")
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": tasks, "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", **slurm}.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() is launched
    assert distributed.local_rank() == 1


def joined() -> dict[str, object]:
    mine = torch.tensor([1.0, 2.0], dtype=torch.float64) * (distributed.rank() + 1)
    mine.requires_grad_()
    total = distributed.sum_over_ranks(mine)
    (total * torch.tensor([3.0, 5.0]) * (distributed.rank() + 1)).sum().backward()
    return {
        "who": (distributed.rank(), distributed.world_size(), distributed.is_main(), distributed.local_rank()),
        "total": total.detach(),
        "gradient": mine.grad,
        "count": distributed.sum_over_ranks(torch.tensor(distributed.rank() + 1)),
        "any": distributed.any_over_ranks([False, distributed.rank() == 1, True], CPU),
        "means": distributed.mean_over_ranks({"a": torch.tensor(distributed.rank() + 1.0), "b": torch.tensor(4.0)}),
        "main": distributed.from_main({"rank": distributed.rank()}),
    }


@pytest.mark.slow
def test_sums_flags_and_objects_of_three_processes(tmp_path):
    results = on_ranks(joined, 3, tmp_path)
    for number, result in enumerate(results):
        assert result["who"] == (number, 3, number == 0, number)
        assert result["total"].tolist() == [6, 12]
        # d/dx of sum over ranks r of (r + 1) * (3, 5) . total, the same for every rank's x
        assert result["gradient"].tolist() == [18, 30]
        assert result["count"] == 6
        assert result["any"] == [False, True, True]
        assert result["means"] == {"a": 2, "b": 4}
        assert result["main"] == {"rank": 0}


SWEEP = """
import torch
import torch.distributed as dist
from icda.distributed import process_group, rank, sum_over_ranks, world_size

for run in range(3):
    try:
        with process_group(torch.device("cpu")):
            assert world_size() == 2
            assert sum_over_ranks(torch.tensor(rank() + run)).item() == 1 + 2 * run
            if run == 1:
                raise KeyError("a run that fails")
    except KeyError:
        assert run == 1
    assert not dist.is_initialized()
    assert world_size() == 1
with open(f"done.{rank()}." + __import__("os").environ["RANK"], "w"):
    pass
"""


@pytest.mark.slow
def test_a_group_can_be_entered_again_and_again_under_torchrun(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "sweep.py"]
    paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **paths}, timeout=240, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.glob("done.*")) == ["done.0.0", "done.0.1"]


def submitit_task(number: int, port: str, folder: str) -> None:
    task = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
    os.environ.update({"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_NODELIST": "localhost", "MASTER_PORT": port, **task})
    with distributed.process_group(CPU):
        assert distributed.rank() == number
        total = distributed.sum_over_ranks(torch.tensor(number + 1)).item()
    Path(folder, f"{number}").write_text(str(total))


@pytest.mark.slow
def test_tasks_of_submitit_join(tmp_path):
    pytest.importorskip("submitit")
    port = str(free_port())
    tasks = [get_context("spawn").Process(target=submitit_task, args=(n, port, str(tmp_path))) for n in range(2)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(120)
        task.kill()
    assert [(tmp_path / f"{n}").read_text() for n in range(2)] == ["3", "3"]
