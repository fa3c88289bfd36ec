"""Experiments and ablations: they compose to what their names say, and one command runs them and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import CONF, TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from training_runs import ENVIRONMENT, ROOT

from icda.cli import run
from icda.config import TrainConfig, validate
from icda.data.demo import DemoCounts, make_demo_with_night_labels
from icda.finished_runs import collect
from icda.table import table
from icda.training.same_run import leaves

EXPERIMENTS = sorted(p.stem for p in (CONF / "experiment").glob("[!_]*.yaml"))
RECIPES = [name for name in EXPERIMENTS if not name.endswith("_ablation")]
ABLATIONS = [name for name in EXPERIMENTS if name.endswith("_ablation")]
ROWS = sorted(p.stem for p in (CONF / "ablation").glob("*.yaml"))
DATA = {"camvid_dusk": ("camvid_dusk_halves", "icda_lite"), "demo": ("demo_report", "icda_small")}


def composed(*overrides: str) -> OmegaConf:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def own(cfg) -> OmegaConf:
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def config_of(*overrides: str) -> TrainConfig:
    return validate(own(composed(*overrides)))


def settings_of(*overrides: str) -> dict:
    resolved = OmegaConf.to_container(own(composed(*overrides)), resolve=True)
    return dict(leaves(resolved))


def test_there_are_the_recipes_and_an_ablation_for_both_data_sets():
    assert [name for name in RECIPES if name.startswith(("camvid_dusk_", "demo_"))] == RECIPES
    for data in DATA:
        assert {f"{data}_{kind}" for kind in ("source_only", "dacs", "icda", "oracle", "ablation")} <= {*EXPERIMENTS}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_compose(name):
    data = next(d for d in DATA if name.startswith(d))
    cfg, kind = composed(f"experiment={name}", "seed=2"), name.removeprefix(f"{data}_")
    config, choices = validate(own(cfg)), cfg.hydra.runtime.choices
    assert (choices.dataset, choices.model) == DATA[data] and choices.schedule == choices.dataset
    assert config.score_last == ["report"] and "report" in config.dataset.score_also and config.resume == "auto"
    assert choices.loss == {"oracle": "source_only"}.get(kind, kind) or kind not in ("source_only", "dacs", "icda")
    run_dir, sweep = (OmegaConf.to_container(cfg.hydra[part], resolve=False) for part in ("run", "sweep"))
    assert run_dir["dir"] == f"{sweep['dir']}/{sweep['subdir']}" and "now" not in run_dir["dir"]
    assert "choices.experiment" in run_dir["dir"] and "${seed}" in run_dir["dir"]


@pytest.mark.parametrize("data", DATA)
def test_recipes_of_one_data_set_differ_in_what_their_names_say(data):
    source_only, dacs, icda, oracle = (
        settings_of(f"experiment={data}_{kind}") for kind in ("source_only", "dacs", "icda", "oracle")
    )
    for other, group in ((dacs, "loss."), (icda, "loss."), (oracle, "dataset.source.")):
        changed = {k for k in other.keys() | source_only.keys() if other.get(k) != source_only.get(k)}
        assert changed and all(key.startswith(group) for key in changed)


@pytest.mark.parametrize("data", DATA)
def test_the_oracle_sees_labels_of_what_the_others_adapt_to_and_nothing_that_is_reported(data):
    dataset = config_of(f"experiment={data}_oracle").dataset
    assert dataset.source == dataset.val and dataset.source != dataset.score_also.report
    assert config_of(f"experiment={data}_icda").dataset.source != dataset.source


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_line_wins(name):
    cfg = composed(f"experiment={name}", "dataset=acdc", "loss=dacs", "resume=null", "score_last=[]", "loss.mix=0.5")
    choices, config = cfg.hydra.runtime.choices, own(cfg)
    assert (choices.dataset, choices.loss, choices.schedule) == ("acdc", "dacs", "acdc")
    assert (config.resume, config.score_last, config.loss.mix) == (None, [], 0.5)


def test_without_an_experiment_everything_is_as_it_was():
    cfg = composed()
    assert cfg.hydra.runtime.choices.experiment is None is cfg.hydra.runtime.choices.ablation
    assert cfg.score_last == [] and cfg.resume is None and cfg.hydra.mode is None
    run_dir = OmegaConf.to_container(cfg.hydra.run, resolve=False)["dir"]
    assert run_dir.startswith("runs/${hydra:runtime.choices.dataset}_") and "${now:" in run_dir


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """What a command line would train: folder, ablation and settings of every run, none of which is made."""

    def jobs_of(*arguments: str) -> list[tuple[str, OmegaConf]]:
        seen = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        assert run("train", lambda cfg, folder: seen.append((str(folder), cfg)), CONF, check=validate) == 0
        return [(folder.removeprefix(f"{tmp_path}/"), cfg) for folder, cfg in seen]

    return jobs_of


@pytest.mark.slow
@pytest.mark.parametrize(("name", "left_out"), [("camvid_dusk_ablation", "16_"), ("demo_ablation", "14_")])
def test_an_ablation_runs_its_rows_in_the_order_of_their_names(jobs, name, left_out):
    found = jobs("-m", f"experiment={name}", "seed=1")
    expected = [row for row in ROWS if not row.startswith(left_out)]
    assert [folder for folder, _ in found] == [f"runs/ablation/{name}/{row}/seed1" for row in expected]
    # Rows are different settings, all of them of the loss, of CEM, or of the references.
    settings = [dict(leaves(OmegaConf.to_container(cfg, resolve=True))) for _, cfg in found]
    assert len({json.dumps(s, sort_keys=True) for s in settings}) == len(settings) == len(ROWS) - 1
    changed = {key for one, other in pairwise(settings) for key in one if one[key] != other[key]}
    assert all(key.startswith(("loss.", "cem.")) or key == "dataset.reference" for key in changed)


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_has_three_seeds_each_in_a_folder_of_its_own(jobs, name):
    found = jobs(f"experiment={name}", "ablation=02_dacs,09_full")
    assert [(folder, cfg.seed) for folder, cfg in found] == [
        (f"runs/ablation/{name}/{row}/seed{seed}", seed) for seed in (0, 1, 2) for row in ("02_dacs", "09_full")
    ]
    assert all(cfg.resume == "auto" and cfg.score_last == ["report"] for _, cfg in found)


def test_an_ablation_of_fewer_rows_and_seeds(jobs):
    found = jobs("experiment=demo_ablation", "seed=1", "ablation=02_dacs,09_full", "schedule.max_steps=7")
    assert [(folder, cfg.schedule.max_steps) for folder, cfg in found] == [
        (f"runs/ablation/demo_ablation/{row}/seed1", 7) for row in ("02_dacs", "09_full")
    ]


def test_several_recipes_and_seeds_go_where_single_ones_do(jobs):
    found = jobs("-m", "experiment=demo_dacs,demo_icda", "seed=0,1")
    assert [folder for folder, _ in found] == [
        f"runs/experiment/demo_{kind}/seed{seed}" for kind in ("dacs", "icda") for seed in (0, 1)
    ]
    assert [folder for folder, _ in jobs("experiment=demo_icda", "seed=1")] == ["runs/experiment/demo_icda/seed1"]


# What each row computes: terms of the loss, CEM, whether the teacher uses DAR, whether it labels references as well.
TERMS = {
    "01_source_only": {"source"},
    "02_dacs": {"source", "feature_distance", "mix"},
    "03_cem_relight_flat": {"source", "feature_distance", "mix", "enhanced", "relight", "flat"},
    "04_cem_relight": {"source", "feature_distance", "mix", "enhanced", "relight"},
    "05_cem_style_flat": {"source", "feature_distance", "mix", "enhanced", "style", "flat"},
    "06_cem_style": {"source", "feature_distance", "mix", "enhanced", "style"},
    "07_reference_labels": {"source", "feature_distance", "mix", "enhanced", "style", "on reference"},
}
TERMS["08_dar"] = TERMS["07_reference_labels"] | {"reference", "dar"}
TERMS["09_full"] = FULL = TERMS["08_dar"] | {"pca_source", "pca_target"}
TERMS |= {
    "10_full_without_spatial": FULL | {"flat"},
    "11_full_without_illumination": FULL - {"style"} | {"none"},
    "12_full_without_enhanced": FULL - {"enhanced"},
    "13_full_without_reference_labels": FULL - {"on reference"},
    "14_full_without_feature_distance": FULL - {"feature_distance"},
    "15_full_without_mix": {"source", "feature_distance", "enhanced", "style"},
    "16_full_reference_enhanced": FULL | {"lifted"},
}


def test_every_row_of_the_ablation_is_what_its_name_says():
    for row in ROWS:
        config = config_of("experiment=demo_ablation", f"ablation={row}")
        loss, cem = config.loss, config.cem
        names = ("source", "feature_distance", "enhanced", "reference", "pca_source", "pca_target", "mix")
        found = {name for name in names if getattr(loss, name)}
        if loss.needs_enhanced:
            found |= {cem.illumination} | (set() if cem.spatial else {"flat"})
        if loss.needs_teacher:
            found |= {name for name, on in (("dar", loss.pseudo_label_with_dar),) if on}
            found |= {"on reference"} if loss.reference_probability else set()
        found |= {"lifted"} if config.dataset.reference == "enhanced" else set()
        assert found == TERMS[row], row
    assert {*TERMS} == {*ROWS}


@pytest.fixture(scope="module")
def night_data(tmp_path_factory) -> Path:
    """A ``data_dir`` with a tiny demo set whose training nights are labelled."""
    data_dir = tmp_path_factory.mktemp("nights")
    counts = DemoCounts(source_train=6, source_val=2, target_train=5, target_val=3, target_test=1)
    make_demo_with_night_labels(data_dir / "demo", counts=counts, size=(64, 128), workers=1, progress=False)
    return data_dir


@pytest.fixture
def command(night_data, tmp_path):
    """``scripts/train.py`` with tiny pictures, for a process in a folder of its own."""

    def command_with(*arguments: str) -> dict:
        tiny = [*TINY, "dataset.score_also.report.size=[64,128]", f"data_dir={night_data}"]
        if any("oracle" in argument for argument in arguments):  # its source is its val
            tiny.remove("dataset.source.size=[64,128]")
        arguments = [*arguments, *tiny, "logger=none", "panels=0"]
        environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        return {
            "args": [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments],
            "cwd": tmp_path,
            "env": environment,
        }

    return command_with


def call(command: dict) -> subprocess.CompletedProcess:
    return subprocess.run(**command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_an_experiment_runs_and_is_not_run_again(command, tmp_path):
    done = call(command("experiment=demo_oracle", "seed=3"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs/experiment/demo_oracle/seed3/summary.json").read_text())
    assert summary["choices"]["experiment"] == "demo_oracle" and "ablation" not in summary["choices"]
    assert 0 < summary["score_last"]["report"]["miou"] < 1
    again = call(command("experiment=demo_oracle", "seed=3"))
    assert again.returncode == 0 and "is finished: 2 steps" in again.stdout


@pytest.mark.slow
def test_an_ablation_that_is_killed_goes_on_by_the_same_command(command, tmp_path):
    rows = ("-m", "experiment=demo_ablation", "ablation=01_source_only,15_full_without_mix", "seed=0,1")
    folder = tmp_path / "runs/ablation/demo_ablation"
    process = subprocess.Popen(
        **command(*rows), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    for line in process.stdout:
        if "15_full_without_mix/seed0" in line and "step 0 of 2" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=60)
    assert [path.parent.parent.name for path in folder.rglob("summary.json")] == ["01_source_only"]
    first = (folder / "01_source_only/seed0/summary.json").read_bytes()
    done = call(command(*rows))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is finished: 2 steps") == 1
    assert (folder / "01_source_only/seed0/summary.json").read_bytes() == first
    assert {(run.ablation, run.seed) for run in collect([folder])} == {
        (row, seed) for row in ("01_source_only", "15_full_without_mix") for seed in (0, 1)
    }
    head, _, *body = table([folder]).splitlines()[-4:]
    assert head == "| ablation | n | mIoU | best | report | minutes |"
    assert [line.split(" | ")[:2] for line in body] == [["| 01_source_only", "2"], ["| 15_full_without_mix", "2"]]
