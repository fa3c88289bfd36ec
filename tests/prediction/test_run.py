"""scripts/predict.py: images, folders, data sets and videos in; labels, overlays, videos and submissions out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from test_video import frame
from test_video import write as write_video
from torch.nn import functional as F
from tqdm import tqdm
from trees import write_acdc, write_darkzurich

from icda import inference
from icda.cli import run
from icda.data.classes import CITYSCAPES
from icda.data.stream import normalize
from icda.errors import UserError
from icda.models import build_model
from icda.prediction import run as prediction_run
from icda.prediction.inputs import InputSize, Pictures
from icda.prediction.run import PredictConfig, predict, predict_pictures
from icda.prediction.submission import BENCHMARKS
from icda.predictor import Predictor
from icda.training import checkpoint
from icda.training.checkpoint import load_trained
from icda.viz import confidence_map

ROOT = Path(__file__).parents[2]
SIZE = (64, 128)
SMALL_BENCHMARKS = {
    "DarkZurich": replace(BENCHMARKS["DarkZurich"], groups={"GOPR0364": 2, "GP010364": 1}, size=SIZE),
    "ACDC": replace(BENCHMARKS["ACDC"], groups={"fog": 1, "night": 2, "rain": 1, "snow": 1}, size=SIZE),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data with spaces")
    write_darkzurich(root / "DarkZurich")
    write_acdc(root / "ACDC")
    return root


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory, data):
    """A checkpoint with random weights whose training saw images of 32 x 64."""
    part = {"_target_": "icda.data.DarkZurich", "root": "${data_dir}/DarkZurich", "references": False}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = compose("train", ["model.head.channels=8"]).model
    torch.manual_seed(0)
    options = OmegaConf.to_container(model.head)
    student, teacher = (
        build_model("mit_b0", len(CITYSCAPES), head_options=options, with_dar=False) for _ in range(2)
    )
    dataset = {"name": "darkzurich", "prepare": None, "source": None, "target": None}
    dataset |= {split: {**part, "split": split, "size": [32, 64]} for split in ("val", "test")}
    classes = {name: getattr(CITYSCAPES, name) for name in ("name", "names", "ignore_index", "things")}
    path = tmp_path_factory.mktemp("run") / "best.pt"
    content = {
        "config": {"data_dir": str(data), "dataset": dataset, "model": OmegaConf.to_container(model)},
        "classes": {**classes, "palette": [list(color) for color in CITYSCAPES.palette]},
        "step": 7,
        "student": student.state_dict(),
        "teacher": teacher.state_dict(),
    }
    checkpoint.save(path, {**dict.fromkeys(checkpoint.CONTENT), **content})
    return path


@pytest.fixture
def here(monkeypatch, tmp_path, ckpt, capsys):
    """Runs the script's work in this process: exit status, standard error, the run's folder."""

    def run_here(*arguments: str, benchmarks=BENCHMARKS) -> tuple[int, str, Path]:
        folder = tmp_path / "run"
        common = [f"ckpt={ckpt}", f"hydra.run.dir='{folder}'", "device=cpu", "workers=0", "progress=false"]
        monkeypatch.setattr(sys, "argv", ["predict.py", *common, *arguments])
        status = run("predict", lambda cfg, where: predict(cfg, where, benchmarks), CONF)
        return status, capsys.readouterr().err, folder

    return run_here


def picture(seed: int, size: tuple[int, int] = (48, 80)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 10, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)


def save(path: Path, seed: int = 0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path, **options)
    return path


def expected_labels(ckpt: Path, image: np.ndarray, size: tuple[int, int], teacher: bool = False) -> np.ndarray:
    """Labels by PyTorch's own resizing, softmax and argmax of all classes at once."""
    model = load_trained(ckpt, teacher=teacher).model
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    with torch.no_grad():
        logits = model(normalize(resized, model.mean.numpy(), model.std.numpy())[None])
    logits = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
    return logits.argmax(1)[0].numpy()


def read(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def test_a_folder(here, tmp_path, ckpt):
    save(tmp_path / "in" / "a b.png")
    save(tmp_path / "in" / "sub" / "ü.JPG", 1)
    status, err, folder = here(f"input='{tmp_path / 'in'}'")
    assert status == 0, err
    assert files(folder / "labels") == ["a b.png", "sub/ü.png"]
    assert files(folder / "overlays") == ["a b.jpg", "sub/ü.jpg"]
    assert not (folder / "colors").exists() and not (folder / "confidence").exists()
    labels = read(folder / "labels" / "a b.png")
    np.testing.assert_array_equal(labels, expected_labels(ckpt, picture(0), InputSize(area=2048).of((48, 80))))
    names = json.loads((folder / "classes.json").read_text())
    assert names["classes"][10]["name"] == "sky"
    summary = json.loads((folder / "predict.json").read_text())
    assert summary["images"] == 2 and summary["skipped"] == [] and summary["step"] == 7
    assert "2 images in" in (folder / "predict.log").read_text()


def test_one_image_with_everything(here, tmp_path, ckpt):
    path = save(tmp_path / "a.png")
    status, err, folder = here(
        f"input={path}", "colors=true", "confidence=true", "opacity=0", "size=original", "teacher=true"
    )
    assert status == 0, err
    labels = read(folder / "labels" / "a.png")
    np.testing.assert_array_equal(labels, expected_labels(ckpt, picture(0), (48, 80), teacher=True))
    assert (labels != expected_labels(ckpt, picture(0), (48, 80))).any()
    np.testing.assert_array_equal(read(folder / "colors" / "a.png"), CITYSCAPES.colorize(labels))
    _, confidence = Predictor(load_trained(ckpt, teacher=True), "original").predict_with_confidence(picture(0))
    np.testing.assert_allclose(read(folder / "confidence" / "a.png") / 65535, confidence, atol=1e-5)
    assert np.abs(read(folder / "overlays" / "a.jpg").astype(int) - picture(0)).mean() < 3


def test_windows_mirror_and_precision_reach_the_network(here, tmp_path, ckpt):
    path = save(tmp_path / "a.png")
    status, err, folder = here(
        f"input={path}", "size=original", "window=[32,48]", "stride=[16,32]", "flip=true", "precision=bf16"
    )
    assert status == 0, err
    predictor = Predictor(
        load_trained(ckpt), "original", precision="bf16", window=(32, 48), stride=(16, 32), flip=True
    )
    np.testing.assert_array_equal(read(folder / "labels" / "a.png"), predictor.predict(picture(0)))


def test_a_turned_photograph_is_segmented_as_displayed(here, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", exif=exif)
    status, err, folder = here(f"input={path}", "size=[32,32]")
    assert status == 0, err
    assert read(folder / "labels" / "a.png").shape == (80, 48)
    assert read(folder / "overlays" / "a.jpg").shape == (80, 48, 3)


def test_equal_names_with_other_endings_do_not_overwrite_each_other(here, tmp_path):
    save(tmp_path / "in" / "a.png", 0)
    save(tmp_path / "in" / "a.jpg", 1)
    _, _, folder = here(f"input={tmp_path / 'in'}")
    assert files(folder / "labels") == ["a.jpg.png", "a.png.png"]
    assert (read(folder / "labels" / "a.jpg.png") != read(folder / "labels" / "a.png.png")).any()


def test_a_part_of_the_data_set(here, ckpt, data):
    status, err, folder = here("input=val", "overlays=false")
    assert status == 0, err
    assert "Dark Zurich val: 3 images, entering at 32 x 64" in (folder / "predict.log").read_text()
    name = "night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png"
    assert name in files(folder / "labels") and len(files(folder / "labels")) == 3
    image = read(data / "DarkZurich" / "rgb_anon" / "val" / name)
    np.testing.assert_array_equal(read(folder / "labels" / name), expected_labels(ckpt, image, (32, 64)))


def test_a_folder_named_like_a_part(here, tmp_path, monkeypatch):
    save(tmp_path / "test" / "mine.png")
    monkeypatch.chdir(tmp_path)
    _, _, folder = here("input=./test")
    assert files(folder / "labels") == ["mine.png"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_broken_image_in_the_middle(here, tmp_path, workers):
    for i, name in enumerate("abc"):
        save(tmp_path / "in" / f"{name}.png", i)
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "b.png").read_bytes()[:300])
    arguments = f"input={tmp_path / 'in'}", f"workers={workers}"
    status, err, folder = here(*arguments)
    assert status == 1 and re.search(r"in/b\.png cannot be read", one_line(err))
    assert files(folder / "labels") == ["a.png"] and not (folder / "predict.json").exists()
    status, err, folder = here(*arguments, "on_error=skip")
    assert status == 1
    assert re.search(
        r"1 of 3 images could not be used; see .*predict\.json, the first: .*in/b\.png cannot be read", one_line(err)
    )
    assert files(folder / "labels") == ["a.png", "c.png"]
    summary = json.loads((folder / "predict.json").read_text())
    assert summary["images"] == 2 and summary["skipped"][0]["file"].endswith("b.png")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "input is missing; give it as input="),
        (["input=nowhere.png"], "there is no file or folder nowhere.png"),
        (["input=target"], "has no part target; it has test, val"),
        (["input=test", "dataset=demo", "data_dir=/nowhere", "dataset.prepare=null"], "no folder /nowhere/demo"),
        (["input=.", "dataset=demo"], "input=. is a path; leave out dataset"),
        (["input=.", "size=big"], "size=big is out of range; expected auto, original, or [height,width]"),
        (["input=.", "size=[0,5]"], "size=[0, 5] is out of range"),
        (["input=.", "opacity=2"], "opacity=2.0 is out of range; expected from 0 to 1"),
        (["input=.", "labels=some"], "labels=some is out of range; expected auto, true or false"),
        (["input=.", "on_error=ignore"], "on_error=ignore is out of range; expected stop or skip"),
        (["input=.", "labels=false", "overlays=false"], "nothing is to be written"),
        (["input=val", "submission=true"], "a server scores a test split: give input=test"),
        (["input=.", "data_dir=/nowhere"], "data_dir is given, but input=. is a path; leave out data_dir"),
        (["input=test", "submission_layout=folder"], "submission_layout is given, but no submission is made"),
        (["input=.", "invalid_threshold=0.1"], "invalid_threshold is given, but no submission is made"),
        (["input=.", "overlay=true"], "overlay is not a setting"),
        (["input=.", "precision=half"], "precision=half is out of range; expected one of fp32, bf16, fp16"),
        (["input=.", "precision=fp16"], "precision=fp16 needs a GPU"),
        (["input=.", "window=8"], "window=8 has the wrong type; expected a list"),
        (["input=.", "window=[8,8]", "stride=[9,9]"], "stride=[9, 9] is larger than window=[8, 8]"),
        (["input=.", "stride=[9,9]"], "stride=[9, 9] is given, but no window"),
    ],
)
def test_mistakes(here, arguments, expected):
    status, err, _ = here(*arguments)
    assert status == 1 and expected in one_line(err)


def test_a_folder_without_images(here, tmp_path):
    (tmp_path / "in").mkdir()
    status, err, _ = here(f"input={tmp_path / 'in'}")
    assert status == 1 and "holds no PNG or JPEG file" in one_line(err)


def test_too_little_memory_is_told_in_one_line(here, tmp_path, monkeypatch):
    def full(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(inference, "_segmented", full)
    status, err, _ = here(f"input={save(tmp_path / 'a.png')}", "size=[64,96]")
    assert status == 1 and "at 64 x 96 (height x width); give a smaller one as size=" in one_line(err)


def test_writing_is_bounded_and_in_the_background(ckpt, tmp_path):
    model = load_trained(ckpt).model
    paths = tuple(save(tmp_path / f"{i}.png", i) for i in range(6))
    taken = {}
    skipped = predict_pictures(
        model,
        Pictures(paths, tuple(map(str, range(6)))),
        InputSize(fixed=(32, 64)),
        lambda index, image, labels, confidence: taken.update({index: (image, labels, confidence)}),
        confidence=True,
    )
    assert skipped == [] and sorted(taken) == list(range(6))
    for i, (image, labels, confidence) in taken.items():
        np.testing.assert_array_equal(image, picture(i))
        np.testing.assert_array_equal(labels, expected_labels(ckpt, picture(i), (32, 64)))
        assert confidence.shape == (48, 80)


def test_a_video(here, tmp_path, ckpt):
    path = write_video(tmp_path / "a b ü.avi", codec="MJPG", fps=12.5)
    status, err, folder = here(f"input='{path}'", "labels=true", "opacity=0.25", "video=overlay")
    assert status == 0, err
    assert files(folder / "labels") == [f"{i:06d}.png" for i in range(12)]
    assert not (folder / "overlays").exists()
    capture = cv2.VideoCapture(str(folder / "overlay.mp4"))
    assert [capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)] == [12.5, 12]
    assert capture.set(cv2.CAP_PROP_POS_FRAMES, 7)
    shown = capture.read()[1][:, :, ::-1]
    capture.release()
    labels = read(folder / "labels" / "000007.png")
    expected = 0.25 * CITYSCAPES.colorize(labels) + 0.75 * frame(7, (64, 96))
    assert np.abs(shown - expected).mean() < 8
    summary = json.loads((folder / "predict.json").read_text())
    assert summary["frames"] == summary["frames_declared"] == 12 and summary["fps"] == 12.5
    assert "12 frames in" in (folder / "predict.log").read_text()


def test_a_video_shows_frame_prediction_and_confidence_side_by_side(here, tmp_path, ckpt):
    path = write_video(tmp_path / "a.avi", codec="MJPG", count=3, size=(64, 192))
    status, err, folder = here(f"input={path}", "labels=true", "confidence=true")
    assert status == 0, err
    capture = cv2.VideoCapture(str(folder / "side_by_side.mp4"))
    shown = capture.read()[1][:, :, ::-1].astype(int)
    capture.release()
    assert shown.shape == (64 + 22, 3 * 192 + 2 * 3, 3)
    labels, confidence = read(folder / "labels" / "000000.png"), read(folder / "confidence" / "000000.png") / 65535
    blended = CITYSCAPES.colorize(labels) / 2 + frame(0, (64, 192)) / 2
    for i, expected in enumerate((frame(0, (64, 192)), blended, confidence_map(confidence))):
        assert np.abs(shown[22:, 195 * i : 195 * i + 192] - expected).mean() < 10, i
    assert shown[:22, :100].min() < 100  # the names


def test_the_rate_of_a_video_is_told_in_frames_a_second(here, tmp_path):
    status, _, folder = here(f"input={write_video(tmp_path / 'a.mp4', count=3)}")
    summary = json.loads((folder / "predict.json").read_text())
    assert status == 0 and summary["per_second"] == pytest.approx(3 / summary["seconds"])
    assert f"{summary['per_second']:.2f} frames/s" in (folder / "predict.log").read_text()


@pytest.mark.parametrize("total", [4, None])
def test_a_slow_rate_is_not_turned_around(total):
    text = tqdm.format_meter(3, total, 6.0, unit="frame", bar_format=prediction_run.bar_format(total, "frame"))
    assert "0.50frame/s" in text and "s/frame" not in text


def test_scales_and_temperature_reach_the_network(here, tmp_path, ckpt):
    path = save(tmp_path / "a.png")
    status, err, folder = here(
        f"input={path}", "size=original", "scales=[0.5,1,1.5]", "temperature=2", "flip=true", "confidence=true"
    )
    assert status == 0, err
    predictor = Predictor(load_trained(ckpt), "original", scales=(0.5, 1, 1.5), temperature=2, flip=True)
    labels, confidence = predictor.predict_with_confidence(picture(0))
    np.testing.assert_array_equal(read(folder / "labels" / "a.png"), labels)
    np.testing.assert_allclose(read(folder / "confidence" / "a.png") / 65535, confidence, atol=1e-5)


def test_of_a_video_labels_are_written_only_if_asked(here, tmp_path):
    path = write_video(tmp_path / "a.mp4", count=2)
    assert files(here(f"input={path}")[2])[0] == "classes.json"
    folder = here(f"input={path}")[2]
    assert (folder / "side_by_side.mp4").is_file() and not (folder / "labels").exists()
    folder = here(f"input={path}", "overlays=false", "labels=true", f"hydra.run.dir={tmp_path}/other")[2]
    assert files(tmp_path / "other" / "labels") == ["000000.png", "000001.png"]
    assert not list((tmp_path / "other").glob("*.mp4"))


def test_a_video_that_ends_early(here, tmp_path):
    path = write_video(tmp_path / "a.avi", count=28, codec="MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    status, _, folder = here(f"input={path}")
    found = json.loads((folder / "predict.json").read_text())["frames"]
    assert status == 0 and 0 < found < 28
    assert (
        f"names 28 frames, of which {found} could be read; it may be damaged" in (folder / "predict.log").read_text()
    )
    capture = cv2.VideoCapture(str(folder / "side_by_side.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == found
    capture.release()


def test_ctrl_c_leaves_a_video_that_plays(here, tmp_path, monkeypatch):
    count, segment = 0, prediction_run.segment

    def stop_at_the_sixth(*arguments):
        nonlocal count
        count += 1
        if count == 6:
            raise KeyboardInterrupt
        return segment(*arguments)

    monkeypatch.setattr(prediction_run, "segment", stop_at_the_sixth)
    status, err, folder = here(f"input={write_video(tmp_path / 'a.mp4')}")
    assert status == 130 and one_line(err) == "error: stopped by Ctrl-C"
    assert "side_by_side.mp4 holds the first 5 frames" in (folder / "predict.log").read_text()
    capture = cv2.VideoCapture(str(folder / "side_by_side.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert sum(1 for _ in iter(lambda: capture.read()[0], False)) == 5
    capture.release()


def test_ctrl_c_before_the_first_frame_names_no_film(here, tmp_path, monkeypatch):
    def stop(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction_run, "segment", stop)
    status, _, folder = here(f"input={write_video(tmp_path / 'a.mp4')}")
    text = (folder / "predict.log").read_text()
    assert status == 130 and "stopped; no frame was segmented, there is no side_by_side.mp4" in text
    assert "holds" not in text and not (folder / "side_by_side.mp4").exists()


def test_one_frame(here, tmp_path):
    status, err, folder = here(f"input={write_video(tmp_path / 'a.mp4', count=1)}")
    assert status == 0, err
    assert not re.search(r"\b(?<![\d.])1 frames\b", (folder / "predict.log").read_text())


def test_nothing_stale_is_left_in_a_folder_that_is_used_again(here, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    stale = ("submission.zip", "overlay.mp4", "side_by_side.mp4")
    for name in stale:
        (folder / name).write_bytes(b"of an earlier run")
    status, err, _ = here(f"input={save(tmp_path / 'a.png')}")
    assert status == 0, err
    assert not any((folder / name).exists() for name in stale)


def test_results_do_not_go_where_the_input_is(here, tmp_path):
    original = save(tmp_path / "run" / "a.png").read_bytes()
    status, err, folder = here(f"input={tmp_path / 'run'}")
    assert status == 1 and "is where results would be written" in one_line(err)
    assert (folder / "a.png").read_bytes() == original and not (folder / "classes.json").exists()
    film = write_video(folder / "overlay.mp4")
    status, err, _ = here(f"input={film}")
    assert status == 1 and "is where results would be written" in one_line(err) and film.is_file()


def test_earlier_results_and_other_formats_are_left_out(here, tmp_path):
    save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.webp")
    assert here(f"input={tmp_path}", f"hydra.run.dir={tmp_path}/first")[0] == 0
    status, err, folder = here(f"input={tmp_path}")
    assert status == 0, err
    assert files(folder / "labels") == ["a.png"]
    text = (folder / "predict.log").read_text()
    assert "1 folder of earlier results left out" in text and "left aside: 1 picture of other formats" in text


def test_of_an_animated_picture_the_first_is_taken(here, tmp_path):
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    status, err, folder = here(f"input={tmp_path / 'a.gif'}")
    assert status == 0, err
    assert files(folder / "labels") == ["a.png"]
    assert "a.gif holds 3 pictures; only the first is taken" in (folder / "predict.log").read_text()


def test_a_picture_too_wide_for_an_overlay(here, tmp_path):
    save(tmp_path / "in" / "a.png")
    Image.new("RGB", (65_501, 2)).save(tmp_path / "in" / "b.png")
    status, err, _ = here(f"input={tmp_path / 'in'}")
    assert status == 1 and "give overlays=false" in one_line(err)
    status, err, folder = here(f"input={tmp_path / 'in'}", "on_error=skip")
    assert status == 1 and "1 of 2 images could not be used" in one_line(err)
    assert files(folder / "overlays") == ["a.jpg"]
    assert here(f"input={tmp_path / 'in'}", "overlays=false")[0] == 0


def test_a_submission_for_dark_zurich(here):
    import zipfile

    status, err, folder = here("input=test", "submission=true", "overlays=false", benchmarks=SMALL_BENCHMARKS)
    assert status == 0, err
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        assert len(archive.namelist()) == 9
        for name in files(folder / "labels"):
            short = f"labelTrainIds/{Path(name).name}"
            assert archive.read(short) == (folder / "labels" / name).read_bytes()
    assert "submission for Dark Zurich: " in (folder / "predict.log").read_text()


def test_a_reduced_test_split_is_refused(here):
    status, err, folder = here("input=test", "submission=true")
    assert status == 1 and "takes the predictions for 151 images, Dark Zurich test has 3" in one_line(err)
    assert not (folder / "submission.zip").exists() and not (folder / "labels").exists()


def test_a_submission_for_another_data_set_than_the_trainings(here):
    import zipfile

    status, err, folder = here(
        "input=test", "dataset=acdc", "submission=true", "labels=false", "overlays=false",
        "submission_layout=folder", benchmarks=SMALL_BENCHMARKS,
    )  # fmt: skip
    assert status == 0, err
    with zipfile.ZipFile(folder / "submission.zip") as archive:
        assert len(archive.namelist()) == 5 and all(n.startswith("labelTrainIds/") for n in archive.namelist())


def test_a_broken_image_leaves_no_submission(here, tmp_path):
    root = write_darkzurich(tmp_path / "DarkZurich")
    path = next((root / "rgb_anon" / "test" / "night").rglob("*.png"))
    path.write_bytes(path.read_bytes()[:-40])
    arguments = "input=test", "submission=true", f"data_dir={tmp_path}"
    for on_error in ("stop", "skip"):
        status, err, folder = here(*arguments, f"on_error={on_error}", benchmarks=SMALL_BENCHMARKS)
        assert status == 1 and path.name in one_line(err)
        assert [name for name in files(folder) if "submission" in name] == []


def test_settings_are_documented_typed_and_read():
    text = (CONF / "predict.yaml").read_text().split("hydra:")[0]
    keys = dict(re.findall(r"^([a-z_]+):(.*)$", text, re.M))
    del keys["defaults"]
    assert set(keys) == {field.name for field in fields(PredictConfig)}
    assert [key for key, rest in keys.items() if "#" not in rest] == []
    source = (ROOT / "icda" / "prediction" / "run.py").read_text()
    assert [key for key in keys if f"config.{key}" not in source] == []


@pytest.mark.slow
def test_as_a_person_types_it(tmp_path, ckpt):
    def call(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "scripts" / "predict.py"), f"ckpt={ckpt}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)

    save(tmp_path / "in" / "a.png")
    done = call("input=in", "device=cpu")
    assert done.returncode == 0 and "1 image in" in done.stdout, done.stderr
    assert len(list((tmp_path / "runs" / "predict").glob("*/labels/a.png"))) == 1
    whole = write_video(tmp_path / "whole.mp4")
    (tmp_path / "torn.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    done = call("input=torn.mp4", "device=cpu")
    assert done.returncode == 1
    assert "torn.mp4 can be opened neither as an image nor as a video" in one_line(done.stderr)


def test_two_settings_that_do_not_go_together(ckpt, tmp_path):
    cfg = OmegaConf.load(CONF / "predict.yaml")
    cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key not in ("defaults", "hydra")])
    cfg.update({"ckpt": str(ckpt), "input": "source", "submission": True, "dataset": None})
    with pytest.raises(UserError, match="submission=true, but input=source"):
        predict(cfg, tmp_path)
