from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icda.data.classes import CITYSCAPES
from icda.data.darkzurich import DarkZurich
from icda.errors import UserError

NIGHT = ("GOPR0351/GOPR0351_frame_000001", "GOPR0351/GOPR0351_frame_000002", "GP010376/GP010376_frame_000007")
DAY = ("GOPR0345/GOPR0345_frame_000081", "GP010374/GP010374_frame_000900")
PAIRS = ((NIGHT[0], DAY[0]), (NIGHT[1], DAY[0]), (NIGHT[2], DAY[1]))


def save(path: Path, value: int, channels: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 10, 3) if channels else (6, 10), value, np.uint8)).save(path)
    return path


def line(night: str, day: str) -> str:
    return f"train/night/{night},train/day/{day}\n"


def make_train(root: Path, package: str = "", pairs: tuple[tuple[str, str], ...] = PAIRS) -> Path:
    base = root / package
    for i, key in enumerate(NIGHT):
        save(base / f"rgb_anon/train/night/{key}_rgb_anon.png", i)
    for i, key in enumerate(DAY):
        save(base / f"rgb_anon/train/day/{key}_rgb_anon.png", 100 + i)
    save(base / "rgb_anon/train/twilight/GOPR0348/GOPR0348_frame_000001_rgb_anon.png", 50)
    for sequence in ("GOPR0351", "GP010376"):
        file = base / f"corresp/train/night/{sequence}/{sequence}_ref_day.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(line(*pair) for pair in pairs if pair[0].startswith(sequence)))
    return root


def make_val(root: Path, split: str = "val", package: str = "", reference: str = "_ref_rgb_anon.png") -> Path:
    base = root / package
    for i, frame in enumerate((321, 345)):
        stem = f"GOPR0356_frame_{frame:06d}"
        save(base / f"rgb_anon/{split}/night/GOPR0356/{stem}_rgb_anon.png", i)
        save(base / f"rgb_anon/{split}_ref/day/GOPR0356_ref/{stem}{reference}", 100 + i)
        if split == "val":
            save(base / f"gt/val/night/GOPR0356/{stem}_gt_labelTrainIds.png", i, channels=False)
            save(base / f"gt/val/night/GOPR0356/{stem}_gt_labelIds.png", 33, channels=False)
            save(base / f"gt/val/night/GOPR0356/{stem}_gt_labelColor.png", 33)
    return root


@pytest.mark.parametrize("folder", ["dark zurich", "train/night", "nighttime/test/val_ref"])
def test_train_with_official_pairs(tmp_path, folder):
    root = make_train(tmp_path / folder)
    dataset = DarkZurich(str(root), "train", size=[3, 5])
    assert [sample.key for sample in dataset.samples] == [f"night/{key}" for key in NIGHT]
    assert [sample.reference for sample in dataset.samples] == [
        root / f"rgb_anon/train/day/{day}_rgb_anon.png" for _, day in PAIRS
    ]
    assert [int(dataset.image(i)[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    assert [int(dataset.reference(i)[0, 0, 0]) for i in range(3)] == [100, 100, 101]
    assert dataset.reference(0).shape == (3, 5, 3) and dataset.unpaired == 0
    assert all(sample.label is None for sample in dataset.samples)
    assert pickle.loads(pickle.dumps(dataset)).samples == dataset.samples


def test_pairs_from_a_file_agree_with_the_official_ones(tmp_path):
    root = make_train(tmp_path)
    listed = tmp_path / "zurich_dn_pair_train.csv"
    listed.write_text("\ufeff" + "".join(line(*pair) for pair in PAIRS[::-1]).replace("\n", "\r\n") + "\r\n")
    assert DarkZurich(str(root), "train", pairs=str(listed)).samples == DarkZurich(str(root), "train").samples


def test_unpaired_images_are_dropped_and_counted_or_refused(tmp_path):
    root = str(make_train(tmp_path, pairs=PAIRS[:1]))
    dataset = DarkZurich(root, "train")
    assert dataset.unpaired == 2 and [sample.key for sample in dataset.samples] == [f"night/{NIGHT[0]}"]
    with pytest.raises(UserError, match=r"2 of 3 night images have no pair, the first is .*000002_rgb_anon\.png"):
        DarkZurich(root, "train", unpaired="error")
    with pytest.raises(UserError, match="unpaired is 'keep'; choose one of drop, error"):
        DarkZurich(root, "train", unpaired="keep")
    everything = DarkZurich(root, "train", references=False)
    assert len(everything) == 3 and everything.unpaired == 0 and everything.samples[0].reference is None
    with pytest.raises(UserError, match="no night image has a pair"):
        DarkZurich(str(make_train(tmp_path / "none", pairs=())), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line(NIGHT[0], "GOPR0345/GOPR0345_frame_999999"), r"line 1 names a missing file: .*999999_rgb_anon\.png"),
        (line("GOPR0351/GOPR0351_frame_000009", DAY[0]), r"line 1 names a missing file: .*000009_rgb_anon\.png"),
        (line(*PAIRS[0]) + line(NIGHT[0], DAY[1]), "line 2 pairs .*000001 a second time, with another day image"),
        ("night,day\n", "line 1 is 'night,day'; expected two columns"),
        (line(*PAIRS[0]) + "\ntrain/night/x\n", "line 3 is 'train/night/x'; expected two columns"),
    ],
)
def test_faulty_pairs(tmp_path, text, message):
    root = make_train(tmp_path)
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match=rf"pairs\.csv, {message}"):
        DarkZurich(str(root), "train", pairs=str(tmp_path / "pairs.csv"))


def test_repeated_pairs_and_file_endings_are_accepted(tmp_path):
    root = make_train(tmp_path)
    night, day = (f"train/{time}/{key}_rgb_anon.png" for time, key in zip(("night", "day"), PAIRS[0], strict=True))
    (tmp_path / "pairs.csv").write_text(line(*PAIRS[0]) * 2 + f"{night}, {day}\n")
    assert len(DarkZurich(str(root), "train", pairs=str(tmp_path / "pairs.csv"))) == 1


def test_missing_lists_of_pairs(tmp_path):
    root = make_train(tmp_path)
    with pytest.raises(UserError, match=r"the list of pairs .*gone\.csv does not exist"):
        DarkZurich(str(root), "train", pairs=str(tmp_path / "gone.csv"))
    for file in (root / "corresp").rglob("*.csv"):
        file.unlink()
    with pytest.raises(UserError, match=r"no \*_ref_day\.csv in .*pairs=<CSV file>"):
        DarkZurich(str(root), "train")
    (root / "corresp").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"no folder .*corresp/train/night; expected rgb_anon/"):
        DarkZurich(str(root), "train")


@pytest.mark.parametrize("folder", ["plain", "val/night"])
@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("reference", ["_ref_rgb_anon.png", "_some_other_ending.png"])
def test_references_by_name(tmp_path, folder, split, reference):
    dataset = DarkZurich(str(make_val(tmp_path / folder, split, reference=reference)), split)
    assert [sample.key for sample in dataset.samples] == [
        "night/GOPR0356/GOPR0356_frame_000321",
        "night/GOPR0356/GOPR0356_frame_000345",
    ]
    assert [int(dataset.reference(i)[0, 0, 0]) for i in range(2)] == [100, 101]
    assert dataset.unpaired == 0
    if split == "val":
        assert (dataset.label(1) == 1).all() and dataset.classes is CITYSCAPES
    else:
        assert dataset.samples[0].label is None


def test_references_by_the_official_lists(tmp_path):
    make_val(tmp_path)
    folder = tmp_path / "rgb_anon/val_ref/day/GOPR0356_ref"
    for frame, other in ((321, 391), (345, 400)):
        (folder / f"GOPR0356_frame_{frame:06d}_ref_rgb_anon.png").rename(
            folder / f"GOPR0356_frame_{other:06d}_ref_rgb_anon.png"
        )
    with pytest.raises(UserError, match=r"0 references for .*000321_rgb_anon\.png: none; expected one"):
        DarkZurich(str(tmp_path), "val")
    lists = tmp_path / "lists_file_names"
    lists.mkdir()
    (lists / "val_filenames.txt").write_text(
        "".join(f"val/night/GOPR0356/GOPR0356_frame_{frame:06d}\n" for frame in (321, 345))
    )
    (lists / "val_ref_filenames.txt").write_text(
        "".join(f"val_ref/day/GOPR0356_ref/GOPR0356_frame_{frame:06d}_ref\n" for frame in (391, 400))
    )
    dataset = DarkZurich(str(tmp_path), "val")
    assert [sample.reference.name[:21] for sample in dataset.samples] == [
        "GOPR0356_frame_000391",
        "GOPR0356_frame_000400",
    ]


def test_ambiguous_reference_is_refused(tmp_path):
    make_val(tmp_path, "test", reference="_one.png")
    save(tmp_path / "rgb_anon/test_ref/day/GOPR0399_ref/GOPR0356_frame_000321_two.png", 0)  # another sequence's
    assert int(DarkZurich(str(tmp_path), "test").reference(0)[0, 0, 0]) == 100
    save(tmp_path / "rgb_anon/test_ref/day/GOPR0356_ref/GOPR0356_frame_000321_two.png", 0)
    with pytest.raises(UserError, match=r"2 references for .*000321_rgb_anon\.png: .*_one\.png, .*_two\.png"):
        DarkZurich(str(tmp_path), "test")


def test_only_what_is_asked_for_is_needed(tmp_path):
    make_val(tmp_path)
    (tmp_path / "gt").rename(tmp_path / "no_gt")
    (tmp_path / "rgb_anon/val_ref").rename(tmp_path / "no_ref")
    with pytest.raises(UserError, match=r"no folder .*rgb_anon/val_ref; .*references=false"):
        DarkZurich(str(tmp_path), "val")
    with pytest.raises(UserError, match=r"no folder .*gt/val; .*labelled=false"):
        DarkZurich(str(tmp_path), "val", references=False)
    assert len(DarkZurich(str(tmp_path), "val", references=False, labelled=False)) == 2


def test_missing_and_broken(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*rgb_anon/val/night; expected rgb_anon/<split>/night"):
        DarkZurich(str(tmp_path), "val")
    (tmp_path / "rgb_anon/val/night").mkdir(parents=True)
    with pytest.raises(UserError, match="Dark Zurich val: no images found"):
        DarkZurich(str(tmp_path), "val", labelled=False)
    make_val(tmp_path)
    label = tmp_path / "gt/val/night/GOPR0356/GOPR0356_frame_000345_gt_labelTrainIds.png"
    save(label, 19, channels=False)
    with pytest.raises(UserError, match=r"000345_gt_labelTrainIds\.png.*: 19 \(60 pixels\).*0 to 18 and 255"):
        DarkZurich(str(tmp_path), "val").label(1)
    label.unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have no label, the first is .*000345_rgb_anon\.png"):
        DarkZurich(str(tmp_path), "val")
    with pytest.raises(UserError, match="pairs is for the train split"):
        DarkZurich(str(tmp_path), "val", pairs="x.csv")


def test_packages_unzipped_side_by_side(tmp_path):
    make_train(tmp_path, "Dark_Zurich_train_anon")
    make_val(tmp_path, "val", "Dark_Zurich_val_anon")
    make_val(tmp_path, "test", "Dark_Zurich_test_anon_withoutGt")
    assert [len(DarkZurich(str(tmp_path), split)) for split in ("train", "val", "test")] == [3, 2, 2]
