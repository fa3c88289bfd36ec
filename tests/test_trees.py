from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import trees
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import id2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trees.write_all(tmp_path_factory.mktemp("trees"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_quick_and_the_same_every_time(data_dir, tmp_path):
    start = time.perf_counter()
    again = trees.write_all(tmp_path / "again")
    assert time.perf_counter() - start < 2
    assert sorted(path.name for path in again.iterdir()) == sorted(trees.TREES)
    first = contents(data_dir)
    assert len(first) > 300 and contents(again) == first
    other = contents(trees.write_cityscapes(tmp_path / "other", seed=1))
    assert all(
        data != first[f"Cityscapes/{name}"] for name, data in other.items() if name.endswith("leftImg8bit.png")
    )


def test_cityscapes_labels_are_what_the_official_scripts_draw(data_dir, tmp_path):
    files = sorted((data_dir / "Cityscapes").rglob("*_polygons.json"))
    assert len(files) == 12
    for file in files:
        stem = file.name.removesuffix("polygons.json")
        for kind, encoding in (("labelIds", "ids"), ("color", "color")):
            json2labelImg(str(file), str(tmp_path / "drawn.png"), encoding)
            np.testing.assert_array_equal(pixels(tmp_path / "drawn.png"), pixels(file.with_name(f"{stem}{kind}.png")))
        annotation = Annotation()
        annotation.fromJsonFile(str(file))
        instances = pixels(file.with_name(f"{stem}instanceIds.png"))
        np.testing.assert_array_equal(np.array(createInstanceImage(annotation, "ids")), instances)


def test_label_files_agree(data_dir):
    ids = sorted(data_dir.rglob("*_labelIds.png"))
    assert len(ids) == 12 + 3 + 9 + 5 + 4 + 6
    for path in ids:
        label = pixels(path)
        assert label.max() <= 33 or path.parent.parts[-2] == "label"
        train = path.with_name(path.name.replace("labelIds", "labelTrainIds"))
        if train.is_file():
            known = [id2label[i].trainId for i in range(34)]
            np.testing.assert_array_equal(np.array(known)[label], pixels(train))
            assert len(np.unique(label)) >= 6


def test_invalid_masks_have_two_forms(data_dir):
    masks = sorted(data_dir.rglob("*_invIds.png"))
    assert len(masks) == 3 + 9 + 5
    for path in masks:
        mask = pixels(path)
        np.testing.assert_array_equal(mask * 255, pixels(path.with_name(path.name.replace("invIds", "invGray"))))
        assert set(np.unique(mask)) == {0, 1}


def test_dark_zurich_pairs_are_the_nearest_places(data_dir):
    root = data_dir / "DarkZurich"
    places = {
        row[0]: (float(row[1]), float(row[2]))
        for file in root.rglob("gps/**/*.csv")
        for row in csv.reader(file.open())
    }
    pairs = [row for file in sorted(root.rglob("*_ref_day.csv")) for row in csv.reader(file.open())]
    day = [key for key in places if key.startswith("train/day")]
    assert len(pairs) == 9 and len(day) == 4 and len(places) == 13 + 2 * 6
    for night, reference in pairs:
        assert min(day, key=lambda key: math.dist(places[key], places[night])) == reference
        assert (root / f"rgb_anon/{reference}_rgb_anon.png").is_file()
    for name in places:
        assert (root / f"rgb_anon/{name}_rgb_anon.png").is_file(), name
    for split in ("val", "test"):
        night, reference = (
            (root / f"lists_file_names/{split}{infix}_filenames.txt").read_text().split() for infix in ("", "_ref")
        )
        assert [key.rsplit("/", 1)[-1] for key in night] == [key.rsplit("/", 1)[-1][:-4] for key in reference]


def test_acdc_shares_frames_with_dark_zurich(data_dir, tmp_path):
    def frames(pattern: str) -> set[str]:
        return {path.name.removesuffix("_rgb_anon.png") for path in data_dir.glob(pattern)}

    shared = {"train": "GOPR0351_frame_000159", "test": "GOPR0364_frame_000795"}
    for split, frame in shared.items():
        assert frames(f"DarkZurich/rgb_anon/{split}/night/*/*") & frames(f"ACDC/rgb_anon/*/{split}/*/*") == {frame}
    val = frames("DarkZurich/rgb_anon/val/night/*/*")
    assert val & frames("ACDC/rgb_anon/*/val/*/*") == {"GOPR0356_frame_000321"}
    assert val & frames("ACDC/rgb_anon/*/train/*/*") == {"GOPR0356_frame_000345"}
    root = trees.write_acdc(tmp_path, reference_labels=True)
    assert len(list(root.glob("gt/*/train_ref/*/*_gt_ref_labelTrainIds.png"))) == 9


def test_every_image_is_of_the_size_asked_for(tmp_path):
    trees.write_all(tmp_path, size=(24, 40))
    pictures = [path for path in tmp_path.rglob("*") if path.suffix in (".png", ".jpg")]
    assert len(pictures) > 200 and {Image.open(path).size for path in pictures} == {(40, 24)}


def test_translations_lie_beside_their_images(data_dir, tmp_path):
    day, night = data_dir / "Cityscapes/leftImg8bit", data_dir / "CycleGANCityscapes/leftImg8bit"
    names = {str(path.relative_to(night)) for path in night.rglob("*.png")}
    assert names == {
        f"{path.relative_to(day)}" for split in ("train", "val") for path in (day / split).rglob("*.png")
    }
    assert all(pixels(night / name).mean() < 0.4 * pixels(day / name).mean() for name in names)
    flat = {path.name for path in trees.write_translations(tmp_path, flat=True).iterdir()}
    assert flat == {f"{Path(name).stem}_fake_B.png" for name in names}


def test_bdd_list_and_tags(data_dir):
    root = data_dir / "bdd100k"
    for line in (root / "lists" / trees.BDD100K_LIST_NAME).read_text().split():
        _, _, split, name = line.split("/")
        assert (root / "images/10k" / split / name).is_file() and pixels(
            root / "images/10k" / split / name
        ).mean() < 50
    frames = [f for file in root.glob("labels/det_20/*.json") for f in json.loads(file.read_text())]
    tags = {frame["name"].removesuffix(".jpg"): frame["attributes"]["timeofday"] for frame in frames}
    wanted = {name: tag for split in trees.BDD100K.values() for name, tag in split.items() if tag}
    assert wanted.items() <= tags.items() and len(tags) == len(wanted) + 1
