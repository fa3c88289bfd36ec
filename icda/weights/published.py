"""The names of the published ICDA's networks and ours, in both directions.

Published are ``backbone`` (MiT), ``head`` (DAFormer's) and ``dat`` (DAR); ours are those of ``SegmentationModel``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from torch import Tensor

from icda.errors import UserError
from icda.weights.layouts import from_timm, layout_of, rename_published, some

# Entries of the published DAR that its forward pass never reads.
UNUSED = re.compile(r"^dat\.stages\.\d\.attns\.(0\.relative_position_(bias_table|index)|1\.norm2\.(weight|bias))$")

# Published beginning of a name, and ours; the first row that fits counts, in both directions.
_ASPP = "head.fuse_layer.aspp_modules."
_ATTENTION, _OFFSETS = "dat.stages.{s}.attns.", "dar.stages.{s}.layers.1.attention.offset_"
_TABLE = (
    ("head.embed_layers.{s}.proj.", "head.embed.{s}."),
    (_ASPP + "0.conv.", "head.branches.0.0."),
    (_ASPP + "0.bn.", "head.branches.0.1."),
    (_ASPP + "{s}.depthwise_conv.conv.", "head.branches.{s}.0.0."),
    (_ASPP + "{s}.depthwise_conv.bn.", "head.branches.{s}.0.1."),
    (_ASPP + "{s}.pointwise_conv.conv.", "head.branches.{s}.1.0."),
    (_ASPP + "{s}.pointwise_conv.bn.", "head.branches.{s}.1.1."),
    ("head.fuse_layer.bottleneck.conv.", "head.bottleneck.0."),
    ("head.fuse_layer.bottleneck.bn.", "head.bottleneck.1."),
    ("head.conv_seg.", "head.classifier."),
    ("dat.down_projs.{s}.0.", "dar.stages.{s}.project.0."),
    ("dat.down_projs.{s}.1.norm.", "dar.stages.{s}.project.1."),
    ("dat.stages.{s}.layer_norms.0.norm.", "dar.stages.{s}.layers.0.norm1."),
    ("dat.stages.{s}.layer_norms.1.norm.", "dar.stages.{s}.layers.0.norm2."),
    ("dat.stages.{s}.layer_norms.2.norm.", "dar.stages.{s}.layers.1.norm1."),
    ("dat.stages.{s}.layer_norms.3.norm.", "dar.stages.{s}.layers.1.norm2."),
    ("dat.stages.{s}.mlps.{l}.linear1.", "dar.stages.{s}.layers.{l}.mlp.0."),
    ("dat.stages.{s}.mlps.{l}.dwc.", "dar.stages.{s}.layers.{l}.mlp.1."),
    ("dat.stages.{s}.mlps.{l}.linear2.", "dar.stages.{s}.layers.{l}.mlp.3."),
    (_ATTENTION + "0.proj_qkv.", "dar.stages.{s}.layers.0.attention.qkv."),
    (_ATTENTION + "0.proj_out.", "dar.stages.{s}.layers.0.attention.out."),
    (_ATTENTION + "1.norm1.", _OFFSETS + "norm."),
    (_ATTENTION + "1.offset_gen.mlp.dwconv.dwconv.", _OFFSETS + "block.mlp.dwconv."),
    (_ATTENTION + "1.offset_gen.", _OFFSETS + "block."),
    (_ATTENTION + "1.conv_offset.1.norm.", _OFFSETS + "head.1."),
    (_ATTENTION + "1.conv_offset.", _OFFSETS + "head."),
    (_ATTENTION + "1.embedding.", "dar.stages.{s}.layers.1.attention.joint."),
    *((f"{_ATTENTION}1.proj_{x}.", "dar.stages.{s}.layers.1.attention." + f"{x}.") for x in ("q", "k", "v", "out")),
)


@cache
def _rows(source: int) -> tuple[tuple[re.Pattern[str], str], ...]:
    """The table's rows as patterns of column ``source`` and templates of the other column."""
    rows = []
    for row in _TABLE:
        pattern = row[source].replace(".", r"\.").replace("{s}", r"(?P<s>\d)").replace("{l}", r"(?P<l>\d)")
        rows.append((re.compile(pattern), row[1 - source]))
    return tuple(rows)


def _translate(name: str, source: int) -> str | None:
    for pattern, template in _rows(source):
        if match := pattern.match(name):
            return template.format(**match.groupdict()) + name[match.end() :]
    return None


def rename(name: str) -> str:
    """The name in ``SegmentationModel`` of a published entry ``backbone.*``, ``head.*`` or ``dat.*``.

    Other names come back unchanged.
    """
    if name.startswith("backbone."):
        return "encoder." + flat(rename_published(name.removeprefix("backbone.")))
    return _translate(name, 0) or name


def flat(name: str) -> str:
    """The name in a feature extractor, where timm calls ``stages.0`` ``stages_0``."""
    return re.sub(r"^stages\.(\d)", r"stages_\1", name)


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of what ``read_published`` does to a student: our weights under the published names, bit for bit.

    Args:
        state: ``SegmentationModel.state_dict()`` of a model with a MiT.

    Returns:
        ``backbone.*``, ``head.*`` and ``dat.*``, as the published implementation names them. It has 8 entries more
        that it never reads (``UNUSED``); those are not made up.

    Raises:
        UserError: If the encoder is no MiT, or an entry has no published name.
    """
    encoder = {n.removeprefix("encoder."): t for n, t in state.items() if n.startswith("encoder.")}
    encoder = {re.sub(r"^stages_(\d)", r"stages.\1", n): t for n, t in encoder.items()}
    if layout_of(encoder) != "timm":
        raise UserError(
            f"the model's encoder is no MiT, its entries are such as {some(list(encoder))}; the published layout has "
            "names for mit_b0 .. mit_b5 alone"
        )
    result = {f"backbone.{n}": t for n, t in from_timm(encoder, "segformer").items()}
    for name, value in state.items():
        if name.startswith("encoder.") or name in ("mean", "std"):
            continue
        there = _translate(name, 1)
        if there is None:
            raise UserError(
                f"the model's entry {name} has no published name; give the weights of a SegmentationModel"
            )
        result[there] = value
    return result
