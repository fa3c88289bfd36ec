"""Where a run starts: checkpoints of other runs and of the published code."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import asdict

import pytest
import torch
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from reference import recipe

from icda.data.classes import CAMVID
from icda.data.setup import OWN_PARTS
from icda.errors import DamagedFile, UserError
from icda.interop import load_published
from icda.prediction.inputs import open_input
from icda.scoring import score
from icda.training import checkpoint
from icda.training.checkpoint_folder import CheckpointFolder
from icda.training.loop import Run, train
from icda.training.start import read_newest, read_start

PUBLISHED_B1 = (
    "model=icda_daformer",
    "model.encoder.name=mit_b1",
    "model.head.channels=256",
    "model.dar.mlp_ratio=4",
    "model.encoder.weights=/no/such/file.pth",  # nothing of it is needed
)


@pytest.fixture(scope="module")
def published(published_b1, tmp_path_factory):
    """A Lightning checkpoint of the published code after 1 step: student, teacher, frozen encoder."""
    state = dict(published_b1)
    state |= {f"m_{n}": t + 1 if t.is_floating_point() else t for n, t in published_b1.items()}
    backbone = {n: list(t.shape) for n, t in published_b1.items() if n.startswith("backbone.")}
    frozen = recipe.state_dict(backbone, prefix=("backbone.", "imnet.backbone."))
    state |= {f"imnet_{n}": t for n, t in frozen.items()}
    path = tmp_path_factory.mktemp("published") / "ICDA.ckpt"
    content = {"epoch": 0, "global_step": 1, "pytorch-lightning_version": "1.5.10", "state_dict": state}
    torch.save({**content, "optimizer_states": [{"state": {}, "param_groups": []}], "lr_schedulers": []}, path)
    return path


@pytest.fixture(scope="module")
def own_run(demo_data, tmp_path_factory):
    """A finished run without DAR and teacher."""
    from conftest import TINY

    folder = tmp_path_factory.mktemp("own")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*TINY, f"data_dir={demo_data}", "panels=0", "loss=source_only"])
    train(cfg, folder)
    return folder


def equal(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    own = module.state_dict()
    return own.keys() == dict(state).keys() and all(torch.equal(own[n], state[n]) for n in own)


def test_a_new_run_from_a_published_checkpoint(compose_train, published, published_b1, tmp_path):
    run = Run(compose_train(*PUBLISHED_B1, f"init={published}"), tmp_path)
    expected = load_published(published_b1).state_dict()
    assert run.step == 0
    assert equal(run.method.student, expected) and equal(run.method.teacher.model, expected)
    weight = run.method.frozen.state_dict()["patch_embed.proj.weight"]
    torch.testing.assert_close(weight, recipe.weight("imnet.backbone.patch_embed1.proj.weight", weight.shape))


def test_going_on_with_a_published_checkpoint(compose_train, published, published_b1, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run = Run(compose_train(*PUBLISHED_B1, f"resume={published}"), tmp_path)
    assert "a published mit_b1" in caplog.text and "go on at step 1" in caplog.text
    assert run.step == 1 and not run.optimizer.state
    assert equal(run.method.student, load_published(published_b1).state_dict())
    assert equal(run.method.teacher.model, load_published(str(published), teacher=True).state_dict())
    later = tmp_path / "later.ckpt"
    torch.save({**torch.load(published), "global_step": 3}, later)
    with pytest.raises(UserError, match=r"is at step 3, past schedule\.max_steps=2"):
        Run(compose_train(*PUBLISHED_B1, f"resume={later}"), tmp_path)


def test_what_a_file_does_not_hold_is_said(compose_train, published_b1, tmp_path, caplog):
    path = tmp_path / "student.ckpt"
    torch.save({"state_dict": published_b1, "global_step": 1}, path)
    with caplog.at_level(logging.WARNING):
        run = Run(compose_train(*PUBLISHED_B1, f"resume={path}", "model.encoder.weights=none"), tmp_path)
    assert run.method.frozen is None and "the feature distance is off" in caplog.text
    assert "holds no mean teacher; it starts as a copy of the student" in caplog.text
    encoder = {n.removeprefix("backbone."): t for n, t in published_b1.items() if n.startswith("backbone.")}
    torch.save(encoder, tmp_path / "mit_b1.pth")
    weights = f"model.encoder.weights={tmp_path / 'mit_b1.pth'}"
    for setting in ("init", "resume"):
        run = Run(compose_train(*PUBLISHED_B1, f"{setting}={path}", weights), tmp_path)
        weight = run.method.frozen.state_dict()["patch_embed.proj.weight"]
        assert torch.equal(weight, encoder["patch_embed1.proj.weight"])


def test_weights_that_are_not_needed_are_named(compose_train, published, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        Run(compose_train(*PUBLISHED_B1, f"init={published}"), tmp_path)
    assert "model.encoder.weights=/no/such/file.pth is not read" in caplog.text


def test_only_the_run_itself_is_taken_over(compose_train, own_run, tmp_path):
    """Of a checkpoint outside a folder named checkpoints the neighbours are its run's, not the folder above."""
    flat = tmp_path / "flat" / "sub"
    shutil.copytree(own_run / "checkpoints", flat)
    (tmp_path / "flat" / "metrics.jsonl").write_text('{"step": 1, "alien": true}\n')
    run = Run(compose_train("loss=source_only", "schedule.max_steps=3", f"resume={flat}"), tmp_path / "new")
    assert run.best_miou >= 0 and (tmp_path / "new" / "checkpoints" / "best.pt").exists()
    run.train()
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [3] and "alien" not in lines[0]


def test_a_bare_state_dict_has_no_step_to_go_on_from(compose_train, published_b1, tmp_path):
    path = tmp_path / "bare.pth"
    torch.save(published_b1, path)
    with pytest.raises(UserError, match=rf"does not say at which step .*init={path}"):
        Run(compose_train(*PUBLISHED_B1, f"resume={path}"), tmp_path)
    assert Run(compose_train(*PUBLISHED_B1, f"init={path}", "loss.feature_distance=0"), tmp_path).step == 0


def test_scoring_a_published_checkpoint(compose_train, published, published_b1, demo_data, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = [f"ckpt={published}", f"data_dir={demo_data}", "device=cpu", "workers=0", "progress=false"]
        cfg = compose("eval", [*settings, "dataset=demo"])
        without = compose("eval", settings)
    with open_dict(cfg):
        cfg.dataset.prepare = None
        cfg.dataset.val.size = [64, 128]
    result = score(cfg, tmp_path)
    assert result["step"] == 1 and 0 <= result["sets"]["val"]["miou"] < 1
    with pytest.raises(UserError, match=r"does not name the data set.*dataset=darkzurich"):
        score(without, tmp_path)


@pytest.mark.parametrize("part", ["prepare", "val", "source"])
def test_a_checkpoint_cannot_choose_code(own_run, demo_data, tmp_path, part):
    content = torch.load(own_run / "checkpoints" / "best.pt", weights_only=True)
    evil = {"_target_": "numpy.savetxt", "fname": str(tmp_path / "written"), "X": [1.0]}
    content["config"]["dataset"][part] = (
        evil if part == "prepare" else {**content["config"]["dataset"][part], "x": [evil]}
    )
    torch.save(content, tmp_path / "best.pt")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(
            "eval", [f"ckpt={tmp_path / 'best.pt'}", f"data_dir={demo_data}", "workers=0", "progress=false"]
        )
    with pytest.raises(UserError, match=r"made by numpy\.savetxt, which is none of icda's"):
        score(cfg, tmp_path)
    with pytest.raises(UserError, match=r"made by numpy\.savetxt"):
        open_input("val", checkpoint.load_trained(tmp_path / "best.pt").config)
    assert not (tmp_path / "written").exists()


def test_what_is_allowed_is_what_conf_names():
    named = set()
    for path in (CONF / "dataset").glob("*.yaml"):
        named |= set(re.findall(r"_target_: *([\w.]+)", path.read_text()))
    assert named == OWN_PARTS


def test_a_run_from_another_run_without_dar(compose_train, own_run, tmp_path, caplog):
    cfg = compose_train(f"init={own_run}", "panels=0")
    with caplog.at_level(logging.WARNING):
        run = Run(cfg, tmp_path)
    assert "has no DAR; it starts anew" in caplog.text
    source = checkpoint.read_file(own_run / "checkpoints" / "best.pt")["student"]
    own = run.method.student.state_dict()
    assert all(torch.equal(own[n], t) for n, t in source.items()) and len(own) > len(source)
    assert run.step == 0 and run.method.frozen is None  # its encoder was never pretrained
    first = torch.load(own_run / "checkpoints" / "best.pt", weights_only=True)["trained_frames"]
    assert run.trained_frames.keys() >= first.keys()


def test_a_dar_that_is_not_needed_is_left_out(compose_train, published, tmp_path):
    run = Run(compose_train(*PUBLISHED_B1, f"init={published}", "loss=source_only", "panels=0"), tmp_path)
    assert run.method.student.dar is None
    assert run.train()["steps"] == 2


def test_the_first_start_from_init_the_next_from_the_run_itself(compose_train, own_run, tmp_path):
    settings = [f"init={own_run}", "resume=auto", "loss=source_only", "panels=0"]
    assert Run(compose_train(*settings), tmp_path).step == 0
    train(compose_train(*settings), tmp_path)
    assert Run(compose_train(*settings), tmp_path).step == 2
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "moved" / "checkpoints")
    assert Run(compose_train("loss=source_only", f"resume={tmp_path / 'moved'}"), tmp_path / "new").step == 2


def test_what_does_not_fit_is_said(compose_train, own_run, published, tmp_path):
    with pytest.raises(
        UserError, match=r"init=.* is a published mit_b1 .* of another size such as encoder\."
    ) as caught:
        Run(compose_train(f"init={published}"), tmp_path)
    assert "\n" not in str(caught.value)
    (other := tmp_path / "other").mkdir()
    content = torch.load(own_run / "checkpoints" / "last.pt", weights_only=True)
    content["classes"]["names"] = ["tree", *content["classes"]["names"][1:]]
    torch.save(content, other / "last.pt")
    with pytest.raises(
        UserError, match=r"which have other names; for its encoder alone give model\.encoder\.weights="
    ):
        Run(compose_train(f"init={other}"), tmp_path)
    with pytest.raises(UserError, match="folder without checkpoints"):
        Run(compose_train(f"init={tmp_path}"), tmp_path)


def test_metrics_and_versions_are_in_the_file(own_run):
    content = torch.load(own_run / "checkpoints" / "best.pt", weights_only=True)
    line = json.loads((own_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert content["format"] == checkpoint.FORMAT
    assert content["metrics"]["step"] == 2 and content["metrics"]["miou"] == line["miou"]
    assert content["metrics"]["val"] == "Dark Zurich val"
    assert content["versions"]["torch"] == torch.__version__.split("+")[0]


@pytest.fixture
def kept(tmp_path):
    """The ``checkpoints`` folder of a run that kept steps 100, 200 and, as ``last.pt``, 300."""
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints", keep=3)
    for step in (100, 200, 300):
        state = {
            "frozen": None,
            "pca": None,
            "optimizer": {"state": {}, "param_groups": []},
            "best_miou": 0.5,
            "seconds": 1.0,
        }
        folder.save_last(
            {
                "config": {"model": {"encoder": {"name": "mit_b0"}}, "dataset": {}},
                "classes": {**asdict(CAMVID), "palette": [list(color) for color in CAMVID.palette]},
                "step": step,
                "student": {"w": torch.full((9,), float(step))},
                "teacher": None,
                "training": {**state, "scaler": {"scale": 2.0}, "skipped": 4},
            }
        )
    return folder.folder


def tear(path):
    path.write_bytes(path.read_bytes()[:-40])


def test_weights_that_are_not_finite_are_passed_over(kept, caplog):
    content = torch.load(kept / "last.pt", weights_only=True)
    content["student"]["w"][3] = float("nan")
    torch.save(content, kept / "last.pt")
    assert read_newest(kept).step == 200
    assert "1 of the student's weights hold NaN or infinity" in caplog.text


def test_a_run_goes_on_with_its_newest_whole_checkpoint(kept, caplog):
    for given in (kept.parent, kept, kept / "last.pt", str(kept)):
        start = read_newest(given)
        assert (start.path, start.step, start.setting) == (kept / "last.pt", 300, f"resume={kept / 'last.pt'}")
    assert start.training["scaler"] == {"scale": 2.0} and start.training["skipped"] == 4
    assert start.config["model"]["encoder"]["name"] == "mit_b0" and not caplog.records
    tear(kept / "last.pt")
    for given in (kept.parent, kept, kept / "last.pt"):
        caplog.clear()
        start = read_newest(given)
        assert (start.path, start.step, start.resumes) == (kept / "step_000200.pt", 200, True)
        assert start.student["w"].tolist() == [200.0] * 9
        (record,) = caplog.records
        line = record.getMessage()
        assert record.levelname == "WARNING" and "\n" not in line
        assert line.startswith(f"{kept / 'last.pt'} ends after ") and "get the file again" not in line
        assert line.endswith(f"; the run goes on with {kept / 'step_000200.pt'}, of step 200, instead")
    (kept / "step_000200.pt").write_bytes(b"")
    caplog.clear()
    assert read_newest(kept).step == 100 and len(caplog.records) == 2
    (kept / "last.pt").unlink()
    caplog.clear()
    assert read_newest(kept / "last.pt").step == read_newest(kept.parent).step == 100
    assert "last.pt is gone; the run goes on" in caplog.text
    tear(kept / "step_000100.pt")
    with pytest.raises(
        UserError, match=r"is whole \(.*step_000200\.pt is empty.*; .*step_000100\.pt ends .*\)"
    ) as caught:
        read_newest(kept)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="there is no file"):
        read_newest(kept / "none" / "last.pt")


@pytest.mark.parametrize("change", [{"format": 99}, {"step": "x"}, {"training": {}}])
def test_only_damage_is_passed_over(kept, caplog, change):
    content = torch.load(kept / "last.pt", weights_only=True)
    (kept / "last.pt").unlink()
    torch.save({**content, **change}, kept / "last.pt")
    for given in (kept, kept / "last.pt"):
        with pytest.raises(UserError, match=r"last\.pt") as caught:
            read_newest(given)
        assert not isinstance(caught.value, DamagedFile) and not caplog.records
    (kept / "last.pt").write_text("something else altogether, by its first bytes")
    with pytest.raises(UserError, match="is text that begins with"):
        read_newest(kept)


def test_a_damaged_file_that_was_asked_for(kept, caplog):
    for name, before in (("last", "step_000200"), ("step_000200", "step_000100")):
        tear(kept / f"{name}.pt")
        for read in (lambda path: read_start(path, resumes=True), read_newest):
            if read is read_newest and name == "last":
                continue
            with pytest.raises(DamagedFile, match=rf"{name}\.pt ends .*; give .*resume={kept / before}\.pt$"):
                read(kept / f"{name}.pt")
    tear(kept / "step_000100.pt")
    with pytest.raises(DamagedFile, match=r"step_000100\.pt ends .*; get the file again"):
        read_start(kept / "step_000100.pt", resumes=True)
    (kept / "best.pt").write_bytes(b"PK")
    with pytest.raises(DamagedFile, match=rf"best\.pt ends .*give another .*, init={kept / 'last.pt'}"):
        read_start(kept / "best.pt", resumes=False)
    assert not caplog.records
