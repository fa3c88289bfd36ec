"""A model's weights in the layouts that other programs load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import timm
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from icda.data.classes import ClassSet
from icda.data.prepared import whole_file
from icda.errors import UserError
from icda.export.formats import METADATA_KEY
from icda.interop import to_published
from icda.models import DAR, DAFormerHead, SegmentationModel
from icda.weights.layouts import DEPTHS, eps_remark, from_timm, layout_of, variant_of, width_of

FOLDER_FILES = ("config.json", "model.safetensors")
"""What the folder of ``layout=huggingface`` holds."""


@dataclass(frozen=True)
class Layout:
    """A layout of weights.

    Attributes:
        suffixes: Endings of its file; the first is given to one that nobody named. Empty: it is a folder.
        mit: Whether it has names for MiT encoders alone.
        loaded_by: What reads it, for the log.
    """

    suffixes: tuple[str, ...]
    mit: bool
    loaded_by: str


_PTH = (".pth", ".pt")
LAYOUTS: dict[str, Layout] = {
    "huggingface": Layout((), True, "transformers.SegformerModel.from_pretrained(FOLDER)"),
    "mmseg": Layout(_PTH, True, "MMSegmentation: backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE)"),
    "segformer": Layout(_PTH, True, "whatever takes the SegFormer authors' mit_b*.pth: SegFormer, DAFormer, HRDA"),
    "published": Layout((".ckpt", *_PTH), True, "the published ICDA, and icda.interop.load_published(FILE)"),
    "timm": Layout(
        (".safetensors",),
        False,
        "timm.create_model(NAME).load_state_dict(..., strict=False), and icda's model.encoder.weights=FILE",
    ),
}
"""By the name that ``layout=`` takes."""


def encoder_name(model: SegmentationModel) -> str:
    """timm's name of a model's encoder, such as ``mit_b5``."""
    return model.encoder.pretrained_cfg["architecture"]


def encoder_state(model: SegmentationModel) -> dict[str, Tensor]:
    """The encoder's weights under timm's names for the whole model, such as ``stages.0.blocks.0.norm1.weight``.

    What stands behind the last map, such as the classifier, is not among them: a segmentation network has none.
    """
    with torch.device("meta"):
        whole = set(timm.create_model(encoder_name(model)).state_dict())
    named = {}
    for name, value in model.encoder.state_dict().items():
        # timm's feature extractors call stages.0 stages_0, or put the whole model below "model".
        candidates = (name, name.replace("_", ".", 1), name.removeprefix("model."))
        named[next((c for c in candidates if c in whole), name)] = value
    return named


def write_weights(
    model: SegmentationModel, layout: str, path: Path, metadata: dict[str, Any], classes: ClassSet
) -> list[str]:
    """Write a model's weights in a layout; a file appears whole or not at all.

    Args:
        model: On the CPU.
        layout: One of ``LAYOUTS``; all but ``published`` hold the encoder alone.
        path: The file, or for ``huggingface`` the folder.
        metadata: Plain values; kept by ``timm`` and ``huggingface``.
        classes: Its label space.

    Returns:
        Sentences for the log.

    Raises:
        UserError: If the layout has no names for this encoder, or no place for the settings of head and DAR.
    """
    if layout == "published":
        state = to_published(model.state_dict())
        _require_published_structure(model)
        step = {} if metadata["step"] is None else {"global_step": metadata["step"]}
        with whole_file(path) as file:
            _save_pth({"state_dict": state, **step}, file)
        dar = "with DAR" if model.dar is not None else "without DAR, since the model has none"
        return [f"holds encoder, head and, {dar}, as backbone.*, head.* and dat.*", eps_remark("segformer")]
    state = encoder_state(model)
    if LAYOUTS[layout].mit and layout_of(state) != "timm":
        raise UserError(
            f"layout={layout} has names for the MiT encoders {', '.join(DEPTHS)} alone, the model's encoder is "
            f"{encoder_name(model)}; give layout=timm"
        )
    if layout == "timm":
        with whole_file(path) as file:
            _save_safetensors(state, metadata, file)
        return [f"holds the encoder {encoder_name(model)}, without anything behind its last map"]
    named = from_timm(state, layout)
    if layout == "huggingface":
        _write_folder(path, named, huggingface_config(variant_of(state), classes), metadata)
    else:
        with whole_file(path) as file:
            _save_pth(named, file)
    return [f"holds the encoder {variant_of(state)}, without the head, which is DAFormer's", eps_remark(layout)]


def _require_published_structure(model: SegmentationModel) -> None:
    """Refuse a head or a DAR that readers of a published checkpoint, which holds weights alone, build otherwise."""
    widths = model.encoder.feature_info.channels()
    with torch.device("meta"):
        head = DAFormerHead(widths, model.num_classes, model.head.classifier.in_channels)
        dar = DAR(widths) if model.dar is not None else None
    for name, own, published in (("head", model.head, head), ("dar", model.dar, dar)):
        if own is not None and _structure(own) != _structure(published):
            raise UserError(
                f"layout=published holds the published network alone, but this model's {name} has other settings "
                f"than model.{name} of conf/model/icda_daformer.yaml; give layout=segformer for its encoder"
            )


def _structure(module: nn.Module) -> list[object]:
    """Shapes of all weights, and all numbers that a module keeps but those that matter in training alone."""
    training_only = ("training", "p", "drop_prob", "inplace")
    plain = (bool, int, float, str, tuple)
    numbers = [
        (name, key, value)
        for name, child in module.named_modules()
        for key, value in vars(child).items()
        if isinstance(value, plain) and key not in training_only
    ]
    return [*numbers, *((name, value.shape) for name, value in module.state_dict().items())]


def _save_pth(content: dict[str, Any], file: BinaryIO) -> None:
    torch.save(content, file)


def _save_safetensors(state: dict[str, Tensor], metadata: dict[str, Any], file: BinaryIO) -> None:
    # transformers refuses files that do not name a format.
    texts = {"format": "pt", METADATA_KEY: json.dumps(metadata)}
    file.write(safetensors_bytes({name: value.contiguous() for name, value in state.items()}, texts))


def _write_folder(folder: Path, state: dict[str, Tensor], config: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Both files are whole before either gets its name."""
    config_file, weights_file = (folder / name for name in FOLDER_FILES)
    with _new_folder(folder), whole_file(config_file) as text, whole_file(weights_file) as file:
        _save_safetensors(state, metadata, file)
        text.write((json.dumps(config, indent=2) + "\n").encode())


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make a folder; if what is done with it fails, one that was not there before goes again."""
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not was_there and not any(folder.iterdir()):
            folder.rmdir()
        raise


def huggingface_config(variant: str, classes: ClassSet) -> dict[str, Any]:
    """What ``config.json`` of transformers' SegFormer holds for a MiT.

    Args:
        variant: ``mit_b0`` .. ``mit_b5``.
        classes: Names for a head that is put on the encoder.
    """
    width = width_of(variant)
    return {
        "architectures": ["SegformerModel"],
        "model_type": "segformer",
        "num_channels": 3,
        "num_encoder_blocks": 4,
        "depths": list(DEPTHS[variant]),
        "hidden_sizes": [width * factor for factor in (1, 2, 5, 8)],
        "num_attention_heads": [1, 2, 5, 8],
        "sr_ratios": [8, 4, 2, 1],
        "mlp_ratios": [4, 4, 4, 4],
        "patch_sizes": [7, 3, 3, 3],
        "strides": [4, 2, 2, 2],
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.1,
        "layer_norm_eps": 1e-6,
        "reshape_last_stage": True,  # the last map as (B, C, H, W), like the others
        "semantic_loss_ignore_index": classes.ignore_index,
        "id2label": {str(i): name for i, name in enumerate(classes.names)},
        "label2id": {name: i for i, name in enumerate(classes.names)},
        "torch_dtype": "float32",
    }
