"""The classes of a label space: names, colours, the id that is ignored, and which classes are things."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassSet:
    """A label space. Train ids are ``0 .. len(classes) - 1``; ``ignore_index`` marks pixels without a label.

    Args:
        name: Name of the label space, for messages.
        names: One name per train id.
        palette: One (R, G, B) colour in 0..255 per train id.
        ignore_index: The train id of pixels that count nowhere, 0..255 and not a class.
        things: Train ids of countable objects; the feature distance (method section 7.3) looks only at these.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int
    things: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.palette), (len(self.names), len(self.palette))
        assert not 0 <= self.ignore_index < len(self.names), (self.ignore_index, len(self.names))
        assert all(0 <= t < len(self.names) for t in self.things), (self.things, len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def colorize(self, label: np.ndarray) -> np.ndarray:
        """Colours of a label map.

        Args:
            label: Train ids, (H, W), any integer type; ids that are not a class become black.

        Returns:
            RGB image, (H, W, 3) uint8.
        """
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.palette
        return table[label]


# cityscapesscripts/helpers/labels.py, train ids 0..18.
CITYSCAPES = ClassSet(
    name="cityscapes",
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
        (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    ignore_index=255,
    things=(6, 7, 11, 12, 13, 14, 15, 16, 17, 18),
)  # fmt: skip

# The 11 classes of the SegNet tutorial's CamVid; its void id is 11, which the adapter maps to 255.
CAMVID = ClassSet(
    name="camvid",
    names=(
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    ignore_index=255,
    things=(6, 8, 9, 10),
)  # fmt: skip
