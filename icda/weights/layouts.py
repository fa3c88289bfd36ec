"""The layouts in which MiT encoders are stored, as one table that is read in both directions.

"segformer" is the SegFormer authors' (https://arxiv.org/abs/2105.15203), which DAFormer, HRDA, MIC, Refign and the
published ICDA share; "mmseg" is MMSegmentation's since 0.20; "huggingface" is that of the files on the Hugging Face
hub; "huggingface5" are the module names inside transformers 5. "timm" are the names of this project's
``MixTransformer``. Names are those of the bare encoder; prefixes of whole models are cut off in
``icda.weights.encoder``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from icda.weights.foreign import plain

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "mit_b0": (2, 2, 2, 2),
    "mit_b1": (2, 2, 2, 2),
    "mit_b2": (3, 4, 6, 3),
    "mit_b3": (3, 4, 18, 3),
    "mit_b4": (3, 8, 27, 3),
    "mit_b5": (3, 6, 40, 3),
}


def width_of(variant: str) -> int:
    """Channels of the first map of a MiT size; the others have 2, 5 and 8 times as many."""
    return 32 if variant == "mit_b0" else 64


def shapes_of(variant: str) -> dict[str, tuple[int, ...]]:
    """Names in ``MixTransformer`` and shapes of all weights of a MiT size, without the classifier."""
    modules: dict[str, tuple[int, ...]] = {}
    before = 3
    for s, (factor, depth, reduction) in enumerate(zip((1, 2, 5, 8), DEPTHS[variant], (8, 4, 2, 1), strict=True)):
        d = width_of(variant) * factor
        embed, kernel = (f"stages.{s}.downsample", 3) if s else ("patch_embed", 7)
        modules |= {f"{embed}.proj": (d, before, kernel, kernel), f"{embed}.norm": (d,), f"stages.{s}.norm": (d,)}
        block = {"norm1": (d,), "attn.q": (d, d), "attn.kv": (2 * d, d), "attn.proj": (d, d), "norm2": (d,)}
        block |= {"mlp.fc1": (4 * d, d), "mlp.dwconv": (4 * d, 1, 3, 3), "mlp.fc2": (d, 4 * d)}
        if reduction > 1:
            block |= {"attn.sr": (d, d, reduction, reduction), "attn.norm": (d,)}
        modules |= {f"stages.{s}.blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}
        before = d
    leaves = ((name, leaf) for name in modules for leaf in ("weight", "bias"))
    return {f"{name}.{leaf}": modules[name] if leaf == "weight" else modules[name][:1] for name, leaf in leaves}


@dataclass(frozen=True)
class NormEps:
    """The eps of an implementation's layer norms.

    Attributes:
        block: Of the two norms of every block and of the norm that ends a stage.
        patch_embed: Of the norm after each patch embedding.
        reduction: Of the norm after the spatial reduction of keys and values.
    """

    block: float
    patch_embed: float
    reduction: float


_SEGFORMER = NormEps(block=1e-6, patch_embed=1e-5, reduction=1e-5)
_HUGGINGFACE = NormEps(block=1e-5, patch_embed=1e-5, reduction=1e-5)  # its layer_norm_eps setting is read nowhere

NORM_EPS: dict[str, NormEps] = {
    "timm": _SEGFORMER,
    "segformer": _SEGFORMER,
    "mmseg": NormEps(block=1e-6, patch_embed=1e-6, reduction=1e-6),
    "huggingface": _HUGGINGFACE,
    "huggingface5": _HUGGINGFACE,
}

LAYOUTS = tuple(NORM_EPS)

# One row a module, one column a layout, in the order of LAYOUTS. {s} is the stage from 0, {t} from 1, {i} the block.
# Where rows share a name in a column, that tensor is the rows' tensors one below the other, in the table's order.
_TABLE = (
    (
        "stages.{s}.downsample.proj.",
        "patch_embed{t}.proj.",
        "layers.{s}.0.projection.",
        "encoder.patch_embeddings.{s}.proj.",
        "stages.{s}.patch_embeddings.proj.",
    ),
    (
        "stages.{s}.downsample.norm.",
        "patch_embed{t}.norm.",
        "layers.{s}.0.norm.",
        "encoder.patch_embeddings.{s}.layer_norm.",
        "stages.{s}.patch_embeddings.layer_norm.",
    ),
    *(
        (
            "stages.{s}.blocks.{i}." + ours,
            "block{t}.{i}." + segformer,
            "layers.{s}.1.{i}." + mmseg,
            "encoder.block.{s}.{i}." + huggingface,
            "stages.{s}.blocks.{i}." + huggingface5,
        )
        for ours, segformer, mmseg, huggingface, huggingface5 in (
            ("norm1.", "norm1.", "norm1.", "layer_norm_1.", "layernorm_before."),
            ("attn.q.", "attn.q.", "attn.attn.in_proj_", "attention.self.query.", "attention.q_proj."),
            ("attn.kv.", "attn.kv.", "attn.attn.in_proj_", "attention.self.key.", "attention.k_proj."),
            ("attn.kv.", "attn.kv.", "attn.attn.in_proj_", "attention.self.value.", "attention.v_proj."),
            ("attn.proj.", "attn.proj.", "attn.attn.out_proj.", "attention.output.dense.", "attention.o_proj."),
            (
                "attn.sr.",
                "attn.sr.",
                "attn.sr.",
                "attention.self.sr.",
                "attention.sequence_reduction.sequence_reduction.",
            ),
            (
                "attn.norm.",
                "attn.norm.",
                "attn.norm.",
                "attention.self.layer_norm.",
                "attention.sequence_reduction.layer_norm.",
            ),
            ("norm2.", "norm2.", "norm2.", "layer_norm_2.", "layernorm_after."),
            ("mlp.fc1.", "mlp.fc1.", "ffn.layers.0.", "mlp.dense1.", "mlp.fc1."),
            ("mlp.dwconv.", "mlp.dwconv.dwconv.", "ffn.layers.1.", "mlp.dwconv.dwconv.", "mlp.dwconv.dwconv."),
            ("mlp.fc2.", "mlp.fc2.", "ffn.layers.4.", "mlp.dense2.", "mlp.fc2."),
        )
    ),
    ("stages.{s}.norm.", "norm{t}.", "layers.{s}.2.", "encoder.layer_norm.{s}.", "stages.{s}.layer_norm."),
)

# Linear layers of the MLP, which mmseg has as 1 x 1 convolutions.
_MLP_WEIGHT = re.compile(r"\.ffn\.layers\.[04]\.weight$")

_FIELDS = {"{s}": r"(?P<s>[0-3])", "{t}": r"(?P<t>[1-4])", "{i}": r"(?P<i>\d{1,4})"}


@dataclass(frozen=True)
class _Place:
    """Where an entry of one layout stands: the rows of the table that share its name, stage, block and leaf."""

    rows: tuple[int, ...]
    stage: int
    block: int
    leaf: str


@cache
def _patterns(layout: str) -> tuple[tuple[tuple[int, ...], re.Pattern[str]], ...]:
    """The rows that share a name in a layout, and the pattern of that name."""
    groups: dict[str, list[int]] = {}
    for row, names in enumerate(_TABLE):
        groups.setdefault(names[LAYOUTS.index(layout)], []).append(row)
    patterns = []
    for template, rows in groups.items():
        pattern = template.replace(".", r"\.")
        for field, expression in _FIELDS.items():
            pattern = pattern.replace(field, expression)
        patterns.append((tuple(rows), re.compile(pattern + "(?P<leaf>weight|bias)")))
    return tuple(patterns)


@cache
def _first() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Each layout, and the pattern of its first patch embedding's entries below any prefix."""
    found = []
    for layout in LAYOUTS:
        names = [_name(row, _Place((row,), 0, 0, ""), layout) for row in (0, 1)]
        inner = "|".join(re.escape(name) for name in names)
        found.append((layout, re.compile(rf"(?P<prefix>(?:.+?\.)??)(?:{inner})(?:weight|bias)")))
    return tuple(found)


def _place(name: str, layout: str) -> _Place | None:
    """The place of a name of a layout, or None if it has no such name."""
    if layout == "timm":  # the first patch embedding stands before the stages, the others within them
        name = re.sub(r"^patch_embed\.", "stages.0.downsample.", name)
    for rows, pattern in _patterns(layout):
        if match := pattern.fullmatch(name):
            found = match.groupdict()
            stage = int(found["s"]) if "s" in found else int(found["t"]) - 1
            return _Place(rows, stage, int(found.get("i", 0)), found["leaf"])
    return None


def _name(row: int, place: _Place, layout: str) -> str:
    """The name in a layout of the entry that holds a row of the table."""
    template = _TABLE[row][LAYOUTS.index(layout)]
    name = template.format(s=place.stage, t=place.stage + 1, i=place.block) + place.leaf
    return re.sub(r"^stages\.0\.downsample\.", "patch_embed.", name) if layout == "timm" else name


def _rows_of(name: str, layout: str) -> tuple[int, ...]:
    place = _place(name, layout)
    assert place is not None, (name, layout)
    return place.rows


def _convert(state: Mapping[str, Tensor], source: str, target: str) -> dict[str, Tensor]:
    """A state dict of one layout in another; names that ``source`` does not have stay as they are."""
    result: dict[str, Tensor] = {}
    parts: dict[str, dict[int, tuple[str, Tensor, Tensor]]] = {}  # by target: row -> source's name, tensor, its part
    for name, value in state.items():
        place = _place(name, source)
        if place is None:
            result[name] = value
            continue
        tensor = value.flatten(1) if source == "mmseg" and _MLP_WEIGHT.search(name) and value.ndim == 4 else value
        there = _name(place.rows[0], place, target)
        if _rows_of(there, target) == place.rows:
            linear = target == "mmseg" and _MLP_WEIGHT.search(there) and tensor.ndim == 2
            result[there] = tensor[:, :, None, None] if linear else tensor
            continue
        pieces = tensor.chunk(len(place.rows)) if tensor.ndim else ()
        for row, piece in zip(place.rows, pieces, strict=False):
            parts.setdefault(_name(row, place, target), {})[row] = (name, value, piece)
    for there, found in parts.items():
        rows = _rows_of(there, target)
        if set(found) == set(rows):
            result[there] = torch.cat([found[row][2] for row in rows])
        else:  # not all of it is there: the entries keep their names, so that they can be told
            result.update({name: value for name, value, _ in found.values()})
    return result


def encoders_in(names: Iterable[str]) -> dict[str, str]:
    """The MiT encoders among the entries of a whole model, told by their first patch embeddings.

    Args:
        names: Names with any prefix.

    Returns:
        Layout (one of ``LAYOUTS``) by prefix, such as ``{"backbone.": "segformer", "m_backbone.": "segformer"}``; the
        prefix of a bare encoder is empty.
    """
    found = {}
    for name in names:
        for layout, pattern in _first():
            if match := pattern.fullmatch(name):
                found.setdefault(match["prefix"], layout)
    return found


def layout_of(state: Mapping[str, Tensor]) -> str | None:
    """The layout of a bare encoder's state dict, by the names of its first patch embedding.

    Args:
        state: Names without the prefix of a whole model, in any layout.

    Returns:
        One of ``LAYOUTS``, or None if there is no first patch embedding of any.
    """
    return encoders_in(state).get("")


def belongs(name: str, layout: str) -> bool:
    """Whether a name is one of an encoder's in a layout, of whatever size."""
    return _place(name, layout) is not None


def to_timm(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """An encoder's weights under the names and in the shapes of ``MixTransformer``, bit for bit.

    Args:
        state: Names of the bare encoder in ``layout``.
        layout: One of ``LAYOUTS``.

    Returns:
        Names such as ``stages.2.blocks.5.attn.kv.weight``. Entries that the layout does not know (a classifier) and
        parts whose other half is missing keep their names. Tensors that are joined or split are copies, the others
        are the same or views.
    """
    return _convert(state, layout, "timm")


def from_timm(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The inverse of ``to_timm``, bit for bit.

    Args:
        state: Names of ``MixTransformer``.
        layout: One of ``LAYOUTS``.

    Returns:
        Names and shapes of the bare encoder in ``layout``; each tensor that was joined or split has its own memory.
    """
    return _convert(state, "timm", layout)


def rename_published(name: str) -> str:
    """The name in ``MixTransformer`` of a parameter of the SegFormer authors' MiT.

    For example ``block3.5.attn.kv.weight`` is ``stages.2.blocks.5.attn.kv.weight`` here. Other names come back
    unchanged.
    """
    place = _place(name, "segformer")
    return name if place is None else _name(place.rows[0], place, "timm")


def eps_remark(layout: str) -> str:
    """One sentence on what the eps of an implementation's layer norms makes of the weights read from its file.

    Args:
        layout: One of ``LAYOUTS``.
    """
    ours, theirs = NORM_EPS["timm"], NORM_EPS[layout]
    if ours == theirs:
        return f"{layout} and this encoder have the same eps in all layer norms, so that their maps agree."
    names = {"block": "blocks and stages", "patch_embed": "patch embeddings", "reduction": "spatial reductions"}
    other = [key for key in names if getattr(ours, key) != getattr(theirs, key)]
    where = " and ".join(names[key] for key in other)
    values = f"{getattr(theirs, other[0]):g} where this encoder has {getattr(ours, other[0]):g}"
    known = "huggingface" if layout.startswith("huggingface") else layout
    return (
        f"{known} has eps {values} in the layer norms of {where}: the same weights give maps that differ from "
        f'its own by some 1e-5; icda.interop.load_encoder(path, eps="{known}") has its eps.'
    )


def shapes_in(shapes: Mapping[str, Sequence[int]], layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layout.

    Args:
        shapes: Names of ``MixTransformer`` and shapes (see ``shapes_of``).
        layout: One of ``LAYOUTS``.
    """
    empty = {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}
    return {name: tuple(value.shape) for name, value in from_timm(empty, layout).items()}


def variant_of(state: Mapping[str, Tensor], layout: str = "timm") -> str:
    """The MiT size whose weights these are, read off the shapes and the numbers of blocks.

    Args:
        state: Names of ``MixTransformer`` (see ``to_timm``).
        layout: Under whose names the message speaks of blocks, one of ``LAYOUTS``.

    Returns:
        ``mit_b0`` .. ``mit_b5``.

    Raises:
        ValueError: If there is no first patch embedding, or width and depths are those of no MiT; the message is one
            line that names the nearest size and the blocks that it lacks or has too many.
    """
    first = state.get("patch_embed.proj.weight")
    if first is None or not first.ndim:
        raise ValueError("it has no weights of a first patch embedding")
    width = first.shape[0]
    found: list[set[int]] = [set(), set(), set(), set()]
    for name in state:
        if match := re.match(r"stages\.([0-3])\.blocks\.(\d{1,4})\.", name):
            found[int(match[1])].add(int(match[2]))
    depths = tuple(max(blocks, default=-1) + 1 for blocks in found)
    sizes = {name: known for name, known in DEPTHS.items() if width_of(name) == width}
    for name, known in sizes.items():
        if depths == known:
            return name
    if not sizes:
        raise ValueError(
            f"no MiT has width {width}; mit_b0 has {width_of('mit_b0')}, the others {width_of('mit_b1')}"
        )

    def distance(name: str) -> tuple[int, int]:
        off = [abs(a - b) for a, b in zip(depths, DEPTHS[name], strict=True)]
        return sum(map(bool, off)), sum(off)

    near = min(sizes, key=distance)
    pairs = list(enumerate(zip(found, DEPTHS[near], strict=True)))
    lacking = [_block(s, i, layout) for s, (blocks, n) in pairs for i in range(n) if i not in blocks]
    beyond = [_block(s, i, layout) for s, (blocks, n) in pairs for i in sorted(blocks) if i >= n]
    said = [f"{what} {some(names)}" for what, names in (("lacks", lacking), ("has beyond it", beyond)) if names]
    raise ValueError(
        f"no MiT has width {width} and {depths} blocks; nearest is {near} with {DEPTHS[near]}: "
        f"it {' and '.join(said)}"
    )


def _block(stage: int, block: int, layout: str) -> str:
    """The beginning of the names of a block's entries."""
    template = _TABLE[2][LAYOUTS.index(layout)]
    return template.format(s=stage, t=stage + 1, i=block).rsplit(".", 2)[0]


def some(names: Sequence[str]) -> str:
    """How many names there are and the first few, for a message: ``5 (a, b, c, ...)``; they may be a stranger's."""
    return f"{len(names)} ({examples(names)}{', ...' if len(names) > 3 else ''})" if names else "0"


def examples(names: Iterable[str]) -> str:
    """The first three of names that may be a stranger's, for a message: ``a, b, c``."""
    return ", ".join(plain(name, 80) for name, _ in zip(names, range(3), strict=False)) or "none"
