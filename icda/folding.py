"""A trained network made ready for inference alone: batch norm folded into convolutions, weights in one precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from icda.models import SegmentationModel
from icda.prepared_encoder import prepare_encoder
from icda.prepared_head import prepare_head

_EXAMPLE = (64, 96)  # height and width of the picture that shows which layers follow each other
_TOLERANCE = 1e-4  # of the largest logit; float32's own rounding takes some 1e-6, a wrong pair much more


class PreparedModel(SegmentationModel):
    """A ``SegmentationModel`` for inference alone; see ``prepared``.

    It takes images in float32 and gives logits in float32, whatever precision its weights have; these are brought
    to the images' size in float32.

    Attributes:
        dtype: Of the weights, and of the maps between layers.

    Args:
        model: Where the weights come from; those that stay as they are are shared.
        dtype: See ``prepared``.
    """

    def __init__(self, model: SegmentationModel, dtype: torch.dtype) -> None:
        shared = _shared(model)
        super().__init__(copy.deepcopy(model.encoder, shared), copy.deepcopy(model.head, shared), None)
        self.mean, self.std = model.mean.detach(), model.std.detach()
        self.dtype = dtype
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, H, W) float32 of images (B, 3, H, W), normalised with ``mean`` and ``std``."""
        return super().forward(images.to(self.dtype))

    @staticmethod
    def upsample(logits: Tensor, size: tuple[int, ...]) -> Tensor:
        """Logits (B, C, h, w) of any float type brought bilinearly to ``size`` (H, W) in float32."""
        return SegmentationModel.upsample(logits.float(), size)


def prepared(model: SegmentationModel, dtype: torch.dtype = torch.float32) -> SegmentationModel:
    """A network for inference alone, with the same outputs: batch norm behind a convolution becomes a part of it.

    DAR is left out. Which layers follow each other is seen on a small picture. Where the folded network does not give
    the logits of the plain one there, as for convolutions that change their weights themselves, nothing is folded.

    Args:
        model: It is not changed, and shares the weights that stay as they are; drop it to free the others.
        dtype: Of weights and maps. Halved ones compute what autocast computes on a CPU, without casting weights for
            every picture; batch norm that is not folded keeps float32.

    Returns:
        In evaluation mode, on the model's device; for images and logits of float32.
    """
    result = PreparedModel(model, torch.float32)
    if any(isinstance(module, _BatchNorm) for module in result.modules()):
        _fold(result)
    prepare_encoder(result.encoder)
    prepare_head(result.head)
    _cast(result, dtype)
    return result


def _shared(model: nn.Module) -> dict[int, Tensor]:
    """For ``copy.deepcopy``: tensors of one's own in place of each parameter and buffer, with the same memory."""
    shared: dict[int, Tensor] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    return shared | {id(b): b.detach() for b in model.buffers()}


@torch.no_grad()
def _fold(model: PreparedModel) -> None:
    """Fold what can be folded; where the logits would change, leave all as it is."""
    plain = PreparedModel(model, torch.float32)
    image = torch.randn(1, 3, *_EXAMPLE, generator=torch.Generator().manual_seed(0)).to(model.mean.device)
    with _exact_convolutions(image.device):
        expected, pairs = _pairs(plain, image)
        for conv, norm in pairs:
            _fold_pair(model, conv, norm)
        try:
            difference = (model(image) - expected).abs().max()
            same = bool(difference <= _TOLERANCE * expected.abs().max())
        except (AttributeError, TypeError, RuntimeError):  # code that asks the batch norm for something
            same = False
    if not same:
        model.encoder, model.head = plain.encoder, plain.head


def _pairs(model: nn.Module, image: Tensor) -> tuple[Tensor, list[tuple[str, str]]]:
    """Logits of a picture, and the names of convolutions and of the batch norms that take their results."""
    made: dict[int, tuple[str, Tensor]] = {}  # results of convolutions, kept so that no other tensor gets their id
    calls: dict[str, int] = {}
    pairs = []

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (name, output)
        elif id(args[0]) in made:
            pairs.append((made[id(args[0])][0], name))

    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: note(name, module, args, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    try:
        logits = model(image)
    finally:
        for handle in handles:
            handle.remove()
    users = [conv for conv, _ in pairs]
    once = [(conv, norm) for conv, norm in pairs if users.count(conv) == calls[conv] == calls[norm] == 1]
    return logits, once


def _fold_pair(model: nn.Module, conv_name: str, norm_name: str) -> None:
    """Make a batch norm a part of the convolution before it; what timm's class does after it stays."""
    conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d), (conv_name, norm_name)
    if norm.running_mean is None or norm.running_var is None:
        return
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.requires_grad_(False)
    after = [module for module in (getattr(norm, "drop", None), getattr(norm, "act", None)) if module is not None]
    parent, _, own = norm_name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.Sequential(*after) if after else nn.Identity())


@torch.no_grad()
def _cast(model: PreparedModel, dtype: torch.dtype) -> None:
    """Weights in another type; running variances need float32's range."""
    model.dtype = dtype
    for part in (model.encoder, model.head):
        for module in part.modules():
            if not isinstance(module, _BatchNorm):
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    if tensor.is_floating_point():
                        tensor.data = tensor.to(dtype)


@contextmanager
def _exact_convolutions(device: torch.device) -> Iterator[None]:
    """No TensorFloat-32 while two networks are compared; cuDNN's convolutions use it on a GPU."""
    if device.type == "cpu":
        yield
        return
    with torch.backends.cudnn.flags(enabled=False):
        yield
