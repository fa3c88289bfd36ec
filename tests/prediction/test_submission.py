"""Zip files for the servers: right in every file, refused otherwise, and never left behind half right."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image
from trees import write_acdc, write_bdd100k, write_darkzurich

from icda.data import ACDC, BDD100KNight, DarkZurich
from icda.data.classes import CAMVID, CITYSCAPES
from icda.errors import UserError
from icda.prediction.submission import BENCHMARKS, Submission, check_submission, find_benchmark

SIZE = (64, 128)
DARK_ZURICH = replace(BENCHMARKS["DarkZurich"], groups={"GOPR0364": 2, "GP010364": 1}, size=SIZE)
ALL_OF_ACDC = replace(BENCHMARKS["ACDC"], groups={"fog": 1, "night": 2, "rain": 1, "snow": 1}, size=SIZE)
FRAMES = ("GOPR0364_frame_000001", "GOPR0364_frame_000795", "GP010364_frame_000443")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    write_darkzurich(root / "DarkZurich")
    write_acdc(root / "ACDC")
    return root


@pytest.fixture
def dark_zurich(tree):
    return DarkZurich(str(tree / "DarkZurich"), "test", references=False)


def predictions(count, size=SIZE):
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, 19, size).astype(np.uint8), rng.uniform(1 / 19, 1, size).astype(np.float32))
        for _ in range(count)
    ]


def submit(dataset, benchmark, path, made, **options):
    with Submission(dataset, benchmark, CITYSCAPES, path, **options) as submission:
        for index, (labels, confidence) in enumerate(made):
            submission.add(index, labels, confidence)
        return submission.finish()


def read(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def test_the_official_rules():
    """Dark Zurich: 151 test images; ACDC: 500 of each condition; both 1920 x 1080."""
    assert {benchmark.groups for benchmark in BENCHMARKS.values()} == {None}
    assert DarkZurich.PUBLISHED["test"] == {"GOPR0364": 105, "GP010364": 46}
    assert ACDC.PUBLISHED["test"] == dict.fromkeys(("fog", "night", "rain", "snow"), 500)
    assert {benchmark.size for benchmark in BENCHMARKS.values()} == {(1080, 1920)}


def test_dark_zurich_gets_three_folders_of_the_same_names(tmp_path, dark_zurich):
    made = predictions(3)
    pictures = read(submit(dark_zurich, DARK_ZURICH, tmp_path / "submission.zip", made, invalid_threshold=0.5))
    folders = ("confidence", "labelTrainIds", "labelTrainIds_invalid")
    assert list(pictures) == [f"{folder}/{frame}_rgb_anon.png" for folder in folders for frame in FRAMES]
    for frame, (labels, confidence) in zip(FRAMES, made, strict=True):
        shown = {folder: pictures[f"{folder}/{frame}_rgb_anon.png"] for folder in folders}
        assert [shown[folder].mode for folder in folders] == ["I;16", "L", "L"]
        assert {picture.size for picture in shown.values()} == {(128, 64)}
        np.testing.assert_array_equal(shown["labelTrainIds"], labels)
        np.testing.assert_allclose(np.array(shown["confidence"], np.float64), 65535.0 * confidence, atol=0.51)
        invalid = np.array(shown["labelTrainIds_invalid"])
        np.testing.assert_array_equal(invalid == 255, confidence < 0.5)
        np.testing.assert_array_equal(invalid[invalid != 255], labels[invalid != 255])
    assert [p.name for p in tmp_path.iterdir()] == ["submission.zip"]


def test_without_a_threshold_nothing_is_invalid(tmp_path, dark_zurich):
    pictures = read(submit(dark_zurich, DARK_ZURICH, tmp_path / "s.zip", predictions(3)))
    for frame in FRAMES:
        one, other = (pictures[f"{f}/{frame}_rgb_anon.png"] for f in ("labelTrainIds", "labelTrainIds_invalid"))
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("layout", "prefix"), [("flat", ""), ("folder", "labelTrainIds/")])
def test_acdc_gets_labels_alone(tmp_path, tree, layout, prefix):
    dataset = ACDC(str(tree / "ACDC"), "test", references=False)
    made = predictions(5)
    pictures = read(submit(dataset, ALL_OF_ACDC, tmp_path / "s.zip", made, layout=layout))
    assert sorted(pictures) == sorted(f"{prefix}{sample.image.name}" for sample in dataset.samples)
    for sample, (labels, _) in zip(dataset.samples, made, strict=True):
        assert pictures[f"{prefix}{sample.image.name}"].mode == "L"
        np.testing.assert_array_equal(pictures[f"{prefix}{sample.image.name}"], labels)


def test_two_equal_submissions_are_equal_bytes(tmp_path, dark_zurich):
    made = predictions(3)
    first = submit(dark_zurich, DARK_ZURICH, tmp_path / "a.zip", made).read_bytes()
    assert first == submit(dark_zurich, DARK_ZURICH, tmp_path / "b.zip", made).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def wrong_size(made):
    made[1] = (made[1][0][:, :-1], made[1][1][:, :-1])
    return r"GOPR0364_frame_000795_rgb_anon\.png is 64 x 127 uint8, expected one channel of 64 x 128"


def wrong_id(made):
    made[2][0][5, 5] = 19
    return r"labelTrainIds/GP010364_frame_000443_rgb_anon\.png holds 19, expected the train ids 0 to 18"


def ignored(made):
    made[2][0][5, 5] = 255
    return r"labelTrainIds/GP010364_frame_000443_rgb_anon\.png holds 255"


def missing(made):
    del made[2]
    return r"lacks 3 files, the first is confidence/GP010364_.*; expected in each folder: 3 images"


@pytest.mark.parametrize("spoil", [wrong_size, wrong_id, ignored, missing])
def test_what_a_server_would_refuse_leaves_no_zip_file(tmp_path, dark_zurich, spoil):
    (tmp_path / "s.zip").write_bytes(b"of an earlier run")
    made = predictions(3)
    with pytest.raises(UserError, match=spoil(made)):
        submit(dark_zurich, DARK_ZURICH, tmp_path / "s.zip", made)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_one_leaves_nothing(tmp_path, dark_zurich):
    with (
        pytest.raises(KeyboardInterrupt),
        Submission(dark_zurich, DARK_ZURICH, CITYSCAPES, tmp_path / "s.zip") as submission,
    ):
        submission.add(0, *predictions(1)[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_a_zip_file_are_refused(tmp_path, dark_zurich):
    names = [f"{frame}_rgb_anon.png" for frame in FRAMES]
    prefixes = {folder: f"{folder}/" for folder in DARK_ZURICH.folders}
    path = submit(dark_zurich, DARK_ZURICH, tmp_path / "s.zip", predictions(3))
    check_submission(path, DARK_ZURICH, prefixes, names)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("confidence/more.png", b"")
    with pytest.raises(UserError, match=r"should not hold 1 file, the first is confidence/more\.png"):
        check_submission(path, DARK_ZURICH, prefixes, names)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if "more" not in name}
    palette = Image.new("P", (128, 64))
    palette.putpalette(range(57))
    for name, picture, fault in (
        ("labelTrainIds", palette, "is 64 x 128 x 3 uint8"),
        ("confidence", Image.new("L", (128, 64)), "is 64 x 128 uint8, expected one channel of 64 x 128 .* uint16"),
        ("labelTrainIds_invalid", Image.new("L", (128, 64), 200), "holds 200"),
        ("labelTrainIds_invalid", None, "is no picture"),
    ):
        data = io.BytesIO()
        if picture is not None:
            picture.save(data, "PNG")
        with zipfile.ZipFile(path, "w") as archive:
            for file, content in {**files, f"{name}/{names[1]}": data.getvalue() or b"text"}.items():
                archive.writestr(file, content)
        with pytest.raises(UserError, match=f"{name}/{names[1]} {fault}"):
            check_submission(path, DARK_ZURICH, prefixes, names)


def test_what_is_known_beforehand_is_said_before_anything_is_segmented(tmp_path, tree, dark_zurich):
    def refused(dataset, benchmark, classes=CITYSCAPES):
        with pytest.raises(UserError) as caught:
            Submission(dataset, benchmark, classes, tmp_path / "s.zip")
        assert list(tmp_path.iterdir()) == [] and "\n" not in str(caught.value)
        return str(caught.value)

    assert "takes the predictions for 151 images, Dark Zurich test has 3" in refused(
        dark_zurich, BENCHMARKS["DarkZurich"]
    )
    night = ACDC(str(tree / "ACDC"), "test", conditions=["night"], references=False)
    assert "takes the predictions for 500 images, ACDC night test has 2" in refused(night, BENCHMARKS["ACDC"])
    full = ACDC(str(tree / "ACDC"), "test", references=False)
    assert "takes the predictions for 2000 images, ACDC test has 5" in refused(full, BENCHMARKS["ACDC"])
    val = DarkZurich(str(tree / "DarkZurich"), "val", references=False)
    assert "its test split, Dark Zurich val is of split val" in refused(val, DARK_ZURICH)
    assert "takes the train ids of the classes cityscapes, the network was trained for camvid" in refused(
        dark_zurich, DARK_ZURICH, CAMVID
    )
    assert "is 64 x 128 (height x width), Dark Zurich takes 1080 x 1920" in refused(
        dark_zurich, replace(DARK_ZURICH, size=(1080, 1920))
    )


def test_names_must_be_the_official_ones_and_different(tmp_path):
    root = write_darkzurich(tmp_path / "DarkZurich")
    folder = root / "rgb_anon" / "test" / "night" / "GP010364"
    image = folder / "GP010364_frame_000443_rgb_anon.png"
    for name, message in (
        ("0001", "does not begin with"),
        ("GP010364_frame_0004431", "does not begin with"),
        ("GOPR0364_frame_000001", "two images named"),
        ("GOPR0364_frame_000001_copy", "are of the same frame"),
        ("GOPR0999_frame_000443", "takes the predictions for 0 images of GOPR0999, Dark Zurich test has 1"),
        ("GOPR0364_frame_000443", "takes the predictions for 2 images of GOPR0364, Dark Zurich test has 3"),
    ):
        image = image.rename(folder / f"{name}_rgb_anon.png")
        with pytest.raises(UserError, match=message):
            Submission(DarkZurich(str(root), "test", references=False), DARK_ZURICH, CITYSCAPES, tmp_path / "s.zip")


def official(folder, names):
    """A test split of 151 tiny images of these names."""
    folder = folder / "DarkZurich" / "rgb_anon" / "test" / "night"
    folder.mkdir(parents=True)
    for name in names:
        path = folder / name[:8] / f"{name}_rgb_anon.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 4)).save(path)
    return DarkZurich(str(folder.parents[2]), "test", references=False)


OFFICIAL = [f"GOPR0364_frame_{i:06d}" for i in range(1, 106)] + [f"GP010364_frame_{i:06d}" for i in range(1, 47)]


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (OFFICIAL, None),
        ([*OFFICIAL[:-1], f"{OFFICIAL[0]}_other"], "are of the same frame"),
        ([*OFFICIAL[:-1], f"{OFFICIAL[-1]}7"], "does not begin with its sequence and frame"),
        ([name.replace("GP010364", "GP020364") for name in OFFICIAL], "46 images of GP010364, .* has 0"),
        ([f"GOPR0356_frame_{i:06d}" for i in range(151)], "0 images of GOPR0356, .* has 151"),
        ([f"GOPR0364_frame_{i:06d}" for i in range(151)], "105 images of GOPR0364, .* has 151"),
    ],
)
def test_the_official_number_of_each_sequence_is_asked_for(tmp_path, names, fault):
    assert len(names) == 151
    dataset, rules = official(tmp_path, names), replace(BENCHMARKS["DarkZurich"], size=(4, 8))
    if fault is None:
        with Submission(dataset, rules, CITYSCAPES, tmp_path / "s.zip") as submission:
            assert submission.names == tuple(f"{name}_rgb_anon.png" for name in names)
        return
    with pytest.raises(UserError, match=fault):
        Submission(dataset, rules, CITYSCAPES, tmp_path / "s.zip")


def test_the_frames_are_compared_again_in_the_zip_file(tmp_path, dark_zurich):
    path = submit(dark_zurich, DARK_ZURICH, tmp_path / "s.zip", predictions(3))
    prefixes = {folder: f"{folder}/" for folder in DARK_ZURICH.folders}
    names = [f"{FRAMES[0]}_rgb_anon.png", f"{FRAMES[0]}_copy_rgb_anon.png"]
    with pytest.raises(UserError, match="are of the same frame"):
        check_submission(path, DARK_ZURICH, prefixes, names)


def test_a_threshold_that_a_server_does_not_ask_for_is_refused(tmp_path, tree):
    dataset = ACDC(str(tree / "ACDC"), "test", references=False)
    with pytest.raises(UserError, match="invalid_threshold is given, but ACDC takes no invalid pixels"):
        Submission(dataset, ALL_OF_ACDC, CITYSCAPES, tmp_path / "s.zip", invalid_threshold=0.5)


def test_the_benchmark_is_known_by_the_data_set(tmp_path, tree, dark_zurich):
    assert find_benchmark(dark_zurich).name == "Dark Zurich"
    assert find_benchmark(ACDC(str(tree / "ACDC"), "test", references=False)).name == "ACDC"
    other = BDD100KNight(str(write_bdd100k(tmp_path)), labelled=False)
    with pytest.raises(UserError, match="has no server; give input=test of Dark Zurich or ACDC"):
        find_benchmark(other)


def test_confidences_of_the_smallest_and_largest_values_fit(tmp_path, dark_zurich):
    made = [(np.zeros(SIZE, np.uint8), np.full(SIZE, value, np.float32)) for value in (1 / 19, 1.0, 1 + 1e-7)]
    path = submit(dark_zurich, DARK_ZURICH, tmp_path / "s.zip", made)
    with zipfile.ZipFile(path) as archive:
        read_back = [
            cv2.imdecode(np.frombuffer(archive.read(f"confidence/{f}_rgb_anon.png"), np.uint8), -1) for f in FRAMES
        ]
    assert [picture.max() for picture in read_back] == [3449, 65535, 65535]
