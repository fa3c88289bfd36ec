"""A trained network as one object that segments pictures; ``icda.load`` makes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from icda import viz
from icda.data.classes import ClassSet
from icda.errors import UserError
from icda.inference import Views, prepared, segment
from icda.models import SegmentationModel
from icda.prediction.inputs import InputSize, chosen_size, entering, training_size
from icda.training.checkpoint import Trained
from icda.training.precision import Precision

_CHANNELS = 3
_EXPECTED = "an RGB picture, a NumPy array (H, W, 3) of uint8; OpenCV's are BGR: image[:, :, ::-1]"


class Predictor:
    """Segments pictures with a trained network, as ``scripts/predict.py`` does.

    A call changes nothing in the predictor, so that several threads may share it. It can be pickled; what was on a
    GPU comes back on that GPU.

    Args:
        trained: From ``icda.training.checkpoint.load_trained``. Its model is not changed and shares weights as far as
            they stay what they are (``icda.inference.prepared``); drop it to free the rest.
        size: At which pictures enter the network: ``auto`` or None (the area of the training's validation images, in
            the picture's own shape), ``original``, or height and width in pixels.
        precision: Of weights and maps: ``fp32``, ``bf16`` (CPU, and GPU that has it) or ``fp16`` (GPU alone).
        window: Height and width of sliding windows, in pixels of the picture at each of ``scales``; None shows it
            whole.
        stride: By which windows move, height and width; None takes two thirds of the window's.
        flip: Whether the mean of the probabilities of the picture and of its mirror image decides.
        scales: Factors of the picture's sides at which it is segmented; of several the mean of the probabilities
            decides.
        temperature: What logits are divided by before the softmax, above 0.

    Attributes:
        model: The network, prepared for inference.
        classes: The label space: names, colours, and how many there are.
        size: At which pictures enter the network.
        views: How they are shown to it: whole or by windows, and whether mirrored as well.

    Raises:
        UserError: If an argument is none of these, or the device cannot do the precision.
    """

    def __init__(
        self,
        trained: Trained,
        size: str | Sequence[int] | None = None,
        *,
        precision: str = "fp32",
        window: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        temperature: float = 1.0,
    ) -> None:
        self.views: Views = Views.of(window, stride, flip, scales, temperature)
        dtype = Precision(precision, trained.model.mean.device).dtype
        self.model: SegmentationModel = prepared(trained.model, dtype)
        self.classes: ClassSet = trained.classes
        self.size: InputSize = chosen_size(_checked_size(size), training_size(trained.config))
        self._mean = trained.model.mean.cpu().numpy()
        self._std = trained.model.std.cpu().numpy()

    def __repr__(self) -> str:
        count = len(self.classes)
        return f"Predictor({count} {self.classes.name} classes, entering at {self.size}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.mean.device

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Segment a picture.

        Args:
            image: RGB (H, W, 3) uint8, of any strides.

        Returns:
            Train ids (H, W) uint8, each below ``len(classes)``.

        Raises:
            UserError: If it is no such array, or the memory does not suffice.
        """
        return self._segment(image, confidence=False)[0]

    def predict_with_confidence(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment a picture, and tell how sure the network is.

        Args:
            image: RGB (H, W, 3) uint8, of any strides.

        Returns:
            Train ids (H, W) uint8 as ``predict`` gives them, and the softmax probability of each (H, W) float32, from
            1 / C (C classes) to 1.

        Raises:
            UserError: If it is no such array, or the memory does not suffice.
        """
        labels, confidence = self._segment(image, confidence=True)
        assert confidence is not None
        return labels, confidence

    def overlay(self, image: np.ndarray, labels: np.ndarray | None = None, opacity: float = 0.5) -> np.ndarray:
        """The colours of a prediction over its picture.

        Args:
            image: RGB (H, W, 3) uint8.
            labels: Train ids (H, W) uint8; None predicts them. Where one is no class, the picture shows through.
            opacity: Of the colours, from 0 (the picture alone) to 1 (the colours alone).

        Returns:
            RGB (H, W, 3) uint8.

        Raises:
            UserError: If an argument is not as described, or the memory does not suffice.
        """
        if not isinstance(opacity, Real) or not 0 <= opacity <= 1:
            raise UserError(f"the opacity is {opacity!r:.60}, expected a number from 0 to 1")
        image = _checked_image(image)
        labels = self.predict(image) if labels is None else _checked_labels(labels)
        if labels.shape != image.shape[:2]:
            raise UserError(
                f"the labels are {_by(labels.shape)} (height x width), the image is {_by(image.shape[:2])}; give the "
                "labels that were predicted for this image"
            )
        return viz.overlay(image, labels, self.classes, opacity)

    def color(self, labels: np.ndarray) -> np.ndarray:
        """The colours of train ids.

        Args:
            labels: Train ids (H, W) uint8; ids that are no class become black.

        Returns:
            RGB (H, W, 3) uint8.

        Raises:
            UserError: If it is no such array.
        """
        return self.classes.colorize(_checked_labels(labels))

    def _segment(self, image: np.ndarray, confidence: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Train ids (H, W) uint8, and their probabilities (H, W) float32 if asked for."""
        image = _checked_image(image)
        network = entering(image, self.size, self._mean, self._std)[None]
        return segment(self.model, network, image.shape[:2], confidence, self.views)


def _checked_size(size: object) -> str | tuple[int, int]:
    """The argument ``size`` as ``chosen_size`` takes it."""
    if size is None or (isinstance(size, str) and size in ("auto", "original")):
        return size or "auto"
    if not isinstance(size, str):
        try:
            pair = tuple(size)
        except TypeError:
            pair = ()
        if len(pair) == 2 and all(isinstance(v, Integral) and not isinstance(v, bool) and v > 0 for v in pair):
            return int(pair[0]), int(pair[1])
    raise UserError(f"size={size!r:.60} is not known; give auto, original, or (height, width) in pixels")


def _checked_image(image: object) -> np.ndarray:
    """An RGB picture (H, W, 3) uint8, in C order; a ``UserError`` that tells how to convert anything else."""
    if not isinstance(image, np.ndarray):
        raise _refused(image, _mend_of_kind(image))
    if image.size == 0:
        raise _refused(image, "it holds no pixel: check the crop that made it")
    if mends := _mends_of_array(image.shape, image.dtype):
        raise _refused(image, mends)
    return np.ascontiguousarray(image)  # OpenCV does not take all strides


def _checked_labels(labels: object) -> np.ndarray:
    """Train ids (H, W) uint8, in C order."""
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype != np.uint8 or labels.size == 0:
        raise UserError(
            f"the labels are {_described(labels)}, expected train ids, a NumPy array (H, W) of uint8; give what "
            "predict returned"
        )
    return np.ascontiguousarray(labels)


def _refused(image: object, mend: str) -> UserError:
    return UserError(f"the image is {_described(image)}, expected {_EXPECTED}; {mend}")


def _described(value: object) -> str:
    """What was got, in few words."""
    if isinstance(value, np.ndarray):
        return f"an array {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, str | os.PathLike):
        return f"the path {str(value)!r:.80}"
    if isinstance(value, Image.Image):
        return f"a PIL image {value.width} x {value.height} (width x height) of mode {value.mode}"
    return "None" if value is None else f"of type {type(value).__name__}"


def _mend_of_kind(image: object) -> str:
    """How to make an array of something else."""
    if isinstance(image, str | os.PathLike):
        return "read it first, with icda.data.io.read_image(path)"
    if isinstance(image, Image.Image):
        return 'give np.asarray(image.convert("RGB"))'
    if isinstance(image, Tensor):
        floating = image.is_floating_point()
        dtype = np.dtype("float32" if floating else str(image.dtype).removeprefix("torch."))
        mends = _mends_of_array(tuple(image.shape), dtype)
        convert = f"convert it with image.detach().cpu(){'.float()' if floating else ''}.numpy()"
        return f"{convert}, then {mends}" if mends else convert
    if image is None:
        return "cv2.imread gives None for a file that it cannot read: check the path"
    if isinstance(image, list | tuple):
        return "give one picture at a time, as [predictor.predict(image) for image in images]"
    return "convert it with np.asarray"


def _mends_of_array(shape: tuple[int, ...], dtype: np.dtype) -> str:
    """How to make a picture of an array of this shape and type; empty if it is one."""
    mends = [] if len(shape) == 3 and shape[2] == _CHANNELS else [_mend_of_shape(shape)]
    mends += [] if dtype == np.uint8 else [_mend_of_type(dtype)]
    return ", then ".join(mends)


def _mend_of_shape(shape: Sequence[int]) -> str:
    """How to make a picture of an array of another shape."""
    if len(shape) == 4:
        planes = shape[1] == _CHANNELS != shape[3]
        image = "image.transpose(1, 2, 0)" if planes else "image"
        return f"give one picture at a time, as [predictor.predict({image}) for image in images]"
    if len(shape) == 2 or (len(shape) == 3 and shape[2] == 1):
        return "repeat a grey-level picture with np.dstack([image] * 3)"
    if len(shape) == 3 and shape[2] == _CHANNELS + 1:
        return "drop the transparency of RGBA with image[:, :, :3]"
    if len(shape) == 3 and shape[0] == _CHANNELS:
        return "put the channels last with image.transpose(1, 2, 0)"
    return "give it height, width and three channels, in this order"


def _mend_of_type(dtype: np.dtype) -> str:
    """How to make 8 bit of an array of another type."""
    if dtype.kind == "f":
        return (
            "make it 8-bit with (image * 255).round().astype(np.uint8) if its values go from 0 to 1, with "
            "image.astype(np.uint8) if they go to 255"
        )
    if dtype == np.uint16:
        return "make 16 bit 8-bit with (image // 257).astype(np.uint8)"
    return "make it 8-bit with image.astype(np.uint8) if its values go from 0 to 255"


def _by(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
