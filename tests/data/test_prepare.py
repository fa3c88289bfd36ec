"""What ``scripts/prepare.py`` finds and tells, on tiny trees of every kind."""

from __future__ import annotations

import re
import shutil
import sys

import numpy as np
import pytest
from conftest import CONF
from omegaconf import OmegaConf
from PIL import Image
from prepare_calls import FILES, row, snapshot

from icda.cli import run
from icda.data.prepare import PrepareConfig, prepare

pytest_plugins = ("prepare_fixtures",)


# ---- what is found


def test_a_whole_data_set_is_ready(call):
    text = call("dataset=darkzurich")
    assert text.endswith("darkzurich is ready")
    assert "To be mended" not in text
    assert row(text, "source", "labels") == ["6", "-", "ok"]
    assert row(text, "target", "day images") == ["4", "-", "ok"]
    assert row(text, "val", "invalid masks") == ["3", "-", "ok"]
    assert row(text, "score_also.bdd100k_night") == ["3", "-", "ok"]


def test_counts_are_compared_with_the_published_ones(call):
    text = call("dataset=darkzurich", "dataset.published=true", error="not ready: 3 things have to be mended")
    assert row(text, "source") == ["6", "2975", "2969 fewer"]
    assert row(text, "target") == ["6", "2416", "2410 fewer"]
    mend = text.partition("To be mended")[2]
    assert re.search(
        r"source: 2969 of 2975 published images are missing \(aachen has 2 of 174, .*and 14 more\)", mend
    )
    assert "val: 47 of 50" in mend and "dataset.published=false" in mend
    assert "test:" not in mend and "score_also" not in mend  # training goes on without these


def test_missing_labels_and_strays_are_listed(call, data):
    labels = data / "Cityscapes/gtFine/train"
    for name in ("aachen/aachen_000000", "aachen/aachen_000001", "bochum/bochum_000000", "bochum/bochum_000001"):
        (labels / f"{name}_000019_gtFine_labelIds.png").unlink()
    (data / "Cityscapes/leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png").unlink()
    text = call("dataset=darkzurich", error="not ready: 1 thing has")
    assert row(text, "source", "labels") == ["1", "-", "4 missing"]
    assert re.search(
        r"source: 4 of 5 images have no label; expected .*labelIds\.png; unzip the package again\n", text
    )
    assert "train/bochum/bochum_000000_000019_leftImg8bit.png\n    ... and 1 more" in text
    stray = labels / "ulm/ulm_000001_000019_gtFine_labelIds.png"
    assert f"source: 1 file belongs to no image; left aside\n    {stray}" in text
    assert "class statistics" not in text  # they would lack the missing labels


@pytest.mark.parametrize(
    ("removed", "part", "message"),
    [
        ("Cityscapes", "source", r"no folder .*Cityscapes; check data_dir"),
        ("DarkZurich/corresp/train/night/GOPR0351/GOPR0351_ref_day.csv", None, r"3 of 6 images have none .*left out"),
        ("DarkZurich/rgb_anon/train/day/GOPR0374", "target", r"line 1 names a day image that is missing: .*GOPR0374"),
        ("DarkZurich/gt", "val", r"no folder .*gt/val"),
        ("DarkZurich/rgb_anon/test", None, r"test: incomplete, only needed for predictions .*no folder .*night"),
        ("NighttimeDrivingTest", None, r"nighttime_driving: not there, only needed for scoring .*Test"),
        ("CycleGANCityscapes", None, r"no folder of night translations .*; only needed for cem=translated"),
        ("CycleGANCityscapes/leftImg8bit/train/ulm", None, r"2 of 6 images have no translation; .*cem=translated"),
    ],
)
def test_what_is_missing_is_named_and_stops_only_where_training_needs_it(call, data, removed, part, message):
    path = data / removed
    path.unlink() if path.is_file() else shutil.rmtree(path)
    text = call("dataset=darkzurich", error=None if part is None else "not ready: 1 thing has")
    assert re.search(rf"{part or ''}.*{message}", text)
    assert ("To be mended" in text) == (part is not None)


def test_prepare_says_ready_exactly_where_training_opens_the_data(call, data):
    """An image without pair: training drops it, or, if asked to, refuses."""
    file = data / "DarkZurich/corresp/train/night/GOPR0351/GOPR0351_ref_day.csv"
    file.write_text("\n".join(file.read_text().splitlines()[1:]))
    text = call("dataset=darkzurich")
    assert row(text, "target") == ["6", "-", "ok"] and row(text, "target", "pairs") == ["5", "-", "ok"]
    text = call("dataset=darkzurich", "dataset.target.unpaired=error", error="1 thing has")
    assert "target: 1 of 6 images have no reference" in text
    call("dataset=darkzurich", "dataset.target.unpaired=error", "dataset.reference=enhanced")


def test_parts_that_are_null_are_left_out(call):
    text = call("dataset=nighttime_driving")
    assert row(text, "val", "labels") == ["4", "-", "ok"]
    assert not re.search("^(source|target|test)", text, re.M)
    assert "nothing to do" in text


@pytest.mark.parametrize("level", ["headers", "full"])
def test_every_damaged_file_is_named(call, data, level):
    root = data / "Cityscapes"
    image = root / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"
    image.write_bytes(b"")
    label = root / "gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png"
    Image.open(label).resize((10, 10)).save(label)
    day = data / "DarkZurich/rgb_anon/train/day/GOPR0345/GOPR0345_frame_000240_rgb_anon.png"  # of two night images
    day.write_bytes(day.read_bytes()[:200])  # its header is whole
    invalid = data / "DarkZurich/gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_invIds.png"
    invalid.write_text("no picture")
    missing_in_score = data / "NighttimeDrivingTest/leftImg8bit/test/night/0_frame_0205_leftImg8bit.png"
    missing_in_score.write_bytes(b"")
    text = call("dataset=darkzurich", f"check={level}", "train_ids=false", error="not ready")
    damaged = [image, label, invalid] + ([day] if level == "full" else [])
    mend = text.partition("To be mended")[2]
    assert f"check={level}: files that cannot be used: {len(damaged) + 1}" in text
    for path in damaged:
        assert len([line for line in mend.splitlines() if f" {path} " in line]) == 1, (path, mend)
    assert f" {missing_in_score} " in text.partition("To be mended")[0]  # scoring on it is not needed for training


def test_label_ids_are_looked_at_in_full_only(call, data):
    label = data / "Cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    ids = np.array(Image.open(label))
    ids[0, 0] = 77
    Image.fromarray(ids).save(label)
    (data / "Cityscapes/sample_class_stats.json").write_text("[]")
    text = call("dataset=acdc", "check=full", "train_ids=false", error="not ready")
    assert re.search(rf"source: {label} holds ids .*: 77", text)
    assert "check=headers: files that cannot be used: none" in call(
        "dataset=acdc", "check=headers", "train_ids=false", error="not"
    )


# ---- trouble


def test_a_folder_that_cannot_be_written_is_one_line(call, data):
    (data / "file").touch()
    call(
        "dataset=camvid_dusk",
        f"prepared_dir={data}/file/x",
        error=r"^cannot write to .*file.*: Not a directory; give",
    )


def test_a_full_disk_is_one_line(call, data, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    call(
        "dataset=camvid_dusk", "cache=true", error=r"^cannot write to .*icda_prepared: No space left on device; give"
    )
    assert [p.name for p in (data / FILES / "cache").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("check=all", r"^check=all is out of range; expected one of names, headers, full$"),
        ("cache=yes", r"^cache=yes is out of range; expected true, false or remove$"),
        ("workers=-1", r"expected 0 or more"),
        ("+extra=1", r"^extra is not a setting"),
    ],
)
def test_mistakes_are_one_line(call, override, message):
    call("dataset=camvid_dusk", override, error=message)


def test_every_setting_is_documented_and_typed():
    keys = [key for key in OmegaConf.load(CONF / "prepare.yaml") if key not in ("defaults", "hydra")]
    assert set(keys) == set(PrepareConfig.__dataclass_fields__)
    text = (CONF / "prepare.yaml").read_text()
    assert all(re.search(rf"^{key}: .* # \w+", text, re.M) for key in keys)


def test_the_script_tells_its_status_and_leaves_no_folder(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["prepare.py", "dataset=camvid_dusk", f"data_dir={data}", "progress=false", "workers=0"]
    )
    assert run("prepare", prepare, CONF) == 1
    assert re.fullmatch(r"error: camvid_dusk is not ready: 3 things .*\n", capsys.readouterr().err)
    sys.argv.append("dataset.published=false")
    assert run("prepare", prepare, CONF) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("cache", ["false", "true", "remove"])
def test_nothing_is_written_into_a_data_sets_own_folder(call, data, cache):
    before = snapshot(data)
    for folder in ("DarkZurich", "Cityscapes/made"):
        own = r"prepared_dir=.* is inside .*'s own folder .*; choose another folder$"
        call("dataset=darkzurich", f"cache={cache}", f"prepared_dir={data}/{folder}", error=own)
    assert snapshot(data) == before


def test_images_left_out_are_counted_and_named_for_every_data_set(call, data):
    reference = next((data / "ACDC/rgb_anon/night/train_ref").rglob("*.png"))
    reference.unlink()
    text = call("dataset=acdc_night", "dataset.published=false")
    frame = reference.name.replace("_rgb_ref_anon", "_rgb_anon")
    assert re.search(rf"target: .*1 of 3 images have none and are left out, the first is .*{frame}", text)
