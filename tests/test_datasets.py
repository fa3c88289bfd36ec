"""Every data set's configuration with a tiny tree in its official layout: trained, scored and predicted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scenes
import trees
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from icda.errors import UserError
from icda.prediction import predict
from icda.scoring import score
from icda.training.loop import train

SIZE = "[64,128]"
TINY = (
    "model=icda_small",
    "model.head.channels=8",
    "model.dar.mlp_ratio=1",
    "dataset.sampling.crop=[64,64]",
    "dataset.sampling.min_pixels=20",
    "dataset.sampling.min_crop_pixels=10",
    "schedule.max_steps=1",
    "panels=1",
)
COMMON = ("device=cpu", "workers=0", "progress=false")
TRAINED = {
    "darkzurich": "icda",
    "acdc": "dacs",
    "acdc_night": "icda",
    "nightcity": "source_only",
    "camvid_dusk": "icda",
}
SCORED_ONLY = ("nighttime_driving", "bdd100k_night")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A folder with all data sets, as a person may have it: with a space and a letter that is not ASCII."""
    return trees.write_all(tmp_path_factory.mktemp("all") / "données de nuit")


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, [*COMMON, *overrides])


def sizes(dataset: str) -> list[str]:
    """Overrides that read all images of a data set at the size of the tiny trees."""
    node = composed("train", f"dataset={dataset}", "schedule=demo").dataset
    parts = [f"dataset.{part}" for part in ("source", "target", "val", "test") if node[part] is not None]
    parts += [f"dataset.score_also.{name}" for name in node.score_also]
    return [f"{part}.size={SIZE}" for part in parts]


def run_train(dataset: str, data_dir: Path, folder: Path, *overrides: str) -> Path:
    """The best checkpoint of a run of one step."""
    train(
        composed("train", f"dataset={dataset}", *TINY, *sizes(dataset), f"data_dir='{data_dir}'", *overrides), folder
    )
    return folder / "checkpoints" / "best.pt"


@pytest.fixture(scope="module")
def checkpoint(data_dir, tmp_path_factory) -> Path:
    return run_train("darkzurich", data_dir, tmp_path_factory.mktemp("darkzurich"), "loss=icda")


@pytest.mark.parametrize("dataset", TRAINED)
def test_train_score_and_predict(dataset, data_dir, tmp_path):
    best = run_train(dataset, data_dir, tmp_path / "run", f"loss={TRAINED[dataset]}")
    result = score(composed("eval", f"ckpt='{best}'"), tmp_path)
    assert 0 <= result["sets"]["val"]["miou"] <= 1 and result["sets"]["val"]["images"] > 0
    assert json.loads((tmp_path / "eval.json").read_text()) == result
    part = "test" if composed("train", f"dataset={dataset}").dataset.test is not None else "val"
    predict(composed("predict", f"ckpt='{best}'", f"input={part}"), tmp_path / "predicted")
    written = sorted((tmp_path / "predicted" / "labels").rglob("*.png"))
    assert written and all(np.array(Image.open(path)).shape in ((64, 128), (90, 120)) for path in written)


@pytest.mark.parametrize("dataset", SCORED_ONLY)
def test_sets_for_scoring_only(dataset, data_dir, checkpoint, tmp_path):
    result = score(composed("eval", f"ckpt='{checkpoint}'", f"dataset={dataset}", *sizes(dataset)), tmp_path)
    assert list(result["sets"]) == ["val"] and 0 <= result["sets"]["val"]["miou"] <= 1
    arguments = (f"ckpt='{checkpoint}'", f"dataset={dataset}", *sizes(dataset), "input=val")
    predict(composed("predict", *arguments), tmp_path / "predicted")
    assert len(list((tmp_path / "predicted" / "labels").rglob("*.png"))) == result["sets"]["val"]["images"]
    with pytest.raises(UserError, match="only for scoring"):
        run_train(dataset, data_dir, tmp_path / "run", "schedule=demo")


def test_several_sets_in_one_command(data_dir, checkpoint, tmp_path):
    result = score(composed("eval", f"ckpt='{checkpoint}'"), tmp_path)
    assert list(result["sets"]) == ["val", "nighttime_driving", "bdd100k_night"] and result["absent"] == []
    mious = [scores["miou"] for scores in result["sets"].values()]
    assert result["mean"]["miou"] == pytest.approx(np.mean(mious))
    assert "average_uiou" in result["sets"]["val"]["uncertainty"]  # Dark Zurich has masks of invalid pixels
    assert "uncertainty" not in result["sets"]["nighttime_driving"]
    only = score(composed("eval", f"ckpt='{checkpoint}'", "sets=[bdd100k_night]"), tmp_path)
    assert only["sets"] == {"bdd100k_night": result["sets"]["bdd100k_night"]}


def test_sets_that_are_not_on_disk(data_dir, checkpoint, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for name in ("DarkZurich", "NighttimeDrivingTest", "Cityscapes"):
        (few / name).symlink_to(data_dir / name, target_is_directory=True)
    result = score(composed("eval", f"ckpt='{checkpoint}'", f"data_dir='{few}'"), tmp_path)
    assert list(result["sets"]) == ["val", "nighttime_driving"] and result["absent"] == ["bdd100k_night"]
    with pytest.raises(UserError, match=r"no folder .*few/bdd100k; check data_dir"):
        score(composed("eval", f"ckpt='{checkpoint}'", f"data_dir='{few}'", "sets=[val,bdd100k_night]"), tmp_path)
    with pytest.raises(UserError, match="no set berlin; choose from val, nighttime_driving, bdd100k_night, source"):
        score(composed("eval", f"ckpt='{checkpoint}'", "sets=[berlin]"), tmp_path)


def test_frames_that_were_trained_on_are_named_or_left_out(data_dir, tmp_path, caplog):
    """ACDC's night train images hold one frame of Dark Zurich's val (see tests/trees.py)."""
    caplog.set_level("INFO")
    best = run_train("acdc_night", data_dir, tmp_path / "run", "loss=dacs")
    arguments = (f"ckpt='{best}'", "dataset=darkzurich", *sizes("darkzurich"), "sets=[val]")
    everything = score(composed("eval", *arguments), tmp_path)
    assert "1 of the 3 frames" in caplog.text
    clean = score(composed("eval", *arguments, "overlap=drop"), tmp_path)
    assert (everything["sets"]["val"]["images"], clean["sets"]["val"]["images"]) == (3, 2)
    with pytest.raises(UserError, match="1 of the 3 frames"):
        score(composed("eval", *arguments, "overlap=error"), tmp_path)


def test_frames_that_will_be_scored_are_named_or_left_out_of_training(data_dir, tmp_path, caplog):
    val = OmegaConf.to_container(composed("train", "dataset=darkzurich").dataset.val, resolve=False)
    overrides = [f"dataset.val.{key}={value}" for key, value in val.items() if key in ("_target_", "split")]
    overrides += ["dataset.val.root=${data_dir}/DarkZurich", "~dataset.val.conditions", "loss=dacs"]
    caplog.set_level("INFO")
    run_train("acdc_night", data_dir, tmp_path / "warn", *overrides)
    assert "1 of the 3 frames" in caplog.text and "3 unlabelled images" in caplog.text
    caplog.clear()
    run_train("acdc_night", data_dir, tmp_path / "drop", *overrides, "overlap=drop")
    assert "2 unlabelled images" in caplog.text
    with pytest.raises(UserError, match="1 of the 3 frames"):
        run_train("acdc_night", data_dir, tmp_path / "error", *overrides, "overlap=error")


def test_translations_are_read(data_dir, tmp_path):
    run_train("darkzurich", data_dir, tmp_path / "run", "loss=icda", "cem=translated")


def test_night_images_kept_without_a_day_reference(data_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    far = ("dataset.target.pairs=gps", "dataset.target.max_distance=1e-6")
    run_train("darkzurich", data_dir, tmp_path / "keep", *far, "dataset.target.unpaired=keep")
    assert "6 unlabelled images" in caplog.text


def test_any_conditions(data_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    run_train("acdc", data_dir, tmp_path / "run", "loss=dacs", "dataset.target.conditions=[rain,night]")
    assert "5 unlabelled images; scored on ACDC night+rain val: 3 images" in caplog.text


CLASSES = """\
name: yard
classes:
  - {name: ground, ids: [7, 8, 22]}
  - {name: wall, ids: [11, 12, 13], color: [90, 90, 90]}
  - {name: plant, ids: [21]}
  - {name: sky, ids: [23]}
  - {name: thing, ids: [17, 19, 20, 24, 25, 26, 27, 28, 31, 32, 33], thing: true}
ignore_ids: rest
"""


def write_own_images(root: Path) -> Path:
    """Own footage: three day images with labels in raw ids, three night images of which two have labels."""
    (root / "yard.yaml").parent.mkdir(parents=True)
    (root / "yard.yaml").write_text(CLASSES)
    for i in range(3):
        place = scenes.scene(f"yard {i}", (64, 128), 0)
        for folder, picture in (("day", place.picture()), ("night", place.picture(scenes.NIGHT))):
            (root / folder / "Hof Süd").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / folder / f"Hof Süd/frame {i}.JPG", "JPEG")
            if folder == "day" or i < 2:
                (root / f"{folder}_labels" / "Hof Süd").mkdir(parents=True, exist_ok=True)
                Image.fromarray(place.label_ids).save(root / f"{folder}_labels" / f"Hof Süd/frame {i}.png")
    return root


@pytest.mark.parametrize("references", ["enhanced", "pairs"])
def test_images_of_ones_own(references, tmp_path):
    root = write_own_images(tmp_path / "data" / "folder")
    own = [f"dataset.source.classes='{root}/yard.yaml'", "dataset.source.size=[64,128]"]
    if references == "pairs":
        own += ["dataset.reference=pairs", "dataset.target.references='day/**/*'"]
    arguments = ["dataset=folder", *TINY, *own, f"data_dir='{tmp_path}/data'", "loss=icda"]
    train(composed("train", *arguments), tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best.pt"
    result = score(composed("eval", f"ckpt='{best}'"), tmp_path)
    assert list(result["sets"]["val"]["iou"]) == ["ground", "wall", "plant", "sky", "thing"]
    assert result["sets"]["val"]["images"] == 2  # those of the night images that have labels
    predict(composed("predict", f"ckpt='{best}'", f"input='{root}/night'"), tmp_path / "predicted")
    labels = sorted((tmp_path / "predicted" / "labels").rglob("*.png"))
    assert [path.name for path in labels] == [f"frame {i}.png" for i in range(3)]
    assert {value for path in labels for value in np.unique(np.array(Image.open(path)))} <= set(range(5))
