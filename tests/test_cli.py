"""The scripts as a person runs them: one line for a mistake, no traceback, and a status that says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import CONF
from hydra.errors import HydraException

from icda.cli import explain, run, settings

ROOT = Path(__file__).parents[1]


def call(*arguments: str, script: str = "train") -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Runs a script's work in this process, which saves the seconds of an import."""

    def run_here(capsys, *arguments: str, name: str = "train") -> tuple[int, str]:
        from icda.scoring import score
        from icda.training.loop import train

        monkeypatch.setattr(sys, "argv", [f"{name}.py", f"hydra.run.dir={tmp_path}/run", *arguments])
        status = run(name, {"train": train, "eval": score}[name], CONF)
        return status, capsys.readouterr().err

    return run_here


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["dataset=demoo"],
            "dataset=demoo is not known; choose one of acdc, acdc_night, bdd100k_night, camvid_dusk, ",
        ),
        (["loss=idca"], "choose one of dacs, icda, source_only"),
        (["schedule.max_stepz=3"], "schedule.max_stepz is not a setting; did you mean schedule.max_steps?"),
        (["data_dir=Zürich"], "needs two pairs of quotes"),
        (["data_dir=a (1)"], "needs two pairs of quotes"),
        (["datset=demo"], "datset is not a setting; did you mean dataset?"),
        (["schedule.max_steps=abc"], "schedule.max_steps=abc has the wrong type; expected int"),
        (["dataset=null"], "dataset=null is no name; leave it out, or choose one of acdc, acdc_night, "),
        (["loss=3"], "loss=3 is no name; leave it out, or choose one of dacs, icda, source_only"),
        (["~dataset=3"], "~dataset=3 is no name; leave it out, or choose one of acdc, "),
        (["hydra/launcher=null"], "hydra/launcher=null is no name; give one"),
        (["schedule.max_steps=null", "seed=0", "loss=null"], "loss=null is no name; leave it out, or choose one"),
        (["dataset.sampling.crop=[64,64"], "each [ needs its ]"),
        (["a=b="], "Error parsing override 'a=b='"),
        (["dataset=darkzurich", "data_dir=/nowhere"], "no folder /nowhere/Cityscapes; check data_dir"),
        (["hydra.run.dir=/proc/run"], "/proc/run cannot be used"),
    ],
)
def test_mistakes_in_training(here, capsys, arguments, expected):
    status, err = here(capsys, *arguments)
    assert status == 1
    assert expected in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "ckpt is missing; give a checkpoint as ckpt="),
        (["ckpt=/nowhere.pt"], "there is no file /nowhere.pt"),
        ([f"ckpt={__file__}"], "is text that begins with"),
        (["ckpt=x", "sets=tset"], "sets=tset is out of range; expected all, or a list such as [val]"),
        (["ckpt=x", "workers=abc"], "workers=abc has the wrong type; expected int"),
        (["ckpt=x", "teacher=maybe"], "teacher=maybe has the wrong type; expected bool"),
        (["ckpt=x", "device=foo"], "device=foo is not known; choose one of auto, cpu, cuda"),
        (["ckpt=1"], "there is no file 1"),
        (["ckpt=x", "dataset.val.split=test"], "belongs to a group that is not chosen; give dataset=... as well"),
    ],
)
def test_mistakes_in_scoring(here, capsys, arguments, expected):
    status, err = here(capsys, *arguments, name="eval")
    assert status == 1
    assert expected in one_line(err)


def camvid(root: Path, count: int = 3) -> Path:
    generator = np.random.default_rng(0)
    for split, sequence in (("train", "0006R0"), ("train", "0001TP"), ("val", "0016E5"), ("test", "0001TP")):
        for i in range(count):
            for folder, picture in (
                (split, generator.integers(0, 255, (64, 96, 3))),
                (f"{split}annot", np.kron(generator.integers(0, 12, (4, 6)), np.ones((16, 16)))),
            ):
                path = root / "CamVid" / folder / f"{sequence}_{i:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), picture.astype(np.uint8))
    return root


SMALL = [
    "dataset=camvid_dusk",
    "dataset.source.size=[64,96]",
    "dataset.target.size=[64,96]",
    "dataset.val.size=[64,96]",
    "dataset.sampling.crop=[64,64]",
    "dataset.sampling.min_pixels=10",
    "dataset.sampling.min_crop_pixels=5",
    "model.head.channels=8",
    "model.dar.mlp_ratio=1",
    "schedule.max_steps=6",
    "schedule.val_every=6",
    "workers=0",
    "progress=false",
    "panels=0",
]


def spoil_image(root: Path) -> str:
    for path in (root / "CamVid" / "train").glob("0006R0*.png"):
        path.write_bytes(path.read_bytes()[:200])
    return "0006R0_"


def spoil_label(root: Path) -> str:
    for path in (root / "CamVid" / "trainannot").glob("0006R0*.png"):
        cv2.imwrite(str(path), np.full((64, 96), 77, np.uint8))
    return "77"


def spoil_size(root: Path) -> str:
    for path in (root / "CamVid" / "trainannot").glob("0006R0*.png"):
        cv2.imwrite(str(path), np.zeros((32, 96), np.uint8))
    return "32 x 96"


def spoil_split(root: Path) -> str:
    for path in (root / "CamVid" / "test").iterdir():
        path.unlink()
    return "CamVid test"


@pytest.mark.parametrize("spoil", [spoil_image, spoil_label, spoil_size, spoil_split])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_files_are_named(here, capsys, tmp_path, spoil, workers):
    root = camvid(tmp_path / "data with spaces")
    named = spoil(root)
    status, err = here(
        capsys, *SMALL, f"data_dir='{root}'", f"workers={workers}", "dataset.sampling.rare_classes=false"
    )
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == 1 and "Traceback" not in err
    assert named in lines[0] and "data with spaces" in lines[0]


def test_a_mistake_in_one_run_of_a_sweep_does_not_stop_the_others(monkeypatch, capsys, tmp_path):
    seen = []

    def main(cfg, folder):
        seen.append(cfg.seed)
        if cfg.seed == 1:
            from icda.errors import UserError

            raise UserError("one is wrong")

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1,2", f"hydra.sweep.dir={tmp_path}"])
    assert run("train", main, CONF) == 1
    assert seen == [0, 1, 2]
    assert one_line(capsys.readouterr().err) == "error: one is wrong"


def test_a_group_given_nothing_in_a_sweep_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "loss=null,icda", f"hydra.sweep.dir={tmp_path}"])
    assert run("train", lambda cfg, folder: None, CONF) == 1
    assert "loss=null,icda is no name; leave it out, or choose one of dacs, icda" in one_line(capsys.readouterr().err)


def test_a_full_disk_is_told_in_one_line(monkeypatch, capsys, tmp_path):
    def main(cfg, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={tmp_path}"])
    assert run("train", main, CONF) == 1
    assert "No space left on device" in one_line(capsys.readouterr().err)


def test_bugs_keep_their_traceback(monkeypatch, tmp_path):
    def main(cfg, folder):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={tmp_path}"])
    with pytest.raises(ZeroDivisionError):
        run("train", main, CONF)


def test_settings_are_those_of_the_configuration_asked_for():
    assert "ckpt" in settings("eval", CONF) and "ckpt" not in settings("train", CONF)
    assert {"schedule.max_steps", "dataset.sampling.crop", "seed", "loss"} <= set(settings("train", CONF))


def test_errors_without_a_pattern_are_told_in_one_line():
    assert explain(HydraException("some\n  thing"), "train", CONF) == "some thing"


@pytest.mark.slow
def test_train_and_eval_as_a_person_types_them(tmp_path):
    root = camvid(tmp_path)
    done = call(*SMALL, f"data_dir={root}", f"hydra.run.dir={tmp_path}/run", "workers=2")
    assert done.returncode == 0, done.stderr
    assert "next: python scripts/eval.py ckpt=" in done.stdout + done.stderr
    done = call(f"ckpt={tmp_path}/run/checkpoints/best.pt", f"hydra.run.dir={tmp_path}/eval", script="eval")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert json.loads((tmp_path / "eval" / "eval.json").read_text())["mean"]["miou"] == summary["best_miou"]
    assert "mIoU" in done.stdout
    wrong = call("dataset=demoo")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1 and wrong.stdout == ""
