"""The names of the published ICDA's networks and ours, in both directions.

The published checkpoint names its parts ``backbone`` (MiT), ``head`` (DAFormer's) and ``dat`` (DAR); the teacher's
parts carry the prefix ``m_``, the frozen ImageNet encoder is ``imnet_backbone``. DAFormer's checkpoints name the same
parts ``model.backbone`` and ``model.decode_head``, the teacher ``ema_model``, the frozen encoder
``imnet_model.backbone``. Ours are those of ``SegmentationModel``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor

from icda.errors import UserError
from icda.weights.encoder import TRAINING_STATE, WRAPPERS
from icda.weights.foreign import plain
from icda.weights.layouts import examples, from_timm, layout_of, rename_published, some, width_of

# Entries of the published DAR that its forward pass never reads.
UNUSED = re.compile(r"^dat\.stages\.\d\.attns\.(0\.relative_position_(bias_table|index)|1\.norm2\.(weight|bias))$")


def unused_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the entries ``UNUSED``: windows of 4 x 4 cells, 4 and 8 heads, norms of a head's width."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage, (factor, heads) in enumerate(((5, 4), (8, 8))):
        attention, width = f"dat.stages.{stage}.attns", width_of(variant) * factor // heads
        shapes[f"{attention}.0.relative_position_bias_table"] = (49, heads)
        shapes[f"{attention}.0.relative_position_index"] = (16, 16)
        shapes |= {f"{attention}.1.norm2.{leaf}": (width,) for leaf in ("weight", "bias")}
    return shapes


# An entry of a checkpoint below WRAPPERS: whose it is, its part, and its name within.
_ENTRY = re.compile(
    r"(?P<owner>m_(?=backbone|head|dat)|imnet_(?=backbone)|ema_model\.|imnet_model\.)?"
    r"(?P<part>backbone|head|decode_head|dat)\.(?P<rest>.+)"
)
_OWNERS = {None: "student", "m_": "teacher", "ema_model.": "teacher", "imnet_": "frozen", "imnet_model.": "frozen"}


@dataclass
class Network:
    """The entries of one network in a checkpoint.

    Attributes:
        tensors: Under the published names, ``backbone.*``, ``head.*`` and ``dat.*``.
        given: The file's name of each.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, str] = field(default_factory=dict)

    def has(self, part: str) -> bool:
        """Whether there are entries of a part, ``backbone``, ``head`` or ``dat``."""
        return any(name.startswith(f"{part}.") for name in self.tensors)

    def as_given(self, name: str) -> str:
        """The name in the file that a published name has, or would have if it were there."""
        if name in self.given:
            return self.given[name]
        part = name.partition(".")[0]
        near = next((n for n in self.given if n.startswith(f"{part}.")), None)
        if near is not None:
            return self.given[near].removesuffix(near.removeprefix(f"{part}.")) + name.removeprefix(f"{part}.")
        other = next(iter(self.given.items()), ("backbone.", "backbone."))
        found = re.fullmatch(r"(.*?)(decode_)?(?:backbone|head|dat)\..*", other[1])
        before = found[1] if found else ""
        daformer = part == "head" and before.endswith("model.")
        return f"{before}{'decode_' if daformer else ''}{name}"


def networks_in(tensors: Mapping[str, Tensor], called: str) -> tuple[dict[str, Network], tuple[str, ...]]:
    """The networks in a checkpoint, under the published names.

    Args:
        tensors: Entries under the file's names.
        called: What messages call the file.

    Returns:
        The networks ``student``, ``teacher`` and ``frozen``, which may be empty; and the names of entries that such
        checkpoints have beside them.

    Raises:
        UserError: If an entry is none of such a checkpoint, or there twice.
    """
    networks = {owner: Network() for owner in ("student", "teacher", "frozen")}
    beside, unknown = [], []
    for name, value in tensors.items():
        bare = WRAPPERS.sub("", name)
        if match := _ENTRY.fullmatch(bare):
            network = networks[_OWNERS[match["owner"]]]
            published = f"{match['part'].removeprefix('decode_')}.{match['rest']}"
            if published in network.tensors:
                twice = f"{plain(network.given[published], 100)} and {plain(name, 100)}"
                raise UserError(f"{called} holds one entry under two names, {twice}; give a file of one network")
            network.tensors[published], network.given[published] = value, name
        else:
            (beside if TRAINING_STATE.fullmatch(bare) else unknown).append(name)
    if unknown and networks["student"].has("backbone"):
        raise UserError(
            f"{called} has entries that no published ICDA or DAFormer checkpoint has: {some(unknown)}; expected "
            "backbone.*, head.*, dat.*, copies of them (m_*, imnet_backbone.*), alignment_* and metrics"
        )
    return networks, tuple(beside)


def holds_network(names: list[str]) -> bool:
    """Whether entries are those of a published network or its kin: an encoder, and another part or network.

    Args:
        names: As a file has them.
    """
    bare = [WRAPPERS.sub("", name) for name in names]
    found = {(match["owner"], match["part"]) for name in bare if (match := _ENTRY.fullmatch(name))}
    hub = any(n.startswith("segformer.") for n in bare)  # Hugging Face's SegFormer
    return len(found | {(None, "backbone")} if hub else found) > 1 and (hub or any(p == "backbone" for _, p in found))


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
            f"the model's encoder is no MiT, its entries are such as {examples(encoder)}; the published layout has "
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
