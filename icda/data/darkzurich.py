"""Dark Zurich as unzipped from its official packages: night images with day references of the same places."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from icda.data.base import Sample, SegmentationDataset, check_complete, check_split, list_files
from icda.data.classes import CITYSCAPES
from icda.errors import UserError

IMAGE_ENDING = "_rgb_anon.png"
LABEL_ENDING = "_gt_labelTrainIds.png"
PAIRS_PATTERN = "*_ref_day.csv"
UNPAIRED = ("drop", "error")


class DarkZurich(SegmentationDataset):
    """Night images of Dark Zurich, each with the day image of the same place.

    References of the train split come from a list of pairs, those of ``val`` and ``test`` from their file names.
    Only ``val`` has public labels.

    Args:
        root: Folder that holds ``rgb_anon``, ``gt`` and ``corresp`` (or the folders named after the packages).
        split: ``train``, ``val`` or ``test``.
        size: Height and width that images and labels are resized to; None keeps 1080 x 1920.
        pairs: CSV file with one ``night,day`` pair of keys per line, such as
            ``train/night/GOPR0351/GOPR0351_frame_000001,train/day/GOPR0345/GOPR0345_frame_000081``; None takes
            the official ``corresp/train/night/**/*_ref_day.csv``. Train split only.
        references: Whether references are looked for; False also serves users without them.
        unpaired: What to do with a train image that no pair names: ``drop`` leaves it out, ``error`` stops.
        labelled: Whether labels of the val split are looked for and read.

    Attributes:
        unpaired: Number of train images left out because no pair names them.

    Raises:
        UserError: If a folder, all images, a label or a reference is missing, or the list of pairs is faulty.
    """

    TREE = (
        "rgb_anon/<split>/night/<sequence>/*_rgb_anon.png, for val and test rgb_anon/<split>_ref/day/<sequence>_ref/"
        "*_ref_rgb_anon.png, for train rgb_anon/train/day and corresp/train/night/<sequence>/*_ref_day.csv, for val "
        "gt/val/night/<sequence>/*_gt_labelTrainIds.png"
    )
    PACKAGES = (
        "dark_zurich",
        "Dark_Zurich_train_anon",
        "Dark_Zurich_val_anon",
        "Dark_Zurich_test_anon_withoutGt",
    )
    SPLITS = ("train", "val", "test")

    def __init__(
        self,
        root: str,
        split: str,
        size: Sequence[int] | None = None,
        pairs: str | None = None,
        references: bool = True,
        unpaired: str = "drop",
        labelled: bool = True,
    ) -> None:
        name = f"Dark Zurich {split}"
        check_split("Dark Zurich", split, self.SPLITS)
        if unpaired not in UNPAIRED:
            raise UserError(f"Dark Zurich: unpaired is {unpaired!r}; choose one of {', '.join(UNPAIRED)}")
        if pairs is not None and split != "train":
            raise UserError(f"{name}: pairs is for the train split; {split} references are found by name")
        found = list_files(self._find(name, root, f"rgb_anon/{split}/night"), (IMAGE_ENDING,))
        images = {f"night/{key}": path for key, path in found.items()}
        day: dict[str, Path] = {}
        if references and images:
            day = (
                self._references_by_pairs(name, root, pairs, images)
                if split == "train"
                else self._references_by_name(name, root, split, images)
            )
        self.unpaired = 0
        if references and split == "train":
            self.unpaired = self._count_unpaired(name, images, day, unpaired)
            images = {key: path for key, path in images.items() if key in day}
        labels = self._find_labels(name, root, images) if split == "val" and labelled else {}
        samples = [Sample(key, path, labels.get(key), day.get(key)) for key, path in images.items()]
        super().__init__(name, CITYSCAPES, root, samples, size)

    @classmethod
    def _find_labels(cls, name: str, root: str, images: dict[str, Path]) -> dict[str, Path]:
        folder = cls._find(name, root, "gt/val", "Or set labelled=false if no labels are needed.")
        labels = list_files(folder, (LABEL_ENDING,))
        check_complete(name, "label", images, labels, f"{folder}/night/<sequence>/*{LABEL_ENDING}")
        return labels

    @classmethod
    def _references_by_pairs(
        cls, name: str, root: str, pairs: str | None, images: dict[str, Path]
    ) -> dict[str, Path]:
        """Day image of each paired train night image, by the night image's key."""
        hint = "Or give pairs=<CSV file>, or set references=false if no references are needed."
        train = cls._find(name, root, "rgb_anon/train")
        day = list_files(cls._find(name, root, "rgb_anon/train/day", hint), (IMAGE_ENDING,))
        if pairs is not None:
            files = [Path(pairs).expanduser()]
            if not files[0].is_file():
                raise UserError(f"{name}: the list of pairs {files[0]} does not exist; expected a CSV file night,day")
        else:
            folder = cls._find(name, root, "corresp/train/night", hint)
            files = sorted(folder.rglob(PAIRS_PATTERN))
            if not files:
                raise UserError(f"{name}: no {PAIRS_PATTERN} in {folder}; expected {cls.TREE}. {hint}")
        known = {f"train/{key}": path for key, path in images.items()}
        known |= {f"train/day/{key}": path for key, path in day.items()}
        found: dict[str, Path] = {}
        for file in files:
            for line, night_key, day_key in _read_pairs(name, file):
                for key in (night_key, day_key):
                    if key not in known:
                        raise UserError(
                            f"{name}: {file}, line {line} names a missing file: {train.parent / key}{IMAGE_ENDING}; "
                            "unzip the whole package, or correct the line"
                        )
                night = night_key.removeprefix("train/")
                if found.setdefault(night, known[day_key]) != known[day_key]:
                    raise UserError(
                        f"{name}: {file}, line {line} pairs {night_key} a second time, with another day image: "
                        f"{day_key} and {found[night]}; keep one of them"
                    )
        return found

    @classmethod
    def _references_by_name(cls, name: str, root: str, split: str, images: dict[str, Path]) -> dict[str, Path]:
        """Reference of each val or test image, by the image's key.

        Three rules, in this order: the image's name with ``_ref``; the only file in the reference sequence that
        begins with the image's name; the same line in the official lists of file names.
        """
        folder = cls._find(name, root, f"rgb_anon/{split}_ref", "Or set references=false.")
        files = list_files(folder, (".png",))
        by_frame: dict[str, list[Path]] = defaultdict(list)
        for key, path in files.items():
            by_frame["_".join(key.rsplit("/", 1)[-1].split("_")[:3])].append(path)
        listed: dict[str, Path] | None = None
        found: dict[str, Path] = {}
        for key, image in images.items():
            sequence, frame = image.parent.name, key.rsplit("/", 1)[-1]
            exact = files.get(f"day/{sequence}_ref/{frame}_ref{Path(IMAGE_ENDING).stem}")
            candidates = [exact] if exact else [p for p in by_frame[frame] if p.parent.name == f"{sequence}_ref"]
            if not candidates:
                if listed is None:
                    listed = cls._read_lists(root, split, files)
                candidates = [listed[key]] if key in listed else []
            if len(candidates) != 1:
                names = ", ".join(str(path) for path in candidates) or "none"
                raise UserError(
                    f"{name}: {len(candidates)} references for {image}: {names}; expected one, "
                    f"{folder}/day/{sequence}_ref/{frame}_ref{IMAGE_ENDING}. Or set references=false."
                )
            found[key] = candidates[0]
        return found

    @classmethod
    def _read_lists(cls, root: str, split: str, files: dict[str, Path]) -> dict[str, Path]:
        """References by the official lists, whose lines correspond; empty if the lists are missing."""
        base = Path(root).expanduser()
        for place in (base / package / "lists_file_names" for package in ("", *cls.PACKAGES)):
            lists = [place / f"{split}{infix}_filenames.txt" for infix in ("", "_ref")]
            if all(path.is_file() for path in lists):
                night, day = (path.read_text(encoding="utf-8-sig").split() for path in lists)
                ending = Path(IMAGE_ENDING).stem
                return {
                    n.removeprefix(f"{split}/"): files[d.removeprefix(f"{split}_ref/") + ending]
                    for n, d in zip(night, day, strict=False)
                    if d.removeprefix(f"{split}_ref/") + ending in files
                }
        return {}

    @staticmethod
    def _count_unpaired(name: str, images: dict[str, Path], day: dict[str, Path], unpaired: str) -> int:
        without = [path for key, path in images.items() if key not in day]
        if without and unpaired == "error":
            raise UserError(
                f"{name}: {len(without)} of {len(images)} night images have no pair, the first is {without[0]}; "
                "complete the list of pairs, or set unpaired=drop to leave them out"
            )
        if images and len(without) == len(images):
            raise UserError(f"{name}: no night image has a pair; the list of pairs is empty, give another")
        return len(without)


def _read_pairs(name: str, file: Path) -> list[tuple[int, str, str]]:
    """Line number, night key and day key of every line of a list of pairs."""
    pairs = []
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name}: cannot read the list of pairs {file}: {error}") from error
    for line, row in enumerate(rows, start=1):
        if not any(row):
            continue
        if len(row) != 2 or not row[0].startswith("train/night/"):
            raise UserError(
                f"{name}: {file}, line {line} is {','.join(row)[:200]!r}; expected two columns night,day without "
                "header, such as train/night/<sequence>/<frame>,train/day/<sequence>/<frame>"
            )
        pairs.append((line, *(key.removesuffix(IMAGE_ENDING) for key in row)))
    return pairs
