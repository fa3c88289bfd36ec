"""Scores image by image, and of groups of images. Needs numpy alone."""

from __future__ import annotations

import numpy as np

from icda.metrics import ConfusionMatrix

QUARTERS = 4


class ImageWise:
    """The confusion matrix of every image, kept as its few cells that are not zero.

    A cell takes 12 bytes, and an image has some hundreds of them at most, however many classes there are: 5000 images
    take tens of megabytes.

    Example:
        >>> images = ImageWise(num_classes=2, ignore_index=255)
        >>> images.update(np.array([[3, 1], [0, 0]]))  # of class 0 three of four pixels, of class 1 none
        0.375
        >>> images.update(np.array([[0, 0], [2, 2]]))
        0.25
        >>> images.update(np.zeros((2, 2), int))  # an image without a labelled pixel
        nan
        >>> [round(iou, 3) for iou in images.miou().tolist()]
        [0.375, 0.25, nan]
        >>> images.joined([0, 1]).matrix.tolist()
        [[3, 1], [2, 2]]

    Args:
        num_classes: Number of classes C.
        ignore_index: Label of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._cells: list[tuple[np.ndarray, np.ndarray]] = []
        self._miou: list[float] = []
        self._accuracy: list[float] = []

    def __len__(self) -> int:
        return len(self._cells)

    def update(self, counts: np.ndarray) -> float:
        """Add one image.

        Args:
            counts: Its pixels by label and prediction, (C, C) of any integer type.

        Returns:
            Its own mIoU; nan without a labelled pixel.
        """
        assert counts.shape == (self.num_classes, self.num_classes), (counts.shape, self.num_classes)
        places = np.flatnonzero(counts).astype(np.int32)
        self._cells.append((places, counts.ravel()[places].astype(np.int64)))
        matrix = self._matrix(counts)
        self._miou.append(matrix.miou())
        self._accuracy.append(matrix.pixel_accuracy())
        return self._miou[-1]

    def _matrix(self, counts: np.ndarray) -> ConfusionMatrix:
        matrix = ConfusionMatrix(self.num_classes, self.ignore_index)
        matrix.matrix += counts
        return matrix

    def miou(self) -> np.ndarray:
        """mIoU of each image by itself, over the classes that occur in its label or prediction.

        Returns:
            (N,) float64 in 0..1; nan for an image without a labelled pixel.
        """
        return np.array(self._miou, np.float64)

    def pixel_accuracy(self) -> np.ndarray:
        """Pixel accuracy of each image: (N,) float64 in 0..1; nan for an image without a labelled pixel."""
        return np.array(self._accuracy, np.float64)

    def pixels(self) -> np.ndarray:
        """Labelled pixels of each image, (N,) int64."""
        return np.array([counts.sum() for _, counts in self._cells], np.int64)

    def joined(self, images: np.ndarray | list[int]) -> ConfusionMatrix:
        """One confusion matrix over some images.

        Args:
            images: Their places in the order of :meth:`update`, (n,) integers.
        """
        joined = np.zeros(self.num_classes**2, np.int64)
        for image in images:
            places, counts = self._cells[image]
            joined[places] += counts
        return self._matrix(joined.reshape(self.num_classes, self.num_classes))


def quarters(values: np.ndarray) -> list[np.ndarray]:
    """Images in four groups of equal size by a value of each, the lowest first.

    >>> [group.tolist() for group in quarters(np.array([5.0, 1.0, 4.0, 2.0, 3.0]))]
    [[1, 3], [4], [2], [0]]

    Args:
        values: (N,) numbers; of equal ones the first image counts as lower.

    Returns:
        Places of the images of each group, in ascending order of the value; sizes differ by one at most, the first
        groups being the larger. With fewer than four images there are as many groups as images.
    """
    order = np.argsort(values, kind="stable")
    return [group for group in np.array_split(order, QUARTERS) if group.size]
