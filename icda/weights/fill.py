"""Whether weights fit a module, and copying them into an encoder by name, all of them or none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from icda.errors import UserError
from icda.weights.foreign import plain

_COUNTER = "num_batches_tracked"  # of batch norm; older files lack it, and nothing of ours reads it


def misfits(state: Mapping[str, Tensor], shapes: Mapping[str, Tensor | Sequence[int]], counters: bool = False) -> str:
    """How a state dict differs from the one that is expected: the entries' names and sizes.

    Args:
        state: Tensors by name; the names may be a stranger's.
        shapes: Every expected entry, as a shape or as a tensor of that shape (``module.state_dict()``).
        counters: Whether the batch counters of batch norm must be there, too.

    Returns:
        Words for a message, in one line, such as ``of 366 entries 2 missing such as head.a, 1 unknown such as b, 1 of
        another size such as head.c with (3,) instead of (64,)``; empty if all fits.
    """
    expected = {name: tuple(value.shape if isinstance(value, Tensor) else value) for name, value in shapes.items()}
    missing = [n for n in expected if n not in state and (counters or not n.endswith(_COUNTER))]
    unknown = [n for n in state if n not in expected]
    other = [n for n, shape in expected.items() if n in state and tuple(state[n].shape) != shape]
    said = [
        f"{len(names)} {what} such as {plain(names[0], 100)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another size", other))
        if names
    ]
    if other:
        said[-1] += f" with {tuple(state[other[0]].shape)} instead of {expected[other[0]]}"
    return f"of {len(expected)} entries {', '.join(said)}" if said else ""


def fill(encoder: nn.Module, state: Mapping[str, Tensor], what: str, advice: str) -> tuple[str, ...]:
    """Fill a module from a state dict under timm's names; nothing of it may be left as it was.

    Args:
        encoder: A timm model, whole or made with ``features_only=True``.
        state: Names of the whole timm model or of the feature extractor; entries the module lacks, such as a
            classifier's, are passed over.
        what: What the weights are called in messages, for example ``model.encoder.weights=mit_b0.pth``.
        advice: What to do if they do not fit.

    Returns:
        The names that were passed over.

    Raises:
        UserError: If an entry of the module is missing or has another shape; the module is unchanged.
    """
    own = encoder.state_dict()
    found: dict[str, str] = {}  # the module's name -> the state's
    for key in state:
        # timm's feature extractors call stages.0 stages_0, or put the whole model below "model" or "body".
        names = (key, key.replace(".", "_", 1), f"model.{key}", f"body.{key}")
        found.update({name: key for name in names if name in own})
    given = {name: found.get(name) or _as_in(state, name) for name in own}
    used = {key: state[key] for key in found.values()}
    if wrong := misfits(used, {given[name]: value for name, value in own.items()}):
        raise UserError(f"{what}: {wrong}; {advice}")
    encoder.load_state_dict({name: state[key] for name, key in found.items()}, strict=False)
    return tuple(key for key in state if key not in used)


def _as_in(state: Mapping[str, Tensor], name: str) -> str:
    """The name that an entry of a feature extractor would have in a state dict, which may be a whole model's."""
    whole = re.sub(r"^(?:model|body)\.", "", name)
    name = name if name.startswith(tuple({f"{key.partition('.')[0]}." for key in state})) else whole
    numbered = re.compile(r"^([a-z]+)_(\d+)\.")
    return name if any(map(numbered.match, state)) else numbered.sub(r"\1.\2.", name)


def set_normalisation(encoder: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Say with which mean and deviation an encoder's weights were trained; ``SegmentationModel`` takes them from it.

    Args:
        encoder: A timm model, whole or made with ``features_only=True``.
        mean: Of images in 0..1, one per channel.
        std: Their deviation.
    """
    # Not changed in place: timm's models may share the dictionary.
    encoder.pretrained_cfg = {**encoder.pretrained_cfg, "mean": tuple(mean), "std": tuple(std)}
    encoder.default_cfg = encoder.pretrained_cfg  # timm's older name of the same
