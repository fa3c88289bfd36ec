"""The demo data on disk: layout, repeatability, and that a person's files and half-made data are safe."""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icda.data.classes import CITYSCAPES
from icda.data.demo import writer as demo
from icda.data.demo.writer import DemoCounts, make_demo
from icda.errors import UserError

SIZE = (64, 128)
COUNTS = DemoCounts(source_train=4, source_val=2, target_train=3, target_val=2, target_test=1)


def make(root: Path, **changes: object) -> Path:
    settings = {"counts": COUNTS, "size": SIZE, "workers": 1, "progress": False, **changes}
    return make_demo(root, **settings)


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("demo") / "data")


def test_cityscapes_layout(made: Path) -> None:
    root = made / "Cityscapes"
    for split, count in (("train", COUNTS.source_train), ("val", COUNTS.source_val)):
        images = sorted((root / "leftImg8bit" / split).glob("*/*.png"))
        labels = sorted((root / "gtFine" / split).glob("*/*.png"))
        assert len(images) == len(labels) == count
        for image, label in zip(images, labels, strict=True):
            match = re.fullmatch(r"([a-z]+)_\d{6}_\d{6}_leftImg8bit\.png", image.name)
            assert match and match[1] == image.parent.name
            assert label.name == image.name.replace("leftImg8bit", "gtFine_labelTrainIds")
            with Image.open(image) as picture, Image.open(label) as ids:
                assert (picture.mode, picture.size) == ("RGB", SIZE[::-1])
                assert (ids.mode, ids.size) == ("L", SIZE[::-1])
                assert set(np.unique(ids)) <= {*range(len(CITYSCAPES)), CITYSCAPES.ignore_index}


def test_class_statistics_count_the_label_files(made: Path) -> None:
    root = made / "Cityscapes"
    stats = json.loads((root / "sample_class_stats.json").read_text())
    by_class = json.loads((root / "samples_with_class.json").read_text())
    assert sorted(entry["file"] for entry in stats) == sorted(
        path.relative_to(root).as_posix() for path in (root / "gtFine" / "train").glob("*/*.png")
    )
    for entry in stats:
        ids, pixels = np.unique(Image.open(root / entry["file"]), return_counts=True)
        true = {str(i): int(n) for i, n in zip(ids, pixels, strict=True) if i != CITYSCAPES.ignore_index}
        assert {key: value for key, value in entry.items() if key != "file"} == true
        for index, count in true.items():
            assert [entry["file"], count] in by_class[index]
    assert sum(len(samples) for samples in by_class.values()) == sum(len(entry) - 1 for entry in stats)


def test_dark_zurich_layout(made: Path) -> None:
    root = made / "DarkZurich"
    lists = root / "lists_file_names"
    listed = {}
    for name in ("train_night", "train_day", "val", "val_ref", "test", "test_ref"):
        listed[name] = (lists / f"{name}_filenames.txt").read_text().splitlines()
        for key in listed[name]:
            with Image.open(root / "rgb_anon" / f"{key}_rgb_anon.png") as picture:
                assert (picture.mode, picture.size) == ("RGB", SIZE[::-1])
    assert [len(listed[name]) for name in ("train_night", "val", "test")] == [3, 2, 1]
    assert sum(len(keys) for keys in listed.values()) == len(list((root / "rgb_anon").rglob("*.png")))
    assert re.fullmatch(r"val/night/(GOPR\d{4})/\1_frame_\d{6}", listed["val"][0])
    assert listed["val_ref"][0] == re.sub(r"val/night/(\w+)/(.*)", r"val_ref/day/\1_ref/\2_ref", listed["val"][0])
    labels = {f"{key}_gt_labelTrainIds.png" for key in listed["val"]}
    assert {path.relative_to(root / "gt").as_posix() for path in (root / "gt").rglob("*.png")} == labels


def test_correspondences_pair_every_night_picture_with_a_day_picture(made: Path) -> None:
    root = made / "DarkZurich"
    (file,) = (root / "corresp" / "train" / "night").glob("*/*_ref_day.csv")
    rows = [line.split(",") for line in file.read_text().splitlines()]
    lists = root / "lists_file_names"
    assert [row[0] for row in rows] == (lists / "train_night_filenames.txt").read_text().splitlines()
    assert {row[1] for row in rows} == set((lists / "train_day_filenames.txt").read_text().splitlines())


def test_the_number_of_workers_does_not_change_a_byte(made: Path, tmp_path: Path) -> None:
    assert hashes(make(tmp_path / "two", workers=2)) == hashes(made)


def test_the_seed_changes_every_picture(made: Path, tmp_path: Path) -> None:
    small = DemoCounts(1, 1, 1, 1, 1)
    first, second = (hashes(make(tmp_path / str(seed), seed=seed, counts=small)) for seed in (0, 1))
    pictures = [name for name in first if name.endswith(".png")]
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in pictures)
    # Every picture has its own seed: fewer pictures are the same pictures.
    more = hashes(made)
    assert all(more[name] == first[name] for name in pictures)


def test_complete_data_are_returned_untouched(made: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert make(made) == made
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = demo._write_task

    def interrupted(*args: object) -> dict[str, int]:
        if args[-1].index == 1:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(demo, "_write_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_stale_folders_are_removed_and_fresh_ones_kept(tmp_path: Path) -> None:
    stale, fresh = tmp_path / ".data.making-aaaa", tmp_path / ".data.making-bbbb"
    for folder in (stale, fresh):
        folder.mkdir()
        (folder / "half.png").touch()
    old = stale.stat().st_mtime - 2 * demo.STALE_AFTER
    os.utime(stale, (old, old))
    make(tmp_path / "data", counts=DemoCounts(1, 1, 1, 1, 1))
    assert not stale.exists() and (fresh / "half.png").exists()


def test_two_runs_at_once_make_one_whole_folder(made: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(make, [tmp_path / "data"] * 2))
    assert hashes(tmp_path / "data") == hashes(made)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_other_settings_are_refused(made: Path) -> None:
    before = hashes(made)
    with pytest.raises(UserError, match="other settings"):
        make(made, seed=1)
    assert hashes(made) == before


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_persons_files_are_refused_and_kept(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "mine"
    if kind == "folder":
        root.mkdir()
        (root / "thesis.txt").write_text("years of work")
    else:
        root.write_text("years of work")
    before = hashes(tmp_path)
    with pytest.raises(UserError, match="not demo data"):
        make(root)
    assert hashes(tmp_path) == before


def test_a_broken_marker_is_refused(tmp_path: Path) -> None:
    (tmp_path / demo.MARKER).write_text("{")
    with pytest.raises(UserError, match="Cannot read"):
        make(tmp_path)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make(tmp_path / "data", counts=DemoCounts(1, 1, 1, 1, 1))
    assert (tmp_path / "data" / demo.MARKER).is_file()


def test_an_unwritable_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write"):
        make(tmp_path / "file" / "data")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        make(tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "changes",
    [{"seed": -1}, {"counts": DemoCounts(source_val=0)}, {"size": (8, 16)}, {"workers": 0}],
    ids=lambda changes: next(iter(changes)),
)
def test_bad_arguments_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match="must be"):
        make(tmp_path / "data", **changes)
    assert list(tmp_path.iterdir()) == []
