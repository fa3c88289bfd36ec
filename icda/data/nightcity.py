"""NightCity, NightCity+ and NightCity-fine: labelled night images of many cities, in the forms they are passed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from icda.data.base import Sample, check_split
from icda.data.cityscapes import LAST_LABEL_ID, CityscapesLabels, label_ids_to_train_ids
from icda.data.classes import CITYSCAPES
from icda.data.files import list_files
from icda.data.io import IMAGE_ENDINGS, read_image, resize_label
from icda.errors import UserError


class NightCity(CityscapesLabels):
    """Night images with labels. There are no day references and no invalid masks.

    The form is told by the folders, what the labels hold by the ends of their names: ``_labelIds`` are official
    label ids, ``_trainIds`` (NightCity-fine) and ``_labelTrainIds`` are train ids. Ids that Cityscapes does not have
    are ignored in ``_labelIds`` files, where a few are part of the release, and refused in the others. Label files
    with three equal channels are read by one of them. For NightCity+ put its labels in the place of val's.

    Args:
        root: Folder that holds the folders of one form (see ``TREE``), or that of the packages.
        split: ``train`` or ``val``.
        size: Height and width that images and labels are resized to; None keeps 512 x 1024.
        labelled: Whether labels are looked for and read.
        translations: Folder of translations (see ``SegmentationDataset``); None if there are none.
        check: Whether an incomplete tree is refused (see ``SegmentationDataset``).

    Raises:
        UserError: If a folder, all images, a label or a translation is missing.
    """

    TREE = (
        "NightCity-images/images/<split>/<city>_<number>.png and NightCity-label/label/<split>/*_labelIds.png, or "
        "the folders images/<split> and label/<split>, img/<split> and gt/<split> (*_labelTrainIds.png), "
        "<split>/img and <split>/lbl (*_trainIds.png)"
    )
    PACKAGES = (
        "NightCity-images/NightCity-images",
        "NightCity-label/NightCity-label",
        "NightCity-images",
        "NightCity-label",
        "NightCity",
        "NightCity-fine",
        "nightcity-fine",
    )
    TRAIN_IDS_ENDINGS = ("_labelTrainIds.png", "_trainIds.png")
    LABEL_IDS_ENDINGS = ("_labelIds.png",)
    SPLITS = ("train", "val")
    FORMS: ClassVar[dict[str, tuple[str, str]]] = {
        "images/{}": ("label/{}", "_labelIds.png"),
        "{}/img": ("{}/lbl", "_trainIds.png"),
        "img/{}": ("gt/{}", "_labelTrainIds.png"),
    }
    """Folder of labels and end of their names, by the folder of images; ``{}`` is the split."""
    PUBLISHED: ClassVar[dict[str, int]] = {"train": 2998, "val": 1299}
    """Number of images by split (github.com/xdeng7/NightLab, issue 3)."""

    def __init__(
        self,
        root: str,
        split: str,
        size: Sequence[int] | None = None,
        labelled: bool = True,
        translations: str | None = None,
        check: bool = True,
    ) -> None:
        name = f"NightCity {split}"
        check_split("NightCity", split, self.SPLITS)
        self.split = split
        form = next((form for form in self.FORMS if self._holds(root, form.format(split))), next(iter(self.FORMS)))
        images = list_files(self._find(name, root, form.format(split)), IMAGE_ENDINGS)
        labels, expected = {}, {}
        if labelled:
            folder, ending = self.FORMS[form]
            folder = self._find(name, root, folder.format(split), "Or set labelled=false if no labels are needed.")
            labels = self._list_labels(folder)
            expected["label"] = f"{folder}/*{ending}"
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
        """Number of images of the split; there are no groups."""
        return {"": self.PUBLISHED[self.split]}

    @classmethod
    def _holds(cls, root: str, folder: str) -> bool:
        base = Path(root).expanduser()
        return any((base / package / folder).is_dir() for package in ("", *cls.PACKAGES))

    def _label_mapping(self, path: Path) -> np.ndarray | None:
        if super()._label_mapping(path) is None:
            return None
        table = label_ids_to_train_ids()
        table[LAST_LABEL_ID + 1 :] = self.classes.ignore_index
        return table

    def _read_label(self, sample: Sample, resized: bool) -> np.ndarray:
        if not _has_several_channels(sample.label):
            return super()._read_label(sample, resized)
        channels = read_image(sample.label)
        ids, mapping = channels[..., 0], self._label_mapping(sample.label)
        label = np.ascontiguousarray(ids if mapping is None else mapping[ids])
        wrong = (channels != ids[..., None]).any(axis=-1)
        if wrong.any():
            raise UserError(
                f"{sample.label} is no label map: its channels differ in {int(wrong.sum())} pixels. A colour picture "
                f"of the labels cannot be used; expected {self.expected['label']}"
            )
        wrong = (label >= len(self.classes)) & (label != self.classes.ignore_index)
        if wrong.any():
            raise UserError(
                f"{sample.label} holds ids that are no train ids: {np.unique(label[wrong]).tolist()[:10]} "
                f"({int(wrong.sum())} pixels); if they are label ids, name the file *{self.LABEL_IDS_ENDINGS[0]}"
            )
        self._check_same_size(sample, "label", sample.label, label)
        return resize_label(label, self.size) if resized else label


def _has_several_channels(path: Path) -> bool:
    """Whether a file's header tells of colour or transparency; False for what is no image, which reading names."""
    try:
        with Image.open(path) as picture:
            return len(picture.getbands()) > 1
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
