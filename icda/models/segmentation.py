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
from icda.models.mit import rename_published


def create_encoder(name: str, weights: str = "none", **options: object) -> nn.Module:
    """An encoder that returns four maps, made by ``timm.create_model(..., features_only=True)``.

    Args:
        name: Any timm model that offers features, for example ``mit_b5`` or ``resnet50``.
        weights: ``none`` for random weights, ``timm`` for timm's own pretrained weights (its cache, its download),
            or the path of a weights file (``.pth``, ``.safetensors``) in the model's own layout; for MiT the
            SegFormer authors' files.
        **options: Passed to the model's constructor, such as ``drop_path_rate=0.0``.

    Returns:
        Module whose call on images (B, 3, H, W) returns a list of four maps; ``feature_info`` tells widths and
        strides, ``pretrained_cfg`` the input's mean and deviation.

    Raises:
        UserError: If timm does not know the name, the model does not offer four maps, or the weights cannot be
            had.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        raise UserError(
            f"model.encoder.name={name} is not a model that timm knows; "
            f"{'near it: ' + ', '.join(near) if near else 'see timm.list_models()'}"
        )
    pretrained, from_file = weights == "timm", weights not in ("none", "timm")
    if from_file and not Path(weights).is_file():
        raise UserError(
            f"model.encoder.weights={weights} is no file; give the path of a file with weights of {name}, "
            "timm for timm's own, or none to start from random weights"
        )
    try:
        encoder = timm.create_model(name, features_only=True, pretrained=pretrained, **options)
        if len(encoder.feature_info.channels()) > 4:  # convolutional networks list their stem's map as well
            last = (-4, -3, -2, -1)
            encoder = timm.create_model(name, features_only=True, pretrained=pretrained, out_indices=last, **options)
    except Exception as error:  # whatever a model's constructor or a download raises
        reason = " ".join(str(error).split())[:200]
        remedy = "choose another timm model that supports features_only"
        if "drop_path_rate" in reason:
            remedy = "give model.encoder.drop_path_rate=null, since it has no stochastic depth"
        elif pretrained:
            remedy = "give model.encoder.weights=PATH of a file, or none to start from random weights"
        raise UserError(
            f"the encoder {name} with model.encoder.weights={weights} could not be made "
            f"({type(error).__name__}: {reason}); {remedy}"
        ) from error
    if from_file:
        _load_file(encoder, name, Path(weights))
    _check_maps(encoder, name)
    return encoder


def _load_file(encoder: nn.Module, name: str, path: Path) -> None:
    """Fill an encoder from a file; a file that lacks any of its weights, or has them in other sizes, is refused."""
    try:
        content = timm.models.load_state_dict(str(path))
    except Exception as error:  # what the file's bytes make it raise
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"model.encoder.weights={path} cannot be read as weights ({type(error).__name__}: {reason})"
        ) from error
    own, found = encoder.state_dict(), {}
    for key, value in content.items():
        key = rename_published(key) if name.startswith("mit_") else key
        # timm's feature extractors call stages.0 stages_0, or put the whole model below "model".
        found.update({k: value for k in (key, key.replace(".", "_", 1), f"model.{key}") if k in own})
    missing = [k for k in own if k not in found and not k.endswith("num_batches_tracked")]
    wrong = [k for k, value in found.items() if value.shape != own[k].shape]
    if missing or wrong:
        example = (wrong or missing)[0]
        raise UserError(
            f"model.encoder.weights={path} are not weights of {name}: {len(missing)} of {len(own)} entries are "
            f"missing and {len(wrong)} have another size, the first is {example}; give a file of {name}"
        )
    encoder.load_state_dict(found, strict=False)


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
