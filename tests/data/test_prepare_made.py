"""What ``scripts/prepare.py`` makes: label files, class statistics, lists; also when it is killed, or runs twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import trees
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
from prepare_calls import FILES, about, row, snapshot, train_ids_folder

from icda.data import Cityscapes, DarkZurich
from icda.data.prepare import prepare
from icda.data.prepare.statistics import JOURNAL
from icda.data.prepared import TEMPORARY, prepared_folder
from icda.data.rare_class import find_statistics

pytest_plugins = ("prepare_fixtures",)


# ---- what is made


def test_nothing_but_the_prepared_folder_changes_and_a_second_run_does_nothing(call, data):
    before = snapshot(data)
    call("dataset=darkzurich", "cache=true", "check=full")
    after = snapshot(data)
    assert {name: state for name, state in after.items() if not name.startswith(FILES)} == before
    assert len(after) > len(before) + 40
    for overrides in ((), ("cache=true",), ("cache=true", "check=full")):
        assert "nothing to do" in call("dataset=darkzurich", *overrides)
    assert snapshot(data) == after


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing(call, data, alone):
    call("dataset=darkzurich", "cache=true", "workers=2")
    first = snapshot(data / FILES)
    shutil.rmtree(data / FILES)
    call("dataset=darkzurich", "cache=true")
    assert {name: state[0] for name, state in snapshot(data / FILES).items()} == {n: s[0] for n, s in first.items()}


def test_train_id_labels_are_those_of_the_official_scripts(call, data, tmp_path):
    call("dataset=darkzurich")
    originals = sorted((data / "Cityscapes/gtFine").glob("*/*/*_labelIds.png"))
    made = sorted(train_ids_folder(data).rglob("*.png"))
    assert len(made) >= 10 and {path.parts[-3] for path in made} >= {"train", "val"}
    for original, path in zip(originals, made, strict=True):
        assert path.name == original.name.replace("labelIds", "labelTrainIds")
        assert path.parent.relative_to(train_ids_folder(data)) == original.parent.relative_to(data / "Cityscapes")
        json2labelImg(str(original).replace("labelIds.png", "polygons.json"), str(tmp_path / "x.png"), "trainIds")
        picture = Image.open(path)
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.array(picture), np.array(Image.open(tmp_path / "x.png")))


def test_train_id_labels_follow_their_originals(call, data):
    call("dataset=darkzurich")
    before = snapshot(train_ids_folder(data))
    label = data / "Cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    Image.fromarray(np.full((64, 128), 26, np.uint8)).save(label)
    os.utime(label, (1e9, 1e9))  # older than before
    assert "train-id labels of Cityscapes train (1)" in call("dataset=darkzurich")
    after = snapshot(train_ids_folder(data))
    changed = [name for name in before if before[name] != after[name]]
    assert changed == ["gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png"]
    assert np.unique(Image.open(train_ids_folder(data) / changed[0])).tolist() == [13]
    assert "nothing to do" in call("dataset=darkzurich")


def test_train_id_labels_are_not_made_where_they_are(call, data):
    shutil.rmtree(data / "Cityscapes")
    trees.write_cityscapes(data / "Cityscapes", label_kind="both")
    assert "train-id" not in call("dataset=darkzurich")
    call("dataset=acdc")
    assert not train_ids_folder(data).exists()


def by_hand(data: Path) -> list[dict]:
    """DAFormer's entries, counted on the label ids of the originals with the official table."""
    from cityscapesscripts.helpers.labels import id2label

    entries = []
    for path in sorted((data / "Cityscapes/gtFine/train").glob("*/*_labelIds.png")):
        counts = {}
        for value, pixels in zip(*np.unique(Image.open(path), return_counts=True), strict=True):
            train_id = id2label[int(value)].trainId
            if train_id not in (-1, 255):
                counts[train_id] = counts.get(train_id, 0) + int(pixels)
        name = path.relative_to(data / "Cityscapes").as_posix().replace("labelIds", "labelTrainIds")
        entries.append({**{str(c): counts[c] for c in sorted(counts)}, "file": name})
    return entries


def test_class_statistics_are_daformers_three_files(call, data):
    call("dataset=darkzurich")
    folder = about(data, "Cityscapes train", "Cityscapes")
    entries = by_hand(data)
    assert sorted(p.name for p in folder.iterdir()) == [
        "label_state.json", "sample_class_stats.json", "sample_class_stats_dict.json", "samples_with_class.json",
    ]  # fmt: skip
    written = json.loads((folder / "sample_class_stats.json").read_text())
    assert [list(entry.items()) for entry in written] == [list(entry.items()) for entry in entries]  # order counts
    without = {e["file"]: {k: v for k, v in e.items() if k != "file"} for e in entries}
    assert json.loads((folder / "sample_class_stats_dict.json").read_text()) == without
    by_class = json.loads((folder / "samples_with_class.json").read_text())
    assert list(by_class) == sorted(by_class, key=int)
    assert by_class == {c: [[e["file"], e[c]] for e in entries if c in e] for c in by_class}
    assert set(by_class) == {c for counts in without.values() for c in counts}


def test_class_statistics_in_the_root_are_taken_or_if_they_do_not_fit_left_aside(call, data):
    call("dataset=darkzurich")
    for path in about(data, "Cityscapes train", "Cityscapes").iterdir():
        shutil.copy(path, data / "Cityscapes")
    shutil.rmtree(data / FILES)
    assert "class statistics" not in call("dataset=darkzurich")
    (data / "Cityscapes/sample_class_stats.json").write_text("[]")
    text = call("dataset=darkzurich")
    assert "made class statistics of Cityscapes train (6 labels)" in text
    note = r"source: class statistics .*Cityscapes/sample_class_stats\.json belong to another data set"
    assert len(re.findall(note, text)) == 1
    assert (data / "Cityscapes/sample_class_stats.json").read_text() == "[]"
    assert find_statistics(Cityscapes(str(data / "Cityscapes"), "train"), data / FILES) is not None
    assert "nothing to do" in call("dataset=darkzurich")


@pytest.mark.parametrize("change", ["label", "older", "new", "torn", "dict", "journal"])
def test_class_statistics_are_counted_anew_when_labels_change(call, data, change):
    call("dataset=darkzurich")
    folder = about(data, "Cityscapes train", "Cityscapes")
    label = data / "Cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    dataset = Cityscapes(str(data / "Cityscapes"), "train")
    if change in ("label", "older"):
        Image.fromarray(np.full((64, 128), 26, np.uint8)).save(label)
        if change == "older":
            os.utime(label, (1e9, 1e9))
        assert find_statistics(dataset, data / FILES) is None
    elif change == "journal":  # killed after all was written
        (folder / JOURNAL).touch()
    elif change == "new":
        for path in (label, data / "Cityscapes/leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png"):
            shutil.copy2(path, path.with_name(path.name.replace("000000", "000007")))
    elif change == "torn":
        (folder / "samples_with_class.json").write_text("{")
    else:
        (folder / "sample_class_stats_dict.json").unlink()
    assert "made class statistics" in call("dataset=darkzurich")
    assert json.loads((folder / "sample_class_stats.json").read_text()) == by_hand(data)
    assert len(json.loads((folder / "sample_class_stats_dict.json").read_text())) == 6 + (change == "new")
    assert "nothing to do" in call("dataset=darkzurich")


def test_a_label_from_the_future_is_counted_once(call, data):
    label = data / "Cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    os.utime(label, (4e9, 4e9))
    call("dataset=darkzurich")
    assert "nothing to do" in call("dataset=darkzurich")


def test_counting_goes_on_from_its_journal(call, data):
    """One label is damaged at first: the others are not counted again, a torn line does no harm."""
    label = data / "Cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png"
    whole, times = label.read_bytes(), label.stat()
    label.write_bytes(whole[:100])
    text = call("dataset=darkzurich", "train_ids=false", error="not ready: 1 thing has")
    assert re.search(rf"source: {label} cannot be read", text)
    assert "incomplete: class statistics of Cityscapes train" in text
    journal = about(data, "Cityscapes train", "Cityscapes") / JOURNAL
    lines = journal.read_text().splitlines()
    assert len(lines) == 5
    state, counts = json.loads(lines[0])
    counts[18] = 12345  # no such count in the file: it must come from the journal
    journal.write_text("\n".join([json.dumps([state, counts]), *lines[1:4], "[1, 2]", lines[4][:30]]))
    label.write_bytes(whole)
    os.utime(label, ns=(times.st_atime_ns, times.st_mtime_ns))
    call("dataset=darkzurich", "train_ids=false")
    dataset = Cityscapes(str(data / "Cityscapes"), "train")
    found, expected = find_statistics(dataset, data / FILES).counts, np.zeros((6, 19), np.int64)
    for i, entry in enumerate(by_hand(data)):
        expected[i, [int(c) for c in entry if c != "file"]] = [v for c, v in entry.items() if c != "file"]
    expected[0, 18] = 12345
    np.testing.assert_array_equal(found, expected)
    assert not journal.exists()


def test_the_list_of_pairs_is_what_training_takes(call, data):
    text = call("dataset=darkzurich")
    file = about(data, "Dark Zurich train", "DarkZurich") / "night_day_pairs.csv"
    official = sorted((data / "DarkZurich/corresp/train/night").rglob("*.csv"))
    lines = sorted(line for path in official for line in path.read_text().splitlines())
    assert sorted(file.read_text().splitlines()) == lines
    assert "target: day references: 6 pairs from 3 lists in" in text
    assert "corresp and gps: 6 night images have the same day image in both, 0 another" in text
    target = DarkZurich(str(data / "DarkZurich"), "train", pairs=str(file))
    assert target.pairs == DarkZurich(str(data / "DarkZurich"), "train").pairs
    own = data / "own.csv"
    own.write_text("\n".join(line.replace("GOPR0345_frame_000081", "GOPR0345_frame_000240") for line in lines))
    text = call("dataset=darkzurich", f"dataset.target.pairs={own}")
    assert "made list of the 6 pairs" in text and file.read_text().count("frame_000240") == 3
    assert "corresp and the list: 5 night images have the same day image in both, 1 another" in text
    shutil.rmtree(data / "DarkZurich/corresp")
    text = call("dataset=darkzurich")
    assert "made list of the 6 pairs" in text and sorted(file.read_text().splitlines()) == lines
    assert re.search(r"day references: nearest day image within 20 m: .* median 1\.1 m", text)
    assert "nothing to do" in call("dataset=darkzurich")


def test_of_the_demo_only_the_list_of_pairs_is_made(call, demo_data, tmp_path):
    """Its class statistics are in its root, its labels hold train ids."""
    settings = ("dataset=demo", "dataset.prepare=null", f"data_dir={demo_data}", f"prepared_dir={tmp_path}/made")
    text = call(*settings)
    assert text.endswith("demo is ready") and row(text, "test") == ["1", "-", "ok"]
    made = {path for path in (tmp_path / "made").rglob("*") if path.is_file()}
    folder = prepared_folder(tmp_path / "made", "Dark Zurich train", demo_data / "demo/DarkZurich")
    assert made == {tmp_path / "made/.lock", folder / "night_day_pairs.csv"}
    assert "nothing to do" in call(*settings)


def test_the_night_list_is_made_of_tags_where_there_is_none(call, data):
    shutil.rmtree(data / "bdd100k/lists")
    text = call("dataset=darkzurich")
    file = about(data, "BDD100K night", "bdd100k") / "images_night_tagged.txt"
    night = {f"seg/images/{s}/{n}.jpg" for s in ("train", "val") for n, t in trees.BDD100K[s].items() if t == "night"}
    assert {line for line in file.read_text().splitlines() if line[0] != "#"} == night
    told = "4 images are tagged as night; 2 have no tag of the time of day; to use these: dataset.score_also."
    assert told in text
    text = call("dataset=darkzurich")
    assert told in text and "nothing to do" in text
    for changed in sorted((data / "bdd100k").rglob("*.json")):
        os.utime(changed, (1e9, 1e9))  # older than the list
    assert "made list of BDD100K's images" in call("dataset=darkzurich")
    image = next((data / "bdd100k").rglob("images/**/train/*.jpg"))
    shutil.copy(image, image.with_name("0000new.jpg"))
    text = call("dataset=darkzurich")
    assert "made list of BDD100K's images" in text and "3 have no tag of the time of day" in text
    assert "nothing to do" in call("dataset=darkzurich")
    text = call("dataset=bdd100k_night", f"dataset.val.list_file={file}")
    assert row(text, "val") == ["4", "-", "ok"]
    text = call("dataset=bdd100k_night", "dataset.val.night=tagged")
    assert "val: 3 images of BDD100K have no tag" in text


# ---- interrupted, and several at once


def run_apart(cfg: DictConfig) -> int:
    """Start prepare in a process of its own; its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        forkserver._forkserver._forkserver_pid = None  # that of the tests' process is not this one's
        try:
            prepare(cfg)
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.fixture
def many(tmp_path) -> Path:
    """A ``data_dir`` with enough images to be killed in between."""
    trees.write_all(tmp_path / "data")
    trees.write_cityscapes(tmp_path / "data/Cityscapes", images_per_city=8)
    return tmp_path / "data"


def composed(data: Path, prepared_dir: Path, workers: int = 0) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = [f"data_dir={data}", f"prepared_dir={prepared_dir}", "dataset.published=false", "progress=false"]
        settings.append(f"workers={workers}")
        settings += [
            "dataset.source.translations=null",
            "dataset.source.size=[64,128]",
            "dataset.target.size=[54,96]",
        ]
        return compose("prepare", ["dataset=darkzurich", "cache=true", *settings])


def contents(folder: Path) -> dict[str, str]:
    """What files hold, but for those that a killed run left half-written: they are removed when they are old."""
    return {name: state[0] for name, state in snapshot(folder).items() if not TEMPORARY.fullmatch(Path(name).name)}


@pytest.mark.parametrize(
    ("workers", "moments"),
    [(0, (2, 8, 29, 30, 31, 32, 33, 40, 60)), pytest.param(2, (2, 29, 33, 60), marks=pytest.mark.slow)],
)
def test_killed_at_any_moment_it_is_whole_and_equal_after_the_next_run(many, tmp_path, alone, workers, moments):
    whole = tmp_path / "whole"
    prepare(composed(many, whole))
    expected = contents(whole)
    labels = len(list((many / "Cityscapes/gtFine").rglob("*_labelIds.png")))
    assert len(expected) == 1 + labels + 4 + 1 + 48 + 10 + 3  # lock, train ids, statistics, pairs, cache
    interrupted = 0
    for files in moments:
        killed = tmp_path / f"killed_{files}"
        cfg = composed(many, killed)
        child = run_apart(composed(many, killed, workers))
        deadline = time.monotonic() + 30
        while sum(len(names) for *_, names in os.walk(killed)) < files and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        interrupted += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        prepare(cfg)
        assert contents(killed) == expected
    assert interrupted >= len(moments) - 3  # the last may have been faster


def test_several_at_once_do_no_harm(many, tmp_path, alone):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    prepare(composed(many, whole))
    children = [run_apart(composed(many, shared)) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert contents(shared) == contents(whole)
