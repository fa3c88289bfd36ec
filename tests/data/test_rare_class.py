from __future__ import annotations

import json
import logging
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from icda.data.base import Sample, SegmentationDataset
from icda.data.cityscapes import Cityscapes
from icda.data.classes import CITYSCAPES, ClassSet
from icda.data.prepared import prepared_folder
from icda.data.rare_class import (
    CLASSES_FILE,
    STATE_FILE,
    STATS_DICT_FILE,
    STATS_FILE,
    ClassStatistics,
    RareClassSampler,
    class_statistics,
    find_statistics,
    read_statistics,
    write_statistics,
)
from icda.errors import UserError

FOUR = ClassSet("four", ("a", "b", "c", "d"), ((0, 0, 0),) * 4, ignore_index=255, things=())
FRAMES = ("aachen/aachen_000000_000019", "ulm/ulm_000001_000019", "ulm/ulm_000002_000019")


def make_cityscapes(root: Path, kind: str = "labelTrainIds", frames: tuple[str, ...] = FRAMES) -> Cityscapes:
    """Image i has 20 pixels of road, 10 + i of car, the rest ignored; 60 pixels at full size."""
    for i, frame in enumerate(frames):
        label = np.full(60, 255 if kind == "labelTrainIds" else 3, np.uint8)
        label[:20] = 0 if kind == "labelTrainIds" else 7
        label[20 : 30 + i] = 13 if kind == "labelTrainIds" else 26
        for folder, end, array in (
            ("gtFine", f"gtFine_{kind}", label.reshape(6, 10)),
            ("leftImg8bit", "leftImg8bit", np.zeros((6, 10, 3), np.uint8)),
        ):
            path = root / folder / "train" / f"{frame}_{end}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return Cityscapes(str(root), "train", size=[3, 5])


def expected_counts() -> np.ndarray:
    counts = np.zeros((3, 19), np.int64)
    counts[:, 0] = 20
    counts[:, 13] = (10, 11, 12)
    return counts


# ---- counting


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("kind", ["labelTrainIds", "labelIds"])
def test_counts_are_of_full_size_labels_without_ignored_pixels(tmp_path, workers, kind):
    stats = class_statistics(make_cityscapes(tmp_path, kind), workers)
    assert stats.counts.dtype == np.int64
    np.testing.assert_array_equal(stats.counts, expected_counts())


def test_progress_is_shown_only_when_asked_for(tmp_path, capsys):
    dataset = make_cityscapes(tmp_path)
    class_statistics(dataset)
    assert capsys.readouterr().err == ""
    class_statistics(dataset, progress=True)
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 2])
def test_counting_names_a_broken_label(tmp_path, workers):
    dataset = make_cityscapes(tmp_path)
    dataset.samples[1].label.write_bytes(b"")
    with pytest.raises(UserError, match=r"ulm_000001_000019_gtFine_labelTrainIds\.png is empty"):
        class_statistics(dataset, workers)


# ---- probabilities


def test_class_probabilities_by_hand():
    """Frequencies 0.7, 0.2, 0.1; T = 0.1: weights e^3, e^8, e^9."""
    sampler = RareClassSampler(ClassStatistics(np.array([[70, 10, 0], [0, 10, 10]])), 3, 0.1, 0)
    weights = np.exp([3.0, 8.0, 9.0])
    np.testing.assert_allclose(sampler.class_probabilities, weights / weights.sum(), rtol=1e-12)
    assert sampler.class_probabilities == pytest.approx([0.00180884, 0.26845495, 0.72973621], abs=1e-8)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 1e-5])
def test_class_probabilities_agree_with_torch_softmax(temperature):
    rng = np.random.default_rng(0)
    counts = (rng.random((50, 19)) ** 4 * rng.random(19) ** 6 * 2e6).astype(np.int64) + 1  # every class occurs
    pixels = torch.from_numpy(counts.sum(0)).double()
    expected = torch.softmax((1 - pixels / pixels.sum()) / temperature, dim=0).numpy()
    actual = RareClassSampler(ClassStatistics(counts), 19, temperature, 0).class_probabilities
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-300)


def test_classes_without_enough_pixels_are_never_drawn():
    """Class 2 has 3000 pixels at most, class 3 none: 3000 is not more than 3000."""
    counts = np.array([[9000, 3001, 3000, 0], [9000, 0, 2999, 0]])
    sampler = RareClassSampler(ClassStatistics(counts), 4, 0.5)
    shares = torch.from_numpy(counts.sum(0) / counts.sum())
    expected = torch.softmax((1 - shares[:2]) / 0.5, dim=0).numpy()
    np.testing.assert_allclose(sampler.class_probabilities, [*expected, 0, 0], rtol=1e-12)
    rng = np.random.default_rng(0)
    draws = {sampler.draw(rng) for _ in range(300)}
    assert draws == {(0, 0), (0, 1), (1, 0)}


def test_draws_follow_the_probabilities():
    counts = np.array([[60, 20, 0], [60, 0, 40], [0, 0, 40]])
    sampler = pickle.loads(pickle.dumps(RareClassSampler(ClassStatistics(counts), 3, 0.5, 10)))
    rng = np.random.default_rng(3)
    draws = np.array([sampler.draw(rng) for _ in range(20_000)])
    shares = np.bincount(draws[:, 0], minlength=3) / len(draws)
    np.testing.assert_allclose(shares, sampler.class_probabilities, atol=0.015)  # 4 standard deviations
    assert set(draws[draws[:, 0] == 1][:, 1].tolist()) == {0}
    np.testing.assert_allclose(np.mean(draws[draws[:, 0] == 2][:, 1] == 2), 0.5, atol=0.03)


def test_draws_repeat_with_the_seed():
    sampler = RareClassSampler(ClassStatistics(np.full((30, 5), 100)), 5, min_pixels=0)
    draws = [[sampler.draw(rng) for _ in range(20)] for rng in map(np.random.default_rng, (0, 0, 1))]
    assert draws[0] == draws[1] != draws[2]
    assert all(type(value) is int for draw in draws[0] for value in draw)


def test_sampler_refuses_what_cannot_work():
    stats = ClassStatistics(np.array([[5, 2999]]))
    with pytest.raises(
        UserError, match=r"no image has more than min_pixels=3000 .*the most are 2999; set min_pixels"
    ):
        RareClassSampler(stats, 2)
    with pytest.raises(UserError, match="temperature is 0, expected a number above 0"):
        RareClassSampler(stats, 2, temperature=0)
    with pytest.raises(UserError, match="min_pixels is -1"):
        RareClassSampler(stats, 2, min_pixels=-1)


# ---- files


def test_written_files_have_the_daformer_form(tmp_path):
    dataset = make_cityscapes(tmp_path / "city scapes")
    write_statistics(class_statistics(dataset), dataset, tmp_path / "new" / "folder")
    written = {path.name: json.loads(path.read_text()) for path in (tmp_path / "new/folder").iterdir()}
    names = [f"gtFine/train/{frame}_gtFine_labelTrainIds.png" for frame in FRAMES]
    assert re.fullmatch("[0-9a-f]{64}", written.pop(STATE_FILE)["labels"])
    assert written == {
        STATS_FILE: [{"0": 20, "13": 10 + i, "file": name} for i, name in enumerate(names)],
        CLASSES_FILE: {
            "0": [[name, 20] for name in names],
            "13": [[name, 10 + i] for i, name in enumerate(names)],
        },
        STATS_DICT_FILE: {name: {"0": 20, "13": 10 + i} for i, name in enumerate(names)},
    }
    np.testing.assert_array_equal(read_statistics(dataset, tmp_path / "new/folder").counts, expected_counts())


def test_files_name_the_labels_with_train_ids_whichever_were_counted(tmp_path):
    dataset = make_cityscapes(tmp_path, "labelIds")
    write_statistics(class_statistics(dataset), dataset, tmp_path)
    names = [f"gtFine/train/{frame}_gtFine_labelTrainIds.png" for frame in FRAMES]
    assert [entry["file"] for entry in json.loads((tmp_path / STATS_FILE).read_text())] == names


def test_statistics_are_found_in_the_root_first_then_among_the_prepared(tmp_path, caplog):
    dataset = make_cityscapes(tmp_path / "data")
    prepared = tmp_path / "prepared"
    folder = prepared_folder(prepared, dataset.name, dataset.root)
    assert find_statistics(dataset, prepared) is None
    write_statistics(ClassStatistics(expected_counts()), dataset, folder)
    np.testing.assert_array_equal(find_statistics(dataset, prepared).counts, expected_counts())
    write_statistics(ClassStatistics(expected_counts() * 2), dataset, dataset.root)
    np.testing.assert_array_equal(find_statistics(dataset, prepared).counts, expected_counts() * 2)
    assert caplog.text == ""


def test_prepared_statistics_are_not_used_once_the_ids_mean_something_else(tmp_path, caplog):
    dataset = make_cityscapes(tmp_path / "data")
    write_statistics(
        class_statistics(dataset), dataset, prepared_folder(tmp_path / "prepared", dataset.name, dataset.root)
    )
    assert find_statistics(dataset, tmp_path / "prepared") is not None
    dataset._label_mapping = lambda path: np.arange(256, dtype=np.uint8)
    with caplog.at_level(logging.INFO):
        assert find_statistics(dataset, tmp_path / "prepared") is None
    assert "what the ids in them mean, are not those that were counted" in caplog.text


@pytest.mark.parametrize("change", ["time", "size"])
def test_prepared_statistics_are_not_used_once_a_label_has_changed(tmp_path, change):
    dataset = make_cityscapes(tmp_path / "data")
    folder = prepared_folder(tmp_path / "prepared", dataset.name, dataset.root)
    write_statistics(class_statistics(dataset), dataset, folder)
    assert find_statistics(dataset, tmp_path / "prepared") is not None
    label = dataset.samples[1].label
    status = label.stat()
    if change == "size":
        label.write_bytes(label.read_bytes() + b"x")
    os.utime(label, ns=(status.st_atime_ns, status.st_mtime_ns - (change == "time") * 10**12))
    assert find_statistics(dataset, tmp_path / "prepared") is None


def test_statistics_move_with_their_data(tmp_path):
    dataset = make_cityscapes(tmp_path / "here/data")
    folder = prepared_folder(tmp_path / "here/prepared", dataset.name, dataset.root)
    write_statistics(ClassStatistics(expected_counts()), dataset, folder)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = Cityscapes(str(tmp_path / "there/data"), "train")
    np.testing.assert_array_equal(find_statistics(moved, tmp_path / "there/prepared").counts, expected_counts())


def test_statistics_of_other_labels_are_not_used_wherever_they_are(tmp_path, caplog):
    dataset = make_cityscapes(tmp_path / "data")
    smaller = make_cityscapes(tmp_path / "smaller", frames=FRAMES[:2])
    prepared = tmp_path / "prepared"
    folder = prepared_folder(prepared, dataset.name, dataset.root)
    write_statistics(class_statistics(smaller), smaller, folder)
    with caplog.at_level(logging.INFO):
        assert find_statistics(dataset, prepared) is None
    assert re.search(r"prepared class statistics are not used, .*not those that were counted", caplog.text)
    write_statistics(class_statistics(smaller), smaller, dataset.root)
    with caplog.at_level(logging.INFO):
        assert find_statistics(dataset, prepared) is None
    assert re.search(r"in the data set's folder are not used: .*1 label.* not in it", caplog.text)
    write_statistics(ClassStatistics(expected_counts()), dataset, folder)
    np.testing.assert_array_equal(find_statistics(dataset, prepared).counts, expected_counts())
    (folder / STATS_FILE).write_text("[{")
    assert find_statistics(dataset, prepared) is None


def test_files_survive_moving_and_label_kinds(tmp_path):
    """Counted in one place on one kind of label files, used in another place with the other kind."""
    first = make_cityscapes(tmp_path / "here", "labelIds")
    write_statistics(class_statistics(first), first, tmp_path)
    second = make_cityscapes(tmp_path / "there", "labelTrainIds")
    np.testing.assert_array_equal(read_statistics(second, tmp_path).counts, expected_counts())


@pytest.mark.parametrize(
    "prefix", ["/data/train/cs/gtFine/train/", "$DATA/gtFine/train/", "gtFine/train/", "C:\\cs\\gtFine\\train\\", ""]
)
def test_files_made_elsewhere_in_any_order_are_read(tmp_path, prefix):
    dataset = make_cityscapes(tmp_path)
    order = (2, 0, 1)
    names = [f"{prefix}{frame.split('/')[-1]}_gtFine_labelTrainIds.png" for frame in FRAMES]
    entries = [{"13": 10 + i, "file": names[i], "0": 20} for i in order]
    (tmp_path / STATS_FILE).write_text(json.dumps(entries))
    np.testing.assert_array_equal(read_statistics(dataset, tmp_path).counts, expected_counts())


def test_equal_file_names_are_told_apart_by_their_folders(tmp_path):
    samples = []
    for i, folder in enumerate(("x", "y")):
        for end in ("image", "label"):
            path = tmp_path / folder / end / "1.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((4, 4 + i, 3)[: 3 if end == "image" else 2], i, np.uint8)).save(path)
        samples.append(Sample(f"{folder}/1", tmp_path / folder / "image/1.png", tmp_path / folder / "label/1.png"))
    dataset = SegmentationDataset("toy", FOUR, tmp_path, samples)
    stats = class_statistics(dataset)
    write_statistics(stats, dataset, tmp_path)
    entries = json.loads((tmp_path / STATS_FILE).read_text())
    (tmp_path / STATS_FILE).write_text(json.dumps(entries[::-1]))
    np.testing.assert_array_equal(read_statistics(dataset, tmp_path).counts, [[16, 0, 0, 0], [0, 20, 0, 0]])
    (tmp_path / STATS_FILE).write_text(json.dumps([{"0": 16, "file": "1.png"}]))
    with pytest.raises(UserError, match=r"it names 1\.png, which fits 2 of its labels"):
        read_statistics(dataset, tmp_path)


def test_files_of_another_data_set_are_refused(tmp_path):
    dataset = make_cityscapes(tmp_path / "a")
    smaller = make_cityscapes(tmp_path / "b", frames=FRAMES[:2])
    write_statistics(class_statistics(dataset), dataset, tmp_path / "a")
    write_statistics(class_statistics(smaller), smaller, tmp_path / "b")
    with pytest.raises(UserError, match=r"another data set than Cityscapes train .*names .*ulm_000002.* fits 0"):
        read_statistics(smaller, tmp_path / "a")
    with pytest.raises(UserError, match=r"1 labels are not in it, the first is gtFine/train/ulm/ulm_000002"):
        read_statistics(dataset, tmp_path / "b")
    entries = json.loads((tmp_path / "a" / STATS_FILE).read_text())
    entries[0]["19"] = 5
    (tmp_path / "a" / STATS_FILE).write_text(json.dumps(entries))
    with pytest.raises(UserError, match="it counts pixels of class '19'"):
        read_statistics(dataset, tmp_path / "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "Expecting"),
        ("{}", "expected a list"),
        ('[{"0": 3}]', "names no file"),
        ('[{"0": -3, "file": "ulm_000001_000019_gtFine_labelTrainIds.png"}]', "-3 is no number of pixels"),
        ('[{"0": "3", "file": "ulm_000001_000019_gtFine_labelTrainIds.png"}]', "'3' is no number of pixels"),
        ('[{"file": "ulm_000001_000019_gtFine_labelTrainIds.png"}, '
         '{"file": "ulm_000001_000019_gtFine_labelTrainIds.png"}]', "occurs twice"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path, text, message):
    dataset = make_cityscapes(tmp_path)
    (tmp_path / STATS_FILE).write_text(text)
    with pytest.raises(UserError, match=rf"{STATS_FILE} cannot be used: .*{message}.*delete the file"):
        read_statistics(dataset, tmp_path)


@pytest.mark.parametrize("table", [{"0": []}, [], {"0": [5]}, {"0": [["x", 1, 2]]}, None])
def test_the_two_files_must_agree(tmp_path, table):
    dataset = make_cityscapes(tmp_path)
    write_statistics(class_statistics(dataset), dataset, tmp_path)
    (tmp_path / CLASSES_FILE).write_text(json.dumps(table))
    with pytest.raises(UserError, match=rf"{CLASSES_FILE} cannot be used: (it does not agree|expected lists)"):
        read_statistics(dataset, tmp_path)
    (tmp_path / CLASSES_FILE).unlink()
    np.testing.assert_array_equal(read_statistics(dataset, tmp_path).counts, expected_counts())


def test_missing_files_and_labels(tmp_path):
    dataset = make_cityscapes(tmp_path)
    with pytest.raises(UserError, match=rf"{STATS_FILE} do not exist"):
        read_statistics(dataset, tmp_path)
    unlabelled = Cityscapes(str(tmp_path), "train", labelled=False)
    with pytest.raises(UserError, match="Cityscapes train has no labels"):
        write_statistics(ClassStatistics(expected_counts()), unlabelled, tmp_path)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    dataset = make_cityscapes(tmp_path / "data")
    folder = tmp_path / "stats"
    write_statistics(class_statistics(dataset), dataset, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    changed = ClassStatistics(expected_counts() + 1)
    with pytest.raises(UserError, match=r"cannot write class statistics to .*: No space left on device"):
        write_statistics(changed, dataset, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_frequencies():
    stats = ClassStatistics(np.array([[6, 2, 0], [0, 0, 0], [1, 0, 1]]))
    np.testing.assert_allclose(stats.frequencies(), [0.7, 0.2, 0.1])
    np.testing.assert_array_equal(ClassStatistics(np.zeros((2, 3), np.int64)).frequencies(), 0)
    assert len(CITYSCAPES) == expected_counts().shape[1]
