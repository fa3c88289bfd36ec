"""Counts over a data set and the scores made of them: IoU, IoU with uncertainty, calibration. Needs numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 2**16  # pixels counted at a time: their pairs stay in the cache
DEFAULT_STEPS = 100
"""Steps of the default grid of thresholds, each a hundredth of the range of confidences."""
DEFAULT_BINS = 15
"""Bins of confidence, as in Guo et al., ICML 2017."""


class ConfusionMatrix:
    """Counts of (label, prediction) pairs over a data set.

    The conventions are those of the official Cityscapes evaluation: one matrix over all images; pixels whose label is
    the ignore index count nowhere, whatever is predicted there; a class that occurs neither in the labels nor in the
    predictions at labelled pixels has the score nan and is left out of the mean. A class that is predicted somewhere
    but occurs in no label scores 0 and counts in the mean. One difference: the official code counts the prediction
    of an ignored id at a labelled pixel as a miss; here it is refused, because a network does not make it.

    Example:
        >>> matrix = ConfusionMatrix(num_classes=2, ignore_index=255)
        >>> matrix.update(prediction=np.array([[0, 0, 1, 1]]), label=np.array([[0, 1, 1, 255]]))
        >>> matrix.matrix.tolist()
        [[1, 0], [1, 1]]
        >>> matrix.iou().tolist(), matrix.miou()
        ([0.5, 0.5], 0.5)

    Args:
        num_classes: Number of classes C.
        ignore_index: Label of pixels that do not count.

    Attributes:
        matrix: (C, C) int64; rows are labels, columns predictions.
    """

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        _check_label_space(num_classes, ignore_index)
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
        _check_ids(prediction.dtype, label.dtype, prediction.shape, label.shape)
        counts = np.zeros_like(self.matrix)
        rows = max(1, _CHUNK // max(1, label.shape[1]))
        for start in range(0, len(label), rows):
            part = slice(start, start + rows)
            _, predicted, labelled = _labelled_pixels(
                prediction[part], label[part], self.num_classes, self.ignore_index
            )
            pairs = labelled.astype(np.intp)
            pairs *= self.num_classes
            pairs += predicted.astype(np.intp)
            counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
        self.matrix += counts

    def update_tensors(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of one image on the device where it is; the counts alone are fetched.

        Args:
            prediction: As ``update`` takes it, a tensor.
            label: As ``update`` takes it, a tensor on the same device.

        Raises:
            TypeError: See ``update``.
            ValueError: See ``update``.
        """
        none = [tensor.flatten()[:0].cpu().numpy() for tensor in (prediction, label)]  # tells the type
        _check_ids(none[0].dtype, none[1].dtype, tuple(prediction.shape), tuple(label.shape))
        c, ignored, refused = self.num_classes, self.matrix.size, self.matrix.size + 1
        ids, truth = prediction.long(), label.long()
        valid = (ids >= 0) & (ids < c) & (truth >= 0) & (truth < c)
        pairs = (truth * c + ids).where(valid, refused).where(truth != self.ignore_index, ignored)
        counts = pairs.flatten().bincount(minlength=refused + 1).cpu().numpy()
        if counts[refused]:
            self.update(prediction.cpu().numpy(), label.cpu().numpy())  # says which ids they are
        self.matrix += counts[:ignored].reshape(self.matrix.shape)

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
        return float(_mean_over_present(self.iou()))

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


class UncertaintyIoU:
    """Uncertainty-aware IoU (Sakaridis et al., ICCV 2019): a network may call pixels invalid instead of a class.

    A threshold invalidates the pixels whose confidence is below it. Over the pixels with a label, of class c:

    - TP, FP, FN: as for IoU, over the pixels that are not invalidated;
    - TI, true invalid: of class c, invalidated, and invalid to people too;
    - FI, false invalid: of class c and invalidated, but people can make it out;
    - UIoU = (TP + TI) / (TP + TI + FP + FN + FI).

    Conventions:

    - Pixels whose label is the ignore index count nowhere, invalid or not. Pixels invalid to people that have a
      label do count, under the class that it names.
    - Confidence and threshold are compared in the type of the confidences, so that a confidence equal to a threshold
      as far as its type can tell is not below it.
    - Thresholds up to 1/C invalidate nothing, so that UIoU is IoU there: the largest of C probabilities is never
      below 1/C but for rounding (16 bits in a PNG, for example).
    - A class with none of TP, FP, FN, TI, FI at a threshold is nan there and left out of that mean. This takes in
      a class without labels whose predictions have all been invalidated.
    - The average over thresholds depends on the grid. The grid of the Dark Zurich benchmark's server is not known
      and its code is not public, so an average from here need not be the one that it gives. The default grid goes
      from 1/C, where nothing is invalidated, to 1, where all but full confidence is, in 100 equal steps (101
      thresholds); a finer grid moves the average by a few tenths of a percentage point at most.

    Args:
        num_classes: Number of classes C.
        ignore_index: Label of pixels that do not count.
        thresholds: (T,) numbers in 0..1 in ascending order; None takes the default grid.

    Attributes:
        thresholds: (T,) float64.
        counts: (C, C, 2, T + 1) int64; pixels by label, by prediction, by whether they are invalid to people, and
            by the number of thresholds that are not above their confidence.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, num_classes: int, ignore_index: int, thresholds: np.ndarray | None = None) -> None:
        _check_label_space(num_classes, ignore_index)
        if thresholds is None:
            thresholds = np.linspace(1 / num_classes, 1, DEFAULT_STEPS + 1)
        thresholds = np.array(thresholds, np.float64)
        if thresholds.ndim != 1 or not thresholds.size:
            raise ValueError(f"thresholds is {thresholds.shape}, expected (T,) with T at least 1")
        if not (thresholds[0] >= 0 and thresholds[-1] <= 1 and (np.diff(thresholds) >= 0).all()):
            raise ValueError(f"thresholds are {thresholds.tolist()}, expected numbers in 0..1 in ascending order")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.thresholds = thresholds
        self.counts = np.zeros((num_classes, num_classes, 2, thresholds.size + 1), np.int64)

    def update(self, prediction: np.ndarray, confidence: np.ndarray, label: np.ndarray, invalid: np.ndarray) -> None:
        """Count the pixels of one image.

        Args:
            prediction: Train ids, (H, W) of any integer type: 0 .. C - 1 wherever the label counts.
            confidence: Largest softmax probability, (H, W) of any float type, 0..1 everywhere.
            label: Train ids, (H, W) of any integer type: 0 .. C - 1 and the ignore index.
            invalid: (H, W) bool; True where people could not make out the pixel in the image alone.

        Raises:
            TypeError: If an array is not of the type that is named.
            ValueError: If the shapes differ or are not (H, W), or an id or a confidence is outside the range or nan.
        """
        counted, prediction, label = _labelled_pixels(prediction, label, self.num_classes, self.ignore_index)
        confidence, invalid = _checked_confidence(confidence, counted.shape), np.asarray(invalid)
        if invalid.dtype != bool:
            raise TypeError(f"invalid is {invalid.dtype}, expected bool (compare the mask's ids with 0)")
        if invalid.shape != counted.shape:
            raise ValueError(f"invalid is {invalid.shape}, label is {counted.shape}; expected the same (H, W)")
        edges = np.where(self.thresholds <= 1 / self.num_classes, 0, self.thresholds).astype(confidence.dtype)
        level = np.searchsorted(edges, confidence[counted], "right")
        cells = (label.astype(np.intp), prediction.astype(np.intp), invalid[counted].astype(np.intp), level)
        index = np.ravel_multi_index(cells, self.counts.shape)
        self.counts += np.bincount(index, minlength=self.counts.size).reshape(self.counts.shape)

    def merge(self, other: UncertaintyIoU) -> None:
        """Add the counts of another one, for example another process's.

        Args:
            other: One with the same number of classes, ignore index and thresholds.

        Raises:
            ValueError: If the two do not fit.
        """
        mine, theirs = (self.num_classes, self.ignore_index), (other.num_classes, other.ignore_index)
        if mine != theirs:
            raise ValueError(f"cannot merge (num_classes, ignore_index) {theirs} into {mine}")
        if not np.array_equal(self.thresholds, other.thresholds):
            raise ValueError(
                f"cannot merge counts at other thresholds: {other.thresholds.size} from {other.thresholds[0]:g} to "
                f"{other.thresholds[-1]:g} into {self.thresholds.size} from {self.thresholds[0]:g} to "
                f"{self.thresholds[-1]:g}"
            )
        self.counts += other.counts

    def uiou(self) -> np.ndarray:
        """UIoU of each class at each threshold.

        Returns:
            (T, C) float64 in 0..1; nan where the class has no pixel of any kind at that threshold.
        """
        below = self.counts.cumsum(-1)
        kept = below[..., -1:] - below[..., :-1]  # the last axis is now the threshold
        kept = kept.sum(2)
        hits = np.diagonal(kept)  # TP, (T, C)
        false_hits = kept.sum(0).T - hits  # FP
        true_invalid = below[:, :, 1, :-1].sum(1).T  # TI
        labelled = self.counts.sum((1, 2, 3))  # TP + FN + TI + FI: every labelled pixel is one of them
        union = labelled + false_hits
        return np.divide(hits + true_invalid, union, out=np.full(union.shape, np.nan), where=union > 0)

    def muiou(self) -> np.ndarray:
        """Mean of :meth:`uiou` at each threshold over the classes that are not nan.

        Returns:
            (T,) float64 in 0..1; nan if nothing was counted.
        """
        return _mean_over_present(self.uiou())

    def average(self) -> float:
        """Average UIoU: mean of :meth:`muiou` over the thresholds.

        Returns:
            Score in 0..1; nan if nothing was counted.
        """
        return float(self.muiou().mean())


class Calibration:
    """Whether confidences can be taken at their word: accuracy against confidence (Guo et al., ICML 2017).

    Pixels with a label are sorted by confidence into M bins of equal width, bin m = 1 .. M taking
    ((m - 1) / M, m / M] as far as the type of the confidences can tell. Expected calibration error: the mean of
    |accuracy - confidence| over the bins, weighted by their pixels.

    Example:
        >>> calibration = Calibration(num_classes=2, ignore_index=255, bins=2)
        >>> calibration.update(np.array([[0, 0, 1]]), np.array([[0.5, 0.75, 1.0]]), np.array([[1, 0, 1]]))
        >>> calibration.pixels.tolist(), calibration.accuracy().tolist(), calibration.confidence().tolist()
        ([1, 2], [0.0, 1.0], [0.5, 0.875])
        >>> calibration.ece()  # (1 * |0 - 0.5| + 2 * |1 - 0.875|) / 3
        0.25

    Args:
        num_classes: Number of classes C.
        ignore_index: Label of pixels that do not count.
        bins: Number of bins M.

    Attributes:
        pixels, hits: (M,) int64; pixels of each bin, and those of them that are predicted right.
        total: (M,) float64; sum of their confidences.
    """

    def __init__(self, num_classes: int, ignore_index: int, bins: int = DEFAULT_BINS) -> None:
        _check_label_space(num_classes, ignore_index)
        self.num_classes, self.ignore_index, self.bins = num_classes, ignore_index, bins
        self.pixels, self.hits = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        self.total = np.zeros(bins)

    def update(self, prediction: np.ndarray, confidence: np.ndarray, label: np.ndarray) -> None:
        """Count the pixels of one image; arrays and errors are those of ``UncertaintyIoU.update``."""
        counted, prediction, label = _labelled_pixels(prediction, label, self.num_classes, self.ignore_index)
        confidence = _checked_confidence(confidence, counted.shape)[counted]
        level = np.ceil(confidence * confidence.dtype.type(self.bins)).astype(np.intp)
        level = np.clip(level - 1, 0, self.bins - 1, out=level)
        self.total += np.bincount(level, confidence, self.bins)
        level[prediction == label] += self.bins
        misses, hits = np.bincount(level, minlength=2 * self.bins).reshape(2, self.bins)
        self.pixels += misses + hits
        self.hits += hits

    def accuracy(self) -> np.ndarray:
        """Share of the pixels of each bin that are predicted right: (M,) float64; nan in a bin without pixels."""
        return _share(self.hits, self.pixels)

    def confidence(self) -> np.ndarray:
        """Mean confidence of the pixels of each bin: (M,) float64; nan in a bin without pixels."""
        return _share(self.total, self.pixels)

    def ece(self) -> float:
        """Expected calibration error, 0..1; nan if nothing was counted."""
        pixels = self.pixels.sum()
        return float(np.abs(self.hits - self.total).sum() / pixels) if pixels else float("nan")


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _check_label_space(num_classes: int, ignore_index: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, expected at least 1")
    if 0 <= ignore_index < num_classes:
        raise ValueError(f"ignore_index is {ignore_index}, one of the {num_classes} classes")


def _check_ids(
    prediction: np.dtype, label: np.dtype, prediction_shape: tuple[int, ...], label_shape: tuple[int, ...]
) -> None:
    """Raise what the ``update`` methods say of types and shapes."""
    for name, dtype in (("prediction", prediction), ("label", label)):
        if not np.issubdtype(dtype, np.integer):
            raise TypeError(f"{name} is {dtype}, expected an integer type (take the argmax of logits)")
    if prediction_shape != label_shape or len(label_shape) != 2:
        raise ValueError(
            f"prediction is {prediction_shape}, label is {label_shape}; expected the same (H, W): resize the "
            "logits to the label's size"
        )


def _labelled_pixels(
    prediction: np.ndarray, label: np.ndarray, num_classes: int, ignore_index: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which pixels count, (H, W) bool, and prediction and label there, (N,); raises as the ``update`` methods say."""
    prediction, label = np.asarray(prediction), np.asarray(label)
    _check_ids(prediction.dtype, label.dtype, prediction.shape, label.shape)
    counted = label != ignore_index
    prediction, label = prediction[counted], label[counted]
    for name, array in (("prediction", prediction), ("label", label)):
        if array.size and not 0 <= array.min() <= array.max() < num_classes:
            raise ValueError(
                f"{name} holds ids from {array.min()} to {array.max()} at labelled pixels; expected 0 to "
                f"{num_classes - 1}" + (f" or {ignore_index}" if name == "label" else "")
            )
    return counted, prediction, label


def _checked_confidence(confidence: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    confidence = np.asarray(confidence)
    if not np.issubdtype(confidence.dtype, np.floating):
        raise TypeError(f"confidence is {confidence.dtype}, expected a float type (a probability in 0..1)")
    if confidence.shape != shape:
        raise ValueError(f"confidence is {confidence.shape}, label is {shape}; expected the same (H, W)")
    if confidence.size and not 0 <= confidence.min() <= confidence.max() <= 1:  # nan is neither
        undefined = int(np.isnan(confidence).sum())
        found = f"nan at {undefined} pixels" if undefined else f"from {confidence.min()} to {confidence.max()}"
        raise ValueError(f"confidence is {found}; expected the largest softmax probability, 0 to 1")
    return confidence


def _mean_over_present(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis without nan; nan where there is nothing else."""
    present = ~np.isnan(scores)
    count = present.sum(-1)
    total = np.where(present, scores, 0).sum(-1)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
