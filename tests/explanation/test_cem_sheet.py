"""scripts/show_cem.py: each kind of light and each warp of one image, as the seed written on it makes them again."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from icda.cli import run
from icda.data.classes import CITYSCAPES
from icda.explanation.cem_sheet import ALL, SOURCE, CemSheet, show_cem, variants
from icda.explanation.settings import ShowCemConfig, validate_show_cem
from icda.transforms import ILLUMINATIONS, WARPS

SMALL = ["dataset.prepare=null", "dataset.source.size=[64,128]", "dataset.target.size=[64,128]", "tile=160"]


def shown(demo_data: Path, folder: Path, *overrides: str) -> CemSheet:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("show_cem", [*SMALL, f"data_dir={demo_data}", *overrides])
    folder.mkdir(exist_ok=True)
    return show_cem(cfg, folder)


@pytest.fixture(scope="module")
def three(demo_data, tmp_path_factory) -> tuple[CemSheet, Path]:
    """The sheet of seeds 5 to 7 and its folder; read only."""
    folder = tmp_path_factory.mktemp("sheet")
    return shown(demo_data, folder, "count=3", "seed=5"), folder


def test_the_sheet_and_the_page(three):
    sheet, folder = three
    columns = [SOURCE, "style", "relight", "none", *WARPS, ALL]
    assert list(sheet.rows) == [5, 6, 7] and all(list(row) == columns for row in sheet.rows.values())
    assert list(sheet.left_out) == ["translated"] and "scripts/translate.py makes one" in sheet.left_out["translated"]
    picture = cv2.imread(str(folder / "cem.png"))
    assert picture.shape == (3 * (22 + 2 * 83), len(columns) * 163 - 3, 3)
    page = (folder / "index.html").read_text()
    assert page.count("<img ") == 3 and "Not shown: <b>translated</b>" in page and "seed=6" in page


def test_a_seed_shows_the_same_again_wherever_it_stands(three, demo_data, tmp_path):
    many, one = three[0], shown(demo_data, tmp_path, "count=1", "seed=7")
    assert many.keys[7] == one.keys[7]
    for name, tile in one.rows[7].items():
        np.testing.assert_array_equal(tile.image, many.rows[7][name].image)
        np.testing.assert_array_equal(tile.label, many.rows[7][name].label)
    assert (many.rows[5]["relight"].image != many.rows[7]["relight"].image).any()


def test_light_moves_no_label_and_a_warp_moves_label_and_image_alike(three):
    row = three[0].rows[5]
    source = row[SOURCE]
    for kind in ("style", "relight", "none"):
        np.testing.assert_array_equal(row[kind].label, source.label)
        assert (row[kind].image != source.image).any()
    for warp in WARPS:
        image, label = row[warp].image, row[warp].label
        inside = label != CITYSCAPES.ignore_index
        # By nearest neighbour and without jitter, every pixel is one of the source's that has its label.
        known = {
            (*color, i)
            for color, i in zip(source.image.reshape(-1, 3).tolist(), source.label.ravel().tolist(), strict=True)
            for color in [tuple(color)]
        }
        found = zip(image[inside].tolist(), label[inside].tolist(), strict=True)
        assert all((*color, i) in known for color, i in found)
        assert (label != source.label).any()
    assert len({row[warp].image.tobytes() for warp in WARPS}) == len(WARPS)


def test_every_kind_and_every_warp_has_a_column_with_the_groups_settings():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cem = validate_show_cem(compose("show_cem", ["cem.jitter=0.3", "cem.warps=[tps]"])).cem
    columns = variants(cem)
    assert list(columns) == [*ILLUMINATIONS, *WARPS, ALL]
    assert columns[ALL] == cem
    assert all(columns[kind].jitter == 0.3 and not columns[kind].spatial for kind in ILLUMINATIONS)
    assert [columns[warp].warps for warp in WARPS] == [[warp] for warp in WARPS]


def test_translations_are_shown_where_they_are(demo_data, tmp_path):
    folder = tmp_path / "night"
    leftover = demo_data / "demo" / "Cityscapes" / "leftImg8bit" / "train"
    for path in leftover.rglob("*.png"):
        place = folder / "leftImg8bit" / "train" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), cv2.imread(str(path)) // 4)
    sheet = shown(
        demo_data,
        tmp_path,
        "count=1",
        f"dataset.source.translations={folder}",
        "cem.jitter=0",
        "cem.blur_probability=0",
    )
    assert sheet.left_out == {}
    row = sheet.rows[0]
    assert np.abs(row["translated"].image.astype(float) - row[SOURCE].image / 4).mean() < 2


@pytest.mark.parametrize(
    ("override", "kind", "reason"),
    [
        ("dataset.target=null", "style", "dataset.target is null"),
        ("dataset.target.root=/nowhere", "style", "/nowhere"),
        ("dataset.source.translations=/nowhere", "translated", "/nowhere"),
    ],
)
def test_what_is_not_there_is_said(demo_data, tmp_path, override, kind, reason):
    overrides = ["count=1", override] + (["~dataset.target.size"] if override == "dataset.target=null" else [])
    overrides = [o for o in overrides if not o.startswith("~")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        small = [o for o in SMALL if "target" not in o or override != "dataset.target=null"]
        cfg = compose("show_cem", [*small, f"data_dir={demo_data}", *overrides])
    sheet = show_cem(cfg, tmp_path)
    assert reason in sheet.left_out[kind]
    assert kind not in sheet.rows[0] and (ALL not in sheet.rows[0]) == (kind == "style")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dataset=nighttime_driving"], "has no labelled day images (dataset.source), it is only for scoring"),
        (["~dataset"], "dataset is missing; give it as dataset=demo"),
        (["data_dir=/nowhere"], "/nowhere"),
        (["seed=-1"], "seed=-1 is out of range"),
        (["count=0"], "count=0 is out of range; expected from 1 to 100"),
        (["cem.illumination=moon"], "expected one of translated, style, relight, none"),
        (["cem=moon"], "cem=moon is not known"),
        (["cem.jiter=1"], "cem.jiter is not a setting"),
        (["cem.jitter=7"], "cem.jitter=7.0 is out of range; expected from 0 to 1"),
        (["cem.warps=[bend]"], "expected some of homography, tps, affine_tps"),
        (["cem.warps=[]"], "expected some of homography, tps, affine_tps"),
        (["cem.interpolation=cubic"], "expected nearest or bilinear"),
        (["cem.style_strength=[0.5]"], "expected [least, most], each from 0 to 1"),
    ],
)
def test_mistakes(demo_data, tmp_path, monkeypatch, capsys, arguments, expected):
    small = [] if "dataset" in arguments[0] else SMALL
    given = [f"data_dir={demo_data}", f"hydra.run.dir={tmp_path}", *small, *arguments]
    monkeypatch.setattr(sys, "argv", ["show_cem.py", *given])
    assert run("show_cem", show_cem, CONF) == 1
    err = capsys.readouterr().err.strip()
    assert err.startswith("error: ") and "\n" not in err and expected in err, err


def test_every_setting_is_read():
    source = (CONF.parent / "icda" / "explanation" / "cem_sheet.py").read_text()
    keys = [key for key in OmegaConf.load(CONF / "show_cem.yaml") if key not in ("defaults", "hydra")]
    assert {*keys, "cem"} == set(ShowCemConfig.__dataclass_fields__)
    assert [key for key in keys if f"config.{key}" not in source] == []
