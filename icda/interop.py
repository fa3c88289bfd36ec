"""Weights of the published ICDA and its kin, read into our modules and given back.

How a checkpoint names its networks is said in ``icda.weights.published``.
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
from icda.weights.encoder import (
    WRAPPERS,
    EncoderWeights,
    as_float32,
    log_passed_over,
    read_encoder,
    set_norm_eps,
)
from icda.weights.files import STATE_KEYS, read_weights, tensors_of
from icda.weights.fill import fill, misfits
from icda.weights.foreign import plain
from icda.weights.layouts import (
    NORM_EPS,
    eps_remark,
    examples,
    layout_of,
    shapes_in,
    shapes_of,
    some,
    to_timm,
    variant_of,
    width_of,
)
from icda.weights.published import UNUSED, Network, flat, holds_network, networks_in, rename, unused_shapes
from icda.weights.published import to_published as to_published

_LOG = logging.getLogger(__name__)

# Heads of other methods, by the beginnings of their names below WRAPPERS.
_HRDA_HEAD = re.compile(r"(?:decode_head|head)\.(?:head|scale_attention)\.|hrda_scale_attention\.")
_SEGFORMER_HEAD = re.compile(r"(?:decode_head|head)\.(?:linear_(?:c\d?|projections|fuse|pred)|convs|fusion_conv)\.")


@dataclass(frozen=True)
class Published:
    """What a published checkpoint holds; every network is complete and float32, the batch counters included.

    Attributes:
        student: The trained network, named as in ``SegmentationModel``.
        teacher: The mean teacher, likewise; None if there is none.
        frozen_encoder: The frozen ImageNet encoder, named as in ``SegmentationModel.encoder``; None if there is none.
        variant: MiT size, ``mit_b0`` .. ``mit_b5``.
        num_classes: Classes C of the head.
        channels: Width of the head.
        with_dar: Whether the student has DAR.
        step: Training steps it was trained for; None where the source does not say.
        name: What messages call the source.
    """

    student: dict[str, Tensor]
    teacher: dict[str, Tensor] | None
    frozen_encoder: dict[str, Tensor] | None
    variant: str
    num_classes: int
    channels: int
    with_dar: bool
    step: int | None
    name: str = "the state dict"

    def model(self, teacher: bool = False) -> SegmentationModel:
        """The network with its weights.

        Args:
            teacher: Whether to take the mean teacher instead of the student, which is what the paper evaluates.

        Returns:
            The model in evaluation mode; ``dar`` is None where the network has none.

        Raises:
            UserError: If there is no teacher.
        """
        state = self.teacher if teacher else self.student
        if state is None:
            raise UserError(f"{self.name} holds no mean teacher (m_backbone.*, m_head.*); use teacher=False")
        with_dar = any(n.startswith("dar.") for n in state)
        options: dict[str, object] = {"channels": self.channels}
        model = build_model(self.variant, self.num_classes, head_options=options, with_dar=with_dar)
        model.load_state_dict(state)
        return model.eval()


def is_published(content: object) -> bool:
    """Whether the content of a weights file is a segmentation network under the published names or their kin.

    True for what ``read_published`` reads and for what it can say more about than that it is unknown: an encoder
    ``backbone.*`` (a teacher's or frozen one's, or Hugging Face's ``segformer.*``) and another part or network.

    Args:
        content: What ``icda.weights.files.read_weights`` returns, or a state dict.
    """
    if not isinstance(content, Mapping):
        return False
    # All places where the reader looks: which of them counts, and whether its entries are tensors, is for it to say.
    states = (content, *(content.get(key) for key in STATE_KEYS))
    return any(isinstance(s, Mapping) and holds_network([n for n in s if isinstance(n, str)]) for s in states)


def _step_of(content: object) -> int | None:
    """Training steps, as Lightning and MMCV store them."""
    if not isinstance(content, Mapping):
        return None
    meta = content.get("meta")
    step = content.get("global_step", meta.get("iter") if isinstance(meta, Mapping) else None)
    return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None


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


def _sizes(network: Network, called: str) -> tuple[str, str, int, int]:
    """Layout and size of the encoder, classes and width of the head.

    Raises:
        UserError: If the weights are those of no MiT, or the head is none of DAFormer's.
    """
    encoder = {
        n.removeprefix("backbone."): t.to("meta") for n, t in network.tensors.items() if n.startswith("backbone.")
    }
    layout = layout_of(encoder) or "segformer"
    sizes = []
    try:
        variant = variant_of(to_timm(encoder, layout), layout)
        for name, dimensions in (("head.conv_seg.weight", 4), ("head.embed_layers.0.proj.weight", 2)):
            if name not in network.tensors:
                raise ValueError(f"it has no {network.as_given(name)}")
            shape = tuple(network.tensors[name].shape)
            if len(shape) != dimensions or not all(shape):
                raise ValueError(f"its {network.as_given(name)} is {shape}, which no head has")
            sizes.append(shape[0])
    except ValueError as error:
        raise UserError(
            f"{called} is not a published ICDA checkpoint ({error}); expected entries backbone.*, head.* and dat.* "
            f"of a MiT with a DAFormer head, got {len(network.given)} such as {examples(network.given.values())}"
        ) from None
    return layout, variant, sizes[0], sizes[1]


def _shapes(variant: str, num_classes: int, channels: int, with_dar: bool) -> dict[str, Tensor]:
    """The state dict of a ``SegmentationModel`` without its values, without the time that building one takes."""
    widths = [width_of(variant) * factor for factor in (1, 2, 5, 8)]
    with torch.device("meta"):
        parts = {"head": DAFormerHead(widths, num_classes, channels)} | ({"dar": DAR(widths)} if with_dar else {})
        encoder = {f"encoder.{flat(n)}": torch.empty(shape) for n, shape in shapes_of(variant).items()}
    return encoder | {f"{name}.{n}": t for name, part in parts.items() for n, t in part.state_dict().items()}


def _ours(network: Network, own: Mapping[str, Tensor], layout: str, variant: str, what: str) -> dict[str, Tensor]:
    """A network's entries under the names of ``SegmentationModel``, in float32 and complete.

    Args:
        network: Published entries.
        own: The state dict to have, without values and normalisation; without ``head.*`` for an encoder alone.
        layout: Of its encoder.
        variant: Of its encoder.
        what: What messages call it.

    Raises:
        UserError: If an entry is missing or unknown, has another size or no finite numbers. The file's names are
            told.
    """
    shapes: dict[str, tuple[int, ...]] = {n: tuple(t.shape) for n, t in to_published(own).items()}
    if layout != "segformer":
        shapes = {n: shape for n, shape in shapes.items() if not n.startswith("backbone.")}
        shapes |= {f"backbone.{n}": shape for n, shape in shapes_in(shapes_of(variant), layout).items()}
    if network.has("dat"):
        shapes |= {n: shape for n, shape in unused_shapes(variant).items() if n in network.tensors}
    given = {network.given[n]: value for n, value in network.tensors.items()}
    if wrong := misfits(given, {network.as_given(n): shape for n, shape in shapes.items()}):
        raise UserError(f"{what} does not fit {variant}: {wrong}; give a whole and unchanged checkpoint")
    read = [n for n in network.tensors if not UNUSED.match(n)]
    values = as_float32({network.given[n]: network.tensors[n] for n in read}, what)
    named = {n: values[network.given[n]] for n in read}
    encoder = {n.removeprefix("backbone."): t for n, t in named.items() if n.startswith("backbone.")}
    encoder = {f"encoder.{flat(n)}": t for n, t in to_timm(encoder, layout).items()}
    counters = {n: torch.zeros_like(t, device="cpu") for n, t in own.items() if n.endswith("num_batches_tracked")}
    return counters | encoder | {rename(n): t for n, t in named.items() if not n.startswith("backbone.")}


def _called(source: object, name: str | None) -> str:
    return name or (str(source) if isinstance(source, str | Path) else "the state dict")


def read_published(source: str | Path | Mapping[str, Any], name: str | None = None) -> Published:
    """The networks in a checkpoint of the published ICDA, of Refign or of DAFormer.

    Args:
        source: Path of a Lightning ``.ckpt``, of DAFormer's ``.pth`` or of a bare state dict; or what such a file
            holds. Entries ``backbone.*``, ``head.*`` (DAFormer: ``model.backbone.*``, ``model.decode_head.*``) and,
            optionally, ``dat.*`` are the student's.
        name: What messages call the source; by default its path.

    Returns:
        The networks; what else the source holds is said in the log.

    Raises:
        UserError: If it cannot be read, is another method's checkpoint, the weights are those of no MiT, or entries
            of any of the networks are missing, unknown, of another size or not finite. One line that says which.
    """
    published, unused, content = _read(source, _called(source, name))
    log_passed_over(published.name, unused["beside"], content)
    return published


def _read(
    source: str | Path | Mapping[str, Any], called: str
) -> tuple[Published, dict[str, list[str]], Mapping[str, Any]]:
    """What a source holds; names of its entries by network, and of what is none's (``beside``); its content."""
    if not isinstance(source, str | Path | Mapping):
        raise UserError(
            f"{called} is {plain(type(source).__name__, 40)}, expected the path of a checkpoint, or the dict that it "
            "holds"
        )
    content = read_weights(source, called) if isinstance(source, str | Path) else source
    tensors = tensors_of(content, called)
    _refuse_other_heads(tensors, called)
    networks, beside = networks_in(tensors, called)
    student, teacher, frozen = (networks[owner] for owner in ("student", "teacher", "frozen"))
    _require_student(student, teacher, tensors, called)
    layout, variant, num_classes, channels = _sizes(student, called)
    with_dar = student.has("dat")
    own = {dar: _shapes(variant, num_classes, channels, dar) for dar in {with_dar, teacher.has("dat")}}
    pixels = {"mean": torch.tensor(IMAGENET_DEFAULT_MEAN), "std": torch.tensor(IMAGENET_DEFAULT_STD)}
    states = {"student": _ours(student, own[with_dar], layout, variant, called) | pixels}
    if teacher.tensors:
        what = f"{called}: its mean teacher (m_* or ema_model.*)"
        states["teacher"] = _ours(teacher, own[teacher.has("dat")], layout, variant, what) | pixels
    if frozen.tensors:
        parts = ("encoder.", "head.") if frozen.has("head") else ("encoder.",)
        expected = {n: t for n, t in own[with_dar].items() if n.startswith(parts)}
        what = f"{called}: its frozen ImageNet encoder (imnet_*)"
        states["frozen"] = _ours(frozen, expected, layout, variant, what)
    encoder = {n.removeprefix("encoder."): t for n, t in states.get("frozen", {}).items() if n.startswith("encoder.")}
    published = Published(
        student=states["student"],
        teacher=states.get("teacher"),
        frozen_encoder=encoder or None,
        variant=variant,
        num_classes=num_classes,
        channels=channels,
        with_dar=with_dar,
        step=_step_of(content),
        name=called,
    )
    idle = {n.given[name] for n in (student, teacher) for name in n.tensors if UNUSED.match(name)}
    heads = {given for name, given in frozen.given.items() if not name.startswith("backbone.")}
    entries = {who: [n for n in net.given.values() if n not in idle | heads] for who, net in networks.items()}
    return (
        published,
        {**entries, "beside": [*heads, *["tables of dat that nothing reads"] * len(idle), *beside]},
        content,
    )


def _require_student(student: Network, teacher: Network, tensors: Mapping[str, Tensor], called: str) -> None:
    """Refuse a checkpoint that lacks the student or its head."""
    if not student.has("backbone") and teacher.has("backbone"):
        raise UserError(
            f"{called} holds a mean teacher alone ({examples(list(teacher.given.values())[:1])} and "
            f"{len(teacher.given) - 1} more entries) and no student (backbone.*, head.*); give the whole checkpoint"
        )
    if not student.has("backbone"):
        alone = "" if student.has("head") else "; icda.interop.load_encoder reads an encoder alone"
        raise UserError(
            f"{called} is not a published ICDA checkpoint (it has no backbone.*); expected entries backbone.*, "
            f"head.* and dat.* of a MiT with a DAFormer head, got {len(tensors)} such as {examples(tensors)}{alone}"
        )
    if not student.has("head"):
        raise UserError(
            f"{called} holds an encoder alone ({len(student.given)} entries such as "
            f"{examples(student.given.values())}), no head (head.* or decode_head.*); use model.encoder.weights=PATH "
            "in training, or icda.interop.load_encoder"
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
        ``dat.*``. What else the source holds is said in the log.

    Raises:
        UserError: See ``read_published``; or if the head has another number of classes, or there is no teacher.
    """
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise UserError(
            f"num_classes={plain(repr(num_classes), 40)} is no number of classes; give a whole number > 0"
        )
    published, entries, content = _read(source, _called(source, name))
    if published.num_classes != num_classes:
        raise UserError(
            f"{published.name} has a head of {published.num_classes} classes, expected num_classes={num_classes}"
        )
    model = published.model(teacher)
    other = "student" if teacher else "teacher"
    log_passed_over(published.name, [*entries[other], *entries["frozen"], *entries["beside"]], content)
    return model


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
