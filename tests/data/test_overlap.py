from __future__ import annotations

import json
from pathlib import Path

import pytest

from icda.data.acdc import ACDC
from icda.data.base import Sample, SegmentationDataset
from icda.data.classes import CITYSCAPES
from icda.data.darkzurich import DarkZurich
from icda.data.folder import Folder
from icda.data.overlap import (
    Overlap,
    drop_overlaps,
    find_overlaps,
    frames,
    record_frames,
    settle_overlaps,
)
from icda.errors import UserError


class Drives(SegmentationDataset):
    HAS_DRIVE_FRAMES = True


def part(name: str, *numbers: int, kind: type = Drives, drive: str = "GOPR0356") -> SegmentationDataset:
    names = [f"{drive}_frame_{number:06d}" for number in numbers]
    return kind(name, CITYSCAPES, "/data", [Sample(n, Path(f"/data/{name}/{n}_rgb_anon.png")) for n in names])


def numbers(dataset: SegmentationDataset) -> list[int]:
    return [int(sample.key[-6:]) for sample in dataset.samples]


def test_frames_that_two_data_sets_share():
    def shared(a: SegmentationDataset, b: SegmentationDataset) -> list[str]:
        return [frame[-3:] for overlap in find_overlaps([a], {"b": b}) for frame in overlap.frames]

    a, b = part("ACDC night train", 321, 345, 7), part("Dark Zurich val", 345, 346, 321)
    assert frames(b) == {f"GOPR0356_frame_000{n}" for n in (321, 345, 346)}
    assert shared(a, b) == ["321", "345"]
    assert shared(a, part("other", 7)) == ["007"]
    # The same number in another drive is another frame; names of other data sets tell no drive.
    assert shared(a, part("other", 321, drive="GP010376")) == []
    plain = part("Cityscapes train", 321, kind=SegmentationDataset)
    assert frames(plain) == frozenset() and shared(plain, a) == shared(a, plain) == []


def test_overlaps_between_trained_and_scored_parts():
    source, target = part("Cityscapes train", 321, kind=SegmentationDataset), part("ACDC night train", 345, 7, 321)
    scored = {"val": part("Dark Zurich val", 321, 345), "ACDC night train": target, "test": part("ACDC test", 8)}
    found = find_overlaps([source, target], scored)
    assert found == [
        Overlap("ACDC night train", "val (Dark Zurich val)", ("GOPR0356_frame_000321", "GOPR0356_frame_000345"), 3),
        Overlap(
            "ACDC night train", "ACDC night train", tuple(f"GOPR0356_frame_000{n}" for n in ("007", 321, 345)), 3
        ),
    ]
    assert found[0].message == (
        "2 of the 3 frames that ACDC night train trains on are also scored in val (Dark Zurich val), such as "
        "GOPR0356_frame_000321"
    )
    # Splits of one data set have no frames in common.
    assert find_overlaps([part("ACDC train", 1, 2)], {"val": part("ACDC val", 3, 4)}) == []
    assert find_overlaps([source], {"val": source}) == []


def test_frames_recorded_in_a_checkpoint():
    parts = [part("ACDC train", 9, 3), part("ACDC train", 3, 4), part("CamVid", 3, kind=SegmentationDataset)]
    recorded = record_frames(parts)
    assert recorded == {"ACDC train": [f"GOPR0356_frame_00000{n}" for n in (3, 4, 9)]}
    scored = {"val": part("Dark Zurich val", 4, 5)}
    assert find_overlaps(json.loads(json.dumps(recorded)), scored) == find_overlaps(parts, scored)
    assert find_overlaps({}, scored) == []


def test_dropping():
    source, target, val = part("a", 1, 2), part("b", 2, 3, 4), part("val", 2, 4)
    assert drop_overlaps([source, target], find_overlaps([source, target], {"val": val})) == {"a": 1, "b": 2}
    assert (numbers(source), numbers(target), numbers(val)) == ([1], [3], [2, 4])
    assert drop_overlaps([source, target], find_overlaps([source, target], {"val": val})) == {}
    whole, gone = part("c", 1, 2), part("d", 2)
    with pytest.raises(
        UserError, match="d: all 1 images are both trained on and scored, so overlap=drop leaves none"
    ):
        drop_overlaps([whole, gone], find_overlaps([whole, gone], {"val": val}))
    assert numbers(whole) == [1, 2]  # nothing was changed halfway


def test_what_each_setting_does():
    def parts():
        return part("ACDC train", 1, 2, 3), part("Dark Zurich val", 3, 4)

    message = "1 of the 3 frames that ACDC train trains on are also scored in val (Dark Zurich val), such as "
    trained, val = parts()
    (line,) = settle_overlaps("warn", [trained], {"val": val})
    assert line == message + "GOPR0356_frame_000003" and (len(trained), len(val)) == (3, 2)
    with pytest.raises(
        UserError, match=r"^1 of the 3 frames .*; set overlap=drop to leave them out, or overlap=warn"
    ):
        settle_overlaps("error", [trained], {"val": val})
    with pytest.raises(UserError, match=r"000003 \(and 1 more such pairs\); set overlap=drop"):
        settle_overlaps("error", [trained], {"val": val, "again": val})
    lines = settle_overlaps("drop", [trained], {"val": val})
    assert lines[1:] == ["1 images of ACDC train are left out of the training"]
    assert numbers(trained) == [1, 2] and numbers(val) == [3, 4]

    trained, val = parts()
    lines = settle_overlaps("drop", record_frames([trained]), {"val": val})
    assert lines == [line, "1 images of Dark Zurich val are left out of the score"]
    assert numbers(trained) == [1, 2, 3] and numbers(val) == [4]

    for setting in ("warn", "drop", "error"):
        trained, other = part("ACDC train", 1, 2), part("ACDC val", 3)
        assert settle_overlaps(setting, [trained], {"val": other}) == [] and numbers(trained) == [1, 2]
    with pytest.raises(UserError, match="overlap is 'ignore'; choose one of warn, drop, error"):
        settle_overlaps("ignore", [trained], {})


def test_dark_zurich_and_acdc_are_cut_from_the_same_drives(tmp_path):
    """Frame 159 of drive GOPR0351 is in both; the reference that ACDC has of it, by day, is no frame of the drive."""
    frame, other = "GOPR0351/GOPR0351_frame_000159", "GOPR0351/GOPR0351_frame_000160"
    trees = {
        DarkZurich: [f"rgb_anon/train/night/{frame}_rgb_anon.png", f"rgb_anon/train/night/{other}_rgb_anon.png"],
        ACDC: [f"rgb_anon/night/train/{frame}_rgb_anon.png", f"rgb_anon/night/train_ref/{other}_rgb_ref_anon.png"],
    }
    for kind, files in trees.items():
        for file in files:
            path = tmp_path / kind.__name__ / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    dark_zurich = DarkZurich(str(tmp_path / "DarkZurich"), "train", references=False)
    acdc = ACDC(str(tmp_path / "ACDC"), "train", ["night"], references=False, labelled=False)
    (found,) = find_overlaps([dark_zurich], {"val": acdc})
    assert found == Overlap("Dark Zurich train", "val (ACDC night train)", ("GOPR0351_frame_000159",), 2)


def test_images_of_the_drives_in_a_folder_of_ones_own(tmp_path):
    for name in ("GOPR0356_frame_000321_rgb_anon", "yard_1"):
        (tmp_path / "night").mkdir(exist_ok=True)
        (tmp_path / "night" / f"{name}.png").write_bytes(b"")
    own = Folder(str(tmp_path), "night/*.png")
    assert frames(own) == {"GOPR0356_frame_000321"}
    assert len(find_overlaps([own], {"val": part("Dark Zurich val", 321)})) == 1
