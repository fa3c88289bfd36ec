"""Translations made beforehand: laid out as training reads them, and a function of the seed and the image alone."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CONF, TINY
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from icda.cli import run
from icda.config import validate
from icda.data import Cityscapes, DarkZurich
from icda.data.setup import open_datasets
from icda.errors import UserError
from icda.translation import RECORD, _override, translate

ROOT = Path(__file__).parents[1]
SMALL = tuple(option for option in TINY if option.startswith("dataset."))


@pytest.fixture
def made(demo_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs a translation of the tiny demo set and returns the folder."""

    def run_with(*overrides: str) -> Path:
        options = [
            *SMALL,
            f"data_dir={demo_data}",
            f"prepared_dir={tmp_path}/prepared",
            "workers=0",
            "progress=false",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return translate(compose("translate", [*options, *overrides]), tmp_path)

    return run_with


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {p.relative_to(folder).as_posix(): np.array(Image.open(p)) for p in sorted(folder.rglob("*.png"))}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def source(demo_data: Path) -> Cityscapes:
    return Cityscapes(str(demo_data / "demo" / "Cityscapes"), "train", size=[64, 128])


def test_layout_is_the_published_one(made, demo_data, tmp_path):
    folder = made()
    assert folder == tmp_path / "prepared" / "translations" / "demo_style"
    found, root = pictures(folder), demo_data / "demo" / "Cityscapes"
    assert list(found) == [p.relative_to(root).as_posix() for p in sorted(root.glob("leftImg8bit/train/*/*.png"))]
    assert all(re.fullmatch(r"leftImg8bit/train/(\w+)/\1_\d+_000019_leftImg8bit\.png", name) for name in found)
    assert all(picture.shape == (64, 128, 3) and picture.dtype == np.uint8 for picture in found.values())
    assert {p.name for p in folder.iterdir()} == {"leftImg8bit", RECORD}


@pytest.mark.parametrize("method", ["style", "relight"])
def test_they_are_dark_and_all_different(made, demo_data, method):
    found, days = list(pictures(made(f"method={method}")).values()), source(demo_data)
    ratios = [night.mean() / days.image(i).mean() for i, night in enumerate(found)]
    assert max(ratios) < 0.8 and np.mean(ratios) < 0.6, ratios
    assert len(set(ratios)) == len(found)  # not one change for all


def test_without_strength_nothing_changes(made, demo_data):
    found, days = pictures(made("strength=[0,0]")), source(demo_data)
    assert all(np.array_equal(picture, days.image(i)) for i, picture in enumerate(found.values()))


def test_the_record(made, demo_data):
    target = DarkZurich(str(demo_data / "demo/DarkZurich"), "train", size=[64, 128])
    keys = "\n".join(sample.key for sample in target.samples).encode()
    expected = {
        "version": 1,
        "source": "Cityscapes train",
        "source_root": f"{demo_data}/demo/Cityscapes",
        "target": "Dark Zurich train",
        "target_root": f"{demo_data}/demo/DarkZurich",
        "target_size": list(target.size),
        "target_images": f"{len(target)}, {hashlib.sha256(keys).hexdigest()[:16]}",
        "method": "style",
        "strength": [0.7, 1.0],
        "seed": 3,
        "size": [64, 128],
    }
    assert json.loads((made("seed=3") / RECORD).read_text()) == expected
    relit = json.loads((made("method=relight", "size=original") / RECORD).read_text())
    changes = {"method": "relight", "target": None, "strength": None, "seed": 0, "size": "original"}
    changes |= dict.fromkeys(("target_root", "target_size", "target_images"))
    assert relit == {**expected, **changes}


def test_original_size(made):
    smaller = ("dataset.source.size=[32,64]", "dataset.target.size=[32,64]")
    sizes = {p.shape for p in pictures(made(*smaller)).values()}
    original = {p.shape for p in pictures(made(*smaller, "size=original", "output=${prepared_dir}/o")).values()}
    assert sizes == {(32, 64, 3)} and original == {(64, 128, 3)}


@pytest.mark.slow
def test_workers_and_interruptions_change_nothing(made, tmp_path):
    folder = made()
    expected = pictures(folder)
    written = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    gone = sorted(written)[1::2]
    for path in gone:
        path.unlink()
    assert made("workers=2") == folder
    assert same(pictures(folder), expected)
    assert all(p.stat().st_mtime_ns == written[p] for p in written if p not in gone)
    assert same(pictures(made("workers=2", f"output={tmp_path}/other")), expected)
    assert not same(pictures(made("seed=1", f"output={tmp_path}/seed")), expected)


def test_an_image_does_not_depend_on_the_others(made, demo_data, tmp_path):
    expected = pictures(made())
    shutil.copytree(demo_data / "demo", tmp_path / "copy" / "demo")
    removed = next(iter(expected))
    (tmp_path / "copy" / "demo" / "Cityscapes" / removed).unlink()
    found = pictures(made(f"data_dir={tmp_path}/copy", f"output={tmp_path}/fewer"))
    del expected[removed]
    assert same(found, expected)


@pytest.mark.parametrize("place", ["plain", "mit Lücke", 'it\'s "odd", = $x \\ {1}', 'a\\\\"b\\\\'])
def test_the_printed_command_trains_with_them(made, demo_data, tmp_path, caplog, place):
    output = tmp_path / place
    with caplog.at_level(logging.INFO):
        assert made(_override("output", str(output))) == output
    command = shlex.split(caplog.messages[-1].removeprefix("train with them: "))
    assert command[:2] == ["python", "scripts/train.py"] and (ROOT / command[1]).is_file()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = validate(compose("train", [*TINY, *command[2:]]))
    assert config.data_dir == str(demo_data) and config.prepared_dir == f"{tmp_path}/prepared"
    opened = open_datasets(config).source
    found = pictures(output)
    assert len(opened) == len(found) > 1
    for index, picture in enumerate(found.values()):
        np.testing.assert_array_equal(opened.translation(index), picture)


def test_another_record_is_refused(made):
    folder = made()
    before = pictures(folder)
    with pytest.raises(UserError, match=r"other settings: seed 0 \(asked for: 1\); give another folder") as error:
        made("seed=1")
    assert str(folder) in str(error.value) and same(pictures(folder), before)
    with pytest.raises(UserError, match=r"strength \[0\.7, 1\.0\] \(asked for: \[0\.5, 0\.6\]\), size \[64, 128\]"):
        made("strength=[0.5,0.6]", "size=original")
    with pytest.raises(UserError, match=r"settings: target_size \[64, 128\] \(asked for: \[32, 64\]\);"):
        made("dataset.target.size=[32,64]")
    (folder / RECORD).write_text("{")
    with pytest.raises(UserError, match=f"{RECORD} is damaged"):
        made()
    (folder / RECORD).write_text("[]")
    with pytest.raises(UserError, match="holds translations made with other settings"):
        made()
    (folder / RECORD).unlink()
    with pytest.raises(UserError, match=f"holds files, but no {RECORD}; give an empty folder"):
        made()


def test_nothing_is_written_into_a_data_set(made, demo_data):
    for part in ("Cityscapes", "DarkZurich"):
        folder = demo_data / "demo" / part / "night"
        with pytest.raises(UserError, match=r"is inside (Cityscapes|Dark Zurich) train's own folder"):
            made(f"output={folder}")
        assert not folder.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_the_rest_can_follow(made, demo_data, tmp_path, workers):
    shutil.copytree(demo_data / "demo", tmp_path / "copy" / "demo")
    days = source(tmp_path / "copy")
    path = days.samples[3].image
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=re.escape(f"{path} cannot be read")):
        made(f"data_dir={tmp_path}/copy", f"workers={workers}")
    folder = tmp_path / "prepared" / "translations" / "demo_style"
    assert len(pictures(folder)) < len(days) and not list(folder.rglob("*.tmp"))
    path.write_bytes(whole)
    assert same(pictures(made(f"data_dir={tmp_path}/copy")), pictures(made(f"output={tmp_path}/other")))


def test_relight_needs_no_target(made):
    with pytest.raises(UserError, match=r"^method=style takes the light of night images, but dataset.target is null"):
        made("dataset.target=null")
    assert pictures(made("dataset.target=null", "method=relight"))


def test_the_references_of_the_target_need_not_be_there(made, demo_data, tmp_path):
    shutil.copytree(demo_data / "demo", tmp_path / "copy" / "demo")
    expected = pictures(made())
    shutil.rmtree(tmp_path / "copy" / "demo" / "DarkZurich" / "rgb_anon" / "train" / "day")
    assert same(pictures(made(f"data_dir={tmp_path}/copy", f"output={tmp_path}/o")), expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=cyclegan", r"^method=cyclegan is out of range; expected style or relight$"),
        ("size=[1,2]", r"^size=.* has the wrong type"),
        ("size=half", r"expected dataset or original"),
        ("strength=[1,0.5]", r"expected \[smallest, largest\]"),
        ("strength=0.5", r"expected a list"),
        ("strength=[0,2]", r"from 0 to 1"),
        ("seed=-1", r"from 0 to 2"),
        ("workers=-1", r"0 or more"),
        ("dataset.source=null", r"has no labelled day images"),
        ("data_dir=/nowhere", r"no folder /nowhere/demo/Cityscapes; check data_dir"),
        ("+extra=1", r"^extra is not a setting"),
    ],
)
def test_mistakes(made, override, message):
    with pytest.raises(UserError, match=message) as error:
        made(override)
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written(made):
    with pytest.raises(UserError, match=r"^cannot write to /proc/translations"):
        made("output=/proc/translations")


def test_as_a_script(monkeypatch, capsys, demo_data, tmp_path):
    options = [*SMALL, f"data_dir={demo_data}", f"prepared_dir={tmp_path}", "workers=0", "progress=false"]
    monkeypatch.setattr(sys, "argv", ["translate.py", *options, "method=moonlight"])
    assert run("translate", translate, CONF) == 1
    assert capsys.readouterr().err == "error: method=moonlight is out of range; expected style or relight\n"
    monkeypatch.setattr(sys, "argv", ["translate.py", *options, "method=relight"])
    assert run("translate", translate, CONF) == 0
    assert len(pictures(tmp_path)) == len(source(demo_data))


def test_keys_are_documented_and_read():
    text = (CONF / "translate.yaml").read_text().split("hydra:")[0]
    keys = re.findall(r"^([a-z_]+):(.*)$", text, re.M)
    assert [key for key, rest in keys if key != "defaults" and "#" not in rest] == []
    code = (ROOT / "icda" / "translation.py").read_text()
    names = [key for key in OmegaConf.load(CONF / "translate.yaml") if key not in ("defaults", "hydra", "dataset")]
    assert [name for name in names if f"config.{name}" not in code] == []
