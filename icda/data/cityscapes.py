"""Cityscapes as unzipped from its official packages, with night translations where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from icda.data.base import Sample, SegmentationDataset, check_complete, check_split, list_files
from icda.data.classes import CITYSCAPES

LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Official label id of every train id (cityscapesscripts/helpers/labels.py)."""
LAST_LABEL_ID = 33
"""Largest id in the official label maps; ids up to it that are not in ``LABEL_IDS`` are ignored."""

IMAGE_ENDING = "_leftImg8bit.png"
TRAIN_IDS_ENDING = "_gtFine_labelTrainIds.png"
LABEL_IDS_ENDING = "_gtFine_labelIds.png"


def label_ids_to_train_ids() -> np.ndarray:
    """Table from official label ids to train ids.

    Returns:
        (256,) uint8. Ids that Cityscapes does not have stay themselves, so that :func:`read_label` refuses them.
    """
    table = np.arange(256, dtype=np.uint8)
    table[: LAST_LABEL_ID + 1] = CITYSCAPES.ignore_index
    table[list(LABEL_IDS)] = np.arange(len(CITYSCAPES))
    return table


class Cityscapes(SegmentationDataset):
    """Cityscapes, fine annotations.

    Labels are read from ``labelTrainIds`` files or, where these were not made, from the official ``labelIds``
    files, so no preparation is needed.

    Args:
        root: Folder that holds ``leftImg8bit`` and ``gtFine`` (or the folders named after their packages).
        split: ``train``, ``val`` or ``test``. Labels of the test split are not public.
        size: Height and width that images and labels are resized to; None keeps 1024 x 2048.
        translations: Folder of night translations, which holds ``leftImg8bit/<split>/<city>/`` with the file
            names of Cityscapes itself, in any size; None if there are none.
        labelled: Whether labels are looked for and read.

    Raises:
        UserError: If a folder, all images, a label or a translation is missing.
    """

    TREE = "leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_labelIds.png"
    PACKAGES = ("leftImg8bit_trainvaltest", "gtFine_trainvaltest")
    SPLITS = ("train", "val", "test")

    def __init__(
        self,
        root: str,
        split: str,
        size: Sequence[int] | None = None,
        translations: str | None = None,
        labelled: bool = True,
    ) -> None:
        name = f"Cityscapes {split}"
        check_split("Cityscapes", split, self.SPLITS)
        images = list_files(self._find(name, root, f"leftImg8bit/{split}"), (IMAGE_ENDING,))
        labels: dict[str, Path] = {}
        if labelled:
            folder = self._find(name, root, f"gtFine/{split}", "Or set labelled=false if no labels are needed.")
            found = list_files(folder, (".png",))
            for ending in (LABEL_IDS_ENDING, TRAIN_IDS_ENDING):  # later ones win
                stem = ending.removesuffix(".png")
                labels.update({k.removesuffix(stem): p for k, p in found.items() if k.endswith(stem)})
            check_complete(name, "label", images, labels, f"{folder}/<city>/*{LABEL_IDS_ENDING}")
        samples = [Sample(key, path, labels.get(key)) for key, path in images.items()]
        super().__init__(name, CITYSCAPES, root, samples, size)
        self._translations = self._find_translations(translations, split, images)

    def translation(self, index: int) -> np.ndarray:
        """Read the night translation of an image (method section 2).

        Args:
            index: Position in ``samples``.

        Returns:
            RGB image, (H, W, 3) uint8, of the same size as ``image(index)``.

        Raises:
            UserError: If the file cannot be read.
        """
        assert self._translations is not None, f"{self.name} was made without translations"
        return self._read_like(self._translations[index], self.samples[index])

    def _find_translations(self, root: str | None, split: str, images: dict[str, Path]) -> tuple[Path, ...] | None:
        if root is None:
            return None
        name = f"{self.name} translations"
        folder = self._find(name, root, f"leftImg8bit/{split}")
        found = list_files(folder, (IMAGE_ENDING,))
        check_complete(name, "translation", images, found, f"{folder}/<city>/*{IMAGE_ENDING}")
        return tuple(found[key] for key in images)

    def _label_mapping(self, path: Path) -> np.ndarray | None:
        return label_ids_to_train_ids() if path.name.endswith(LABEL_IDS_ENDING) else None
