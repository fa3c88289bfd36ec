"""A model's weights in the layouts that other programs load."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import timm
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from icda.data.classes import ClassSet
from icda.data.prepared import whole_file
from icda.errors import UserError
from icda.export.graph import LEVELS
from icda.interop import to_published
from icda.models import DAR, DAFormerHead, SegmentationModel
from icda.training.checkpoint import Trained, typed_model_config
from icda.weights.files import METADATA_KEY
from icda.weights.layouts import DEPTHS, eps_remark, from_timm, layout_of, variant_of, width_of

FOLDER_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
"""What the folder of ``layout=huggingface`` holds."""


@dataclass(frozen=True)
class Layout:
    """A layout of weights.

    Attributes:
        suffixes: Endings of its file; the first is given to one that nobody named. Empty: it is a folder.
        mit: Whether it has names for MiT encoders alone.
        loaded_by: What reads it, for the log, with places for what ``reader`` fills in.
    """

    suffixes: tuple[str, ...]
    mit: bool
    loaded_by: str

    def reader(self, name: str, path: Path) -> str:
        """What reads a file that was written, to be copied as it is.

        Args:
            name: Of the encoder.
            path: Of the file or folder.
        """
        # Plain timm has no MiT; importing icda.models registers them.
        modules = "timm, icda.models" if name in DEPTHS else "timm"
        return self.loaded_by.format(name=name, path=str(path.absolute()), modules=modules)


_PTH = (".pth", ".pt")
LAYOUTS: dict[str, Layout] = {
    "huggingface": Layout((), True, "transformers.SegformerModel.from_pretrained({path!r})"),
    "mmseg": Layout(_PTH, True, "MMSegmentation: backbone.init_cfg=dict(type='Pretrained', checkpoint={path!r})"),
    "segformer": Layout(_PTH, True, "what takes the SegFormer authors' {name}.pth: SegFormer, DAFormer, HRDA"),
    "published": Layout((".ckpt", *_PTH), True, "the published ICDA, and icda.interop.load_published({path!r})"),
    "timm": Layout(
        (".safetensors",),
        False,
        "icda's model.encoder.weights={path}, and timm: import {modules}; timm.create_model({name!r}, "
        "features_only=True, pretrained=True, pretrained_cfg_overlay=dict(file={path!r})) - timm itself does not "
        "tell of entries that are missing",
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


def write_weights(trained: Trained, layout: str, path: Path, metadata: dict[str, Any]) -> list[str]:
    """Write a model's weights in a layout; a file appears whole or not at all.

    Args:
        trained: The model, on the CPU, its label space, and the configuration of its training.
        layout: One of ``LAYOUTS``; all but ``published`` hold the encoder alone.
        path: The file, or for ``huggingface`` the folder.
        metadata: Plain values; kept by ``timm`` and ``huggingface``.

    Returns:
        Sentences for the log.

    Raises:
        UserError: If the layout has no names for this encoder, or no place for the settings of head and DAR.
    """
    model = trained.model
    state = encoder_state(model)
    if LAYOUTS[layout].mit and layout_of(state) != "timm":
        raise UserError(
            f"layout={layout} has names for the MiT encoders {', '.join(DEPTHS)} alone, the model's encoder is "
            f"{encoder_name(model)}; give layout=timm"
        )
    if layout == "published":
        _require_published_structure(trained)
        published = to_published(model.state_dict())
        step = {} if metadata["step"] is None else {"global_step": metadata["step"]}
        with whole_file(path) as file:
            torch.save({"state_dict": published, **step}, file)
        dar = "with DAR" if model.dar is not None else "without DAR, since the model has none"
        return [f"holds encoder, head and, {dar}, as backbone.*, head.* and dat.*", eps_remark("segformer")]
    if layout == "timm":
        with whole_file(path) as file:
            _save_safetensors(state, metadata, file)
        return [f"holds the encoder {encoder_name(model)}, without anything behind its last map"]
    named = from_timm(state, layout)
    if layout == "huggingface":
        configs = huggingface_config(variant_of(state), trained.classes), preprocessor_config(model)
        _write_folder(path, named, configs, metadata)
    else:
        with whole_file(path) as file:
            torch.save(named, file)
    return [f"holds the encoder {variant_of(state)}, without the head, which is DAFormer's", eps_remark(layout)]


def _require_published_structure(trained: Trained) -> None:
    """Refuse a head or a DAR that readers of a published checkpoint, which holds weights alone, build otherwise.

    They take the head's width from the weights, and what matters in training alone is no part of the network.
    """
    if "model" not in trained.config:  # a published one
        return
    config = typed_model_config(trained.config)
    parts = {"head": (config.head, DAFormerHead, ("channels", "dropout"))}
    if trained.model.dar is not None:
        parts["dar"] = (config.dar, DAR, ("drop_path",))
    for name, (settings, kind, free) in parts.items():
        published = {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()}
        for key, value in asdict(settings).items():
            default = list(published[key]) if isinstance(published[key], tuple) else published[key]
            if key not in free and value != default:
                raise UserError(
                    f"layout=published holds the published network alone, but this model has model.{name}.{key}="
                    f"{value} instead of conf/model/icda_daformer.yaml's {default}; give layout=segformer for "
                    "its encoder"
                )


def _save_safetensors(state: dict[str, Tensor], metadata: dict[str, Any], file: BinaryIO) -> None:
    # transformers refuses files that do not name a format.
    texts = {"format": "pt", METADATA_KEY: json.dumps(metadata)}
    file.write(safetensors_bytes({name: value.contiguous() for name, value in state.items()}, texts))


def _write_folder(
    folder: Path, state: dict[str, Tensor], configs: tuple[dict[str, Any], ...], metadata: dict[str, Any]
) -> None:
    """All files are whole before one gets its name."""
    with _new_folder(folder), ExitStack() as stack:
        *texts, weights = (stack.enter_context(whole_file(folder / name)) for name in FOLDER_FILES)
        _save_safetensors(state, metadata, weights)
        for text, config in zip(texts, configs, strict=True):
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


def preprocessor_config(model: SegmentationModel) -> dict[str, Any]:
    """What ``preprocessor_config.json`` of transformers' SegFormer holds: how pictures are normalised.

    Pictures keep their size; that of training is not known to transformers.

    Args:
        model: Its mean and deviation are written.
    """
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": False,
        "do_rescale": True,
        "rescale_factor": 1 / LEVELS,
        "do_normalize": True,
        "image_mean": model.mean.tolist(),
        "image_std": model.std.tolist(),
        "do_reduce_labels": False,
    }
