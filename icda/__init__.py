"""Night-time semantic segmentation without night labels: ICDA (IJCAI 2023) in plain PyTorch.

Importing this package alone loads neither PyTorch nor timm. Importing ``icda.models`` registers the MiT encoders with
timm: ``timm.create_model("mit_b5", features_only=True)``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icda.predictor import Predictor

__version__ = "0.1.0"

# Without this, importing albumentations asks a server for its newest version, for seconds where there is no network.
# It stands here to be read before any module that imports it.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


def load(
    path: str | PathLike[str],
    device: str = "auto",
    teacher: bool = False,
    size: str | Sequence[int] | None = None,
    *,
    precision: str = "fp32",
    window: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    temperature: float = 1.0,
) -> Predictor:
    """A trained network, ready to segment pictures.

    Example:
        >>> import icda
        >>> from icda.data.io import read_image
        >>> predictor = icda.load("runs/mine", device="cpu")
        >>> image = read_image("photo.jpg")  # or any RGB array (H, W, 3) uint8; OpenCV's are BGR: image[:, :, ::-1]
        >>> labels = predictor.predict(image)  # train ids
        >>> labels.dtype, labels.shape == image.shape[:2]
        (dtype('uint8'), True)
        >>> predictor.classes.names[10], predictor.classes.palette[10]
        ('sky', (70, 130, 180))
        >>> predictor.overlay(image, labels).shape == image.shape
        True

    Args:
        path: The folder of a training run, a checkpoint of one, or a published checkpoint.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, or ``cuda:1``.
        teacher: Whether to take the mean teacher instead of the student.
        size: At which pictures enter the network: ``auto`` or None (the area of the training's validation images, in
            the picture's own shape), ``original``, or height and width in pixels.
        precision: Of the network: ``fp32``, ``bf16``, or ``fp16`` (GPU alone).
        window: Height and width in pixels of sliding windows over what enters; None shows it whole.
        stride: Height and width by which windows move; None takes two thirds of theirs.
        flip: Whether the mean of the probabilities of a picture and of its mirror image decides.
        scales: Factors of the picture's sides at which it is segmented; of several the mean of the probabilities
            decides.
        temperature: What logits are divided by before the softmax, above 0: above 1 the confidences fall.

    Raises:
        UserError: If there is no such checkpoint, it cannot be read, holds no teacher, or a setting is not known.
    """
    # Imported here, for these take seconds.
    from icda.device import pick_device
    from icda.predictor import Predictor
    from icda.training.checkpoint import load_trained

    trained = load_trained(path, pick_device(str(device)), teacher)
    return Predictor(
        trained,
        size,
        precision=precision,
        window=window,
        stride=stride,
        flip=flip,
        scales=scales,
        temperature=temperature,
    )
