"""Runs as jobs: submitit's processes here, and the script that SLURM would be given, run by bash with a stand-in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONF, TINY
from hydra import compose, initialize_config_dir

pytest.importorskip("hydra_plugins.hydra_submitit_launcher.submitit_launcher", reason="needs the extra sweep")
submitit = pytest.importorskip("submitit")

ROOT = Path(__file__).parents[1]


def launch(folder: Path, data_dir: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A multirun of the tiny configuration, as a person types it."""
    fixed = [f"data_dir={data_dir}", f"hydra.sweep.dir={folder}", "panels=0", "resume=auto"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), "-m", *TINY, *fixed, *arguments]
    settings = {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False, env={**os.environ, **settings}
    )


def job_logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob(".submitit/*/*log*")))


@pytest.mark.slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_submitit_runs_a_sweep_in_processes_of_its_own(demo_data, tmp_path, tasks):
    several = ["hydra/launcher=submitit_local", f"hydra.launcher.tasks_per_node={tasks}"]
    done = launch(tmp_path, demo_data, *several, "hydra.launcher.timeout_min=4", "seed=0,1")
    assert done.returncode == 0, done.stderr + job_logs(tmp_path)
    folders = [tmp_path / f"demo_icda_seed{seed}_{seed}" for seed in (0, 1)]
    for folder in folders:
        assert json.loads((folder / "summary.json").read_text())["steps"] == 2
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1  # one process writes
    assert sorted(tmp_path.glob("demo_*")) == folders


@pytest.mark.slow
def test_a_mistake_in_a_job_reaches_the_terminal(tmp_path):
    done = launch(tmp_path, tmp_path / "nowhere", "hydra/launcher=submitit_local", "seed=0")
    assert done.returncode == 1
    assert "error: " in done.stderr and "nowhere" in done.stderr and "Traceback" not in done.stderr


def sbatch_script(folder: Path, monkeypatch) -> Path:
    """The script that submitit makes of ``hydra/launcher=slurm``."""
    (folder / "bin").mkdir()
    for name, text in {
        "srun": 'shift 5; echo "srun $1" >> calls; exit "$STATUS"',
        "scontrol": 'echo "scontrol $*" >> calls',
    }.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["hydra/launcher=slurm", "hydra.sweep.dir=x"], return_hydra_config=True)
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    from omegaconf import OmegaConf

    made: list[str] = []

    def submit(self, command):
        made.append(self._make_submission_file_text(command, "0"))
        raise InterruptedError

    monkeypatch.setattr(submitit.SlurmExecutor, "_submit_command", submit)
    parameters = {k: v for k, v in cfg.hydra.launcher.items() if k != "_target_"}
    launcher = SlurmLauncher(**{**parameters, "submitit_folder": str(folder / "%j"), "name": "train"})
    launcher.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    with pytest.raises(InterruptedError):
        launcher.launch([["seed=0"]], 0)
    script = folder / "job.sh"
    script.write_text(made[0])
    return script


def test_slurm_is_asked_for_a_process_for_each_gpu_and_a_signal_in_time(tmp_path, monkeypatch):
    lines = sbatch_script(tmp_path, monkeypatch).read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"], asked["time"]) == ("1", "4", "4", "240")
    assert asked["signal"] == "TERM@120"  # to the job's steps: with B: the batch script alone would get it
    assert asked["requeue"] == ""


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (75, True), (137, False)])
def test_a_job_is_queued_again_if_its_run_stopped_as_asked(tmp_path, monkeypatch, status, requeued):
    script = sbatch_script(tmp_path, monkeypatch)
    environment = {**os.environ, "STATUS": str(status), "SLURM_JOB_ID": "17"}
    subprocess.run(["bash", str(script)], cwd=tmp_path, env=environment, check=False, timeout=30)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == f"srun {sys.executable}"
    assert calls[1:] == ["scontrol requeue 17"] * requeued
