"""Nighttime Driving as unzipped from its official package: 50 labelled night images, for testing only."""

from __future__ import annotations

from collections.abc import Sequence

from icda.data.base import Sample
from icda.data.cityscapes import CityscapesLabels
from icda.data.classes import CITYSCAPES
from icda.data.files import list_files


class NighttimeDriving(CityscapesLabels):
    """The test images of Nighttime Driving. There are no day references and no invalid masks.

    Despite ``gtCoarse`` in their names, the labels are per pixel.

    Args:
        root: The folder ``NighttimeDrivingTest``, which holds ``leftImg8bit``, or the folder above it.
        size: Height and width that images and labels are resized to; None keeps 1080 x 1920.
        labelled: Whether labels are looked for and read.
        check: Whether an incomplete tree is refused (see ``SegmentationDataset``).

    Raises:
        UserError: If a folder, all images or a label is missing.
    """

    TREE = (
        "leftImg8bit/test/night/*_leftImg8bit.png and "
        "gtCoarse_daytime_trainvaltest/test/night/*_gtCoarse_labelTrainIds.png"
    )
    PACKAGES = ("NighttimeDrivingTest/NighttimeDrivingTest", "NighttimeDrivingTest")
    TRAIN_IDS_ENDINGS = ("_gtCoarse_labelTrainIds.png",)
    LABEL_IDS_ENDINGS = ("_gtCoarse_labelIds.png",)
    PUBLISHED = 50
    """Number of images (github.com/sakaridis/MGCDA, data/NighttimeDrivingTest_lists_file_names)."""

    def __init__(
        self, root: str, size: Sequence[int] | None = None, labelled: bool = True, check: bool = True
    ) -> None:
        name = "Nighttime Driving"
        images = list_files(self._find(name, root, "leftImg8bit/test/night"), ("_leftImg8bit.png",))
        labels, expected = {}, {}
        if labelled:
            hint = "Or set labelled=false if no labels are needed."
            folder = self._find(name, root, "gtCoarse_daytime_trainvaltest/test/night", hint)
            labels = self._list_labels(folder)
            expected["label"] = f"{folder}/*{self.TRAIN_IDS_ENDINGS[0]}"
        super().__init__(
            name,
            CITYSCAPES,
            root,
            [Sample(key, path, labels.get(key)) for key, path in images.items()],
            size,
            expected=expected,
            strays=[path for key, path in labels.items() if key not in images],
            check=check,
        )

    def published(self) -> dict[str, int]:
        """Number of images; there are no groups."""
        return {"": self.PUBLISHED}
