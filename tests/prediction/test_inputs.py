"""What is found to segment, under which names, and at which size it enters the network."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from trees import write_acdc, write_darkzurich

from icda.data.base import Sample
from icda.data.io import read_image
from icda.data.loader import batches
from icda.errors import UserError
from icda.prediction import inputs
from icda.prediction.inputs import (
    InputSize,
    PictureReader,
    check_apart,
    existing,
    find_pictures,
    is_video,
    open_input,
    pictures_in,
    pictures_of,
    result_name,
)
from icda.prediction.outputs import RESULTS


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_a_folder_is_searched_with_its_sub_folders(tmp_path):
    touch(tmp_path, "b.JPG", "a.png", "sub dir/ü 1.jpeg", "sub dir/x.y.PNG", "notes.txt", ".hidden.png", "film.MP4")
    found = find_pictures(tmp_path)
    assert found.names == ("a", "b", "sub dir/x.y", "sub dir/ü 1")
    assert [p.relative_to(tmp_path).as_posix() for p in found.paths] == [
        "a.png",
        "b.JPG",
        "sub dir/x.y.PNG",
        "sub dir/ü 1.jpeg",
    ]
    assert found.videos == (tmp_path / "film.MP4",) and found.others == ()


@pytest.mark.parametrize("names", [["a.jpg", "a.png"], ["A.jpg", "a.png"], ["a.jpg", "a.png", "a.jpg.png"]])
def test_names_do_not_collide(tmp_path, names):
    found = find_pictures(touch(tmp_path, *names, "sub/a.png"))
    assert sorted(found.names) == sorted([*names, "sub/a.png"])
    assert len({name.casefold() for name in found.names}) == len(names) + 1


def test_the_same_name_in_two_folders_is_no_collision(tmp_path):
    assert find_pictures(touch(tmp_path, "u/a.png", "v/a.jpg")).names == ("u/a", "v/a")


def test_links_are_followed_once_and_the_run_folder_is_left_out(tmp_path):
    touch(tmp_path, "in/a.png", "elsewhere/b.png", "in/runs/labels/a.png")
    (tmp_path / "in" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "elsewhere")
    assert find_pictures(tmp_path / "in", without=tmp_path / "in" / "runs").names == ("a", "other/b")


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match=r"holds no PNG or JPEG file; input= takes"):
        find_pictures(tmp_path)
    touch(tmp_path, "a.mp4", "b.mkv")
    with pytest.raises(UserError, match=r"holds 2 videos, the first is .*a\.mp4 \(give one as input=\); input="):
        find_pictures(tmp_path)
    with pytest.raises(UserError, match=r"there is no file or folder .*tset; input= takes .* one of test, val"):
        existing(str(tmp_path / "tset"))


def test_pictures_of_other_formats_are_named_and_counted(tmp_path):
    names = ("a.webp", "b.BMP", "c.tif", "d.tiff", "e.jpe", "f.gif")
    with pytest.raises(
        UserError, match=r"holds 6 pictures of other formats, the first is .*a\.webp \(convert to PNG"
    ):
        find_pictures(touch(tmp_path, *names))
    found = find_pictures(touch(tmp_path, "x.png", "y.mp4"))
    assert [path.name for path in found.others] == list(names) and found.names == ("x",)
    assert found.left_aside.startswith(f"1 video, the first is {tmp_path / 'y.mp4'} (give one as input=); 6 pictures")
    assert find_pictures(touch(tmp_path / "one", "x.png", "z.gif")).left_aside.startswith(
        "1 picture of other formats"
    )


def test_results_of_earlier_runs_are_left_out(tmp_path, caplog):
    run = "runs/predict/2026"
    touch(
        tmp_path, "a.png", *(f"{run}/{n}" for n in ("classes.json", "legend.png", "overlays/a.jpg", "labels/a.png"))
    )
    touch(tmp_path, "own/legend.png")
    with caplog.at_level("INFO"):
        assert find_pictures(tmp_path).names == ("a", "own/legend")
    assert f"1 folder of earlier results left out, the first is {tmp_path / run}" in caplog.text
    with pytest.raises(UserError, match="holds the results of an earlier prediction"):
        find_pictures(tmp_path / run)
    assert find_pictures(tmp_path / run / "overlays").names == ("a",)


@pytest.mark.parametrize("place", ["", "labels", "overlay.mp4", "labels/sub/a.png", "link"])
def test_input_and_results_are_kept_apart(tmp_path, place):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "run")
    with pytest.raises(
        UserError, match=r"is where results would be written; choose another place .*hydra\.run\.dir="
    ):
        check_apart(tmp_path / "run" / place, tmp_path / "run", (*RESULTS, "overlay.mp4"))
    for apart in ("run/a.png", "runs", ""):
        check_apart(tmp_path / apart, tmp_path / "run")


def test_animated_pictures_and_pages_are_images(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (10, 200, 90)]
    for name in ("a.gif", "a.webp", "a.tif", "no_ending"):
        path = tmp_path / name
        kind = "TIFF" if name == "no_ending" else None
        frames[0].save(path, kind, save_all=True, append_images=frames[1:])
        assert not is_video(path) and pictures_in(path) == 3
        assert read_image(path).shape == (8, 8, 3) and abs(int(read_image(path).mean()) - 10) < 5
    frames[0].save(tmp_path / "b.bmp")
    touch(tmp_path, "c.tif")
    assert pictures_in(tmp_path / "b.bmp") == pictures_in(tmp_path / "c.tif") == pictures_in(tmp_path) == 1


def test_a_bare_mpeg_stream_is_a_video(tmp_path):
    (tmp_path / "a.m2v").write_bytes(bytes.fromhex("000001b3 160120 13") + bytes(64))
    assert is_video(tmp_path / "a.m2v")


@pytest.mark.parametrize("skip", [False, True])
def test_a_picture_no_jpeg_can_hold(tmp_path, skip):
    for width in (65_500, 65_501):
        Image.new("RGB", (width, 1)).save(tmp_path / f"{width}.png")
    paths = [tmp_path / "65500.png", tmp_path / "65501.png"]
    zero, one = torch.zeros(3), torch.ones(3)
    assert "image" in PictureReader(paths, InputSize(area=64), zero, one, skip)[1]
    reader = PictureReader(paths, InputSize(area=64), zero, one, skip, as_jpeg=True)
    assert "image" in reader[0]
    message = "65501.png is 1 x 65501 (height x width), of which no overlay"
    if skip:
        assert message in reader[1]["error"] and reader[1]["error"].endswith("give overlays=false")
    else:
        with pytest.raises(UserError, match=re.escape(message)):
            reader[1]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("skip", [False, True])
def test_too_little_memory_for_resizing(tmp_path, skip, workers):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    huge = InputSize(fixed=(2**31 - 1, 2**31 - 1))
    reader = PictureReader([tmp_path / "a.png"], huge, torch.zeros(3), torch.ones(3), skip)
    with pytest.raises(UserError, match=r"the memory does not suffice .* at 2147483647 x 2147483647 .* as size="):
        list(batches(reader, 1, workers))


def test_too_little_memory_for_reading(tmp_path, monkeypatch):
    def full(path):
        raise MemoryError

    monkeypatch.setattr(inputs, "read_image", full)
    reader = PictureReader([tmp_path / "a.png"], InputSize(), torch.zeros(3), torch.ones(3), True)
    assert "the memory does not suffice to read" in reader[0]["error"]


def test_images_and_videos_are_told_apart(tmp_path):
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name in ("a.png", "b.bmp", "no_ending"):
        picture.save(tmp_path / name, format="BMP" if name == "b.bmp" else "PNG")
    touch(tmp_path, "broken.JPG", "broken.avi")
    assert not any(is_video(tmp_path / name) for name in ("a.png", "b.bmp", "no_ending", "broken.JPG"))
    assert not is_video(tmp_path)
    assert is_video(tmp_path / "broken.avi")


def test_an_area_keeps_the_shape_and_a_fixed_size_does_not():
    size = InputSize(area=540 * 960)
    assert size.of((1080, 1920)) == (540, 960)
    for shape in ((3024, 4032), (4032, 3024), (100, 1000), (540, 960), (33, 35)):
        height, width = size.of(shape)
        assert height * width == pytest.approx(540 * 960, rel=0.01)
        assert height / width == pytest.approx(shape[0] / shape[1], rel=0.01)
    assert InputSize(area=100).of((1, 4000)) == (1, 632)
    assert InputSize(fixed=(512, 512)).of((1080, 1920)) == (512, 512)
    assert InputSize().of((33, 35)) == (33, 35)


def test_pictures_are_resized_as_a_data_set_does_and_averaged_where_much_smaller():
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    expected = cv2.resize(image, (60, 40), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(InputSize(fixed=(40, 60)).resize(image), expected)
    np.testing.assert_array_equal(InputSize(area=2400).resize(image), expected)
    np.testing.assert_array_equal(InputSize().resize(image), image)
    means = image.reshape(20, 4, 30, 4, 3).mean((1, 3))
    assert np.abs(InputSize(area=600).resize(image) - means).max() <= 0.5


def test_results_are_named_as_the_images_of_a_data_set():
    sample = Sample("night/GOPR0364/GOPR0364_frame_000001", Path("x/GOPR0364_frame_000001_rgb_anon.png"))
    assert result_name(sample) == "night/GOPR0364/GOPR0364_frame_000001_rgb_anon"


def config(root: Path, **parts) -> object:
    parts = {"name": "some", "prepare": None, "source": None, "target": None, "val": None, **parts}
    return OmegaConf.create({"data_dir": str(root), "dataset": parts})


def part(name: str, split: str, **more) -> dict:
    return {"_target_": f"icda.data.{name}", "root": f"${{data_dir}}/{name}", "split": split, **more}


def test_parts_are_opened_without_what_is_not_read(tmp_path):
    root = write_darkzurich(tmp_path / "DarkZurich")
    for folder in ("gt", "corresp", "gps"):
        (root / folder).rename(tmp_path / folder)
    training = config(
        tmp_path, val=part("DarkZurich", "val", references=True), test=part("DarkZurich", "test", size=[32, 64])
    )
    before = OmegaConf.to_container(training)
    assert len(open_input("val", training)) == 3
    test = open_input("test", training)
    assert test.size == (32, 64) and not any(sample.reference for sample in test.samples)
    assert pictures_of(test).names[0] == "night/GOPR0364/GOPR0364_frame_000001_rgb_anon"
    assert OmegaConf.to_container(training) == before
    with pytest.raises(
        UserError, match=r"the data set some has no part target; it has test, val\. Or give another as"
    ):
        open_input("target", training)


def test_another_data_set_and_folder_take_the_place_of_the_trainings(tmp_path):
    write_acdc(tmp_path / "here" / "ACDC")
    training = config(tmp_path / "nowhere", test=part("DarkZurich", "test"))
    with pytest.raises(UserError, match=r"no folder .*nowhere"):
        open_input("test", training)
    chosen = config(tmp_path, test=part("ACDC", "test", conditions=["night"])).dataset
    assert len(open_input("test", training, chosen, str(tmp_path / "here"))) == 2


def test_a_configuration_from_before_there_were_test_parts(tmp_path):
    write_darkzurich(tmp_path / "DarkZurich")
    with pytest.raises(UserError, match="has no part test; it has val"):
        open_input("test", config(tmp_path, val=part("DarkZurich", "val")))
