"""Confusion matrix and the scores made of it. Needs numpy alone."""

from __future__ import annotations

import numpy as np


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over a data set.

    The conventions are those of the official Cityscapes evaluation: one matrix over all images; pixels whose label is
    the ignore index count nowhere, whatever is predicted there; a class that occurs neither in the labels nor in the
    predictions at labelled pixels has the score nan and is left out of the mean. A class that is predicted somewhere
    but occurs in no label scores 0 and counts in the mean. One difference: the official code counts the prediction
    of an ignored id at a labelled pixel as a miss; here it is refused, because a network does not make it.

    Args:
        num_classes: Number of classes C.
        ignore_index: Label of pixels that do not count.

    Attributes:
        matrix: (C, C) int64; rows are labels, columns predictions.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}, expected at least 1")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index is {ignore_index}, one of the {num_classes} classes")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = np.zeros((num_classes, num_classes), np.int64)

    def update(self, prediction: np.ndarray, label: np.ndarray) -> None:
        """Count the pixels of one image.

        Args:
            prediction: Train ids, (H, W) of any integer type: 0 .. C - 1 wherever the label counts.
            label: Train ids, (H, W) of any integer type: 0 .. C - 1 and the ignore index.

        Raises:
            TypeError: If an array is not of an integer type.
            ValueError: If the shapes differ or are not (H, W), or an id is outside the range.
        """
        prediction, label = np.asarray(prediction), np.asarray(label)
        for name, array in (("prediction", prediction), ("label", label)):
            if not np.issubdtype(array.dtype, np.integer):
                raise TypeError(f"{name} is {array.dtype}, expected an integer type (take the argmax of logits)")
        if prediction.shape != label.shape or label.ndim != 2:
            raise ValueError(
                f"prediction is {prediction.shape}, label is {label.shape}; expected the same (H, W): resize the "
                "logits to the label's size"
            )
        counted = label != self.ignore_index
        prediction, label = prediction[counted], label[counted]
        for name, array in (("prediction", prediction), ("label", label)):
            if array.size and not 0 <= array.min() <= array.max() < self.num_classes:
                raise ValueError(
                    f"{name} holds ids from {array.min()} to {array.max()} at labelled pixels; expected 0 to "
                    f"{self.num_classes - 1}" + (f" or {self.ignore_index}" if name == "label" else "")
                )
        pairs = label.astype(np.intp) * self.num_classes + prediction.astype(np.intp)
        self.matrix += np.bincount(pairs, minlength=self.matrix.size).reshape(self.matrix.shape)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add the counts of another matrix, for example another process's.

        Args:
            other: A matrix with the same number of classes and the same ignore index.

        Raises:
            ValueError: If the two do not fit.
        """
        mine, theirs = (self.num_classes, self.ignore_index), (other.num_classes, other.ignore_index)
        if mine != theirs:
            raise ValueError(f"cannot merge (num_classes, ignore_index) {theirs} into {mine}")
        self.matrix += other.matrix

    def iou(self) -> np.ndarray:
        """Intersection over union of each class: TP / (TP + FP + FN).

        Returns:
            (C,) float64 in 0..1; nan where the class occurs neither in labels nor in predictions.
        """
        hits = np.diag(self.matrix).astype(np.float64)
        union = self.matrix.sum(axis=0) + self.matrix.sum(axis=1) - np.diag(self.matrix)
        return np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    def miou(self) -> float:
        """Mean of :meth:`iou` over the classes that are not nan.

        Returns:
            Score in 0..1; nan if nothing was counted.
        """
        scores = self.iou()
        scores = scores[~np.isnan(scores)]
        return float(scores.mean()) if scores.size else float("nan")

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are predicted right.

        Returns:
            Score in 0..1; nan if nothing was counted.
        """
        total = self.matrix.sum()
        return float(np.trace(self.matrix) / total) if total else float("nan")

    def frequency_weighted_iou(self) -> float:
        """Mean of :meth:`iou` weighted by each class's share of the labelled pixels.

        Returns:
            Score in 0..1; nan if nothing was counted.
        """
        total = self.matrix.sum()
        weights = self.matrix.sum(axis=1)
        return float(np.sum(weights * np.nan_to_num(self.iou())) / total) if total else float("nan")
