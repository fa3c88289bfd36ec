"""Cityscapes as unzipped from its official packages, and its label ids, which most data sets of the field share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from icda.data.base import Sample, SegmentationDataset, check_split
from icda.data.classes import CITYSCAPES
from icda.data.files import list_files

LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Official label id of every train id (cityscapesscripts/helpers/labels.py)."""
LAST_LABEL_ID = 33
"""Largest id in the official label maps; ids up to it that are not in ``LABEL_IDS`` are ignored."""


def label_ids_to_train_ids() -> np.ndarray:
    """Table from official label ids to train ids.

    Returns:
        (256,) uint8. Ids that Cityscapes does not have stay themselves, so that :func:`read_label` refuses them.
    """
    table = np.arange(256, dtype=np.uint8)
    table[: LAST_LABEL_ID + 1] = CITYSCAPES.ignore_index
    table[list(LABEL_IDS)] = np.arange(len(CITYSCAPES))
    return table


class CityscapesLabels(SegmentationDataset):
    """Base of the data sets with Cityscapes' classes, whose label files hold train ids or official label ids."""

    TRAIN_IDS_ENDINGS: ClassVar[tuple[str, ...]] = ("_gt_labelTrainIds.png",)
    """Ends of the names of files with train ids; where an image has both kinds, these are read."""
    LABEL_IDS_ENDINGS: ClassVar[tuple[str, ...]] = ("_gt_labelIds.png",)
    """Ends of the names of files with official label ids, from which train ids are made at reading."""

    @classmethod
    def _list_labels(cls, folder: Path) -> dict[str, Path]:
        """Label file of each key below a folder."""
        return list_files(folder, cls.LABEL_IDS_ENDINGS) | list_files(folder, cls.TRAIN_IDS_ENDINGS)

    def _label_mapping(self, path: Path) -> np.ndarray | None:
        endings = tuple(ending.lower() for ending in self.LABEL_IDS_ENDINGS)
        return label_ids_to_train_ids() if path.name.lower().endswith(endings) else None


class Cityscapes(CityscapesLabels):
    """Cityscapes, fine annotations.

    Labels are read from ``labelTrainIds`` files or, where these were not made, from the official ``labelIds``
    files, so no preparation is needed.

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine`` (or the folders named after their packages).
        split: ``train``, ``val`` or ``test``. Labels of the test split are not public.
        size: Height and width that images and labels are resized to; None keeps 1024 x 2048.
        translations: Folder of night translations (see ``SegmentationDataset``); None if there are none.
        labelled: Whether labels are looked for and read.
        check: Whether an incomplete tree is refused (see ``SegmentationDataset``).

    Raises:
        UserError: If a folder, all images, a label or a translation is missing.
    """

    TREE = "leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_labelIds.png"
    PACKAGES = ("leftImg8bit_trainvaltest", "gtFine_trainvaltest")
    TRAIN_IDS_ENDINGS = ("_gtFine_labelTrainIds.png",)
    LABEL_IDS_ENDINGS = ("_gtFine_labelIds.png",)
    SPLITS = ("train", "val", "test")
    PUBLISHED: ClassVar[dict[str, dict[str, int]]] = {
        "train": {
            "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154, "darmstadt": 85, "dusseldorf": 221,
            "erfurt": 109, "hamburg": 248, "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94,
            "strasbourg": 365, "stuttgart": 196, "tubingen": 144, "ulm": 95, "weimar": 142, "zurich": 122,
        },
        "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
        "test": {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58, "mainz": 298, "munich": 398},
    }  # fmt: skip
    """Images by split and city (github.com/sakaridis/MGCDA, data/Cityscapes_lists_file_names)."""

    def __init__(
        self,
        root: str,
        split: str,
        size: Sequence[int] | None = None,
        translations: str | None = None,
        labelled: bool = True,
        check: bool = True,
    ) -> None:
        name = f"Cityscapes {split}"
        check_split("Cityscapes", split, self.SPLITS)
        self.split = split
        images = list_files(self._find(name, root, f"leftImg8bit/{split}"), ("_leftImg8bit.png",))
        labels, expected = {}, {}
        if labelled:
            folder = self._find(name, root, f"gtFine/{split}", "Or set labelled=false if no labels are needed.")
            labels = self._list_labels(folder)
            expected["label"] = f"{folder}/<city>/*{self.LABEL_IDS_ENDINGS[0]}"
        super().__init__(
            name,
            CITYSCAPES,
            root,
            [Sample(key, path, labels.get(key)) for key, path in images.items()],
            size,
            expected=expected,
            strays=[path for key, path in labels.items() if key not in images],
            translations=translations,
            check=check,
        )

    def published(self) -> dict[str, int]:
        """Number of images by city."""
        return self.PUBLISHED[self.split]

    def group_of(self, sample: Sample) -> str:
        """The city of a sample."""
        return sample.key.split("/", 1)[0]
