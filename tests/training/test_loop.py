"""Whole runs on the tiny demo set: what is written, resuming, scoring, and the switches of the loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from icda.errors import UserError
from icda.scoring import score
from icda.training.loop import Run, train


def evaluation(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("eval", ["workers=0", "progress=false", "device=cpu", *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def finished(folder, demo_data) -> Path:
    """The folder of a finished run of ICDA."""
    from conftest import TINY

    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*TINY, f"data_dir={demo_data}", "schedule.max_steps=3"])
    train(cfg, folder)
    return folder


def test_every_run_leaves_its_files(finished):
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "metrics.jsonl", "summary.json"):
        assert (finished / name).is_file()
    summary = json.loads((finished / "summary.json").read_text())
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]  # the last step is validated in any case
    assert summary["steps"] == 3 and summary["seconds"] > 0
    assert summary["last_miou"] == lines[-1]["miou"]
    assert summary["best_miou"] == max(line["miou"] for line in lines)
    sheet = cv2.imread(str(finished / "panels" / "train_000003.png"))
    assert sheet.shape[1] > 6 * 64 and sheet.std() > 10


def test_tensorboard_holds_every_term_and_the_pictures(finished):
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    terms = ("source", "enhanced", "reference", "pca_source", "pca_target", "mix", "pseudo_label_share", "total")
    assert {f"train/{t}" for t in terms} | {"val/miou", "lr/head", "lr/encoder", "lr/dar"} <= scalars
    assert set(events.Tags()["images"]) == {"train", "val"}
    assert [e.step for e in events.Scalars("train/total")] == [1, 2, 3]


def test_scoring_the_last_checkpoint_gives_the_last_validation(finished, tmp_path):
    result = score(evaluation(f"ckpt={finished}/checkpoints/last.pt", "save_predictions=true"), tmp_path)
    val = result["sets"]["val"]
    assert val["miou"] == json.loads((finished / "summary.json").read_text())["last_miou"] == result["mean"]["miou"]
    assert json.loads((tmp_path / "eval.json").read_text()) == result
    labels = sorted(tmp_path.glob("predictions/val/labels/**/*.png"))
    assert len(labels) == val["images"] == 3
    assert labels[0].name.endswith("_rgb_anon.png")
    label, color = (
        cv2.imread(str(p), cv2.IMREAD_UNCHANGED)
        for p in (labels[0], Path(str(labels[0]).replace("/labels/", "/colors/")))
    )
    assert label.shape == (64, 128) and label.dtype == np.uint8 and label.max() < 19
    from icda.data import CITYSCAPES

    np.testing.assert_array_equal(CITYSCAPES.colorize(label), color[..., ::-1])


def test_the_teacher_and_the_source_can_be_scored(finished, tmp_path):
    teacher = score(evaluation(f"ckpt={finished}/checkpoints/best.pt", "teacher=true"), tmp_path)
    source = score(evaluation(f"ckpt={finished}/checkpoints/best.pt", "sets=[source]"), tmp_path)
    assert teacher["teacher"] and list(source["sets"]) == ["source"] and source["sets"]["source"]["images"] == 6


def test_other_classes_are_refused(finished, tmp_path):
    for split in ("train", "val", "test"):
        for name, value in ((split, 99), (f"{split}annot", 3)):
            (tmp_path / "CamVid" / name).mkdir(parents=True)
            picture = np.full((64, 96) if "annot" in name else (64, 96, 3), value, np.uint8)
            cv2.imwrite(str(tmp_path / "CamVid" / name / "0001TP_1.png"), picture)
    with pytest.raises(UserError, match=r"classes cityscapes \(19\), CamVid test has camvid \(11\)"):
        cfg = evaluation(f"ckpt={finished}/checkpoints/best.pt", "dataset=camvid_dusk", f"data_dir={tmp_path}")
        score(cfg, tmp_path)


def weights(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path / "checkpoints" / "last.pt", weights_only=True)
    return {
        **{f"student.{n}": t for n, t in content["student"].items()},
        **{f"teacher.{n}": t for n, t in content["teacher"].items()},
        "prototypes": content["training"]["pca"]["prototypes"],
    }


def test_a_stopped_run_ends_as_if_it_had_not_stopped(compose_train, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = ["schedule.max_steps=4", "schedule.save_every=2", "schedule.val_every=2", "panels=0"]
    train(compose_train(*settings), whole)

    class Stop(Exception):
        pass

    run = Run(compose_train(*settings), parts)
    step = run.engine.step
    run.engine.step = lambda samples, number: step(samples, number) if number < 3 else (_ for _ in ()).throw(Stop)
    with pytest.raises(Stop):
        run.train()
    assert torch.load(parts / "checkpoints" / "last.pt", weights_only=True)["step"] == 2
    train(compose_train(*settings, "resume=auto"), parts)
    expected, found = weights(whole), weights(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[n], found[n]) for n in expected)
    lines = [[json.loads(x)["miou"] for x in (p / "metrics.jsonl").read_text().splitlines()] for p in (whole, parts)]
    assert lines[0] == lines[1] and len(lines[0]) == 2


def test_a_finished_run_can_be_resumed_and_a_folder_used_again(compose_train, tmp_path):
    first = train(compose_train("panels=0"), tmp_path)
    again = train(compose_train("panels=0", "resume=auto"), tmp_path)
    assert again["last_miou"] == first["last_miou"] and again["steps"] == first["steps"]
    train(compose_train("panels=0", "seed=3"), tmp_path)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


def test_the_same_seed_is_the_same_run_and_another_is_not(compose_train, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(compose_train(f"seed={seed}", "panels=0"), tmp_path / name)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["student.head.classifier.weight"], c["student.head.classifier.weight"])


@pytest.mark.parametrize("loss", ["source_only", "dacs"])
def test_baselines(compose_train, tmp_path, loss):
    summary = train(compose_train(f"loss={loss}"), tmp_path)
    assert summary["steps"] == 2
    content = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert not any(n.startswith("dar.") for n in content["student"])
    assert (content["teacher"] is None) == (loss == "source_only")


@pytest.mark.parametrize(
    "overrides",
    [
        ("dataset.reference=enhanced",),
        ("cem=relight",),
        ("cem.illumination=none", "cem.spatial=false"),
        ("cem.interpolation=bilinear", "dataset.sampling.rare_classes=false"),
        ("model.encoder.name=resnet18", "model.encoder.drop_path_rate=null"),
        ("loss.pca_source=0", "loss.pca_target=0", "loss.reference=0"),
    ],
)
def test_switches(compose_train, tmp_path, overrides):
    assert train(compose_train("panels=1", *overrides), tmp_path)["steps"] == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_term(compose_train, tmp_path):
    run = Run(compose_train(), tmp_path)
    with torch.no_grad():
        run.method.student.head.classifier.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"step 0: the loss source.* is not finite"):
        run.train()


def test_resuming_with_another_loss_or_from_nothing(finished, compose_train, tmp_path):
    last = finished / "checkpoints" / "last.pt"
    with pytest.raises(UserError, match="trained with another loss"):
        Run(compose_train("loss=source_only", f"resume={last}"), tmp_path)
    with pytest.raises(UserError, match="not the state of a run"):
        Run(compose_train(f"resume={finished}/checkpoints/best.pt"), tmp_path)
    with pytest.raises(UserError, match=r"resume=/nowhere\.pt: there is no such file or folder"):
        Run(compose_train("resume=/nowhere.pt"), tmp_path)
    assert Run(compose_train("resume=auto"), tmp_path).step == 0


def test_going_on_in_another_folder_takes_the_best_and_the_record_along(finished, compose_train, tmp_path):
    last = finished / "checkpoints" / "last.pt"
    run = Run(compose_train("schedule.max_steps=4", f"resume={last}", "schedule.lr=1e-5"), tmp_path)
    rates = {g["part"]: g["base_lr"] for g in run.optimizer.param_groups}
    assert rates == pytest.approx({"encoder": 1e-5, "head": 1e-5, "dar": 1e-6})  # the configuration's
    run.best_miou = 2.0  # nothing to come is better
    summary = run.train()
    assert summary["steps"] == 4
    assert (tmp_path / "checkpoints" / "best.pt").read_bytes() == (finished / "checkpoints" / "best.pt").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 3, 4]


def test_a_finished_run_in_another_folder_is_scored_again(finished, compose_train, tmp_path):
    last = finished / "checkpoints" / "last.pt"
    summary = train(compose_train("schedule.max_steps=3", f"resume={last}"), tmp_path)
    assert summary["last_miou"] == json.loads((finished / "summary.json").read_text())["last_miou"]
    assert (tmp_path / "checkpoints" / "last.pt").exists()
    with pytest.raises(UserError, match=r"is at step 3, past schedule\.max_steps=2"):
        Run(compose_train(f"resume={last}"), tmp_path)


def test_pictures_do_not_change_the_run(compose_train, tmp_path):
    for panels in (0, 2):
        train(compose_train(f"panels={panels}"), tmp_path / str(panels))
    one, other = weights(tmp_path / "0"), weights(tmp_path / "2")
    assert all(torch.equal(one[n], other[n]) for n in one)


def test_files_that_nothing_reads_are_not_asked_for(compose_train, demo_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    shutil.rmtree(data / "demo" / "DarkZurich" / "corresp")
    shutil.rmtree(data / "demo" / "DarkZurich" / "rgb_anon" / "val_ref")
    for overrides in (["loss=dacs"], ["dataset.reference=enhanced"], ["loss=source_only"]):
        Run(compose_train(f"data_dir={data}", *overrides), tmp_path)
    with pytest.raises(UserError, match="corresp"):
        Run(compose_train(f"data_dir={data}"), tmp_path)


def test_without_a_target(compose_train, tmp_path):
    assert Run(compose_train("dataset.target=null", "loss=source_only"), tmp_path).datasets.target is None
    with pytest.raises(UserError, match=r"dataset\.target is null, but the loss learns from night images"):
        Run(compose_train("dataset.target=null", "loss=dacs"), tmp_path)


def test_bad_data_is_said_before_the_first_step(compose_train, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        Run(compose_train("data_dir=nowhere"), tmp_path)
    cfg = compose_train("cem=translated")
    with pytest.raises(UserError, match=r"reads day-to-night translations.*dataset\.source\.translations"):
        Run(cfg, tmp_path)
    cfg = compose_train()
    with open_dict(cfg):
        cfg.dataset.source.colour = "red"
    with pytest.raises(UserError, match="unexpected keyword argument 'colour'"):
        Run(cfg, tmp_path)


def test_checkpoints_hold_plain_values(finished):
    content = torch.load(finished / "checkpoints" / "best.pt", weights_only=True)
    assert content["classes"]["names"][0] == "road"
    assert OmegaConf.create(content["config"]).schedule.max_steps == 3
    assert "training" not in content
