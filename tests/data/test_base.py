from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icda.data.base import Sample, SegmentationDataset, list_files
from icda.data.classes import CITYSCAPES
from icda.errors import UserError


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def make(root: Path, label_shape=(8, 12), size=None) -> SegmentationDataset:
    image = save(root / "a.png", np.full((8, 12, 3), 50, np.uint8))
    label = save(root / "a_label.png", np.full(label_shape, 3, np.uint8))
    day = save(root / "day.png", np.full((4, 6, 3), 200, np.uint8))
    return SegmentationDataset("toy", CITYSCAPES, root, [Sample("a", image, label, day), Sample("b", image)], size)


def test_sizes(tmp_path):
    own, small = make(tmp_path), make(tmp_path, size=[4, 6])
    assert own.size is None and small.size == (4, 6) and len(own) == 2
    assert own.image(0).shape == own.reference(0).shape == (8, 12, 3)
    assert small.image(0).shape == small.reference(0).shape == (4, 6, 3)
    assert own.label(0).shape == small.label(0, resized=False).shape == (8, 12)
    assert small.label(0).shape == (4, 6) and (small.label(0) == 3).all()


def test_label_of_another_size_is_refused(tmp_path):
    dataset = make(tmp_path, label_shape=(8, 10), size=(4, 6))
    for resized in (True, False):
        with pytest.raises(UserError, match=r"a_label\.png is 8 x 10, its image .*a\.png is 8 x 12"):
            dataset.label(0, resized)


def test_missing_label_and_reference_are_told(tmp_path):
    with pytest.raises(UserError, match=r"toy: no label for .*a\.png.*labelled=false"):
        make(tmp_path).label(1)
    with pytest.raises(UserError, match=r"toy: no day reference for .*a\.png"):
        make(tmp_path).reference(1)


@pytest.mark.parametrize("size", [512, [512], [0, 5], [1, 2, 3], "big", [1.5, 2]])
def test_bad_size_is_refused(tmp_path, size):
    with pytest.raises(UserError, match=r"toy: size is .*expected height and width"):
        make(tmp_path, size=size)


def test_empty_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"toy: no images found in .*; expected <folder>/<image>"):
        SegmentationDataset("toy", CITYSCAPES, tmp_path, [])


def test_pickles(tmp_path):
    dataset = pickle.loads(pickle.dumps(make(tmp_path, size=(4, 6))))
    assert dataset.samples == make(tmp_path).samples
    assert dataset.image(0).shape == (4, 6, 3)


def test_listing_is_sorted_and_keyed(tmp_path):
    for name in ("b/2_x.png", "b/1_x.PNG", "a/c/3_x.png", "a/other.png", "a/._3_x.png", "0_x.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = list_files(tmp_path, ("_x.png",))
    assert list(found) == ["0", "a/c/3", "b/1", "b/2"]
    assert found["b/1"] == tmp_path / "b" / "1_x.PNG"


def test_two_files_for_one_key_are_refused(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=r"two files for one sample: .*a\.(png|jpg) and .*a\.(png|jpg)"):
        list_files(tmp_path, (".png", ".jpg"))


def test_listing_follows_links_and_is_fast(tmp_path):
    (tmp_path / "real").mkdir()
    for i in range(3000):
        (tmp_path / "real" / f"{i:06d}.png").touch()
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    start = time.perf_counter()
    assert len(list_files(tmp_path / "seen", (".png",))) == 3000
    assert time.perf_counter() - start < 2
