"""timm's own pretrained weights: from timm's cache or by its download, and never only some of them.

timm reads most weights from the Hugging Face hub (cache: ``HF_HOME``; ``HF_HUB_OFFLINE=1`` forbids the network) and
a few from other addresses (cache: ``TORCH_HOME``). It fills a ``features_only`` model without noticing what the
file lacks, but is strict with whole models; so a whole one is made and the encoder filled from that.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import HfHubHTTPError
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import nn

from icda.errors import UserError
from icda.weights.files import read_weights, tensors_of
from icda.weights.fill import fill
from icda.weights.foreign import plain

SECONDS = 10.0  # to wait for the hub's first answer


def fill_from_timm(encoder: nn.Module, name: str) -> None:
    """Fill an encoder with timm's own pretrained weights of its name.

    Args:
        encoder: Made by ``timm.create_model(name, features_only=True)``.
        name: Its name in timm, with or without a tag that chooses among several weights.

    Raises:
        UserError: If timm has no weights of this name, they are neither in the cache nor to be downloaded, or they
            do not fill the whole encoder.
    """
    config = get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(
            f"timm has no pretrained weights of {name}; give model.encoder.weights=PATH of a file, or none to train "
            "from random weights"
        )
    overlay: dict[str, object] = {}
    if config.hf_hub_id and (reason := _why_unreachable(config)):
        cached = _cached(config)
        if cached is None:
            raise UserError(_how_to_get(name, config, reason))
        # Left to itself, timm would try for half a minute to reach the hub before it used its cache.
        overlay = {"state_dict": tensors_of(read_weights(cached), str(cached))}
    try:
        whole = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except UserError:
        raise
    except Exception as error:  # whatever a download or a damaged file raises
        reason = f"{type(error).__name__}: {plain(error, 200)}"
        raise UserError(_how_to_get(name, config, reason)) from error
    fill(encoder, whole.state_dict(), f"timm's weights of {name} do not fill the encoder", "choose another encoder")


def _files(config: PretrainedCfg) -> list[str]:
    """The names under which timm looks for weights on the Hugging Face hub, in its order."""
    name = config.hf_hub_filename or "pytorch_model.bin"
    safe = name.replace("pytorch_model.bin", "model.safetensors").replace(".bin", ".safetensors")
    return list(dict.fromkeys((safe, name)))


def _repository(config: PretrainedCfg) -> tuple[str, str | None]:
    """Repository and revision of weights on the hub; timm writes the two as ``id@revision``."""
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None


def _cached(config: PretrainedCfg) -> Path | None:
    """The weights in the hub's cache."""
    repository, revision = _repository(config)
    for file in _files(config):
        path = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(path, str):  # else None, or a mark that the hub has no such file
            return Path(path)
    return None


def _why_unreachable(config: PretrainedCfg) -> str:
    """Why the hub does not answer, or nothing if it does; asked once, where timm's download tries many times."""
    repository, revision = _repository(config)
    try:
        get_hf_file_metadata(hf_hub_url(repository, _files(config)[-1], revision=revision), timeout=SECONDS)
    except HfHubHTTPError:
        return ""  # an answer, if not the one hoped for; timm's download will say more
    except Exception as error:  # the HTTP library's, which differs with the hub's version
        return f"{type(error).__name__}: {plain(error, 100)}"
    return ""


def _how_to_get(name: str, config: PretrainedCfg, reason: str) -> str:
    """One line: what could not be had, which file to get, and where to put it."""
    if config.hf_hub_id:
        repository, _ = _repository(config)
        file = f"{' or '.join(_files(config))} from https://huggingface.co/{repository}"
        cache = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    else:
        file = str(config.url or config.file)
        cache = Path(torch.hub.get_dir()) / "checkpoints"
    if name.startswith("mit_"):
        file += f", or the SegFormer authors' {name.partition('.')[0]}.pth,"
    return (
        f"model.encoder.weights=timm: the weights of {name} could neither be read from the cache nor downloaded "
        f"({reason}); get {file} and give model.encoder.weights=PATH of it, or copy the cache folder {cache} from "
        "a machine that has it; model.encoder.weights=none trains from random weights"
    )
