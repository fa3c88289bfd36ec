"""Runs as jobs: submitit's processes here, and the scripts that SLURM would be given, run by bash with stand-ins."""

from __future__ import annotations

import json
import os
import re
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
@pytest.mark.parametrize("tasks", [2])
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


def stand_ins(folder: Path, monkeypatch, **programs: str) -> None:
    """Programs of bash in the place of SLURM's, which note their calls in ``calls``."""
    (folder / "bin").mkdir()
    for name, text in {"scontrol": 'echo "scontrol $*" >> calls', **programs}.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def run_job(script: Path, status: int) -> tuple[int, list[str]]:
    """Exit status and calls of a job's script whose run ends with a status."""
    slurm = {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "6", "SLURM_NTASKS": "2"}
    environment = {**os.environ, "STATUS": str(status), **slurm}
    done = subprocess.run(["bash", str(script)], cwd=script.parent, env=environment, check=False, timeout=30)
    return done.returncode, (script.parent / "calls").read_text().splitlines()


def asked_of_slurm(script: Path) -> dict[str, str]:
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    return dict(option.partition("=")[::2] for line in lines for option in re.findall(r"--(\S+)", line))


def sbatch_script(folder: Path, monkeypatch) -> Path:
    """The script that submitit makes of ``hydra/launcher=slurm``."""
    srun = 'shift 5; echo "srun $1, $SRUN_CPUS_PER_TASK cores" >> calls; exit "$STATUS"'
    stand_ins(folder, monkeypatch, srun=srun)
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


def readme_script(folder: Path, monkeypatch) -> Path:
    """The script that a person is shown; its ``srun`` starts the processes one after the other."""
    srun = """
        while [[ $1 == --* ]]; do echo "srun $1" >> calls; shift; done
        for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" || status=$?; done
        exit $status"""
    python = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_PORT $*" >> calls; exit "$STATUS"'
    stand_ins(folder, monkeypatch, srun=srun, python=python)
    text = (CONF / "hydra" / "launcher" / "README.md").read_text()
    (found,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    script = folder / "job.sh"
    script.write_text(found)
    return script


@pytest.mark.parametrize("make", [sbatch_script, readme_script])
def test_slurm_is_asked_for_a_process_for_each_gpu_and_a_signal_in_time(tmp_path, monkeypatch, make):
    asked = asked_of_slurm(make(tmp_path, monkeypatch))
    assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"]) == ("1", "2", "2")
    assert asked["cpus-per-task"] == "6" and asked["time"] in ("240", "4:00:00")
    assert asked["signal"] == "TERM@120"  # to the job's steps: with B: the batch script alone would get it
    assert asked["requeue"] == "" and asked["open-mode"] == "append"


ENDS = pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (75, True), (137, False)])


@ENDS
def test_a_job_is_queued_again_if_its_run_stopped_as_asked(tmp_path, monkeypatch, status, requeued):
    _, calls = run_job(sbatch_script(tmp_path, monkeypatch), status)
    assert calls[0] == f"srun {sys.executable}, 6 cores"
    assert calls[1:] == ["scontrol requeue 17"] * requeued


@ENDS
def test_the_script_without_submitit(tmp_path, monkeypatch, compose_train, status, requeued):
    ended, calls = run_job(readme_script(tmp_path, monkeypatch), status)
    assert ended == status and calls[:2] == ["srun --kill-on-bad-exit=0", "srun --cpus-per-task=6"]
    processes = [call.split() for call in calls[2:4]]
    assert [process[:5] for process in processes] == [
        [rank, rank, "2", "20017", "scripts/train.py"] for rank in ("0", "1")
    ]
    assert calls[4:] == ["scontrol requeue 17"] * requeued
    cfg = compose_train(*(override for override in processes[0][5:] if not override.startswith("hydra.")))
    assert (cfg.schedule.batch_size, cfg.resume, cfg.dataset.name) == (1, "auto", "darkzurich")
