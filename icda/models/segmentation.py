"""The segmentation network: a timm encoder with four maps, the DAFormer head, and DAR for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icda.errors import UserError
from icda.models.daformer_head import DAFormerHead
from icda.models.dar import DAR
from icda.models.linear import through_onednn
from icda.weights.encoder import fill_encoder
from icda.weights.foreign import plain
from icda.weights.packages import fill_from_package
from icda.weights.pretrained import fill_from_timm

WEIGHTS = ("none", "timm", "package")
"""What ``model.encoder.weights`` takes beside the path of a file."""


def create_encoder(name: str, weights: str = "none", **options: object) -> nn.Module:
    """An encoder that returns four maps, made by ``timm.create_model(..., features_only=True)``.

    Args:
        name: Any timm model that offers features, for example ``mit_b5`` or ``resnet50``.
        weights: ``none`` for random weights, ``timm`` for timm's own pretrained weights (its cache, its download;
            see ``icda.weights.pretrained``), ``package`` for those of an installed package (see
            ``icda.weights.packages``), or the path of a weights file (see ``icda.weights.encoder``).
        **options: Passed to the model's constructor, such as ``drop_path_rate=0.0``.

    Returns:
        Module whose call on images (B, 3, H, W) returns a list of four maps; ``feature_info`` tells widths and
        strides, ``pretrained_cfg`` the input's mean and deviation, which are those of the weights.

    Raises:
        UserError: If timm does not know the name, the model does not offer four maps, or the weights cannot be
            had or do not fill the whole encoder.
    """
    _check_weights(weights)
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        raise UserError(
            f"model.encoder.name={name} is not a model that timm knows; "
            f"{'near it: ' + ', '.join(near) if near else 'see timm.list_models()'}"
        )
    try:
        encoder = timm.create_model(name, features_only=True, **options)
        if len(encoder.feature_info.channels()) > 4:  # convolutional networks list their stem's map as well
            encoder = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1), **options)
    except Exception as error:  # whatever a model's constructor raises
        reason = " ".join(str(error).split())[:200]
        remedy = "choose another timm model that supports features_only"
        if "drop_path_rate" in reason:
            remedy = "give model.encoder.drop_path_rate=null, since it has no stochastic depth"
        elif "tag" in reason:
            known = timm.list_models(f"{name.partition('.')[0]}.*", pretrained=True)
            remedy = f"timm has weights of these names: {', '.join(known) or 'none'}"
        raise UserError(
            f"the encoder {name} could not be made ({type(error).__name__}: {reason}); {remedy}"
        ) from error
    _check_maps(encoder, name)
    if weights == "timm":
        fill_from_timm(encoder, name)
    elif weights == "package":
        fill_from_package(encoder, name)
    elif weights != "none":
        fill_encoder(encoder, name, weights)
    return encoder


def _check_weights(weights: object) -> None:
    """Refuse a setting that is neither one of the words nor can be a path."""
    words = "give timm, package, none for random weights, or the PATH of a weights file"
    if weights is None or not str(weights).strip():
        what = "null" if weights is None else "empty"
        raise UserError(f"model.encoder.weights is {what}; give none for random weights, or timm, package or a PATH")
    if not isinstance(weights, str | Path):
        raise UserError(f"model.encoder.weights={plain(weights, 80)} is {type(weights).__name__}, not text; {words}")
    word = str(weights)
    if word not in WEIGHTS and word == Path(word).stem and not Path(word).exists():
        raise UserError(
            f"model.encoder.weights={plain(word, 80)} is no known word, nor is there such a file; {words}"
        )


@torch.inference_mode()
def _check_maps(encoder: nn.Module, name: str) -> None:
    """Refuse an encoder whose maps the head and DAR could not use, or that takes images of one size alone."""
    advice = "choose another encoder, such as mit_b0 or resnet50"
    strides, widths = encoder.feature_info.reduction(), encoder.feature_info.channels()
    if strides != [4, 8, 16, 32]:
        raise UserError(
            f"model.encoder.name={name} gives {len(strides)} maps at strides {strides}, but the head and DAR need "
            f"four maps at strides 4, 8, 16 and 32; {advice}"
        )
    was_training = encoder.training
    try:
        shapes = [tuple(m.shape) for m in encoder.eval()(torch.zeros(1, 3, 96, 160))]
    except (AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"model.encoder.name={name} does not take images of any size ({reason}); {advice}") from error
    expected = [(1, width, 96 // stride, 160 // stride) for width, stride in zip(widths, strides, strict=True)]
    if shapes != expected:
        raise UserError(f"model.encoder.name={name} gives maps of shapes {shapes}, expected {expected}; {advice}")
    encoder.train(was_training)


SMALLEST_SIDE = 32  # pixels: one cell of the coarsest map; smaller images are padded with the mean colour


class SegmentationModel(nn.Module):
    """Encoder, head and, for training, DAR (method section 1).

    Attributes:
        encoder: ``encoder(images)`` returns the list of four maps.
        head: ``head(maps)`` returns logits at stride 4.
        dar: ``dar(night_maps, day_maps)`` returns enriched maps; None where the method runs without it. It is not
            used at inference.
        mean, std: Buffers (3,): what images, scaled to 0..1, are normalised with before they enter; from the
            encoder's ``pretrained_cfg``.

    Args:
        encoder: A timm ``features_only`` model with four maps.
        head: The decode head.
        dar: DAR of the same widths, or None.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, head: DAFormerHead, dar: DAR | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.dar = dar
        self.register_buffer("mean", torch.tensor(encoder.pretrained_cfg["mean"]))
        self.register_buffer("std", torch.tensor(encoder.pretrained_cfg["std"]))
        through_onednn(self)

    @property
    def num_classes(self) -> int:
        """Classes C of the logits."""
        return self.head.classifier.out_channels

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images, from the images alone.

        Args:
            images: (B, 3, H, W) float, normalised with ``mean`` and ``std``; any height and width.

        Returns:
            (B, C, H, W) float.
        """
        height, width = images.shape[2:]
        pad = (0, max(SMALLEST_SIDE - width, 0), 0, max(SMALLEST_SIDE - height, 0))
        padded = F.pad(images, pad) if any(pad) else images
        return self.upsample(self.head(self.encoder(padded)), padded.shape[2:])[:, :, :height, :width]

    @staticmethod
    def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, C, h, w) brought bilinearly to ``size`` (H, W) (method section 4)."""
        return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def build_model(
    encoder_name: str,
    num_classes: int,
    *,
    weights: str = "none",
    encoder_options: dict[str, object] | None = None,
    head_options: dict[str, object] | None = None,
    dar_options: dict[str, object] | None = None,
    with_dar: bool = True,
) -> SegmentationModel:
    """A ``SegmentationModel`` whose head and DAR take their widths from the encoder.

    Args:
        encoder_name: Name of a timm model.
        num_classes: Classes C.
        weights: See ``create_encoder``.
        encoder_options: Options of the encoder's constructor.
        head_options: Options of ``DAFormerHead``.
        dar_options: Options of ``DAR``.
        with_dar: Whether the model has a DAR.

    Raises:
        UserError: See ``create_encoder``.
    """
    encoder = create_encoder(encoder_name, weights, **(encoder_options or {}))
    widths = encoder.feature_info.channels()
    head = DAFormerHead(widths, num_classes, **(head_options or {}))
    dar = DAR(widths, **(dar_options or {})) if with_dar else None
    return SegmentationModel(encoder, head, dar)
