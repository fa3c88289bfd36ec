"""The ways in which real trees are broken, for every data set: each works, or one line names the file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scenes
import trees
from PIL import Image

from icda.data import (
    ACDC,
    BDD100KNight,
    CamVid,
    Cityscapes,
    DarkZurich,
    Folder,
    NightCity,
    NighttimeDriving,
)
from icda.data.base import SegmentationDataset
from icda.errors import UserError

Open = Callable[[Path], SegmentationDataset]


def write_folder(root: Path) -> Path:
    for i in range(3):
        place = scenes.scene(f"own {i}", scenes.SIZE, 0)
        for folder, picture in (("images", place.picture()), ("labels", scenes.TRAIN_IDS[place.label_ids])):
            (root / folder / "yard").mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(root / folder / "yard" / f"{i}.png")
    return root


DATASETS: dict[str, tuple[Callable[[Path], Path], Open]] = {
    "cityscapes": (trees.write_cityscapes, lambda root: Cityscapes(str(root), "train")),
    "darkzurich": (trees.write_darkzurich, lambda root: DarkZurich(str(root), "val", references=False)),
    "acdc": (trees.write_acdc, lambda root: ACDC(str(root), "train", references=False)),
    "nighttime_driving": (trees.write_nighttime_driving, lambda root: NighttimeDriving(str(root))),
    "bdd100k": (trees.write_bdd100k, lambda root: BDD100KNight(str(root))),
    "nightcity": (trees.write_nightcity, lambda root: NightCity(str(root), "train")),
    "camvid": (trees.write_camvid, lambda root: CamVid(str(root), ["train"])),
    "folder": (write_folder, lambda root: Folder(str(root), "images/**/*", "labels/**/*")),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    for name, (write, _) in DATASETS.items():
        write(root / name)
    return root


@pytest.fixture(params=DATASETS)
def tree(request, originals, tmp_path) -> tuple[Path, Open]:
    """A copy of a tree, in a folder with a space and letters that are not ASCII, and how it is opened."""
    root = tmp_path / "Früh am Morgen 夜"
    shutil.copytree(originals / request.param, root)
    return root, DATASETS[request.param][1]


def error_of(call: Callable[[], object], *named: Path) -> str:
    """The one line that a mistake ends in, which names one of the files."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and any(path.name in message for path in named), message
    return message


def save_again(path: Path, change: Callable[[Image.Image], Image.Image], **options) -> None:
    with Image.open(path) as picture:
        picture.load()
    change(picture).save(path, **options)


def test_upper_case_endings(tree):
    root, open_set = tree
    before = open_set(root)
    for sample in before.samples:
        for path in (sample.image, sample.label):
            path.rename(path.with_suffix(path.suffix.upper()))
    after = open_set(root)
    assert [s.key for s in after.samples] == [s.key for s in before.samples]
    assert after.image(0).shape == (*after.label(0).shape, 3)


def test_links_to_files_and_folders(tree, tmp_path):
    root, open_set = tree
    before = open_set(root)
    image, label = before.image(0), before.label(0)
    for i, path in enumerate((before.samples[0].image, before.samples[0].label.parent)):
        elsewhere = tmp_path / f"elsewhere{i}" / path.name
        elsewhere.parent.mkdir()
        path.rename(elsewhere)
        path.symlink_to(elsewhere, target_is_directory=elsewhere.is_dir())
    after = open_set(root)
    assert [s.key for s in after.samples] == [s.key for s in before.samples]
    assert np.array_equal(after.image(0), image) and np.array_equal(after.label(0), label)
    linked = after.samples[0].image
    (tmp_path / "elsewhere0" / linked.name).unlink()
    error_of(lambda: open_set(root).image(0), linked)


def test_files_that_do_not_belong_there(tree):
    root, open_set = tree
    before = open_set(root)
    folder = before.samples[0].image.parent
    for name in ("Thumbs.db", "notes.txt", ".DS_Store", f"._{before.samples[0].image.name}", "copy.tar.gz"):
        (folder / name).write_bytes(b"x")
    (folder / "empty").mkdir()
    assert open_set(root).samples == before.samples


@pytest.mark.parametrize("part", ["image", "label"])
def test_a_corrupt_file_in_the_middle(tree, part):
    root, open_set = tree
    dataset = open_set(root)
    path = getattr(dataset.samples[1], part)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = open_set(root)
    error_of(lambda: getattr(again, part)(1), path)
    assert getattr(again, part)(0).shape == getattr(dataset, part)(0).shape


def test_an_image_without_label(tree):
    root, open_set = tree
    sample = open_set(root).samples[1]
    stem = sample.label.name.replace("TrainIds", "Ids")
    for path in (sample.label, sample.label.with_name(stem)):
        path.unlink(missing_ok=True)
    message = error_of(lambda: open_set(root), sample.image, sample.label)
    assert "no label" in message and "expected" in message


def test_a_label_without_image(tree):
    root, open_set = tree
    before = open_set(root)
    gone = before.samples[1]
    gone.image.unlink()
    if isinstance(before, BDD100KNight):  # the list says which images there are
        assert "list" in error_of(lambda: open_set(root), gone.image)
    else:
        after = open_set(root)
        assert [s.key for s in after.samples] == [s.key for s in before.samples if s != gone]
        assert gone.label in after.strays


def test_label_maps_with_a_palette_or_16_bit(tree):
    root, open_set = tree
    dataset = open_set(root)
    expected = [dataset.label(i) for i in range(2)]

    def with_palette(picture: Image.Image) -> Image.Image:
        picture.putpalette([7] * 768)
        return picture

    for sample in dataset.samples[:2]:  # some of NightCity's have three equal channels
        save_again(sample.label, lambda picture: picture.getchannel(0))
    save_again(dataset.samples[0].label, with_palette)
    Image.fromarray(np.array(Image.open(dataset.samples[1].label)).astype(np.uint16)).save(dataset.samples[1].label)
    assert all(np.array_equal(open_set(root).label(i), expected[i]) for i in range(2))


def test_a_colour_picture_in_place_of_ids(tree):
    root, open_set = tree
    sample = open_set(root).samples[0]
    picture = np.random.default_rng(0).integers(0, 200, (*scenes.SIZE, 3)).astype(np.uint8)
    Image.fromarray(picture).save(sample.label)
    error_of(lambda: open_set(root).label(0), sample.label)


def test_ids_of_another_numbering(tree):
    root, open_set = tree
    dataset = open_set(root)
    sample = dataset.samples[0]
    ids = np.full(dataset.label(0).shape, 40, np.uint8)  # neither a train id nor an official label id
    Image.fromarray(ids).save(sample.label)
    if isinstance(dataset, NightCity):  # documented: its files hold stray ids, which are ignored
        assert (open_set(root).label(0) == dataset.classes.ignore_index).all()
    else:
        assert "40" in error_of(lambda: open_set(root).label(0), sample.label)


def test_images_with_alpha_or_16_bit(tree):
    root, open_set = tree
    dataset = open_set(root)
    expected = dataset.image(0)
    first, second = (dataset.samples[i].image for i in range(2))
    if first.suffix != ".png":  # BDD100K's are JPEG, which has neither
        first, second = (path.rename(path.with_suffix(".png")) for path in (first, second))
    save_again(first, lambda picture: picture.convert("RGBA"))
    Image.fromarray(np.zeros(scenes.SIZE, np.uint16)).save(second)
    assert np.array_equal(open_set(root).image(0), expected)
    assert "8 bit" in error_of(lambda: open_set(root).image(1), second)


def test_a_photo_that_is_to_be_turned(tree):
    """JPEG files that tell how they are to be turned; some data sets are of PNG files alone."""
    root, open_set = tree
    before = open_set(root)
    image = before.samples[0].image
    jpeg = image.with_suffix(".jpg")
    with Image.open(image) as picture:
        picture = picture.convert("RGB")
    image.unlink()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(jpeg, exif=exif, quality=100, subsampling=0)
    upright = np.array(picture.rotate(180)).astype(int)
    try:
        after = open_set(root)
    except UserError as error:
        assert image.stem in str(error)
        return
    keys = [sample.key for sample in after.samples]
    if before.samples[0].key not in keys:  # a data set of PNG files alone: its label is left over
        assert before.samples[0].label in after.strays
        return
    index = keys.index(before.samples[0].key)
    assert np.abs(after.image(index).astype(int) - upright).mean() < 2
    exif[0x0112] = 6  # a quarter turn
    picture.save(jpeg, exif=exif)
    error_of(lambda: open_set(root).label(index), after.samples[index].label)
