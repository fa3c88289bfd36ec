"""Encoders filled from weights files: MiT in every layout and container, other timm models under timm's names."""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import Tensor, nn

from icda.errors import UserError
from icda.weights.files import METADATA_KEY, STATE_KEYS, read_weights, tensors_of
from icda.weights.fill import fill, misfits, set_normalisation
from icda.weights.foreign import plain
from icda.weights.layouts import (
    DEPTHS,
    NORM_EPS,
    belongs,
    encoders_in,
    eps_remark,
    examples,
    shapes_in,
    shapes_of,
    some,
    to_timm,
    variant_of,
)

_LOG = logging.getLogger(__name__)

# What wraps a whole model's names: parallel training, compilation, DAFormer's and Lightning's "model".
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")

# Prefixes of the encoder that a checkpoint was trained for; teachers and frozen copies have others.
_STUDENT = re.compile(
    r"(?:module\.|_orig_mod\.|model\.)*(?:backbone\.|segformer\.|encoder\.)?(?:module\.|_orig_mod\.)*"
)

# Copies of the trained network, below WRAPPERS: mean teachers and frozen ImageNet encoders, part by part.
_COPY = re.compile(
    r"(?:(?:m_|imnet_|(?:ema|imnet)_model\.)backbone\.(?P<encoder>.+)"
    r"|m_(?:head|dat|hrda_scale_attention)\..+"
    r"|(?:ema|imnet)_model\.(?:decode_head|auxiliary_head)\..+)"
)

# What checkpoints hold beside the networks, below WRAPPERS: Refign's alignment network, metrics, counters.
TRAINING_STATE = re.compile(
    r"alignment_(?:backbone|head)\..+|(?:valid|val|test|train)_metrics\..+|loss\.weight"
    r"|data_preprocessor\.(?:mean|std)|epoch|iter|global_step"
)

# What trained networks have beside the encoder, below WRAPPERS.
_BESIDE = re.compile(
    r"(?:head|decode_head|auxiliary_head|classifier|segmentation_head|decoder|dat|dar|hrda_scale_attention)\..+"
    r"|mean|std"
)
_WEIGHT = re.compile(r"(?:^|\.)(?:weight|bias|running_mean|running_var)$")
_CLASSIFIER = re.compile(r"(?:head|classifier)\.(?:weight|bias)")  # of the ImageNet files, below the encoder's prefix


@dataclass(frozen=True)
class EncoderWeights:
    """The weights of a MiT and what was beside them.

    Attributes:
        state: Names of ``MixTransformer`` (``patch_embed.``, ``stages.0.blocks.0.``), float32, complete.
        variant: ``mit_b0`` .. ``mit_b5``.
        layout: The file's, one of ``icda.weights.layouts.LAYOUTS``.
        unused: Names of the file's other entries, all of them known: heads, teachers, alignment, counters.
    """

    state: dict[str, Tensor]
    variant: str
    layout: str
    unused: tuple[str, ...]


def as_float32(state: Mapping[str, Tensor], called: str) -> dict[str, Tensor]:
    """Floating-point tensors of any precision in float32, others as they are.

    Args:
        state: Tensors by name.
        called: What messages call their source.

    Raises:
        UserError: If a value is not a number or infinite, or weights are whole numbers (quantised); the message
            names the entries.
    """
    if odd := [n for n, value in state.items() if _WEIGHT.search(n) and not value.is_floating_point()]:
        raise UserError(
            f"{called} holds no weights to compute with: {plain(odd[0], 100)} is {state[odd[0]].dtype}, expected "
            "floating-point numbers; give the file before it was quantised"
        )
    result = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    if broken := [name for name, value in result.items() if not value.isfinite().all()]:
        raise UserError(
            f"{called} has weights that are not finite numbers (NaN or infinite): {some(broken)}; the file is "
            "damaged or its training diverged, give another"
        )
    return result


def encoder_weights(tensors: Mapping[str, Tensor], called: str) -> EncoderWeights:
    """The MiT encoder among the tensors of a checkpoint; of several, the trained one.

    Args:
        tensors: Entries under the names of any known container.
        called: What messages call their source.

    Raises:
        UserError: See ``read_encoder``.
    """
    prefix, layout = _pick(tensors, called)
    own: dict[str, Tensor] = {}
    unused: list[str] = []
    unknown: list[str] = []
    for name, value in tensors.items():
        inner = name.removeprefix(prefix) if name.startswith(prefix) else ""
        inner = re.sub(r"^stages_(\d)\.", r"stages.\1.", inner) if layout == "timm" else inner
        if belongs(inner, layout):
            own[inner] = value
        elif _CLASSIFIER.fullmatch(inner) or _is_known(name, layout):
            unused.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{called} has entries that belong neither to a MiT in the layout {layout} nor to a known checkpoint "
            f"around it: {some(unknown)}; give an unchanged file of MiT weights"
        )
    try:
        variant = variant_of(to_timm({n: value.to("meta") for n, value in own.items()}, layout), layout)
    except ValueError as error:
        raise UserError(f"{called} does not hold the weights of a whole MiT: {error}") from None
    given = {f"{prefix}{n}": value for n, value in own.items()}  # as the file calls them
    if wrong := misfits(given, {f"{prefix}{n}": size for n, size in shapes_in(shapes_of(variant), layout).items()}):
        raise UserError(f"{called} are not weights of {variant}: {wrong}; give a whole file of {variant}")
    own = {name.removeprefix(prefix): value for name, value in as_float32(given, called).items()}
    return EncoderWeights(to_timm(own, layout), variant, layout, tuple(unused))


def _is_known(name: str, layout: str) -> bool:
    """Whether an entry is one of those that checkpoints hold beside an encoder of this layout."""
    name = WRAPPERS.sub("", name)
    if match := _COPY.fullmatch(name):
        return match["encoder"] is None or belongs(match["encoder"], layout)
    return bool(_BESIDE.fullmatch(name) or TRAINING_STATE.fullmatch(name))


def log_passed_over(called: str, names: Iterable[str], content: Mapping[str, Any]) -> None:
    """Say in one line of the log what of a file is not used, nothing if all is.

    Args:
        called: What messages call the file.
        names: The entries of the state dict that are not used.
        content: What the file holds, of which all but the state dict and plain values is passed over.
    """
    counts = Counter(_group(WRAPPERS.sub("", name)) for name in names)
    said = [f"{plain(group, 40)} ({n} {'entry' if n == 1 else 'entries'})" for group, n in counts.items()]
    nested = {key: value for key, value in content.items() if isinstance(value, Mapping | list | tuple) and value}
    state = next((key for key in STATE_KEYS if isinstance(nested.get(key), Mapping)), None)
    said += [plain(key, 40) for key in nested if key != state]
    if said:
        more = f" and {len(said) - 20} more" if said[20:] else ""
        _LOG.info("%s: passed over: %s%s", called, ", ".join(said[:20]), more)


def _group(name: str) -> str:
    """What a log calls an entry and its like."""
    match = re.match(r"m_|(?:ema|imnet)_model\.|imnet_|alignment_", name)
    return f"{match[0]}*" if match else name.partition(".")[0]


def _pick(tensors: Mapping[str, Tensor], called: str) -> tuple[str, str]:
    """Prefix and layout of the encoder to read."""
    found = encoders_in(tensors)
    trained = [prefix for prefix in found if _STUDENT.fullmatch(prefix)]
    if len(trained) == 1:
        return trained[0], found[trained[0]]
    if trained:
        raise UserError(f"{called} holds {len(trained)} MiT encoders ({examples(trained)}); give a file of one")
    if found:
        copies = all(_COPY.fullmatch(WRAPPERS.sub("", f"{prefix}x")) for prefix in found)
        what = "a mean teacher or a frozen copy, not the trained encoder" if copies else "no trained encoder's name"
        raise UserError(
            f"{called} holds a MiT only under {examples(found)}, which is {what}; expected its entries bare or under "
            "backbone., segformer. or encoder."
        )
    raise UserError(
        f"{called} holds no MiT encoder: none of its {len(tensors)} entries, such as {examples(tensors)}, is a first "
        "patch embedding (patch_embed1., layers.0.0., encoder.patch_embeddings.0.); give weights of mit_b0 .. mit_b5"
    )


def read_encoder(path: str | Path) -> EncoderWeights:
    """The MiT encoder of any file or folder that is known to hold one.

    These are: the SegFormer authors' ImageNet files (``mit_b*.pth``) and segmentation checkpoints, DAFormer's, HRDA's
    and MIC's checkpoints, Refign's and the published ICDA's (the student's encoder is taken), MMSegmentation's,
    Hugging Face files and folders (of transformers 4 and 5), and checkpoints of this project.

    Args:
        path: A file (``.pth``, ``.ckpt``, ``.bin``, ``.safetensors``) or a folder as transformers writes it.

    Returns:
        The weights, complete and in float32. How the layout's own implementation differs in the eps of its norms is
        said by ``icda.weights.layouts.eps_remark``. What of the file is not used is logged.

    Raises:
        UserError: If it cannot be read, holds no MiT, lacks weights or has more, of any size, than a MiT has, has
            entries that are not known, or values that are not finite.
    """
    content = read_weights(path)
    weights = encoder_weights(tensors_of(content, str(path)), str(path))
    log_passed_over(str(path), weights.unused, content)
    return weights


def fill_encoder(encoder: nn.Module, name: str, path: str | Path) -> None:
    """Fill a timm encoder from a file; a file that does not fit whole is refused.

    Args:
        encoder: The model that ``timm.create_model(name, features_only=True)`` made; or the whole model.
        name: Its name in timm. For a MiT any file that ``read_encoder`` knows; for another model a file under timm's
            names, of the whole model (its classifier is dropped) or of the feature extractor, or a checkpoint of
            this project.
        path: The file or folder. The normalisation that a checkpoint of this project holds is taken, too.

    Raises:
        UserError: If it cannot be read, lacks weights, has them in other sizes or of another model, or has entries
            that are not known.
    """
    called = f"model.encoder.weights={path}"
    content = read_weights(path, called)
    tensors = tensors_of(content, called)
    if name.split(".")[0] in DEPTHS:
        weights = encoder_weights(tensors, called)
        if weights.variant != name.split(".")[0]:
            raise UserError(
                f"{called}: the weights are those of {weights.variant}, model.encoder.name is {name}; give a file of "
                f"{name}, or model.encoder.name={weights.variant}"
            )
        if NORM_EPS[weights.layout] != NORM_EPS["timm"]:
            _LOG.info("%s: %s", called, eps_remark(weights.layout))
        state, unused = weights.state, weights.unused
    else:
        state, unused = _of_timm(tensors, name, encoder, called)
        state = as_float32(state, called)
    unused += fill(encoder, state, f"{called} are not weights of {name}", f"give a file of {name}")
    if stated := _normalisation(tensors, Path(path).expanduser(), called):
        set_normalisation(encoder, *stated)
    log_passed_over(called, tuple(n for n in unused if n not in ("mean", "std")), content)


def _normalisation(
    tensors: Mapping[str, Tensor], path: Path, called: str
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation that a checkpoint of ours or a file of ``icda.export`` states; they need not be timm's."""
    stated: object = None
    file = path / "model.safetensors" if path.is_dir() else path
    if {"mean", "std"} <= tensors.keys():
        stated = {name: tensors[name].tolist() for name in ("mean", "std")}
    elif file.suffix == ".safetensors" and file.is_file():
        with safe_open(file, "pt") as opened:
            stated = (opened.metadata() or {}).get(METADATA_KEY)
    if stated is None:
        return None
    try:
        values = json.loads(stated) if isinstance(stated, str) else stated
        mean, std = (tuple(float(v) for v in values[name]) for name in ("mean", "std"))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{called}: its normalisation is damaged ({plain(error, 80)}); get the file anew") from error
    if not (len(mean) == len(std) == 3 and all(map(math.isfinite, mean)) and all(0 < v < math.inf for v in std)):
        raise UserError(f"{called}: its normalisation is mean {mean}, deviation {std}, expected three numbers each")
    return mean, std


def _of_timm(
    tensors: Mapping[str, Tensor], name: str, encoder: nn.Module, called: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The entries of a file under timm's names, without any prefix, and the names of what a checkpoint of ours has.

    Entries that the model does not have are refused.
    """
    own = set(encoder.state_dict())
    prefix = re.compile(r"^(?:module\.|_orig_mod\.)+")
    state = {prefix.sub("", given): value for given, value in tensors.items()}
    beside: tuple[str, ...] = ()
    if any(n.startswith("encoder.") for n in state) and not any(n.startswith("encoder.") for n in own):
        beside = tuple(n for n in state if _is_known(n, "timm"))
        state = {n.removeprefix("encoder."): value for n, value in state.items() if not _is_known(n, "timm")}
    whole = _entries_of(name)
    state = {n if n in own or n in whole else n.removeprefix("model."): value for n, value in state.items()}
    unknown = [n for n in state if not (n in own or n in whole or n.endswith("num_batches_tracked"))]
    if unknown:
        raise UserError(
            f"{called} are not weights of {name}: there are entries that it does not have, {some(unknown)}; give a "
            f"file of {name} under timm's names"
        )
    return state, beside


def _entries_of(name: str) -> set[str]:
    """Names of all entries of a whole timm model, its classifier included."""
    try:
        with torch.device("meta"):
            return set(timm.create_model(name, pretrained=False).state_dict())
    except (NotImplementedError, RuntimeError):  # models whose constructor computes with values
        return set(timm.create_model(name, pretrained=False).state_dict())


def set_norm_eps(encoder: nn.Module, layout: str) -> None:
    """Give a MiT the eps that another implementation has in its layer norms.

    Args:
        encoder: A ``MixTransformer`` or its feature extractor; changed in place.
        layout: Whose eps, one of ``icda.weights.layouts.LAYOUTS``.
    """
    eps = NORM_EPS[layout]
    for name, module in encoder.named_modules():
        if isinstance(module, nn.LayerNorm):
            if name.endswith(("patch_embed.norm", "downsample.norm")):
                module.eps = eps.patch_embed
            else:
                module.eps = eps.reduction if name.endswith("attn.norm") else eps.block
