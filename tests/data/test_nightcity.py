from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import trees
from cityscapesscripts.helpers.labels import id2label
from PIL import Image

from icda.data.nightcity import NightCity
from icda.errors import UserError

TRAIN = trees.NIGHTCITY["train"]
LABELS = "NightCity-label/label/train"


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def train_ids(place: trees.Scene) -> np.ndarray:
    """By the official table, pixel by pixel of a scene."""
    return np.array([id2label[i].trainId for i in range(34)])[place.label_ids]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trees.write_nightcity(tmp_path / "NightCity")


@pytest.mark.parametrize("layout", list(trees.NIGHTCITY_LAYOUTS))
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_form(tmp_path, layout, split):
    dataset = NightCity(str(trees.write_nightcity(tmp_path / "train val", layout)), split, size=[32, 64])
    assert [sample.key for sample in dataset.samples] == list(trees.NIGHTCITY[split])
    for i, sample in enumerate(dataset.samples):
        assert dataset.image(i).shape == (32, 64, 3) and dataset.label(i).shape == (32, 64)
        np.testing.assert_array_equal(dataset.label(i, resized=False), train_ids(trees.scene(sample.key)))
        assert sample.label.name == sample.key + trees.NIGHTCITY_LAYOUTS[layout][2]
        assert sample.reference is None and sample.invalid is None
    assert not dataset.strays and not dataset.missing
    assert dataset.counts()[0].published == {"train": 2998, "val": 1299}[split]
    assert pickle.loads(pickle.dumps(dataset)).samples == dataset.samples


@pytest.mark.parametrize("folder", ["NightCity", "nightcity-fine"])
def test_folder_above_the_root(tmp_path, folder):
    trees.write_nightcity(tmp_path / folder, "fine" if folder.endswith("fine") else "fdlnet")
    assert len(NightCity(str(tmp_path), "val")) == 2


def test_doubled_folder_of_images(root):
    images = root / "NightCity-images"
    images.rename(root / "inner")
    images.mkdir()
    (root / "inner").rename(images / "NightCity-images")
    dataset = NightCity(str(root), "train")
    assert len(dataset) == 4 and dataset.place(dataset.samples[0]).as_posix() == "images/train/Chicago_0002.png"


def test_jpeg_images(root):
    for path in (root / "NightCity-images/images/train").iterdir():
        Image.open(path).save(path.with_suffix(".JPG"), format="JPEG")
        path.unlink()
    dataset = NightCity(str(root), "train")
    assert [sample.key for sample in dataset.samples] == list(TRAIN) and dataset.image(0).shape == (64, 128, 3)


def test_ids_outside_the_table_are_ignored_in_label_ids_only(root, tmp_path):
    path = root / LABELS / f"{TRAIN[0]}_labelIds.png"
    label = np.full(trees.SIZE, 26, np.uint8)
    label[:10] = np.arange(40, 50, dtype=np.uint8)[:, None]
    label[10:12] = ((254,), (255,))
    label[12] = 34
    Image.fromarray(label).save(path)
    read = NightCity(str(root), "train").label(0)
    assert (read[:13] == 255).all() and (read[13:] == 13).all()
    fine = trees.write_nightcity(tmp_path / "fine", "fine")
    Image.fromarray(label).save(fine / f"train/lbl/{TRAIN[0]}_trainIds.png")
    with pytest.raises(UserError, match=r"Chicago_0002_trainIds\.png holds ids .*: 26, 34, 40"):
        NightCity(str(fine), "train").label(0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_channels_are_read_by_one(root, mode):
    path = root / LABELS / f"{TRAIN[0]}_labelIds.png"
    wanted = NightCity(str(root), "train", size=[16, 32])
    wanted = wanted.label(0), wanted.label(0, resized=False)
    Image.open(path).convert(mode).save(path)
    assert Image.open(path).mode == mode
    dataset = NightCity(str(root), "train", size=[16, 32])
    np.testing.assert_array_equal(dataset.label(0), wanted[0])
    np.testing.assert_array_equal(dataset.label(0, resized=False), wanted[1])
    Image.fromarray(np.dstack([pixels(path)[..., 0]] * 3)[:, :100]).save(path)
    with pytest.raises(UserError, match=r"Chicago_0002_labelIds\.png is 64 x 100, its image .* is 64 x 128"):
        dataset.label(0)


def test_palette_labels_are_read_by_index(root):
    path = root / LABELS / f"{TRAIN[0]}_labelIds.png"
    wanted = NightCity(str(root), "train").label(0)
    picture = Image.open(path).convert("L")
    picture.putpalette([value for i in range(256) for value in (255 - i, i // 2, 7)])
    picture.save(path)
    assert Image.open(path).mode == "P"
    np.testing.assert_array_equal(NightCity(str(root), "train").label(0), wanted)


def test_colour_pictures_and_wrong_train_ids_are_refused(root, tmp_path):
    path = root / LABELS / f"{TRAIN[0]}_labelIds.png"
    color = pixels(root / f"NightCity-label/color/train/{TRAIN[0]}_color.png")
    Image.fromarray(color).save(path)
    with pytest.raises(UserError, match=r"Chicago_0002_labelIds\.png is no label map: its channels differ in \d+"):
        NightCity(str(root), "train").label(0)
    fine = trees.write_nightcity(tmp_path / "fine", "fine")
    wide = np.full((*trees.SIZE, 3), 26, np.uint8)
    Image.fromarray(wide).save(fine / f"train/lbl/{TRAIN[0]}_trainIds.png")
    with pytest.raises(UserError, match=r"_trainIds\.png holds ids that are no train ids: \[26\] \(8192 pixels\)"):
        NightCity(str(fine), "train").label(0)


def test_label_of_another_size(root):
    path = root / LABELS / f"{TRAIN[2]}_labelIds.png"
    Image.open(path).resize((100, 64), Image.Resampling.NEAREST).save(path)
    dataset = NightCity(str(root), "train")
    assert dataset.label(0).shape == trees.SIZE
    with pytest.raises(
        UserError, match=r"Dubai_0016_labelIds\.png is 64 x 100, its image .*Dubai_0016\.png is 64 x 128"
    ):
        dataset.label(2)


def test_stray_labels_of_another_split(root):
    label = root / LABELS / "Dubai_0016_labelIds.png"
    (root / "NightCity-label/label/val/Dubai_0016_labelIds.png").write_bytes(label.read_bytes())
    dataset = NightCity(str(root), "val")
    assert [sample.key for sample in dataset.samples] == list(trees.NIGHTCITY["val"])
    assert [path.name for path in dataset.strays] == ["Dubai_0016_labelIds.png"]


def test_missing_labels(root):
    (root / LABELS / f"{TRAIN[1]}_labelIds.png").unlink()
    with pytest.raises(
        UserError,
        match=r"NightCity train: 1 of 4 images have no label, .*Chicago_0004\.png; expected .*train/\*_labelIds\.png",
    ):
        NightCity(str(root), "train")
    assert [s.key for s in NightCity(str(root), "train", check=False).missing["label"]] == ["Chicago_0004"]
    (root / "NightCity-label").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"no folder .*label/train; expected NightCity-images.*labelled=false"):
        NightCity(str(root), "train")
    assert NightCity(str(root), "train", labelled=False).samples[0].label is None


def test_missing_images(root, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*nowhere; check data_dir"):
        NightCity(str(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match=r"no split 'test'; choose one of train, val"):
        NightCity(str(root), "test")
    (root / "NightCity-images").rename(root / "pictures")
    with pytest.raises(UserError, match=r"no folder .*images/train; expected NightCity-images/images/<split>"):
        NightCity(str(root), "train")
    (root / "images/train").mkdir(parents=True)
    with pytest.raises(UserError, match=r"NightCity train: no images found in"):
        NightCity(str(root), "train")


def test_broken_files_are_named(root):
    dataset = NightCity(str(root), "train")
    for i, content in ((0, b""), (1, dataset.samples[1].label.read_bytes()[:-40]), (2, b"no picture")):
        dataset.samples[i].label.write_bytes(content)
        with pytest.raises(UserError, match=rf"{TRAIN[i]}_labelIds\.png (is empty|cannot be read)"):
            dataset.label(i)
    dataset.samples[3].label.unlink()
    with pytest.raises(UserError, match=rf"{TRAIN[3]}_labelIds\.png does not exist"):
        dataset.label(3)


def test_translations(root, tmp_path):
    day = tmp_path / "day"
    for name in TRAIN:
        path = day / f"images/train/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(trees.scene(name).picture()).save(path)
    dataset = NightCity(str(root), "train", size=[32, 64], translations=str(day))
    assert all(dataset.translation(i).mean() > 2 * dataset.image(i).mean() for i in range(4))
    (day / f"images/train/{TRAIN[3]}.png").unlink()
    with pytest.raises(UserError, match=r"1 of 4 images have no translation, .*HongKong_0101\.png"):
        NightCity(str(root), "train", translations=str(day))


def test_the_cache_tells_label_ids_from_train_ids(root, tmp_path):
    fine = NightCity(str(trees.write_nightcity(tmp_path / "fine", "fine")), "train")
    official = NightCity(str(root), "train")
    assert fine.label_kind(fine.samples[0]) != official.label_kind(official.samples[0])
