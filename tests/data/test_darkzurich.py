from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icda.data.classes import CITYSCAPES
from icda.data.darkzurich import DarkZurich
from icda.data.pairs import compare_pairs, read_pairs, write_pairs
from icda.errors import UserError

NIGHT = ("GOPR0351/GOPR0351_frame_000001", "GOPR0351/GOPR0351_frame_000002", "GP010376/GP010376_frame_000007")
DAY = ("GOPR0345/GOPR0345_frame_000081", "GP010374/GP010374_frame_000900")
PAIRS = ((NIGHT[0], DAY[0]), (NIGHT[1], DAY[0]), (NIGHT[2], DAY[1]))


def save(path: Path, value: int, channels: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 10, 3) if channels else (6, 10), value, np.uint8)).save(path)
    return path


def line(night: str, day: str) -> str:
    return f"train/night/{night},train/day/{day}\n"


def make_train(root: Path, package: str = "", pairs: tuple[tuple[str, str], ...] = PAIRS) -> Path:
    base = root / package
    for i, key in enumerate(NIGHT):
        save(base / f"rgb_anon/train/night/{key}_rgb_anon.png", i)
    for i, key in enumerate(DAY):
        save(base / f"rgb_anon/train/day/{key}_rgb_anon.png", 100 + i)
    save(base / "rgb_anon/train/twilight/GOPR0348/GOPR0348_frame_000001_rgb_anon.png", 50)
    for sequence in ("GOPR0351", "GP010376"):
        file = base / f"corresp/train/night/{sequence}/{sequence}_ref_day.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(line(*pair) for pair in pairs if pair[0].startswith(sequence)))
    return root


def make_val(root: Path, split: str = "val", package: str = "", reference: str = "_ref_rgb_anon.png") -> Path:
    base = root / package
    for i, frame in enumerate((321, 345)):
        stem = f"GOPR0356_frame_{frame:06d}"
        save(base / f"rgb_anon/{split}/night/GOPR0356/{stem}_rgb_anon.png", i)
        save(base / f"rgb_anon/{split}_ref/day/GOPR0356_ref/{stem}{reference}", 100 + i)
        if split == "val":
            save(base / f"gt/val/night/GOPR0356/{stem}_gt_labelTrainIds.png", i, channels=False)
            save(base / f"gt/val/night/GOPR0356/{stem}_gt_labelIds.png", 33, channels=False)
            save(base / f"gt/val/night/GOPR0356/{stem}_gt_labelColor.png", 33)
    return root


@pytest.mark.parametrize("folder", ["dark zurich", "train/night", "nighttime/test/val_ref"])
def test_train_with_official_pairs(tmp_path, folder):
    root = make_train(tmp_path / folder)
    dataset = DarkZurich(str(root), "train", size=[3, 5])
    assert [sample.key for sample in dataset.samples] == [f"night/{key}" for key in NIGHT]
    assert [sample.reference for sample in dataset.samples] == [
        root / f"rgb_anon/train/day/{day}_rgb_anon.png" for _, day in PAIRS
    ]
    assert [int(dataset.image(i)[0, 0, 0]) for i in range(3)] == [0, 1, 2]
    assert [int(dataset.reference(i)[0, 0, 0]) for i in range(3)] == [100, 100, 101]
    assert dataset.reference(0).shape == (3, 5, 3) and dataset.unpaired == 0
    assert all(sample.label is None for sample in dataset.samples)
    assert pickle.loads(pickle.dumps(dataset)).samples == dataset.samples


def test_pairs_from_a_file_agree_with_the_official_ones(tmp_path):
    root = make_train(tmp_path)
    listed = tmp_path / "zurich_dn_pair_train.csv"
    listed.write_text("\ufeff" + "".join(line(*pair) for pair in PAIRS[::-1]).replace("\n", "\r\n") + "\r\n")
    dataset = DarkZurich(str(root), "train", pairs=str(listed))
    assert dataset.samples == DarkZurich(str(root), "train").samples
    assert dataset.pairing == f"3 pairs from the list {listed}"
    for value in (None, "auto", "corresp"):
        official = DarkZurich(str(root), "train", pairs=value)
        assert official.samples == dataset.samples
        assert official.pairing == f"3 pairs from 2 lists in {root}/corresp/train/night"
    assert dataset.pairs == {f"train/night/{night}": f"train/day/{day}" for night, day in PAIRS}
    write_pairs(tmp_path / "again.csv", dataset.pairs.items())
    assert {n: d for _, n, d in read_pairs("", tmp_path / "again.csv")} == dataset.pairs


def test_unpaired_images_are_dropped_and_counted_or_refused(tmp_path):
    root = str(make_train(tmp_path, pairs=PAIRS[:1]))
    dataset = DarkZurich(root, "train")
    assert dataset.unpaired == 2 and [sample.key for sample in dataset.samples] == [f"night/{NIGHT[0]}"]
    with pytest.raises(UserError, match=r"2 of 3 images have no day reference, the first is .*000002_rgb_anon\.png"):
        DarkZurich(root, "train", unpaired="error")
    unchecked = DarkZurich(root, "train", unpaired="error", check=False)
    assert [sample.key for sample in unchecked.missing["reference"]] == [f"night/{key}" for key in NIGHT[1:]]
    kept = DarkZurich(root, "train", unpaired="keep")
    assert [sample.reference is None for sample in kept.samples] == [False, True, True]
    assert kept.unpaired == 2 and kept.missing == {} and len(kept.pairs) == 1
    with pytest.raises(UserError, match="unpaired is 'skip'; choose one of drop, keep, error"):
        DarkZurich(root, "train", unpaired="skip", references=False)
    everything = DarkZurich(root, "train", references=False)
    assert len(everything) == 3 and everything.unpaired == 0 and everything.samples[0].reference is None
    with pytest.raises(UserError, match="none of the 3 images has a day reference"):
        DarkZurich(str(make_train(tmp_path / "none", pairs=())), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (line(NIGHT[0], "GOPR0345/GOPR0345_frame_999999"), "line 1 names a day image that is missing: .*999999;"),
        (line("GOPR0351/GOPR0351_frame_000009", DAY[0]), "line 1 names a night image that is missing: .*000009;"),
        (line(*PAIRS[0]) + line(NIGHT[0], DAY[1]), "line 2 pairs .*000001 a second time, with another day image"),
        ("train/night/x,train/day/y,1\n", "line 1 is .*; expected two columns"),
        (line(*PAIRS[0]) + "\ntrain/night/x\n", "line 3 is 'train/night/x'; expected two columns"),
    ],
)
def test_faulty_pairs(tmp_path, text, message):
    root = make_train(tmp_path)
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UserError, match=rf"pairs\.csv, {message}"):
        DarkZurich(str(root), "train", pairs=str(tmp_path / "pairs.csv"))


def test_lines_that_name_missing_files_are_counted_without_the_check(tmp_path):
    root = make_train(tmp_path)
    (root / f"rgb_anon/train/day/{DAY[1]}_rgb_anon.png").unlink()
    with pytest.raises(UserError, match=r"GP010376_ref_day\.csv, line 1 names a day image that is missing: .*000900"):
        DarkZurich(str(root), "train")
    dataset = DarkZurich(str(root), "train", check=False, unpaired="keep")
    assert dataset.samples[2].reference is None and len(dataset) == 3
    assert "night; 1 lines name missing images; 1 of 3 images have none and are " in dataset.pairing


def test_repeated_pairs_and_file_endings_are_accepted(tmp_path):
    root = make_train(tmp_path)
    night, day = (f"train/{time}/{key}_rgb_anon.png" for time, key in zip(("night", "day"), PAIRS[0], strict=True))
    (tmp_path / "pairs.csv").write_text(line(*PAIRS[0]) * 2 + f"{night}, {day}\n")
    assert len(DarkZurich(str(root), "train", pairs=str(tmp_path / "pairs.csv"))) == 1


def test_missing_lists_of_pairs(tmp_path):
    root = make_train(tmp_path)
    with pytest.raises(
        UserError, match=r"none of auto, corresp, gps, and the list of pairs .*gone\.csv does not exist"
    ):
        DarkZurich(str(root), "train", pairs=str(tmp_path / "gone.csv"))
    for file in (root / "corresp").rglob("*.csv"):
        file.unlink()
    with pytest.raises(UserError, match=r"no \*_ref_day\.csv in .*pairs=<CSV file>"):
        DarkZurich(str(root), "train")
    (root / "corresp").rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"no folder .*corresp/train/night; expected rgb_anon/"):
        DarkZurich(str(root), "train")


@pytest.mark.parametrize("folder", ["plain", "val/night"])
@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("reference", ["_ref_rgb_anon.png", "_some_other_ending.png"])
def test_references_by_name(tmp_path, folder, split, reference):
    dataset = DarkZurich(str(make_val(tmp_path / folder, split, reference=reference)), split)
    assert [sample.key for sample in dataset.samples] == [
        "night/GOPR0356/GOPR0356_frame_000321",
        "night/GOPR0356/GOPR0356_frame_000345",
    ]
    assert [int(dataset.reference(i)[0, 0, 0]) for i in range(2)] == [100, 101]
    assert dataset.unpaired == 0
    if split == "val":
        assert (dataset.label(1) == 1).all() and dataset.classes is CITYSCAPES
    else:
        assert dataset.samples[0].label is None


def test_references_by_the_official_lists(tmp_path):
    make_val(tmp_path)
    folder = tmp_path / "rgb_anon/val_ref/day/GOPR0356_ref"
    for frame, other in ((321, 391), (345, 400)):
        (folder / f"GOPR0356_frame_{frame:06d}_ref_rgb_anon.png").rename(
            folder / f"GOPR0356_frame_{other:06d}_ref_rgb_anon.png"
        )
    with pytest.raises(
        UserError, match=r"2 of 2 images have no reference, the first is .*000321_rgb.*references=false"
    ):
        DarkZurich(str(tmp_path), "val")
    assert len(DarkZurich(str(tmp_path), "val", check=False).missing["reference"]) == 2
    lists = tmp_path / "lists_file_names"
    lists.mkdir()
    (lists / "val_filenames.txt").write_text(
        "".join(f"val/night/GOPR0356/GOPR0356_frame_{frame:06d}\n" for frame in (321, 345))
    )
    (lists / "val_ref_filenames.txt").write_text(
        "".join(f"val_ref/day/GOPR0356_ref/GOPR0356_frame_{frame:06d}_ref\n" for frame in (391, 400))
    )
    dataset = DarkZurich(str(tmp_path), "val")
    assert [sample.reference.name[:21] for sample in dataset.samples] == [
        "GOPR0356_frame_000391",
        "GOPR0356_frame_000400",
    ]


def test_ambiguous_reference_is_refused(tmp_path):
    make_val(tmp_path, "test", reference="_one.png")
    save(tmp_path / "rgb_anon/test_ref/day/GOPR0399_ref/GOPR0356_frame_000321_two.png", 0)  # another sequence's
    assert int(DarkZurich(str(tmp_path), "test").reference(0)[0, 0, 0]) == 100
    save(tmp_path / "rgb_anon/test_ref/day/GOPR0356_ref/GOPR0356_frame_000321_two.png", 0)
    with pytest.raises(UserError, match=r"2 references for .*000321_rgb_anon\.png: .*_one\.png, .*_two\.png"):
        DarkZurich(str(tmp_path), "test")


def test_only_what_is_asked_for_is_needed(tmp_path):
    make_val(tmp_path)
    (tmp_path / "gt").rename(tmp_path / "no_gt")
    (tmp_path / "rgb_anon/val_ref").rename(tmp_path / "no_ref")
    with pytest.raises(UserError, match=r"no folder .*rgb_anon/val_ref; .*references=false"):
        DarkZurich(str(tmp_path), "val")
    with pytest.raises(UserError, match=r"no folder .*gt/val; .*labelled=false"):
        DarkZurich(str(tmp_path), "val", references=False)
    assert len(DarkZurich(str(tmp_path), "val", references=False, labelled=False)) == 2


def test_missing_and_broken(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*rgb_anon/val/night; expected rgb_anon/<split>/night"):
        DarkZurich(str(tmp_path), "val")
    (tmp_path / "rgb_anon/val/night").mkdir(parents=True)
    with pytest.raises(UserError, match="Dark Zurich val: no images found"):
        DarkZurich(str(tmp_path), "val", labelled=False)
    make_val(tmp_path)
    label = tmp_path / "gt/val/night/GOPR0356/GOPR0356_frame_000345_gt_labelTrainIds.png"
    save(label, 19, channels=False)
    with pytest.raises(UserError, match=r"000345_gt_labelTrainIds\.png.*: 19 \(60 pixels\).*0 to 18 and 255"):
        DarkZurich(str(tmp_path), "val").label(1)
    label.unlink()
    assert (DarkZurich(str(tmp_path), "val").label(1) == 18).all()  # from labelIds, 33 is bicycle
    label.with_name(label.name.replace("TrainIds", "Ids")).unlink()
    with pytest.raises(UserError, match=r"1 of 2 images have no label, the first is .*000345_rgb_anon\.png"):
        DarkZurich(str(tmp_path), "val")
    with pytest.raises(UserError, match="pairs is for the train split"):
        DarkZurich(str(tmp_path), "val", pairs="x.csv")


@pytest.mark.parametrize(
    "packages",
    [
        ("Dark_Zurich_train_anon", "Dark_Zurich_val_anon", "Dark_Zurich_test_anon_withoutGt"),
        ("train", "val", "test"),
        ("dark_zurich", "dark_zurich", "dark_zurich"),
    ],
)
def test_packages_unzipped_side_by_side(tmp_path, packages):
    make_train(tmp_path, packages[0])
    make_val(tmp_path, "val", packages[1])
    make_val(tmp_path, "test", packages[2])
    assert [len(DarkZurich(str(tmp_path), split)) for split in ("train", "val", "test")] == [3, 2, 2]


PLACES = {  # degrees; one thousandth of a degree of latitude is 111.2 m
    NIGHT[0]: (47.3700, 8.5400),
    NIGHT[1]: (47.3710, 8.5400),
    NIGHT[2]: (47.3801, 8.5400),
    DAY[0]: (47.3701, 8.5400),
    DAY[1]: (47.3800, 8.5400),
}


def make_positions(root: Path, places: dict[str, tuple[float, float]] = PLACES, header: str = "") -> Path:
    for key, (first, second) in places.items():
        time = "night" if key in NIGHT else "day"
        file = root / f"gps/train/{time}/{key}.csv"  # a file for each image, or
        if time == "day":
            file = file.with_name("gps.csv")  # one for the sequence: either is read
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as stream:
            stream.write(f"{header}train/{time}/{key},{first},{second},411.0,7.2\n")
    (root / "gps/train/twilight/GOPR0348").mkdir(parents=True)
    (root / "gps/train/twilight/GOPR0348/x.csv").write_text('"')
    return root


@pytest.mark.parametrize("turned", [False, True])
def test_pairs_by_position(tmp_path, turned):
    places = {key: place[::-1] if turned else place for key, place in PLACES.items()}
    root = make_positions(make_train(tmp_path), places, header="frame,lat,lon\n")
    dataset = DarkZurich(str(root), "train", pairs="gps")
    assert dataset.pairs == {f"train/night/{NIGHT[i]}": f"train/day/{DAY[j]}" for i, j in ((0, 0), (2, 1))}
    assert dataset.unpaired == 1 and len(dataset) == 2
    assert dataset.pairing.startswith(
        "nearest day image within 20 m: 3 positions, nearest day image at 11.1 to 100.1 m, median 11.1 m, "
        "90 % within 82.3 m, 1 beyond reach; 0 night and 0 day images have no position"
    )
    everywhere = DarkZurich(str(root), "train", pairs="gps", max_distance=None)
    assert everywhere.unpaired == 0 and everywhere.pairing.startswith("nearest day image at any distance: ")
    # The lists pair the second night image with the first day image, as the positions do; the third pair agrees too.
    official = DarkZurich(str(root), "train", pairs="corresp")
    assert compare_pairs(official.pairs, dataset.pairs).startswith(
        "2 night images have the same day image in both, 0"
    )
    with pytest.raises(UserError, match=r"max_distance is -1; expected metres above 0"):
        DarkZurich(str(root), "train", max_distance=-1)


def test_positions_are_used_where_there_are_no_lists(tmp_path):
    root = make_positions(make_train(tmp_path))
    assert DarkZurich(str(root), "train").unpaired == 0
    for file in (root / "corresp").rglob("*.csv"):
        file.unlink()
    assert DarkZurich(str(root), "train", unpaired="keep").unpaired == 1
    with pytest.raises(UserError, match="1 of 3 images have no day reference"):
        DarkZurich(str(root), "train", unpaired="error")
    with pytest.raises(UserError, match=r"no \*_ref_day\.csv in"):
        DarkZurich(str(root), "train", pairs="corresp")


def test_positions_that_are_none(tmp_path):
    root = make_positions(make_train(tmp_path), {**PLACES, NIGHT[1]: (0.0, 0.0)})
    dataset = DarkZurich(str(root), "train", pairs="gps")
    ending = "; 1 night and 0 day images have no position; 1 of 3 images have none and are left out"
    assert len(dataset) == 2 and ending in dataset.pairing
    make_positions(make_train(tmp_path / "far"), {key: (b / 57, a / 57) for key, (a, b) in PLACES.items()})
    with pytest.raises(
        UserError, match=r"gps/train/night holds no position around Zurich, the first is 0\.1.*47\.37"
    ):
        DarkZurich(str(tmp_path / "far"), "train", pairs="gps")
    make_positions(make_train(tmp_path / "other"), {NIGHT[0]: PLACES[NIGHT[0]], "GOPR9/GOPR9_frame_1": (47.3, 8.5)})
    with pytest.raises(UserError, match=r"none of the 2 day images has a position in .*gps/train/day"):
        DarkZurich(str(tmp_path / "other"), "train", pairs="gps")
    with pytest.raises(UserError, match=r"no folder .*gps/train/night; .*pairs=<CSV file>"):
        DarkZurich(str(make_train(tmp_path / "none")), "train", pairs="gps")


def mask(root: Path, frame: int, kind: str, value: int) -> Path:
    return save(root / f"gt/val/night/GOPR0356/GOPR0356_frame_{frame:06d}_gt_{kind}.png", value, channels=False)


def test_invalid_masks(tmp_path):
    root = make_val(tmp_path)
    assert all(sample.invalid is None for sample in DarkZurich(str(root), "val").samples)
    mask(root, 321, "invGray", 255)
    with pytest.raises(
        UserError, match=r"1 of 2 images have no invalid.*, the first is .*000345_rgb_anon\.png; .*invIds"
    ):
        DarkZurich(str(root), "val")
    mask(root, 345, "invIds", 1)
    mask(root, 345, "invGray", 7)  # not read: invIds comes first
    dataset = DarkZurich(str(root), "val")
    assert all(dataset.invalid(i).all() and dataset.invalid(i).shape == (6, 10) for i in range(2))
    assert all(sample.invalid is None for sample in DarkZurich(str(root), "val", labelled=False).samples)


def test_counts_beside_the_published_ones(tmp_path):
    made = DarkZurich(str(make_train(tmp_path, pairs=PAIRS[1:])), "train")
    counts = {count.what: (count.found, count.published) for count in made.counts()}
    assert counts == {
        "images": (2, 2416),
        "images of GOPR0351": (1, 1027),
        "images of GOPR0376": (0, 1061),
        "images of GP010376": (1, 328),
        "day images": (2, 3041),
        "pairs": (2, 2416),
        "night images without a pair": (1, None),
    }
    for split, images in (("val", 50), ("test", 151)):
        dataset = DarkZurich(str(make_val(tmp_path, split)), split)
        counts = {count.what: (count.found, count.published) for count in dataset.counts()}
        assert counts["images"] == counts["day images"] == counts["pairs"] == (2, images)
    assert made.drive_frame(made.samples[0]) == "GOPR0351_frame_000002"


def test_a_broken_tree(tmp_path):
    """Names in upper case, a linked sequence, a name that is not ASCII, files that do not belong, half a picture."""
    root = make_train(tmp_path / "Zürich bei Nacht")
    night = root / "rgb_anon/train/night"
    first = night / f"{NIGHT[0]}_rgb_anon.png"
    first.rename(first.with_name(first.name.upper().replace("FRAME", "frame").replace("RGB_ANON", "rgb_anon")))
    (night / "GP010376").rename(tmp_path / "elsewhere")
    (night / "GP010376").symlink_to(tmp_path / "elsewhere")
    (night / "GOPR0351/._GOPR0351_frame_000001_rgb_anon.png").write_bytes(b"macOS")
    (night / "Thumbs.db").write_bytes(b"")
    (root / "corresp/train/night/GOPR0351/._x_ref_day.csv").write_bytes(b"\x00macOS")
    dataset = DarkZurich(str(root), "train")
    assert len(dataset) == 3 and dataset.reference(2).shape == (6, 10, 3)
    picture = dataset.samples[1].image
    picture.write_bytes(picture.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"000002_rgb_anon\.png cannot be read: .*truncated"):
        dataset.image(1)


def test_strays_and_labels_of_other_kinds(tmp_path):
    root = make_val(tmp_path)
    gt = root / "gt/val/night/GOPR0356"
    stray = save(gt / "GOPR0356_frame_000999_gt_labelIds.png", 7, channels=False)
    Image.fromarray(np.full((6, 10), 5, np.uint8)).convert("P").save(
        gt / "GOPR0356_frame_000321_gt_labelTrainIds.png"
    )
    Image.fromarray(np.full((6, 10), 6, np.uint16)).save(gt / "GOPR0356_frame_000345_gt_labelTrainIds.png")
    dataset = DarkZurich(str(root), "val")
    assert dataset.strays == (stray,)
    assert (dataset.label(0) == 5).all() and (dataset.label(1) == 6).all()
    image = dataset.samples[0].image
    Image.fromarray(np.full((6, 10, 4), (9, 8, 7, 0), np.uint8)).save(image)
    assert dataset.image(0)[0, 0].tolist() == [9, 8, 7]
    # A JPEG copy that a camera program has turned: 10 x 6 pixels on disk, shown as 6 x 10.
    image.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((10, 6, 3), 90, np.uint8)).save(image.with_suffix(".JPG"), exif=exif)
    again = DarkZurich(str(root), "val")
    assert again.image(0).shape == (6, 10, 3) and again.label(0).shape == (6, 10)
    image.with_suffix(".jpeg").write_bytes(b"")
    with pytest.raises(UserError, match="two files for one sample"):
        DarkZurich(str(root), "val")
