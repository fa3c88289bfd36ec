"""MiT (Mix Transformer), the SegFormer encoder, sizes b0 to b5, registered with timm.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203. MiT and PVT v2 share their blocks (overlapping patch embedding, attention
with spatially reduced keys and values, MLP with a depthwise convolution), so MiT is timm's PVT v2 with
MiT's widths, depths and MLP ratios. Weights are the user's to bring: see ``model.encoder.weights``.
"""

from __future__ import annotations

import re
from functools import partial

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn

__all__ = ["MixTransformer"]

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "mit_b0": (2, 2, 2, 2),
    "mit_b1": (2, 2, 2, 2),
    "mit_b2": (3, 4, 6, 3),
    "mit_b3": (3, 4, 18, 3),
    "mit_b4": (3, 8, 27, 3),
    "mit_b5": (3, 6, 40, 3),
}


class MixTransformer(PyramidVisionTransformerV2):
    """Mix Transformer with a classification head; ``features_only=True`` gives its four maps (method section 3).

    Images (B, in_chans, H, W) float of any size; maps (B, C_i, ceil(H / s), ceil(W / s)), strides s = 4, 8, 16, 32.
    Arguments are those of timm's ``PyramidVisionTransformerV2``.
    """


# Published name -> ours. The first patch embedding stands before the stages here, the others within them.
_RENAMES = (
    (re.compile(r"^patch_embed1\."), "patch_embed."),
    (re.compile(r"^patch_embed([234])\."), lambda m: f"stages.{int(m[1]) - 1}.downsample."),
    (re.compile(r"^block([1234])\."), lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (re.compile(r"^norm([1234])\."), lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (re.compile(r"\.dwconv\.dwconv\."), ".dwconv."),
)


def rename_published(name: str) -> str:
    """The name in ``MixTransformer`` of a parameter of the SegFormer authors' MiT.

    For example ``block3.5.attn.kv.weight`` is ``stages.2.blocks.5.attn.kv.weight`` here. Other names come back
    unchanged.
    """
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename a checkpoint in the SegFormer authors' layout to ours; called by timm when it loads weights."""
    del model  # part of timm's calling convention
    state_dict = state_dict.get("state_dict", state_dict)
    return {rename_published(name): value for name, value in state_dict.items()}


def _cfg() -> dict[str, object]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "fixed_input_size": False,
        "license": "other",
    }


default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg() for name in DEPTHS})


def _create_mit(variant: str, pretrained: bool, **kwargs: object) -> nn.Module:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    width = 32 if variant == "mit_b0" else 64
    settings: dict[str, object] = {
        "depths": DEPTHS[variant],
        "embed_dims": (width, width * 2, width * 5, width * 8),
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": (4, 4, 4, 4),
        "sr_ratios": (8, 4, 2, 1),
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
        "drop_path_rate": 0.1,
    }
    return build_model_with_cfg(
        MixTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"flatten_sequential": True, "out_indices": out_indices},
        **{**settings, **kwargs},
    )


@register_model
def mit_b0(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """MiT-B0: 3.3 M parameters."""
    return _create_mit("mit_b0", pretrained, **kwargs)


@register_model
def mit_b1(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """MiT-B1: 13.2 M parameters."""
    return _create_mit("mit_b1", pretrained, **kwargs)


@register_model
def mit_b2(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """MiT-B2: 24.2 M parameters."""
    return _create_mit("mit_b2", pretrained, **kwargs)


@register_model
def mit_b3(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """MiT-B3: 44.1 M parameters."""
    return _create_mit("mit_b3", pretrained, **kwargs)


@register_model
def mit_b4(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """MiT-B4: 60.8 M parameters."""
    return _create_mit("mit_b4", pretrained, **kwargs)


@register_model
def mit_b5(pretrained: bool = False, **kwargs: object) -> nn.Module:
    """MiT-B5: 81.4 M parameters, the encoder of the published result."""
    return _create_mit("mit_b5", pretrained, **kwargs)


def variant_of(state_dict: dict[str, Tensor]) -> str:
    """The MiT size whose weights these are, read off the shapes.

    Args:
        state_dict: Names as in ``MixTransformer`` (see ``rename_published``).

    Returns:
        ``mit_b0`` .. ``mit_b5``.

    Raises:
        KeyError: If there is no first patch embedding.
        ValueError: If width and depths are those of no MiT.
    """
    width = state_dict["patch_embed.proj.weight"].shape[0]
    blocks = (re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name) for name in state_dict)
    last = [0, 0, 0, 0]
    for match in filter(None, blocks):
        last[int(match[1])] = max(last[int(match[1])], int(match[2]) + 1)
    for name, depths in DEPTHS.items():
        if tuple(last) == depths and width == (32 if name == "mit_b0" else 64):
            return name
    raise ValueError(f"no MiT has width {width} and depths {tuple(last)}; known: {DEPTHS}")
