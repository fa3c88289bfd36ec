"""Weights of the published ICDA, read into our modules.

The published checkpoint names its parts ``backbone`` (MiT), ``head`` and ``dat`` (DAR); the teacher's parts carry
the prefix ``m_``, the frozen ImageNet encoder is ``imnet_backbone``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from icda.errors import UserError
from icda.models.mit import rename_published, variant_of
from icda.models.segmentation import SegmentationModel, build_model

# Entries of the published DAR that its forward pass never reads.
UNUSED = re.compile(r"^dat\.stages\.\d\.attns\.(0\.relative_position_(bias_table|index)|1\.norm2\.(weight|bias))$")

_HEAD = (
    (re.compile(r"^head\.embed_layers\.(\d)\.proj\."), r"head.embed.\1."),
    (re.compile(r"^head\.fuse_layer\.aspp_modules\.0\.conv\."), "head.branches.0.0."),
    (re.compile(r"^head\.fuse_layer\.aspp_modules\.0\.bn\."), "head.branches.0.1."),
    (re.compile(r"^head\.fuse_layer\.aspp_modules\.(\d)\.depthwise_conv\.conv\."), r"head.branches.\1.0.0."),
    (re.compile(r"^head\.fuse_layer\.aspp_modules\.(\d)\.depthwise_conv\.bn\."), r"head.branches.\1.0.1."),
    (re.compile(r"^head\.fuse_layer\.aspp_modules\.(\d)\.pointwise_conv\.conv\."), r"head.branches.\1.1.0."),
    (re.compile(r"^head\.fuse_layer\.aspp_modules\.(\d)\.pointwise_conv\.bn\."), r"head.branches.\1.1.1."),
    (re.compile(r"^head\.fuse_layer\.bottleneck\.conv\."), "head.bottleneck.0."),
    (re.compile(r"^head\.fuse_layer\.bottleneck\.bn\."), "head.bottleneck.1."),
    (re.compile(r"^head\.conv_seg\."), "head.classifier."),
)

_DAR_STAGE = r"^dat\.stages\.(\d)\."
_OFFSETS = r"dar.stages.\1.layers.1.attention.offset_"
_DAR = (
    (re.compile(r"^dat\.down_projs\.(\d)\.0\."), r"dar.stages.\1.project.0."),
    (re.compile(r"^dat\.down_projs\.(\d)\.1\.norm\."), r"dar.stages.\1.project.1."),
    (re.compile(_DAR_STAGE + r"layer_norms\.0\.norm\."), r"dar.stages.\1.layers.0.norm1."),
    (re.compile(_DAR_STAGE + r"layer_norms\.1\.norm\."), r"dar.stages.\1.layers.0.norm2."),
    (re.compile(_DAR_STAGE + r"layer_norms\.2\.norm\."), r"dar.stages.\1.layers.1.norm1."),
    (re.compile(_DAR_STAGE + r"layer_norms\.3\.norm\."), r"dar.stages.\1.layers.1.norm2."),
    (re.compile(_DAR_STAGE + r"mlps\.(\d)\.linear1\."), r"dar.stages.\1.layers.\2.mlp.0."),
    (re.compile(_DAR_STAGE + r"mlps\.(\d)\.dwc\."), r"dar.stages.\1.layers.\2.mlp.1."),
    (re.compile(_DAR_STAGE + r"mlps\.(\d)\.linear2\."), r"dar.stages.\1.layers.\2.mlp.3."),
    (re.compile(_DAR_STAGE + r"attns\.0\.proj_qkv\."), r"dar.stages.\1.layers.0.attention.qkv."),
    (re.compile(_DAR_STAGE + r"attns\.0\.proj_out\."), r"dar.stages.\1.layers.0.attention.out."),
    (re.compile(_DAR_STAGE + r"attns\.1\.norm1\."), _OFFSETS + "norm."),
    (re.compile(_DAR_STAGE + r"attns\.1\.offset_gen\."), _OFFSETS + "block."),
    (
        re.compile(_DAR_STAGE + r"attns\.1\.conv_offset\.1\.norm\."),
        _OFFSETS + "head.1.",
    ),
    (re.compile(_DAR_STAGE + r"attns\.1\.conv_offset\."), _OFFSETS + "head."),
    (re.compile(_DAR_STAGE + r"attns\.1\.embedding\."), r"dar.stages.\1.layers.1.attention.joint."),
    (re.compile(_DAR_STAGE + r"attns\.1\.proj_(q|k|v|out)\."), r"dar.stages.\1.layers.1.attention.\2."),
    (re.compile(r"\.offset_block\.mlp\.dwconv\.dwconv\."), ".offset_block.mlp.dwconv."),
)


def rename(name: str) -> str:
    """The name in ``SegmentationModel`` of a published entry ``backbone.*``, ``head.*`` or ``dat.*``."""
    if name.startswith("backbone."):
        inner = rename_published(name.removeprefix("backbone."))
        return "encoder." + re.sub(r"^stages\.(\d)", r"stages_\1", inner)  # as timm's features_only names them
    for pattern, replacement in (*_HEAD, *_DAR):
        name = pattern.sub(replacement, name)
    return name


def _read(path: Path) -> dict[str, Tensor]:
    try:
        # Tensors and plain values only: a published file never gets to run code here.
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; give the path of a published ICDA checkpoint") from None
    except Exception as error:
        raise UserError(
            f"{path} could not be read as a checkpoint ({type(error).__name__}: {str(error)[:200]}); expected a file "
            "written by torch.save that holds tensors and plain values only"
        ) from error


def load_published(source: str | Path | Mapping[str, Tensor], num_classes: int = 19) -> SegmentationModel:
    """A model with the weights of the published ICDA's student.

    Args:
        source: Path of a Lightning ``.ckpt`` or of a bare state dict, or such a dict itself. Entries ``backbone.*``,
            ``head.*`` and, optionally, ``dat.*`` are read; teacher and ImageNet encoder are passed over.
        num_classes: Classes that the caller expects of the head.

    Returns:
        The model in evaluation mode; its MiT size is read off the weights, ``dar`` is None where the source has no
        ``dat.*``.

    Raises:
        UserError: If the file cannot be read, the weights are those of no MiT, entries are missing or unknown, or
            the head has another number of classes.
    """
    state = _read(Path(source)) if isinstance(source, str | Path) else dict(source)
    what = str(source) if isinstance(source, str | Path) else "the state dict"
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    parts = ("backbone.", "head.", "dat.")
    ours = {rename(n): t for n, t in state.items() if n.startswith(parts) and not UNUSED.match(n)}
    encoder = {
        n.removeprefix("encoder.").replace("stages_", "stages.", 1): t for n, t in ours.items() if "encoder." in n
    }
    try:
        variant = variant_of(encoder)
        embedding = ours["head.embed.0.weight"]
        classes = ours["head.classifier.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{what} is not a published ICDA checkpoint ({error}); expected entries backbone.*, head.* and dat.* of "
            f"a MiT with a DAFormer head, got {len(state)} entries such as {list(state)[:3]}"
        ) from None
    if classes != num_classes:
        raise UserError(f"{what} has a head of {classes} classes, expected num_classes={num_classes}")
    model = build_model(
        variant,
        num_classes,
        head_options={"channels": embedding.shape[0]},
        with_dar=any(n.startswith("dar.") for n in ours),
    )
    buffers = {"mean": model.mean, "std": model.std}
    try:
        result = model.load_state_dict({**ours, **buffers}, strict=False)
    except RuntimeError as error:  # sizes
        raise UserError(f"{what} does not fit {variant}: {' '.join(str(error).split())[:200]}") from error
    if result.missing_keys or result.unexpected_keys:
        raise UserError(
            f"{what} does not fit {variant}: missing {len(result.missing_keys)} {result.missing_keys[:3]}, "
            f"unknown {len(result.unexpected_keys)} {result.unexpected_keys[:3]}"
        )
    return model.eval()
