from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icda.data.base import Count, Sample, SegmentationDataset
from icda.data.classes import CITYSCAPES
from icda.data.files import list_files
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


def test_a_link_to_a_folder_above_is_walked_once(tmp_path):
    save(tmp_path / "a/x.png", np.zeros((2, 2, 3), np.uint8))
    (tmp_path / "a/again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "other").symlink_to(tmp_path / "a", target_is_directory=True)
    assert list(list_files(tmp_path, (".png",))) == ["a/x", "other/x"]


def test_samples_that_lack_a_companion(tmp_path):
    image = save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    samples = [Sample("a", image, label=image), Sample("b", image), Sample("c", image)]
    arguments = ("toy", CITYSCAPES, tmp_path, samples)
    expected = {"label": "toy/<name>_label.png"}
    with pytest.raises(UserError, match=r"toy: 2 of 3 images have no label, .*; expected toy/<name>_label\.png"):
        SegmentationDataset(*arguments, expected=expected)
    dataset = SegmentationDataset(*arguments, expected=expected, check=False, strays=[image])
    assert dataset.missing == {"label": samples[1:]} and dataset.strays == (image,)
    assert dataset.counts() == [Count("images", 3), Count("labels", 1, companion="label")]
    assert SegmentationDataset(*arguments).missing == {}
    dataset.keep(samples[:1])
    assert dataset.samples == (samples[0],) and dataset.missing == {} and dataset.left_out == 2
    with pytest.raises(UserError, match="toy: no images are left of 1"):
        dataset.keep([])


def test_counts_beside_the_published_ones(tmp_path):
    class Cities(SegmentationDataset):
        def published(self):
            return {"ulm": 2, "bonn": 3}

        def group_of(self, sample):
            return sample.key.split("/")[0]

    image = save(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    dataset = Cities("toy", CITYSCAPES, tmp_path, [Sample(k, image) for k in ("mine/a", "ulm/a", "ulm/b")])
    assert dataset.counts() == [
        Count("images", 3, 5),
        Count("images of ulm", 2, 2),
        Count("images of bonn", 0, 3),
        Count("images of mine", 1, 0),
    ]


def test_translations_in_the_own_layout_or_flat(tmp_path):
    root, night = tmp_path / "root", tmp_path / "night"
    paths = [save(root / f"images/{c}/x_{c}.png", np.zeros((4, 6, 3), np.uint8)) for c in "ab"]
    save(night / "images/a/x_a.jpg", np.full((2, 3, 3), 60, np.uint8))
    save(night / "anything/x_b_fake_B.png", np.full((2, 3, 3), 90, np.uint8))
    arguments = ("toy", CITYSCAPES, root, [Sample(p.stem, p) for p in paths])
    dataset = SegmentationDataset(*arguments, translations=str(night))
    assert [int(dataset.translation(i).mean().round()) for i in range(2)] == [60, 90]
    assert dataset.translation(0).shape == (4, 6, 3)
    (night / "anything/x_b_fake_B.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have no translation, .*expected .*night/images/b/x_b\.png"):
        SegmentationDataset(*arguments, translations=str(night))
    with pytest.raises(UserError, match=r"no folder of translations .*gone; make one with scripts/translate\.py"):
        SegmentationDataset(*arguments, translations=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"no translation for .*x_a"):
        SegmentationDataset(*arguments).translation(0)


def test_masks_of_invalid_pixels(tmp_path):
    image = save(tmp_path / "a.png", np.zeros((2, 3, 3), np.uint8))
    values = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)
    ids, gray = save(tmp_path / "ids.png", values), save(tmp_path / "gray.png", values * 255)
    small = save(tmp_path / "small.png", values[:1])
    samples = [Sample("a", image, invalid=path) for path in (ids, gray, small, None)]
    dataset = SegmentationDataset("toy", CITYSCAPES, tmp_path, samples, size=[1, 1])
    for index in range(2):
        assert dataset.invalid(index).dtype == bool and np.array_equal(dataset.invalid(index), values == 1)
    with pytest.raises(UserError, match=r"invalid mask .*small\.png is 1 x 3, its image .*a\.png is 2 x 3"):
        dataset.invalid(2)
    with pytest.raises(UserError, match="no invalid mask for"):
        dataset.invalid(3)


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
