"""The image cache that ``scripts/prepare.py cache=true`` fills and clears."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
from prepare_calls import FILES, snapshot

from icda.data import Cityscapes
from icda.data.cache import ImageCache

pytest_plugins = ("prepare_fixtures",)


# ---- the cache


def cached(data: Path) -> list[Path]:
    return sorted((data / FILES / "cache").rglob("*.npy"))


def test_the_cache_holds_what_training_and_validation_read(call, data):
    text = call("dataset=darkzurich", "cache=true")
    # 6 source images, labels, translations; 6 night and 4 day images; 3 val images
    assert "made cache: 31 arrays" in text and len(cached(data)) == 31
    size = (18 + 13 - 6) * 3  # all but the labels have three channels, the source is 512 x 1024, the others 540 x 960
    assert sum(p.stat().st_size for p in cached(data)) == 31 * 128 + 512 * 1024 * 42 + 540 * 960 * (size - 36)
    options = {"size": [512, 1024], "translations": str(data / "CycleGANCityscapes")}
    source = Cityscapes(str(data / "Cityscapes"), "train", **options)
    plain = Cityscapes(str(data / "Cityscapes"), "train", **options)
    source.cache = ImageCache(data / FILES / "cache", data)
    for what in ("image", "label", "translation"):
        for i in range(6):
            stored = getattr(source, what)(i)
            assert isinstance(stored, np.memmap)
            np.testing.assert_array_equal(stored, getattr(plain, what)(i))


def test_the_cache_is_mended_and_only_what_is_stale_is_removed(call, data):
    call("dataset=acdc", "cache=true")
    call("dataset=acdc", "cache=true", "dataset.source.size=[32,64]")
    before = cached(data)
    night = data / "ACDC/rgb_anon/night/train/GOPR0351/GOPR0351_frame_000159_rgb_anon.png"
    os.utime(night, (1e9, 1e9))
    cut = next(p for p in before if "540x960" in p.parts and "GOPR0400_frame_000003_rgb_anon" in p.name)
    cut.write_bytes(cut.read_bytes()[:50])
    own = data / FILES / "cache/v1/540x960/ACDC/mine.txt"
    own.write_text("mine")
    other = data / FILES / "cache/v1/540x960/other/x.png.image-1-1.npy"
    other.parent.mkdir()
    other.write_text("of another data set")
    label = next(p for p in before if ".label-" in p.name)
    wrong_kind = label.with_name(re.sub("label-[0-9a-f]+", "label-00000000", label.name))
    shutil.copy(label, wrong_kind)
    left = data / FILES / "cache/v1/540x960/.0123456789ab.tmp"
    left.write_text("half")
    os.utime(left, (1e9, 1e9))
    text = call("dataset=acdc", "cache=true")
    assert "made cache: 2 arrays" in text and "2 stale to remove" in text
    assert own.exists() and other.exists() and not wrong_kind.exists() and not left.exists()
    after = [p for p in cached(data) if p != other]
    assert len(after) == len(before) and len(set(before) - set(after)) == 1
    assert "nothing to do" in call("dataset=acdc", "cache=true")


def test_the_cache_is_removed_without_following_links(call, data, tmp_path):
    call("dataset=acdc", "cache=true")
    call("dataset=camvid_dusk", "cache=true")
    camvid = [p for p in cached(data) if "CamVid" in p.parts]
    outside = tmp_path / "outside/x.png.image-1-1.npy"
    outside.parent.mkdir()
    outside.write_text("precious")
    folder = data / FILES / "cache/v1/540x960/ACDC"
    (folder / "link").symlink_to(outside.parent)
    (folder / "y.png.image-1-1.npy").symlink_to(outside)
    (folder / "mine.npy").write_text("precious")
    shutil.rmtree(data / "ACDC")  # the cache of data that are gone can be removed as well
    text = call("dataset=acdc", "cache=remove")
    assert "removed 41 files" in text
    assert outside.read_text() == "precious" and (folder / "link").is_symlink()
    assert sorted(p.name for p in folder.rglob("*")) == ["link", "mine.npy", "y.png.image-1-1.npy"]
    assert [p for p in cached(data) if "CamVid" in p.parts] == camvid
    assert "removed 0 files" in call("dataset=acdc", "cache=remove")
    shutil.rmtree(data / FILES)
    assert "nothing to do" in call("dataset=acdc", "cache=remove")


def test_the_cache_of_a_linked_folder_stays_inside(call, data, tmp_path):
    call("dataset=camvid_dusk", "cache=true")
    folder = data / FILES / "cache/v1/360x480/CamVid"
    moved = folder.rename(tmp_path / "moved")
    folder.symlink_to(moved)
    before = snapshot(moved)
    assert "removed 0 files" in call("dataset=camvid_dusk", "cache=remove")
    assert snapshot(moved) == before


def test_too_little_room_is_refused_before_anything_is_written(call, data, monkeypatch):
    usage = shutil.disk_usage(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    call("dataset=camvid_dusk", "cache=true", error=r"the cache needs 0\.01 GB, but .* has 0\.00 GB free; make room")
    assert cached(data) == []


def test_a_damaged_image_is_named_and_the_others_are_cached(call, data):
    image = data / "CamVid/train/0006R0_f00930.png"
    image.write_bytes(b"")
    text = call("dataset=camvid_dusk", "cache=true", error="not ready: 1 thing has")
    assert text.count(f"source: {image} ") == 1 and len(cached(data)) == 14  # its label lacks the size
