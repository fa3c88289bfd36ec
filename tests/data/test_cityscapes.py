from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image

from icda.data.cityscapes import LABEL_IDS, Cityscapes, label_ids_to_train_ids
from icda.data.classes import CITYSCAPES
from icda.errors import UserError

FRAMES = ("ulm/ulm_000001_000019", "aachen/aachen_000002_000019", "aachen/aachen_000000_000019")


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make_tree(root: Path, split: str = "train", image_root: str = "", label_root: str = "") -> Path:
    """Images of value 10, 11, 12 in the order of FRAMES; official label ids: road and, in row 0, ego vehicle."""
    for i, frame in enumerate(FRAMES):
        save(
            root / image_root / f"leftImg8bit/{split}/{frame}_leftImg8bit.png", np.full((8, 16, 3), 10 + i, np.uint8)
        )
        label = np.full((8, 16), 7, np.uint8)
        label[0] = 1
        stem = root / label_root / f"gtFine/{split}/{frame}_gtFine"
        save(stem.with_name(f"{stem.name}_labelIds.png"), label)
        save(stem.with_name(f"{stem.name}_instanceIds.png"), label.astype(np.uint16))
        save(stem.with_name(f"{stem.name}_color.png"), np.zeros((8, 16, 4), np.uint8))
        stem.with_name(f"{stem.name}_polygons.json").write_text("{}")
    return root


def test_table_is_the_official_one():
    table = label_ids_to_train_ids()
    for label in official_labels:
        if label.id >= 0:
            assert table[label.id] == label.trainId, label.name
    known = {label.id for label in official_labels if label.id >= 0} | {CITYSCAPES.ignore_index}
    valid = (table < len(CITYSCAPES)) | (table == CITYSCAPES.ignore_index)
    assert set(np.flatnonzero(valid).tolist()) == known
    assert [(label.name, label.color) for i in LABEL_IDS for label in official_labels if label.id == i] == list(
        zip(CITYSCAPES.names, CITYSCAPES.palette, strict=True)
    )


def test_official_layout_is_sorted_and_read_without_preparation(tmp_path):
    dataset = Cityscapes(str(make_tree(tmp_path)), "train", size=[4, 8])
    assert [sample.key for sample in dataset.samples] == sorted(FRAMES)
    assert [int(dataset.image(i)[0, 0, 0]) for i in range(3)] == [12, 11, 10]
    assert dataset.image(0).shape == (4, 8, 3) and dataset.label(0).shape == (4, 8)
    label = dataset.label(0, resized=False)
    assert (label[0] == 255).all() and (label[1:] == 0).all()
    assert dataset.classes is CITYSCAPES and dataset.samples[0].reference is None


def test_train_ids_are_preferred_image_by_image(tmp_path):
    make_tree(tmp_path)
    save(tmp_path / f"gtFine/train/{FRAMES[2]}_gtFine_labelTrainIds.png", np.full((8, 16), 5, np.uint8))
    dataset = Cityscapes(str(tmp_path), "train")
    assert (dataset.label(0) == 5).all()
    assert (dataset.label(1)[1:] == 0).all()


@pytest.mark.parametrize("folder", ["plain", "val/train/test", "leftImg8bit gtFine", "night _leftImg8bit.png"])
def test_any_root_path(tmp_path, folder):
    dataset = Cityscapes(f"{make_tree(tmp_path / folder, 'val')}/", "val")
    assert len(dataset) == 3
    assert dataset.samples[0].image == tmp_path / folder / f"leftImg8bit/val/{FRAMES[2]}_leftImg8bit.png"


def test_folders_named_after_the_packages(tmp_path):
    make_tree(tmp_path, "train", "leftImg8bit_trainvaltest", "gtFine_trainvaltest")
    assert Cityscapes(str(tmp_path), "train").label(2).shape == (8, 16)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere; check data_dir.*leftImg8bit/<split>"):
        Cityscapes(str(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match=r"no folder .*leftImg8bit/train; expected leftImg8bit/<split>"):
        Cityscapes(str(tmp_path), "train")
    (tmp_path / "leftImg8bit/train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no folder .*gtFine/train; .*labelled=false"):
        Cityscapes(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"Cityscapes train: no images found"):
        Cityscapes(str(tmp_path), "train", labelled=False)
    with pytest.raises(UserError, match=r"no split 'training'; choose one of train, val, test"):
        Cityscapes(str(tmp_path), "training")


def test_images_without_label_are_counted(tmp_path):
    make_tree(tmp_path)
    for frame in FRAMES[1:]:
        (tmp_path / f"gtFine/train/{frame}_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"2 of 3 images have no label, the first is .*aachen_000000_000019_leftImg"):
        Cityscapes(str(tmp_path), "train")
    assert Cityscapes(str(tmp_path), "train", labelled=False).samples[0].label is None


def test_broken_files_are_named_when_read(tmp_path):
    make_tree(tmp_path)
    image = tmp_path / f"leftImg8bit/train/{FRAMES[2]}_leftImg8bit.png"
    label = tmp_path / f"gtFine/train/{FRAMES[2]}_gtFine_labelIds.png"
    save(label, np.full((8, 16), 77, np.uint8))
    dataset = Cityscapes(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"000000_000019_gtFine_labelIds\.png.*: 77 \(128 pixels\).*0 to 33, 255"):
        dataset.label(0)
    save(label, np.full((4, 8), 7, np.uint8))
    with pytest.raises(UserError, match=r"label .*labelIds\.png is 4 x 8, its image .*leftImg8bit\.png is 8 x 16"):
        dataset.label(0)
    image.write_bytes(image.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"000000_000019_leftImg8bit\.png cannot be read"):
        dataset.image(0)


def test_translations(tmp_path):
    make_tree(tmp_path)
    night = tmp_path / "CycleGANCityscapes"
    for i, frame in enumerate(FRAMES):
        save(night / f"leftImg8bit/train/{frame}_leftImg8bit.png", np.full((4, 8, 3), 100 + i, np.uint8))
    dataset = Cityscapes(str(tmp_path), "train", translations=str(night))
    assert dataset.translation(0).shape == dataset.image(0).shape == (8, 16, 3)
    assert [int(dataset.translation(i)[0, 0, 0]) for i in range(3)] == [102, 101, 100]
    small = pickle.loads(pickle.dumps(Cityscapes(str(tmp_path), "train", (2, 4), str(night))))
    assert small.translation(1).shape == (2, 4, 3)
    (night / f"leftImg8bit/train/{FRAMES[0]}_leftImg8bit.png").unlink()
    with pytest.raises(
        UserError,
        match=r"1 of 3 images have no translation, .*expected .*GANCity.*ulm_000001_000019_leftImg8bit\.png",
    ):
        Cityscapes(str(tmp_path), "train", translations=str(night))
    with pytest.raises(UserError, match=r"no folder of translations .*gone; make one with scripts/translate\.py"):
        Cityscapes(str(tmp_path), "train", translations=str(tmp_path / "gone"))
