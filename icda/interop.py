"""Weights of the published ICDA and its kin, read into our modules and given back.

The published checkpoint names its parts ``backbone`` (MiT), ``head`` and ``dat`` (DAR); the teacher's parts carry
the prefix ``m_``, the frozen ImageNet encoder is ``imnet_backbone``. DAFormer's checkpoints name the same parts
``model.backbone`` and ``model.decode_head``, the teacher ``ema_model``, the frozen encoder ``imnet_model.backbone``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from icda.errors import UserError
from icda.models.daformer_head import DAFormerHead
from icda.models.dar import DAR
from icda.models.segmentation import SegmentationModel, build_model
from icda.weights.encoder import TRAINING_STATE, WRAPPERS, EncoderWeights, as_float32, read_encoder, set_norm_eps
from icda.weights.files import read_weights, tensors_of
from icda.weights.fill import fill
from icda.weights.layouts import (
    NORM_EPS,
    eps_remark,
    layout_of,
    shapes_of,
    some,
    to_timm,
    variant_of,
    width_of,
)
from icda.weights.published import UNUSED, flat, rename
from icda.weights.published import to_published as to_published

_LOG = logging.getLogger(__name__)

# An entry of a checkpoint: whose it is, its part, and its name within.
_ENTRY = re.compile(
    r"(?P<owner>model\.|m_|ema_model\.|imnet_|imnet_model\.)?(?P<part>backbone|head|decode_head|dat)\.(?P<rest>.+)"
)
_OWNERS = {
    None: "student",
    "model.": "student",
    "m_": "teacher",
    "ema_model.": "teacher",
    "imnet_": "frozen",
    "imnet_model.": "frozen",
}

# Heads of other methods, by the beginnings of their names below WRAPPERS.
_HRDA_HEAD = re.compile(r"(?:decode_head|head)\.(?:head|scale_attention)\.|hrda_scale_attention\.")
_SEGFORMER_HEAD = re.compile(r"(?:decode_head|head)\.(?:linear_(?:c\d?|projections|fuse|pred)|convs|fusion_conv)\.")


@dataclass(frozen=True)
class Published:
    """What a published checkpoint holds.

    Attributes:
        student: The trained network, named as in ``SegmentationModel`` and complete, float32.
        teacher: The mean teacher's, likewise named but unchecked; None if there is none.
        frozen_encoder: The frozen ImageNet encoder, named as in ``SegmentationModel.encoder``; None if there is none.
        variant: MiT size, ``mit_b0`` .. ``mit_b5``.
        num_classes: Classes C of the head.
        channels: Width of the head.
        with_dar: Whether the student has DAR.
        step: Training steps it was trained for; None where the source does not say.
    """

    student: dict[str, Tensor]
    teacher: dict[str, Tensor] | None
    frozen_encoder: dict[str, Tensor] | None
    variant: str
    num_classes: int
    channels: int
    with_dar: bool
    step: int | None


def is_published(content: object) -> bool:
    """Whether the content of a weights file is a segmentation network under the published names or their kin.

    True for what ``read_published`` reads and for what it can say more about than that it is unknown: an encoder
    ``backbone.*`` (or Hugging Face's ``segformer.*``) with a head ``head.*`` or ``decode_head.*``.

    Args:
        content: What ``icda.weights.files.read_weights`` returns, or a state dict.
    """
    if not isinstance(content, Mapping):
        return False
    inner = content.get("state_dict", content.get("model", content))
    names = [WRAPPERS.sub("", str(n)) for n in inner] if isinstance(inner, Mapping) else []
    encoder = any(n.startswith(("backbone.", "segformer.")) for n in names)
    return encoder and any(n.startswith(("head.", "decode_head.")) for n in names)


def _step_of(content: object) -> int | None:
    """Training steps, as Lightning and MMCV store them."""
    if not isinstance(content, Mapping):
        return None
    meta = content.get("meta")
    step = content.get("global_step", meta.get("iter") if isinstance(meta, Mapping) else None)
    return step if isinstance(step, int) else None


def _refuse_other_heads(tensors: Mapping[str, Tensor], called: str) -> None:
    names = [WRAPPERS.sub("", name) for name in tensors]
    if found := [n for n in names if _HRDA_HEAD.match(n)]:
        raise UserError(
            f"{called} is a checkpoint with a multi-resolution head (HRDA, MIC): it has {some(found)}, and fuses two "
            "scales where DAFormer's head has one; icda.interop.load_encoder reads its encoder"
        )
    if found := [n for n in names if _SEGFORMER_HEAD.match(n)]:
        raise UserError(
            f"{called} is a SegFormer segmentation checkpoint: its head has {some(found)}, which is not DAFormer's; "
            "for its encoder use model.encoder.weights=PATH or icda.interop.load_segformer"
        )


def _owned(tensors: Mapping[str, Tensor], called: str) -> dict[str, dict[str, Tensor]]:
    """Published entries (``backbone.*``, ``head.*``, ``dat.*``) of student, teacher and frozen encoder."""
    owned: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}, "frozen": {}}
    unknown = []
    for name, value in tensors.items():
        bare = re.sub(r"^(?:module\.|_orig_mod\.)+", "", name)
        if match := _ENTRY.fullmatch(bare):
            part = match["part"].removeprefix("decode_")
            owned[_OWNERS[match["owner"]]][f"{part}.{match['rest']}"] = value
        elif not TRAINING_STATE.fullmatch(WRAPPERS.sub("", bare)):
            unknown.append(name)
    if unknown and any(n.startswith("backbone.") for n in owned["student"]):
        raise UserError(
            f"{called} has entries that no published ICDA or DAFormer checkpoint has: {some(unknown)}; expected "
            "backbone.*, head.*, dat.*, copies of them (m_*, imnet_*), alignment_* and metrics"
        )
    return owned


def _ours(entries: Mapping[str, Tensor], called: str) -> dict[str, Tensor]:
    """Published entries under the names of ``SegmentationModel``, in float32."""
    encoder = {n.removeprefix("backbone."): t for n, t in entries.items() if n.startswith("backbone.")}
    encoder = to_timm(encoder, layout_of(encoder) or "segformer")
    rest = {n: t for n, t in entries.items() if not (n.startswith("backbone.") or UNUSED.match(n))}
    ours = {f"encoder.{flat(n)}": t for n, t in encoder.items()} | {rename(n): t for n, t in rest.items()}
    return as_float32(ours, called)


def _completed(state: dict[str, Tensor], own: Mapping[str, Tensor], called: str, variant: str) -> dict[str, Tensor]:
    """A state dict that has every entry of a model's ``own``, the buffers that published checkpoints lack included.

    Raises:
        UserError: If an entry is missing or unknown, or has another size.
    """
    counters = {n: torch.zeros_like(t, device="cpu") for n, t in own.items() if n.endswith("num_batches_tracked")}
    pixels = {"mean": torch.tensor(IMAGENET_DEFAULT_MEAN), "std": torch.tensor(IMAGENET_DEFAULT_STD)}
    state = counters | state | pixels
    missing, unknown = [n for n in own if n not in state], [n for n in state if n not in own]
    if missing or unknown:
        raise UserError(
            f"{called} does not fit {variant}: missing {some(missing)}, unknown {some(unknown)}; give a whole and "
            "unchanged checkpoint"
        )
    if wrong := [n for n in own if state[n].shape != own[n].shape]:
        raise UserError(
            f"{called} does not fit {variant}: size mismatch of {some(wrong)}, the first is "
            f"{tuple(state[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}"
        )
    return state


def _shapes(variant: str, num_classes: int, channels: int, with_dar: bool) -> dict[str, Tensor]:
    """The state dict of a ``SegmentationModel`` without its values, without the time that building one takes."""
    widths = [width_of(variant) * factor for factor in (1, 2, 5, 8)]
    with torch.device("meta"):
        parts = {"head": DAFormerHead(widths, num_classes, channels)} | ({"dar": DAR(widths)} if with_dar else {})
        encoder = {f"encoder.{flat(n)}": torch.empty(shape) for n, shape in shapes_of(variant).items()}
        pixels = {"mean": torch.empty(3), "std": torch.empty(3)}
    return pixels | encoder | {f"{name}.{n}": t for name, part in parts.items() for n, t in part.state_dict().items()}


def _called(source: str | Path | Mapping[str, Any], name: str | None) -> str:
    return name or (str(source) if isinstance(source, str | Path) else "the state dict")


def read_published(source: str | Path | Mapping[str, Any], name: str | None = None) -> Published:
    """The networks in a checkpoint of the published ICDA, of Refign or of DAFormer.

    Args:
        source: Path of a Lightning ``.ckpt``, of DAFormer's ``.pth`` or of a bare state dict; or what such a file
            holds. Entries ``backbone.*``, ``head.*`` (DAFormer: ``model.backbone.*``, ``model.decode_head.*``) and,
            optionally, ``dat.*`` are the student's.
        name: What messages call the source; by default its path.

    Raises:
        UserError: If it cannot be read, is another method's checkpoint, the weights are those of no MiT, or entries
            are missing, unknown, of another size or not finite. One line that says which.
    """
    called = _called(source, name)
    content = read_weights(source, called) if isinstance(source, str | Path) else source
    tensors = tensors_of(content, called)
    _refuse_other_heads(tensors, called)
    owned = _owned(tensors, called)
    student = _ours(owned["student"], called)
    bare = {n.removeprefix("encoder.").replace("stages_", "stages.", 1): t for n, t in student.items()}
    try:
        variant = variant_of(bare)
        num_classes, channels = (student[n].shape[0] for n in ("head.classifier.weight", "head.embed.0.weight"))
    except (KeyError, ValueError, IndexError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        alone = "" if "head.classifier.weight" in student else "; icda.interop.load_encoder reads an encoder alone"
        raise UserError(
            f"{called} is not a published ICDA checkpoint ({reason}); expected entries backbone.*, head.* and dat.* "
            f"of a MiT with a DAFormer head, got {len(tensors)} entries such as {list(tensors)[:3]}{alone}"
        ) from None
    with_dar = any(n.startswith("dar.") for n in student)
    teacher, frozen = (_ours(owned[who], called) for who in ("teacher", "frozen"))
    frozen = {n.removeprefix("encoder."): t for n, t in frozen.items() if n.startswith("encoder.")}
    return Published(
        student=_completed(student, _shapes(variant, num_classes, channels, with_dar), called, variant),
        teacher=teacher if any(n.startswith("encoder.") for n in teacher) else None,
        frozen_encoder=frozen or None,
        variant=variant,
        num_classes=num_classes,
        channels=channels,
        with_dar=with_dar,
        step=_step_of(content),
    )


def load_published(
    source: str | Path | Mapping[str, Any], num_classes: int = 19, teacher: bool = False, name: str | None = None
) -> SegmentationModel:
    """A model with the weights of the published ICDA.

    Args:
        source: See ``read_published``.
        num_classes: Classes that the caller expects of the head; the published networks have the 19 of Cityscapes.
        teacher: Whether to take the mean teacher instead of the student, which is what the paper evaluates.
        name: What messages call the source; by default its path.

    Returns:
        The model in evaluation mode; its MiT size is read off the weights, ``dar`` is None where the source has no
        ``dat.*``.

    Raises:
        UserError: See ``read_published``; or if the head has another number of classes, or there is no teacher.
    """
    called, published = _called(source, name), read_published(source, name)
    if published.num_classes != num_classes:
        raise UserError(f"{called} has a head of {published.num_classes} classes, expected num_classes={num_classes}")
    state = published.teacher if teacher else published.student
    if state is None:
        raise UserError(f"{called} holds no mean teacher (m_backbone.*, m_head.*); use teacher=False")
    with_dar = any(n.startswith("dar.") for n in state)
    model = build_model(
        published.variant, num_classes, head_options={"channels": published.channels}, with_dar=with_dar
    )
    model.load_state_dict(_completed(state, model.state_dict(), called, published.variant))
    return model.eval()


def load_encoder(path: str | Path, eps: str = "segformer") -> nn.Module:
    """The MiT encoder of any weights file that ``icda.weights.encoder.read_encoder`` knows.

    Args:
        path: The file or folder.
        eps: Whose eps the layer norms get: ``segformer`` (the published networks'), ``mmseg`` or ``huggingface``.

    Returns:
        timm's feature extractor of the size that the weights have, in evaluation mode: images (B, 3, H, W) float to
        a list of four maps.

    Raises:
        UserError: See ``read_encoder``; or if ``eps`` is not one of these.
    """
    return _encoder(read_encoder(path), path, eps)


def load_segformer(path: str | Path, eps: str = "segformer") -> nn.Module:
    """The encoder of a SegFormer segmentation checkpoint, the authors', MMSegmentation's or Hugging Face's.

    Args:
        path: The file or folder; its decode head, which is not DAFormer's, is left aside.
        eps: See ``load_encoder``.

    Returns:
        See ``load_encoder``.

    Raises:
        UserError: See ``load_encoder``; or if it has no decode head of SegFormer.
    """
    weights = read_encoder(path)
    beside = [WRAPPERS.sub("", name) for name in weights.unused]
    if not any(_SEGFORMER_HEAD.match(name) for name in beside):
        other = any(name.startswith(("head.fuse_layer.", "decode_head.fuse_layer.")) for name in beside)
        advice = "use icda.interop.load_published" if other else "use icda.interop.load_encoder for an encoder alone"
        raise UserError(
            f"{path} is no SegFormer segmentation checkpoint: beside a {weights.variant} it has "
            f"{'a DAFormer head' if other else 'no decode head of SegFormer'}; {advice}"
        )
    return _encoder(weights, path, eps)


def _encoder(weights: EncoderWeights, path: str | Path, eps: str) -> nn.Module:
    known = ("segformer", "mmseg", "huggingface")
    if eps not in known:
        raise UserError(f"eps={eps} is not known; give one of {', '.join(known)}")
    if NORM_EPS[weights.layout] != NORM_EPS[eps]:
        _LOG.info("%s: %s", path, eps_remark(weights.layout))
    encoder = timm.create_model(weights.variant, features_only=True)
    fill(encoder, weights.state, str(path), f"give a whole file of {weights.variant}")
    set_norm_eps(encoder, eps)
    return encoder.eval()
