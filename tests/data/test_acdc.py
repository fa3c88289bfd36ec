from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import trees
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from icda.data.acdc import ACDC, CONDITIONS
from icda.errors import UserError

FRAMES = {
    "fog": ("GOPR0475/GOPR0475_frame_000041", "GP010476/GP010476_frame_000854"),
    "night": ("GOPR0351/GOPR0351_frame_000159", "GP010376/GP010376_frame_000007"),
    "rain": ("GP020400/GP020400_frame_000143",),
    "snow": ("GP030176/GP030176_frame_000788",),
}
KEYS = [f"{condition}/{key}" for condition, keys in FRAMES.items() for key in keys]


def save(path: Path, value: int, channels: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 10, 3) if channels else (6, 10), value, np.uint8)).save(path)
    return path


def make_tree(
    root: Path, split: str = "train", packages: tuple[str, str] = ("", ""), conditions: tuple[str, ...] = CONDITIONS
) -> Path:
    """Images hold their number among KEYS, references 100 more, labels the number."""
    for i, key in enumerate(KEYS):
        condition, frame = key.split("/", 1)
        if condition not in conditions:
            continue
        save(root / packages[0] / f"rgb_anon/{condition}/{split}/{frame}_rgb_anon.png", i)
        save(root / packages[0] / f"rgb_anon/{condition}/{split}_ref/{frame}_rgb_ref_anon.png", 100 + i)
        if split != "test":
            gt = root / packages[1] / f"gt/{condition}"
            for kind, value in (("labelTrainIds", i), ("labelIds", 33), ("labelColor", 90)):
                save(gt / f"{split}/{frame}_gt_{kind}.png", value, channels=kind == "labelColor")
            save(gt / f"{split}/{frame}_gt_invIds.png", i % 2, channels=False)
            save(gt / f"{split}/{frame}_gt_invGray.png", 255 * (i % 2), channels=False)
            save(gt / f"{split}_ref/{frame}_gt_ref_labelTrainIds.png", 18, channels=False)
    return root


@pytest.mark.parametrize("folder", ["ACDC", "train/val", "nächtliche Fahrt/train_ref"])
@pytest.mark.parametrize("packages", [("", ""), ("rgb_anon_trainvaltest", "gt_trainval")])
def test_layout(tmp_path, folder, packages):
    root = make_tree(tmp_path / folder, packages=packages)
    dataset = ACDC(str(root), "train", size=[3, 5])
    assert [sample.key for sample in dataset.samples] == KEYS == sorted(KEYS)
    for i, sample in enumerate(dataset.samples):
        assert dataset.image(i)[0, 0, 0] == i and dataset.reference(i)[0, 0, 0] == 100 + i
        assert (dataset.label(i) == i).all() and dataset.label(i).shape == (3, 5)
        assert (dataset.invalid(i) == bool(i % 2)).all() and dataset.invalid(i).shape == (6, 10)
        assert sample.reference.parent.parent.name == "train_ref"
    assert dataset.strays == () and dataset.missing == {} and dataset.unpaired == 0
    assert dataset.drive_frame(dataset.samples[2]) == "GOPR0351_frame_000159"
    assert dataset.place(dataset.samples[2]).as_posix() == f"rgb_anon/night/train/{FRAMES['night'][0]}_rgb_anon.png"
    assert pickle.loads(pickle.dumps(dataset)).samples == dataset.samples


def test_conditions(tmp_path):
    root = str(make_tree(tmp_path, "val"))
    night = ACDC(root, "val", ["night"])
    assert [sample.key for sample in night.samples] == KEYS[2:4] and night.name == "ACDC night val"
    two = ACDC(root, "val", ["snow", "fog", "snow"])
    assert two.name == "ACDC fog+snow val" and len(two) == 3
    assert two.samples == ACDC(root, "val", ["fog", "snow"]).samples
    for conditions in (None, CONDITIONS, list(CONDITIONS)[::-1]):
        assert ACDC(root, "val", conditions).name == "ACDC val"
    config = OmegaConf.create(
        {"_target_": "icda.data.acdc.ACDC", "root": root, "split": "val", "conditions": ["rain"]}
    )
    assert len(instantiate(config)) == 1
    for conditions, message in (
        ("night", r"conditions is 'night', expected a list, such as \[night\]"),
        (["night", "dusk"], "no condition dusk; choose any of fog, night, rain, snow"),
        ([], "no condition chosen; choose any of fog"),
    ):
        with pytest.raises(UserError, match=f"ACDC: {message}"):
            ACDC(root, "val", conditions)
    with pytest.raises(UserError, match="no split 'trainval'"):
        ACDC(root, "trainval")


def test_one_condition_unzipped(tmp_path):
    root = str(make_tree(tmp_path, conditions=("night",)))
    assert len(ACDC(root, "train", ["night"])) == 2
    with pytest.raises(UserError, match=r"no folder .*rgb_anon/fog/train; .*leave it out of conditions"):
        ACDC(root, "train")


def test_source_target_and_test(tmp_path):
    root = make_tree(make_tree(tmp_path, "train"), "test")
    target = ACDC(str(root), "train", labelled=False)
    assert all(sample.label is None and sample.invalid is None for sample in target.samples)
    test = ACDC(str(root), "test", ["night"])  # labelled by default, but nobody has these labels
    assert test.samples[0].label is None and test.reference(0)[0, 0, 0] == 102
    shutil.rmtree(root / "gt")
    assert len(ACDC(str(root), "train", labelled=False)) == 6
    with pytest.raises(UserError, match=r"no folder .*gt/fog/train; .*labelled=false"):
        ACDC(str(root), "train")
    for folder in (root / "rgb_anon").glob("*/train_ref"):
        shutil.rmtree(folder)
    assert len(ACDC(str(root), "train", labelled=False, references=False)) == 6
    with pytest.raises(UserError, match=r"no folder .*rgb_anon/fog/train_ref; .*references=false"):
        ACDC(str(root), "train", labelled=False)


def test_images_without_reference(tmp_path):
    root = make_tree(tmp_path)
    (root / f"rgb_anon/night/train_ref/{FRAMES['night'][1]}_rgb_ref_anon.png").unlink()
    dropped = ACDC(str(root), "train")
    assert dropped.unpaired == 1 and len(dropped) == 5 and KEYS[3] not in [s.key for s in dropped.samples]
    assert dropped.strays == ()  # the label of an image that was left out belongs to an image
    kept = ACDC(str(root), "train", unpaired="keep")
    assert kept.unpaired == 1 and kept.samples[3].reference is None and kept.missing == {}
    with pytest.raises(UserError, match=r"1 of 6 images have no day reference, the first is .*GP010376_frame_000007"):
        ACDC(str(root), "train", unpaired="error")
    unchecked = ACDC(str(root), "train", unpaired="error", check=False)
    assert unchecked.missing == {"reference": [unchecked.samples[3]]}
    with pytest.raises(UserError, match="unpaired is 'no'"):
        ACDC(str(root), "train", unpaired="no")


@pytest.mark.parametrize("nested", [False, True])
def test_flattened_copy(tmp_path, nested):
    for i, key in enumerate(KEYS):
        frame = key.split("/", 1)[1] if nested else key.rsplit("/", 1)[1]
        save(tmp_path / f"rgb_anon/train/{frame}_rgb_anon.png", i)
        save(tmp_path / f"rgb_anon/train_ref/{frame}_rgb_ref_anon.png", 100 + i)
        save(tmp_path / f"gt/train/{key.rsplit('/', 1)[1]}_gt_labelTrainIds.png", i, channels=False)
    dataset = ACDC(str(tmp_path), "train")
    assert [sample.key for sample in dataset.samples] == sorted(key.rsplit("/", 1)[1] for key in KEYS)
    for i in range(len(dataset)):
        value = int(dataset.image(i)[0, 0, 0])
        assert dataset.reference(i)[0, 0, 0] == 100 + value and (dataset.label(i) == value).all()
    assert [(c.what, c.found, c.published) for c in dataset.counts()] == [
        ("images", 6, 1600),
        ("labels", 6, None),
        ("references", 6, 1600),
    ]
    with pytest.raises(
        UserError, match=r"ACDC night train: .*rgb_anon/train is a flattened copy, in which conditions"
    ):
        ACDC(str(tmp_path), "train", ["night"])
    # Flattened inside the original tree, as DAFormer's instructions do it: the original is read.
    make_tree(tmp_path)
    assert [sample.key for sample in ACDC(str(tmp_path), "train").samples] == KEYS
    assert len(ACDC(str(tmp_path), "train", ["night"])) == 2


def test_the_same_frame_twice_in_a_flattened_copy(tmp_path):
    for folder in ("a", "b"):
        save(tmp_path / f"rgb_anon/train/{folder}/GOPR0351_frame_000159_rgb_anon.png", 0)
    with pytest.raises(UserError, match=r"two files for one frame: .*/a/GOPR.* and .*/b/GOPR"):
        ACDC(str(tmp_path), "train", references=False, labelled=False)


def test_published_counts(tmp_path):
    totals = {split: sum(groups.values()) for split, groups in ACDC.PUBLISHED.items()}
    assert totals == {"train": 1600, "val": 406, "test": 2000}
    dataset = ACDC(str(make_tree(tmp_path, "val")), "val", ["fog", "night"])
    assert [(c.what, c.found, c.published) for c in dataset.counts()] == [
        ("images", 4, 206),
        ("images of fog", 2, 100),
        ("images of night", 2, 106),
        ("labels", 4, None),
        ("invalid masks", 4, None),
        ("references", 4, 206),
    ]
    (tmp_path / f"rgb_anon/fog/val_ref/{FRAMES['fog'][0]}_rgb_ref_anon.png").unlink()
    counts = {c.what: (c.found, c.published) for c in ACDC(str(tmp_path), "val").counts()}
    assert counts["references"] == (5, 406) and counts["images without a reference"] == (1, None)
    plain = ACDC(str(tmp_path), "val", references=False, labelled=False).counts()
    assert [c.what for c in plain] == ["images", *(f"images of {condition}" for condition in CONDITIONS)]


def test_incomplete_labels_and_masks(tmp_path):
    root = make_tree(tmp_path)
    stem = root / "gt/night/train" / FRAMES["night"][0]
    stem.with_name(f"{stem.name}_gt_labelTrainIds.png").unlink()
    assert (ACDC(str(root), "train").label(2) == 18).all()  # from labelIds, 33 is bicycle
    stem.with_name(f"{stem.name}_gt_labelIds.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 6 images have no label, the first is .*GOPR0351_frame_000159_rgb_anon"
    ):
        ACDC(str(root), "train")
    assert ACDC(str(root), "train", check=False).missing["label"][0].key == KEYS[2]
    stray = save(root / "gt/night/train/GOPR0351/GOPR0351_frame_000999_gt_labelIds.png", 7, channels=False)
    lone = save(root / "rgb_anon/fog/train_ref/GOPR0475/GOPR0475_frame_000999_rgb_ref_anon.png", 7)
    assert set(ACDC(str(root), "train", check=False).strays) == {stray, lone}
    save(stem.with_name(f"{stem.name}_gt_labelIds.png"), 7, channels=False)
    for kind in ("invIds", "invGray"):
        stem.with_name(f"{stem.name}_gt_{kind}.png").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images have no invalid.*; expected .*gt/<condition>/train"):
        ACDC(str(root), "train")
    for file in [*root.rglob("*_gt_invIds.png"), *root.rglob("*_gt_invGray.png")]:
        file.unlink()
    assert all(sample.invalid is None for sample in ACDC(str(root), "train").samples)


def test_a_broken_tree(tmp_path):
    """A name in upper case, a linked condition, files that do not belong, half a picture, a label of other ids."""
    root = make_tree(tmp_path / "ACDC")
    (root / "rgb_anon/night").rename(tmp_path / "elsewhere")
    (root / "rgb_anon/night").symlink_to(tmp_path / "elsewhere")
    image = root / f"rgb_anon/night/train/{FRAMES['night'][0]}_rgb_anon.png"
    image.rename(image.with_suffix(".PNG"))
    (image.parent / "._GOPR0351_frame_000159_rgb_anon.png").write_bytes(b"macOS")
    save(image.parent / "GOPR0351_frame_000160.png", 0)
    dataset = ACDC(str(root), "train")
    assert [sample.key for sample in dataset.samples] == KEYS and dataset.image(2).shape == (6, 10, 3)
    picture = dataset.samples[1].image
    picture.write_bytes(picture.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"GP010476_frame_000854_rgb_anon\.png cannot be read: .*truncated"):
        dataset.image(1)
    save(dataset.samples[0].label, 33, channels=False)
    with pytest.raises(UserError, match=r"GOPR0475_frame_000041_gt_labelTrainIds\.png.*: 33 \(60 pixels\)"):
        dataset.label(0)
    with pytest.raises(UserError, match=r"no folder .*nowhere; check data_dir"):
        ACDC(str(tmp_path / "nowhere"), "train")
    for folder in ("rgb_anon/night/test", "rgb_anon/night/test_ref"):
        (root / folder).mkdir()
    with pytest.raises(UserError, match="ACDC night test: no images found"):
        ACDC(str(root), "test", ["night"])


def test_translations(tmp_path):
    root = make_tree(tmp_path / "ACDC")
    for key in KEYS:
        condition, frame = key.split("/", 1)
        save(tmp_path / f"translated/rgb_anon/{condition}/train/{frame}_rgb_anon.png", 200)
    dataset = ACDC(str(root), "train", translations=str(tmp_path / "translated"))
    assert dataset.translation(3)[0, 0, 0] == 200


def test_images_without_a_reference_are_named_when_left_out_or_kept(tmp_path):
    trees.write_acdc(tmp_path)
    dataset = ACDC(str(tmp_path), "train", ["night"])
    assert "have none" not in dataset.pairing
    dataset.samples[1].reference.unlink()
    for unpaired, what, count in (("drop", "left out", 2), ("keep", "kept", 3)):
        again = ACDC(str(tmp_path), "train", ["night"], unpaired=unpaired)
        assert len(again) == count
        assert f"1 of 3 images have none and are {what}" in again.pairing
        assert str(dataset.samples[1].image) in again.pairing
