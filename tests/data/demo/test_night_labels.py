"""Labels of the demo's training nights: those of the pictures, added to whole data, all or none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icda.data import CITYSCAPES, DarkZurich, Folder
from icda.data.demo import DemoCounts, make_demo, make_demo_with_night_labels
from icda.data.demo import writer as demo
from icda.data.demo.scene import target_sample

SETTINGS = {
    "seed": 3,
    "counts": DemoCounts(source_train=3, source_val=1, target_train=4, target_val=2, target_test=1),
    "size": (64, 128),
    "workers": 1,
    "progress": False,
}


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_with_night_labels(tmp_path_factory.mktemp("demo") / "data", **SETTINGS)


def added(root: Path) -> dict[str, str]:
    return {name: content for name, content in hashes(root).items() if name.startswith("DarkZurich/gt/train/")}


def test_nothing_else_is_another(made, tmp_path):
    plain = hashes(make_demo(tmp_path / "data", **SETTINGS))
    assert hashes(made).items() - plain.items() == added(made).items() and len(added(made)) == 4
    assert not plain.items() - hashes(made).items()


def test_data_that_were_there_get_the_labels(made, tmp_path):
    root = make_demo(tmp_path / "data", **SETTINGS)
    assert make_demo_with_night_labels(root, **SETTINGS) == root
    assert hashes(root) == hashes(made)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make_demo_with_night_labels(root, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def test_they_belong_to_the_pictures(made):
    nights = DarkZurich(str(made / "DarkZurich"), "train", references=False)
    pattern = {
        "images": "rgb_anon/train/night/**/*_rgb_anon.png",
        "labels": "gt/train/night/**/*_gt_labelTrainIds.png",
    }
    labelled = Folder(str(made / "DarkZurich"), **pattern)
    assert [s.image for s in labelled.samples] == [s.image for s in nights.samples] and len(nights) == 4
    part = ["source_train", "source_val", "target_train"].index("target_train")
    for index in range(4):
        night, label, _ = target_sample(np.random.default_rng([3, part, index]), (64, 128))
        np.testing.assert_array_equal(labelled.image(index), night)
        np.testing.assert_array_equal(labelled.label(index), label)
    assert {*np.unique(Image.open(labelled.samples[0].label))} <= {*range(len(CITYSCAPES)), CITYSCAPES.ignore_index}


def test_an_interrupted_drawing_leaves_none(tmp_path, monkeypatch):
    root, write = make_demo(tmp_path / "data", **SETTINGS), demo._write_night_label

    def interrupted(folder, seed, size, task):
        if task.index == 2:
            raise KeyboardInterrupt
        write(folder, seed, size, task)

    before = hashes(root)
    monkeypatch.setattr(demo, "_write_night_label", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_with_night_labels(root, **SETTINGS)
    assert hashes(root) == before and not (root / "DarkZurich" / "gt" / "train").exists()
    monkeypatch.undo()
    assert len(added(make_demo_with_night_labels(root, **SETTINGS))) == 4
