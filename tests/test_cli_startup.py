"""Starting: what a command loads before it says what is wrong, and what each loads at all."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CONF, TINY

from icda.cli import run
from icda.errors import UserError

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "timm", "albumentations", "scipy", "tensorboard", "onnx", "transformers", "matplotlib", "pandas")
# Ends the process with the names of those that it loaded, whichever way it ends.
REPORT = (
    "import atexit, json, runpy, sys;"
    f"atexit.register(lambda: sys.stderr.write(chr(10) + json.dumps([m for m in {HEAVY} if m in sys.modules])));"
)


def loaded(code: str, *arguments: str) -> tuple[set[str], str]:
    """Heavy modules that Python loads for some code, and what it says on standard error before."""
    command = [sys.executable, "-c", REPORT + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    said, _, names = done.stderr.rpartition("\n")
    return set(json.loads(names)), said


def loaded_by(script: str, *arguments: str) -> tuple[set[str], str]:
    path = str(ROOT / "scripts" / f"{script}.py")
    return loaded(f"sys.argv[0] = {path!r}; runpy.run_path({path!r}, run_name='__main__')", *arguments)


@pytest.mark.slow
def test_what_needs_no_network_loads_no_framework():
    assert loaded("import icda, icda.config, icda.cli, icda.data.setup, icda.data.prepare, icda.table") == (set(), "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["schedule.max_steps=x"], "schedule.max_steps=x has the wrong type"),
        (["precision=fp7"], "precision=fp7 is out of range"),
        (["dataset=nope"], "dataset=nope is not known"),
        (["model.encoder.nam=mit_b1"], "model.encoder.nam is not a setting"),
        (["--cfg", "job"], ""),
        (["--help"], ""),
    ],
)
def test_a_mistake_in_the_configuration_is_told_before_anything_is_loaded(tmp_path, arguments, expected):
    names, said = loaded_by("train", f"hydra.run.dir={tmp_path}", *arguments)
    assert names == set()
    assert (said.startswith(f"error: {expected}") and "\n" not in said.strip()) if expected else said == ""


@pytest.mark.slow
def test_looking_through_a_data_set_loads_no_framework(tmp_path):
    names, said = loaded_by("prepare", "dataset=darkzurich", f"data_dir={tmp_path}", "progress=false")
    assert "darkzurich is not ready" in said and names == set()


@pytest.mark.slow
def test_what_only_runs_a_network_loads_nothing_for_training_it():
    names, _ = loaded("import icda.predictor, icda.prediction.run, icda.scoring, icda.export.run")
    assert {"torch", "timm"} <= names
    assert not names & {"albumentations", "tensorboard", "onnx", "transformers", "matplotlib", "pandas"}


@pytest.mark.slow
@pytest.mark.parametrize("module", ["icda.translation", "icda.data.stream"])
def test_albumentations_is_kept_from_asking_for_its_newest_version(module):
    look = (
        "import os, importlib.abc\n"
        "class Look(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'albumentations': raise SystemExit(os.environ.get('NO_ALBUMENTATIONS_UPDATE'))\n"
        "sys.meta_path.insert(0, Look())\n"
    )
    assert loaded(f"{look}import {module}, albumentations")[1].strip() == "1"


@pytest.fixture
def a_script(monkeypatch, tmp_path):
    """Gives ``run`` a module ``heavy_work`` to import, and a command line."""
    (tmp_path / "heavy_work.py").write_text(
        "import gc\nfrozen = []\ndef main(cfg, folder):\n    frozen.append((gc.get_freeze_count(), gc.isenabled()))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "heavy_work", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={tmp_path}/run"])
    yield
    sys.modules.pop("heavy_work", None)
    gc.unfreeze()


def test_work_is_imported_once_the_configuration_is_checked(a_script, capsys):
    def refuse(cfg):
        raise UserError(f"seed={cfg.seed} is refused")

    assert run("train", "heavy_work.main", CONF, check=refuse) == 1
    assert "heavy_work" not in sys.modules and capsys.readouterr().err == "error: seed=0 is refused\n"
    assert run("train", "heavy_work.main", CONF, check=lambda cfg: None) == 0
    assert "heavy_work" in sys.modules


def test_only_what_the_import_made_is_kept_from_the_collector(a_script, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep"])
    assert run("train", "heavy_work.main", CONF) == 0
    (first, collects), (second, still_collects) = sys.modules["heavy_work"].frozen
    assert collects and still_collects
    # The second run of a sweep leaves it what the first one made.
    assert first >= second > 0
    assert gc.isenabled()


@pytest.mark.slow
def test_python_ends_without_complaints_of_what_was_kept_from_the_collector(demo_data, tmp_path):
    arguments = [*TINY, f"data_dir={demo_data}", f"hydra.run.dir={tmp_path}", "schedule.max_steps=1", "panels=0"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    assert done.returncode == 0 and done.stderr == ""
