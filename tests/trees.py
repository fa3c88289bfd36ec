"""Tiny but complete data set trees in their official layouts: every kind of file that a real download has.

``root`` is always the folder that the adapter of the data set takes as its root. Pictures are 64 x 128 (height x
width) unless ``size`` says otherwise. A tree is the same for the same ``seed``. Images of one place (a translation,
a day reference) show the same scene as the image they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scenes import COLORS, DAY, NIGHT, SIZE, TRAIN_IDS, Scene, scene

CITIES: dict[str, tuple[str, ...]] = {
    "train": ("aachen", "bochum", "ulm"),
    "val": ("frankfurt", "lindau"),
    "test": ("berlin",),
}
DARK_ZURICH_NIGHT = {"GOPR0351": (1, 159, 161), "GOPR0376": (1, 2), "GP010376": (7,)}
DARK_ZURICH_DAY = {"GOPR0345": (81, 240), "GOPR0374": (5,), "GP010374": (900,)}
DARK_ZURICH_TWILIGHT = {"GOPR0348": (1, 2), "GP010375": (40,)}
DARK_ZURICH_VAL = {"GOPR0356": (321, 324, 345)}
DARK_ZURICH_TEST = {"GOPR0364": (1, 795), "GP010364": (443,)}
DARK_ZURICH_PAIRS = {  # train/night and train/twilight -> train/day
    ("GOPR0351", 1): ("GOPR0345", 81), ("GOPR0351", 159): ("GOPR0345", 240), ("GOPR0351", 161): ("GOPR0345", 240),
    ("GOPR0376", 1): ("GOPR0374", 5), ("GOPR0376", 2): ("GP010374", 900), ("GP010376", 7): ("GP010374", 900),
    ("GOPR0348", 1): ("GOPR0345", 81), ("GOPR0348", 2): ("GOPR0345", 240), ("GP010375", 40): ("GP010374", 900),
}  # fmt: skip
ACDC_FRAMES: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {
    # Night shares GOPR0351 159 with Dark Zurich train, GOPR0356 321 and 345 with its val, GOPR0364 795 with its test.
    "night": {
        "train": {"GOPR0351": (159, 243), "GOPR0356": (345,)},
        "val": {"GOPR0356": (321, 900)},
        "test": {"GOPR0355": (142,), "GOPR0364": (795,)},
    },
    "fog": {"train": {"GOPR0475": (41, 47)}, "val": {"GOPR0476": (854,)}, "test": {"GOPR0477": (10,)}},
    "rain": {"train": {"GOPR0400": (3,), "GP010400": (15,)}, "val": {"GP020400": (6,)}, "test": {"GOPR0572": (1,)}},
    "snow": {"train": {"GOPR0122": (8, 9)}, "val": {"GOPR0604": (77,)}, "test": {"GP030176": (5,)}},
}
NIGHTTIME_DRIVING = ("0_frame_0205", "0_frame_0380", "0_frame_1290", "01_frame_0555")
BDD100K: dict[str, dict[str, str | None]] = {  # timeofday tags; None: not in the attribute files
    "train": {
        "00aad4a0-ee8135fe": "night", "0a1b2c3d-00000000": "night", "1f2e3d4c-5b6a7988": "daytime",
        "2b2c44c7-958f0ba8": "daytime", "3a7896fe-690e31f5": "night", "44556677-8899aabb": None,
    },
    "val": {"7d06fefd-f7be05a6": "night", "8e9fa0b1-c2d3e4f5": "dawn/dusk", "9ed56142-b87fa698": None},
    "test": {"aa00bb11-cc22dd33": "night", "bb11cc22-dd33ee44": None},
}  # fmt: skip
BDD100K_LISTED = {"train": ("00aad4a0-ee8135fe", "2b2c44c7-958f0ba8"), "val": ("7d06fefd-f7be05a6",)}
BDD100K_DARK = ("2b2c44c7-958f0ba8", "9ed56142-b87fa698")  # dark though not tagged as night
BDD100K_BRIGHT = ("3a7896fe-690e31f5",)  # bright though tagged as night
BDD100K_LIST_NAME = "images_trainval_night_correct_filenames.txt"
NIGHTCITY = {
    "train": ("Chicago_0002", "Chicago_0004", "Dubai_0016", "HongKong_0101"),
    "val": ("Chicago_0001", "Toronto_0030"),
}
NIGHTCITY_LAYOUTS = {  # images, labels, end of a label's name
    "official": ("NightCity-images/images/{}", "NightCity-label/label/{}", "_labelIds.png"),
    "doubled": ("NightCity-images/images/{}", "NightCity-label/NightCity-label/label/{}", "_labelIds.png"),
    "fdlnet": ("images/{}", "label/{}", "_labelIds.png"),
    "fine": ("{}/img", "{}/lbl", "_trainIds.png"),
    "pig": ("img/{}", "gt/{}", "_labelTrainIds.png"),
}
CAMVID = {
    "train": ("0001TP_006690", "0001TP_006720", "0006R0_f00930", "0006R0_f00960", "0016E5_00390", "0016E5_00420"),
    "val": ("0016E5_07959", "0016E5_07961"),
    "test": ("0001TP_008550", "0001TP_008580", "Seq05VD_f00000"),
}
TREES = (
    "Cityscapes", "CycleGANCityscapes", "DarkZurich", "ACDC", "NighttimeDrivingTest", "bdd100k", "NightCity",
    "CamVid",
)  # fmt: skip
"""Folders that ``write_all`` makes."""

_EGO_VEHICLE = 1  # label id
_CAMVID_IDS = np.full(34, 11, np.uint8)
_CAMVID_IDS[[23, 11, 12, 17, 7, 8, 21, 22, 20, 19, 13, 26, 27, 28, 31, 24, 25, 32, 33]] = (
    0, 1, 1, 2, 3, 4, 5, 5, 6, 6, 7, 8, 8, 8, 8, 9, 10, 10, 10,
)  # fmt: skip


def _save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95} if path.suffix == ".jpg" else {"compress_level": 1}
    Image.fromarray(array).save(path, **options)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _save_five_labels(stem: str, place: Scene, infix: str = "", invalid: bool = True) -> None:
    """The files that Dark Zurich and ACDC have for each labelled image."""
    ids = place.label_ids
    _save(Path(f"{stem}_gt{infix}_labelIds.png"), ids)
    _save(Path(f"{stem}_gt{infix}_labelTrainIds.png"), TRAIN_IDS[ids])
    _save(Path(f"{stem}_gt{infix}_labelColor.png"), COLORS[ids])
    if invalid:
        _save(Path(f"{stem}_gt_invIds.png"), place.invalid().astype(np.uint8))
        _save(Path(f"{stem}_gt_invGray.png"), place.invalid().astype(np.uint8) * 255)


def _cityscapes_frames(images_per_city: int, cities: Mapping[str, Sequence[str]]) -> list[str]:
    return [
        f"{split}/{city}/{city}_{i:06d}_000019"
        for split, names in cities.items()
        for city in names
        for i in range(images_per_city)
    ]


def write_cityscapes(
    root: Path,
    images_per_city: int = 2,
    cities: Mapping[str, Sequence[str]] = CITIES,
    label_kind: str = "labelIds",
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> Path:
    """Cityscapes: by default 6 train (aachen, bochum, ulm), 4 val (frankfurt, lindau) and 2 test images (berlin).

    ``label_kind`` is ``labelIds`` (the official download), ``labelTrainIds`` (those alone) or ``both``; beside them
    ``instanceIds``, ``color``, ``polygons.json`` as in the download. Labels of test hold nothing but the own car.
    """
    kinds = {"labelIds": ("labelIds",), "labelTrainIds": ("labelTrainIds",), "both": ("labelIds", "labelTrainIds")}
    for frame in _cityscapes_frames(images_per_city, cities):
        place = shown = scene(frame, size, seed)
        if frame.startswith("test/"):
            place = Scene(size, tuple(o for o in place.objects if o[0] == "ego vehicle"), place.noise)
        _save(root / f"leftImg8bit/{frame}_leftImg8bit.png", shown.picture())
        ids, stem = place.label_ids, f"{root}/gtFine/{frame}_gtFine"
        for kind in kinds[label_kind]:
            _save(Path(f"{stem}_{kind}.png"), ids if kind == "labelIds" else TRAIN_IDS[ids])
        _save(Path(f"{stem}_instanceIds.png"), place.instance_ids)
        _save(Path(f"{stem}_color.png"), np.dstack([COLORS[ids], np.full(size, 255, np.uint8)]))
        _write(Path(f"{stem}_polygons.json"), place.polygons)
    _write(root / "license.txt", "licence\n")
    _write(root / "README", "Cityscapes\n")
    return root


def write_translations(
    root: Path,
    images_per_city: int = 2,
    cities: Mapping[str, Sequence[str]] = CITIES,
    flat: bool = False,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> Path:
    """CycleGANCityscapes: night pictures of the train and val scenes of ``write_cityscapes`` with the same arguments.

    By default 6 train and 4 val images, in Cityscapes' folders; ``flat`` names them as CycleGAN's test script does,
    ``<city>_<sequence>_<frame>_leftImg8bit_fake_B.png`` in one folder.
    """
    for frame in _cityscapes_frames(images_per_city, {s: c for s, c in cities.items() if s != "test"}):
        name = f"{Path(frame).name}_leftImg8bit_fake_B.png" if flat else f"leftImg8bit/{frame}_leftImg8bit.png"
        _save(root / name, scene(frame, size, seed).picture(NIGHT))
    return root


def write_darkzurich(root: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Dark Zurich, all packages in one tree.

    Train: 6 night, 3 twilight and 4 day images, every night and twilight image paired in ``corresp``. Val: 3 night
    images with references and five label files each. Test: 3 night images with references. ``gps`` for all (of each
    image, the nearest day image is its pair), ``lists_file_names`` for all.
    """
    parts = {"train/night": DARK_ZURICH_NIGHT, "train/day": DARK_ZURICH_DAY, "train/twilight": DARK_ZURICH_TWILIGHT}
    parts |= {"val/night": DARK_ZURICH_VAL, "test/night": DARK_ZURICH_TEST}
    lists: dict[str, list[str]] = {}
    gps: dict[str, list[str]] = {}
    day = [f"train/day/{_frame(*frame)}" for frame in _frames(DARK_ZURICH_DAY)]
    for part, sequences in parts.items():
        split, time = part.split("/")
        for frame in _frames(sequences):
            key = f"{part}/{_frame(*frame)}"
            pair = f"train/day/{_frame(*DARK_ZURICH_PAIRS[frame])}" if frame in DARK_ZURICH_PAIRS else key
            place = scene(pair, size, seed)
            _save(root / f"rgb_anon/{key}_rgb_anon.png", place.picture({"night": NIGHT, "day": DAY}.get(time, 0.6)))
            lists.setdefault(f"train_{time}" if split == "train" else split, []).append(key)
            step = day.index(pair) if pair in day else len(day) + len(lists[split])
            position = f"{47.36 + 1e-3 * step + 1e-5 * (pair != key):.7f},{8.53 + 1e-3 * step:.7f}"
            gps.setdefault(f"{part}/{frame[0]}", []).append(f"{key},{position}\n")
            if split != "train":
                reference = f"{split}_ref/day/{frame[0]}_ref/{frame[0]}_frame_{frame[1]:06d}"
                _save(root / f"rgb_anon/{reference}_ref_rgb_anon.png", place.picture())
                lists.setdefault(f"{split}_ref", []).append(f"{reference}_ref")
                gps.setdefault(f"{split}_ref/day/{frame[0]}_ref", []).append(f"{reference}_ref,{position}\n")
            if split == "val":
                _save_five_labels(f"{root}/gt/{key}", place)
    for time, sequences in (("night", DARK_ZURICH_NIGHT), ("twilight", DARK_ZURICH_TWILIGHT)):
        for sequence, frames in sequences.items():
            pairs = [(_frame(sequence, i), _frame(*DARK_ZURICH_PAIRS[sequence, i])) for i in frames]
            text = "".join(f"train/{time}/{dark},train/day/{light}\n" for dark, light in pairs)
            _write(root / f"corresp/train/{time}/{sequence}/{sequence}_ref_day.csv", text)
    for name, keys in lists.items():
        _write(root / f"lists_file_names/{name}_filenames.txt", "\n".join(keys) + "\n")
    for folder, lines in gps.items():
        _write(root / f"gps/{folder}/{folder.rsplit('/', 1)[-1]}.csv", "".join(lines))
    _write(root / "README.md", "Dark Zurich\n")
    _write(root / "LICENSE.txt", "licence\n")
    return root


def _frames(sequences: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    return [(sequence, frame) for sequence, frames in sequences.items() for frame in frames]


def _frame(sequence: str, frame: int) -> str:
    return f"{sequence}/{sequence}_frame_{frame:06d}"


def write_acdc(root: Path, reference_labels: bool = False, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """ACDC: fog, rain and snow with 2 train, 1 val, 1 test image each, night with 3, 2, 2. All have references.

    Train and val have five label files each; ``reference_labels`` adds ``_gt_ref_*`` files for the references of
    train. Night shares GOPR0351_frame_000159 with Dark Zurich's train, GOPR0356_frame_000321 (here val) and
    GOPR0356_frame_000345 (here train) with its val, GOPR0364_frame_000795 with its test split.
    """
    for condition, splits in ACDC_FRAMES.items():
        for split, sequences in splits.items():
            for sequence, frame in _frames(sequences):
                stem = f"{condition}/{split}/{_frame(sequence, frame)}"
                reference = f"{condition}/{split}_ref/{_frame(sequence, frame)}"
                place = scene(stem, size, seed)
                light = NIGHT if condition == "night" else 0.7
                _save(root / f"rgb_anon/{stem}_rgb_anon.png", place.picture(light))
                _save(root / f"rgb_anon/{reference}_rgb_ref_anon.png", place.picture())
                if split != "test":
                    _save_five_labels(f"{root}/gt/{stem}", place)
                if split == "train" and reference_labels:
                    _save_five_labels(f"{root}/gt/{reference}", place, infix="_ref", invalid=False)
    return root


def write_nighttime_driving(root: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Nighttime Driving: 4 test images (prefix ``0`` three, ``01`` one) with four label files each."""
    for name in NIGHTTIME_DRIVING:
        place = scene(name, size, seed)
        stem = f"{root}/gtCoarse_daytime_trainvaltest/test/night/{name}_gtCoarse"
        _save(root / f"leftImg8bit/test/night/{name}_leftImg8bit.png", place.picture(NIGHT))
        _save(Path(f"{stem}_labelIds.png"), place.label_ids)
        _save(Path(f"{stem}_labelTrainIds.png"), TRAIN_IDS[place.label_ids])
        _save(Path(f"{stem}_color.png"), COLORS[place.label_ids])
        _write(Path(f"{stem}_polygons.json"), place.polygons)
    return root


def write_bdd100k(
    root: Path,
    layout: str = "new",
    attributes: str | None = "det_20",
    night_list: bool = True,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> Path:
    """BDD100K 10k: 6 train, 3 val, 2 test images (test unlabelled); ``BDD100K`` has their tags.

    Three train and one val image are tagged as night, of which ``3a7896fe-690e31f5`` is bright; two images, one of
    them listed, are dark without that tag; one train and one val image have no tag. The list names 2 train and 1 val
    image. Tags of 10k images are spread over both attribute files, as in the real ones.

    Args:
        root: Where to write.
        layout: ``new`` (``images/10k``, ``labels/sem_seg``) or ``old`` (``seg``).
        attributes: ``det_20``, ``bdd100k_labels_images`` (the 2018 package), or None to write no attributes.
        night_list: Whether to write ``lists/images_trainval_night_correct_filenames.txt``.
        size: Height and width.
        seed: Of the scenes.
    """
    new = layout == "new"
    for split, tags in BDD100K.items():
        for name, tag in tags.items():
            place = scene(name, size, seed)
            dark = (tag == "night" or name in BDD100K_DARK) and name not in BDD100K_BRIGHT
            folder = "images/10k" if new else "seg/images"
            _save(root / f"{folder}/{split}/{name}.jpg", place.picture(NIGHT if dark else DAY))
            if split == "test":
                continue
            masks = root / ("labels/sem_seg/masks" if new else "seg/labels") / split
            colors = root / ("labels/sem_seg/colormaps" if new else "seg/color_labels") / split
            _save(masks / (f"{name}.png" if new else f"{name}_train_id.png"), TRAIN_IDS[place.label_ids])
            _save(colors / (f"{name}.png" if new else f"{name}_train_color.png"), COLORS[place.label_ids])
        for kind in ("polygons", "rles") if new and split != "test" else ():
            listed = json.dumps([{"name": f"{name}.jpg", "labels": []} for name in tags])
            _write(root / f"labels/sem_seg/{kind}/sem_seg_{split}.json", listed)
    if attributes is not None:
        _write_bdd100k_attributes(root, attributes)
    if night_list:
        lines = [f"seg/images/{s}/{n}.jpg\n" for s, names in BDD100K_LISTED.items() for n in names]
        _write(root / "lists" / BDD100K_LIST_NAME, "".join(lines))
    return root


def _write_bdd100k_attributes(root: Path, kind: str) -> None:
    box = {"category": "car", "attributes": {"occluded": False}, "box2d": {"x1": 1, "y1": 2, "x2": 9, "y2": 8}}
    frames: dict[str, list[dict]] = {split: [] for split in ("train", "val")}
    for tags in BDD100K.values():
        for i, (name, tag) in enumerate(tags.items()):
            if tag is not None:
                given = {"weather": "clear", "scene": "city street", "timeofday": tag}
                frame = {"name": f"{name}.jpg", "attributes": given, "timestamp": 10000, "labels": [box]}
                frames["val" if i == 1 else "train"].append(frame)
    other = {"name": "0000f77c-6257be58.jpg", "attributes": {"timeofday": "night"}, "labels": []}  # not of the 10k
    for split, listed in frames.items():
        name = f"labels/det_20/det_{split}.json" if kind == "det_20" else f"labels/{kind}_{split}.json"
        _write(root / name, json.dumps([*listed, other]))


def write_nightcity(root: Path, layout: str = "official", size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """NightCity: 4 train and 2 val images in one of ``NIGHTCITY_LAYOUTS``.

    ``official``, ``doubled`` (a folder inside itself) and ``fdlnet`` hold label ids, and 255 where there is none;
    ``fine`` and ``pig`` hold train ids. The label of Chicago_0004 has three equal channels; ``official`` and
    ``doubled`` have colour pictures.
    """
    images, labels, ending = NIGHTCITY_LAYOUTS[layout]
    for split, names in NIGHTCITY.items():
        for name in names:
            place = scene(name, size, seed)
            ids = place.label_ids if ending == "_labelIds.png" else TRAIN_IDS[place.label_ids]
            ids[place.label_ids == _EGO_VEHICLE] = 255
            _save(root / images.format(split) / f"{name}.png", place.picture(NIGHT))
            ids_or_copies = np.dstack([ids] * 3) if name == "Chicago_0004" else ids
            _save(root / labels.format(split) / f"{name}{ending}", ids_or_copies)
            if "label/label" in labels:
                color = root / labels.replace("label/{}", "color/{}").format(split)
                _save(color / f"{name}_color.png", COLORS[place.label_ids])
    return root


def write_camvid(root: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """CamVid of the SegNet tutorial: train 6 images (0001TP, 0006R0, 0016E5 two each), val 2 (0016E5), test 3.

    Test has two images of 0001TP, which is dusk, and one of Seq05VD. Labels hold 0 to 11 (11: unlabelled). The
    lists name ``/SegNet/CamVid/...`` as the real ones do.
    """
    for split, names in CAMVID.items():
        for name in names:
            place = scene(name, size, seed)
            _save(root / split / f"{name}.png", place.picture(0.45 if name.startswith("0001TP") else DAY))
            _save(root / f"{split}annot" / f"{name}.png", _CAMVID_IDS[place.label_ids])
        lines = [f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png\n" for n in names]
        _write(root / f"{split}.txt", "".join(lines))
    return root


def write_all(data_dir: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """All trees, with the defaults of their writers, in the folders ``TREES`` below ``data_dir``."""
    writers = (
        write_cityscapes, write_translations, write_darkzurich, write_acdc, write_nighttime_driving, write_bdd100k,
        write_nightcity, write_camvid,
    )  # fmt: skip
    for folder, writer in zip(TREES, writers, strict=True):
        writer(data_dir / folder, size=size, seed=seed)
    return data_dir
