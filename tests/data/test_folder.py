"""One's own folders: what belongs together by names, lists and positions, and what is wrong in them in one line."""

from __future__ import annotations

import pickle
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import ExifTags, Image

from icda.data.camvid import VOID_ID
from icda.data.classes import CAMVID, CITYSCAPES
from icda.data.folder import Folder, exif_positions
from icda.errors import UserError

CLASSES = "name: yard\nclasses: [{name: road, ids: [7]}, {name: car, ids: [20, 21]}]\nignore_ids: [0]\n"


def image(path: Path, size: tuple[int, int] = (6, 8), exif: Image.Exif | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.full((*size, 3), 90, np.uint8))
    picture.save(path, **({} if exif is None else {"exif": exif}))
    return path


def label(path: Path, values=1, size: tuple[int, int] = (6, 8), dtype=np.uint8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, values, dtype)).save(path)
    return path


def gps(latitude: float, longitude: float) -> Image.Exif:
    """EXIF data as a camera writes it: whole degrees, minutes, seconds, and the side as a letter."""

    def parts(value: float) -> tuple[float, float, float]:
        minutes = abs(value) % 1 * 60
        return float(int(abs(value))), float(int(minutes)), round(minutes % 1 * 60, 4)

    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "S" if latitude < 0 else "N",
        ExifTags.GPS.GPSLatitude: parts(latitude),
        ExifTags.GPS.GPSLongitudeRef: "W" if longitude < 0 else "E",
        ExifTags.GPS.GPSLongitude: parts(longitude),
    }
    return exif


def keys(dataset: Folder) -> list[str]:
    return [sample.key for sample in dataset.samples]


# --- ways to name files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["day/", "day\\*", "./day//*", "day/*.*", "~/day/*", "{root}/day/*", "day/../day/*.jpg"]
)
def test_ways_to_write_a_pattern(tmp_path, monkeypatch, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    image(tmp_path / "day/x.JPG")
    image(tmp_path / "day/deeper/x.jpg")
    dataset = Folder(str(tmp_path), text.format(root=tmp_path))
    assert keys(dataset) == ["day/x"] and dataset.image(0).shape == (6, 8, 3)


def test_patterns_that_match_nothing(tmp_path):
    for name in "abcdefg":
        image(tmp_path / f"day/{name}.png")
    (tmp_path / "empty").mkdir()
    for text, message in {
        "day/*.jpg": r"no file matches images=day/\*\.jpg; .*/day holds a\.png, b\.png, .* e\.png and 2 more",
        "Day/*/*": r"images=Day/\*/\*; there is no folder .*/Day, .* holds day/, empty/$",
        "empty/*": "empty holds nothing",
        "day": r"images=day is a folder; give day/\* for the files in it, or day/\*\*/\*",
        "": "images is '', expected a pattern",
        ".": r"images=\. is a folder; give \./\*",
    }.items():
        with pytest.raises(UserError, match=message):
            Folder(str(tmp_path), text)
    for images in ([], None, [3]):
        with pytest.raises(UserError, match="expected a pattern of file names"):
            Folder(str(tmp_path), images)
    with pytest.raises(UserError, match=r"no folder .*/nowhere; check data_dir"):
        Folder(str(tmp_path / "nowhere"), "*")


def test_links(tmp_path):
    image(tmp_path / "elsewhere/x.png")
    (tmp_path / "yard/day").mkdir(parents=True)
    (tmp_path / "yard/day/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "yard")  # a circle
    image(tmp_path / "one.png")
    (tmp_path / "yard/day/one.png").symlink_to(tmp_path / "one.png")
    assert keys(Folder(str(tmp_path / "yard"), "day/**/*")) == ["day/link/x", "day/one"]
    (tmp_path / "yard/day/gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match=r"gone\.png does not exist.*broken link"):
        Folder(str(tmp_path / "yard"), "day/**/*").image(0)


# --- labels -----------------------------------------------------------------------------------------------------


def yard(root: Path) -> Path:
    """A tree with awkward names."""
    for name in ("a b/x [1]", "a b/größe_2", "c/x.y"):
        image(root / f"day/{name}.JPG")
        label(root / f"gt/{name}_label.PNG", 7)
    (root / "yard.yaml").write_text(CLASSES)
    return root


def test_images_and_labels(tmp_path):
    root = str(yard(tmp_path / "my yard"))
    dataset = Folder(root, "day/*/*.jpg", "gt/*/*_label.png", classes="yard.yaml", size=[3, 4])
    assert keys(dataset) == ["day/a b/größe_2", "day/a b/x [1]", "day/c/x.y"]
    assert dataset.samples[1].label == Path(root, "gt/a b/x [1]_label.PNG")
    assert dataset.label(0).shape == (3, 4) and set(dataset.label(0, resized=False).ravel()) == {0}
    assert dataset.classes.names == ("road", "car") and dataset.name == "Folder my yard day"
    assert dataset.strays == () and dataset.missing == {} and dataset.counts()[0].found == 3
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.label(2), dataset.label(2))


def test_stray_labels_and_images_without(tmp_path):
    root = str(yard(tmp_path))
    stray = label(tmp_path / "gt/a b/other_label.png")
    arguments = {"root": root, "images": "day/**/*", "labels": "gt/**/*_label.png", "classes": "yard.yaml"}
    assert Folder(**arguments).strays == (stray,)
    lone = image(tmp_path / "day/new/x_3.png")
    with pytest.raises(
        UserError,
        match=r"1 of 4 images have no label, the first is .*day/new/x_3\.png; expected .*gt/new/x_3_label\.png, or",
    ):
        Folder(**arguments)
    unchecked = Folder(**arguments, check=False)
    assert [s.image for s in unchecked.missing["label"]] == [lone] and len(unchecked) == 4
    dropped = Folder(**arguments, unlabelled="drop")
    assert len(dropped) == 3 and dropped.unlabelled == 1 and dropped.missing == {}
    assert len(dropped.remarks) == 1 and dropped.remarks[0].startswith("1 of 4 images have no label and are left out")
    with pytest.raises(UserError, match="unlabelled is 'keep'; choose one of error, drop"):
        Folder(**arguments, unlabelled="keep")


def test_names_that_do_not_fit(tmp_path):
    root = str(yard(tmp_path))
    with pytest.raises(
        UserError, match=r"images=day/\*\*/\* has 2 wildcards .*, labels=gt/c/\* has 1; .* equally many"
    ):
        Folder(root, "day/**/*", "gt/c/*", classes="yard.yaml")
    with pytest.raises(
        UserError, match=r'no label fits .*\("a b", "größe_2"\) in the image .*\("a b", "größe_2_label"\)'
    ):
        Folder(root, "day/*/*", "gt/*/*", classes="yard.yaml")
    label(tmp_path / "gt/c/x.y_label.png")
    with pytest.raises(
        UserError, match=r'labels: the wildcards stand for the same \("c", "x\.y"\) in .* and .*; remove'
    ):
        Folder(root, "day/*/*", "gt/*/*_label.png", classes="yard.yaml")
    image(tmp_path / "day/c/x.y.png")
    with pytest.raises(
        UserError, match=r"two files for one sample: .*x\.y\.JPG and .*x\.y\.png; remove one, or name the"
    ):
        Folder(root, "day/*/*")
    assert len(Folder(root, "day/*/*.png")) == 1
    with pytest.raises(UserError, match="matches nothing but labels or references"):
        Folder(root, "day/*/*.png", "day/*/*.png")
    Image.new("L", (8, 6)).save(tmp_path / "gt/c/x.y_label.jpg")
    with pytest.raises(UserError, match=r"label .*x\.y_label\.jpg is a JPEG file, which does not keep ids"):
        Folder(root, "day/*/*.jpg", "gt/*/*_label.jpg")


def test_images_and_labels_in_one_folder(tmp_path):
    image(tmp_path / "x.png")
    label(tmp_path / "x_label.png")
    assert keys(Folder(str(tmp_path), "*.png", "*_label.png")) == ["x"]


def test_several_patterns_and_places_outside_the_root(tmp_path):
    for place in ("root/day", "away/north/day", "away/south/day"):
        image(tmp_path / place / "x.png")
    (tmp_path / "root/gt").mkdir()
    away = [f"{tmp_path}/away/north/day/*", "../away/south/*/*"]
    dataset = Folder(str(tmp_path / "root"), away)
    assert keys(dataset) == ["north/day/x", "south/day/x"]
    assert not Path(dataset.samples[1].key).is_absolute() and ".." not in dataset.samples[1].key
    assert keys(Folder(str(tmp_path / "root"), ["day/*.png", "day/*"])) == ["day/x"]  # matched twice, there once
    label(tmp_path / "gt/x.png")
    with pytest.raises(UserError, match=r'images: the wildcards stand for the same \("x"\) in .*north.* and .*south'):
        Folder(str(tmp_path), ["away/north/day/*", "away/south/day/*"], "gt/*")


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint8, "P"), (np.uint16, "I;16"), (np.uint8, "L")])
def test_kinds_of_label_files(tmp_path, dtype, mode):
    image(tmp_path / "day/x.png")
    path = label(tmp_path / "gt/x.png", 18, dtype=dtype)
    if mode == "P":
        picture = Image.open(path)
        picture.putpalette(list(range(256)) * 3)
        picture.save(path)
    with Image.open(path) as picture:
        assert picture.mode == mode
    assert set(Folder(str(tmp_path), "day/*", "gt/*").label(0).ravel()) == {18}


def test_label_files_that_cannot_be_used(tmp_path):
    image(tmp_path / "day/x.png")
    arguments = (str(tmp_path), "day/*", "gt/*")
    image(tmp_path / "gt/x.png")
    with pytest.raises(UserError, match=r"gt/x\.png is no label map: mode RGB, expected one channel"):
        Folder(*arguments).label(0)
    label(tmp_path / "gt/x.png", 300, dtype=np.uint16)
    with pytest.raises(UserError, match=r"gt/x\.png holds ids .*: 300 "):
        Folder(*arguments).label(0)
    label(tmp_path / "gt/x.png", 1, size=(5, 8))
    with pytest.raises(UserError, match=r"sizes differ \(height x width\): label .*gt/x\.png is 5 x 8, .*is 6 x 8"):
        Folder(*arguments).label(0)


def test_turned_photographs(tmp_path):
    """A camera held upright stores the picture lying down and writes into EXIF that it is to be turned."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image(tmp_path / "day/x.jpg", (6, 8), exif)
    label(tmp_path / "gt/x.png", 1, (8, 6))
    dataset = Folder(str(tmp_path), "day/*", "gt/*")
    assert dataset.image(0).shape == (8, 6, 3) and dataset.label(0).shape == (8, 6)
    label(tmp_path / "gt/x.png", 1, (6, 8))
    with pytest.raises(UserError, match=r"gt/x\.png does not have the quarter turn that the EXIF orientation"):
        dataset.label(0)


# --- classes and ids --------------------------------------------------------------------------------------------


def read(root: Path, values: list[int], name: str = "x.png", **settings) -> list[int]:
    image(root / "day" / name, (1, len(values)))
    label(root / "gt" / name, values, (1, len(values)))
    return Folder(str(root), f"day/{name}", f"gt/{name}", **settings).label(0)[0].tolist()


def test_built_in_classes(tmp_path):
    assert read(tmp_path, [0, 18, 255]) == [0, 18, 255]
    assert read(tmp_path, [0, 10, VOID_ID, 255], classes="camvid") == [0, 10, 255, 255]
    with pytest.raises(UserError, match="camvid classes: 12"):
        read(tmp_path, [12], classes="camvid")
    assert Folder(str(tmp_path), "day/*", classes="camvid").classes == CAMVID
    assert Folder(str(tmp_path), "day/*", classes=CAMVID).classes == CAMVID
    assert Folder(str(tmp_path), "day/*").classes == CITYSCAPES


def test_official_label_ids(tmp_path):
    assert read(tmp_path, [7, 33, 0], mapping="labelIds") == [0, 18, 255]
    # The name says it, as in the data sets of the field; read as train ids, 7 would be a traffic sign.
    assert read(tmp_path, [7, 33, 0], "x_gt_labelIds.png") == [0, 18, 255]
    assert read(tmp_path, [7, 0], "x_gt_labelTrainIds.png") == [7, 0]
    with pytest.raises(
        UserError, match=r"mapping is 'labelIds'; expected null, labelIds \(with classes=cityscapes\)"
    ):
        read(tmp_path, [7], mapping="labelIds", classes="camvid")


def test_a_class_list_is_found_from_here_or_from_the_root(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/yard.yaml").write_text(CLASSES)
    assert read(tmp_path / "root", [7, 21, 0, 255], classes=str(tmp_path / "here/yard.yaml")) == [0, 1, 255, 255]
    with pytest.raises(
        UserError, match=r"classes=yard\.yaml: no such file here or in .*root; expected cityscapes, camvid"
    ):
        read(tmp_path / "root", [7], classes="yard.yaml")
    monkeypatch.chdir(tmp_path / "here")
    assert read(tmp_path / "root", [20], classes="yard.yaml") == [1]
    with pytest.raises(
        UserError, match=r"holds ids that do not belong to the yard classes: 3 .*expected the ids 0, 7, 20"
    ):
        read(tmp_path / "root", [3], classes="yard.yaml")


def test_a_mapping_of_ids(tmp_path):
    (tmp_path / "yard.yaml").write_text(CLASSES)
    mapping = {100: "car", 101: 0, "102": "road", 103: None, 104: "ignore", 105: 255}
    settings = {"classes": "yard.yaml", "mapping": mapping}
    assert read(tmp_path, [100, 101, 102, 103, 104, 105, 255], **settings) == [1, 0, 0, 255, 255, 255, 255]
    with pytest.raises(UserError, match="classes: 7, 106 "):
        read(tmp_path, [7, 106], **settings)
    assert read(tmp_path, [100, 7], classes="yard.yaml", mapping={**mapping, "rest": "ignore"}) == [1, 255]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({7: "cra"}, r"mapping \{7: cra\} names no class; did you mean car\?"),
        ({7: 2}, r"mapping \{7: 2\} gives no train id; expected 0 to 1 or 255"),
        ({7: True}, "gives no train id"),
        ({7: [1]}, "gives no train id"),
        ({256: 0}, "is for no id; expected an id from 0 to 255, or rest: ignore"),
        ({"road": 0}, r"mapping \{road: 0\} is for no id"),
        ({"rest": "road"}, "is for no id"),
        ([7, 8], r"mapping is \[7, 8\]; expected null"),
        ("trainIds", "mapping is 'trainIds'; expected null"),
    ],
)
def test_mistakes_in_a_mapping(tmp_path, mapping, message):
    image(tmp_path / "x.png")
    (tmp_path / "yard.yaml").write_text(CLASSES)
    with pytest.raises(UserError, match=message):
        Folder(str(tmp_path), "*", classes="yard.yaml", mapping=mapping)


# --- references -------------------------------------------------------------------------------------------------


def night_and_day(root: Path) -> dict[str, str]:
    for name in ("n1.jpg", "n2.PNG", "n3.jpg"):
        image(root / "night" / name)
    for name in ("d1.jpg", "d2.png"):
        image(root / "day" / name)
    return {"root": str(root), "images": "night/*", "references": "day/*"}


def references(dataset: Folder) -> dict[str, str | None]:
    return {s.key: s.reference and s.reference.name for s in dataset.samples}


def test_references_by_names(tmp_path):
    night_and_day(tmp_path)
    arguments = {"root": str(tmp_path), "images": "night/n*", "references": "day/d*"}
    dataset = Folder(**arguments)
    assert references(dataset) == {"night/n1": "d1.jpg", "night/n2": "d2.png"} and dataset.unpaired == 1
    assert dataset.reference(0).shape == (6, 8, 3)
    kept = Folder(**arguments, unpaired="keep")
    assert references(kept) == {"night/n1": "d1.jpg", "night/n2": "d2.png", "night/n3": None}
    with pytest.raises(UserError, match=r"1 of 3 images have no day reference, the first is .*n3\.jpg"):
        Folder(**arguments, unpaired="error")
    with pytest.raises(UserError, match="none of the 3 images has a day reference"):
        Folder(**{**arguments, "images": "night/*"})
    for off in (None, False):
        assert set(references(Folder(**{**arguments, "references": off})).values()) == {None}


def test_references_from_a_list(tmp_path):
    arguments = night_and_day(tmp_path)
    (tmp_path / "pairs.csv").write_text("night,day\nnight/n1.jpg,day/d2.png\nnight\\n3,./day/d2\n")
    dataset = Folder(**arguments, pairs="pairs.csv")
    assert references(dataset) == {"night/n1": "d2.png", "night/n3": "d2.png"}
    assert (dataset.unpaired, len(Folder(**arguments, pairs="pairs.csv", unpaired="keep"))) == (1, 3)
    image(tmp_path / "day/d3.tif")
    (tmp_path / "pairs.csv").write_text("night/n1.jpg,day/d3.tif\n")
    assert references(Folder(**{**arguments, "references": "day/*.tif"}, pairs="pairs.csv")) == {"night/n1": "d3.tif"}
    (tmp_path / "pairs.csv").write_text("night/n1,day/d9\n")
    with pytest.raises(UserError, match=r"pairs\.csv, line 1 names a day image that is missing: day/d9"):
        Folder(**arguments, pairs="pairs.csv")
    with pytest.raises(UserError, match=r"pairs=other\.csv: no such file here or in .*; expected gps, or a CSV file"):
        Folder(**arguments, pairs="other.csv")
    with pytest.raises(UserError, match=r"pairs=pairs\.csv needs references"):
        Folder(**{**arguments, "references": None}, pairs="pairs.csv")
    # What training asks for where nothing reads references.
    assert len(Folder(**{**arguments, "references": False}, pairs="pairs.csv")) == 3


def test_references_by_positions_in_files(tmp_path):
    arguments = night_and_day(tmp_path)
    (tmp_path / "night.csv").write_text("file,latitude,longitude\nn1.jpg,47.0,8.0\nnight/n2.PNG,47.001,8.0\nn3,0,0\n")
    (tmp_path / "day.csv").write_text("d1.jpg,47.00001,8.0\nd2.png,47.00101,8.0\n")
    dataset = Folder(**arguments, pairs="gps", positions=["night.csv", "day.csv"])
    assert references(dataset) == {"night/n1": "d1.jpg", "night/n2": "d2.png"}
    assert dataset.pairing.startswith("nearest by position: 3 positions") and "1 beyond reach" in dataset.pairing
    far = Folder(**arguments, pairs="gps", positions=["night.csv", "day.csv"], max_distance=None)
    assert references(far)["night/n3"] == "d1.jpg"
    for positions in ("night.csv", ["night.csv"]):
        with pytest.raises(UserError, match="expected two CSV files"):
            Folder(**arguments, pairs="gps", positions=positions)
    with pytest.raises(UserError, match="positions are for pairs=gps, but pairs is None"):
        Folder(**arguments, positions=["night.csv", "day.csv"])
    with pytest.raises(UserError, match="max_distance is -1"):
        Folder(**arguments, pairs="gps", max_distance=-1)


def test_positions_in_photographs(tmp_path):
    places = {f"{i}": place for i, place in enumerate(product((47.376887, -33.918861), (8.541694, -70.6)))}
    files = {key: image(tmp_path / f"{key}.jpg", exif=gps(*place)) for key, place in places.items()}
    files["4"] = image(tmp_path / "4.png", exif=gps(1.5, 2.25))
    files["5"] = image(tmp_path / "5.jpg")
    found = exif_positions(files)
    assert found.keys == ("0", "1", "2", "3", "4") and found.skipped == 1
    np.testing.assert_allclose(
        np.stack([found.latitude, found.longitude], axis=1), [*places.values(), (1.5, 2.25)], atol=1e-6
    )


def test_references_by_positions_in_photographs(tmp_path):
    """Four places in all four quarters of the globe, and files without or with a useless position."""
    for index, (north, east) in enumerate(product((47.37, -33.9), (8.54, -70.6))):
        image(tmp_path / f"night/n{index}.jpg", exif=gps(north, east))
        image(tmp_path / f"day/d{index}.jpg", exif=gps(north + 0.0001, east))  # 11 m farther north
    image(tmp_path / "day/d8.jpg", exif=gps(0, 0))  # what some cameras write without satellites
    image(tmp_path / "night/n8.jpg", exif=gps(0, 0))
    image(tmp_path / "night/n9.png")
    (tmp_path / "night/n7.jpg").write_bytes(b"\xff\xd8 no photograph")
    arguments = {"root": str(tmp_path), "images": "night/*", "references": "day/*", "pairs": "gps"}
    dataset = Folder(**arguments)
    assert references(dataset) == {f"night/n{i}": f"d{i}.jpg" for i in range(4)} and dataset.unpaired == 3
    assert re.search(r"4 positions, nearest day image at 11\.\d to 11\.\d m", dataset.pairing)
    with pytest.raises(UserError, match="none of the 7 images has a day reference"):
        Folder(**arguments, max_distance=10)
    with pytest.raises(
        UserError, match="none of the 1 references has a position in their EXIF data; give positions="
    ):
        Folder(**{**arguments, "references": "day/d8.*"})


# --- configuration ----------------------------------------------------------------------------------------------


def test_made_by_hydra(tmp_path):
    image(tmp_path / "day/x.png")
    label(tmp_path / "gt/x.png", 7)
    node = {"_target_": "icda.data.folder.Folder", "root": str(tmp_path), "images": ["day/*"], "labels": "gt/*"}
    config = OmegaConf.create({**node, "mapping": {7: "road", "rest": "ignore"}, "size": [3, 4]})
    dataset = pickle.loads(pickle.dumps(instantiate(config, _convert_="all")))
    assert set(dataset.label(0).ravel()) == {0} and dataset.size == (3, 4)
    with pytest.raises(UserError, match="size is 3, expected height and width"):
        Folder(str(tmp_path), "day/*", size=3)


def parts(data_dir: Path, *overrides: str) -> dict[str, Folder]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["dataset=folder", f"data_dir='{data_dir}'", *overrides])
    nodes = {part: OmegaConf.to_container(config.dataset[part], resolve=True) for part in ("source", "target", "val")}
    return {part: Folder(**{k: v for k, v in node.items() if k != "_target_"}) for part, node in nodes.items()}


def test_the_configuration_opens_its_tree(tmp_path):
    root = tmp_path / "my data/folder"
    for name in ("a/1", "2"):
        image(root / f"day/{name}.jpg")
        label(root / f"day_labels/{name}.png", 1)
        image(root / f"night/{name}.jpg")
    label(root / "night_labels/a/1.png", 1)
    opened = parts(tmp_path / "my data")
    assert [len(part) for part in opened.values()] == [2, 2, 1]
    assert keys(opened["val"]) == ["night/a/1"] and opened["source"].label(0).shape == (540, 960)
    assert len({part.name for part in (opened["source"], opened["target"])}) == 2
    (root / "yard.yaml").write_text(CLASSES)
    opened = parts(
        tmp_path / "my data",
        "dataset.source.classes=yard.yaml",
        "dataset.source.mapping={1: car}",
        "dataset.source.size=[3,4]",
    )
    assert {part.classes.name for part in opened.values()} == {"yard"} and {
        part.size for part in opened.values()
    } == {(3, 4)}
    assert set(opened["val"].label(0).ravel()) == set(opened["source"].label(0).ravel()) == {1}
