"""Large trees: what opening a data set asks of the file system, which may be slow, per file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from icda.data import ACDC, Cityscapes, DarkZurich, Folder
from icda.data.base import SegmentationDataset
from icda.data.rare_class import label_state


def write_cityscapes(root: Path, count: int) -> None:
    for city in ("aachen", "ulm"):
        for kind, ending in (("leftImg8bit", "leftImg8bit.png"), ("gtFine", "gtFine_labelIds.png")):
            folder = root / kind / "train" / city
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{city}_{i:06d}_000019_{ending}").touch()


def write_darkzurich(root: Path, count: int) -> None:
    for time, sequence in (("night", "GOPR0351"), ("day", "GOPR0345")):
        folder = root / "rgb_anon" / "train" / time / sequence
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"{sequence}_frame_{i:06d}_rgb_anon.png").touch()
    lines = [
        f"train/night/GOPR0351/GOPR0351_frame_{i:06d},train/day/GOPR0345/GOPR0345_frame_{i:06d}\n"
        for i in range(count)
    ]
    folder = root / "corresp" / "train" / "night" / "GOPR0351"
    folder.mkdir(parents=True)
    (folder / "GOPR0351_ref_day.csv").write_text("".join(lines))


def write_acdc(root: Path, count: int) -> None:
    for kind, part, ending in (
        ("rgb_anon", "train", "rgb_anon"),
        ("rgb_anon", "train_ref", "rgb_ref_anon"),
        ("gt", "train", "gt_labelTrainIds"),
    ):
        folder = root / kind / "night" / part / "GOPR0351"
        folder.mkdir(parents=True)
        for i in range(count):
            (folder / f"GOPR0351_frame_{i:06d}_{ending}.png").touch()


def write_folder(root: Path, count: int) -> None:
    for kind in ("day", "labels"):
        (root / kind / "a").mkdir(parents=True)
        for i in range(count):
            (root / kind / "a" / f"{i:06d}.png").touch()


KINDS = {
    "Cityscapes": (write_cityscapes, lambda root: Cityscapes(root, "train")),
    "DarkZurich": (write_darkzurich, lambda root: DarkZurich(root, "train")),
    "ACDC": (write_acdc, lambda root: ACDC(root, "train", ["night"])),
    "Folder": (write_folder, lambda root: Folder(root, "day/**/*", "labels/**/*")),
}


@pytest.fixture
def calls(monkeypatch):
    """Names of the calls to the file system since it was cleared."""
    seen: list[str] = []

    def counted(name: str):
        original = getattr(os, name)

        def call(*arguments, **options):
            seen.append(name)
            return original(*arguments, **options)

        return call

    for name in ("stat", "lstat", "scandir", "listdir", "open", "readlink"):
        monkeypatch.setattr(os, name, counted(name))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_opening_asks_nothing_of_a_single_file(tmp_path, calls, kind):
    write, make = KINDS[kind]
    asked, sizes = [], []
    for count in (3, 30):
        root = tmp_path / f"of_{count}"
        write(root, count)
        calls.clear()
        sizes.append(len(make(str(root))))
        asked.append(len(calls))
    assert sizes[1] == 10 * sizes[0]
    assert asked[1] == asked[0] > 0


def test_prepared_statistics_ask_once_for_each_label(tmp_path, calls):
    write_cityscapes(tmp_path, 20)
    dataset: SegmentationDataset = Cityscapes(str(tmp_path), "train")
    calls.clear()
    label_state(dataset)
    assert calls == ["stat"] * len(dataset)
