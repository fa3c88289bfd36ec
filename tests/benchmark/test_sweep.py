"""What a multirun leaves behind."""

from __future__ import annotations

from omegaconf import OmegaConf

from icda.benchmark.sweep import Tidy


def tidied(folder):
    Tidy().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}), config_name="benchmark")
    return sorted(str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*"))


def test_folders_without_a_trace_go(tmp_path):
    folder = tmp_path / "sweep"
    for job in "01":
        (folder / job).mkdir(parents=True)
    (folder / "multirun.yaml").touch()
    assert tidied(folder) == []


def test_traces_stay_with_what_hydra_noted(tmp_path):
    folder = tmp_path / "sweep"
    for job in "01":
        (folder / job).mkdir(parents=True)
    for name in ("multirun.yaml", "1/trace_train.json"):
        (folder / name).touch()
    assert tidied(folder) == ["sweep", "sweep/1", "sweep/1/trace_train.json", "sweep/multirun.yaml"]


def test_a_folder_with_other_files_stays(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    for name in ("multirun.yaml", "notes.txt"):
        (folder / name).touch()
    assert tidied(folder) == ["sweep", "sweep/notes.txt"]


def test_no_folder_no_error(tmp_path):
    assert tidied(tmp_path / "sweep") == []
