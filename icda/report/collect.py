"""What is gathered for the evaluation page while images are scored, in memory that does not grow with their size."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icda.data.classes import ClassSet
from icda.errors import UserError
from icda.evaluation import Scored
from icda.image_wise import ImageWise, quarters
from icda.metrics import Calibration
from icda.report.layers import Layers, layers_of, luma, thumbnail
from icda.scores import plain

_THUMBNAIL_SIDE = 144  # pixels
_THUMBNAIL = 6_000  # bytes that one takes at most
_THUMBNAILS = 12_000_000  # bytes that all together should not exceed
_SMALLEST_THUMBNAIL = 1_200  # bytes; no picture is to be seen in fewer
_AROUND = 2  # as many layers as images are shown of a kind are kept on each side of the middle, times this


@dataclass(frozen=True)
class Pictures:
    """Which pictures are kept for the page.

    Args:
        each: Images of each kind (best, median, worst) whose layers are kept.
        side: Longest side of the layers in pixels.
    """

    each: int
    side: int


class Collector:
    """An observer of ``icda.evaluation.evaluate``: figures of every image, and layers of a few.

    Of every image its confusion matrix (the cells that are not zero), brightness and a thumbnail are kept: some 8 kB.
    Layers are kept of those alone that are among the best, the worst or the middle ones so far. Which images are the
    median ones is known at the end only; where one of them was not in the middle before, it is segmented once more,
    see :meth:`settle`: the network is the same, and so are its labels.

    Args:
        classes: The label space.
        mean: (3,) float of the network's normalisation.
        std: (3,) float of the network's normalisation.
        names: Of the images, in the data set's order.
        pictures: Which pictures are kept; None keeps figures alone.

    Attributes:
        calibration: Of all labelled pixels.
        images: The images' own confusion matrices.
        luma: The images' brightness, 0..255.
        thumbnails: A JPEG of each image; empty where no pictures are kept.
        layers: By the image's place in the data set: of 6 images for each one of a kind at most, and of those that
            are shown alone after :meth:`settle`.
    """

    def __init__(
        self,
        classes: ClassSet,
        mean: np.ndarray,
        std: np.ndarray,
        names: Sequence[str],
        pictures: Pictures | None = None,
    ) -> None:
        self.classes = classes
        self.mean, self.std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self.names = tuple(names)
        self.pictures = pictures
        self.calibration = Calibration(len(classes), classes.ignore_index)
        self.images = ImageWise(len(classes), classes.ignore_index)
        self.luma: list[float] = []
        self.thumbnails: list[bytes] = []
        self.layers: dict[int, Layers] = {}
        self._order: list[tuple[float, int]] = []  # scores and places of the images, the worst first

    def __call__(self, scored: Scored) -> None:
        """Take up one image; they come in the data set's order.

        Raises:
            UserError: If the network gave something else than probabilities.
        """
        if not np.isfinite(scored.confidence).all():
            raise UserError(
                f"{self.names[scored.index]}: what the network gives is not finite; give precision=fp32, or another "
                "checkpoint"
            )
        assert scored.index == len(self.images), (scored.index, len(self.images))
        score = self.images.update(scored.counts)
        self.calibration.update(scored.prediction, scored.confidence, scored.label)
        self.luma.append(luma(scored, self.mean, self.std))
        if self.pictures is None:
            return
        limit = max(_SMALLEST_THUMBNAIL, min(_THUMBNAIL, _THUMBNAILS // len(self.names)))
        self.thumbnails.append(thumbnail(scored, self.mean, self.std, _THUMBNAIL_SIDE, limit))
        if not math.isnan(score) and self.pictures.each:
            self._compete(score, scored)

    def _compete(self, score: float, scored: Scored) -> None:
        """Keep the layers of an image as long as it is among the best, the worst or the middle ones."""
        each, order = self.pictures.each, self._order
        bisect.insort(order, (score, scored.index))
        middle, around = len(order) // 2, _AROUND * each
        near = (*order[:each], *order[max(0, middle - around) : middle + around], *order[-each:])
        kept = {index for _, index in near}
        if scored.index in kept:
            self.layers[scored.index] = layers_of(scored, self.mean, self.std, self.pictures.side)
        for index in self.layers.keys() - kept:
            del self.layers[index]

    def shown(self) -> dict[str, list[int]]:
        """The images whose layers the page shows, by kind, each best first: ``best``, ``median`` and ``worst``.

        No image is of two kinds; with few images there are fewer of each kind than asked for. Images without a
        labelled pixel are of no kind. Of equal scores the later image counts as better.
        """
        scores = self.images.miou()
        order = [int(i) for i in np.argsort(scores, kind="stable") if not math.isnan(scores[i])][::-1]
        each = self.pictures.each if self.pictures else 0
        best = min(each, (len(order) + 2) // 3)
        worst = min(each, (len(order) + 1) // 3)
        median = min(each, len(order) // 3)
        between = len(order) - best - worst
        start = best + (between - median) // 2
        return {
            "best": order[:best],
            "median": order[start : start + median],
            "worst": order[len(order) - worst :],
        }

    def settle(self) -> list[int]:
        """Let go of the layers that are not :meth:`shown`, once all images are there.

        Returns:
            The images that are shown but whose layers were not kept, to be scored again for :meth:`again`.
        """
        shown = {index for images in self.shown().values() for index in images}
        self.layers = {index: layers for index, layers in self.layers.items() if index in shown}
        return sorted(shown - self.layers.keys())

    def again(self, scored: Scored) -> None:
        """Keep the layers of an image that is scored a second time."""
        assert self.pictures is not None
        self.layers[scored.index] = layers_of(scored, self.mean, self.std, self.pictures.side)

    def figures(self) -> dict[str, Any]:
        """What was gathered as plain values, ready for JSON; None where nothing was counted.

        Returns:
            ``calibration``: ``ece`` (expected calibration error, 0..1) and ``bins``, each with the confidences that
            it takes (above ``from``, up to ``to``), ``pixels``, ``accuracy`` and mean ``confidence``.
            ``image_wise``: ``miou`` (mean over images of each one's own mIoU) and ``images``, each with ``name``,
            ``miou``, ``pixel_accuracy``, ``labelled_pixels`` and ``brightness`` (mean luma, 0..255).
            ``brightness``: quarters of the images from the darkest to the brightest, each with the number of
            ``images``, the brightness of its darkest (``from``) and brightest (``to``), and ``miou`` of one confusion
            matrix over all of its images.
        """
        scores, accuracy, pixels = self.images.miou(), self.images.pixel_accuracy(), self.images.pixels()
        known = scores[~np.isnan(scores)]
        rows = zip(self.names, scores, accuracy, pixels.tolist(), self.luma, strict=True)
        return {
            "calibration": {"ece": plain(self.calibration.ece()), "bins": self._bins()},
            "brightness": self._quarters(),
            "image_wise": {
                "miou": float(known.mean()) if known.size else None,
                "images": [
                    {
                        "name": name,
                        "miou": plain(miou),
                        "pixel_accuracy": plain(share),
                        "labelled_pixels": count,
                        "brightness": brightness,
                    }
                    for name, miou, share, count, brightness in rows
                ],
            },
        }

    def _bins(self) -> list[dict[str, Any]]:
        calibration, bins = self.calibration, self.calibration.bins
        values = zip(calibration.pixels.tolist(), calibration.accuracy(), calibration.confidence(), strict=True)
        return [
            {
                "from": level / bins,
                "to": (level + 1) / bins,
                "pixels": pixels,
                "accuracy": plain(accuracy),
                "confidence": plain(confidence),
            }
            for level, (pixels, accuracy, confidence) in enumerate(values)
        ]

    def _quarters(self) -> list[dict[str, Any]]:
        brightness = np.array(self.luma)
        return [
            {
                "images": len(group),
                "from": float(brightness[group].min()),
                "to": float(brightness[group].max()),
                "miou": plain(self.images.joined(group).miou()),
            }
            for group in quarters(brightness)
        ]
