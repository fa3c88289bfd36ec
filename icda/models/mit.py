"""MiT (Mix Transformer), the SegFormer encoder, sizes b0 to b5, registered with timm.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203. MiT and PVT v2 share their blocks (overlapping patch embedding, attention
with spatially reduced keys and values, MLP with a depthwise convolution), so MiT is timm's PVT v2 with
MiT's widths, depths and MLP ratios. Its pretrained weights are the SegFormer authors' on the Hugging Face hub.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.pvt_v2 import MlpWithDepthwiseConv, PyramidVisionTransformerV2
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from icda.errors import UserError
from icda.models.linear import Linear, linear, linear_backward
from icda.weights.fill import misfits
from icda.weights.layouts import DEPTHS, belongs, examples, layout_of, shapes_in, to_timm, width_of

__all__ = ["MixTransformer"]

_FIRST = "patch_embed.proj.weight"


class GELULinear(Linear):
    """GELU and a linear layer, keeping for the backward pass what enters GELU alone, and not what leaves it.

    In an MLP that is as wide as four maps: a fifth of all that an encoder keeps. Computing it again takes less than a
    hundredth of a step.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result (..., out_features) for the GELU of an input (..., in_features) float."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(F.gelu(x))
        weight, bias = self.weight, self.bias
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        return _GELULinear.apply(x, weight, bias)


class _GELULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(F.gelu(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_gelu, *others = linear_backward(gradient, F.gelu(x), weight, ctx.needs_input_grad)
        return None if of_gelu is None else torch.ops.aten.gelu_backward(of_gelu, x), *others


class MixTransformer(PyramidVisionTransformerV2):
    """Mix Transformer with a classification head; ``features_only=True`` gives its four maps (method section 3).

    Images (B, in_chans, H, W) float of any size; maps (B, C_i, ceil(H / s), ceil(W / s)), strides s = 4, 8, 16, 32.
    Arguments are those of timm's ``PyramidVisionTransformerV2``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for mlp in self.modules():
            # With dropout, which lies between both, they stay apart.
            if isinstance(mlp, MlpWithDepthwiseConv) and isinstance(mlp.act, nn.GELU) and mlp.drop.p == 0:
                mlp.act = nn.Identity()
                mlp.fc2.__class__ = GELULinear


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint of MiT under the names of ``MixTransformer``; called by timm when it loads weights.

    Args:
        state_dict: In one of ``icda.weights.layouts.LAYOUTS``, with or without ``segformer.`` before the names, or
            such a dict as ``state_dict`` of another.
        model: The model to be filled.

    Returns:
        As ``icda.weights.layouts.to_timm``, the classifier being ``head``.

    Raises:
        UserError: If the layout is not known, or an entry of the model's encoder is missing, which timm would not
            notice in a ``features_only`` model, or has another size, or there are more blocks.
    """
    state = state_dict.get("state_dict", state_dict)
    state = {name.removeprefix("segformer."): value for name, value in state.items()}
    layout = layout_of(state)
    if layout is None:
        raise UserError(
            f"the pretrained weights are not those of a MiT: their names are such as {examples(state)}; expected are "
            "names of the SegFormer authors' mit_b*.pth or of a Hugging Face SegFormer"
        )
    renamed = {re.sub(r"^classifier\.", "head.", name): value for name, value in to_timm(state, layout).items()}
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.startswith("head.")}
    if (first := renamed.get(_FIRST)) is not None and first.ndim == 4:  # timm makes it take other numbers of channels
        shapes[_FIRST] = (shapes[_FIRST][0], *first.shape[1:2], *shapes[_FIRST][2:])
    given = {name: value for name, value in state.items() if belongs(name, layout)}
    if wrong := misfits(given, shapes_in(shapes, layout)):
        raise UserError(
            f"the pretrained weights do not fit the encoder: {wrong}; get the file anew, or give "
            "model.encoder.weights=PATH of a whole one"
        )
    return renamed


def _cfg(name: str) -> dict[str, object]:
    return {
        "hf_hub_id": f"nvidia/{name.replace('_', '-')}",  # the SegFormer authors' ImageNet-1k weights
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


default_cfgs = generate_default_cfgs({f"{name}.nvidia_in1k": _cfg(name) for name in DEPTHS})


def _create_mit(variant: str, pretrained: bool, **kwargs: object) -> nn.Module:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    width = width_of(variant)
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
