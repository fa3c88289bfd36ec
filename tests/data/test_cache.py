"""Arrays are answered from the cache only while they are what reading the original gives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icda.data import cache as caching
from icda.data.base import Sample, SegmentationDataset
from icda.data.cache import ImageCache
from icda.data.classes import CITYSCAPES
from icda.data.io import read_image, resize_image
from icda.data.prepared import ABANDONED_AFTER
from icda.errors import UserError

SIZE = (6, 8)


@pytest.fixture
def base(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("set/a/x.png", "set/b/ö y.png", "other/x.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 14, 3), np.uint8)).save(path)
    return tmp_path / "data"


@pytest.fixture
def cache(base) -> ImageCache:
    return ImageCache(base / "prepared/cache", base)


def read(path: Path) -> np.ndarray:
    return resize_image(read_image(path), SIZE)


def put(cache: ImageCache, path: Path) -> Path:
    return cache.put(path, SIZE, "image", read(path))


def made() -> np.ndarray:
    raise AssertionError("the original is read")


def test_what_is_stored_is_returned_bit_for_bit(base, cache):
    for path in sorted(base.rglob("*.png")):
        np.testing.assert_array_equal(cache.get(path, SIZE, "image", lambda p=path: read(p)), read(path))
        stored = put(cache, path)
        assert stored.is_relative_to(cache.folder) and path.name in stored.name
        array = cache.get(path, SIZE, "image", made)
        assert isinstance(array, np.memmap) and not array.flags.writeable
        np.testing.assert_array_equal(array, read(path))


def test_another_size_kind_or_original_is_not_answered(base, cache):
    path = base / "set/a/x.png"
    put(cache, path)
    marker = np.zeros((1, 1), np.uint8)
    assert cache.get(path, (3, 4), "image", lambda: marker) is marker
    assert cache.get(path, SIZE, "label-00000001", lambda: marker) is marker
    os.utime(path, (1, 1))
    assert cache.get(path, SIZE, "image", lambda: marker) is marker
    with pytest.raises(UserError, match=r"gone\.png cannot be read: No such file"):
        cache.get(base / "gone.png", SIZE, "image", made)


def test_damaged_arrays_are_one_line(base, cache):
    path = base / "set/a/x.png"
    stored = put(cache, path)
    stored.write_bytes(stored.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"\.npy is damaged .*prepare\.py cache=true makes it anew"):
        cache.get(path, SIZE, "image", made)
    np.save(stored, np.zeros((2, 3), np.uint8))
    with pytest.raises(UserError, match=r"holds \(2, 3\) uint8, expected \(6, 8\) uint8"):
        cache.get(path, SIZE, "image", made)


def test_data_and_cache_move_together(base, cache, tmp_path):
    put(cache, base / "set/a/x.png")
    moved = base.rename(tmp_path / "moved")
    cache = ImageCache(moved / "prepared/cache", moved)
    cache.get(moved / "set/a/x.png", SIZE, "image", made)


@pytest.mark.parametrize("name", ["elsewhere/x.png", "data/../outside/x.png"])
def test_originals_outside_the_base_are_stored_inside_the_cache(base, cache, tmp_path, name):
    path = tmp_path / name
    path.parent.resolve().mkdir()
    Image.fromarray(np.zeros((10, 14, 3), np.uint8)).save(path)
    stored = put(cache, path)
    assert stored.resolve().is_relative_to(cache.folder.resolve())
    cache.get(path, SIZE, "image", made)
    (found,) = cache.stored([path.parent])
    assert (found.path, found.original, found.kind, found.is_current) == (stored, path, "image", True)


def test_a_data_set_reads_through_its_cache(base, cache):
    label = base / "set/a/label.png"
    Image.fromarray(np.full((10, 14), 13, np.uint8)).save(label)
    x, y = base / "set/a/x.png", base / "set/b/ö y.png"
    dataset = SegmentationDataset("toy", CITYSCAPES, base, [Sample("x", x, label, reference=y)], SIZE)
    plain = [dataset.image(0), dataset.label(0), dataset.reference(0), dataset.label(0, resized=False)]
    put(cache, x), put(cache, y)
    cache.put(label, SIZE, dataset.label_kind(dataset.samples[0]), plain[1])
    dataset.cache = cache
    for array, expected in zip((dataset.image(0), dataset.label(0), dataset.reference(0)), plain, strict=False):
        assert isinstance(array, np.memmap)
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(dataset.label(0, resized=False), plain[3])


def test_stored_files_of_a_folder_are_found_and_judged(base, cache):
    x, y, other = base / "set/a/x.png", base / "set/b/ö y.png", base / "other/x.png"
    for path in (x, y, other):
        put(cache, path)
    os.utime(y, (1, 1))
    found = {file.original: file.is_current for file in cache.stored([base / "set"])}
    assert found == {x: True, y: False}
    folders = [base / "set", base / "set/a", base / "other"]
    assert {file.original for file in cache.stored(folders)} == {x, y, other}
    assert len(list(cache.stored(folders))) == 3
    x.unlink()
    assert not any(file.is_current for file in cache.stored([base / "set"]))
    assert list(ImageCache(base / "nothing", base).stored([base])) == []


def test_files_that_others_finish_or_remove_meanwhile_are_passed_over(base, cache):
    first = put(cache, base / "set/a/x.png")
    second, third = (first.with_name(first.name.replace("x.png", name)) for name in ("y.png", "z.png"))
    for path in (second, third):
        path.write_bytes(first.read_bytes())
    found = cache.stored([base / "set"])
    assert next(found).path == first  # the folder is read by now
    second.unlink()
    assert [stored.path for stored in found] == [third]


def test_only_files_of_the_cache_are_removed(base, cache, tmp_path):
    stored = put(cache, base / "set/a/x.png")
    put(cache, base / "other/x.png")
    names = ("notes.txt", "x.npy", ".0123456789ab.tmp", ".aaaaaaaaaaaa.tmp")
    own, foreign, fresh, old = (stored.with_name(name) for name in names)
    for path in (own, foreign, fresh, old):
        path.touch()
    os.utime(old, (old.stat().st_mtime - 2 * ABANDONED_AFTER,) * 2)
    outside = tmp_path / "z.png.image-1-1.npy"
    outside.touch()
    link = stored.with_name("z.png.image-1-1.npy")
    link.symlink_to(outside)
    size = stored.stat().st_size
    assert cache.remove(cache.stored([base / "set"])) == size
    assert set(stored.parent.iterdir()) == {own, foreign, fresh, link} and outside.exists()
    for path in (own, foreign, fresh, link):
        path.unlink()
    put(cache, base / "set/a/x.png")
    cache.remove(cache.stored([base / "set"]))
    assert [path.name for path in (cache.folder / "v1/6x8").iterdir()] == ["other"]  # empty folders are gone


def test_of_the_base_itself_only_the_files_in_it_are_meant(base, cache, tmp_path):
    """Below it are other data sets, and the arrays of those elsewhere."""
    flat, outside = base / "flat.png", tmp_path / "outside/x.png"
    outside.parent.mkdir()
    for path in (flat, outside):
        Image.fromarray(np.zeros((10, 14, 3), np.uint8)).save(path)
    stored = [put(cache, path) for path in (flat, outside, base / "set/a/x.png")]
    assert [file.path for file in cache.stored([base])] == stored[:1]
    cache.remove(cache.stored([base]))
    assert [path.exists() for path in stored] == [False, True, True]


def test_what_another_version_stored_is_not_answered_and_stale(base, cache, monkeypatch):
    path = base / "set/a/x.png"
    stored = put(cache, path)
    monkeypatch.setattr(caching, "VERSION", caching.VERSION + 1)
    marker = np.zeros((1, 1), np.uint8)
    assert cache.get(path, SIZE, "image", lambda: marker) is marker
    (found,) = cache.stored([base / "set"])
    assert found.path == stored and not found.is_current
