from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import trees
from cityscapesscripts.helpers.labels import id2label
from PIL import Image

from icda.data.nighttimedriving import NighttimeDriving
from icda.errors import UserError

IMAGES = "leftImg8bit/test/night"
LABELS = "gtCoarse_daytime_trainvaltest/test/night"
FIRST = "01_frame_0555"  # sorts before 0_frame_*


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.write_nighttime_driving(tmp_path / "NighttimeDrivingTest")


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_official_layout(root):
    dataset = NighttimeDriving(str(root), size=[32, 64])
    assert [sample.key for sample in dataset.samples] == sorted(trees.NIGHTTIME_DRIVING)
    assert dataset.image(0).shape == (32, 64, 3) and dataset.label(0).shape == (32, 64)
    np.testing.assert_array_equal(
        dataset.label(0, resized=False), pixels(root / LABELS / f"{FIRST}_gtCoarse_labelTrainIds.png")
    )
    sample = dataset.samples[0]
    assert sample.reference is None and sample.invalid is None and not dataset.strays and not dataset.missing
    assert [(count.what, count.found, count.published) for count in dataset.counts()] == [
        ("images", 4, 50), ("labels", 4, None),
    ]  # fmt: skip
    assert dataset.drive_frame(sample) is None
    assert pickle.loads(pickle.dumps(dataset)).samples == dataset.samples


@pytest.mark.parametrize("folder", ["", "NighttimeDrivingTest", "NighttimeDrivingTest/NighttimeDrivingTest"])
def test_root_or_the_folder_above_it(tmp_path, folder):
    trees.write_nighttime_driving(tmp_path / "nächtliche test data" / folder)
    dataset = NighttimeDriving(str(tmp_path / "nächtliche test data"))
    assert len(dataset) == 4 and dataset.place(dataset.samples[0]).as_posix() == f"{IMAGES}/{FIRST}_leftImg8bit.png"


def test_label_ids_where_train_ids_are_gone(root):
    wanted = NighttimeDriving(str(root)).label(0)
    for path in (root / LABELS).glob("*labelTrainIds.png"):
        path.unlink()
    dataset = NighttimeDriving(str(root))
    assert dataset.samples[0].label.name == f"{FIRST}_gtCoarse_labelIds.png"
    np.testing.assert_array_equal(dataset.label(0), wanted)
    known = np.array([id2label[i].trainId for i in range(34)])
    np.testing.assert_array_equal(known[pixels(dataset.samples[0].label)], wanted)


def test_other_times_of_day_and_other_files_are_left_aside(root):
    before = NighttimeDriving(str(root)).samples
    for time in ("day", "twilight"):
        (root / "leftImg8bit/test" / time).mkdir()
        (root / f"leftImg8bit/test/{time}/0_frame_0001_leftImg8bit.png").write_bytes(b"")
    for name in ("Thumbs.db", "._0_frame_0205_leftImg8bit.png", "list.txt"):
        (root / IMAGES / name).write_bytes(b"")
    assert NighttimeDriving(str(root)).samples == before


def test_missing_label_and_stray_label(root):
    (root / IMAGES / f"{FIRST}_leftImg8bit.png").unlink()
    dataset = NighttimeDriving(str(root))
    assert len(dataset) == 3 and [path.name for path in dataset.strays] == [f"{FIRST}_gtCoarse_labelTrainIds.png"]
    for path in (root / LABELS).glob("0_frame_1290*"):
        path.unlink()
    with pytest.raises(
        UserError,
        match=r"Nighttime Driving: 1 of 3 images have no label, .*0_frame_1290.*expected .*labelTrainIds\.png",
    ):
        NighttimeDriving(str(root))
    assert [s.key for s in NighttimeDriving(str(root), check=False).missing["label"]] == ["0_frame_1290"]


def test_missing_folders(root, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere; check data_dir.*leftImg8bit/test/night"):
        NighttimeDriving(str(tmp_path / "nowhere"))
    (root / "gtCoarse_daytime_trainvaltest").rename(root / "gt")
    with pytest.raises(UserError, match=r"no folder .*gtCoarse_daytime_trainvaltest/test/night; .*labelled=false"):
        NighttimeDriving(str(root))
    dataset = NighttimeDriving(str(root), labelled=False)
    assert len(dataset) == 4 and "label" not in dataset.expected
    with pytest.raises(UserError, match="no label for"):
        dataset.label(0)
    for path in (root / IMAGES).iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"no images found in .*; expected leftImg8bit/test/night"):
        NighttimeDriving(str(root), labelled=False)


def test_upper_case_endings_and_links(root, tmp_path):
    image = root / IMAGES / f"{FIRST}_leftImg8bit.png"
    image.rename(image.with_name(f"{FIRST}_LEFTIMG8BIT.PNG"))
    label = root / LABELS / f"{FIRST}_gtCoarse_labelTrainIds.png"
    label.rename(tmp_path / "elsewhere.png")
    label.with_suffix(".PNG").symlink_to(tmp_path / "elsewhere.png")
    dataset = NighttimeDriving(str(root))
    assert dataset.samples[0].key == FIRST and dataset.label(0).shape == trees.SIZE
    assert dataset.samples[0].label.name == f"{FIRST}_gtCoarse_labelTrainIds.PNG"


def test_train_ids_that_are_label_ids_are_refused(root):
    path = root / LABELS / f"{FIRST}_gtCoarse_labelTrainIds.png"
    path.write_bytes((root / LABELS / f"{FIRST}_gtCoarse_labelIds.png").read_bytes())
    with pytest.raises(UserError, match=r"01_frame_0555_gtCoarse_labelTrainIds\.png holds ids .*: 21, 22, 23"):
        NighttimeDriving(str(root)).label(0)
